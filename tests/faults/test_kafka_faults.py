# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a producer notices when brokers crash, freeze, are too few or are restarted; nothing acknowledged is lost."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from tests import results
from tests.faults.drill import RUNS, down, stopped, summary
from tests.faults.kafka_clients import Producer, TopicMaker
from tests.faults.outcomes import Drill
from tests.kafka import Kafka

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.lab import Lab

GAP_ALLOWED = 12.0
"""Seconds without an acknowledgement: a broker that is silent for 9 is given up, and clients have to hear of it."""
CONTROLLER_GAP_ALLOWED = 5.0
PLAY = "../tests/integration/kafka"


@pytest.fixture(scope="session")
def kafka(lab: Lab) -> Kafka:
    """The lab's brokers and controllers."""
    return Kafka(lab)


@pytest.fixture
def runs(kafka: Kafka) -> Iterator[range]:
    """The runs of a drill; before the first and after the last all members are as they should be."""
    kafka.wait_until_sound()
    yield range(RUNS)
    kafka.wait_until_sound()


class KafkaDrill(Drill):
    """A drill whose records are counted where they came to lie, too."""

    def holds(self, gap: float = float("inf"), *, failed: bool = False) -> None:
        """Nothing was lost or is there twice, records were acknowledged again in time, and none had to be given up.

        Args:
            gap: the longest time without an acknowledgement, in seconds.
            failed: whether records may have been given up.
        """
        super().holds(gap)
        assert [asdict(outcome)["twice"] for outcome in self.outcomes] == [0] * len(self.outcomes)
        assert failed or sum(outcome.failed for outcome in self.outcomes) == 0


def lose_leaders(name: str, kafka: Kafka, runs: range, fault: Callable[[str], AbstractContextManager[None]]) -> None:
    """What a producer sees while the broker that leads its partition is gone.

    Args:
        name: of the figures.
        kafka: the cluster.
        runs: how often.
        fault: takes the broker of that name away, and gives it back.
    """
    drill = KafkaDrill(name)
    for _ in runs:
        with kafka.topic() as topic:
            leader = kafka.leader(topic)
            with Producer(kafka, kafka.others(leader)[0], topic) as producer:
                producer.watch(1)
                with fault(leader):
                    producer.recovered(time.time(), 60)
                    producer.watch(2)
                returned = kafka.wait_until_sound("kafka")
            drill.add(producer, in_sync_again_s=returned)
    drill.record(allowed_s=GAP_ALLOWED)
    drill.holds(GAP_ALLOWED)
    assert min(outcome.gap for outcome in drill.outcomes) > 1, "the producer noticed nothing: was it the leader?"


def test_a_killed_leader_of_a_partition_is_replaced(lab: Lab, kafka: Kafka, runs: range) -> None:
    lose_leaders("kafka_leader_killed", kafka, runs, lambda leader: down(lab, [leader], "kafka"))


def test_a_frozen_leader_of_a_partition_is_replaced_and_comes_back(lab: Lab, kafka: Kafka, runs: range) -> None:
    """Its kernel still takes connections; when it goes on, it believes for a moment that it leads."""
    lose_leaders("kafka_leader_frozen", kafka, runs, lambda leader: stopped(lab, leader, "kafka"))


def test_topics_are_made_soon_after_the_active_controller_froze(lab: Lab, kafka: Kafka, runs: range) -> None:
    gaps, lost, made = [], [], 0
    for _ in runs:
        active, _voters = kafka.quorum()
        maker = TopicMaker(kafka, kafka.others(active)[0], f"groundplane-test-{secrets.token_hex(4)}-")
        try:
            with maker:
                time.sleep(1)
                with stopped(lab, active, "kafka-controller"):
                    maker.recovered(time.time(), 60)
                    time.sleep(4)
                successor, _voters = kafka.quorum()
                assert successor != active
                kafka.wait_until_sound("kafka_controller")
            outcome = maker.record.outcome(maker.there())
            gaps.append(outcome.gap)
            lost.append(outcome.lost)
            made += outcome.acknowledged
        finally:
            maker.clean()
    results.record(
        "kafka_controller_frozen",
        {"gap_s": summary(gaps), "made": made, "lost": sum(lost), "allowed_s": CONTROLLER_GAP_ALLOWED},
    )
    assert lost == [0] * len(lost)
    assert max(gaps) <= CONTROLLER_GAP_ALLOWED


def test_one_broker_of_three_acknowledges_nothing(lab: Lab, kafka: Kafka, runs: range) -> None:
    """The leader and a follower crash at once: who is left leads, and says no."""
    drill = KafkaDrill("kafka_two_brokers_killed")
    exceptions: set[str] = set()
    for _ in runs:
        with kafka.topic() as topic:
            leader = kafka.leader(topic)
            left, follower = kafka.others(leader)
            with Producer(kafka, left, topic, patience=5) as producer:
                producer.watch(1)
                with down(lab, [leader, follower], "kafka"):
                    # An acknowledgement that was under way is told within a second.
                    silent = time.time() + 1
                    producer.refused(50, 60)
                    kafka.wait_until_led(topic, left)
                    producer.watch(6)
                    meanwhile = producer.since(silent)
                    healed = time.time()
                producer.recovered(healed, 120)
                back = time.time() - healed
                kafka.wait_until_sound("kafka")
                producer.watch(1)
            drill.add(producer, acknowledged_again_s=back, acknowledged_meanwhile=len(meanwhile))
            exceptions |= producer.exceptions
    drill.record(exceptions=sorted(exceptions))
    assert drill.further["acknowledged_meanwhile"] == [0] * len(runs)
    assert exceptions & {"TimeoutException", "NotEnoughReplicasException", "NotEnoughReplicasAfterAppendException"}
    drill.holds(failed=True)


def started(lab: Lab, kafka: Kafka) -> dict[tuple[str, str], str]:
    """Host and unit to what is another one after each start."""
    pairs = [
        *((host, "kafka-controller") for host in kafka.controllers),
        *((host, "kafka") for host in kafka.brokers),
    ]
    return {(host, unit): lab.out(host, f"systemctl show -P InvocationID {unit}") for host, unit in pairs}


def test_a_setting_reaches_all_members_and_is_taken_back_while_no_record_fails(
    lab: Lab, kafka: Kafka, runs: range
) -> None:
    """Each member is restarted twice, one at a time, by the gate."""
    drill = KafkaDrill("kafka_rolled")
    for run in runs:
        setting = {"log.cleaner.backoff.ms": 15001 + run}
        changed = json.dumps({"kafka_properties": setting, "kafka_controller_properties": setting})
        before = started(lab, kafka)
        with kafka.topic() as topic:
            with Producer(kafka, kafka.brokers[0], topic) as producer:
                try:
                    start = time.monotonic()
                    there = lab.play(PLAY, "-e", changed)
                    seconds = time.monotonic() - start
                    between = started(lab, kafka)
                finally:
                    back = lab.play(PLAY)
                after = started(lab, kafka)
            drill.add(producer, seconds=seconds)
        assert there.returncode == 0, there.output[-4000:]
        assert back.returncode == 0, back.output[-4000:]
        assert all(before[key] != between[key] != after[key] for key in before)
    drill.record(members=len(before))
    drill.holds(GAP_ALLOWED)
