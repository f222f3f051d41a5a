# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients of the API and of an application notice when a part of the cluster hangs, dies or is emptied."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests import results
from tests.faults.drill import RUNS, frozen, holders, standing_still, summary, wait_for
from tests.faults.kubernetes_clients import ApiReader, ApiWriter, errors_for, fetcher, in_order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.kubernetes_clients import Account, ApiClient, ApiOutcome
    from tests.kubernetes import Cluster
    from tests.lab import Lab

pytestmark = pytest.mark.nodes

ERRORS_ALLOWED = 5.0
"""Seconds for which clients may see errors when an API server hangs, or the store's leader dies."""
VIP_GAP_ALLOWED = 1.5
CLIENTS = 3
"""Writers and as many readers: enough that one of them has its session with whatever fails."""


@pytest.fixture
def runs(cluster: Cluster) -> Iterator[range]:
    """The runs of a drill; before the first and after the last all nodes and pods are Ready."""
    cluster.wait_until_sound()
    yield range(RUNS)
    cluster.wait_until_sound()


class Watched:
    """Several clients at once, and what they saw."""

    def __init__(self, lab: Lab, account: Account) -> None:
        self.writers = [ApiWriter(lab, account) for _ in range(CLIENTS)]
        self.readers = [ApiReader(lab, account) for _ in range(CLIENTS)]
        self._stack = ExitStack()

    @property
    def clients(self) -> list[ApiClient]:
        return [*self.writers, *self.readers]

    def __enter__(self) -> Self:
        for client in self.clients:
            self._stack.enter_context(client)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def served(self, since: float, seconds: float) -> None:
        """Wait until every client was answered something that it asked after a time."""
        wait_for(
            lambda: all(any(a.sent > since for a in client.record.acknowledged) for client in self.clients),
            seconds,
            "every client is served",
        )

    def busiest(self, cluster: Cluster) -> str:
        """The host whose API server has most of their sessions."""
        servers = [client.server for client in self.clients]
        return max(cluster.control_plane, key=lambda host: servers.count(cluster.lab.address(host)))

    @property
    def gap(self) -> float:
        """The longest time for which any of them got no answer."""
        return max(client.record.longest_gap() for client in self.clients)

    @property
    def errors(self) -> float:
        """The longest time from the first error to the last of any of them."""
        return max(errors_for(client.record) for client in self.clients)

    def settle(self) -> list[ApiOutcome]:
        """Read all back; every answer was in order."""
        assert all(in_order(reader.record, strictly=False) for reader in self.readers), "a reader went back in time"
        return [writer.outcome() for writer in self.writers]


