# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""May this server of an object store leave now? Pure decisions, as in `gate`; `object_store_cluster` reads.

Servers of MinIO have no leader. Each knows the drives of all, and answers for itself: with `maintenance=true` whether
each set of drives keeps its write quorum without the drives of who is asked, and none is being healed. That is the
server's own count; what it cannot know is who has just fallen silent, so that every other server is asked as well.

Source: MinIO documentation, "Healthcheck API"; MinIO of 2026-02-12, `cmd/healthcheck-handler.go`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from ansible_collections.groundplane.onprem.plugins.module_utils.gate import (
    Action,
    Health,
    LeaderlessState,
    Verdict,
    Wish,
    causes,
    names,
    never,
    restart,
    wait,
)


@dataclass(frozen=True, slots=True)
class Server:
    """One server as its own answers tell.

    Attributes:
        name: by our convention the inventory name.
        health: SERVING when it counts a write quorum of each set of drives; FAILING when it answers and counts none.
        spare: it counts that quorum without its own drives too, and no drive is being healed; None when it was not
            asked.
        cause: why it is not serving.
    """

    name: str
    health: Health = Health.UNKNOWN
    spare: bool | None = None
    cause: str = ""


@dataclass(frozen=True, slots=True)
class ServersState(LeaderlessState[Server]):
    """The servers of an object store at one moment.

    Attributes:
        cluster: the name used in messages.
        members: all that are expected.
    """

    cluster: str
    members: tuple[Server, ...]

    kind: ClassVar[str] = "object store"
    instead: ClassVar[str] = "each server takes every request"

    def decide(self, wish: Wish) -> Verdict:
        """See `decide_servers`."""
        return decide_servers(self, wish)

    def settled(self, wish: Wish, before: Self) -> str:
        """See `settled_servers`."""
        return settled_servers(self, wish, before)


def decide_servers(state: ServersState, wish: Wish) -> Verdict:
    """Whether the server may leave, such that all others go on taking writes."""
    title = state.title
    member = state.find(wish.member)
    if member is None:
        return never(f"{title} has no server {wish.member}, only {names(state.members)}")
    if member.health is Health.DOWN:
        return restart(f"{title}: {member.name} is not running, there is nothing to lose")
    others = [other for other in state.members if other != member]
    if member.health is not Health.SERVING:
        return _decide_unwell(member, others, title)
    unwell = [other for other in others if other.health is not Health.SERVING]
    silent = [other for other in unwell if other.health is not Health.DOWN]
    if silent:
        return wait(f"{title} cannot lose {member.name} now: {causes(silent)}")
    if member.spare:
        return restart(f"{title} keeps its write quorum without {member.name}")
    return _without_spare(member, unwell, wish, title)


def _decide_unwell(member: Server, others: list[Server], title: str) -> Verdict:
    """A server that runs and does not serve; that has to stay so for the whole patience, until others count without."""
    serving = [other for other in others if other.health is Health.SERVING]
    if others and len(serving) == len(others):
        reason = f"{title} is served by all others, and {causes([member])}"
        return Verdict(True, Action.RESTART, reason, last_resort=True)
    if member.health is Health.FAILING and not serving:
        reason = f"{title} has no write quorum that {member.name} could break"
        return Verdict(True, Action.RESTART, reason, last_resort=True)
    return wait(f"{title} cannot be asked: {causes([member, *(other for other in others if other not in serving)])}")


def _without_spare(member: Server, unwell: list[Server], wish: Wish, title: str) -> Verdict:
    if unwell:
        return wait(f"{title} cannot lose {member.name} now: {causes(unwell)}")
    if wish.outage:
        return restart(f"{title} has no write quorum while {member.name} is away, and the outage is accepted")
    return wait(
        f"{title} cannot lose {member.name} now: without its drives a set would have no write quorum, or drives are "
        "being healed; where it has too few servers to lose one, accept the outage"
    )


def settled_servers(now: ServersState, wish: Wish, before: ServersState) -> str:
    """Why the servers are not yet as good as before the change; empty when they are.

    Healing is not waited for here: the next who is to leave is asked whether it still goes on. Where nobody served
    before, the server has only to answer again: it counts no quorum until enough of the others are back, too. Asked of
    one and the same look, it has to serve.
    """
    title = now.title
    member = now.find(wish.member)
    if member is None:
        return f"{title} does not know {wish.member} yet"
    served = {other.name for other in before.members if other.health is Health.SERVING}
    if now is not before and not served and member.health is Health.FAILING:
        return ""
    wanted = served | {member.name}
    lost = [other for other in now.members if other.name in wanted and other.health is not Health.SERVING]
    return f"{title}: {causes(lost)}" if lost else ""
