# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client that writes notices when a member of the database freezes, hands over, crashes; no write is lost."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests import results
from tests.faults.cluster import RUNS, wait_until_sound
from tests.faults.drill import frozen, summary
from tests.faults.postgres_writer import Outcome, Witnesses, Writer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab


@dataclass
class Drill:
    """The outcomes of one drill's runs, and what else was measured, by name."""

    name: str
    outcomes: list[Outcome] = field(default_factory=list)
    dual: list[float] = field(default_factory=list)
    claimed: list[float] = field(default_factory=list)
    further: dict[str, list[float]] = field(default_factory=dict)

    def add(self, writer: Writer, witnesses: Witnesses, **further: float) -> None:
        """Read all back and keep what was seen; each attempt goes into a file beside the figures."""
        outcome = writer.outcome()
        results.DIRECTORY.mkdir(parents=True, exist_ok=True)
        writer.record.write(results.DIRECTORY / f"{self.name}_{len(self.outcomes)}.jsonl")
        self.outcomes.append(outcome)
        self.dual.append(witnesses.dual())
        self.claimed.append(witnesses.claimed())
        for name, value in further.items():
            self.further.setdefault(name, []).append(round(value, 3))
        print(f"\n{self.name}: {asdict(outcome)} dual {self.dual[-1]} claimed {self.claimed[-1]} {further}")

    def record(self) -> None:
        """Keep what was measured."""
        results.record(
            self.name,
            {
                "gap_s": summary([outcome.gap for outcome in self.outcomes]),
                "acknowledged": sum(outcome.acknowledged for outcome in self.outcomes),
                "failed": sum(outcome.failed for outcome in self.outcomes),
                "lost": sum(outcome.lost for outcome in self.outcomes),
                "ghosts": sum(outcome.ghosts for outcome in self.outcomes),
                "two_committed_ms": summary(self.dual),
                "two_claimed_ms": summary(self.claimed),
                **{name: summary(values) for name, values in self.further.items()},
                "load": round(os.getloadavg()[0], 1),
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
        )

    def holds(self, gap: float) -> None:
        """Nothing was lost, no two members committed at once, and writes went on in time."""
        assert [outcome.lost for outcome in self.outcomes] == [0] * len(self.outcomes)
        assert self.dual == [0] * len(self.outcomes)
        assert max(outcome.gap for outcome in self.outcomes) <= gap


@pytest.fixture
def runs(lab: Lab) -> Iterator[range]:
    """The runs of a drill; before the first and after the last the cluster is sound."""
    wait_until_sound(lab)
    yield range(RUNS)
    wait_until_sound(lab)


def others(lab: Lab, host: str) -> list[str]:
    return [member for member in lab.groups["postgres"] if member != host]


def test_a_frozen_primary_is_replaced_and_comes_back_as_a_standby(
    lab: Lab, postgres_writer: Writer, runs: range
) -> None:
    drill = Drill("postgres_primary_frozen")
    for _ in runs:
        wait_until_sound(lab)
        with Witnesses(lab) as witnesses, postgres_writer:
            primary = witnesses.leader()
            postgres_writer.watch(1)
            with frozen(lab, primary):
                start = time.time()
                postgres_writer.recovered(start, 60)
                postgres_writer.watch(2)
                heir = witnesses.leader()
            returned = wait_until_sound(lab, heir)
            assert witnesses.leader() == heir != primary
        drill.add(postgres_writer, witnesses, standby_again_s=returned)
    drill.record()
    drill.holds(gap=30)


def test_a_planned_switchover_is_short(lab: Lab, postgres_writer: Writer, runs: range) -> None:
    drill = Drill("postgres_switchover")
    for _ in runs:
        wait_until_sound(lab)
        with Witnesses(lab) as witnesses, postgres_writer:
            primary = witnesses.leader()
            play = lab.play("switchover")
            assert play.returncode == 0, play.output
            postgres_writer.watch(3)
            assert witnesses.leader() != primary
            wait_until_sound(lab)
        drill.add(postgres_writer, witnesses)
    drill.record()
    drill.holds(gap=3)


def test_a_killed_postmaster_is_back_soon(lab: Lab, postgres_writer: Writer, runs: range) -> None:
    drill = Drill("postgres_postmaster_killed")
    for _ in runs:
        wait_until_sound(lab)
        with Witnesses(lab) as witnesses, postgres_writer:
            primary = witnesses.leader()
            start = time.time()
            lab.run(primary, "kill -9 $(head -n 1 /var/lib/postgresql/*/*/postmaster.pid)")
            # The kill was somewhere in these seconds: the gap is the writer's.
            postgres_writer.recovered(start + 2, 60)
            wait_until_sound(lab)
        drill.add(postgres_writer, witnesses)
        assert drill.outcomes[-1].failed > 0, "the writer noticed nothing: was it the postmaster?"
    drill.record()
    drill.holds(gap=10)


def test_a_frozen_standby_stalls_no_commit(lab: Lab, postgres_writer: Writer, runs: range) -> None:
    drill = Drill("postgres_standby_frozen")
    for _ in runs:
        wait_until_sound(lab)
        with Witnesses(lab) as witnesses, postgres_writer:
            primary = witnesses.leader()
            standby = others(lab, primary)[0]
            with frozen(lab, standby):
                # Longer than the time after which its session is given up.
                postgres_writer.watch(15)
            returned = wait_until_sound(lab, primary)
            assert witnesses.leader() == primary
        drill.add(postgres_writer, witnesses, standby_again_s=returned)
    drill.record()
    drill.holds(gap=1.5)


def test_patroni_that_stands_still_is_no_second_primary(lab: Lab, postgres_writer: Writer, runs: range) -> None:
    """Without a watchdog its PostgreSQL goes on, while another member leads: nothing that it takes is acknowledged."""
    drill = Drill("postgres_patroni_stopped")
    for _ in runs:
        wait_until_sound(lab)
        with Witnesses(lab) as witnesses, postgres_writer:
            primary = witnesses.leader()
            lab.run(primary, "systemctl kill --signal STOP --kill-whom main patroni")
            try:
                heir = witnesses.leader(besides=primary)
                postgres_writer.recovered(time.time(), 60)
                postgres_writer.watch(3)
            finally:
                lab.run(primary, "systemctl kill --signal CONT --kill-whom main patroni")
            returned = wait_until_sound(lab, heir)
        drill.add(postgres_writer, witnesses, standby_again_s=returned)
    drill.record()
    drill.holds(gap=30)
