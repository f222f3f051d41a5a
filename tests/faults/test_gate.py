# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rolling gate against the running clusters: what writers feel, whom it refuses, what becomes of a killed run."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import results
from tests.lab import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.lab import Lab

WRITER = (Path(__file__).parent / "gate_writer.py").read_text()
GAP_ALLOWED = 2.0
"""Seconds without a write: etcd elects within one, and these hosts share two cores."""

ASK = """
import json, ssl, sys, urllib.request
context = ssl.create_default_context(cafile="/etc/groundplane/pki/ca.crt")
context.load_cert_chain(sys.argv[1] + ".crt", sys.argv[1] + ".key")
data = sys.argv[3].encode() if len(sys.argv) > 3 else None
with urllib.request.urlopen(urllib.request.Request(sys.argv[2], data), context=context, timeout=5) as answer:
    print(answer.read().decode())
"""


def ask(lab: Lab, host: str, certificate: str, url: str, body: dict[str, str] | None = None) -> dict[str, Any]:
    """A request from a host with one of its certificates."""
    more = f" '{json.dumps(body)}'" if body is not None else ""
    answer: dict[str, Any] = json.loads(lab.run(host, f"python3 - {certificate} {url}{more}", stdin=ASK).stdout)
    return answer


def etcd(lab: Lab, host: str, path: str, body: dict[str, str]) -> dict[str, Any]:
    return ask(lab, host, "/etc/etcd/tls/etcd", f"https://{lab.address(host)}:2379{path}", body)


def leader_of_etcd(lab: Lab) -> str:
    members = lab.groups["etcd"]
    status = etcd(lab, members[0], "/v3/maintenance/status", {})
    listed = etcd(lab, members[0], "/v3/cluster/member/list", {})["members"]
    return str(next(item["name"] for item in listed if item["ID"] == status["leader"]))


def started(lab: Lab, host: str, unit: str) -> float:
    """When the unit was started, in seconds of the host's clock."""
    text = lab.out(host, f'date +%s.%N -d "$(systemctl show -p ExecMainStartTimestamp --value {unit})"')
    return float(text)


def gate(lab: Lab, host: str, *, timeout: float = 300, **arguments: object) -> tuple[bool, dict[str, Any]]:
    """The module on one host, as a run of its own; whether it succeeded, and what it said."""
    answer = lab.module(host, "groundplane.onprem.gate", arguments, timeout=timeout)[host]
    return not answer.get("failed"), answer


