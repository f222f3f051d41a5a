# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes of a real API server: labels, taints, drains. Kubelets are played by the tests."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_api import NODES, PODS
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_nodes import (
    RECORD,
    NodeError,
    Nodes,
    Result,
    Wish,
    taint_list,
)

from tests.programs.cluster import Hands
from tests.programs.play import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.programs.cluster import Cluster

TAINT = {"key": "groundplane.onprem/pool", "value": "postgres", "effect": "NoSchedule"}


class Host:
    """A node, its kubelet and its pods."""

    def __init__(self, cluster: Cluster, hands: Hands) -> None:
        self.cluster, self.hands, self.name = cluster, hands, f"{hands.namespace}-node"
        labels = {"kubernetes.io/hostname": self.name, "groundplane.onprem/old": "x"}
        hands.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": labels}})
        self.report("True")
        self.owner = hands.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": self.meta("owner")})

    def meta(self, name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "namespace": self.hands.namespace, **more}

    def report(self, ready: str) -> None:
        conditions = [{"type": "Ready", "status": ready, "reason": "KubeletNotReady", "message": "no network"}]
        self.hands.status("Node", self.name, {"conditions": conditions})

    def live(self) -> dict[str, Any]:
        return self.hands.api.get(NODES, "", self.name)

    def do(self, act: Callable[[Nodes], None], *, check: bool = False) -> Result:
        nodes = Nodes(self.cluster.api(), check=check)
        act(nodes)
        return nodes.result

    def both(self, act: Callable[[Nodes], None]) -> Result:
        """Predict, then do; the two must say the same, and a second run nothing."""
        predicted, done = self.do(act, check=True), self.do(act)
        assert predicted == done
        assert self.do(act) == Result()
        return done

    def pod(self, name: str, kind: str = "ReplicaSet", **spec: Any) -> None:
        """A running pod on the node, of a controller unless `kind` is empty."""
        owner = {"apiVersion": "apps/v1", "kind": kind, "name": "owner", "uid": self.owner["metadata"]["uid"]}
        owners = [{**owner, "controller": True}] if kind else []
        metadata = self.meta(name, labels={"app": "web"}, ownerReferences=owners)
        container = {"name": "web", "image": "web:1"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
        self.hands.create({**pod, "spec": {"containers": [container], "nodeName": self.name, **spec}})
        conditions = [{"type": "Ready", "status": "True"}]
        self.hands.status("Pod", name, {"phase": "Running", "conditions": conditions})

    def pods(self) -> list[str]:
        return sorted(pod["metadata"]["name"] for pod in self.hands.api.list(PODS, self.hands.namespace))


@pytest.fixture
def host(cluster: Cluster, hands: Hands) -> Iterator[Host]:
    host = Host(cluster, hands)
    yield host
    hands.api.delete(NODES, "", host.name)


@pytest.fixture
def kubelet(cluster: Cluster, host: Host) -> Iterator[None]:
    """Ends pods that are to end, a moment after they were told to."""
    stop = threading.Event()
    hands = Hands(cluster.api(), host.hands.namespace)

    def work() -> None:
        while not stop.wait(0.3):
            for pod in hands.api.list(PODS, hands.namespace):
                if pod["metadata"].get("deletionTimestamp"):
                    path = PODS.path(hands.namespace, pod["metadata"]["name"])
                    hands.api.request("DELETE", path, body={"gracePeriodSeconds": 0})

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()


def test_labels_and_taints_are_as_declared_and_others_stay(host: Host) -> None:
    foreign = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}
    host.hands.edit("Node", host.name, {"spec": {"taints": [foreign, {**TAINT, "value": "old"}]}})
    labels = {"groundplane.onprem/pool": "postgres", "topology.kubernetes.io/zone": "a", "team": "x"}
    host.both(lambda nodes: nodes.reconcile([Wish(host.name, labels, taint_list([TAINT]))]))
    live = host.live()
    assert live["metadata"]["labels"] == {"kubernetes.io/hostname": host.name, **labels}
    assert live["spec"]["taints"] == [foreign, TAINT]
    host.both(lambda nodes: nodes.reconcile([Wish(host.name, {"groundplane.onprem/pool": "general"}, ())]))
    live = host.live()
    # `team` was declared once, the host's name never was.
    assert live["metadata"]["labels"] == {"kubernetes.io/hostname": host.name, "groundplane.onprem/pool": "general"}
    assert live["spec"]["taints"] == [foreign]
    assert RECORD not in live["metadata"].get("annotations", {})


