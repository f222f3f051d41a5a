# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Members of the control plane are lost for good, one, two or all, and playbooks bring the cluster back.

Every object is counted before and after, and a client's acknowledged writes are all there. GROUNDPLANE_RECOVERY=hosts
loses whole hosts in every drill; by default only the first does, and the others lose what their etcd held.
GROUNDPLANE_RUNS repeats each drill.
"""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_lease import Run, taken

from tests import results
from tests.faults.drill import RUNS, summary, wait_for
from tests.faults.kubernetes_clients import ApiReader, ApiWriter, fetcher, in_order

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.faults.kubernetes_clients import Account
    from tests.kubernetes import Cluster
    from tests.lab import Lab, Play

pytestmark = pytest.mark.nodes

HOSTS_TOO = os.environ.get("GROUNDPLANE_RECOVERY") == "hosts"
SECONDS_ALLOWED = 15 * 60
GAP_ALLOWED = 5.0
PASSING = {
    *("bindings", "componentstatuses", "controllerrevisions.apps", "csinodes.storage.k8s.io", "endpoints"),
    *("endpointslices.discovery.k8s.io", "events", "events.events.k8s.io", "leases.coordination.k8s.io", "nodes"),
    *("ciliumendpoints.cilium.io", "ciliumidentities.cilium.io", "ciliumnodes.cilium.io", "pods"),
    *("certificatesigningrequests.certificates.k8s.io", "volumeattachments.storage.k8s.io"),
}
"""Kinds whose objects come and go by themselves."""

Objects = dict[str, str]
"""Kind, namespace and name of each object to its uid."""


def counted(cluster: Cluster) -> Objects:
    """Every object that does not come and go by itself, except what proves a client or a node for a run."""
    kinds = set(cluster.kubectl("api-resources", "--verbs=list", "-o", "name").stdout.split()) - PASSING
    kinds = {kind for kind in kinds if not kind.endswith(".metrics.k8s.io")}
    listed = cluster.kubectl(
        *("get", ",".join(sorted(kinds)), "--all-namespaces", "--no-headers", "-o"),
        "custom-columns=:kind,:metadata.namespace,:metadata.name,:metadata.uid,:type",
        timeout=180,
    ).stdout
    rows = (line.split() for line in listed.splitlines())
    return {" ".join(row[:3]): row[3] for row in rows if row[4] != "bootstrap.kubernetes.io/token"}


def version(cluster: Cluster) -> int:
    """The resource version of now."""
    listed = cluster.raw("/api/v1/namespaces?limit=1")
    return int(listed["metadata"]["resourceVersion"])


def blank(lab: Lab, host: str) -> None:
    """The host comes back as a fresh server of the same name and keys: all that it held is gone."""
    lab.engine("rm", "--force", "--time", "0", "--volumes", host, timeout=120)
    for volume in lab.engine("volume", "ls", "--format", "{{.Name}}").stdout.split():
        if volume.startswith(f"lab-{host}-"):
            lab.engine("volume", "rm", "--force", volume)
    done = lab.local("ansible-playbook", "-i", str(lab.inventory), "playbooks/lab_up.yml", timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


def without_data(lab: Lab, host: str) -> None:
    """What etcd held is gone; the host and everything else on it stay."""
    lab.run(host, "kill -9 $(pgrep -xo etcd); rm -rf /var/lib/kubernetes-etcd/member; kill -9 $(pgrep -xo etcd) || :")


def lose(lab: Lab, hosts: list[str]) -> None:
    for host in hosts:
        (blank if HOSTS_TOO else without_data)(lab, host)


def play(lab: Lab, playbook: str, **variables: str) -> Play:
    """A playbook, with variables, to its end; what it needs of other hosts it finds there."""
    extra = [word for name, value in variables.items() for word in ("-e", f"{name}={value}")]
    done = lab.play(playbook, *extra, timeout=1800)
    assert done.returncode == 0, done.output[-6000:]
    return done


def restore(lab: Lab, snapshot: str, directory: Path) -> None:
    play(
        lab,
        "kubernetes_restore",
        kubernetes_restore_snapshot=snapshot,
        kubernetes_restore_confirm="lab",
        kubernetes_backup_directory=str(directory),
    )


class Seen:
    """The figures of a drill's runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.runs: dict[str, list[float]] = {}

    def add(self, **figures: float) -> None:
        """Those of one run."""
        for name, value in figures.items():
            self.runs.setdefault(name, []).append(value)

    def record(self, **allowed: float) -> None:
        """Keep them, and hold the worst against what is promised."""
        results.record(self.name, {name: summary(values) for name, values in self.runs.items()} | {"allowed": allowed})
        for name, most in allowed.items():
            assert max(self.runs[name]) <= most, name


