# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a unit is stale, and what is done about it. For a real systemd see tests/integration/test_units.py."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.unit_converge import plan, touched_by
from ansible_collections.groundplane.onprem.plugins.module_utils.unit_state import (
    Record,
    Snapshot,
    UnitError,
    UnitStatus,
    check_name,
    is_stale,
    parse_show,
    read_record,
    record,
    snapshot,
)
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from pathlib import Path

RUNNING = UnitStatus("x.service", "loaded", "active", "running", "success", "enabled", False, "i1", 100.0, 0.0, True)
DEFAULTS = {"enabled": None, "masked": None, "state": None, "gated": False}


def unit(**declared: Any) -> dict[str, Any]:
    return {"name": "x.service", **DEFAULTS, **declared}


# -- reading -----------------------------------------------------------------------------------------------------------

SHOW = """\
Type=notify
Result=success
ReloadResult=success
ExecMainStartTimestamp=Tue 2026-11-24 07:10:01.500000 UTC
Id=a.service
LoadState=loaded
ActiveState=active
SubState=running
StateChangeTimestamp=Tue 2026-11-24 07:12:00.250000 UTC
InactiveExitTimestamp=Tue 2026-11-24 07:10:00.000000 UTC
ActiveEnterTimestamp=Tue 2026-11-24 07:10:02.000000 UTC
UnitFileState=enabled
CanReload=yes
NeedDaemonReload=no
InvocationID=abc

Id=b.timer
LoadState=not-found
ActiveState=inactive
SubState=dead
NeedDaemonReload=no
"""


def test_the_answer_of_systemd_is_read() -> None:
    read = parse_show(["a.service", "b.timer"], SHOW)
    start = 1795504201.5
    assert read["a.service"] == UnitStatus(
        "a.service", "loaded", "active", "running", "success", "enabled", False, "abc", start, start + 118.75, True
    )
    assert read["b.timer"] == UnitStatus("b.timer")
    assert not read["b.timer"].found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("StateChangeTimestamp=Tue 2026-11-24 07:12:00.250000", "StateChangeTimestamp=Tue 2026-11-24 07:10:02.000000"),
        ("ReloadResult=success", "ReloadResult=exit-code"),
        ("ActiveState=active", "ActiveState=reloading"),
    ],
)
def test_no_reload_is_one_that_did_not_happen_failed_or_is_not_over(old: str, new: str) -> None:
    assert parse_show(["a.service", "b.timer"], SHOW.replace(old, new))["a.service"].reloaded == 0.0


def test_a_missing_answer_is_an_error() -> None:
    with pytest.raises(UnitError, match="answered for 2 units instead of 1"):
        parse_show(["a.service"], SHOW)


