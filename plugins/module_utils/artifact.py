# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that no Debian package brings: declared by version and checksum, verified before anybody can fetch or run them.

An artifact has up to two origins. `upstream` is a release: a URL, and its SHA-256 in the inventory. `modules` is a file
built from package registries, in a bundle on the controller whose `SHA256SUMS` is its checksum. Runs on both sides;
standard library only.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import posixpath
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ORIGINS = ("upstream", "modules")
SUMS = "SHA256SUMS"
FILES = "files"
WHEELS = "wheels"
IMAGES = "images"
KEYS = frozenset({"name", "version", "destination", "url", "sha256", "path"})

_IMAGE = re.compile(
    r"images/([a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*)*):([A-Za-z0-9_][A-Za-z0-9._-]{0,127})\Z"
)
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](\S.*)\Z")
_CHUNK = 1024 * 1024
TIMEOUT_SECONDS = 60
RECORD = "/var/lib/groundplane/artifacts.json"
# A file system's clock moves in steps of a few milliseconds.
_TICK_NS = 100_000_000


class ArtifactError(Exception):
    """An artifact cannot be had as declared; the text begins with its name."""


class UnreachableError(ArtifactError):
    """An origin does not answer or does not have the file. Another origin may; a wrong file is never this."""


@dataclass(frozen=True)
class Artifact:
    """One declared file.

    Attributes:
        name: what roles and messages call it.
        version: which release it is.
        destination: path below the mirror's root, beginning with `files/` or `wheels/`; for an OCI archive
            `images/REPOSITORY:TAG`, in its registry.
        url: where the release is; empty without the origin `upstream`.
        sha256: checksum of what is at `url`, hexadecimal.
        path: file in the bundle; empty without the origin `modules`.
    """

    name: str
    version: str
    destination: str
    url: str = ""
    sha256: str = ""
    path: str = ""

    @property
    def label(self) -> str:
        """Name and version, for messages; no two artifacts have the same."""
        return f"{self.name} {self.version}"


def parse(declared: object) -> list[Artifact]:
    """Read the inventory's list.

    Raises:
        ArtifactError: an entry is incomplete, or two entries are at odds; says which.
    """
    if not isinstance(declared, (list, tuple)):
        raise ArtifactError("artifacts: is not a list")
    artifacts = [_parse_one(raw, index) for index, raw in enumerate(declared)]
    labels: set[str] = set()
    places: dict[str, Artifact] = {}
    for artifact in artifacts:
        if artifact.label in labels:
            raise ArtifactError(f"{artifact.label}: is declared twice")
        if artifact.destination in places:
            other = places[artifact.destination].label
            raise ArtifactError(f"{artifact.label}: has the destination of {other}, {artifact.destination}")
        labels.add(artifact.label)
        places[artifact.destination] = artifact
    return artifacts


def choose(declared: Iterable[Artifact], name: str, version: str = "") -> Artifact:
    """The artifact of a name, and of a version when there are several.

    Raises:
        ArtifactError: it is not declared, or its version has to be said.
    """
    declared = list(declared)
    named = [artifact for artifact in declared if artifact.name == name]
    if not named:
        known = ", ".join(sorted({artifact.name for artifact in declared})) or "none"
        raise ArtifactError(f"{name}: is not in mirror_artifacts; declared are: {known}")
    chosen = [artifact for artifact in named if version in ("", artifact.version)]
    if len(chosen) != 1:
        versions = ", ".join(artifact.version for artifact in named)
        raise ArtifactError(f"{name} {version or '(of no version)'}: mirror_artifacts has the versions {versions}")
    return chosen[0]


