# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which server of an object store the gate lets go: by example with its words, and on any store."""

from __future__ import annotations

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import (
    Action,
    Health,
    Wish,
    decide,
    hand_over,
    settled,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_object_store import Server, ServersState
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import Answer
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_cluster import (
    ObjectStoreError,
    health_of,
    spare_of,
)
from hypothesis import given
from hypothesis import strategies as st

UP, DOWN, MUTE, FAILING = Health.SERVING, Health.DOWN, Health.UNKNOWN, Health.FAILING


def store(*healths: Health, spare: bool | None = True) -> ServersState:
    """Servers 1, 2, ...; the first is the one that was asked whether it can be spared."""
    return ServersState(
        "lab",
        tuple(
            Server(
                f"data{number}", health, spare if number == 1 and health is UP else None, "" if health is UP else "x"
            )
            for number, health in enumerate(healths, 1)
        ),
    )


ONE = Wish("data1")
SOUND = store(UP, UP, UP, UP)


def test_a_server_leaves_where_it_can_be_spared() -> None:
    verdict = decide(SOUND, ONE)
    assert (verdict.allowed, verdict.action, verdict.last_resort) == (True, Action.RESTART, False)
    assert verdict.reason == "object store lab keeps its write quorum without data1"
    # One that is known to be down is in the server's own count.
    assert decide(store(UP, UP, UP, UP, UP, DOWN), ONE).allowed


@pytest.mark.parametrize("silent", [MUTE, FAILING])
def test_while_another_is_silent_nobody_leaves(silent: Health) -> None:
    verdict = decide(store(UP, UP, silent, UP), ONE)
    assert (verdict.allowed, verdict.final) == (False, False)
    assert verdict.reason == f"object store lab cannot lose data1 now: data3 is {silent} (x)"
    assert not decide(store(UP, UP, silent, UP), Wish("data1", outage=True)).allowed


def test_without_a_spare_it_waits_and_consent_is_for_what_is_too_small_and_not_for_what_is_broken() -> None:
    small = store(UP, UP, UP, spare=False)
    verdict = decide(small, ONE)
    assert (verdict.allowed, verdict.final) == (False, False)
    assert "or drives are being healed; where it has too few servers to lose one, accept the outage" in verdict.reason
    accepted = decide(small, Wish("data1", outage=True))
    assert accepted.allowed
    assert accepted.reason == "object store lab has no write quorum while data1 is away, and the outage is accepted"
    broken = store(UP, UP, DOWN, UP, spare=False)
    for wish in (ONE, Wish("data1", outage=True)):
        assert decide(broken, wish).reason == "object store lab cannot lose data1 now: data3 is down (x)"


def test_one_that_was_not_asked_is_no_spare() -> None:
    assert not decide(SOUND, Wish("data2")).allowed


def test_who_does_not_run_has_nothing_to_lose() -> None:
    assert decide(store(DOWN, MUTE, DOWN, UP), ONE).reason == (
        "object store lab: data1 is not running, there is nothing to lose"
    )


@pytest.mark.parametrize("health", [MUTE, FAILING])
def test_one_that_does_not_serve_leaves_when_all_others_do_for_the_whole_patience(health: Health) -> None:
    verdict = decide(store(health, UP, UP, UP), ONE)
    assert (verdict.allowed, verdict.last_resort) == (True, True)
    assert verdict.reason == f"object store lab is served by all others, and data1 is {health} (x)"
    assert not decide(store(health, UP, DOWN, UP), ONE).allowed
    assert not decide(store(MUTE), ONE).allowed


def test_where_nobody_counts_a_quorum_there_is_none_to_break() -> None:
    verdict = decide(store(FAILING, FAILING, DOWN, MUTE), ONE)
    assert (verdict.allowed, verdict.last_resort) == (True, True)
    assert verdict.reason == "object store lab has no write quorum that data1 could break"
    assert not decide(store(MUTE, FAILING, DOWN, MUTE), ONE).allowed


def test_who_is_no_server_is_told_and_nobody_leads() -> None:
    verdict = decide(SOUND, Wish("data9"))
    assert verdict.final
    assert verdict.reason == "object store lab has no server data9, only data1, data2, data3, data4"
    assert hand_over(SOUND, "data2").final


def test_it_is_settled_when_all_serve_who_served() -> None:
    assert settled(SOUND, ONE, SOUND) == ""
    assert settled(store(UP, UP, DOWN, UP), ONE, store(UP, UP, DOWN, UP)) == ""
    assert settled(store(UP, UP, MUTE, UP), ONE, SOUND) == "object store lab: data3 is unknown (x)"
    for health in (DOWN, MUTE, FAILING):
        assert settled(store(health, UP, UP, UP), ONE, SOUND) == f"object store lab: data1 is {health} (x)"
    assert settled(SOUND, Wish("data9"), SOUND) == "object store lab does not know data9 yet"


def test_where_nobody_served_it_only_has_to_answer_again() -> None:
    before, back = store(FAILING, FAILING, DOWN, MUTE), store(FAILING, FAILING, DOWN, MUTE)
    assert settled(back, ONE, before) == ""
    assert settled(store(MUTE, FAILING, DOWN, MUTE), ONE, before)
    # Asked of one look, as when a first start is waited for, it has to serve.
    assert settled(before, ONE, before) == "object store lab: data1 is failing (x)"


healths = st.lists(st.sampled_from(list(Health)), min_size=1, max_size=6)


@given(healths, st.booleans(), st.booleans())
def test_a_server_that_serves_leaves_only_when_nobody_else_is_silent(
    all_: list[Health], spare: bool, outage: bool
) -> None:
    verdict = decide(store(UP, *all_, spare=spare), Wish("data1", outage=outage))
    if verdict.allowed:
        assert not {MUTE, FAILING} & set(all_)
        assert spare or (outage and set(all_) == {UP})


@given(healths, healths)
def test_what_is_settled_serves_or_nobody_served(before: list[Health], after: list[Health]) -> None:
    size = min(len(before), len(after))
    was, now = store(*before[:size]), store(*after[:size])
    if not settled(now, ONE, was):
        assert now.members[0].health is UP or (now.members[0].health is FAILING and UP not in before[:size])
        assert all(new.health is UP for old, new in zip(was.members, now.members, strict=True) if old.health is UP)


def test_answers_are_read_and_others_are_not_taken_for_one() -> None:
    assert [health_of("https://h", Answer(status, b"")) for status in (200, 503)] == [UP, FAILING]
    assert [spare_of("https://h", Answer(status, b"")) for status in (200, 412, 503)] == [True, False, False]
    for read in (health_of, spare_of):
        with pytest.raises(ObjectStoreError, match=r"https://h/minio/health/cluster.* answers 404, as no MinIO does"):
            read("https://h", Answer(404, b""))
