# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""May this member of this cluster leave now? The decisions of the rolling gate, as pure functions of what was read.

Nothing here asks a server, waits or changes anything: `etcd_cluster`, `patroni_cluster`, `kafka_cluster`,
`object_store_cluster`, `qdrant_cluster` and `redis_cluster` read, `gate_run` waits and acts. A new engine is a `State`
that decides for itself, and its reader; those of Kafka, Redis, Qdrant and an object store are `gate_kafka`,
`gate_redis`, `gate_qdrant` and `gate_object_store`.

What proves what. `Health.SERVING`: the member said it is well. `Health.FAILING`: it answered and said it is not.
`Health.DOWN`: nothing listens, so it cannot be lost any more. `Health.UNKNOWN`: no answer, or none we trust; it may
well be serving others, so it counts as serving when *it* is to leave and as lost when another is to leave.

Sources: etcd 3.5 documentation (faq: what is failure tolerance; api: maintenance), Patroni 4.0 documentation (rest_api,
replication_modes: quorum commit mode; pause).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

RAFT_SLACK = 1000
"""Entries a follower may be behind the leader's log and still count: etcd applies many times that in a second."""

LAG_LIMIT = 1024 * 1024
"""Bytes of WAL a standby may be behind, as Patroni's maximum_lag_on_failover."""


class Health(StrEnum):
    """What is known of a member."""

    SERVING = "serving"
    FAILING = "failing"
    DOWN = "down"
    UNKNOWN = "unknown"


class Action(StrEnum):
    """What the gate does next."""

    RESTART = "restart"
    YIELD = "yield_then_restart"
    DEFER = "defer"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer of the gate.

    Attributes:
        allowed: the member may leave (after it has yielded, when the action says so).
        action: the next step.
        reason: one sentence that names cluster, member and cause.
        target: who leads next.
        final: waiting does not help, a person has to.
        last_resort: allowed only if it stays so for the whole patience: there is nothing left to lose, if we see right.
        unlocked: no quorum is left to keep a lock, so it may be done without.
    """

    allowed: bool
    action: Action
    reason: str
    target: str = ""
    final: bool = False
    last_resort: bool = False
    unlocked: bool = False


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller wants.

    Attributes:
        member: who is to leave.
        lead: `defer` leaves a leader for later, `yield` moves leadership first.
        outage: accept that a cluster too small to lose anybody is gone while its member restarts.
        postgres: only PostgreSQL is restarted, by Patroni, to take parameters that wait for it.
        lag_limit: bytes of WAL a standby may be behind.
    """

    member: str
    lead: str = "defer"
    outage: bool = False
    postgres: bool = False
    lag_limit: int = LAG_LIMIT


class Member(Protocol):
    """What all engines know of a member."""

    @property
    def name(self) -> str:
        """The inventory name."""

    @property
    def health(self) -> Health:
        """What is known of it."""

    @property
    def cause(self) -> str:
        """Why it is not serving."""


M = TypeVar("M", bound=Member)


class State(ABC, Generic[M]):
    """A cluster at one moment, which decides for itself.

    Attributes:
        kind: what it is called before its name, in messages.
        cluster: the name used in messages.
        members: all that are known.
    """

    __slots__ = ()

    kind: ClassVar[str]
    cluster: str
    members: tuple[M, ...]

    @property
    def title(self) -> str:
        """How a message begins."""
        return f"{self.kind} {self.cluster}"

    @property
    @abstractmethod
    def leader(self) -> M | None:
        """Who leads; None also where nobody ever does."""

    def find(self, name: str) -> M | None:
        """The member of that name."""
        return next((member for member in self.members if member.name == name), None)

    @abstractmethod
    def decide(self, wish: Wish) -> Verdict:
        """Whether the member may leave now."""

    @abstractmethod
    def settled(self, wish: Wish, before: Self) -> str:
        """Why it is not yet as good as before the member left and came back; empty when it is."""

    def successor(self, candidate: str, lag_limit: int) -> str:  # noqa: ARG002 - for those that hand over
        """Who leads next: the candidate if fit, else the best; empty when there is none."""
        return ""

    def hand_over(self, candidate: str, lag_limit: int) -> Verdict:
        """Whether leadership may move to the candidate, or to the best one when none is named."""
        leader = self.leader
        if leader is None:
            return wait(f"{self.title} has no leader to hand over from")
        if candidate == leader.name:
            return Verdict(True, Action.NOTHING, f"{self.title}: {candidate} leads already", target=candidate)
        if candidate and self.find(candidate) is None:
            return never(f"{self.title} has no member {candidate}, only {names(self.members)}")
        verdict = self.decide(Wish(leader.name, "yield", lag_limit=lag_limit))
        if not verdict.allowed:
            return verdict
        target = self.successor(candidate, lag_limit)
        if not target:
            who = candidate or "anybody"
            return wait(f"{self.title} cannot hand over to {who}: it is not a healthy, synchronous follower")
        return Verdict(True, Action.YIELD, f"{self.title}: {leader.name} hands over to {target}", target=target)


