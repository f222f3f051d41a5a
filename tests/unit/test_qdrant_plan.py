# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done to a Qdrant cluster, what is refused, and that doing it leaves nothing to do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.qdrant_admin import request_of
from ansible_collections.groundplane.onprem.plugins.module_utils.qdrant_plan import (
    ACTIVE,
    DISABLED,
    SECTIONS,
    Collection,
    CollectionCreated,
    CollectionDeleted,
    CollectionUpdated,
    LiveCollection,
    PeerRemoved,
    ReplicaAdded,
    State,
    Wanted,
    moving,
    named_vectors,
    plan,
    refusals,
    unmanaged,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import Change, difference, summary
from ansible_collections.groundplane.onprem.plugins.modules.qdrant_resources import all_new, declared
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Mapping

ONE = {"size": 4, "distance": "Cosine"}
PEERS = {1: "v1", 2: "v2", 3: "v3"}


def collection(name: str = "a", **more: Any) -> Collection:
    told: dict[str, Any] = {"vectors": {"": ONE}, "replication_factor": 2, "write_consistency_factor": 2, **more}
    return Collection(name, **told)


def live(shards: Mapping[int, Mapping[int, str]] | None = None, **more: Any) -> LiveCollection:
    found = {0: {1: ACTIVE, 2: ACTIVE}} if shards is None else shards
    params = {
        "vectors": ONE,
        "shard_number": len(found),
        "replication_factor": 2,
        "write_consistency_factor": 2,
        "on_disk_payload": True,
    } | more.pop("params", {})
    return LiveCollection({"params": params, "hnsw_config": {"m": 16, "ef_construct": 100}, **more}, found)


def cluster(alive: str = "123", **collections: LiveCollection) -> State:
    return State(PEERS, frozenset(map(int, alive)), collections)


# ----------------------------------------------------------------------------------------------------------- a model


def done(state: State, changes: list[Change]) -> State:
    """A cluster that does what it is told, as Qdrant's documentation says that it does."""
    for change in changes:
        state = _done(state, change)
    return state


def _done(state: State, change: Change) -> State:
    there = dict(state.collections)
    match change:
        case PeerRemoved():
            assert change.peer not in state.alive
            there = {
                name: replace(
                    one,
                    shards={n: {p: s for p, s in held.items() if p != change.peer} for n, held in one.shards.items()},
                )
                for name, one in there.items()
            }
            peers = {peer: name for peer, name in state.peers.items() if peer != change.peer}
            return replace(state, peers=peers, collections=there)
        case CollectionCreated():
            there[change.name] = _made(change.body, sorted(state.alive))
        case CollectionUpdated():
            there[change.name] = _updated(there[change.name], change.body)
        case ReplicaAdded():
            shards = {number: dict(held) for number, held in there[change.name].shards.items()}
            assert shards[change.shard][change.source] == ACTIVE
            assert change.target not in shards[change.shard]
            assert change.target in state.alive
            shards[change.shard][change.target] = "Partial"
            there[change.name] = replace(there[change.name], shards=shards, moving=1)
        case _:
            assert isinstance(change, CollectionDeleted)
            del there[change.name]
    return replace(state, collections=there)


def _made(body: Mapping[str, Any], alive: list[int]) -> LiveCollection:
    count = body.get("shard_number") or len(alive)
    factor = body["replication_factor"]
    assert factor <= len(alive)
    placed = {
        number: {alive[(number + offset) % len(alive)]: ACTIVE for offset in range(factor)} for number in range(count)
    }
    keys = ("vectors", "replication_factor", "write_consistency_factor", "on_disk_payload")
    params = {"on_disk_payload": True} | {key: body[key] for key in keys if key in body} | {"shard_number": count}
    config: dict[str, Any] = {"params": params, "quantization_config": body.get("quantization_config")}
    return LiveCollection(config | {called: body.get(key, {}) for key, called in SECTIONS.items()}, placed)


def _updated(before: LiveCollection, body: Mapping[str, Any]) -> LiveCollection:
    config = dict(before.config)
    config["params"] = dict(before.params) | dict(body.get("params", {}))
    for key, called in SECTIONS.items():
        config[called] = {**(config.get(called) or {}), **body.get(key, {})}
    if "quantization_config" in body:
        wanted = body["quantization_config"]
        config["quantization_config"] = None if wanted == DISABLED else wanted
    vectors = before.vectors
    for name, changed in body.get("vectors", {}).items():
        vectors[name] = {**vectors[name], **changed}
    config["params"]["vectors"] = vectors[""] if set(vectors) == {""} else vectors
    return replace(before, config=config)


vector = st.builds(
    lambda size, disk: {"size": size, "distance": "Dot"} | ({} if disk is None else {"on_disk": disk}),
    st.integers(1, 2),
    st.none() | st.booleans(),
)
quantizations = st.none() | st.just({}) | st.just({"scalar": {"type": "int8", "always_ram": True}})
collections = st.builds(
    collection,
    st.sampled_from(["a", "b"]),
    vectors=st.fixed_dictionaries({"": vector}) | st.fixed_dictionaries({"text": vector, "image": vector}),
    shard_number=st.none() | st.integers(1, 4),
    replication_factor=st.integers(1, 3),
    write_consistency_factor=st.just(1),
    on_disk_payload=st.none() | st.booleans(),
    quantization=quantizations,
    sections=st.just({}) | st.just({"hnsw_config": {"m": 8}}),
    present=st.booleans(),
)
wanteds = st.lists(collections, max_size=3).map(lambda found: Wanted(tuple(found)))


@given(wanteds, wanteds, st.sampled_from(["123", "12", "1"]))
def test_doing_the_plan_leaves_nothing_to_do(first: Wanted, second: Wanted, alive: str) -> None:
    state = State({int(peer): PEERS[int(peer)] for peer in alive}, frozenset(map(int, alive)))
    for wanted in (first, second):
        if refusals(state, wanted):
            return
        after = done(state, plan(state, wanted))
        assert plan(after, wanted) == []
        assert refusals(after, wanted) == []
        for one in wanted.collections:
            assert (one.name in after.collections) is one.present
            if one.present:
                held = after.collections[one.name].shards.values()
                assert all(len(replicas) >= one.replication_factor for replicas in held)
        state = after


@given(wanteds, wanteds)
def test_nobody_is_deleted_who_is_not_named(first: Wanted, second: Wanted) -> None:
    state = State(PEERS, frozenset(PEERS))
    if refusals(state, first):
        return
    state = done(state, plan(state, first))
    changes = plan(state, second)
    named = {one.name for one in second.collections if not one.present}
    assert {change.name for change in changes if isinstance(change, CollectionDeleted)} <= named
    assert not any(isinstance(change, PeerRemoved) for change in changes)


# ---------------------------------------------------------------------------------------------------------- examples


def test_a_collection_that_is_not_there_is_made_with_all_that_is_declared() -> None:
    wanted = collection(
        shard_number=6,
        on_disk_payload=False,
        quantization={"scalar": {"type": "int8"}},
        sections={"hnsw_config": {"m": 8}},
    )
    (change,) = plan(cluster(), Wanted((wanted,)))
    assert request_of(change) == (
        "PUT",
        "/collections/a",
        {
            "vectors": ONE,
            "shard_number": 6,
            "replication_factor": 2,
            "write_consistency_factor": 2,
            "on_disk_payload": False,
            "quantization_config": {"scalar": {"type": "int8"}},
            "hnsw_config": {"m": 8},
        },
    )
    before, after = difference([change])
    assert "collection a: replication_factor: none\n" in before
    assert 'collection a: vectors: {"distance": "Cosine", "size": 4}\n' in after


def test_what_is_not_declared_is_left_alone() -> None:
    assert plan(cluster(a=live(quantization_config={"binary": {}})), Wanted((collection(),))) == []


def test_what_differs_is_one_request() -> None:
    wanted = collection(
        write_consistency_factor=1,
        on_disk_payload=False,
        sections={"hnsw_config": {"m": 32, "ef_construct": 100}},
        vectors={"": {**ONE, "on_disk": True}},
        quantization={},
    )
    (change,) = plan(cluster(a=live(quantization_config={"binary": {}})), Wanted((wanted,)))
    assert request_of(change) == (
        "PATCH",
        "/collections/a",
        {
            "params": {"write_consistency_factor": 1, "on_disk_payload": False},
            "hnsw_config": {"m": 32},
            "quantization_config": "Disabled",
            "vectors": {"": {"on_disk": True}},
        },
    )
    assert summary([change]) == [
        "collection a: write_consistency_factor",
        "collection a: on_disk_payload",
        "collection a: hnsw_config.m",
        "collection a: quantization_config",
        "collection a: vectors.on_disk",
    ]


def test_a_raised_factor_gives_shards_replicas_on_those_that_have_fewest() -> None:
    shards = {0: {1: ACTIVE, 2: ACTIVE}, 1: {1: ACTIVE, 2: ACTIVE}, 2: {1: ACTIVE, 3: ACTIVE}}
    changes = plan(cluster(a=live(shards)), Wanted((collection(replication_factor=3),)))
    assert request_of(changes[0])[2] == {"params": {"replication_factor": 3}}
    assert [request_of(change)[2] for change in changes[1:]] == [
        {"replicate_shard": {"shard_id": 0, "from_peer_id": 1, "to_peer_id": 3}},
        {"replicate_shard": {"shard_id": 1, "from_peer_id": 1, "to_peer_id": 3}},
        {"replicate_shard": {"shard_id": 2, "from_peer_id": 1, "to_peer_id": 2}},
    ]
    assert summary(changes[1:2]) == ["collection a: replica of shard 0 on v3"]


def test_missing_replicas_are_spread_and_no_more_than_are_missing() -> None:
    peers = {number: f"v{number}" for number in range(1, 6)}
    state = State(peers, frozenset(peers), {"a": live({number: {1: ACTIVE} for number in range(4)})})
    changes = plan(state, Wanted((collection(),)))
    assert [change.target for change in changes if isinstance(change, ReplicaAdded)] == [2, 3, 4, 5]


def test_what_has_too_many_replicas_keeps_them() -> None:
    state = cluster(a=live({0: {1: ACTIVE, 2: ACTIVE, 3: ACTIVE}}))
    assert plan(state, Wanted((collection(),))) == []


def test_a_replica_that_is_dead_or_on_its_way_is_made_by_qdrant_itself() -> None:
    for told in ("Partial", "Initializing", "Recovery", "Dead"):
        assert plan(cluster("12", a=live({0: {1: ACTIVE, 2: told}})), Wanted((collection(),))) == []
    (change,) = plan(cluster(a=live({0: {1: ACTIVE, 2: "Dead"}})), Wanted((collection(),)))
    assert isinstance(change, ReplicaAdded)
    assert change.target == 3
    # Where nobody has all of a shard there is nothing to copy.
    assert plan(cluster(a=live({0: {1: "Dead"}})), Wanted((collection(),))) == []


def test_after_a_peer_was_removed_its_replicas_are_made_elsewhere() -> None:
    state = cluster("13", a=live({0: {1: ACTIVE, 2: ACTIVE}, 1: {2: ACTIVE, 3: ACTIVE}}))
    forgotten = plan(state, Wanted(removed_peers=("v2",)))
    assert forgotten == [PeerRemoved("v2", 2, 2)]
    assert request_of(forgotten[0]) == ("DELETE", "/cluster/peer/2?force=true", None)
    after = done(state, forgotten)
    assert [request_of(change)[2] for change in plan(after, Wanted((collection(),)))] == [
        {"replicate_shard": {"shard_id": 0, "from_peer_id": 1, "to_peer_id": 3}},
        {"replicate_shard": {"shard_id": 1, "from_peer_id": 3, "to_peer_id": 1}},
    ]
    assert plan(after, Wanted(removed_peers=("v2",))) == []


def test_a_peer_that_answers_or_has_the_last_of_something_is_not_removed() -> None:
    asked = Wanted(removed_peers=("v2",))
    assert refusals(cluster(), asked) == [
        "peer v2 (2): it answers, so that it is not gone: stop it for good first, or leave it."
    ]
    state = cluster("13", a=live({0: {1: "Dead", 2: ACTIVE}, 1: {2: ACTIVE}, 2: {2: "Dead", 3: ACTIVE}}))
    (sentence,) = refusals(state, asked)
    assert sentence == (
        "peer v2: no other peer has an active replica of shards 0, 1 of collection a, which would be lost with it: "
        "bring the peer back, or delete the collection first."
    )


def test_of_two_peers_of_one_name_only_the_one_that_is_gone_goes() -> None:
    """A host that lost its data has joined anew under its old name, where Qdrant let it."""
    state = replace(cluster("123"), peers={**PEERS, 9: "v2"})
    assert plan(state, Wanted(removed_peers=("v2",))) == [PeerRemoved("v2", 9, 0)]


def test_an_absent_collection_is_deleted_last_and_once() -> None:
    state = cluster(a=live(), b=live())
    changes = plan(state, Wanted((collection("b", present=False), collection("a", on_disk_payload=False))))
    assert [type(change) for change in changes] == [CollectionUpdated, CollectionDeleted]
    assert request_of(changes[1]) == ("DELETE", "/collections/b", None)
    assert plan(cluster(), Wanted((collection("b", present=False),))) == []


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (collection(vectors={}), "it has no vectors"),
        (collection(vectors={"": {"size": 0, "distance": "Dot"}}), "size is 0: set it to a number from 1 to 65536"),
        (collection(vectors={"": {"size": 4, "distance": "dot"}}), "make it one of Cosine, Euclid, Dot, Manhattan"),
        (collection(vectors={"x": {**ONE, "ondisk": True}}), "vector x: ondisk is unknown"),
        (collection(write_consistency_factor=3), "write_consistency_factor is 3, and replication_factor is 2"),
        (collection(replication_factor=0, write_consistency_factor=0), "replication_factor is 0: set it to 1 or more"),
        (collection(shard_number=0), "shard_number is 0"),
        (collection("a/b"), "a name has up to 255 characters"),
        (collection(".."), "a name has up to 255 characters"),
    ],
)
def test_what_contradicts_itself_is_refused_without_asking_anybody(wanted: Collection, said: str) -> None:
    assert any(said in sentence for sentence in refusals(None, Wanted((wanted,))))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            collection(vectors={"": {**ONE, "size": 5}}),
            "size is 5, and the collection has 4, which is settled when it is",
        ),
        (collection(vectors={"x": ONE}), "declared with vectors x, and has one vector without a name"),
        (collection(shard_number=2), "shard_number is 2, and the collection has 1, which is settled when it is made"),
        (collection(replication_factor=4), "replication_factor is 4, and the cluster has 3 peers"),
    ],
)
def test_what_cannot_be_changed_is_refused(wanted: Collection, said: str) -> None:
    (sentence,) = refusals(cluster(a=live()), Wanted((wanted,)))
    assert said in sentence


