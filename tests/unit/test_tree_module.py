# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module of tree as a process of its own, killed and interrupted as on a host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_manifest import Entry, digest, pack

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "plugins/modules/tree.py"
OWNER = {"owner": str(os.getuid()), "group": str(os.getgid())}


def start(entries: list[Entry], contents: list[bytes], **options: Any) -> subprocess.Popen[str]:
    """Start the module as Ansible does, with its arguments on standard input."""
    index, stream = pack({digest(content): content for content in contents})
    arguments = {"entries": [entry.as_dict() for entry in entries], "index": index, "stream": stream, **OWNER}
    process = subprocess.Popen(
        [sys.executable, str(MODULE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "collections")},
    )
    assert process.stdin
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, **options}}))
    process.stdin.close()
    process.stdin = None
    return process


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=60)
    assert output, errors
    result: dict[str, Any] = json.loads(output)
    return result


def entry(path: Path, content: bytes, **declared: Any) -> Entry:
    return Entry(path=str(path), sha256=digest(content), size=len(content), **(OWNER | declared))


def test_first_run_second_run_and_removal(tmp_path: Path) -> None:
    tree = [entry(tmp_path / "d/a", b"1"), Entry(str(tmp_path / "l"), state="link", target="d/a", **OWNER)]
    first = answer(start(tree, [b"1"]))
    paths = [str(tmp_path / name) for name in ("d", "d/a", "l")]
    assert (first["changed"], first["changed_paths"], first["created"], first["removed"]) == (True, paths, paths, [])
    second = answer(start(tree, [b"1"]))
    assert (second["changed"], second["changed_paths"]) == (False, [])
    gone = answer(start([Entry(str(tmp_path / "d"), state="absent", recurse=True, **OWNER)], []))
    assert gone["removed"] == [str(tmp_path / "d")]


def test_it_asks_for_what_it_lacks_and_changes_nothing_before(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"there")
    tree = [entry(tmp_path / "a", b"new"), entry(tmp_path / "b", b"there", mode=0o600)]
    asked = answer(start(tree, []))
    assert asked["needed"] == [digest(b"new")]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert answer(start(tree, [b"new"]))["changed_paths"] == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_no_content_is_in_the_answer(tmp_path: Path) -> None:
    canary = b"canary-7f3a"
    tree = [entry(tmp_path / "s", canary, secret=True)]
    for options in ({}, {"_ansible_diff": True}, {"_ansible_check_mode": True}):
        output, errors = start(tree, [canary], **options).communicate(timeout=60)
        assert canary.decode() not in output + errors
        assert "stream" not in json.loads(output)["invocation"]["module_args"]
    failing = [entry(tmp_path / "s", b"other " + canary, secret=True, validate="sh -c 'cat $0; false' %s")]
    output, errors = start(failing, [b"other " + canary]).communicate(timeout=60)
    assert json.loads(output)["failed"]
    assert canary.decode() not in output + errors


def test_two_runs_at_once_wait_for_each_other(tmp_path: Path) -> None:
    slow = [entry(tmp_path / "a", b"1", validate="sh -c 'sleep 1' %s")]
    runs = [start(slow, [b"1"]) for _number in range(2)]
    assert sorted(answer(run)["changed"] for run in runs) == [False, True]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_rolls_back_and_a_kill_is_repaired_by_the_next_run(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "a").write_text("old")
    began = tmp_path / "began"
    # The last validation tells that all is staged, and waits.
    tree = [
        entry(tmp_path / "a", b"new"),
        entry(tmp_path / "d/b", b"new", validate=f"sh -c 'touch {began}; sleep 2' %s"),
    ]
    for kill in (number, signal.SIGKILL):
        process = start(tree, [b"new"])
        while not began.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(kill)
        output, _errors = process.communicate(timeout=60)
        began.unlink()
        if kill == number:
            assert f"interrupted by {number.name}" in json.loads(output)["msg"]
            assert [path.name for path in tmp_path.rglob("*")] == ["a"]
        assert (tmp_path / "a").read_text() == "old"
    assert list(tmp_path.rglob(".groundplane-*"))
    assert answer(start(tree, [b"new"]))["changed"]
    began.unlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "d"]
    assert not answer(start(tree, [b"new"]))["changed"]
