# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client notices when the master freezes, crashes, is cut off or hands over; what is lost is in the window.

Redis acknowledges before replicas have a write: a master that is lost takes along what they had not got, and one that
is cut off takes writes for `redis_min_replicas_max_lag` seconds more. Beyond that nothing may be lost, and by a planned
change nothing at all.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.drill import RUNS, standing_still, wait_for
from tests.faults.outcomes import Drill
from tests.faults.redis_writer import RedisWriter
from tests.faults.test_postgres_faults import PART
from tests.redis import Redis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab

CLIENT = "router1"
FAILOVER_GAP = 10.0
"""Seconds without an acknowledgement: 5 until the master is missed, then the vote, and the balancers' next checks."""
PLANNED_GAP = 3.0
UNREPLICATED = 1.0
"""Seconds before a master is lost whose writes it may take along: replicas are milliseconds behind."""
LAG = 10.0
"""redis_min_replicas_max_lag, after which a master that is cut off takes no more."""
ALLOWANCE = 3.0
"""Seconds until a master has noticed that, and the two clocks of a drill agree."""


@pytest.fixture(scope="session")
def redis(lab: Lab) -> Redis:
    """The lab's servers and Sentinels."""
    return Redis(lab)


@pytest.fixture
def runs(redis: Redis) -> Iterator[range]:
    """The runs of a drill; before the first and after the last all members are as they should be."""
    redis.wait_until_sound()
    yield range(RUNS)
    redis.wait_until_sound()


class RedisDrill(Drill):
    """A drill that may lose what was written in a window, and nothing else."""

    def add_within(self, writer: RedisWriter, since: float, until: float) -> None:
        """Read all back, keep what was seen, and look whether what is lost was written in the window.

        Args:
            writer: who wrote.
            since: begin of the window, in seconds since the epoch.
            until: its end.
        """
        self.add(writer)
        outside = [one for one in writer.lost() if not (one.acked and since <= one.acked <= until)]
        assert outside == [], f"{len(outside)} acknowledged writes are lost that no fault explains"


def test_a_frozen_master_is_replaced_and_comes_back_as_a_replica(lab: Lab, redis: Redis, runs: range) -> None:
    """Its kernel still takes connections; when it goes on, it believes for a moment that it is the master."""
    drill = RedisDrill("redis_master_frozen")
    for _ in runs:
        master = redis.master()
        with RedisWriter(redis, CLIENT) as writer:
            writer.watch(1)
            with standing_still(lab, master, "redis-server"):
                start = time.time()
                writer.recovered(start + 1, 60)
                writer.watch(2)
                heir = redis.master(besides=master)
            writer.watch(3)
            redis.wait_until_sound()
            assert redis.master() == heir != master
            assert redis.role(master) == "slave"
        drill.add_within(writer, start - UNREPLICATED, start + ALLOWANCE)
    drill.record()
    assert drill.gap <= FAILOVER_GAP


def test_a_killed_master_that_stays_away_is_replaced(lab: Lab, redis: Redis, runs: range) -> None:
    drill = RedisDrill("redis_master_killed")
    for _ in runs:
        master = redis.master()
        timer = (
            "systemd-run --quiet --collect --unit=groundplane-drill-redis --on-active=120 systemctl start redis-server"
        )
        with RedisWriter(redis, CLIENT) as writer:
            writer.watch(1)
            start = time.time()
            lab.run(master, f"{timer}; kill -9 $(pgrep -xo redis-server); systemctl stop redis-server")
            try:
                writer.recovered(start + 1, 60)
                writer.watch(2)
            finally:
                lab.run(
                    master, "systemctl start redis-server; systemctl stop groundplane-drill-redis.timer", timeout=120
                )
            redis.wait_until_sound()
            assert redis.master() != master
        drill.add_within(writer, start - UNREPLICATED, start + ALLOWANCE)
    drill.record()
    assert drill.gap <= FAILOVER_GAP


