# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An artifact that is a tar archive becomes a directory: exactly its files, all of them or none.

Beside the directory `DEST` are, while they are needed,

- `DEST.manifest`: what the archive holds, for `sha256sum --check` and for the next run. It says that the directory is
  ours; one without it is never touched;
- `.NAME.part`: the archive, until it is unpacked;
- `.groundplane-unpacking-NAME`: the new directory, nobody else's until it is whole;
- `.groundplane-replaced-NAME`: the old one, from the swap until it is removed.

A swap is three renames: the old directory away, the manifest, the new directory. A run that is killed after the first
leaves no directory, and the next run puts the old one back before it does anything else. One that is killed after the
second does too; the old directory is then not as the manifest has it, so it is replaced after all.

Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import hashlib
import os
import posixpath
import pwd
import re
import shutil
import stat
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils import artifact as library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

TOP = "."
FAULTS_SHOWN = 20
_HEADER = "# groundplane.onprem.artifact unpacked this from the archive with SHA-256 "
_DIRECTORY = "# directory "
_PROGRAM = "# program "
_FIRST_LINE = re.compile(re.escape(_HEADER) + r"([0-9a-f]{64})\Z")
_MODE = re.compile(r"0?[0-7]{3}\Z")
_EXECUTE = 0o111
_OTHERS_WRITE = 0o022
_UNKNOWN = -1  # no file has this owner
_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Rights:
    """Who owns what is unpacked, and its permissions.

    Attributes:
        uid: owner.
        gid: group.
        mode: permissions of directories and programs; other files have them without the right to execute.
    """

    uid: int
    gid: int
    mode: int

    def permissions(self, *, plain: bool) -> int:
        """Permissions of a file that is no program (`plain`), or of anything else."""
        return self.mode & ~_EXECUTE if plain else self.mode


@dataclass(frozen=True)
class Manifest:
    """What an archive holds.

    Attributes:
        archive: its SHA-256, hexadecimal; empty for a manifest of ours that cannot be read.
        files: path to SHA-256.
        directories: paths, `.` among them.
        programs: those of the files that may be executed.
    """

    archive: str
    files: dict[str, str] = field(default_factory=dict)
    directories: frozenset[str] = frozenset({TOP})
    programs: frozenset[str] = frozenset()

    def text(self) -> str:
        """Write it; `sha256sum --check` passes over the lines that it does not need."""
        lines = [_HEADER + self.archive]
        lines += [_DIRECTORY + path for path in sorted(self.directories)]
        lines += [_PROGRAM + path for path in sorted(self.programs)]
        return "\n".join(lines) + "\n" + library.format_sums(self.files)


@dataclass(frozen=True)
class Outcome:
    """What a run found and did, or in check mode would do.

    Attributes:
        changed: whether the directory is another now.
        before: SHA-256 of the archive that the directory was unpacked from; empty when there was none.
        after: the same, of what is there now.
        faults: how the directory differed from its manifest, a word and a path each.
    """

    changed: bool
    before: str
    after: str
    faults: list[str]


def parse_manifest(text: str, where: str) -> Manifest | None:
    """Read what `Manifest.text` wrote; None for a text that it did not write.

    Args:
        text: the file.
        where: its path, for messages.

    Raises:
        ArtifactError: it is ours, and somebody changed it.
    """
    first, *lines = text.splitlines() or [""]
    match = _FIRST_LINE.match(first)
    if match is None:
        return None
    files = library.parse_sums("\n".join(line for line in lines if not line.startswith("#")), where)
    return Manifest(
        match[1],
        files,
        frozenset(line.removeprefix(_DIRECTORY) for line in lines if line.startswith(_DIRECTORY)),
        frozenset(line.removeprefix(_PROGRAM) for line in lines if line.startswith(_PROGRAM)),
    )


def manifest_of(dest: Path) -> Path:
    """Where the manifest of a directory is."""
    return dest.with_name(f"{dest.name}.manifest")


def read_manifest(label: str, dest: Path) -> Manifest | None:
    """The manifest of a directory; None when there is none.

    Raises:
        ArtifactError: what is there is not ours.
        OSError: it cannot be read.
    """
    path = manifest_of(dest)
    foreign = f"{label}: {path} was not written by this module; it is left alone, move it away"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise library.ArtifactError(foreign) from error
        raise
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE:
            raise library.ArtifactError(foreign)
        text = stream.read().decode("utf-8", "replace")
    try:
        manifest = parse_manifest(text, str(path))
    except library.ArtifactError:
        return Manifest("")
    if manifest is None:
        raise library.ArtifactError(foreign)
    return manifest


