# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`groundplane.onprem.units` on a real systemd: throw-away units on one host of the lab."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab

HOST = "lb2"
NAME = f"groundplane-test-{os.getpid()}"  # of its own, for two runs against one lab
UNIT = f"{NAME}.service"
TIMER = f"{NAME}.timer"
FILES = f"/run/{NAME}"
SERVICE = f"""\
[Service]
Type=notify
NotifyAccess=all
ExecStart=/bin/sh -c 'cat {FILES}/start >> {FILES}/log; systemd-notify --ready; exec sleep infinity'
ExecReload=/bin/sh -c 'test ! -e {FILES}/no-reload && cat {FILES}/reload >> {FILES}/log'
[Install]
WantedBy=multi-user.target
"""


class Host:
    """One host with the throw-away unit."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def sh(self, command: str) -> str:
        return self.lab.out(HOST, command)

    def write(self, path: str, text: str) -> None:
        self.lab.run(HOST, f"mkdir -p $(dirname {path}) && cat > {path}", stdin=text)

    def log(self) -> str:
        """What the service has read, since the last question."""
        return self.sh(f"cat {FILES}/log 2>/dev/null; : > {FILES}/log").replace("\n", " ").strip()

    def ask(self, *units: dict[str, Any], check: bool = False, **options: Any) -> dict[str, Any]:
        """Run the module."""
        arguments = {"units": list(units), **options}
        return self.lab.module(HOST, "groundplane.onprem.units", arguments, *(["--check"] if check else []))[HOST]

    def done(self, *units: dict[str, Any], **options: Any) -> list[str]:
        """Run the module, and give what it did in words; the second run must do nothing."""
        result = self.ask(*units, **options)
        assert not result.get("failed"), result["msg"]
        words = [key for key in ("started", "stopped", "restarted", "reloaded") if result[key]]
        words += ["daemon_reloaded"] if result["daemon_reloaded"] else []
        assert result["changed"] == bool(words)
        return words


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    host = Host(lab)
    host.write(f"{FILES}/start", "s1\n")
    host.write(f"{FILES}/reload", "r1\n")
    host.write(f"/run/systemd/system/{UNIT}", SERVICE)
    yield host
    lab.run(
        HOST,
        f"for unit in {TIMER} {UNIT}; do systemctl stop $unit; systemctl disable $unit; systemctl unmask $unit; done; "
        f"rm -rf {FILES} /run/systemd/system/{NAME}.* /run/groundplane/units/{NAME}.*; "
        f"systemctl daemon-reload; systemctl reset-failed '{NAME}.*'; true",
        timeout=180,
    )


def service(**declared: Any) -> dict[str, Any]:
    return {
        "name": UNIT,
        "enabled": True,
        "state": "started",
        "restart_on": [f"{FILES}/start", f"/run/systemd/system/{UNIT}", f"/run/systemd/system/{UNIT}.d"],
        "reload_on": [f"{FILES}/reload"],
        **declared,
    }


def test_a_unit_follows_its_files(host: Host) -> None:
    predicted = host.ask(service(), check=True)
    assert (predicted["changed"], predicted["started"]) == (True, [UNIT])
    assert host.sh(f"systemctl is-active {UNIT} || true") == "inactive"
    assert host.done(service()) == ["started"]
    assert host.sh(f"systemctl is-enabled {UNIT}") == "enabled"
    assert host.done(service()) == []
    assert host.log() == "s1"

    # Rights are no content.
    host.sh(f"chmod 600 {FILES}/start {FILES}/reload; touch {FILES}/start")
    assert host.done(service()) == []

    host.write(f"{FILES}/reload", "r2\n")
    assert host.ask(service(), check=True)["reloaded"] == [UNIT]
    assert host.done(service()) == ["reloaded"]
    assert host.done(service()) == []
    assert host.log() == "r2"

    # A restart makes the reload unneeded.
    host.write(f"{FILES}/reload", "r3\n")
    host.write(f"{FILES}/start", "s2\n")
    assert host.done(service()) == ["restarted"]
    assert host.done(service()) == []
    assert host.log() == "s2"

    host.write(f"/run/systemd/system/{UNIT}.d/nice.conf", "[Service]\nNice=5\n")
    assert host.done(service()) == ["restarted", "daemon_reloaded"]
    assert host.done(service()) == []
    assert host.sh(f"ps -o ni= -p $(systemctl show -P MainPID {UNIT})") == "5"

    host.sh(f"rm /run/systemd/system/{UNIT}.d/nice.conf")
    assert host.done(service()) == ["restarted", "daemon_reloaded"]
    assert host.done(service(state="stopped", enabled=False)) == ["stopped"]
    assert host.done(service(state="stopped", enabled=False)) == []


def test_what_somebody_else_did_is_not_done_again(host: Host) -> None:
    assert host.done(service()) == ["started"]
    host.write(f"{FILES}/start", "s2\n")
    host.sh(f"systemctl restart {UNIT}")
    assert host.done(service()) == []
    host.write(f"{FILES}/reload", "r2\n")
    host.sh(f"systemctl reload {UNIT}")
    assert host.done(service()) == []
    # Crashed and started again by systemd, with the new file.
    host.write(f"/run/systemd/system/{UNIT}", SERVICE + "[Service]\nRestart=always\nRestartSec=100ms\n")
    assert host.done(service()) == ["restarted", "daemon_reloaded"]
    host.write(f"{FILES}/start", "s3\n")
    host.sh(f"kill -9 $(systemctl show -P MainPID {UNIT}); sleep 1")
    assert host.done(service()) == []
    # But a restart before the change, or a reload where a restart is needed, is not enough.
    host.sh(f"systemctl restart {UNIT}; sleep 0.1")
    host.write(f"{FILES}/start", "s4\n")
    host.sh(f"sleep 0.1; systemctl reload {UNIT}")
    assert host.done(service()) == ["restarted"]


def test_an_interrupted_run_is_finished_by_the_next(host: Host) -> None:
    assert host.done(service()) == ["started"]
    # Killed between the file and the restart, and the records lost with it.
    host.write(f"{FILES}/start", "s2\n")
    host.sh(f"rm /run/groundplane/units/{UNIT}.json")
    assert host.done(service()) == ["restarted"]
    # Killed between the restart and the record.
    host.write(f"{FILES}/start", "s3\n")
    host.sh(f"systemctl restart {UNIT}; rm /run/groundplane/units/{UNIT}.json")
    assert host.done(service()) == []


def test_a_gated_unit_is_only_reported_until_the_gate_restarts_it(host: Host) -> None:
    gated = service(gated=True)
    assert host.done(gated) == ["started"]
    host.write(f"{FILES}/start", "s2\n")
    process = host.sh(f"systemctl show -P MainPID {UNIT}")
    for check in (False, True, False):
        result = host.ask(gated, check=check)
        assert (result["changed"], result["restart_required"]) == (False, [UNIT])
    assert host.sh(f"systemctl show -P MainPID {UNIT}") == process
    # What the gate calls.
    library = (ROOT / "plugins/module_utils/unit_state.py").read_text()
    host.write(f"{FILES}/unit_state.py", library)
    host.sh(f"cd {FILES} && python3 -B -c 'import unit_state; print(unit_state.restart(\"{UNIT}\").active)'")
    result = host.ask(gated)
    assert (result["changed"], result["restart_required"]) == (False, [])
    assert host.log() == "s1 s2"
    # It is not left down for the sake of the gate.
    host.sh(f"systemctl stop {UNIT}")
    assert host.done(gated) == ["started"]


def test_check_mode_predicts_from_what_an_earlier_task_would_change(host: Host) -> None:
    host.done(service())
    for path, key in ((f"{FILES}/start", "restarted"), (f"{FILES}/reload", "reloaded")):
        assert host.ask(service(), changed_paths=[path], check=True)[key] == [UNIT]
        assert host.done(service(), changed_paths=[path]) == []
    result = host.ask(service(gated=True), changed_paths=[f"{FILES}/start"], check=True)
    assert result["restart_required"] == [UNIT]


def test_a_unit_that_is_not_installed_yet(host: Host) -> None:
    missing = {"name": f"{NAME}-missing.service", "enabled": True, "state": "started"}
    predicted = host.ask(missing, check=True)
    assert (predicted["changed"], predicted["started"]) == (True, [missing["name"]])
    result = host.ask(missing)
    assert result["failed"]
    assert result["msg"] == f"{NAME}-missing.service: there is no such unit on this host"
    assert host.done(missing | {"enabled": False, "state": "stopped"}) == []


def test_a_start_that_fails_at_once_or_a_moment_later_is_told_with_its_log(host: Host) -> None:
    for command in ("echo no good; exit 3", "systemd-notify --ready; sleep 0.2; echo no good; exit 3"):
        host.write(
            f"/run/systemd/system/{UNIT}",
            f"[Service]\nType=notify\nNotifyAccess=all\nExecStart=/bin/sh -c '{command}'\n",
        )
        result = host.ask({"name": UNIT, "state": "started"})
        assert result["failed"]
        assert result["msg"].startswith(f"{UNIT}: ")
        assert "no good" in result["msg"]
        assert len(result["msg"].splitlines()) < 24


def test_a_start_that_hangs_ends_at_its_timeout(host: Host) -> None:
    host.write(f"/run/systemd/system/{UNIT}", "[Service]\nType=notify\nExecStart=/bin/sleep infinity\n")
    result = host.ask({"name": UNIT, "state": "started", "timeout": 2})
    assert result["msg"].startswith(f"{UNIT}: start did not end within 2 s")
    # The next run does not wait for that start with the old files.
    host.write(f"/run/systemd/system/{UNIT}", SERVICE)
    assert host.done(service(timeout=20)) == ["restarted", "daemon_reloaded"]


def test_a_reload_that_fails_is_tried_again(host: Host) -> None:
    host.done(service())
    host.write(f"{FILES}/reload", "r2\n")
    host.write(f"{FILES}/no-reload", "")
    for _attempt in range(2):
        result = host.ask(service())
        assert result["failed"]
        assert f"{UNIT}: reload failed" in result["msg"]
    host.sh(f"rm {FILES}/no-reload")
    assert host.done(service()) == ["reloaded"]


def test_what_is_not_valid_is_not_loaded(host: Host) -> None:
    checked = service(validate=f"grep -c ^s {FILES}/start")
    assert host.done(checked) == ["started"]
    host.write(f"{FILES}/start", "nonsense\n")
    result = host.ask(checked)
    assert result["failed"]
    assert "its configuration is not valid" in result["msg"]
    assert host.log() == "s1"
    host.write(f"{FILES}/start", "s2\n")
    assert host.done(checked) == ["restarted"]


def test_one_shots_and_timers(host: Host) -> None:
    host.write(
        f"/run/systemd/system/{UNIT}",
        f"[Service]\nType=oneshot\nExecStart=/bin/sh -c 'cat {FILES}/start >> {FILES}/log'\n",
    )
    host.write(
        f"/run/systemd/system/{TIMER}",
        "[Timer]\nOnCalendar=2099-01-01\n[Install]\nWantedBy=timers.target\n",
    )
    units: list[dict[str, Any]] = [
        {"name": UNIT, "state": "started", "restart_on": [f"{FILES}/start"]},
        {"name": TIMER, "state": "started", "enabled": True},
    ]
    assert host.done(*units) == ["started"]
    assert host.done(*units) == []
    host.write(f"{FILES}/start", "s2\n")
    assert host.done(*units) == ["started"]
    assert host.done(*units) == []
    assert host.log() == "s1 s2"


def test_masking(host: Host) -> None:
    host.done(service())
    masked = {"name": TIMER, "masked": True}
    assert host.ask(masked)["changed"]
    assert not host.ask(masked)["changed"]
    assert (
        "is masked, and `masked: false` is not declared"
        in host.ask({"name": masked["name"], "state": "started"})["msg"]
    )
    assert host.ask(masked | {"masked": False})["changed"]
    assert not host.ask(masked | {"masked": False})["changed"]
