# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which snapshots are kept and taken back, and what is sent: pure parts of what roles put on hosts."""

from __future__ import annotations

import datetime as dt
import hashlib
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import s3_client, s3_signature, snapshot_store
from hypothesis import given
from hypothesis import strategies as st

DIGEST = hashlib.sha256(b"x").hexdigest()
MOMENTS = st.integers(0, 10**8).map(
    lambda second: (dt.datetime(2024, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=second)).strftime("%Y-%m-%d-%H-%M-%S")
)
NAMES = st.lists(st.builds("a-{}-{}.snapshot".format, st.integers(1, 2**53), MOMENTS), unique=True, max_size=12)


@given(NAMES, st.integers(-1, 14))
def test_the_newest_are_kept_and_one_always(names: list[str], keep: int) -> None:
    gone = snapshot_store.surplus([*names, "notes.txt", "a.snapshot"], keep)
    stay = [name for name in names if name not in gone]
    assert len(stay) == min(len(names), max(keep, 1))
    assert not {"notes.txt", "a.snapshot"} & set(gone)
    if stay and gone:
        assert max(map(snapshot_store.moment_of, gone)) <= min(map(snapshot_store.moment_of, stay))


@given(NAMES, MOMENTS)
def test_what_is_taken_back_is_the_newest_until_then(names: list[str], until: str) -> None:
    found = snapshot_store.chosen(names, until)
    older = [snapshot_store.moment_of(name) for name in names if snapshot_store.moment_of(name) <= until]
    assert (snapshot_store.moment_of(found) if found else "") == max(older, default="")
    newest = snapshot_store.chosen(names, "newest")
    assert (snapshot_store.moment_of(newest) if newest else "") == max(map(snapshot_store.moment_of, names), default="")


@pytest.mark.parametrize("until", ["", "2026", "yesterday", "2026-11-30 02:15:00", "../2026-11-30-02-15-00"])
def test_what_is_no_moment_is_refused(until: str) -> None:
    with pytest.raises(snapshot_store.SnapshotError, match="write one in UTC, such as"):
        snapshot_store.chosen([], until)


@given(st.integers(1, 10**14))
def test_parts_are_the_whole_and_no_more_than_a_store_takes(size: int) -> None:
    part = max(snapshot_store.PART, -(-size // 10_000))
    count = -(-size // part)
    assert count <= 10_000
    if count <= 1000:
        parts = list(snapshot_store.parts_of(size))
        assert len(parts) == count
        assert [start for start, _ in parts] == [number * part for number in range(count)]
        assert sum(length for _, length in parts) == size
        assert all(0 < length <= part for _, length in parts)


def test_a_list_of_a_store_is_read_page_by_page() -> None:
    page = (
        b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>true</IsTruncated>'
        b"<NextContinuationToken>t/1=</NextContinuationToken><Contents><Key>q/v/a/1</Key></Contents>"
        b"<Contents><Key>q/v/a/2</Key></Contents></ListBucketResult>"
    )
    assert snapshot_store.listed(page) == (["q/v/a/1", "q/v/a/2"], "t/1=")
    assert snapshot_store.listed(b"<ListBucketResult/>") == ([], "")
    with pytest.raises(snapshot_store.SnapshotError, match="no XML"):
        snapshot_store.listed(b"nothing")


def test_parts_are_put_together_in_their_order() -> None:
    root = ET.fromstring(snapshot_store.completed(['"a"', '"<b>"']))
    assert [(one.findtext("PartNumber"), one.findtext("ETag")) for one in root] == [("1", '"a"'), ("2", '"<b>"')]


def test_what_is_signed_is_the_checksum_of_the_file() -> None:
    what = s3_signature.Signable(
        "PUT", "/backups/qdrant/vector1/a/x.snapshot", DIGEST, headers={snapshot_store.CHECKSUM: DIGEST}
    )
    who, at = s3_signature.Credentials("a", "secret"), dt.datetime(2026, 11, 30, tzinfo=dt.UTC)
    headers = s3_signature.signed(what, "store1.site.example:9000", who, "us-east-1", at)
    assert headers["x-amz-content-sha256"] == headers[snapshot_store.CHECKSUM] == DIGEST
    assert "x-amz-content-sha256;x-amz-date;x-amz-meta-sha256" in headers["authorization"]
    assert "secret" not in str(headers)
    # The same as of a client that has the body at hand.
    request = s3_client.Request("PUT", what.path, body=b"x", headers={snapshot_store.CHECKSUM: DIGEST})
    assert headers == s3_client.signed_headers(request, "store1.site.example:9000", who, "us-east-1", at)


def test_a_host_needs_the_two_files_and_nothing_else(tmp_path: Path) -> None:
    for module in (s3_signature, snapshot_store):
        path = Path(module.__file__)
        (tmp_path / path.name).write_text(path.read_text())
    use = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import snapshot_store; print(snapshot_store.NEWEST)"
    done = subprocess.run([sys.executable, "-IS", "-c", use], capture_output=True, text=True, check=True)
    assert done.stdout == "newest\n"
