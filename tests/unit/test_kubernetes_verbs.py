# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What playbooks take is stated, and a snapshot gets its name only after it was proven."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SPECS = ROOT / "playbooks" / "meta" / "argument_specs.yml"
ROLE = ROOT / "roles" / "kubernetes_control_plane"
SNAPSHOT = ROLE / "templates" / "backup" / "usr" / "local" / "lib" / "groundplane" / "kubernetes-snapshot"
TAKEN = re.compile(r"(?<![_\w])kubernetes_(?:node|backup|restore|upgrade|certificates)(?:_\w+)?(?!\w)")
NOT_VARIABLES = {"kubernetes_node", "kubernetes_node_state", "kubernetes_restore_blank", "kubernetes_restore_seated"}
"""The module, and groups that a playbook makes for its own run."""


def stated() -> dict[str, dict[str, Any]]:
    specs: dict[str, dict[str, Any]] = yaml.safe_load(SPECS.read_text())["argument_specs"]
    return specs


def test_each_specification_is_a_playbooks() -> None:
    assert [name for name in stated() if not (ROOT / "playbooks" / f"{name}.yml").exists()] == []


def test_each_option_is_typed_and_described() -> None:
    options = {name: option for entry in stated().values() for name, option in entry["options"].items()}
    assert [name for name, option in options.items() if not {"type", "description"} <= option.keys()] == []


def test_what_the_verbs_read_is_stated() -> None:
    """A variable that nobody states would be refused by preflight, or a misspelling."""
    roles = {
        name
        for role in ("kubernetes_node", "kubernetes_control_plane", "kubernetes_worker")
        for entry in yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text())[
            "argument_specs"
        ].values()
        for name in entry["options"]
    }
    known = {name for entry in stated().values() for name in entry["options"]} | roles | NOT_VARIABLES
    known |= set(stated())
    files = [*(ROOT / "playbooks").glob("kubernetes_*.yml"), ROLE / "vars" / "verbs.yml"]
    files += [*(ROLE / "tasks").glob("*.yml"), *(ROOT / "roles" / "kubernetes_worker" / "tasks").glob("*.yml")]
    used = {(path.name, name) for path in files for name in TAKEN.findall(path.read_text())}
    assert {(path, name) for path, name in used if name not in known} == set()


@pytest.fixture
def member(tmp_path: Path) -> dict[str, str]:
    """An environment in which etcd's tools are stand-ins: the one saves, the other accepts all but what says `torn`."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "etcdctl").write_text('#!/bin/sh\nprintf "%s" "${CONTENT-state}" > "$3"\n')
    (tools / "etcdutl").write_text('#!/bin/sh\ngrep -q torn "$4" && exit 1\necho \'{"revision": 7}\'\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (tmp_path / "snapshots").mkdir()
    return {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SNAPSHOTS": str(tmp_path / "snapshots")}


def snapshot(member: dict[str, str], keep: int) -> int:
    return subprocess.run(
        ["/bin/sh", SNAPSHOT, member["SNAPSHOTS"], str(keep), "cp1"], env=member, check=False
    ).returncode


def names(member: dict[str, str]) -> list[str]:
    return sorted(path.name for path in Path(member["SNAPSHOTS"]).iterdir())


def test_a_snapshot_is_private_and_says_when_and_whose_it_is(member: dict[str, str]) -> None:
    assert snapshot(member, 3) == 0
    database, status = sorted(Path(member["SNAPSHOTS"]).iterdir())
    assert re.fullmatch(r"etcd-\d{8}T\d{6}Z-cp1\.db", database.name)
    assert status.name == f"{database.stem}.json"
    assert {path.stat().st_mode & 0o777 for path in (database, status)} == {0o600}


def test_a_snapshot_that_cannot_be_read_gets_no_name(member: dict[str, str]) -> None:
    assert snapshot({**member, "CONTENT": "torn"}, 3) != 0
    assert [name for name in names(member) if name.startswith("etcd-")] == []
    assert snapshot(member, 3) == 0
    assert len([name for name in names(member) if name.startswith("etcd-")]) == len(names(member)) == 2


def test_the_newest_are_kept(member: dict[str, str]) -> None:
    for day in range(1, 6):
        for kind in ("db", "json"):
            (Path(member["SNAPSHOTS"]) / f"etcd-2026010{day}T000000Z-cp1.{kind}").touch()
    assert snapshot(member, 3) == 0
    kept = [name for name in names(member) if name.endswith(".db")]
    assert kept[:2] == ["etcd-20260104T000000Z-cp1.db", "etcd-20260105T000000Z-cp1.db"]
    assert len(kept) == 3
    assert len(names(member)) == 6