# ------------------------------------------------------------------------------------------------------------ comparing


def inspect(label: str, dest: Path, rights: Rights, record: library.Record) -> tuple[str, list[str]]:
    """What is there: the archive's SHA-256, empty when nothing is, and how the directory differs from its manifest.

    Raises:
        ArtifactError: something is there that was not unpacked by us.
        OSError: it cannot be read.
    """
    manifest = read_manifest(label, dest)
    try:
        status = dest.lstat()
    except FileNotFoundError:
        return "", []
    if not stat.S_ISDIR(status.st_mode):
        raise library.ArtifactError(f"{label}: {dest} is not a directory; it is left alone, move it away")
    if manifest is None:
        if any(dest.iterdir()):
            raise library.ArtifactError(
                f"{label}: {dest} is not empty and was not unpacked by this module, there is no {manifest_of(dest)}; "
                "it is left alone, move it away or say another dest"
            )
        return "", []
    if not manifest.archive:
        return "", [f"changed ../{manifest_of(dest).name}"]
    return manifest.archive, differences(manifest, dest, rights, record)


def differences(manifest: Manifest, dest: Path, rights: Rights, record: library.Record) -> list[str]:
    """How a directory differs from its manifest: `missing`, `added`, `changed`, `owner` or `mode`, and a path.

    Files whose inode is as it was are not read. What is in a directory that was added is not listed.

    Raises:
        OSError: something cannot be read.
    """
    missing = manifest.directories | manifest.files.keys()
    faults = []
    for path, status in _walk(dest, manifest.directories):
        missing -= {path}
        if fault := _fault(manifest, path, status, rights) or _content_fault(manifest, dest, path, record):
            faults.append(f"{fault} {path if path.isprintable() else ascii(path)}")
    return faults + [f"missing {path}" for path in sorted(missing)]


def _walk(dest: Path, directories: frozenset[str]) -> Iterator[tuple[str, os.stat_result]]:
    """All that is there, ordered by path; of directories only those named are entered. No link is followed."""
    waiting = [TOP]
    while waiting:
        path = waiting.pop()
        status = (dest / path).lstat()
        yield path, status
        if stat.S_ISDIR(status.st_mode) and path in directories:
            names = sorted(os.listdir(dest / path), reverse=True)  # noqa: PTH208 - names, not paths
            waiting += [posixpath.normpath(posixpath.join(path, name)) for name in names]


def _fault(manifest: Manifest, path: str, status: os.stat_result, rights: Rights) -> str:
    """What the inode says against one path; empty for nothing."""
    is_file = path in manifest.files
    if not is_file and path not in manifest.directories:
        return "added"
    if not (stat.S_ISREG if is_file else stat.S_ISDIR)(status.st_mode):
        return "changed"
    if (status.st_uid, status.st_gid) != (rights.uid, rights.gid):
        return "owner"
    wanted = rights.permissions(plain=is_file and path not in manifest.programs)
    return "mode" if stat.S_IMODE(status.st_mode) != wanted else ""


def _content_fault(manifest: Manifest, dest: Path, path: str, record: library.Record) -> str:
    if path not in manifest.files:
        return ""
    return "" if record.digest(str(dest / path)) == manifest.files[path] else "changed"


# ------------------------------------------------------------------------------------------------------------ unpacking


def member_path(label: str, member: tarfile.TarInfo) -> str:
    """Path of a member below the directory, normalised.

    Raises:
        ArtifactError: it is neither a file nor a directory, or would lie elsewhere, or no manifest could name it.
    """
    name, path = member.name, posixpath.normpath(member.name)
    if name.startswith("/"):
        why = "is an absolute path"
    elif ".." in name.split("/"):
        why = "leads out of its directory"
    elif not (member.isreg() or member.isdir()):
        why = "is a link" if member.issym() or member.islnk() else "is a device, or no file of any kind known"
    elif not path.isprintable() or "\\" in path or path.startswith(" "):
        why = "has a name that no list of checksums can hold"
    else:
        return path
    raise library.ArtifactError(f"{label}: its archive's member {name!a} {why}; nothing was installed")


