# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's firewall under change: drift is found and repaired, and what would cut the host off undoes itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import Play

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab

PLAYBOOK = "tests/integration/firewall.yml"
TABLE = "nft --stateless list table inet groundplane"
FILE = "/etc/nftables.conf"
HOST = "lb2"


def play(lab: Lab, *arguments: str, target: str = HOST, trial: dict[str, Any] | None = None) -> Play:
    variables = json.dumps({"target": target, "trial": trial or {}})
    done = lab.local(
        *("ansible-playbook", "-i", str(lab.inventory), PLAYBOOK, "-e", variables, *arguments),
        timeout=180,
        check=False,
    )
    return Play(done.returncode, done.stdout + done.stderr)


def state(lab: Lab, host: str = HOST) -> tuple[str, str]:
    """The table in the kernel and the file on disk."""
    return lab.out(host, TABLE), lab.out(host, f"cat {FILE}")


@pytest.fixture(scope="module", autouse=True)
def _as_declared(lab: Lab) -> Iterator[None]:
    done = play(lab)
    assert done.returncode == 0, done.output
    yield
    done = play(lab)
    assert done.returncode == 0, done.output


def test_a_second_run_changes_nothing(lab: Lab) -> None:
    assert play(lab, "--check").changed == {}
    assert play(lab).changed == {}


@pytest.mark.parametrize(
    "drift",
    [
        {
            "nft add rule inet groundplane input tcp dport 4444 accept": "-\t\ttcp dport 4444 accept",
            "nft add element inet groundplane inbound_tcp '{ 10.77.2.11 . 10.77.2.12 . 4444 }'": (
                "-\t\t\t10.77.2.11 . 10.77.2.12 . 4444,"
            ),
            "nft delete element inet groundplane networks '{ 10.77.1.0/24 }'": "+\t\t\t10.77.1.0/24,",
            "nft chain inet groundplane output '{ policy accept; }'": (
                "-\t\ttype filter hook output priority filter; policy accept;"
            ),
        },
        {"nft delete table inet groundplane": "+table inet groundplane {"},
        {
            f"sed -i 's/hook input priority filter; policy drop/hook input priority filter; policy accept/' {FILE}": (
                "-\t\ttype filter hook input priority filter; policy accept;"
            ),
            "rm /etc/systemd/system/nftables.service.d/groundplane.conf; systemctl daemon-reload": '-  "drop_in": null',
            "systemctl disable --quiet nftables.service": '-  "enabled": false',
        },
        {f"chmod 0644 {FILE}": ""},
    ],
    ids=["rules", "table", "boot", "mode"],
)
def test_drift_by_hand_is_shown_exactly_and_repaired(lab: Lab, drift: dict[str, str]) -> None:
    wanted = state(lab)
    lab.run(HOST, "set -e; " + "; ".join(drift))
    preview = play(lab, "--check", "--diff")
    assert preview.changed == {HOST: 1}
    for shown in drift.values():
        assert shown in preview.output
    if "nft add rule" in next(iter(drift)):
        lines = [line for line in preview.output.splitlines() if line[:2] in ("+\t", "-\t")]
        assert len(lines) == len(drift) + 1  # Only the policy is on both sides.
    assert play(lab).changed == {HOST: 1}
    assert state(lab) == wanted
    assert lab.out(HOST, f"stat -c %a {FILE}") == "600"


def test_rules_that_cut_the_host_off_undo_themselves(lab: Lab) -> None:
    before = state(lab)
    cut = play(lab, trial={"seconds": 10})
    assert cut.recap[HOST]["failed"] == 1
    assert (
        "The new rules let no new connection reach this host. Its previous rules are back, in the kernel and on disk"
        in " ".join(cut.output.split())
    )
    assert state(lab) == before
    assert play(lab).changed == {}


