# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""May this Redis server, or this Sentinel, leave now? Pure decisions, as in `gate`; `redis_cluster` reads.

Each host has a server and a Sentinel. One server is the master; Redis acknowledges a write before a replica has it, and
refuses writes while fewer replicas follow than `min-replicas-to-write`. What a member is worth is therefore whether it
follows the master now and how many bytes it is behind. Who the master is, is what the Sentinels say, and they may
promote another only while a majority of all of them works: a member counts only with its Sentinel.

Sources: Redis 8.0 documentation (commands/info, commands/role; management/sentinel; management/replication).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from ansible_collections.groundplane.onprem.plugins.module_utils.gate import (
    Action,
    Health,
    State,
    Verdict,
    Wish,
    names,
    never,
    restart,
    wait,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

MASTER = "master"
REPLICA = "replica"


@dataclass(frozen=True, slots=True)
class Sentinel:
    """One Sentinel's own word.

    Attributes:
        health: SERVING when it answers and tells of the one master that it watches; FAILING too when it only stands by.
        master: name of the member that it takes for the master, or its address where that is no member's.
        others: how many Sentinels it knows beside itself.
        epoch: of the configuration that it goes by; each failover makes a greater one.
        flags: what it says of the master, such as `s_down`.
        fit: names of the replicas that it would promote. What it knows of them may be ten seconds old.
        cause: why it is not serving.
    """

    health: Health = Health.UNKNOWN
    master: str = ""
    others: int = 0
    epoch: int = 0
    flags: frozenset[str] = frozenset()
    fit: frozenset[str] = frozenset()
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Server:
    """One Redis server with its Sentinel.

    Attributes:
        name: the inventory name.
        health: SERVING when it answers and has loaded its data; FAILING when it answers and has not.
        role: `master`, `replica`, or empty when not known.
        follows: name of the member that it copies, or its address where that is no member's.
        linked: the copy is complete and goes on.
        behind: bytes behind the master; None when not known.
        priority: its replica-priority; 0 is never promoted.
        minimum: its min-replicas-to-write.
        sentinel: the Sentinel of the same host.
        cause: why it is not serving.
    """

    name: str
    health: Health = Health.UNKNOWN
    role: str = ""
    follows: str = ""
    linked: bool = False
    behind: int | None = None
    priority: int = 100
    minimum: int = 0
    sentinel: Sentinel = Sentinel()
    cause: str = ""


@dataclass(frozen=True, slots=True)
class RedisState(State[Server]):
    """A master, its replicas and their Sentinels at one moment.

    Attributes:
        cluster: the name used in messages.
        members: all that are expected.
    """

    cluster: str
    members: tuple[Server, ...]

    kind: ClassVar[str] = "Redis"

    @property
    def needed(self) -> int:
        """Sentinels that are a majority of all."""
        return len(self.members) // 2 + 1

    @property
    def leader(self) -> Server | None:
        """The one master, which a majority of the Sentinels names and none contradicts."""
        masters = [member for member in self.members if member.role == MASTER]
        told = [member.sentinel.master for member in self.members if member.sentinel.health is Health.SERVING]
        if len(masters) != 1 or len(told) < self.needed or set(told) != {masters[0].name}:
            return None
        return masters[0]

    @property
    def doubt(self) -> str:
        """Why there is no leader, for a message."""
        masters = [member for member in self.members if member.role == MASTER]
        if len(masters) > 1:
            return f"{names(masters)} each say that they are the master"
        told = {member.name: member.sentinel.master for member in self.members if member.sentinel.master}
        said = ", ".join(f"that of {name} names {master}" for name, master in sorted(told.items()))
        silent = [member for member in self.members if member.sentinel.health is not Health.SERVING]
        mute = ", ".join(f"that of {member.name} {_mute(member.sentinel)}" for member in silent)
        who = f"{names(masters)} says that it is the master" if masters else "no server says that it is the master"
        return f"{who}; of the Sentinels {', '.join(filter(None, (said, mute)))}"

    def fault(self, member: Server, lag_limit: int) -> str:
        """Why that member could not carry the others; empty when it could."""
        if member.health is not Health.SERVING:
            return f"is {member.health} ({member.cause})" if member.cause else f"is {member.health}"
        if member.sentinel.health is not Health.SERVING:
            return f"has a Sentinel that {_mute(member.sentinel)}"
        if member.sentinel.others < len(self.members) - 1:
            return f"has a Sentinel that knows {member.sentinel.others} of {len(self.members) - 1} others"
        if {"s_down", "o_down", "failover_in_progress"} & member.sentinel.flags:
            return f"has a Sentinel that says {', '.join(sorted(member.sentinel.flags))} of {member.sentinel.master}"
        leader = self.leader
        if leader is None or member == leader:
            return ""
        if member.role != REPLICA or member.follows != leader.name:
            return f"follows {member.follows or 'nobody'} instead of {leader.name}"
        if not member.linked:
            return f"has not copied {leader.name} as yet"
        if member.behind is None or member.behind > lag_limit:
            return f"is {'an unknown number of' if member.behind is None else member.behind} bytes behind"
        if member.priority == 0:
            return "may not be promoted (replica-priority 0)"
        asked = [other for other in self.members if other.sentinel.health is Health.SERVING]
        unfit = [other for other in asked if member.name not in other.sentinel.fit]
        return f"is as yet nobody to promote for the Sentinel of {names(unfit)}" if unfit else ""

    def decide(self, wish: Wish) -> Verdict:
        """See `decide_redis`."""
        return decide_redis(self, wish)

    def settled(self, wish: Wish, before: Self) -> str:
        """See `settled_redis`."""
        return settled_redis(self, wish, before)

    def successor(self, candidate: str, lag_limit: int) -> str:
        """See `successor_redis`."""
        return successor_redis(self, lag_limit) if not candidate else ""

    def hand_over(self, candidate: str, lag_limit: int) -> Verdict:
        """Whether another may be the master; who, is for the Sentinels to choose."""
        if candidate and (self.leader is None or candidate != self.leader.name):
            return never(
                f"{self.title} does not hand over to {candidate}: Sentinel chooses the replica itself, so name none"
            )
        return State.hand_over(self, candidate, lag_limit)


def _mute(sentinel: Sentinel) -> str:
    return f"is {sentinel.health}{f' ({sentinel.cause})' if sentinel.cause else ''}"


def decide_redis(state: RedisState, wish: Wish) -> Verdict:
    """Whether the server may leave, such that a master with enough replicas stays, and Sentinels to replace it."""
    title = state.title
    member = state.find(wish.member)
    if member is None:
        return never(f"{title} has no member {wish.member}, only {names(state.members)}")
    if member.health is Health.DOWN:
        return restart(f"{title}: {member.name} is not running, there is nothing to lose")
    if len(state.members) == 1:
        if wish.outage:
            return restart(f"{title} is {member.name} alone, and the outage is accepted")
        return never(f"{title} is {member.name} alone: nobody could be the master instead")
    leader = state.leader
    if leader is None:
        return wait(f"{title} has no master that its Sentinels agree on: {state.doubt}")
    if member == leader and wish.lead == "defer":
        return Verdict(False, Action.DEFER, f"{title}: {member.name} is the master, so it goes last")
    if member != leader and (member.health is Health.FAILING or not member.linked):
        return restart(f"{title}: {member.name} does not follow {leader.name}, there is nothing to lose")
    return _decide_led(state, member, leader, wish)


def _decide_led(state: RedisState, member: Server, leader: Server, wish: Wish) -> Verdict:
    title = state.title
    faults = _faults(state, (other for other in state.members if other != member), wish.lag_limit)
    if faults:
        return wait(f"{title} cannot lose {member.name} now: {faults}")
    left = len(state.members) - 2
    if left < leader.minimum:
        if not wish.outage:
            return never(
                f"{title} cannot lose {member.name}: each write needs {_replicas(leader.minimum)} "
                f"(min-replicas-to-write) and {left} would be left"
            )
        return restart(f"{title} takes no writes while {member.name} is away, and the outage is accepted")
    if member != leader:
        return restart(f"{title} keeps its master and {_replicas(left)} without {member.name}")
    target = successor_redis(state, wish.lag_limit)
    if not target:
        return wait(f"{title} has no replica that could be the master instead of {member.name}")
    reason = f"{title}: {member.name} is the master and hands over to {target} first"
    return Verdict(True, Action.YIELD, reason, target=target)


def successor_redis(state: RedisState, lag_limit: int) -> str:
    """The replica that Sentinel is likely to choose (priority, then least behind); empty when there is none."""
    fit = [member for member in state.members if member.role == REPLICA and not state.fault(member, lag_limit)]
    best = min(fit, key=lambda member: (member.priority, member.behind or 0, member.name), default=None)
    return best.name if best else ""


def settled_redis(now: RedisState, wish: Wish, before: RedisState) -> str:
    """Why all is not yet as good as before the server left and came back; empty when it is."""
    title = now.title
    member = now.find(wish.member)
    if member is None:
        return f"{title} does not know {wish.member} yet"
    # Who was started where there was no master is up again; one comes with the others.
    if member.health is Health.SERVING and before.leader is None and before is not now:
        return ""
    if now.leader is None:
        return f"{title} has no master that its Sentinels agree on: {now.doubt}"
    well = {other.name for other in before.members if not before.fault(other, wish.lag_limit)} | {member.name}
    faults = _faults(now, (other for other in now.members if other.name in well), wish.lag_limit)
    return f"{title}: {faults}" if faults else ""


def _faults(state: RedisState, members: Iterable[Server], lag_limit: int) -> str:
    found = ((member.name, state.fault(member, lag_limit)) for member in members)
    return ", ".join(f"{name} {fault}" for name, fault in found if fault)


def _replicas(count: int) -> str:
    return f"{count} replica" if count == 1 else f"{count} replicas"


# --- Sentinels ---


@dataclass(frozen=True, slots=True)
class SentinelState(RedisState):
    """The same, when a Sentinel is to leave and its server stays."""

    kind: ClassVar[str] = "Redis Sentinel"

    def decide(self, wish: Wish) -> Verdict:
        """See `decide_sentinels`."""
        return decide_sentinels(self, wish)

    def settled(self, wish: Wish, before: Self) -> str:
        """See `settled_sentinels`."""
        return settled_sentinels(self, wish, before)

    def hand_over(self, candidate: str, lag_limit: int) -> Verdict:  # noqa: ARG002 - there is nothing to hand over
        """Refuse."""
        return never(f"{self.title} has no leader to move: ask the engine redis")


def decide_sentinels(state: SentinelState, wish: Wish) -> Verdict:
    """Whether the Sentinel may leave, such that a majority that agrees can go on watching."""
    title = state.title
    member = state.find(wish.member)
    if member is None:
        return never(f"{title} has no member {wish.member}, only {names(state.members)}")
    if member.sentinel.health is Health.DOWN:
        return restart(f"{title}: that of {member.name} is not running, there is nothing to lose")
    if len(state.members) == 1:
        return restart(f"{title}: that of {member.name} is alone, and has nobody to promote")
    if any("failover_in_progress" in other.sentinel.flags for other in state.members):
        return wait(f"{title}: a failover is going on")
    others = [other for other in state.members if other != member]
    told = [other.sentinel.master for other in others if other.sentinel.health is Health.SERVING]
    mute = ", ".join(
        f"that of {other.name} {_mute(other.sentinel)}"
        for other in others
        if other.sentinel.health is not Health.SERVING
    )
    if len(told) < state.needed:
        reason = f"{title} cannot lose that of {member.name} now: {len(told)} of {state.needed} needed would be left"
        small = len(others) < state.needed
        if small and wish.outage and not mute:
            return restart(f"{title} cannot promote anybody while that of {member.name} is away, which is accepted")
        return never(reason) if small else wait(f"{reason}; {mute}")
    if len(set(told)) > 1:
        return wait(f"{title}: they do not agree on the master, {state.doubt}")
    return restart(f"{title} keeps {len(told)} of {state.needed} needed without that of {member.name}")


def settled_sentinels(now: SentinelState, wish: Wish, before: SentinelState) -> str:
    """Why the Sentinels are not yet as good as before one left and came back; empty when they are."""
    title = now.title
    member = now.find(wish.member)
    if member is None:
        return f"{title} does not know {wish.member} yet"
    well = {other.name for other in before.members if other.sentinel.health is Health.SERVING} | {member.name}
    asked = [other for other in now.members if other.name in well]
    bad = [
        f"that of {other.name} {_mute(other.sentinel)}"
        for other in asked
        if other.sentinel.health is not Health.SERVING
    ]
    if bad:
        return f"{title}: {', '.join(bad)}"
    if len({other.sentinel.master for other in asked}) > 1:
        return f"{title}: they do not agree on the master, {now.doubt}"
    if member.sentinel.others < len(now.members) - 1:
        return f"{title}: that of {member.name} knows {member.sentinel.others} of {len(now.members) - 1} others"
    return ""