def contents(label: str, members: Iterable[tarfile.TarInfo]) -> tuple[dict[str, tarfile.TarInfo], frozenset[str]]:
    """Files and directories of an archive, by path; a directory that is not a member of its own is there too.

    Raises:
        ArtifactError: a member is refused (see `member_path`), or two are at odds.
    """
    files: dict[str, tarfile.TarInfo] = {}
    directories = {TOP}
    for member in members:
        path = member_path(label, member)
        directories.update(str(parent) for parent in PurePosixPath(path).parents)
        if member.isdir():
            directories.add(path)
        elif path in files:
            raise library.ArtifactError(f"{label}: its archive has the member {path} twice; nothing was installed")
        else:
            files[path] = member
    if both := sorted(files.keys() & directories):
        raise library.ArtifactError(
            f"{label}: its archive's member {both[0]} is both a file and a directory; nothing was installed"
        )
    return files, frozenset(directories)


def unpack(label: str, archive: str, sha256: str, staging: Path, rights: Rights) -> Manifest:
    """Unpack a verified archive into a new directory, on disk when this returns.

    Args:
        label: the artifact, for messages.
        archive: the file: a tar archive, plain or compressed.
        sha256: what it was verified to be.
        staging: the directory to make. The caller removes it when this fails.
        rights: of all that is unpacked.

    Raises:
        ArtifactError: it is no tar archive, or a member is refused.
        OSError: the directory cannot be written.
    """
    staging.mkdir(mode=0o700)
    sums = {}
    try:
        with tarfile.open(archive, "r:*") as opened:
            files, directories = contents(label, opened.getmembers())
            for path in sorted(directories - {TOP}):
                (staging / path).mkdir(mode=0o700)
            for path, member in files.items():
                # A second opinion on each name, from the library.
                filtered = tarfile.data_filter(member, str(staging))
                sums[path] = _write(opened, filtered, staging / path, rights)
    except (tarfile.TarError, EOFError) as error:
        raise library.ArtifactError(f"{label}: cannot be unpacked: {error}; nothing was installed") from error
    for path in sorted(directories, reverse=True):
        if path != TOP:
            _finish_directory(staging / path, rights)
    _finish_directory(staging, rights)
    programs = frozenset(path for path, member in files.items() if _is_program(member))
    return Manifest(sha256, sums, directories, programs)


def _is_program(member: tarfile.TarInfo) -> bool:
    return bool(member.mode & stat.S_IXUSR)


def _write(opened: tarfile.TarFile, member: tarfile.TarInfo, target: Path, rights: Rights) -> str:
    """Write one file; its SHA-256."""
    digest = hashlib.sha256()
    source = opened.extractfile(member)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(target, flags, 0o600), "wb") as out:
        while source is not None and (chunk := source.read(_CHUNK)):
            digest.update(chunk)
            out.write(chunk)
        out.flush()
        os.fchown(out.fileno(), rights.uid, rights.gid)
        os.fchmod(out.fileno(), rights.permissions(plain=not _is_program(member)))
        os.fsync(out.fileno())
    return digest.hexdigest()


