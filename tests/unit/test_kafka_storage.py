# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Storage of Kafka: ids, what directories in all mixtures mean, and that nothing with content is ever formatted."""

from __future__ import annotations

import base64
import fcntl
import grp
import json
import os
import pwd
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import kafka_storage
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_storage import (
    Asked,
    Controller,
    Directory,
    Mark,
    StorageError,
    check,
    directories,
    directory_id,
    is_id,
    judge,
    meta,
    new_cluster_id,
    observe,
    order,
    read_mark,
)
from ansible_collections.groundplane.onprem.plugins.modules import kafka_storage as module
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
ONE, OTHER = "kBpdXWZ2Qn-0vWJkB1cLmQ", "5L6g3nShT-eMCtK--X86sw"
CONTROLLERS = (Controller(1, "c1", 9093), Controller(2, "c2", 9093), Controller(3, "::1", 9093))
CHECKPOINT = "00000000000000000000-0000000000"
EXPECTED = ["fu6KLSkaqOFyFz6STJk6Sg", "jgNlB1VQ5WiEoLZ8zy5stQ", "B24W8LQgf7mjJ1XB0aJUBQ"]
"""Directory ids of the three controllers of the cluster."""
AGAIN = "formatted again by the way: set it up anew as docs/runbooks/kafka.md says"
ids = st.binary(min_size=16, max_size=16).map(lambda value: base64.urlsafe_b64encode(value).decode().rstrip("="))
cluster_ids = ids.filter(is_id)


# ----------------------------------------------------------------------------------------------------------------- ids


@given(st.one_of(ids, st.text(alphabet="AQgwz09-_+/=\n ", max_size=24), st.text(max_size=24)))
def test_an_id_is_what_kafka_would_write_of_16_bytes(text: str) -> None:
    if is_id(text):
        value = base64.urlsafe_b64decode(f"{text}==")
        assert len(value) == 16
        assert base64.urlsafe_b64encode(value).decode() == f"{text}=="
        assert not text.startswith("-")
        assert int.from_bytes(value[:8], "big") != 0


@given(st.binary(min_size=16, max_size=16))
def test_of_all_bytes_but_reserved_ones_there_is_an_id(value: bytes) -> None:
    text = base64.urlsafe_b64encode(value).decode().rstrip("=")
    assert is_id(text) == (value[0] >> 2 != 62 and any(value[:8]))


@pytest.mark.parametrize("number", [*range(100), 2**63, 2**64 - 1])
def test_what_kafka_reserves_is_no_id(number: int) -> None:
    assert not is_id(base64.urlsafe_b64encode(number.to_bytes(16, "big")).decode().rstrip("="))


@pytest.mark.parametrize(
    "text", ["", ONE[:-1], f"{ONE}A", f"{ONE}==", f"{ONE[:-1]}R", f"-{ONE[1:]}", f"{ONE[:-1]} ", f"{ONE[:5]}+{ONE[6:]}"]
)
def test_what_is_no_id(text: str) -> None:
    assert not is_id(text)


def test_new_ids_are_ids_and_differ() -> None:
    found = {new_cluster_id() for _ in range(2000)}
    assert len(found) == 2000
    assert all(map(is_id, found))


def test_a_directory_id_is_the_same_for_ever() -> None:
    """Another derivation would give a half-formed cluster another list of voters."""
    assert [directory_id(ONE, node) for node in (1, 2, 3)] == EXPECTED


@given(cluster_ids, st.sets(st.integers(0, 2**31 - 1), min_size=1, max_size=9))
def test_directory_ids_are_ids_and_differ(cluster_id: str, nodes: set[int]) -> None:
    found = [directory_id(cluster_id, node) for node in nodes]
    assert all(map(is_id, found))
    assert len(set(found)) == len(nodes)
    assert found == [directory_id(cluster_id, node) for node in nodes]


@given(cluster_ids, cluster_ids, st.integers(0, 9))
def test_directory_ids_of_two_clusters_differ(one: str, other: str, node: int) -> None:
    assert (directory_id(one, node) == directory_id(other, node)) == (one == other)


def test_what_is_derived_is_skipped_when_it_is_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    first = directory_id(ONE, 1)
    monkeypatch.setattr(kafka_storage, "is_id", lambda text: text != first and is_id(text))
    second = directory_id(ONE, 1)
    assert second != first
    assert is_id(second)


