# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that is killed anywhere is finished by the next one, and no acknowledged write is lost meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import random
from typing import TYPE_CHECKING

from tests import results

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.postgres_writer import Writer
    from tests.lab import Lab

SEEDS = [int(seed) for seed in os.environ.get("GROUNDPLANE_SEEDS", "11 7").split()]
"""Where runs are killed: each seed draws a task and a moment within it. Every second run is one with other values."""
HOSTS = ("--limit", os.environ.get("GROUNDPLANE_INTERRUPTED_HOSTS") or "all:!kubernetes")
"""The hosts of these runs: the nodes make each of them three times as long."""


def changes(number: int) -> str:
    """Variables that make a run restart, reload and rewrite something in each role; another set for each number."""
    return json.dumps(
        {
            "host_journal_max_mb": 100 + number,
            "etcd_snapshot_count": 10000 + number,
            "postgres_parameters": {"max_worker_processes": 8 + number, "log_min_duration_statement": 1000 + number},
            "load_balancer_maxconn": 2000 + number,
        }
    )


def kill_at_task(lab: Lab, number: int, delay: float, arguments: list[str], log: Path) -> str:
    """Start the site's run, kill it and its forks `delay` seconds into task `number`, and return that task's name."""
    started = itertools.count(1)

    def reached(line: str) -> bool:
        return line.startswith(("TASK [", "RUNNING HANDLER [")) and next(started) == number

    line = lab.play_killed("site", *HOSTS, *arguments, at=reached, delay=delay, log=log)
    return line.strip() if line else "the run ended before"


def test_a_run_that_is_killed_again_and_again_converges(lab: Lab, postgres_writer: Writer, tmp_path: Path) -> None:
    """Each run has to finish what the killed ones before it began: to change much, then to take it all back."""
    listed = lab.play("site", *HOSTS, "--list-tasks").output.splitlines()
    tasks = sum("TAGS: [" in line and not line.startswith("  play #") for line in listed)
    assert tasks > 40, listed
    killed = []
    with postgres_writer:
        for turn, seed in enumerate(SEEDS):
            draw = random.Random(seed)
            number, delay = draw.randint(1, tasks), draw.uniform(0, 3)
            arguments = ["-e", changes(seed)] if turn % 2 == 0 else []
            task = kill_at_task(lab, number, delay, arguments, tmp_path / f"killed_{seed}.log")
            killed.append(f"{delay:.1f} s into number {number} of {tasks}: {task}")
        again = lab.play("site", *HOSTS)
        assert again.returncode == 0, "\n".join([*killed, again.output[-4000:]])
        idle = lab.play("site", *HOSTS, "--diff")
        assert idle.returncode == 0, "\n".join([*killed, idle.output[-4000:]])
        assert idle.changed == {}, "\n".join([*killed, *idle.changes])
    outcome = postgres_writer.outcome()
    results.record(
        "interrupted_runs",
        {
            "killed": killed,
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
