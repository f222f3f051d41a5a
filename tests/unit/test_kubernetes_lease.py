# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who holds the lease of the cluster, until when, and which run is over."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_lease import (
    LeaseHeldError,
    Run,
    ended,
    held_until,
    holder,
    taken,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.process import kernel, started
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
ONE = Run("ann", "deploy1", "boot/pid:[1]", 4711, 99, "cp1")
TWO = Run("bob", "deploy2", "boot/pid:[2]", 4711, 99, "cp2")


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def take(lease: dict[str, Any], run: Run, now: datetime, seconds: int = 900, over: str = "") -> dict[str, Any]:
    return taken(lease, run, seconds, now, name="groundplane", over=over)


def test_a_free_lease_is_taken_and_says_by_whom() -> None:
    lease = take({}, ONE, NOW)
    assert held_until(lease) == after(900)
    assert holder(lease) == ONE
    assert lease["spec"]["holderIdentity"] == "deploy1/boot/pid:[1]/4711/99"
    assert lease["spec"]["leaseTransitions"] == 1


def test_its_holder_takes_it_again_for_another_member() -> None:
    first = take({}, ONE, NOW)
    again = take(first, replace(ONE, member="cp3"), after(60))
    assert held_until(again) == after(960)
    assert holder(again).member == "cp3"
    assert again["spec"]["acquireTime"] == first["spec"]["acquireTime"]
    assert again["spec"]["leaseTransitions"] == 1


def test_another_run_is_told_who_has_it_and_until_when() -> None:
    lease = take({}, ONE, NOW)
    with pytest.raises(LeaseHeldError) as refused:
        take(lease, TWO, after(899))
    assert str(refused.value) == (
        "ann on deploy1 changes the cluster, at cp1, with process 4711, and at most until 12:15:00 UTC: "
        "wait for that run"
    )


def test_a_lease_that_was_left_is_taken() -> None:
    lease = take({}, ONE, NOW)
    assert holder(take(lease, TWO, after(900))) == TWO, "its time is over"
    assert holder(take(lease, TWO, after(1), over=ONE.name)) == TWO, "its run is known to be over"
    with pytest.raises(LeaseHeldError):
        take(lease, TWO, after(1), over=TWO.name)


def test_what_somebody_else_wrote_is_respected() -> None:
    spec: dict[str, Any] = {"holderIdentity": "x", "leaseDurationSeconds": 60}
    assert held_until({"spec": spec}) is None, "nobody knows since when"
    foreign = {"metadata": {"name": "groundplane"}, "spec": {**spec, "renewTime": "2026-11-29T12:00:00.000000Z"}}
    with pytest.raises(LeaseHeldError, match="somebody on an unknown host"):
        take(foreign, ONE, after(59))


@given(st.lists(st.tuples(st.sampled_from([ONE, TWO]), st.integers(0, 40), st.integers(1, 60)), max_size=30))
def test_two_runs_never_hold_it_at_once(steps: list[tuple[Run, int, int]]) -> None:
    lease: dict[str, Any] = {}
    now = NOW
    holds: dict[str, datetime] = {}
    for run, pause, seconds in steps:
        now += timedelta(seconds=pause)
        other = TWO if run is ONE else ONE
        try:
            lease = take(lease, run, now, seconds)
        except LeaseHeldError:
            assert holds[other.name] > now
            continue
        assert holds.get(other.name, NOW) <= now
        holds[run.name] = now + timedelta(seconds=seconds)


def this(process: int) -> Run:
    return Run("me", "here", kernel(), process, started(process))


def test_a_run_is_over_when_its_process_is() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        run = this(child.pid)
        assert run.started
        assert not ended(run)
        child.communicate(b"\n")
    assert ended(run)
    assert not ended(this(os.getpid()))
    assert ended(replace(this(os.getpid()), started=1)), "the number of its process belongs to another by now"


def test_of_a_run_elsewhere_nothing_is_known() -> None:
    assert not ended(ONE)
    assert not ended(replace(this(os.getpid()), kernel="", started=1))