class LeaderlessState(State[M]):
    """A cluster in which nobody leads the others.

    Attributes:
        instead: what its members do instead, for a message.
    """

    __slots__ = ()

    instead: ClassVar[str]

    @property
    def leader(self) -> None:
        """Nobody."""
        return

    def hand_over(self, candidate: str, lag_limit: int) -> Verdict:  # noqa: ARG002 - there is nothing to hand over
        """Refuse."""
        return never(f"{self.title} has no leader to move: {self.instead}")


def never(reason: str) -> Verdict:
    """A refusal that waiting does not mend."""
    return Verdict(False, Action.NOTHING, reason, final=True)


def wait(reason: str) -> Verdict:
    """A refusal that time may mend."""
    return Verdict(False, Action.NOTHING, reason)


def restart(reason: str) -> Verdict:
    """The member may leave where it is."""
    return Verdict(True, Action.RESTART, reason)


def names(members: Iterable[Member]) -> str:
    """Members for a message."""
    return ", ".join(sorted(member.name for member in members if member.name)) or "nobody"


def causes(members: Iterable[Member]) -> str:
    """What is known of members, for a message."""
    return ", ".join(
        f"{member.name} is {member.health}{f' ({member.cause})' if member.cause else ''}" for member in members
    )


# --- etcd ---


@dataclass(frozen=True, slots=True)
class EtcdMember:
    """One member as the member list and its own answers tell.

    Attributes:
        id: member id.
        name: `name` of its configuration, by our convention the inventory name; empty before its first start.
        health: of /health, and how it failed.
        learner: has no vote yet.
        leader: whom it takes for the leader, 0 for nobody.
        applied: applied raft index.
        index: raft index.
        urls: its client URLs.
        cause: why it is not serving.
    """

    id: int
    name: str
    health: Health = Health.UNKNOWN
    learner: bool = False
    leader: int = 0
    applied: int = 0
    index: int = 0
    urls: tuple[str, ...] = ()
    cause: str = ""


@dataclass(frozen=True, slots=True)
class EtcdState(State[EtcdMember]):
    """An etcd cluster at one moment.

    Attributes:
        cluster: the name used in messages.
        members: all, learners too.
        alarms: such as `NOSPACE of data2`.
        strangers: endpoints that belong to another cluster.
    """

    cluster: str
    members: tuple[EtcdMember, ...]
    alarms: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()

    kind: ClassVar[str] = "etcd cluster"

    @property
    def voters(self) -> tuple[EtcdMember, ...]:
        """Members with a vote."""
        return tuple(member for member in self.members if not member.learner)

    @property
    def needed(self) -> int:
        """Votes that make a quorum."""
        return len(self.voters) // 2 + 1

    @property
    def leader(self) -> EtcdMember | None:
        """The leader that all who serve agree on."""
        seen = {member.leader for member in self.members if member.health is Health.SERVING}
        if len(seen) != 1:
            return None
        return next((member for member in self.members if member.id in seen), None)

    @property
    def quorate(self) -> bool:
        """Whether a quorum works: /health is a linearizable read, so one member that serves proves it."""
        return any(member.health is Health.SERVING for member in self.voters)

    @property
    def able(self) -> tuple[EtcdMember, ...]:
        """Voters that serve and have applied nearly all of the log."""
        serving = [member for member in self.voters if member.health is Health.SERVING]
        newest = max((member.index for member in serving), default=0)
        return tuple(member for member in serving if newest - member.applied <= RAFT_SLACK)

    def decide(self, wish: Wish) -> Verdict:
        """See `decide_etcd`."""
        return decide_etcd(self, wish)

    def settled(self, wish: Wish, before: Self) -> str:
        """See `settled_etcd`."""
        return settled_etcd(self, wish, before)

    def successor(self, candidate: str, lag_limit: int) -> str:  # noqa: ARG002 - etcd counts entries
        """See `successor_etcd`."""
        return successor_etcd(self, candidate)


