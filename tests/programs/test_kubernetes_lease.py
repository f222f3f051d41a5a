# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lease of a real cluster is held by one run at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_lease import (
    ClusterLease,
    LeaseHeldError,
    Run,
    held_until,
    holder,
)

if TYPE_CHECKING:
    from tests.programs.cluster import Cluster

RUNS = [Run("ann", f"deploy{number}", "boot/pid:[1]", 4711, 99, f"cp{number}") for number in range(8)]


def took(cluster: Cluster, name: str, run: Run) -> bool:
    try:
        ClusterLease(cluster.api(), name).take(run, 60)
    except LeaseHeldError:
        return False
    return True


def test_of_many_at_once_one_run_takes_it(cluster: Cluster) -> None:
    with ThreadPoolExecutor(len(RUNS)) as pool:
        got = list(pool.map(lambda run: took(cluster, "race", run), RUNS))
    assert got.count(True) == 1
    assert holder(ClusterLease(cluster.api(), "race").read()) == RUNS[got.index(True)]


def test_it_is_held_again_and_let_go_by_its_holder_alone(cluster: Cluster) -> None:
    lease = ClusterLease(cluster.api(), "turns")
    lease.take(RUNS[0], 60)
    lease.take(RUNS[0], 60)
    with pytest.raises(LeaseHeldError):
        lease.take(RUNS[1], 60)
    assert not lease.let_go(RUNS[1])
    assert lease.let_go(RUNS[0])
    assert held_until(lease.read()) is None
    lease.take(RUNS[1], 60)
    lease.take(RUNS[2], 60, over=RUNS[1].name)
    assert holder(lease.read()) == RUNS[2]
    assert lease.read()["spec"]["leaseTransitions"] == 3