# ------------------------------------------------------------------------------------------------------ what is asked


def test_directories() -> None:
    assert directories(["/a/", "/b//c"], None) == (("/a", "/b/c"), "/a")
    assert directories(["/a", "/b"], "/b") == (("/a", "/b"), "/b")
    assert directories(["/a"], "/m") == (("/a", "/m"), "/m")


@pytest.mark.parametrize(
    ("log", "metadata", "says"),
    [
        ([], None, "at least one"),
        ([], "/m", "at least one"),
        (["a"], None, "a: a log directory is an absolute path"),
        (["/a,/b"], None, "/a,/b: a log directory"),
        (["/a b"], None, "/a b: a log directory"),
        (["/a\nlog.dirs=/b"], None, "a log directory"),
        (["/"], None, "/: a log directory"),
        (["/a", "/a/"], None, "is there twice"),
        (["/a", "/a/b"], None, "/a/b lies in /a"),
        (["/a/b"], "/a", "/a/b lies in /a"),
    ],
)
def test_directories_that_cannot_be_meant(log: list[str], metadata: str | None, says: str) -> None:
    with pytest.raises(StorageError, match=says):
        directories(log, metadata)


def asked(*paths: str, **more: Any) -> Asked:
    """The first controller of three, unless it is said otherwise."""
    found: dict[str, Any] = {
        "directories": paths or ("/a",),
        "metadata_directory": (paths or ("/a",))[0],
        "cluster_id": ONE,
        "node_id": 1,
        "role": "controller",
        "controllers": CONTROLLERS,
    }
    return Asked(**{**found, **more})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"role": "broker", "controllers": (), "node_id": 11},
        {"controllers": ()},
        {"role": None, "node_id": None, "cluster_id": None},
    ],
)
def test_what_can_be_meant(more: dict[str, Any]) -> None:
    check(asked(**more))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"cluster_id": "x"}, "cluster_id x: is not 22 characters"),
        ({"cluster_id": f"-{ONE[1:]}"}, "is not 22 characters"),
        ({"node_id": -1}, "node_id -1: is negative"),
        ({"node_id": 4}, "node 4 is not among the initial voters"),
        ({"role": "broker"}, "a broker is formatted without"),
        ({"listener": "controller"}, "controller_listener controller"),
        ({"controllers": (Controller(1, "c1,2@c2", 9093),)}, "is no node id, host and port"),
        ({"controllers": (Controller(1, "", 9093),)}, "is no node id, host and port"),
        ({"controllers": (Controller(1, "c1", 0),)}, "is no node id, host and port"),
        ({"controllers": (Controller(1, "c1", 65536),)}, "is no node id, host and port"),
        ({"controllers": (Controller(-1, "c1", 9093),)}, "is no node id, host and port"),
        ({"controllers": (Controller(1, "c1", 9093), Controller(1, "c2", 9093))}, "two have the same node_id"),
        ({"controllers": (Controller(1, "c1", 9093), Controller(2, "c1", 9093))}, "two have the same address"),
    ],
)
def test_what_cannot_be_meant(more: dict[str, Any], says: str) -> None:
    with pytest.raises(StorageError, match=says):
        check(asked(**more))


# ------------------------------------------------------------------------------------------------------ what is there


def text(cluster_id: str = ONE, node_id: int = 1, own: str = "uKmYtm0fSTyvCWKcoqTKXw") -> str:
    """A `meta.properties` as Kafka 4.4.0 writes it."""
    return (
        f"#\n#Mon Nov 30 12:00:00 UTC 2026\ncluster.id={cluster_id}\ndirectory.id={own}\nnode.id={node_id}\nversion=1\n"
    )


def test_meta() -> None:
    found = meta(text())
    assert (found.cluster_id, found.node_id, found.directory_id) == (ONE, 1, "uKmYtm0fSTyvCWKcoqTKXw")


def test_meta_is_read_as_java_writes_it() -> None:
    found = meta("!x\n version = 1 \r\ncluster.id=a\\=\\:b\nnode.id=7\ndirectory.id=d\nnot a pair\nnew=thing\n")
    assert (found.cluster_id, found.node_id) == ("a=:b", 7)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is of version none"),
        (text().replace("version=1", "version=0"), "is of version 0"),
        (text().replace("cluster.id", "x"), "has no cluster.id"),
        (text().replace(ONE, ""), "has no cluster.id"),
        (text().replace("node.id", "broker.id"), "has no node.id"),
        (text().replace("node.id=1", "node.id=-1"), "no number"),
        (text().replace("directory.id", "#directory.id"), "has no directory.id"),
    ],
)
def test_meta_that_cannot_be_used(content: str, says: str) -> None:
    with pytest.raises(StorageError, match=says):
        meta(content)


