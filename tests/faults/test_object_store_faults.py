# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client notices when a server is killed or freezes, two are away, bytes rot, and all are restarted.

An object that was acknowledged is on three of four drives: nothing may ever be lost.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.faults.drill import RUNS, down, stopped, wait_for
from tests.faults.object_store_writer import BUCKET, StoreClient
from tests.faults.outcomes import Drill
from tests.object_store import UNIT, ObjectStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab

CLIENT = "router1"
KILLED_GAP = 5.0
"""Seconds without an acknowledgement: until the balancers' checks miss the server, and a request was sent again."""
FROZEN_GAP = 60.0
"""Servers wait for a drive that does not answer, and the client, which gives up after 10 s, for one after the other."""
PLANNED_GAP = 3.0
HEALED = 60.0
"""Seconds in which a few dozen parts that have rotted are written again."""


@pytest.fixture(scope="session")
def store(lab: Lab) -> ObjectStore:
    """The lab's servers, with a bucket for drills."""
    store = ObjectStore(lab)
    store.resources(buckets=[{"name": BUCKET, "lifecycle": [{"id": "drills", "expire_days": 1}]}])
    return store


@pytest.fixture
def runs(store: ObjectStore) -> Iterator[range]:
    """The runs of a drill; before the first and after the last all servers are as they should be."""
    store.wait_until_sound()
    yield range(RUNS)
    store.wait_until_sound()


def test_one_of_four_is_killed_and_no_client_notices(lab: Lab, store: ObjectStore, runs: range) -> None:
    drill = Drill("object_store_server_killed")
    for turn in runs:
        with StoreClient(store, CLIENT) as client:
            client.watch(1)
            with down(lab, [store.hosts[turn % len(store.hosts)]], UNIT):
                client.watch(10)
            store.wait_until_sound()
        drill.add(client)
    drill.record()
    drill.holds(KILLED_GAP)
    assert sum(outcome.failed for outcome in drill.outcomes) == 0


def test_one_of_four_freezes_and_writes_go_on(lab: Lab, store: ObjectStore, runs: range) -> None:
    """Its kernel still takes connections, of clients and of the other servers."""
    drill = Drill("object_store_server_frozen")
    for turn in runs:
        with StoreClient(store, CLIENT) as client:
            client.watch(1)
            with stopped(lab, store.hosts[turn % len(store.hosts)], UNIT, seconds=120):
                client.watch(60)
                late = time.time() - 15
                assert any(one.sent > late for one in client.record.acknowledged), "writes never came back"
            store.wait_until_sound()
        drill.add(client)
    drill.record()
    drill.holds(FROZEN_GAP)


def test_two_of_four_are_away_and_all_is_read_and_no_write_pretends(lab: Lab, store: ObjectStore, runs: range) -> None:
    drill = Drill("object_store_two_away")
    for _ in runs:
        with StoreClient(store, CLIENT) as writer:
            writer.watch(3)
        there = writer.unbroken()
        with StoreClient(store, CLIENT, writer.prefix, there) as reader, StoreClient(store, CLIENT) as refused:
            with down(lab, store.hosts[-2:], UNIT):
                # Until the two that are left have missed them.
                reader.watch(10)
                start = time.time()
                reader.watch(10)
                assert reader.failed_since(start) == []
                assert [one for one in refused.record.acknowledged if one.sent > start] == []
                assert refused.failed_since(start)
            store.wait_until_sound()
            refused.watch(2)
        drill.add(refused)
    drill.record()
    drill.holds(float("inf"))


