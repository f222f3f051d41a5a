# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must change in a Kafka cluster so that topics, ACLs, quotas and users are as declared, as pure functions.

`refusals` says what cannot or must not be done, `plan` what is to be done. Nothing is deleted but what is declared
absent by its name, or left out where a declaration says that it is the whole.

Source: Kafka 4.4 documentation: "Topic Configs", "Authorization and ACLs", "Quotas", "Eligible Leader Replicas".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ansible_collections.groundplane.onprem.plugins.module_utils import kafka_scram
from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import Change, Line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Entity = tuple[tuple[str, "str | None"], ...]
"""Whom a quota is for: pairs of type and name, sorted; the name None is the default of its type."""

MIN_ISR = "min.insync.replicas"
UNCLEAN = "unclean.leader.election.enable"
DEFAULT = "<default>"
"""Whom a quota is for that is for all others of its type, in Kafka's own words."""

CLUSTER_NAME = "kafka-cluster"
"""Name of the one resource of type `cluster`."""

OPERATIONS: Mapping[str, frozenset[str]] = {
    "topic": frozenset({"read", "write", "create", "describe", "delete", "alter", "describe_configs", "alter_configs"}),
    "group": frozenset({"read", "describe", "delete", "describe_configs", "alter_configs"}),
    "cluster": frozenset(
        {"create", "cluster_action", "describe_configs", "alter_configs", "idempotent_write", "alter", "describe"}
    ),
    "transactional_id": frozenset({"describe", "write", "two_phase_commit"}),
    "delegation_token": frozenset({"describe"}),
    "user": frozenset({"create_tokens", "describe_tokens"}),
}
"""What an ACL on a type of resource can be about, besides `all`."""

CLIENT_KEYS = frozenset({"producer_byte_rate", "consumer_byte_rate", "request_percentage", "controller_mutation_rate"})
IP_KEYS = frozenset({"connection_creation_rate"})

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_BOOLEAN, _INT, _SHORT, _LONG, _DOUBLE, _LIST = 1, 3, 4, 5, 6, 7


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as declared.

    Attributes:
        name: its name.
        partitions: how many; None: the broker's default for a new one, any number else.
        replication_factor: how many replicas of each; None as for `partitions`.
        configs: what it has of its own; None: not this one, the broker's value is in force.
        purge_configs: it has nothing of its own that is not in `configs`.
        present: False: it is deleted with all that is in it.
    """

    name: str
    partitions: int | None = None
    replication_factor: int | None = None
    configs: Mapping[str, str | None] = field(default_factory=dict)
    purge_configs: bool = False
    present: bool = True


@dataclass(frozen=True, slots=True, order=True)
class Acl:
    """A rule of the authorizer, in the words of `kafka_resources`."""

    resource_type: str
    resource_name: str
    pattern_type: str
    principal: str
    host: str
    operation: str
    permission: str

    def __str__(self) -> str:
        """One line for a message."""
        pattern = "" if self.pattern_type == "literal" else f"{self.pattern_type} "
        host = "" if self.host == "*" else f" from {self.host}"
        return (
            f"{self.permission} {self.principal}{host} {self.operation} on {self.resource_type} "
            f"{pattern}{self.resource_name}"
        )


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of clients as declared.

    Attributes:
        entity: whom they are for.
        values: limit by name: bytes a second, percent of a thread, or changes or connections a second. None: no limit.
        purge_values: it has no limit that is not in `values`.
        present: False: it has no limits.
    """

    entity: Entity
    values: Mapping[str, float | None] = field(default_factory=dict)
    purge_values: bool = False
    present: bool = True


