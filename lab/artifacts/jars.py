# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jars of one product: what must be there, whether it is, and the archive of them.

A lock file has a line for each jar, `<SHA-256>  <path in a repository of Maven>`, as `sha256sum --check` takes it. The
path says which jar it is: `org/example/name/1.0/name-1.0.jar`.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

LIBRARIES = "libs"
"""Directory of the archive that the jars are in."""

_LINE = re.compile(r"([0-9a-f]{64}) {2}((?:[\w.+-]+/){3,}[\w.+-]+\.jar)", re.ASCII)


class JarError(Exception):
    """Jars are not those of the lock file, or the lock file is none."""


def parse_lock(text: str) -> dict[str, str]:
    """Path in a repository to SHA-256.

    Raises:
        JarError: a line is no such line, or a path stands twice.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None or match[2] in found:
            raise JarError(f"maven.lock: no line of a lock file, or one that stands twice: {line[:120]!r}")
        found[match[2]] = match[1]
    if not found:
        raise JarError("maven.lock: names no jar")
    return found


def lock_text(sums: Mapping[str, str]) -> str:
    """The lock file for these jars."""
    return "".join(f"{sums[path]}  {path}\n" for path in sorted(sums))


def sums_of(repository: Path) -> dict[str, str]:
    """Path to SHA-256 of all jars below a directory that is laid out as a repository."""
    found = {}
    for path in sorted(repository.rglob("*.jar")):
        with path.open("rb") as stream:
            found[path.relative_to(repository).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def check(there: Mapping[str, str], locked: Mapping[str, str]) -> None:
    """Refuse jars that are not exactly those of the lock file.

    Raises:
        JarError: names each that is another one, that is missing or that nobody asked for.
    """
    wrong = [
        f"{path} has SHA-256 {there[path]}, not {locked[path]}"
        for path in sorted(set(there) & set(locked))
        if there[path] != locked[path]
    ]
    wrong += [f"{path} is in maven.lock and was not resolved" for path in sorted(set(locked) - set(there))]
    wrong += [f"{path} was resolved and is not in maven.lock" for path in sorted(set(there) - set(locked))]
    if wrong:
        raise JarError("; ".join(wrong))


def coordinates(path: str) -> tuple[str, str, str]:
    """Group, artifact and version of a path in a repository."""
    *group, artifact, version, _ = path.split("/")
    return ".".join(group), artifact, version


def write_archive(repository: Path, paths: Iterable[str], archive: Path) -> None:
    """Pack jars into one directory of a tar archive: the same jars give the same bytes.

    Args:
        repository: directory that the paths are below.
        paths: of the jars.
        archive: where the archive is to be.

    Raises:
        JarError: two jars have one name.
    """
    named: dict[str, str] = {}
    for path in paths:
        name = path.rsplit("/", 1)[1]
        if name in named:
            raise JarError(f"{path} and {named[name]} have one name")
        named[name] = path
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        directory = tarfile.TarInfo(LIBRARIES)
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(directory)
        for name, path in sorted(named.items()):
            source = repository / path
            info = tarfile.TarInfo(f"{LIBRARIES}/{name}")
            info.size, info.mode = source.stat().st_size, 0o644
            with source.open("rb") as stream:
                tar.addfile(info, stream)
