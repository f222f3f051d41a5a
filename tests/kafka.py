# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kafka as tests see it: its own tools on a broker's host, the collection's module for topics, its gate for waiting."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shlex
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.lab import Lab

CA = "/etc/groundplane/pki/ca.crt"
BROKER = "/etc/kafka/tls/broker"
"""The certificate of a broker, which is that of the one superuser, as a path without its endings."""
TOOLS = "org.apache.kafka.tools"
PROGRAM = Path(__file__).with_name("kafka_java.py")


@dataclass
class Kafka:
    """The lab's brokers and controllers."""

    lab: Lab

    @cached_property
    def brokers(self) -> list[str]:
        """Hosts of brokers."""
        return self.lab.groups["kafka"]

    @cached_property
    def controllers(self) -> list[str]:
        """Hosts of controllers."""
        return self.lab.groups["kafka_controller"]

    @cached_property
    def libraries(self) -> str:
        """The directory of Kafka's jars on each host."""
        return f"/opt/kafka/{self.lab.value(self.brokers[0], 'kafka', 'kafka_version')}/libs"

    def servers(self, first: str = "", port: int = 9092) -> list[str]:
        """`host:port` of all brokers, the one of a host before the others."""
        domain = self.lab.hostvars[self.brokers[0]]["site_domain"]
        return [f"{host}.{domain}:{port}" for host in sorted(self.brokers, key=lambda host: host != first)]

    def others(self, *hosts: str) -> list[str]:
        """Hosts of brokers besides some."""
        return [host for host in self.brokers if host not in hosts]

    # ---------------------------------------------------------------------------------------------------------- tools

    def order(self, name: str, *arguments: str, seconds: float = 120, held: bool = False, **who: Any) -> str:
        """The line of standard input that `kafka_java.py` wants.

        Args:
            name: of the class, without its package.
            arguments: of it; CONFIG stands for the file of properties.
            seconds: after which it is ended.
            held: whether it ends with standard input.
            who: `certificate` and `properties` of the client; a broker's and none unless they are given.
        """
        asked = {
            "class": f"{TOOLS}.{name}",
            "arguments": arguments,
            "libraries": self.libraries,
            "certificate": BROKER,
            "properties": {},
            "seconds": seconds,
            "held": held,
        }
        return json.dumps(asked | who) + "\n"

    @property
    def command(self) -> list[str]:
        """What runs such an order on a host."""
        return ["python3", "-c", PROGRAM.read_text(encoding="utf-8")]

    def tool(
        self, host: str, name: str, *arguments: str, check: bool = True, port: int = 9092, **who: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run one of Kafka's own tools on a host, against all brokers, to its end.

        Args:
            host: where.
            name: of the class, without its package.
            arguments: of it, besides servers and file of properties.
            check: whether it must succeed.
            port: of the brokers.
            who: see `order`.
        """
        servers = ",".join(self.servers(host, port))
        words = ("--bootstrap-server", servers, "--command-config", "CONFIG", *arguments)
        order = self.order(name, *words, **who)
        return self.lab.run(host, shlex.join(self.command), stdin=order, check=check, timeout=240)

    def described(self, topic: str) -> str:
        """What Kafka's own tool tells of a topic and its partitions."""
        return self.tool(self.brokers[0], "TopicCommand", "--describe", "--topic", topic).stdout

    def leader(self, topic: str) -> str:
        """The host whose broker leads the first partition of a topic; nothing when none does."""
        told = re.search(r"Partition:\s*0\s+Leader:\s*(\d+)", self.described(topic))
        ids = {int(self.lab.hostvars[host]["kafka_node_id"]): host for host in self.brokers}
        return ids[int(told[1])] if told else ""

    def quorum(self) -> tuple[str, list[int]]:
        """The host of the active controller, and the node ids of all voters."""
        told = self.tool(self.brokers[0], "MetadataQuorumCommand", "describe", "--status").stdout
        leader = re.search(r"^LeaderId:\s*(\d+)", told, re.MULTILINE)
        voters = re.search(r"^CurrentVoters:\s*(.+)$", told, re.MULTILINE)
        assert leader, told
        assert voters, told
        ids = {int(self.lab.hostvars[host]["kafka_controller_node_id"]): host for host in self.controllers}
        return ids[int(leader[1])], sorted(int(voter) for voter in re.findall(r'"id":\s*(\d+)', voters[1]))

    def read(self, host: str, topic: str, count: int) -> list[str]:
        """Records of the first partition of a topic from its beginning, one line each.

        Args:
            host: where the consumer runs.
            topic: which.
            count: how many there should be. When there are fewer, the consumer gives up after some seconds.
        """
        bounds = ("--max-messages", str(count), "--timeout-ms", "20000")
        where = ("--topic", topic, "--partition", "0", "--offset", "earliest")
        return self.tool(host, "consumer.ConsoleConsumer", *where, *bounds).stdout.splitlines()

    # ------------------------------------------------------------------------------------------------------ resources

    def resources(self, *options: str, **declared: Any) -> dict[str, Any]:
        """What `kafka_resources` on the first broker's host answers, which must be no refusal.

        Args:
            options: of `ansible`, such as `--check`.
            declared: `topics`, `acls`, ...
        """
        host = self.brokers[0]
        arguments = {
            "servers": self.servers(host),
            "scram_servers": self.servers(host, 9094),
            "certificate": f"{BROKER}.crt",
            "key": f"{BROKER}.key",
            "ca": CA,
            **declared,
        }
        answer = self.lab.module(host, "groundplane.onprem.kafka_resources", arguments, *options)[host]
        assert not answer.get("failed"), answer
        return answer

    @contextlib.contextmanager
    def topic(self) -> Iterator[str]:
        """A topic of a test's own with one partition on three brokers, two of which have what is acknowledged."""
        name = f"groundplane-test-{secrets.token_hex(4)}"
        configs = {"min.insync.replicas": 2}
        self.resources(topics=[{"name": name, "partitions": 1, "replication_factor": 3, "configs": configs}])
        try:
            yield name
        finally:
            self.resources(topics=[{"name": name, "state": "absent"}])

    # --------------------------------------------------------------------------------------------------------- health

    def wait_until_led(self, topic: str, host: str, seconds: float = 60) -> None:
        """Wait until the broker of a host leads the first partition of a topic."""
        end = time.monotonic() + seconds
        while (leader := self.leader(topic)) != host:
            assert time.monotonic() < end, f"after {seconds} s still {leader or 'nobody'} leads {topic}, not {host}"

    def wait_until_sound(self, *groups: str, seconds: int = 180) -> float:
        """Wait until the gate finds all members as they should be, and give the seconds that it took.

        Args:
            groups: whose members, `kafka` or `kafka_controller`; by default both.
            seconds: how long those of each may take.
        """
        start = time.monotonic()
        for group in groups or ("kafka_controller", "kafka"):
            arguments = {"engine": group, "action": "none", "timeout": seconds}
            answers = self.lab.module(group, "groundplane.onprem.gate", arguments, timeout=seconds + 60)
            assert not [answer["msg"] for answer in answers.values() if answer.get("failed")]
        return time.monotonic() - start