@dataclass(frozen=True, slots=True)
class User:
    """A user who logs in by SCRAM, as declared.

    Attributes:
        name: who logs in.
        mechanism: `SCRAM-SHA-256` or `SCRAM-SHA-512`.
        password: in plain text.
        iterations: rounds of PBKDF2.
        present: False: there is no such credential.
    """

    name: str
    mechanism: str = "SCRAM-SHA-512"
    password: str = field(default="", repr=False)
    iterations: int = 8192
    present: bool = True

    @property
    def key(self) -> tuple[str, str]:
        """What identifies a credential."""
        return self.name, self.mechanism


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that is declared."""

    topics: tuple[Topic, ...] = ()
    acls: tuple[Acl, ...] = ()
    absent_acls: tuple[Acl, ...] = ()
    quotas: tuple[Quota, ...] = ()
    users: tuple[User, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """A configuration of a topic that is in force.

    Attributes:
        value: as the broker writes it.
        own: whether it is the topic's own, and not the broker's.
        type: number of its type (`ConfigType`).
    """

    value: str | None
    own: bool
    type: int = 2


@dataclass(frozen=True, slots=True)
class LiveTopic:
    """A topic as it is.

    Attributes:
        partitions: how many.
        replicas: the different numbers of replicas that its partitions have, or will have after a reassignment.
        whole: all replicas are in sync.
        configs: those that were asked for.
    """

    partitions: int
    replicas: frozenset[int]
    whole: bool = True
    configs: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class State:
    """A cluster as it is.

    Attributes:
        brokers: how many are there; 0 when nobody was asked.
        topics: by name.
        acls: all of them.
        quotas: limits by whom they are for.
        users: iterations of each credential, by name and mechanism.
        proven: credentials for which a login succeeded.
        remembers_leaders: the cluster keeps eligible leader replicas.
    """

    brokers: int = 0
    topics: Mapping[str, LiveTopic] = field(default_factory=dict)
    acls: frozenset[Acl] = frozenset()
    quotas: Mapping[Entity, Mapping[str, float]] = field(default_factory=dict)
    users: Mapping[tuple[str, str], int] = field(default_factory=dict)
    proven: frozenset[tuple[str, str]] = frozenset()
    remembers_leaders: bool = False


# ------------------------------------------------------------------------------------------------------------- changes


@dataclass(frozen=True, slots=True)
class TopicCreated(Change):
    """A topic that is not there."""

    topic: Topic

    @property
    def subject(self) -> str:
        """The topic."""
        return f"topic {self.topic.name}"

    def lines(self) -> list[Line]:
        """All that is declared of it."""
        numbers = (("partitions", self.topic.partitions), ("replication_factor", self.topic.replication_factor))
        return [
            Line("state", "absent", "present"),
            *(Line(name, "none", "default" if number is None else str(number)) for name, number in numbers),
            *(Line(key, "default", value) for key, value in sorted(self.topic.configs.items()) if value is not None),
        ]


@dataclass(frozen=True, slots=True)
class TopicGrown(Change):
    """A topic that gets more partitions."""

    name: str
    before: int
    partitions: int

    @property
    def subject(self) -> str:
        """The topic."""
        return f"topic {self.name}"

    def lines(self) -> list[Line]:
        """The number."""
        return [Line("partitions", str(self.before), str(self.partitions))]


@dataclass(frozen=True, slots=True)
class ConfigsSet(Change):
    """Configurations that a topic gets or loses.

    Attributes:
        name: of the topic.
        values: key to what it has of its own before and after; None for nothing.
    """

    name: str
    values: Mapping[str, tuple[str | None, str | None]]

    @property
    def subject(self) -> str:
        """The topic."""
        return f"topic {self.name}"

    def lines(self) -> list[Line]:
        """Each key."""
        return [Line(key, _own(before), _own(after)) for key, (before, after) in sorted(self.values.items())]


@dataclass(frozen=True, slots=True)
class TopicDeleted(Change):
    """A topic that goes, with its records."""

    name: str

    @property
    def subject(self) -> str:
        """The topic."""
        return f"topic {self.name}"

    def lines(self) -> list[Line]:
        """That it goes."""
        return [Line("state", "present", "absent")]


@dataclass(frozen=True, slots=True)
class AclChanged(Change):
    """A rule that comes or goes."""

    acl: Acl
    created: bool

    @property
    def subject(self) -> str:
        """The rule."""
        return f"acl {self.acl}"

    def lines(self) -> list[Line]:
        """That it comes or goes."""
        return [Line("state", _there(not self.created), _there(self.created))]


@dataclass(frozen=True, slots=True)
class QuotaSet(Change):
    """Limits that somebody gets or loses.

    Attributes:
        entity: who.
        values: name to the limit before and after; None for none.
    """

    entity: Entity
    values: Mapping[str, tuple[float | None, float | None]]

    @property
    def subject(self) -> str:
        """Whom it is for."""
        return f"quota {entity_name(self.entity)}"

    def lines(self) -> list[Line]:
        """Each limit."""
        return [Line(key, _limit(before), _limit(after)) for key, (before, after) in sorted(self.values.items())]


@dataclass(frozen=True, slots=True)
class UserSet(Change):
    """A credential that is made or replaced.

    Attributes:
        user: with the password.
        before: what there is of it, in words.
    """

    user: User
    before: str

    @property
    def subject(self) -> str:
        """The credential."""
        return f"user {self.user.name} {self.user.mechanism}"

    def lines(self) -> list[Line]:
        """That it differs, and not how."""
        return [Line("credential", self.before, f"as declared, {self.user.iterations} iterations")]


@dataclass(frozen=True, slots=True)
class UserDeleted(Change):
    """A credential that goes."""

    name: str
    mechanism: str

    @property
    def subject(self) -> str:
        """The credential."""
        return f"user {self.name} {self.mechanism}"

    def lines(self) -> list[Line]:
        """That it goes."""
        return [Line("credential", "one", "none")]


def _own(value: str | None) -> str:
    return "default" if value is None else value


def _there(present: bool) -> str:
    return "present" if present else "absent"


def _limit(value: float | None) -> str:
    return "none" if value is None else f"{value:.12g}"


def entity_name(entity: Entity) -> str:
    """Whom a quota is for, in words."""
    return ", ".join(f"{kind} {DEFAULT if name is None else name}" for kind, name in entity)


# ------------------------------------------------------------------------------------------------------------- refusal


def refusals(state: State, wanted: Wanted) -> list[str]:
    """What is declared and cannot be, or must not be done, one sentence each.

    Args:
        state: the cluster; `State()` when nobody was asked, and then only what contradicts itself is found.
        wanted: what is declared.
    """
    found = [*_twice(wanted)]
    for topic in wanted.topics:
        found += _topic_refusals(topic, state)
    for acl in wanted.acls:
        found += _acl_refusals(acl)
    for quota in wanted.quotas:
        found += _quota_refusals(quota)
    for user in wanted.users:
        found += _user_refusals(user)
    return found


def _twice(wanted: Wanted) -> Iterator[str]:
    names = [
        *(f"topic {topic.name}" for topic in wanted.topics),
        *(f"acl {acl}" for acl in (*wanted.acls, *wanted.absent_acls)),
        *(f"quota {entity_name(quota.entity)}" for quota in wanted.quotas),
        *(f"user {user.name} {user.mechanism}" for user in wanted.users),
    ]
    seen: set[str] = set()
    told: set[str] = set()
    for name in names:
        if name in seen and name not in told:
            told.add(name)
            yield f"{name} is declared more than once: declare it once."
        seen.add(name)


def _topic_refusals(topic: Topic, state: State) -> Iterator[str]:
    if not _TOPIC.fullmatch(topic.name) or topic.name in (".", ".."):
        yield (
            f"topic {topic.name!r}: a name is at most 249 letters, digits, '.', '_' or '-', and neither '.' nor '..': "
            f"give it such a name."
        )
        return
    if not topic.present:
        if topic.name.startswith("__"):
            yield f"topic {topic.name}: it is Kafka's own and holds the state of the cluster: do not declare it absent."
        return
    live = state.topics.get(topic.name)
    if topic.partitions is not None and topic.partitions < 1:
        yield f"topic {topic.name}: partitions is {topic.partitions}: set it to 1 or more."
    elif live and topic.partitions is not None and topic.partitions < live.partitions:
        yield (
            f"topic {topic.name}: partitions is {topic.partitions} and it has {live.partitions}: a topic cannot "
            f"shrink, so set partitions to {live.partitions} or more."
        )
    yield from _replication_refusals(topic, live, state)
    if (topic.configs.get(UNCLEAN) or "").strip().lower() == "true":
        yield (
            f"topic {topic.name}: {UNCLEAN} is true, which loses acknowledged records: leave it out, and elect an "
            f"unclean leader by hand when all replicas in sync are lost."
        )


def _replication_refusals(topic: Topic, live: LiveTopic | None, state: State) -> Iterator[str]:
    factor = topic.replication_factor
    if factor is not None and factor < 1:
        yield f"topic {topic.name}: replication_factor is {factor}: set it to 1 or more."
        return
    if live is not None:
        if factor is not None and live.replicas - {factor}:
            there = ", ".join(map(str, sorted(live.replicas)))
            yield (
                f"topic {topic.name}: replication_factor is {factor} and its partitions have {there}: reassign them by "
                f"org.apache.kafka.tools.reassign.ReassignPartitionsCommand first, this would move all of its data."
            )
            return
        factor = min(live.replicas, default=None)
    elif factor is not None and 0 < state.brokers < factor:
        yield (
            f"topic {topic.name}: replication_factor is {factor} and the cluster has {state.brokers} "
            f"broker{'s' * (state.brokers > 1)}: set it to {state.brokers} or less, or start the others."
        )
    text = wanted_value(topic, MIN_ISR, live)
    if text is None or factor is None:
        return
    yield from min_isr_refusals(topic.name, text, factor)
    before = live.configs.get(MIN_ISR) if live else None
    if state.remembers_leaders and live and not live.whole and before and before.value != text:
        yield (
            f"topic {topic.name}: {MIN_ISR} changes while replicas are behind, and the cluster would forget who of "
            f"them may lead: wait until all replicas are in sync."
        )


def wanted_value(topic: Topic, key: str, live: LiveTopic | None) -> str | None:
    """The value of a key that will be in force; None when only the broker knows."""
    declared = topic.configs.get(key)
    if declared is not None:
        return declared
    there = live.configs.get(key) if live else None
    if there is None or (there.own and (key in topic.configs or topic.purge_configs)):
        return None
    return there.value


def min_isr_refusals(name: str, text: str, factor: int) -> Iterator[str]:
    """Why a topic cannot have this least number of replicas in sync.

    Args:
        name: of the topic.
        text: value of min.insync.replicas.
        factor: its replication factor.
    """
    if not text.strip().isdigit() or int(text) < 1:
        yield f"topic {name}: {MIN_ISR} is {text!r}: set it to a number from 1."
    elif int(text) > factor:
        yield (
            f"topic {name}: {MIN_ISR} is {int(text)} and its replication factor {factor}, so that nothing could be "
            f"written: set it to {max(factor - 1, 1)}."
        )
    elif int(text) == factor > 1:
        yield (
            f"topic {name}: {MIN_ISR} is {factor}, as many as its replicas, so that no broker could be lost: "
            f"set it to {factor - 1}."
        )


def _acl_refusals(acl: Acl) -> Iterator[str]:
    kind, _, who = acl.principal.partition(":")
    if not kind or not who:
        yield f"acl {acl}: its principal has no type: write User: before the name."
    allowed = OPERATIONS[acl.resource_type]
    if acl.operation != "all" and acl.operation not in allowed:
        yield (
            f"acl {acl}: there is no operation {acl.operation} on a {acl.resource_type}: "
            f"choose of all, {', '.join(sorted(allowed))}."
        )
    if acl.resource_type == "cluster" and acl.resource_name != CLUSTER_NAME:
        yield f"acl {acl}: the only resource of type cluster is {CLUSTER_NAME}: set resource_name to that."
    if acl.pattern_type == "prefixed" and acl.resource_name == "*":
        yield f"acl {acl}: a prefix is taken as it is: set pattern_type to literal, in which * is all names."


def _quota_refusals(quota: Quota) -> Iterator[str]:
    name = f"quota {entity_name(quota.entity)}"
    kinds = {kind for kind, _ in quota.entity}
    if not kinds or ("ip" in kinds and len(kinds) > 1):
        yield f"{name}: it is for nobody, or for an address and more: set user and client_id, or ip alone."
        return
    allowed = IP_KEYS if "ip" in kinds else CLIENT_KEYS
    for key, value in sorted(quota.values.items()):
        if key not in allowed:
            yield f"{name}: {key} is no limit of it: choose of {', '.join(sorted(allowed))}."
        elif value is not None and not value > 0:
            yield f"{name}: {key} is {value:g}: set it to more than 0, or to null for no limit."
    if quota.present and not quota.values and not quota.purge_values:
        yield f"{name}: it has no values: give some, or declare it absent."


def _user_refusals(user: User) -> Iterator[str]:
    name = f"user {user.name} {user.mechanism}"
    if not user.name:
        yield f"{name}: it has no name: set name."
    if not user.name.isascii():
        yield f"{name}: no broker lets a name log in by SCRAM that is not ASCII: choose another name."
    if not user.present:
        return
    if not user.password:
        yield f"{name}: password is empty: set one."
    if not kafka_scram.FEWEST_ITERATIONS <= user.iterations <= kafka_scram.MOST_ITERATIONS:
        yield (
            f"{name}: iterations is {user.iterations}: set it to {kafka_scram.FEWEST_ITERATIONS} to "
            f"{kafka_scram.MOST_ITERATIONS}, which is what brokers take."
        )


# ---------------------------------------------------------------------------------------------------------------- plan


def plan(state: State, wanted: Wanted) -> list[Change]:
    """What must be done, in the order in which it is: who is let in, what there is, and last what goes.

    Args:
        state: the cluster; `State()` for an empty one.
        wanted: what is declared and was not refused.
    """
    changes: list[Change] = [change for user in wanted.users if user.present for change in _user_changes(user, state)]
    # A rule that forbids is there before one that allows more.
    new = sorted(set(wanted.acls) - state.acls, key=lambda acl: (acl.permission != "deny", acl))
    changes += [AclChanged(acl, created=True) for acl in new]
    for topic in wanted.topics:
        if topic.present:
            changes += _topic_changes(topic, state.topics.get(topic.name))
    for quota in wanted.quotas:
        changes += _quota_changes(quota, state.quotas.get(quota.entity, {}))
    gone = sorted(set(wanted.absent_acls) & state.acls, key=lambda acl: (acl.permission == "deny", acl))
    changes += [AclChanged(acl, created=False) for acl in gone]
    changes += [TopicDeleted(topic.name) for topic in wanted.topics if not topic.present and topic.name in state.topics]
    changes += [UserDeleted(*user.key) for user in wanted.users if not user.present and user.key in state.users]
    return changes


def _topic_changes(topic: Topic, live: LiveTopic | None) -> Iterator[Change]:
    if live is None:
        yield TopicCreated(topic)
        return
    if topic.partitions is not None and topic.partitions > live.partitions:
        yield TopicGrown(topic.name, live.partitions, topic.partitions)
    values: dict[str, tuple[str | None, str | None]] = {}
    for key, value in topic.configs.items():
        there = live.configs.get(key)
        before = there.value if there and there.own else None
        kind = there.type if there else 0
        if (before is None) != (value is None) or (
            before is not None and value is not None and normal(before, kind) != normal(value, kind)
        ):
            values[key] = (before, value)
    if topic.purge_configs:
        others = {key: one.value for key, one in live.configs.items() if one.own and key not in topic.configs}
        values.update({key: (value, None) for key, value in others.items()})
    if values:
        yield ConfigsSet(topic.name, values)


def normal(value: str, kind: int) -> str:
    """A value of a configuration in the one way in which it is compared; what does not fit its type is left as it is.

    Args:
        value: as somebody writes it.
        kind: number of its type (`ConfigType`).
    """
    text = value.strip()
    try:
        if kind in (_INT, _SHORT, _LONG):
            return str(int(text))
        if kind == _DOUBLE:
            return repr(float(text))
    except ValueError:
        return text
    if kind == _BOOLEAN:
        return text.lower()
    if kind == _LIST:
        return ",".join(part.strip() for part in text.split(","))
    return text


def _quota_changes(quota: Quota, live: Mapping[str, float]) -> Iterator[Change]:
    wanted = dict(quota.values) if quota.present else {}
    if quota.purge_values or not quota.present:
        wanted = {**dict.fromkeys(live), **wanted}
    values = {key: (live.get(key), value) for key, value in wanted.items() if live.get(key) != value}
    if values:
        yield QuotaSet(quota.entity, values)


def _user_changes(user: User, state: State) -> Iterator[Change]:
    iterations = state.users.get(user.key)
    if iterations is None:
        yield UserSet(user, "none")
    elif iterations != user.iterations:
        yield UserSet(user, f"one, {iterations} iterations")
    elif user.key not in state.proven:
        yield UserSet(user, "another one")


def unmanaged(state: State, wanted: Wanted) -> dict[str, list[str]]:
    """What the cluster has and nobody declares, by kind. Kafka's own topics are left out."""
    topics = {topic.name for topic in wanted.topics}
    quotas = {quota.entity for quota in wanted.quotas}
    users = {user.key for user in wanted.users}
    return {
        "topics": sorted(name for name in state.topics if name not in topics and not name.startswith("__")),
        "acls": sorted(str(acl) for acl in state.acls - set(wanted.acls) - set(wanted.absent_acls)),
        "quotas": sorted(entity_name(entity) for entity in state.quotas if entity not in quotas),
        "users": sorted(f"{name} {mechanism}" for name, mechanism in state.users if (name, mechanism) not in users),
    }
