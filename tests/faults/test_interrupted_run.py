# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that is killed anywhere is finished by the next one, and no acknowledged write is lost meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import random
from typing import TYPE_CHECKING

import pytest

from tests import results

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.postgres_writer import Writer
    from tests.lab import Lab

SEEDS = [int(seed) for seed in os.environ.get("GROUNDPLANE_SEEDS", "2 7").split()]
"""Where runs are killed: each seed draws a task and a moment within it."""
HOSTS = ("--limit", os.environ.get("GROUNDPLANE_INTERRUPTED_HOSTS") or "all:!kubernetes")
"""The hosts of these runs: the nodes make each of them three times as long."""


def changes(seed: int) -> str:
    """Variables that make a run restart, reload and rewrite something in each role; another set for each seed."""
    return json.dumps(
        {
            "host_journal_max_mb": 100 + seed,
            "etcd_snapshot_count": 10000 + seed,
            "postgres_parameters": {"max_worker_processes": 8 + seed, "log_min_duration_statement": 1000 + seed},
            "load_balancer_maxconn": 2000 + seed,
        }
    )


def kill_at_task(lab: Lab, number: int, delay: float, variables: str, log: Path) -> str:
    """Start the site's run, kill it and its forks `delay` seconds into task `number`, and return that task's name."""
    started = itertools.count(1)

    def reached(line: str) -> bool:
        return line.startswith(("TASK [", "RUNNING HANDLER [")) and next(started) == number

    line = lab.play_killed("site", *HOSTS, "-e", variables, at=reached, delay=delay, log=log)
    return line.strip() if line else "the run ended before"


@pytest.fixture(scope="module")
def own_values_again(lab: Lab) -> Iterator[None]:
    """The site is left with the values of its inventory."""
    yield
    back = lab.play("site", *HOSTS)
    assert back.returncode == 0, back.output[-4000:]


@pytest.mark.usefixtures("own_values_again")
@pytest.mark.parametrize("seed", SEEDS)
def test_killed_run_converges(lab: Lab, postgres_writer: Writer, tmp_path: Path, seed: int) -> None:
    listed = lab.play("site", *HOSTS, "--list-tasks").output.splitlines()
    tasks = sum("TAGS: [" in line and not line.startswith("  play #") for line in listed)
    assert tasks > 40, listed
    draw = random.Random(seed)
    number, delay = draw.randint(1, tasks), draw.uniform(0, 3)
    variables = changes(seed)
    with postgres_writer:
        killed = kill_at_task(lab, number, delay, variables, tmp_path / "killed.log")
        again = lab.play("site", *HOSTS, "-e", variables)
        assert again.returncode == 0, f"killed at {killed}\n{again.output[-4000:]}"
        idle = lab.play("site", *HOSTS, "--diff", "-e", variables)
        assert idle.returncode == 0, f"killed at {killed}\n{idle.output[-4000:]}"
        assert idle.changed == {}, "\n".join([f"killed at {killed}", *idle.changes])
    outcome = postgres_writer.outcome()
    results.record(
        f"interrupted_run_{seed}",
        {
            "task": number,
            "of": tasks,
            "killed_at": killed,
            "seconds_into_it": round(delay, 1),
            "changed_by_the_next_run": sum(again.changed.values()),
            "acknowledged": outcome.acknowledged,
            "failed": outcome.failed,
            "lost": outcome.lost,
            "ghosts": outcome.ghosts,
            "gap_s": outcome.gap,
            "load": round(os.getloadavg()[0], 1),
        },
    )
    assert outcome.lost == 0
