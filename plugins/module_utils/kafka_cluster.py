# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The brokers and the controllers of a Kafka 4 cluster, read over mutual TLS for the rolling gate.

Each node is asked for its own word (DescribeCluster), which proves that it runs. What is in sync is asked of one
broker: the one that is least behind the controllers' log, so that what it says is of now; that the active controller
tells who this is proves that there is one. The quorum is asked of all controllers, because only the active one answers.

A node is the member that its host's first label names, in the servers that the caller gives and in what the node
advertises: hosts advertise themselves as `<inventory name>.<domain of the site>`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ansible_collections.groundplane.onprem.plugins.module_utils import kafka_messages
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import Health
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_kafka import (
    BEHIND_LIMIT,
    NO_REQUEST,
    Broker,
    BrokerState,
    Controller,
    ControllerState,
    Partition,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import ClientTls, Crew
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_client import (
    Connection,
    KafkaError,
    UnreachableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_wire import Api

    MemberOf = Callable[[str, int], str]

TIMEOUT = 5.0
"""Seconds for one answer; a frozen node costs this once, because all are asked at the same time."""

CHUNK = 1000
"""Topics whose configuration one request asks for: an answer of some ten thousand bytes."""

MINIMUM = "min.insync.replicas"
TOPIC = 2
"""Type of a resource (documentation, DescribeConfigs)."""


@dataclass(frozen=True, slots=True)
class Word:
    """What a node says itself.

    Attributes:
        told: its answer of DescribeCluster, None when there is none.
        refused: nothing listens there.
        cause: why there is none.
    """

    told: dict[str, Any] | None = None
    refused: bool = False
    cause: str = ""


def first_label(host: str, _port: int) -> str:
    """The member at a host: `data1` of `data1.lab.example.org`; an address is its own name."""
    return host if host.replace(".", "").isdigit() or ":" in host else host.partition(".")[0]


def split(server: str) -> tuple[str, int]:
    """Host and port of `host:port`.

    Raises:
        KafkaError: it is not that.
    """
    host, _, port = server.rpartition(":")
    if not host or not port.isdigit():
        raise KafkaError(f"{server} is no host:port")
    return host.strip("[]"), int(port)


class KafkaCluster:
    """A kept connection to each node of a kind."""

    kind: ClassVar[int]
    needs: ClassVar[Sequence[Api]]
    title: ClassVar[str]

    def __init__(
        self,
        name: str,
        servers: Sequence[str],
        tls: ClientTls,
        member_of: MemberOf = first_label,
        timeout: float = TIMEOUT,
    ) -> None:
        """Connect nothing yet.

        Args:
            name: of the cluster, for messages.
            servers: `host:port` of all members.
            tls: our certificate and whom we trust.
            member_of: the member at a host and port.
            timeout: seconds for an answer.

        Raises:
            HttpsError: the certificate files cannot be read.
            KafkaError: there are no servers.
        """
        self.name = name
        if not servers:
            raise KafkaError(f"{self.title} {name} has no servers to ask")
        self._member_of, self._timeout = member_of, timeout
        self._context = tls.context()
        self.expected = {server: member_of(*split(server)) for server in servers}
        self._connections: dict[str, Connection] = {}
        self._crew = Crew(len(self.expected) + 1)

    def ask(self, server: str, api: Api, message: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of one node, over the kept connection if it still stands.

        Raises:
            KafkaError: there is none.
        """
        kept = self._connections.pop(server, None)
        if kept is not None:
            try:
                answer = kept.ask(api, message)
            except KafkaError as error:
                kept.close()
                # A node may have ended a connection that was idle, or was restarted; one that is silent stays so.
                if not isinstance(error, UnreachableError) or isinstance(error.__cause__, TimeoutError):
                    raise
            else:
                self._connections[server] = kept
                return answer
        fresh = Connection(server, self._context, self._timeout)
        try:
            fresh.agree(self.needs)
            answer = fresh.ask(api, message)
        except KafkaError:
            fresh.close()
            raise
        self._connections[server] = fresh
        return answer

    def move_leader(self, _state: Any, _target: str, _timeout: float, *, named: bool = True) -> tuple[float, str]:  # noqa: ARG002 - the gate's interface
        """Refuse: no verdict asks for it.

        Raises:
            KafkaError: always.
        """
        raise KafkaError(f"{self.title} {self.name}: {NO_REQUEST}")

    def _words(self, servers: Sequence[str]) -> dict[str, Word]:
        """What each node says itself."""
        return dict(zip(servers, self._crew.map(self._look, servers), strict=True))

    def _look(self, server: str) -> Word:
        question = {
            "include_operations": False,
            "endpoint_type": self.kind,
            "include_fenced": self.kind == kafka_messages.BROKERS,
        }
        try:
            told = self.ask(server, kafka_messages.DESCRIBE_NODES, question)
            _passed(server, told)
        except KafkaError as error:
            return Word(refused=isinstance(error, UnreachableError) and error.refused, cause=str(error))
        return Word(told)

    def _all(self, member: str) -> dict[str, Word]:
        """The word of each server; the one that is about to be restarted goes last."""
        return self._words(sorted(self.expected, key=lambda server: self.expected[server] == member))

    def _others(self, nodes: Iterable[tuple[str, int]]) -> dict[str, Word]:
        """The word of those that the cluster knows and nobody named."""
        known = set(self.expected.values())
        return self._words([f"{host}:{port}" for host, port in nodes if self._member_of(host, port) not in known])

    def _by_member(self, words: Mapping[str, Word]) -> dict[str, Word]:
        return {self._member_of(*split(server)): word for server, word in words.items()}


class KafkaBrokers(KafkaCluster):
    """The brokers, through a listener that takes certificates."""

    kind = kafka_messages.BROKERS
    needs = kafka_messages.BROKER_HEALTH
    title = "Kafka cluster"

    def read(self, member: str = "") -> BrokerState:
        """The brokers as they are now.

        Args:
            member: who is about to leave: others are asked first.

        Raises:
            KafkaError: nobody can tell.
        """
        words = self._all(member)
        expected = frozenset(self.expected.values())
        strangers = _strangers(words)
        if strangers or all(word.refused for word in words.values()):
            return BrokerState(
                self.name, parse_brokers(self._by_member(words), [], expected, self._member_of), (), strangers
            )
        server = self._freshest(words)
        nodes = (words[server].told or {})["nodes"]
        words.update(self._others((node["host"], node["port"]) for node in nodes))
        brokers = parse_brokers(self._by_member(words), nodes, expected, self._member_of)
        return BrokerState(self.name, brokers, self._partitions(server))

    def _freshest(self, words: Mapping[str, Word]) -> str:
        """The server that is least behind the controllers' log.

        Raises:
            KafkaError: none is near enough, or there is no active controller that says so.
        """
        answering = [server for server, word in words.items() if word.told is not None]
        causes = [word.cause for word in words.values() if word.cause]
        quorum = self._passed_on(answering, causes)
        behind = {} if quorum is None else behind_by_id(quorum)
        ages = {server: behind.get(self._id(server, words[server]), float("inf")) for server in answering}
        best = min(ages, key=lambda server: ages[server], default="")
        if best and ages[best] <= BEHIND_LIMIT:
            return best
        if quorum is not None:
            causes.append(f"no broker that answers is within {BEHIND_LIMIT:g} s of the active controller")
        raise KafkaError(f"{self.title} {self.name} cannot be asked: {'; '.join(causes)}")

    def _passed_on(self, servers: Sequence[str], causes: list[str]) -> dict[str, Any] | None:
        """The quorum as the active controller tells it through the first broker that reaches it; else adds why not."""
        for server in servers:
            try:
                answer = self.ask(server, kafka_messages.DESCRIBE_QUORUM, kafka_messages.METADATA_LOG)
                quorum = parse_quorum(server, answer)
            except KafkaError as error:
                causes.append(f"{error}, asked for the active controller")
                continue
            if quorum is not None:
                return quorum
            causes.append(f"{server}: reaches no active controller")
        return None

    def _id(self, server: str, word: Word) -> int:
        """The node id of a server, by its own word; -1 when it does not know itself."""
        nodes = (word.told or {}).get("nodes", [])
        found = (node["id"] for node in nodes if self._member_of(node["host"], node["port"]) == self.expected[server])
        return next(found, -1)

    def _partitions(self, server: str) -> tuple[Partition, ...]:
        """All partitions, as a broker knows them.

        Raises:
            KafkaError: it does not tell all of them.
        """
        asked = {"topics": None, "allow_auto_topic_creation": False, "include_topic_operations": False}
        metadata = self.ask(server, kafka_messages.METADATA, asked)
        moving = self.ask(
            server, kafka_messages.LIST_REASSIGNMENTS, {"timeout_ms": int(self._timeout * 1000), "topics": None}
        )
        _passed(server, moving)
        topics = [topic["name"] for topic in metadata["topics"]]
        minimums: dict[str, int] = {}
        for begin in range(0, len(topics), CHUNK):
            resources = [
                {"resource_type": TOPIC, "resource_name": name, "keys": [MINIMUM]}
                for name in topics[begin : begin + CHUNK]
            ]
            question = {"resources": resources, "include_synonyms": False, "include_documentation": False}
            minimums |= parse_minimums(server, self.ask(server, kafka_messages.DESCRIBE_CONFIGS, question))
        return parse_partitions(server, metadata, moving, minimums)


class KafkaControllers(KafkaCluster):
    """The controllers, through their own listener."""

    kind = kafka_messages.CONTROLLERS
    needs = kafka_messages.CONTROLLER_HEALTH
    title = "Kafka quorum"

    def read(self, member: str = "") -> ControllerState:
        """The quorum as it is now; a controller that does not answer is a fact about it.

        Args:
            member: who is about to leave: others are asked first.

        Raises:
            KafkaError: a controller refuses to tell.
        """
        words = self._all(member)
        answering = [server for server, word in words.items() if word.told is not None]
        found = [quorum for quorum in self._crew.map(self._quorum, answering) if quorum is not None]
        quorum = max(found, key=lambda one: int(one["leader_epoch"]), default=None)
        names = name_controllers(words.values(), quorum, self._member_of)
        if quorum is not None:
            words.update(self._others(_endpoints(quorum)))
        expected = frozenset(self.expected.values())
        members = parse_controllers(self._by_member(words), quorum, expected, names)
        active = -1 if quorum is None else int(quorum["leader"])
        return ControllerState(self.name, members, active, _strangers(words))

    def _quorum(self, server: str) -> dict[str, Any] | None:
        """The quorum as a controller tells it; None when it does not lead, or has gone meanwhile.

        Raises:
            KafkaError: it refuses.
        """
        try:
            answer = self.ask(server, kafka_messages.DESCRIBE_QUORUM, kafka_messages.METADATA_LOG)
        except UnreachableError:
            return None
        return parse_quorum(server, answer)


# --- what answers mean ---


def parse_quorum(server: str, answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The one partition of an answer of DescribeQuorum, with its `nodes`; None when who answers does not lead.

    Raises:
        KafkaError: it is an error.
    """
    _passed(server, answer)
    parts = [part for topic in answer["topics"] for part in topic["partitions"]]
    if len(parts) != 1:
        raise KafkaError(f"{server}: tells of {len(parts)} quorums instead of one")
    if parts[0]["error_code"] in kafka_messages.PASSING:
        return None
    _passed(server, parts[0])
    return {**parts[0], "nodes": answer["nodes"]}


def behind_by_id(quorum: Mapping[str, Any]) -> dict[int, float]:
    """Seconds since each voter and observer had all of the log, by the leader's clock; without those it cannot tell."""
    replicas = [*quorum["voters"], *quorum["observers"]]
    # The leader's own time is the newest: it is that of the answer.
    now = max((replica["last_caught_up"] for replica in replicas), default=-1)
    # A voter whose disk was lost comes back as an observer of the same id: it is not the voter, whose entry counts.
    told = {replica["id"]: replica["last_caught_up"] for replica in reversed(replicas)}
    return {id_: (now - when) / 1000 for id_, when in told.items() if when >= 0}


def parse_brokers(
    words: Mapping[str, Word], nodes: Iterable[Mapping[str, Any]], expected: frozenset[str], member_of: MemberOf
) -> tuple[Broker, ...]:
    """Join what the cluster says of its brokers with each one's own word.

    Args:
        words: of each member that was asked.
        nodes: of an answer of DescribeCluster.
        expected: members whose server the caller named.
        member_of: the member at a host and port.
    """
    known: dict[str, Mapping[str, Any]] = {}
    # A broker that was set up anew leaves its old id behind, fenced: the living one has the name.
    for node in sorted(nodes, key=lambda node: (node["is_fenced"], node["id"])):
        name = member_of(node["host"], node["port"])
        known[f"{name} (node {node['id']})" if name in known else name] = node
    found = []
    for name in sorted({*expected, *known}):
        it, word = known.get(name), words.get(name, Word(cause="nobody asked it"))
        live = it is not None and not it["is_fenced"]
        health, cause = Health.UNKNOWN, word.cause
        if word.told is not None:
            health = Health.SERVING
            cause = "" if live else "the controllers do not count on it"
        elif word.refused and not live:
            health = Health.DOWN
        elif word.refused:
            cause = f"{cause}, and the controllers count on it still"
        found.append(Broker(name, -1 if it is None else it["id"], health, live, name in expected, cause))
    return tuple(found)


def parse_minimums(server: str, answer: Mapping[str, Any]) -> dict[str, int]:
    """Topic to its effective min.insync.replicas; a topic that went meanwhile is left out.

    Raises:
        KafkaError: it is an error, or not told.
    """
    found = {}
    for result in answer["results"]:
        if result["error_code"] == kafka_messages.UNKNOWN_TOPIC:
            continue
        _passed(server, result, f"topic {result['resource_name']}: ")
        value = next((item["value"] for item in result["configs"] if item["name"] == MINIMUM), None)
        if value is None:
            raise KafkaError(f"{server}: topic {result['resource_name']}: does not tell {MINIMUM}")
        found[result["resource_name"]] = int(value)
    return found


def parse_partitions(
    server: str, metadata: Mapping[str, Any], reassignments: Mapping[str, Any], minimums: Mapping[str, int]
) -> tuple[Partition, ...]:
    """All partitions of topics that are still there.

    Raises:
        KafkaError: a topic is not told.
    """
    moving = {(topic["name"], part["index"]) for topic in reassignments["topics"] for part in topic["partitions"]}
    found = []
    for topic in metadata["topics"]:
        name = topic["name"]
        if topic["error_code"] == kafka_messages.UNKNOWN_TOPIC or name not in minimums:
            continue
        _passed(server, {**topic, "error_message": None}, f"topic {name}: ")
        found += [
            Partition(
                name,
                part["index"],
                frozenset(part["replicas"]),
                frozenset(part["in_sync"]),
                minimums[name],
                (name, part["index"]) in moving,
            )
            for part in topic["partitions"]
        ]
    return tuple(found)


def name_controllers(words: Iterable[Word], quorum: Mapping[str, Any] | None, member_of: MemberOf) -> dict[int, str]:
    """Node id to member: by what controllers have registered, and by what voters advertise, which counts more."""
    told = {
        node["id"]: member_of(node["host"], node["port"])
        for word in words
        for node in (word.told or {}).get("nodes", [])
    }
    if quorum is not None:
        told |= {
            node["id"]: member_of(node["listeners"][0]["host"], node["listeners"][0]["port"])
            for node in quorum["nodes"]
            if node["listeners"]
        }
    return told


def parse_controllers(
    words: Mapping[str, Word],
    quorum: Mapping[str, Any] | None,
    expected: frozenset[str],
    names: Mapping[int, str],
) -> tuple[Controller, ...]:
    """Join what the active controller says of the voters with each one's own word.

    Args:
        words: of each member that was asked.
        quorum: of `parse_quorum`; None when nobody leads, or who leads cannot be asked.
        expected: members whose server the caller named.
        names: of `name_controllers`.
    """
    behind = {} if quorum is None else behind_by_id(quorum)
    voters = set() if quorum is None else {replica["id"] for replica in quorum["voters"]}
    # Of two ids with one name that with a vote is the member: the other is what is left of an earlier one.
    ids = {names[id_]: id_ for id_ in sorted(names, key=lambda id_: (id_ in voters, -id_))}
    by_name = {name: ids.get(name, -1) for name in expected}
    for id_ in sorted(voters - set(by_name.values())):
        name = names.get(id_, f"controller {id_}")
        by_name[f"{name} (node {id_})" if name in by_name else name] = id_
    found = []
    for name, id_ in sorted(by_name.items()):
        word = words.get(name, Word(cause="nobody asked it"))
        health, cause = Health.DOWN if word.refused else Health.UNKNOWN, word.cause
        if word.told is not None:
            leads = int(word.told["controller_id"]) >= 0
            health = Health.SERVING if leads else Health.FAILING
            cause = "" if leads else "it knows no active controller"
        votes = quorum is None or id_ in voters
        found.append(Controller(name, id_, health, votes, behind.get(id_), name in expected, cause))
    return tuple(found)


def _endpoints(quorum: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Where the voters answer, as they advertise."""
    voters = {replica["id"] for replica in quorum["voters"]}
    return [
        (node["listeners"][0]["host"], node["listeners"][0]["port"])
        for node in quorum["nodes"]
        if node["listeners"] and node["id"] in voters
    ]


def _strangers(words: Mapping[str, Word]) -> tuple[str, ...]:
    """Servers of another cluster than most."""
    told = {server: str(word.told["cluster_id"]) for server, word in words.items() if word.told is not None}
    count = Counter(told.values())
    most = max(count, key=lambda id_: (count[id_], id_), default="")
    return tuple(sorted(server for server, id_ in told.items() if id_ != most))


def _passed(server: str, answer: Mapping[str, Any], what: str = "") -> None:
    """Raise when there is an error in an answer.

    Raises:
        KafkaError: there is.
    """
    code = answer["error_code"]
    if code:
        raise KafkaError(f"{server}: {what}{kafka_messages.words(code, answer['error_message'])}")
