# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running etcd: who may speak with it, what it runs as, and that no member ever starts empty."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab import Lab

CA = "/etc/groundplane/pki/ca.crt"
OWN = "/etc/etcd/tls/etcd"
OTHER = "/etc/groundplane/pki/host"


def members(lab: Lab) -> dict[str, str]:
    """Name of each member to its address."""
    return {name: lab.address(name) for name in lab.groups["etcd"]}


def etcdctl(lab: Lab, host: str, arguments: str) -> Any:
    """What etcdctl answers as JSON, asked on a host of all members."""
    endpoints = ",".join(f"https://{address}:2379" for address in members(lab).values())
    tls = f"--cacert {CA} --cert {OWN}.crt --key {OWN}.key"
    return json.loads(lab.out(host, f"etcdctl --endpoints {endpoints} {tls} --write-out json {arguments}"))


def handshake(lab: Lab, host: str, port: int, options: str) -> str:
    """What a TLS client on the host hears from its own member, HTTP request included."""
    address = members(lab)[host]
    request = f"printf 'GET /version HTTP/1.0\\r\\n\\r\\n' | timeout 10 openssl s_client -connect {address}:{port}"
    return lab.run(host, f"{request} -CAfile {CA} -verify_return_error -quiet {options} 2>&1", check=False).stdout


def test_all_members_serve_one_cluster_with_one_leader(lab: Lab) -> None:
    hosts = lab.groups["etcd"]
    status = etcdctl(lab, hosts[0], "endpoint status")
    assert len(status) == len(hosts)
    assert len({item["Status"]["header"]["cluster_id"] for item in status}) == 1
    assert len({item["Status"]["leader"] for item in status}) == 1
    listed = etcdctl(lab, hosts[0], "member list")["members"]
    assert sorted(item["name"] for item in listed) == sorted(hosts)
    assert not any(item.get("isLearner") for item in listed)


@pytest.mark.parametrize("port", [2379, 2380])
@pytest.mark.parametrize(
    ("options", "said"),
    [("", "certificate required"), (f"-tls1_2 -cert {OWN}.crt -key {OWN}.key", "protocol version")],
)
def test_no_certificate_and_no_old_protocol(lab: Lab, port: int, options: str, said: str) -> None:
    assert said in handshake(lab, lab.groups["etcd"][0], port, options)


def test_another_service_may_be_a_client_but_never_a_voter(lab: Lab) -> None:
    host = lab.groups["etcd"][0]
    other = f"-cert {OTHER}.crt -cert_chain {OTHER}.crt -key {OTHER}.key"
    assert "etcdserver" in handshake(lab, host, 2379, other)
    assert "etcdserver" not in handshake(lab, host, 2380, other)
    own = f"-cert {OWN}.crt -cert_chain {OWN}.crt -key {OWN}.key"
    assert "bad certificate" not in handshake(lab, host, 2380, own)


def test_metrics_need_a_certificate_too(lab: Lab) -> None:
    host = lab.groups["etcd"][0]
    listening = lab.out(host, "ss -Hltn | awk '{print $4}'").split()
    address = members(lab)[host]
    assert sorted(item for item in listening if item.endswith((":2379", ":2380", ":2381"))) == [
        f"{address}:2379",
        f"{address}:2380",
    ]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/lib/etcd", "700 etcd etcd"),
        ("/etc/etcd/tls/etcd.key", "600 etcd etcd"),
        ("/etc/etcd/etcd.yml", "644 root root"),
        ("/etc/etcd/formed", "644 root root"),
    ],
)
def test_files_belong_to_whom_they_should(lab: Lab, path: str, expected: str) -> None:
    for host in lab.groups["etcd"]:
        assert lab.out(host, f"stat -c '%a %U %G' {path}") == expected


def test_the_unit_is_confined(lab: Lab) -> None:
    said = lab.out(lab.groups["etcd"][0], "systemd-analyze security etcd.service | tail -1")
    assert float(said.split("etcd.service:")[1].split()[0]) <= 2.0, said


@pytest.fixture
def lost(lab: Lab) -> Iterator[str]:
    """A member that has lost its data: moved aside, and put back or replaced afterwards."""
    status = etcdctl(lab, lab.groups["etcd"][0], "endpoint status")
    leader = next(item["Status"]["leader"] for item in status)
    listed = etcdctl(lab, lab.groups["etcd"][0], "member list")["members"]
    host = next(item["name"] for item in listed if item["ID"] != leader)
    lab.run(host, "systemctl stop etcd && mv /var/lib/etcd/member /var/lib/etcd/lost")
    yield host
    lab.run(
        host,
        "[ -e /var/lib/etcd/member ] || mv /var/lib/etcd/lost /var/lib/etcd/member; rm -rf /var/lib/etcd/lost;"
        " systemctl reset-failed etcd; systemctl start etcd",
    )


def test_a_member_that_lost_its_data_is_refused_by_unit_and_role_and_joins_by_the_repair(lab: Lab, lost: str) -> None:
    witness = next(host for host in lab.groups["etcd"] if host != lost)
    before = etcdctl(lab, witness, "member list")
    lab.run(lost, "systemctl start etcd", check=False)
    assert lab.out(lost, "systemctl show -p ExecMainStatus,ActiveState --value etcd").split() == ["78", "failed"]
    repair = f"run playbooks/etcd_replace.yml -e etcd_replace={lost}"
    assert repair in lab.out(lost, "journalctl -u etcd -n 20 -o cat")

    refused = lab.play("../tests/integration/etcd")
    assert refused.recap[lost]["failed"] == 1
    assert refused.changed == {}
    assert f"{lost} has no etcd data, but" in refused.output
    assert repair in " ".join(refused.output.split())

    done = lab.play("etcd_replace", "-e", f"etcd_replace={lost}")
    assert done.returncode == 0, done.output[-4000:]
    after = etcdctl(lab, witness, "member list")
    assert after["header"]["cluster_id"] == before["header"]["cluster_id"]
    ids = {item["name"]: item["ID"] for item in before["members"]}
    for item in after["members"]:
        assert (item["ID"] == ids[item["name"]]) == (item["name"] != lost)
        assert not item.get("isLearner")
    assert lab.play("../tests/integration/etcd").changed == {}
