# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is computed from contracts and inventory: each view by example, the firewall for any site."""

from __future__ import annotations

import ipaddress
import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.contract import Contract, load
from ansible_collections.groundplane.onprem.plugins.module_utils.site import Host, Site, SiteError, _products
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Mapping

VIEWS_OF_A_HOST = ("firewall", "services", "listens", "certificates")


def contract(service: str, **content: Any) -> Contract:
    return load({"service": service, "group": service, **content}, service)


def listen(name: str, port: int, *groups: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "port": port, "tls": "mutual", "from": list(groups), **more}


def example(**contracts: Contract) -> Site:
    """Two balancers, three database hosts, a router, a bastion that is also a mirror."""
    stated = {
        "postgres": contract(
            "postgres",
            listens=[
                listen("database", 5432, "postgres"),
                listen("pooler", 6432, starttls="postgres"),
                listen("rest", 8008, "postgres"),
            ],
            endpoints=[
                {
                    "name": "primary",
                    "vip": "private",
                    "port": 5433,
                    "listen": "pooler",
                    "members": "leader",
                    "check": {"listen": "rest", "path": "/primary"},
                    "on_marked_down": "shutdown-sessions",
                    "from_networks": ["private"],
                }
            ],
            certificates=[
                {"name": "postgres", "directory": "/etc/postgresql/tls", "endpoints": ["primary"]},
                {"name": "replicator", "directory": "/etc/postgresql/tls", "common_name": "replicator"},
            ],
            secrets=[{"name": "postgres_superuser_password"}],
        ),
        "load_balancer": contract(
            "load_balancer", listens=[{"name": "vrrp", "protocol": "vrrp", "network": "any", "from": ["load_balancer"]}]
        ),
        "bastion": contract("bastion", listens=[listen("ssh", 22, "any", network="any")]),
        "mirror": contract(
            "mirror",
            listens=[listen("https", 443, "all")],
            egress=[{"name": "upstream", "to": "any", "ports": [443, 80], "reason": "packages"}],
        ),
        "host": contract("host", group="all", listens=[listen("ssh", 2222, "bastion")]),
        "absent": contract("absent", listens=[listen("api", 9, "all")], secrets=[{"name": "absent_password"}]),
    }
    legs = {
        "router1": {"public": "10.0.1.254", "private": "10.0.2.254", "data": "10.0.3.254", "mgmt": "10.0.4.254"},
        "bastion1": {"public": "10.0.1.10", "mgmt": "10.0.4.10"},
        "lb1": {"public": "10.0.1.11", "private": "10.0.2.11"},
        "lb2": {"public": "10.0.1.12", "private": "10.0.2.12"},
        "data1": {"data": "10.0.3.11"},
        "data2": {"data": "10.0.3.12"},
        "data3": {"data": "10.0.3.13"},
    }
    primary = {"router1": "mgmt", "bastion1": "mgmt", "lb1": "private", "lb2": "private"}
    groups = {
        "router": ["router1"],
        "bastion": ["bastion1"],
        "mirror": ["bastion1"],
        "load_balancer": ["lb1", "lb2"],
        "postgres": ["data1", "data2", "data3"],
    }
    return Site.from_inventory(
        {**stated, **contracts},
        {**groups, "all": list(legs)},
        {
            name: {"host_addresses": own, "host_primary_network": primary.get(name, "data"), "host_zone": "a"}
            for name, own in legs.items()
        },
        {
            "site_networks": {
                name: {"subnet": f"10.0.{index}.0/24"}
                for index, name in enumerate(("public", "private", "data", "mgmt"), start=1)
            },
            "site_vips": {
                "private": {"address": "10.0.2.100", "network": "private", "vrid": 51},
                "public": {"address": "10.0.1.100", "network": "public", "vrid": 52},
            },
            "site_domain": "site.example",
        },
    )


def brief(rules: list[dict[str, Any]]) -> list[str]:
    """A rule a line: who to whom, by what."""
    return [
        f"{rule.get('service', '+'.join(rule.get('services', [])))}.{rule.get('name', '')} "
        f"{','.join(rule['sources'])} > {','.join(rule['destinations'])} "
        f"{rule['protocol']}/{','.join(map(str, rule['ports']))}"
        for rule in rules
    ]


