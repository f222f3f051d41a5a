# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Qdrant says of a snapshot, and what the program is told: pure parts of what the role puts on hosts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils import snapshot_store

from tests.unit.host_program import loaded

ROLE = Path(__file__).resolve().parents[2] / "roles/qdrant"
PROGRAM = ROLE / "templates/tree/usr/local/lib/groundplane/qdrant_snapshot.py"
DIGEST = hashlib.sha256(b"x").hexdigest()


@pytest.fixture(scope="module")
def program() -> Any:
    return loaded(PROGRAM, snapshot_store=snapshot_store)


def settings(**more: Any) -> dict[str, Any]:
    told = {
        "api": "https://vector1.site.example:6333", "api_key": "hidden", "ca": "/ca", "snapshots": "/s",
        "servers": ["https://store1.site.example:9000"], "region": "us-east-1", "bucket": "backups",
        "prefix": "qdrant/vector1", "access_key": "a", "secret_key": "hidden", "keep": 7,
    }  # fmt: skip
    return {**told, **more}


def test_the_settings_are_those_that_the_role_writes(program: Any) -> None:
    written = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__qdrant_snapshot"]
    assert set(written) == set(settings())
    parsed = snapshot_store.settings_of(program.Settings, json.dumps(settings()), "qdrant")
    assert parsed.keep == 7
    assert "hidden" not in repr(parsed)
    for text in ("", "[]", "{}", json.dumps({"member": "x"})):
        with pytest.raises(snapshot_store.SnapshotError, match="run the role qdrant"):
            snapshot_store.settings_of(program.Settings, text, "qdrant")


def test_a_snapshot_without_a_checksum_is_none(program: Any) -> None:
    name = "a-7-2026-11-30-02-15-00.snapshot"
    told = {"name": name, "size": 5, "checksum": DIGEST, "creation_time": None}
    assert program.described("a", told) == snapshot_store.Snapshot("a", name, 5, DIGEST)
    for missing in (None, "", "x", DIGEST.upper()):
        with pytest.raises(snapshot_store.SnapshotError, match="says no SHA-256"):
            program.described("a", {**told, "checksum": missing})
    for other in ("", "..", "../../etc/passwd-2026-11-30-02-15-00.snapshot", "a.snapshot"):
        with pytest.raises(snapshot_store.SnapshotError, match="describes no snapshot"):
            program.described("a", {**told, "name": other})
    with pytest.raises(snapshot_store.SnapshotError, match="describes no snapshot"):
        program.described("..", told)


@pytest.mark.parametrize("arguments", [[], ["take"], ["restore", "f", "a"], ["take", "f", "a"], ["drop", "f"]])
def test_it_says_how_it_is_called(program: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(arguments) == 2
    assert capsys.readouterr().err.startswith("usage: ")


def test_without_its_file_it_says_so(program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["take", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err
