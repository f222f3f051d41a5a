# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# All work here goes through descriptors of directories, which pathlib does not know:
# ruff: noqa: PTH118, PTH123, PTH208
"""The host's half of a tree: compare, stage, validate, swap, and undo what was done when any of it fails.

All work on a path goes through a descriptor of its directory, which is opened one component at a time. A link among the
components is followed only when root (or the calling user) made it: otherwise a service's user could send root's writes
elsewhere by a link in its own directory.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import hashlib
import os
import posixpath
import pwd
import re
import secrets
import shlex
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.tree_manifest import Entry, TreeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# A leading dot: programs that read whole directories (conf.d, sudoers.d, cron.d, systemd) leave such names alone. The
# name's end stays, because some validators look at it.
TEMPORARY_PREFIX = ".groundplane-"
_TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + r"[0-9a-f]{12}-")
_NAME_MAX = 255
_LINKS_MAX = 40  # as the kernel's own limit for following links
DIFF_LIMIT = 256 * 1024
VALIDATE_SECONDS = 60
_OUTPUT_LIMIT = 4000
_UNREACHABLE_MODE = 0o600
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISREG, "file"),
    (stat.S_ISDIR, "directory"),
    (stat.S_ISLNK, "link"),
    (stat.S_ISFIFO, "fifo"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISBLK, "block device"),
    (stat.S_ISCHR, "character device"),
)


@dataclass(frozen=True)
class Found:
    """What is at a path: kind of file, owner, group, mode, and the target of a link."""

    kind: str = "absent"
    uid: int = -1
    gid: int = -1
    mode: int = 0
    size: int = 0
    target: str = ""


@dataclass
class Change:
    """One path that differs: what is there, and why that is not what is declared.

    `reasons` is a subset of kind, content, target, owner, group, mode.
    """

    entry: Entry
    found: Found
    reasons: list[str]
    before: str | None = None  # text of the old file for a diff; None where it must not or cannot be shown
    before_note: str = ""

    @property
    def replaces(self) -> bool:
        """Whether the path gets a new inode."""
        return not {"kind", "content", "target"}.isdisjoint(self.reasons)


@dataclass
class Outcome:
    """What a run found and did, or in check mode would do."""

    changes: list[Change] = field(default_factory=list)
    created_parents: list[str] = field(default_factory=list)
    skipped_validations: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Directories:
    """Descriptors of directories, opened component by component."""

    def __init__(self) -> None:
        """Start at the root."""
        self._retired: list[int] = []
        self._open: dict[str, tuple[int, str]] = {"/": (os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), "/")}

    def close(self) -> None:
        """Close all descriptors."""
        for descriptor in (*self._retired, *(item[0] for item in self._open.values())):
            os.close(descriptor)
        self._retired.clear()
        self._open.clear()

    def forget(self, path: str) -> None:
        """Drop a directory that is gone; its descriptor stays good for what is in it, wherever it is now."""
        for gone in [item for item in self._open if f"{item}/".startswith(f"{path}/")]:
            self._retired.append(self._open.pop(gone)[0])

    def open(self, path: str) -> int | None:
        """Give a descriptor of the directory `path`, or None when it does not exist.

        Raises:
            TreeError: a component is no directory, or a link that somebody other than root made.
        """
        found = self._walk(path, _LINKS_MAX)
        return found[0] if found else None

    def real(self, path: str) -> str | None:
        """Give the path of a directory without links, or None when it does not exist."""
        found = self._walk(path, _LINKS_MAX)
        return found[1] if found else None

    def _walk(self, path: str, links: int) -> tuple[int, str] | None:
        if path in self._open:
            return self._open[path]
        if links == 0:
            raise TreeError(f"{path}: too many links")
        above, _, name = path.rpartition("/")
        parent = self._walk(above or "/", links)
        if parent is None:
            return None
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            opened = os.open(name, flags, dir_fd=parent[0]), posixpath.join(parent[1], name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise TreeError(f"{path}: {error.strerror}") from error
            status = os.lstat(name, dir_fd=parent[0])
            if not stat.S_ISLNK(status.st_mode):
                raise TreeError(f"{path}: is not a directory") from error
            if status.st_uid not in (0, os.geteuid()):
                raise TreeError(f"{path}: is a link made by uid {status.st_uid}, not followed") from error
            target = posixpath.normpath(posixpath.join(parent[1], os.readlink(name, dir_fd=parent[0])))
            through = self._walk(target, links - 1)
            if through is None:
                raise TreeError(f"{path}: is a link to {target}, which does not exist") from error
            opened = os.dup(through[0]), through[1]
        self._open[path] = opened
        return opened


class Converger:
    """Brings a host's paths to the declared state, or leaves them as they were.

    Args:
        entries: the declared paths; their contents are brought by `apply`.
        directory_mode: permission bits of parent directories that have to be made.
        owner: user of such parents.
        group: group of such parents.
        check: only look; unknown users and groups are then no error, for a package may bring them.
        diff: keep the old text of changed files.
        scratch: where check mode makes a private directory for validations; default the system's temporary one.

    Attributes:
        interrupted: set by a signal handler to the signal's name; the next step then fails and all is undone. A handler
            must not raise by itself, for it might do so between an act and the note of how to undo it.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        *,
        directory_mode: int = 0o755,
        owner: str = "root",
        group: str = "root",
        check: bool = False,
        diff: bool = False,
        scratch: str = "",
    ) -> None:
        """Remember the declaration; nothing is read yet."""
        self.entries = sorted(entries, key=lambda entry: entry.path)
        self.directory_mode = directory_mode
        self.owner = owner
        self.group = group
        self.check = check
        self.diff = diff
        self.scratch = scratch
        self.directories = Directories()
        self.outcome = Outcome()
        self._ids: dict[tuple[str, str], int | None] = {}
        self.interrupted = ""
        self._undo: list[tuple[str, Callable[[], None]]] = []
        self._finish: list[tuple[str, Callable[[], None]]] = []
        self._touched: set[str] = set()
        self._made: set[str] = set()

    # -- looking ------------------------------------------------------------------------------------------------------

    def plan(self) -> Outcome:
        """Compare each path with its declaration; changes nothing.

        Raises:
            TreeError: a path cannot be brought to its state, such as a directory where a file is declared.
        """
        mounts = _mount_points()
        absent = {entry.path for entry in self.entries if entry.state == "absent"}
        directories = {entry.path for entry in self.entries if entry.state == "directory"}
        self._refuse_what_lies_in(absent)
        for entry in self.entries:
            change = self._compare(entry, absent)
            if change is None:
                continue
            if change.replaces and change.found.kind != "absent" and entry.path in mounts:
                raise TreeError(f"{entry.path}: is a mount point (such as a container's volume), it cannot be replaced")
            self.outcome.changes.append(change)
            if entry.state != "absent" and change.found.kind == "absent":
                self._plan_parents(entry.path, directories)
        return self.outcome

    def _refuse_what_lies_in(self, absent: set[str]) -> None:
        """Refuse a path that leads, through a link on the host, into a directory that is declared absent."""
        gone = {}
        for path in absent:
            above = self.directories.real(posixpath.dirname(path))
            if above is not None:
                gone[posixpath.join(above, posixpath.basename(path))] = path
        for entry in self.entries:
            within = self.directories.real(posixpath.dirname(entry.path))
            for place, path in gone.items():
                plainly = f"{entry.path}/".startswith(f"{path}/")
                if within is not None and not plainly and f"{within}/".startswith(f"{place}/"):
                    raise TreeError(f"{entry.path}: lies in {within}, and {path} is declared absent")

    def needed(self) -> list[str]:
        """Name the contents that `apply` will want, each once."""
        return list(
            dict.fromkeys(
                change.entry.sha256
                for change in self.outcome.changes
                if change.entry.state == "file" and change.replaces
            )
        )

    def _plan_parents(self, path: str, declared: set[str]) -> None:
        missing = []
        parent = posixpath.dirname(path)
        while parent != "/" and self.directories.open(parent) is None:
            if parent not in declared and parent not in self.outcome.created_parents:
                missing.append(parent)
            parent = posixpath.dirname(parent)
        self.outcome.created_parents.extend(reversed(missing))

    def _compare(self, entry: Entry, absent: set[str]) -> Change | None:
        """Look at one path; None when it is as declared."""
        parent = self.directories.open(posixpath.dirname(entry.path))
        name = posixpath.basename(entry.path)
        found = _look(name, parent) if parent is not None else Found()
        if entry.state == "absent":
            return self._compare_absent(entry, found, parent, absent)
        if found.kind not in ("absent", entry.state) and not (
            {found.kind, entry.state} <= {"file", "link"}  # these two replace each other
        ):
            raise TreeError(f"{entry.path}: is a {found.kind}, cannot become a {entry.state}; remove it first")

        change = Change(entry, found, [])
        if found.kind != entry.state:
            change.reasons.append("kind")
        elif entry.state == "link" and found.target != entry.target:
            change.reasons.append("target")
        if found.kind == "file" and entry.state == "file" and parent is not None:
            self._compare_content(change, name, parent)
        uid, gid = self._uid(entry), self._gid(entry)
        if found.kind != "absent":
            if uid != found.uid:
                change.reasons.append("owner")
            if gid != found.gid:
                change.reasons.append("group")
            if entry.state != "link" and found.kind == entry.state and found.mode != entry.mode:
                change.reasons.append("mode")
        return change if change.reasons else None

    def _compare_content(self, change: Change, name: str, parent: int) -> None:
        entry = change.entry
        same_size = change.found.size == entry.size
        wanted = self.diff and not entry.secret
        if not (same_size or wanted):
            change.reasons.append("content")
            return
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        with open(descriptor, "rb") as stream:
            if same_size and hashlib.file_digest(stream, "sha256").hexdigest() == entry.sha256:
                return
            change.reasons.append("content")
            if wanted:
                stream.seek(0)
                _keep_text(change, stream.read(DIFF_LIMIT + 1))

    def _compare_absent(self, entry: Entry, found: Found, parent: int | None, absent: set[str]) -> Change | None:
        if found.kind == "absent" or parent is None:
            return None
        if found.kind == "directory" and not entry.recurse:
            descriptor = self.directories.open(entry.path)
            children = os.listdir(descriptor) if descriptor is not None else []
            left = [child for child in children if posixpath.join(entry.path, child) not in absent]
            left = [child for child in left if not _TEMPORARY.match(child)]
            if left:
                raise TreeError(f"{entry.path}: is not empty ({left[0]}); `recurse: true` removes it with its content")
        change = Change(entry, found, ["kind"])
        if self.diff and found.kind == "file" and not entry.secret:
            name = posixpath.basename(entry.path)
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            with open(descriptor, "rb") as stream:
                _keep_text(change, stream.read(DIFF_LIMIT + 1))
        return change

    def _uid(self, entry: Entry) -> int | None:
        return self._id("user", entry.owner, entry.path)

    def _gid(self, entry: Entry) -> int | None:
        return self._id("group", entry.group, entry.path)

    def _id(self, what: str, name: str, path: str) -> int | None:
        """Find a numeric id; None when it is unknown, which only check mode bears."""
        if (what, name) not in self._ids:
            number: int | None = None
            if name.isdecimal():
                number = int(name)
            else:
                with contextlib.suppress(KeyError):
                    number = pwd.getpwnam(name).pw_uid if what == "user" else grp.getgrnam(name).gr_gid
            self._ids[what, name] = number
        number = self._ids[what, name]
        if number is None and not self.check:
            raise TreeError(f"{path}: there is no {what} {name} on this host")
        return number

    # -- doing --------------------------------------------------------------------------------------------------------

    def apply(self, contents: Mapping[str, bytes]) -> Outcome:
        """Stage and validate all, then swap all. In check mode: only validate.

        Args:
            contents: at least those that `needed` names.

        Raises:
            TreeError: something failed, and all is again as it was (or the text says what could not be put back).
        """
        lacking = set(self.needed()) - set(contents)
        if lacking:
            raise TreeError(f"{len(lacking)} contents were not sent")
        if self.check:
            self._validate_aside(contents)
            return self.outcome
        try:
            self._remove_leftovers()
            staged = self._stage(contents)
            self._swap(staged)
        except BaseException as error:
            lost = self._roll_back()
            if not isinstance(error, (OSError, TreeError)):
                raise
            text = str(error) if isinstance(error, TreeError) else _explain(error)
            raise TreeError(text + (f"; could not be put back: {', '.join(lost)}" if lost else "")) from error
        self._settle()
        return self.outcome

    def _settle(self) -> None:
        """Drop what was kept for going back, and make the set durable. It is in place: failing now would be a lie."""
        for path, finish in self._finish:
            try:
                finish()
            except OSError as error:
                self.outcome.warnings.append(f"{path}: what was kept of the old state is still there: {error.strerror}")
        for path in sorted(self._touched):
            try:
                descriptor = self.directories.open(path)
                if descriptor is not None:
                    os.fsync(descriptor)
            except OSError as error:
                self.outcome.warnings.append(f"{path}: may not be on disk yet: {error.strerror}")

    def close(self) -> None:
        """Close all descriptors."""
        self.directories.close()

    def _stage(self, contents: Mapping[str, bytes]) -> dict[str, str]:
        """Make directories, write all new files beside their places, validate them; give their temporary names."""
        declared = {change.entry.path: change.entry for change in self.outcome.changes}
        new = [change.entry for change in self.outcome.changes if change.found.kind == "absent"]
        wanted = {*self.outcome.created_parents, *(entry.path for entry in new if entry.state == "directory")}
        for path in sorted(wanted):
            entry = declared.get(path) or Entry(
                path=path, state="directory", owner=self.owner, group=self.group, mode=self.directory_mode
            )
            self._step()
            self._make_directory(entry)
        staged: dict[str, str] = {}
        for change in self.outcome.changes:
            entry = change.entry
            if not change.replaces or entry.state not in ("file", "link"):
                continue
            self._step()
            name = staged[entry.path] = _temporary_name(entry.path)
            if entry.state == "link":
                self._write_link(entry, name, self._parent(entry.path))
            else:
                self._write(entry, name, self._parent(entry.path), contents[entry.sha256])
        for change in self.outcome.changes:
            if change.entry.path in staged and change.entry.state == "file":
                _sync(staged[change.entry.path], self._parent(change.entry.path))
        for change in self.outcome.changes:
            if change.entry.validate and change.entry.path in staged:
                self._step()
                directory = posixpath.dirname(change.entry.path)
                _validate(change.entry, posixpath.join(directory, staged[change.entry.path]))
        return staged

    def _write(self, entry: Entry, name: str, parent: int, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, _UNREACHABLE_MODE, dir_fd=parent)
        self._undo.append((entry.path, lambda: _unlink(name, parent)))
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchown(descriptor, self._known(self._uid(entry)), self._known(self._gid(entry)))
            os.fchmod(descriptor, entry.mode)

    def _write_link(self, entry: Entry, name: str, parent: int) -> None:
        os.symlink(entry.target, name, dir_fd=parent)
        self._undo.append((entry.path, lambda: _unlink(name, parent)))
        uid, gid = self._known(self._uid(entry)), self._known(self._gid(entry))
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)

    def _make_directory(self, entry: Entry) -> None:
        parent = self._parent(entry.path)
        name = posixpath.basename(entry.path)
        os.mkdir(name, 0o700, dir_fd=parent)

        def remove() -> None:
            self.directories.forget(entry.path)
            os.rmdir(name, dir_fd=parent)

        self._undo.append((entry.path, remove))
        descriptor = self.directories.open(entry.path)
        if descriptor is None:
            raise TreeError(f"{entry.path}: was removed by somebody else meanwhile")
        os.fchown(descriptor, self._known(self._uid(entry)), self._known(self._gid(entry)))
        os.fchmod(descriptor, entry.mode)
        self._made.add(entry.path)
        self._touched.update((posixpath.dirname(entry.path), entry.path))

    def _swap(self, staged: Mapping[str, str]) -> None:
        removals = [change for change in self.outcome.changes if change.entry.state == "absent"]
        for change in self.outcome.changes:
            entry = change.entry
            if entry.state == "absent" or entry.path in self._made:
                continue
            self._step()
            if entry.path in staged:
                self._replace(change, staged[entry.path])
            else:
                self._set_attributes(change)
        # Children before their directories.
        for change in sorted(removals, key=lambda change: change.entry.path, reverse=True):
            self._step()
            self._remove(change)
        self._step()

    def _step(self) -> None:
        """Stop here when a signal came.

        Raises:
            TreeError: one did.
        """
        if self.interrupted:
            raise TreeError(f"interrupted by {self.interrupted}")

    def _replace(self, change: Change, staged: str) -> None:
        path = change.entry.path
        name, parent = posixpath.basename(path), self._parent(path)
        if change.found.kind == "absent":
            os.rename(staged, name, src_dir_fd=parent, dst_dir_fd=parent)
            self._undo.append((path, lambda: _unlink(name, parent)))
        else:
            # A second name for the old inode: the path itself is never missing, not for a moment.
            kept = _temporary_name(path)
            os.link(name, kept, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
            self._undo.append((path, lambda: _put_back(kept, name, parent)))
            os.rename(staged, name, src_dir_fd=parent, dst_dir_fd=parent)
            self._finish.append((path, lambda: _unlink(kept, parent)))
        self._touched.add(posixpath.dirname(path))

    def _remove(self, change: Change) -> None:
        path = change.entry.path
        name, parent, kept = posixpath.basename(path), self._parent(path), _temporary_name(path)
        os.rename(name, kept, src_dir_fd=parent, dst_dir_fd=parent)
        self._undo.append((path, lambda: os.rename(kept, name, src_dir_fd=parent, dst_dir_fd=parent)))
        self.directories.forget(path)
        self._touched.add(posixpath.dirname(path))
        if change.found.kind == "directory":
            self._touched = {touched for touched in self._touched if not f"{touched}/".startswith(f"{path}/")}
            self._finish.append((path, lambda: shutil.rmtree(kept, dir_fd=parent)))
        else:
            self._finish.append((path, lambda: _unlink(kept, parent)))

    def _set_attributes(self, change: Change) -> None:
        """Change owner, group and mode in place, at no moment with more access than the old or the new state gives."""
        entry, found = change.entry, change.found
        name, parent = posixpath.basename(entry.path), self._parent(entry.path)
        uid, gid = self._known(self._uid(entry)), self._known(self._gid(entry))
        if entry.state == "link":

            def chown(owner: int, group: int) -> None:
                os.chown(name, owner, group, dir_fd=parent, follow_symlinks=False)

            self._undo.append((entry.path, lambda: chown(found.uid, found.gid)))
            chown(uid, gid)
            return
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=parent)
        self._finish.append((entry.path, lambda: os.close(descriptor)))

        def restore() -> None:
            os.fchown(descriptor, found.uid, found.gid)
            os.fchmod(descriptor, found.mode)
            os.close(descriptor)

        self._undo.append((entry.path, restore))
        if (uid, gid) != (found.uid, found.gid):
            os.fchmod(descriptor, found.mode & entry.mode)
            os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, entry.mode)
        os.fsync(descriptor)

    def _roll_back(self) -> list[str]:
        """Undo in reverse order; name the paths that could not be put back."""
        lost = []
        while self._undo:
            path, undo = self._undo.pop()
            try:
                undo()
            except OSError as error:
                lost.append(f"{path} ({error.strerror})")
        return lost

    def _remove_leftovers(self) -> None:
        """Remove what a killed run left beside the declared paths."""
        for path in sorted({posixpath.dirname(entry.path) for entry in self.entries}):
            descriptor = self.directories.open(path)
            if descriptor is None:
                continue
            for name in os.listdir(descriptor):
                if _TEMPORARY.match(name):
                    if stat.S_ISDIR(os.lstat(name, dir_fd=descriptor).st_mode):
                        shutil.rmtree(name, dir_fd=descriptor)
                    else:
                        os.unlink(name, dir_fd=descriptor)

    def _validate_aside(self, contents: Mapping[str, bytes]) -> None:
        """Validate in a private directory: check mode leaves the declared places alone."""
        for change in self.outcome.changes:
            entry = change.entry
            if not (entry.validate and entry.state == "file" and change.replaces):
                continue
            if shutil.which(shlex.split(entry.validate)[0]) is None:
                self.outcome.skipped_validations.append(entry.path)
                continue
            directory = tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=self.scratch or None)
            try:
                staged = os.path.join(directory, posixpath.basename(entry.path))
                descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _UNREACHABLE_MODE)
                with open(descriptor, "wb") as stream:
                    stream.write(contents[entry.sha256])
                _validate(entry, staged)
            finally:
                shutil.rmtree(directory)

    def _parent(self, path: str) -> int:
        directory = posixpath.dirname(path)
        descriptor = self.directories.open(directory)
        if descriptor is None:
            raise TreeError(f"{directory}: was removed by somebody else meanwhile")
        return descriptor

    @staticmethod
    def _known(number: int | None) -> int:
        if number is None:
            raise TreeError("owner or group vanished from this host meanwhile")
        return number


