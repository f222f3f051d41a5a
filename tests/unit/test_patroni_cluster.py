# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Patroni 4.0.7 really answered (recorded from three members in quorum mode), and what the gate makes of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import Action, Health, PatroniState, Wish, decide
from ansible_collections.groundplane.onprem.plugins.module_utils.patroni_cluster import parse_state

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures/gate/patroni-4.0.7.json").read_text())
URL = {name: f"https://10.77.3.1{name[-1]}:8008" for name in ("data1", "data2", "data3")}


@pytest.fixture
def recorded() -> dict[str, Any]:
    """A healthy cluster, led by data3."""
    return copy.deepcopy(RECORDED["healthy"])  # type: ignore[no-any-return]


def state(
    recorded: dict[str, Any], down: dict[str, tuple[Health, str]] | None = None, here: dict[str, str] | None = None
) -> PatroniState:
    answers = {}
    for url, status in recorded["answers"].items():
        health = Health.SERVING if status.get("state") == "running" else Health.FAILING
        answers[url] = (health, status, "")
    for name, (health, cause) in (down or {}).items():
        answers[URL[name]] = (health, {}, cause)
    return parse_state("lab", recorded["cluster"], recorded["config"], answers, here or {})


def test_a_healthy_cluster_is_read_as_such(recorded: dict[str, Any]) -> None:
    healthy = state(recorded)
    assert healthy.leader is not None
    assert healthy.leader.name == "data3"
    assert (healthy.mode, healthy.wanted, healthy.paused, healthy.scheduled) == ("quorum", 1, False, "")
    assert [(item.name, item.sync, item.streaming, item.lag) for item in healthy.members] == [
        ("data1", True, True, 0),
        ("data2", True, True, 0),
        ("data3", False, False, 0),
    ]
    assert [healthy.fault(item, 0) for item in healthy.members] == ["", "", ""]
    assert decide(healthy, Wish("data1")).allowed
    assert decide(healthy, Wish("data3", "yield")).action is Action.YIELD


def test_lag_is_what_the_leader_wrote_and_the_standby_has_not_replayed(recorded: dict[str, Any]) -> None:
    recorded["answers"][URL["data3"]]["xlog"]["location"] += 5_000_000
    behind = state(recorded)
    assert [item.lag for item in behind.members] == [5_000_000, 5_000_000, 0]
    assert decide(behind, Wish("data1")).reason == (
        "Patroni cluster lab cannot lose data1 now: data2 is 5000000 bytes behind"
    )


def test_parameters_that_wait_for_a_restart_are_told_and_lower_ones_apart() -> None:
    raised = state(RECORDED["raised"])
    assert all(item.pending_restart and not item.lowered for item in raised.members)
    lowered = copy.deepcopy(RECORDED["raised"])
    for status in lowered["answers"].values():
        status["pending_restart_reason"]["max_connections"] = {"old_value": "110", "new_value": "100"}
        status["pending_restart_reason"]["shared_buffers"] = {"old_value": "110", "new_value": "100"}
    assert all(item.lowered == ("max_connections",) for item in state(lowered).members)


def test_a_member_that_the_dcs_has_forgotten_still_counts(recorded: dict[str, Any]) -> None:
    recorded["cluster"]["members"] = [item for item in recorded["cluster"]["members"] if item["name"] != "data2"]
    down = {"data2": (Health.DOWN, f"{URL['data2']}: connection refused")}
    forgotten = state(recorded, down)
    assert decide(forgotten, Wish("data1")).reason == (
        f"Patroni cluster lab cannot lose data1 now: {URL['data2']} does not run PostgreSQL"
        f" ({URL['data2']}: connection refused)"
    )
    # On its own host its name is known, and it may be started.
    assert decide(state(recorded, down, {URL["data2"]: "data2"}), Wish("data2")).allowed


def test_a_member_outside_the_list_to_ask_is_not_taken_for_healthy(recorded: dict[str, Any]) -> None:
    recorded["answers"].pop(URL["data2"])
    verdict = decide(state(recorded), Wish("data1"))
    assert not verdict.allowed
    assert "data2 does not run PostgreSQL (its REST API is not among those to ask)" in verdict.reason


def test_a_leader_that_is_not_yet_primary_is_no_leader_to_rely_on(recorded: dict[str, Any]) -> None:
    recorded["answers"][URL["data3"]]["role"] = "replica"
    verdict = decide(state(recorded), Wish("data1"))
    assert verdict.reason == (
        "Patroni cluster lab cannot lose data1 now: data3 does not run PostgreSQL"
        " (holds the leader lock and is not yet primary)"
    )


@pytest.mark.parametrize(
    ("value", "mode"), [("quorum", "quorum"), (True, "on"), ("on", "on"), (False, "off"), (None, "off")]
)
def test_modes_as_they_are_written(recorded: dict[str, Any], value: object, mode: str) -> None:
    recorded["config"]["synchronous_mode"] = value
    assert state(recorded).mode == mode


def test_pause_and_a_scheduled_switchover_are_seen(recorded: dict[str, Any]) -> None:
    recorded["cluster"] |= {"pause": True, "scheduled_switchover": {"at": "2027-01-01T00:00:00+00:00", "from": "data3"}}
    held = state(recorded)
    assert (held.paused, held.scheduled) == (True, "2027-01-01T00:00:00+00:00")
