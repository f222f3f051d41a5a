# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the answers of a probe mean for a contract."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import verification

LISTENS = [
    {
        "service": "etcd",
        "name": "client",
        "protocol": "tcp",
        "port": 2379,
        "tls": "mutual",
        "addresses": {"data": "10.0.3.1"},
    },
    {
        "service": "mirror",
        "name": "https",
        "protocol": "tcp",
        "port": 443,
        "tls": "server",
        "addresses": {"data": "10.0.3.1"},
    },
    {"service": "host", "name": "ssh", "protocol": "tcp", "port": 22, "tls": "none", "addresses": {"data": "10.0.3.1"}},
    {
        "service": "time",
        "name": "ntp",
        "protocol": "udp",
        "port": 123,
        "tls": "none",
        "addresses": {"data": "10.0.3.1"},
    },
]


def answer(port: int, identity: str, outcome: str) -> dict[str, Any]:
    return {
        "address": "10.0.3.1",
        "port": port,
        "identity": identity,
        "outcome": outcome,
        "detail": "why",
        "days_left": 3.5,
    }


def answers(**outcomes: str) -> list[dict[str, Any]]:
    expected = {
        "own_2379": "accepted",
        "nobody_2379": "refused",
        "own_443": "accepted",
        "nobody_443": "accepted",
    } | outcomes
    return [
        answer(int(key.split("_")[1]), {"own": "host", "nobody": "nobody"}[key.split("_")[0]], outcome)
        for key, outcome in expected.items()
    ]


def test_only_tls_ports_are_targets() -> None:
    assert [one["port"] for one in verification.targets(LISTENS, "data1")] == [2379, 443]


def test_a_site_as_declared_has_no_breach() -> None:
    assert verification.breaches("data1", LISTENS, answers()) == []


@pytest.mark.parametrize("outcome", ["accepted", "plaintext", "unreachable", "untrusted"])
def test_a_mutual_port_must_refuse_nobody(outcome: str) -> None:
    assert verification.breaches("data1", LISTENS, answers(nobody_2379=outcome)) == [
        f"data1: etcd client on 10.0.3.1:2379 must refuse a client without a certificate and answers: {outcome}."
    ]


@pytest.mark.parametrize("outcome", ["refused", "plaintext", "unreachable", "untrusted"])
def test_every_port_must_let_its_own_host_in(outcome: str) -> None:
    assert verification.breaches("data1", LISTENS, answers(own_443=outcome)) == [
        f"data1: mirror https on 10.0.3.1:443 lets none of the host's own certificates in (host: {outcome}, why)."
    ]


VOUCHED = [{**LISTENS[0], "authority": "/etc/kubernetes/pki/etcd/ca.crt"}]


def test_a_port_with_an_authority_of_its_own_is_asked_under_it_and_as_its_member() -> None:
    (target,) = verification.targets(VOUCHED, "cp1")
    pair = {"certificate": "/etc/kubernetes/pki/etcd/server.crt", "key": "/etc/kubernetes/pki/etcd/server.key"}
    assert target["ca"] == "/etc/kubernetes/pki/etcd/ca.crt"
    assert target["identities"] == {"member": pair}
    assert not {"ca", "identities"} & verification.targets(LISTENS, "cp1")[0].keys()


def test_to_a_port_with_an_authority_of_its_own_the_sites_certificates_are_strangers() -> None:
    said = [answer(2379, "member", "accepted"), answer(2379, "nobody", "refused"), answer(2379, "host", "refused")]
    assert verification.breaches("cp1", VOUCHED, said) == []
    (told,) = verification.breaches("cp1", VOUCHED, [*said, answer(2379, "kubelet", "accepted")])
    assert told.endswith("must refuse a client with the site's certificate kubelet and answers: accepted.")
    assert verification.breaches("cp1", VOUCHED, [answer(2379, "member", "refused"), *said[1:]]) == [
        "cp1: etcd client on 10.0.3.1:2379 lets none of the host's own certificates in (member: refused, why)."
    ]