def _parse_one(raw: object, index: int) -> Artifact:
    if not isinstance(raw, dict):
        raise ArtifactError(f"artifacts[{index}]: is not a dictionary")
    label = str(raw.get("name") or f"artifacts[{index}]")
    unknown = sorted(set(raw) - KEYS)
    if unknown:
        raise ArtifactError(f"{label}: unknown key {', '.join(map(str, unknown))}; known are {', '.join(sorted(KEYS))}")
    values = {key: str(value) for key, value in raw.items() if value is not None}
    for key in ("name", "version", "destination"):
        if not values.get(key):
            raise ArtifactError(f"{label}: has no {key}")
    artifact = Artifact(**values)
    _check_destination(artifact)
    if artifact.path and (artifact.path != posixpath.normpath(artifact.path) or artifact.path[0] in "/."):
        raise ArtifactError(f"{artifact.label}: path {artifact.path} is no plain path below the bundle")
    if not artifact.url and not artifact.path:
        raise ArtifactError(f"{artifact.label}: has neither a url nor a path, so there is no origin to take it from")
    if artifact.url and urllib.parse.urlsplit(artifact.url).scheme not in ("http", "https"):
        raise ArtifactError(f"{artifact.label}: {artifact.url} is not http or https")
    if artifact.url and not _SHA256.match(artifact.sha256):
        raise ArtifactError(
            f"{artifact.label}: sha256 of its url must be 64 hexadecimal digits, not {artifact.sha256!r}"
        )
    return artifact


def _check_destination(artifact: Artifact) -> None:
    """Refuse what would lie outside the published directories, or where no index would find it."""
    destination = artifact.destination
    parts = destination.split("/")
    if parts[0] == IMAGES:
        if not _IMAGE.match(destination):
            raise ArtifactError(f"{artifact.label}: destination {destination} is not {IMAGES}/REPOSITORY:TAG")
        return
    if destination != posixpath.normpath(destination) or parts[0] not in (FILES, WHEELS) or len(parts) < 2:  # noqa: PLR2004
        raise ArtifactError(f"{artifact.label}: destination {destination} is no plain path below {FILES}/ or {WHEELS}/")
    if posixpath.basename(destination) in (SUMS, "index.html"):
        raise ArtifactError(f"{artifact.label}: destination {destination} is the name of an index")
    if parts[0] == WHEELS and (len(parts) != 3 or parts[1] != project_name(parts[1])):  # noqa: PLR2004
        raise ArtifactError(f"{artifact.label}: destination must be {WHEELS}/PROJECT/FILE, PROJECT as PEP 503 has it")


def image_of(destination: str) -> tuple[str, str] | None:
    """Repository and tag of an image's destination; None for a file's."""
    match = _IMAGE.match(destination)
    return (match[1], match[2]) if match else None


