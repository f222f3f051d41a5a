# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives become directories: exactly what is in them, all or nothing, wherever a run ends.

Archives, directories and processes that are killed are real; an archive is fetched by a `file:` URL.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import artifact as library
from ansible_collections.groundplane.onprem.plugins.module_utils import artifact_archive as archives
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LABEL = "tool 1.2"
OLD = {"libs/a.jar": b"old a\n" * 50, "libs/deep/b.jar": b"old b\n", "bin/run": b"#!/bin/sh\n", "LICENSE": b""}
NEW = {"libs/a.jar": b"new a\n" * 50, "libs/c.jar": b"new c\n", "bin/run": b"#!/bin/sh\n"}
EMPTY = "libs/empty"
SETTLED_SECONDS = library._TICK_NS / 1e9 + 0.02


def member(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644) -> tarfile.TarInfo:
    """A member of an archive, as it is read from one."""
    made = tarfile.TarInfo(name)
    made.type, made.mode = kind, mode
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        made.linkname = "libs/a.jar"
    return made


def write_archive(path: Path, files: dict[str, bytes], *more: tarfile.TarInfo, how: str = "w") -> str:
    """Write an archive; its SHA-256. Directories of files are no members; one empty directory is."""
    with tarfile.open(path, how) as archive:
        for name, content in files.items():
            entry = member(name, mode=0o755 if name.startswith("bin/") else 0o600)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in (member(EMPTY, tarfile.DIRTYPE), *more):
            archive.addfile(entry)
    return library.file_digest(str(path))


class Host:
    """A place to unpack in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.opt = directory / "opt"
        self.dest = self.opt / "1.2"
        self.record = directory / "record.json"
        self.opt.mkdir()
        self.item: dict[str, Any] = {
            "label": LABEL,
            "dest": str(self.dest),
            "owner": str(os.getuid()),
            "group": str(os.getgid()),
            "mode": "0755",
        }
        self.offer(OLD)

    def offer(self, files: dict[str, bytes], *more: tarfile.TarInfo, how: str = "w") -> str:
        """What the inventory and the mirror have now; its SHA-256."""
        archive = self.directory / "offered.tar"
        sha256 = write_archive(archive, files, *more, how=how)
        self.item |= {"url": archive.as_uri(), "accepted": [sha256]}
        return sha256

    def run(self, *, check: bool = False) -> archives.Outcome:
        """One run of the module."""
        record = library.Record(str(self.record))
        outcome = archives.converge(self.item, record, "", check=check)
        if not check:
            record.save()
        return outcome

    def refused(self, *, check: bool = False) -> str:
        """Why a run is refused."""
        with pytest.raises(library.ArtifactError) as caught:
            self.run(check=check)
        assert str(caught.value).startswith(f"{LABEL}: ")
        return str(caught.value)

    def tree(self) -> dict[str, bytes | None]:
        """Files with their content, and directories, below dest."""
        paths = self.dest.rglob("*")
        return {str(path.relative_to(self.dest)): path.read_bytes() if path.is_file() else None for path in paths}

    def beside(self) -> list[str]:
        """What is where dest is."""
        return sorted(path.name for path in self.opt.iterdir())


def whole(files: dict[str, bytes]) -> dict[str, bytes | None]:
    """The tree that an archive of these files becomes."""
    directories = {str(parent) for name in (*files, f"{EMPTY}/x") for parent in Path(name).parents} - {"."}
    return {**files, **dict.fromkeys(directories)}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with nothing on it."""
    return Host(tmp_path)


# -------------------------------------------------------------------------------------------------------------- members


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("/etc/passwd", tarfile.REGTYPE, "is an absolute path"),
        ("//x", tarfile.DIRTYPE, "is an absolute path"),
        ("../x", tarfile.REGTYPE, "leads out of its directory"),
        ("libs/../../x", tarfile.REGTYPE, "leads out of its directory"),
        ("libs/..", tarfile.DIRTYPE, "leads out of its directory"),
        ("x", tarfile.SYMTYPE, "is a link"),
        ("x", tarfile.LNKTYPE, "is a link"),
        ("x", tarfile.CHRTYPE, "is a device, or no file of any kind known"),
        ("x", tarfile.BLKTYPE, "is a device, or no file of any kind known"),
        ("x", tarfile.FIFOTYPE, "is a device, or no file of any kind known"),
        ("a\nb", tarfile.REGTYPE, "has a name that no list of checksums can hold"),
        ("a\\b", tarfile.REGTYPE, "has a name that no list of checksums can hold"),
        (" a", tarfile.REGTYPE, "has a name that no list of checksums can hold"),
        ("a\udcff", tarfile.REGTYPE, "has a name that no list of checksums can hold"),
    ],
)
def test_what_is_no_plain_file_below_the_directory_is_refused_by_name(name: str, kind: bytes, why: str) -> None:
    with pytest.raises(library.ArtifactError) as caught:
        archives.member_path(LABEL, member(name, kind))
    assert str(caught.value) == f"{LABEL}: its archive's member {name!a} {why}; nothing was installed"