class Figures:
    """Of the runs of a drill."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.gaps: list[float] = []
        self.errors: list[float] = []
        self.outcomes: list[ApiOutcome] = []
        self.further: dict[str, list[float]] = {}

    def add(self, watched: Watched, **further: float) -> None:
        self.gaps.append(watched.gap)
        self.errors.append(watched.errors)
        self.outcomes += watched.settle()
        for name, value in further.items():
            self.further.setdefault(name, []).append(value)

    def record(self, allowed: float) -> None:
        """Keep them, and hold them against what is promised."""
        figures: dict[str, Any] = {
            "gap_s": summary(self.gaps),
            "errors_for_s": summary(self.errors),
            "acknowledged": sum(outcome.acknowledged for outcome in self.outcomes),
            "failed_writes": sum(outcome.failed for outcome in self.outcomes),
            "lost": sum(outcome.lost for outcome in self.outcomes),
            "ghosts": sum(outcome.ghosts for outcome in self.outcomes),
            "allowed_s": allowed,
            **{name: summary(values) for name, values in self.further.items()},
        }
        results.record(self.name, figures)
        assert figures["lost"] == 0
        assert all(outcome.in_order for outcome in self.outcomes)
        assert max(self.errors) <= allowed
        assert max(self.gaps) <= allowed


def test_an_api_server_that_hangs_is_left_by_its_clients(lab: Lab, drill_api: Account, runs: range) -> None:
    """Its kernel still takes connections; only its check says that nobody is there."""
    cluster, figures = drill_api.cluster, Figures("kubernetes_apiserver_hung")
    for _ in runs:
        with Watched(lab, drill_api) as watched:
            time.sleep(1)
            host = watched.busiest(cluster)
            with standing_still(lab, host, "kube-apiserver"):
                start = time.time()
                watched.served(start + ERRORS_ALLOWED, 30)
                time.sleep(5)
            time.sleep(5)
        assert any(client.record.failed for client in watched.clients), "nobody noticed: was it the API server?"
        figures.add(watched)
        cluster.wait_until_sound()
    figures.record(ERRORS_ALLOWED)


def test_api_servers_that_are_all_too_busy_for_their_checks_are_slow_and_not_gone(lab: Lab, drill_api: Account) -> None:
    """All stand still until a balancer takes every one of them for dead. Who connects then is answered afterwards."""
    cluster = drill_api.cluster
    holder = holders(lab, lab.groups["load_balancer"], cluster.api[0])[0]
    journal = f"journalctl -u haproxy --since @{time.time():.0f} -o cat"
    told = f"{journal} | grep -c 'kubernetes_control_plane_api has no server' || :"
    with fetcher(lab, drill_api.client, (*cluster.api, "/readyz"), interval=0.2, patience=20) as client:
        client.watch(2)
        with ExitStack() as faults:
            for host in cluster.control_plane:
                faults.enter_context(standing_still(lab, host, "kube-apiserver"))
            wait_for(lambda: lab.out(holder, told) != "0", 30, "a balancer that takes all for dead")
            dead = time.time()
            time.sleep(2)
        client.watch(5)
    late = [attempt for attempt in client.record.attempts if attempt.sent > dead]
    cluster.wait_until_sound(300)
    results.record(
        "kubernetes_all_apiservers_busy",
        {"asked_meanwhile": len(late), "failed": sum(attempt.acked is None for attempt in late)},
    )
    assert len(late) > 5
    assert [attempt.error for attempt in late if attempt.acked is None] == []


def test_a_frozen_holder_of_the_address_is_replaced(lab: Lab, drill_api: Account, runs: range) -> None:
    cluster = drill_api.cluster
    address, *_ = cluster.api
    balancers = lab.groups["load_balancer"]
    gaps, kept = [], []
    for _ in runs:
        holder = wait_for(lambda: holders(lab, balancers, address), 30, "a holder")[0]
        connecting = fetcher(lab, drill_api.client, (*cluster.api, "/readyz"), interval=0.05, patience=1)
        with ApiWriter(lab, drill_api) as writer, connecting:
            time.sleep(1)
            with frozen(lab, holder):
                time.sleep(4)
            wait_for(lambda: len(holders(lab, balancers, address)) == 1, 10, "one holder")
            time.sleep(3)
        gaps.append(connecting.record.longest_gap())
        outcome = writer.outcome()
        kept.append(outcome.gap)
        assert outcome.lost == 0
        assert outcome.in_order
        cluster.wait_until_sound()
    results.record(
        "kubernetes_vip_holder_frozen",
        {"gap_s": summary(gaps), "gap_of_a_kept_session_s": summary(kept), "allowed_s": VIP_GAP_ALLOWED},
    )
    assert max(gaps) <= VIP_GAP_ALLOWED


def test_a_killed_leader_of_the_store_is_replaced(lab: Lab, drill_api: Account, runs: range) -> None:
    cluster, figures = drill_api.cluster, Figures("kubernetes_etcd_leader_killed")
    for _ in runs:
        leader: str = wait_for(cluster.etcd_leader, 60, "a leader that all members follow")
        with Watched(lab, drill_api) as watched:
            time.sleep(1)
            lab.run(leader, "kill -9 $(pgrep -xo etcd)")
            start = time.time()
            watched.served(start + ERRORS_ALLOWED, 30)
            time.sleep(5)
        figures.add(watched)
        cluster.wait_until_sound()
        wait_for(cluster.etcd_leader, 120, "a leader that all members follow")
    figures.record(ERRORS_ALLOWED)


def test_a_worker_is_emptied_without_a_lost_request(lab: Lab, cluster: Cluster, runs: range) -> None:
    """Fifty pages a second through the public address, each on a connection of its own."""
    asked, failed, seconds = 0, [], []
    for run in runs:
        worker = cluster.workers[run % len(cluster.workers)]
        with fetcher(lab, "bastion1", (*cluster.gateway, "/"), interval=0.02, patience=5) as client:
            time.sleep(2)
            start = time.monotonic()
            try:
                cluster.kubectl(
                    *("drain", worker, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s"), timeout=270
                )
                seconds.append(time.monotonic() - start)
                time.sleep(3)
            finally:
                cluster.kubectl("uncordon", worker)
            time.sleep(5)
        asked += len(client.record.attempts)
        failed += client.record.failed
        cluster.wait_until_sound()
        _spread_again(cluster, worker)
    results.record(
        "kubernetes_worker_drained",
        {"requests": asked, "failed": len(failed), "drain_s": summary(seconds), "first_failures": [
            attempt.error for attempt in failed[:5]
        ]},
    )  # fmt: skip
    assert asked > 200 * RUNS
    assert failed == []


def _spread_again(cluster: Cluster, worker: str) -> None:
    """What was moved does not come back by itself: the next run needs something to move."""
    where = ("--namespace", "sample")
    cluster.kubectl("rollout", "restart", "deployment/sample", *where)
    cluster.kubectl("rollout", "status", "deployment/sample", *where, "--timeout=180s", timeout=200)
    assert worker in {pod["spec"].get("nodeName") for pod in cluster.get("pods", *where)["items"]}
