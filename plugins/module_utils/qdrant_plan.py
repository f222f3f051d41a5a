# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must change in a Qdrant cluster so that collections and peers are as declared, as pure functions.

`refusals` says what cannot or must not be done, `plan` what is to be done. What a declaration does not say is left
alone; nothing is deleted but what is declared absent by its name, and no peer is removed that is not named.

Qdrant makes replicas when it makes a collection. When the factor is raised, or a peer was removed, it makes none: here
each shard of a declared collection gets what it lacks. It is given none too many, and none is taken away.

Source: Qdrant 1.19, `openapi/` (collections, distributed); `lib/collection/src/operations/types.rs` and
`config_diff.rs`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import Change, Line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ACTIVE, DEAD = "Active", "Dead"
"""States of a replica that has everything, and of one that has to be made anew."""

UNNAMED = ""
"""The name of the vector of a collection that has one only."""

DISTANCES = ("Cosine", "Euclid", "Dot", "Manhattan")
DISABLED = "Disabled"
"""What takes a quantization away."""

SETTLED_OF_VECTORS = ("size", "distance", "datatype", "multivector_config")
"""What of vectors is settled when a collection is made."""
CHANGEABLE_OF_VECTORS = ("on_disk", "memory", "hnsw_config", "quantization_config")
LARGEST_VECTOR = 65536
LONGEST_NAME = 255

SECTIONS = {
    "hnsw_config": "hnsw_config",
    "optimizers_config": "optimizer_config",
    "strict_mode_config": "strict_mode_config",
}
"""Parts of a declaration that are compared key by key, and what Qdrant calls them when it tells them."""


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection as declared; None, or a key that is not there: it is left alone.

    Attributes:
        name: its name.
        vectors: name to size, distance and the rest; the name is empty where there is one vector only.
        sparse_vectors: name to its parameters; only their names are compared, once it is there.
        shard_number: how many shards, which is settled when it is made.
        replication_factor: replicas of each shard.
        write_consistency_factor: replicas that have to take a write.
        on_disk_payload: payloads are read from disk.
        sections: as `SECTIONS`, each with the keys that are declared.
        quantization: of all vectors; empty: none.
        present: False: it is deleted.
    """

    name: str
    vectors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sparse_vectors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    shard_number: int | None = None
    replication_factor: int = 1
    write_consistency_factor: int = 1
    on_disk_payload: bool | None = None
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    quantization: Mapping[str, Any] | None = None
    present: bool = True


@dataclass(frozen=True, slots=True)
class LiveCollection:
    """A collection that is there.

    Attributes:
        config: as Qdrant tells it.
        shards: id of a shard to the states of its replicas by peer.
        moving: transfers of shards under way.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    shards: Mapping[int, Mapping[int, str]] = field(default_factory=dict)
    moving: int = 0

    @property
    def params(self) -> Mapping[str, Any]:
        """The part that says how it is laid out."""
        return dict(self.config.get("params") or {})

    @property
    def vectors(self) -> dict[str, Mapping[str, Any]]:
        """Name to parameters, as in a declaration."""
        return named_vectors(self.params.get("vectors") or {})


@dataclass(frozen=True, slots=True)
class State:
    """A cluster at one moment.

    Attributes:
        peers: id to name of all peers of the consensus.
        alive: ids of peers that answered as themselves.
        collections: by name.
    """

    peers: Mapping[int, str] = field(default_factory=dict)
    alive: frozenset[int] = frozenset()
    collections: Mapping[str, LiveCollection] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that is declared.

    Attributes:
        collections: in the order of the declaration.
        removed_peers: names of peers that are gone.
    """

    collections: tuple[Collection, ...] = ()
    removed_peers: tuple[str, ...] = ()


def named_vectors(vectors: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Vectors by name, from either form that Qdrant has: one vector has its size where others have their names."""
    if "size" in vectors and not isinstance(vectors["size"], Mapping):
        return {UNNAMED: vectors}
    return {str(name): dict(one) for name, one in vectors.items() if isinstance(one, Mapping)}


# ------------------------------------------------------------------------------------------------------------- changes


@dataclass(frozen=True, slots=True)
class CollectionChange(Change):
    """Something of one collection."""

    name: str

    @property
    def subject(self) -> str:
        """The collection."""
        return f"collection {self.name}"


