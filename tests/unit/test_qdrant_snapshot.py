# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which snapshots are kept and taken back, and what is sent: pure parts of what the role puts on hosts."""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib.util
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils import s3_client, s3_signature
from hypothesis import given
from hypothesis import strategies as st

ROLE = Path(__file__).resolve().parents[2] / "roles/qdrant"
PROGRAM = ROLE / "templates/tree/usr/local/lib/groundplane/qdrant_snapshot.py"
DIGEST = hashlib.sha256(b"x").hexdigest()
MOMENTS = st.integers(0, 10**8).map(
    lambda second: (dt.datetime(2024, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=second)).strftime("%Y-%m-%d-%H-%M-%S")
)
NAMES = st.lists(st.builds("a-{}-{}.snapshot".format, st.integers(1, 2**53), MOMENTS), unique=True, max_size=12)


@pytest.fixture(scope="module")
def program() -> Any:
    spec = importlib.util.spec_from_file_location("qdrant_snapshot", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["s3_signature"] = s3_signature
    module = sys.modules["qdrant_snapshot"] = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def settings(**more: Any) -> dict[str, Any]:
    told = {
        "member": "vector1", "api": "https://vector1.site.example:6333", "api_key": "k", "ca": "/ca", "snapshots": "/s",
        "servers": ["https://store1.site.example:9000"], "region": "us-east-1", "bucket": "backups", "prefix": "qdrant",
        "access_key": "a", "secret_key": "secret", "keep": 7,
    }  # fmt: skip
    return {**told, **more}


def test_the_settings_are_those_that_the_role_writes(program: Any) -> None:
    written = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__qdrant_snapshot"]
    assert set(written) == set(settings())
    assert program.parse(json.dumps(settings())).keep == 7
    assert "secret" not in repr(program.parse(json.dumps(settings())))
    for text in ("", "[]", "{}", json.dumps({"member": "x"})):
        with pytest.raises(program.SnapshotError, match="run the role qdrant"):
            program.parse(text)


@given(NAMES, st.integers(-1, 14))
def test_the_newest_are_kept_and_one_always(program: Any, names: list[str], keep: int) -> None:
    gone = program.surplus([*names, "notes.txt", "a.snapshot"], keep)
    stay = [name for name in names if name not in gone]
    assert len(stay) == min(len(names), max(keep, 1))
    assert not {"notes.txt", "a.snapshot"} & set(gone)
    if stay and gone:
        assert max(map(program.moment_of, gone)) <= min(map(program.moment_of, stay))


@given(NAMES, MOMENTS)
def test_what_is_taken_back_is_the_newest_until_then(program: Any, names: list[str], until: str) -> None:
    found = program.chosen(names, until)
    older = [program.moment_of(name) for name in names if program.moment_of(name) <= until]
    assert (program.moment_of(found) if found else "") == max(older, default="")
    newest = program.chosen(names, "newest")
    assert (program.moment_of(newest) if newest else "") == max(map(program.moment_of, names), default="")


@pytest.mark.parametrize("until", ["", "2026", "yesterday", "2026-11-30 02:15:00", "../2026-11-30-02-15-00"])
def test_what_is_no_moment_is_refused(program: Any, until: str) -> None:
    with pytest.raises(program.SnapshotError, match="write one in UTC, such as"):
        program.chosen([], until)


def test_a_snapshot_without_a_checksum_is_none(program: Any) -> None:
    name = "a-7-2026-11-30-02-15-00.snapshot"
    told = {"name": name, "size": 5, "checksum": DIGEST, "creation_time": None}
    assert program.described("a", told) == program.Snapshot("a", name, 5, DIGEST)
    for missing in (None, "", "x", DIGEST.upper()):
        with pytest.raises(program.SnapshotError, match="says no SHA-256"):
            program.described("a", {**told, "checksum": missing})
    for other in ("", "..", "../../etc/passwd-2026-11-30-02-15-00.snapshot", "a.snapshot"):
        with pytest.raises(program.SnapshotError, match="describes no snapshot"):
            program.described("a", {**told, "name": other})
    with pytest.raises(program.SnapshotError, match="describes no snapshot"):
        program.described("..", told)


@given(st.integers(1, 10**14))
def test_parts_are_the_whole_and_no_more_than_a_store_takes(program: Any, size: int) -> None:
    part = max(program.PART, -(-size // 10_000))
    count = -(-size // part)
    assert count <= 10_000
    if count <= 1000:
        parts = list(program.parts_of(size))
        assert len(parts) == count
        assert [start for start, _ in parts] == [number * part for number in range(count)]
        assert sum(length for _, length in parts) == size
        assert all(0 < length <= part for _, length in parts)


def test_a_list_of_a_store_is_read_page_by_page(program: Any) -> None:
    page = (
        b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>true</IsTruncated>'
        b"<NextContinuationToken>t/1=</NextContinuationToken><Contents><Key>q/v/a/1</Key></Contents>"
        b"<Contents><Key>q/v/a/2</Key></Contents></ListBucketResult>"
    )
    assert program.listed(page) == (["q/v/a/1", "q/v/a/2"], "t/1=")
    assert program.listed(b"<ListBucketResult/>") == ([], "")
    with pytest.raises(program.SnapshotError, match="no XML"):
        program.listed(b"nothing")


def test_parts_are_put_together_in_their_order(program: Any) -> None:
    root = ET.fromstring(program.completed(['"a"', '"<b>"']))
    assert [(one.findtext("PartNumber"), one.findtext("ETag")) for one in root] == [("1", '"a"'), ("2", '"<b>"')]


def test_what_is_signed_is_the_checksum_that_qdrant_said(program: Any) -> None:
    what = program.Signable("PUT", "/backups/qdrant/vector1/a/x.snapshot", DIGEST, headers={program.CHECKSUM: DIGEST})
    who, at = program.Credentials("a", "secret"), dt.datetime(2026, 11, 30, tzinfo=dt.UTC)
    headers = s3_signature.signed(what, "store1.site.example:9000", who, "us-east-1", at)
    assert headers["x-amz-content-sha256"] == headers[program.CHECKSUM] == DIGEST
    assert "x-amz-content-sha256;x-amz-date;x-amz-meta-sha256" in headers["authorization"]
    assert "secret" not in str(headers)
    # The same as of a client that has the body at hand.
    request = s3_client.Request("PUT", what.path, body=b"x", headers={program.CHECKSUM: DIGEST})
    assert headers == s3_client.signed_headers(request, "store1.site.example:9000", who, "us-east-1", at)


@pytest.mark.parametrize("arguments", [[], ["take"], ["restore", "f", "a"], ["take", "f", "a"], ["drop", "f"]])
def test_it_says_how_it_is_called(program: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(arguments) == 2
    assert capsys.readouterr().err.startswith("usage: ")


def test_without_its_file_it_says_so(program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["take", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err


def test_what_lies_beside_it_needs_nothing_of_the_collection() -> None:
    text = Path(s3_signature.__file__).read_text()
    assert "import ansible" not in text
    assert "from ansible" not in text
