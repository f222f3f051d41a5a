# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings systemd units to their declared state: reads all, decides, acts, looks again."""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils import unit_state
from ansible_collections.groundplane.onprem.plugins.module_utils.unit_state import (
    Record,
    Snapshot,
    UnitError,
    UnitStatus,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

UNIT_OPTIONS: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "enabled": {"type": "bool"},
    "masked": {"type": "bool"},
    "state": {"type": "str", "choices": ["started", "stopped"]},
    "restart_on": {"type": "list", "elements": "path", "default": []},
    "reload_on": {"type": "list", "elements": "path", "default": []},
    "gated": {"type": "bool", "default": False},
    "validate": {"type": "str"},
    "timeout": {"type": "int", "default": 90},
}
"""The options of one unit, as an argument specification."""
VALIDATE_SECONDS = 60
SETTLE_SECONDS = 0.5
FILE_VERBS = ("unmask", "enable", "disable", "mask")
RUN_VERBS = ("stop", "start", "restart", "reload")


def plan(unit: dict[str, Any], status: UnitStatus, known: Record, stale: unit_state.Staleness) -> list[str]:
    """Say which verbs bring one unit to its declared state, in their order. A gated restart is left to the caller.

    Raises:
        UnitError: the declaration cannot be met, such as starting a masked unit.
    """
    if unit["masked"] and (unit["enabled"] or unit["state"] == "started"):
        raise UnitError(f"{status.name}: a masked unit can neither be enabled nor started")
    if status.masked and unit["masked"] is None and unit["state"] == "started":
        raise UnitError(f"{status.name}: is masked, and `masked: false` is not declared")
    return [*plan_file(unit, status), *plan_run(unit, status, known, stale)]


def plan_file(unit: dict[str, Any], status: UnitStatus) -> list[str]:
    """Say which verbs change the links to a unit's file."""
    verbs = []
    if status.masked and unit["masked"] is False:
        verbs.append("unmask")
    if unit["enabled"] is True and not (status.enabled and not status.masked):
        verbs.append("enable")
    elif unit["enabled"] is False and status.file_state in ("enabled", "enabled-runtime"):
        verbs.append("disable")
    if unit["masked"] and not status.masked:
        verbs.append("mask")
    return verbs


def plan_run(unit: dict[str, Any], status: UnitStatus, known: Record, stale: unit_state.Staleness) -> list[str]:
    """Say which verb changes whether, and with what, a unit runs."""
    if unit["state"] == "stopped":
        return [] if status.active in ("inactive", "failed") else ["stop"]
    if status.running:
        return [stale] if stale else []
    if unit["state"] != "started":
        return []
    if status.active == "activating" and stale:
        return ["restart"]  # to start it would only wait for the start that is under way with the old files
    # Nothing is known of a one-shot that systemd forgot, unless the record says that it ran since boot.
    ran = status.ran and bool(status.started or known.invocation)
    return [] if ran and not stale else ["start"]


def touched_by(paths: list[str], changed: list[str]) -> bool:
    """Say whether one of `changed` is one of `paths` or below one of them."""
    return any(item == path or item.startswith(f"{path.rstrip('/')}/") for path in paths for item in changed)


