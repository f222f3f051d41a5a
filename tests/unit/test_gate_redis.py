# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom the gate lets go of Redis and of its Sentinels, and what the servers' own words mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import (
    Action,
    Health,
    Wish,
    decide,
    hand_over,
    settled,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_redis import (
    RedisState,
    Sentinel,
    SentinelState,
    Server,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.redis_cluster import (
    RedisCluster,
    parse_sentinel,
    parse_servers,
    split,
    tilted,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.redis_wire import RedisError, UnreachableError
from hypothesis import given
from hypothesis import strategies as st

NAMES = ("data1", "data2", "data3")
FIT = frozenset(NAMES[1:])
WATCH = Sentinel(Health.SERVING, "data1", 2, fit=FIT)
MASTER = Server("data1", Health.SERVING, "master", minimum=1, sentinel=WATCH)


def replica(name: str, **changes: Any) -> Server:
    sound = Server(name, Health.SERVING, "replica", "data1", True, 0, minimum=1, sentinel=WATCH)
    return replace(sound, **changes)


def state(*members: Server, kind: type[RedisState] = RedisState) -> RedisState:
    given_ = {member.name: member for member in members}
    sound = {"data1": MASTER, "data2": replica("data2"), "data3": replica("data3")}
    return kind("lab", tuple((sound | given_).values()))


def test_replicas_go_first_and_the_master_hands_over() -> None:
    assert decide(state(), Wish("data2")).reason == "Redis lab keeps its master and 1 replica without data2"
    assert decide(state(), Wish("data1")).action is Action.DEFER
    verdict = decide(state(), Wish("data1", "yield"))
    assert (verdict.allowed, verdict.action, verdict.target) == (True, Action.YIELD, "data2")
    assert decide(state(replica("data2", behind=1)), Wish("data1", "yield")).target == "data3"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (replica("data3", health=Health.UNKNOWN, cause="no answer in time"), "data3 is unknown (no answer in time)"),
        (replica("data3", health=Health.DOWN), "data3 is down"),
        (replica("data3", linked=False), "data3 has not copied data1 as yet"),
        (replica("data3", behind=2**21), "data3 is 2097152 bytes behind"),
        (replica("data3", behind=None), "data3 is an unknown number of bytes behind"),
        (replica("data3", follows="data2"), "data3 follows data2 instead of data1"),
        (replica("data3", follows=""), "data3 follows nobody instead of data1"),
        (replica("data3", priority=0), "data3 may not be promoted (replica-priority 0)"),
        (
            replica("data3", sentinel=Sentinel(Health.DOWN, cause="refused")),
            "data3 has a Sentinel that is down (refused)",
        ),
        (replica("data3", sentinel=replace(WATCH, others=1)), "data3 has a Sentinel that knows 1 of 2 others"),
        (
            replica("data3", sentinel=replace(WATCH, flags=frozenset({"s_down"}))),
            "data3 has a Sentinel that says s_down of data1",
        ),
        (
            replica("data3", sentinel=replace(WATCH, fit=frozenset({"data2"}))),
            "data3 is as yet nobody to promote for the Sentinel of data3",
        ),
    ],
)
def test_nobody_leaves_beside_one_that_is_not_well(other: Server, why: str) -> None:
    for wish in (Wish("data2"), Wish("data1", "yield")):
        verdict = decide(state(other), wish)
        assert (verdict.allowed, verdict.final) == (False, False)
        assert verdict.reason == f"Redis lab cannot lose {wish.member} now: {why}"
    assert settled(state(other), Wish("data3"), state()) == f"Redis lab: {why}"


def test_who_is_not_there_or_does_not_follow_may_be_restarted() -> None:
    gone = replica("data3", health=Health.DOWN)
    assert decide(state(gone), Wish("data3")).reason == "Redis lab: data3 is not running, there is nothing to lose"
    for broken in (replica("data3", linked=False), replica("data3", health=Health.FAILING)):
        assert decide(state(broken, replica("data2", linked=False)), Wish("data3")).allowed
    silent = replica("data3", health=Health.UNKNOWN, linked=False, role="")
    assert decide(state(silent), Wish("data3")).allowed


def test_without_one_master_nobody_leaves() -> None:
    two = replica("data2", role="master")
    verdict = decide(state(two), Wish("data3"))
    assert not verdict.allowed
    assert verdict.reason == (
        "Redis lab has no master that its Sentinels agree on: data1, data2 each say that they are the master"
    )
    other = replica("data2", sentinel=replace(WATCH, master="data3"))
    verdict = decide(state(other), Wish("data3"))
    assert not verdict.allowed
    assert "of the Sentinels that of data1 names data1, that of data2 names data3" in verdict.reason
    mute = Sentinel(Health.UNKNOWN, cause="no answer in time")
    few = state(replica("data2", sentinel=mute), replica("data3", sentinel=mute))
    assert few.leader is None
    assert "that of data2 is unknown (no answer in time)" in decide(few, Wish("data3")).reason
    assert not hand_over(few).allowed