def decide_etcd(state: EtcdState, wish: Wish) -> Verdict:
    """Whether the member may leave, such that a quorum of voters stays able without it."""
    title = state.title
    member = state.find(wish.member)
    if member is None:
        return never(f"{title} has no member {wish.member}, only {names(state.members)}")
    if state.strangers:
        return never(f"{title} is not one cluster: {', '.join(state.strangers)} belongs to another")
    if state.alarms:
        return never(f"{title} has the alarm {', '.join(state.alarms)}: clear the cause and disarm it first")
    if member.health is Health.DOWN:
        reason = f"{title}: {member.name} is not running, there is nothing to lose"
        return Verdict(True, Action.RESTART, reason, unlocked=not state.quorate)
    learner = next((other for other in state.members if other.learner and other != member), None)
    if learner is not None:
        return wait(f"{title}: {learner.name or learner.id} is still a learner")
    if member.learner:
        return Verdict(True, Action.RESTART, f"{title}: {member.name} is a learner and has no vote to lose")
    if not state.quorate:
        if member.health is Health.FAILING:
            reason = f"{title} has no quorum that {member.name} could break"
            return Verdict(True, Action.RESTART, reason, last_resort=True, unlocked=True)
        return wait(f"{title} cannot be asked: {causes(state.voters)}")
    return _decide_etcd_quorum(state, member, wish, title)


def _decide_etcd_quorum(state: EtcdState, member: EtcdMember, wish: Wish, title: str) -> Verdict:
    rest = [other for other in state.able if other != member]
    if len(rest) < state.needed:
        small = len(state.voters) - 1 < state.needed
        if small and wish.outage and len(state.able) == len(state.voters):
            return Verdict(
                True, Action.RESTART, f"{title} is too small to lose {member.name}, and the outage is accepted"
            )
        absent = [other for other in state.voters if other not in state.able and other != member]
        cause = f"; {causes(absent)}" if absent else ""
        reason = (
            f"{title} cannot lose {member.name} now: {len(rest)} of {state.needed} needed voters would be left{cause}"
        )
        return never(reason) if small else wait(reason)
    leader = state.leader
    if leader is None:
        return wait(f"{title} has no leader that its members agree on")
    if leader != member:
        return Verdict(
            True, Action.RESTART, f"{title} keeps {len(rest)} of {state.needed} needed voters without {member.name}"
        )
    if wish.lead == "defer":
        return Verdict(False, Action.DEFER, f"{title}: {member.name} leads, so it goes last")
    target = successor_etcd(state)
    return Verdict(True, Action.YIELD, f"{title}: {member.name} leads and hands over to {target} first", target=target)


def successor_etcd(state: EtcdState, candidate: str = "") -> str:
    """The follower that leads next: the wanted one if able, else the most up to date; empty when there is none."""
    leader = state.leader
    followers = [member for member in state.able if member != leader and candidate in ("", member.name)]
    best = max(followers, key=lambda member: (member.applied, member.name), default=None)
    return best.name if best else ""


def settled_etcd(now: EtcdState, wish: Wish, before: EtcdState) -> str:
    """Why the cluster is not yet as good as before the change; empty when it is."""
    title = now.title
    member = now.find(wish.member)
    if member is None:
        return f"{title} has lost {wish.member} from its member list"
    if member.health is not Health.SERVING:
        return f"{title}: {causes([member])}"
    if now.leader is None:
        return f"{title} has no leader that its members agree on"
    able = {other.name for other in now.able}
    missing = {other.name for other in before.able} | ({member.name} if not member.learner else set())
    if missing - able:
        return f"{title}: {', '.join(sorted(missing - able))} has not caught up"
    return ""


# --- Patroni ---


@dataclass(frozen=True, slots=True)
class PatroniMember:
    """One PostgreSQL with its Patroni, as /cluster and its own /patroni tell.

    Attributes:
        name: Patroni's member name, by our convention the inventory name.
        health: SERVING when its REST API answers that PostgreSQL runs.
        leader: holds the leader lock.
        state: `running`, `starting`, `creating replica`, ...
        streaming: receives WAL from its primary now.
        timeline: 0 when not known.
        lag: bytes behind the leader; None when not known.
        sync: commits wait for it (it is in the synchronous or quorum set).
        pending_restart: PostgreSQL waits for a restart to take its parameters.
        lowered: parameters whose lower value the leader has to take first.
        nofailover: is never to lead.
        url: its REST API.
        cause: why it is not serving.
    """

    name: str
    health: Health = Health.UNKNOWN
    leader: bool = False
    state: str = ""
    streaming: bool = False
    timeline: int = 0
    lag: int | None = None
    sync: bool = False
    pending_restart: bool = False
    lowered: tuple[str, ...] = ()
    nofailover: bool = False
    url: str = ""
    cause: str = ""