def test_what_a_member_lets_in_and_may_reach() -> None:
    rules = example().firewall("data1")
    assert brief(rules["inbound"]) == [
        "host.ssh 10.0.4.10 > 10.0.3.11 tcp/2222",
        "postgres.database 10.0.3.12,10.0.3.13 > 10.0.3.11 tcp/5432",
        "postgres.pooler 10.0.2.11,10.0.2.12 > 10.0.3.11 tcp/6432",
        "postgres.rest 10.0.2.11,10.0.2.12,10.0.3.12,10.0.3.13 > 10.0.3.11 tcp/8008",
    ]
    assert brief(rules["outbound"]) == [
        "bastion.ssh 10.0.3.11 > 10.0.4.10 tcp/22",
        "mirror.https 10.0.3.11 > 10.0.4.10 tcp/443",
        "postgres.database 10.0.3.11 > 10.0.3.12,10.0.3.13 tcp/5432",
        "postgres.rest 10.0.3.11 > 10.0.3.12,10.0.3.13 tcp/8008",
    ]
    assert rules["forward"] == []
    assert {rule["network"] for rule in rules["inbound"] + rules["outbound"]} == {"data"}


def test_a_balancer_answers_on_the_vip_and_reaches_members_and_checks() -> None:
    rules = example().firewall("lb1")
    assert brief(rules["inbound"]) == [
        "host.ssh 10.0.4.10 > 10.0.2.11 tcp/2222",
        "load_balancer.vrrp 10.0.1.12 > 10.0.1.11 vrrp/",
        "load_balancer.vrrp 10.0.2.12 > 10.0.2.11 vrrp/",
        "postgres.primary 10.0.2.0/24 > 10.0.2.100 tcp/5433",
    ]
    assert brief(rules["outbound"]) == [
        "bastion.ssh 10.0.1.11 > 10.0.1.10 tcp/22",
        "bastion.ssh 10.0.2.11 > 10.0.4.10 tcp/22",
        "load_balancer.vrrp 10.0.1.11 > 10.0.1.12 vrrp/",
        "load_balancer.vrrp 10.0.2.11 > 10.0.2.12 vrrp/",
        "mirror.https 10.0.2.11 > 10.0.4.10 tcp/443",
        "postgres.pooler 10.0.2.11 > 10.0.3.11,10.0.3.12,10.0.3.13 tcp/6432",
        "postgres.primary 10.0.2.11 > 10.0.2.100 tcp/5433",
        "postgres.rest 10.0.2.11 > 10.0.3.11,10.0.3.12,10.0.3.13 tcp/8008",
    ]


def test_the_world_reaches_only_what_says_any() -> None:
    rules = example().firewall("bastion1")
    assert [line for line in brief(rules["inbound"]) if "0.0.0.0/0" in line] == [
        "bastion.ssh 0.0.0.0/0 > 10.0.1.10 tcp/22",
        "bastion.ssh 0.0.0.0/0 > 10.0.4.10 tcp/22",
    ]
    assert [line for line in brief(rules["outbound"]) if "0.0.0.0/0" in line] == [
        "mirror.upstream 10.0.4.10 > 0.0.0.0/0 tcp/80,443"
    ]


def test_a_router_forwards_what_crosses_its_networks_in_few_rules() -> None:
    assert brief(example().firewall("router1")["forward"]) == [
        "bastion.ssh. 0.0.0.0/0 > 10.0.1.10,10.0.4.10 tcp/22",
        "mirror.upstream. 10.0.4.10 > 0.0.0.0/0 tcp/80,443",
        "mirror.https. 10.0.2.11,10.0.2.12,10.0.3.11,10.0.3.12,10.0.3.13 > 10.0.4.10 tcp/443",
        "host.ssh. 10.0.4.10 > 10.0.2.11,10.0.2.12,10.0.3.11,10.0.3.12,10.0.3.13 tcp/2222",
        "postgres.pooler+postgres.rest. 10.0.2.11,10.0.2.12 > 10.0.3.11,10.0.3.12,10.0.3.13 tcp/6432,8008",
    ]