def test_a_collection_that_is_declared_twice_is_refused() -> None:
    assert refusals(None, Wanted((collection(), collection()))) == [
        "collection a is declared more than once: declare it once."
    ]


def test_names_are_encoded_where_they_are_asked_for() -> None:
    assert request_of(CollectionDeleted("ä b"))[1] == "/collections/%C3%A4%20b"


def test_either_form_of_vectors_is_understood() -> None:
    assert named_vectors(ONE) == {"": ONE}
    assert named_vectors({"size": ONE, "x": ONE}) == {"size": ONE, "x": ONE}
    assert named_vectors({}) == {}


def test_what_nobody_declares_is_told() -> None:
    state = cluster(a=replace(live(), moving=2), b=replace(live(), moving=1))
    assert unmanaged(state, Wanted((collection("a"),))) == ["b"]
    assert moving(state, Wanted((collection("a"), collection("new")))) == 2


def test_the_modules_parameters_become_declarations() -> None:
    item = {
        "name": "a", "vectors": {"x": ONE}, "sparse_vectors": {}, "shard_number": None, "replication_factor": None,
        "write_consistency_factor": 1, "on_disk_payload": None, "hnsw_config": {"m": 8}, "optimizers_config": {},
        "strict_mode_config": {}, "quantization_config": None, "state": "present",
    }  # fmt: skip
    params = {"replication_factor": 2, "write_consistency_factor": 2, "collections": [item], "removed_peers": ["v9"]}
    wanted = declared(params)
    assert wanted.removed_peers == ("v9",)
    (one,) = wanted.collections
    assert (one.replication_factor, one.write_consistency_factor, one.present) == (2, 1, True)
    assert one.sections["hnsw_config"] == {"m": 8}
    assert summary(all_new(wanted).changes)[0] == "collection a: state"
