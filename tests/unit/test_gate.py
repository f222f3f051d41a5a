# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions of the rolling gate: what it allows, what it refuses, and with which words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import (
    RAFT_SLACK,
    Action,
    EtcdMember,
    EtcdState,
    Health,
    PatroniMember,
    PatroniState,
    Wish,
    decide,
    hand_over,
    settled,
)
from hypothesis import given
from hypothesis import strategies as st

LEADER = 1


def etcd(*members: EtcdMember, **more: object) -> EtcdState:
    return EtcdState("lab", members, **more)  # type: ignore[arg-type]


def voter(number: int, health: Health = Health.SERVING, **more: object) -> EtcdMember:
    values = {"leader": LEADER, "applied": 5000, "index": 5000, "cause": "" if health is Health.SERVING else "a cause"}
    return EtcdMember(number, f"data{number}", health, **{**values, **more})  # type: ignore[arg-type]


def patroni(*members: PatroniMember, mode: str = "quorum", **more: object) -> PatroniState:
    return PatroniState("lab", members, mode=mode, **more)  # type: ignore[arg-type]


PRIMARY = PatroniMember("data1", Health.SERVING, leader=True, state="running", timeline=3, lag=0)


def standby(number: int, **more: object) -> PatroniMember:
    values = {"state": "running", "streaming": True, "timeline": 3, "lag": 0, "sync": True, "health": Health.SERVING}
    return PatroniMember(f"data{number}", **{**values, **more})  # type: ignore[arg-type]


THREE = etcd(voter(1), voter(2), voter(3))
TRIO = patroni(PRIMARY, standby(2), standby(3))


# --- etcd ---


def test_a_follower_of_a_healthy_trio_may_go() -> None:
    verdict = decide(THREE, Wish("data2"))
    assert (verdict.allowed, verdict.action) == (True, Action.RESTART)
    assert verdict.reason == "etcd cluster lab keeps 2 of 2 needed voters without data2"


def test_the_leader_goes_last() -> None:
    assert decide(THREE, Wish("data1")).action is Action.DEFER
    assert not decide(THREE, Wish("data1")).allowed


def test_a_leader_hands_over_to_the_most_up_to_date_follower() -> None:
    state = etcd(voter(1), voter(2, applied=4990), voter(3, applied=4999))
    verdict = decide(state, Wish("data1", "yield"))
    assert (verdict.allowed, verdict.action, verdict.target) == (True, Action.YIELD, "data3")


@pytest.mark.parametrize("lead", ["defer", "yield"])
@pytest.mark.parametrize(
    ("other", "words"),
    [
        (voter(3, Health.DOWN), "data3 is down (a cause)"),
        (voter(3, Health.UNKNOWN), "data3 is unknown (a cause)"),
        (voter(3, Health.FAILING), "data3 is failing (a cause)"),
        (voter(3, applied=5000 - RAFT_SLACK - 1), "data3 is serving"),
    ],
)
def test_nobody_leaves_while_another_cannot_carry(lead: str, other: EtcdMember, words: str) -> None:
    verdict = decide(etcd(voter(1), voter(2), other), Wish("data2", lead))
    assert not verdict.allowed
    assert not verdict.final  # it may come back
    assert verdict.reason == (f"etcd cluster lab cannot lose data2 now: 1 of 2 needed voters would be left; {words}")


def test_what_is_not_running_cannot_be_lost() -> None:
    verdict = decide(etcd(voter(1), voter(2), voter(3, Health.DOWN)), Wish("data3"))
    assert (verdict.allowed, verdict.unlocked) == (True, False)


def test_a_member_that_fails_where_others_need_it_is_not_taken_away() -> None:
    # data1 serves, so there is a quorum; data3 is down, so data2 is in it, whatever its own health says.
    state = etcd(voter(1), voter(2, Health.FAILING), voter(3, Health.DOWN))
    assert not decide(state, Wish("data2", "yield")).allowed


def test_without_any_quorum_a_repair_is_the_last_resort() -> None:
    state = etcd(voter(1, Health.FAILING), voter(2, Health.DOWN), voter(3, Health.UNKNOWN))
    verdict = decide(state, Wish("data1", "yield"))
    assert (verdict.allowed, verdict.last_resort, verdict.unlocked) == (True, True, True)
    # A member we cannot see may serve others.
    assert not decide(state, Wish("data3", "yield")).allowed


