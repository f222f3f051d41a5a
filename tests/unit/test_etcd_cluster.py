# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What etcd 3.5.16 really answered (recorded from three members on loopback), and what the gate makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.etcd_cluster import decode, encode, parse_state
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import EtcdState, Health, Wish, decide
from hypothesis import given
from hypothesis import strategies as st

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures/gate/etcd-3.5.16.json").read_text())


def state(name: str) -> EtcdState:
    recorded = RECORDED[name]
    answers = {url: (Health(health), status, cause) for url, (health, status, cause) in recorded["answers"].items()}
    return parse_state("lab", recorded["listed"], recorded["alarms"], answers)


def test_a_healthy_cluster_is_read_as_such() -> None:
    healthy = state("healthy")
    assert sorted(member.name for member in healthy.members) == ["data1", "data2", "data3"]
    assert healthy.leader is not None
    assert len(healthy.able) == 3
    assert (healthy.alarms, healthy.strangers) == ((), ())
    assert all(member.urls and member.index for member in healthy.members)


@pytest.mark.parametrize(
    ("name", "member", "reason"),
    [
        (
            "one_down",
            "data1",
            (
                "etcd cluster lab cannot lose data1 now: 1 of 2 needed voters would be left; "
                "data3 is down (https://127.0.0.1:23793: connection refused)"
            ),
        ),
        (
            "alarm",
            "data2",
            "etcd cluster lab has the alarm NOSPACE of data1: clear the cause and disarm it first",
        ),
    ],
)
def test_a_cluster_that_cannot_lose_a_member_says_why(name: str, member: str, reason: str) -> None:
    verdict = decide(state(name), Wish(member, "yield"))
    assert (verdict.allowed, verdict.reason) == (False, reason)


def test_a_learner_that_never_started_is_named_by_its_id() -> None:
    verdict = decide(state("learner"), Wish("data1", "yield"))
    assert not verdict.allowed
    assert verdict.reason.startswith("etcd cluster lab: ")
    assert verdict.reason.endswith(" is still a learner")


def test_a_cluster_without_quorum_is_read_from_the_member_that_is_left() -> None:
    lost = state("no_quorum")
    assert not lost.quorate
    assert {member.name: str(member.health) for member in lost.members} == {
        "data1": "failing",
        "data2": "down",
        "data3": "down",
    }
    assert decide(lost, Wish("data1", "yield")).last_resort


def test_a_member_of_another_cluster_is_a_stranger() -> None:
    recorded = json.loads(json.dumps(RECORDED["healthy"]))
    url = "https://127.0.0.1:23792"
    recorded["answers"][url][1]["header"]["cluster_id"] = "42"
    answers = {key: (Health(health), status, cause) for key, (health, status, cause) in recorded["answers"].items()}
    assert parse_state("lab", recorded["listed"], recorded["alarms"], answers).strangers == (url,)


@given(st.text())
def test_keys_and_values_survive_the_gateway(text: str) -> None:
    assert decode(encode(text)) == text