def test_what_a_router_opens_or_answers_itself_is_not_forwarded_by_it_but_by_another() -> None:
    own = {"name": "updates", "to": "any", "ports": [443], "reason": "r"}
    site = example(router=contract("router", listens=[listen("ssh", 22, "any", network="any")], egress=[own]))
    addresses = set(site.hosts["router1"].addresses.values())
    for rule in site.firewall("router1")["forward"]:
        assert not addresses & {*rule["sources"], *rule["destinations"]}
    second = replace(site, groups={**site.groups, "router": ["router1", "bastion1"]})
    assert "router.updates. 10.0.4.254 > 0.0.0.0/0 tcp/443" in brief(second.firewall("bastion1")["forward"])


def test_balancers_without_a_network_in_common_have_no_vrrp() -> None:
    site = example()
    apart = {**site.hosts, "lb2": replace(site.hosts["lb2"], addresses={"public": "10.0.1.12"}, primary="public")}
    apart["lb1"] = replace(site.hosts["lb1"], addresses={"private": "10.0.2.11"})
    assert not [flow for flow in replace(site, hosts=apart).flows() if flow.protocol == "vrrp"]


@pytest.mark.parametrize(
    ("pairs", "count"),
    [("ax bx cx", 1), ("ax ay az", 1), ("ax by az bz", 2), ("ax bx ay cy", 2), ("ax bx ay by", 1)],
)
def test_pairs_become_few_products(pairs: str, count: int) -> None:
    ends = dict(zip("abcxyz", (f"10.0.0.{number}" for number in range(1, 7)), strict=True))
    wanted = {(ends[one[0]], ends[one[1]]) for one in pairs.split()}
    products = _products(wanted)
    assert len(products) == count
    assert {pair for sources, destinations in products for pair in itertools.product(sources, destinations)} == wanted


def test_what_the_load_balancer_serves() -> None:
    assert example().endpoints() == [
        {
            "service": "postgres",
            "name": "primary",
            "vip": "private",
            "address": "10.0.2.100",
            "port": 5433,
            "mode": "tcp",
            "tls": "mutual",
            "starttls": "postgres",
            "kind": "leader",
            "on_marked_down": "shutdown-sessions",
            "check": {
                "port": 8008,
                "protocol": "http",
                "method": "HEAD",
                "path": "/primary",
                "status": 200,
                "tls": "mutual",
            },
            "follows": None,
            "members": [
                {
                    "name": f"data{number}",
                    "zone": "a",
                    "address": f"10.0.3.1{number}",
                    "port": 6432,
                    "check_address": f"10.0.3.1{number}",
                }
                for number in (1, 2, 3)
            ],
        }
    ]


def test_a_service_on_all_legs_is_balanced_on_a_leg_that_the_balancers_share() -> None:
    web = contract(
        "mirror",
        listens=[listen("https", 443, network="any")],
        endpoints=[{"name": "web", "vip": "public", "port": 443, "listen": "https"}],
    )
    site = example(mirror=web)
    assert [member["address"] for member in site.endpoints()[0]["members"]] == ["10.0.1.10"]
    assert "mirror.https 10.0.1.11 > 10.0.1.10 tcp/443" in brief(site.firewall("lb1")["outbound"])


def test_the_names_and_addresses_in_certificates() -> None:
    own, replicator = example().certificates("data2")
    assert own["common_name"] == "data2"
    assert own["dns"] == ["data2", "data2.site.example", "postgres.site.example", "primary.postgres.site.example"]
    assert own["ip"] == ["10.0.3.12", "10.0.2.100"]
    assert (replicator["common_name"], replicator["dns"]) == ("replicator", ["data2", "data2.site.example"])
    assert {"service", "directory", "owner", "group", "mode", "usages", "reload"} <= own.keys()
    assert [one["ip"] for one in example().certificates("lb1")] == []


def test_a_certificate_may_carry_names_below_the_domain_and_whole_ones() -> None:
    contract = load(
        {
            "service": "edge",
            "group": "edge",
            "certificates": [
                {"name": "edge", "directory": "/etc/edge", "names": ["*.apps", "metrics.kube-system.svc."]}
            ],
        }
    )
    site = Site({"edge": contract}, {"edge": ["e1"]}, {"e1": Host("e1", {"data": "10.0.3.1"}, "data")}, domain="x.test")
    assert site.certificates("e1")[0]["dns"] == ["e1", "e1.x.test", "*.apps.x.test", "metrics.kube-system.svc"]


