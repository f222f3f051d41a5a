# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster is upgraded under load, patch and minor, once with the run killed on the way: `make upgrade`.

The lab runs the first version of GROUNDPLANE_UPGRADES (default `1.34.2 1.34.4 1.35.4`), and its mirror has all of them.
The tests go from each to the next, in order, so that the last one is what the lab runs afterwards.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING

import pytest

from tests import results
from tests.faults.kubernetes_clients import ApiReader, ApiWriter, fetcher, in_order
from tests.service_rules import RulesWitness

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.kubernetes_clients import Account
    from tests.kubernetes import Cluster
    from tests.lab import Lab

pytestmark = pytest.mark.nodes

VERSIONS = os.environ.get("GROUNDPLANE_UPGRADES", "1.34.2 1.34.4 1.35.4").split()
STEPS = list(itertools.pairwise(VERSIONS))
GAP_ALLOWED = 5.0
KILLED_AT = ("The member runs the version", "The pods of the node have left it")
"""Tasks in which a run is killed: half a control plane, and a node that is empty."""
TOO_FAR = "is more than one minor newer"
THERE_IS_NO_WAY_BACK = "is older: there is no way back"


def arguments(version: str) -> list[str]:
    return ["-e", f"kubernetes_upgrade_version={version}"]


def running(cluster: Cluster) -> set[str]:
    """The versions of all kubelets and of all static pods of the control plane, without the `v`."""
    kubelets = {node["status"]["nodeInfo"]["kubeletVersion"] for node in cluster.get("nodes")["items"]}
    pods = cluster.get("pods", "-n", "kube-system", "-l", "tier=control-plane")["items"]
    images = [pod["spec"]["containers"][0]["image"] for pod in pods if pod["metadata"]["labels"]["component"] != "etcd"]
    return {version.removeprefix("v") for version in (*kubelets, *(image.rpartition(":")[2] for image in images))}


def kill_in(lab: Lab, task: str, version: str, log: Path) -> bool:
    """Start an upgrade and kill it and its forks two seconds into a task; whether it came that far."""

    def reached(line: str) -> bool:
        return line.startswith("TASK [") and task in line

    return lab.play_killed("kubernetes_upgrade", *arguments(version), at=reached, delay=2, log=log) is not None


def test_the_lab_runs_the_first_version(cluster: Cluster) -> None:
    assert running(cluster) == {VERSIONS[0]}


@pytest.mark.parametrize(
    ("version", "says"),
    [("1.36.1", TOO_FAR), ("1.33.9", THERE_IS_NO_WAY_BACK), ("1.35", "write the version in full")],
)
def test_a_jump_and_a_way_back_are_refused_before_anything_is_touched(lab: Lab, version: str, says: str) -> None:
    refused = lab.play("kubernetes_upgrade", *arguments(version))
    assert refused.returncode != 0
    assert says in refused.output
    assert refused.changed == {}


@pytest.mark.parametrize("step", STEPS, ids="-".join)
def test_clients_do_not_notice_an_upgrade(
    lab: Lab, cluster: Cluster, drill_api: Account, tmp_path: Path, step: tuple[str, str]
) -> None:
    """The last upgrade is killed twice on the way, and finished by the run after."""
    before, after = step
    killed = []
    with (
        fetcher(lab, "bastion1", (*cluster.gateway, "/"), interval=0.05, patience=5) as pages,
        ApiWriter(lab, drill_api) as writer,
        ApiReader(lab, drill_api) as reader,
        RulesWitness(cluster, cluster.workers) as rules,
    ):
        time.sleep(5)
        start = time.monotonic()
        if step == STEPS[-1]:
            killed = [kill_in(lab, task, after, tmp_path / f"{number}.log") for number, task in enumerate(KILLED_AT)]
        done = lab.play("kubernetes_upgrade", *arguments(after), timeout=3600)
        seconds = time.monotonic() - start
        time.sleep(5)
    outcome = writer.outcome()
    results.record(
        f"kubernetes_upgrade_{before}_{after}",
        {
            "seconds": round(seconds),
            "killed": len(killed),
            "pages": len(pages.record.attempts),
            "pages_failed": len(pages.record.failed),
            "first_failures": [attempt.error for attempt in pages.record.failed[:5]],
            "rules_looked_at": rules.looks,
            "rules_stale": rules.stale[:20],
            "page_gaps": pages.record.gaps(1),
            "write_gaps": writer.record.gaps(2),
            "read_gaps": reader.record.gaps(2),
            "write_gap_s": outcome.gap,
            "read_gap_s": round(reader.record.longest_gap(), 2),
            "writes": outcome.acknowledged,
            "writes_lost": outcome.lost,
            "gap_allowed_s": GAP_ALLOWED,
        },
    )
    assert done.returncode == 0, done.output[-6000:]
    assert all(killed), "the run was over before it could be killed"
    assert running(cluster) == {after}
    assert [node for node in cluster.get("nodes")["items"] if node["spec"].get("unschedulable")] == []
    assert pages.record.failed == []
    assert outcome.lost == 0
    assert in_order(reader.record, strictly=False)
    assert max(outcome.gap, reader.record.longest_gap()) <= GAP_ALLOWED


def test_an_upgrade_to_what_runs_changes_nothing(lab: Lab) -> None:
    again = lab.play("kubernetes_upgrade", *arguments(VERSIONS[-1]), timeout=1800)
    assert again.returncode == 0, again.output[-4000:]
    assert again.changed == {}
