# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian packages: what is installed, what has to be done, and doing it so that an interrupted run can be run again.

Asks dpkg and not apt whether packages are there: that is one short command, where opening apt's cache costs most of a
second of processor time on every host, for each role, on every run that changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils import signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

LISTS = "/var/lib/apt/lists"
STAMP = "/var/lib/apt/lists/partial"
SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d")
POLICY = "/usr/sbin/policy-rc.d"
POLICY_TEXT = "#!/bin/sh\n# Only while packages are installed: nothing starts before it is configured.\nexit 101\n"
LOCK_SECONDS = 300
COMMAND_SECONDS = 1800
ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "APT_LISTCHANGES_FRONTEND": "none",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
}
OPTIONS = (
    "-o",
    f"DPkg::Lock::Timeout={LOCK_SECONDS}",
    "-o",
    "Dpkg::Options::=--force-confdef",
    "-o",
    "Dpkg::Options::=--force-confold",
    "-o",
    "Dpkg::Use-Pty=0",
)

_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?(=[0-9A-Za-z.+:~-]+)?\Z")


class PackagesError(Exception):
    """The packages cannot be as declared; the text says why."""


@dataclass(frozen=True)
class Declaration:
    """What is to be so.

    Attributes:
        names: packages that are installed, with `=version` where one is pinned.
        absent: packages that are gone, with their configuration.
        lists: package lists belong to the present sources even when nothing is lacking.
    """

    names: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    lists: bool = False

    def __bool__(self) -> bool:
        """Whether anything is declared."""
        return bool(self.names or self.absent or self.lists)

    def check(self) -> None:
        """Refuse what cannot be, before anything is touched.

        Raises:
            PackagesError: a name is none, or is in both lists.
        """
        check_names([*self.names, *self.absent])
        plan({}, self.names, self.absent)


@dataclass(frozen=True)
class Plan:
    """What has to be done.

    Attributes:
        install: names (with `=version` where one is pinned) that are lacking, at another version, or half installed.
        remove: names that are there and should not be.
    """

    install: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.install or self.remove)


def check_names(names: Sequence[str]) -> None:
    """Refuse what is no name of a Debian package, so that no name is ever read as an option.

    Raises:
        PackagesError: says which.
    """
    for name in names:
        if not _NAME.match(name):
            raise PackagesError(f"{name!r} is no name of a Debian package")


def parse_status(output: str) -> dict[str, tuple[str, str]]:
    """Read `dpkg-query`: package to its state (`ii` is installed, `hi` held) and version."""
    found: dict[str, tuple[str, str]] = {}
    for line in output.splitlines():
        package, architecture, state, version = line.split("\t")
        for name in (package, f"{package}:{architecture}"):
            # Of two architectures of one package, the one that is installed speaks for the bare name.
            if name not in found or not _installed(found[name][0]):
                found[name] = (state.strip(), version)
    return found


def _installed(state: str) -> bool:
    return state in ("ii", "hi")


def plan(status: Mapping[str, tuple[str, str]], names: Sequence[str], absent: Sequence[str]) -> Plan:
    """Compare what is with what should be.

    Args:
        status: what `parse_status` gave.
        names: packages that should be installed.
        absent: packages that should not be there, nor their configuration.

    Raises:
        PackagesError: a package is in both lists.
    """
    both = sorted({name.partition("=")[0] for name in names} & set(absent))
    if both:
        raise PackagesError(f"{', '.join(both)}: is to be installed and to be absent")
    install = []
    for name in dict.fromkeys(names):
        package, _, version = name.partition("=")
        state, present = status.get(package, ("", ""))
        if not _installed(state) or (version and version != present):
            install.append(name)
    remove = [name for name in dict.fromkeys(absent) if status.get(name, ("un", ""))[0] not in ("un", "")]
    return Plan(tuple(install), tuple(remove))


def lists_are_old(lists: float, sources: Sequence[float]) -> bool:
    """Whether the package lists were fetched before the sources were last changed, or never.

    Args:
        lists: when lists were last fetched, seconds since the epoch; 0 for never.
        sources: when each file that says where packages come from was last changed.
    """
    return lists == 0 or any(changed > lists for changed in sources)


def read_ages(root: str = "/") -> tuple[float, list[float]]:
    """The times that `lists_are_old` compares."""
    base = Path(root)
    fetched = [item.stat().st_mtime for item in (base / LISTS[1:]).glob("*Release")]
    stamp = base / STAMP[1:]
    sources = []
    for place in SOURCES:
        path = base / place[1:]
        if path.is_dir():
            # The directory's own time tells of files that were removed.
            sources += [path.stat().st_mtime, *(item.stat().st_mtime for item in path.iterdir())]
        elif path.exists():
            sources.append(path.stat().st_mtime)
    # A list that the server had not changed keeps the server's date; apt empties `partial` at the end of each fetch.
    return (max(stamp.stat().st_mtime, *fetched) if fetched and stamp.exists() else 0.0), sources


