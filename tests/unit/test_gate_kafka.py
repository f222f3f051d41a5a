# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which broker and which controller the gate lets go: by example with its words, and on any cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import (
    Action,
    EtcdState,
    Health,
    State,
    Wish,
    decide,
    hand_over,
    settled,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_kafka import (
    BEHIND_LIMIT,
    NO_REQUEST,
    Broker,
    BrokerState,
    Controller,
    ControllerState,
    Partition,
)
from hypothesis import given
from hypothesis import strategies as st


def brokers(*members: Broker, parts: tuple[Partition, ...] = (), **more: object) -> BrokerState:
    return BrokerState("lab", members, parts, **more)  # type: ignore[arg-type]


def broker(number: int, health: Health = Health.SERVING, **more: object) -> Broker:
    values = {"live": health is Health.SERVING, "cause": "" if health is Health.SERVING else "a cause"}
    return Broker(f"data{number}", number, health, **{**values, **more})  # type: ignore[arg-type]


def part(
    index: int,
    replicas: tuple[int, ...] = (1, 2, 3),
    in_sync: tuple[int, ...] | None = None,
    *,
    minimum: int = 2,
    moving: bool = False,
) -> Partition:
    synced = replicas if in_sync is None else in_sync
    return Partition("events", index, frozenset(replicas), frozenset(synced), minimum, moving)


TRIO = (broker(1), broker(2), broker(3))
SOUND = brokers(*TRIO, parts=(part(0), part(1)))
KILLED = brokers(broker(1), broker(2), broker(3, Health.DOWN), parts=tuple(part(n, in_sync=(1, 2)) for n in range(5)))


# --- brokers ---


def test_a_broker_leaves_where_each_partition_stays_in_sync() -> None:
    verdict = decide(SOUND, Wish("data2"))
    assert (verdict.allowed, verdict.action) == (True, Action.RESTART)
    assert verdict.reason == "Kafka cluster lab keeps each of its 2 partitions in sync without data2"
    assert decide(brokers(*TRIO, parts=(part(0, (1, 2), minimum=1),)), Wish("data3")).reason == (
        "Kafka cluster lab: data3 has no partition to lose"
    )


@pytest.mark.parametrize("lead", ["defer", "yield"])
def test_while_one_is_down_no_other_leaves_and_it_says_which_partitions(lead: str) -> None:
    verdict = decide(KILLED, Wish("data1", lead))
    assert (verdict.allowed, verdict.final) == (False, False)
    assert verdict.reason == (
        "Kafka cluster lab cannot lose data1 now: events-0 lacks data3, events-1 lacks data3, events-2 lacks data3 and "
        "2 partitions more; data3 is down (a cause)"
    )
    assert decide(KILLED, Wish("data3", lead)).reason == (
        "Kafka cluster lab: data3 is not running, there is nothing to lose"
    )


def test_a_broker_that_froze_does_not_count_though_the_controllers_do_not_know_yet() -> None:
    frozen = brokers(broker(1), broker(2), broker(3, Health.UNKNOWN, live=True), parts=(part(0),))
    verdict = decide(frozen, Wish("data1"))
    assert (verdict.allowed, verdict.final) == (False, False)
    assert "events-0 lacks data3; data3 is unknown (a cause)" in verdict.reason
    # It is to leave itself: the others carry all.
    assert decide(frozen, Wish("data3")).allowed


@pytest.mark.parametrize(
    "lonely", [part(7, (1,), minimum=1), part(7, (1, 2)), part(7, (1,), minimum=2), part(7, (1,), minimum=0)]
)
def test_a_partition_without_a_replica_to_spare_is_refused_for_good_unless_accepted(lonely: Partition) -> None:
    state = brokers(*TRIO, parts=(part(0), lonely))
    verdict = decide(state, Wish("data1"))
    assert (verdict.allowed, verdict.final) == (False, True)
    assert verdict.reason == (
        "Kafka cluster lab cannot lose data1: events-7 of it has no replica to spare over min.insync.replicas: "
        "give it more replicas, or accept the outage"
    )
    accepted = decide(state, Wish("data1", outage=True))
    assert accepted.allowed
    assert accepted.reason == ("Kafka cluster lab is without events-7 while data1 is away, and the outage is accepted")
    assert decide(state, Wish("data3")).allowed
    # Consent is for what is too small, not for what is broken.
    broken = brokers(*TRIO, parts=(part(0, in_sync=(1, 2)), lonely))
    assert not decide(broken, Wish("data1", outage=True)).allowed


