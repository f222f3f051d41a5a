# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes of a cluster: their labels and taints, and the way to empty one without breaking what runs on it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_api import (
    NODES,
    PODS,
    Api,
    ApiError,
    BusyError,
    ConflictError,
    NotFoundError,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_object import condition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Object = dict[str, Any]
Verdict = Literal["evict", "skip", "refuse"]

PREFIX = "groundplane.onprem/"
OWN_KEYS = frozenset({"topology.kubernetes.io/zone"})
"""Keys that are ours besides those with our prefix."""
RECORD = "groundplane.onprem/node-keys"
"""The annotation that names other keys which were declared once, so that they go when they no longer are."""
MANAGER = "groundplane-nodes"
MIRROR = "kubernetes.io/config.mirror"
FINISHED = frozenset({"Succeeded", "Failed"})
FIRST_POLL, LAST_POLL = 0.5, 2.0
"""Seconds between two looks at the pods of a node, growing."""
CONFLICTS = 10
"""Times that a change of a node is computed anew because the node is another version: kubelets write often."""


class NodeError(Exception):
    """A node is not as wanted; the text says which and why."""


# ---------------------------------------------------------------------------------------------------- labels and taints


@dataclass(frozen=True)
class Wish:
    """What a node is to be; None leaves a part alone."""

    name: str
    labels: Mapping[str, str] | None = None
    taints: tuple[tuple[str, str, str], ...] | None = None
    unschedulable: bool | None = None


def taint_list(taints: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, str, str], ...]:
    """Declared taints as (key, effect, value).

    Raises:
        NodeError: one stands twice.
    """
    found = [(str(one["key"]), str(one["effect"]), str(one.get("value") or "")) for one in taints]
    if len({one[:2] for one in found}) != len(found):
        raise NodeError("a taint of one key and effect is declared twice")
    return tuple(found)


@dataclass(frozen=True)
class Plan:
    """What to send for a node, and what differs, for people."""

    patch: Object
    before: Object
    after: Object


def plan(node: Mapping[str, Any], wish: Wish) -> Plan:
    """The merge patch that makes a node what is wished. Its `metadata.resourceVersion` makes it conditional."""
    metadata, spec = node["metadata"], node.get("spec") or {}
    record = _record(metadata)
    patch: Object = {}
    before: Object = {}
    after: Object = {}
    if wish.labels is not None:
        live = metadata.get("labels") or {}
        gone = {key: None for key in live if _ours(key, record["labels"]) and key not in wish.labels}
        new = {key: value for key, value in wish.labels.items() if live.get(key) != value}
        if gone or new:
            patch.setdefault("metadata", {})["labels"] = {**gone, **new}
            before["labels"] = {key: live[key] for key in sorted({*gone, *new}) if key in live}
            after["labels"] = dict(sorted(new.items()))
        record["labels"] = sorted(key for key in wish.labels if not _ours(key, ()))
    if wish.taints is not None:
        old = spec.get("taints") or []
        wanted = {one[:2]: one for one in wish.taints}
        kept = [one for one in old if _taint(one)[:2] not in wanted and not _ours(_key(one), record["taints"])]
        same = [one for one in old if wanted.get(_taint(one)[:2]) == _taint(one)]
        missing = [one for one in wish.taints if one not in {_taint(item) for item in same}]
        if missing or len(kept) + len(same) != len(old):
            # Those that stay keep all of their fields, such as the time that an effect began.
            made = [
                {"key": key, "effect": effect, **({"value": value} if value else {})} for key, effect, value in missing
            ]
            patch.setdefault("spec", {})["taints"] = [*kept, *same, *made] or None
            before["taints"] = [_words(_taint(one)) for one in old]
            after["taints"] = [_words(_taint(one)) for one in [*kept, *same, *made]]
        record["taints"] = sorted(f"{key}:{effect}" for key, effect, _value in wish.taints if not _ours(key, ()))
    if wish.unschedulable is not None and bool(spec.get("unschedulable")) != wish.unschedulable:
        patch.setdefault("spec", {})["unschedulable"] = wish.unschedulable or None
        before["unschedulable"], after["unschedulable"] = not wish.unschedulable, wish.unschedulable
    text = json.dumps(record, sort_keys=True, separators=(",", ":")) if any(record.values()) else None
    if text != (metadata.get("annotations") or {}).get(RECORD) and (wish.labels, wish.taints) != (None, None):
        patch.setdefault("metadata", {})["annotations"] = {RECORD: text}
    if patch:
        patch.setdefault("metadata", {})["resourceVersion"] = metadata.get("resourceVersion")
    return Plan(patch, before, after)


