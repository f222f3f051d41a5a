# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The storage of one Kafka node: what is there, whether it may be formatted, and how the tool is asked to.

What `kafka.tools.StorageTool format` does (Kafka 4.4.0: `Formatter.doFormat`, `MetaPropertiesEnsemble.Copier`), one
directory after the other and in no order that one could rely on:

1. it makes the directory;
2. of a controller's metadata directory alone, it writes `__cluster_metadata-0/000...0-0000000000.checkpoint` with the
   first voters and features, first under a name with `.part`;
3. it writes `meta.properties.tmp` and renames it to `meta.properties`, which says that the directory is formatted.

Wherever it was killed, a directory without `meta.properties` is formatted by asking again: all files above are
replaced. The tool refuses as soon as one of its directories is formatted, so that the rest is asked for by itself.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import ipaddress
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

META = "meta.properties"
METADATA_LOG = "__cluster_metadata-0"
LOST_FOUND = "lost+found"
ANEW = {"broker": "set it up anew by playbooks/kafka_replace.yml"}
"""How a member that was one before becomes one again, by its role."""
ANEW_BY_HAND = "set it up anew as docs/runbooks/kafka.md says"
"""The same of a controller, whose vote is taken and given by hand, and of a node of which nobody said what it is."""
PLACEHOLDER = "127.0.0.1:9093"
"""Where the quorum would be; the tool wants an address and asks nobody."""
DATA_LISTENER = "DATA"

_ID_LENGTH = 22
_ID_BYTES = 16
_HALF = bytes(8)
_SHOWN = 3
_VERSION = "1"
_CHECKPOINT = re.compile(r"0{20}-0{10}(\.checkpoint|-[0-9]+\.checkpoint\.part)")
_PATH = re.compile(r"/[A-Za-z0-9/._+@-]+")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_LISTENER = re.compile(r"[A-Z][A-Z0-9_]*")
_PORTS = range(1, 65536)


class StorageError(ValueError):
    """What was asked for cannot be meant."""


# ----------------------------------------------------------------------------------------------------------------- ids