def test_what_is_being_moved_is_waited_for() -> None:
    moving = brokers(*TRIO, parts=(part(0, in_sync=(1, 2), moving=True),))
    assert decide(moving, Wish("data1")).reason == "Kafka cluster lab cannot lose data1 now: events-0 is being moved"
    alone = decide(brokers(*TRIO, parts=(part(0, (1,), moving=True),)), Wish("data1"))
    assert (alone.allowed, alone.final) == (False, False)


def test_a_replica_that_fell_out_takes_nothing_along() -> None:
    # Two replicas, both needed: writes stand still already, and only a restart of the broken one may help.
    state = brokers(*TRIO, parts=(part(0, (1, 2), in_sync=(2,)),))
    assert decide(state, Wish("data1")).allowed
    assert not decide(state, Wish("data2", outage=True)).allowed


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (SOUND, "Kafka cluster lab has no broker data9, only data1, data2, data3"),
        (
            replace(SOUND, members=(*TRIO, Broker("data9", health=Health.SERVING), broker(7, expected=False))),
            "Kafka cluster lab does not know data9: data7 (node 7) is none of its servers, and may be the same",
        ),
        (
            replace(SOUND, members=(*TRIO, broker(9)), strangers=("data9:9092", "data8:9092")),
            "Kafka cluster lab is not one cluster: data8:9092, data9:9092 belongs to another",
        ),
    ],
)
def test_what_waiting_does_not_mend_is_refused_at_once(state: BrokerState, reason: str) -> None:
    verdict = decide(state, Wish("data9"))
    assert (verdict.allowed, verdict.final, verdict.reason) == (False, True, reason)


def test_a_broker_that_never_registered_has_nothing_to_lose() -> None:
    state = replace(SOUND, members=(*TRIO, Broker("data4", health=Health.SERVING)))
    assert decide(state, Wish("data4")).allowed


def test_brokers_have_settled_when_all_is_as_much_in_sync_as_before() -> None:
    wish = Wish("data2")
    assert settled(SOUND, wish, SOUND) == ""
    down = brokers(broker(1), broker(2, Health.DOWN), broker(3), parts=SOUND.partitions)
    assert settled(down, wish, SOUND) == "Kafka cluster lab: data2 is down (a cause)"
    fenced = brokers(broker(1), broker(2, live=False), broker(3), parts=SOUND.partitions)
    assert settled(fenced, wish, SOUND) == "Kafka cluster lab: data2 is fenced as yet"
    catching_up = brokers(*TRIO, parts=(part(0, in_sync=(1, 3)), part(1)))
    assert settled(catching_up, wish, SOUND) == "Kafka cluster lab: events-0 lacks data2"
    # Another replica that fell out meanwhile counts, of a partition that is not ours too.
    other = (*SOUND.partitions, part(2, (1, 3), minimum=1))
    fell = brokers(*TRIO, parts=(*SOUND.partitions, part(2, (1, 3), in_sync=(1,), minimum=1)))
    assert settled(fell, wish, brokers(*TRIO, parts=other)) == "Kafka cluster lab: events-2 lacks data3"
    assert settled(fell, wish, fell) == ""
    # All of ours has to be in sync, whether it was before or not; but not what is on a broker that was lost before.
    late = brokers(*TRIO, parts=(part(0, in_sync=(1, 2)),))
    assert settled(late, wish, late) == "Kafka cluster lab: events-0 lacks data3"
    assert settled(KILLED, wish, KILLED) == ""


def test_after_all_were_down_the_first_one_is_settled_alone() -> None:
    dark = brokers(*(Broker(f"data{n}", health=Health.DOWN) for n in (1, 2, 3)))
    assert decide(dark, Wish("data1")).allowed
    first = brokers(broker(1), broker(2, Health.DOWN), broker(3, Health.DOWN), parts=(part(0, in_sync=(1,)),))
    assert settled(first, Wish("data1"), dark) == ""
    assert settled(replace(first, partitions=(part(0, in_sync=()),)), Wish("data1"), dark) == (
        "Kafka cluster lab: events-0 lacks data1"
    )


