# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`groundplane.onprem.packages` on a host of the running lab, with a package that has a service."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab, Play

HOST = "data3"
PACKAGE = "uptimed"
"""Small, with a daemon that its package starts, and used by nothing here."""


def play(lab: Lab, *flags: str, names: list[str] | None = None, absent: list[str] | None = None) -> Play:
    """Converge packages on the host."""
    variables = json.dumps({"names": names or [], "absent": absent or []})
    return lab.play("../tests/integration/packages", "-e", variables, *flags)


@pytest.fixture(autouse=True)
def clean(lab: Lab) -> Iterator[None]:
    """The package is not there before and after."""
    lab.run(HOST, f"rm -f /usr/sbin/policy-rc.d; apt-get purge -y -qq {PACKAGE}", timeout=120)
    yield
    lab.run(HOST, f"rm -f /usr/sbin/policy-rc.d; apt-get purge -y -qq {PACKAGE}", timeout=120)


def test_a_package_comes_and_goes_and_starts_nothing(lab: Lab) -> None:
    assert play(lab, "--check", names=[PACKAGE]).changed == {HOST: 1}
    assert lab.run(HOST, f"dpkg -s {PACKAGE}", check=False).returncode != 0

    assert play(lab, names=[PACKAGE]).changed == {HOST: 1}
    assert lab.out(HOST, f"dpkg-query -W -f '${{db:Status-Abbrev}}' {PACKAGE}") == "ii"
    assert lab.run(HOST, f"systemctl is-active {PACKAGE}", check=False).stdout.strip() == "inactive"
    assert lab.run(HOST, "test -e /usr/sbin/policy-rc.d", check=False).returncode != 0
    assert play(lab, names=[PACKAGE]).changed == {}
    assert play(lab, "--check", names=[PACKAGE]).changed == {}

    assert play(lab, absent=[PACKAGE]).changed == {HOST: 1}
    assert play(lab, absent=[PACKAGE]).changed == {}


def test_a_killed_run_is_finished_by_the_next(lab: Lab) -> None:
    """Unpacked and not configured is what a kill in the middle leaves."""
    lab.run(
        HOST, f"cd /var/tmp && apt-get download -qq {PACKAGE} && dpkg --unpack {PACKAGE}_*.deb && rm {PACKAGE}_*.deb"
    )
    assert play(lab, names=[PACKAGE]).changed == {HOST: 1}
    assert lab.out(HOST, f"dpkg-query -W -f '${{db:Status-Abbrev}}' {PACKAGE}") == "ii"
    assert lab.out(HOST, "dpkg --audit") == ""


def test_lists_follow_the_sources_even_when_nothing_is_lacking(lab: Lab) -> None:
    lab.run(HOST, "rm -f /var/lib/apt/lists/*Release")
    assert play(lab, names=["sudo"]).changed == {}
    assert lab.run(HOST, "ls /var/lib/apt/lists/*InRelease", check=False).returncode != 0
    assert lab.play("../tests/integration/packages", "-e", '{"names": ["sudo"], "lists": true}').changed == {}
    assert lab.run(HOST, "ls /var/lib/apt/lists/*InRelease", check=False).returncode == 0


def test_what_no_source_has_is_an_error_with_its_name(lab: Lab) -> None:
    for flags in (("--check",), ()):
        failed = play(lab, *flags, names=["no-such-package-as-this"])
        assert failed.returncode != 0
        assert re.search(r"Unable to locate package no-such-package-as-this", failed.output), failed.output
