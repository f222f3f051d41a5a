# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""May this broker or controller of Kafka leave now? Pure decisions, as in `gate`; `kafka_cluster` reads.

Brokers have no leader to wait for: each leads some partitions, and hands them over while it stops (controlled
shutdown). What counts is that each partition keeps as many replicas in sync as a write with `acks=all` needs. The list
of those in sync is the controller's, and seconds old when a broker freezes, so that only brokers count in it which
answered us themselves.

Controllers are a quorum of KRaft. Its leader tells how long ago each voter had all of the log, by its own clock.

Sources: Kafka 4.4 documentation (min.insync.replicas, controlled.shutdown.enable, controller.quorum.fetch.timeout.ms),
KIP-836 (timestamps of the quorum), KIP-853 (voters), KIP-966 (eligible leader replicas).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from ansible_collections.groundplane.onprem.plugins.module_utils.gate import (
    Action,
    Health,
    LeaderlessState,
    State,
    Verdict,
    Wish,
    causes,
    names,
    never,
    restart,
    wait,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

BEHIND_LIMIT = 2.0
"""Seconds since a voter had all of the leader's log, up to which it counts: after so long without a fetch it takes its
leader for lost (controller.quorum.fetch.timeout.ms, 2 s by default). A sound one fetches twice a second."""

NAMED = 3
"""Partitions that a message names; the others are counted."""


# --- brokers ---


@dataclass(frozen=True, slots=True)
class Broker:
    """One broker as the cluster and its own answer tell.

    Attributes:
        name: first label of its advertised host, by our convention the inventory name.
        id: node id, -1 when the cluster has not registered it.
        health: SERVING when it answers; DOWN when nothing listens and the cluster does not count on it either.
        live: the controller counts on it: it is registered and not fenced.
        expected: the caller named its server.
        cause: why it is not serving.
    """

    name: str
    id: int = -1
    health: Health = Health.UNKNOWN
    live: bool = False
    expected: bool = True
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition.

    Attributes:
        topic: its topic.
        index: its number.
        replicas: ids of the brokers that have it; while it moves, both the old and the new.
        in_sync: those of them that have all of it, as the controller knows.
        minimum: the topic's effective min.insync.replicas.
        moving: a reassignment is under way.
    """

    topic: str
    index: int
    replicas: frozenset[int]
    in_sync: frozenset[int]
    minimum: int = 1
    moving: bool = False

    @property
    def name(self) -> str:
        """As Kafka's logs have it."""
        return f"{self.topic}-{self.index}"

    @property
    def needed(self) -> int:
        """Replicas in sync without which it takes no safe write."""
        return max(1, self.minimum)


@dataclass(frozen=True, slots=True)
class BrokerState(LeaderlessState[Broker]):
    """The brokers of a Kafka cluster at one moment.

    Attributes:
        cluster: the name used in messages.
        members: all that are registered or expected.
        partitions: all; none when every broker is down.
        strangers: servers that belong to another cluster.
    """

    cluster: str
    members: tuple[Broker, ...]
    partitions: tuple[Partition, ...] = ()
    strangers: tuple[str, ...] = ()

    kind: ClassVar[str] = "Kafka cluster"
    instead: ClassVar[str] = "a broker hands its partitions over while it stops"

    @property
    def able(self) -> frozenset[int]:
        """Ids of brokers that the controller counts on, and that say so themselves."""
        return frozenset(broker.id for broker in self.members if broker.live and broker.health is Health.SERVING)

    def missing(self, partition: Partition, but: int) -> frozenset[int]:
        """Replicas that are not in sync, or on a broker that is not well, but for those on one broker."""
        return partition.replicas - (partition.in_sync & self.able) - {but}

    def decide(self, wish: Wish) -> Verdict:
        """See `decide_brokers`."""
        return decide_brokers(self, wish)

    def settled(self, wish: Wish, before: Self) -> str:
        """See `settled_brokers`."""
        return settled_brokers(self, wish, before)


def decide_brokers(state: BrokerState, wish: Wish) -> Verdict:
    """Whether the broker may leave, such that each partition goes on taking writes without it."""
    title = state.title
    member = state.find(wish.member)
    if member is None:
        return never(f"{title} has no broker {wish.member}, only {names(state.members)}")
    if member.health is Health.DOWN:
        return restart(f"{title}: {member.name} is not running, there is nothing to lose")
    if state.strangers:
        return never(f"{title} is not one cluster: {', '.join(sorted(state.strangers))} belongs to another")
    unnamed = _unnamed(state.members, member.id)
    if unnamed:
        return never(f"{title} does not know {member.name}: {unnamed}")
    return _decide_partitions(state, member, wish, title)


def _decide_partitions(state: BrokerState, member: Broker, wish: Wish, title: str) -> Verdict:
    lacking = {part: state.missing(part, member.id) for part in state.partitions}
    small = [
        part for part in state.partitions if member.id in part.in_sync and len(part.replicas) - 1 < part.needed
    ]  # a replica that has fallen out already takes nothing along
    if any(not part.moving for part in small) and not wish.outage:
        return never(
            f"{title} cannot lose {member.name}: {_listed(part.name for part in small)} of it has no replica to spare "
            "over min.insync.replicas: give it more replicas, or accept the outage"
        )
    behind = [part for part, gone in lacking.items() if gone]
    if behind:
        ids = {broker.id: broker.name for broker in state.members}
        told = _listed(f"{part.name} {_lacks(part, lacking[part], ids)}" for part in behind)
        unwell = [broker for broker in state.members if broker != member and broker.id not in state.able]
        cause = f"; {_sorted_causes(unwell)}" if unwell else ""
        return wait(f"{title} cannot lose {member.name} now: {told}{cause}")
    if small and not wish.outage:
        return wait(f"{title} cannot lose {member.name} now: {_listed(part.name for part in small)} is being moved")
    if small:
        return restart(
            f"{title} is without {_listed(part.name for part in small)} while {member.name} is away, and the outage is "
            "accepted"
        )
    if member.id not in {one for part in state.partitions for one in part.replicas}:
        return restart(f"{title}: {member.name} has no partition to lose")
    return restart(f"{title} keeps each of its {_count(len(state.partitions))} in sync without {member.name}")


def settled_brokers(now: BrokerState, wish: Wish, before: BrokerState) -> str:
    """Why the brokers are not yet as good as before the change; empty when they are.

    What is asked: the broker is live, each replica that was in sync before is so again, and each partition of this
    broker has all its replicas in sync. What is on another broker that was lost before is not asked of this one.
    """
    title = now.title
    member = now.find(wish.member)
    if member is None:
        return f"{title} does not know {wish.member} yet"
    if member.health is not Health.SERVING:
        return f"{title}: {causes([member])}"
    if not member.live:
        return f"{title}: {member.name} is {'fenced' if member.id >= 0 else 'not registered'} as yet"
    was = {(part.topic, part.index): part for part in before.partitions}
    lacking = {}
    for part in now.partitions:
        old = was.get((part.topic, part.index))
        known = (old.in_sync if old else part.replicas) & before.able
        wanted = part.replicas & before.able if member.id in part.replicas else part.replicas & known
        gone = (wanted | (part.replicas & {member.id})) - (part.in_sync & now.able)
        if gone:
            lacking[part] = gone
    ids = {broker.id: broker.name for broker in now.members}
    told = _listed(f"{part.name} {_lacks(part, gone, ids)}" for part, gone in lacking.items())
    return f"{title}: {told}" if told else ""


def _lacks(part: Partition, gone: Collection[int], ids: dict[int, str]) -> str:
    if part.moving:
        return "is being moved"
    return f"lacks {' and '.join(sorted(ids.get(one, f'broker {one}') for one in gone))}"


def _listed(texts: Iterable[str]) -> str:
    """The first few of many, and how many more there are."""
    found = sorted(texts)
    more = f" and {_count(len(found) - NAMED)} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more


def _count(number: int) -> str:
    return f"{number} partition" if number == 1 else f"{number} partitions"


# --- controllers ---


@dataclass(frozen=True, slots=True)
class Controller:
    """One controller as the quorum and its own answer tell.

    Attributes:
        name: first label of its advertised host, by our convention the inventory name.
        id: node id, -1 when the quorum does not know it.
        health: SERVING when it answers and knows an active controller; FAILING when it answers and knows none.
        voter: has a vote.
        behind: seconds, by the leader's clock, since it had all of the log; None when not known.
        expected: the caller named its server.
        cause: why it is not serving.
    """

    name: str
    id: int = -1
    health: Health = Health.UNKNOWN
    voter: bool = True
    behind: float | None = None
    expected: bool = True
    cause: str = ""


@dataclass(frozen=True, slots=True)
class ControllerState(State[Controller]):
    """The quorum of Kafka's controllers at one moment.

    Attributes:
        cluster: the name used in messages.
        members: all that have a vote, are registered or expected.
        active: id of the controller that says it leads, -1 for nobody.
        strangers: servers that belong to another cluster.
    """

    cluster: str
    members: tuple[Controller, ...]
    active: int = -1
    strangers: tuple[str, ...] = ()

    kind: ClassVar[str] = "Kafka quorum"

    @property
    def leader(self) -> Controller | None:
        """The active controller."""
        return next((member for member in self.members if member.id == self.active >= 0), None)

    @property
    def voters(self) -> tuple[Controller, ...]:
        """Members with a vote."""
        return tuple(member for member in self.members if member.voter)

    @property
    def needed(self) -> int:
        """Votes that make a quorum."""
        return len(self.voters) // 2 + 1

    @property
    def able(self) -> tuple[Controller, ...]:
        """Voters that answer and had all of the log a moment ago."""
        return tuple(
            member
            for member in self.voters
            if member.health is Health.SERVING and member.behind is not None and member.behind <= BEHIND_LIMIT
        )

    def decide(self, wish: Wish) -> Verdict:
        """See `decide_controllers`."""
        return decide_controllers(self, wish)

    def settled(self, wish: Wish, before: Self) -> str:
        """See `settled_controllers`."""
        return settled_controllers(self, wish, before)

    def hand_over(self, candidate: str, lag_limit: int) -> Verdict:  # noqa: ARG002 - there is no such request
        """Refuse."""
        return never(f"{self.title} does not move its lead: {NO_REQUEST}")


NO_REQUEST = "KRaft has no request to hand it over, the active controller resigns when it stops"


def decide_controllers(state: ControllerState, wish: Wish) -> Verdict:
    """Whether the controller may leave, such that a majority of the voters stays able without it."""
    title = state.title
    member = state.find(wish.member)
    if member is None:
        return never(f"{title} has no controller {wish.member}, only {names(state.members)}")
    if member.health is Health.DOWN:
        return restart(f"{title}: {member.name} is not running, there is nothing to lose")
    if state.strangers:
        return never(f"{title} is not one cluster: {', '.join(sorted(state.strangers))} belongs to another")
    if state.leader is None:
        if member.health is Health.FAILING:
            reason = f"{title} has no majority that {member.name} could break"
            return Verdict(True, Action.RESTART, reason, last_resort=True)
        return wait(f"{title} cannot be asked: {_sorted_causes(state.members)}")
    unnamed = _unnamed(state.voters, member.id)
    if unnamed:
        return never(f"{title} does not know {member.name}: {unnamed}")
    if not member.voter:
        return restart(f"{title}: {member.name} has no vote to lose")
    return _decide_votes(state, member, wish, title)


def _decide_votes(state: ControllerState, member: Controller, wish: Wish, title: str) -> Verdict:
    rest = [other for other in state.able if other != member]
    lagging = "".join(f"; {text}" for text in sorted(_lag(other) for other in state.voters if other not in state.able))
    if len(rest) < state.needed:
        small = len(state.voters) - 1 < state.needed
        if small and wish.outage and len(state.able) == len(state.voters):
            return restart(f"{title} is too small to lose {member.name}, and the outage is accepted")
        reason = f"{title} cannot lose {member.name} now: {len(rest)} of {state.needed} needed voters would be left"
        return never(f"{reason}{lagging}") if small else wait(f"{reason}{lagging}")
    if state.leader != member:
        return restart(f"{title} keeps {len(rest)} of {state.needed} needed voters without {member.name}{lagging}")
    if wish.lead == "defer":
        return Verdict(False, Action.DEFER, f"{title}: {member.name} leads, so it goes last")
    return restart(f"{title}: {member.name} leads and is restarted in place: {NO_REQUEST}{lagging}")


def settled_controllers(now: ControllerState, wish: Wish, before: ControllerState) -> str:
    """Why the quorum is not yet as good as before the change; empty when it is."""
    title = now.title
    member = now.find(wish.member)
    if member is None:
        return f"{title} does not know {wish.member} yet"
    # Who was restarted where there was no majority is up again, and a majority comes with the others. Who only waits
    # until it is well compares a state with itself, and waits for the majority.
    if member.health in (Health.SERVING, Health.FAILING) and before.leader is None and before is not now:
        return ""
    if member.health is not Health.SERVING:
        return f"{title}: {causes([member])}"
    if now.leader is None:
        return f"{title} has no active controller"
    able = {other.name for other in now.able}
    missing = {other.name for other in before.able} | ({member.name} if _votes(member, before) else set())
    late = [_lag(other) for other in now.members if other.name in missing - able]
    gone = [f"{name} is no longer known" for name in missing - {other.name for other in now.members}]
    return f"{title}: {', '.join(sorted(late + gone))}" if late or gone else ""


def _votes(member: Controller, before: ControllerState) -> bool:
    """Whether it has a vote, or had one."""
    was = before.find(member.name)
    return member.voter or (was is not None and was.voter)


def _lag(member: Controller) -> str:
    """Why a voter does not count."""
    if member.health is not Health.SERVING:
        return causes([member])
    if not member.voter:
        return f"{member.name} has no vote any more"
    if member.behind is None:
        return f"{member.name} has not caught up with the active controller as yet"
    return f"{member.name} is {member.behind:.0f} s behind the active controller"


# --- both ---


def _unnamed(members: Iterable[Broker | Controller], id_: int) -> str:
    """Whom the cluster knows by a name that nobody expects, where it does not know the member's: it may be that one."""
    if id_ >= 0:
        return ""
    found = sorted(f"{member.name} (node {member.id})" for member in members if member.id >= 0 and not member.expected)
    return f"{', '.join(found)} is none of its servers, and may be the same" if found else ""


def _sorted_causes(members: Iterable[Broker | Controller]) -> str:
    ordered = sorted(members, key=lambda member: (member.name, member.id))
    return causes(ordered)