PARTS = st.one_of(st.sampled_from(["", ".", "..", "libs", " ", "\u2028", "#"]), st.text(max_size=4))


@settings(deadline=None)
@given(st.lists(PARTS, max_size=5).map("/".join))
def test_whatever_a_member_is_called_it_lies_below_the_directory_and_is_found_in_the_manifest(name: str) -> None:
    try:
        path = archives.member_path(LABEL, member(name))
        files, directories = archives.contents(LABEL, [member(name)])
    except library.ArtifactError as error:
        assert str(error).startswith(f"{LABEL}: ")  # noqa: PT017 - either way is right, but not any
        return
    assert os.path.normpath(f"/dest/{path}").startswith("/dest/")
    assert set(files) == {path}
    written = archives.Manifest("a" * 64, dict.fromkeys(files, "b" * 64), directories, frozenset({path}))
    assert archives.parse_manifest(written.text(), "x") == written


def test_two_members_are_not_one() -> None:
    with pytest.raises(library.ArtifactError, match="has the member a twice"):
        archives.contents(LABEL, [member("a"), member("./a")])
    for odd in ([member("a"), member("a/b")], [member("a", tarfile.DIRTYPE), member("a")], [member(".")]):
        with pytest.raises(library.ArtifactError, match="is both a file and a directory"):
            archives.contents(LABEL, odd)


def test_a_refused_member_leaves_nothing_and_what_was_there(host: Host) -> None:
    host.run()
    for odd in (member("x", tarfile.SYMTYPE), member("../x"), member("/x")):
        host.offer(NEW, odd)
        assert odd.name in host.refused()
        assert host.tree() == whole(OLD)
        assert host.beside() == ["1.2", "1.2.manifest"]


def test_what_is_no_archive_is_refused(host: Host) -> None:
    (host.directory / "offered.tar").write_bytes(b"no archive")
    host.item["accepted"] = [hashlib.sha256(b"no archive").hexdigest()]
    assert "cannot be unpacked: " in host.refused()
    assert host.beside() == []


# --------------------------------------------------------------------------------------------------------- first, again


@pytest.mark.parametrize("how", ["w", "w:gz", "w:xz"])
def test_an_archive_becomes_exactly_what_is_in_it_once(host: Host, how: str) -> None:
    sha256 = host.offer(OLD, how=how)
    predicted = host.run(check=True)
    assert host.beside() == []
    assert host.run() == predicted == archives.Outcome(changed=True, before="", after=sha256, faults=[])
    assert host.tree() == whole(OLD)
    assert host.beside() == ["1.2", "1.2.manifest"]
    for check in (True, False):
        assert host.run(check=check) == archives.Outcome(changed=False, before=sha256, after=sha256, faults=[])