@dataclass(frozen=True, slots=True)
class PatroniState(State[PatroniMember]):
    """A Patroni cluster at one moment.

    Attributes:
        cluster: the name used in messages.
        members: all that are registered or expected.
        paused: maintenance mode: nobody would fail over.
        mode: synchronous_mode: `off`, `on` or `quorum`.
        wanted: synchronous_node_count: standbys that each commit waits for.
        scheduled: a switchover that somebody has scheduled.
    """

    cluster: str
    members: tuple[PatroniMember, ...]
    paused: bool = False
    mode: str = "off"
    wanted: int = 1
    scheduled: str = ""

    kind: ClassVar[str] = "Patroni cluster"

    @property
    def leader(self) -> PatroniMember | None:
        """Who holds the leader lock."""
        return next((member for member in self.members if member.leader), None)

    def decide(self, wish: Wish) -> Verdict:
        """See `decide_patroni`."""
        return decide_patroni(self, wish)

    def settled(self, wish: Wish, before: Self) -> str:
        """See `settled_patroni`."""
        return settled_patroni(self, wish, before)

    def successor(self, candidate: str, lag_limit: int) -> str:
        """See `successor_patroni`."""
        return successor_patroni(self, lag_limit, candidate)

    def fault(self, member: PatroniMember, lag_limit: int) -> str:
        """Why that member could not carry the cluster; empty when it could."""
        if member.health is not Health.SERVING:
            return f"does not run PostgreSQL ({member.cause or member.state or member.health})"
        if member.leader:
            return ""
        if not member.streaming:
            return "does not stream from the leader"
        leader = self.leader
        if leader is not None and leader.timeline and member.timeline != leader.timeline:
            return f"is on timeline {member.timeline or 'unknown'} instead of {leader.timeline}"
        if member.lag is None or member.lag > lag_limit:
            return f"is {'an unknown number of' if member.lag is None else member.lag} bytes behind"
        return ""


def decide_patroni(state: PatroniState, wish: Wish) -> Verdict:
    """Whether the member may leave, such that somebody leads and commits neither stall nor lose their second copy."""
    title = state.title
    member = state.find(wish.member)
    if member is None:
        return never(f"{title} has no member {wish.member}, only {names(state.members)}")
    if state.paused:
        return never(f"{title} is paused, nobody would take over: resume it first")
    if member.health is Health.DOWN:
        return Verdict(
            True, Action.RESTART, f"{title}: Patroni of {member.name} is not running, there is nothing to lose"
        )
    if state.scheduled:
        return never(f"{title} has a switchover scheduled at {state.scheduled}: let it pass or cancel it")
    if member.health is Health.FAILING and not member.leader and not member.sync:
        # A base backup that runs is worth a little patience, one that fails for ever is not.
        reason = f"{title}: PostgreSQL of {member.name} is {member.state}, there is nothing to lose"
        return Verdict(True, Action.RESTART, reason, last_resort=member.state == "creating replica")
    if state.leader is None:
        return wait(f"{title} has no leader")
    return _decide_patroni_led(state, member, wish, title)


def _decide_patroni_led(state: PatroniState, member: PatroniMember, wish: Wish, title: str) -> Verdict:
    # A standby refuses to run with less than its primary has of these, so here the leader goes first, where it is.
    leads_first = wish.postgres and bool(state.leader and state.leader.lowered)
    if leads_first and not member.leader and member.lowered:
        reason = f"{title}: the leader has to take the lower {', '.join(member.lowered)} before {member.name}"
        return Verdict(False, Action.DEFER, reason)
    if member.leader and wish.lead == "defer" and not leads_first:
        return Verdict(False, Action.DEFER, f"{title}: {member.name} leads, so it goes last")
    others = [other for other in state.members if other != member]
    for other in others:
        fault = state.fault(other, wish.lag_limit)
        if fault:
            return wait(f"{title} cannot lose {member.name} now: {other.name} {fault}")
    if member.leader and leads_first:
        reason = f"{title}: PostgreSQL of the leader {member.name} takes the lower {', '.join(member.lowered)} in place"
        return Verdict(True, Action.RESTART, reason)
    if member.leader:
        return _decide_patroni_leader(state, member, wish, title)
    return _decide_patroni_standby(state, member, wish, title)