def _record(metadata: Mapping[str, Any]) -> dict[str, list[str]]:
    try:
        whole = json.loads((metadata.get("annotations") or {}).get(RECORD) or "{}")
        return {part: [str(key) for key in whole.get(part) or []] for part in ("labels", "taints")}
    except (ValueError, AttributeError, TypeError):
        return {"labels": [], "taints": []}


def _ours(key: str, recorded: Iterable[str]) -> bool:
    """Whether a key of a label, or `key:effect` of a taint, is for us to take away."""
    bare = key.partition(":")[0]
    return bare.startswith(PREFIX) or bare in OWN_KEYS or key in recorded


def _taint(one: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(one["key"]), str(one["effect"]), str(one.get("value") or "")


def _key(one: Mapping[str, Any]) -> str:
    return f"{one['key']}:{one['effect']}"


def _words(taint: tuple[str, str, str]) -> str:
    key, effect, value = taint
    return f"{key}{'=' + value if value else ''}:{effect}"


# ------------------------------------------------------------------------------------------------------- what may leave


def judge(pod: Mapping[str, Any], *, force: bool, delete_emptydir_data: bool) -> tuple[Verdict, str]:
    """Whether a pod is evicted from a node that is emptied, stays, or is reason to refuse; and in the last case why.

    A pod of a DaemonSet would be back at once, one that mirrors a file of the node cannot be deleted, both stay.
    """
    metadata = pod["metadata"]
    controller = next((one for one in metadata.get("ownerReferences") or [] if one.get("controller")), None)
    if MIRROR in (metadata.get("annotations") or {}) or (controller and controller.get("kind") == "DaemonSet"):
        return "skip", ""
    if (pod.get("status") or {}).get("phase") in FINISHED or metadata.get("deletionTimestamp"):
        return "evict", ""  # nothing of it is left to lose, or it is on its way
    if controller is None and not force:
        return "refuse", "has no controller that would start it elsewhere (force)"
    volumes = (pod.get("spec") or {}).get("volumes") or []
    if not delete_emptydir_data and any("emptyDir" in volume for volume in volumes):
        return "refuse", "keeps data in an emptyDir that would be lost (delete_emptydir_data)"
    return "evict", ""


def title(pod: Mapping[str, Any]) -> str:
    """A pod as people name it."""
    return f"{pod['metadata'].get('namespace')}/{pod['metadata']['name']}"


def not_ready(node: Mapping[str, Any] | None, name: str) -> str:
    """Why a node is not ready; empty when it is."""
    if node is None:
        return f"there is no Node {name}"
    found = condition(node, "Ready")
    if found.get("status") == "True":
        return ""
    words = ": ".join(str(found[key]) for key in ("reason", "message") if found.get(key))
    return f"Node {name} is not ready ({words or 'its kubelet has not reported'})"


@dataclass
class Result:
    """What was done, or would be."""

    changed: bool = False
    evicted: list[str] = field(default_factory=list)
    differences: list[Object] = field(default_factory=list)


class Nodes:
    """The nodes of one cluster."""

    def __init__(self, api: Api, *, check: bool = False) -> None:
        """Ask nothing yet; with `check`, change nothing ever."""
        self.api, self.check = api, check
        self.result = Result()

    def reconcile(self, wishes: Iterable[Wish]) -> None:
        """Make nodes what is wished, by one look at all of them and one patch for each that differs.

        Raises:
            NodeError: a node does not exist, or the API refuses what is wished.
        """
        wishes = list(wishes)
        if len(wishes) == 1:
            found = [one for one in [self.api.find(NODES, "", wishes[0].name)] if one is not None]
        else:
            found = self.api.list(NODES)
        nodes = {node["metadata"]["name"]: node for node in found}
        missing = [wish.name for wish in wishes if wish.name not in nodes]
        if missing and not self.check:
            raise NodeError(f"there is no Node {', '.join(missing)}")
        for wish in wishes:
            self._reconcile(nodes.get(wish.name), wish)

    def _reconcile(self, node: Object | None, wish: Wish) -> None:
        for attempt in range(CONFLICTS):
            steps = plan(node or {"metadata": {}}, wish)
            if not steps.patch:
                return
            try:
                if node is not None:
                    self.api.patch(NODES, "", wish.name, steps.patch, manager=MANAGER, dry_run=self.check)
            except ConflictError as error:
                if attempt == CONFLICTS - 1:
                    raise NodeError(f"Node {wish.name}: {error}") from error
                node = self.api.get(NODES, "", wish.name)
            except NotFoundError as error:
                raise NodeError(f"there is no Node {wish.name} any more") from error
            except ApiError as error:
                raise NodeError(f"Node {wish.name}: {error}") from error
            else:
                break
        if steps.before or steps.after:
            self.result.changed = True
            self.result.differences.append({"name": wish.name, "before": steps.before, "after": steps.after})

    def wait_until_ready(self, name: str, timeout: float) -> None:
        """Wait until the kubelet of a node reports that it is ready.

        Raises:
            NodeError: it is not, in time.
        """
        deadline = time.monotonic() + timeout
        pause = FIRST_POLL
        while trouble := not_ready(self.api.find(NODES, "", name), name):
            if self.check:
                return
            if time.monotonic() + pause > deadline:
                raise NodeError(f"{trouble} after {timeout:g} s")
            time.sleep(pause)
            pause = min(pause * 2, LAST_POLL)

    def drain(
        self,
        name: str,
        *,
        grace: int = -1,
        timeout: float = 300,
        force: bool = False,
        delete_emptydir_data: bool = False,
    ) -> None:
        """Let no pod start on a node, and move those away that can run elsewhere; budgets are respected.

        Args:
            name: of the node.
            grace: seconds that a pod may take to end; its own where negative.
            timeout: seconds until all must be gone.
            force: also pods that nothing starts again.
            delete_emptydir_data: also pods whose data in an emptyDir is lost.

        Raises:
            NodeError: a pod may not be evicted, which is known before anything is changed, or is not gone in time.
        """
        pods = self._evictable(name, force=force, delete_emptydir_data=delete_emptydir_data)
        self.reconcile([Wish(name, unschedulable=True)])
        if self.check:
            self.result.evicted = sorted(title(pod) for pod in pods)
            self.result.changed |= bool(pods)
            return
        deadline = time.monotonic() + timeout
        evicted: set[str] = set()
        pause = FIRST_POLL
        while pods:
            reasons: dict[str, str] = {}
            for pod in pods:
                if pod["metadata"].get("deletionTimestamp"):
                    finalizers = pod["metadata"].get("finalizers")
                    reasons[title(pod)] = "is ending" + (f", waits for {', '.join(finalizers)}" if finalizers else "")
                    continue
                refusal = self._evict(pod, grace)
                if refusal:
                    reasons[title(pod)] = refusal
                else:
                    evicted.add(title(pod))
                    self.result.evicted, self.result.changed = sorted(evicted), True
            if time.monotonic() + pause > deadline:
                left = "; ".join(
                    f"{title(pod)}: {reasons.get(title(pod), 'was evicted and is ending')}" for pod in pods
                )
                raise NodeError(f"Node {name} is not empty after {timeout:g} s: {left}")
            time.sleep(pause)
            pause = min(pause * 2, LAST_POLL)
            pods = self._evictable(name, force=force, delete_emptydir_data=delete_emptydir_data)

    def remove(self, name: str, *, lost: bool = False) -> None:
        """Take a node out of the cluster.

        Raises:
            NodeError: it may still run pods, and was not declared lost.
        """
        node = self.api.find(NODES, "", name)
        if node is None:
            return
        if not lost:
            if not (node.get("spec") or {}).get("unschedulable"):
                raise NodeError(f"Node {name} is not drained, it still takes pods: drain it, or say that it is lost")
            left = [title(pod) for pod in self._evictable(name, force=True, delete_emptydir_data=True)]
            if left:
                raise NodeError(f"Node {name} is not drained, it still has {', '.join(sorted(left))}")
        self.result.changed = True
        self.result.differences.append({"name": name, "before": {"state": "present"}, "after": {"state": "absent"}})
        if not self.check:
            self.api.delete(NODES, "", name, uid=node["metadata"]["uid"])

    def _evictable(self, name: str, *, force: bool, delete_emptydir_data: bool) -> list[Object]:
        pods = self.api.list(PODS, fields=f"spec.nodeName={name}")
        found, refusals = [], []
        for pod in pods:
            verdict, reason = judge(pod, force=force, delete_emptydir_data=delete_emptydir_data)
            if verdict == "evict":
                found.append(pod)
            elif verdict == "refuse":
                refusals.append(f"{title(pod)} {reason}")
        if refusals:
            raise NodeError(f"Node {name} is not drained: {'; '.join(sorted(refusals))}")
        return found

    def _evict(self, pod: Object, grace: int) -> str:
        """Ask for an eviction; why it is not granted now, or empty text."""
        metadata = pod["metadata"]
        options: Object = {"preconditions": {"uid": metadata["uid"]}}
        if grace >= 0:
            options["gracePeriodSeconds"] = grace
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
            "deleteOptions": options,
        }
        try:
            self.api.create(PODS, body, name=metadata["name"], subresource="eviction")
        except (NotFoundError, ConflictError):
            return ""  # it is gone, or another pod of its name is there
        except BusyError as error:
            return "; ".join(one.message for one in error.causes if one.message) or error.message
        except ApiError as error:
            raise NodeError(f"{title(pod)} cannot be evicted: {error}") from error
        return ""