def is_id(text: str) -> bool:
    """Whether a text is an id as Kafka writes it (`Uuid.toString`): 16 bytes in base64url without padding.

    Ids that Kafka reserves (`DirectoryId.reserved`: the first 100, here all whose first 8 bytes are zero) are none, nor
    are those that begin with `-`, which a command line would take for an option; Kafka never makes them either.
    """
    if len(text) != _ID_LENGTH or text.startswith("-"):
        return False
    try:
        value = base64.b64decode(f"{text}==", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return False
    # Four texts decode to the same bytes; only one of them is what Kafka would write.
    return _text(value) == text and value[:8] != _HALF


def new_cluster_id() -> str:
    """A random cluster id."""
    while True:
        found = _text(secrets.token_bytes(_ID_BYTES))
        if is_id(found):
            return found


def directory_id(cluster_id: str, node_id: int) -> str:
    """The id of the metadata directory of an initial controller.

    All initial controllers must be formatted with the same list of all their directory ids, before any of them runs.
    Derived ids make the list the same wherever and whenever it is made.

    The first of the SHA-256 of `groundplane kafka directory id`, cluster id, node id and a count from 0, with a zero
    byte between each, whose first 16 bytes are an id.

    Args:
        cluster_id: of the cluster.
        node_id: of the controller.
    """
    count = 0
    while True:
        words = ("groundplane kafka directory id", cluster_id, str(node_id), str(count))
        found = _text(hashlib.sha256("\0".join(words).encode()).digest()[:_ID_BYTES])
        if is_id(found):
            return found
        count += 1


def _text(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode("ascii").rstrip("=")


# ----------------------------------------------------------------------------------------------------- what is asked


@dataclass(frozen=True)
class Controller:
    """One of the voters that a cluster begins with."""

    node_id: int
    host: str
    port: int

    @property
    def address(self) -> str:
        """Host and port, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def voter(self, cluster_id: str) -> str:
        """The voter as `--initial-controllers` has it."""
        return f"{self.node_id}@{self.address}:{directory_id(cluster_id, self.node_id)}"


@dataclass(frozen=True)
class Asked:
    """What a node is to be; what is None was not said.

    Attributes:
        directories: all directories, absolute.
        metadata_directory: the one of them that holds the metadata log.
        cluster_id: of the cluster.
        node_id: of the node.
        role: `broker` or `controller`.
        controllers: initial voters; none for a broker, and for a controller that joins later.
        listener: name of the listener of controllers.
    """

    directories: tuple[str, ...]
    metadata_directory: str
    cluster_id: str | None = None
    node_id: int | None = None
    role: str | None = None
    controllers: tuple[Controller, ...] = ()
    listener: str = "CONTROLLER"

    @property
    def voter(self) -> bool:
        """Whether the node is one of the initial voters."""
        return self.node_id in {controller.node_id for controller in self.controllers}

    @property
    def anew(self) -> str:
        """What to do with a member that has not what it should have."""
        return ANEW.get(self.role or "", ANEW_BY_HAND)


def directories(log: Sequence[str], metadata: str | None) -> tuple[tuple[str, ...], str]:
    """All directories of a node, and the one of the metadata log.

    Args:
        log: log directories.
        metadata: directory of the metadata log; the first of the others when it is None.

    Raises:
        StorageError: a path that Kafka's configuration could not hold, is there twice, or lies in another one.
    """
    paths = [os.path.normpath(path) for path in (*log, *([metadata] if metadata else []))]
    if not log:
        raise StorageError("directories: at least one is needed")
    for path in paths:
        if not _PATH.fullmatch(path) or path.startswith("//"):
            raise StorageError(f"{path}: a log directory is an absolute path of letters, digits and /._+@-")
    if len(set(paths[: len(log)])) != len(log):
        raise StorageError(f"directories: {', '.join(log)}: one is there twice")
    found = tuple(dict.fromkeys(paths))
    for path in found:
        inside = next((other for other in found if other.startswith(f"{path}/")), None)
        if inside:
            raise StorageError(f"{inside} lies in {path}; a log directory must not hold another one")
    return found, paths[-1] if metadata else paths[0]


def check(asked: Asked) -> None:
    """Refuse what cannot be meant.

    Raises:
        StorageError: says what.
    """
    if asked.cluster_id is not None and not is_id(asked.cluster_id):
        raise StorageError(f"cluster_id {asked.cluster_id}: is not 22 characters of base64url that stand for 16 bytes")
    if asked.node_id is not None and asked.node_id < 0:
        raise StorageError(f"node_id {asked.node_id}: is negative")
    if not _LISTENER.fullmatch(asked.listener):
        raise StorageError(f"controller_listener {asked.listener}: is not of capitals, digits and _")
    _check_controllers(asked.controllers)
    if asked.controllers and asked.role == "broker":
        raise StorageError("controllers: a broker is formatted without; it learns the voters from the quorum")
    if asked.controllers and asked.node_id is not None and not asked.voter:
        raise StorageError(
            f"controllers: node {asked.node_id} is not among the initial voters; "
            "a controller that joins later is formatted without any"
        )


def _check_controllers(controllers: Sequence[Controller]) -> None:
    for item in controllers:
        if item.node_id < 0 or item.port not in _PORTS or not _is_host(item.host):
            raise StorageError(f"controllers: {item.node_id}@{item.address} is no node id, host and port")
    for what in ("node_id", "address"):
        values = [getattr(item, what) for item in controllers]
        if len(set(values)) != len(values):
            raise StorageError(f"controllers: {', '.join(map(str, values))}: two have the same {what}")


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _HOST.fullmatch(text) is not None
    return True


# ----------------------------------------------------------------------------------------------------- what is there


@dataclass(frozen=True)
class Meta:
    """What `meta.properties` says."""

    cluster_id: str
    node_id: int
    directory_id: str


@dataclass(frozen=True)
class Directory:
    """One directory as it was found.

    Attributes:
        path: of the directory.
        there: whether it exists.
        names: what is in it, without `lost+found`.
        meta: what `meta.properties` says; None when there is none, or none that can be used.
        metadata_log: whether the metadata log is in it.
        fresh: whether there is nothing in it but what `format` writes, so that no server has ever used it.
        fault: why it cannot be used; empty when it can.
    """

    path: str
    there: bool = False
    names: tuple[str, ...] = ()
    meta: Meta | None = None
    metadata_log: bool = False
    fresh: bool = True
    fault: str = ""


@dataclass(frozen=True)
class Mark:
    """The record, outside of the data, that a host is a member.

    Attributes:
        path: of the file.
        cluster_id: the first word in it; None when there is no such file.
    """

    path: str = ""
    cluster_id: str | None = None


def properties(text: str) -> dict[str, str]:
    """The pairs of a file of Java's `Properties.store`.

    Only what `store` writes is understood: no lines that go on, `=` between key and value.
    """
    found = {}
    for line in text.splitlines():
        key, separator, value = line.strip().partition("=")
        if separator and not key.startswith(("#", "!")):
            found[key.strip()] = re.sub(r"\\(.)", r"\1", value.strip())
    return found


def meta(text: str) -> Meta:
    """What a `meta.properties` says.

    Raises:
        StorageError: it lacks something, or is older than KRaft.
    """
    pairs = properties(text)
    if pairs.get("version") != _VERSION:
        raise StorageError(f"is of version {pairs.get('version', 'none')}, not {_VERSION}")
    for key in ("cluster.id", "node.id", "directory.id"):
        if not pairs.get(key):
            raise StorageError(f"has no {key}")
    if not re.fullmatch(r"[0-9]{1,10}", pairs["node.id"]):
        raise StorageError(f"has a node.id that is no number: {pairs['node.id']}")
    return Meta(pairs["cluster.id"], int(pairs["node.id"]), pairs["directory.id"])


def observe(path: str) -> Directory:
    """Look at one directory.

    Raises:
        OSError: it cannot be read.
    """
    place = Path(path)
    if place.is_symlink():
        return Directory(path, there=True, fault="is a symbolic link; name the directory that it leads to")
    try:
        names = tuple(sorted(entry.name for entry in place.iterdir() if entry.name != LOST_FOUND))
    except FileNotFoundError:
        return Directory(path)
    except NotADirectoryError:
        return Directory(path, there=True, fault="is no directory")
    found, fault = None, ""
    if META in names and not _is_plain(place / META):
        fault = f"has a {META} that is no plain file; see what happened to the disk"
    elif META in names:
        try:
            found = meta((place / META).read_text(encoding="utf-8", errors="replace"))
        except StorageError as error:
            fault = f"has a {META} that {error}; Kafka did not write that, see what happened to the disk"
    fresh = all(_of_format(place / name) for name in names)
    return Directory(path, True, names, found, METADATA_LOG in names, fresh, fault)


def _is_plain(path: Path) -> bool:
    """Whether a path is a file, and no link to one, which could lead anywhere."""
    return path.is_file() and not path.is_symlink()


def _of_format(path: Path) -> bool:
    """Whether something in a log directory is such as `format` alone makes it."""
    if path.name in {META, f"{META}.tmp"}:
        return _is_plain(path)
    if path.name != METADATA_LOG or path.is_symlink() or not path.is_dir():
        return False
    return all(_CHECKPOINT.fullmatch(entry.name) and _is_plain(entry) for entry in path.iterdir())


def read_mark(path: str | None) -> Mark:
    """The record that a host is a member.

    Args:
        path: of the file, whose first word is the id of the cluster; None when there is to be none.

    Raises:
        OSError: it cannot be read.
    """
    if not path:
        return Mark()
    try:
        words = Path(path).read_text(encoding="utf-8", errors="replace").split()
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return Mark(path)
        raise
    return Mark(path, words[0] if words else "")


# ---------------------------------------------------------------------------------------------------- what it means


@dataclass(frozen=True)
class State:
    """What a host holds.

    Attributes:
        formatted: all directories are, for one cluster and node.
        empty: nothing is in any directory.
        interrupted: what is there is the beginning of a format that did not end, and may be finished.
        cluster_id: of the directories that are formatted; empty when there is none, or they do not agree.
        node_id: the same of the node id; None when there is none.
        directory_ids: directory to its id.
        problems: sentences.
    """

    formatted: bool
    empty: bool
    interrupted: bool
    cluster_id: str
    node_id: int | None
    directory_ids: dict[str, str]
    problems: tuple[str, ...]


def judge(found: Sequence[Directory], mark: Mark, asked: Asked) -> State:
    """Say what the directories and the mark of a host mean.

    Args:
        found: all its directories.
        mark: the record that it is a member.
        asked: what it is to be.
    """
    metas = {item.path: item.meta for item in found if item.meta}
    problems = [f"{item.path} {item.fault}" for item in found if item.fault]
    problems += _foreign(found)
    problems += _disagreements(metas, asked)
    if len(metas) < len(found) and not problems:
        problems += _unfinishable(found, asked)
    problems += _mark_problems(mark, metas, asked, whole=len(metas) == len(found))
    clusters = {item.cluster_id for item in metas.values()}
    nodes = {item.node_id for item in metas.values()}
    empty = not any(item.names or item.fault for item in found)
    formatted = len(metas) == len(found) and len(clusters) == len(nodes) == 1
    return State(
        formatted=formatted,
        empty=empty,
        interrupted=not (formatted or empty or problems),
        cluster_id=clusters.pop() if len(clusters) == 1 else "",
        node_id=nodes.pop() if len(nodes) == 1 else None,
        directory_ids={path: item.directory_id for path, item in metas.items()},
        problems=tuple(problems),
    )


def _foreign(found: Iterable[Directory]) -> list[str]:
    """Directories with content that is not of `format` and without the file that says whose it is."""
    return [
        f"{item.path} has no {META} and holds {_some(item.names)}, which is no Kafka's, or was one's that lost that "
        "file; it is never formatted: name another directory, or move the content away if nobody needs it"
        for item in found
        if item.names and not item.meta and not item.fresh and not item.fault
    ]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _disagreements(metas: dict[str, Meta], asked: Asked) -> list[str]:
    """Ids that differ between neighbours, or from what is asked, and directories that are copies."""
    problems = []
    kinds = (("cluster", "cluster_id", asked.cluster_id), ("node id", "node_id", asked.node_id))
    for path, item in metas.items():
        first, lead = next(iter(metas.items()))
        for name, attribute, wanted in kinds:
            value = getattr(item, attribute)
            if value != getattr(lead, attribute):
                problems.append(
                    f"{path} is of {name} {value}, and {first} of {getattr(lead, attribute)}: "
                    "they are of two nodes; put back the disk that belongs here"
                )
            if wanted is not None and value != wanted:
                problems.append(
                    f"{path} is of {name} {value}, not {wanted}: "
                    f"give this host the ids that its data has, or {asked.anew}"
                )
    owners: dict[str, str] = {}
    for path, item in metas.items():
        other = owners.setdefault(item.directory_id, path)
        if other != path:
            problems.append(f"{path} has the directory id of {other}, {item.directory_id}: one is a copy of the other")
    return problems


def _unfinishable(found: Iterable[Directory], asked: Asked) -> list[str]:
    """Why directories of which some are not formatted are more than a format that did not end has left."""
    done = [item for item in found if item.meta]
    left = [item for item in found if not item.meta]
    used = [item.path for item in done if not item.fresh]
    if used:
        missing, whole = ", ".join(item.path for item in left), ", ".join(used)
        cause = "a disk was lost, or is not mounted"
        return [f"{missing} is not formatted, while {whole} has data: {cause}; mount it, or {asked.anew}"]
    problems = [f"{item.path} {_residue(item, asked)}" for item in (*done, *left) if _residue(item, asked)]
    for item in done:
        if item.path != asked.metadata_directory or not (asked.voter and asked.cluster_id and item.meta):
            continue
        derived = directory_id(asked.cluster_id, asked.node_id or 0)
        if item.meta.directory_id != derived:
            problems.append(
                f"{item.path} has directory id {item.meta.directory_id}, not {derived} as an initial voter has it: "
                "it was not formatted as one; empty it if no controller has ever run on it"
            )
    return problems


def _residue(item: Directory, asked: Asked) -> str:
    """Why a metadata log cannot be left of an interrupted format; empty when it can, or there is none.

    `format` of this node would not replace it, and a server would believe it.
    """
    if not item.metadata_log or item.fault:
        return ""
    if item.path != asked.metadata_directory:
        return f"has a metadata log, which belongs to {asked.metadata_directory}; empty it if no server has run on it"
    if asked.role == "broker":
        return "has the metadata log of a controller that never ran, and is to be a broker's; empty it if that is right"
    return ""


def _mark_problems(mark: Mark, metas: dict[str, Meta], asked: Asked, *, whole: bool) -> list[str]:
    """What the record says and the data does not."""
    if mark.cluster_id is None:
        return []
    if not is_id(mark.cluster_id):
        return [f"{mark.path} does not begin with the id of a cluster; write the right one into it"]
    was = f"{mark.path}: this host was a member of cluster {mark.cluster_id} and"
    never = "it is never formatted again by the way:"
    others = ", ".join(path for path, item in metas.items() if item.cluster_id != mark.cluster_id)
    if not metas:
        return [f"{was} has lost its data; {never} {asked.anew}"]
    if others:
        return [f"{was} {others} is of another one: put back the disk that belongs here, or {asked.anew}"]
    if not whole:
        return [f"{was} has lost a part of its data; {never} mount what is missing, or {asked.anew}"]
    return []


# -------------------------------------------------------------------------------------------------- asking the tool


@dataclass(frozen=True)
class Order:
    """One call of the tool.

    Attributes:
        configuration: content of the configuration, for `--config`.
        arguments: what follows `format --config FILE`.
    """

    configuration: str
    arguments: tuple[str, ...]


def order(found: Iterable[Directory], asked: Asked) -> Order:
    """How the directories that are not formatted become so, by one call of the tool.

    Only they are named. Where the metadata log's directory is done, the others are a broker's to the tool, whatever the
    node is: as a controller's, the first of them would be taken for the metadata log's and be given a voter's id.

    Args:
        found: all directories, of which at least one is not formatted.
        asked: what the node is to be; cluster id, node id and role were said.

    Raises:
        StorageError: one of them was not said.
    """
    if asked.cluster_id is None or asked.node_id is None or asked.role is None:
        raise StorageError("cluster_id, node_id and role are needed to format")
    left = [item.path for item in found if not item.meta]
    whole = asked.metadata_directory in left
    controller = whole and asked.role == "controller"
    own = next((item.address for item in asked.controllers if item.node_id == asked.node_id), PLACEHOLDER)
    pairs = {
        "process.roles": "controller" if controller else "broker",
        "node.id": str(asked.node_id),
        "log.dirs": ",".join(left),
        "metadata.log.dir": asked.metadata_directory if whole else left[0],
        "controller.listener.names": asked.listener,
        "controller.quorum.bootstrap.servers": ",".join(item.address for item in asked.controllers) or PLACEHOLDER,
        "listeners": f"{asked.listener}://{own}" if controller else f"{DATA_LISTENER}://127.0.0.1:9092",
        "listener.security.protocol.map": f"{asked.listener}:PLAINTEXT,{DATA_LISTENER}:PLAINTEXT",
        "inter.broker.listener.name": DATA_LISTENER,
    }
    voters = [item.voter(asked.cluster_id) for item in asked.controllers]
    quorum = ("--initial-controllers", ",".join(voters)) if controller and voters else ("--no-initial-controllers",)
    return Order(
        "".join(f"{key}={value}\n" for key, value in pairs.items()), ("--cluster-id", asked.cluster_id, *quorum)
    )
