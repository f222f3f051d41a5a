# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe of the fault drills: a drill is worth no more than its stopwatch."""

from __future__ import annotations

import itertools
import json
import threading
import time
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tests.faults.drill import Attempt, Probe, Record

if TYPE_CHECKING:
    from pathlib import Path


def record(*acked: float | None, ended: float | None = None) -> Record:
    attempts = [Attempt(number, 0.0, time_, "" if time_ else "no") for number, time_ in enumerate(acked)]
    return Record(attempts, ended)


class TestLongestGap:
    def test_is_the_longest_time_between_two_acknowledgements(self) -> None:
        assert record(1.0, 1.5, None, None, 4.0, 4.25).longest_gap() == 2.5

    def test_does_not_depend_on_the_order_of_arrival(self) -> None:
        assert record(4.0, 1.0, 1.5).longest_gap() == 2.5

    def test_counts_an_outage_that_outlasts_the_record(self) -> None:
        assert record(1.0, 1.5, None, ended=9.5).longest_gap() == 8.0

    def test_without_any_answer_is_infinite(self) -> None:
        assert record(None, None, ended=2.0).longest_gap() == float("inf")

    def test_within_a_window(self) -> None:
        whole = record(1.0, 4.0, 5.0, 10.0, ended=10.0)
        assert whole.longest_gap(until=6.0) == 3.0
        assert whole.longest_gap(since=4.0, until=5.5) == 1.0

    @given(st.lists(st.floats(1, 1e6), min_size=2), st.floats(0, 1e3))
    def test_is_never_less_than_any_step(self, times: list[float], after: float) -> None:
        ordered = sorted(times)
        gap = record(*times, ended=ordered[-1] + after).longest_gap()
        assert all(gap >= later - earlier for earlier, later in itertools.pairwise(ordered))
        assert gap <= ordered[-1] + after - ordered[0]


class TestProbe:
    def test_keeps_its_pace_while_answers_are_slow(self) -> None:
        with Probe(lambda _: time.sleep(0.2), 0.02, workers=20) as probe:
            probe.watch(0.6)
        assert len(probe.record.attempts) > 15

    def test_with_one_worker_waits_for_the_answer(self) -> None:
        together, most = 0, 0
        lock = threading.Lock()

        def action(_: int) -> None:
            nonlocal together, most
            with lock:
                together += 1
                most = max(most, together)
            time.sleep(0.02)
            with lock:
                together -= 1

        with Probe(action, 0.005) as probe:
            probe.watch(0.2)
        assert most == 1
        assert probe.record.acknowledged

    def test_an_exception_is_a_failed_attempt_with_its_reason(self) -> None:
        def action(number: int) -> None:
            if number == 0:
                raise ConnectionError("refused")

        with Probe(action, 0.01) as probe:
            probe.watch(0.1)
        (failed,) = probe.record.failed
        assert (failed.id, failed.acked, failed.error) == (0, None, "ConnectionError: refused")

    def test_ids_are_unique_and_the_record_can_be_read_back(self, tmp_path: Path) -> None:
        with Probe(lambda _: None, 0.002, workers=8) as probe:
            probe.watch(0.2)
        probe.record.write(tmp_path / "attempts")
        read = [Attempt(**json.loads(line)) for line in (tmp_path / "attempts").read_text().splitlines()]
        assert read == probe.record.attempts
        assert len({attempt.id for attempt in read}) == len(read)
        assert all(attempt.latency is not None and attempt.latency >= 0 for attempt in read)
