# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The five environments have the same groups and variables, and the contracts fit each of them."""

from __future__ import annotations

from functools import cache
from ipaddress import ip_address, ip_network
from itertools import combinations
from pathlib import Path

import pytest

from tests.lab import Lab

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ["lab", "dev", "test", "staging", "prod"]
ONLY_IN_THE_LAB = {"router"}


POOLS = {"general", "kafka-redis", "postgres", "gpu"}


@cache
def inventory(environment: str) -> Lab:
    """An inventory as tests of the lab see theirs: hosts' variables, and groups with the hosts of their children."""
    return Lab(inventory=ROOT / "inventories" / environment)


def vectors(environment: str) -> tuple[str, ...]:
    """The group of Qdrant, whose program no registry has, so that no lab can run it."""
    return () if environment == "lab" else ("qdrant",)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_contracts_fit_the_inventory(environment: str) -> None:
    hostvars = inventory(environment).hostvars
    groups = inventory(environment).groups | {"all": list(hostvars)}
    site = inventory(environment).site
    for host in hostvars:
        assert site.firewall(host)["inbound"], host
        assert all(one["directory"] for one in site.certificates(host))
    assert {one["name"] for one in site.endpoints()} == {
        *("primary", "replicas", "direct", "redis", "s3", "api", "gateway"),
        *vectors(environment),
    }
    assert {host for host in hostvars if site.firewall(host)["pods"]} == set(groups["kubernetes"])
    assert {name for name in groups if name != "all"} - ONLY_IN_THE_LAB == {
        "bastion",
        "mirror",
        "time",
        "pki",
        "load_balancer",
        "etcd",
        "postgres",
        "kubernetes",
        "kubernetes_control_plane",
        "kubernetes_worker",
        "kafka",
        "kafka_controller",
        "redis",
        "object_store",
        *vectors(environment),
    }
    assert hostvars[next(iter(hostvars))]["site_environment"] == environment


@pytest.mark.parametrize("environment", ["lab", "test", "staging", "prod"])
def test_voters_stand_in_three_zones(environment: str) -> None:
    hostvars = inventory(environment).hostvars
    of_data = ("etcd", "postgres", "redis", *vectors(environment))
    groups = (*of_data, "kafka", "kafka_controller", "kubernetes_control_plane")
    for group in groups:
        assert sorted(hostvars[host]["host_zone"] for host in inventory(environment).groups[group]) == ["a", "b", "c"]


@pytest.mark.parametrize("environment", ["staging", "prod"])
def test_writes_of_the_object_store_outlive_a_zone(environment: str) -> None:
    hostvars = inventory(environment).hostvars
    zones = [hostvars[host]["host_zone"] for host in inventory(environment).groups["object_store"]]
    # Six drives, one of each host: three of parity, and four must be there for a write.
    assert len(zones) == 6
    assert all(len(zones) - zones.count(zone) >= 4 for zone in zones)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_numbers_of_brokers_and_controllers_are_nobody_elses(environment: str) -> None:
    hostvars, groups = inventory(environment).hostvars, inventory(environment).groups
    numbers = [hostvars[host]["kafka_node_id"] for host in groups["kafka"]]
    numbers += [hostvars[host]["kafka_controller_node_id"] for host in groups["kafka_controller"]]
    assert len(set(numbers)) == len(numbers) > 1


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_ranges_of_the_cluster_are_nobody_elses(environment: str) -> None:
    values = next(iter(inventory(environment).hostvars.values()))
    subnets = [network["subnet"] for network in values["site_networks"].values()]
    ranges = [
        ip_network(one) for one in (*subnets, values["kubernetes_pod_subnet"], values["kubernetes_service_subnet"])
    ]
    assert not [pair for pair in combinations(ranges, 2) if pair[0].overlaps(pair[1])]
    assert ip_address(values["kubernetes_dns_address"]) in ip_network(values["kubernetes_service_subnet"])


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_pools_of_nodes_that_a_site_has_outlive_a_zone(environment: str) -> None:
    hostvars = inventory(environment).hostvars
    zones: dict[str, set[str]] = {}
    for host in inventory(environment).groups["kubernetes_worker"]:
        zones.setdefault(hostvars[host].get("kubernetes_node_pool", "general"), set()).add(hostvars[host]["host_zone"])
    assert set(zones) == (POOLS if environment in {"staging", "prod"} else {"general"})
    assert environment == "dev" or all(len(where) > 1 for where in zones.values())