def test_members_secrets_and_listens() -> None:
    site = example()
    assert [member["name"] for member in site.members("postgres")] == ["data1", "data2", "data3"]
    assert site.members("postgres")[0]["address"] == "10.0.3.11"
    assert site.members("absent") == []
    assert [secret["name"] for secret in site.secrets()] == ["postgres_superuser_password"]
    assert [(one["service"], one["port"]) for one in site.listens("bastion1")] == [
        ("bastion", 22),
        ("host", 2222),
        ("mirror", 443),
    ]
    assert site.listens("bastion1")[0]["addresses"] == {"public": "10.0.1.10", "mgmt": "10.0.4.10"}
    assert {one["authority"] for one in site.listens("bastion1")} == {None}


def test_views_are_plain_data_and_do_not_depend_on_the_order_of_the_inventory() -> None:
    site = example()
    shuffled = replace(
        site,
        contracts=dict(reversed(site.contracts.items())),
        vips=dict(reversed(site.vips.items())),
        groups=site.groups,
    )
    for host, view in itertools.product(site.hosts, VIEWS_OF_A_HOST):
        assert json.dumps(getattr(site, view)(host)) == json.dumps(getattr(shuffled, view)(host))
    assert json.dumps(site.endpoints()) == json.dumps(shuffled.endpoints())


def test_ipv6_and_ipv4_do_not_meet_in_a_rule() -> None:
    site = Site.from_inventory(
        {"a": contract("a", listens=[listen("x", 1, "any")], egress=[
            {"name": "out", "to": ["2001:db8::/32", "192.0.2.0/24"], "ports": [1], "reason": "r"}])},
        {"a": ["six", "four"], "all": ["six", "four"]},
        {"six": {"host_addresses": {"n": "2001:db8::1"}, "host_primary_network": "n"},
         "four": {"host_addresses": {"m": "192.0.2.1"}, "host_primary_network": "m"}},
        {},
    )  # fmt: skip
    assert {rule["family"] for rule in site.firewall("six")["inbound"]} == {"ip6"}
    assert "a.out 2001:db8::1 > 2001:db8::/32 tcp/1" in brief(site.firewall("six")["outbound"])
    assert "a.out 192.0.2.1 > 192.0.2.0/24 tcp/1" in brief(site.firewall("four")["outbound"])
    assert not any(
        "2001" in line and "192" in line for host in site.hosts for line in brief(site.firewall(host)["inbound"])
    )


@pytest.mark.parametrize(
    ("variables", "ports"),
    [({}, {"own": 1}), ({"store": "own"}, {"own": 1}), ({"store": "other"}, {"other": 1}), ({"store": "none"}, {})],
    ids=str,
)
def test_a_port_with_a_condition_is_open_only_where_it_holds(variables: dict[str, str], ports: dict[str, int]) -> None:
    """Also when the condition is on what the inventory leaves to the role's default."""
    sometimes = [
        {**listen(value, 1, "any"), "when": {"variable": "store", "is": value, "default": "own"}}
        for value in ("own", "other")
    ]
    contracts = {"a": contract("a", listens=sometimes)}
    host = {"host_addresses": {"n": "192.0.2.1"}, "host_primary_network": "n", **variables}
    site = Site.from_hostvars(contracts, {"a": ["one"], "all": ["one"]}, {"one": host}, "one")
    assert {found["name"]: found["port"] for found in site.listens("one")} == ports
    assert len(site.firewall("one")["inbound"]) == len(ports)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "h: host_addresses is missing: give it the name and address of each leg"),
        (
            {"host_addresses": {"a": "10.0.0.1", "b": "10.0.1.1"}, "host_primary_network": "c"},
            r"h: host_primary_network is 'c': make it one of the host's legs \(a, b\)",
        ),
    ],
)
def test_a_host_without_legs_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SiteError, match=message):
        Site.from_inventory({}, {}, {"h": values}, {})


def test_what_a_contract_needs_and_the_inventory_lacks_is_named() -> None:
    site = example()
    with pytest.raises(SiteError, match=r"site_vips has no 'private', which the endpoint primary of postgres needs"):
        replace(site, vips={}).firewall("lb1")
    with pytest.raises(SiteError, match=r"site_networks has no 'private', from which postgres \(primary\) is reached"):
        replace(site, networks={}).firewall("lb1")
    wrong_leg = contract("postgres", listens=[listen("database", 1, "all", network="mgmt")])
    with pytest.raises(SiteError, match=r"data1: has no leg on mgmt, where postgres listens \(database\)"):
        example(postgres=wrong_leg).firewall("data1")
    with pytest.raises(SiteError, match="nobody: not a host of this inventory"):
        site.firewall("nobody")
    with pytest.raises(SiteError, match="kafka: no contract states this service"):
        site.members("kafka")