@st.composite
def broker_states(draw: st.DrawFn) -> BrokerState:
    count = draw(st.integers(1, 5))
    members = []
    for number in range(1, count + 1):
        health = draw(st.sampled_from([Health.SERVING, Health.SERVING, Health.SERVING, *Health]))
        live = health is not Health.DOWN and draw(st.sampled_from([True, True, True, False]))
        members.append(broker(number, health, live=live))
    ids = st.integers(1, count)
    partitions = []
    for index in range(draw(st.integers(0, 6))):
        replicas = draw(st.frozensets(ids, min_size=1, max_size=3))
        gone = draw(st.one_of(st.just(frozenset()), st.just(frozenset()), st.frozensets(ids, max_size=1)))
        minimum = draw(st.sampled_from([1, 2, 2, 3]))
        moving = draw(st.sampled_from([False, False, False, True]))
        partitions.append(Partition("t", index, replicas, replicas - gone, minimum, moving))
    return brokers(*members, parts=tuple(partitions))


@given(broker_states(), st.integers(1, 5), st.booleans())
def test_no_verdict_ever_takes_a_partition_below_what_writes_need(
    state: BrokerState,
    number: int,
    outage: bool,
) -> None:
    member = state.find(f"data{number}")
    verdict = decide(state, Wish(f"data{number}", outage=outage))
    if member is None:
        assert verdict.final
        return
    if member.health is Health.DOWN:
        assert verdict.allowed
        return
    if not verdict.allowed:
        return
    able = {one.id for one in state.members if one.live and one.health is Health.SERVING}
    for one in state.partitions:
        left = (one.in_sync & able) - {number}
        if number in one.in_sync and not outage:
            assert len(left) >= max(1, min(one.minimum, len(one.replicas)))
        assert left == one.replicas - {number}  # nobody else is missing, with whatever consent


@given(broker_states(), st.integers(1, 5), st.randoms(), st.booleans())
def test_the_order_of_brokers_and_partitions_is_of_no_account(
    state: BrokerState,
    number: int,
    random: object,
    outage: bool,
) -> None:
    members, parts = list(state.members), list(state.partitions)
    random.shuffle(members)  # type: ignore[attr-defined]
    random.shuffle(parts)  # type: ignore[attr-defined]
    other = replace(state, members=tuple(members), partitions=tuple(parts))
    wish = Wish(f"data{number}", outage=outage)
    assert decide(state, wish) == decide(other, wish)
    assert settled(state, wish, state) == settled(other, wish, other) == settled(state, wish, other)


@given(broker_states(), st.integers(1, 5))
def test_what_the_gate_lets_go_had_settled(state: BrokerState, number: int) -> None:
    member = state.find(f"data{number}")
    if member is None or not decide(state, Wish(member.name)).allowed or member.id not in state.able:
        return
    fallen = [one for one in state.partitions if number in one.replicas - one.in_sync]
    assert bool(settled(state, Wish(member.name), state)) is bool(fallen)


# --- controllers ---


def quorum(*members: Controller, active: int = 1, **more: object) -> ControllerState:
    return ControllerState("lab", members, active, **more)  # type: ignore[arg-type]


def voter(number: int, health: Health = Health.SERVING, behind: float | None = 0.3, **more: object) -> Controller:
    cause = "" if health is Health.SERVING else "a cause"
    return Controller(f"data{number}", number, health, behind=behind, cause=cause, **more)  # type: ignore[arg-type]


THREE = quorum(voter(1, behind=0), voter(2), voter(3))


def test_a_controller_that_follows_may_go() -> None:
    verdict = decide(THREE, Wish("data2"))
    assert (verdict.allowed, verdict.action) == (True, Action.RESTART)
    assert verdict.reason == "Kafka quorum lab keeps 2 of 2 needed voters without data2"


