# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lab leaves behind on a machine is told apart from what was there and from what another lab needs."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.groundplane.onprem.plugins.modules import lab_machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

INIT = Path(__file__).resolve().parents[2] / "lab/image/files/usr/local/sbin/lab-init"
SAVED = """\
*filter
:FORWARD ACCEPT [0:0]
:NETAVARK_FORWARD - [0:0]
-A FORWARD -m comment --comment "netavark firewall plugin rules" -j NETAVARK_FORWARD
-A FORWARD -s 10.0.0.1/32 -j ACCEPT
-A NETAVARK_FORWARD -d 10.77.1.0/24 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A NETAVARK_FORWARD -s 10.77.1.0/24 -j ACCEPT
COMMIT
"""


def test_rules_of_finds_the_engines_chains_and_only_jumps_to_them() -> None:
    chains, rules = lab_machine.rules_of(SAVED)
    assert chains == ["NETAVARK_FORWARD"]
    assert rules == [("FORWARD", '-m comment --comment "netavark firewall plugin rules" -j NETAVARK_FORWARD')]


def test_foreign_names_another_labs_subnet_and_not_our_own() -> None:
    assert lab_machine.foreign(SAVED, ["10.77.1.0/24"]) == set()
    assert lab_machine.foreign(SAVED, ["10.78.1.0/24"]) == {"10.77.1.0/24"}


def test_overlapping_ignores_own_bridges_and_the_default_route() -> None:
    routes = [
        {"dst": "default", "dev": "eth0"},
        {"dst": "10.77.1.0/24", "dev": "podman1"},
        {"dst": "10.77.0.0/16", "dev": "podman9"},
    ]
    assert lab_machine.overlapping(routes, ["10.77.1.0/24"], {"podman1"}) == [("10.77.1.0/24", "podman9")]
    assert lab_machine.overlapping(routes, ["10.99.1.0/24"], set()) == []


def test_wanted_settings_raise_what_is_lower_and_never_lower_what_is_higher() -> None:
    has = {"kernel.panic": "1", "fs.inotify.max_user_instances": "128", "fs.inotify.max_user_watches": "1048576"}
    minimums = {"fs.inotify.max_user_instances": 8192, "fs.inotify.max_user_watches": 524288, "kernel.of.tomorrow": 1}
    settings = {"kernel.panic": 10, "vm.of.tomorrow": 1}
    wanted = lab_machine.wanted_settings(settings, minimums, has)
    assert wanted == {"kernel.panic": "10", "fs.inotify.max_user_instances": "8192"}
    assert lab_machine.wanted_settings(settings, minimums, has | wanted) == {}


CGROUPS = """\
13:hugetlb:/
11:net_cls,net_prio:/
9:name=systemd:/
4:memory:/somewhere
2:cpu,cpuacct:/
0::/
"""
MOUNTS = """\
tmpfs /sys/fs/cgroup tmpfs rw,relatime,mode=755 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime,nsdelegate 0 0
"""


def test_unmounted_names_the_hierarchies_that_only_hosts_of_a_lab_use() -> None:
    assert lab_machine.unmounted(CGROUPS, MOUNTS) == ["hugetlb", "net_cls,net_prio"]
    assert lab_machine.unmounted("0::/\n", "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n") == []


def test_remove_groups_leaves_those_of_a_container_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def here(_: str) -> Iterator[Path]:
        yield tmp_path

    monkeypatch.setattr(lab_machine, "unmounted", lambda *_: ["hugetlb"])
    monkeypatch.setattr(lab_machine, "hierarchy", here)
    ended, alive = tmp_path / "libpod_parent/libpod-1", tmp_path / "libpod_parent/libpod-2"
    (ended / "kubepods/pod1").mkdir(parents=True)
    (alive / "system.slice").mkdir(parents=True)
    (alive / "system.slice/cgroup.procs").write_text("42\n")
    told = ["hugetlb: libpod_parent/libpod-1"]
    assert lab_machine.remove_groups(check=True) == told
    assert ended.exists()
    assert lab_machine.remove_groups(check=False) == told
    assert not ended.exists()
    assert (alive / "system.slice/cgroup.procs").exists()
    assert lab_machine.remove_groups(check=False) == []


def test_the_first_process_of_a_node_is_a_shell_script_without_errors() -> None:
    assert INIT.stat().st_mode & 0o111 == 0o111
    subprocess.run(["sh", "-n", INIT], check=True)
