# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks against a run on a site with Redis. To import this puts its rules behind those of `refusal`.

What a site does not say is what the role `redis` makes of it, whose defaults are templates that no rule can read:
`_quorum` and `_minimum` are the same in Python. Values of passwords are looked at and never repeated.

Source: Redis 8.0 documentation (management/sentinel; management/replication; management/security/acl).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.refusal import (
    Situation,
    Unreadable,
    count,
    each,
    guessable_names,
    rule,
    stored,
    unlike,
    weakness_of,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

GROUP = "redis"

QUORUM = "redis_sentinel_quorum"
MINIMUM = "redis_min_replicas_to_write"
LAG = "redis_min_replicas_max_lag"
DOWN_AFTER = "redis_down_after_ms"
SHARED = ("redis_master_name", QUORUM, MINIMUM, LAG, DOWN_AFTER, "redis_failover_timeout_ms", "redis_maxmemory_policy")

OWN_USERS = ("default", "probe", "replication", "sentinel", "admin")
"""Users of the service itself."""

PASSWORD_LENGTH = 24

NAME = r"[A-Za-z0-9._-]+"
PATTERN = r"(%(R|W|RW)~)?\S+"
COMMAND = r"[+-](@[a-z]+|[a-z][a-z._-]*(\|[a-z-]+)?)"

ADMINISTERS = frozenset(
    ("acl", "bgrewriteaof", "bgsave", "cluster", "config", "debug", "failover", "flushall", "flushdb", "migrate",
     "module", "monitor", "pfdebug", "pfselftest", "psync", "replconf", "replicaof", "restore-asking", "save",
     "sentinel", "shutdown", "slaveof", "swapdb", "sync")
)  # fmt: skip
"""Commands that change the server, copy it or empty it: nobody has them by name."""


@rule()
def redis_backup(situation: Situation) -> Iterator[str]:
    """Where copies are wanted, there is a store, and somebody who may write there."""
    yield from stored(situation, GROUP, "redis_backup")


@rule()
def redis_quorum(situation: Situation) -> Iterator[str]:
    """A majority of the Sentinels has to miss the master, and all there are can."""
    hosts = situation.hosts(GROUP)
    said: dict[str, list[str]] = defaultdict(list)
    for host in hosts:
        quorum = _quorum(situation, host)
        if quorum is not None and not len(hosts) // 2 < quorum <= len(hosts):
            said[f"{QUORUM} is {quorum} of {count(len(hosts), 'Sentinel')}: make it {len(hosts) // 2 + 1}."].append(
                host
            )
    yield from each(situation, said)


@rule()
def redis_writes(situation: Situation) -> Iterator[str]:
    """One host can be lost without a stop of writes, and a master that is cut off stops to take them."""
    hosts = situation.hosts(GROUP)
    said: dict[str, list[str]] = defaultdict(list)
    for host in hosts:
        minimum, lag, down_after = (
            _minimum(situation, host),
            *(_stated(situation, host, one) for one in (LAG, DOWN_AFTER)),
        )
        if minimum is not None and minimum > max(len(hosts) - 2, 0):
            said[
                f"{MINIMUM} is {minimum} of {count(len(hosts) - 1, 'replica')}, so that no host could ever be lost: "
                "lower it."
            ].append(host)
        if minimum == 0 and len(hosts) > 2:  # noqa: PLR2004 - with three one is left to follow
            said[f"{MINIMUM} is 0, so that a master that is cut off takes writes that are lost: make it 1."].append(
                host
            )
        if minimum and lag is not None and lag < 1:
            said[f"{LAG} is {lag}, by which {MINIMUM} counts for nothing: make it 10."].append(host)
        if down_after is not None and down_after < 1000:  # noqa: PLR2004 - milliseconds of a second
            said[f"{DOWN_AFTER} is {down_after}, so short that a busy master is replaced: make it 5000."].append(host)
    yield from each(situation, said)


@rule()
def redis_differs(situation: Situation) -> Iterator[str]:
    """Any member may be the master, so that all go by the same."""
    return unlike(situation, GROUP, situation.hosts(GROUP), (*SHARED, "redis_users"))


@rule()
def redis_users(situation: Situation) -> Iterator[str]:
    """A user has a name of its own, a password that nobody guesses, and no command that changes the server."""
    said: dict[str, list[str]] = defaultdict(list)
    for host in situation.hosts(GROUP):
        rows = situation.rows(host, "redis_users")
        names = [str(row.get("name")) for row in rows]
        for name, times in Counter(names).items():
            if times > 1:
                said[f"user {name} stands {times} times in redis_users: list it once."].append(host)
        for row in rows:
            for problem in _user_problems(situation, row):
                said[f"user {row.get('name')} in redis_users {problem}"].append(host)
    yield from each(situation, said)


def _user_problems(situation: Situation, row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with one user."""
    name = str(row.get("name"))
    if not re.fullmatch(NAME, name):
        yield "has a name that is none: use letters, digits, dots, hyphens and underscores."
    if name in OWN_USERS:
        yield "is one of the service's own: choose another name."
    password = row.get("password")
    if isinstance(password, Unreadable):
        yield "has a password that cannot be read: check its template, or where it comes from."
    elif password is None or not str(password).strip():
        yield f"has no password: set at least {PASSWORD_LENGTH} random characters."
    else:
        weakness = weakness_of(str(password), PASSWORD_LENGTH, {name.lower(), *guessable_names(situation)})
        if weakness:
            least = f"at least {PASSWORD_LENGTH} random characters"
            yield f"has a weak password, because {weakness}: replace it by {least}."
    for key in ("keys", "channels"):
        wrong = [one for one in _texts(row, key) if not re.fullmatch(PATTERN, one)]
        if wrong:
            yield f"has {key} that are no patterns ({', '.join(map(repr, wrong))}): leave out blanks."
    yield from _command_problems(_texts(row, "commands"))


def _command_problems(rules: list[str]) -> Iterator[str]:
    wrong = [one for one in rules if not re.fullmatch(COMMAND, one)]
    if wrong:
        yield f"has commands that are no rules ({', '.join(map(repr, wrong))}): write them like +@read or -keys."
    taken = [one for one in rules if one.startswith("+") and one[1:].partition("|")[0] in ADMINISTERS]
    if taken:
        yield f"has {', '.join(taken)}, which administers or empties a server: take it out; the user admin is for that."
    whole = [one for one in rules if one in ("+@admin", "+@dangerous")]
    if whole:
        yield f"has {', '.join(whole)}, which users have by the name of a command alone: take it out."


@rule(warns=True)
def redis_zones(situation: Situation) -> Iterator[str]:
    """No zone takes a majority of the Sentinels along."""
    hosts = situation.hosts(GROUP)
    zones = Counter(situation.value(host, "host_zone") for host in hosts)
    for zone, number in zones.items():
        if zone is not None and len(hosts) > 1 and number > len(hosts) // 2:
            yield (
                f"redis: group {GROUP} has {number} of {count(len(hosts), 'Sentinel')} in zone {zone}, without which "
                "nobody replaces a master: spread the hosts over more zones, or know that they are not."
            )


# ------------------------------------------------------------------------------------------------------------- parts


def _stated(situation: Situation, host: str, name: str) -> int | None:
    """A number that is set, or the role's default; None when nobody can tell."""
    return whole_number(situation.value(host, name))


def _quorum(situation: Situation, host: str) -> int | None:
    if situation.variables.get(host, {}).get(QUORUM) is None:
        return len(situation.hosts(GROUP)) // 2 + 1
    return _stated(situation, host, QUORUM)


def _minimum(situation: Situation, host: str) -> int | None:
    if situation.variables.get(host, {}).get(MINIMUM) is None:
        return max(min(len(situation.hosts(GROUP)) - 2, 1), 0)
    return _stated(situation, host, MINIMUM)


def _texts(row: Mapping[str, Any], key: str) -> list[str]:
    value = row.get(key)
    return [str(one) for one in value] if isinstance(value, (list, tuple)) else []
