# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Kafka's answers mean for the gate, and which nodes a site has it ask."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.action.gate import _servers
from ansible_collections.groundplane.onprem.plugins.module_utils.contract import load
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import Health
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_kafka import Broker, Controller, Partition
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import ClientTls
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_client import KafkaError
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_cluster import (
    KafkaBrokers,
    Word,
    _strangers,
    behind_by_id,
    first_label,
    name_controllers,
    parse_brokers,
    parse_controllers,
    parse_minimums,
    parse_partitions,
    parse_quorum,
    split,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.site import Site

EXPECTED = frozenset({"data1", "data2", "data3"})
REFUSED = Word(refused=True, cause="data3.lab:9092: connection refused")


def node(id_: int, host: str = "", *, fenced: bool = False) -> dict[str, Any]:
    return {"id": id_, "host": host or f"data{id_}.lab.example.org", "port": 9092, "rack": None, "is_fenced": fenced}


def replica(id_: int, caught_up: int) -> dict[str, Any]:
    return {"id": id_, "directory_id": bytes(16), "log_end": 9, "last_fetch": caught_up, "last_caught_up": caught_up}


def answer(*voters: dict[str, Any], code: int = 0, top: int = 0) -> dict[str, Any]:
    part = {
        "index": 0, "error_code": code, "error_message": None, "leader": 1, "leader_epoch": 4, "high_watermark": 9,
        "voters": list(voters), "observers": [replica(11, 9_000), replica(3, 10_000)],
    }  # fmt: skip
    nodes = [
        {"id": id_, "listeners": [{"name": "CONTROLLER", "host": f"data{id_}.lab", "port": 9093}]} for id_ in (1, 2)
    ]
    topics = [{"name": "__cluster_metadata", "partitions": [part]}]
    return {"error_code": top, "error_message": None, "topics": topics, "nodes": nodes}


# --- brokers ---


def test_a_broker_is_what_the_cluster_and_itself_say() -> None:
    serving = Word({"nodes": []})
    words = {"data1": serving, "data2": serving, "data3": REFUSED}
    nodes = [node(1), node(2, fenced=True), node(3, fenced=True)]
    assert parse_brokers(words, nodes, EXPECTED, first_label) == (
        Broker("data1", 1, Health.SERVING, live=True),
        Broker("data2", 2, Health.SERVING, live=False, cause="the controllers do not count on it"),
        Broker("data3", 3, Health.DOWN, live=False, cause="data3.lab:9092: connection refused"),
    )


def test_a_broker_that_was_killed_a_moment_ago_is_not_down_yet() -> None:
    found = parse_brokers({"data3": REFUSED}, [node(3)], frozenset({"data3"}), first_label)
    assert found == (
        Broker(
            "data3", 3, Health.UNKNOWN, live=True,
            cause="data3.lab:9092: connection refused, and the controllers count on it still",
        ),
    )  # fmt: skip


def test_a_broker_that_was_set_up_anew_keeps_its_name_whatever_it_left_behind() -> None:
    words = {"data1": Word({"nodes": []})}
    found = parse_brokers(words, [node(1, fenced=True), node(8, "data1.lab")], frozenset({"data1"}), first_label)
    assert [(one.name, one.id, one.live, one.expected) for one in found] == [
        ("data1", 8, True, True),
        ("data1 (node 1)", 1, False, False),
    ]


def test_brokers_nobody_named_and_members_nobody_registered_are_told() -> None:
    found = parse_brokers({"data1": Word({"nodes": []})}, [node(7)], frozenset({"data1"}), first_label)
    assert [(one.name, one.id, one.health, one.expected) for one in found] == [
        ("data1", -1, Health.SERVING, True),
        ("data7", 7, Health.UNKNOWN, False),
    ]


def topic(name: str, code: int = 0) -> dict[str, Any]:
    part = {"index": 0, "replicas": [3, 1, 2], "in_sync": [1, 3], "error_code": 0, "leader": 1}
    return {"name": name, "error_code": code, "partitions": [part, {**part, "index": 1}]}


def test_partitions_have_their_minimum_and_say_whether_they_move() -> None:
    moving = {"topics": [{"name": "a", "partitions": [{"index": 1}]}]}
    metadata = {"topics": [topic("a"), topic("gone", 3), topic("went")]}
    assert parse_partitions("b:1", metadata, moving, {"a": 2}) == (
        Partition("a", 0, frozenset({1, 2, 3}), frozenset({1, 3}), 2),
        Partition("a", 1, frozenset({1, 2, 3}), frozenset({1, 3}), 2, moving=True),
    )
    with pytest.raises(KafkaError, match="b:1: topic a: the principal of our certificate may not do that"):
        parse_partitions("b:1", {"topics": [topic("a", 29)]}, moving, {"a": 2})


def test_a_minimum_is_what_is_in_force() -> None:
    def result(name: str, code: int = 0, key: str = "min.insync.replicas") -> dict[str, Any]:
        configs = [{"name": key, "value": "2"}]
        return {"resource_name": name, "error_code": code, "error_message": None, "configs": configs}

    assert parse_minimums("b:1", {"results": [result("a"), result("gone", 3)]}) == {"a": 2}
    with pytest.raises(KafkaError, match=r"topic a: does not tell min\.insync\.replicas"):
        parse_minimums("b:1", {"results": [result("a", key="x")]})
    with pytest.raises(KafkaError, match="topic a: error 4711"):
        parse_minimums("b:1", {"results": [result("a", 4711)]})


# --- controllers ---


def test_the_quorum_is_told_by_who_leads_and_by_nobody_else() -> None:
    assert parse_quorum("c:1", answer(code=6)) is None
    with pytest.raises(KafkaError, match="c:1: the principal of our certificate may not do that to the cluster"):
        parse_quorum("c:1", answer(top=31))
    with pytest.raises(KafkaError, match="c:1: error 4711"):
        parse_quorum("c:1", answer(code=4711))
    with pytest.raises(KafkaError, match="tells of 0 quorums"):
        parse_quorum("c:1", {**answer(), "topics": []})


def test_how_far_a_voter_is_behind_is_by_the_leaders_clock_and_of_its_own_disk() -> None:
    quorum = parse_quorum("c:1", answer(replica(1, 10_000), replica(2, 9_500), replica(3, -1)))
    assert quorum is not None
    # Observer 3 is a new disk of voter 3, which has no vote.
    assert behind_by_id(quorum) == {1: 0.0, 2: 0.5, 11: 1.0}


def test_controllers_are_named_by_what_they_advertise() -> None:
    quorum = parse_quorum("c:1", answer(replica(1, 10_000), replica(2, 9_500), replica(3, -1)))
    leads, lost = Word({"controller_id": 1, "nodes": [node(3), node(9)]}), Word({"controller_id": -1, "nodes": []})
    names = name_controllers([leads, lost], quorum, first_label)
    assert names == {1: "data1", 2: "data2", 3: "data3", 9: "data9"}
    words = {"data1": leads, "data2": lost, "data9": leads}
    expected = frozenset({"data1", "data2", "data9"})
    assert parse_controllers(words, quorum, expected, names) == (
        Controller("data1", 1, Health.SERVING, behind=0.0),
        Controller("data2", 2, Health.FAILING, behind=0.5, cause="it knows no active controller"),
        Controller("data3", 3, Health.UNKNOWN, expected=False, cause="nobody asked it"),
        Controller("data9", 9, Health.SERVING, voter=False),
    )


def test_where_nobody_leads_all_may_have_a_vote() -> None:
    lost = Word({"controller_id": -1, "nodes": [node(1), node(2)]})
    names = name_controllers([lost], None, first_label)
    found = parse_controllers({"data1": lost, "data3": REFUSED}, None, EXPECTED, names)
    assert [(one.name, one.id, one.health, one.voter) for one in found] == [
        ("data1", 1, Health.FAILING, True),
        ("data2", 2, Health.UNKNOWN, True),
        ("data3", -1, Health.DOWN, True),
    ]


# --- both ---


def test_a_server_of_another_cluster_is_found() -> None:
    ours, other = Word({"cluster_id": "ours"}), Word({"cluster_id": "other"})
    assert _strangers({"a:1": ours, "b:1": other, "c:1": ours, "d:1": REFUSED}) == ("b:1",)
    assert _strangers({"a:1": ours}) == ()


def test_a_member_is_the_first_label_of_its_host() -> None:
    hosts = ("data1.lab.example.org", "data1", "10.0.3.11", "fd00::1")
    assert [first_label(host, 1) for host in hosts] == ["data1", "data1", "10.0.3.11", "fd00::1"]
    assert split("[fd00::1]:9092") == ("fd00::1", 9092)
    with pytest.raises(KafkaError, match="data1 is no host:port"):
        split("data1")
    with pytest.raises(KafkaError, match="Kafka cluster lab has no servers to ask"):
        KafkaBrokers("lab", [], ClientTls("", "", ""))


def test_a_site_has_its_brokers_and_controllers_asked_by_name() -> None:
    def contract(engine: str, listen: str, port: int) -> Any:
        listens = [
            {"name": name, "port": at, "tls": "mutual", "from": ["all"]} for name, at in ((listen, port), ("x", 1))
        ]
        quorum = {"minimum": 3, "engine": engine}
        return load({"service": engine, "group": engine, "listens": listens, "quorum": quorum}, engine)

    contracts = {
        "kafka": contract("kafka", "data", 9092),
        "kafka_controller": contract("kafka_controller", "controller", 9093),
    }
    hosts = {name: {"host_addresses": {"data": "10.0.3.1"}, "host_primary_network": "data"} for name in ("data1", "k1")}
    groups = {"kafka": ["data1", "k1"], "kafka_controller": ["k1"], "all": list(hosts)}
    variables = {"site_networks": {"data": {"subnet": "10.0.3.0/24"}}, "site_domain": "lab.example.org"}
    site = Site.from_inventory(contracts, groups, hosts, variables)
    assert _servers(site, "kafka", "data") == ["data1.lab.example.org:9092", "k1.lab.example.org:9092"]
    assert _servers(site, "kafka_controller", "controller") == ["k1.lab.example.org:9093"]
    assert _servers(site, "etcd", "client") == []
