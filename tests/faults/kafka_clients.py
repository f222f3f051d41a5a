# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real clients of Kafka for drills under load, and the faults that its processes are given.

    with Producer(kafka, host, topic) as producer:       # `host` is one that the fault leaves alone
        with down(lab, ["data1"], "kafka"):
            producer.recovered(time.time(), 60)
    producer.outcome()                                   # acknowledged, failed, lost, ghosts, gap

The producer is Kafka's own VerifiableProducer: twenty records a second, each acknowledged by all replicas in sync, each
sent once whatever happens (idempotent), tried again for as long as it is told. The maker of topics is the collection's
client, on one connection until that fails. A host runs this file after `drill.py`: what runs there needs only the
standard library, and gets the client by standard input.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import threading
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.faults.drill import ACTIONS, Attempt, HostClient, HostProbe, Outcome, Record, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kafka import Kafka

# ------------------------------------------------------------------------------------------------------- on the client

PATIENCE = 10.0
"""Seconds that the maker gives each step: to connect, and to be answered. A third of what Kafka's own client gives; one
that goes to another broker before the first has given up its own wait finds one that has to wait as long again."""
PACKAGE = "ansible_collections.groundplane.onprem.plugins.module_utils"
LIBRARY = ("json_https", "kafka_wire", "kafka_messages", "kafka_scram", "kafka_client")
"""The collection's client, each after those that it imports."""
CERTIFICATE = "/etc/kafka/tls/broker"


def load(sources: dict[str, str]) -> types.ModuleType:
    """The collection's client, out of its text.

    Args:
        sources: of `LIBRARY`.
    """
    names = PACKAGE.split(".")
    for length in range(1, len(names) + 1):
        package = types.ModuleType(".".join(names[:length]))
        package.__path__ = []
        sys.modules[package.__name__] = package
    for name, source in sources.items():
        module = sys.modules[f"{PACKAGE}.{name}"] = types.ModuleType(f"{PACKAGE}.{name}")
        exec(compile(source, name, "exec"), module.__dict__)
        setattr(sys.modules[PACKAGE], name, module)
    return sys.modules[PACKAGE]


def make(prefix: str, *servers: str) -> Callable[[int], str]:
    """Make topics, asking one broker until it fails, then the next; the answer is who took it.

    Reads the texts of the client, JSON, from a line of standard input.

    Args:
        prefix: of their names.
        servers: `host:port` of brokers.
    """
    library: Any = load(json.loads(sys.stdin.readline()))
    own = library.json_https.ClientTls("/etc/groundplane/pki/ca.crt", f"{CERTIFICATE}.crt", f"{CERTIFICATE}.key")
    context, asked = own.context(), list(servers)
    open_ones: list[Any] = []

    def step(turn: int) -> str:
        wanted = {"partitions": 1, "replication_factor": -1, "assignments": [], "configs": []}
        message = {
            "topics": [{"name": f"{prefix}{turn:06}", **wanted}],
            "timeout_ms": int(1000 * PATIENCE),
            "validate_only": False,
        }
        try:
            if not open_ones:
                open_ones.append(library.kafka_client.Connection(asked[0], context, PATIENCE))
            answer = open_ones[0].ask(library.kafka_messages.CREATE_TOPICS, message)["topics"][0]
            if answer["error_code"]:
                words = library.kafka_messages.words(answer["error_code"], answer["error_message"])
                raise ConnectionError(f"{asked[0]}: {words}")
        except (OSError, library.kafka_client.KafkaError):
            while open_ones:
                open_ones.pop().close()
            asked.append(asked.pop(0))
            raise
        return asked[0]

    return step


ACTIONS["make"] = make

# ---------------------------------------------------------------------------------------------------- on the controller

RATE = 20
"""Records a second."""
LONGEST = 900
"""Seconds after which a producer ends, whatever became of its test."""


@dataclass(frozen=True, slots=True)
class KafkaOutcome(Outcome):
    """And what is there more often than it was sent."""

    twice: int