def project_name(name: str) -> str:
    """Normalise a Python project's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_sums(text: str, where: str) -> dict[str, str]:
    """Read the output of `sha256sum`: path to checksum.

    Raises:
        ArtifactError: a line is not of that form, or a path is there twice.
    """
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _SUM_LINE.match(line)
        if match is None or match[2] in sums:
            raise ArtifactError(f"{where}: line {number} is not a checksum and a path of its own: {line!r}")
        sums[match[2]] = match[1]
    return sums


def format_sums(sums: Mapping[str, str]) -> str:
    """Write what `sha256sum --check` reads, ordered by path."""
    return "".join(f"{sums[path]}  {path}\n" for path in sorted(sums))


def file_digest(path: str) -> str:
    """SHA-256 of a file, hexadecimal; empty when there is no such file.

    Raises:
        OSError: it is there and cannot be read.
    """
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


class Record:
    """Checksums that were computed before, each with what the file was then: large files are not read on each run.

    A file whose size, times and inode are the same has the same content: the kernel sets the time of the last change
    (`ctime`), and nobody else can. The record also keeps which image an archive became in the registry.
    """

    def __init__(self, path: str) -> None:
        """Read the record; one that is absent or cut off is empty.

        Args:
            path: the file; empty for a record that is not kept.
        """
        self._path = path
        self._files: dict[str, list[Any]] = {}
        self._images: dict[str, dict[str, str]] = {}
        try:
            kept = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
            self._files, self._images = dict(kept.get("files", {})), dict(kept.get("images", {}))
        except (FileNotFoundError, ValueError, AttributeError, TypeError):
            pass
        self._before = self._text()

    def digest(self, path: str) -> str:
        """SHA-256 of a file, hexadecimal; empty when there is no such file.

        Raises:
            OSError: it is there and cannot be read.
        """
        now = self._stamp(path)
        kept = self._files.get(path)
        if now and kept and kept[:-1] == now:
            return str(kept[-1])
        found = file_digest(path)
        self._files.pop(path, None)
        # What changes while it is read, or did a moment ago, may change again within one tick of the clock.
        if found and now == self._stamp(path) and time.time_ns() - now[2] > _TICK_NS:
            self._files[path] = [*now, found]
        return found

    @staticmethod
    def _stamp(path: str) -> list[int]:
        try:
            status = Path(path).stat()
        except FileNotFoundError:
            return []
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]

    def image(self, destination: str, archives: Iterable[str]) -> str:
        """Digest of the manifest that one of these archives became at a destination; empty when none did."""
        kept = self._images.get(destination, {})
        return kept.get("manifest", "") if kept.get("archive") in set(archives) else ""

    def keep_image(self, destination: str, archive: str, manifest: str) -> None:
        """Remember what an archive became."""
        self._images[destination] = {"archive": archive, "manifest": manifest}

    def save(self) -> None:
        """Write the record when it changed.

        Raises:
            OSError: it cannot be written.
        """
        text = self._text()
        if not self._path or text == self._before:
            return
        Path(self._path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with open_part(self._path) as out:
            out.write(text.encode())
        Path(part_of(self._path)).replace(self._path)

    def _text(self) -> str:
        return json.dumps({"files": self._files, "images": self._images}, indent=1, sort_keys=True) + "\n"


def bundle_sums(artifacts: Iterable[Artifact], directory: str) -> dict[str, str]:
    """Checksums of the artifacts that a bundle holds, by label. Each file is verified.

    Args:
        artifacts: those with a `path` are looked up.
        directory: the bundle, on this machine.

    Raises:
        ArtifactError: the bundle has no list, does not list an artifact, lacks it, or holds other bytes than it lists.
    """
    wanted = [artifact for artifact in artifacts if artifact.path]
    if not wanted:
        return {}
    where = Path(directory, SUMS).expanduser()
    try:
        sums = parse_sums(where.read_text(encoding="utf-8"), str(where))
    except OSError as error:
        raise ArtifactError(f"{wanted[0].label}: the bundle cannot be read: {where}: {error.strerror}") from error
    found = {}
    for artifact in wanted:
        if artifact.path not in sums:
            raise ArtifactError(f"{artifact.label}: {where} does not list {artifact.path}")
        verify(artifact.label, str(where.parent / artifact.path), [sums[artifact.path]], str(where))
        found[artifact.label] = sums[artifact.path]
    return found


def accepted_sums(artifact: Artifact, bundled: Mapping[str, str], origins: Iterable[str]) -> dict[str, str]:
    """What the artifact's bytes may be: origin to checksum, in the order of the origins.

    Raises:
        ArtifactError: none of the origins has it.
    """
    sums = {}
    for origin in origins:
        if origin == "upstream" and artifact.url:
            sums[origin] = artifact.sha256
        elif origin == "modules" and artifact.label in bundled:
            sums[origin] = bundled[artifact.label]
    if not sums:
        raise ArtifactError(f"{artifact.label}: is in none of the origins {', '.join(origins)}")
    return sums


def verify(label: str, path: str, accepted: Iterable[str], source: str) -> str:
    """Compare a file with its checksums and return the one that it has.

    Args:
        label: the artifact, for the message.
        path: the file.
        accepted: checksums that it may have.
        source: who says so, or where the file is from, for the message.

    Raises:
        ArtifactError: the file is not there, or it is another.
    """
    found = file_digest(path)
    if not found:
        raise ArtifactError(f"{label}: {path} is missing ({source})")
    accepted = list(accepted)
    if found not in accepted:
        raise ArtifactError(
            f"{label}: {path} has SHA-256 {found}, not {' or '.join(accepted)} ({source}); nothing was installed"
        )
    return found


def part_of(target: str) -> str:
    """Where a file is made before it has its name. One name, so that what a killed run left is overwritten."""
    path = Path(target)
    return str(path.with_name(f".{path.name}.part"))


def open_part(target: str) -> BinaryIO:
    """Open the unfinished file of a target for writing; nobody else reads it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    return os.fdopen(os.open(part_of(target), flags, 0o600), "wb")