def test_a_site_without_balancers_needs_no_vips() -> None:
    site = example()
    small = replace(site, vips={}, groups={**site.groups, "load_balancer": []})
    assert small.endpoints() == []
    assert small.certificates("data1")[0]["ip"] == ["10.0.3.11"]
    assert small.firewall("data1")["inbound"]


def with_pods(pods: str = "10.244.0.0/16") -> Site:
    """The example with a cluster on two of its hosts, behind the private address."""
    api = contract(
        "kubernetes",
        listens=[
            listen("api", 6443, "kubernetes", "pods", "bastion"),
            listen("etcd", 2379, "kubernetes", authority="/etc/kubernetes/pki/etcd/ca.crt"),
        ],
        endpoints=[{"name": "api", "vip": "private", "port": 6443, "listen": "api", "from": ["kubernetes", "pods"]}],
    )
    site = example(kubernetes=api)
    return replace(site, groups={**site.groups, "kubernetes": ["data1", "data2"]}, pods=pods)


def test_pods_come_from_their_range_and_only_where_a_contract_names_them() -> None:
    site = with_pods()
    inbound = {host: brief(site.firewall(host)["inbound"]) for host in site.hosts}
    named = {host: [line for line in lines if "10.244.0.0/16" in line] for host, lines in inbound.items()}
    assert {host: lines for host, lines in named.items() if lines} == {
        "data1": ["kubernetes.api 10.0.2.11,10.0.2.12,10.0.3.12,10.0.4.10,10.244.0.0/16 > 10.0.3.11 tcp/6443"],
        "data2": ["kubernetes.api 10.0.2.11,10.0.2.12,10.0.3.11,10.0.4.10,10.244.0.0/16 > 10.0.3.12 tcp/6443"],
        "lb1": ["kubernetes.api 10.0.3.11,10.0.3.12,10.244.0.0/16 > 10.0.2.100 tcp/6443"],
        "lb2": ["kubernetes.api 10.0.3.11,10.0.3.12,10.244.0.0/16 > 10.0.2.100 tcp/6443"],
    }


def test_only_hosts_of_kubernetes_send_to_pods_and_pass_their_packets_on() -> None:
    site = with_pods()
    assert {host: site.firewall(host)["pods"] for host in site.hosts if site.firewall(host)["pods"]} == {
        "data1": ["10.244.0.0/16"],
        "data2": ["10.244.0.0/16"],
    }


def test_no_router_passes_the_addresses_of_pods() -> None:
    """A node gives what its pods send to other hosts its own address."""
    assert "10.244" not in json.dumps(with_pods().firewall("router1"))


def test_without_a_range_of_pods_the_word_means_nobody() -> None:
    site = with_pods("")
    assert "10.244" not in json.dumps([site.firewall(host) for host in site.hosts])
    assert not any(site.firewall(host)["pods"] for host in site.hosts)
    without = Site.from_inventory(site.contracts, site.groups, {}, {})
    assert without.pods == ""
    assert Site.from_inventory({}, {}, {}, {"kubernetes_pod_subnet": "10.1.0.0/16"}).pods == "10.1.0.0/16"


def test_a_port_says_who_vouches_for_it() -> None:
    assert {one["name"]: one["authority"] for one in with_pods().listens("data1")} == {
        "ssh": None,
        "api": None,
        "etcd": "/etc/kubernetes/pki/etcd/ca.crt",
        "database": None,
        "pooler": None,
        "rest": None,
    }


# ---------------------------------------------------------------------------------------------------------- any site

NETWORKS = ("n1", "n2", "n3")
PODS = "10.1.0.0/16"
GROUPS = ("g1", "g2", "load_balancer", "absent")


