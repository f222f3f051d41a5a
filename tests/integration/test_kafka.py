# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running Kafka: what its members are, who may do what, and that no member ever starts empty."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.kafka import Kafka

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.lab import Lab

STRANGER = "/etc/etcd/tls/etcd"
"""The certificate of another service on the same hosts."""
UNITS = {"kafka": "kafka", "kafka_controller": "kafka-controller"}
DECLARED = {name: f"{{{{ kafka_{name} }}}}" for name in ("topics", "acls", "users")}


@pytest.fixture(scope="module")
def kafka(lab: Lab) -> Kafka:
    """The lab's brokers and controllers."""
    return Kafka(lab)


def login(kafka: Kafka, password: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Kafka's tool for topics as the user `app`, by a password and the certificate of another service."""
    jaas = "org.apache.kafka.common.security.scram.ScramLoginModule required"
    properties = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.jaas.config": f'{jaas} username="app" password="{password}";',
    }
    host = kafka.brokers[0]
    who = {"certificate": STRANGER, "properties": properties}
    return kafka.tool(host, "TopicCommand", *arguments, check=False, port=9094, **who)


@pytest.mark.parametrize("group", list(UNITS))
def test_every_member_is_active_and_comes_back_with_its_host(lab: Lab, group: str) -> None:
    assert len(lab.groups[group]) >= 3
    for host in lab.groups[group]:
        assert lab.out(host, f"systemctl is-active {UNITS[group]}") == "active"
        assert lab.out(host, f"systemctl is-enabled {UNITS[group]}") == "enabled"


def test_all_controllers_vote_and_one_leads(lab: Lab, kafka: Kafka) -> None:
    active, voters = kafka.quorum()
    assert active in kafka.controllers
    assert voters == sorted(int(lab.hostvars[host]["kafka_controller_node_id"]) for host in kafka.controllers)


def test_a_topic_that_says_nothing_is_on_three_brokers_and_two_acknowledge(lab: Lab, kafka: Kafka) -> None:
    told = kafka.described("app")
    assert re.search(r"PartitionCount:\s*3\b", told), told
    assert re.search(r"ReplicationFactor:\s*3\b", told), told
    ids = sorted(int(lab.hostvars[host]["kafka_node_id"]) for host in kafka.brokers)
    found = re.findall(r"Isr:\s*([\d,]+)", told)
    assert [sorted(map(int, one.split(","))) for one in found] == [ids] * 3, told
    words = ("--entity-type", "topics", "--entity-name", "app", "--describe", "--all")
    configs = kafka.tool(kafka.brokers[0], "ConfigCommand", *words).stdout
    values = dict(re.findall(r"^\s*([\w.]+)=(\S*)", configs, re.MULTILINE))
    assert values["min.insync.replicas"] == "2", configs
    assert values["unclean.leader.election.enable"] == "false", configs


@pytest.mark.parametrize("options", [("--check",), ()], ids=["check", "run"])
def test_what_the_inventory_declares_is_there(kafka: Kafka, options: tuple[str, ...]) -> None:
    answer = kafka.resources(*options, **DECLARED)
    assert answer["changes"] == []
    assert answer["changed"] is False
    assert answer["logins"] == 1  # The password of `app` was proven by a login.


def test_another_service_of_the_site_is_nobody_here(kafka: Kafka) -> None:
    host = kafka.brokers[0]
    assert "app" in kafka.tool(host, "TopicCommand", "--list").stdout.split()
    assert kafka.tool(host, "TopicCommand", "--list", certificate=STRANGER).stdout.split() == []
    described = kafka.tool(host, "TopicCommand", "--describe", "--topic", "app", certificate=STRANGER, check=False)
    assert described.returncode != 0
    assert "PartitionCount" not in described.stdout
    who: dict[str, Any] = {"certificate": STRANGER, "properties": {"max.block.ms": 20000}}
    sent = kafka.tool(host, "VerifiableProducer", "--topic", "app", "--max-messages", "1", check=False, **who)
    assert "producer_send_success" not in sent.stdout
    assert "AuthorizationException" in sent.stdout, sent.stdout + sent.stderr