def test_a_second_run_fetches_nothing_and_reads_no_file(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.run()
    time.sleep(SETTLED_SECONDS)
    host.run()
    (host.directory / "offered.tar").unlink()
    read: list[str] = []
    monkeypatch.setattr(library, "file_digest", lambda path: read.append(path) or "")
    assert host.run().changed is False
    assert read == []


def test_the_manifest_is_a_list_that_sha256sum_checks(host: Host) -> None:
    host.run()
    command = ["sha256sum", "--check", "--strict", "--warn", "../1.2.manifest"]
    done = subprocess.run(command, cwd=host.dest, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) - {"OK"} == {f"{name}:" for name in OLD}
    (host.dest / "bin/run").write_bytes(b"x")
    assert subprocess.run(command, cwd=host.dest, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("how", ["w", "w:gz"])
def test_another_release_takes_the_place_of_the_old_one(host: Host, how: str) -> None:
    old = host.run().after
    new = host.offer(NEW, how=how)
    assert host.run(check=True) == archives.Outcome(changed=True, before=old, after=new, faults=[])
    assert host.tree() == whole(OLD)
    assert host.run() == archives.Outcome(changed=True, before=old, after=new, faults=[])
    assert host.tree() == whole(NEW)
    assert host.beside() == ["1.2", "1.2.manifest"]


def test_an_archive_with_another_checksum_is_not_unpacked(host: Host) -> None:
    host.item["accepted"] = ["0" * 64]
    assert f"not {'0' * 64}; nothing was installed" in host.refused()
    assert host.beside() == []


@pytest.mark.parametrize(("mode", "plain"), [("0755", 0o644), ("0750", 0o640), ("700", 0o600), ("0555", 0o444)])
def test_a_mode_is_that_of_directories_and_programs(host: Host, mode: str, plain: int) -> None:
    host.item["mode"] = mode
    umask = os.umask(0o077)
    try:
        host.run()
    finally:
        os.umask(umask)
    modes = {str(path.relative_to(host.dest)): path.stat().st_mode & 0o7777 for path in host.dest.rglob("*")}
    directories = {name for name, content in whole(OLD).items() if content is None}
    assert {modes[name] for name in (*directories, "bin/run")} == {int(mode, 8)}
    assert {modes[name] for name in OLD if name != "bin/run"} == {plain}
    assert host.dest.stat().st_mode & 0o7777 == int(mode, 8)
    assert host.run().changed is False
    host.item["mode"] = "0711"
    assert host.run(check=True).faults[:2] == ["mode .", "mode bin"] if plain == 0o600 else ["mode .", "mode LICENSE"]
    assert host.run().changed is True
    assert host.run().changed is False


@pytest.mark.parametrize("mode", ["0644", "0754", "u=rwx", "493", "04755", "0", "0000", "0712"])
def test_a_mode_that_makes_no_directory_is_refused(host: Host, mode: str) -> None:
    host.item["mode"] = mode
    assert host.refused(check=True) == host.refused()
    assert host.beside() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_all_belongs_to_the_owner_but_the_manifest(host: Host) -> None:
    host.item |= {"owner": "nobody", "group": "12345"}
    host.run()
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in (host.dest, *host.dest.rglob("*"))}
    assert owners == {(65534, 12345)}
    status = archives.manifest_of(host.dest).stat()
    assert (status.st_uid, status.st_mode & 0o7777) == (0, 0o644)
    os.chown(host.dest / "LICENSE", 0, 12345)
    assert host.run(check=True).faults == ["owner LICENSE"]


def test_an_owner_that_is_not_there_yet_is_no_obstacle_for_check_mode(host: Host) -> None:
    host.run()
    host.item["owner"] = "no-such-user"
    assert host.run(check=True).changed is True
    assert host.refused() == f"{LABEL}: there is no owner no-such-user on this host"


# ------------------------------------------------------------------------------------------------------ what is foreign


def foreign_directory(host: Host) -> None:
    host.dest.mkdir()
    (host.dest / "mine").write_text("x")


def foreign_file(host: Host) -> None:
    host.dest.write_text("x")


def foreign_link(host: Host) -> None:
    (host.opt / "elsewhere").mkdir()
    host.dest.symlink_to("elsewhere")


def foreign_manifest(host: Host) -> None:
    archives.manifest_of(host.dest).write_text("x")


def linked_manifest(host: Host) -> None:
    host.run()
    archives.manifest_of(host.dest).rename(host.opt / "real")
    archives.manifest_of(host.dest).symlink_to("real")


def writable_manifest(host: Host) -> None:
    host.run()
    archives.manifest_of(host.dest).chmod(0o666)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (foreign_directory, "is not empty and was not unpacked by this module, there is no"),
        (foreign_file, "is not a directory; it is left alone"),
        (foreign_link, "is not a directory; it is left alone"),
        (foreign_manifest, "was not written by this module; it is left alone"),
        (linked_manifest, "was not written by this module; it is left alone"),
        (writable_manifest, "was not written by this module; it is left alone"),
    ],
)
def test_what_is_not_ours_is_left_alone(host: Host, make: Callable[[Host], None], why: str) -> None:
    make(host)
    before = {path: path.lstat() for path in host.opt.rglob("*")}
    assert why in host.refused(check=True)
    assert why in host.refused()
    assert {path: path.lstat() for path in host.opt.rglob("*")} == before


def test_an_empty_directory_is_taken(host: Host) -> None:
    host.dest.mkdir()
    assert host.run().changed is True
    assert host.tree() == whole(OLD)