@st.composite
def sites(draw: st.DrawFn) -> Site:
    """A site of up to six hosts with any legs, in any groups, with any contracts, and a router on all networks."""
    count = draw(st.integers(1, 6))
    hosts: dict[str, Any] = {}
    for number in range(1, count + 1):
        legs = draw(st.lists(st.sampled_from(NETWORKS), min_size=1, max_size=3, unique=True))
        addresses = {leg: f"10.0.{NETWORKS.index(leg)}.{number}" for leg in legs}
        hosts[f"h{number}"] = {"host_addresses": addresses, "host_primary_network": draw(st.sampled_from(legs))}
    names = list(hosts)
    groups = {group: draw(st.lists(st.sampled_from(names), unique=True)) for group in GROUPS[:3]}
    if not all("n1" in hosts[name]["host_addresses"] for name in groups["load_balancer"]):
        groups["load_balancer"] = []
    hosts["router1"] = {
        "host_addresses": {name: f"10.0.{index}.254" for index, name in enumerate(NETWORKS)},
        "host_primary_network": "n1",
    }
    groups["kubernetes"] = draw(st.sampled_from([groups["g1"], groups["g2"]]))
    pods = draw(st.sampled_from(["", PODS]))
    sources = st.lists(st.sampled_from([*GROUPS, "kubernetes", "all", "any", "pods"]), max_size=3, unique=True)
    ranges = st.lists(st.sampled_from(NETWORKS), max_size=2, unique=True)
    contracts = {}
    for group in ("g1", "g2"):
        listens = []
        for index in range(draw(st.integers(1, 3))):
            one: dict[str, Any] = {"name": f"l{index}", "tls": "mutual", "from": draw(sources)}
            one |= {"port": 100 + index, "from_networks": draw(ranges)}
            if draw(st.booleans()):
                one["network"] = "any"
            listens.append(one)
        content: dict[str, Any] = {"listens": listens}
        if draw(st.booleans()):
            endpoint = {"name": "e", "vip": "v", "port": 99, "listen": "l0", "from": draw(sources)}
            content["endpoints"] = [{**endpoint, "from_networks": draw(ranges)}]
        if draw(st.booleans()):
            content["egress"] = [{"name": "out", "to": "any", "ports": [53, 443], "reason": "r"}]
        contracts[group] = contract(group, **content)
    contracts["load_balancer"] = contract(
        "load_balancer", listens=[{"name": "vrrp", "protocol": "vrrp", "from": ["load_balancer"]}]
    )
    return Site.from_inventory(
        contracts,
        {**groups, "router": ["router1"], "all": list(hosts)},
        hosts,
        {
            "site_networks": {name: {"subnet": f"10.0.{index}.0/24"} for index, name in enumerate(NETWORKS)},
            "site_vips": {"v": {"address": "10.0.0.100", "network": "n1", "vrid": 1}},
            "site_domain": "x",
            "kubernetes_pod_subnet": pods,
        },
    )


def inside(address: str, ranges: list[str]) -> bool:
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(one) for one in ranges)


def triples(rules: list[dict[str, Any]]) -> list[tuple[str, str, str, int, str, str]]:
    """Every pair of ends of every rule, with service, name, protocol and port."""
    return [
        (rule["service"], rule["name"], rule["protocol"], port, source, destination)
        for rule in rules
        for port in rule["ports"] or [0]
        for source in rule["sources"]
        for destination in rule["destinations"]
    ]


def own_addresses(site: Site) -> Mapping[str, str]:
    return {address: host.name for host in site.hosts.values() for address in host.addresses.values()}


@settings(max_examples=60)
@given(sites())
def test_every_way_in_has_exactly_one_way_out_at_its_source(site: Site) -> None:
    owners = own_addresses(site)
    ways_out = {host: triples(site.firewall(host)["outbound"]) for host in site.hosts}
    for host in site.hosts:
        for *what, source, destination in triples(site.firewall(host)["inbound"]):
            if "/" in source:
                continue
            assert ways_out[owners[source]].count((*what, source, destination)) == 1  # type: ignore[arg-type]