NOTHING = ("missing", "bare", "lost")
"""Kinds of directories that hold nothing."""
BEGUN = ("tmp", "checkpoint", "part")
"""Kinds that a format has begun."""
DONE = ("done", "voter", "voter_tmp")
"""Kinds that a format has ended with, and no server has used."""
USED = ("topics", "quorum", "locked")
"""Kinds on which a server has run."""
FOREIGN = ("file", "hidden", "topic_only", "begun_and_more", "wrong_checkpoint", "linked_log")
"""Kinds with content and without meta.properties."""
BROKEN = ("empty_meta", "meta_directory", "meta_link", "link", "no_directory")
"""Kinds whose meta.properties cannot be used, or that are no directories."""
KINDS = (*NOTHING, *BEGUN, *DONE, *USED, *FOREIGN, *BROKEN)


def make(path: Path, kind: str, content: str) -> None:
    """Make a directory of a kind."""
    if kind == "missing":
        return
    if kind == "no_directory":
        path.write_text("")
        return
    if kind == "link":
        (path.parent / f"{path.name}.target").mkdir()
        path.symlink_to(path.parent / f"{path.name}.target")
        return
    path.mkdir()
    files: dict[str, dict[str, str]] = {
        "bare": {},
        "lost": {"lost+found/": ""},
        "tmp": {"meta.properties.tmp": content[:20]},
        "checkpoint": {f"__cluster_metadata-0/{CHECKPOINT}.checkpoint": "x", "meta.properties.tmp": content},
        "part": {f"__cluster_metadata-0/{CHECKPOINT}-12345.checkpoint.part": "x", "lost+found/": ""},
        "done": {"meta.properties": content},
        "voter": {"meta.properties": content, f"__cluster_metadata-0/{CHECKPOINT}.checkpoint": "x"},
        "voter_tmp": {"meta.properties": content, "meta.properties.tmp": "x", "__cluster_metadata-0/": ""},
        "topics": {"meta.properties": content, "orders-0/00000000000000000000.log": "x"},
        "quorum": {"meta.properties": content, "__cluster_metadata-0/quorum-state": "x"},
        "locked": {"meta.properties": content, ".lock": ""},
        "file": {"README": "x"},
        "hidden": {".x": ""},
        "topic_only": {"orders-0/00000000000000000000.log": "x", "lost+found/": ""},
        "begun_and_more": {"meta.properties.tmp": content, ".lock": ""},
        "wrong_checkpoint": {"__cluster_metadata-0/00000000000000000007-0000000001.checkpoint": "x"},
        "linked_log": {},
        "empty_meta": {"meta.properties": ""},
        "meta_directory": {"meta.properties/": ""},
        "meta_link": {},
    }
    for name, inside in files[kind].items():
        place = path / name
        if name.endswith("/"):
            place.mkdir()
        else:
            place.parent.mkdir(exist_ok=True)
            place.write_text(inside)
    if kind == "linked_log":
        (path.parent / f"{path.name}.target").mkdir()
        (path / "__cluster_metadata-0").symlink_to(path.parent / f"{path.name}.target")
    if kind == "meta_link":
        (path / "meta.properties").symlink_to("/dev/null")


def listing(root: Path) -> list[tuple[str, str]]:
    """All that is below a directory."""
    return sorted(
        (str(path.relative_to(root)), path.read_text() if path.is_file() and not path.is_symlink() else "")
        for path in root.rglob("*")
    )


@st.composite
def hosts(draw: st.DrawFn) -> tuple[list[tuple[str, str, int, str]], str, Asked]:
    """Kinds with their cluster, node and directory ids, a mark, and what is asked."""
    count = draw(st.integers(1, 3))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=count, max_size=count))
    same = draw(st.booleans())
    items = []
    for number, kind in enumerate(kinds):
        cluster_id = ONE if same else draw(st.sampled_from([ONE, OTHER]))
        node_id = 1 if same else draw(st.sampled_from([1, 2]))
        own = draw(st.sampled_from([directory_id(ONE, 1), directory_id(OTHER, 100 + number)]))
        items.append((kind, cluster_id, node_id, own))
    mark = draw(st.sampled_from(["", "", "", ONE, OTHER, "nonsense"]))
    role = draw(st.sampled_from(["broker", "controller", None]))
    voters = CONTROLLERS if role == "controller" and draw(st.booleans()) else ()
    told = draw(st.booleans()) or role is not None
    return items, mark, asked(role=role, controllers=voters, **({} if told else {"cluster_id": None, "node_id": None}))


