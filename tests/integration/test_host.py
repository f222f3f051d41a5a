# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts, their clocks and the way in: what holds on the running lab, asked of the programs and not of their files."""

from __future__ import annotations

import subprocess
import time
import uuid
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.lab import Lab

NODES = ["cp1", "cp2", "cp3", "worker1", "worker2"]
HOSTS = ["router1", "bastion1", "lb1", "lb2", "data1", "data2", "data3"]
EVERY = [*HOSTS, *(pytest.param(host, marks=pytest.mark.nodes) for host in NODES)]
BASTION = "bastion1"
TIME_SERVER = "bastion1"


def ssh(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    """SSH from this machine, in a connection of its own."""
    return subprocess.run(
        ["ssh", "-F", str(lab.directory / "ssh_config"), "-o", "ControlPath=none", "-o", "BatchMode=yes", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("host", EVERY)
def test_every_host_knows_every_name(lab: Lab, host: str) -> None:
    domain = lab.hostvars[host]["site_domain"]
    wanted: dict[str, str] = {}
    for peer in [*HOSTS, *NODES]:
        wanted |= dict.fromkeys([peer, f"{peer}.{domain}"], lab.address(peer))
    wanted[f"primary.postgres.{domain}"] = lab.vip()
    # A host knows itself by its address too: certificates are for that, not for a loopback.
    found = lab.out(host, f"for name in {' '.join(wanted)}; do getent ahostsv4 $name | head -1; done").splitlines()
    assert dict(zip(wanted, (line.split()[0] for line in found), strict=True)) == wanted


@pytest.mark.parametrize("host", EVERY)
def test_sshd_is_hardened(lab: Lab, host: str) -> None:
    settings: dict[str, str] = dict(line.split(" ", 1) for line in lab.out(host, "sshd -T").splitlines() if " " in line)
    assert {
        key: settings[key]
        for key in (
            "permitrootlogin",
            "passwordauthentication",
            "kbdinteractiveauthentication",
            "permitemptypasswords",
            "hostbasedauthentication",
            "x11forwarding",
            "allowagentforwarding",
            "permituserenvironment",
            "maxauthtries",
        )
    } == {
        "permitrootlogin": "no",
        "passwordauthentication": "no",
        "kbdinteractiveauthentication": "no",
        "permitemptypasswords": "no",
        "hostbasedauthentication": "no",
        "x11forwarding": "no",
        "allowagentforwarding": "no",
        "permituserenvironment": "no",
        "maxauthtries": "4",
    }
    assert settings["disableforwarding"] == ("no" if host == BASTION else "yes")
    weak = (
        "cbc",
        "3des",
        "arcfour",
        "chacha20",
        "-sha1",
        "hmac-md5",
        "umac",
        "hmac-sha1",
        "group1",
        "group14",
        "nistp",
    )
    offered = ",".join(settings[key] for key in ("ciphers", "macs", "kexalgorithms"))
    assert [word for word in weak if word in offered] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "User=root"], "Permission denied (publickey)"),
        (["-o", "PubkeyAuthentication=no"], "Permission denied (publickey)"),
        (["-o", "Ciphers=aes128-cbc"], "no matching cipher found"),
        (["-o", "MACs=hmac-sha1", "-o", "Ciphers=aes256-ctr"], "no matching MAC found"),
        (["-o", "KexAlgorithms=diffie-hellman-group14-sha256"], "no matching key exchange method found"),
        (["-o", f"HostKeyAlias=nobody-{uuid.uuid4().hex[:6]}"], "Host key verification failed"),
    ],
)
def test_who_must_not_come_in_does_not(lab: Lab, options: list[str], message: str) -> None:
    refused = ssh(lab, *options, BASTION, "true")
    assert refused.returncode == 255
    assert message in refused.stderr


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("10.77.3.11:22", True),
        ("data1:22", True),
        ("10.77.4.10:443", False),
        ("10.77.3.11:5432", False),
        ("192.0.2.1:22", False),
    ],
)
def test_the_bastion_forwards_ssh_to_the_site_and_nothing_else(lab: Lab, target: str, *, allowed: bool) -> None:
    done = ssh(lab, "-W", target, BASTION)
    assert done.stdout.startswith("SSH-2.0-") is allowed
    assert ("administratively prohibited" in done.stderr) is not allowed