@pytest.mark.parametrize("dest", ["relative", "/", "/opt/..", "/opt/../x"])
def test_a_dest_without_a_place_beside_it_is_refused(host: Host, dest: str) -> None:
    host.item["dest"] = dest
    assert "is not the absolute path of a directory" in host.refused(check=True)


def test_the_directory_above_is_there(host: Host) -> None:
    host.item["dest"] = str(host.opt / "none/1.2")
    assert host.run(check=True).changed is True
    assert host.refused() == f"{LABEL}: {host.opt}/none is not there"


def test_two_runs_do_not_unpack_at_once(host: Host) -> None:
    descriptor = os.open(host.opt, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert host.refused() == f"{LABEL}: another run unpacks in {host.opt}; wait for it"
    os.close(descriptor)
    assert host.run().changed is True


# --------------------------------------------------------------------------------------------------------- what changed


def flip(path: Path) -> None:
    """Flip one bit, without touching size or time."""
    status = path.stat()
    content = bytearray(path.read_bytes() or b"x")
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_link(path: Path) -> None:
    """A link to the very same, elsewhere."""
    opt = next(parent for parent in path.parents if parent.name == "opt")
    aside = Path(tempfile.mkdtemp(dir=opt.parent), "aside")
    path.rename(aside)
    path.symlink_to(aside)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_file(path: Path) -> None:
    shutil.rmtree(path)
    path.touch()


FILE_CHANGES: list[Callable[[Path], object]] = [
    flip,
    Path.unlink,
    replace_by_link,
    replace_by_directory,
    replace_by_pipe,
    lambda path: path.chmod(0o666),
    lambda path: path.rename(path.with_name("another")),
    lambda path: path.write_bytes(path.read_bytes() + b"\n"),
]
DIRECTORY_CHANGES: list[Callable[[Path], object]] = [
    shutil.rmtree,
    replace_by_link,
    replace_by_file,
    lambda path: path.chmod(0o700),
    lambda path: (path / "added").touch(),
    lambda path: (path / "added").mkdir(),
    lambda path: (path / ".hidden").symlink_to("."),
    lambda path: Path(os.fsdecode(bytes(path) + b"/\xff\n")).touch(),
    lambda path: (path / "added/deep").mkdir(parents=True),
]
CHANGES = st.one_of(
    st.tuples(st.sampled_from(sorted(OLD)), st.sampled_from(FILE_CHANGES)),
    st.tuples(st.sampled_from(["libs", "libs/deep", "bin", EMPTY]), st.sampled_from(DIRECTORY_CHANGES)),
    st.tuples(st.just("."), st.sampled_from(DIRECTORY_CHANGES[3:])),
)


@pytest.fixture(scope="module")
def settled() -> Iterator[Host]:
    """A host on which the archive is unpacked, for many changes in turn."""
    with tempfile.TemporaryDirectory() as directory:
        made = Host(Path(directory))
        made.run()
        yield made


@settings(deadline=None, max_examples=30)
@given(change=CHANGES)
def test_any_change_of_the_directory_is_found_predicted_and_repaired(
    settled: Host, change: tuple[str, Callable[[Path], object]]
) -> None:
    # The record holds every file, so that a change is found in spite of it.
    time.sleep(SETTLED_SECONDS)
    assert settled.run() == settled.run(check=True)
    place, make = change
    make(settled.dest / place)
    predicted = settled.run(check=True)
    assert predicted.changed is True
    assert predicted.faults
    assert all(fault.isprintable() for fault in predicted.faults)
    assert settled.run() == predicted
    assert settled.tree() == whole(OLD)
    assert settled.run().changed is False
    assert settled.beside() == ["1.2", "1.2.manifest"]


def test_each_difference_is_named_and_a_reader_is_spared_the_rest(host: Host) -> None:
    host.run()
    flip(host.dest / "libs/a.jar")
    (host.dest / "bin/run").unlink()
    (host.dest / "libs/more/and").mkdir(parents=True)
    (host.dest / "LICENSE").chmod(0o600)
    assert host.run(check=True).faults == ["mode LICENSE", "changed libs/a.jar", "added libs/more", "missing bin/run"]
    for number in range(30):
        (host.dest / f"{number:02}").touch()
    shown = archives.shown(host.run(check=True).faults)
    assert len(shown) == archives.FAULTS_SHOWN + 1
    assert shown[-1] == "and 14 more"


def test_a_directory_that_is_gone_is_unpacked_again(host: Host) -> None:
    host.run()
    shutil.rmtree(host.dest)
    assert host.run(check=True).changed is True
    assert host.run().before == ""
    assert host.tree() == whole(OLD)


def test_a_manifest_that_cannot_be_read_is_made_again(host: Host) -> None:
    sha256 = host.run().after
    manifest = archives.manifest_of(host.dest)
    text = manifest.read_text()
    manifest.write_text(text + "what is this\n")
    predicted = host.run(check=True)
    assert predicted == archives.Outcome(changed=True, before="", after=sha256, faults=["changed ../1.2.manifest"])
    assert host.run() == predicted
    assert manifest.read_text() == text


@pytest.mark.parametrize("kept", range(0, 400, 57))
def test_a_manifest_that_was_cut_off_is_made_again(host: Host, kept: int) -> None:
    host.run()
    manifest = archives.manifest_of(host.dest)
    text = manifest.read_text()
    manifest.write_text(text[:kept])
    if kept < len(archives._HEADER) + 64:
        assert "was not written by this module" in host.refused()
        return
    predicted = host.run(check=True)
    assert predicted.faults
    assert host.run() == predicted
    assert manifest.read_text() == text
    assert host.tree() == whole(OLD)


# -------------------------------------------------------------------------------------------------------- interruptions


# Names of what is removed are below a descriptor.
NAMELESS = frozenset({"os.remove", "os.rmdir"})
STEPS = frozenset({"os.mkdir", "os.rename", *NAMELESS})


def killed_at(host: Host, step: int) -> bool:
    """Run in a process that is ended before its so-manieth step on the file system; whether it came that far."""
    child = os.fork()
    if child == 0:
        left = [step]

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event in STEPS or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
            if writes and (event in NAMELESS or str(host.opt) in str(arguments)):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        sys.addaudithook(hook)
        try:
            host.run()
        except BaseException:  # noqa: BLE001 - nothing of a child may come back into the test's process
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


def nothing(host: Host) -> None:
    """The first run on a host."""


def older(host: Host) -> None:
    """Another release is there, and somebody changed it."""
    host.run()
    flip(host.dest / "libs/a.jar")


@pytest.mark.parametrize("make", [nothing, older])
def test_a_run_that_is_killed_anywhere_leaves_the_old_or_the_new_and_the_next_one_ends_it(
    tmp_path: Path, make: Callable[[Host], None]
) -> None:
    step, killed = 0, True
    states = set()
    while killed:
        directory = tmp_path / str(step)
        directory.mkdir()
        host = Host(directory)
        make(host)
        before = host.tree() if host.dest.exists() else None
        host.offer(NEW)
        killed = killed_at(host, step)
        found = host.tree() if host.dest.exists() else None
        assert found in (None, before, whole(NEW))
        if found is None and before is not None:
            # Between two renames; nothing was removed.
            replaced = archives.beside(host.dest, "replaced")
            assert len([path for path in replaced.rglob("*") if path.is_file()]) == len(
                [content for content in before.values() if content is not None]
            )
        states.add("none" if found is None else "new" if found == whole(NEW) else "old")
        predicted = host.run(check=True)
        outcome = host.run()
        assert outcome.changed == predicted.changed == (found != whole(NEW))
        assert host.tree() == whole(NEW)
        assert host.beside() == ["1.2", "1.2.manifest"]
        assert host.run().changed is False
        step += 1
    assert states >= ({"none", "new"} if before is None else {"none", "old", "new"})
    assert step > 10


def test_a_swap_that_was_broken_off_is_undone_even_if_the_mirror_is_gone(host: Host) -> None:
    old = host.run().after
    host.dest.rename(archives.beside(host.dest, "replaced"))
    assert host.run(check=True).changed is True
    host.item["url"] = (host.directory / "none").as_uri()
    assert host.run() == archives.Outcome(changed=True, before=old, after=old, faults=[])
    host.dest.rename(archives.beside(host.dest, "replaced"))
    host.item["accepted"] = ["0" * 64]
    host.refused()
    assert host.tree() == whole(OLD)


def test_a_swap_that_fails_is_undone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.run()
    host.offer(NEW)
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if "unpacking" in path.name:
            raise OSError(28, "No space left on device", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="No space left"):
        host.run()
    assert host.tree() == whole(OLD)
    assert host.beside() == ["1.2", "1.2.manifest"]
    monkeypatch.undo()
    assert host.run().changed is True
    assert host.tree() == whole(NEW)