@settings(max_examples=300)
@given(hosts())
def test_directories_in_all_mixtures(host: tuple[list[tuple[str, str, int, str]], str, Asked]) -> None:
    items, mark, wanted = host
    with tempfile.TemporaryDirectory() as place:
        paths = [Path(place) / f"d{number}" for number in range(len(items))]
        for path, (kind, cluster_id, node_id, own) in zip(paths, items, strict=True):
            make(path, kind, text(cluster_id, node_id, own))
        wanted = replace(wanted, directories=tuple(map(str, paths)), metadata_directory=str(paths[0]))
        before = listing(Path(place))
        found = [observe(path) for path in wanted.directories]
        state = judge(found, Mark("/mark", mark or None), wanted)
        assert listing(Path(place)) == before
    kinds = [item[0] for item in items]
    held = [item[1:3] for item in items if item[0] in (*DONE, *USED)]
    # It is formatted only when each directory is, for one node.
    assert state.formatted == (len(held) == len(items) and len(set(held)) == 1)
    assert state.empty == all(kind in NOTHING for kind in kinds)
    assert not (state.interrupted and (state.formatted or state.empty or state.problems))
    if state.formatted:
        assert (state.cluster_id, state.node_id) == held[0]
    # Whatever cannot be is a problem.
    if mark and (len(held) < len(items) or any(item[0] != mark for item in held)):
        assert any("/mark" in problem for problem in state.problems)
    if wanted.cluster_id and any(item != (ONE, 1) for item in held):
        assert state.problems
    if len(set(held)) > 1 or any(kind in (*FOREIGN, *BROKEN) for kind in kinds):
        assert state.problems
    own = [item[3] for item in items if item[0] in (*DONE, *USED)]
    if len(set(own)) < len(own):
        assert any("copy" in problem for problem in state.problems)
    if wanted.role is None or state.problems or state.formatted:
        return
    # What is left would be formatted now: nothing that anybody could miss is anywhere.
    assert set(kinds) <= {*NOTHING, *BEGUN, *DONE}
    assert not mark
    assert set(held) <= {(ONE, 1)}
    ordered = dict(line.split("=", 1) for line in order(found, wanted).configuration.splitlines())
    left = [str(path) for path, kind in zip(paths, kinds, strict=True) if kind not in DONE]
    assert ordered["log.dirs"].split(",") == left
    assert ordered["metadata.log.dir"] in left
    logs = [
        path for path, kind in zip(wanted.directories, kinds, strict=True) if kind in ("checkpoint", "part", *DONE[1:])
    ]
    assert logs in ([], [wanted.metadata_directory])
    if wanted.role == "broker":
        assert not logs
    # A voter's id belongs to the one directory of the metadata log.
    if wanted.voter and kinds[0] in DONE:
        assert own[0] == directory_id(ONE, 1)


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        (["done", "missing"], ""),
        (["voter", "bare"], ""),
        (["part", "done"], ""),
        (["topics", "missing"], "is not formatted, while .*d0 has data: a disk was lost, or is not mounted"),
        (["missing", "locked"], "is not formatted, while .*d1 has data"),
        (["done", "file"], "d1 has no meta.properties and holds README, which is no Kafka's"),
        (["done", "checkpoint"], "d1 has a metadata log, which belongs to .*d0"),
        (["done", "empty_meta"], "d1 has a meta.properties that is of version none"),
        (["no_directory"], "d0 is no directory"),
        (["link"], "d0 is a symbolic link"),
        (["linked_log"], "d0 has no meta.properties and holds __cluster_metadata-0,"),
        (["meta_link"], "d0 has a meta.properties that is no plain file"),
        (["wrong_checkpoint"], "d0 has no meta.properties and holds __cluster_metadata-0,"),
    ],
)
def test_what_is_said_of_directories(tmp_path: Path, kinds: list[str], says: str) -> None:
    paths = [tmp_path / f"d{number}" for number in range(len(kinds))]
    for number, (path, kind) in enumerate(zip(paths, kinds, strict=True)):
        make(path, kind, text(own=directory_id(ONE, number + 1)))
    wanted = asked(*map(str, paths))
    state = judge([observe(str(path)) for path in paths], Mark(), wanted)
    assert state.interrupted == (not says)
    if says:
        (problem,) = state.problems
        assert re.search(says, problem)
    else:
        assert not state.problems