class Runner:
    """Runs apt and dpkg on this host."""

    def __init__(self, root: str = "/") -> None:
        """Take the directory that stands for `/` when times and the policy are looked at."""
        self.root = Path(root)

    def command(self, *argv: str) -> str:
        """Run a command; its standard output.

        Raises:
            PackagesError: it fails, or takes longer than half an hour.
        """
        try:
            done = subprocess.run(
                argv,
                env={**os.environ, **ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PackagesError(f"{argv[0]} took longer than {COMMAND_SECONDS} s") from error
        if done.returncode != 0:
            said = [
                line for line in (done.stderr + done.stdout).splitlines() if line.startswith(("E:", "dpkg:", "Err:"))
            ]
            raise PackagesError(
                f"{' '.join(argv[:2])} returned {done.returncode}: {' '.join(said) or done.stderr[-800:]}"
            )
        return done.stdout

    def status(self, names: Sequence[str]) -> dict[str, tuple[str, str]]:
        """What dpkg knows of some packages."""
        bare = sorted({name.partition("=")[0] for name in names})
        if not bare:
            return {}
        done = subprocess.run(
            [
                "dpkg-query",
                "--show",
                "--showformat=${Package}\t${Architecture}\t${db:Status-Abbrev}\t${Version}\n",
                *bare,
            ],
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
            check=False,
        )
        # 1: some are unknown, which is an answer.
        if done.returncode not in (0, 1):
            raise PackagesError(f"dpkg-query returned {done.returncode}: {done.stderr.strip()}")
        return parse_status(done.stdout)

    def refresh(self) -> None:
        """Fetch the package lists; a source that does not answer is an error, not a warning."""
        self.command("apt-get", "update", "--quiet", *OPTIONS, "-o", "APT::Update::Error-Mode=any")

    def simulate(self, wanted: Plan) -> None:
        """Ask apt whether it could."""
        if wanted.install:
            self.command("apt-get", "install", "--simulate", "--no-install-recommends", *OPTIONS, "--", *wanted.install)

    def apply(self, wanted: Plan) -> None:
        """Install and remove."""
        # What a killed run left half configured is finished first; apt refuses to do anything before.
        self.command("dpkg", "--configure", "-a", "--force-confdef", "--force-confold")
        if wanted.remove:
            self.command("apt-get", "purge", "--yes", "--quiet", *OPTIONS, "--", *wanted.remove)
        if wanted.install:
            flags = ("--yes", "--quiet", "--no-install-recommends", "--allow-downgrades")
            self.command("apt-get", "install", *flags, *OPTIONS, "--", *wanted.install)

    @contextlib.contextmanager
    def nothing_starts(self) -> Iterator[None]:
        """While packages are installed, their services are not started by them.

        A policy of somebody else is left as it is. One that a killed run left behind is ours, and goes.
        """
        policy = self.root / POLICY[1:]
        if policy.exists() and policy.read_text(encoding="utf-8", errors="replace") != POLICY_TEXT:
            yield
            return
        policy.write_text(POLICY_TEXT, encoding="utf-8")
        policy.chmod(0o755)
        try:
            yield
        finally:
            policy.unlink(missing_ok=True)


def converge(runner: Runner, wanted: Plan, *, ages: Callable[[], tuple[float, list[float]]] = read_ages) -> bool:
    """Do what is planned; say whether lists were fetched.

    Lists are fetched when the sources changed since, and when the packages are not to be had with those on disk (the
    mirror may hold only newer versions).

    Raises:
        PackagesError: it cannot be done.
    """
    refreshed = False
    if wanted.install and lists_are_old(*ages()):
        runner.refresh()
        refreshed = True
    with runner.nothing_starts():
        try:
            runner.apply(wanted)
        except PackagesError:
            if refreshed or not wanted.install:
                raise
            runner.refresh()
            refreshed = True
            runner.apply(wanted)
    return refreshed


def pending(declared: Declaration, runner: Runner | None = None) -> Plan:
    """Look what has to be done; changes nothing.

    Raises:
        PackagesError: the declaration cannot be, or dpkg does not answer.
    """
    declared.check()
    status = (runner or Runner()).status([*declared.names, *declared.absent])
    return plan(status, declared.names, declared.absent)


def bring(declared: Declaration, *, check: bool, runner: Runner | None = None) -> dict[str, Any]:
    """Bring a host's packages to what is declared; give the result of the module `packages`.

    Args:
        declared: what is to be so.
        check: only look, and ask apt whether it could.
        runner: runs apt and dpkg.

    Raises:
        PackagesError: it cannot be done.
    """
    runner = runner or Runner()
    wanted = pending(declared, runner)
    refreshed = False
    if wanted and check:
        if not lists_are_old(*read_ages()):
            runner.simulate(wanted)
    elif wanted:
        with interruptible():
            refreshed = converge(runner, wanted)
    elif declared.lists and not check and lists_are_old(*read_ages()):
        runner.refresh()
        refreshed = True
    return {
        "changed": bool(wanted),
        "installed": list(wanted.install),
        "removed": list(wanted.remove),
        "refreshed": refreshed,
        "diff": {
            "before_header": "packages",
            "after_header": "packages",
            "before": "".join(f"{name}\n" for name in wanted.remove),
            "after": "".join(f"{name}\n" for name in wanted.install),
        },
    }


def interruptible() -> contextlib.AbstractContextManager[None]:
    """Turn signals into exceptions, so that the policy against starting services does not stay behind."""

    def interrupted(name: str) -> None:
        raise PackagesError(f"interrupted by {name}")

    return signals.heeded(interrupted, signal.SIGHUP, signal.SIGTERM)
