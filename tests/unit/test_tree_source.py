# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a role declares becomes entries and contents, and what it cannot mean is refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_manifest import (
    Entry,
    TreeError,
    digest,
    pack,
    parse_mode,
    unpack,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_source import Defaults, Tree, build, scan
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Mapping


class Upper:
    """Renders by upper case."""

    def find(self, name: str) -> str:
        return f"/templates/{name}"

    def render(self, source: str, path: str, extra: Mapping[str, Any]) -> str:
        text = Path(source).read_text() if Path(source).exists() else source
        return f"{text.upper()} {path} {dict(extra)}"


def tree(root: Path | None = None, paths: dict[str, Any] | None = None, **defaults: Any) -> Tree:
    return build(scan(str(root)) if root else {}, paths or {}, Defaults(**defaults), Upper())


def test_a_directory_becomes_paths(tmp_path: Path) -> None:
    (tmp_path / "etc/x").mkdir(parents=True)
    (tmp_path / "etc/x/a.conf.j2").write_text("a")
    (tmp_path / "etc/b").write_bytes(b"\0\xff{{ no }}")
    (tmp_path / "etc/run").write_text("#!")
    (tmp_path / "etc/run").chmod(0o755)
    made = tree(tmp_path, {"/etc/b": {"mode": "0600", "group": 5}}, mode=0o640, owner="u")
    assert made.entries == [
        Entry("/etc/b", owner="u", group="5", mode=0o600, sha256=digest(b"\0\xff{{ no }}"), size=10),
        Entry("/etc/run", owner="u", mode=0o750, sha256=digest(b"#!"), size=2),
        Entry("/etc/x/a.conf", owner="u", mode=0o640, sha256=digest(b"A /etc/x/a.conf {}"), size=18),
    ]
    assert made.contents[made.entries[2].sha256] == b"A /etc/x/a.conf {}"


def test_paths_without_a_source() -> None:
    made = tree(
        paths={
            "/a": {"content": "x"},
            "/b": {"template": "t.j2", "vars": {"n": 1}, "notify": "H"},
            "/c": {"state": "directory"},
            "/d": {"state": "link", "target": "/c"},
            "/e": {"state": "absent", "recurse": True},
            "/f": {"content": "s", "secret": True},
            "/g": {"content": 5432},
        },
        directory_mode=0o750,
    )
    assert [(entry.path, entry.state) for entry in made.entries] == [
        ("/a", "file"),
        ("/b", "file"),
        ("/c", "directory"),
        ("/d", "link"),
        ("/e", "absent"),
        ("/f", "file"),
        ("/g", "file"),
    ]
    assert made.entries[2].mode == 0o750
    assert made.entries[5].mode == 0o600
    assert made.contents[made.entries[6].sha256] == b"5432"
    assert made.contents[made.entries[1].sha256] == b"/TEMPLATES/T.J2 /b {'n': 1}"
    assert made.notify == {"/b": ["H"]}


def test_a_source_can_be_left_out_or_removed(tmp_path: Path) -> None:
    for name in ("a", "b.j2"):
        (tmp_path / name).write_text(name)
    made = tree(tmp_path, {"/a": {"state": "skip", "mode": "0600"}, "/b": {"state": "absent"}})
    assert [(entry.path, entry.state) for entry in made.entries] == [("/b", "absent")]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ({"a": {"content": ""}}, "a: must be an absolute path"),
        ({"/a/../b": {"content": ""}}, "/a/../b: must be an absolute path"),
        ({"/a/": {"state": "directory"}}, "/a/: must be an absolute path"),
        ({"/a": {"contents": ""}}, "/a: unknown key contents; known are before_packages, content, group"),
        ({"/a": {"state": "present"}}, "/a: unknown state present; known are file, directory, link, absent, skip"),
        ({"/a": {"state": "directory", "content": ""}}, "/a: content says nothing for state directory"),
        ({"/a": {"state": "absent", "mode": "0600"}}, "/a: mode says nothing for state absent"),
        ({"/a": {}}, "/a: has no source file, and neither content, template nor another state is declared"),
        ({"/a": {"content": {"b": 1}}}, "/a: content must be text, not dict; use to_nice_json or to_nice_yaml"),
        ({"/a": {"content": True}}, "/a: content must be text, not bool; use to_nice_json or to_nice_yaml"),
        ({"/a": {"content": "", "template": "b"}}, "/a: content and template exclude each other"),
        ({"/a": {"content": "", "mode": 0o644}}, '/a: mode must be a quoted octal string such as "0640", not 420'),
        ({"/a": {"content": "", "mode": "rw"}}, "/a: mode must be a quoted octal string"),
        ({"/a": {"content": "", "secret": "yes"}}, "/a: secret must be true or false, not 'yes'"),
        ({"/a": {"content": "", "owner": None}}, "/a: owner must be text, not NoneType"),
        ({"/a": {"content": "", "validate": "true"}}, "/a: validate needs a %s"),
        ({"/a": {"content": "", "validate": "%s"}}, "/a: validate needs a %s"),
        ({"/a": {"content": "", "validate": "t '%s"}}, "/a: validate cannot be split into words"),
        ({"/a": {"content": "", "notify": [1]}}, "/a: notify must be the name of a handler"),
        ({"/a": {"state": "link"}}, "/a: a link needs a target"),
        ({"/a": {"content": ""}, "/a/b": {"content": ""}}, "/a/b: declared below /a, which is declared as file"),
        (
            {"/a": {"state": "absent"}, "/a/b/c": {"content": ""}},
            "/a/b/c: declared below /a, which is declared as absent",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(paths: dict[str, Any], message: str) -> None:
    with pytest.raises(TreeError, match=re.escape(message)):
        tree(paths=paths)


def test_two_sources_of_one_path_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "a.j2").touch()
    with pytest.raises(TreeError, match=r"/a: both .* and .* make it"):
        scan(str(tmp_path))


def test_links_among_the_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("/etc/passwd")
    with pytest.raises(TreeError, match="only files and directories"):
        scan(str(tmp_path))


def test_a_directory_that_is_a_file_below_the_sources_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(TreeError, match=r"/a: is a directory, but .* is a file for it"):
        tree(tmp_path, {"/a": {"state": "directory"}})


@given(st.lists(st.binary(max_size=2000), max_size=8))
def test_contents_survive_the_way(contents: list[bytes]) -> None:
    by_name = {digest(content): content for content in contents}
    index, stream = pack(by_name)
    assert unpack(index, stream) == by_name


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=4), st.data())
def test_a_cut_stream_is_noticed(contents: list[bytes], data: st.DataObject) -> None:
    index, stream = pack({digest(content): content for content in contents})
    with pytest.raises(TreeError, match="did not arrive whole"):
        unpack(index, stream[: data.draw(st.integers(1, len(stream) - 1))])


@given(st.integers(0, 0o7777))
def test_modes_are_read_as_octal(mode: int) -> None:
    assert parse_mode(f"{mode:04o}", "x") == mode


def test_an_entry_of_another_version_is_refused() -> None:
    with pytest.raises(TreeError, match="not of this version"):
        Entry.from_dict({"path": "/a", "acl": "u::rwx"})
