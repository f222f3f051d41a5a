# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images into a registry: an OCI archive by the distribution protocol, over one connection. Standard library only.

Protocol: https://github.com/opencontainers/distribution-spec, version 1.1.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import tarfile
import urllib.parse
from typing import IO, TYPE_CHECKING, Any, Self

from ansible_collections.groundplane.onprem.plugins.module_utils import artifact as library

if TYPE_CHECKING:
    from types import TracebackType

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
# A registry writes a whole layer to disk before it answers.
TIMEOUT_SECONDS = 300


class Registry:
    """One registry, and the connection to it."""

    def __init__(self, url: str, ca_file: str = "") -> None:
        """Prepare; nothing is asked yet.

        Args:
            url: base URL, `https://host[:port]`.
            ca_file: PEM of the authorities that may vouch for it; empty for the system's.
        """
        self._url = url
        address = urllib.parse.urlsplit(url)
        context = ssl.create_default_context(cafile=ca_file or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._connection = http.client.HTTPSConnection(
            address.hostname or "", address.port, timeout=TIMEOUT_SECONDS, context=context
        )

    def __enter__(self) -> Self:
        """Use it as a context, so that the connection is closed."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the connection."""
        self._connection.close()

    def manifest(self, repository: str, tag: str) -> str:
        """Digest of what a tag names; empty when there is no such tag.

        Raises:
            UnreachableError: the registry does not answer, or not as one does.
        """
        status, headers = self._ask("HEAD", f"/v2/{repository}/manifests/{tag}", {"Accept": MANIFEST})
        if status == http.client.NOT_FOUND:
            return ""
        if status != http.client.OK:
            raise library.UnreachableError(f"{self._url}: {repository}:{tag} is answered with {status}")
        return headers.get("docker-content-digest", "")

    def push(self, label: str, archive: str, repository: str, tag: str) -> str:
        """Push an image; blobs that are there already are not sent. Returns the digest of its manifest.

        Args:
            label: the artifact, for messages.
            archive: the OCI archive, verified.
            repository: where it is to be.
            tag: by which name.

        Raises:
            UnreachableError: the registry does not answer, or refuses.
            ArtifactError: the archive does not hold one image.
        """
        try:
            with tarfile.open(archive) as opened:
                content = read_manifest(label, opened)
                described = json.loads(content)
                for blob in [described["config"], *described["layers"]]:
                    self._send_blob(opened, repository, blob)
        except (tarfile.TarError, KeyError, ValueError) as error:
            raise library.ArtifactError(f"{label}: is no OCI archive of an image: {error}") from error
        kind = {"Content-Type": described.get("mediaType", MANIFEST)}
        self._expect(http.client.CREATED, "PUT", f"/v2/{repository}/manifests/{tag}", kind, content)
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    def _send_blob(self, opened: tarfile.TarFile, repository: str, blob: dict[str, Any]) -> None:
        digest = str(blob["digest"])
        status, _ = self._ask("HEAD", f"/v2/{repository}/blobs/{digest}", {})
        if status == http.client.OK:
            return
        stream = opened.extractfile(blob_path(digest))
        uploads = f"/v2/{repository}/blobs/uploads/"
        headers = self._expect(http.client.ACCEPTED, "POST", uploads, {"Content-Length": "0"})
        place = urllib.parse.urlsplit(headers["location"])
        query = "&".join(filter(None, [place.query, urllib.parse.urlencode({"digest": digest})]))
        sizes = {"Content-Type": "application/octet-stream", "Content-Length": str(blob["size"])}
        # The registry compares what it got with the digest.
        self._expect(http.client.CREATED, "PUT", f"{place.path}?{query}", sizes, stream)

    def _expect(
        self, wanted: int, method: str, path: str, headers: dict[str, str], body: bytes | IO[bytes] | None = None
    ) -> dict[str, str]:
        status, answered = self._ask(method, path, headers, body)
        if status != wanted:
            raise library.UnreachableError(f"{self._url}{path.partition('?')[0]}: {method} is answered with {status}")
        return answered

    def _ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes | IO[bytes] | None = None
    ) -> tuple[int, dict[str, str]]:
        try:
            self._connection.request(method, path, body=body, headers=headers)
            answer = self._connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise library.UnreachableError(f"{self._url}: {getattr(error, 'reason', None) or error}") from error
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}


def blob_path(digest: str) -> str:
    """Where an OCI archive has what a digest names."""
    return "blobs/" + digest.replace(":", "/", 1)


def read_manifest(label: str, opened: tarfile.TarFile) -> bytes:
    """The manifest of the one image in an archive.

    Raises:
        ArtifactError: the archive holds none, several, or another than its index says.
        KeyError: a part of it is not there.
        ValueError: its index is no JSON.
    """
    index = json.loads(_read(opened, "index.json"))
    found = [item for item in index["manifests"] if item.get("mediaType", MANIFEST) == MANIFEST]
    if len(found) != 1 or len(index["manifests"]) != 1:
        raise library.ArtifactError(
            f"{label}: its archive holds {len(index['manifests'])} images, or lists of them, not 1"
        )
    content = _read(opened, blob_path(found[0]["digest"]))
    if f"sha256:{hashlib.sha256(content).hexdigest()}" != found[0]["digest"]:
        raise library.ArtifactError(f"{label}: the manifest in its archive is not the one that its index names")
    return content


def _read(opened: tarfile.TarFile, name: str) -> bytes:
    stream = opened.extractfile(name)
    if stream is None:
        raise KeyError(name)
    return stream.read()