def _finish_directory(path: Path, rights: Rights) -> None:
    """Give a directory its owner and permissions; it and its names are on disk then."""
    with _opened(path) as descriptor:
        os.fchown(descriptor, rights.uid, rights.gid)
        os.fchmod(descriptor, rights.permissions(plain=False))
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """A descriptor of a directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------------------- swapping


def beside(dest: Path, what: str) -> Path:
    """Where a directory is that is `unpacking` or was `replaced`. One name, so that what a killed run left is found."""
    return dest.with_name(f".groundplane-{what}-{dest.name}")


def put_back(dest: Path) -> bool:
    """Undo a swap that was broken off between its renames; whether there was one."""
    replaced = beside(dest, "replaced")
    if os.path.lexists(dest) or not os.path.lexists(replaced):
        return False
    replaced.rename(dest)
    return True


def swap(dest: Path, staging: Path, manifest: Manifest) -> None:
    """Put a whole new directory in the place of the old one, and its manifest beside it; remove the old one.

    Raises:
        OSError: it cannot be done. The old directory is where it was, unless its removal failed.
    """
    replaced, sums = beside(dest, "replaced"), str(manifest_of(dest))
    _remove(replaced)
    with library.open_part(sums) as out:
        out.write(manifest.text().encode())
        out.flush()
        os.fchmod(out.fileno(), 0o644)
        os.fsync(out.fileno())
    try:
        if os.path.lexists(dest):
            dest.rename(replaced)
        Path(library.part_of(sums)).replace(sums)
        staging.rename(dest)
    except OSError:
        put_back(dest)
        raise
    with _opened(dest.parent) as descriptor:
        os.fsync(descriptor)
    _remove(replaced)


def _remove(directory: Path) -> None:
    """Remove a directory of ours, if it is there."""
    if os.path.lexists(directory):
        shutil.rmtree(directory)


# ----------------------------------------------------------------------------------------------------------- converging


def converge(item: Mapping[str, Any], record: library.Record, ca_file: str, *, check: bool) -> Outcome:
    """Bring one directory to what is declared.

    Args:
        item: label, url, accepted, dest, owner, group and mode, as the module has them.
        record: checksums that were computed before.
        ca_file: PEM of the authorities that may vouch for the mirror; empty for the system's.
        check: only say what would be done.

    Raises:
        ArtifactError: it cannot be had, what is offered is another file, or what is at dest is not ours.
        OSError: the host's file system refuses.
    """
    label, dest = str(item["label"]), _destination(item)
    rights = Rights(*_owner(item, check=check), _mode(item))
    if check:
        before, faults = inspect(label, dest, rights, record)
        wrong = before not in item["accepted"]
        return Outcome(wrong or bool(faults), before, item["accepted"][0] if wrong else before, faults)
    with _alone(label, dest.parent):
        resumed = put_back(dest)
        before, faults = inspect(label, dest, rights, record)
        if before in item["accepted"] and not faults:
            _remove(beside(dest, "replaced"))
            _remove(beside(dest, "unpacking"))
            return Outcome(resumed, before, before, [])
        after = _replace(item, dest, rights, ca_file)
        # The first comparison is made here, while the files are in memory: the next run reads none of them.
        _, unsettled = inspect(label, dest, rights, record)
        if unsettled:
            raise library.ArtifactError(f"{label}: somebody else writes to {dest}: {', '.join(shown(unsettled))}")
        return Outcome(changed=True, before=before, after=after, faults=faults)


def _replace(item: Mapping[str, Any], dest: Path, rights: Rights, ca_file: str) -> str:
    """Fetch, verify, unpack and swap; the archive's SHA-256."""
    label, accepted, staging = item["label"], item["accepted"], beside(dest, "unpacking")
    part = library.download(label, item["url"], accepted, str(dest), ca_file)
    try:
        _remove(staging)
        sha256 = library.verify(label, part, accepted, item["url"])
        manifest = unpack(label, part, sha256, staging, rights)
        Path(part).unlink()
        swap(dest, staging, manifest)
    finally:
        Path(part).unlink(missing_ok=True)
        _remove(staging)
    return sha256


def shown(faults: list[str]) -> list[str]:
    """As many of these as a reader wants to see."""
    more = len(faults) - FAULTS_SHOWN
    return faults[:FAULTS_SHOWN] + ([f"and {more} more"] if more > 0 else [])


@contextlib.contextmanager
def _alone(label: str, directory: Path) -> Iterator[None]:
    """Nobody else unpacks in a directory meanwhile.

    Raises:
        ArtifactError: the directory is not there, or another run is at work in it.
    """
    if not directory.is_dir():
        raise library.ArtifactError(f"{label}: {directory} is not there")
    with _opened(directory) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise library.ArtifactError(f"{label}: another run unpacks in {directory}; wait for it") from error
        yield


def _destination(item: Mapping[str, Any]) -> Path:
    dest = str(item["dest"])
    path = Path(dest)
    if not path.is_absolute() or not path.name or ".." in path.parts:
        raise library.ArtifactError(f"{item['label']}: dest {dest} is not the absolute path of a directory")
    return path


def _mode(item: Mapping[str, Any]) -> int:
    text = str(item["mode"])
    mode = int(text, 8) if _MODE.match(text) else 0
    # Who may read or write a directory and not search it can do neither.
    if not mode or (mode >> 1 | mode >> 2) & _EXECUTE & ~mode:
        raise library.ArtifactError(
            f"{item['label']}: with unpack, mode is that of directories, in octal digits such as 0755, not {text}"
        )
    return mode


def _owner(item: Mapping[str, Any], *, check: bool) -> tuple[int, int]:
    """Numbers of owner and group. In check mode an earlier task may not have made them: then no file is theirs."""
    uid = _number(str(item["owner"]), lambda name: pwd.getpwnam(name).pw_uid)
    gid = _number(str(item["group"]), lambda name: grp.getgrnam(name).gr_gid)
    for option, number in (("owner", uid), ("group", gid)):
        if number == _UNKNOWN and not check:
            raise library.ArtifactError(f"{item['label']}: there is no {option} {item[option]} on this host")
    return uid, gid


def _number(name: str, find: Callable[[str], int]) -> int:
    try:
        return int(name) if name.isdecimal() else find(name)
    except KeyError:
        return _UNKNOWN
