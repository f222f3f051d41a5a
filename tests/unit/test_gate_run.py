# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two runs at one cluster, in any interleaving and stopped at any point: never two members out, nobody forgotten.

The gate and the lock are the real ones. The cluster and the key-value store below them are a model, and so is time: the
runs are threads that move one at a time, in the order that hypothesis picks.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import cluster_lock, gate_run
from ansible_collections.groundplane.onprem.plugins.module_utils.cluster_lock import ClusterLock, Holder, LockHeldError
from ansible_collections.groundplane.onprem.plugins.module_utils.etcd_cluster import EtcdError
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import EtcdMember, EtcdState, Health, Wish
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_run import Gate, GateError, Patience
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = ("data1", "data2", "data3")
LEASE = 60
OUT = 7
"""Moves for which a restarted member is out."""


class StoppedError(BaseException):
    """The run was killed."""


class World:
    """Time, a cluster of three, and the store that keeps the lock."""

    def __init__(self, order: Iterator[int]) -> None:
        self.order = order
        self.now = 0.0
        self.back_at = dict.fromkeys(NAMES, 0.0)
        self.lead = "data1"
        self.restarts: list[str] = []
        self.broken: list[str] = []
        self.key: dict[str, str] | None = None
        self.leases: dict[str, float] = {}
        self.runs: dict[int, Run] = {}
        self.moved = threading.Condition()
        self.turn: int | None = None

    # --- one moves at a time ---

    def move(self) -> None:
        run = self.runs[threading.get_ident()]
        with self.moved:
            if run.stopped:
                raise StoppedError
            run.waiting = True
            self.moved.notify_all()
            self.moved.wait_for(lambda: self.turn == run.number)
            self.turn = None
            self.now += 1
            run.moves += 1
            if run.moves == run.killed_at:
                run.stopped = True
                raise StoppedError

    def conduct(self, runs: list[Run]) -> None:
        for run in runs:
            run.thread.start()
        while True:
            with self.moved:
                assert self.moved.wait_for(lambda: all(run.waiting or not run.thread.is_alive() for run in runs), 10)
                ready = [run for run in runs if run.thread.is_alive()]
                if not ready:
                    break
                chosen = ready[next(self.order, 0) % len(ready)]
                chosen.waiting, self.turn = False, chosen.number
                self.moved.notify_all()

    # --- the cluster ---

    def state(self) -> EtcdState:
        members = []
        for number, name in enumerate(NAMES, 1):
            up = self.back_at[name] <= self.now
            members.append(
                EtcdMember(number, name, Health.SERVING if up else Health.DOWN, leader=NAMES.index(self.lead) + 1)
            )
        return EtcdState("lab", tuple(members))

    def take_out(self, name: str) -> None:
        out = [other for other in NAMES if self.back_at[other] > self.now and other != name]
        if out:
            self.broken.append(f"{name} went while {out} was out")
        if name == self.lead:
            self.broken.append(f"{name} went while it led")
        self.restarts.append(name)
        self.back_at[name] = self.now + OUT


class Run:
    """One run of ansible: the passes over its hosts, one host at a time."""

    def __init__(self, world: World, number: int, killed_at: int | None) -> None:
        self.world, self.number, self.killed_at = world, number, killed_at
        self.stopped = self.waiting = False
        self.moves = 0
        self.outcomes: list[str] = []
        self.thread = threading.Thread(target=self.main, daemon=True)

    def main(self) -> None:
        self.world.runs[threading.get_ident()] = self
        try:
            self.work()
        except StoppedError:
            pass
        finally:
            with self.world.moved:
                self.waiting = False
                self.world.moved.notify_all()

    def work(self) -> None:
        for lead in ("defer", "yield"):
            for name in NAMES[:: -1 if self.number % 2 else 1]:  # two runs need not agree on the order
                if name not in self.world.restarts:
                    self.gate(name, lead)

    def gate(self, name: str, lead: str) -> None:
        def lock() -> ClusterLock:
            holder = Holder(f"run{self.number}", name, name)
            return ClusterLock(Store(self.world), "etcd/lab", holder, patience=100, lease=LEASE)  # type: ignore[arg-type]

        gate: Gate[EtcdState] = Gate(Cluster(self.world), Wish(name, lead), Patience(40, 40), lock)
        try:
            self.outcomes.append(str(gate.leave(lambda _state: self.act(name), back=True).decision))
        except GateError as error:
            self.outcomes.append(str(error))

    def act(self, name: str) -> None:
        self.world.move()
        self.world.take_out(name)


class Cluster:
    """The model as the gate sees it."""

    def __init__(self, world: World) -> None:
        self.world = world

    def read(self, _member: str = "") -> EtcdState:
        self.world.move()
        return self.world.state()

    def move_leader(self, _state: EtcdState, target: str, _timeout: float, *, named: bool = True) -> tuple[float, str]:
        self.world.move()
        self.world.lead = target
        return 0.0, target


