# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The members of a Qdrant cluster, asked over HTTPS: for the gate, and for whoever changes collections.

`/cluster` is what a member knows of the consensus, `/collections/NAME/cluster` where the shards of a collection are,
which all members have from the consensus. `/readyz` needs no key; once it was well it stays so until the next start.

Source: Qdrant 1.19, `openapi/`, `src/common/health.rs`, `lib/storage/src/types.rs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from ansible_collections.groundplane.onprem.plugins.module_utils.gate import Health
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_qdrant import QdrantMember, QdrantState, Shard
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import (
    TIMEOUT,
    Clients,
    ClientTls,
    Crew,
    HttpsError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import Answer, HttpsClient

OK, UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 200, 401, 403, 404
WORKING = "working"
"""What a consensus says of itself that works."""


class QdrantError(Exception):
    """A cluster has no members that could be asked, refuses our key, or answers what is no answer."""


class NoCollectionError(QdrantError):
    """There is no such collection, perhaps any more."""


def clients(api_key: str, tls: ClientTls, timeout: float = TIMEOUT) -> Clients:
    """Connections that show the key.

    Args:
        api_key: of the service.
        tls: whom we trust, and who we are.
        timeout: seconds for connect and for each answer.

    Raises:
        HttpsError: the certificate files cannot be read.
    """
    return Clients(tls, timeout, {"api-key": api_key})


def collection_path(name: str) -> str:
    """Where a collection is, below a member's URL."""
    return f"/collections/{quote(name, safe='')}"


def result_of(url: str, answer: Answer) -> Any:
    """What a member answered.

    Args:
        url: of the member and the path, for the message.
        answer: to any request with the key.

    Raises:
        NoCollectionError: there is none of that name.
        QdrantError: it refuses, or that is no answer of Qdrant.
    """
    if answer.status in (UNAUTHORIZED, FORBIDDEN):
        raise QdrantError(
            f"{url}: it refuses our key: set qdrant_api_key to the one that it runs with, see docs/runbooks/qdrant.md"
        )
    told = answer.json()
    if answer.status == OK and "result" in told:
        return told["result"]
    status = told.get("status")
    said = status.get("error") if isinstance(status, dict) else status
    kind = NoCollectionError if answer.status == NOT_FOUND else QdrantError
    raise kind(f"{url}: it answers {answer.status}{f' ({said})' if said else ''}")


def peers_of(told: Mapping[str, Any]) -> dict[int, str]:
    """Id to name of all peers, from an answer of `/cluster`; the name is the first label of the peer's URI."""
    return {
        int(peer): (urlsplit(str(row.get("uri"))).hostname or "").partition(".")[0]
        for peer, row in (told.get("peers") or {}).items()
    }


def member_of(name: str, told: Mapping[str, Any], *, ready: bool) -> QdrantMember:
    """A member that answered.

    Args:
        name: by the inventory.
        told: its answer to `/cluster`.
        ready: what it says under `/readyz`.

    Raises:
        QdrantError: it runs alone, without a cluster.
    """
    if told.get("status") != "enabled":
        raise QdrantError(f"{name}: it runs without a cluster: run the role qdrant, which enables it")
    raft, peers = told.get("raft_info") or {}, peers_of(told)
    thread = told.get("consensus_thread_status") or {}
    cause = ""
    if thread.get("consensus_thread_status") != WORKING:
        cause = f"its consensus is {thread.get('consensus_thread_status')}: {thread.get('err') or 'no more is said'}"
    elif not raft.get("leader"):
        cause = "it knows no leader"
    elif not raft.get("is_voter"):
        cause = "it has no vote yet"
    elif not ready:
        cause = "it is not ready: it catches up with the others, or one of its shards does"
    return QdrantMember(
        name=name,
        health=Health.FAILING if cause else Health.SERVING,
        peer=int(told.get("peer_id") or 0),
        leader=int(raft.get("leader") or 0),
        peers=peers,
        cause=cause,
    )


def shards_of(collection: str, told: Mapping[str, Any], writes: int) -> list[Shard]:
    """The shards of a collection.

    Args:
        collection: its name.
        told: a member's answer to `/collections/NAME/cluster`.
        writes: the collection's write consistency factor.
    """
    replicas: dict[int, dict[int, str]] = {}
    own = int(told.get("peer_id") or 0)
    for row in told.get("local_shards") or ():
        replicas.setdefault(int(row["shard_id"]), {})[own] = str(row["state"])
    for row in told.get("remote_shards") or ():
        replicas.setdefault(int(row["shard_id"]), {})[int(row["peer_id"])] = str(row["state"])
    moving = [int(row["shard_id"]) for row in told.get("shard_transfers") or ()]
    return [Shard(collection, number, replicas[number], writes, moving.count(number)) for number in sorted(replicas)]


class QdrantCluster:
    """What the gate reads a cluster by."""

    def __init__(self, cluster: str, servers: Sequence[str], api_key: str, tls: ClientTls) -> None:
        """Ask nothing yet.

        Args:
            cluster: the name used in messages.
            servers: `host:port` of all members; the first label of a host is the member's name.
            api_key: of the service.
            tls: whom we trust, and who we are.

        Raises:
            QdrantError: there are no members, or no key.
            HttpsError: the certificate files cannot be read.
        """
        if not servers:
            raise QdrantError(f"nobody says where the members of Qdrant {cluster} are: name them in servers")
        if not api_key:
            raise QdrantError(f"nobody says the key of Qdrant {cluster}: set qdrant_api_key")
        self.cluster = cluster
        self._urls = {server.partition(":")[0].partition(".")[0]: f"https://{server}" for server in servers}
        self._clients = clients(api_key, tls)
        self._crew = Crew(len(self._urls))

    def read(self, _member: str = "") -> QdrantState:
        """All members as they are now.

        Raises:
            QdrantError: a member refuses, or answers what is none of its answers.
        """
        members = tuple(self._crew.map(self._look, self._urls))
        state = QdrantState(self.cluster, members)
        # The leader knows first, and any other one that serves soon.
        witness = state.leader or next(iter(state.serving), None)
        return QdrantState(self.cluster, members, self._shards(witness.name)) if witness else state

    def _look(self, name: str) -> QdrantMember:
        url = self._urls[name]
        try:
            told = result_of(f"{url}/cluster", self._clients[url].request("GET", "/cluster"))
            ready = self._clients[url].request("GET", "/readyz").status == OK
        except HttpsError as error:
            return QdrantMember(name, Health.DOWN if error.refused else Health.UNKNOWN, cause=str(error))
        return member_of(name, told, ready=ready)

    def _shards(self, name: str) -> tuple[Shard, ...]:
        url = self._urls[name]
        client = self._clients[url]
        try:
            listed = result_of(f"{url}/collections", client.request("GET", "/collections"))
            return tuple(
                shard
                for one in listed.get("collections") or ()
                for shard in self._of_collection(client, str(one["name"]))
            )
        except HttpsError as error:
            raise QdrantError(f"Qdrant {self.cluster}: {name} does not say where its shards are: {error}") from error

    @staticmethod
    def _of_collection(client: HttpsClient, name: str) -> list[Shard]:
        path = collection_path(name)
        try:
            told = result_of(f"{client.url}{path}", client.request("GET", path))
            where = result_of(f"{client.url}{path}/cluster", client.request("GET", f"{path}/cluster"))
        except NoCollectionError:
            return []  # deleted since it was listed
        writes = ((told.get("config") or {}).get("params") or {}).get("write_consistency_factor")
        return shards_of(name, where, int(writes or 1))

    def move_leader(self, _state: Any, _target: str, _timeout: float, *, named: bool = True) -> tuple[float, str]:  # noqa: ARG002 - the gate's interface
        """Refuse: there is no request for it."""
        raise QdrantError(f"Qdrant {self.cluster} does not move its lead")
