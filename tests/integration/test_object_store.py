# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running object store: who is let in, where its secret is, and which changes it takes one server at a time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.object_store import UNIT, ObjectStore

if TYPE_CHECKING:
    from tests.lab import Lab

CLIENT = "router1"
PLAY = "../tests/integration/object_store"


@pytest.fixture(scope="module")
def store(lab: Lab) -> ObjectStore:
    """The lab's servers."""
    return ObjectStore(lab)


def test_every_server_is_active_comes_back_with_its_host_and_could_be_spared(lab: Lab, store: ObjectStore) -> None:
    assert len(store.hosts) >= 4
    for host in store.hosts:
        assert lab.out(host, f"systemctl is-active {UNIT}") == "active"
        assert lab.out(host, f"systemctl is-enabled {UNIT}") == "enabled"
    store.wait_until_sound()


def test_nobody_is_let_in_without_tls_and_a_signature(lab: Lab, store: ObjectStore) -> None:
    for host in store.hosts:
        assert store.status(host, "/minio/health/cluster") == "200"
        assert store.status(host, "/") == "403"
        assert store.status(host, "/minio/health/live", scheme="http") != "200"


def test_the_virtual_address_leads_to_a_server_under_its_own_name(lab: Lab, store: ObjectStore) -> None:
    vip = lab.vip()
    assert store.ask(CLIENT, f"s3.{store.domain}", "/minio/health/cluster", address=vip) == "200"


def test_the_secret_is_in_one_file_alone(lab: Lab, store: ObjectStore) -> None:
    for host in store.hosts:
        process = lab.out(host, f"systemctl show --property MainPID --value {UNIT}")
        # It comes by standard input: an argument would be there for all of the host to see.
        look = (
            f'read -r word && ! cat /proc/{process}/environ /proc/{process}/cmdline | grep --quiet --text -F -- "$word"'
        )
        lab.run(host, look, stdin=f"{store.password}\n")


def test_files_belong_to_whom_they_should(lab: Lab, store: ObjectStore) -> None:
    expected = {
        "/etc/object_store/minio.yml": "400 object_store object_store",
        "/etc/object_store/tls/server.key": "600 object_store object_store",
        "/etc/object_store/formed": "644 root root",
        "/opt/object_store": "755 root root",
    }
    for host in store.hosts:
        drives = dict.fromkeys(store.drives(host), "700 object_store object_store")
        for path, said in {**expected, **drives}.items():
            assert lab.out(host, f"stat -c '%a %U %G' {path}") == said, (host, path)


def test_the_unit_is_confined(lab: Lab, store: ObjectStore) -> None:
    said = lab.out(store.hosts[0], f"systemd-analyze security {UNIT} | tail -1")
    assert float(said.split(f"{UNIT}:")[1].split()[0]) <= 2.0, said


def test_what_is_declared_is_there_and_a_second_time_nothing_changes(store: ObjectStore) -> None:
    bucket = {"name": "integration", "versioning": "enabled", "quota_bytes": 1 << 30}
    try:
        store.resources(buckets=[bucket])
        assert not store.resources(buckets=[bucket])["changed"]
    finally:
        store.resources(buckets=[{"name": "integration", "state": "absent"}])


def test_all_servers_have_the_same_on_record(lab: Lab, store: ObjectStore) -> None:
    records = [json.loads(lab.out(host, "cat /etc/object_store/formed")) for host in store.hosts]
    assert records == [records[0]] * len(store.hosts)
    drives = [drive for pool in records[0]["pools"] for drive in pool]
    assert len(drives) == sum(len(store.drives(host)) for host in store.hosts)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"object_store_region": "eu-north-1"}, "object_store_restart.yml"),
        ({"object_store_drives": ["/srv/object_store/another"]}, "a store grows by a further object_store_pool"),
    ],
)
def test_what_does_not_roll_is_refused_and_nobody_is_touched(
    lab: Lab, store: ObjectStore, change: dict[str, object], says: str
) -> None:
    def state() -> list[str]:
        look = f"systemctl show --property MainPID --value {UNIT}; sha256sum /etc/object_store/minio.yml"
        return [lab.out(host, look) for host in store.hosts]

    before = state()
    play = lab.play(PLAY, "--limit", ",".join(store.hosts), "-e", json.dumps(change))
    assert play.returncode != 0
    assert says in " ".join(play.output.split())
    assert state() == before


def test_a_run_changes_nothing(lab: Lab, store: ObjectStore) -> None:
    play = lab.play(PLAY, "--limit", ",".join(store.hosts))
    assert play.returncode == 0, play.output[-4000:]
    assert play.changed == {}, play.changes