def test_writes_need_their_replicas() -> None:
    strict = replace(MASTER, minimum=2)
    for wish in (Wish("data2"), Wish("data1", "yield")):
        verdict = decide(state(strict), wish)
        assert (verdict.allowed, verdict.final) == (False, True)
        assert verdict.reason == (
            f"Redis lab cannot lose {wish.member}: each write needs 2 replicas (min-replicas-to-write) "
            "and 1 would be left"
        )
    assert decide(state(strict), Wish("data2", outage=True)).allowed


def test_one_alone_is_restarted_when_the_outage_is_accepted() -> None:
    alone = RedisState("dev", (replace(MASTER, minimum=0, sentinel=replace(WATCH, others=0, fit=frozenset())),))
    verdict = decide(alone, Wish("data1", "yield"))
    assert (verdict.allowed, verdict.final) == (False, True)
    assert decide(alone, Wish("data1", "yield", outage=True)).action is Action.RESTART
    assert settled(alone, Wish("data1"), alone) == ""
    sentinels = SentinelState("dev", alone.members)
    assert decide(sentinels, Wish("data1")).allowed


def test_a_candidate_is_not_for_us_to_choose() -> None:
    verdict = hand_over(state(), "data3")
    assert (verdict.allowed, verdict.final) == (False, True)
    assert "name none" in verdict.reason
    assert hand_over(state(), "data1").action is Action.NOTHING
    assert hand_over(state()).target == "data2"
    assert not hand_over(state(kind=SentinelState)).allowed


def test_settled_is_as_good_as_before_and_no_better() -> None:
    lame = replica("data3", linked=False)
    assert settled(state(lame), Wish("data2"), state(lame)) == ""
    assert settled(state(lame), Wish("data2"), state()) == "Redis lab: data3 has not copied data1 as yet"
    watch = replace(WATCH, master="data2", fit=frozenset({"data1", "data3"}))
    former = replica("data1", follows="data2", sentinel=watch)
    other = replica("data3", follows="data2", sentinel=watch)
    moved = RedisState("lab", (former, replace(MASTER, name="data2", sentinel=watch), other))
    assert settled(moved, Wish("data1"), state()) == ""
    lost = replace(state(), members=tuple(replace(one, role="") for one in state().members))
    assert "no master" in settled(lost, Wish("data2"), state())
    assert settled(lost, Wish("data2"), replace(lost, cluster="lab")) == ""
    assert "no master" in settled(lost, Wish("data2"), lost)


def test_sentinels_leave_one_at_a_time() -> None:
    sound = state(kind=SentinelState)
    assert decide(sound, Wish("data1")).reason == "Redis Sentinel lab keeps 2 of 2 needed without that of data1"
    gone = replica("data3", sentinel=Sentinel(Health.DOWN, cause="refused"))
    broken = state(gone, kind=SentinelState)
    assert decide(broken, Wish("data3")).allowed
    verdict = decide(broken, Wish("data2"))
    assert (verdict.allowed, verdict.final) == (False, False)
    assert verdict.reason.endswith("1 of 2 needed would be left; that of data3 is down (refused)")
    assert settled(broken, Wish("data3"), sound) == "Redis Sentinel lab: that of data3 is down (refused)"
    lonely = state(replica("data3", sentinel=replace(WATCH, others=0)), kind=SentinelState)
    assert settled(lonely, Wish("data3"), sound) == "Redis Sentinel lab: that of data3 knows 0 of 2 others"
    torn = state(replica("data3", sentinel=replace(WATCH, master="data2")), kind=SentinelState)
    assert "do not agree" in decide(torn, Wish("data1")).reason
    assert "do not agree" in settled(torn, Wish("data1"), sound)
    busy = state(
        replica("data3", sentinel=replace(WATCH, flags=frozenset({"failover_in_progress"}))), kind=SentinelState
    )
    assert "a failover is going on" in decide(busy, Wish("data1")).reason


HEALTHS = st.sampled_from(Health)
SENTINELS = st.builds(
    Sentinel, HEALTHS, st.sampled_from([*NAMES, ""]), st.integers(0, 2), fit=st.frozensets(st.sampled_from(NAMES))
)
SERVERS = st.builds(
    Server, st.just(""), HEALTHS, st.sampled_from(["master", "replica", ""]), st.sampled_from([*NAMES, ""]),
    st.booleans(), st.none() | st.integers(0, 2**21), st.sampled_from([0, 100]), st.integers(0, 2), SENTINELS,
)  # fmt: skip