def test_bytes_that_rot_are_never_given_to_a_client_and_are_healed(lab: Lab, store: ObjectStore, runs: range) -> None:
    for turn in runs:
        with StoreClient(store, CLIENT) as writer:
            writer.watch(1)
        host = store.hosts[turn % len(store.hosts)]
        parts = f"{store.drives(host)[0]}/{BUCKET}/{writer.prefix}*/*/part.1"
        spoilt = lab.out(
            host,
            f"for part in {parts}; do printf rotten | dd of=$part bs=1 seek=1000 conv=notrunc status=none; done;"
            f" ls {parts} | wc -l",
        )
        assert int(spoilt) >= 10
        there = writer.unbroken()
        with StoreClient(store, CLIENT, writer.prefix, there, server=host) as reader:
            reader.watch(0.1 * there + 3)
        assert reader.record.failed == []
        assert {int(one.answer) for one in reader.record.acknowledged} == set(range(there))
        # MinIO's scanner does by itself once in object_store_bitrot_scan_months.
        writer.heal()
        rotten = f"grep --files-with-matches --text rotten {parts} || true"
        wait_for(lambda host=host, rotten=rotten: not lab.out(host, rotten), HEALED, "what has rotted is whole again")


def test_a_full_drive_takes_nothing_and_all_is_read(lab: Lab, store: ObjectStore, runs: range) -> None:
    """It comes empty, as a new disk does, and is healed; then somebody else takes all of its room.

    MinIO refuses what would need room on a full drive, also while the others of its pool have enough.
    """
    drill = Drill("object_store_drive_full")
    for turn in runs:
        host = store.hosts[turn % len(store.hosts)]
        drive = store.drives(host)[0]
        with another_drive(lab, host, drive):
            store.wait_until_sound()
            with StoreClient(store, CLIENT) as writer:
                writer.watch(2)
                lab.run(host, f"dd if=/dev/zero of={drive}/filler bs=1M status=none || true")
                wait_for(lambda writer=writer: writer.record.failed, 30, "a write is refused")
                there = writer.unbroken()
                with StoreClient(store, CLIENT, writer.prefix, there) as reader:
                    reader.watch(5)
                assert reader.record.failed == []
                assert {attempt.error[:22] for attempt in writer.record.failed} == {"ConnectionError: 507 b"}
                lab.run(host, f"rm {drive}/filler")
                moment = time.time()
                wait_for(
                    lambda writer=writer, moment=moment: any(one.sent > moment for one in writer.record.acknowledged),
                    30,
                    "writes go on once there is room",
                )
            drill.add(writer)
    drill.record()
    drill.holds(float("inf"))


@contextmanager
def another_drive(lab: Lab, host: str, drive: str, seconds: int = 420) -> Iterator[None]:
    """An empty file system of 384 MiB is where a drive is, and gone afterwards, also when this test was killed."""
    back = f"systemctl stop {UNIT}; umount {drive}; systemctl start {UNIT}"
    timer = f"systemd-run --quiet --collect --unit=groundplane-drill-drive --on-active={seconds} sh -c '{back}'"
    mount = f"mount -t tmpfs -o size=384m,mode=700,uid=object_store,gid=object_store drill {drive}"
    try:
        lab.run(host, f"{timer} && systemctl stop {UNIT} && {mount} && systemctl start {UNIT}")
        yield
    finally:
        lab.run(host, f"systemctl stop groundplane-drill-drive.timer; {back}")


def test_all_servers_are_restarted_under_load_and_no_client_notices(lab: Lab, store: ObjectStore, runs: range) -> None:
    drill = Drill("object_store_rolling_restart")
    for _ in runs:
        before = {host: lab.out(host, f"systemctl show --property MainPID --value {UNIT}") for host in store.hosts}
        with StoreClient(store, CLIENT) as client:
            play = lab.play("rolling_restart", "--tags", "object_store", "--limit", ",".join(store.hosts))
            assert play.returncode == 0, play.output[-4000:]
            client.watch(2)
        after = {host: lab.out(host, f"systemctl show --property MainPID --value {UNIT}") for host in store.hosts}
        assert not [host for host in store.hosts if after[host] == before[host]]
        drill.add(client)
    drill.record()
    drill.holds(PLANNED_GAP)
    assert sum(outcome.failed for outcome in drill.outcomes) == 0
