# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a boot gives a kernel is read as systemd-sysctl reads it, and a running kernel that differs is told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import kernel_settings


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("net.ipv4.ip_forward = 1", {"net.ipv4.ip_forward": "1"}),
        ("net.ipv4.ip_forward=1  ", {"net.ipv4.ip_forward": "1"}),
        ("net/ipv4/conf/eth0.100/rp_filter = 2", {"net.ipv4.conf.eth0/100.rp_filter": "2"}),
        ("-kernel.sysrq = 0", {"kernel.sysrq": "0"}),
        ("net.ipv4.tcp_rmem = 4096\t131072   6291456", {"net.ipv4.tcp_rmem": "4096 131072 6291456"}),
        ("# net.ipv4.ip_forward = 1", {}),
        ("; a remark", {}),
        ("net.ipv4.conf.*.rp_filter = 2", {}),
        ("-net.ipv4.conf.all.rp_filter", {}),
        ("", {}),
    ],
)
def test_lines(line: str, found: dict[str, str]) -> None:
    assert kernel_settings.parse(line) == found


def test_a_key_leads_to_its_file() -> None:
    assert kernel_settings.path_of("net.ipv4.conf.eth0/100.rp_filter") == Path(
        "/proc/sys/net/ipv4/conf/eth0.100/rp_filter"
    )


def test_the_later_name_holds_and_the_earlier_directory_hides(tmp_path: Path) -> None:
    for place, text in {
        "usr/lib/sysctl.d/50-default.conf": "kernel.sysrq = 438\nfs.suid_dumpable = 2\n",
        "usr/lib/sysctl.d/90-late.conf": "net.ipv4.ip_forward = 0\nkernel.panic = 9\n",
        "etc/sysctl.d/60-ours.conf": "kernel.sysrq = 0\nnet.ipv4.ip_forward = 1\n",
        "etc/sysctl.d/90-late.conf": "net.ipv4.ip_forward = 2\n",
        "etc/sysctl.d/notes.txt": "kernel.sysrq = 1\n",
    }.items():
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert kernel_settings.of_a_boot(tmp_path) == {
        "kernel.sysrq": "0",
        "fs.suid_dumpable": "2",
        "net.ipv4.ip_forward": "2",
    }


@pytest.mark.parametrize(
    ("pending", "value"),
    [
        ({}, "1"),
        ({"/etc/sysctl.d/60-ours.conf": "kernel.sysrq = 2\n"}, "2"),
        ({"/etc/sysctl.d/70-late.conf": "kernel.sysrq = 3\n"}, "3"),
        ({"/etc/sysctl.d/60-ours.conf": None}, "438"),
        ({"/etc/sysctl.conf": "kernel.sysrq = 4\n", "/etc/sysctl.d/readme": "kernel.sysrq = 5\n"}, "1"),
    ],
)
def test_a_boot_can_be_asked_about_files_that_are_not_there_yet(
    tmp_path: Path, pending: dict[str, str | None], value: str
) -> None:
    for place, number in (("usr/lib", 438), ("etc", 1)):
        (tmp_path / place / "sysctl.d").mkdir(parents=True)
        (tmp_path / place / "sysctl.d/60-ours.conf").write_text(f"kernel.sysrq = {number}\n")
    assert kernel_settings.of_a_boot(tmp_path, pending) == {"kernel.sysrq": value}


def test_what_differs_is_set_and_shown_and_in_check_mode_only_shown(tmp_path: Path) -> None:
    for key in ("kernel.sysrq", "kernel.panic"):
        path = kernel_settings.path_of(key, tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1\n")
    (tmp_path / "etc/sysctl.d").mkdir(parents=True)
    (tmp_path / "etc/sysctl.d/60-ours.conf").write_text("kernel.sysrq = 0\nkernel.panic = 1\nkernel.unknown = 1\n")
    keys = ["kernel.sysrq", "kernel.panic", "kernel.unknown", "kernel.elsewhere"]
    told = kernel_settings.bring(keys, check=True, root=tmp_path)
    assert kernel_settings.running(keys, tmp_path) == {"kernel.sysrq": "1", "kernel.panic": "1"}
    assert kernel_settings.bring(keys, check=False, root=tmp_path) == told
    assert (told["changed"], told["changed_settings"]) == (True, {"kernel.sysrq": "0"})
    assert (told["diff"]["before"], told["diff"]["after"]) == ("kernel.sysrq = 1\n", "kernel.sysrq = 0\n")
    assert kernel_settings.running(keys, tmp_path)["kernel.sysrq"] == "0"
    assert not kernel_settings.bring(keys, check=False, root=tmp_path)["changed"]


def test_a_setting_that_the_kernel_lacks_is_no_drift(tmp_path: Path) -> None:
    path = kernel_settings.path_of("net.ipv4.ip_forward", tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text("1\n")
    has = kernel_settings.running(["net.ipv4.ip_forward", "net.ipv4.tcp_rto_max_ms"], tmp_path)
    assert has == {"net.ipv4.ip_forward": "1"}
    assert kernel_settings.drift({"net.ipv4.ip_forward": "0", "net.ipv4.tcp_rto_max_ms": "5000"}, has) == {
        "net.ipv4.ip_forward": ("1", "0")
    }
    assert kernel_settings.drift({"net.ipv4.ip_forward": "1"}, has) == {}