@pytest.mark.parametrize(
    ("state", "member", "reason"),
    [
        (THREE, "data9", "etcd cluster lab has no member data9, only data1, data2, data3"),
        (
            replace(THREE, alarms=("NOSPACE of data2",)),
            "data2",
            "etcd cluster lab has the alarm NOSPACE of data2: clear the cause and disarm it first",
        ),
        (
            replace(THREE, strangers=("https://data3:2379",)),
            "data2",
            "etcd cluster lab is not one cluster: https://data3:2379 belongs to another",
        ),
        (
            etcd(voter(1), voter(2)),
            "data2",
            "etcd cluster lab cannot lose data2 now: 1 of 2 needed voters would be left",
        ),
    ],
)
def test_what_waiting_does_not_mend_is_refused_at_once(state: EtcdState, member: str, reason: str) -> None:
    verdict = decide(state, Wish(member, "yield"))
    assert (verdict.allowed, verdict.final, verdict.reason) == (False, True, reason)


def test_a_learner_is_waited_for_and_has_no_vote_itself() -> None:
    state = etcd(voter(1), voter(2), voter(3), voter(4, Health.FAILING, learner=True))
    assert decide(state, Wish("data2")).reason == "etcd cluster lab: data4 is still a learner"
    assert decide(state, Wish("data4")).allowed


def test_members_that_disagree_who_leads_are_waited_for() -> None:
    verdict = decide(etcd(voter(1), voter(2, leader=3), voter(3)), Wish("data2"))
    assert (verdict.allowed, verdict.final) == (False, False)


def test_a_cluster_too_small_to_lose_anybody_needs_consent() -> None:
    alone = etcd(voter(1))
    assert not decide(alone, Wish("data1", "yield")).allowed
    assert decide(alone, Wish("data1", "yield", outage=True)).allowed
    assert not decide(etcd(voter(1), voter(2, Health.UNKNOWN)), Wish("data1", outage=True)).allowed
    # Consent is for small clusters only.
    assert not decide(etcd(voter(1), voter(2), voter(3, Health.DOWN)), Wish("data2", outage=True)).allowed


def test_etcd_has_settled_when_it_is_as_good_as_before() -> None:
    wish = Wish("data2")
    assert settled(THREE, wish, THREE) == ""
    assert settled(etcd(voter(1), voter(2, Health.DOWN), voter(3)), wish, THREE) == (
        "etcd cluster lab: data2 is down (a cause)"
    )
    behind = etcd(voter(1), voter(2, applied=5), voter(3))
    assert settled(behind, wish, THREE) == "etcd cluster lab: data2 has not caught up"
    # Another one that went meanwhile counts, one that was gone before does not.
    gone = etcd(voter(1), voter(2), voter(3, Health.DOWN))
    assert settled(gone, wish, THREE) == "etcd cluster lab: data3 has not caught up"
    assert settled(gone, wish, gone) == ""


MEMBERS = st.builds(
    lambda number, health, leader, applied, learner: EtcdMember(
        number, f"data{number}", health, learner, leader, applied, 5000
    ),
    st.just(0),
    st.sampled_from(Health),
    st.integers(0, 5),
    st.sampled_from([5000, 4500, 100]),
    st.sampled_from([False, False, False, True]),
)
STATES = st.lists(MEMBERS, min_size=1, max_size=7).map(
    lambda members: etcd(*(replace(member, id=n, name=f"data{n}") for n, member in enumerate(members, 1)))
)


@given(STATES, st.integers(1, 7), st.sampled_from(["defer", "yield"]))
def test_no_verdict_ever_breaks_a_quorum(state: EtcdState, number: int, lead: str) -> None:
    member = state.find(f"data{number}")
    verdict = decide(state, Wish(f"data{number}", lead))
    if member is None or not verdict.allowed:
        return
    rest = [other for other in state.voters if other != member and other.health is Health.SERVING]
    quorum_stays = len(rest) >= len(state.voters) // 2 + 1
    costs_nothing = member.health is Health.DOWN or member.learner
    no_quorum = not any(other.health is Health.SERVING for other in state.voters)
    assert quorum_stays or costs_nothing or (no_quorum and member.health is Health.FAILING and verdict.last_resort)


