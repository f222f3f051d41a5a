# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written of a bucket is read back as the same, and what we have no word for is seen."""

from __future__ import annotations

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import Answer
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_plan import (
    ENABLED,
    NEVER,
    SUSPENDED,
    Retention,
    Rule,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_s3 import (
    create_body,
    lifecycle_body,
    lock_body,
    read_lifecycle,
    read_lock,
    read_versioning,
    versioning_body,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.s3_client import parsed
from hypothesis import given
from hypothesis import strategies as st

days = st.none() | st.integers(1, 4000)
text = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), max_size=20)
rules = st.builds(
    Rule,
    id=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20),
    prefix=text,
    enabled=st.booleans(),
    expire_days=days,
    older_days=days,
    older_kept=days,
)


@given(st.lists(rules, max_size=4))
def test_rules_are_read_as_they_are_written(declared: list[Rule]) -> None:
    markers = Rule("markers", expire_markers=True)
    whole = (*declared, markers)
    assert read_lifecycle(parsed(Answer(200, lifecycle_body(whole)), "")) == whole


def test_what_a_rule_has_beyond_our_words_is_seen() -> None:
    body = b"""<LifecycleConfiguration><Rule><ID>a</ID><Status>Enabled</Status>
      <Filter><And><Prefix>logs/</Prefix><Tag><Key>k</Key><Value>v</Value></Tag></And></Filter>
      <Expiration><Days>1</Days></Expiration>
      <Transition><Days>1</Days><StorageClass>COLD</StorageClass></Transition></Rule></LifecycleConfiguration>"""
    (rule,) = read_lifecycle(parsed(Answer(200, body), ""))
    assert rule.other == "Filter/And logs/kv, Transition 1COLD"
    assert rule != Rule("a", expire_days=1)


def test_an_old_form_of_a_rule_and_zeros_are_read() -> None:
    body = b"""<LifecycleConfiguration><Rule><ID>a</ID><Status>Disabled</Status><Prefix>logs/</Prefix>
      <Expiration><Days>3</Days><ExpiredObjectDeleteMarker>false</ExpiredObjectDeleteMarker></Expiration>
      <NoncurrentVersionExpiration><NoncurrentDays>0</NoncurrentDays>
      <NewerNoncurrentVersions>2</NewerNoncurrentVersions></NoncurrentVersionExpiration></Rule>
      </LifecycleConfiguration>"""
    assert read_lifecycle(parsed(Answer(200, body), "")) == (
        Rule("a", "logs/", enabled=False, expire_days=3, older_kept=2),
    )


@pytest.mark.parametrize("versioning", [ENABLED, SUSPENDED])
def test_versioning_is_read_as_it_is_written(versioning: str) -> None:
    assert read_versioning(parsed(Answer(200, versioning_body(versioning)), "")) == versioning
    assert read_versioning(parsed(Answer(200, b"<VersioningConfiguration/>"), "")) == NEVER


@pytest.mark.parametrize("retention", [None, Retention("governance", days=3), Retention("compliance", years=2)])
def test_a_lock_is_read_as_it_is_written(retention: Retention | None) -> None:
    assert read_lock(parsed(Answer(200, lock_body(retention)), "")) == (True, retention)
    assert read_lock(parsed(Answer(200, b"<ObjectLockConfiguration/>"), "")) == (False, None)


def test_a_region_is_named_unless_it_is_the_default() -> None:
    assert create_body("us-east-1") == b""
    assert b"<LocationConstraint>onprem</LocationConstraint>" in create_body("onprem")
