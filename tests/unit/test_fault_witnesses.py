# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the witnesses of a drill conclude: two members that commit at once are seen, one after the other are not two."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.faults.drill import Attempt, Record
from tests.faults.postgres_writer import overlap, spans_of

PERIOD = 0.1


def asked(*moments: float, answer: str = "committed", slow: float = 0.001) -> list[Attempt]:
    return [Attempt(number, moment, moment + slow, answer=answer) for number, moment in enumerate(moments)]


def every(start: float, end: float, answer: str = "committed") -> list[Attempt]:
    """Questions at the pace of the witnesses."""
    return asked(*[start + PERIOD * step for step in range(round((end - start) / PERIOD))], answer=answer)


def of(attempts: list[Attempt]) -> list[tuple[float, float]]:
    return spans_of(Record(attempts), "committed", PERIOD)


def dual(first: list[Attempt], second: list[Attempt]) -> float:
    return overlap({"data1": of(first), "data2": of(second)})


def test_answers_without_a_break_are_one_span() -> None:
    ((start, end),) = of(every(0, 3))
    assert (start, round(end, 6)) == (0, 2.901)


def test_another_answer_or_none_ends_a_span() -> None:
    between = [Attempt(99, 1.0, 1.01, answer="standby")]
    assert len(of(every(0, 1) + between + every(1.1, 2))) == 2
    assert len(of([*every(0, 1), Attempt(99, 1.0, None, error="gone"), *every(1.1, 2)])) == 2


def test_a_member_that_stood_still_did_not_commit_meanwhile() -> None:
    """Its last question before is answered after, or its next one comes after: neither fills the time between."""
    frozen = every(0, 1) + asked(1.0, slow=20) + every(21, 22)
    assert dual(frozen, every(5, 20)) == 0


def test_the_time_in_which_two_committed_is_counted() -> None:
    assert dual(every(0, 10), every(8, 12)) == 1901


def test_a_single_commit_beside_another_primary_is_seen() -> None:
    assert dual(every(0, 10), asked(5.05, slow=0.0004)) == 1


def test_a_leader_that_ended_within_a_period_of_the_next_is_not_a_second_one() -> None:
    assert dual(every(0, 1), every(0.92, 2)) == 0


@given(st.lists(st.integers(min_value=1, max_value=50), min_size=2, max_size=6))
def test_one_after_the_other_is_never_two_at_once(steps: list[int]) -> None:
    """Members that lead in turn, each from when the one before has ended."""
    ends = list(itertools.accumulate(steps))
    turns = [every(start * PERIOD, end * PERIOD) for start, end in itertools.pairwise([0, *ends])]
    spans: dict[str, list[tuple[float, float]]] = {"data0": [], "data1": [], "data2": []}
    for number, turn in enumerate(turns):
        spans[f"data{number % 3}"] += of(turn)
    assert overlap(spans) == 0
