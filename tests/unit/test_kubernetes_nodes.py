# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one patch that makes a node what is wished, and which pods may leave it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_nodes import (
    RECORD,
    NodeError,
    Wish,
    judge,
    not_ready,
    plan,
    taint_list,
)
from hypothesis import given
from hypothesis import strategies as st

KEYS = st.sampled_from(["groundplane.onprem/pool", "topology.kubernetes.io/zone", "team", "kubernetes.io/os"])
LABELS = st.dictionaries(KEYS, st.sampled_from("ab"))
TAINTS = st.dictionaries(st.tuples(KEYS, st.sampled_from(["NoSchedule", "NoExecute"])), st.sampled_from(["", "a", "b"]))
HALF = st.tuples(LABELS, TAINTS)
Half = tuple[dict[str, str], dict[tuple[str, str], str]]


def node(labels: dict[str, str], taints: dict[tuple[str, str], str], unschedulable: bool = False) -> dict[str, Any]:
    listed = [{"key": key, "effect": effect, "value": value} for (key, effect), value in taints.items()]
    return {
        "metadata": {"name": "n", "labels": labels, "resourceVersion": "1"},
        "spec": {"taints": listed, "unschedulable": unschedulable},
    }


def merged(live: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    whole = dict(live) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if value is None:
            whole.pop(key, None)
        else:
            whole[key] = merged(whole.get(key), value)
    return whole


def wished(labels: dict[str, str], taints: dict[tuple[str, str], str], unschedulable: bool = False) -> Wish:
    return Wish("n", labels, tuple((*key, value) for key, value in taints.items()), unschedulable)


@given(HALF, HALF, HALF, st.booleans())
def test_one_patch_is_enough_the_next_run_sends_nothing_and_what_was_declared_goes_again(
    before: Half, one: Half, other: Half, unschedulable: bool
) -> None:
    (labels, taints), (first, first_taints), (second, second_taints) = before, one, other
    live = node(labels, taints, unschedulable)
    for wish_labels, wish_taints in ((first, first_taints), (second, second_taints)):
        wish = wished(wish_labels, wish_taints)
        live = merged(live, plan(live, wish).patch)
        assert plan(live, wish).patch == {}
    now = live["metadata"].get("labels", {})
    now_taints = {(one["key"], one["effect"]): one.get("value", "") for one in live["spec"].get("taints", [])}
    foreign = {key: value for key, value in labels.items() if key in ("team", "kubernetes.io/os") and key not in first}
    assert now == {**foreign, **second}
    foreign_taints = {
        key: value
        for key, value in taints.items()
        if key[0] in ("team", "kubernetes.io/os") and key not in first_taints
    }
    assert now_taints == {**foreign_taints, **second_taints}
    assert not live["spec"].get("unschedulable")


def test_what_is_left_out_is_not_looked_at() -> None:
    live = node({"groundplane.onprem/pool": "x"}, {("groundplane.onprem/pool", "NoSchedule"): "x"}, unschedulable=True)
    assert plan(live, Wish("n")).patch == {}
    assert plan(live, Wish("n", unschedulable=True)).patch == {}
    patch = plan(live, Wish("n", unschedulable=False)).patch
    assert patch == {"spec": {"unschedulable": None}, "metadata": {"resourceVersion": "1"}}


def test_a_taint_that_stays_keeps_what_others_noted_in_it() -> None:
    live = node({}, {})
    live["spec"]["taints"] = [
        {"key": "groundplane.onprem/pool", "effect": "NoExecute", "value": "a", "timeAdded": "2026-01-01T00:00:00Z"},
        {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"},
    ]
    pool = ("groundplane.onprem/pool", "NoExecute", "a")
    assert plan(live, Wish("n", taints=(pool,))).patch == {}
    steps = plan(live, Wish("n", taints=(pool, ("x", "NoSchedule", ""))))
    assert steps.patch["spec"]["taints"][:2] == list(reversed(live["spec"]["taints"]))
    assert steps.after["taints"][-1] == "x:NoSchedule"


def test_keys_of_others_are_remembered_only_once_they_were_declared() -> None:
    live = node({}, {})
    patch = plan(live, Wish("n", {"team": "x", "groundplane.onprem/pool": "y"})).patch
    assert json.loads(patch["metadata"]["annotations"][RECORD]) == {"labels": ["team"], "taints": []}
    assert "annotations" not in plan(live, Wish("n", {"groundplane.onprem/pool": "y"})).patch["metadata"]


@pytest.mark.parametrize("broken", ["", "x", "[]", "null", '{"labels": 1}'])
def test_a_record_that_is_not_understood_is_none(broken: str) -> None:
    live = node({"team": "x"}, {})
    live["metadata"]["annotations"] = {RECORD: broken}
    assert merged(live, plan(live, Wish("n", {}, ())).patch)["metadata"]["labels"] == {"team": "x"}


def test_a_taint_twice_is_refused() -> None:
    with pytest.raises(NodeError, match="declared twice"):
        taint_list([{"key": "a", "effect": "NoSchedule", "value": value} for value in "xy"])


CONTROLLER = {"kind": "ReplicaSet", "name": "r", "controller": True}


@pytest.mark.parametrize(
    ("pod", "options", "verdict"),
    [
        ({"owner": CONTROLLER}, {}, "evict"),
        ({"owner": {**CONTROLLER, "kind": "DaemonSet"}, "emptydir": True}, {}, "skip"),
        ({"owner": {"kind": "Node", "controller": True}, "mirror": True, "emptydir": True}, {}, "skip"),
        ({}, {}, "refuse"),
        ({"owner": {**CONTROLLER, "controller": False}}, {}, "refuse"),
        ({}, {"force": True}, "evict"),
        ({"phase": "Succeeded", "emptydir": True}, {}, "evict"),
        ({"deleted": True, "emptydir": True}, {}, "evict"),
        ({"owner": CONTROLLER, "emptydir": True}, {}, "refuse"),
        ({"owner": CONTROLLER, "emptydir": True}, {"force": True}, "refuse"),
        ({"owner": CONTROLLER, "emptydir": True}, {"delete_emptydir_data": True}, "evict"),
    ],
)
def test_which_pods_may_leave(pod: dict[str, Any], options: dict[str, bool], verdict: str) -> None:
    body = {
        "metadata": {
            "name": "p",
            "ownerReferences": [pod["owner"]] if "owner" in pod else [],
            "annotations": {"kubernetes.io/config.mirror": "x"} if pod.get("mirror") else {},
            **({"deletionTimestamp": "x"} if pod.get("deleted") else {}),
        },
        "spec": {"volumes": [{"name": "v", "emptyDir": {}}] if pod.get("emptydir") else []},
        "status": {"phase": pod.get("phase", "Running")},
    }
    found, reason = judge(body, **{"force": False, "delete_emptydir_data": False, **options})
    assert (found, bool(reason)) == (verdict, verdict == "refuse")


def test_why_a_node_is_not_ready() -> None:
    assert not_ready(None, "n") == "there is no Node n"
    assert not_ready({"metadata": {}}, "n") == "Node n is not ready (its kubelet has not reported)"
    ready = {"metadata": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    assert not_ready(ready, "n") == ""
