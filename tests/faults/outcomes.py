# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the runs of a drill have shown: kept with its circumstances, and held against what is promised."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from tests import results
from tests.faults.drill import summary

if TYPE_CHECKING:
    from tests.faults.drill import Outcome
    from tests.faults.postgres_writer import Witnesses, Writer


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
            },
        )

    def holds(self, gap: float) -> None:
        """Nothing was lost, no two members committed at once, and writes went on in time."""
        assert [outcome.lost for outcome in self.outcomes] == [0] * len(self.outcomes)
        assert self.dual == [0] * len(self.outcomes)
        assert max(outcome.gap for outcome in self.outcomes) <= gap