def eventually(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        time.sleep(0.2)


@pytest.fixture
def writer(lab: Lab) -> Iterator[Callable[[], dict[str, float]]]:
    """A writer of etcd on a member's host; the call ends it and gives its account."""
    host = lab.groups["etcd"][0]
    urls = " ".join(f"https://{lab.address(member)}:2379" for member in lab.groups["etcd"])
    end = f"/run/groundplane-test-writer-{os.getpid()}"
    accounts: list[dict[str, float]] = []

    def write() -> None:
        output = lab.run(host, f"python3 - {end} {urls}", stdin=WRITER, timeout=900).stdout
        accounts.append(json.loads(output))

    thread = threading.Thread(target=write)
    thread.start()

    def stop() -> dict[str, float]:
        lab.run(host, f"touch {end}")
        thread.join(60)
        return accounts[0]

    yield stop
    lab.run(host, f"touch {end}")
    thread.join(60)
    lab.run(host, f"rm -f {end}")


def test_all_members_of_etcd_are_restarted_and_writers_hardly_notice(
    lab: Lab, writer: Callable[[], dict[str, float]]
) -> None:
    led = leader_of_etcd(lab)
    before = {host: started(lab, host, "etcd.service") for host in lab.groups["etcd"]}
    play = lab.play("rolling_restart", "--tags", "etcd")
    assert play.returncode == 0, play.output[-4000:]
    account = writer()
    after = {host: started(lab, host, "etcd.service") for host in lab.groups["etcd"]}
    assert all(after[host] > before[host] for host in after)
    assert max(after, key=lambda host: after[host]) == led  # the leader went last
    results.record("gate_etcd", {**account, "allowed": GAP_ALLOWED})
    assert account["written"] > 100
    assert account["read"] == account["written"]  # the last acknowledged write is there
    assert account["gap"] <= GAP_ALLOWED


def test_a_switchover_says_who_and_how_long(lab: Lab) -> None:
    check = lab.play("switchover", "--check")
    assert check.returncode == 0, check.output[-4000:]
    play = lab.play("switchover")
    assert play.returncode == 0, play.output[-4000:]
    told = re.search(r"(\w+) hands over to (\w+); nobody was primary for ([0-9.]+)", " ".join(play.output.split()))
    assert told is not None, play.output
    assert "hands over to" in check.output
    leads = ask(lab, told[1], "/etc/postgresql/tls/postgres", f"https://{lab.address(told[1])}:8008/cluster")
    assert [item["name"] for item in leads["members"] if item["role"] == "leader"] == [told[2]]
    results.record("gate_switchover", {"seconds": float(told[3]), "allowed": 3.0})
    assert float(told[3]) <= 3.0


def test_a_second_run_is_refused_and_told_who_works_there(lab: Lab) -> None:
    followers = [host for host in lab.groups["etcd"] if host != leader_of_etcd(lab)]
    holder = {"run": "somebody/else", "member": "data9", "host": "elsewhere", "since": "2026-01-01T00:00:00Z"}
    lease = etcd(lab, followers[0], "/v3/lease/grant", {"TTL": "300", "ID": "0"})["ID"]
    key = base64.b64encode(b"/groundplane/gate/etcd").decode()
    value = base64.b64encode(json.dumps(holder).encode()).decode()
    etcd(lab, followers[0], "/v3/kv/put", {"key": key, "value": value, "lease": lease})
    before = started(lab, followers[0], "etcd.service")
    try:
        done, answer = gate(lab, followers[0], engine="etcd", unit="etcd.service", force=True)
        assert not done, answer
        assert answer["msg"] == (
            "gate: etcd is being changed by run somebody/else, at data9 since 2026-01-01T00:00:00Z:"
            f" this run does not touch {followers[0]}"
        )
        assert started(lab, followers[0], "etcd.service") == before
    finally:
        etcd(lab, followers[0], "/v3/lease/revoke", {"ID": lease})
    done, answer = gate(lab, followers[0], engine="etcd", unit="etcd.service", force=True)
    assert done, answer
    assert etcd(lab, followers[0], "/v3/kv/range", {"key": key}).get("kvs", []) == []  # and it let go


def test_two_real_runs_at_once_never_meet(lab: Lab) -> None:
    followers = [host for host in lab.groups["etcd"] if host != leader_of_etcd(lab)]
    told: dict[str, tuple[bool, dict[str, Any]]] = {}

    def run(host: str) -> None:
        told[host] = gate(lab, host, engine="etcd", unit="etcd.service", force=True)

    threads = [threading.Thread(target=run, args=(host,)) for host in followers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for done, answer in told.values():
        assert done or "is being changed by run" in answer["msg"], answer
    assert any(done for done, _answer in told.values())


def test_while_a_member_is_down_nobody_else_leaves(lab: Lab) -> None:
    led = leader_of_etcd(lab)
    down, other = (host for host in lab.groups["etcd"] if host != led)
    lab.run(down, "systemctl stop etcd.service")
    try:
        for host in (other, led):
            before = started(lab, host, "etcd.service")
            done, answer = gate(lab, host, engine="etcd", unit="etcd.service", force=True, lead="yield", patience=2)
            assert not done, answer
            assert f"etcd cluster lab cannot lose {host} now: 1 of 2 needed voters would be left" in answer["msg"]
            assert f"{down} is down (https://{lab.address(down)}:2379: connection refused)" in answer["msg"]
            assert started(lab, host, "etcd.service") == before
        # The one that is down may be started: a repair is not in the way of itself.
        done, answer = gate(lab, down, engine="etcd", unit="etcd.service", force=True, patience=2)
        assert done, answer
    finally:
        lab.run(down, "systemctl start etcd.service")
    done, answer = gate(lab, other, engine="etcd", action="check")
    assert (done, answer["allowed"]) == (True, True)


def apply(lab: Lab, snapshots: int) -> list[str]:
    return [
        "ansible-playbook",
        "-i",
        str(lab.inventory),
        "tests/faults/gate.yml",
        "-e",
        json.dumps({"etcd_snapshot_count": snapshots}),
    ]


def test_a_killed_run_is_finished_by_the_next_one(lab: Lab, writer: Callable[[], dict[str, float]]) -> None:
    hosts = lab.groups["etcd"]
    before = {host: started(lab, host, "etcd.service") for host in hosts}

    def restarted() -> list[str]:
        return [host for host in hosts if started(lab, host, "etcd.service") > before[host]]

    try:
        run = subprocess.Popen(
            apply(lab, 10001),
            cwd=ROOT,
            env=lab.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        eventually(lambda: restarted() or run.poll() is not None, 180, "the first restart")
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        assert len(restarted()) < len(hosts), "the run was over before it could be killed"
        second = lab.local(*apply(lab, 10001), timeout=600, check=False)
        assert second.returncode == 0, second.stdout[-4000:]
        assert sorted(restarted()) == sorted(hosts)
        third = lab.local(*apply(lab, 10001), timeout=600, check=False)
        assert re.findall(r"changed=([0-9]+)", third.stdout) == ["0"] * len(hosts), third.stdout[-4000:]
    finally:
        back = lab.local(*apply(lab, 10000), timeout=600, check=False)
    assert back.returncode == 0, back.stdout[-4000:]
    account = writer()
    results.record("gate_killed_run", account)
    assert account["read"] == account["written"]
    assert account["gap"] <= GAP_ALLOWED
