# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What travels between the controller and a host for one tree: a list of entries and the contents behind them.

Contents are named by their SHA-256, so equal files travel once and a host can say which ones it lacks. All of them are
one zlib stream in one base64 string, because a single string is the only kind of argument that Ansible can keep out of
logs and results without also hiding unrelated words there.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

State = Literal["file", "directory", "link", "absent"]
STATES: tuple[State, ...] = ("file", "directory", "link", "absent")

_MODE = re.compile(r"[0-7]{3,4}\Z")


class TreeError(Exception):
    """The tree cannot be converged; the text says which path and why, and never holds a file's content."""


@dataclass(frozen=True)
class Entry:
    """The declared state of one path.

    Attributes:
        path: absolute and normalised.
        state: what is at the path afterwards.
        owner: user name, or a numeric id as text.
        group: group name, or a numeric id as text.
        mode: permission bits; not used for links.
        sha256: name of the content, hexadecimal; only for files.
        size: length of the content in bytes; only for files.
        target: what a link points to.
        validate: command with one `%s`, run on the staged file; empty for none.
        secret: neither the old nor the new content may leave host and controller in a diff or a message.
        recurse: an absent directory may be removed with what is in it.
        before_packages: it is in place before the packages of the same call are installed.
    """

    path: str
    state: State = "file"
    owner: str = "root"
    group: str = "root"
    mode: int = 0o644
    sha256: str = ""
    size: int = 0
    target: str = ""
    validate: str = ""
    secret: bool = False
    recurse: bool = False
    before_packages: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Give the entry as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Entry:
        """Read what `as_dict` wrote.

        Raises:
            TreeError: a key is unknown or missing, so the two sides are not of one version.
        """
        try:
            entry = cls(**raw)
        except TypeError as error:
            raise TreeError(f"the manifest is not of this version: {error}") from error
        return entry


def digest(content: bytes) -> str:
    """Name a content: its SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def parse_mode(value: object, where: str) -> int:
    """Read an octal permission string such as `"0640"`.

    A number is refused: YAML reads an unquoted 0640 as 416 and 640 as 640, and only one of the two is what was meant.

    Raises:
        TreeError: it is not a string of three or four octal digits.
    """
    if not isinstance(value, str) or not _MODE.match(value):
        raise TreeError(f'{where}: mode must be a quoted octal string such as "0640", not {value!r}')
    return int(value, 8)


def check_paths(entries: Iterable[Entry]) -> None:
    """Refuse a set of entries that contradicts itself.

    Raises:
        TreeError: a path stands twice, or something is declared below a path that is to be a file, a link or absent.
    """
    by_path: dict[str, Entry] = {}
    for entry in entries:
        if entry.path in by_path:
            raise TreeError(f"{entry.path}: declared twice")
        by_path[entry.path] = entry
    for entry in by_path.values():
        parent = entry.path.rpartition("/")[0]
        while parent:
            above = by_path.get(parent)
            # Children of an absent directory may be declared absent too; anything else under it is a contradiction.
            if above and above.state != "directory" and not (above.state == "absent" and entry.state == "absent"):
                raise TreeError(f"{entry.path}: declared below {parent}, which is declared as {above.state}")
            parent = parent.rpartition("/")[0]


def pack(contents: Mapping[str, bytes]) -> tuple[list[list[Any]], str]:
    """Put contents into one string.

    Returns:
        The index, a list of [sha256, length in bytes] in the order of the stream, and the stream as base64 of zlib.
    """
    index = [[name, len(content)] for name, content in contents.items()]
    # Level 6: level 9 took several times longer for a few per cent on configuration files.
    return index, base64.b64encode(zlib.compress(b"".join(contents.values()), 6)).decode("ascii")


def unpack(index: Iterable[Iterable[Any]], stream: str) -> dict[str, bytes]:
    """Read what `pack` wrote and prove each content by its name.

    Raises:
        TreeError: the stream was cut or altered on the way.
    """
    contents: dict[str, bytes] = {}
    try:
        data = memoryview(zlib.decompress(base64.b64decode(stream, validate=True))) if stream else memoryview(b"")
    except (binascii.Error, zlib.error, ValueError) as error:
        raise TreeError("the contents did not arrive whole") from error
    offset = 0
    for item in index:
        name, length = cast("tuple[str, int]", tuple(item))
        content = bytes(data[offset : offset + length])
        offset += length
        if digest(content) != name:
            raise TreeError("the contents did not arrive whole")
        contents[name] = content
    return contents