def describe(change: Change) -> dict[str, Any]:
    """Give a change as plain JSON types for the controller, which makes the diff of it."""
    found = change.found
    return {
        "path": change.entry.path,
        "reasons": change.reasons,
        "kind": found.kind,
        "owner": _name("user", found.uid) if found.uid >= 0 else "",
        "group": _name("group", found.gid) if found.gid >= 0 else "",
        "mode": f"{found.mode:04o}",
        "target": found.target,
        "before": change.before,
        "before_note": change.before_note,
    }


def _name(what: str, number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name if what == "user" else grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _look(name: str, parent: int) -> Found:
    try:
        status = os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return Found()
    kind = next((kind for test, kind in _KINDS if test(status.st_mode)), "unknown")
    target = os.readlink(name, dir_fd=parent) if kind == "link" else ""
    return Found(kind, status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), status.st_size, target)


def _keep_text(change: Change, content: bytes) -> None:
    """Keep old content for a diff, where a person could read it."""
    if len(content) > DIFF_LIMIT:
        change.before_note = f"longer than {DIFF_LIMIT} bytes"
        return
    try:
        text = content.decode()
    except UnicodeDecodeError:
        change.before_note = "binary"
        return
    if "\0" in text:
        change.before_note = "binary"
    else:
        change.before = text