def _decide_patroni_leader(state: PatroniState, member: PatroniMember, wish: Wish, title: str) -> Verdict:
    if len(state.members) == 1:
        if wish.outage:
            return Verdict(True, Action.RESTART, f"{title} is {member.name} alone, and the outage is accepted")
        return never(f"{title} is {member.name} alone: nobody could lead instead")
    target = successor_patroni(state, wish.lag_limit)
    if not target:
        return wait(f"{title} has no healthy standby that could lead instead of {member.name}")
    left = len(state.members) - 2
    if state.mode != "off" and left < state.wanted and not wish.outage:
        return never(f"{title} cannot lose {member.name}: {_too_few(state, left)}")
    return Verdict(True, Action.YIELD, f"{title}: {member.name} leads and hands over to {target} first", target=target)


def _decide_patroni_standby(state: PatroniState, member: PatroniMember, wish: Wish, title: str) -> Verdict:
    left = [other for other in state.members if other != member and not other.leader]
    if state.mode != "off" and len(left) < state.wanted:
        if wish.outage:
            reason = f"{title} is too small to lose {member.name}, and the outage is accepted"
            return Verdict(True, Action.RESTART, reason)
        return never(f"{title} cannot lose {member.name}: {_too_few(state, len(left))}")
    if state.mode == "quorum" and sum(other.sync for other in left) < state.wanted:
        return wait(f"{title} cannot lose {member.name} now: the others are not in the quorum yet")
    return Verdict(True, Action.RESTART, f"{title} keeps its leader and {_standbys(len(left))} without {member.name}")


def _too_few(state: PatroniState, left: int) -> str:
    return f"each commit waits for {_standbys(state.wanted)} and {left} would be left"


def _standbys(count: int) -> str:
    return f"{count} standby" if count == 1 else f"{count} standbys"


def successor_patroni(state: PatroniState, lag_limit: int, candidate: str = "") -> str:
    """The standby that leads next: healthy, with every acknowledged commit, least behind; empty when there is none."""
    fit = [
        member
        for member in state.members
        if not member.leader
        and not member.nofailover
        and not state.fault(member, lag_limit)
        and (member.sync or state.mode == "off")
        and candidate in ("", member.name)
    ]
    best = min(fit, key=lambda member: (member.lag or 0, member.name), default=None)
    return best.name if best else ""


def settled_patroni(now: PatroniState, wish: Wish, before: PatroniState) -> str:
    """Why the cluster is not yet as good as before the change; empty when it is."""
    title = now.title
    member = now.find(wish.member)
    if member is None:
        return f"{title} does not know {wish.member} yet"
    if member.health in (Health.SERVING, Health.FAILING) and before.leader is None:
        return ""  # it is up again; a leader comes with the others
    if now.leader is None:
        return f"{title} has no leader"
    well = {other.name for other in before.members if not before.fault(other, wish.lag_limit)} | {member.name}
    found = [(other.name, now.fault(other, wish.lag_limit)) for other in now.members if other.name in well]
    faults = [f"{name} {fault}" for name, fault in found if fault]
    if wish.postgres and member.pending_restart:
        faults.append(f"PostgreSQL of {member.name} still waits for a restart")
    sync, was = (sum(other.sync for other in state.members) for state in (now, before))
    if now.mode != "off" and sync < was:
        faults.append(f"{sync} of {was} standbys are back in the synchronous set")
    return f"{title}: {', '.join(faults)}" if faults else ""


# --- all ---


def decide(state: State[Any], wish: Wish) -> Verdict:
    """Whether a member of the cluster may leave now."""
    return state.decide(wish)


def settled(now: State[Any], wish: Wish, before: State[Any]) -> str:
    """Why a cluster is not yet as good as before a member left and came back; empty when it is.

    Raises:
        TypeError: they are not of one engine.
    """
    if type(now) is not type(before):
        raise TypeError(f"{type(now).__name__} does not compare with {type(before).__name__}")
    return now.settled(wish, before)


def hand_over(state: State[Any], candidate: str = "", lag_limit: int = LAG_LIMIT) -> Verdict:
    """Whether leadership may move to the candidate, or to the best one when none is named."""
    return state.hand_over(candidate, lag_limit)
