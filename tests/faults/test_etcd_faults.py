# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the clients of the database, and of the store itself, notice when the store loses its leader or all members."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.faults.cluster import etcd_leader, etcdctl, wait_until_sound
from tests.faults.drill import RUNS, wait_for
from tests.faults.etcd_writer import EtcdWriter
from tests.faults.outcomes import WitnessedDrill
from tests.faults.postgres_writer import Witnesses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.postgres_writer import Writer
    from tests.lab import Lab

JITTER = 0.5
"""A gap in the database's writes below this many seconds is the machine's own."""


@pytest.fixture
def runs(lab: Lab) -> Iterator[range]:
    """The runs of a drill; before the first and after the last all members are there."""
    wait_for(lambda: etcd_leader(lab), 60, "a leader of the store that all follow")
    wait_until_sound(lab)
    yield range(RUNS)
    wait_for(lambda: etcd_leader(lab), 60, "a leader of the store that all follow")
    wait_until_sound(lab)


def test_a_killed_leader_of_the_store_is_not_noticed_by_the_database(
    lab: Lab, postgres_writer: Writer, runs: range
) -> None:
    drill = WitnessedDrill("etcd_leader_killed")
    for _ in runs:
        wait_until_sound(lab)
        leader: str = wait_for(lambda: etcd_leader(lab), 60, "a leader of the store that all follow")
        hosts = sorted(lab.groups["etcd"], key=lambda host: (host != leader, host))
        keys = EtcdWriter(lab, hosts[1], [lab.address(host) for host in hosts])
        with Witnesses(lab) as witnesses, postgres_writer, keys:
            primary = witnesses.leader()
            lab.run(leader, "kill -9 $(systemctl show --value --property MainPID etcd)")
            postgres_writer.watch(8)
            assert witnesses.leader() == primary
        successor = wait_for(lambda: etcd_leader(lab), 60, "a leader of the store that all follow")
        assert successor != leader
        listed = etcdctl(lab, leader, f"get {keys.prefix} --prefix --keys-only")
        drill.add_witnessed(
            postgres_writer,
            witnesses,
            store_gap_s=keys.record.longest_gap(),
            store_acknowledged=len(keys.record.acknowledged),
            store_lost=keys.lost(listed),
        )
        etcdctl(lab, leader, "del /drill/ --prefix")
    drill.record()
    assert drill.further["store_lost"] == [0] * len(runs)
    assert max(drill.further["store_gap_s"]) <= 3
    drill.holds(gap=JITTER)


def test_the_database_goes_on_without_its_store(lab: Lab, postgres_writer: Writer, runs: range) -> None:
    """The primary reaches all members, so that it stays the primary for longer than its lock would have lasted."""
    drill = WitnessedDrill("etcd_all_stopped")
    hosts = lab.groups["etcd"]
    for _ in runs:
        wait_until_sound(lab)
        with Witnesses(lab) as witnesses, postgres_writer, ThreadPoolExecutor(len(hosts)) as pool:
            primary = witnesses.leader()
            try:
                list(pool.map(lambda host: lab.run(host, "systemctl stop etcd"), hosts))
                postgres_writer.watch(45)
                assert witnesses.leader() == primary
            finally:
                start = time.monotonic()
                list(pool.map(lambda host: lab.run(host, "systemctl start etcd"), hosts))
            wait_until_sound(lab)
            whole = time.monotonic() - start
            postgres_writer.watch(5)
            assert witnesses.leader() == primary
        drill.add_witnessed(postgres_writer, witnesses, whole_again_s=whole)
    drill.record()
    drill.holds(gap=JITTER)