@dataclass(frozen=True, slots=True)
class CollectionCreated(CollectionChange):
    """A collection that is not there yet.

    Attributes:
        body: what Qdrant is asked for.
    """

    body: Mapping[str, Any]

    def lines(self) -> list[Line]:
        """What it is made with."""
        return [
            Line("state", "absent", "present"),
            *(Line(key, "none", _words(value)) for key, value in self.body.items()),
        ]


@dataclass(frozen=True, slots=True)
class CollectionUpdated(CollectionChange):
    """What differs and can be changed.

    Attributes:
        body: what Qdrant is asked for.
        differs: aspect to what it was and what it will be.
    """

    body: Mapping[str, Any]
    differs: tuple[tuple[str, Any, Any], ...]

    def lines(self) -> list[Line]:
        """Each aspect."""
        return [Line(aspect, _words(before), _words(after)) for aspect, before, after in self.differs]


@dataclass(frozen=True, slots=True)
class ReplicaAdded(CollectionChange):
    """A replica that a shard lacks.

    Attributes:
        shard: its id.
        source: id of a peer that has all of it.
        target: id of the peer that gets it.
        target_name: its name.
    """

    shard: int
    source: int
    target: int
    target_name: str

    def lines(self) -> list[Line]:
        """Where it goes."""
        return [Line(f"replica of shard {self.shard} on {self.target_name or self.target}", "absent", "present")]


@dataclass(frozen=True, slots=True)
class CollectionDeleted(CollectionChange):
    """A collection that goes, with its points."""

    def lines(self) -> list[Line]:
        """That it goes."""
        return [Line("state", "present", "absent")]


@dataclass(frozen=True, slots=True)
class PeerRemoved(Change):
    """A peer that is gone, with the replicas that it had.

    Attributes:
        name: by the inventory.
        peer: its id.
        replicas: how many it had.
    """

    name: str
    peer: int
    replicas: int

    @property
    def subject(self) -> str:
        """The peer."""
        return f"peer {self.name}"

    def lines(self) -> list[Line]:
        """That it goes, and what with it."""
        return [Line(f"id {self.peer}, which had {self.replicas} replicas", "present", "absent")]


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, sort_keys=True) if isinstance(value, (Mapping, list, tuple)) else str(value)


# ------------------------------------------------------------------------------------------------------------ refusals


def refusals(state: State | None, wanted: Wanted) -> list[str]:
    """What is declared and cannot be, or must not be done, one sentence each.

    Args:
        state: as it is; None when nobody was asked, and then only what contradicts itself is found.
        wanted: what is declared.
    """
    names = Counter(one.name for one in wanted.collections)
    found = [
        f"collection {name} is declared more than once: declare it once." for name, times in names.items() if times > 1
    ]
    for collection in wanted.collections:
        found += _own_refusals(collection)
    if state is None:
        return found
    for name in wanted.removed_peers:
        found += _peer_refusals(state, name)
    for collection in wanted.collections:
        if collection.present:
            found += _live_refusals(state, collection, wanted)
    return found


def _own_refusals(collection: Collection) -> Iterator[str]:
    """What contradicts itself."""
    where, name = f"collection {collection.name}", collection.name
    if not name or len(name) > LONGEST_NAME or name in (".", "..") or any(one in '<>:"/\\|?*\0' for one in name):
        yield f'{where}: a name has up to {LONGEST_NAME} characters, none of them / \\ < > : " | ? *: choose another.'
    if not collection.present:
        return
    if not collection.vectors and not collection.sparse_vectors:
        yield f"{where}: it has no vectors: give it vectors with size and distance, or sparse_vectors."
    for vector, told in collection.vectors.items():
        yield from _vector_refusals(f"{where}{f': vector {vector}' if vector else ''}", told)
    numbers = {
        "shard_number": collection.shard_number,
        "replication_factor": collection.replication_factor,
        "write_consistency_factor": collection.write_consistency_factor,
    }
    for key, number in numbers.items():
        if number is not None and number < 1:
            yield f"{where}: {key} is {number}: set it to 1 or more."
    if collection.write_consistency_factor > collection.replication_factor:
        yield (
            f"{where}: write_consistency_factor is {collection.write_consistency_factor}, and replication_factor is "
            f"{collection.replication_factor}: lower the first, or raise the second."
        )


