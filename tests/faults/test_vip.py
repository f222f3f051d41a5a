# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client of a virtual address notices when its holder fails, asking the database behind it 50 times a second."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests import results
from tests.faults.drill import RUNS, HostProbe, frozen, holders, summary, wait_for

if TYPE_CHECKING:
    from tests.lab import Lab

CLIENT = "router1"  # has a leg on the network of the address
PORT = "5432"


@pytest.fixture
def address(lab: Lab) -> str:
    """The address in front of the database, once it answers and exactly one host holds it."""
    address = lab.vip()
    wait_for(lambda: len(holders(lab, lab.groups["load_balancer"], address)) == 1, 30, "one holder")
    with client(lab, address) as probe:
        wait_for(lambda: probe.record.acknowledged, 60, f"{address}:{PORT} answers")
    return address


def client(lab: Lab, address: str) -> HostProbe:
    return HostProbe(lab, CLIENT, "postgres", address, PORT, interval=0.02, workers=60)


def other_than(lab: Lab, holder: str) -> str:
    return next(host for host in lab.groups["load_balancer"] if host != holder)


def takeovers(lab: Lab, host: str, since: float) -> int:
    """How often a host has taken the private address since a time, by Keepalived's own account."""
    lines = lab.out(host, f"journalctl -u keepalived --since @{since:.0f} -o cat")
    return lines.count("(private) Entering MASTER STATE")


def settled(lab: Lab, address: str, expected: str) -> float:
    """Seconds until only that host holds the address."""
    start = time.monotonic()
    wait_for(lambda: holders(lab, lab.groups["load_balancer"], address) == [expected], 5, f"only {expected} holds it")
    return time.monotonic() - start


def test_a_frozen_holder_is_replaced_and_yields_when_it_thaws(lab: Lab, address: str) -> None:
    gaps, gaps_after = [], []
    for _ in range(RUNS):
        holder = holders(lab, lab.groups["load_balancer"], address)[0]
        heir = other_than(lab, holder)
        start = time.time()
        with client(lab, address) as probe:
            probe.watch(1)
            with frozen(lab, holder):
                probe.watch(4)
            thawed = time.time()
            settled(lab, address, heir)
            probe.watch(3)
        gaps.append(probe.record.longest_gap(until=thawed))
        gaps_after.append(probe.record.longest_gap(since=thawed))
        assert takeovers(lab, heir, start) == 1
        assert takeovers(lab, holder, start) == 0
        assert holders(lab, lab.groups["load_balancer"], address) == [heir]
    results.record(
        "vip_holder_frozen", {"gap_s": summary(gaps), "gap_after_thaw_s": summary(gaps_after), "allowed_s": 1.5}
    )
    assert max(gaps) <= 1.5
    assert max(gaps_after) <= 1.5


def test_a_holder_that_is_stopped_hands_over_at_once(lab: Lab, address: str) -> None:
    gaps = []
    for _ in range(RUNS):
        holder = holders(lab, lab.groups["load_balancer"], address)[0]
        with client(lab, address) as probe:
            probe.watch(1)
            lab.run(holder, "systemctl stop keepalived")
            try:
                probe.watch(2)
            finally:
                lab.run(holder, "systemctl start keepalived")
            probe.watch(2)
        gaps.append(probe.record.longest_gap())
        assert holders(lab, lab.groups["load_balancer"], address) == [other_than(lab, holder)]
    results.record("vip_holder_stopped", {"gap_s": summary(gaps), "allowed_s": 0.5})
    assert max(gaps) <= 0.5


def test_a_holder_without_haproxy_gives_up_its_addresses(lab: Lab, address: str) -> None:
    gaps = []
    for _ in range(RUNS):
        holder = holders(lab, lab.groups["load_balancer"], address)[0]
        with client(lab, address) as probe:
            probe.watch(1)
            lab.run(holder, "systemctl stop haproxy")
            try:
                probe.watch(5)
            finally:
                lab.run(holder, "systemctl start haproxy")
            probe.watch(1)
        gaps.append(probe.record.longest_gap())
        settled(lab, address, other_than(lab, holder))
    results.record("vip_holder_without_haproxy", {"gap_s": summary(gaps), "allowed_s": 4})
    assert max(gaps) <= 4


DROP_VRRP = """
systemd-run --quiet --collect --on-active=60 nft destroy table inet drill  # also when this test is killed
nft add table inet drill
nft add chain inet drill in '{ type filter hook input priority -300; }'
nft add rule inet drill in meta l4proto vrrp drop
nft add chain inet drill out '{ type filter hook output priority -300; }'
nft add rule inet drill out meta l4proto vrrp drop
"""


def test_two_holders_become_one_when_they_see_each_other_again(lab: Lab, address: str) -> None:
    """Without VRRP between them both hold the address; clients are served all the while, and one yields after."""
    gaps, heals, gaps_after = [], [], []
    for _ in range(RUNS):
        holder = holders(lab, lab.groups["load_balancer"], address)[0]
        with client(lab, address) as probe:
            probe.watch(1)
            lab.run(holder, f"set -e; {DROP_VRRP}")
            try:
                wait_for(lambda: len(holders(lab, lab.groups["load_balancer"], address)) == 2, 5, "two holders")
                probe.watch(2)
            finally:
                lab.run(holder, "nft destroy table inet drill")
            healed = time.time()
            heals.append(_until_one(lab, address))
            probe.watch(3)
        gaps.append(probe.record.longest_gap(until=healed))
        gaps_after.append(probe.record.longest_gap(since=healed))
        assert len(holders(lab, lab.groups["load_balancer"], address)) == 1
    results.record(
        "vip_partition", {"gap_s": summary(gaps), "heal_s": summary(heals), "gap_after_heal_s": summary(gaps_after)}
    )
    assert max(heals) <= 5
    assert max(gaps + gaps_after) <= 1.5


def _until_one(lab: Lab, address: str) -> float:
    start = time.monotonic()
    wait_for(lambda: len(holders(lab, lab.groups["load_balancer"], address)) == 1, 5, "one holder")
    return time.monotonic() - start