def held(path: str, *, cluster_id: str = ONE, node_id: int = 1, own: str = "a", **more: Any) -> Directory:
    """A directory that is formatted."""
    return Directory(path, True, ("meta.properties",), meta(text(cluster_id, node_id, own)), **more)


@pytest.mark.parametrize(
    ("found", "mark", "says"),
    [
        ([held("/a", cluster_id=OTHER)], None, [f"/a is of cluster {OTHER}, not {ONE}: give this host the ids"]),
        ([held("/a", node_id=2)], None, ["/a is of node id 2, not 1: give this host"]),
        (
            [held("/a"), held("/b", node_id=2, own="b")],
            None,
            ["/b is of node id 2, and /a of 1: they are of two nodes", "/b is of node id 2, not 1"],
        ),
        ([held("/a"), held("/b")], None, ["/b has the directory id of /a, a: one is a copy"]),
        ([held("/a")], OTHER, [f"/mark: this host was a member of cluster {OTHER} and /a is of another one"]),
        ([held("/a")], "", ["/mark does not begin with the id of a cluster"]),
        (
            [Directory("/a")],
            OTHER,
            [f"/mark: this host was a member of cluster {OTHER} and has lost its data; it is never {AGAIN}"],
        ),
        (
            [held("/a"), Directory("/b")],
            ONE,
            ["/a has directory id a, not ", f"/mark: this host was a member of cluster {ONE} and has lost a part of"],
        ),
    ],
)
def test_what_is_said_of_ids(found: list[Directory], mark: str | None, says: list[str]) -> None:
    problems = judge(found, Mark("/mark", mark), asked(*(item.path for item in found))).problems
    assert len(problems) == len(says)
    assert all(problem.startswith(sentence) for problem, sentence in zip(problems, says, strict=True))


@pytest.mark.parametrize(
    ("role", "says"),
    [
        ("broker", "set it up anew by playbooks/kafka_replace.yml"),
        ("controller", "set it up anew as docs/runbooks/kafka.md says"),
        (None, "set it up anew as docs/runbooks/kafka.md says"),
    ],
)
def test_how_a_member_becomes_one_again_is_said_of_its_role(role: str | None, says: str) -> None:
    wanted = asked("/a", "/b", role=role, controllers=())
    gone, used = [Directory("/a"), Directory("/b")], held("/a", fresh=False)
    for found, mark in (
        (gone, ONE),
        ([used, Directory("/b")], ONE),
        ([used, Directory("/b")], None),
        ([held("/a", cluster_id=OTHER), held("/b", cluster_id=OTHER, own="b")], ONE),
    ):
        problems = judge(found, Mark("/mark", mark), wanted).problems
        assert problems
        assert all(problem.endswith(says) for problem in problems), problems


def test_a_metadata_log_is_not_left_to_a_broker() -> None:
    found = [Directory("/a", True, ("__cluster_metadata-0",), metadata_log=True)]
    broker = asked(role="broker", controllers=(), node_id=11)
    (problem,) = judge(found, Mark(), broker).problems
    assert problem.startswith("/a has the metadata log of a controller that never ran, and is to be a broker's")
    assert judge(found, Mark(), asked()).interrupted


def test_marks(tmp_path: Path) -> None:
    path = tmp_path / "broker.formed"
    assert read_mark(None) == Mark()
    assert read_mark(str(path)) == Mark(str(path))
    assert read_mark(str(path / "x")) == Mark(str(path / "x"))
    path.write_text("")
    assert read_mark(str(path)) == Mark(str(path), "")
    assert read_mark(str(path / "x")) == Mark(str(path / "x"))
    path.write_text(f"{ONE} since 2026\n")
    assert read_mark(str(path)) == Mark(str(path), ONE)


# ---------------------------------------------------------------------------------------------------- asking the tool


def configuration(found: list[Directory], wanted: Asked) -> tuple[dict[str, str], tuple[str, ...]]:
    """The pairs of the configuration, and the arguments."""
    ordered = order(found, wanted)
    return dict(line.split("=", 1) for line in ordered.configuration.splitlines()), ordered.arguments