class Producer:
    """VerifiableProducer on a host. What it says of a record counts from the moment at which it says it."""

    def __init__(self, kafka: Kafka, host: str, topic: str, *, patience: float = 120) -> None:
        """Prepare.

        Args:
            kafka: the cluster.
            host: where it runs, a broker's.
            topic: new, of one partition.
            patience: seconds for which a record is tried again.
        """
        self.record = Record()
        self.exceptions: set[str] = set()
        self._kafka, self._host, self._topic = kafka, host, topic
        self._last = -1
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        # VerifiableProducer tries once and so is not idempotent, unless it is told. A broker that stands still is
        # noticed by the time of a request, and who leads in its place by the age of what is known: with TLS nothing
        # else limits how long a handshake may take.
        self._properties = {
            "enable.idempotence": "true",
            "retries": 2147483647,
            "delivery.timeout.ms": int(1000 * patience),
            "request.timeout.ms": 3000,
            "metadata.max.age.ms": 1000,
            "reconnect.backoff.max.ms": 500,
            "linger.ms": 0,
        }

    def __enter__(self) -> Self:
        bounds = ("--max-messages", str(RATE * LONGEST), "--throughput", str(RATE), "--acks", "-1")
        servers = ",".join(self._kafka.servers(self._host))
        words = ("--bootstrap-server", servers, "--command-config", "CONFIG", "--topic", self._topic, *bounds)
        who = {"properties": self._properties}
        order = self._kafka.order("VerifiableProducer", *words, seconds=LONGEST, held=True, **who)
        lab = self._kafka.lab
        self._process = subprocess.Popen(
            [
                *("ssh", "-F", str(lab.directory / "ssh_config"), "-o", "BatchMode=yes", self._host),
                shlex.join(["sudo", "-n", *self._kafka.command]),
            ],
            env=lab.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin
        self._process.stdin.write(order)
        self._process.stdin.flush()
        self._reader.start()
        try:
            wait_for(lambda: len(self.record.acknowledged) >= RATE, 90, "records are acknowledged")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let it send what it has begun, and end it."""
        assert self._process
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._reader.join(90)
        self._process.wait(10)

    def watch(self, seconds: float) -> None:
        """Let it go on."""
        time.sleep(seconds)

    def since(self, moment: float) -> list[Attempt]:
        """What was acknowledged after a moment."""
        return [attempt for attempt in self.record.acknowledged if attempt.acked is not None and attempt.acked > moment]

    def recovered(self, moment: float, seconds: float) -> None:
        """Wait until something is acknowledged after a moment."""
        wait_for(lambda: self.since(moment), seconds, "records are acknowledged again")

    def refused(self, count: int, seconds: float) -> None:
        """Wait until so many records were given up."""
        wait_for(lambda: len(self.record.failed) >= count, seconds, f"{count} records are given up")

    def outcome(self) -> KafkaOutcome:
        """Read all back, once it has ended."""
        assert self.record.acknowledged
        # One partition, one after the other: what is after the last that was acknowledged was never acknowledged.
        values = [
            int(line) for line in self._kafka.read(self._host, self._topic, self._last + 1) if line.strip().isdigit()
        ]
        found = self.record.outcome(set(values))
        return KafkaOutcome(
            found.acknowledged, found.failed, found.lost, found.ghosts, found.gap, twice=len(values) - len(set(values))
        )

    def _read(self) -> None:
        assert self._process
        assert self._process.stdout
        for line in self._process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                self._take(json.loads(line))

    def _take(self, told: dict[str, Any]) -> None:
        moment = self.record.ended = told["timestamp"] / 1000
        if told["name"] == "producer_send_success":
            self._last = max(self._last, told["offset"])
            self.record.attempts.append(Attempt(int(told["value"]), moment, moment))
        elif told["name"] == "producer_send_error":
            error = told["exception"].rpartition(".")[2]
            self.exceptions.add(error)
            self.record.attempts.append(Attempt(int(told["value"]), moment, None, f"{error}: {told['message']}"))


class TopicMaker(HostClient):
    """Makes a topic every half second while it is entered. `clean` takes them away."""

    ANSWERED = 4
    SAYS = "topics are made"

    def __init__(self, kafka: Kafka, host: str, prefix: str) -> None:
        """Prepare.

        Args:
            kafka: the cluster.
            host: where it runs; its own broker is asked first.
            prefix: of the topics' names.
        """
        directory = Path(__file__).parents[2] / "plugins/module_utils"
        sources = {name: (directory / f"{name}.py").read_text(encoding="utf-8") for name in LIBRARY}
        self._kafka, self._prefix = kafka, prefix
        self._probe = HostProbe(
            kafka.lab,
            host,
            "make",
            prefix,
            *kafka.servers(host),
            interval=0.5,
            prefix=["sudo", "-n"],
            program=Path(__file__),
            secret=json.dumps(sources) + "\n",
        )

    def there(self) -> set[int]:
        """The numbers of its topics that the cluster has."""
        listed = self._kafka.tool(self._kafka.brokers[0], "TopicCommand", "--list").stdout.split()
        return {int(name.removeprefix(self._prefix)) for name in listed if name.startswith(self._prefix)}

    def clean(self) -> None:
        """Take away what it may have made."""
        names = [f"{self._prefix}{attempt.id:06}" for attempt in self.record.attempts]
        if names:
            self._kafka.resources(topics=[{"name": name, "state": "absent"} for name in names])