@settings(max_examples=60)
@given(sites())
def test_every_way_out_inside_the_site_has_a_way_in_at_its_end(site: Site) -> None:
    owners = own_addresses(site)
    ways_in = {host: site.firewall(host)["inbound"] for host in site.hosts}
    for host in site.hosts:
        ways_out = triples(site.firewall(host)["outbound"])
        assert len(ways_out) == len(set(ways_out))
        for service, name, protocol, port, source, destination in ways_out:
            assert owners[source] == host
            if name == "out":
                continue
            ends = [owners[destination]] if destination in owners else site.groups["load_balancer"]
            assert ends
            for end in ends:
                matching = [
                    rule
                    for rule in ways_in[end]
                    if (rule["service"], rule["name"], rule["protocol"]) == (service, name, protocol)
                    and port in (rule["ports"] or [0])
                    and destination in rule["destinations"]
                    and inside(source, rule["sources"])
                ]
                assert len(matching) == 1 or end == host


@settings(max_examples=60)
@given(sites())
def test_a_router_forwards_exactly_what_crosses(site: Site) -> None:
    """Read from the hosts' own rules: each pair whose ends are on two networks, and no other pair of hosts."""
    network_of = {address: network for host in site.hosts.values() for network, address in host.addresses.items()} | {
        "10.0.0.100": "n1"
    }
    mine = set(site.hosts["router1"].addresses.values())
    expected = set()
    for host in site.hosts:
        for _, _, protocol, port, source, destination in triples(site.firewall(host)["outbound"]):
            crosses = network_of[source] != network_of.get(destination)
            if protocol != "vrrp" and crosses and not {source, destination} & mine:
                expected.add((protocol, port, source, destination))
    forward = site.firewall("router1")["forward"]

    def forwarded(protocol: str, port: int, source: str, destination: str) -> bool:
        return any(
            rule["protocol"] == protocol
            and port in rule["ports"]
            and (source in rule["sources"] or ("/" not in source and inside(source, rule["sources"])))
            and destination in rule["destinations"]
            for rule in forward
        )

    assert all(forwarded(*one) for one in expected)
    for rule in forward:
        for port, source, destination in itertools.product(rule["ports"], rule["sources"], rule["destinations"]):
            if "/" not in source:
                assert (rule["protocol"], port, source, destination) in expected


@settings(max_examples=60)
@given(sites())
def test_the_flows_of_one_host_are_those_of_all_that_it_takes_part_in(site: Site) -> None:
    everything = site.flows()
    for host in site.hosts:
        own = [flow for flow in everything if host in (flow.client, flow.server)]
        assert [flow for flow in site.flows(host) if host in (flow.client, flow.server)] == own


@settings(max_examples=60)
@given(sites())
def test_pods_are_named_where_contracts_name_them_and_nowhere_else(site: Site) -> None:
    for host in site.hosts:
        rules = site.firewall(host)
        assert rules["pods"] == ([site.pods] if site.pods and host in site.groups["kubernetes"] else [])
        assert not any(
            PODS in (*rule["sources"], *rule["destinations"]) for rule in rules["outbound"] + rules["forward"]
        )
        for contract in site.contracts_of(host):
            for door in contract.listens:
                named = [
                    rule
                    for rule in rules["inbound"]
                    if (rule["service"], rule["name"]) == (contract.service, door.name)
                    and any(source in (PODS, "0.0.0.0/0") for source in rule["sources"])
                ]
                if "pods" in door.from_ and site.pods:
                    assert {rule["destinations"][0] for rule in named} == set(
                        site._legs(contract, door, site.hosts[host]).values()
                    )
                elif "any" not in door.from_:
                    assert named == []


@settings(max_examples=60)
@given(sites())
def test_nobody_is_let_in_that_no_contract_names(site: Site) -> None:
    """Against the contracts themselves, without the library's idea of a flow."""
    owners = own_addresses(site)
    for host in site.hosts:
        for rule in site.firewall(host)["inbound"]:
            stated = site.contracts[rule["service"]]
            doors = {door.name: door for door in (*stated.listens, *stated.endpoints)}
            door = doors[rule["name"]]
            behind = {endpoint.listen for endpoint in stated.endpoints}
            allowed = {*door.from_, *({"load_balancer"} if rule["name"] in behind else set())}
            for source in rule["sources"]:
                if source == "0.0.0.0/0":
                    assert "any" in allowed
                elif source == PODS:
                    assert "pods" in allowed
                    assert site.pods == PODS
                elif "/" in source:
                    assert source in {site.networks[name] for name in door.from_networks}
                else:
                    client = site.hosts[owners[source]]
                    named = "all" in allowed or any(client.name in site.groups.get(group, ()) for group in allowed)
                    assert named or set(door.from_networks) & set(client.addresses)