def test_a_master_that_lost_its_data_empties_nobody(lab: Lab, redis: Redis, runs: range) -> None:
    """It is back before the Sentinels miss it, with nothing."""
    drill = RedisDrill("redis_master_emptied")
    aside = "/var/lib/redis.of-a-drill"
    for _ in runs:
        master = redis.master()
        with RedisWriter(redis, CLIENT) as writer:
            writer.watch(1)
            start = time.time()
            lab.run(
                master,
                f"systemctl kill --signal KILL --kill-whom all redis-server; systemctl stop redis-server;"
                f" rm -rf {aside}; mv /var/lib/redis {aside}; systemctl start --no-block redis-server",
            )
            writer.recovered(start + 1, 60)
            writer.watch(2)
            redis.wait_until_sound()
            assert redis.master() != master
        lab.run(master, f"rm -rf {aside}")
        drill.add_within(writer, start - UNREPLICATED, start + ALLOWANCE)
    drill.record()
    assert drill.gap <= FAILOVER_GAP


def test_a_master_that_is_cut_off_from_the_others_soon_takes_no_more(lab: Lab, redis: Redis, runs: range) -> None:
    """Clients still reach it, and the balancers; neither its replicas nor the other Sentinels do."""
    drill = RedisDrill("redis_master_cut_off")
    for _ in runs:
        master = redis.master()
        peers = ", ".join(lab.address(host) for host in redis.others(master))
        with RedisWriter(redis, CLIENT) as writer:
            writer.watch(1)
            start = time.time()
            lab.run(master, f"set -e; {PART.format(peers=peers)}")
            try:
                heir = redis.master(besides=master)
                # The balancers leave the old one when it takes no more, and clients reach the new one.
                writer.recovered(start + LAG + ALLOWANCE, 30)
                writer.watch(2)
            finally:
                lab.run(master, "nft destroy table inet drill; systemctl stop drill-heal.timer")
            redis.wait_until_sound()
            wait_for(lambda heir=heir: redis.master() == heir, 60, f"{heir} stays the master")
        drill.add_within(writer, start - UNREPLICATED, start + LAG + ALLOWANCE)
    drill.record()
    assert drill.gap <= LAG + FAILOVER_GAP


def test_all_members_are_restarted_under_load_and_nothing_is_lost(lab: Lab, redis: Redis, runs: range) -> None:
    drill = RedisDrill("redis_rolling_restart")
    for _ in runs:
        before = {host: lab.out(host, "pgrep -xo redis-server") for host in redis.hosts}
        with RedisWriter(redis, CLIENT) as writer:
            play = lab.play("rolling_restart", "--tags", "redis", "--limit", ",".join(redis.hosts))
            assert play.returncode == 0, play.output[-4000:]
            writer.watch(2)
        assert not [host for host in redis.hosts if lab.out(host, "pgrep -xo redis-server") == before[host]]
        drill.add_within(writer, 0, 0)
    drill.record()
    assert drill.gap <= PLANNED_GAP


def test_all_data_come_back_from_a_copy_in_the_object_store(lab: Lab, redis: Redis) -> None:
    redis.wait_until_sound()
    with RedisWriter(redis, CLIENT) as before:
        before.watch(3)
    there = before.there()
    taken = redis.others(redis.master())[0]
    lab.run(taken, "systemctl start redis-backup.service", timeout=120)
    said = json.loads(lab.out(taken, "journalctl --unit redis-backup --output cat --lines 20 | grep sha256 | tail -1"))
    assert said["keys"] >= len(there) > 0
    with RedisWriter(redis, CLIENT) as later:
        later.watch(2)
    unsure = lab.play("redis_restore", "-e", "redis_restore_confirm=elsewhere")
    assert unsure.returncode != 0
    assert later.there(), "a restore that was refused touched the data"
    # A timer may have put a newer one there meanwhile.
    moment = said["name"].removeprefix(f"{taken}-").removesuffix(".rdb")
    play = lab.play("redis_restore", "-e", "redis_restore_confirm=lab", "-e", f"redis_restore_moment={moment}")
    assert play.returncode == 0, play.output[-4000:]
    assert said["sha256"] in play.output
    redis.wait_until_sound()
    assert before.there() == there
    assert later.there() == set()
    for host in redis.hosts:
        aside = lab.out(host, "ls -d /var/lib/redis/aside-*").split()
        assert len(aside) == 1
        lab.run(host, f"rm -r {aside[0]}")
    again = lab.play("../tests/integration/redis", "--limit", ",".join(redis.hosts))
    assert again.returncode == 0, again.output[-4000:]
    assert again.changed == {}, again.changes
