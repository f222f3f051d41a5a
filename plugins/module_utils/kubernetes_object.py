# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What two states of an object differ in, whose fields are whose, and whether an object is ready. Pure."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Object = dict[str, Any]

HIDDEN = "(secret)"
HIDDEN_OTHER = "(secret, another one)"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

_SERVERS_OWN = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
)
_ABSENT = object()


# --------------------------------------------------------------------------------------------------------- comparison


def content(live: Mapping[str, Any]) -> Object:
    """An object without its status and without what the API server notes about it."""
    found = {key: value for key, value in live.items() if key != "status"}
    found["metadata"] = {key: value for key, value in live.get("metadata", {}).items() if key not in _SERVERS_OWN}
    return found


def ownership(live: Mapping[str, Any], manager: str) -> Object | None:
    """The entry of `metadata.managedFields` that says which fields a manager has applied; None when it has none.

    Another manager that changes one of these fields takes it out of the entry, so the entry tells of every drift of
    what was declared, and of nothing else: neither of status nor of fields that others own.
    """
    for entry in live.get("metadata", {}).get("managedFields") or []:
        if entry.get("manager") == manager and entry.get("operation") == "Apply" and not entry.get("subresource"):
            return dict(entry)
    return None


def signature(live: Mapping[str, Any], manager: str) -> str:
    """Text that stays the same as long as nobody changed what the manager has applied; empty when it owns nothing."""
    entry = ownership(live, manager)
    if entry is None:
        return ""
    text = json.dumps([live["metadata"].get("uid"), entry], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def differs(before: Mapping[str, Any] | None, after: Mapping[str, Any], manager: str) -> bool:
    """Whether applying makes a difference: in content, or in which fields are the manager's."""
    if before is None or content(before) != content(after):
        return True
    mine, then = ownership(before, manager) or {}, ownership(after, manager) or {}
    return bool(mine.get("fieldsV1") != then.get("fieldsV1"))


def holds(declared: Any, live: Any) -> bool:
    """Whether all that is declared is live: mappings may have more, all else is equal."""
    if isinstance(declared, dict) and isinstance(live, dict):
        return all(key in live and holds(value, live[key]) for key, value in declared.items())
    return bool(declared == live)


def overlaid(live: Any, declared: Any) -> Any:
    """What is live with what is declared over it, for want of the API server's own word."""
    if isinstance(declared, dict) and isinstance(live, dict):
        return {**live, **{key: overlaid(live.get(key), value) for key, value in declared.items()}}
    return copy.deepcopy(declared)


def difference(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, manager: str) -> tuple[Any, Any]:
    """What differs between two states, for people: equal parts are left out, values of a Secret are not shown."""
    old, new = _shown(before), _shown(after)
    if is_secret(before or after or {}):
        old, new = _masked(old, new)
    if old is not None and new is not None:
        if old == new and before is not None and after is not None:
            owner = "metadata.managedFields"
            return {owner: "some declared fields are another manager's"}, {owner: f"they are {manager}'s"}
        old, new = _reduced(old, new)
    return old, new


def is_secret(body: Mapping[str, Any]) -> bool:
    """Whether an object is a Secret."""
    return body.get("kind") == "Secret" and body.get("apiVersion") == "v1"


def _shown(body: Mapping[str, Any] | None) -> Object | None:
    if body is None:
        return None
    found = content(body)
    found.pop("apiVersion", None)
    found.pop("kind", None)
    return found


def _masked(old: Object | None, new: Object | None) -> tuple[Object | None, Object | None]:
    pair: list[Object | None] = []
    for body, other in ((old, None), (new, old)):
        if body is None:
            pair.append(None)
            continue
        masked = copy.deepcopy(body)
        for key in ("data", "stringData"):
            if not isinstance(masked.get(key), dict):
                continue
            values = ((other or {}).get(key) or {}) if other is not None else {}
            masked[key] = {
                name: HIDDEN_OTHER if name in values and values[name] != value else HIDDEN
                for name, value in masked[key].items()
            }
        annotations = masked["metadata"].get("annotations") or {}
        if LAST_APPLIED in annotations:
            annotations[LAST_APPLIED] = HIDDEN
        pair.append(masked)
    return pair[0], pair[1]


def _reduced(old: Any, new: Any) -> tuple[Any, Any]:
    """Two different values without the parts that they share."""
    if isinstance(old, dict) and isinstance(new, dict):
        return _reduced_mappings(old, new)
    if isinstance(old, list) and isinstance(new, list):
        names_old, names_new = _names(old), _names(new)
        if names_old is not None and names_new is not None:
            first, second = _reduced_mappings(names_old, names_new)
            return [{"name": key, **value} for key, value in first.items()], [
                {"name": key, **value} for key, value in second.items()
            ]
    return old, new


def _reduced_mappings(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Object, Object]:
    first: Object = {}
    second: Object = {}
    for key in dict.fromkeys([*old, *new]):
        mine, theirs = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if mine == theirs:
            continue
        if mine is not _ABSENT and theirs is not _ABSENT:
            first[key], second[key] = _reduced(mine, theirs)
        elif mine is not _ABSENT:
            first[key] = mine
        else:
            second[key] = theirs
    return first, second


def _names(items: Sequence[Any]) -> Object | None:
    """A list of named mappings as a mapping; None when it is another list, or nothing but its order could differ."""
    if not items or not all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in items):
        return None
    found = {item["name"]: {key: value for key, value in item.items() if key != "name"} for item in items}
    return found if len(found) == len(items) else None


# ----------------------------------------------------------------------------------------------------------- readiness


def unready(live: Mapping[str, Any]) -> str:
    """Why an object is not ready yet; empty when it is, or is of a kind that is not waited for."""
    judge = _JUDGES.get(str(live.get("kind")))
    return judge(live) if judge else ""


