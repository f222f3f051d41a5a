# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be done to a host's packages; tests/integration/test_packages.py does it on one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import debian_packages as library
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

STATUS = (
    "bash\tamd64\tii \t5.2-1\n"
    "held\tamd64\thi \t1.0\n"
    "half\tamd64\tiF \t2.0\n"
    "gone\tamd64\trc \t3.0\n"
    "never\tamd64\tun \t\n"
    "two\ti386\tii \t1.0\n"
    "two\tamd64\trc \t1.0\n"
)
NAMES = st.lists(st.sampled_from(["bash", "held", "half", "gone", "never", "two", "other"]), max_size=5)


@pytest.mark.parametrize(
    ("names", "absent", "wanted"),
    [
        (["bash", "held", "two", "two:i386"], [], library.Plan()),
        (["half", "gone", "never", "other"], [], library.Plan(("half", "gone", "never", "other"))),
        (["two:amd64"], [], library.Plan(("two:amd64",))),
        (["bash=5.2-1"], [], library.Plan()),
        (["bash=5.3-1"], [], library.Plan(("bash=5.3-1",))),
        ([], ["bash", "gone", "half", "never", "other"], library.Plan((), ("bash", "gone", "half"))),
        (["other", "other"], [], library.Plan(("other",))),
    ],
)
def test_plan(names: list[str], absent: list[str], wanted: library.Plan) -> None:
    assert library.plan(library.parse_status(STATUS), names, absent) == wanted


@given(NAMES, NAMES)
def test_nothing_is_planned_for_what_is_as_declared(names: list[str], absent: list[str]) -> None:
    """After the plan was carried out, there is no plan."""
    absent = [name for name in absent if name not in names]
    status = library.parse_status(STATUS)
    wanted = library.plan(status, names, absent)
    after = {**status, **dict.fromkeys(wanted.install, ("ii", "1"))}
    for name in wanted.remove:
        del after[name]
    assert not library.plan(after, names, absent)


def test_a_package_cannot_be_wanted_and_unwanted() -> None:
    with pytest.raises(library.PackagesError, match="bash: is to be installed and to be absent"):
        library.plan({}, ["bash=1"], ["bash"])


@pytest.mark.parametrize("name", ["--purge", "Bash", "bash;id", "", "bash =1", "bash=", "-y"])
def test_a_name_is_never_an_option(name: str) -> None:
    with pytest.raises(library.PackagesError, match="is no name of a Debian package"):
        library.check_names([name])


@pytest.mark.parametrize(
    "name", ["bash", "g++", "lib32gcc-s1", "bash:amd64", "nginx=1.26.3-3+deb13u10", "ab=1:2.0~rc1"]
)
def test_real_names_are_names(name: str) -> None:
    library.check_names([name])


def test_lists_belong_to_the_sources_that_are_older(tmp_path: Path) -> None:
    lists, sources = tmp_path / "var/lib/apt/lists", tmp_path / "etc/apt/sources.list.d"
    (lists / "partial").mkdir(parents=True)
    sources.mkdir(parents=True)
    (sources / "site.sources").touch()
    assert library.lists_are_old(*library.read_ages(str(tmp_path))), "no list was ever fetched"

    (lists / "site_InRelease").touch()
    for path in (sources, sources / "site.sources", lists / "site_InRelease"):
        os.utime(path, (1000, 1000))
    os.utime(lists / "partial", (2000, 2000))
    assert not library.lists_are_old(*library.read_ages(str(tmp_path)))

    os.utime(sources / "site.sources", (3000, 3000))
    assert library.lists_are_old(*library.read_ages(str(tmp_path)))
    os.utime(sources / "site.sources", (1000, 1000))
    os.utime(sources, (3000, 3000))
    assert library.lists_are_old(*library.read_ages(str(tmp_path))), "a file with sources was removed"


@pytest.mark.parametrize("left", [None, library.POLICY_TEXT, "#!/bin/sh\nexit 0\n"])
def test_services_are_held_only_while_packages_are_installed(tmp_path: Path, left: str | None) -> None:
    policy = tmp_path / "usr/sbin/policy-rc.d"
    policy.parent.mkdir(parents=True)
    if left is not None:
        policy.write_text(left)
    ours = left in (None, library.POLICY_TEXT)
    with contextlib.suppress(library.PackagesError), library.Runner(str(tmp_path)).nothing_starts():
        assert policy.read_text() == (library.POLICY_TEXT if ours else left)
        assert not ours or os.access(policy, os.X_OK)
        raise library.PackagesError("the installation failed")
    assert policy.exists() is not ours
    if not ours:
        assert policy.read_text() == left


