# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done with copies of Redis' data on a host: pure parts, and files of a directory of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils import redis_wire, snapshot_store

from tests.unit.host_program import loaded

ROLE = Path(__file__).resolve().parents[2] / "roles/redis"
PROGRAMS = ROLE / "templates/tree/usr/local/lib/groundplane"


@pytest.fixture(scope="module")
def program() -> Any:
    member = loaded(PROGRAMS / "redis_member.py", redis_wire=redis_wire)
    return loaded(PROGRAMS / "redis_backup.py", redis_member=member, snapshot_store=snapshot_store)


def settings(**more: Any) -> dict[str, Any]:
    told = {
        "member": "data1", "cluster": "lab", "declared": "/etc/redis/declared/member.json", "user": "replication",
        "password": "hidden", "directory": "/var/lib/redis-backup", "servers": ["https://store1.site.example:9000"],
        "region": "us-east-1", "bucket": "backups", "prefix": "redis", "access_key": "a", "secret_key": "hidden",
        "keep": 24,
    }  # fmt: skip
    return {**told, **more}


@pytest.fixture
def member(program: Any, tmp_path: Path) -> Any:
    """One whose data are in a directory of ours."""
    (tmp_path / "data").mkdir()
    empty = dict.fromkeys(("ca", "crt", "key", "user", "password", "initial", "runtime", "state"), "")
    declared = dict.fromkeys(("server_config", "sentinel_config"), "")
    return program.redis_member.Member(
        **empty, **declared, cluster="lab", server="192.0.2.1:6379", servers=[], sentinels=[], own_sentinel="",
        quorum=2, priority=100, data=str(tmp_path / "data"),
    )  # fmt: skip


def test_the_settings_are_those_that_the_role_writes(program: Any) -> None:
    written = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__redis_backup"]
    assert set(written) == set(settings())
    parsed = snapshot_store.settings_of(program.Settings, json.dumps(settings()), "redis")
    assert parsed.keep == 24
    assert "hidden" not in repr(parsed)
    for text in ("", "[]", "{}", json.dumps({"member": "x"})):
        with pytest.raises(program.SnapshotError, match="run the role redis"):
            snapshot_store.settings_of(program.Settings, text, "redis")


def test_keys_are_counted_by_the_words_of_the_tool(program: Any) -> None:
    said = "[offset 1035] \\o/ RDB looks OK! \\o/\n[info] 30 keys read\n[info] 4 expires\n[info] 1 already expired\n"
    assert program.counted(said) == {"keys": 30, "expires": 4}
    with pytest.raises(program.SnapshotError, match="says no number of keys"):
        program.counted("RDB looks OK!")


def test_a_member_drops_none_but_its_own_copies(program: Any) -> None:
    mine = "data1-2026-11-30-02-15-00.rdb"
    others = ["data11-2026-11-30-02-15-00.rdb", "data2-2026-11-30-02-15-00.rdb", "data1-notes.rdb", f"x-{mine}"]
    assert program.own([mine, *others], "data1") == [mine]


def test_what_a_server_has_is_put_aside_and_nothing_is_lost(program: Any, member: Any) -> None:
    data = Path(member.data)
    assert program.aside(member) == ""
    (data / "appendonlydir").mkdir()
    (data / "appendonlydir" / "x").write_text("log")
    (data / "whole").touch()
    (data / "nodes.conf").touch()
    kept = Path(program.aside(member))
    assert kept.parent == data
    assert (kept / "appendonlydir" / "x").read_text() == "log"
    assert sorted(path.name for path in data.iterdir()) == [kept.name, "nodes.conf"]
    assert not member.whole


def test_a_copy_is_placed_where_nothing_is(program: Any, member: Any, tmp_path: Path) -> None:
    told = snapshot_store.settings_of(program.Settings, json.dumps(settings(directory=str(tmp_path))), "redis")
    with pytest.raises(program.SnapshotError, match="fetch one first"):
        program.place(told, member)
    told.fetched.write_bytes(b"REDIS0012")
    program.place(told, member)
    log = Path(member.data, "appendonlydir")
    assert (log / "appendonly.aof.1.base.rdb").read_bytes() == b"REDIS0012"
    assert (log / "appendonly.aof.manifest").read_text() == "file appendonly.aof.1.base.rdb seq 1 type b\n"
    assert member.whole
    told.fetched.write_bytes(b"REDIS0012")
    with pytest.raises(program.SnapshotError, match="nothing is written over"):
        program.place(told, member)


@pytest.mark.parametrize("arguments", [[], ["take"], ["fetch", "f"], ["take", "f", "newest"], ["drop", "f"]])
def test_it_says_how_it_is_called(program: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(arguments) == 2
    assert capsys.readouterr().err.startswith("usage: ")


def test_without_its_file_it_says_so(program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["take", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err