def test_a_user_logs_in_by_password_and_sees_what_is_its_own(lab: Lab, kafka: Kafka) -> None:
    password = lab.secret("kafka_app")
    with kafka.topic() as other:
        good = login(kafka, password, "--list")
        assert good.returncode == 0, good.stdout + good.stderr
        assert good.stdout.split() == ["app"]
        assert login(kafka, password, "--describe", "--topic", other).returncode != 0
    wrong = login(kafka, "wrong", "--list")
    assert wrong.returncode != 0
    assert "Authentication failed" in wrong.stdout + wrong.stderr


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/lib/kafka", "700 kafka kafka"),
        ("/var/lib/kafka-controller", "700 kafka kafka"),
        ("/run/kafka", "700 kafka kafka"),
        ("/run/kafka-controller", "700 kafka kafka"),
        ("/etc/kafka/tls/broker.key", "600 kafka kafka"),
        ("/etc/kafka/tls/controller.key", "600 kafka kafka"),
        ("/etc/kafka/broker.properties", "640 root kafka"),
        ("/etc/kafka/controller.properties", "640 root kafka"),
        ("/etc/kafka/broker.formed", "644 root root"),
        ("/etc/kafka/controller.formed", "644 root root"),
    ],
)
def test_files_belong_to_whom_they_should(kafka: Kafka, path: str, expected: str) -> None:
    for host in kafka.brokers:
        assert kafka.lab.out(host, f"stat -c '%a %U %G' {path}") == expected


@pytest.mark.parametrize("unit", list(UNITS.values()))
def test_the_units_are_confined(kafka: Kafka, unit: str) -> None:
    said = kafka.lab.out(kafka.brokers[0], f"systemd-analyze security {unit}.service | tail -1")
    assert float(said.split(f"{unit}.service:")[1].split()[0]) <= 2.0, said


@pytest.fixture(params=list(UNITS))
def lost(lab: Lab, kafka: Kafka, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A member that has lost its data, which are moved aside and put back afterwards; its host and its group."""
    unit = UNITS[request.param]
    kafka.wait_until_sound()
    # One that does not lead, so that no more is moved than has to be.
    active, _voters = kafka.quorum()
    host = next(name for name in lab.groups[request.param] if name != active)
    directory, aside = f"/var/lib/{unit}", f"/var/lib/{unit}.of-a-test"
    timer = "groundplane-test-heal"
    back = f"if [ -e {aside} ]; then rm -rf {directory} && mv {aside} {directory}; fi; systemctl start {unit}"
    # The timer puts them back also when this test is killed.
    lab.run(
        host,
        f"systemd-run --quiet --collect --unit={timer} --on-active=300 sh -c '{back}'"
        f" && systemctl stop {unit} && mv {directory} {aside} && install -d -m 0700 -o kafka -g kafka {directory}",
        timeout=120,
    )
    yield host, request.param
    lab.run(host, f"systemctl stop {timer}.timer; systemctl stop {unit}; {back}", timeout=120)
    kafka.wait_until_sound()


def test_a_member_on_record_that_is_empty_is_refused(lab: Lab, lost: tuple[str, str]) -> None:
    host, group = lost
    mark = "broker" if group == "kafka" else "controller"
    refused = lab.play("../tests/integration/kafka", "--limit", host)
    assert refused.recap[host]["failed"] == 1, refused.output[-4000:]
    assert refused.recap[host]["changed"] == 0
    said = " ".join(refused.output.split())
    assert f"{host}: /etc/kafka/{mark}.formed: this host was a member of cluster" in said
    assert "and has lost its data; it is never formatted again by the way" in said
    assert lab.out(host, f"ls -A /var/lib/{UNITS[group]}") == ""
    assert lab.run(host, f"systemctl is-active {UNITS[group]}", check=False).stdout.strip() == "inactive"