class FakeRunner(library.Runner):
    """Records what it is asked to do; a mirror that lacks the version in old lists."""

    def __init__(self, root: str, failures: int) -> None:
        super().__init__(root)
        self.failures = failures
        self.done: list[str] = []

    def status(self, names: Sequence[str]) -> dict[str, tuple[str, str]]:
        return {name: state for name, state in library.parse_status(STATUS).items() if name in names}

    def refresh(self) -> None:
        self.done.append("refresh")

    def simulate(self, wanted: library.Plan) -> None:
        self.done.append(f"simulate {' '.join(wanted.install)}")

    def apply(self, wanted: library.Plan) -> None:
        self.done.append("apply")
        if self.failures:
            self.failures -= 1
            raise library.PackagesError("404")


@pytest.mark.parametrize(
    ("ages", "failures", "done"),
    [
        ((5.0, [1.0]), 0, ["apply"]),
        ((0.0, [1.0]), 0, ["refresh", "apply"]),
        ((5.0, [9.0]), 0, ["refresh", "apply"]),
        ((5.0, [1.0]), 1, ["apply", "refresh", "apply"]),
    ],
)
def test_lists_are_fetched_when_that_can_help(
    tmp_path: Path, ages: tuple[float, list[float]], failures: int, done: list[str]
) -> None:
    (tmp_path / "usr/sbin").mkdir(parents=True)
    runner = FakeRunner(str(tmp_path), failures)
    assert library.converge(runner, library.Plan(("a",)), ages=lambda: ages) is ("refresh" in done)
    assert runner.done == done


def test_a_failure_after_fresh_lists_is_final(tmp_path: Path) -> None:
    (tmp_path / "usr/sbin").mkdir(parents=True)
    runner = FakeRunner(str(tmp_path), 2)
    with pytest.raises(library.PackagesError, match="404"):
        library.converge(runner, library.Plan(("a",)), ages=lambda: (0.0, []))
    assert runner.done == ["refresh", "apply"]


@pytest.mark.parametrize(
    ("declared", "lists", "done", "told"),
    [
        (library.Declaration(("bash",)), 0.0, [], []),
        (library.Declaration(("bash",), lists=True), 0.0, ["refresh"], []),
        (library.Declaration(("bash",), lists=True), 1.0, [], []),
        (library.Declaration(("other",), ("held",)), 1.0, ["apply"], ["simulate other"]),
        # Check mode fetches no lists, and without lists apt knows nothing.
        (library.Declaration(("other",), ("held",)), 0.0, ["refresh", "apply"], []),
    ],
)
def test_what_is_declared_is_brought_and_check_mode_only_asks(
    tmp_path: Path, declared: library.Declaration, lists: float, done: list[str], told: list[str]
) -> None:
    (tmp_path / "usr/sbin").mkdir(parents=True)
    for check, expected in ((True, told), (False, done)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(library, "read_ages", lambda: (lists, []))
            patch.setattr(library.converge, "__kwdefaults__", {"ages": lambda: (lists, [])})
            runner = FakeRunner(str(tmp_path), 0)
            result = library.bring(declared, check=check, runner=runner)
        assert runner.done == expected
        assert result["changed"] is ("other" in declared.names)
        assert (result["installed"], result["removed"]) == ((["other"], ["held"]) if result["changed"] else ([], []))
        assert result["refreshed"] is ("refresh" in expected)


def test_a_signal_leaves_no_policy_behind(tmp_path: Path) -> None:
    policy = tmp_path / "usr/sbin/policy-rc.d"
    policy.parent.mkdir(parents=True)
    before = signal.getsignal(signal.SIGTERM)
    held = library.Runner(str(tmp_path)).nothing_starts()
    with pytest.raises(library.PackagesError, match="interrupted by SIGTERM"), library.interruptible(), held:
        os.kill(os.getpid(), signal.SIGTERM)
    assert not policy.exists()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="there is no dpkg on this controller")
def test_dpkg_answers_for_real() -> None:
    status = library.Runner().status(["dpkg", "no-such-package-as-this"])
    assert status["dpkg"][0] in ("ii", "hi")
    assert "no-such-package-as-this" not in status
    assert library.Runner().status([]) == {}
