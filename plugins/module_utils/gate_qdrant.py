# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""May this member of a Qdrant cluster leave now? Pure decisions, as in `gate`; `qdrant_cluster` reads.

Members agree by Raft on collections and on where their shards are; the points themselves do not go through it, but to
all replicas of a shard at once. So two things count: consensus keeps a majority, and every replica is active, so that
each shard has another one. A member that leads the consensus cannot be told to hand over: it goes last, and where it
is.

Of each write as many replicas as the write consistency factor says have to take it, those that are away counting among
all there are. With a factor that is the number of replicas, writes to shards of a member that is away are refused until
it is back. That is what the site has declared, so that the gate says it and does not stop at it.

Sources: Qdrant 1.19 documentation, "Distributed deployment" (consensus, replication, write consistency factor); Qdrant
1.19, `lib/storage/src/types.rs`, `lib/collection/src/operations/types.rs`, `shards/replica_set/update.rs`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

from ansible_collections.groundplane.onprem.plugins.module_utils.gate import (
    Action,
    Health,
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
    from collections.abc import Iterable, Mapping

ACTIVE = "Active"
"""The state of a replica that has all points and answers."""

NAMED = 3
"""Shards that a message names; the others are counted."""

NO_REQUEST = "Qdrant has no request to hand the consensus over, and the others elect a leader when it stops"


@dataclass(frozen=True, slots=True)
class QdrantMember:
    """One member as its own answers tell.

    Attributes:
        name: first label of its server, by our convention the inventory name.
        health: SERVING when it is ready and its consensus works; FAILING when it answers and one of both is not so.
        peer: its id in the consensus; 0 when it did not say.
        leader: the id of whom it takes for the leader; 0 for nobody.
        peers: id to name of all peers that it knows, itself among them.
        cause: why it is not serving.
    """

    name: str
    health: Health = Health.UNKNOWN
    peer: int = 0
    leader: int = 0
    peers: Mapping[int, str] = field(default_factory=dict)
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard of a collection.

    Attributes:
        collection: of which it is.
        number: its id.
        replicas: id of a peer to the state of its replica.
        writes: the collection's write consistency factor.
        moving: transfers of it that are under way.
    """

    collection: str
    number: int
    replicas: Mapping[int, str]
    writes: int = 1
    moving: int = 0

    @property
    def label(self) -> str:
        """How a message calls it."""
        return f"shard {self.number} of {self.collection}"

    def active(self, without: int = 0) -> int:
        """How many replicas are active, one peer's not counted."""
        return sum(state == ACTIVE and peer != without for peer, state in self.replicas.items())

    def stalls_without(self, peer: int) -> bool:
        """Whether writes to it are refused while that peer is away."""
        return peer in self.replicas and self.active(peer) < min(self.writes, len(self.replicas))


@dataclass(frozen=True, slots=True)
class QdrantState(State[QdrantMember]):
    """A cluster of Qdrant at one moment.

    Attributes:
        cluster: the name used in messages.
        members: all that are expected.
        shards: of all collections, as a member that serves knows them.
    """

    cluster: str
    members: tuple[QdrantMember, ...]
    shards: tuple[Shard, ...] = ()

    kind: ClassVar[str] = "Qdrant"

    @property
    def serving(self) -> tuple[QdrantMember, ...]:
        """Members that serve."""
        return tuple(member for member in self.members if member.health is Health.SERVING)

    @property
    def leader(self) -> QdrantMember | None:
        """The leader that all who serve agree on, and who serves itself."""
        seen = {member.leader for member in self.serving}
        if len(seen) != 1:
            return None
        return next((member for member in self.serving if member.peer in seen), None)

    @property
    def strangers(self) -> list[str]:
        """Members that serve, and that another one who serves does not know: there is more than one cluster."""
        known = [set(member.peers) for member in self.serving]
        return sorted(member.name for member in self.serving if any(member.peer not in peers for peers in known))

    @property
    def gone(self) -> list[str]:
        """Peers of the consensus that no expected member can be, or whose place another peer has taken."""
        ids = {member.peer: member.name for member in self.members if member.peer}
        silent = {member.name for member in self.members if not member.peer}
        peers = {peer: name for member in self.serving for peer, name in member.peers.items()}
        return sorted(
            f"{name or '?'} ({peer})" for peer, name in peers.items() if peer not in ids and name not in silent
        )

    def name_of(self, peer: int) -> str:
        """What a peer is called in messages."""
        known = {one: name for member in self.members for one, name in member.peers.items()}
        return known.get(peer) or str(peer)

    def decide(self, wish: Wish) -> Verdict:
        """See `decide_qdrant`."""
        return decide_qdrant(self, wish)

    def settled(self, wish: Wish, before: Self) -> str:
        """See `settled_qdrant`."""
        return settled_qdrant(self, wish, before)

    def hand_over(self, candidate: str, lag_limit: int) -> Verdict:  # noqa: ARG002 - there is no request for it
        """Refuse."""
        return never(f"{self.title} does not move its lead: {NO_REQUEST}")


def decide_qdrant(state: QdrantState, wish: Wish) -> Verdict:
    """Whether the member may leave, such that consensus goes on and each shard has an active replica elsewhere."""
    title = state.title
    member = state.find(wish.member)
    if member is None:
        return never(f"{title} has no member {wish.member}, only {names(state.members)}")
    if state.strangers:
        return never(
            f"{title} is more than one cluster: {', '.join(state.strangers)} is not known to all others; stop it, "
            f"and see docs/runbooks/qdrant.md"
        )
    if member.health is Health.DOWN:
        return restart(f"{title}: {member.name} is not running, there is nothing to lose")
    others = [other for other in state.members if other != member]
    if member.health is not Health.SERVING:
        return _decide_unwell(state, member, others)
    unwell = [other for other in others if other.health is not Health.SERVING]
    if unwell:
        return wait(f"{title} cannot lose {member.name} now: {causes(unwell)}")
    return _decide_consensus(state, member, wish) or _decide_shards(state, member, wish)


def _decide_unwell(state: QdrantState, member: QdrantMember, others: list[QdrantMember]) -> Verdict:
    """A member that runs and does not serve; that has to stay so for the whole patience, while all others serve."""
    title, serving = state.title, [other for other in others if other.health is Health.SERVING]
    if others and len(serving) == len(others):
        reason = f"{title} is served by all others, and {causes([member])}"
        return Verdict(True, Action.RESTART, reason, last_resort=True)
    if member.health is Health.FAILING and not serving:
        reason = f"{title} has no member that serves, so that {member.name} breaks nothing"
        return Verdict(True, Action.RESTART, reason, last_resort=True)
    return wait(f"{title} cannot be asked: {causes([member, *(other for other in others if other not in serving)])}")


def _decide_consensus(state: QdrantState, member: QdrantMember, wish: Wish) -> Verdict | None:
    """What of the consensus speaks against it; None when nothing does."""
    title = state.title
    if state.gone:
        return never(
            f"{title} still counts on {', '.join(state.gone)}, which is no member that answers: remove it by name, "
            f"playbooks/qdrant_remove.yml"
        )
    absent = [other.name for other in state.members if other.peer not in member.peers]
    if absent:
        return wait(f"{title} cannot lose {member.name} now: {', '.join(absent)} has not joined yet")
    if state.leader is None:
        return wait(f"{title} has no leader that its members agree on")
    voters = len(member.peers)
    if voters - 1 < voters // 2 + 1 and not wish.outage:
        return never(f"{title} is too small to lose {member.name}: of {voters} voters {voters // 2 + 1} are needed")
    return None


def _decide_shards(state: QdrantState, member: QdrantMember, wish: Wish) -> Verdict:
    title = state.title
    unsound = [
        f"{shard.label} is {replica} on {state.name_of(peer)}"
        for shard in state.shards
        for peer, replica in shard.replicas.items()
        if replica != ACTIVE
    ]
    unsound += [f"{shard.label} is on its way" for shard in state.shards if shard.moving]
    if unsound:
        return wait(f"{title} cannot lose {member.name} now: {_some(unsound)}")
    alone = [shard.label for shard in state.shards if member.peer in shard.replicas and not shard.active(member.peer)]
    if alone and not wish.outage:
        return never(
            f"{title} cannot lose {member.name}: {_some(alone)} has no other replica; give its collection a "
            f"replication_factor of 2, or accept the outage"
        )
    stalled = [shard.label for shard in state.shards if shard.stalls_without(member.peer)]
    meanwhile = (
        f"; writes to {_some(stalled)} are refused meanwhile, by its write_consistency_factor" if stalled else ""
    )
    if state.leader != member:
        kept = "an active replica of each shard" if not alone else f"all but {_some(alone)}, which is accepted,"
        return restart(f"{title} keeps {kept} without {member.name}{meanwhile}")
    # Alone there is nobody to go before it.
    if wish.lead == "defer" and len(state.members) > 1:
        return Verdict(False, Action.DEFER, f"{title}: {member.name} leads, so it goes last")
    return restart(f"{title}: {member.name} leads and is restarted in place: {NO_REQUEST}{meanwhile}")


def settled_qdrant(now: QdrantState, wish: Wish, before: QdrantState) -> str:
    """Why the cluster is not yet as good as before the change; empty when it is.

    Where nobody served before, the member has only to answer again: it elects nobody until enough others are back.
    """
    title = now.title
    member = now.find(wish.member)
    if member is None:
        return f"{title} does not know {wish.member} yet"
    if now is not before and not before.serving and member.health is Health.FAILING:
        return ""
    served = {other.name for other in before.serving} | {member.name}
    lost = [other for other in now.members if other.name in served and other.health is not Health.SERVING]
    if lost:
        return f"{title}: {causes(lost)}"
    if now.strangers:
        return f"{title}: {', '.join(now.strangers)} is not known to all others"
    if now.leader is None:
        return f"{title} has no leader that its members agree on"
    own = [
        f"{shard.label} is {shard.replicas[member.peer]} on {member.name}"
        for shard in now.shards
        if shard.replicas.get(member.peer, ACTIVE) != ACTIVE
    ]
    wrong = [*own, *_worse(now, before)]
    return f"{title}: {_some(wrong)}" if wrong else ""


def _worse(now: QdrantState, before: QdrantState) -> list[str]:
    """Shards that have fewer active replicas than before."""
    had = {(shard.collection, shard.number): shard.active() for shard in before.shards}
    return [
        f"{shard.label} has {shard.active()} active replicas of {had[shard.collection, shard.number]}"
        for shard in now.shards
        if shard.active() < had.get((shard.collection, shard.number), 0)
    ]


def _some(labels: Iterable[str]) -> str:
    """A few of them by name."""
    all_of = list(dict.fromkeys(labels))
    more = len(all_of) - NAMED
    return ", ".join(all_of[:NAMED]) + (f" and {more} more" if more > 0 else "")
