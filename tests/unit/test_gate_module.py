# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One call of the gate's module at a Kafka, Redis or Qdrant nobody of which runs, and the lock that engines share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.cluster_lock import ClusterLock
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_run import GateError
from ansible_collections.groundplane.onprem.plugins.module_utils.qdrant_cluster import QdrantError
from ansible_collections.groundplane.onprem.plugins.modules.gate import Call

from tests.programs.cluster import Authority, free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Calls = Callable[..., tuple[Call, list[str]]]


@pytest.fixture
def call(tmp_path: Path) -> Calls:
    authority = Authority(tmp_path, "site")
    crt, key = authority.issue("kafka")

    def make(engine: str, *, check_mode: bool = False, **more: Any) -> tuple[Call, list[str]]:
        nobody = f"127.0.0.1:{free_port()}"
        params = {
            "engine": engine, "action": "restart", "unit": f"{engine}.service", "lead": "defer", "force": True,
            "candidate": "", "accept_outage": False, "patience": 0.0, "timeout": 0.1, "lag_limit": 1,
            "member": "127.0.0.1", "cluster": "lab", "run": "run1", "endpoints": [f"https://{nobody}"], "rest": None,
            "servers": [f"127.0.0.1={nobody}" if engine.startswith("redis") else nobody],
            "sentinels": [f"127.0.0.1={nobody}"],
            "user": "admin", "password": "x", "ca": str(authority.path), "cert": str(crt), "key": str(key),
        }  # fmt: skip
        warnings: list[str] = []
        module = SimpleNamespace(params={**params, **more}, check_mode=check_mode, warn=warnings.append)
        return Call(module), warnings  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize(
    ("engine", "who"),
    [
        ("kafka", "Kafka cluster lab: 127.0.0.1"),
        ("kafka_controller", "Kafka quorum lab: 127.0.0.1"),
        ("redis", "Redis lab: 127.0.0.1"),
        ("redis_sentinel", "Redis Sentinel lab: that of 127.0.0.1"),
    ],
)
def test_what_does_not_run_may_be_started(call: Calls, engine: str, who: str) -> None:
    result = call(engine, action="check")[0].run()
    assert (result["changed"], result["allowed"], result["decision"]) == (False, True, "restart")
    assert result["reason"] == f"{who} is not running, there is nothing to lose"
    assert call(engine, check_mode=True)[0].run()["changed"]
    assert call(engine, action="none", check_mode=True)[0].run()["changed"] is False


def test_a_qdrant_that_does_not_run_may_be_started_and_one_without_a_key_is_not_asked(call: Calls) -> None:
    made = call("qdrant", action="check", member="127")[0]
    assert made.run()["reason"] == "Qdrant lab: 127 is not running, there is nothing to lose"
    assert made.lock()._name == "qdrant/lab"
    with pytest.raises(QdrantError, match="set qdrant_api_key"):
        call("qdrant", password=None)


@pytest.mark.parametrize("engine", ["kafka", "kafka_controller"])
def test_a_switchover_of_kafka_is_refused_in_a_sentence(call: Calls, engine: str) -> None:
    made, warnings = call(engine, action="switchover", check_mode=True)
    assert made.run()["allowed"] is False
    assert len(warnings) == 1
    assert warnings[0].startswith("the gate would refuse now: Kafka ")


def test_brokers_and_controllers_share_a_lock_and_are_two(call: Calls) -> None:
    locks = [call(engine)[0].lock() for engine in ("kafka", "kafka_controller")]
    assert all(isinstance(lock, ClusterLock) for lock in locks)
    assert [lock._name for lock in locks] == ["kafka/lab", "kafka/lab"]
    assert [lock._holder.member for lock in locks] == ["kafka of 127.0.0.1", "kafka_controller of 127.0.0.1"]
    assert call("etcd")[0].lock()._name == "etcd"
    locks = [call(engine)[0].lock() for engine in ("redis", "redis_sentinel")]
    assert [lock._name for lock in locks] == ["redis/lab", "redis/lab"]
    assert [lock._holder.member for lock in locks] == ["redis of 127.0.0.1", "redis_sentinel of 127.0.0.1"]


def test_a_site_without_etcd_is_told_so(call: Calls) -> None:
    with pytest.raises(GateError, match="the site has no etcd that could keep the lock of kafka lab"):
        call("kafka", endpoints=[])[0].run()