def test_a_port_that_asks_for_no_certificate_may_have_an_authority_of_its_own() -> None:
    served = [{**LISTENS[1], "authority": "/etc/other/ca.crt"}]
    said = [answer(443, "member", "accepted"), answer(443, "nobody", "accepted"), answer(443, "host", "accepted")]
    assert verification.breaches("cp1", served, said) == []


def test_summary_counts_ports_and_names_endpoints_and_members() -> None:
    endpoints = [
        {"name": "primary", "service": "pg", "address": "10.0.2.9", "port": 5432, "tls": "mutual", "kind": "leader"}
    ]
    lines = verification.summary("lab", "x", {"etcd": [{"name": "data1", "address": "10.0.3.1"}]}, endpoints, answers())
    assert lines == [
        "lab: 2 TLS ports answer as their contracts say; the next certificate ends in 3.5 days",
        "  primary.pg.x  10.0.2.9:5432  (mutual TLS, leader)",
        "  etcd: data1 10.0.3.1",
    ]


def test_each_service_with_a_client_certificate_is_an_identity() -> None:
    certificates = [
        {"name": "etcd", "directory": "/etc/etcd/tls", "usages": ["server", "client"]},
        {"name": "mirror", "directory": "/etc/nginx/tls", "usages": ["server"]},
    ]
    known = verification.identities(certificates)
    assert list(known) == ["nobody", "host", "etcd"]
    assert known["etcd"] == {"certificate": "/etc/etcd/tls/etcd.crt", "key": "/etc/etcd/tls/etcd.key"}


def test_a_port_may_know_one_of_the_certificates_only() -> None:
    peer = [answer(2379, "nobody", "refused"), answer(2379, "host", "refused"), answer(2379, "etcd", "accepted")]
    assert verification.breaches("data1", LISTENS[:1], peer) == []


def test_a_port_is_asked_for_tls_as_its_clients_ask() -> None:
    served = [{**LISTENS[0], "starttls": "postgres"}]
    assert [one["starttls"] for one in verification.targets(served, "data1")] == ["postgres"]
    endpoint = {"name": "a", "service": "b", "address": "10.0.2.9", "port": 1, "tls": "mutual", "kind": "all"}
    asked = verification.endpoint_targets([endpoint | {"members": [{}], "starttls": "postgres"}], "x")
    assert [one["starttls"] for one in asked] == ["postgres"]


def test_replicas_of_a_single_member_are_no_target() -> None:
    endpoint = {
        "name": "replicas",
        "service": "pg",
        "address": "10.0.2.9",
        "port": 5433,
        "tls": "mutual",
        "kind": "replicas",
    }
    assert verification.endpoint_targets([endpoint | {"members": [{}]}], "x") == []
    assert verification.endpoint_targets([endpoint | {"members": [{}, {}]}], "x") == [
        {"address": "10.0.2.9", "port": 5433, "server_name": "replicas.pg.x"}
    ]


def test_an_endpoint_whose_members_take_no_part_is_no_target() -> None:
    members = [{"name": "cp1"}, {"name": "cp2"}]
    endpoint = {
        "name": "api",
        "service": "kubernetes",
        "address": "10.0.2.9",
        "port": 6443,
        "tls": "server",
        "kind": "all",
        "members": members,
    }
    assert len(verification.endpoint_targets([endpoint], "x")) == 1
    assert len(verification.endpoint_targets([endpoint], "x", ["lb1", "cp2"])) == 1
    assert verification.endpoint_targets([endpoint], "x", ["lb1"]) == []


@pytest.mark.parametrize(
    ("identity", "who"), [("stranger", "of another CA"), ("expired", "with an expired certificate")]
)
def test_a_mutual_port_must_refuse_strangers_and_the_expired(identity: str, who: str) -> None:
    told = verification.breaches("data1", LISTENS, [*answers(), answer(2379, identity, "accepted")])
    assert told == [f"data1: etcd client on 10.0.3.1:2379 must refuse a client {who} and answers: accepted."]
    assert verification.breaches("data1", LISTENS, [*answers(), answer(2379, identity, "refused")]) == []