def condition(live: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """One of an object's conditions; empty when it has none of that type."""
    for one in (live.get("status") or {}).get("conditions") or []:
        if one.get("type") == kind:
            return dict(one)
    return {}


def _awaited(*types: str) -> Callable[[Mapping[str, Any]], str]:
    """A judge for kinds whose conditions say it."""

    def judge(live: Mapping[str, Any]) -> str:
        for kind in types:
            found = condition(live, kind)
            if found.get("status") != "True":
                return f"not {kind}" + _because(found)
        return ""

    return judge


def _because(found: Mapping[str, Any]) -> str:
    words = ": ".join(str(found[key]) for key in ("reason", "message") if found.get(key))
    return f" ({words})" if words else ""


def _namespace(live: Mapping[str, Any]) -> str:
    phase = (live.get("status") or {}).get("phase")
    if phase == "Active":
        return ""
    if phase != "Terminating":
        return f"its phase is {phase}"
    troubles = [one for one in (live.get("status") or {}).get("conditions") or [] if one.get("status") == "True"]
    return "is being deleted" + "".join(_because(one) for one in troubles)


def _seen(live: Mapping[str, Any]) -> bool:
    return int((live.get("status") or {}).get("observedGeneration") or 0) >= int(
        live["metadata"].get("generation") or 0
    )


def _deployment(live: Mapping[str, Any]) -> str:
    if not _seen(live):
        return "its controller has not seen it yet"
    status, wanted = live.get("status") or {}, int((live.get("spec") or {}).get("replicas", 1))
    updated, all_pods = int(status.get("updatedReplicas") or 0), int(status.get("replicas") or 0)
    available = int(status.get("availableReplicas") or 0)
    said = "".join(
        _because(found)
        for found, bad in (
            (condition(live, "ReplicaFailure"), "True"),
            (condition(live, "Progressing"), "False"),
            (condition(live, "Available"), "False"),
        )
        if found.get("status") == bad
    )
    if updated < wanted:
        return f"{updated} of {wanted} pods are new{said}"
    if all_pods > updated:
        return f"{all_pods - updated} old pods are left{said}"
    return f"{available} of {wanted} pods are available{said}" if available < wanted else ""


def _daemon_set(live: Mapping[str, Any]) -> str:
    if not _seen(live):
        return "its controller has not seen it yet"
    status = live.get("status") or {}
    wanted, updated = int(status.get("desiredNumberScheduled") or 0), int(status.get("updatedNumberScheduled") or 0)
    available = int(status.get("numberAvailable") or 0)
    by_hand = ((live.get("spec") or {}).get("updateStrategy") or {}).get("type") == "OnDelete"
    if updated < wanted and not by_hand:
        return f"{updated} of {wanted} pods are new"
    return f"{available} of {wanted} pods are available" if available < wanted else ""


def _stateful_set(live: Mapping[str, Any]) -> str:
    if not _seen(live):
        return "its controller has not seen it yet"
    status, spec = live.get("status") or {}, live.get("spec") or {}
    wanted, strategy = int(spec.get("replicas", 1)), spec.get("updateStrategy") or {}
    partition = int((strategy.get("rollingUpdate") or {}).get("partition") or 0)
    updated, available = int(status.get("updatedReplicas") or 0), int(status.get("availableReplicas") or 0)
    if strategy.get("type") != "OnDelete" and updated < wanted - partition:
        return f"{updated} of {wanted - partition} pods are new"
    return f"{available} of {wanted} pods are available" if available < wanted else ""


_JUDGES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "Namespace": _namespace,
    "CustomResourceDefinition": _awaited("NamesAccepted", "Established"),
    "APIService": _awaited("Available"),
    "Deployment": _deployment,
    "DaemonSet": _daemon_set,
    "StatefulSet": _stateful_set,
}
AWAITED = frozenset(_JUDGES)
"""Kinds whose objects are waited for."""
WORKLOADS = frozenset({"Deployment", "DaemonSet", "StatefulSet"})


def pod_ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod takes part: ready and not on its way out."""
    return condition(pod, "Ready").get("status") == "True" and not pod["metadata"].get("deletionTimestamp")


def pod_trouble(pod: Mapping[str, Any]) -> str:
    """Why a pod is not ready, as its containers or the scheduler say; empty when nobody says anything."""
    status = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp"):
        return "is being deleted"
    for key in ("initContainerStatuses", "containerStatuses"):
        for one in status.get(key) or []:
            state = one.get("state") or {}
            waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
            previous = (one.get("lastState") or {}).get("terminated") or {}
            if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
                code = f", it last ended with {previous['exitCode']}" if previous.get("exitCode") is not None else ""
                return f"container {one['name']} waits{_because(waiting)}{code}"
            if ended and ended.get("exitCode") != 0:
                return f"container {one['name']} ended with {ended.get('exitCode')}{_because(ended)}"
    for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready"):
        found = condition(pod, kind)
        if found.get("status") == "False":
            return f"not {kind}{_because(found)}"
    return f"its phase is {status.get('phase')}" if status.get("phase") != "Running" else ""


def grouped(troubles: Iterable[tuple[str, str]]) -> list[str]:
    """Pods by what is wrong with them, such as `a, b: container x waits (ErrImagePull)`."""
    by_trouble: dict[str, list[str]] = {}
    for name, trouble in troubles:
        by_trouble.setdefault(trouble, []).append(name)
    return [f"{', '.join(sorted(names))}: {trouble}" for trouble, names in by_trouble.items()]


def lost_nodes(nodes: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Nodes whose kubelet no longer reports. One that reports that it is not ready is none of them."""
    return frozenset(node["metadata"]["name"] for node in nodes if condition(node, "Ready").get("status") == "Unknown")
