# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`kafka_resources` against a loop over Kafka's own tools: 200 topics, 200 rules and 50 users, on the lab's brokers.

A tool is a process for each object, for the first run as for one that changes nothing. Fifteen minutes of them say no
more than a few in each round do: what one takes is measured beside the module, and taken 450 times. The tool that makes
users wants the password as an argument, and is left out; it starts as the others do.
"""

from __future__ import annotations

import os
import secrets
import statistics
import time
from typing import TYPE_CHECKING, Any

import yaml

from tests.bench.conftest import Stopwatch
from tests.kafka import BROKER, CA, Kafka

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import Lab

TOPICS, RULES, USERS = 200, 200, 50
OBJECTS = TOPICS + RULES + USERS
ROUNDS = int(os.environ.get("GROUNDPLANE_RUNS", "3"))
TOOL_RUNS = 2  # of each tool, in each round
AT_LEAST = 20


def declared(prefix: str, state: str = "present") -> dict[str, Any]:
    """All objects, whose names begin so, as the module takes them."""
    topics = [f"{prefix}topic{number:03}" for number in range(TOPICS)]
    users = [f"{prefix}user{number:02}" for number in range(USERS)]
    rules = [
        {
            "principal": f"User:{users[number % USERS]}",
            "resource_type": "topic",
            "resource_name": topics[number],
            "operations": ["read"],
            "state": state,
        }
        for number in range(RULES)
    ]
    if state == "absent":
        gone = {"topics": [{"name": name, "state": state} for name in topics], "acls": rules}
        return {**gone, "users": [{"name": name, "state": state} for name in users]}
    password = secrets.token_hex(20)
    return {
        "topics": [{"name": name, "partitions": 1, "replication_factor": 3} for name in topics],
        "acls": rules,
        "users": [{"name": name, "password": password} for name in users],
    }


def playbook(path: Path, kafka: Kafka, objects: dict[str, Any]) -> Path:
    """A play whose one task declares them."""
    host = kafka.brokers[0]
    arguments = {
        "servers": kafka.servers(host),
        "scram_servers": kafka.servers(host, 9094),
        "certificate": f"{BROKER}.crt",
        "key": f"{BROKER}.key",
        "ca": CA,
        **objects,
    }
    task = {"name": "Objects", "groundplane.onprem.kafka_resources": arguments}
    path.write_text(yaml.safe_dump([{"hosts": host, "gather_facts": False, "tasks": [task]}]))
    path.chmod(0o600)
    return path


def tools(kafka: Kafka, prefix: str, seconds: list[float]) -> None:
    """Make what is there already by one process each, and note what each takes."""
    host = kafka.brokers[0]
    for number in range(TOOL_RUNS):
        topic = f"{prefix}topic{number:03}"
        calls = (
            ("TopicCommand", "--create", "--if-not-exists", "--topic", topic, "--partitions", "1"),
            (
                "AclCommand",
                "--add",
                "--allow-principal",
                f"User:{prefix}user00",
                "--operation",
                "Read",
                "--topic",
                topic,
            ),
        )
        for call in calls:
            start = time.perf_counter()
            kafka.tool(host, *call)
            seconds.append(time.perf_counter() - start)


def test_one_call_is_faster_than_a_process_for_each_object(lab: Lab, tmp_path: Path) -> None:
    kafka = Kafka(lab)
    stopwatch = Stopwatch(lab, tmp_path, kafka.brokers[0])
    each: list[float] = []
    try:
        for number in range(ROUNDS):
            prefix = f"bench{number}-{secrets.token_hex(3)}-"
            objects = playbook(tmp_path / "objects.yml", kafka, declared(prefix))
            stopwatch.empty()
            stopwatch.play("first run", objects)
            assert "changed=0 " in stopwatch.play("unchanged", objects)
            tools(kafka, prefix, each)
            stopwatch.play("taken away", playbook(tmp_path / "gone.yml", kafka, declared(prefix, "absent")))
    finally:
        (tmp_path / "objects.yml").unlink(missing_ok=True)
    one = statistics.median(each)
    ratios = {name: OBJECTS * one / stopwatch.net(name) for name in ("first run", "unchanged")}
    print(
        f"\none process of Kafka's tools: {one:.2f} s (median of {len(each)}), {OBJECTS} of them {OBJECTS * one:.0f} s"
    )
    for name, ratio in ratios.items():
        print(f"{OBJECTS} objects, {name}: {stopwatch.net(name):.2f} s, {ratio:.0f} times faster")
    assert min(ratios.values()) >= AT_LEAST
