# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots in a bucket of an object store: put there with their checksums, listed, dropped, and got back.

Roles put this file on hosts, beside `s3_signature` and the programs that need both: the standard library is enough.

A file is sent with its SHA-256 signed, so that the store refuses any other content; the checksum stays with the object,
and whoever gets it back computes it once more.

Sources: Amazon S3 API reference, PutObject, CreateMultipartUpload, UploadPart, CompleteMultipartUpload, ListObjectsV2.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import http.client
import json
import re
import ssl
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING or __package__:
    from ansible_collections.groundplane.onprem.plugins.module_utils.s3_signature import (
        Credentials,
        Signable,
        canonical_path,
        canonical_query,
        signed,
    )
else:
    # On a host it lies beside this file.
    from s3_signature import Credentials, Signable, canonical_path, canonical_query, signed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

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

_MOMENT = re.compile(r"-(\d{4}(?:-\d\d){5})\.(?:snapshot|rdb)")
_UNTIL = re.compile(r"\d{4}(?:-\d\d){5}")
_OK = range(200, 300)


class SnapshotError(Exception):
    """Something was not done; one sentence says what and why."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a host puts its snapshots; what a program is told besides, it adds.

    Attributes:
        servers: of the store, as `https://host:port`; the first that answers is used.
        region: that the store says it is in.
        bucket: where snapshots go.
        prefix: how their names begin there.
        access_key: who puts them there.
        secret_key: that user's secret.
        keep: how many of a kind stay.
    """

    servers: list[str]
    region: str
    bucket: str
    prefix: str
    access_key: str
    secret_key: str = field(repr=False)
    keep: int


Told = TypeVar("Told", bound=Place)


@dataclass(frozen=True)
class Snapshot:
    """One that was written here, or that is in the store.

    Attributes:
        collection: what it is of.
        name: of its file, with the moment in it.
        size: in bytes.
        sha256: of it.
    """

    collection: str
    name: str
    size: int
    sha256: str


def settings_of(kind: type[Told], text: str, role: str) -> Told:
    """What a program is told, of a file with all of its keys as JSON.

    Args:
        kind: a `Place` with what the program adds.
        text: of the file.
        role: that writes it.

    Raises:
        SnapshotError: it is none, or lacks something.
    """
    try:
        told = json.loads(text)
        return kind(**{one.name: told[one.name] for one in fields(kind)})
    except (ValueError, TypeError, KeyError) as error:
        raise SnapshotError(f"the file of settings is none: {error}: run the role {role}") from error


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


def digest_of(file: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


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


def context_of(ca: str) -> ssl.SSLContext:
    """How servers are checked: by the site's authority, at least TLS 1.2."""
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def connection_to(url: str, context: ssl.SSLContext, timeout: float) -> http.client.HTTPSConnection:
    """A connection that is made at the first request.

    Raises:
        SnapshotError: it is no URL of HTTPS.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise SnapshotError(f"{url} is no https URL: write https://host:port")
    return http.client.HTTPSConnection(parts.hostname, parts.port or 443, context=context, timeout=timeout)


class Store:
    """The bucket of the object store."""

    def __init__(self, place: Place, context: ssl.SSLContext) -> None:
        """Find the first server that answers.

        Raises:
            SnapshotError: none does.
        """
        self._place, self._context = place, context
        self._credentials = Credentials(place.access_key, place.secret_key)
        causes = []
        for server in place.servers:
            connection = connection_to(server, context, TIMEOUT)
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
        return f"{self._place.prefix}/{collection}/{name}"

    def _open(self, what: Signable, body: Any = None, length: int = 0) -> http.client.HTTPResponse:
        """The answer, whose body is yet to be read.

        Raises:
            SnapshotError: there is none, or a refusal.
        """
        connection = connection_to(self._server, self._context, TIMEOUT)
        host = urlsplit(self._server).netloc
        headers = signed(what, host, self._credentials, self._place.region, dt.datetime.now(dt.UTC))
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
        return f"/{self._place.bucket}/{key}"

    def names(self, collection: str) -> list[str]:
        """The snapshots of a collection that this member has there."""
        prefix, found, token = self.key(collection), [], ""
        while True:
            query = {"list-type": "2", "prefix": prefix} | ({"continuation-token": token} if token else {})
            with self._open(Signable("GET", f"/{self._place.bucket}", NOTHING, query)) as response:
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