def download(label: str, url: str, accepted: Iterable[str], target: str, ca_file: str = "") -> str:
    """Fetch a file beside its place, verified; return its path. The caller gives it its name.

    Args:
        label: the artifact, for messages.
        url: where it is.
        accepted: checksums that it may have.
        target: where it is to be.
        ca_file: PEM of the authorities that may vouch for the server; empty for the system's.

    Raises:
        UnreachableError: the server does not answer, is not who it should be, or does not have the file.
        ArtifactError: what it sent is another file.
    """
    accepted = list(accepted)
    context = ssl.create_default_context(cafile=ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
    part = Path(part_of(target))
    digest = hashlib.sha256()
    try:
        with open_part(target) as out, opener.open(url, timeout=TIMEOUT_SECONDS) as answer:
            while chunk := answer.read(_CHUNK):
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        part.unlink()
        raise UnreachableError(f"{label}: {url}: {getattr(error, 'reason', None) or error}") from error
    if digest.hexdigest() not in accepted:
        part.unlink()
        raise ArtifactError(
            f"{label}: {url} has SHA-256 {digest.hexdigest()}, not {' or '.join(accepted)}; nothing was installed"
        )
    return str(part)


def indexes(published: Mapping[str, str]) -> dict[str, str]:
    """The lists that go with the published files: path below the root to content.

    Args:
        published: destination to checksum.

    Returns:
        `files/SHA256SUMS`, and the simple repository of PEP 503 with a checksum in each link.
    """
    prefix = FILES + "/"
    files = {path.removeprefix(prefix): sha for path, sha in published.items() if path.startswith(prefix)}
    result = {prefix + SUMS: format_sums(files)}
    projects: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(published):
        if path.startswith(WHEELS + "/"):
            _, project, file = path.split("/")
            projects.setdefault(project, []).append((file, published[path]))
    result[f"{WHEELS}/index.html"] = _page("Simple index", [(f"{project}/", project) for project in sorted(projects)])
    for project, wheels in projects.items():
        links = [(f"{urllib.parse.quote(file)}#sha256={sha}", file) for file, sha in wheels]
        result[f"{WHEELS}/{project}/index.html"] = _page(f"Links for {project}", links)
    return result


def _page(title: str, links: list[tuple[str, str]]) -> str:
    lines = "".join(f'<a href="{escape(target)}">{escape(text)}</a><br>\n' for target, text in links)
    return f"<!DOCTYPE html>\n<html><head><title>{escape(title)}</title></head><body>\n{lines}</body></html>\n"


def plan(artifacts: Iterable[Artifact], bundled: Mapping[str, str], origins: Iterable[str]) -> list[dict[str, Any]]:
    """What the mirror is told of each artifact: plain data.

    Raises:
        ArtifactError: an artifact has none of the origins.
    """
    origins = list(origins)
    return [
        {
            "label": artifact.label,
            "destination": artifact.destination,
            "url": artifact.url,
            "accepted": accepted_sums(artifact, bundled, origins),
        }
        for artifact in artifacts
    ]
