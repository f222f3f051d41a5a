# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts snapshots of this member's collections into the object store, and gets them back.

Usage: qdrant_snapshot.py take FILE | restore FILE COLLECTION UNTIL. FILE is JSON, with the keys of `Settings`.

Qdrant says the SHA-256 of a snapshot that lies on its member, and of none that it puts into a store itself. So it is
taken here, and sent from here: the checksum that Qdrant says is the one that is signed, so that the store refuses any
other content, and it stays with the object. Whoever gets it back computes it once more, and so does Qdrant.

take: one snapshot of each collection that has a shard here; the oldest go that are more than `keep`. restore: one
collection is what it was here; UNTIL is a moment in UTC as in the names of snapshots, or `newest`.

Sources: Qdrant 1.19 documentation, "Snapshots"; Amazon S3 API reference, PutObject, CreateMultipartUpload,
UploadPart, CompleteMultipartUpload, ListObjectsV2.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import http.client
import json
import re
import ssl
import sys
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent))

from s3_signature import Credentials, Signable, canonical_path, canonical_query, signed  # it lies beside this file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PATIENCE = 6 * 3600.0
"""Seconds for Qdrant to write a snapshot, or to take one back."""
TIMEOUT = 60.0
"""Seconds for one answer of the store."""

CHUNK = 1024 * 1024
WHOLE = 4 * 1024**3
"""Bytes up to which an object is sent at once; S3 takes 5 GiB."""
PART = 64 * 1024**2
"""Bytes of a part of one that is larger, which are held in memory; S3 takes 10 000 of them."""

NOTHING = hashlib.sha256(b"").hexdigest()
CHECKSUM = "x-amz-meta-sha256"
NEWEST = "newest"

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOMENT = re.compile(r"-(\d{4}(?:-\d\d){5})\.snapshot")
_UNTIL = re.compile(r"\d{4}(?:-\d\d){5}")
_OK = range(200, 300)


class SnapshotError(Exception):
    """Something was not done; one sentence says what and why."""


@dataclass(frozen=True)
class Settings:
    """What this host is told.

    Attributes:
        member: its name, under which its snapshots are.
        api: `https://host:port` of its Qdrant.
        api_key: for it.
        ca: file with the authority that vouches for it and for the store.
        snapshots: directory in which Qdrant keeps what is on its way.
        servers: of the store, as `https://host:port`; the first that answers is used.
        region: that the store says it is in.
        bucket: where snapshots go.
        prefix: how their names begin there.
        access_key: who puts them there.
        secret_key: that user's secret.
        keep: how many of a collection stay.
    """

    member: str
    api: str
    api_key: str = field(repr=False)
    ca: str
    snapshots: str
    servers: list[str]
    region: str
    bucket: str
    prefix: str
    access_key: str
    secret_key: str = field(repr=False)
    keep: int


@dataclass(frozen=True)
class Snapshot:
    """One that Qdrant has written, or that is in the store.

    Attributes:
        collection: of it.
        name: as Qdrant named it.
        size: in bytes.
        sha256: of it.
    """

    collection: str
    name: str
    size: int
    sha256: str


# ------------------------------------------------------------------------------------------------------- pure parts


def parse(text: str) -> Settings:
    """The settings of a file.

    Raises:
        SnapshotError: it is none, or lacks something.
    """
    try:
        told = json.loads(text)
        return Settings(**{one.name: told[one.name] for one in fields(Settings)})
    except (ValueError, TypeError, KeyError) as error:
        raise SnapshotError(f"the file of settings is none: {error}: run the role qdrant") from error


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