def test_an_initial_controller_is_given_all_voters() -> None:
    pairs, arguments = configuration([Directory("/a")], asked(node_id=3))
    voters = f"1@c1:9093:{EXPECTED[0]},2@c2:9093:{EXPECTED[1]},3@[::1]:9093:{EXPECTED[2]}"
    assert arguments == ("--cluster-id", ONE, "--initial-controllers", voters)
    assert pairs == {
        "process.roles": "controller",
        "node.id": "3",
        "log.dirs": "/a",
        "metadata.log.dir": "/a",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.bootstrap.servers": "c1:9093,c2:9093,[::1]:9093",
        "listeners": "CONTROLLER://[::1]:9093",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,DATA:PLAINTEXT",
        "inter.broker.listener.name": "DATA",
    }


@pytest.mark.parametrize("role", ["broker", "controller"])
def test_others_are_given_no_voters(role: str) -> None:
    pairs, arguments = configuration([Directory("/a")], asked(role=role, controllers=(), node_id=11))
    assert arguments == ("--cluster-id", ONE, "--no-initial-controllers")
    assert pairs["process.roles"] == role
    assert pairs["listeners"].startswith("CONTROLLER:" if role == "controller" else "DATA:")


def test_the_rest_of_a_controller_is_not_taken_for_its_metadata_log() -> None:
    done = held("/a", own=EXPECTED[0])
    pairs, arguments = configuration([done, Directory("/b"), Directory("/c")], asked("/a", "/b", "/c"))
    assert arguments == ("--cluster-id", ONE, "--no-initial-controllers")
    assert (pairs["process.roles"], pairs["log.dirs"], pairs["metadata.log.dir"]) == ("broker", "/b,/c", "/b")
    pairs, arguments = configuration([Directory("/a"), held("/b"), Directory("/c")], asked("/a", "/b", "/c"))
    assert arguments[2] == "--initial-controllers"
    assert (pairs["process.roles"], pairs["log.dirs"], pairs["metadata.log.dir"]) == ("controller", "/a,/c", "/a")


@pytest.mark.parametrize("what", ["cluster_id", "node_id", "role"])
def test_nothing_is_guessed(what: str) -> None:
    with pytest.raises(StorageError, match="are needed to format"):
        order([Directory("/a")], asked(**{what: None, "controllers": ()}))


# --------------------------------------------------------------------------------------------------------- the module