@given(st.lists(SERVERS, min_size=3, max_size=3), st.sampled_from(NAMES), st.sampled_from(["defer", "yield"]))
def test_a_member_that_serves_leaves_only_where_a_master_and_its_majority_stay(
    members: list[Server], name: str, lead: str
) -> None:
    cluster = RedisState("lab", tuple(replace(one, name=each) for one, each in zip(members, NAMES, strict=True)))
    verdict = decide(cluster, Wish(name, lead))
    leaving = cluster.find(name)
    assert leaving is not None
    if not verdict.allowed or leaving.health is Health.DOWN:
        return
    leader = cluster.leader
    assert leader is not None
    agreeing = [one for one in cluster.members if one.sentinel.health is Health.SERVING]
    assert len(agreeing) >= cluster.needed
    assert {one.sentinel.master for one in agreeing} == {leader.name}
    if leaving == leader:
        assert verdict.action is Action.YIELD
        target = cluster.find(verdict.target)
        assert target is not None
        assert (target.linked, target.health, target.priority != 0) == (True, Health.SERVING, True)


# --- what answers mean ---

PLACES = {"192.0.2.1:6379": "data1", "192.0.2.2:6379": "data2"}


def test_words_of_servers_are_read() -> None:
    follows = {"role": "slave", "master_host": "192.0.2.1", "master_port": "6379", "master_link_status": "up",
               "master_sync_in_progress": "0", "slave_repl_offset": "90", "slave_priority": "0"}  # fmt: skip
    told = {
        "data1": {"role": "master", "master_repl_offset": "100", "loading": "0", "min-replicas-to-write": "1"},
        "data2": follows,
        "data3": {**follows, "master_host": "192.0.2.9", "loading": "1", "master_sync_in_progress": "1"},
        "data4": UnreachableError("gone", refused=True),
        "data5": UnreachableError("silent", silent=True),
    }
    found = parse_servers(told, {"data1": WATCH}, PLACES)
    assert [(one.name, one.health, one.role, one.follows, one.linked, one.behind) for one in found] == [
        ("data1", Health.SERVING, "master", "", False, None),
        ("data2", Health.SERVING, "replica", "data1", True, 10),
        ("data3", Health.FAILING, "replica", "192.0.2.9:6379", False, 10),
        ("data4", Health.DOWN, "", "", False, None),
        ("data5", Health.UNKNOWN, "", "", False, None),
    ]
    assert (found[0].minimum, found[1].priority, found[0].sentinel, found[3].cause) == (1, 0, WATCH, "gone")


def test_words_of_sentinels_are_read() -> None:
    master = ["name", "lab", "ip", "192.0.2.1", "port", "6379", "flags", "master,s_down", "num-other-sentinels", "2",
              "config-epoch", "7"]  # fmt: skip
    good = ["ip", "192.0.2.2", "port", "6379", "flags", "slave", "master-link-status", "ok", "slave-priority", "100"]
    bad = [*good[:5], "slave,s_down", *good[6:]]
    never = [*good[:9], "0"]
    torn = [*good[:7], "err", *good[8:]]
    sentinel = parse_sentinel([master], [good], "s", PLACES)
    assert sentinel == Sentinel(Health.SERVING, "data1", 2, 7, frozenset({"s_down"}), frozenset({"data2"}))
    for row in (bad, never, torn):
        assert parse_sentinel([master], [row], "s", PLACES).fit == frozenset()
    for wrong in ([], [master, master], None):
        with pytest.raises(RedisError, match="masters instead of one"):
            parse_sentinel(wrong, [], "s", PLACES)


def test_a_sentinel_in_tilt_is_no_help() -> None:
    assert tilted(WATCH, {"sentinel_tilt": "0", "sentinel_tilt_since_seconds": "-1"}) == WATCH
    out = tilted(WATCH, {"sentinel_tilt": "1", "sentinel_tilt_since_seconds": "3"})
    one = state(replica("data2", sentinel=out))
    verdict = decide(one, Wish("data3"))
    assert not verdict.allowed
    assert "data2 has a Sentinel that is failing (in TILT for 30 s" in verdict.reason
    both = state(replica("data2", sentinel=out), replica("data3", sentinel=out))
    assert both.leader is None
    verdict = hand_over(both)
    assert (verdict.allowed, verdict.final) == (False, False)


def test_places_are_members_and_addresses() -> None:
    assert split("data1=192.0.2.1:6379") == ("data1", "192.0.2.1:6379")
    assert split("data1=[2001:db8::1]:6379") == ("data1", "[2001:db8::1]:6379")
    for wrong in ("192.0.2.1:6379", "data1=192.0.2.1", "=192.0.2.1:1"):
        with pytest.raises(RedisError, match="no member=address:port"):
            split(wrong)
    tls: Any = None
    with pytest.raises(RedisError, match="no servers to ask"):
        RedisCluster("lab", {}, ("admin", ""), tls)
    with pytest.raises(RedisError, match="data2 needs both a server and a Sentinel"):
        RedisCluster("lab", {"servers": ["data1=a:1", "data2=b:1"], "sentinels": ["data1=a:2"]}, ("admin", ""), tls)
