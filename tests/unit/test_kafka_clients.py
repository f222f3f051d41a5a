# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What drills conclude from what Kafka's producer said: what is lost, what is there twice, how long nothing came."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from tests.faults.kafka_clients import LIBRARY, Producer
from tests.lab import ROOT

if TYPE_CHECKING:
    from tests.kafka import Kafka


class Log:
    """Stands for the cluster: what a consumer would read."""

    def __init__(self, *values: str) -> None:
        self.values, self.asked = list(values), 0

    def read(self, _host: str, _topic: str, count: int) -> list[str]:
        self.asked = count
        return [*self.values, "Processed a total of 9 messages"]


def producer(log: Log, *told: dict[str, Any]) -> Producer:
    """A producer that said these things."""
    one = Producer(cast("Kafka", log), "data1", "t")
    for event in [*told, {"name": "shutdown_complete", "timestamp": 20_000}]:
        one._take(event)
    return one


def sent(value: int, second: float, offset: int | None = None) -> dict[str, Any]:
    """As VerifiableProducer says it: of a record that was acknowledged, at its offset, or given up."""
    event = {"timestamp": round(1000 * second), "key": None, "value": str(value), "topic": "t"}
    if offset is None:
        name = "class org.apache.kafka.common.errors.TimeoutException"
        return {**event, "name": "producer_send_error", "exception": name, "message": "Expiring 1 record(s)"}
    return {**event, "name": "producer_send_success", "partition": 0, "offset": offset}


def test_what_was_acknowledged_and_is_not_there_is_lost() -> None:
    log = Log("0", "2", "2")
    found = producer(log, sent(0, 1, 0), sent(1, 2, 1), sent(2, 3, 4), sent(3, 9), sent(4, 19.5, 5)).outcome()
    assert (found.acknowledged, found.failed, found.lost, found.ghosts, found.twice) == (4, 1, 2, 0, 1)
    assert log.asked == 6
    assert found.gap == 16.5


def test_what_was_given_up_and_is_there_is_a_ghost() -> None:
    one = producer(Log("0", "1"), sent(0, 1, 0), sent(1, 2))
    found = one.outcome()
    assert (found.lost, found.ghosts, found.gap) == (0, 1, 19)
    assert one.exceptions == {"TimeoutException"}
    assert [attempt.id for attempt in one.since(0.5)] == [0]
    assert one.since(1) == []


def test_the_client_that_goes_to_a_host_is_whole_and_in_order() -> None:
    before: list[str] = []
    for name in LIBRARY:
        text = (ROOT / "plugins/module_utils" / f"{name}.py").read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.startswith("from ansible_collections.")]
        needed = [
            word.strip(",")
            for line in lines
            for word in line.split(".module_utils", 1)[1].replace(".", " ").replace("import", " ").split()
            if (ROOT / "plugins/module_utils" / f"{word.strip(',')}.py").exists()
        ]
        assert set(needed) <= set(before), name
        before.append(name)