def call(directory: Path, *, check_mode: bool = False, **more: Any) -> dict[str, Any]:
    """What the module answers as Ansible runs it, as whoever runs the tests."""
    arguments = {
        "directories": [str(directory / "data")],
        "mark": str(directory / "formed"),
        "owner": pwd.getpwuid(os.geteuid()).pw_name,
        "group": grp.getgrgid(os.getegid()).gr_name,
        "_ansible_check_mode": check_mode,
        **more,
    }
    done = subprocess.run(
        [sys.executable, module.__file__],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        env={"PYTHONPATH": str(ROOT / "collections"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    answer.pop("invocation", None)
    return answer


def formatted(directory: Path, *, check_mode: bool = False, **more: Any) -> dict[str, Any]:
    """The same of a broker that is to be formatted, where the tool is a program that fails."""
    (directory / "libs").mkdir(exist_ok=True)
    (directory / "libs/kafka.jar").touch()
    wanted = {
        "state": "formatted",
        "libraries": str(directory / "libs"),
        "java": "false",
        "role": "broker",
        "cluster_id": ONE,
        "node_id": 11,
    }
    return call(directory, check_mode=check_mode, **{**wanted, **more})


def test_nothing_is_there(tmp_path: Path) -> None:
    answer = call(tmp_path)
    assert is_id(answer.pop("new_cluster_id"))
    assert answer == {
        "changed": False,
        "formatted": False,
        "empty": True,
        "interrupted": False,
        "cluster_id": "",
        "node_id": None,
        "directory_ids": {},
        "marked": False,
        "marked_cluster_id": "",
        "account": True,
        "problems": [],
    }
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_read(tmp_path: Path) -> None:
    make(tmp_path / "data", "topics", text(own="d"))
    (tmp_path / "formed").write_text(f"{ONE}\n")
    answer = call(tmp_path, owner="nobody-of-that-name", cluster_id=ONE, controllers=[{"node_id": 2, "host": "c2"}])
    assert {key: answer[key] for key in ("changed", "formatted", "empty", "cluster_id", "node_id", "problems")} == {
        "changed": False,
        "formatted": True,
        "empty": False,
        "cluster_id": ONE,
        "node_id": 1,
        "problems": [],
    }
    assert (answer["directory_ids"], answer["account"]) == ({str(tmp_path / "data"): "d"}, False)
    assert (answer["marked"], answer["marked_cluster_id"]) == (True, ONE)
    expected = {"node_id": 2, "host": "c2", "port": 9093, "directory_id": EXPECTED[1]}
    assert answer["initial_controllers"] == [expected]


def test_a_problem_is_read_and_refuses_to_format(tmp_path: Path) -> None:
    make(tmp_path / "data", "file", "")
    before = listing(tmp_path / "data")
    assert len(call(tmp_path)["problems"]) == 1
    for check_mode in (True, False):
        answer = formatted(tmp_path, check_mode=check_mode)
        assert answer["failed"]
        assert answer["msg"].startswith(f"Nothing was formatted. {tmp_path}/data has no meta.properties")
        assert answer["problems"]
    assert listing(tmp_path / "data") == before


def test_what_is_formatted_is_left(tmp_path: Path) -> None:
    make(tmp_path / "data", "topics", text(node_id=11))
    for check_mode in (True, False):
        answer = formatted(tmp_path, check_mode=check_mode)
        assert (answer["changed"], answer["formatted"]) == (False, True)


def test_check_mode_needs_nothing_of_what_is_not_there_yet(tmp_path: Path) -> None:
    answer = formatted(
        tmp_path, check_mode=True, java="no-such-java", libraries="/no/libs", owner="nobody-of-that-name"
    )
    assert (answer["changed"], answer["formatted"], answer["account"]) == (True, False, False)
    assert answer["diff"] == {
        "before": f"{tmp_path}/data: not formatted\n",
        "after": f"{tmp_path}/data: cluster {ONE} node 11\n",
    }
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"java": "no-such-java"}, "no-such-java: there is no such program; Debian's default-jre-headless has it"),
        ({"libraries": "/no/libs"}, "/no/libs: there are no jars; the artifact kafka has them"),
        ({"owner": "nobody-of-that-name"}, "there is no account nobody-of-that-name:"),
        ({"cluster_id": "x"}, "cluster_id x: is not 22 characters"),
        ({"directories": ["/no/such/parent/data"]}, "No such file or directory: '/no/such/parent/data'"),
        ({}, "kafka.tools.StorageTool returned 1"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, more: dict[str, Any], says: str) -> None:
    answer = formatted(tmp_path, **more)
    assert answer["failed"]
    assert says in answer["msg"]


def test_a_directory_is_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    formatted(tmp_path, directories=[str(tmp_path / "data"), str(tmp_path / "more")])
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("data", "more")] == [0o700, 0o700]


def test_a_tool_that_hangs_is_ended(tmp_path: Path) -> None:
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    answer = formatted(tmp_path, java=str(program), timeout=1)
    assert "took longer than 1 s and was ended; run again to finish" in answer["msg"]


def test_a_format_of_another_run_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    descriptor = os.open(tmp_path / "data", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert "another run formats it, and has not ended in 1 s" in formatted(tmp_path, timeout=1)["msg"]
    finally:
        os.close(descriptor)
    assert "returned 1" in formatted(tmp_path, timeout=1)["msg"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs a program as somebody else")
def test_the_tool_runs_as_the_owner_and_with_nothing_of_ours() -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        program = Path(place) / "java"
        program.write_text(
            '#!/bin/sh\nid -u; id -G; umask; env; stat -c "%U %a" "$(dirname "${10}")" "${10}"; exit 3\n'
        )
        program.chmod(0o755)
        answer = formatted(Path(place), java=str(program), owner="nobody", group="nogroup")
    assert "returned 3" in answer["msg"]
    lines = answer["msg"].partition(": ")[2].partition(": ")[2].splitlines()
    assert lines[:3] == ["65534", "65534", "0077"]
    assert lines[-2:] == ["nobody 700", "nobody 600"]
    assert {line.partition("=")[0] for line in lines[3:-2]} <= {"PATH", "LC_ALL", "PWD", "SHLVL", "_", "OLDPWD"}
