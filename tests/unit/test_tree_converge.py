# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A tree is brought to its declared state, or everything is as it was: on real files, with real failures."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import tree_converge
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_converge import Converger, Outcome
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_manifest import (
    Entry,
    TreeError,
    check_paths,
    digest,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UID, GID = str(os.getuid()), str(os.getgid())
OTHER = "1" if os.getuid() == 0 else UID  # only root can give files away
PLACES = ("a", "d", "d/b", "d/e", "d/e/c", "f/g")
# The calls by which apply changes the host; each is made to fail in turn.
ACTS = ("mkdir", "open", "symlink", "fchown", "fchmod", "chown", "fsync", "link", "rename", "unlink")


def entry(path: Path, content: bytes = b"", **declared: Any) -> Entry:
    """An entry owned by who runs the tests."""
    return Entry(
        **{"path": str(path), "owner": UID, "group": GID, "sha256": digest(content), "size": len(content)} | declared
    )


def converge(entries: list[Entry], *contents: bytes, **options: Any) -> Outcome:
    """Plan and apply."""
    converger = Converger(entries, owner=UID, group=GID, **options)
    try:
        converger.plan()
        return converger.apply({digest(content): content for content in contents})
    finally:
        converger.close()


def picture(root: Path) -> dict[str, tuple[Any, ...]]:
    """All that counts of what is below a directory: kind, mode, owner, content or target, and the inode of files."""
    seen: dict[str, tuple[Any, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        what: Any = None
        if stat.S_ISREG(status.st_mode):
            what = (path.read_bytes(), status.st_ino, status.st_nlink, status.st_mtime_ns)
        elif stat.S_ISLNK(status.st_mode):
            what = path.readlink()
        seen[str(path.relative_to(root))] = (kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, what)
    return seen


@contextmanager
def failing(number: int) -> Iterator[list[str]]:
    """Let the numberth changing call fail once, as on a full disk; the list has the calls made."""
    made: list[str] = []
    real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in ACTS}

    def wrap(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real[name](*args, **options)
            made.append(name)
            if len(made) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
            return real[name](*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ACTS:
            patch.setattr(tree_converge.os, name, wrap(name))
        yield made


def is_as_declared(item: Entry) -> bool:
    """Look at the host without the code under test."""
    path = Path(item.path)
    if item.state == "absent":
        return not path.exists() and not path.is_symlink()
    status = path.lstat()
    if (str(status.st_uid), str(status.st_gid)) != (item.owner, item.group):
        return False
    if item.state == "link":
        return path.is_symlink() and str(path.readlink()) == item.target
    if stat.S_IMODE(status.st_mode) != item.mode or path.is_symlink():
        return False
    return path.is_dir() if item.state == "directory" else digest(path.read_bytes()) == item.sha256


# -- any tree onto any host --------------------------------------------------------------------------------------------

CONTENTS = st.sampled_from([b"", b"one\n", b"two\n", b"\x00\xff", b"x" * 70000])
MODES = st.sampled_from([0o600, 0o640, 0o644, 0o755, 0o4755, 0o700])
BEFORE = st.dictionaries(
    st.sampled_from(PLACES),
    st.one_of(
        st.tuples(st.just("file"), CONTENTS, MODES),
        st.tuples(st.just("directory"), st.just(b""), st.sampled_from([0o755, 0o700, 0o1777])),
        st.tuples(st.just("link"), st.sampled_from([b"/nowhere", b"a"]), st.just(0)),
    ),
)
AFTER = st.dictionaries(
    st.sampled_from(PLACES),
    st.one_of(
        st.tuples(st.just("file"), CONTENTS, MODES, st.booleans()),
        st.tuples(st.just("directory"), st.just(b""), st.sampled_from([0o755, 0o700, 0o1777]), st.booleans()),
        st.tuples(st.just("link"), st.sampled_from([b"/nowhere", b"b"]), st.just(0), st.booleans()),
        st.tuples(st.just("absent"), st.just(b""), st.just(0), st.booleans()),
    ),
    min_size=1,
)


def put(root: Path, before: dict[str, tuple[str, bytes, int]]) -> None:
    """Make a host's files; what does not fit below what is there already is left out."""
    for place in sorted(before):
        kind, what, mode = before[place]
        path = root / place
        if any(parent.is_symlink() or parent.is_file() for parent in path.parents if parent != root):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "link":
            path.symlink_to(what.decode())
        elif kind == "directory":
            path.mkdir(exist_ok=True)
            path.chmod(mode)
        elif not path.exists():
            path.write_bytes(what)
            path.chmod(mode)


def declare(root: Path, after: dict[str, tuple[str, bytes, int, bool]]) -> list[Entry]:
    """Make the entries of a tree."""
    entries = []
    for place, (state, what, mode, flag) in after.items():
        if state == "file":
            entries.append(entry(root / place, what, mode=mode, owner=OTHER if flag else UID))
        elif state == "link":
            entries.append(Entry(path=str(root / place), state="link", owner=UID, group=GID, target=what.decode()))
        elif state == "directory":
            entries.append(Entry(path=str(root / place), state="directory", owner=UID, group=GID, mode=mode))
        else:
            entries.append(Entry(path=str(root / place), state="absent", recurse=flag))
    return entries


def contents_of(after: dict[str, tuple[str, bytes, int, bool]]) -> list[bytes]:
    return [what for _state, what, _mode, _flag in after.values()]


@contextmanager
def host(before: dict[str, tuple[str, bytes, int]]) -> Iterator[Path]:
    """A directory that stands for a host's root; hypothesis needs a new one for each example."""
    root = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        put(root, before)
        yield root
    finally:
        shutil.rmtree(root)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(before=BEFORE, after=AFTER)
def test_any_tree_converges_in_one_run_and_the_second_changes_nothing(
    before: dict[str, tuple[str, bytes, int]], after: dict[str, tuple[str, bytes, int, bool]]
) -> None:
    with host(before) as root:
        entries = declare(root, after)
        try:
            check_paths(entries)
        except TreeError:
            assume(False)
        was = picture(root)
        try:
            predicted = converge(entries, *contents_of(after), check=True)
        except TreeError as error:
            # What check mode refuses, the real run refuses as well, in the same words, and leaves all as it was.
            with pytest.raises(TreeError, match=re.escape(str(error))):
                converge(entries, *contents_of(after))
            assert picture(root) == was
            return
        assert picture(root) == was
        done = converge(entries, *contents_of(after))
        assert [change.entry.path for change in done.changes] == [change.entry.path for change in predicted.changes]
        assert done.created_parents == predicted.created_parents
        assert done.warnings == []
        assert all(is_as_declared(item) for item in entries)
        assert not list(root.rglob(".groundplane-*"))
        assert (picture(root) != was) == bool(done.changes)
        assert converge(entries).changes == []


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(before=BEFORE, after=AFTER, number=st.integers(1, 40))
def test_a_failure_at_any_step_leaves_all_as_it_was(
    before: dict[str, tuple[str, bytes, int]], after: dict[str, tuple[str, bytes, int, bool]], number: int
) -> None:
    with host(before) as root:
        entries = declare(root, after)
        was = picture(root)
        try:
            check_paths(entries)
            converge(entries, *contents_of(after), check=True)
        except TreeError:
            assume(False)
        with failing(number) as made:
            try:
                outcome = converge(entries, *contents_of(after))
            except TreeError as error:
                assert "could not be put back" not in str(error)  # noqa: PT017
                assert picture(root) == was
                return
        # Either nothing failed, or only the tidying afterwards, which is told and finished by the next run.
        assert len(made) < number or outcome.warnings
        assert all(is_as_declared(item) for item in entries)
        converge([*entries, entry(root / "new", b"new")], *contents_of(after), b"new")
        assert all(is_as_declared(item) for item in entries)


@pytest.mark.parametrize("state", ["directory", "absent"])
def test_a_path_inside_of_what_goes_is_refused_through_a_link_too(tmp_path: Path, state: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "d").symlink_to("a")
    entries = [entry(tmp_path / "a", state="absent", recurse=True), entry(tmp_path / "d/b", state=state, mode=0o755)]
    with pytest.raises(TreeError, match=re.escape(f"lies in {tmp_path}/a, and {tmp_path}/a is declared absent")):
        converge(entries)
    assert (tmp_path / "a").is_dir()


def test_every_step_of_one_large_change_is_undone(tmp_path: Path) -> None:
    """Not by chance: one tree that has each kind of change, with a failure at each of its calls."""
    before = {
        "a": ("file", b"one\n", 0o640),
        "d": ("directory", b"", 0o755),
        "d/b": ("link", b"/nowhere", 0),
        "d/e": ("directory", b"", 0o700),
        "d/e/c": ("file", b"gone\n", 0o600),
        "h": ("file", b"kept\n", 0o600),
    }
    entries = [
        entry(tmp_path / "a", b"two\n", mode=0o600, owner=OTHER),
        entry(tmp_path / "d", state="directory", mode=0o700, owner=OTHER),
        entry(tmp_path / "d/b", b"no link any more\n"),
        entry(tmp_path / "d/e", state="absent", recurse=True),
        entry(tmp_path / "h", b"kept\n", mode=0o644, owner=OTHER),
        entry(tmp_path / "i/j/k", b"new\n"),
        entry(tmp_path / "l", state="link", target="a"),
    ]
    contents = [b"two\n", b"no link any more\n", b"kept\n", b"new\n"]
    put(tmp_path, before)
    was = picture(tmp_path)
    number = undone = 0
    while True:
        number += 1
        with failing(number) as made:
            try:
                outcome = converge(entries, *contents)
            except TreeError as error:
                assert "No space left on device" in str(error)  # noqa: PT017
                assert "could not be put back" not in str(error)  # noqa: PT017
                assert picture(tmp_path) == was, made
                undone += 1
                continue
        break
    assert undone > 25
    assert outcome.warnings
    assert all(is_as_declared(item) for item in entries)


# -- single promises ---------------------------------------------------------------------------------------------------


def test_an_invalid_file_stops_the_whole_set_and_its_output_is_told(tmp_path: Path) -> None:
    (tmp_path / "good").write_text("old")
    entries = [
        entry(tmp_path / "bad", b"nonsense", validate="grep -H sense-of-its-own %s /dev/null"),
        entry(tmp_path / "good", b"new"),
    ]
    was = picture(tmp_path)
    with pytest.raises(TreeError, match=r"bad: is not valid, 'grep .* returned 1"):
        converge(entries, b"nonsense", b"new")
    assert picture(tmp_path) == was


def test_the_output_of_validating_a_secret_is_not_shown(tmp_path: Path) -> None:
    bad = entry(tmp_path / "bad", b"hunter2", validate="sh -c 'cat $0; exit 3' %s")
    with pytest.raises(TreeError, match="hunter2"):
        converge([bad], b"hunter2")
    with pytest.raises(TreeError, match="returned 3") as refused:
        converge([replace(bad, secret=True)], b"hunter2")
    assert "hunter2" not in str(refused.value)


def test_validation_sees_owner_mode_and_the_end_of_the_name(tmp_path: Path) -> None:
    script = tmp_path / "look"
    script.write_text('#!/bin/sh\nstat -c "%u %a" "$1" > "$0.out"; case "$1" in *.service) ;; *) exit 1;; esac\n')
    script.chmod(0o755)
    converge([entry(tmp_path / "x.service", b"u", mode=0o640, owner=OTHER, validate=f"{script} %s")], b"u")
    assert (tmp_path / "look.out").read_text() == f"{OTHER} 640\n"


def test_validation_of_a_program_that_is_not_installed_is_skipped_in_check_mode_only(tmp_path: Path) -> None:
    entries = [entry(tmp_path / "a", b"x", validate="groundplane-no-such-program %s")]
    assert converge(entries, b"x", check=True).skipped_validations == [str(tmp_path / "a")]
    with pytest.raises(TreeError, match="there is no groundplane-no-such-program on this host"):
        converge(entries, b"x")


def test_check_mode_validates_aside(tmp_path: Path) -> None:
    entries = [entry(tmp_path / "new/a", b"x", validate="grep -q y %s")]
    with pytest.raises(TreeError, match="is not valid"):
        converge(entries, b"x", check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_a_file_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "a").symlink_to("target")
    converge([entry(tmp_path / "a", b"new")], b"new")
    assert not (tmp_path / "a").is_symlink()
    assert (tmp_path / "target").read_text() == "mine"


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_a_directory_link_that_a_service_made_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/conf").symlink_to("../etc")
    converge([entry(tmp_path / "data/conf/by-root", b"fine")], b"fine")
    assert (tmp_path / "etc/by-root").read_text() == "fine"
    os.chown(tmp_path / "data/conf", 1, 1, follow_symlinks=False)
    with pytest.raises(TreeError, match="is a link made by uid 1, not followed"):
        converge([entry(tmp_path / "data/conf/passwd", b"evil")], b"evil")
    assert not (tmp_path / "etc/passwd").exists()


def test_unknown_users_are_an_error_only_when_it_counts(tmp_path: Path) -> None:
    entries = [entry(tmp_path / "a", b"x", owner="groundplane-nobody"), entry(tmp_path / "b", b"x")]
    assert len(converge(entries, b"x", check=True).changes) == 2
    with pytest.raises(TreeError, match="there is no user groundplane-nobody on this host"):
        converge(entries, b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_content_is_removed_only_when_that_is_declared(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/f").write_text("x")
    gone = entry(tmp_path / "d", state="absent")
    with pytest.raises(TreeError, match=r"is not empty \(e\)"):
        converge([gone])
    assert converge([gone, entry(tmp_path / "d/e", state="absent", recurse=True)]).warnings == []
    assert list(tmp_path.iterdir()) == []


def test_a_directory_never_becomes_a_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(TreeError, match="is a directory, cannot become a file"):
        converge([entry(tmp_path / "d", b"x")], b"x")


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".groundplane-0123456789ab-a").write_text("half")
    (tmp_path / ".groundplane-mine").write_text("not ours by name")
    converge([entry(tmp_path / "a", b"x")], b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".groundplane-mine", "a"]


def test_an_interruption_undoes_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    was = picture(tmp_path)
    converger = Converger([entry(tmp_path / name, b"new") for name in "abc"], owner=UID, group=GID)
    converger.plan()
    converger.interrupted = "SIGHUP"
    with pytest.raises(TreeError, match="interrupted by SIGHUP"):
        converger.apply({digest(b"new"): b"new"})
    converger.close()
    assert picture(tmp_path) == was


@pytest.mark.skipif(os.getuid() != 0, reason="chattr and mounts need root")
def test_a_bind_mounted_file_is_refused_before_anything_changes(tmp_path: Path) -> None:
    (tmp_path / "volume").write_text("v")
    (tmp_path / "a").write_text("old")
    (tmp_path / "mounted").touch()
    assert os.spawnlp(os.P_WAIT, "mount", "mount", "--bind", str(tmp_path / "volume"), str(tmp_path / "mounted")) == 0
    try:
        entries = [entry(tmp_path / "a", b"new"), entry(tmp_path / "mounted", b"new")]
        for check in (True, False):
            with pytest.raises(TreeError, match="mounted: is a mount point"):
                converge(entries, b"new", check=check)
        assert (tmp_path / "a").read_text() == "old"
        # What needs no new inode is possible.
        converge([entry(tmp_path / "mounted", b"v", mode=0o600)], b"v")
        assert stat.S_IMODE((tmp_path / "volume").stat().st_mode) == 0o600
    finally:
        os.spawnlp(os.P_WAIT, "umount", "umount", str(tmp_path / "mounted"))


def test_names_of_any_length_can_be_staged(tmp_path: Path) -> None:
    converge([entry(tmp_path / ("é" * 127), b"x")], b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["é" * 127]


def test_the_old_text_is_kept_for_a_diff_where_it_may_be_shown(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("old")
    (tmp_path / "secret").write_text("old")
    (tmp_path / "binary").write_bytes(b"\0")
    entries = [
        entry(tmp_path / "text", b"n"),
        entry(tmp_path / "secret", b"n", secret=True),
        entry(tmp_path / "binary", b"n"),
    ]
    changes = {
        Path(change.entry.path).name: change for change in converge(entries, b"n", check=True, diff=True).changes
    }
    assert changes["text"].before == "old"
    assert changes["secret"].before is None
    assert (changes["binary"].before, changes["binary"].before_note) == (None, "binary")
