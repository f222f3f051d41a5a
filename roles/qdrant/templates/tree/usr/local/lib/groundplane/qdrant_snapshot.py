# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts snapshots of this member's collections into the object store, and gets them back.

Usage: qdrant_snapshot.py take FILE | restore FILE COLLECTION UNTIL. FILE is JSON, with the keys of `Settings`.

Qdrant says the SHA-256 of a snapshot that lies on its member, and of none that it puts into a store itself. So it is
taken here, and sent from here: the checksum that Qdrant says is the one that is signed, so that the store refuses any
other content, and it stays with the object. Whoever gets it back computes it once more, and so does Qdrant.

take: one snapshot of each collection that has a shard here; the oldest go that are more than `keep`. restore: one
collection is what it was here; UNTIL is a moment in UTC as in the names of snapshots, or `newest`.

Source: Qdrant 1.19 documentation, "Snapshots".
"""

from __future__ import annotations

import http.client
import json
import re
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parent))

from snapshot_store import (  # it lies beside this file
    Place,
    Snapshot,
    SnapshotError,
    Store,
    chosen,
    connection_to,
    context_of,
    is_file_name,
    moment_of,
    settings_of,
    surplus,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

PATIENCE = 6 * 3600.0
"""Seconds for Qdrant to write a snapshot, or to take one back."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_OK = range(200, 300)


@dataclass(frozen=True, kw_only=True)
class Settings(Place):
    """What this host is told.

    Attributes:
        api: `https://host:port` of its Qdrant.
        api_key: for it.
        ca: file with the authority that vouches for it and for the store.
        snapshots: directory in which Qdrant keeps what is on its way.
    """

    api: str
    api_key: str = field(repr=False)
    ca: str
    snapshots: str


# ------------------------------------------------------------------------------------------------------- pure parts


def described(collection: str, told: Mapping[str, Any]) -> Snapshot:
    """The snapshot that Qdrant says it has written.

    Raises:
        SnapshotError: without a name for a file, or without a checksum, by which nobody could know it again.
    """
    name, size, digest = str(told.get("name")), told.get("size"), str(told.get("checksum"))
    if not is_file_name(name) or not is_file_name(collection) or moment_of(name) == "" or not isinstance(size, int):
        raise SnapshotError(f"collection {collection}: Qdrant describes no snapshot, but {name!r} of {size!r} bytes")
    if not _DIGEST.fullmatch(digest):
        raise SnapshotError(
            f"collection {collection}: Qdrant says no SHA-256 of snapshot {name}, as it does only for "
            f"snapshots_storage local: run the role qdrant"
        )
    return Snapshot(collection, name, size, digest)


# ---------------------------------------------------------------------------------------------------------- servers


class Qdrant:
    """The Qdrant of this host."""

    def __init__(self, settings: Settings, context: ssl.SSLContext) -> None:
        """Ask nothing yet."""
        self._settings, self._context = settings, context

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What it answers.

        Raises:
            SnapshotError: nothing, or a refusal.
        """
        connection = connection_to(self._settings.api, self._context, PATIENCE)
        headers = {"api-key": self._settings.api_key, "content-type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
        except (http.client.HTTPException, OSError) as error:
            raise SnapshotError(f"{self._settings.api}: {method} {path}: {error}") from error
        finally:
            connection.close()
        try:
            told = json.loads(text)
        except ValueError:
            told = {}
        if response.status not in _OK or not isinstance(told, dict):
            said = told.get("status") if isinstance(told, dict) else ""
            raise SnapshotError(f"{self._settings.api}: {method} {path}: it answers {response.status} {said or ''}")
        return told.get("result")

    def collections(self) -> list[str]:
        """Those that have a shard here."""
        names = [one["name"] for one in self.ask("GET", "/collections")["collections"]]
        return sorted(name for name in names if self.ask("GET", f"{_path(name)}/cluster")["local_shards"])


def _path(collection: str) -> str:
    return f"/collections/{quote(collection, safe='')}"


# ------------------------------------------------------------------------------------------------------------ verbs


def take(settings: Settings, qdrant: Qdrant, store: Store, collection: str) -> Snapshot:
    """Put one snapshot of a collection away, and drop those that are too many.

    Raises:
        SnapshotError: it is not there.
    """
    snapshot = described(collection, qdrant.ask("POST", f"{_path(collection)}/snapshots?wait=true"))
    try:
        store.put(snapshot, Path(settings.snapshots, collection, snapshot.name))
    finally:
        # What could not be sent does not fill the member's disk.
        qdrant.ask("DELETE", f"{_path(collection)}/snapshots/{quote(snapshot.name, safe='')}?wait=true")
    for name in surplus(store.names(collection), settings.keep):
        store.delete(collection, name)
    return snapshot


def restore(settings: Settings, qdrant: Qdrant, store: Store, what: tuple[str, str]) -> Snapshot | None:
    """A collection's shards on this member are those of a snapshot; other replicas follow it.

    Args:
        settings: of this host.
        qdrant: that gets it back.
        store: that has it.
        what: the collection, and until when; see `chosen`.

    Returns:
        What it is, or None when this member had no shard of it.

    Raises:
        SnapshotError: it is not.
    """
    collection, until = what
    if not is_file_name(collection):
        raise SnapshotError(f"{collection!r} is no name of a collection")
    name = chosen(store.names(collection), until)
    if not name:
        return None
    directory = Path(settings.snapshots, collection)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / name
    try:
        snapshot = store.get(collection, name, file)
        body = {"location": file.as_uri(), "priority": "snapshot", "checksum": snapshot.sha256}
        qdrant.ask("PUT", f"{_path(collection)}/snapshots/recover?wait=true", body)
    finally:
        file.unlink(missing_ok=True)
    return snapshot


def main(arguments: list[str]) -> int:
    """Do one of the two."""
    if [*arguments[:1], len(arguments)] not in (["take", 2], ["restore", 4]):
        sys.stderr.write("usage: qdrant_snapshot.py take FILE | restore FILE COLLECTION UNTIL\n")
        return 2
    failed = False
    try:
        settings = settings_of(Settings, Path(arguments[1]).read_text(encoding="utf-8"), "qdrant")
        context = context_of(settings.ca)
        qdrant, store = Qdrant(settings, context), Store(settings, context)
        if arguments[0] == "restore":
            _tell(restore(settings, qdrant, store, (arguments[2], arguments[3])))
            return 0
        for collection in qdrant.collections():
            try:
                _tell(take(settings, qdrant, store, collection))
            except SnapshotError as error:
                failed = True
                sys.stderr.write(f"{error}\n")
    except (SnapshotError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return int(failed)


def _tell(snapshot: Snapshot | None) -> None:
    sys.stdout.write(json.dumps(asdict(snapshot) if snapshot else None, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