@given(STATES, st.integers(1, 7))
def test_a_serving_leader_never_leaves_without_handing_over(state: EtcdState, number: int) -> None:
    member, leader = state.find(f"data{number}"), state.leader
    if member is None or leader != member or member.health is not Health.SERVING or member.learner:
        return
    assert not decide(state, Wish(member.name, "defer")).allowed
    verdict = decide(state, Wish(member.name, "yield"))
    assert not verdict.allowed or (verdict.action is Action.YIELD and verdict.target != member.name)
    if verdict.allowed:
        target = state.find(verdict.target)
        assert target is not None
        assert target in state.able


# --- Patroni ---


def test_a_standby_may_go_when_another_keeps_commits_going() -> None:
    verdict = decide(TRIO, Wish("data2"))
    assert (verdict.allowed, verdict.action) == (True, Action.RESTART)
    assert verdict.reason == "Patroni cluster lab keeps its leader and 1 standby without data2"


def test_a_primary_is_deferred_or_hands_over_to_the_standby_least_behind() -> None:
    assert decide(TRIO, Wish("data1")).action is Action.DEFER
    state = patroni(PRIMARY, standby(2, lag=4096), standby(3, lag=16))
    verdict = decide(state, Wish("data1", "yield"))
    assert (verdict.allowed, verdict.action, verdict.target) == (True, Action.YIELD, "data3")


def test_a_primary_hands_over_only_to_whom_has_every_acknowledged_commit() -> None:
    state = patroni(PRIMARY, standby(2, sync=False), standby(3, lag=16))
    assert decide(state, Wish("data1", "yield")).target == "data3"
    state = patroni(PRIMARY, standby(2, sync=False), standby(3, nofailover=True))
    assert not decide(state, Wish("data1", "yield")).allowed


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (
            {"health": Health.DOWN, "cause": "https://data3:8008: connection refused"},
            "does not run PostgreSQL (https://data3:8008: connection refused)",
        ),
        ({"health": Health.FAILING, "state": "starting"}, "does not run PostgreSQL (starting)"),
        ({"streaming": False}, "does not stream from the leader"),
        ({"timeline": 2}, "is on timeline 2 instead of 3"),
        ({"lag": 2_000_000}, "is 2000000 bytes behind"),
        ({"lag": None}, "is an unknown number of bytes behind"),
    ],
)
def test_nobody_leaves_while_another_standby_is_unwell(change: dict[str, object], cause: str) -> None:
    state = patroni(PRIMARY, standby(2), standby(3, **change))
    for name in ("data1", "data2"):
        verdict = decide(state, Wish(name, "yield"))
        assert (verdict.allowed, verdict.final) == (False, False)
        assert verdict.reason == f"Patroni cluster lab cannot lose {name} now: data3 {cause}"


def test_a_standby_that_carries_nothing_may_be_repaired_beside_another_broken_one() -> None:
    broken = {"health": Health.FAILING, "state": "start failed", "sync": False, "streaming": False}
    state = patroni(PRIMARY, standby(2, **broken), standby(3, **broken))
    assert decide(state, Wish("data2")).allowed
    creating = patroni(PRIMARY, standby(2, **{**broken, "state": "creating replica"}), standby(3))
    assert decide(creating, Wish("data2")).last_resort


def test_an_agent_that_is_down_may_be_started() -> None:
    state = patroni(PRIMARY, standby(2, health=Health.DOWN, sync=False, streaming=False), standby(3))
    assert decide(state, Wish("data2")).allowed


def test_commits_never_stall_for_a_restart() -> None:
    two = patroni(PRIMARY, standby(2), standby(3), wanted=2)
    verdict = decide(two, Wish("data2"))
    assert (verdict.allowed, verdict.final) == (False, True)
    assert verdict.reason == (
        "Patroni cluster lab cannot lose data2: each commit waits for 2 standbys and 1 would be left"
    )
    late = patroni(PRIMARY, standby(2), standby(3, sync=False))
    assert not decide(late, Wish("data2")).allowed
    assert decide(patroni(PRIMARY, standby(2), standby(3, sync=False), mode="on"), Wish("data2")).allowed
    assert decide(patroni(PRIMARY, standby(2, sync=False), mode="off"), Wish("data2")).allowed


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (replace(TRIO, paused=True), "Patroni cluster lab is paused, nobody would take over: resume it first"),
        (
            replace(TRIO, scheduled="2026-01-01T03:00:00+00:00"),
            "Patroni cluster lab has a switchover scheduled at 2026-01-01T03:00:00+00:00: let it pass or cancel it",
        ),
    ],
)
def test_a_cluster_under_somebody_elses_hands_is_left_alone(state: PatroniState, reason: str) -> None:
    verdict = decide(state, Wish("data2"))
    assert (verdict.allowed, verdict.final, verdict.reason) == (False, True, reason)