def _mount_points() -> set[str]:
    """Read the mount points of this process (proc(5), mountinfo, field 5)."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
            lines = stream.readlines()
    except FileNotFoundError:
        return set()
    return {re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]) for line in lines}


def _temporary_name(path: str) -> str:
    prefix = f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}-"
    # Bytes, for that is what the file system counts.
    end = os.fsencode(posixpath.basename(path))[-(_NAME_MAX - len(prefix)) :]
    return prefix + end.decode(errors="ignore")


def _unlink(name: str, parent: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)


def _put_back(kept: str, name: str, parent: int) -> None:
    os.rename(kept, name, src_dir_fd=parent, dst_dir_fd=parent)
    # Renaming one name of an inode over another one does nothing: the swap had not happened yet.
    _unlink(kept, parent)


def _sync(name: str, parent: int) -> None:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _validate(entry: Entry, staged: str) -> None:
    """Run a validation command on a staged file.

    Raises:
        TreeError: it failed, with its output; not for a secret file, for programs like to show the line they dislike.
    """
    command = [word.replace("%s", staged) for word in shlex.split(entry.validate)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            cwd="/",
            timeout=VALIDATE_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise TreeError(f"{entry.path}: cannot be validated, there is no {command[0]} on this host") from error
    except OSError as error:
        raise TreeError(f"{entry.path}: cannot be validated, {command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise TreeError(f"{entry.path}: validation took longer than {VALIDATE_SECONDS} s: {entry.validate}") from error
    if done.returncode != 0:
        output = done.stdout.decode(errors="replace").replace(staged, entry.path).strip()[-_OUTPUT_LIMIT:]
        shown = "(its output is not shown: the file is secret)" if entry.secret else output
        raise TreeError(f"{entry.path}: is not valid, {entry.validate!r} returned {done.returncode}: {shown}")


def _explain(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return f"{error.filename}: is a mount point (such as a container's volume), it cannot be replaced"
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{names}: {error.strerror}"