def test_all_nodes_cost_one_look(host: Host) -> None:
    others = [f"{host.name}-{number}" for number in range(3)]
    for name in others:
        host.hands.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    wishes = [Wish(name, {"groundplane.onprem/pool": "general"}) for name in [host.name, *others]]
    assert len(host.both(lambda nodes: nodes.reconcile(wishes)).differences) == 4
    api = host.cluster.api()
    Nodes(api).reconcile(wishes)
    assert api.requests == 1
    for name in others:
        host.hands.api.delete(NODES, "", name)


def test_a_node_that_does_not_exist(host: Host) -> None:
    with pytest.raises(NodeError, match="there is no Node nobody"):
        host.do(lambda nodes: nodes.reconcile([Wish("nobody", {"a": "b"})]))
    assert host.do(lambda nodes: nodes.reconcile([Wish("nobody", {"a": "b"})]), check=True).changed
    assert not host.do(lambda nodes: nodes.remove("nobody")).changed


def test_a_label_that_is_none_is_refused_in_check_mode_too(host: Host) -> None:
    for check in (True, False):
        with pytest.raises(NodeError, match=r"metadata\.labels"):
            host.do(lambda nodes: nodes.reconcile([Wish(host.name, {"a": "no value"})]), check=check)


def test_pods_are_moved_away_and_some_stay(host: Host, kubelet: None) -> None:
    host.pod("web-1")
    host.pod("agent", kind="DaemonSet")
    result = host.both(lambda nodes: nodes.drain(host.name, timeout=30))
    assert result.evicted == [f"{host.hands.namespace}/web-1"]
    assert host.pods() == ["agent"]
    assert host.live()["spec"]["unschedulable"] is True
    host.both(lambda nodes: nodes.reconcile([Wish(host.name, unschedulable=False)]))
    assert "unschedulable" not in host.live()["spec"]


@pytest.mark.parametrize("check", [True, False])
def test_what_would_be_lost_is_named_and_nothing_is_changed(host: Host, kubelet: None, check: bool) -> None:
    host.pod("alone", kind="")
    host.pod("cache", volumes=[{"name": "x", "emptyDir": {}}])
    host.pod("web-1")
    with pytest.raises(NodeError) as caught:
        host.do(lambda nodes: nodes.drain(host.name), check=check)
    space = host.hands.namespace
    assert f"{space}/alone has no controller that would start it elsewhere (force)" in str(caught.value)
    assert f"{space}/cache keeps data in an emptyDir that would be lost (delete_emptydir_data)" in str(caught.value)
    assert "web-1" not in str(caught.value)
    assert host.pods() == ["alone", "cache", "web-1"]
    assert "unschedulable" not in host.live()["spec"]
    if not check:
        host.do(lambda nodes: nodes.drain(host.name, force=True, delete_emptydir_data=True, grace=1))
        assert host.pods() == []