class Store:
    """etcd's leases and transactions, as far as the lock needs them."""

    def __init__(self, world: World) -> None:
        self.world = world

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        world = self.world
        if world.runs[threading.get_ident()].stopped:
            raise EtcdError("the dead do not speak")
        world.move()
        world.leases = {lease: end for lease, end in world.leases.items() if end > world.now}
        if world.key is not None and world.key["lease"] not in world.leases:
            world.key = None
        if path == "/v3/lease/grant":
            lease = str(int(world.now))
            world.leases[lease] = world.now + LEASE
            return {"ID": lease}
        if path == "/v3/lease/keepalive":
            world.leases[body["ID"]] = world.now + LEASE
            return {"result": {"TTL": str(LEASE)}}
        if path == "/v3/lease/revoke":
            world.leases.pop(body["ID"], None)
            return {}
        return self.txn(body)

    def txn(self, body: dict[str, Any]) -> dict[str, Any]:
        world, compare = self.world, body["compare"][0]
        if compare["target"] == "CREATE":
            matches = world.key is None
        else:
            matches = world.key is not None and world.key["mod_revision"] == compare["mod_revision"]
        if matches:
            put = body["success"][0]["request_put"]
            world.key = {"value": put["value"], "lease": put["lease"], "mod_revision": str(world.now)}
            return {"succeeded": True}
        found = [] if world.key is None else [world.key]
        return {"responses": [{"response_range": {"kvs": found}}]}


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is the number of moves of the world that the thread lives in."""

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return WORLDS[threading.get_ident()].now

        @staticmethod
        def sleep(_seconds: float) -> None:
            WORLDS[threading.get_ident()].move()

    for module in (gate_run, cluster_lock):
        monkeypatch.setattr(module, "time", Clock)


class Worlds:
    """The world of a thread."""

    def __init__(self) -> None:
        self.of: Callable[[], World]

    def __getitem__(self, _ident: int) -> World:
        return self.of()


WORLDS = Worlds()


def play(order: list[int], *killed_at: int | None) -> tuple[World, list[Run]]:
    world = World(iter(order))
    WORLDS.of = lambda: world
    runs = [Run(world, number, when) for number, when in enumerate(killed_at)]
    world.conduct(runs)
    return world, runs


def test_one_run_restarts_all_and_the_leader_last() -> None:
    world, (run,) = play([], None)
    assert world.broken == []
    assert world.restarts == ["data2", "data3", "data1"]
    assert run.outcomes == ["defer", "restart", "restart", "yield_then_restart"]


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 1), max_size=300))
def test_two_runs_at_once_never_have_two_members_out(order: list[int]) -> None:
    world, runs = play(order, None, None)
    assert world.broken == []
    told = [text for run in runs for text in run.outcomes]
    known = {"defer", "restart", "yield_then_restart"}
    assert all(text in known or "is being changed by run run" in text for text in told), told


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 1), max_size=200), st.integers(1, 60))
def test_a_killed_run_breaks_nothing_and_the_next_one_finishes(order: list[int], killed_at: int) -> None:
    world, _runs = play(order, killed_at, None)
    assert world.broken == []
    world.now += LEASE + OUT  # the dead run's lease ends, its member comes back
    last = Run(world, 2, None)
    world.conduct([last])
    assert world.broken == []
    assert set(world.restarts) == set(NAMES)
    assert len(world.restarts) <= len(NAMES) + 1  # what the dead run did not live to record is done again at most


def test_the_dead_hold_the_lock_until_their_lease_ends() -> None:
    world, _runs = play([], 12)  # killed while it held the lock
    assert world.key is not None
    second = Run(world, 1, None)
    world.conduct([second])
    assert "is being changed by run run0, at data2 since" in second.outcomes[-1]
    world.now += LEASE
    third = Run(world, 2, None)
    world.conduct([third])
    assert third.outcomes[-1] == "yield_then_restart"


def test_lock_held_is_told_with_holder_and_time() -> None:
    world = World(iter([]))
    WORLDS.of = lambda: world
    texts: list[str] = []

    class Two(Run):
        def work(self) -> None:
            holders = [Holder("run1", "data1", "data1"), Holder("run2", "data2", "data2")]
            locks = [ClusterLock(Store(world), "etcd/lab", holder, patience=5, lease=LEASE) for holder in holders]  # type: ignore[arg-type]
            with locks[0]:
                try:
                    locks[1].__enter__()
                except LockHeldError as error:
                    texts.append(str(error))

    world.conduct([Two(world, 0, None)])
    assert len(texts) == 1
    assert texts[0].startswith("etcd/lab is being changed by run run1, at data1 since 20")
