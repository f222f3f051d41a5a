# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collections and peers of a live Qdrant cluster: read, changed, and looked at again.

Source: Qdrant 1.19, `openapi/` (collections, distributed).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import Clients, Crew, HttpsError
from ansible_collections.groundplane.onprem.plugins.module_utils.qdrant_cluster import (
    NoCollectionError,
    QdrantError,
    collection_path,
    peers_of,
    result_of,
    shards_of,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.qdrant_plan import (
    CollectionCreated,
    CollectionDeleted,
    CollectionUpdated,
    LiveCollection,
    PeerRemoved,
    ReplicaAdded,
    State,
    Wanted,
    plan,
    refusals,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import (
    Change,
    RefusedError,
    UnfinishedError,
    summary,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0
"""Seconds between two looks, growing."""

CHANGE_TIMEOUT = 60.0
"""Seconds for one change, which the consensus takes and all members do."""


class SilentError(QdrantError):
    """No member answers, so that there may be no cluster yet."""


@dataclass
class Outcome:
    """What was found and done."""

    changes: list[Change] = field(default_factory=list)
    state: State = field(default_factory=State)


def request_of(change: Change) -> tuple[str, str, dict[str, Any] | None]:
    """Method, path and body that make a change.

    Raises:
        TypeError: nobody knows how to.
    """
    if isinstance(change, PeerRemoved):
        # By force, because its replicas are gone with it; that others have them was looked at before.
        return "DELETE", f"/cluster/peer/{change.peer}?force=true", None
    if isinstance(change, CollectionCreated):
        return "PUT", collection_path(change.name), dict(change.body)
    if isinstance(change, CollectionUpdated):
        return "PATCH", collection_path(change.name), dict(change.body)
    if isinstance(change, CollectionDeleted):
        return "DELETE", collection_path(change.name), None
    if isinstance(change, ReplicaAdded):
        body = {"shard_id": change.shard, "from_peer_id": change.source, "to_peer_id": change.target}
        return "POST", f"{collection_path(change.name)}/cluster", {"replicate_shard": body}
    raise TypeError(f"{type(change).__name__} is no change of Qdrant")


class QdrantAdmin:
    """The administration of one cluster, through the first member that answers."""

    def __init__(self, servers: Sequence[str], connections: Clients) -> None:
        """Ask nothing yet.

        Args:
            servers: `host:port` of all members.
            connections: from `qdrant_cluster.clients`.
        """
        self._urls = [f"https://{server}" for server in servers]
        self._clients = connections
        self._crew = Crew(len(self._urls))
        self._url = ""
        self.requests = 0

    def converge(self, wanted: Wanted, *, check: bool, wait_seconds: float) -> Outcome:
        """Make the cluster what is declared, or say what that would do.

        Args:
            wanted: what is declared.
            check: change nothing.
            wait_seconds: how long a change may take until the cluster shows it.

        Raises:
            RefusedError: it cannot or must not be done; nothing was touched.
            UnfinishedError: the cluster did not take a part of it.
            SilentError: no member answers.
            QdrantError: one refuses to tell.
        """
        if reasons := refusals(None, wanted):
            raise RefusedError(reasons)
        state = self.read()
        if reasons := refusals(state, wanted):
            raise RefusedError(reasons)
        changes = plan(state, wanted)
        if changes and not check:
            state = self._carry_out(wanted, changes, wait_seconds)
        return Outcome(changes, state)

    def _carry_out(self, wanted: Wanted, changes: Sequence[Change], wait_seconds: float) -> State:
        deadline, pause, left = time.monotonic() + wait_seconds, FIRST_PAUSE, list(changes)
        asked: set[str] = set()
        while True:
            # A collection that was just made, or a peer that is gone, may leave a shard to be given a replica.
            self._apply([change for change in left if repr(change) not in asked])
            asked |= {repr(change) for change in left}
            state = self.read()
            left = plan(state, wanted)
            if not left:
                return state
            if time.monotonic() > deadline:
                raise UnfinishedError(f"the cluster took it, and does not show: {', '.join(summary(left))}")
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    def _apply(self, changes: Sequence[Change]) -> None:
        """Do all that can be done; what rests on a change of the same object that failed is left."""
        failures: dict[str, str] = {}
        for change in changes:
            if change.subject in failures:
                continue
            method, path, body = request_of(change)
            try:
                self._ask(method, path, body, timeout=CHANGE_TIMEOUT)
            except (QdrantError, HttpsError) as error:
                failures[change.subject] = f"{change.subject}: {error}"
        if failures:
            raise UnfinishedError("; ".join(failures.values()))

    def read(self) -> State:
        """The cluster as it is.

        Raises:
            SilentError: no member answers.
            QdrantError: one refuses to tell.
        """
        told: dict[str, dict[str, Any]] = {}
        silent = []
        for url, answer in zip(self._urls, self._crew.map(self._look, self._urls), strict=True):
            if isinstance(answer, HttpsError):
                silent.append(str(answer))
            else:
                told[url] = answer
        if not told:
            raise SilentError("no member of Qdrant answers: " + "; ".join(silent or ["none is named"]))
        # Whoever leads the consensus knows first.
        leads = (url for url, one in told.items() if (one.get("raft_info") or {}).get("leader") == one["peer_id"])
        self._url = next(leads, next(iter(told)))
        alive = frozenset(int(one["peer_id"]) for one in told.values())
        listed = self._ask("GET", "/collections")["collections"]
        collections = {str(one["name"]): self._collection(str(one["name"])) for one in listed}
        return State(
            peers_of(told[self._url]), alive, {name: live for name, live in collections.items() if live is not None}
        )

    def _look(self, url: str) -> dict[str, Any] | HttpsError:
        try:
            answer = result_of(f"{url}/cluster", self._clients[url].request("GET", "/cluster"))
        except HttpsError as error:
            return error
        if answer.get("status") != "enabled":
            raise QdrantError(f"{url}: it runs without a cluster: run the role qdrant, which enables it")
        return dict(answer)

    def _collection(self, name: str) -> LiveCollection | None:
        path = collection_path(name)
        try:
            config = self._ask("GET", path)["config"]
            where = self._ask("GET", f"{path}/cluster")
        except NoCollectionError:
            return None  # deleted since it was listed
        shards = {shard.number: shard.replicas for shard in shards_of(name, where, 1)}
        return LiveCollection(config, shards, len(where.get("shard_transfers") or ()))

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        self.requests += 1
        # What changes something is not sent twice: the first may have been taken.
        answer = self._clients[self._url].request(method, path, body, timeout=timeout, once=method != "GET")
        return result_of(f"{self._url}{path}", answer)
