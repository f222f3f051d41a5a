# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which member of a Qdrant cluster the gate lets go: by example with its words, and on any cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import (
    Action,
    Health,
    Wish,
    decide,
    hand_over,
    settled,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_qdrant import (
    ACTIVE,
    QdrantMember,
    QdrantState,
    Shard,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import Answer
from ansible_collections.groundplane.onprem.plugins.module_utils.qdrant_cluster import (
    NoCollectionError,
    QdrantError,
    member_of,
    peers_of,
    result_of,
    shards_of,
)
from hypothesis import given
from hypothesis import strategies as st

UP, DOWN, MUTE, FAILING = Health.SERVING, Health.DOWN, Health.UNKNOWN, Health.FAILING
PEERS = {1: "v1", 2: "v2", 3: "v3"}
SHARDS = (
    Shard("a", 0, {1: ACTIVE, 2: ACTIVE}, 2),
    Shard("a", 1, {2: ACTIVE, 3: ACTIVE}, 2),
    Shard("a", 2, {3: ACTIVE, 1: ACTIVE}, 2),
)


def cluster(*healths: Health, leader: int = 1, shards: tuple[Shard, ...] = SHARDS) -> QdrantState:
    """Members v1, v2, ... with the ids 1, 2, ...; one that does not answer says no id."""
    count = len(healths)
    peers = {number: f"v{number}" for number in range(1, count + 1)}
    members = [
        QdrantMember(f"v{number}", health, number, leader, peers, "" if health is UP else "x")
        if health in (UP, FAILING)
        else QdrantMember(f"v{number}", health, cause="x")
        for number, health in enumerate(healths, 1)
    ]
    return QdrantState("lab", tuple(members), shards)


SOUND = cluster(UP, UP, UP)
TWO = Wish("v2")


def without(state: QdrantState, shard: int, peer: int, told: str | None) -> QdrantState:
    """A replica in another state; None: there is none."""
    found = []
    for one in state.shards:
        replicas = {who: what for who, what in one.replicas.items() if one.number != shard or who != peer or told}
        if one.number == shard and told:
            replicas[peer] = told
        found.append(replace(one, replicas=replicas))
    return replace(state, shards=tuple(found))


def test_a_follower_leaves_where_each_shard_has_another_active_replica() -> None:
    verdict = decide(SOUND, TWO)
    assert (verdict.allowed, verdict.action, verdict.last_resort) == (True, Action.RESTART, False)
    assert verdict.reason == (
        "Qdrant lab keeps an active replica of each shard without v2; writes to shard 0 of a, shard 1 of a are refused "
        "meanwhile, by its write_consistency_factor"
    )
    once = replace(SOUND, shards=tuple(replace(shard, writes=1) for shard in SHARDS))
    assert decide(once, TWO).reason == "Qdrant lab keeps an active replica of each shard without v2"


def test_the_leader_goes_last_and_where_it_is() -> None:
    verdict = decide(SOUND, Wish("v1"))
    assert (verdict.allowed, verdict.action) == (False, Action.DEFER)
    assert verdict.reason == "Qdrant lab: v1 leads, so it goes last"
    last = decide(SOUND, Wish("v1", "yield"))
    assert (last.allowed, last.action) == (True, Action.RESTART)
    assert last.reason.startswith("Qdrant lab: v1 leads and is restarted in place: Qdrant has no request to hand")
    assert hand_over(SOUND, "v2").final


@pytest.mark.parametrize("other", [DOWN, MUTE, FAILING])
def test_while_another_is_not_well_nobody_leaves(other: Health) -> None:
    state = cluster(UP, UP, other)
    for wish in (TWO, Wish("v2", outage=True), Wish("v1", "yield")):
        verdict = decide(state, wish)
        assert (verdict.allowed, verdict.final) == (False, False)
        assert verdict.reason == f"Qdrant lab cannot lose {wish.member} now: v3 is {other} (x)"


@pytest.mark.parametrize("told", ["Dead", "Partial", "Initializing", "Recovery", "ManualRecovery", "ActiveRead"])
def test_every_replica_has_to_be_active(told: str) -> None:
    # One of another shard, on other hosts, counts as well: two restarts in a row must not meet.
    for wish in (TWO, Wish("v2", outage=True)):
        verdict = decide(without(SOUND, 2, 3, told), wish)
        assert (verdict.allowed, verdict.final) == (False, False)
        assert verdict.reason == f"Qdrant lab cannot lose v2 now: shard 2 of a is {told} on v3"


def test_a_shard_on_its_way_is_waited_for() -> None:
    state = replace(SOUND, shards=(replace(SHARDS[0], moving=1), *SHARDS[1:]))
    assert decide(state, TWO).reason == "Qdrant lab cannot lose v2 now: shard 0 of a is on its way"


def test_the_only_replica_stays_unless_the_outage_is_accepted() -> None:
    state = without(SOUND, 0, 1, None)
    verdict = decide(state, TWO)
    assert verdict.final
    assert verdict.reason.startswith(
        "Qdrant lab cannot lose v2: shard 0 of a has no other replica; give its collection "
    )
    assert decide(state, Wish("v2", outage=True)).reason.startswith(
        "Qdrant lab keeps all but shard 0 of a, which is accepted, without v2"
    )
    assert decide(state, Wish("v3")).allowed


@pytest.mark.parametrize("count", [1, 2])
def test_a_cluster_too_small_to_lose_anybody_is_asked_to_accept_it(count: int) -> None:
    state = cluster(*[UP] * count, shards=())
    wish = Wish(f"v{count}", "yield")
    needed = count // 2 + 1
    assert decide(state, wish).reason == (
        f"Qdrant lab is too small to lose v{count}: of {count} voters {needed} are needed"
    )
    assert decide(state, replace(wish, outage=True)).allowed


def test_one_alone_has_nobody_to_wait_for() -> None:
    alone = cluster(UP, shards=())
    assert decide(alone, Wish("v1", "defer", outage=True)).action is Action.RESTART


def test_who_leads_has_to_be_known_to_all_and_to_serve() -> None:
    apart = replace(SOUND, members=(*SOUND.members[:2], replace(SOUND.members[2], leader=2)))
    assert decide(apart, TWO).reason == "Qdrant lab has no leader that its members agree on"
    assert decide(cluster(UP, UP, UP, leader=9), TWO).reason == "Qdrant lab has no leader that its members agree on"


def test_a_peer_that_is_no_member_is_to_be_removed_by_name() -> None:
    peers = {**PEERS, 9: "v3"}
    state = replace(SOUND, members=tuple(replace(member, peers=peers) for member in SOUND.members))
    verdict = decide(state, TWO)
    assert verdict.final
    assert verdict.reason == (
        "Qdrant lab still counts on v3 (9), which is no member that answers: remove it by name, "
        "playbooks/qdrant_remove.yml"
    )
    # While v3 does not say who it is, it may be that one.
    silent = replace(state, members=(*state.members[:2], QdrantMember("v3", MUTE, cause="x")))
    assert silent.gone == []


def test_a_member_that_has_not_joined_yet_is_waited_for() -> None:
    young = replace(SOUND.members[2], peers={3: "v3"}, peer=3)
    state = replace(
        SOUND, members=(*SOUND.members[:2], replace(young, health=FAILING, leader=0, cause="it knows no leader"))
    )
    assert decide(state, TWO).reason == "Qdrant lab cannot lose v2 now: v3 is failing (it knows no leader)"


def test_two_clusters_are_told_and_nobody_is_touched() -> None:
    other = replace(SOUND.members[2], peers={3: "v3"}, leader=3)
    state = replace(SOUND, members=(*(replace(one, peers={1: "v1", 2: "v2"}) for one in SOUND.members[:2]), other))
    for name in ("v1", "v2", "v3"):
        verdict = decide(state, Wish(name, "yield"))
        assert verdict.final
        assert verdict.reason.startswith("Qdrant lab is more than one cluster: ")


def test_who_does_not_run_has_nothing_to_lose_and_who_is_none_is_told() -> None:
    assert decide(cluster(UP, DOWN, MUTE), TWO).reason == "Qdrant lab: v2 is not running, there is nothing to lose"
    assert decide(SOUND, Wish("v9")).reason == "Qdrant lab has no member v9, only v1, v2, v3"


@pytest.mark.parametrize("health", [MUTE, FAILING])
def test_one_that_does_not_serve_leaves_when_all_others_do_for_the_whole_patience(health: Health) -> None:
    verdict = decide(cluster(UP, health, UP), TWO)
    assert (verdict.allowed, verdict.last_resort) == (True, True)
    assert not decide(cluster(UP, health, DOWN), TWO).allowed


def test_where_nobody_serves_nothing_is_broken() -> None:
    verdict = decide(cluster(DOWN, FAILING, MUTE), TWO)
    assert (verdict.allowed, verdict.last_resort) == (True, True)
    assert not decide(cluster(DOWN, MUTE, MUTE), TWO).allowed


def test_it_is_settled_when_all_serve_and_no_shard_is_worse_off() -> None:
    assert settled(SOUND, TWO, SOUND) == ""
    assert settled(cluster(UP, UP, MUTE), TWO, SOUND) == "Qdrant lab: v3 is unknown (x)"
    assert settled(cluster(UP, FAILING, UP), TWO, SOUND) == "Qdrant lab: v2 is failing (x)"
    assert settled(without(SOUND, 0, 2, "Partial"), TWO, SOUND) == (
        "Qdrant lab: shard 0 of a is Partial on v2, shard 0 of a has 1 active replicas of 2"
    )
    assert settled(without(SOUND, 2, 3, "Dead"), TWO, SOUND) == "Qdrant lab: shard 2 of a has 1 active replicas of 2"
    assert settled(cluster(UP, UP, UP, leader=9), TWO, SOUND) == "Qdrant lab has no leader that its members agree on"
    assert settled(SOUND, Wish("v9"), SOUND) == "Qdrant lab does not know v9 yet"
    # Whoever leads now: it only has to be somebody.
    assert settled(cluster(UP, UP, UP, leader=3), Wish("v1"), SOUND) == ""


def test_a_member_alone_is_well_before_the_others_have_joined() -> None:
    first = QdrantMember("v1", UP, 1, 1, {1: "v1"})
    forming = QdrantState("lab", (first, QdrantMember("v2", DOWN, cause="x"), QdrantMember("v3", MUTE, cause="x")))
    assert settled(forming, Wish("v1"), forming) == ""
    assert settled(forming, TWO, forming) == "Qdrant lab: v2 is down (x)"


def test_where_nobody_served_it_only_has_to_answer_again() -> None:
    before, back = cluster(FAILING, DOWN, DOWN), cluster(FAILING, FAILING, DOWN)
    assert settled(back, TWO, before) == ""
    assert settled(back, TWO, back)


healths = st.sampled_from([UP, DOWN, MUTE, FAILING])
replicas = st.dictionaries(st.sampled_from([1, 2, 3]), st.sampled_from([ACTIVE, "Dead", "Partial"]), min_size=1)
shards = st.lists(st.builds(Shard, st.just("a"), st.integers(0, 3), replicas, st.integers(1, 3)), max_size=4).map(tuple)


@given(st.tuples(healths, healths, healths), shards, st.sampled_from([0, 1, 2, 3]), st.sampled_from(["v1", "v2", "v3"]))
def test_whoever_serves_and_leaves_leaves_a_majority_and_all_points(
    said: tuple[Health, Health, Health], held: tuple[Shard, ...], leader: int, name: str
) -> None:
    state = cluster(*said, leader=leader, shards=held)
    for lead in ("defer", "yield"):
        verdict = decide(state, Wish(name, lead))
        member = state.find(name)
        assert member is not None
        if not verdict.allowed or member.health is not UP:
            continue
        assert all(one.health is UP for one in state.members)
        assert all(told == ACTIVE for shard in held for told in shard.replicas.values())
        assert all(shard.active(member.peer) for shard in held if member.peer in shard.replicas)
        assert state.leader is not None
        assert lead == "yield" or state.leader != member


# --- answers ---

ENABLED = {
    "status": "enabled",
    "peer_id": 1,
    "peers": {"1": {"uri": "https://v1.site.example:6335/"}, "2": {"uri": "https://v2.site.example:6335"}},
    "raft_info": {"leader": 2, "is_voter": True},
    "consensus_thread_status": {"consensus_thread_status": "working", "last_update": "x"},
}


def test_a_member_is_what_it_says() -> None:
    member = member_of("v1", ENABLED, ready=True)
    assert member == QdrantMember("v1", UP, 1, 2, {1: "v1", 2: "v2"})
    assert member_of("v1", ENABLED, ready=False).cause.startswith("it is not ready")
    for key, told, cause in (
        ("raft_info", {"leader": None, "is_voter": True}, "it knows no leader"),
        ("raft_info", {"leader": 2, "is_voter": False}, "it has no vote yet"),
        (
            "consensus_thread_status",
            {"consensus_thread_status": "stopped_with_err", "err": "disk"},
            "its consensus is stopped_with_err: disk",
        ),
    ):
        found = member_of("v1", {**ENABLED, key: told}, ready=True)
        assert (found.health, found.cause) == (FAILING, cause)
    with pytest.raises(QdrantError, match="v1: it runs without a cluster"):
        member_of("v1", {"status": "disabled"}, ready=True)


def test_shards_are_those_here_and_elsewhere() -> None:
    told = {
        "peer_id": 1,
        "local_shards": [{"shard_id": 0, "points_count": 5, "state": "Active"}],
        "remote_shards": [
            {"shard_id": 0, "peer_id": 2, "state": "Dead"},
            {"shard_id": 1, "peer_id": 2, "state": "Active"},
        ],
        "shard_transfers": [{"shard_id": 0, "from": 1, "to": 2, "sync": True}],
    }
    assert shards_of("a", told, 2) == [
        Shard("a", 0, {1: ACTIVE, 2: "Dead"}, 2, 1),
        Shard("a", 1, {2: ACTIVE}, 2, 0),
    ]
    assert shards_of("a", {}, 1) == []


def test_answers_that_are_none_are_errors_and_a_key_that_is_refused_is_told() -> None:
    assert result_of("https://v1/cluster", Answer(200, b'{"result": {"a": 1}, "status": "ok"}')) == {"a": 1}
    assert result_of("https://v1/x", Answer(200, b'{"result": false}')) is False
    with pytest.raises(QdrantError, match="refuses our key"):
        result_of("https://v1/cluster", Answer(401, b"Must provide an API key"))
    with pytest.raises(QdrantError, match=r"answers 500 \(disk is full\)"):
        result_of("https://v1/x", Answer(500, b'{"status": {"error": "disk is full"}}'))
    with pytest.raises(NoCollectionError):
        result_of("https://v1/collections/a", Answer(404, b"{}"))
    with pytest.raises(QdrantError, match="answers 200"):
        result_of("https://v1/cluster", Answer(200, b"<html>"))


def test_a_peer_without_an_address_has_no_name() -> None:
    assert peers_of({"peers": {"7": {}}}) == {7: ""}
    assert peers_of({}) == {}
