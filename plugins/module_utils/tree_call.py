# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one call of `tree` does on a host: packages, files, kernel settings and units, in this order.

Each part reads from the host what is to be done, so a call that ended between two parts is finished by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils import debian_packages, kernel_settings, signals
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_converge import Converger, Outcome, describe
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_manifest import Entry, TreeError, check_paths
from ansible_collections.groundplane.onprem.plugins.module_utils.unit_converge import SETTLE_SECONDS, Units, names_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LOCK_DIRECTORY = "/run/groundplane"
LOCK_SECONDS = 60


@dataclass(frozen=True)
class Call:
    """What is declared for one host.

    Attributes:
        entries: paths.
        contents: by SHA-256, as far as they came with the call.
        owner: user of parent directories that have to be made.
        group: group of such parents.
        directory_mode: permission bits of such parents.
        packages: what is installed and what is gone.
        kernel_settings: keys that the running kernel has as `sysctl.d` says.
        units: as `unit_converge.UNIT_OPTIONS` gives them.
        changed_paths: what an earlier task changed; for the units, in check mode.
        settle: seconds after which a unit that was acted on must still be up.
        check: only look and predict.
        diff: keep the old text of changed files.
        scratch: where check mode makes a private directory for validations; default the system's temporary one.
    """

    entries: Sequence[Entry]
    contents: Mapping[str, bytes]
    owner: str = "root"
    group: str = "root"
    directory_mode: int = 0o755
    packages: debian_packages.Declaration = field(default_factory=debian_packages.Declaration)
    kernel_settings: Sequence[str] = ()
    units: Sequence[dict[str, Any]] = ()
    changed_paths: Sequence[str] = ()
    settle: float = SETTLE_SECONDS
    check: bool = False
    diff: bool = False
    scratch: str = ""

    def converger(self, entries: Sequence[Entry], *, check: bool) -> Converger:
        """What brings some of the paths to their state."""
        return Converger(
            entries,
            directory_mode=self.directory_mode,
            owner=self.owner,
            group=self.group,
            check=check,
            diff=self.diff,
            scratch=self.scratch,
        )


@dataclass
class Answer:
    """What was done so far, or in check mode would be; also of a call that failed in the middle.

    Attributes:
        result: of the parts that are done, with the keys that the task's result has.
        changes: what differed of each path, as `tree_converge.describe` gives it.
        diffs: part to its differences; those of the files are made on the controller, which has the new contents.
        warnings: for the one who reads the run.
        interrupted: the signal that came while files were brought.
    """

    result: dict[str, Any] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    diffs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    interrupted: str = ""

    def add(self, part: str, found: Mapping[str, Any], names: Mapping[str, str]) -> None:
        """Take the result of a part.

        Args:
            part: such as units.
            found: its result, with `changed` and perhaps `diff`.
            names: keys of it to the names that they have in this one.
        """
        self.result["changed"] = self.result.get("changed", False) or found["changed"]
        self.result |= {name: found[key] for key, name in names.items()}
        shown = found.get("diff", [])
        if found["changed"]:
            self.diffs[part] = shown if isinstance(shown, list) else [shown]

    def add_files(self, outcome: Outcome) -> None:
        """Take what became of paths; there may be more than one set of them."""
        made = {*outcome.created_parents, *(one.entry.path for one in outcome.changes if one.found.kind == "absent")}
        gone = {change.entry.path for change in outcome.changes if change.entry.state == "absent"}
        paths = {*outcome.created_parents, *(change.entry.path for change in outcome.changes)}
        self.result["changed"] = self.result.get("changed", False) or bool(paths)
        for key, found in (
            ("changed_paths", paths),
            ("created", made),
            ("removed", gone),
            ("skipped_validations", outcome.skipped_validations),
        ):
            self.result[key] = sorted({*self.result.get(key, []), *found})
        self.changes += [describe(change) for change in outcome.changes]
        self.warnings += outcome.warnings


UNIT_RESULTS = ("restart_required", "started", "stopped", "restarted", "reloaded", "daemon_reloaded", "units")


