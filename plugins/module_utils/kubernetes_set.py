# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A set of objects in a cluster: applied, pruned, waited for, and known again when nobody touched it.

What was applied stands in one ConfigMap: for each object a checksum of its declaration and a signature of the fields
that are ours in the live one. Both being as before, the object is not sent again. The record forgets an object before
it is written, so that a run that was killed in between leaves nothing that looks untouched.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_api import (
    CONFIG_MAPS,
    EVENTS,
    NODES,
    PODS,
    Api,
    ApiError,
    ConflictError,
    InvalidError,
    NotFoundError,
    Resource,
    selector,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_manifest import (
    BUILT_IN_GROUPS,
    SET_LABEL,
    Declared,
    Identity,
    check_scope,
    namespaced,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_object import (
    AWAITED,
    WORKLOADS,
    Object,
    difference,
    differs,
    grouped,
    holds,
    lost_nodes,
    overlaid,
    pod_ready,
    pod_trouble,
    signature,
    unready,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RECORD_NAMESPACE = "kube-system"
RECORD_MANAGER = "groundplane-sets"
DEFINITION = ("apiextensions.k8s.io", "CustomResourceDefinition")
PROTECTED = frozenset({("", "Namespace"), DEFINITION, ("", "PersistentVolume"), ("", "PersistentVolumeClaim")})
"""Kinds whose deletion takes along what no declaration brings back."""
SECRETS = ("", "Secret")
SHORT_WAIT = 15.0
"""Seconds in which a definition or a webhook must be there even where nothing else is waited for."""
FIRST_POLL, LAST_POLL = 0.25, 2.0
"""Seconds between two looks, growing."""
LONGEST = 400
"""Characters of a message that are shown."""
CONFLICTS = 5
"""Times that an apply is sent again because others write the same object."""


class SetError(Exception):
    """The set is not as declared; the text says which object and why."""


@dataclass
class Outcome:
    """What was done, or would be: names of objects such as `Deployment data/cache`."""

    created: list[str] = field(default_factory=list)
    configured: list[str] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    unchanged: int = 0
    warnings: list[str] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything differs."""
        return bool(self.created or self.configured or self.pruned)


@dataclass
class Record:
    """What the last run left in the ConfigMap of the set."""

    resources: dict[tuple[str, str], Resource] = field(default_factory=dict)
    objects: dict[Identity, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def from_text(cls, text: str) -> Record:
        """Read it. One that is not understood is as good as none: all objects are compared anew."""
        try:
            whole = json.loads(text)
            resources = [Resource(*item) for item in whole["resources"]]
            objects = {Identity(*item[:4]): (str(item[4]), str(item[5])) for item in whole["objects"]}
        except (ValueError, KeyError, TypeError, IndexError):
            return cls()
        return cls({(one.group, one.kind): one for one in resources}, objects)

    def text(self) -> str:
        """Write it, always in the same order."""
        resources = [
            [one.group, one.version, one.kind, one.plural, one.namespaced] for one in sorted(self.resources.values())
        ]
        objects = [[*identity, *state] for identity, state in sorted(self.objects.items())]
        return json.dumps({"resources": resources, "objects": objects}, separators=(",", ":"))


class ObjectSet:
    """One set in one cluster."""

    def __init__(
        self,
        api: Api,
        name: str,
        declared: Sequence[Declared],
        *,
        check: bool = False,
        wait_seconds: float = 0,
        prune_allow: Iterable[str] = (),
    ) -> None:
        """Ask nothing yet.

        Args:
            api: of the cluster.
            name: of the set.
            declared: its objects, in the order in which they are applied.
            check: change nothing, and predict.
            wait_seconds: how long to wait until all is ready; 0 for not at all.
            prune_allow: `kind/namespace/name` or `kind/name` of protected objects that may be deleted.
        """
        self.api, self.name, self.check, self.wait_seconds = api, name, check, wait_seconds
        self.manager = f"groundplane-{name}"
        self.outcome = Outcome()
        self._declared = list(declared)
        self._prune_allow = frozenset(prune_allow)
        self._definitions = {_defined(one): one for one in declared if _pair(one.identity) == DEFINITION}
        self._resources: dict[tuple[str, str], Resource] = {}
        self._live: dict[Identity, Object] = {}
        self._record = Record()
        self._stored = ""
        self._sent: set[Identity] = set()

    # ------------------------------------------------------------------------------------------------------ converging

    def converge(self) -> Outcome:
        """Make the set what is declared, or say what that would do.

        Raises:
            SetError: an object is refused, or not ready in time.
            ApiError: nobody answers.
        """
        self._read_record()
        self._find_kinds()
        touched = [one for one in self._declared if self._is_touched(one)]
        self.outcome.unchanged = len(self._declared) - len(touched)
        superfluous = self._superfluous()
        if (touched or superfluous) and not self.check:
            for one in touched:
                self._record.objects[one.identity] = ("", "")
            self._record.resources.update(self._resources)
            self._write_record()
        for one in touched:
            self._apply(one)
        for identity in superfluous:
            self._prune(identity)
        self._remember()
        if not self.check and self.wait_seconds:
            self._wait_until_ready()
        return self.outcome

    def _read_record(self) -> None:
        found = self.api.find(CONFIG_MAPS, RECORD_NAMESPACE, f"groundplane-set-{self.name}")
        self._stored = str(((found or {}).get("data") or {}).get("record") or "")
        self._record = Record.from_text(self._stored) if self._stored else Record()

    def _write_record(self) -> None:
        text = self._record.text()
        if text == self._stored:
            return
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"groundplane-set-{self.name}", "namespace": RECORD_NAMESPACE},
            "data": {"record": text},
        }
        self.api.apply(CONFIG_MAPS, body, manager=RECORD_MANAGER)
        self._stored = text

    def _remember(self) -> None:
        """Bring the record up to date: objects as they are now, and the kinds that a later run has to look at."""
        if self.check:
            return
        declared = {one.identity: one for one in self._declared}
        self._record.objects = {
            identity: (one.checksum, signature(self._live[identity], self.manager))
            for identity, one in declared.items()
            if identity in self._live
        }
        kinds = {_pair(identity) for identity in [*declared, *self._live]}
        self._record.resources = {kind: self._resources[kind] for kind in kinds if kind in self._resources}
        self._write_record()

    # ----------------------------------------------------------------------------------------------- what there is now

    def _find_kinds(self) -> None:
        """Read the metadata of all objects that carry the set's label, of the kinds it has and had."""
        wanted = {_pair(one.identity): one.api_version for one in self._declared}
        for kind in sorted({*wanted, *self._record.resources}):
            known = self._record.resources.get(kind)
            api_version = wanted.get(kind, known.api_version if known else "")
            if known is None or known.api_version != api_version:
                known = self.api.resource(api_version, kind[1]) or known
            if known is not None and not self._list(known):
                known = self.api.preferred(*kind)  # its version is gone, or the kind itself
                if known is not None and not self._list(known):
                    known = None
            if known is not None:
                self._resources[kind] = known

    def _list(self, resource: Resource) -> bool:
        """Take in the objects of a kind; whether there is such a kind."""
        kind = (resource.group, resource.kind)
        whole = kind == SECRETS or (resource.kind in AWAITED and kind != DEFINITION)
        try:
            items = self.api.list(resource, labels=f"{SET_LABEL}={self.name}", metadata_only=not whole)
        except NotFoundError:
            return False
        for item in items:
            item["apiVersion"], item["kind"] = resource.api_version, resource.kind
            metadata = item["metadata"]
            identity = Identity(resource.group, resource.kind, metadata.get("namespace") or "", metadata["name"])
            self._live[identity] = item
        return True

    def _is_touched(self, one: Declared) -> bool:
        """Whether an object has to be compared with its declaration: either is not what it was when both agreed."""
        live = self._live.get(one.identity)
        if live is None or live["metadata"].get("deletionTimestamp"):
            return True
        known = self._record.objects.get(one.identity)
        if known is None or not known[1] or known != (one.checksum, signature(live, self.manager)):
            return True
        # The checksum of a Secret leaves its values out.
        return one.secret and not holds(one.body.get("data") or {}, live.get("data") or {})

    def _superfluous(self) -> list[Identity]:
        """Objects that carry the label, are not declared, and may be deleted; those of others last."""
        declared = {one.identity for one in self._declared}
        found = []
        for identity, live in self._live.items():
            metadata = live["metadata"]
            owners = metadata.get("ownerReferences") or []
            # Controllers copy labels to what they make.
            if identity in declared or any(owner.get("controller") for owner in owners):
                continue
            if metadata.get("deletionTimestamp"):
                continue
            if _pair(identity) in PROTECTED and not {path(identity)} & self._prune_allow:
                self.outcome.kept.append(str(identity))
                self.outcome.warnings.append(
                    f"set {self.name}: {identity} is no longer declared and was kept; "
                    f"it is deleted once prune_allow names {path(identity)}"
                )
                continue
            found.append(identity)
        return sorted(found, key=lambda one: (-one.rank, one))

    # -------------------------------------------------------------------------------------------------------- applying

    def _apply(self, one: Declared) -> None:
        """Compare an object with its declaration by the API server's own judgement, and send it."""
        resource = self._resource(one)
        if resource is None:  # in check mode: its definition is yet to come
            self._note(one, None, one.body)
            return
        check_scope(one, resource.namespaced)
        before = self._before(one, resource)
        try:
            after = self._predict(one, resource, before) if self.check else self._send(one, resource)
        except ApiError as error:
            raise SetError(f"{one.file}: {one.identity}: {_said(error, secret=one.secret)}") from error
        if differs(before, after, self.manager):
            self._note(one, before, one.body if before is None else after)
        else:
            self.outcome.unchanged += 1
        self._live[one.identity] = after
        self._sent.add(one.identity)
        if not self.check and _pair(one.identity) == DEFINITION:
            self._wait_for_definition(one, after)

    def _note(self, one: Declared, before: Object | None, after: Object) -> None:
        title = str(one.identity)
        (self.outcome.created if before is None else self.outcome.configured).append(title)
        old, new = difference(before, after, self.manager)
        self.outcome.differences.append({"object": title, "before": old, "after": new})

    def _resource(self, one: Declared) -> Resource | None:
        """Where an object is, waiting for its kind if that is on its way; None in check mode when there is none yet.

        Raises:
            SetError: there is no such kind.
        """
        kind = _pair(one.identity)
        known = self._resources.get(kind)
        if known is not None and known.api_version == one.api_version:
            return known
        deadline = time.monotonic() + (max(self.wait_seconds, SHORT_WAIT) if kind in self._definitions else SHORT_WAIT)
        pause = FIRST_POLL
        while True:
            found = self.api.resource(one.api_version, one.identity.kind)
            if found is not None:
                self._resources[kind] = found
                if not self.check:
                    self._record.resources[kind] = found
                    self._write_record()
                return found
            coming = namespaced(one.identity, self._definitions.values()) is not None
            text = f"{one.file}: {one.identity}: this cluster has no {one.identity.kind} of {one.api_version}"
            if self.check and one.identity.group not in BUILT_IN_GROUPS:
                if not coming:
                    self.outcome.warnings.append(f"{text} yet")
                return None
            if one.identity.group in BUILT_IN_GROUPS or time.monotonic() + pause > deadline:
                raise SetError(text)
            time.sleep(pause)
            pause = min(pause * 2, LAST_POLL)

    def _before(self, one: Declared, resource: Resource) -> Object | None:
        """The object as it is, or None.

        Raises:
            SetError: it belongs to another set, or is being deleted and does not go.
        """
        identity = one.identity
        before = self.api.find(resource, identity.namespace, identity.name)
        if before is not None and before["metadata"].get("deletionTimestamp"):
            before = None if self.check else self._wait_until_gone(one, resource)
        if before is not None:
            other = (before["metadata"].get("labels") or {}).get(SET_LABEL, self.name)
            if other != self.name:
                raise SetError(
                    f"{one.file}: {identity} belongs to the set {other}: "
                    f"take it out of that set, whose next run deletes it, or out of {self.name}"
                )
        return before

    def _wait_until_gone(self, one: Declared, resource: Resource) -> Object | None:
        deadline = time.monotonic() + max(self.wait_seconds, SHORT_WAIT)
        pause = FIRST_POLL
        while True:
            live = self.api.find(resource, one.identity.namespace, one.identity.name)
            if live is None or not live["metadata"].get("deletionTimestamp"):
                return live
            if time.monotonic() + pause > deadline:
                left = ", ".join(live["metadata"].get("finalizers") or []) or "nothing that it names"
                raise SetError(f"{one.file}: {one.identity} is being deleted, and waits for {left}")
            time.sleep(pause)
            pause = min(pause * 2, LAST_POLL)

    def _predict(self, one: Declared, resource: Resource, before: Object | None) -> Object:
        """What the object would be, as the API server itself says; only where it cannot know yet, what is declared.

        Raises:
            ApiError: the server would refuse it.
        """
        definition = self._definitions.get(_pair(one.identity))
        namespace = Identity("", "Namespace", "", one.identity.namespace)
        try:
            return self.api.apply(resource, one.body, manager=self.manager, dry_run=True)
        except NotFoundError as error:
            if error.kind != "namespaces":
                raise
            if not any(other.identity == namespace for other in self._declared):
                self.outcome.warnings.append(f"{one.file}: {one.identity}: there is no {namespace} yet")
            return one.body
        except InvalidError:
            # Its definition would have been changed by now.
            if definition is not None and str(definition.identity) in self.outcome.configured:
                return one.body if before is None else dict(overlaid(before, one.body))
            raise

    def _send(self, one: Declared, resource: Resource) -> Object:
        """Apply, with patience for what comes up together with the object.

        Raises:
            ApiError: the server refuses it.
        """
        definition = self._definitions.get(_pair(one.identity))
        fresh = definition is not None and definition.identity in self._sent
        started, conflicts, pause = time.monotonic(), 0, FIRST_POLL
        while True:
            try:
                return self.api.apply(resource, one.body, manager=self.manager)
            except ConflictError:
                conflicts += 1
                if conflicts > CONFLICTS:
                    raise
            except ApiError as error:
                patience = 0.0
                if "failed calling webhook" in error.message:
                    patience = max(self.wait_seconds, SHORT_WAIT)  # its pods may be about to start
                elif fresh and isinstance(error, (InvalidError, NotFoundError)):
                    patience = SHORT_WAIT  # not all API servers have taken the definition in yet
                if time.monotonic() + pause > started + patience:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, LAST_POLL)

    def _prune(self, identity: Identity) -> None:
        live = self._live[identity]
        self.outcome.pruned.append(str(identity))
        old, new = difference(live, None, self.manager)
        self.outcome.differences.append({"object": str(identity), "before": old, "after": new})
        if self.check:
            return
        resource = self._resources[_pair(identity)]
        try:
            self.api.delete(resource, identity.namespace, identity.name, uid=live["metadata"].get("uid", ""))
        except ConflictError:
            return  # somebody has put another one in its place, which the next run judges
        except ApiError as error:
            raise SetError(f"{identity} is no longer declared and cannot be deleted: {_said(error)}") from error

    # --------------------------------------------------------------------------------------------------------- waiting

    def _wait_for_definition(self, one: Declared, live: Object) -> None:
        """Wait until custom resources of a definition can be stored."""
        deadline = time.monotonic() + max(self.wait_seconds, SHORT_WAIT)
        pause = FIRST_POLL
        while trouble := unready(live):
            if time.monotonic() + pause > deadline:
                raise SetError(f"{one.identity} is not ready: {trouble}")
            time.sleep(pause)
            pause = min(pause * 2, LAST_POLL)
            live = self.api.get(self._resources[DEFINITION], "", one.identity.name)

    def _wait_until_ready(self) -> None:
        """Wait until all declared objects of kinds that are waited for are ready.

        Raises:
            SetError: some are not in time; names each with what is known of why.
        """
        awaited = {one.identity for one in self._declared if _awaited(one.identity)}
        deadline = time.monotonic() + self.wait_seconds
        pause = FIRST_POLL
        excused: dict[Identity, str] = {}
        while True:
            troubles = {identity: unready(self._live[identity]) for identity in awaited if identity in self._live}
            troubles = {identity: trouble for identity, trouble in troubles.items() if trouble}
            if troubles:
                excused = self._excused(troubles)
            if not set(troubles) - set(excused):
                self.outcome.warnings += list(excused.values()) if troubles else []
                return
            if time.monotonic() + pause > deadline:
                waiting = [
                    f"{identity}: {'; '.join([troubles[identity], *self._pods(identity)])}"
                    for identity in sorted(set(troubles) - set(excused))
                ]
                raise SetError(f"not ready after {self.wait_seconds:g} s: " + " | ".join(waiting))
            time.sleep(pause)
            pause = min(pause * 2, LAST_POLL)
            for kind in sorted({_pair(identity) for identity in troubles}):
                self._list(self._resources[kind])

    def _excused(self, troubles: dict[Identity, str]) -> dict[Identity, str]:
        """Workloads that lack nothing but pods on nodes that are gone: what is left to do is to be done there."""
        workloads = [identity for identity in troubles if identity.kind in WORKLOADS]
        lost = lost_nodes(self.api.list(NODES)) if workloads else frozenset()
        if not lost:
            return {}
        found = {}
        for identity in workloads:
            live = self._live[identity]
            gone = [
                str(pod["spec"]["nodeName"])
                for pod in self._pods_of(identity)
                if pod["spec"].get("nodeName") in lost and not pod_ready(pod)
            ]
            if gone and not unready(_as_if(live, len(gone))):
                found[identity] = f"{identity}: {troubles[identity]}; no word from {', '.join(sorted(set(gone)))}"
        return found

    def _pods_of(self, identity: Identity) -> list[Object]:
        spec = self._live[identity].get("spec") or {}
        return self.api.list(PODS, identity.namespace, labels=selector(spec.get("selector") or {}))

    def _pods(self, identity: Identity) -> list[str]:
        """What is wrong with the pods of a workload, or why there are none."""
        if identity.kind not in WORKLOADS:
            return []
        pods = [pod for pod in self._pods_of(identity) if not pod_ready(pod)]
        troubles = grouped((pod["metadata"]["name"], trouble) for pod in pods if (trouble := pod_trouble(pod)))
        if troubles:
            return troubles
        fields = f"involvedObject.kind={identity.kind},involvedObject.name={identity.name},type=Warning"
        events = self.api.list(EVENTS, identity.namespace, fields=fields)
        events.sort(key=lambda event: str(event.get("lastTimestamp") or event["metadata"].get("creationTimestamp")))
        return [str(events[-1].get("message"))] if events else []


def path(identity: Identity) -> str:
    """An object as `prune_allow` names it."""
    return "/".join(part for part in (identity.kind, identity.namespace, identity.name) if part)


def _pair(identity: Identity) -> tuple[str, str]:
    return identity.group, identity.kind


def _awaited(identity: Identity) -> bool:
    return identity.kind in AWAITED and identity.group in BUILT_IN_GROUPS and _pair(identity) != DEFINITION


def _defined(definition: Declared) -> tuple[str, str]:
    """Group and kind that a definition defines."""
    spec = definition.body.get("spec") or {}
    return str(spec.get("group")), str((spec.get("names") or {}).get("kind"))


def _as_if(live: Object, missing: int) -> Object:
    """A workload as if that many pods were there and new."""
    status = dict(live.get("status") or {})
    for key in ("availableReplicas", "numberAvailable", "updatedReplicas", "updatedNumberScheduled"):
        status[key] = int(status.get(key) or 0) + missing
    return {**live, "status": status}


def _said(error: ApiError, *, secret: bool = False) -> str:
    """What the API said of an object; of a Secret only which fields, because a sentence may quote a value."""
    if error.causes:
        fields = [f"{one.field}: {one.reason if secret else _short(one.message)}" for one in error.causes]
        return "; ".join(dict.fromkeys(fields))
    return (error.reason or f"HTTP status {error.status}") if secret else _short(error.message)


def _short(message: str) -> str:
    """A message without the value that it quotes, when that is long: whole templates are quoted."""
    if len(message) <= LONGEST:
        return message
    head, _, _value = message.partition(": ")
    return f"{head[:LONGEST]}: (a long value): {message.rpartition(': ')[2][:LONGEST]}"