def test_a_budget_is_waited_for(host: Host, kubelet: None) -> None:
    host.pod("web-1")
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": host.meta("web")}
    host.hands.create({**budget, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}})

    def allow(number: int) -> None:
        counts = {"currentHealthy": 1 + number, "desiredHealthy": 1, "expectedPods": 1}
        status = {"disruptionsAllowed": number, "observedGeneration": 1, **counts}
        Hands(host.cluster.api(), host.hands.namespace).status("PodDisruptionBudget", "web", status, "policy/v1")

    allow(0)
    with pytest.raises(
        NodeError, match=r"is not empty after 1 s: t\d+/web-1: The disruption budget web needs 1 healthy"
    ):
        host.do(lambda nodes: nodes.drain(host.name, timeout=1))
    assert host.pods() == ["web-1"]
    later = threading.Timer(1.5, allow, [1])
    later.start()
    started = time.monotonic()
    assert host.do(lambda nodes: nodes.drain(host.name, timeout=30)).evicted
    assert time.monotonic() - started > 1
    assert host.pods() == []


def test_a_pod_that_does_not_end_is_named(host: Host) -> None:
    host.pod("web-1")
    for _ in range(2):
        with pytest.raises(NodeError, match=r"is not empty after 1 s: t\d+/web-1: (was evicted and )?is ending"):
            host.do(lambda nodes: nodes.drain(host.name, timeout=1))


def test_a_node_leaves_when_it_is_drained_or_lost(host: Host, kubelet: None) -> None:
    host.pod("web-1")
    host.pod("agent", kind="DaemonSet")
    for check in (True, False):
        with pytest.raises(NodeError, match="is not drained, it still takes pods"):
            host.do(lambda nodes: nodes.remove(host.name), check=check)
    host.do(lambda nodes: nodes.reconcile([Wish(host.name, unschedulable=True)]))
    with pytest.raises(NodeError, match=r"is not drained, it still has t\d+/web-1$"):
        host.do(lambda nodes: nodes.remove(host.name))
    assert host.do(lambda nodes: nodes.remove(host.name, lost=True), check=True).changed
    host.do(lambda nodes: nodes.drain(host.name))
    host.both(lambda nodes: nodes.remove(host.name))
    assert host.hands.api.find(NODES, "", host.name) is None


def test_a_node_is_waited_for(host: Host) -> None:
    host.report("False")
    with pytest.raises(NodeError, match=r"is not ready \(KubeletNotReady: no network\) after 0.3 s"):
        host.do(lambda nodes: nodes.wait_until_ready(host.name, 0.3))
    threading.Timer(1, lambda: host.report("True")).start()
    assert not host.do(lambda nodes: nodes.wait_until_ready(host.name, 20)).changed


def test_the_module_in_a_play(host: Host, kubelet: None, tmp_path: Path) -> None:
    role = Role(tmp_path)
    config = {"kubeconfig": str(host.cluster.kubeconfig)}
    host.pod("web-1")
    one = {"name": host.name, "labels": {"groundplane.onprem/pool": "postgres"}, "taints": [TAINT], **config}
    predicted, done = role.run("kubernetes_node", one, "--check", "--diff"), role.run("kubernetes_node", one, "--diff")
    assert predicted.result["diff"] == done.result["diff"]
    assert '"groundplane.onprem/pool": "postgres"' in done.result["diff"][0]["after"]
    assert not role.run("kubernetes_node", {"nodes": [{key: one[key] for key in ("name", "labels")}], **config}).result[
        "changed"
    ]
    drained = {"name": host.name, "state": "drained", "timeout": 30, **config}
    first, second = role.run("kubernetes_node", drained).result, role.run("kubernetes_node", drained).result
    assert (first["was"], first["evicted"], first["changed"]) == (
        "schedulable",
        [f"{host.hands.namespace}/web-1"],
        True,
    )
    assert (second["was"], second["evicted"], second["changed"]) == ("cordoned", [], False)
    gone = role.run("kubernetes_node", {"name": host.name, "state": "absent", **config}).result
    assert (gone["was"], gone["changed"]) == ("cordoned", True)
    planned = {**drained, "kubeconfig": str(tmp_path / "absent")}
    assert role.run("kubernetes_node", planned, "--check").result["changed"]
    assert "absent: No such file" in role.run("kubernetes_node", planned).result["msg"]