def run(call: Call, answer: Answer) -> None:
    """Bring a host to what is declared, or ask for contents before anything is touched.

    Args:
        call: what is declared.
        answer: takes what was done, part by part. With `needed` in its result nothing was.

    Raises:
        TreeError: the files are as they were.
        debian_packages.PackagesError: the packages cannot be as declared.
        kernel_settings.KernelSettingsError: the settings cannot be as declared.
        unit_state.UnitError: a unit could not be brought to its state.
    """
    check_paths(call.entries)
    call.packages.check()
    names_of(call.units)
    if call.packages:
        # Looked at beforehand: with the packages nothing else may be done twice, or half.
        if lacking := lacking_beside_packages(call):
            answer.result |= {"changed": False, "needed": lacking}
            return
        first = [entry for entry in call.entries if entry.before_packages]
        if first:
            bring_files(call, first, answer)
            go_on(answer)
        found = debian_packages.bring(call.packages, check=call.check)
        answer.add("packages", found, {"installed": "installed", "removed": "purged", "refreshed": "refreshed"})
    bring_files(call, [entry for entry in call.entries if not (call.packages and entry.before_packages)], answer)
    if "needed" in answer.result:
        return
    if call.kernel_settings:
        go_on(answer)
        pending = pending_texts(call, answer.result["changed_paths"]) if call.check else {}
        found = kernel_settings.bring(call.kernel_settings, check=call.check, pending=pending)
        answer.add("kernel_settings", found, {"changed_settings": "changed_settings"})
    if call.units:
        go_on(answer)
        changed = [*call.changed_paths, *answer.result["changed_paths"]]
        units = Units(call.units, changed_paths=changed, settle=call.settle, check=call.check, diff=call.diff)
        answer.add("units", units.run(), {key: key for key in UNIT_RESULTS})


def lacking_beside_packages(call: Call) -> list[str]:
    """Name the contents that did not come with the call and will be needed; touches nothing.

    Packages bring users and files. So when there are some to install, what the files will need cannot be known yet, and
    all of them are asked for.
    """
    absent = [entry.sha256 for entry in call.entries if entry.state == "file" and entry.sha256 not in call.contents]
    if not absent or debian_packages.pending(call.packages):
        return list(dict.fromkeys(absent))
    converger = call.converger(call.entries, check=True)
    try:
        converger.plan()
        return [name for name in converger.needed() if name not in call.contents]
    finally:
        converger.close()


def bring_files(call: Call, entries: Sequence[Entry], answer: Answer) -> None:
    """Bring some of the paths to their state, all or none.

    Raises:
        TreeError: none of them was changed, and the text says why.
    """
    converger = call.converger(entries, check=call.check)

    def note(name: str) -> None:
        # What was begun is undone, instead of left half done, when the connection is lost or the run stopped.
        converger.interrupted = name

    # Looking needs no lock.
    with (
        contextlib.nullcontext() if call.check else exclusive(),
        signals.heeded(note, signal.SIGHUP, signal.SIGTERM, signal.SIGINT),
    ):
        try:
            outcome = converger.plan()
            lacking = [name for name in converger.needed() if name not in call.contents]
            if lacking and not call.packages:
                answer.result |= {"changed": False, "needed": lacking}
                return
            converger.apply(call.contents)
        finally:
            converger.close()
    answer.add_files(outcome)
    answer.interrupted = converger.interrupted


def go_on(answer: Answer) -> None:
    """Stop between two parts when a signal came while the files were brought.

    Raises:
        TreeError: one did.
    """
    if answer.interrupted:
        raise TreeError(f"interrupted by {answer.interrupted}, when the files were in place")


def pending_texts(call: Call, changed_paths: Sequence[str]) -> dict[str, str | None]:
    """What check mode would have written: path to text, and None for a path that would be gone."""
    changed = set(changed_paths)
    return {
        entry.path: call.contents[entry.sha256].decode(errors="replace") if entry.state == "file" else None
        for entry in call.entries
        if entry.path in changed
        and (entry.state == "absent" or (entry.state == "file" and entry.sha256 in call.contents))
    }


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Keep other runs out: this one removes what a killed run left, and must not take theirs for that.

    Raises:
        TreeError: another run works on this host's trees for too long.
    """
    directory = Path(LOCK_DIRECTORY if os.geteuid() == 0 else Path.home() / ".ansible")
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (directory / "tree.lock").open("w", encoding="ascii") as lock:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TreeError(f"another tree task has been running on this host for {LOCK_SECONDS} s") from error
                time.sleep(0.05)
            else:
                yield
                return