def _vector_refusals(where: str, told: Mapping[str, Any]) -> Iterator[str]:
    size, distance = told.get("size"), told.get("distance")
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= LARGEST_VECTOR:
        yield f"{where}: size is {size!r}: set it to a number from 1 to {LARGEST_VECTOR}."
    if distance not in DISTANCES:
        yield f"{where}: distance is {distance!r}: make it one of {', '.join(DISTANCES)}."
    unknown = sorted({*told} - {*SETTLED_OF_VECTORS, *CHANGEABLE_OF_VECTORS})
    if unknown:
        known = ", ".join((*SETTLED_OF_VECTORS, *CHANGEABLE_OF_VECTORS))
        yield f"{where}: {', '.join(unknown)} is unknown: leave it out; known are {known}."


def _peer_refusals(state: State, name: str) -> Iterator[str]:
    there = [peer for peer, known in state.peers.items() if known == name]
    for peer in there:
        if peer in state.alive:
            yield f"peer {name} ({peer}): it answers, so that it is not gone: stop it for good first, or leave it."
    gone = {peer for peer in there if peer not in state.alive}
    for collection, live in sorted(state.collections.items()):
        last = [
            number
            for number, replicas in live.shards.items()
            if gone & set(replicas) and not any(one == ACTIVE for peer, one in replicas.items() if peer not in gone)
        ]
        if last:
            yield (
                f"peer {name}: no other peer has an active replica of {_count(last)} of collection {collection}, which "
                f"would be lost with it: bring the peer back, or delete the collection first."
            )


def _live_refusals(state: State, collection: Collection, wanted: Wanted) -> Iterator[str]:
    """What the cluster cannot do."""
    where = f"collection {collection.name}"
    peers = len(_staying(state, wanted))
    if collection.replication_factor > peers:
        yield (
            f"{where}: replication_factor is {collection.replication_factor}, and the cluster has {peers} peers: lower "
            f"it, or let more hosts join."
        )
    live = state.collections.get(collection.name)
    if live is None:
        return
    shards = live.params.get("shard_number")
    if collection.shard_number is not None and shards != collection.shard_number:
        yield (
            f"{where}: shard_number is {collection.shard_number}, and the collection has {shards}, which is settled "
            f"when it is made: leave it out, or make another collection and copy the points."
        )
    if {*collection.vectors} != {*live.vectors}:
        yield (
            f"{where}: it is declared with {_some(collection.vectors)}, and has {_some(live.vectors)}, which is "
            f"settled when it is made: make another collection and copy the points."
        )
    for vector in collection.vectors.keys() & live.vectors.keys():
        yield from _settled_refusals(where, vector, collection.vectors[vector], live.vectors[vector])


def _settled_refusals(where: str, vector: str, told: Mapping[str, Any], live: Mapping[str, Any]) -> Iterator[str]:
    for key in SETTLED_OF_VECTORS:
        if key in told and told[key] != live.get(key):
            of = f" of vector {vector}" if vector else ""
            yield (
                f"{where}: {key}{of} is {_words(told[key])}, and the collection has {_words(live.get(key))}, which is "
                f"settled when it is made: make another collection and copy the points."
            )


def _some(vectors: Mapping[str, Any]) -> str:
    names = sorted(vectors)
    return "one vector without a name" if names == [UNNAMED] else f"vectors {', '.join(names) or 'none'}"


def _count(shards: Sequence[int]) -> str:
    return f"shard {shards[0]}" if len(shards) == 1 else f"shards {', '.join(map(str, shards))}"


# ---------------------------------------------------------------------------------------------------------------- plan


def plan(state: State, wanted: Wanted) -> list[Change]:
    """What must be done, in the order in which it is: peers that go, what there is, its replicas, and last what goes.

    Args:
        state: the cluster; `State()` for one that is only being planned.
        wanted: what is declared and was not refused.
    """
    changes: list[Change] = []
    gone = _gone(state, wanted)
    for peer in gone:
        had = sum(peer in replicas for live in state.collections.values() for replicas in live.shards.values())
        changes.append(PeerRemoved(state.peers[peer], peer, had))
    staying = _staying(state, wanted)
    load = Counter(dict.fromkeys(staying, 0))
    for live in state.collections.values():
        load.update(peer for replicas in live.shards.values() for peer in replicas if peer in staying)
    for collection in wanted.collections:
        if not collection.present:
            continue
        there = state.collections.get(collection.name)
        if there is None:
            changes.append(CollectionCreated(collection.name, _body(collection)))
            continue
        update = _update(collection, there)
        changes += [update] if update else []
        changes += _replicas(collection, there, staying, load)
    absent = (one.name for one in wanted.collections if not one.present and one.name in state.collections)
    return [*changes, *(CollectionDeleted(name) for name in absent)]