@pytest.fixture
def sound(cluster: Cluster) -> Iterator[None]:
    """All nodes and pods are Ready before a drill and after it."""
    cluster.wait_until_sound()
    yield
    cluster.wait_until_sound(600)


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A directory of the controller for snapshots, and beside it one for keys."""
    return tmp_path / "snapshots"


def written(lab: Lab, account: Account) -> ApiWriter:
    """A client has written for a while, and everything was acknowledged."""
    with ApiWriter(lab, account) as writer:
        writer.watch(5)
    assert writer.record.failed == []
    return writer


def held(cluster: Cluster, before: Objects, newest: int, writer: ApiWriter) -> None:
    """Nothing is lost, nothing was made anew, and no client is told of an older state than it knows."""
    after = counted(cluster)
    assert {name: uid for name, uid in before.items() if after.get(name) != uid} == {}
    assert version(cluster) > newest
    outcome = writer.outcome()
    assert outcome.lost == 0
    assert outcome.acknowledged > 20


def members(cluster: Cluster) -> list[str]:
    listed = json.loads(cluster.etcdctl("member list --write-out=json"))["members"]
    return sorted(item["name"] for item in listed if not item.get("isLearner"))


@pytest.mark.usefixtures("sound")
def test_a_lost_host_of_the_control_plane_is_replaced_while_clients_go_on(
    lab: Lab, cluster: Cluster, drill_api: Account
) -> None:
    """The first one, where the cluster was made."""
    lost = cluster.control_plane[0]
    witness = cluster.control_plane[1]
    seen = Seen("kubernetes_control_plane_replaced")
    for _ in range(RUNS):
        before, newest = counted(cluster), version(cluster)
        with ApiWriter(lab, drill_api) as writer, ApiReader(lab, drill_api) as reader:
            start = time.monotonic()
            blank(lab, lost)
            boot = time.monotonic() - start
            play(lab, "kubernetes_node_replace", kubernetes_node=lost, kubernetes_node_lost="true")
            wait_for(lambda: f"node {lost}" not in cluster.unready(witness), 120, f"{lost} is Ready")
            seconds = time.monotonic() - start
        seen.add(
            seconds=seconds,
            blank_host_s=boot,
            write_gap_s=writer.record.longest_gap(),
            read_gap_s=reader.record.longest_gap(),
            objects=len(before),
        )
        assert in_order(reader.record, strictly=False)
        held(cluster, before, newest, writer)
        assert members(cluster) == sorted(cluster.control_plane)
        tokens = cluster.get("secrets", "-n", "kube-system", "--field-selector", "type=bootstrap.kubernetes.io/token")
        assert tokens["items"] == [], "what a node joined with is left"
        cluster.wait_until_sound(600)
    seen.record(seconds=SECONDS_ALLOWED, write_gap_s=GAP_ALLOWED, read_gap_s=GAP_ALLOWED)


@pytest.mark.usefixtures("sound")
def test_a_worker_leaves_and_comes_back_while_clients_go_on(lab: Lab, cluster: Cluster) -> None:
    worker = lab.groups["kubernetes_worker"][-1]
    seen = Seen("kubernetes_worker_removed")
    for _ in range(RUNS):
        with fetcher(lab, "bastion1", (*cluster.gateway, "/"), interval=0.05, patience=5) as pages:
            pages.watch(5)
            start = time.monotonic()
            play(lab, "kubernetes_node_remove", kubernetes_node=worker, kubernetes_node_confirm=worker)
            removed = time.monotonic()
            assert worker not in {node["metadata"]["name"] for node in cluster.get("nodes")["items"]}
            assert lab.out(worker, "pgrep -c kubelet || :") == "0"
            play(lab, "kubernetes_node_replace", kubernetes_node=worker)
            wait_for(lambda: f"node {worker}" not in cluster.unready(), 120, f"{worker} is Ready")
            back = time.monotonic()
            cluster.wait_until_sound(300)
            pages.watch(5)
        failed = [attempt.error for attempt in pages.record.failed]
        seen.add(
            removed_s=removed - start, back_s=back - removed, pages=len(pages.record.attempts), pages_failed=len(failed)
        )
        assert failed == []
    seen.record()


@pytest.mark.usefixtures("sound")
def test_two_of_three_members_are_lost_and_the_third_has_everything(
    lab: Lab, cluster: Cluster, drill_api: Account, backup: Path
) -> None:
    seen = Seen("kubernetes_two_members_lost")
    survivor, *lost = cluster.control_plane
    for _ in range(RUNS):
        writer = written(lab, drill_api)
        before, newest = counted(cluster), version(cluster)
        start = time.monotonic()
        lose(lab, lost)
        restore(lab, "survivor", backup)
        cluster.wait_until_sound(600, survivor)
        seen.add(seconds=time.monotonic() - start, objects=len(before), hosts_too=HOSTS_TOO)
        held(cluster, before, newest, writer)
        assert members(cluster) == sorted(cluster.control_plane)
    seen.record(seconds=SECONDS_ALLOWED)


@pytest.mark.usefixtures("sound")
def test_all_members_are_lost_and_the_newest_snapshot_has_everything(
    lab: Lab, cluster: Cluster, drill_api: Account, backup: Path
) -> None:
    seen = Seen("kubernetes_all_members_lost")
    for _ in range(RUNS):
        writer = written(lab, drill_api)
        before, newest = counted(cluster), version(cluster)
        play(lab, "kubernetes_backup", kubernetes_backup_directory=str(backup))
        assert list(backup.glob("etcd-*.db")), "no snapshot is on the controller"
        assert {path.stat().st_mode & 0o077 for path in backup.parent.rglob("*") if path.is_file()} == {0}
        start = time.monotonic()
        lose(lab, cluster.control_plane)
        restore(lab, "newest", backup)
        cluster.wait_until_sound(600)
        seen.add(seconds=time.monotonic() - start, objects=len(before), hosts_too=HOSTS_TOO)
        held(cluster, before, newest, writer)
        assert members(cluster) == sorted(cluster.control_plane)
    seen.record(seconds=SECONDS_ALLOWED)


def certificates(cluster: Cluster) -> dict[str, str]:
    """The serial number of what each API server shows, and of each file that kubeadm keeps, by host and name."""
    files = "/etc/kubernetes/pki/*.crt /etc/kubernetes/pki/etcd/*.crt"
    serial = "openssl x509 -noout -serial"
    found: dict[str, str] = {}
    for host in cluster.control_plane:
        greeting = f"openssl s_client -connect {cluster.lab.address(host)}:6443 </dev/null 2>&1"
        shown = cluster.lab.out(
            host,
            f"for file in {files}; do echo $file $({serial} -in $file); done; echo served $({greeting} | {serial})",
        )
        found |= {f"{host} {name}": serial for name, serial in (line.split() for line in shown.splitlines())}
    return {name: serial for name, serial in found.items() if not name.endswith("ca.crt")}


@pytest.mark.usefixtures("sound")
def test_all_certificates_are_renewed_while_clients_go_on(lab: Lab, cluster: Cluster, drill_api: Account) -> None:
    """What was served before is served by nobody afterwards, and a run later has nothing to do."""
    seen = Seen("kubernetes_certificates_renewed")
    for _ in range(RUNS):
        before = certificates(cluster)
        with (
            fetcher(lab, "bastion1", (*cluster.gateway, "/"), interval=0.05, patience=5) as pages,
            ApiWriter(lab, drill_api) as writer,
            ApiReader(lab, drill_api) as reader,
        ):
            writer.watch(2)
            start = time.monotonic()
            play(lab, "kubernetes_certificates", kubernetes_certificates_days="400")
            seconds = time.monotonic() - start
            writer.watch(2)
        after = certificates(cluster)
        assert before.keys() == after.keys()
        assert {name for name in before if before[name] == after[name]} == set()
        seen.add(
            seconds=seconds,
            write_gap_s=writer.record.longest_gap(),
            read_gap_s=reader.record.longest_gap(),
            pages=len(pages.record.attempts),
            pages_failed=len(pages.record.failed),
        )
        assert in_order(reader.record, strictly=False)
        assert writer.outcome().lost == 0
        assert pages.record.failed == []
        assert play(lab, "kubernetes_certificates").changed == {}
    seen.record(write_gap_s=GAP_ALLOWED, read_gap_s=GAP_ALLOWED)


def test_a_run_of_another_operator_is_not_joined(lab: Lab, cluster: Cluster) -> None:
    """What the cluster's lease says is asked before anything is changed."""
    run = Run("ann", "deploy2", "another boot", 4711, 99, cluster.control_plane[-1])
    lease = taken({}, run, 600, datetime.now(UTC), name="groundplane")
    cluster.kubectl("delete", "lease", "-n", "kube-system", "groundplane", "--ignore-not-found")
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(lease))
    before = certificates(cluster)
    try:
        refused = lab.play("kubernetes_certificates", "-e", "kubernetes_certificates_days=400")
    finally:
        cluster.kubectl("delete", "lease", "-n", "kube-system", "groundplane")
    assert refused.returncode != 0
    assert f"ann on deploy2 changes the cluster, at {run.member}, with process 4711" in refused.output
    assert refused.changed == {}
    assert certificates(cluster) == before


def test_snapshots_are_taken_often_enough(cluster: Cluster) -> None:
    """What may be lost, when all members are, is what was written since the newest snapshot."""
    for host in cluster.control_plane:
        shown = cluster.lab.out(host, "systemctl list-timers --output=json kubernetes-snapshot.timer")
        (timer,) = json.loads(shown)
        now = float(cluster.lab.out(host, "date +%s"))
        assert timer["next"] / 1e6 - now <= SECONDS_ALLOWED, host