def names_of(units: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the declared units.

    Raises:
        UnitError: one is no unit's name, or declared twice.
    """
    names = [unit_state.check_name(unit["name"]) for unit in units]
    if len(set(names)) != len(names):
        raise UnitError("a unit is declared twice")
    return names


class Units:
    """One run over the declared units.

    Args:
        units: as `UNIT_OPTIONS` gives them, in the order in which they are acted on.
        changed_paths: what is to change but is not on disk yet; for check mode.
        settle: seconds after which a unit that was acted on must still be up.
        check: only look and predict.
        diff: say how the state of each unit changes.
    """

    def __init__(
        self,
        units: Sequence[dict[str, Any]],
        *,
        changed_paths: Sequence[str] = (),
        settle: float = SETTLE_SECONDS,
        check: bool = False,
        diff: bool = False,
    ) -> None:
        """Take the declaration; nothing is read yet."""
        self.units = list(units)
        self.names = names_of(units)
        self.changed_paths = list(changed_paths)
        self.settle = settle
        self.check = check
        self.diff = diff
        self.result: dict[str, Any] = {
            "changed": False,
            "daemon_reloaded": False,
            "restart_required": [],
            **{key: [] for key in ("started", "stopped", "restarted", "reloaded")},
        }
        self.seen: dict[str, dict[str, Snapshot]] = {}
        self.stale: dict[str, unit_state.Staleness] = {}
        self.known: dict[str, Record] = {}

    def run(self) -> dict[str, Any]:
        """Read, decide, act, look again.

        Raises:
            UnitError: a unit could not be brought to its state.
        """
        # Files first, states second: a restart in between then counts as one that has read them.
        for unit in self.units:
            self.seen[unit["name"]] = unit_state.snapshots([*unit["restart_on"], *unit["reload_on"]])
        before = unit_state.read_units(self.names)
        status = self._load(before)
        verbs = {unit["name"]: self._decide(unit, status[unit["name"]]) for unit in self.units}
        self.result["changed"] = self.result["daemon_reloaded"] or any(verbs.values())
        if self.diff:
            self.result["diff"] = self._differences(before, verbs)
        if not self.check:
            status = self._act(verbs, status)
        for unit in self.units:
            for verb, key in zip(RUN_VERBS, ("stopped", "started", "restarted", "reloaded"), strict=True):
                if verb in verbs[unit["name"]]:
                    self.result[key].append(unit["name"])
        self.result["units"] = {name: unit_state.as_dict(item) for name, item in status.items()}
        return self.result

    def _load(self, status: dict[str, UnitStatus]) -> dict[str, UnitStatus]:
        """Let systemd read its unit files when it must; prove that the units exist."""
        self.result["daemon_reloaded"] = any(item.daemon_reload for item in status.values())
        if self.check:
            return status
        # Systemd does not look again by itself for a file that it did not find or could not use.
        if self.result["daemon_reloaded"] or any(self._unusable(unit, status[unit["name"]]) for unit in self.units):
            unit_state.daemon_reload()
            status = unit_state.read_units(self.names)
        for unit in self.units:
            item = status[unit["name"]]
            if self._unusable(unit, item):
                raise UnitError(
                    f"{item.name}: its unit file cannot be used ({item.load}). {unit_state.journal(item.name)}"
                    if item.found
                    else f"{item.name}: there is no such unit on this host"
                )
        return status

    @staticmethod
    def _unusable(unit: dict[str, Any], status: UnitStatus) -> bool:
        """Whether a unit is to be there, and is not."""
        return status.load not in ("loaded", "masked") and (bool(unit["enabled"]) or unit["state"] == "started")

    def _decide(self, unit: dict[str, Any], status: UnitStatus) -> list[str]:
        name = unit["name"]
        self.known[name] = unit_state.read_record(name)
        stale = unit_state.is_stale(status, self.known[name], unit["restart_on"], unit["reload_on"], self.seen[name])
        if self.check and stale != "restart":
            if touched_by(unit["restart_on"], self.changed_paths):
                stale = "restart"
            elif touched_by(unit["reload_on"], self.changed_paths):
                stale = "reload"
        if stale == "reload" and status.running and not status.can_reload:
            raise UnitError(f"{name}: has no reload; its paths belong into restart_on")
        self.stale[name] = stale
        verbs = plan(unit, status, self.known[name], stale)
        if unit["gated"] and "restart" in verbs and status.running:
            verbs.remove("restart")
            self.result["restart_required"].append(name)
        return verbs

    def _act(self, verbs: dict[str, list[str]], status: dict[str, UnitStatus]) -> dict[str, UnitStatus]:
        for verb in FILE_VERBS:
            names = [name for name in self.names if verb in verbs[name]]
            if names:
                done = unit_state.systemctl(verb, "--", *names)
                if done.returncode != 0:
                    raise UnitError(f"{', '.join(names)}: {verb} failed: {done.stderr.strip()}")
        acted = False
        for unit in self.units:
            acted |= self._act_on(unit, verbs[unit["name"]], status[unit["name"]])
        if not (acted or any(verbs.values())):
            self._record(status, verbs)
            return status
        up = [unit["name"] for unit in self.units if self._must_be_up(unit, verbs[unit["name"]], status[unit["name"]])]
        if up:
            timeout = max(unit["timeout"] for unit in self.units if unit["name"] in up)
            unit_state.wait_until_up(up, timeout, self.settle)
        status = unit_state.read_units(self.names)
        self._record(status, verbs)
        return status

    @staticmethod
    def _must_be_up(unit: dict[str, Any], verbs: list[str], status: UnitStatus) -> bool:
        if {"start", "restart", "reload"} & set(verbs):
            return True
        return unit["state"] == "started" and status.active == "activating"

    def _act_on(self, unit: dict[str, Any], verbs: list[str], status: UnitStatus) -> bool:
        """Stop, start, restart or reload one unit; say whether anything is to be waited for."""
        for verb in RUN_VERBS:
            if verb not in verbs:
                continue
            if verb != "stop" and unit["validate"]:
                validate(unit["name"], unit["validate"])
            unit_state.act(verb, unit["name"], unit["timeout"])
        return bool(set(RUN_VERBS) & set(verbs)) or self._must_be_up(unit, verbs, status)

    def _record(self, status: dict[str, UnitStatus], verbs: dict[str, list[str]]) -> None:
        """Remember for each running unit which files it was given."""
        for unit in self.units:
            name = unit["name"]
            item = status[name]
            ran = item.ran and (bool(verbs[name]) or bool(self.known[name].invocation))
            if not (item.running or ran):
                continue
            seen = self.seen[name]
            if name in self.result["restart_required"]:
                # What it runs with is unknown or older: keep what is known, and the lists for the gate.
                seen = {}
            unit_state.record(item, seen, unit["restart_on"], unit["reload_on"])

    def _differences(self, before: dict[str, UnitStatus], verbs: dict[str, list[str]]) -> list[dict[str, Any]]:
        """Make Ansible's list of differences: what each verb changes."""
        shown = []
        for name in self.names:
            old: dict[str, Any] = {}
            new: dict[str, Any] = {}
            for verb in verbs[name]:
                for key, was, becomes in DIFFERENCES[verb]:
                    old[key] = was or describe(before[name])
                    new[key] = becomes
            if before[name].daemon_reload:
                old["unit_file"], new["unit_file"] = "older than on disk", "as on disk"
            if new:
                shown.append({"before_header": name, "after_header": name, "before": old, "after": new})
        return shown


# For each verb: what it is about, how it was (empty: as systemd said), how it becomes.
DIFFERENCES = {
    "unmask": [("masked", "true", "false")],
    "mask": [("masked", "false", "true")],
    "enable": [("enabled", "false", "true")],
    "disable": [("enabled", "true", "false")],
    "stop": [("state", "", "inactive")],
    "start": [("state", "", "active")],
    "restart": [("configuration", "older than on disk", "as on disk (restarted)")],
    "reload": [("configuration", "older than on disk", "as on disk (reloaded)")],
}


def describe(status: UnitStatus) -> str:
    """Give the state of a unit in one word."""
    return status.active if status.found else "not installed"


def validate(name: str, command: str) -> None:
    """Prove a unit's configuration by a command of its own.

    Raises:
        UnitError: it failed or could not be run.
    """
    try:
        done = subprocess.run(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd="/",
            timeout=VALIDATE_SECONDS,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise UnitError(f"{name}: its configuration cannot be validated: {error}") from error
    if done.returncode != 0:
        text = done.stdout.strip()[-4000:]
        raise UnitError(f"{name}: its configuration is not valid, {command!r} returned {done.returncode}: {text}")
