# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the runs of a drill have shown: kept with its circumstances, and held against what is promised."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tests import results
from tests.faults.drill import summary

if TYPE_CHECKING:
    from tests.faults.drill import Outcome, Record
    from tests.faults.postgres_writer import Witnesses, Writer


class Client(Protocol):
    """Who asked while something was broken."""

    @property
    def record(self) -> Record:
        """What became of each request."""

    def outcome(self) -> Outcome:
        """Read all back."""


@dataclass
class Drill:
    """The outcomes of one drill's runs, and what else was measured, by name."""

    name: str
    outcomes: list[Outcome] = field(default_factory=list)
    further: dict[str, list[float]] = field(default_factory=dict)

    def add(self, client: Client, **further: float) -> None:
        """Read all back and keep what was seen; each attempt goes into a file beside the figures."""
        outcome = client.outcome()
        results.DIRECTORY.mkdir(parents=True, exist_ok=True)
        client.record.write(results.DIRECTORY / f"{self.name}_{len(self.outcomes)}.jsonl")
        self.outcomes.append(outcome)
        for name, value in further.items():
            self.further.setdefault(name, []).append(round(value, 3))
        print(f"\n{self.name}: {asdict(outcome)} {further}")

    def record(self, **more: Any) -> None:
        """Keep what was measured: gaps, sums of what else was counted, and more."""
        counted = [asdict(outcome) for outcome in self.outcomes]
        results.record(
            self.name,
            {
                "gap_s": summary([outcome.gap for outcome in self.outcomes]),
                **{name: sum(one[name] for one in counted) for name in counted[0] if name != "gap"},
                **{name: summary(values) for name, values in self.further.items()},
                **more,
            },
        )

    @property
    def gap(self) -> float:
        """The longest time without a good answer, in seconds."""
        return max(outcome.gap for outcome in self.outcomes)

    def holds(self, gap: float) -> None:
        """Nothing was lost, and answers were good again in time."""
        assert [outcome.lost for outcome in self.outcomes] == [0] * len(self.outcomes)
        assert self.gap <= gap


@dataclass
class WitnessedDrill(Drill):
    """A drill in which each member of a cluster is watched, too."""

    dual: list[float] = field(default_factory=list)
    claimed: list[float] = field(default_factory=list)

    def add_witnessed(self, writer: Writer, witnesses: Witnesses, **further: float) -> None:
        """The same, and what the witnesses saw."""
        self.dual.append(witnesses.dual())
        self.claimed.append(witnesses.claimed())
        self.add(writer, **further)

    def record(self, **more: Any) -> None:
        """The same, and for how long two members did what one may do."""
        super().record(two_committed_ms=summary(self.dual), two_claimed_ms=summary(self.claimed), **more)

    def holds(self, gap: float) -> None:
        """The same, and no two members committed at once."""
        super().holds(gap)
        assert self.dual == [0] * len(self.outcomes)