def test_a_router_that_still_answers_but_cuts_off_a_host_behind_it_undoes_itself(lab: Lab) -> None:
    """Only the way to one host is cut, and only for new connections: the rest of the site does not notice."""
    (router,) = lab.groups["router"]
    rules = lab.site.firewall(router)
    for rule in rules["forward"]:
        rule["destinations"] = [
            address for address in rule["destinations"] if address not in lab.site.hosts[HOST].addresses.values()
        ]
    before = state(lab, router)
    cut = play(lab, target=router, trial={"rules": rules, "witnesses": [HOST, "lb1"], "seconds": 10})
    assert cut.recap[router]["failed"] == 1
    said = " ".join(cut.output.split())
    assert f"The new rules cut off what is behind this host: {HOST}. Its previous rules are back" in said
    assert state(lab, router) == before
    assert play(lab, target=router).changed == {}


def test_a_run_that_dies_before_it_confirms_leaves_the_old_rules(lab: Lab) -> None:
    before = state(lab)
    process = subprocess.Popen(
        [
            *("ansible-playbook", "-i", str(lab.inventory), PLAYBOOK),
            *("-e", json.dumps({"target": HOST, "trial": {"seconds": 15}})),
        ],
        env=lab.environment,
        cwd=lab.directory.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while lab.engine("exec", HOST, "sh", "-c", TABLE).stdout.strip() == before[0]:
        assert time.monotonic() < deadline, "the rules were never loaded"
        time.sleep(0.2)
    loaded = time.monotonic()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(max(0.0, loaded + 17 - time.monotonic()))
    assert state(lab) == before
    assert play(lab).changed == {}


def test_tables_of_others_stay(lab: Lab) -> None:
    lab.run(HOST, "nft add table inet other; nft add chain inet other mine; nft add rule inet other mine counter")
    try:
        lab.run(HOST, "nft add rule inet groundplane input tcp dport 4444 accept")
        assert play(lab).changed == {HOST: 1}
        assert "counter" in lab.out(HOST, "nft list table inet other")
        lab.run(HOST, "systemctl restart nftables.service")
        assert "counter" in lab.out(HOST, "nft list table inet other")
    finally:
        lab.run(HOST, "nft delete table inet other")


def test_stopping_the_unit_opens_nothing_and_starting_it_loads_the_file(lab: Lab) -> None:
    wanted = state(lab)
    lab.run(HOST, "systemctl stop nftables.service")
    assert lab.out(HOST, TABLE) == wanted[0]
    lab.run(HOST, "nft delete table inet groundplane; systemctl start nftables.service")
    assert lab.out(HOST, TABLE) == wanted[0]


def test_existing_connections_survive_the_first_load(lab: Lab) -> None:
    """Connections older than their tracking go on, also when it is our host that speaks next."""
    lab.run(HOST, "nft delete table inet groundplane")
    process = subprocess.Popen(
        ["ssh", "-F", str(lab.directory / "ssh_config"), HOST, "for i in 1 2 3 4 5 6 7 8; do date +%s; sleep 1; done"],
        env=lab.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    assert lab.engine("exec", HOST, "nft", "--file", FILE).returncode == 0
    lines = [(float(line), time.time()) for line in process.stdout]
    assert len(lines) == 7
    assert max(seen - said for said, seen in lines) < 2.5
    assert process.wait() == 0


def test_the_rules_are_there_after_a_boot_before_anyone_can_connect(lab: Lab) -> None:
    wanted = state(lab)
    lab.engine("restart", "--time", "20", HOST, timeout=90)
    deadline = time.monotonic() + 60
    while lab.run(HOST, "true", check=False).returncode != 0:
        assert time.monotonic() < deadline, f"{HOST} does not come back"
        time.sleep(1)
    assert state(lab) == wanted
    order = "systemctl show --property=ActiveEnterTimestampMonotonic --value"
    loaded, listening = lab.out(HOST, f"{order} nftables.service; {order} ssh.service").split()
    assert int(loaded) < int(listening)
    assert play(lab).changed == {}
