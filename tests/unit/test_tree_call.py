# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One call does a role's packages, files, kernel settings and units, in this order, and nothing twice."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import (
    debian_packages,
    kernel_settings,
    tree_call,
    unit_state,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.debian_packages import Declaration, PackagesError, Plan
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_call import Answer, Call, run
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_converge import Converger
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_manifest import Entry, TreeError, digest
from ansible_collections.groundplane.onprem.plugins.module_utils.unit_state import UnitError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OWNER = {"owner": str(os.getuid()), "group": str(os.getgid())}
KEY = "net.ipv4.ip_forward"
UNIT = {
    "name": "x.service",
    "enabled": True,
    "masked": None,
    "state": "started",
    "restart_on": [],
    "reload_on": [],
    "gated": False,
    "validate": None,
    "timeout": 5,
}
SHOWN = """\
LoadState={load}
ActiveState={active}
SubState=running
UnitFileState=enabled
InvocationID=i{starts}
InactiveExitTimestamp=Tue {year}-11-24 07:10:00.000000 UTC
CanReload=no
NeedDaemonReload=no
"""


class Host:
    """A directory with files, and packages, a kernel and a systemd that only say what they were told to do."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.done: list[str] = []
        self.packages: dict[str, str] = {}
        self.brings: Callable[[], None] = lambda: None
        self.starts = 1
        self.broken_start = False
        for place in ("etc/sysctl.d", "proc/sys/net/ipv4", "usr/sbin"):
            (root / place).mkdir(parents=True)
        self.kernel = root / "proc/sys/net/ipv4/ip_forward"
        self.kernel.write_text("0\n")

    # -- as debian_packages.Runner --

    def status(self, names: list[str]) -> dict[str, tuple[str, str]]:
        return {name: ("ii", "1") for name in names if name in self.packages}

    def refresh(self) -> None:
        self.done.append("refresh")

    def simulate(self, _wanted: Plan) -> None:
        self.done.append("simulate")

    def install(self, _runner: Any, wanted: Plan, **_options: Any) -> bool:
        """As `debian_packages.converge`."""
        self.done.append(f"install {' '.join(wanted.install)}; {self.seen()}")
        self.packages |= dict.fromkeys(wanted.install, "1")
        self.brings()
        return True

    # -- as kernel_settings.bring --

    def kernel_settings(
        self, real: Callable[..., dict[str, Any]], keys: list[str], *, check: bool, pending: dict[str, str | None]
    ) -> dict[str, Any]:
        """With this directory as the root of the file system."""
        below = {path.removeprefix(str(self.root)): text for path, text in pending.items()}
        return real(keys, check=check, pending=below, root=self.root)

    # -- as systemctl --

    def systemctl(self, *words: str, timeout: float = 60) -> SimpleNamespace:
        del timeout
        verb, name = words[0], words[-1]
        if verb == "show":
            load = "loaded" if "xx" in self.packages else "not-found"
            active = "active" if self.starts else "inactive"
            # Only a start of its own is later than all files.
            text = SHOWN.format(load=load, active=active, starts=self.starts, year=2099 if self.starts > 1 else 1999)
            return SimpleNamespace(returncode=0, stdout=text, stderr="")
        self.done.append(f"{verb} {name}; {self.seen()}; forward {self.kernel.read_text().strip()}")
        self.starts += 1
        return SimpleNamespace(returncode=int(self.broken_start), stdout="", stderr="it does not like it")

    def seen(self) -> str:
        """The names of the files that are there."""
        return " ".join(sorted(path.name for path in (self.root / "etc").rglob("*") if path.is_file()))

    # -- calls --

    def entry(self, name: str, content: bytes, **declared: Any) -> Entry:
        path = str(self.root / "etc" / name)
        return Entry(path=path, sha256=digest(content), size=len(content), **(OWNER | declared))

    def call(self, *entries: Entry, contents: tuple[bytes, ...] = (), **declared: Any) -> Answer:
        """Make one call, which may fail."""
        answer = Answer()
        sent = {digest(content): content for content in contents}
        options: dict[str, Any] = {"scratch": str(self.root), "settle": 0.0, **OWNER, **declared}
        run(Call(entries=entries, contents=sent, **options), answer)
        return answer


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    monkeypatch.setattr(tree_call, "LOCK_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(debian_packages, "Runner", lambda: made)
    monkeypatch.setattr(debian_packages, "converge", made.install)
    monkeypatch.setattr(debian_packages, "read_ages", lambda: (1.0, []))
    monkeypatch.setattr(kernel_settings, "bring", partial(made.kernel_settings, kernel_settings.bring))
    monkeypatch.setattr(unit_state, "systemctl", made.systemctl)
    monkeypatch.setattr(unit_state, "journal", lambda _name: "It logged nothing.")
    for function in (unit_state.read_record, unit_state.record):
        monkeypatch.setattr(function, "__defaults__", (str(tmp_path / "units"),))
    return made


def everything(host: Host) -> tuple[list[Entry], tuple[bytes, ...], dict[str, Any]]:
    """A role that has all parts: paths, contents and the rest."""
    setting = f"{KEY} = 1\n".encode()
    entries = [
        host.entry("source", b"s", before_packages=True),
        host.entry("x.conf", b"c"),
        host.entry("sysctl.d/60-x.conf", setting),
    ]
    unit = {**UNIT, "restart_on": [str(host.root / "etc/x.conf")]}
    rest = {"packages": Declaration(("xx",)), "kernel_settings": [KEY], "units": [unit]}
    return entries, (b"s", b"c", setting), rest


def test_packages_come_first_then_files_then_the_kernel_then_units(host: Host) -> None:
    host.starts = 0
    entries, contents, rest = everything(host)
    answer = host.call(*entries, contents=contents, **rest)
    assert host.done == ["install xx; source", "start x.service; 60-x.conf source x.conf; forward 1"]
    assert answer.result["changed"]
    assert answer.result["installed"] == ["xx"]
    assert answer.result["changed_paths"] == sorted(entry.path for entry in entries)
    assert answer.result["changed_settings"] == {KEY: "1"}
    assert (answer.result["started"], answer.result["restart_required"]) == (["x.service"], [])


def test_a_second_call_changes_nothing(host: Host) -> None:
    entries, contents, rest = everything(host)
    host.call(*entries, contents=contents, **rest)
    host.done.clear()
    again = host.call(*entries, contents=contents, diff=True, **rest)
    assert (again.result["changed"], again.changes, again.diffs, host.done) == (False, [], {}, [])


def test_check_mode_predicts_what_the_call_does(host: Host) -> None:
    """Also the kernel settings of a file that is not there yet, and the restart of a unit for it."""
    host.packages["xx"] = "1"
    entries, contents, rest = everything(host)
    rest["packages"] = Declaration(("xx", "yy"))
    predicted = host.call(*entries, contents=contents, check=True, diff=True, **rest)
    assert (host.done, host.seen(), host.kernel.read_text()) == (["simulate"], "", "0\n")
    done = host.call(*entries, contents=contents, diff=True, **rest)
    assert done.diffs.keys() == {"packages", "kernel_settings", "units"}
    assert (predicted.diffs, predicted.changes) == (done.diffs, done.changes)
    assert done.result["restarted"] == ["x.service"]
    for result in (predicted.result, done.result):
        del result["units"], result["refreshed"]
    assert predicted.result == done.result


def test_check_mode_on_a_blank_host_bears_what_packages_will_bring(host: Host) -> None:
    host.starts = 0
    entry = host.entry("x.conf", b"c", owner="no-such-user-yet", validate="no-such-program-yet %s")
    answer = host.call(entry, contents=(b"c",), check=True, packages=Declaration(("xx",)), units=[UNIT])
    assert answer.result["skipped_validations"] == [entry.path]
    assert (answer.result["installed"], answer.result["started"]) == (["xx"], ["x.service"])


def test_an_owner_may_come_with_a_package(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    known = SimpleNamespace(pw_uid=os.getuid())
    host.brings = lambda: monkeypatch.setattr("pwd.getpwnam", lambda _name: known)
    entry = host.entry("x.conf", b"c", owner="no-such-user-yet")
    with pytest.raises(TreeError, match="there is no user no-such-user-yet"):
        host.call(entry, contents=(b"c",))
    assert host.call(entry, contents=(b"c",), packages=Declaration(("xx",))).result["changed_paths"] == [entry.path]


@pytest.mark.parametrize("check", [True, False])
def test_nothing_is_touched_when_contents_are_asked_for(host: Host, *, check: bool) -> None:
    entries, contents, rest = everything(host)
    names = [digest(content) for content in contents]
    assert host.call(*entries, check=check, **rest).result == {"changed": False, "needed": names}
    # With nothing to install it is known what is lacking.
    host.packages["xx"] = "1"
    (host.root / "etc/x.conf").write_bytes(b"c")
    asked = host.call(*entries, check=check, **rest)
    assert asked.result == {"changed": False, "needed": [names[0], names[2]]}
    assert (
        host.call(*entries, check=check, **{**rest, "packages": Declaration()}).result["needed"]
        == asked.result["needed"]
    )
    assert (host.done, host.seen(), host.kernel.read_text()) == ([], "x.conf", "0\n")


def test_of_a_large_tree_packages_and_units_are_done_once(host: Host) -> None:
    entries, contents, rest = everything(host)
    sent: tuple[bytes, ...] = ()
    for _round in range(2):
        answer = host.call(*entries, contents=sent, **rest)
        sent = tuple(content for content in contents if digest(content) in answer.result.get("needed", []))
    assert [word.split(";")[0] for word in host.done] == ["install xx", "restart x.service"]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"packages": Declaration(("-y",))}, PackagesError, "'-y' is no name of a Debian package"),
        ({"packages": Declaration(("xx",), ("xx",))}, PackagesError, "xx: is to be installed and to be absent"),
        ({"units": [UNIT, UNIT]}, UnitError, "a unit is declared twice"),
        ({"units": [{**UNIT, "name": "x"}]}, UnitError, "x: is not a unit's full name"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_touched(
    host: Host, wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    entries, contents, rest = everything(host)
    with pytest.raises(error, match=message):
        host.call(*entries, contents=contents, **{**rest, **wrong})
    assert (host.done, host.seen()) == ([], "")


def test_a_failure_names_its_part_and_the_parts_before_it_are_told(host: Host) -> None:
    entries, contents, rest = everything(host)
    host.starts, host.broken_start = 0, True
    answer = Answer()
    call = Call(entries, {digest(one): one for one in contents}, scratch=str(host.root), diff=True, **OWNER, **rest)
    with pytest.raises(UnitError, match=r"x\.service: start failed: it does not like it"):
        run(call, answer)
    assert answer.result["changed"]
    assert (answer.result["installed"], len(answer.result["changed_paths"])) == (["xx"], 3)
    assert [change["path"] for change in answer.changes] == [entries[0].path, entries[2].path, entries[1].path]

    host.kernel.unlink()
    host.kernel.mkdir()
    with pytest.raises(kernel_settings.KernelSettingsError, match="ip_forward: Is a directory"):
        host.call(*entries, contents=contents, **rest)


def test_a_failed_installation_leaves_the_other_files_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any, **_options: Any) -> bool:
        raise PackagesError("apt-get install returned 100")

    monkeypatch.setattr(debian_packages, "converge", fail)
    entries, contents, rest = everything(host)
    with pytest.raises(PackagesError, match="returned 100"):
        host.call(*entries, contents=contents, **rest)
    assert (host.seen(), host.done) == ("source", [])


def test_a_signal_that_comes_when_files_are_in_place_stops_before_the_units(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Converger, "_settle", lambda _self: os.kill(os.getpid(), signal.SIGTERM))
    host.packages["xx"] = "1"
    entries, contents, rest = everything(host)
    before = signal.getsignal(signal.SIGTERM)
    for entry in entries[:0:-1]:
        with pytest.raises(TreeError, match="interrupted by SIGTERM, when the files were in place"):
            host.call(entry, contents=contents, **rest)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (host.seen(), host.done) == ("60-x.conf x.conf", [])


def test_no_content_of_a_secret_is_in_the_answer(host: Host) -> None:
    canary = b"canary-9c41"
    entries, contents, rest = everything(host)
    entries[1] = host.entry("x.conf", canary, secret=True)
    for check in (True, False):
        answer = host.call(*entries, contents=(*contents, canary), check=check, diff=True, **rest)
        told = json.dumps([answer.result, answer.changes, answer.diffs, answer.warnings])
        assert answer.result["changed"]
        assert canary.decode() not in told
