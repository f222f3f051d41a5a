# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rolling gate at work: take the lock, ask, act, wait until all is as good as before, let go.

`gate` holds the decisions; this is the order of the steps and the waiting, for any engine that can be read and led.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ansible_collections.groundplane.onprem.plugins.module_utils.cluster_lock import LockHeldError, LockLostError
from ansible_collections.groundplane.onprem.plugins.module_utils.etcd_cluster import EtcdError
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import (
    Action,
    State,
    Verdict,
    Wish,
    decide,
    hand_over,
    settled,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_client import KafkaError
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_cluster import ObjectStoreError
from ansible_collections.groundplane.onprem.plugins.module_utils.patroni_cluster import PatroniError
from ansible_collections.groundplane.onprem.plugins.module_utils.qdrant_cluster import QdrantError
from ansible_collections.groundplane.onprem.plugins.module_utils.redis_wire import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

S = TypeVar("S", bound=State[Any])

UNANSWERED = (EtcdError, PatroniError, KafkaError, RedisError, ObjectStoreError, QdrantError)
"""How clusters say that they cannot be asked, or refuse."""

POLL = 0.2
"""Seconds between two looks at the cluster."""


class GateError(Exception):
    """The gate refuses, or the cluster did not recover."""


class Lock(Protocol):
    """What the gate needs of a lock."""

    def check(self) -> None:
        """Raise unless the lock is ours for sure."""


class Engine(Protocol[S]):
    """What the gate needs of a cluster: `EtcdCluster`, `PatroniCluster`, `KafkaBrokers`, `RedisCluster`, ..."""

    def read(self, member: str = "", /) -> S:
        """The cluster as it is now."""

    def move_leader(self, state: S, target: str, timeout: float, *, named: bool) -> tuple[float, str]:
        """Let the target lead, or one as good when it was not named; seconds it took, and who leads."""


class NoLock:
    """Stands for the lock where there is no quorum to keep one, and so none to break."""

    def check(self) -> None:
        """Nothing can be lost."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds.

    Attributes:
        ask: until a refusal that time could mend is a refusal.
        recover: until the member has to be back and caught up.
    """

    ask: float = 30.0
    recover: float = 120.0


@dataclass(slots=True)
class Outcome:
    """What the gate did.

    Attributes:
        changed: something was done.
        decision: the last verdict's action.
        reason: its sentence.
        deferred: the member leads and is left for the next pass.
        waited: seconds spent waiting.
        target: who leads instead.
        gap: seconds without a leader that takes writes, as seen from here; None when leadership did not move.
    """

    changed: bool = False
    decision: str = str(Action.NOTHING)
    reason: str = ""
    deferred: bool = False
    waited: float = 0.0
    target: str = ""
    gap: float | None = None

    def plain(self) -> dict[str, Any]:
        """As the module returns it."""
        return {
            "changed": self.changed,
            "decision": self.decision,
            "reason": self.reason,
            "deferred": self.deferred,
            "waited": round(self.waited, 3),
            "target": self.target,
            "gap": None if self.gap is None else round(self.gap, 3),
        }


class Gate(Generic[S]):
    """One member of one cluster and what is to be done to it."""

    def __init__(
        self,
        engine: Engine[S],
        wish: Wish,
        patience: Patience,
        lock: Callable[[], AbstractContextManager[Lock]],
    ) -> None:
        """Ask nothing yet.

        Args:
            engine: the cluster.
            wish: which member, and what with a leader.
            patience: how long to wait.
            lock: makes the lock of the cluster; raises LockHeldError or one of `UNANSWERED`, entered too, and GateError
                where there is nothing to keep one.
        """
        self._engine, self._wish, self._patience, self._lock = engine, wish, patience, lock
        self.outcome = Outcome()

    def look(self) -> Verdict:
        """The verdict at this moment, without lock, waiting or change.

        Raises:
            GateError: the cluster cannot be asked.
        """
        return self._note(decide(self._read(), self._wish))

    def look_over(self, candidate: str) -> Verdict:
        """The verdict on a switchover at this moment, without lock, waiting or change.

        Raises:
            GateError: the cluster cannot be asked.
        """
        return self._note(hand_over(self._read(), candidate, self._wish.lag_limit))

    def leave(self, act: Callable[[S], None], *, back: bool) -> Outcome:
        """Take the member out, or leave it alone when it leads and is to be deferred.

        Args:
            act: restarts or stops the member of the cluster as it is by then, and returns when that is done.
            back: wait until it is back and all is as good as before.

        Raises:
            GateError: the member may not leave, or did not come back.
        """
        with ExitStack() as stack:
            held = self._enter(stack)
            before, verdict = self._allowed(self._may)
            now = before
            self._note(verdict)
            if verdict.action is Action.DEFER:
                return self.outcome
            if isinstance(held, NoLock) and not verdict.unlocked:
                raise GateError(f"{verdict.reason}, but the lock cannot be taken")
            if verdict.action is Action.YIELD:
                self._move(held, before, verdict, named=False)
                # The cluster is another one now: the member becomes a sound follower first, then all is asked again.
                follower = replace(self._wish, postgres=False)
                self._wait(lambda: settled(self._read(), follower, before), "did not become a follower")
                now, last = self._allowed(self._may)
                if last.action is not Action.RESTART:
                    raise GateError(f"{last.reason}, although it had handed over to {self.outcome.target}")
            self._check(held)
            self.outcome.changed = True
            act(now)
            if back and not verdict.unlocked:  # without a quorum no member can be well, it comes back with the others
                self._wait(lambda: settled(self._read(), self._wish, before), "did not recover")
        return self.outcome

    def switch_over(self, candidate: str) -> Outcome:
        """Let another member lead.

        Args:
            candidate: who; empty for the best.

        Raises:
            GateError: leadership may not move, or did not.
        """

        def may() -> tuple[S, Verdict]:
            state = self._read()
            return state, hand_over(state, candidate, self._wish.lag_limit)

        with ExitStack() as stack:
            held = self._enter(stack)
            state, verdict = self._allowed(may)
            self._note(verdict)
            if verdict.action is Action.YIELD and state.leader is not None:
                former = Wish(state.leader.name, lag_limit=self._wish.lag_limit)
                self._move(held, state, verdict, named=bool(candidate))
                self._wait(lambda: settled(self._read(), former, state), "did not recover")
        return self.outcome

    def settle(self) -> Outcome:
        """Wait until the member is well, whoever changed it.

        Raises:
            GateError: it is not in time.
        """
        self._wait(lambda: settled(state := self._read(), self._wish, state), "is not well")
        self._note(Verdict(True, Action.NOTHING, f"{self._wish.member} is well"))
        return self.outcome

    # --- steps ---

    def _enter(self, stack: ExitStack) -> Lock:
        """Take the lock; go on without only where the cluster that keeps it has no quorum."""
        began = time.monotonic()
        while True:
            try:
                return stack.enter_context(self._lock())
            except LockHeldError as error:
                raise GateError(f"{error}: this run does not touch {self._wish.member}") from error
            except UNANSWERED as error:
                if time.monotonic() - began >= self._patience.ask:
                    if self._may()[1].unlocked:
                        return NoLock()
                    raise GateError(f"the lock cannot be taken, {error}") from error
            time.sleep(POLL)

    def _check(self, held: Lock) -> None:
        try:
            held.check()
        except LockLostError as error:
            raise GateError(f"{error}: {self._wish.member} is not touched") from error

    def _may(self) -> tuple[S, Verdict]:
        state = self._read()
        return state, decide(state, self._wish)

    def _allowed(self, may: Callable[[], tuple[S, Verdict]]) -> tuple[S, Verdict]:
        """Wait for a verdict that lets us go on; a last resort has to stand for the whole patience.

        Raises:
            GateError: there is none.
        """
        began = time.monotonic()
        resort: float | None = None
        reason = ""
        while True:
            try:
                state, verdict = may()
            except GateError as error:
                resort, reason = None, str(error)
            else:
                reason = verdict.reason
                resort = (resort or time.monotonic()) if verdict.last_resort else None
                stood = resort is None or time.monotonic() - resort >= self._patience.ask
                if verdict.action is Action.DEFER or (verdict.allowed and stood):
                    self.outcome.waited += time.monotonic() - began
                    return state, verdict
                if verdict.final:
                    raise GateError(reason)
            if resort is None and time.monotonic() - began >= self._patience.ask:
                raise GateError(reason)
            time.sleep(POLL)

    def _move(self, held: Lock, state: S, verdict: Verdict, *, named: bool) -> None:
        self._check(held)
        began = time.monotonic()
        self.outcome.changed, self.outcome.target = True, verdict.target
        try:
            gap, leader = self._engine.move_leader(state, verdict.target, self._patience.recover, named=named)
        except UNANSWERED as error:
            raise GateError(str(error)) from error
        self.outcome.gap, self.outcome.target = gap, leader
        self.outcome.reason = self.outcome.reason.replace(f"hands over to {verdict.target}", f"hands over to {leader}")
        self.outcome.waited += time.monotonic() - began

    def _wait(self, probe: Callable[[], str], verb: str) -> None:
        began = time.monotonic()
        while True:
            try:
                missing = probe()
            except GateError as error:
                missing = str(error)
            if not missing:
                break
            if time.monotonic() - began >= self._patience.recover:
                raise GateError(f"{missing}: {self._wish.member} {verb} within {self._patience.recover:g} s")
            time.sleep(POLL)
        self.outcome.waited += time.monotonic() - began

    def _read(self) -> S:
        try:
            return self._engine.read(self._wish.member)
        except UNANSWERED as error:
            raise GateError(str(error)) from error

    def _note(self, verdict: Verdict) -> Verdict:
        self.outcome.decision, self.outcome.reason = str(verdict.action), verdict.reason
        self.outcome.deferred = verdict.action is Action.DEFER
        self.outcome.target = verdict.target or self.outcome.target
        return verdict