def _gone(state: State, wanted: Wanted) -> list[int]:
    return sorted(
        peer for peer, name in state.peers.items() if name in wanted.removed_peers and peer not in state.alive
    )


def _staying(state: State, wanted: Wanted) -> dict[int, str]:
    """Peers that replicas can be on afterwards: those that answer."""
    gone = _gone(state, wanted)
    return {peer: name for peer, name in state.peers.items() if peer in state.alive and peer not in gone}


def _body(collection: Collection) -> dict[str, Any]:
    """What makes a collection."""
    vectors = collection.vectors
    told: dict[str, Any] = {
        "vectors": dict(vectors[UNNAMED])
        if {*vectors} == {UNNAMED}
        else {name: dict(one) for name, one in vectors.items()},
        "sparse_vectors": {name: dict(one) for name, one in collection.sparse_vectors.items()} or None,
        "shard_number": collection.shard_number,
        "replication_factor": collection.replication_factor,
        "write_consistency_factor": collection.write_consistency_factor,
        "on_disk_payload": collection.on_disk_payload,
        "quantization_config": dict(collection.quantization) if collection.quantization else None,
        **{key: dict(section) for key, section in collection.sections.items() if section},
    }
    return {key: value for key, value in told.items() if value is not None}


def _update(collection: Collection, live: LiveCollection) -> CollectionUpdated | None:
    """What differs and can be changed; None when nothing does."""
    body: dict[str, Any] = {}
    differs: list[tuple[str, Any, Any]] = []
    for key in ("replication_factor", "write_consistency_factor", "on_disk_payload"):
        after = getattr(collection, key)
        if after is not None and live.params.get(key) != after:
            body.setdefault("params", {})[key] = after
            differs.append((key, live.params.get(key), after))
    for key, called in SECTIONS.items():
        before = live.config.get(called) or {}
        changed = {one: value for one, value in collection.sections.get(key, {}).items() if before.get(one) != value}
        if changed:
            body[key] = changed
            differs += [(f"{key}.{one}", before.get(one), value) for one, value in changed.items()]
    if collection.quantization is not None:
        wanted, before = dict(collection.quantization) or None, live.config.get("quantization_config")
        if wanted != before:
            body["quantization_config"] = wanted or DISABLED
            differs.append(("quantization_config", before, wanted))
    for vector, changed in _vector_changes(collection, live):
        body.setdefault("vectors", {})[vector] = changed
        of = f"vectors.{vector}." if vector else "vectors."
        differs += [(f"{of}{key}", live.vectors[vector].get(key), value) for key, value in changed.items()]
    return CollectionUpdated(collection.name, body, tuple(differs)) if body else None


def _vector_changes(collection: Collection, live: LiveCollection) -> Iterator[tuple[str, dict[str, Any]]]:
    # One that the collection has not cannot be added to it: `refusals` says so.
    for vector in (one for one in collection.vectors if one in live.vectors):
        told, before = collection.vectors[vector], live.vectors[vector]
        changed = {key: told[key] for key in CHANGEABLE_OF_VECTORS if key in told and told[key] != before.get(key)}
        if changed:
            yield vector, changed


def _replicas(
    collection: Collection, live: LiveCollection, staying: Mapping[int, str], load: Counter[int]
) -> Iterator[ReplicaAdded]:
    """What shards lack; the peer with the fewest replicas gets one.

    Args:
        collection: as declared.
        live: as it is.
        staying: peers that can have replicas.
        load: replicas of each of them, which is kept up to date.
    """
    for shard, replicas in sorted(live.shards.items()):
        there = {peer for peer, one in replicas.items() if peer in staying and one != DEAD}
        source = min((peer for peer in there if replicas[peer] == ACTIVE), default=None)
        while source is not None and len(there) < collection.replication_factor:
            # One that is dead is made anew by Qdrant itself.
            free = [peer for peer in staying if peer not in there and peer not in replicas]
            if not free:
                break
            target = min(free, key=lambda peer: (load[peer], staying[peer], peer))
            there.add(target)
            load[target] += 1
            yield ReplicaAdded(collection.name, shard, source, target, staying[target])


def unmanaged(state: State, wanted: Wanted) -> list[str]:
    """Collections that are there and that nobody declares."""
    declared = {one.name for one in wanted.collections}
    return sorted(name for name in state.collections if name not in declared)


def moving(state: State, wanted: Wanted) -> int:
    """Transfers of shards of declared collections that are under way."""
    names: Iterable[str] = (one.name for one in wanted.collections)
    return sum(state.collections[name].moving for name in names if name in state.collections)
