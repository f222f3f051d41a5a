# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client that writes notices when a member of the database freezes, hands over, crashes; no write is lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.cluster import etcd_leader, wait_until_sound
from tests.faults.drill import RUNS, frozen, wait_for
from tests.faults.outcomes import WitnessedDrill
from tests.faults.postgres_writer import Witnesses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.postgres_writer import Writer
    from tests.lab import Lab


@pytest.fixture
def runs(lab: Lab) -> Iterator[range]:
    """The runs of a drill; before the first and after the last the cluster is sound."""
    wait_until_sound(lab)
    yield range(RUNS)
    wait_until_sound(lab)


def others(lab: Lab, host: str) -> list[str]:
    return [member for member in lab.groups["postgres"] if member != host]


def test_a_frozen_primary_is_replaced_and_comes_back_as_a_standby(
    lab: Lab, postgres_writer: Writer, runs: range
) -> None:
    drill = WitnessedDrill("postgres_primary_frozen")
    for _ in runs:
        wait_until_sound(lab)
        with Witnesses(lab) as witnesses, postgres_writer:
            primary = witnesses.leader()
            postgres_writer.watch(1)
            with frozen(lab, primary):
                start = time.time()
                postgres_writer.recovered(start, 60)
                postgres_writer.watch(2)
                heir = witnesses.leader()
            returned = wait_until_sound(lab, heir)
            assert witnesses.leader() == heir != primary
        drill.add_witnessed(postgres_writer, witnesses, standby_again_s=returned)
    drill.record()
    drill.holds(gap=30)


def test_a_planned_switchover_is_short(lab: Lab, postgres_writer: Writer, runs: range) -> None:
    drill = WitnessedDrill("postgres_switchover")
    for _ in runs:
        wait_until_sound(lab)
        with Witnesses(lab) as witnesses, postgres_writer:
            primary = witnesses.leader()
            play = lab.play("switchover")
            assert play.returncode == 0, play.output
            postgres_writer.watch(3)
            assert witnesses.leader() != primary
            wait_until_sound(lab)
        drill.add_witnessed(postgres_writer, witnesses)
    drill.record()
    drill.holds(gap=3)


def test_a_killed_postmaster_is_back_soon(lab: Lab, postgres_writer: Writer, runs: range) -> None:
    drill = WitnessedDrill("postgres_postmaster_killed")
    for _ in runs:
        wait_until_sound(lab)
        with Witnesses(lab) as witnesses, postgres_writer:
            primary = witnesses.leader()
            start = time.time()
            lab.run(primary, "kill -9 $(head -n 1 /var/lib/postgresql/*/*/postmaster.pid)")
            # The kill was somewhere in these seconds: the gap is the writer's.
            postgres_writer.recovered(start + 2, 60)
            wait_until_sound(lab)
        drill.add_witnessed(postgres_writer, witnesses)
        assert drill.outcomes[-1].failed > 0, "the writer noticed nothing: was it the postmaster?"
    drill.record()
    drill.holds(gap=10)


def test_a_frozen_standby_stalls_no_commit(lab: Lab, postgres_writer: Writer, runs: range) -> None:
    drill = WitnessedDrill("postgres_standby_frozen")
    for _ in runs:
        wait_until_sound(lab)
        with Witnesses(lab) as witnesses, postgres_writer:
            primary = witnesses.leader()
            standby = others(lab, primary)[0]
            with frozen(lab, standby):
                # Longer than the time after which its session is given up.
                postgres_writer.watch(15)
            returned = wait_until_sound(lab, primary)
            assert witnesses.leader() == primary
        drill.add_witnessed(postgres_writer, witnesses, standby_again_s=returned)
    drill.record()
    drill.holds(gap=1.5)


CONTINUE = "systemctl kill --signal CONT --kill-whom main patroni"


def test_patroni_that_stands_still_is_no_second_primary(lab: Lab, postgres_writer: Writer, runs: range) -> None:
    """Without a watchdog its PostgreSQL goes on, while another member leads: nothing that it takes is acknowledged."""
    drill = WitnessedDrill("postgres_patroni_stopped")
    for _ in runs:
        wait_until_sound(lab)
        with Witnesses(lab) as witnesses, postgres_writer:
            primary = witnesses.leader()
            # The timer wakes it also when this test is killed.
            lab.run(
                primary,
                f"systemd-run --quiet --collect --on-active=90 {CONTINUE}; "
                "systemctl kill --signal STOP --kill-whom main patroni",
            )
            try:
                heir = witnesses.leader(besides=primary)
                postgres_writer.recovered(time.time(), 60)
                postgres_writer.watch(3)
            finally:
                lab.run(primary, CONTINUE)
            returned = wait_until_sound(lab, heir)
        drill.add_witnessed(postgres_writer, witnesses, standby_again_s=returned)
    drill.record()
    drill.holds(gap=30)


# The timer heals the host also when this test is killed.
PART = """
systemd-run --quiet --collect --unit drill-heal --on-active=120 nft destroy table inet drill
nft -f - <<'END'
add table inet drill
add set inet drill peers {{ type ipv4_addr; elements = {{ {peers} }}; }}
add chain inet drill in {{ type filter hook input priority -300; }}
add rule inet drill in ip saddr @peers drop
add chain inet drill out {{ type filter hook output priority -300; }}
add rule inet drill out ip daddr @peers drop
END
"""


def test_a_primary_cut_off_from_its_peers_acknowledges_nothing(lab: Lab, postgres_writer: Writer, runs: range) -> None:
    """Clients still reach it, and its Patroni runs; neither its store nor its standbys answer."""
    drill = WitnessedDrill("postgres_primary_cut_off")
    for _ in runs:
        wait_until_sound(lab)
        with Witnesses(lab) as witnesses, postgres_writer:
            primary = witnesses.leader()
            peers = others(lab, primary)
            part = PART.format(peers=", ".join(lab.address(host) for host in peers))
            lab.run(primary, f"set -e; {part}")
            try:
                heir = witnesses.leader(besides=primary)
                postgres_writer.recovered(time.time(), 60)
                postgres_writer.watch(3)
            finally:
                lab.run(primary, "nft destroy table inet drill; systemctl stop drill-heal.timer")
            healed = time.monotonic()
            returned = wait_until_sound(lab, heir)
            wait_for(lambda: etcd_leader(lab), 120, "every member of the store follows one leader")
        drill.add_witnessed(
            postgres_writer, witnesses, standby_again_s=returned, store_again_s=time.monotonic() - healed
        )
    drill.record()
    drill.holds(gap=30)
