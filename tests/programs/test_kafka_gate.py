# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gate against three real nodes of Kafka: whom it lets go, whom it does not, and when it is content again."""

from __future__ import annotations

import signal
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import kafka_messages
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import Action, Health, Wish, decide, settled
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_kafka import BEHIND_LIMIT
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_run import Gate, Patience
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_client import Client, KafkaError

from tests.programs.broker import Trio
from tests.programs.cluster import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_cluster import KafkaCluster

NAMES = ("data1", "data2", "data3")
SECONDS = 60.0
"""In which what is waited for must be there."""


class Held:
    """A lock that nobody else wants."""

    def check(self) -> None:
        """It is ours."""


def gate(cluster: KafkaCluster, member: str, lead: str = "defer") -> Gate[Any]:
    return Gate(cluster, Wish(member, lead), Patience(SECONDS, SECONDS), lambda: nullcontext(Held()))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """Three nodes with a topic of two partitions; a test leaves them as sound as it found them."""
    with running(Trio(tmp_path_factory.mktemp("trio"))) as trio:
        servers = [f"127.0.0.1:{node.port}" for node in trio.nodes.values()]
        client = Client(servers, trio.tls().context())
        configs = [{"name": "min.insync.replicas", "value": "2"}]
        topic = {"name": "events", "partitions": 2, "replication_factor": 3, "assignments": [], "configs": configs}
        question = {"topics": [topic], "timeout_ms": 30000, "validate_only": False}
        answer = client.ask(kafka_messages.CREATE_TOPICS, question)
        assert answer["topics"][0]["error_code"] == 0, answer
        client.close()
        for name in NAMES:
            gate(trio.brokers(), name).settle()
            gate(trio.controllers(), name).settle()
        yield trio


def test_brokers_and_the_quorum_are_read_and_each_follower_may_leave(trio: Trio) -> None:
    brokers = trio.brokers().read("data1")
    assert [(one.name, one.id, one.health, one.live, one.cause) for one in brokers.members] == [
        (name, number, Health.SERVING, True, "") for number, name in enumerate(NAMES, 1)
    ]
    assert [(one.name, one.replicas, one.minimum, one.moving) for one in brokers.partitions] == [
        (f"events-{index}", frozenset((1, 2, 3)), 2, False) for index in (0, 1)
    ]
    for name in NAMES:
        assert decide(brokers, Wish(name)).reason == (
            f"Kafka cluster test keeps each of its 2 partitions in sync without {name}"
        )
    quorum = trio.controllers().read()
    assert [(one.name, one.id, one.health, one.voter) for one in quorum.members] == [
        (name, number, Health.SERVING, True) for number, name in enumerate(NAMES, 1)
    ]
    assert all(one.behind is not None and one.behind <= BEHIND_LIMIT for one in quorum.members)
    leader = quorum.leader
    assert leader is not None
    assert leader.behind == 0
    for name in NAMES:
        verdict = decide(quorum, Wish(name))
        assert (verdict.allowed, verdict.action) == (
            (False, Action.DEFER) if name == leader.name else (True, Action.RESTART)
        )


def test_a_frozen_node_carries_nobody(trio: Trio) -> None:
    active = trio.controllers().read().active
    frozen, other = [id_ for id_ in trio.nodes if id_ != active]
    brokers, controllers = trio.brokers(timeout=1), trio.controllers(timeout=1)
    brokers.read()
    controllers.read()
    trio.send(frozen, signal.SIGSTOP)
    try:
        # The controllers have not missed it yet.
        verdict = decide(brokers.read(), Wish(f"data{other}"))
        assert not verdict.allowed
        assert f"events-0 lacks data{frozen}" in verdict.reason
        assert "no answer in time" in verdict.reason
        verdict = decide(controllers.read(), Wish(f"data{other}"))
        assert not verdict.allowed
        assert f"1 of 2 needed voters would be left; data{frozen} is unknown" in verdict.reason
    finally:
        trio.send(frozen, signal.SIGCONT)
    gate(brokers, f"data{frozen}").settle()
    gate(controllers, f"data{frozen}").settle()


def test_after_one_was_killed_no_second_leaves_until_it_is_back(trio: Trio) -> None:
    brokers, controllers = trio.brokers(), trio.controllers()
    before, voted = brokers.read(), controllers.read()
    killed, other = [id_ for id_ in trio.nodes if id_ != voted.active]
    trio.send(killed, signal.SIGKILL)
    verdict = decide(brokers.read(), Wish(f"data{other}"))  # the controllers may count on it still
    assert not verdict.allowed
    deadline = time.monotonic() + SECONDS
    while (now := brokers.read()).members[killed - 1].health is not Health.DOWN:
        assert not decide(now, Wish(f"data{other}")).allowed
        assert time.monotonic() < deadline
    verdict = decide(now, Wish(f"data{other}"))
    assert (verdict.allowed, verdict.final) == (False, False)
    assert verdict.reason.startswith(
        f"Kafka cluster test cannot lose data{other} now: events-0 lacks data{killed}, events-1 lacks data{killed}; "
        f"data{killed} is down (127.0.0.1:{trio.nodes[killed].port}: connection refused"
    )
    assert decide(now, Wish(f"data{killed}")).allowed
    assert settled(now, Wish(f"data{killed}"), before) != ""
    quorum = controllers.read()
    verdict = decide(quorum, Wish(f"data{other}"))
    assert not verdict.allowed
    assert f"1 of 2 needed voters would be left; data{killed} is down" in verdict.reason
    assert decide(quorum, Wish(f"data{killed}")).allowed
    assert settled(quorum, Wish(f"data{killed}"), voted) != ""
    outcome = gate(brokers, f"data{killed}").leave(lambda _state: trio.launch(killed), back=True)
    assert (outcome.changed, outcome.decision) == (True, "restart")
    gate(controllers, f"data{killed}").settle()
    assert settled(brokers.read(), Wish(f"data{killed}"), before) == ""
    assert settled(controllers.read(), Wish(f"data{killed}"), voted) == ""
    assert decide(brokers.read(), Wish(f"data{other}")).allowed


def test_the_active_controller_is_restarted_in_place_and_resigns(trio: Trio) -> None:
    controllers = trio.controllers()
    active = controllers.read().active
    assert gate(controllers, f"data{active}").leave(lambda _state: None, back=True).deferred

    def restart(_state: Any) -> None:
        trio.send(active, signal.SIGTERM)
        trio.launch(active)

    outcome = gate(controllers, f"data{active}", "yield").leave(restart, back=True)
    assert outcome.decision == "restart"
    assert f"data{active} leads and is restarted in place" in outcome.reason
    leader = controllers.read().leader
    assert leader is not None
    assert leader.id != active
    gate(trio.brokers(), f"data{active}").settle()


def test_who_lacks_the_right_is_told_so(trio: Trio) -> None:
    trio.authority.issue("stranger")
    tls = trio.tls()
    for reader in (trio.brokers(), trio.controllers()):
        kind = type(reader)
        strange = type(tls)(tls.ca, tls.cert.replace("admin", "stranger"), tls.key.replace("admin", "stranger"))
        cluster = kind("test", list(reader.expected), strange, trio.member_of)
        with pytest.raises(KafkaError, match=r"may not do that|authoriz") if kind.kind == 1 else nullcontext():
            verdict = decide(cluster.read(), Wish("data1"))
            assert not verdict.allowed
