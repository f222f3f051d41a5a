# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate against three real Redis servers and Sentinels: whom it lets go, how the master goes, and what is lost."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import Action, Health, Wish, decide
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_run import Gate, GateError, Patience
from ansible_collections.groundplane.onprem.plugins.module_utils.redis_wire import RedisError, ReplyError

from tests.programs.cluster import running
from tests.programs.redis_trio import DOWN_AFTER_MS, Trio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible_collections.groundplane.onprem.plugins.module_utils.redis_cluster import RedisCluster

SECONDS = 30.0
"""In which what is waited for must be there."""
TILT_SECONDS = 2.0
"""Between two ticks of a Sentinel, from which on it trusts its own clock no more (SENTINEL_TILT_TRIGGER)."""
GAP = 10.0
"""Seconds without a write that a change of the master may cost on a machine that does ten other things; else 2."""


class Held:
    """A lock that nobody else wants."""

    def check(self) -> None:
        """It is ours."""


def gate(cluster: RedisCluster, member: str, lead: str = "defer", patience: float = SECONDS) -> Gate[Any]:
    return Gate(cluster, Wish(member, lead), Patience(patience, SECONDS), lambda: nullcontext(Held()))  # type: ignore[arg-type]


class Writer:
    """Writes numbers one after the other to whoever is the master, and keeps which were acknowledged and when."""

    def __init__(self, trio: Trio) -> None:
        self.trio, self.acknowledged = trio, dict[int, float]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.trio.until(lambda: len(self.acknowledged) > 20, "the writer writes")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(SECONDS)

    def _write(self) -> None:
        number, connection = 0, None
        while not self._over.is_set():
            for name in self.trio.names:
                if self._over.is_set():
                    break
                try:
                    connection = self.trio.connect(name)
                    while not self._over.is_set():
                        number += 1
                        connection.ask("SET", f"k{number}", number)
                        self.acknowledged[number] = time.monotonic()
                        time.sleep(0.002)
                except RedisError:
                    time.sleep(0.01)
                finally:
                    if connection is not None:
                        connection.close()

    def gap(self) -> float:
        """The longest time between two acknowledged writes."""
        times = list(self.acknowledged.values())
        return max(after - before for before, after in pairwise(times))

    def lost(self) -> list[int]:
        """What was acknowledged and is not there."""
        connection = self.trio.connect(self.trio.master())
        numbers = list(self.acknowledged)
        found = connection.ask("MGET", *(f"k{number}" for number in numbers))
        connection.close()
        assert isinstance(found, list)
        return [number for number, value in zip(numbers, found, strict=True) if value != str(number)]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """Three members; a test leaves them as sound as it found them."""
    with running(Trio(tmp_path_factory.mktemp("trio"))) as trio:
        yield trio


@pytest.fixture(autouse=True)
def sound(trio: Trio) -> Iterator[None]:
    trio.until(lambda: not trio.missing(), "all are well before a test")
    yield
    trio.until(lambda: not trio.missing(), "all are well after a test")


def test_all_are_read_and_a_replica_may_leave(trio: Trio) -> None:
    state = trio.cluster().read()
    leader = state.leader
    assert leader is not None
    assert [(one.name, one.health, one.sentinel.health, one.sentinel.others, one.minimum) for one in state.members] == [
        (name, Health.SERVING, Health.SERVING, 2, 1) for name in trio.names
    ]
    for name in trio.names:
        verdict = decide(state, Wish(name))
        assert (verdict.allowed, verdict.action) == (
            (False, Action.DEFER) if name == leader.name else (True, Action.RESTART)
        )
        assert decide(trio.sentinels().read(), Wish(name)).reason == (
            f"Redis Sentinel test keeps 2 of 2 needed without that of {name}"
        )


def test_all_members_are_restarted_the_master_last_and_nothing_acknowledged_is_lost(trio: Trio) -> None:
    first = trio.master()
    with Writer(trio) as writer:
        for lead in ("defer", "yield"):
            for name in trio.names:
                if lead == "yield" and name != first:
                    continue
                outcome = gate(trio.cluster(), name, lead).leave(
                    lambda _state, name=name: trio.restart(name), back=True
                )
                assert outcome.deferred == (lead == "defer" and name == first)
        assert outcome.decision == "yield_then_restart"
        assert outcome.gap is not None
        assert outcome.gap < GAP
        time.sleep(0.5)
    assert trio.master() == outcome.target != first
    assert writer.lost() == []
    assert writer.gap() < GAP


def test_a_switchover_is_handed_over_and_the_former_master_follows(trio: Trio) -> None:
    first = trio.master()
    with pytest.raises(GateError, match="name none"):
        gate(trio.cluster(), first).switch_over(next(name for name in trio.names if name != first))
    outcome = gate(trio.cluster(), first).switch_over("")
    assert outcome.changed
    state = trio.cluster().read()
    assert state.leader is not None
    assert state.leader.name == outcome.target != first
    former = state.find(first)
    assert former is not None
    assert (former.role, former.follows, former.linked) == ("replica", outcome.target, True)