def is_file_name(name: str) -> bool:
    """Whether a name is that of a file, and leads to no other directory."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def moment_of(name: str) -> str:
    """When a snapshot was taken, as its name says; empty when it does not."""
    found = _MOMENT.search(name)
    return found[1] if found else ""


def by_age(names: Iterable[str]) -> list[str]:
    """Snapshots, the newest first; what is none by its name is left out."""
    return sorted((name for name in names if moment_of(name)), key=lambda name: (moment_of(name), name), reverse=True)


def surplus(names: Iterable[str], keep: int) -> list[str]:
    """The snapshots that are more than those that stay; the newest one always stays."""
    return by_age(names)[max(keep, 1) :]


def chosen(names: Iterable[str], until: str) -> str:
    """The newest snapshot that was taken until then; empty when there is none.

    Args:
        names: that there are.
        until: a moment as in their names, or `newest`.

    Raises:
        SnapshotError: that is no moment.
    """
    if until != NEWEST and not _UNTIL.fullmatch(until):
        raise SnapshotError(f"{until!r} is no moment: write one in UTC, such as 2026-11-30-02-15-00, or {NEWEST}")
    return next((name for name in by_age(names) if until == NEWEST or moment_of(name) <= until), "")


def parts_of(size: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each part of so many bytes."""
    part = max(PART, -(-size // 10_000))
    return ((start, min(part, size - start)) for start in range(0, size, part))


def listed(answer: bytes) -> tuple[list[str], str]:
    """The keys of one page of a list, and what asks for the next; empty at the end.

    Raises:
        SnapshotError: it is no list.
    """
    root = _xml(answer)
    keys = [element.text or "" for element in root.iter() if element.tag.rpartition("}")[2] == "Key"]
    following = [one.text or "" for one in root.iter() if one.tag.rpartition("}")[2] == "NextContinuationToken"]
    return keys, following[0] if following else ""


def completed(tags: Iterable[str]) -> bytes:
    """What makes one object of parts, whose entity tags these are, in their order."""
    root = ET.Element("CompleteMultipartUpload")
    for number, tag in enumerate(tags, 1):
        part = ET.SubElement(root, "Part")
        ET.SubElement(part, "PartNumber").text = str(number)
        ET.SubElement(part, "ETag").text = tag
    return ET.tostring(root)


def _xml(answer: bytes) -> ET.Element:
    try:
        # Of a server whose certificate was checked; expat itself bounds what entities may grow to.
        return ET.fromstring(answer)  # noqa: S314
    except ET.ParseError as error:
        raise SnapshotError(f"the object store answers what is no XML ({error})") from error


# ---------------------------------------------------------------------------------------------------------- servers


def _connection(url: str, context: ssl.SSLContext, timeout: float) -> http.client.HTTPSConnection:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise SnapshotError(f"{url} is no https URL: write https://host:port")
    return http.client.HTTPSConnection(parts.hostname, parts.port or 443, context=context, timeout=timeout)


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
        connection = _connection(self._settings.api, self._context, PATIENCE)
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


class Store:
    """The bucket of the object store."""

    def __init__(self, settings: Settings, context: ssl.SSLContext) -> None:
        """Find the first server that answers.

        Raises:
            SnapshotError: none does.
        """
        self._settings, self._context = settings, context
        self._credentials = Credentials(settings.access_key, settings.secret_key)
        causes = []
        for server in settings.servers:
            connection = _connection(server, context, TIMEOUT)
            try:
                connection.connect()
            except OSError as error:
                causes.append(f"{server}: {error}")
            else:
                self._server = server
                return
            finally:
                connection.close()
        raise SnapshotError("no server of the object store answers: " + "; ".join(causes or ["none is named"]))

    def key(self, collection: str, name: str = "") -> str:
        """Where a snapshot is, or how the keys of all of a collection begin."""
        return f"{self._settings.prefix}/{self._settings.member}/{collection}/{name}"

    def _open(self, what: Signable, body: Any = None, length: int = 0) -> http.client.HTTPResponse:
        """The answer, whose body is yet to be read.

        Raises:
            SnapshotError: there is none, or a refusal.
        """
        connection = _connection(self._server, self._context, TIMEOUT)
        host = urlsplit(self._server).netloc
        headers = signed(what, host, self._credentials, self._settings.region, dt.datetime.now(dt.UTC))
        headers["content-length"] = str(length)
        target = canonical_path(what.path) + (f"?{canonical_query(what.query)}" if what.query else "")
        try:
            connection.request(what.method, target, body, headers)
            response = connection.getresponse()
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            raise SnapshotError(f"{self._server}: {what.method} {what.path}: {error}") from error
        if response.status not in _OK:
            said = " ".join(response.read(2000).decode("utf-8", "replace").split())
            connection.close()
            raise SnapshotError(f"{self._server}: {what.method} {what.path}: it answers {response.status} {said}")
        return response

    def _at(self, key: str) -> str:
        return f"/{self._settings.bucket}/{key}"

    def names(self, collection: str) -> list[str]:
        """The snapshots of a collection that this member has there."""
        prefix, found, token = self.key(collection), [], ""
        while True:
            query = {"list-type": "2", "prefix": prefix} | ({"continuation-token": token} if token else {})
            with self._open(Signable("GET", f"/{self._settings.bucket}", NOTHING, query)) as response:
                keys, token = listed(response.read())
            found += [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
            if not token:
                return found

    def put(self, snapshot: Snapshot, file: Path) -> None:
        """Send it, and see that it is there.

        Raises:
            SnapshotError: the store does not take it.
        """
        path, marked = self._at(self.key(snapshot.collection, snapshot.name)), {CHECKSUM: snapshot.sha256}
        with file.open("rb") as body:
            if snapshot.size <= WHOLE:
                what = Signable("PUT", path, snapshot.sha256, headers=marked)
                self._open(what, body, snapshot.size).close()
            else:
                self._put_parts(path, marked, body, snapshot.size)
        with self._open(Signable("HEAD", path, NOTHING)) as response:
            there = response.getheader("content-length"), response.getheader(CHECKSUM)
        if there != (str(snapshot.size), snapshot.sha256):
            raise SnapshotError(
                f"{path}: the store has {there[0]} bytes with SHA-256 {there[1]}, and not what was sent"
            )

    def _put_parts(self, path: str, marked: Mapping[str, str], body: Any, size: int) -> None:
        with self._open(Signable("POST", path, NOTHING, {"uploads": ""}, marked)) as response:
            told = _xml(response.read())
        upload = next((one.text for one in told.iter() if one.tag.rpartition("}")[2] == "UploadId"), None) or ""
        tags = []
        for number, (start, length) in enumerate(parts_of(size), 1):
            body.seek(start)
            part = body.read(length)
            query = {"partNumber": str(number), "uploadId": upload}
            with self._open(Signable("PUT", path, hashlib.sha256(part).hexdigest(), query), part, length) as response:
                tags.append(response.getheader("etag") or "")
        whole = completed(tags)
        query = {"uploadId": upload}
        with self._open(
            Signable("POST", path, hashlib.sha256(whole).hexdigest(), query), whole, len(whole)
        ) as response:
            # A store may say that all is well, and then that it is not.
            if _xml(response.read()).tag.rpartition("}")[2] == "Error":
                raise SnapshotError(f"{path}: the store does not make one object of its parts")

    def get(self, collection: str, name: str, file: Path) -> Snapshot:
        """Write it to a file.

        Raises:
            SnapshotError: it is not what was put there.
        """
        path, digest = self._at(self.key(collection, name)), hashlib.sha256()
        with self._open(Signable("GET", path, NOTHING)) as response, file.open("wb") as out:
            wanted = response.getheader(CHECKSUM)
            while chunk := response.read(CHUNK):
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != wanted:
            raise SnapshotError(f"{path}: its SHA-256 is {digest.hexdigest()}, and {wanted} when it was put there")
        return Snapshot(collection, name, file.stat().st_size, digest.hexdigest())

    def delete(self, collection: str, name: str) -> None:
        """It is there no more."""
        self._open(Signable("DELETE", self._at(self.key(collection, name)), NOTHING)).close()


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
        settings = parse(Path(arguments[1]).read_text(encoding="utf-8"))
        context = ssl.create_default_context(cafile=settings.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
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