def test_no_other_host_forwards(lab: Lab) -> None:
    refused = ssh(lab, "-W", "10.77.3.12:22", "data1")
    assert "SSH-2.0-" not in refused.stdout
    assert "administratively prohibited" in refused.stderr


def test_a_terminal_session_on_the_bastion_is_recorded(lab: Lab) -> None:
    token = uuid.uuid4().hex
    done = ssh(lab, "-tt", BASTION, f"echo shown-{token}; exit 7")
    assert done.returncode == 7
    assert f"shown-{token}" in done.stdout
    deadline = time.monotonic() + 10
    find = f"journalctl --identifier session --output cat --all --since -5min | grep -c ^shown-{token}"
    while lab.run(BASTION, find, check=False).stdout.strip() != "1":
        assert time.monotonic() < deadline, "what the session showed is not in the journal"
        time.sleep(0.5)


@pytest.mark.parametrize("host", EVERY)
def test_kernel_settings_are_in_force(lab: Lab, host: str) -> None:
    """Where two files name a key, the later one has it, as at boot."""
    files = "/etc/sysctl.d/*.conf"
    declared = dict(line.split(" = ") for line in lab.out(host, f"grep -hv '^#' {files}").splitlines() if line)
    assert len(declared) >= 15
    values = lab.out(host, f"sysctl -n {' '.join(declared)}").splitlines()
    assert dict(zip(declared, values, strict=True)) == declared


@pytest.mark.parametrize("host", EVERY)
def test_sudo_is_on_record_and_sessions_leave_no_core(lab: Lab, host: str) -> None:
    token = uuid.uuid4().hex
    lab.run(host, f"true {token}")
    assert token in lab.out(host, "tail -n 30 /var/log/sudo.log | tr -d '\\n '")
    assert ssh(lab, host, "ulimit -Hc").stdout.strip() == "0"
    assert lab.out(host, "test -d /var/log/journal && journalctl --disk-usage | wc -l") == "1"


@pytest.mark.parametrize("host", EVERY)
def test_one_time_daemon_runs(lab: Lab, host: str) -> None:
    units = "chrony.service systemd-timesyncd.service ntpsec.service openntpd.service"
    assert lab.run(host, f"systemctl is-active {units}", check=False).stdout.split()[0] == "active"
    assert "active" not in lab.run(host, f"systemctl is-active {units}", check=False).stdout.split()[1:]


@pytest.mark.parametrize("host", [host for host in EVERY if host != TIME_SERVER])
def test_time_comes_from_the_site_and_is_authenticated(lab: Lab, host: str) -> None:
    server = f"{TIME_SERVER}.{lab.hostvars[host]['site_domain']}"
    # A drill may have frozen this host a moment ago.
    deadline = time.monotonic() + 150
    while not lab.out(host, "chronyc -c -N sources").startswith("^,*,"):
        assert time.monotonic() < deadline, lab.out(host, "chronyc -N sources")
        time.sleep(2)
    name, mode, *_ = lab.out(host, "chronyc -c -N authdata").split(",")
    assert (name, mode) == (server, "NTS")
    offset = float(lab.out(host, "chronyc -c -n tracking").split(",")[4])
    assert abs(offset) < 0.5
    assert lab.out(host, "ss -Hlnup sport = :123") == ""


def test_the_time_servers_key_is_not_its_own_to_change(lab: Lab) -> None:
    assert lab.out(TIME_SERVER, "stat -c '%U %G %a' /etc/chrony/tls/chrony.key") == "root _chrony 640"
