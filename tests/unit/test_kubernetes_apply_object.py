# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Differences between two states of an object, and whether it is ready."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_api import selector
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_object import (
    content,
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

MANAGER = "groundplane-x"
ENTRY = {"manager": MANAGER, "operation": "Apply", "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:data": {"f:a": {}}}}
LIVE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "a", "uid": "1", "resourceVersion": "5", "managedFields": [ENTRY]},
    "data": {"a": "1", "b": "2"},
}


def changed(**metadata: Any) -> dict[str, Any]:
    other = copy.deepcopy(LIVE)
    other["metadata"].update(metadata)
    return other


def test_a_signature_stays_until_somebody_touches_what_is_ours() -> None:
    same = changed(resourceVersion="6", labels={"x": "y"}, managedFields=[{"manager": "other"}, ENTRY])
    assert signature(same, MANAGER) == signature({**same, "status": {"x": 1}}, MANAGER) == signature(LIVE, MANAGER)
    for entry in (
        {**ENTRY, "fieldsV1": {"f:data": {}}},
        {**ENTRY, "time": "2026-01-01T00:00:01Z"},
    ):
        assert signature(changed(managedFields=[entry]), MANAGER) not in ("", signature(LIVE, MANAGER))
    assert signature(changed(uid="2"), MANAGER) != signature(LIVE, MANAGER)
    for entry in ({**ENTRY, "operation": "Update"}, {**ENTRY, "subresource": "status"}, {**ENTRY, "manager": "y"}):
        assert signature(changed(managedFields=[entry]), MANAGER) == ""


def test_what_makes_a_difference() -> None:
    assert differs(None, LIVE, MANAGER)
    assert not differs({**changed(resourceVersion="1", generation=3), "status": {"x": 1}}, LIVE, MANAGER)
    assert differs({**LIVE, "data": {"a": "1"}}, LIVE, MANAGER)
    assert differs(changed(managedFields=[]), LIVE, MANAGER)
    assert not differs(changed(managedFields=[{**ENTRY, "time": "later"}]), LIVE, MANAGER)
    assert content(LIVE)["metadata"] == {"name": "a"}


def test_only_what_differs_is_shown() -> None:
    containers = [{"name": "a", "image": "a:1", "args": ["x"]}, {"name": "b", "image": "b:1"}]
    before = {
        "kind": "X",
        "metadata": {"labels": {"a": "1", "b": "2"}},
        "spec": {"containers": containers, "n": [1, 2]},
    }
    after = copy.deepcopy(before)
    after["spec"]["containers"][0]["image"] = "a:2"  # type: ignore[index]
    after["spec"]["n"] = [1]
    after["metadata"]["labels"] = {"a": "1", "c": "3"}
    assert difference(before, after, MANAGER) == (
        {"metadata": {"labels": {"b": "2"}}, "spec": {"containers": [{"name": "a", "image": "a:1"}], "n": [1, 2]}},
        {"metadata": {"labels": {"c": "3"}}, "spec": {"containers": [{"name": "a", "image": "a:2"}], "n": [1]}},
    )


def test_what_is_taken_over_is_shown_as_that() -> None:
    before, after = difference(changed(managedFields=[]), LIVE, MANAGER)
    assert (before, after) == (
        {"metadata.managedFields": "some declared fields are another manager's"},
        {"metadata.managedFields": "they are groundplane-x's"},
    )


def test_values_of_a_secret_are_never_shown() -> None:
    last = {"kubectl.kubernetes.io/last-applied-configuration": "geheim"}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"annotations": last},
        "data": {"a": "geheim", "b": "geheim"},
    }
    other = {**secret, "metadata": {}, "data": {"a": "geheimer", "c": "geheim"}, "stringData": {"d": "geheim"}}
    for pair in ((secret, other), (other, secret), (None, secret), (secret, None)):
        assert "geheim" not in str(difference(*pair, MANAGER))
    before, after = difference(secret, other, MANAGER)
    assert before["data"] == {"a": "(secret)", "b": "(secret)"}
    assert after["data"] == {"a": "(secret, another one)", "c": "(secret)"}
    assert secret["data"] == {"a": "geheim", "b": "geheim"}


@pytest.mark.parametrize(
    ("declared", "live", "expected"),
    [
        ({}, {"a": 1}, True),
        ({"a": 1}, {}, False),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}, True),
        ([1], [1, 2], False),
    ],
)
def test_what_is_declared_is_held(declared: Any, live: Any, expected: bool) -> None:
    assert holds(declared, live) is expected


def test_a_declaration_over_what_is_live() -> None:
    assert overlaid({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2]}, "d": 3}) == {"a": {"b": 1, "c": [2]}, "d": 3}


# ----------------------------------------------------------------------------------------------------------- readiness


def workload(kind: str, spec: dict[str, Any] | None = None, observed: int = 2, **status: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "metadata": {"generation": 2},
        "spec": {"replicas": 3, **(spec or {})},
        "status": {"observedGeneration": observed, **status},
    }


def conditions(*found: tuple[str, str, str]) -> list[dict[str, str]]:
    return [{"type": kind, "status": status, "reason": reason, "message": "m"} for kind, status, reason in found]