def test_the_active_controller_goes_last_and_where_it_is() -> None:
    assert decide(THREE, Wish("data1")).action is Action.DEFER
    verdict = decide(THREE, Wish("data1", "yield"))
    assert (verdict.allowed, verdict.action, verdict.target) == (True, Action.RESTART, "")
    assert verdict.reason == (
        "Kafka quorum lab: data1 leads and is restarted in place: KRaft has no request to hand it over, the active "
        "controller resigns when it stops"
    )


@pytest.mark.parametrize("lead", ["defer", "yield"])
@pytest.mark.parametrize(
    ("other", "words"),
    [
        (voter(3, Health.DOWN), "data3 is down (a cause)"),
        (voter(3, Health.UNKNOWN), "data3 is unknown (a cause)"),
        (voter(3, Health.FAILING), "data3 is failing (a cause)"),
        (voter(3, behind=12.4), "data3 is 12 s behind the active controller"),
        (voter(3, behind=None), "data3 has not caught up with the active controller as yet"),
    ],
)
def test_no_majority_is_taken_apart(lead: str, other: Controller, words: str) -> None:
    verdict = decide(quorum(voter(1), voter(2), other), Wish("data2", lead))
    assert (verdict.allowed, verdict.final) == (False, False)
    assert verdict.reason == f"Kafka quorum lab cannot lose data2 now: 1 of 2 needed voters would be left; {words}"
    five = quorum(voter(1), voter(2), other, voter(4), voter(5))
    assert decide(five, Wish("data2")).reason == (f"Kafka quorum lab keeps 3 of 3 needed voters without data2; {words}")


def test_a_controller_that_is_down_or_has_no_vote_has_nothing_to_lose() -> None:
    assert decide(quorum(voter(1), voter(2), voter(3, Health.DOWN)), Wish("data3")).allowed
    observer = Controller("data4", 4, Health.SERVING, voter=False)
    assert decide(replace(THREE, members=(*THREE.members, observer)), Wish("data4")).reason == (
        "Kafka quorum lab: data4 has no vote to lose"
    )


def test_a_voter_of_another_name_may_be_the_one_that_is_asked_about() -> None:
    strange = quorum(voter(1), voter(2), voter(3, expected=False), Controller("data4", -1, Health.SERVING, voter=False))
    verdict = decide(strange, Wish("data4"))
    assert (verdict.allowed, verdict.final) == (False, True)
    assert verdict.reason == (
        "Kafka quorum lab does not know data4: data3 (node 3) is none of its servers, and may be the same"
    )


def test_without_a_majority_a_repair_is_the_last_resort() -> None:
    lost = quorum(voter(1, Health.FAILING), voter(2, Health.DOWN), voter(3, Health.UNKNOWN), active=-1)
    verdict = decide(lost, Wish("data1", "yield"))
    assert (verdict.allowed, verdict.last_resort, verdict.unlocked) == (True, True, False)
    # One that knows a leader, and one that we cannot see, may carry a majority that we cannot see either.
    assert decide(lost, Wish("data3")).reason == (
        "Kafka quorum lab cannot be asked: data1 is failing (a cause), data2 is down (a cause), data3 is unknown "
        "(a cause)"
    )
    assert not decide(quorum(voter(1), voter(2), voter(3), active=-1), Wish("data1")).allowed


def test_a_quorum_too_small_needs_consent() -> None:
    alone = quorum(voter(1))
    verdict = decide(alone, Wish("data1", "yield"))
    assert (verdict.allowed, verdict.final) == (False, True)
    assert decide(alone, Wish("data1", "yield", outage=True)).allowed
    assert decide(quorum(voter(1), voter(2)), Wish("data2", outage=True)).allowed
    assert not decide(quorum(voter(1), voter(2, Health.UNKNOWN)), Wish("data1", outage=True)).allowed
    assert not decide(quorum(voter(1), voter(2), voter(3, Health.DOWN)), Wish("data2", outage=True)).allowed


