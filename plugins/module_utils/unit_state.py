# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Whole directories are read here for each run; pathlib would make an object of each name:
# ruff: noqa: PTH103, PTH105, PTH115, PTH116, PTH118, PTH120, PTH123, PTH208
"""State of systemd units, and whether what they run with is what is on disk.

A record below `/run` says for each unit which files its running invocation was started or reloaded with. It is only a
shortcut: without one, or when the unit was restarted by somebody else, the time of the files' last change is compared
with the time at which the unit started. So a run that was killed between a file and the restart is finished by the next
one, and a restart by hand is not repeated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Staleness = Literal["", "reload", "restart"]

RECORDS = "/run/groundplane/units"
JOURNAL_LINES = 20
POLL_SECONDS = 0.1
# The kernel stamps files with the time of its last tick (up to 10 ms old), systemd with the exact time.
CLOCK_SLACK_SECONDS = 0.01
_TEMPORARY_PREFIX = ".groundplane-"  # staged by the tree module, gone in a moment
_UNIT_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(service|socket|timer|path|mount|target|slice|swap|automount)\Z")
_ENABLED = frozenset({"enabled", "enabled-runtime", "static", "alias", "indirect", "generated", "transient"})
_PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "UnitFileState",
    "NeedDaemonReload",
    "InvocationID",
    "InactiveExitTimestamp",
    "ActiveEnterTimestamp",
    "StateChangeTimestamp",
    "ExecMainStartTimestamp",
    "ReloadResult",
    "CanReload",
    "Type",
    "RemainAfterExit",
)


class UnitError(Exception):
    """A unit cannot be brought to its state; the text names the unit and the cause."""


@dataclass(frozen=True)
class UnitStatus:
    """What systemd says about a unit. Times are seconds since the epoch, 0 when it never happened.

    Attributes:
        name: as it was asked for, which may be an alias.
        load: loaded, not-found, masked, bad-setting, error.
        active: active, reloading, inactive, failed, activating, deactivating, maintenance.
        sub: the state within, such as running or auto-restart.
        result: success, or how the last run ended.
        file_state: enabled, disabled, static, masked and so on; empty without a unit file.
        daemon_reload: its file on disk is newer than what systemd has loaded.
        invocation: a new value each time that the unit is started.
        started: when the running main process (or the unit, where it has none) was started.
        reloaded: when the last successful reload ended; 0 when there was none since the start.
        can_reload: whether a reload is defined.
        transient_run: a one-shot that is inactive again after each run.
    """

    name: str
    load: str = "not-found"
    active: str = "inactive"
    sub: str = "dead"
    result: str = "success"
    file_state: str = ""
    daemon_reload: bool = False
    invocation: str = ""
    started: float = 0.0
    reloaded: float = 0.0
    can_reload: bool = False
    transient_run: bool = False

    @property
    def found(self) -> bool:
        """Whether there is a unit file, even a masked one."""
        return self.load != "not-found"

    @property
    def masked(self) -> bool:
        """Whether it is masked."""
        return self.load == "masked" or self.file_state in ("masked", "masked-runtime")

    @property
    def running(self) -> bool:
        """Whether it is up (a reload in progress is up)."""
        return self.active in ("active", "reloading", "refreshing")

    @property
    def ran(self) -> bool:
        """Whether it is a one-shot that ended well, or has not run at all."""
        return self.transient_run and self.active == "inactive" and self.result == "success"

    @property
    def enabled(self) -> bool:
        """Whether what it belongs to starts it; units that cannot be enabled count, as in `is-enabled`."""
        return self.file_state in (
            "enabled",
            "enabled-runtime",
            "static",
            "alias",
            "indirect",
            "generated",
            "transient",
        )


@dataclass(frozen=True)
class Snapshot:
    """The files at one path: a digest of them, and the time of the newest change in seconds since the epoch."""

    fingerprint: str
    newest: float


@dataclass
class Record:
    """What a unit's running invocation was given.

    Attributes:
        invocation: the one that `files` speaks of.
        reloaded: its last reload at that time, in seconds since the epoch.
        files: path to fingerprint.
        restart_on: what was last declared, so that the gate knows it too.
        reload_on: likewise.
    """

    invocation: str = ""
    reloaded: float = 0.0
    files: dict[str, str] = field(default_factory=dict)
    restart_on: list[str] = field(default_factory=list)
    reload_on: list[str] = field(default_factory=list)


def check_name(name: str) -> str:
    """Give the name back when it is a unit's full name.

    Raises:
        UnitError: it is not, such as `haproxy` without its type.
    """
    if not _UNIT_NAME.match(name):
        raise UnitError(f"{name}: is not a unit's full name, such as haproxy.service")
    return name


def systemctl(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run systemctl; `timeout` in seconds.

    Raises:
        UnitError: it did not end in time. A job that it queued stays queued.
    """
    try:
        return subprocess.run(
            ["systemctl", "--no-ask-password", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0"},
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise UnitError("there is no systemctl on this host") from error
    except subprocess.TimeoutExpired as error:
        raise UnitError(f"systemctl {' '.join(arguments)} did not end within {timeout:g} s") from error


def read_units(names: Sequence[str]) -> dict[str, UnitStatus]:
    """Ask systemd for the state of all units in one call.

    Raises:
        UnitError: a name is no unit's name, or systemd does not answer.
    """
    if not names:
        return {}
    for name in names:
        check_name(name)
    done = systemctl("show", "--timestamp=us+utc", f"--property={','.join(_PROPERTIES)}", "--", *names)
    if done.returncode != 0:
        raise UnitError(f"systemd does not tell the state of {', '.join(names)}: {done.stderr.strip()}")
    return parse_show(names, done.stdout)


def parse_show(names: Sequence[str], output: str) -> dict[str, UnitStatus]:
    """Read the answer of `systemctl show` (systemctl(1): one block a unit, in the order asked, an empty line between).

    Raises:
        UnitError: it has not one block for each name.
    """
    blocks = [block for block in output.strip().split("\n\n") if block]
    if len(blocks) != len(names):
        raise UnitError(f"systemd answered for {len(blocks)} units instead of {len(names)}")
    return {name: _status(name, block) for name, block in zip(names, blocks, strict=True)}


def _status(name: str, block: str) -> UnitStatus:
    values = dict(line.partition("=")[::2] for line in block.splitlines())
    entered, changed = _time(values, "ActiveEnterTimestamp"), _time(values, "StateChangeTimestamp")
    active = values.get("ActiveState", "inactive")
    # A unit that stays active changes state only when it is reloaded: then the last change is later than the entry.
    reloaded = changed > entered > 0 and active == "active" and values.get("ReloadResult", "success") == "success"
    return UnitStatus(
        name=name,
        load=values.get("LoadState", "not-found"),
        active=active,
        sub=values.get("SubState", ""),
        result=values.get("Result", "success"),
        file_state=values.get("UnitFileState", ""),
        daemon_reload=values.get("NeedDaemonReload") == "yes",
        invocation=values.get("InvocationID", ""),
        # An automatic restart does not leave the unit inactive, but it is a new process that has read its files anew.
        started=max(_time(values, "InactiveExitTimestamp"), _time(values, "ExecMainStartTimestamp")),
        reloaded=changed if reloaded else 0.0,
        can_reload=values.get("CanReload") == "yes",
        transient_run=values.get("Type") == "oneshot" and values.get("RemainAfterExit") != "yes",
    )


def _time(values: Mapping[str, str], key: str) -> float:
    """Read a timestamp in the form of `--timestamp=us+utc`, such as `Tue 2026-11-24 07:10:01.123456 UTC`."""
    text = values.get(key, "")
    try:
        return datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def snapshot(path: str) -> Snapshot:
    """Look at a file or at all files below a directory.

    Owner and mode do not count: they change what can be read at the next start, not what a running process has read.
    The time is the one of the last change of the inode, which copying and package managers cannot set back; for
    directories the one of their last change of names, so that a removed file counts.
    """
    total = hashlib.sha256()
    newest = 0.0
    pending = [path]
    while pending:
        place = pending.pop()
        name = os.path.relpath(place, path)
        try:
            status = os.lstat(place)
            if stat.S_ISLNK(status.st_mode):
                newest = max(newest, status.st_ctime)
                total.update(f"l{name}\0{os.readlink(place)}\0".encode(errors="surrogateescape"))
                status = os.stat(place)
                if stat.S_ISDIR(status.st_mode) and place != path:
                    continue  # its target is part of the digest; what is behind it belongs to somebody else
            if stat.S_ISDIR(status.st_mode):
                newest = max(newest, status.st_mtime)
                children = sorted(item for item in os.listdir(place) if not item.startswith(_TEMPORARY_PREFIX))
                pending.extend(os.path.join(place, item) for item in reversed(children))
                total.update(f"d{name}\0".encode(errors="surrogateescape"))
            elif stat.S_ISREG(status.st_mode):
                newest = max(newest, status.st_ctime)
                with open(place, "rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                total.update(f"f{name}\0{content}\0".encode(errors="surrogateescape"))
        except FileNotFoundError:
            total.update(f"-{name}\0".encode(errors="surrogateescape"))
    return Snapshot(total.hexdigest(), newest)


def snapshots(paths: Iterable[str]) -> dict[str, Snapshot]:
    """Look at each path once."""
    return {path: snapshot(path) for path in dict.fromkeys(paths)}


def is_stale(
    status: UnitStatus,
    known: Record,
    restart_on: Iterable[str],
    reload_on: Iterable[str],
    seen: Mapping[str, Snapshot],
) -> Staleness:
    """Say what a running unit needs to run with what is on disk. A restart wins over a reload.

    Args:
        status: of the unit, read after `seen` was.
        known: its record; an empty one when there is none.
        restart_on: paths that are read at the start only.
        reload_on: paths that a reload reads.
        seen: what is at these paths now.
    """
    # A one-shot that has ended may be forgotten by systemd, and its invocation with it.
    forgotten = status.transient_run and not status.invocation and not status.running
    recorded = known.files if known.invocation and (known.invocation == status.invocation or forgotten) else {}

    def untold(path: str, told: float) -> bool:
        """Whether the files may have changed since the unit was told; `told` in seconds since the epoch."""
        return recorded.get(path) != seen[path].fingerprint and seen[path].newest > told - CLOCK_SLACK_SECONDS

    def altered(path: str) -> bool:
        """Whether the files are not those of the record."""
        return path in recorded and recorded[path] != seen[path].fingerprint

    # Still the recorded invocation, and other files: it cannot have read them, whatever the clocks say.
    if any(altered(path) or untold(path, status.started) for path in restart_on):
        return "restart"
    if status.reloaded <= known.reloaded and any(altered(path) for path in reload_on):
        return "reload"
    if any(untold(path, max(status.started, status.reloaded)) for path in reload_on):
        return "reload"
    return ""


def read_record(name: str, directory: str = RECORDS) -> Record:
    """Read a unit's record; an empty one when there is none or it cannot be understood."""
    try:
        with open(os.path.join(directory, f"{check_name(name)}.json"), encoding="utf-8") as stream:
            return Record(**json.load(stream))
    except (FileNotFoundError, ValueError, TypeError):
        return Record()


def write_record(name: str, known: Record, directory: str = RECORDS) -> None:
    """Write a unit's record; for root only, since digests of files with secrets are in it."""
    os.makedirs(os.path.dirname(directory), mode=0o755, exist_ok=True)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = os.path.join(directory, f"{check_name(name)}.json")
    temporary = f"{path}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as stream:
        json.dump(asdict(known), stream)
    os.replace(temporary, path)


def record(
    status: UnitStatus,
    seen: Mapping[str, Snapshot],
    restart_on: Sequence[str],
    reload_on: Sequence[str],
    directory: str = RECORDS,
) -> bool:
    """Remember that the running invocation of a unit knows what `seen` says. Writes only when that is news.

    Returns:
        Whether it was news.
    """
    old = read_record(status.name, directory)
    invocation = status.invocation or old.invocation
    files = dict(old.files) if old.invocation == invocation else {}
    declared = {*restart_on, *reload_on}
    files = {path: value for path, value in files.items() if path in declared}
    files.update({path: item.fingerprint for path, item in seen.items()})
    new = Record(invocation, status.reloaded, files, list(restart_on), list(reload_on))
    if new == old:
        return False
    write_record(status.name, new, directory)
    return True


def restart(name: str, timeout: float = 90, settle: float = 0.5, directory: str = RECORDS) -> UnitStatus:
    """Restart a unit, wait until it is up, and record which files it was given. For the gate, which brings no lists.

    Args:
        name: of the unit.
        timeout: seconds until it must be up.
        settle: seconds after which it must still be up.
        directory: of the records.

    Raises:
        UnitError: it did not come up; the text has the last lines of its journal.
    """
    known = read_record(name, directory)
    # Looked at before the restart: what changes meanwhile may have been missed, and must count as news later.
    seen = snapshots([*known.restart_on, *known.reload_on])
    if read_units([name])[name].daemon_reload:
        daemon_reload()
    act("restart", name, timeout)
    status = wait_until_up([name], timeout, settle)[name]
    record(status, seen, known.restart_on, known.reload_on, directory)
    return status


def daemon_reload() -> None:
    """Make systemd read its unit files.

    Raises:
        UnitError: it failed.
    """
    done = systemctl("daemon-reload", timeout=90)
    if done.returncode != 0:
        raise UnitError(f"systemd does not reload its unit files: {done.stderr.strip()}")


def act(verb: str, name: str, timeout: float) -> None:
    """Start, stop, restart or reload one unit and wait for the job's end.

    Raises:
        UnitError: the job failed or did not end within `timeout` seconds.
    """
    try:
        done = systemctl(verb, "--", name, timeout=timeout)
    except UnitError as error:
        raise UnitError(f"{name}: {verb} did not end within {timeout:g} s. {journal(name)}") from error
    if done.returncode != 0:
        raise UnitError(f"{name}: {verb} failed: {done.stderr.strip()}. {journal(name)}")


def wait_until_up(names: Sequence[str], timeout: float, settle: float) -> dict[str, UnitStatus]:
    """Wait until all units are up, and look again after `settle` seconds: a bad start often takes a moment to end.

    Raises:
        UnitError: one is not up after `timeout` seconds, has failed, or did not stay up.
    """
    deadline = time.monotonic() + timeout
    calm_at: float | None = None
    before: dict[str, str] = {}
    while True:
        statuses = read_units(names)
        broken = [status for status in statuses.values() if not status.running and not status.ran]
        for status in broken:
            if status.active != "activating" or status.sub == "auto-restart" or time.monotonic() > deadline:
                raise UnitError(_complaint(status))
        invocations = {name: status.invocation for name, status in statuses.items()}
        if broken or invocations != before:
            if before and not broken and calm_at is not None:
                changed = next(name for name in names if before.get(name) != invocations[name])
                raise UnitError(f"{changed}: did not stay up, systemd had to start it again. {journal(changed)}")
            calm_at = None if broken else time.monotonic() + settle
            before = {} if broken else invocations
        if calm_at is not None and time.monotonic() >= calm_at:
            return statuses
        time.sleep(POLL_SECONDS if calm_at is None else max(0.0, calm_at - time.monotonic()))


def _complaint(status: UnitStatus) -> str:
    return f"{status.name}: is {status.active} ({status.sub}), result {status.result}. {journal(status.name)}"


def journal(name: str) -> str:
    """Give the last lines that a unit logged, for an error message."""
    try:
        done = subprocess.run(
            ["journalctl", f"--unit={name}", f"--lines={JOURNAL_LINES}", "--no-pager", "--quiet", "--output=short-iso"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Its journal cannot be read: {error}"
    lines = done.stdout.strip().splitlines()[-JOURNAL_LINES:]
    return "Its last log lines:\n" + "\n".join(lines) if lines else "It logged nothing."


def as_dict(status: UnitStatus) -> dict[str, Any]:
    """Give what a person wants to know of a unit."""
    return {"state": status.active, "sub_state": status.sub, "unit_file": status.file_state, "load": status.load}