DEPLOYED = {"replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}
ROLLED = {"desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 3}
STUCK = conditions(("Progressing", "False", "ProgressDeadlineExceeded"), ("Available", "True", "x"))


@pytest.mark.parametrize(
    ("live", "said"),
    [
        ({"kind": "ConfigMap", "metadata": {}}, ""),
        (workload("Deployment", **DEPLOYED), ""),
        (workload("Deployment", observed=1, **DEPLOYED), "its controller has not seen it yet"),
        (workload("Deployment", **{**DEPLOYED, "updatedReplicas": 1}), "1 of 3 pods are new"),
        (workload("Deployment", **{**DEPLOYED, "replicas": 4}), "1 old pods are left"),
        (workload("Deployment", **{**DEPLOYED, "availableReplicas": 2}), "2 of 3 pods are available"),
        (
            workload("Deployment", conditions=STUCK, updatedReplicas=1),
            "1 of 3 pods are new (ProgressDeadlineExceeded: m)",
        ),
        (workload("Deployment", {"replicas": 0}), ""),
        (workload("DaemonSet", **ROLLED), ""),
        (workload("DaemonSet"), ""),
        (workload("DaemonSet", **{**ROLLED, "updatedNumberScheduled": 1}), "1 of 3 pods are new"),
        (
            workload("DaemonSet", {"updateStrategy": {"type": "OnDelete"}}, **{**ROLLED, "updatedNumberScheduled": 1}),
            "",
        ),
        (workload("DaemonSet", **{**ROLLED, "numberAvailable": 2}), "2 of 3 pods are available"),
        (workload("StatefulSet", updatedReplicas=3, availableReplicas=3), ""),
        (workload("StatefulSet", updatedReplicas=2, availableReplicas=3), "2 of 3 pods are new"),
        (
            workload(
                "StatefulSet",
                {"updateStrategy": {"rollingUpdate": {"partition": 2}}},
                updatedReplicas=1,
                availableReplicas=3,
            ),
            "",
        ),
        (workload("StatefulSet", updatedReplicas=3), "0 of 3 pods are available"),
        ({"kind": "Namespace", "metadata": {}, "status": {"phase": "Active"}}, ""),
        (
            {
                "kind": "Namespace",
                "metadata": {},
                "status": {
                    "phase": "Terminating",
                    "conditions": conditions(("NamespaceContentRemaining", "True", "r")),
                },
            },
            "is being deleted (r: m)",
        ),
        ({"kind": "APIService", "metadata": {}, "status": {}}, "not Available"),
        (
            {"kind": "APIService", "metadata": {}, "status": {"conditions": conditions(("Available", "False", "r"))}},
            "not Available (r: m)",
        ),
        (
            {
                "kind": "CustomResourceDefinition",
                "metadata": {},
                "status": {"conditions": conditions(("NamesAccepted", "True", ""), ("Established", "True", ""))},
            },
            "",
        ),
    ],
)
def test_whether_an_object_is_ready(live: dict[str, Any], said: str) -> None:
    assert unready(live) == said


def pod(containers: list[dict[str, Any]] | None = None, ready: str = "False", **status: Any) -> dict[str, Any]:
    given = {"conditions": conditions(("Ready", ready, "")), "containerStatuses": containers or [], **status}
    return {"metadata": {"name": "a"}, "status": {"phase": "Pending", **given}}


def container(state: str, reason: str, **more: Any) -> dict[str, Any]:
    return {"name": "c", "state": {state: {"reason": reason, "message": "m", **more}}}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (pod([container("waiting", "ImagePullBackOff")]), "container c waits (ImagePullBackOff: m)"),
        (
            pod([{**container("waiting", "CrashLoopBackOff"), "lastState": {"terminated": {"exitCode": 1}}}]),
            "container c waits (CrashLoopBackOff: m), it last ended with 1",
        ),
        (pod([container("terminated", "Error", exitCode=2)]), "container c ended with 2 (Error: m)"),
        (pod([container("waiting", "ContainerCreating")]), "not Ready (m)"),
        (pod(initContainerStatuses=[container("waiting", "ErrImagePull")]), "container c waits (ErrImagePull: m)"),
        (pod(conditions=conditions(("PodScheduled", "False", "Unschedulable"))), "not PodScheduled (Unschedulable: m)"),
        (pod(ready="True", phase="Running"), ""),
        ({"metadata": {"deletionTimestamp": "x"}, "status": {}}, "is being deleted"),
    ],
)
def test_what_is_wrong_with_a_pod(found: dict[str, Any], said: str) -> None:
    assert pod_trouble(found) == said


def test_a_pod_on_its_way_out_is_not_ready() -> None:
    assert pod_ready(pod(ready="True"))
    assert not pod_ready({**pod(ready="True"), "metadata": {"deletionTimestamp": "x"}})


def test_pods_with_the_same_trouble_are_named_together() -> None:
    assert grouped([("b", "x"), ("a", "x"), ("c", "y")]) == ["a, b: x", "c: y"]


def test_a_node_that_reports_that_it_is_not_ready_is_not_lost() -> None:
    nodes = [
        {"metadata": {"name": name}, "status": {"conditions": conditions(("Ready", status, ""))}}
        for name, status in (("a", "True"), ("b", "False"), ("c", "Unknown"))
    ]
    assert lost_nodes([*nodes, {"metadata": {"name": "new"}}]) == {"c"}


def test_the_selector_of_a_workload_is_one_of_a_query() -> None:
    expressions = [
        {"key": "x", "operator": "In", "values": ["1", "2"]},
        {"key": "y", "operator": "NotIn", "values": ["1"]},
        {"key": "z", "operator": "Exists"},
        {"key": "q", "operator": "DoesNotExist"},
    ]
    spec = {"matchLabels": {"b": "2", "a": "1"}, "matchExpressions": expressions}
    assert selector(spec) == "a=1,b=2,x in (1,2),y notin (1),z,!q"