@pytest.mark.parametrize("name", ["haproxy", "a.conf", "../a.service", "a b.service", "--root.service.x", ""])
def test_names_need_their_type(name: str) -> None:
    with pytest.raises(UnitError, match="is not a unit's full name"):
        check_name(name)


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_snapshot_tells_what_a_process_would_read(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/a").write_text("1")
    (tmp_path / "d/e/b").write_text("2")
    (tmp_path / "d/link").symlink_to("../outside")
    (tmp_path / "outside").write_text("3")

    def look() -> str:
        return snapshot(str(tmp_path / "d")).fingerprint

    seen = [look()]
    for path in ("d/a", "d/e/b", "outside"):
        (tmp_path / path).chmod(0o600)
        assert look() == seen[-1]
        (tmp_path / path).write_text("changed")
        assert look() not in seen
        seen.append(look())
    (tmp_path / "d/.groundplane-0123456789ab-a").write_text("staged")
    assert look() == seen[-1]
    (tmp_path / "d/e/b").rename(tmp_path / "d/e/c")
    assert look() not in seen
    seen.append(look())
    (tmp_path / "outside").unlink()
    assert look() not in seen


def test_the_time_of_a_snapshot_cannot_be_set_back_and_sees_removal(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    (directory / "a").write_text("1")
    (directory / "b").write_text("1")
    time.sleep(0.02)
    between = time.time()
    time.sleep(0.02)
    assert snapshot(str(directory)).newest < between
    os.utime(directory / "a", (1, 1))
    assert snapshot(str(directory)).newest > between
    time.sleep(0.02)
    between = time.time()
    time.sleep(0.02)
    (directory / "b").unlink()
    assert snapshot(str(directory)).newest > between


def test_a_missing_path_is_a_state_too(tmp_path: Path) -> None:
    missing = snapshot(str(tmp_path / "a"))
    (tmp_path / "a").touch()
    assert missing.newest == 0
    assert snapshot(str(tmp_path / "a")).fingerprint != missing.fingerprint


# -- staleness ---------------------------------------------------------------------------------------------------------


def seen(**items: tuple[str, float]) -> dict[str, Snapshot]:
    return {path: Snapshot(*item) for path, item in items.items()}


@pytest.mark.parametrize(
    ("status", "known", "now", "expected"),
    [
        # Without a record the times decide.
        (RUNNING, Record(), {"r": ("1", 50.0), "l": ("1", 50.0)}, ""),
        (RUNNING, Record(), {"r": ("1", 150.0), "l": ("1", 50.0)}, "restart"),
        (RUNNING, Record(), {"r": ("1", 50.0), "l": ("1", 150.0)}, "reload"),
        (RUNNING, Record(), {"r": ("1", 150.0), "l": ("1", 150.0)}, "restart"),
        # Changed within the clock's grain of the start: it may have missed it.
        (RUNNING, Record(), {"r": ("1", 99.995), "l": ("1", 50.0)}, "restart"),
        # The record says that nothing changed, although the inode did.
        (RUNNING, Record("i1", 0.0, {"r": "1", "l": "1"}), {"r": ("1", 150.0), "l": ("1", 150.0)}, ""),
        # It says what changed, although the times look old.
        (RUNNING, Record("i1", 0.0, {"r": "0", "l": "1"}), {"r": ("1", 50.0), "l": ("1", 50.0)}, "restart"),
        (RUNNING, Record("i1", 0.0, {"r": "1", "l": "0"}), {"r": ("1", 50.0), "l": ("1", 50.0)}, "reload"),
        # Restarted by somebody else after the change, or before it.
        (replace(RUNNING, invocation="i2"), Record("i1", 0.0, {"r": "0"}), {"r": ("1", 50.0), "l": ("1", 50.0)}, ""),
        (
            replace(RUNNING, invocation="i2"),
            Record("i1", 0.0, {"r": "1"}),
            {"r": ("2", 150.0), "l": ("1", 0)},
            "restart",
        ),
        # Reloaded by somebody else after the change, or before it; a reload does not do for a restart.
        (
            replace(RUNNING, reloaded=200.0),
            Record("i1", 0.0, {"r": "1", "l": "0"}),
            {"r": ("1", 1), "l": ("1", 150.0)},
            "",
        ),
        (
            replace(RUNNING, reloaded=200.0),
            Record("i1", 0.0, {"r": "1", "l": "0"}),
            {"r": ("1", 1), "l": ("1", 250.0)},
            "reload",
        ),
        (
            replace(RUNNING, reloaded=200.0),
            Record("i1", 0.0, {"r": "0"}),
            {"r": ("1", 150.0), "l": ("1", 1)},
            "restart",
        ),
        # A path that was removed has no time; no reload has happened since the record.
        (
            replace(RUNNING, reloaded=200.0),
            Record("i1", 200.0, {"r": "1", "l": "1"}),
            {"r": ("1", 1), "l": ("gone", 0)},
            "reload",
        ),
        # A path that was not declared before.
        (RUNNING, Record("i1", 0.0, {"l": "1"}), {"r": ("1", 50.0), "l": ("1", 50.0)}, ""),
    ],
)
def test_staleness(status: UnitStatus, known: Record, now: dict[str, tuple[str, float]], expected: str) -> None:
    assert is_stale(status, known, ["r"], ["l"], seen(**now)) == expected


def test_a_one_shot_that_systemd_forgot_is_known_by_its_record() -> None:
    forgotten = UnitStatus("x.service", "loaded", "inactive", "dead", "success", transient_run=True)
    known = Record("i1", 0.0, {"r": "1"})
    assert is_stale(forgotten, known, ["r"], [], seen(r=("1", 50.0))) == ""
    assert is_stale(forgotten, known, ["r"], [], seen(r=("2", 50.0))) == "restart"
    assert plan(unit(state="started"), forgotten, known, "") == []
    assert plan(unit(state="started"), forgotten, known, "restart") == ["start"]
    assert plan(unit(state="started"), forgotten, Record(), "") == ["start"]
    assert plan(unit(state="started"), replace(forgotten, result="exit-code"), known, "") == ["start"]


@given(
    invocations=st.lists(st.sampled_from(["i1", "i2"]), min_size=1, max_size=5),
    fingerprints=st.lists(st.sampled_from("abc"), min_size=5, max_size=5),
)
def test_after_a_record_the_same_files_are_never_stale_and_others_always(
    tmp_path_factory: pytest.TempPathFactory, invocations: list[str], fingerprints: list[str]
) -> None:
    directory = str(tmp_path_factory.mktemp("records") / "units")
    for invocation, fingerprint in zip(invocations, fingerprints, strict=False):
        status = replace(RUNNING, invocation=invocation)
        record(status, seen(r=(fingerprint, 900.0)), ["r"], [], directory)
        known = read_record("x.service", directory)
        assert is_stale(status, known, ["r"], [], seen(r=(fingerprint, 900.0))) == ""
        assert is_stale(status, known, ["r"], [], seen(r=("other", 1.0))) == "restart"
        assert not record(status, seen(r=(fingerprint, 900.0)), ["r"], [], directory)


def test_records_are_private_and_a_broken_one_is_none(tmp_path: Path) -> None:
    directory = str(tmp_path / "groundplane/units")
    record(RUNNING, seen(r=("1", 1.0)), ["r"], ["l"], directory)
    path = tmp_path / "groundplane/units/x.service.json"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert read_record("x.service", directory) == Record("i1", 0.0, {"r": "1"}, ["r"], ["l"])
    for text in ("", "[]", '{"of": "another version"}'):
        path.write_text(text)
        assert read_record("x.service", directory) == Record()


def test_a_path_that_is_not_declared_any_more_is_forgotten(tmp_path: Path) -> None:
    record(RUNNING, seen(r=("1", 1.0), l=("1", 1.0)), ["r"], ["l"], str(tmp_path))
    # As for a gated unit that must be restarted: nothing is known anew, the lists are kept.
    record(RUNNING, {}, ["r", "s"], [], str(tmp_path))
    assert read_record("x.service", str(tmp_path)) == Record("i1", 0.0, {"r": "1"}, ["r", "s"], [])


# -- planning ----------------------------------------------------------------------------------------------------------

STOPPED = replace(RUNNING, active="inactive", sub="dead")
MISSING = UnitStatus("x.service")
MASKED = replace(STOPPED, load="masked", file_state="masked")


@pytest.mark.parametrize(
    ("declared", "status", "stale", "verbs"),
    [
        ({"state": "started", "enabled": True}, RUNNING, "", []),
        ({"state": "started", "enabled": True}, RUNNING, "restart", ["restart"]),
        ({"state": "started", "enabled": True}, RUNNING, "reload", ["reload"]),
        ({"state": "started", "enabled": True}, STOPPED, "restart", ["start"]),
        ({"state": "started"}, replace(RUNNING, active="reloading"), "", []),
        ({"state": "started"}, replace(RUNNING, active="failed"), "", ["start"]),
        ({"state": "started"}, replace(RUNNING, active="activating"), "", ["start"]),
        ({"state": "started"}, replace(RUNNING, active="activating"), "reload", ["restart"]),
        ({"state": "started", "enabled": True}, MISSING, "", ["enable", "start"]),
        ({"state": "started", "enabled": True}, replace(RUNNING, file_state="disabled"), "", ["enable"]),
        ({"enabled": True}, replace(RUNNING, file_state="static"), "", []),
        ({"enabled": False}, RUNNING, "", ["disable"]),
        ({"enabled": False}, replace(RUNNING, file_state="static"), "", []),
        ({}, RUNNING, "restart", ["restart"]),
        ({}, STOPPED, "restart", []),
        ({"state": "stopped"}, RUNNING, "restart", ["stop"]),
        ({"state": "stopped"}, replace(RUNNING, active="activating"), "", ["stop"]),
        ({"state": "stopped"}, STOPPED, "", []),
        ({"state": "stopped", "enabled": False}, MISSING, "", []),
        ({"masked": True, "state": "stopped", "enabled": False}, RUNNING, "", ["disable", "mask", "stop"]),
        ({"masked": True}, MASKED, "", []),
        ({"masked": False, "enabled": True, "state": "started"}, MASKED, "", ["unmask", "enable", "start"]),
    ],
)
def test_plan(declared: dict[str, Any], status: UnitStatus, stale: Any, verbs: list[str]) -> None:
    assert plan(unit(**declared), status, Record(), stale) == verbs


@pytest.mark.parametrize(
    ("declared", "status", "message"),
    [
        ({"masked": True, "state": "started"}, STOPPED, "a masked unit can neither be enabled nor started"),
        ({"masked": True, "enabled": True}, STOPPED, "a masked unit can neither be enabled nor started"),
        ({"state": "started"}, MASKED, "is masked, and `masked: false` is not declared"),
    ],
)
def test_a_plan_that_cannot_be(declared: dict[str, Any], status: UnitStatus, message: str) -> None:
    with pytest.raises(UnitError, match=message):
        plan(unit(**declared), status, Record(), "")


def test_changed_paths_belong_to_the_directories_above_them() -> None:
    assert touched_by(["/etc/a"], ["/etc/a/b/c"])
    assert touched_by(["/etc/a/"], ["/etc/a/b"])
    assert touched_by(["/etc/a"], ["/etc/a"])
    assert not touched_by(["/etc/a"], ["/etc/ab", "/etc"])