def test_without_a_leader_nobody_leaves() -> None:
    state = patroni(standby(1), standby(2), standby(3))
    verdict = decide(state, Wish("data2"))
    assert (verdict.allowed, verdict.final, verdict.reason) == (False, False, "Patroni cluster lab has no leader")


def test_a_lone_primary_needs_consent() -> None:
    alone = patroni(PRIMARY)
    assert decide(alone, Wish("data1", "yield")).final
    assert decide(alone, Wish("data1", "yield", outage=True)).action is Action.RESTART


def test_a_lower_value_is_taken_by_the_leader_first_and_in_place() -> None:
    lowered = {"pending_restart": True, "lowered": ("max_connections",)}
    state = patroni(replace(PRIMARY, **lowered), standby(2, **lowered), standby(3, **lowered))
    assert decide(state, Wish("data2", postgres=True)).action is Action.DEFER
    verdict = decide(state, Wish("data1", "defer", postgres=True))
    assert (verdict.allowed, verdict.action) == (True, Action.RESTART)
    # The restart of the whole agent follows the usual order.
    assert decide(state, Wish("data1", "defer")).action is Action.DEFER


def test_patroni_has_settled_when_it_is_as_good_as_before() -> None:
    wish = Wish("data2")
    assert settled(TRIO, wish, TRIO) == ""
    starting = patroni(PRIMARY, standby(2, health=Health.FAILING, state="starting", sync=False), standby(3))
    assert settled(starting, wish, TRIO) == (
        "Patroni cluster lab: data2 does not run PostgreSQL (starting), 1 of 2 standbys are back in the synchronous set"
    )
    pending = patroni(PRIMARY, standby(2, pending_restart=True), standby(3))
    assert settled(pending, wish, TRIO) == ""
    assert "waits for a restart" in settled(pending, Wish("data2", postgres=True), TRIO)


PATRONI_MEMBERS = st.builds(
    lambda **values: PatroniMember("", **values),
    health=st.sampled_from(Health),
    state=st.sampled_from(["running", "starting", "creating replica"]),
    streaming=st.booleans(),
    timeline=st.sampled_from([3, 3, 2]),
    lag=st.sampled_from([0, 0, 10_000_000, None]),
    sync=st.booleans(),
    nofailover=st.sampled_from([False, False, True]),
)


@st.composite
def patroni_states(draw: st.DrawFn) -> PatroniState:
    members = draw(st.lists(PATRONI_MEMBERS, min_size=1, max_size=5))
    leads = draw(st.integers(0, len(members)))
    return patroni(
        *(replace(item, name=f"data{n}", leader=n == leads) for n, item in enumerate(members, 1)),
        mode=draw(st.sampled_from(["off", "on", "quorum"])),
        wanted=draw(st.integers(1, 2)),
    )


@given(patroni_states(), st.integers(1, 5), st.sampled_from(["defer", "yield"]))
def test_no_verdict_ever_takes_the_second_copy_or_the_leader(state: PatroniState, number: int, lead: str) -> None:
    member = state.find(f"data{number}")
    verdict = decide(state, Wish(f"data{number}", lead))
    if member is None or not verdict.allowed:
        return
    useless = member.health is Health.DOWN or (
        member.health is Health.FAILING and not member.leader and not member.sync
    )
    if useless:
        return
    assert not (member.leader and verdict.action is not Action.YIELD)
    others = [other for other in state.members if other != member]
    assert all(not state.fault(other, Wish("").lag_limit) for other in others)
    standbys = [other for other in others if not other.leader and other.name != verdict.target]
    assert state.mode == "off" or len(standbys) >= state.wanted
    assert (
        state.mode == "off" or not verdict.target or any(item.name == verdict.target and item.sync for item in others)
    )


# --- handing over ---


def test_leadership_goes_to_the_candidate_or_the_best() -> None:
    assert hand_over(TRIO).target == "data2"
    assert hand_over(TRIO, "data3").target == "data3"
    assert hand_over(TRIO, "data1").action is Action.NOTHING
    assert hand_over(TRIO, "data7").reason == "Patroni cluster lab has no member data7, only data1, data2, data3"
    assert hand_over(THREE, "data2").target == "data2"
    lagging = patroni(PRIMARY, standby(2, lag=9_000_000), standby(3))
    assert not hand_over(lagging, "data2").allowed
