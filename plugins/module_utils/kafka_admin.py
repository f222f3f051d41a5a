# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Topics, ACLs, quotas and users of a live Kafka cluster: read, rehearsed, changed, and looked at again.

One connection carries all of it, one request a kind. Only logins have connections of their own.
"""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ansible_collections.groundplane.onprem.plugins.module_utils import kafka_messages, kafka_scram
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import Crew
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_client import KafkaError, errors_of
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_plan import (
    MIN_ISR,
    Acl,
    AclChanged,
    ConfigsSet,
    LiveTopic,
    QuotaSet,
    Setting,
    State,
    TopicCreated,
    TopicDeleted,
    TopicGrown,
    UserDeleted,
    UserSet,
    Wanted,
    min_isr_refusals,
    plan,
    refusals,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import (
    Change,
    RefusedError,
    UnfinishedError,
    summary,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_client import Client
    from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_plan import Entity

C = TypeVar("C")

RESOURCES = {"topic": 2, "group": 3, "cluster": 4, "transactional_id": 5, "delegation_token": 6, "user": 7}
PATTERNS = {"literal": 3, "prefixed": 4}
OPERATION_CODES = {
    "all": 2,
    "read": 3,
    "write": 4,
    "create": 5,
    "delete": 6,
    "alter": 7,
    "describe": 8,
    "cluster_action": 9,
    "describe_configs": 10,
    "alter_configs": 11,
    "idempotent_write": 12,
    "create_tokens": 13,
    "describe_tokens": 14,
    "two_phase_commit": 15,
}
PERMISSIONS = {"deny": 2, "allow": 3}
RIGHTS = ("create", "alter", "describe", "describe_configs", "alter_configs")
"""What we must be allowed on the cluster."""

_ANY = 1
_TOPIC = RESOURCES["topic"]
_OWN = 1
_SET, _DELETE = 0, 1
_EXACT = 0
_ELR = "eligible.leader.replicas.version"
_DEADLINE_MS = 30_000
MOST_ITEMS, MOST_PARTITIONS = 1000, 4000
"""Of one request: a controller writes at most 10,000 records for one."""
NO_LISTENER = (
    "users are declared and scram_servers is empty, so that no password can be proven: "
    "name a listener in it that takes logins."
)
LOGINS = 4
"""Logins at a time."""
FIRST_PAUSE, LAST_PAUSE = 0.05, 1.0
"""Seconds between two looks, growing."""


@dataclass(frozen=True)
class Failure:
    """One change that the cluster did not take."""

    change: Change
    code: int
    reason: str

    def __str__(self) -> str:
        """One sentence without its end."""
        return f"{self.change.subject}: {self.reason}"


@dataclass
class Outcome:
    """What was found and done."""

    changes: list[Change] = field(default_factory=list)
    state: State = field(default_factory=State)


class Admin:
    """The administration of one cluster."""

    def __init__(self, client: Client, scram_servers: Sequence[str] = ()) -> None:
        """Ask nothing yet.

        Args:
            client: a connection whose certificate may do all of it.
            scram_servers: `host:port` of listeners at which users log in.
        """
        self.client, self.scram_servers = client, list(scram_servers)

    def converge(self, wanted: Wanted, *, check: bool, wait_seconds: float) -> Outcome:
        """Make the cluster what is declared, or say what that would do.

        Args:
            wanted: what is declared.
            check: change nothing.
            wait_seconds: how long a change may take until the cluster shows it.

        Raises:
            RefusedError: it cannot or must not be done; nothing was touched.
            UnfinishedError: the cluster did not take a part of it.
            KafkaError: it does not answer.
        """
        self._check_rights()
        state = self.read(wanted)
        changes = plan(state, wanted)
        reasons = refusals(state, wanted)
        if any(user.present for user in wanted.users) and not self.scram_servers:
            reasons.append(NO_LISTENER)
        told = tuple(reasons)
        reasons += self.rehearse(
            change for change in changes if not any(reason.startswith(f"{change.subject}: ") for reason in told)
        )
        if reasons:
            raise RefusedError(reasons)
        if changes and not check:
            self._carry_out(wanted, changes, state.proven, wait_seconds)
        return Outcome(changes, state)

    def _carry_out(
        self, wanted: Wanted, changes: list[Change], proven: frozenset[tuple[str, str]], wait_seconds: float
    ) -> None:
        left, pause = changes, FIRST_PAUSE
        failures = self.apply(left)
        # What a request takes is the cluster's to say; the waiting begins after it.
        deadline = time.monotonic() + wait_seconds
        while left:
            final = [failure for failure in failures if failure.code not in kafka_messages.PASSING]
            if final or (failures and time.monotonic() > deadline):
                raise UnfinishedError("; ".join(map(str, final or failures)))
            # A broker shows what the controller has written a moment later.
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)
            late = time.monotonic() > deadline  # a look that began in time counts, however long its logins take
            state = self.read(wanted, proven)
            left, proven = plan(state, wanted), state.proven
            if left and late:
                raise UnfinishedError(f"the cluster took it, and does not show: {', '.join(summary(left))}")
            failures = self.apply(left) if failures else []

    # ------------------------------------------------------------------------------------------------------- reading

    def _check_rights(self) -> None:
        answer = self.client.ask(kafka_messages.DESCRIBE_CLUSTER, {"include_operations": True, "endpoint_type": 1})
        _raise_error("the cluster", answer)
        bits = answer["operations"]
        lacking = [name for name in RIGHTS if not bits >> OPERATION_CODES[name] & 1]
        if lacking:
            reason = f"The principal of our certificate lacks {', '.join(lacking)} on the cluster"
            raise RefusedError([f"{reason}: name it in super.users of the brokers, or give another certificate."])

    def read(self, wanted: Wanted, proven: Iterable[tuple[str, str]] = ()) -> State:
        """The cluster as far as what is declared needs it.

        Args:
            wanted: what is declared.
            proven: credentials that need no login, because one has just succeeded.

        Raises:
            KafkaError: it does not answer, or refuses.
        """
        brokers, topics = self._read_topics(wanted)
        users = self._read_users()
        return State(
            brokers=brokers,
            topics=topics,
            acls=self._read_acls(),
            quotas=self._read_quotas(),
            users=users,
            proven=self._prove(wanted, users, frozenset(proven)),
            remembers_leaders=self.client.features.get(_ELR, 0) > 0,
        )

    def _metadata(self, names: Sequence[str] | None) -> dict[str, Any]:
        topics = None if names is None else [{"topic_id": kafka_messages.NO_ID, "name": name} for name in names]
        return self.client.ask(
            kafka_messages.METADATA,
            {"topics": topics, "allow_auto_topic_creation": False, "include_topic_operations": False},
        )

    def _read_topics(self, wanted: Wanted) -> tuple[int, dict[str, LiveTopic]]:
        answer = self._metadata(None)
        found = {topic["name"]: topic for topic in answer["topics"] if not topic["error_code"]}
        absent = [topic.name for topic in wanted.topics if topic.name not in found]
        if absent:
            # A list leaves out what we may not see; asked by name, the broker says which of the two it is.
            hidden = [
                topic["name"]
                for topic in self._metadata(absent)["topics"]
                if topic["error_code"] == kafka_messages.TOPIC_FORBIDDEN
            ]
            if hidden:
                raise KafkaError(f"the principal of our certificate may not see topic {', '.join(hidden)}")
        factors = self._read_factors(wanted, found)
        configs = self._read_configs(wanted, found)
        return len(answer["brokers"]), {
            name: LiveTopic(
                partitions=len(topic["partitions"]),
                replicas=frozenset(
                    factors.get((name, one["index"]), len(one["replicas"])) for one in topic["partitions"]
                ),
                whole=all(len(one["in_sync"]) == len(one["replicas"]) for one in topic["partitions"]),
                configs=configs.get(name, {}),
            )
            for name, topic in found.items()
        }

    def _read_factors(self, wanted: Wanted, found: Mapping[str, Any]) -> dict[tuple[str, int], int]:
        """Numbers of replicas after a reassignment, of partitions that have not as many as is declared."""
        other = {
            topic.name: [
                one["index"]
                for one in found[topic.name]["partitions"]
                if len(one["replicas"]) != topic.replication_factor
            ]
            for topic in wanted.topics
            if topic.present and topic.replication_factor is not None and topic.name in found
        }
        asked = [{"name": name, "partitions": numbers} for name, numbers in other.items() if numbers]
        if not asked:
            return {}
        answer = self.client.ask(kafka_messages.LIST_REASSIGNMENTS, {"timeout_ms": _DEADLINE_MS, "topics": asked})
        _raise_error("reassignments", answer)
        return {
            (topic["name"], one["index"]): len(set(one["replicas"]) - set(one["removing"]))
            for topic in answer["topics"]
            for one in topic["partitions"]
        }

    def _read_configs(self, wanted: Wanted, found: Mapping[str, Any]) -> dict[str, dict[str, Setting]]:
        asked = [
            {
                "resource_type": _TOPIC,
                "resource_name": topic.name,
                "keys": None if topic.purge_configs else sorted({*topic.configs, MIN_ISR}),
            }
            for topic in wanted.topics
            if topic.present and topic.name in found
        ]
        configs: dict[str, dict[str, Setting]] = {}
        for part in _parts(asked):
            answer = self.client.ask(
                kafka_messages.DESCRIBE_CONFIGS,
                {"resources": part, "include_synonyms": False, "include_documentation": False},
            )
            for result in answer["results"]:
                _raise_error(f"topic {result['resource_name']}", result)
                configs[result["resource_name"]] = {
                    one["name"]: Setting(one["value"], one["source"] == _OWN, one["type"]) for one in result["configs"]
                }
        return configs

    def _read_acls(self) -> frozenset[Acl]:
        everything = {
            "resource_type": _ANY,
            "resource_name": None,
            "pattern_type": _ANY,
            "principal": None,
            "host": None,
            "operation": _ANY,
            "permission": _ANY,
        }
        answer = self.client.ask(kafka_messages.DESCRIBE_ACLS, everything)
        _raise_error("ACLs", answer)
        return frozenset(
            Acl(
                _word(RESOURCES, resource["resource_type"]),
                resource["resource_name"],
                _word(PATTERNS, resource["pattern_type"]),
                one["principal"],
                one["host"],
                _word(OPERATION_CODES, one["operation"]),
                _word(PERMISSIONS, one["permission"]),
            )
            for resource in answer["resources"]
            for one in resource["acls"]
        )

    def _read_quotas(self) -> dict[Entity, dict[str, float]]:
        answer = self.client.ask(kafka_messages.DESCRIBE_CLIENT_QUOTAS, {"components": [], "strict": False})
        _raise_error("quotas", answer)
        return {
            _entity(entry): {one["key"]: one["value"] for one in entry["values"]} for entry in answer["entries"] or []
        }

    def _read_users(self) -> dict[tuple[str, str], int]:
        answer = self.client.ask(kafka_messages.DESCRIBE_SCRAM, {"users": None})
        _raise_error("users", answer)
        return {
            (result["user"], _word(kafka_scram.CODES, one["mechanism"])): one["iterations"]
            for result in answer["results"]
            for one in result["credentials"]
        }

    def _prove(
        self, wanted: Wanted, users: Mapping[tuple[str, str], int], proven: frozenset[tuple[str, str]]
    ) -> frozenset[tuple[str, str]]:
        """Credentials by which their users can log in; those that differ anyway are not tried."""
        tried = [
            user
            for user in wanted.users
            if self.scram_servers and user.present and users.get(user.key) == user.iterations and user.key not in proven
        ]

        def accepted(user: Any) -> bool:
            return self.client.accepts(self.scram_servers, user.name, user.mechanism, user.password)

        answers = Crew(min(LOGINS, len(tried))).map(accepted, tried)
        return proven | {user.key for user, good in zip(tried, answers, strict=True) if good}

    # ------------------------------------------------------------------------------------------------------ rehearsal

    def rehearse(self, changes: Iterable[Change]) -> list[str]:
        """Why the cluster would refuse changes, one sentence each. Kafka has no rehearsal for ACLs and users.

        Raises:
            KafkaError: it does not answer.
        """
        changes = list(changes)
        failures = [
            *self._create_topics(_those(changes, TopicCreated), validate_only=True),
            *self._grow_topics(_those(changes, TopicGrown), validate_only=True),
            *self._set_configs(_those(changes, ConfigsSet), validate_only=True),
            *self._set_quotas(_those(changes, QuotaSet), validate_only=True),
        ]
        return [str(failure).rstrip(".") + "." for failure in failures]

    # --------------------------------------------------------------------------------------------------------- change

    def apply(self, changes: Iterable[Change]) -> list[Failure]:
        """Carry out changes, in the order of their kinds; what failed.

        Raises:
            KafkaError: the cluster does not answer.
        """
        changes = list(changes)
        acls = _those(changes, AclChanged)
        return [
            *self._set_users(_those(changes, UserSet)),
            *self._create_acls([change for change in acls if change.created]),
            *self._create_topics(_those(changes, TopicCreated)),
            *self._grow_topics(_those(changes, TopicGrown)),
            *self._set_configs(_those(changes, ConfigsSet)),
            *self._set_quotas(_those(changes, QuotaSet)),
            *self._delete_acls([change for change in acls if not change.created]),
            *self._delete_topics(_those(changes, TopicDeleted)),
            *self._delete_users(_those(changes, UserDeleted)),
        ]

    def _create_topics(self, changes: Sequence[TopicCreated], *, validate_only: bool = False) -> list[Failure]:
        found: list[Failure] = []
        for part in _parts(changes, lambda change: change.topic.partitions or 1):
            topics = [
                {
                    "name": change.topic.name,
                    "partitions": change.topic.partitions or -1,
                    "replication_factor": change.topic.replication_factor or -1,
                    "assignments": [],
                    "configs": [
                        {"name": key, "value": value}
                        for key, value in sorted(change.topic.configs.items())
                        if value is not None
                    ],
                }
                for change in part
            ]
            answer = self.client.ask(
                kafka_messages.CREATE_TOPICS,
                {"topics": topics, "timeout_ms": _DEADLINE_MS, "validate_only": validate_only},
            )
            found += _failures(part, answer["topics"], "name", lambda change: change.topic.name)
            if validate_only:
                found += _weak_topics(part, answer["topics"])
        return found

    def _grow_topics(self, changes: Sequence[TopicGrown], *, validate_only: bool = False) -> list[Failure]:
        found: list[Failure] = []
        for part in _parts(changes, lambda change: change.partitions - change.before):
            topics = [{"name": change.name, "count": change.partitions, "assignments": None} for change in part]
            answer = self.client.ask(
                kafka_messages.CREATE_PARTITIONS,
                {"topics": topics, "timeout_ms": _DEADLINE_MS, "validate_only": validate_only},
            )
            found += _failures(part, answer["results"], "name", lambda change: change.name)
        return found

    def _set_configs(self, changes: Sequence[ConfigsSet], *, validate_only: bool = False) -> list[Failure]:
        found: list[Failure] = []
        for part in _parts(changes):
            resources = [
                {
                    "resource_type": _TOPIC,
                    "resource_name": change.name,
                    "configs": [
                        {"name": key, "operation": _DELETE if after is None else _SET, "value": after}
                        for key, (_, after) in sorted(change.values.items())
                    ],
                }
                for change in part
            ]
            answer = self.client.ask(
                kafka_messages.INCREMENTAL_ALTER_CONFIGS, {"resources": resources, "validate_only": validate_only}
            )
            found += _failures(part, answer["responses"], "resource_name", lambda change: change.name)
        return found

    def _delete_topics(self, changes: Sequence[TopicDeleted]) -> list[Failure]:
        found: list[Failure] = []
        for part in _parts(changes):
            topics = [{"name": change.name, "topic_id": kafka_messages.NO_ID} for change in part]
            answer = self.client.ask(kafka_messages.DELETE_TOPICS, {"topics": topics, "timeout_ms": _DEADLINE_MS})
            found += _failures(part, answer["responses"], "name", lambda change: change.name)
        return found

    def _create_acls(self, changes: Sequence[AclChanged]) -> list[Failure]:
        found: list[Failure] = []
        for part in _parts(changes):
            answer = self.client.ask(
                kafka_messages.CREATE_ACLS, {"creations": [_acl_message(change.acl) for change in part]}
            )
            found += _in_order(part, answer["results"])
        return found

    def _delete_acls(self, changes: Sequence[AclChanged]) -> list[Failure]:
        found: list[Failure] = []
        for part in _parts(changes):
            answer = self.client.ask(
                kafka_messages.DELETE_ACLS, {"filters": [_acl_message(change.acl) for change in part]}
            )
            found += _in_order(part, answer["results"])
            for change, result in zip(part, answer["results"], strict=True):
                found += _in_order([change] * len(result["matching"]), result["matching"])
        return found

    def _set_quotas(self, changes: Sequence[QuotaSet], *, validate_only: bool = False) -> list[Failure]:
        found: list[Failure] = []
        for part in _parts(changes):
            entries = [
                {
                    "entity": [{"type": kind, "name": name} for kind, name in change.entity],
                    "ops": [
                        {"key": key, "value": after or 0.0, "remove": after is None}
                        for key, (_, after) in sorted(change.values.items())
                    ],
                }
                for change in part
            ]
            answer = self.client.ask(
                kafka_messages.ALTER_CLIENT_QUOTAS, {"entries": entries, "validate_only": validate_only}
            )
            for entry in answer["entries"]:
                entry["key"] = _entity(entry)
            found += _failures(part, answer["entries"], "key", lambda change: change.entity)
        return found

    def _set_users(self, changes: Sequence[UserSet]) -> list[Failure]:
        upsertions = []
        for change in changes:
            user, salt = change.user, secrets.token_bytes(kafka_scram.SALT_BYTES)
            upsertions.append(
                {
                    "name": user.name,
                    "mechanism": kafka_scram.CODES[user.mechanism],
                    "iterations": user.iterations,
                    "salt": salt,
                    "salted_password": kafka_scram.salted(user.mechanism, user.password, salt, user.iterations),
                }
            )
        return self._alter_users(changes, "upsertions", upsertions, lambda change: change.user.name)

    def _delete_users(self, changes: Sequence[UserDeleted]) -> list[Failure]:
        deletions = [{"name": change.name, "mechanism": kafka_scram.CODES[change.mechanism]} for change in changes]
        # Somebody else was faster: it is gone.
        return [
            failure
            for failure in self._alter_users(changes, "deletions", deletions, lambda change: change.name)
            if failure.code != kafka_messages.NO_SUCH_RESOURCE
        ]

    def _alter_users(
        self, changes: Sequence[C], kind: str, messages: Sequence[Any], name: Callable[[C], str]
    ) -> list[Failure]:
        found: list[Failure] = []
        pairs = list(zip(changes, messages, strict=True))
        # A broker takes a user once in a request, so one with two mechanisms needs two.
        for part in [part for layer in _layers(pairs, lambda pair: name(pair[0])) for part in _parts(layer)]:
            both = {"deletions": [], "upsertions": [], kind: [message for _, message in part]}
            answer = self.client.ask(kafka_messages.ALTER_SCRAM, both)
            found += _failures([change for change, _ in part], answer["results"], "user", name)
        return found


def _those(changes: Iterable[Change], kind: type[C]) -> list[C]:
    return [change for change in changes if isinstance(change, kind)]


def _parts(items: Sequence[C], weight: Callable[[C], int] = lambda _: 1) -> Iterator[list[C]]:
    """Items in as few lists as requests may hold."""
    part: list[C] = []
    weighs = 0
    for item in items:
        if part and (len(part) == MOST_ITEMS or weighs + weight(item) > MOST_PARTITIONS):
            yield part
            part, weighs = [], 0
        part.append(item)
        weighs += weight(item)
    if part:
        yield part


def _layers(items: Iterable[C], key: Callable[[C], str]) -> list[list[C]]:
    """Items in as few lists as hold no key twice."""
    layers: list[list[C]] = []
    seen: dict[str, int] = defaultdict(int)
    for item in items:
        depth = seen[key(item)]
        seen[key(item)] += 1
        if depth == len(layers):
            layers.append([])
        layers[depth].append(item)
    return layers


def _word(codes: Mapping[str, int], code: int) -> str:
    """The word for a code; the code itself when a newer cluster has one that we do not know."""
    return next((word for word, number in codes.items() if number == code), str(code))


def _entity(entry: Mapping[str, Any]) -> Entity:
    """Whom the quota of an answer is for."""
    return tuple(sorted((part["type"], part["name"]) for part in entry["entity"]))


def _acl_message(acl: Acl) -> dict[str, Any]:
    return {
        "resource_type": RESOURCES[acl.resource_type],
        "resource_name": acl.resource_name,
        "pattern_type": PATTERNS[acl.pattern_type],
        "principal": acl.principal,
        "host": acl.host,
        "operation": OPERATION_CODES[acl.operation],
        "permission": PERMISSIONS[acl.permission],
    }


def _raise_error(what: str, answer: Mapping[str, Any]) -> None:
    if answer["error_code"]:
        raise KafkaError(f"{what}: {kafka_messages.words(answer['error_code'], answer['error_message'])}")


def _failures(
    changes: Sequence[Any], results: Sequence[Mapping[str, Any]], key: str, name: Callable[[Any], Any]
) -> list[Failure]:
    """What failed, where a result says whose it is."""
    of = {name(change): change for change in changes}
    errors = errors_of(results)
    return [
        Failure(of[result[key]], code, reason) for result, (code, reason) in zip(results, errors, strict=True) if code
    ]


def _in_order(changes: Sequence[Change], results: Sequence[Mapping[str, Any]]) -> list[Failure]:
    """What failed, where results are in the order of what was asked."""
    pairs = zip(changes, errors_of(results), strict=True)
    return [Failure(change, code, reason) for change, (code, reason) in pairs if code]


def _weak_topics(changes: Sequence[TopicCreated], results: Sequence[Mapping[str, Any]]) -> list[Failure]:
    """New topics that would have too many replicas in sync to want, by what the broker gives them of its own."""
    of = {change.topic.name: change for change in changes}
    found: list[Failure] = []
    for result in results:
        value = next((one["value"] for one in result["configs"] or [] if one["name"] == MIN_ISR), None)
        if not result["error_code"] and value is not None:
            reasons = min_isr_refusals(result["name"], value, result["replication_factor"])
            prefix = f"topic {result['name']}: "
            found += [Failure(of[result["name"]], 0, reason.removeprefix(prefix)) for reason in reasons]
    return found