def test_a_frozen_replica_keeps_the_others_where_they_are(trio: Trio) -> None:
    frozen, other = [name for name in trio.names if name != trio.master()]
    trio.send(frozen, signal.SIGSTOP)
    try:
        verdict = decide(trio.cluster(timeout=1).read(), Wish(other))
        assert not verdict.allowed
        assert verdict.reason.startswith(f"Redis test cannot lose {other} now: {frozen} is unknown (")
        assert "no answer in time" in verdict.reason
    finally:
        trio.send(frozen, signal.SIGCONT)


def test_a_sentinel_that_is_gone_keeps_the_others_where_they_are(trio: Trio) -> None:
    gone, other = [name for name in trio.names if name != trio.master()]
    trio.send(gone, signal.SIGTERM, "sentinel")
    verdict = decide(trio.cluster().read(), Wish(other))
    assert not verdict.allowed
    assert verdict.reason.startswith(f"Redis test cannot lose {other} now: {gone} has a Sentinel that is down (")
    verdict = decide(trio.sentinels().read(), Wish(other))
    assert not verdict.allowed
    assert "1 of 2 needed would be left" in verdict.reason
    with pytest.raises(GateError, match="cannot lose that of"):
        gate(trio.sentinels(), other, patience=0.5).leave(lambda _state: None, back=True)
    outcome = gate(trio.sentinels(), gone).leave(lambda _state: trio.launch(gone, "sentinel"), back=True)
    assert (outcome.changed, outcome.decision) == (True, "restart")


def test_a_sentinel_that_stood_still_stands_by_and_nobody_leaves(trio: Trio) -> None:
    still, other = [name for name in trio.names if name != trio.master()]
    trio.send(still, signal.SIGSTOP, "sentinel")
    time.sleep(TILT_SECONDS + 1)
    trio.send(still, signal.SIGCONT, "sentinel")
    trio.until(lambda: "in TILT" in decide(trio.cluster().read(), Wish(other)).reason, "the Sentinel stands by")
    assert not decide(trio.cluster().read(), Wish(other)).allowed
    assert not decide(trio.sentinels().read(), Wish(other)).allowed
    # One that is started anew knows of no pause.
    trio.restart(still, "sentinel")
    gate(trio.sentinels(), still).leave(lambda _state: trio.restart(still, "sentinel"), back=True)


def test_sentinels_are_restarted_and_still_know_each_other(trio: Trio) -> None:
    before = trio.cluster().read()
    for name in trio.names:
        gate(trio.sentinels(), name).leave(lambda _state, name=name: trio.restart(name, "sentinel"), back=True)
    after = trio.cluster().read()
    assert [one.sentinel.epoch for one in after.members] == [one.sentinel.epoch for one in before.members]
    assert after.leader is not None
    assert before.leader is not None
    assert after.leader.name == before.leader.name


def test_a_master_that_was_killed_is_replaced_and_comes_back_as_a_replica(trio: Trio) -> None:
    first = trio.master()
    trio.send(first, signal.SIGKILL)
    took = trio.until(lambda: trio.master() not in ("", first), "another is the master")
    assert took < DOWN_AFTER_MS / 1000 + 8
    wish = next(name for name in trio.names if name not in (first, trio.master()))
    assert not decide(trio.cluster().read(), Wish(wish)).allowed
    outcome = gate(trio.cluster(), first).leave(lambda _state: trio.launch(first, "server"), back=True)
    assert (outcome.changed, outcome.decision) == (True, "restart")
    assert trio.last_start(first).startswith("a replica of")


def test_users_may_what_they_may(trio: Trio) -> None:
    master = trio.master()
    assert trio.ask(master, "ROLE", user="probe")
    assert "min_slaves_good_slaves:2" in str(trio.ask(master, "INFO", "replication", user="probe"))
    refused = {
        "probe": ["GET key1", "INFO"],
        "replication": ["GET key1", "SET key1 x"],
        "sentinel": ["GET key1", "SET key1 x", "CONFIG GET dir", "PUBLISH news x", "FLUSHALL"],
        "admin": ["GET key1", "SET key1 x", "FLUSHALL"],
        "app": ["FLUSHALL", "FLUSHDB", "CONFIG GET dir", "KEYS *", "ACL LIST", "SHUTDOWN",
                "REPLICAOF NO ONE", "PUBLISH olds x", "SENTINEL MASTERS"],
        "reader": ["SET key1 x", "GET other", "FLUSHALL", "CONFIG GET dir"],
    }  # fmt: skip
    for user, commands in refused.items():
        for command in commands:
            with pytest.raises(ReplyError, match=r"NOPERM|unknown command"):
                trio.ask(master, *command.split(), user=user)
    assert trio.ask(master, "SET", "key1", "x") == "OK"
    assert trio.ask(master, "PUBLISH", "news1", "x") == 0
    assert trio.ask(master, "GET", "key1", user="reader") == "x"
    assert trio.ask(master, "KEYS", "key1", user="reader") == ["key1"]
    with pytest.raises(ReplyError, match="WRONGPASS"):
        trio.ask(master, "PING", user="default")
