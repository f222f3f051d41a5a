# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images that are made without an engine: what describes them, and that the same content gives the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "lab/artifacts"))

import oci

IMAGE = {"tag": "1", "user": "0", "product": "tool", "files": {"/tool": "tool"}, "entrypoint": ["/tool"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": ""}, "probe: has no tag"),
        ({"user": None}, "probe: has no user"),
        ({"cmd": []}, "probe: unknown key cmd; known are command, entrypoint, env, files, links"),
        ({"entrypoint": "/tool"}, "probe: entrypoint must be a list"),
        ({"env": ["A=1"]}, "probe: env must be a dict"),
        ({"files": {"tool": "tool"}}, "probe: tool is no plain absolute path"),
        ({"links": {"/bin/../x": "y"}}, "probe: /bin/../x is no plain absolute path"),
        ({"product": ""}, "probe: its files are a product's, and it names none"),
        ({"product": "", "files": {}, "tag": "v{version}"}, "probe: its tag is the version of a product"),
        ({"package_files": {"a": ["/b"]}}, "probe: takes files of packages and has no packages to put them on"),
    ],
)
def test_a_wrong_description_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(oci.ImageError) as caught:
        oci.parse_images({"probe": {**IMAGE, **change}})
    assert str(caught.value).startswith(message)


def test_descriptions_are_read_in_order() -> None:
    images = oci.parse_images({"b": IMAGE, "a": {**IMAGE, "env": {"B": "2", "A": "1"}}})
    assert [image.name for image in images] == ["a", "b"]
    assert images[0].env == (("A", "1"), ("B", "2"))
    for wrong in ([], None, {"a": []}):
        with pytest.raises(oci.ImageError, match="is not a dictionary"):
            oci.parse_images(wrong)


def sources(directory: Path) -> list[oci.Entry]:
    """A program, a directory of data and a link, as entries."""
    (directory / "data/below").mkdir(parents=True)
    (directory / "data/below/file").write_text("data")
    (directory / "program").write_bytes(b"program")
    return [
        *oci.file_entries("/usr/bin/program", directory / "program"),
        *oci.file_entries("/srv/data", directory / "data"),
        oci.Entry("/usr/bin/other", target="program"),
        *oci.accounts(),
    ]


def test_a_layer_is_a_function_of_its_entries(tmp_path: Path) -> None:
    first = oci.write_layer(sources(tmp_path / "one"), tmp_path / "a")
    (tmp_path / "one/program").touch()
    second = oci.write_layer(reversed(sources(tmp_path / "two")), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (first.digest, first.diff_id, first.size) == (second.digest, second.diff_id, second.size)
    packed = (tmp_path / "a").read_bytes()
    assert first.digest == hashlib.sha256(packed).hexdigest()
    assert first.diff_id == hashlib.sha256(gzip.decompress(packed)).hexdigest()
    assert first.size == len(packed)


def test_a_layer_holds_what_it_is_told_and_all_above(tmp_path: Path) -> None:
    oci.write_layer(sources(tmp_path / "one"), tmp_path / "layer")
    with tarfile.open(tmp_path / "layer") as archive:
        members = {member.name: member for member in archive.getmembers()}
        program = archive.extractfile("usr/bin/program")
        assert program
        assert program.read() == b"program"
    assert list(members) == sorted(members)
    assert {"usr", "usr/bin", "srv", "srv/data/below/file", "etc/passwd"} <= set(members)
    assert oct(members["usr/bin/program"].mode) == "0o755"
    assert oct(members["srv/data/below/file"].mode) == "0o644"
    assert oct(members["tmp"].mode) == "0o1777"
    assert members["usr/bin/other"].linkname == "program"
    assert {(member.mtime, member.uid, member.gid) for member in members.values()} == {(0, 0, 0)}


def test_of_two_entries_for_a_path_the_last_is_it(tmp_path: Path) -> None:
    oci.write_layer([oci.text_entry("/a", "one"), oci.text_entry("/a", "two")], tmp_path / "layer")
    with tarfile.open(tmp_path / "layer") as archive:
        stream = archive.extractfile("a")
        assert stream
        assert stream.read() == b"two"


def test_an_archive_names_all_that_it_holds(tmp_path: Path) -> None:
    image = oci.Image("probe", "1", "65532", entrypoint=("/tool",), env=(("MODE", "x"),))
    layers = [oci.write_layer([oci.text_entry("/file", text)], tmp_path / text) for text in ("one", "two")]
    config = oci.config_of(image, layers, "amd64")
    digest = oci.write_archive(tmp_path / "a", config, layers, "test/probe", "1")
    assert oci.write_archive(tmp_path / "b", config, layers, "test/probe", "1") == digest
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with tarfile.open(tmp_path / "a") as archive:
        blobs = {
            member.name: stream.read() for member in archive.getmembers() if (stream := archive.extractfile(member))
        }
    index = json.loads(blobs.pop("index.json"))
    assert json.loads(blobs.pop("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
    assert {name: f"blobs/sha256/{hashlib.sha256(content).hexdigest()}" for name, content in blobs.items()} == {
        name: name for name in blobs
    }
    (named,) = index["manifests"]
    assert named["digest"] == digest
    assert named["annotations"]["org.opencontainers.image.ref.name"] == "1"
    manifest = json.loads(blobs[f"blobs/{digest.replace(':', '/')}"])
    assert [layer["digest"] for layer in manifest["layers"]] == [f"sha256:{layer.digest}" for layer in layers]
    described = json.loads(blobs[f"blobs/{manifest['config']['digest'].replace(':', '/')}"])
    assert described["config"] == {
        "User": "65532",
        "Env": [f"PATH={oci.SEARCH_PATH}", "MODE=x"],
        "Entrypoint": ["/tool"],
        "WorkingDir": "/",
    }
    assert described["rootfs"]["diff_ids"] == [f"sha256:{layer.diff_id}" for layer in layers]