def test_a_quorum_has_settled_when_it_is_as_good_as_before() -> None:
    wish = Wish("data2")
    assert settled(THREE, wish, THREE) == ""
    assert settled(quorum(voter(1), voter(2, behind=30), voter(3)), wish, THREE) == (
        "Kafka quorum lab: data2 is 30 s behind the active controller"
    )
    gone = quorum(voter(1), voter(2), voter(3, Health.DOWN))
    assert settled(gone, wish, THREE) == "Kafka quorum lab: data3 is down (a cause)"
    assert settled(gone, wish, gone) == ""
    assert settled(replace(THREE, active=-1), wish, THREE) == "Kafka quorum lab has no active controller"
    assert settled(quorum(voter(1), replace(voter(2), voter=False), voter(3)), wish, THREE) == (
        "Kafka quorum lab: data2 has no vote any more"
    )
    assert settled(quorum(voter(1), voter(2)), wish, THREE) == "Kafka quorum lab: data3 is no longer known"
    # Where there was no majority, to be up is all that one can do.
    lost = quorum(voter(1, Health.FAILING), voter(2, Health.DOWN), voter(3, Health.DOWN), active=-1)
    assert settled(replace(lost, members=(voter(1, Health.FAILING), voter(2, Health.FAILING))), wish, lost) == ""
    assert settled(lost, wish, lost) == "Kafka quorum lab: data2 is down (a cause)"
    assert settled(replace(lost), Wish("data1"), lost) == ""
    assert settled(lost, Wish("data1"), lost) == "Kafka quorum lab: data1 is failing (a cause)"


CONTROLLERS = st.builds(
    lambda health, behind, votes: Controller("", 0, health, votes, behind),
    st.sampled_from([Health.SERVING, Health.SERVING, *Health]),
    st.sampled_from([0.0, 0.5, BEHIND_LIMIT, BEHIND_LIMIT + 0.1, 60.0, None]),
    st.sampled_from([True, True, True, False]),
)
QUORUMS = st.builds(
    lambda members, active: quorum(
        *(replace(member, id=n, name=f"data{n}") for n, member in enumerate(members, 1)), active=active
    ),
    st.lists(CONTROLLERS, min_size=1, max_size=7),
    st.sampled_from([1, 1, 2, -1]),
)


@given(QUORUMS, st.integers(1, 7), st.sampled_from(["defer", "yield"]))
def test_no_verdict_ever_takes_a_majority(state: ControllerState, number: int, lead: str) -> None:
    member = state.find(f"data{number}")
    verdict = decide(state, Wish(f"data{number}", lead))
    if member is None:
        return
    if member.health is Health.DOWN:
        assert verdict.allowed
        return
    if not verdict.allowed:
        return
    left = [
        other
        for other in state.members
        if other != member
        and other.voter
        and other.health is Health.SERVING
        and other.behind is not None
        and other.behind <= BEHIND_LIMIT
    ]
    voters = sum(other.voter for other in state.members)
    majority_stays = len(left) > voters / 2
    no_majority = state.leader is None and member.health is Health.FAILING and verdict.last_resort
    assert majority_stays or no_majority or (not member.voter and state.leader is not None)
    assert lead == "yield" or state.leader != member or not member.voter


@given(QUORUMS, st.integers(1, 7), st.randoms(), st.sampled_from(["defer", "yield"]), st.booleans())
def test_the_order_of_controllers_is_of_no_account(
    state: ControllerState,
    number: int,
    random: object,
    lead: str,
    outage: bool,
) -> None:
    members = list(state.members)
    random.shuffle(members)  # type: ignore[attr-defined]
    other = replace(state, members=tuple(members))
    wish = Wish(f"data{number}", lead, outage=outage)
    assert decide(state, wish) == decide(other, wish)
    assert settled(state, wish, state) == settled(other, wish, other)


# --- both ---


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (SOUND, "Kafka cluster lab has no leader to move: a broker hands its partitions over while it stops"),
        (THREE, f"Kafka quorum lab does not move its lead: {NO_REQUEST}"),
    ],
)
def test_a_switchover_is_refused(state: State[Broker] | State[Controller], reason: str) -> None:
    verdict = hand_over(state, "data2")
    assert (verdict.allowed, verdict.final, verdict.reason) == (False, True, reason)


def test_states_of_two_engines_do_not_compare() -> None:
    with pytest.raises(TypeError, match="BrokerState does not compare with ControllerState"):
        settled(SOUND, Wish("data1"), THREE)
    with pytest.raises(TypeError):
        settled(THREE, Wish("data1"), EtcdState("lab", ()))
