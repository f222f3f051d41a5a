# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each refusal has a bad inventory and its exact message; a repair is not stood in the way of."""

from __future__ import annotations

import ipaddress
import os
import secrets
import string
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils import (
    refusal,
    refusal_kafka,
    refusal_object_store,
    refusal_qdrant,
    refusal_redis,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.contract import ContractError, discover
from ansible_collections.groundplane.onprem.plugins.module_utils.refusal import (
    RULES,
    Need,
    Option,
    Situation,
    Unreadable,
    argument_options,
    group_of,
    refusals,
    role_artifacts,
    role_images,
    role_names,
    weakness_of,
)
from hypothesis import given
from hypothesis import strategies as st
from jinja2.nativetypes import NativeEnvironment

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(__file__).parent / "fixtures" / "refusals"
ROLES = [FIXTURES / "roles"]
CASES = sorted(path.stem for path in FIXTURES.glob("*.yml") if path.stem != "base")
HEALTHY: dict[str, Any] = {
    "memory_mb": 8192,
    "addresses": ["127.0.0.1"],
    "hardware": ["02:00:00:00:00:99"],
    "answering": {"192.0.2.100": ""},
    "time_daemons": ["systemd-timesyncd"],
    "clock": {"minimum": -0.05, "maximum": 0.04},
    "filesystems": {
        path: {"mount": "/", "device": 1, "size_gb": 40.0, "free_gb": 30.0, "populated": False}
        for path in ("/", "/var/lib/etcd", "/var/lib/postgresql")
    }
    | {
        drive: {"mount": drive, "device": 2, "size_gb": 2000.0, "free_gb": 1900.0, "populated": True}
        for drive in refusal_object_store.DEFAULT_DRIVES
    },
}


def merge(base: Any, change: Any) -> Any:
    """A copy of base with the change in it; null takes a key away."""
    if not isinstance(base, Mapping) or not isinstance(change, Mapping):
        return deepcopy(change)
    merged = dict(base)
    for key, value in change.items():
        if value is None and key in merged:
            del merged[key]
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def flatten(tree: Mapping[str, Any]) -> tuple[dict[str, list[str]], dict[str, dict[str, Any]]]:
    """Groups and host variables of an inventory of one level of groups."""
    groups: dict[str, list[str]] = {"all": []}
    variables: dict[str, dict[str, Any]] = {}
    for group, content in tree["all"]["children"].items():
        groups[group] = list(content["hosts"])
        for host in content["hosts"]:
            variables.setdefault(host, {}).update(content.get("vars") or {})
    everywhere, own = tree["all"]["vars"], tree["all"]["hosts"]
    return {**groups, "all": list(own)}, {host: {**everywhere, **variables.get(host, {}), **own[host]} for host in own}


@cache
def base() -> dict[str, Any]:
    return load("base")


@cache
def specified() -> dict[str, Option]:
    return argument_options(ROLES)


def situation_of(case: Mapping[str, Any]) -> Situation:
    groups, variables = flatten(merge(base(), case.get("inventory", {})))
    for values in variables.values():
        values.update({name: Unreadable() for name in case.get("unreadable", ())})
    states = merge(dict.fromkeys(variables, HEALTHY), case.get("states", {}))
    return Situation(
        contracts=discover(ROLES),
        options=specified(),
        roles=role_names(ROLES),
        groups={**groups, **case.get("groups", {})},
        variables=variables,
        states=states,
        run=case.get("run", list(variables)),
        purpose=case.get("purpose", "converge"),
        needs=[Need(**need) for need in case.get("needs", ())],
    )


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FIXTURES / f"{name}.yml").read_text())
    return content


def messages(situation: Situation) -> list[str]:
    return [found.message for found in refusals(situation)]


def test_nothing_speaks_against_the_base() -> None:
    assert messages(situation_of({})) == []


@pytest.mark.parametrize("name", CASES)
def test_the_exact_message_and_no_other(name: str) -> None:
    case = load(name)
    found = refusals(situation_of(case))
    assert [one.message for one in found] == case["says"]
    assert {one.rule for one in found} == {name.partition("-")[0]}
    warns = {rule.name: rule.warns for rule in RULES}[name.partition("-")[0]]
    assert all(one.refuses is not warns for one in found)


@pytest.mark.parametrize(
    ("etcd", "says"),
    [
        (
            "stacked",
            ["cp1: has no leg on private, where kubernetes_control_plane listens (etcd): add it to host_addresses."],
        ),
        ("external", []),
    ],
)
def test_a_port_that_is_not_on_this_site_needs_no_leg(etcd: str, says: list[str]) -> None:
    elsewhere = {"host_primary_network": "data", "host_addresses": {"private": None, "data": "192.0.2.141"}}
    inventory = {"all": {"vars": {"kubernetes_control_plane_etcd": etcd}, "hosts": {"cp1": elsewhere}}}
    assert messages(situation_of({"inventory": inventory})) == says


def test_every_rule_has_a_bad_inventory() -> None:
    assert {name.partition("-")[0] for name in CASES} == {rule.name for rule in RULES}


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_that_says_what_to_do(name: str) -> None:
    for message in load(name)["says"]:
        assert message[-1] in ".?"
        assert "\n" not in message
        assert ": " in message or ", did you mean" in message


@pytest.mark.parametrize("name", CASES)
def test_a_repair_is_warned_where_refusing_would_block_it(name: str) -> None:
    case = load(name)
    repairable = {rule.name: rule.repairable or rule.warns for rule in RULES}[name.partition("-")[0]]
    asked = refusals(situation_of({**case, "purpose": "repair"}))
    found = [one for one in asked if one.rule == name.partition("-")[0]]
    assert [one.message for one in found] == case["says"]
    assert all(one.refuses is not repairable for one in found)


def test_which_rules_give_way_to_a_repair() -> None:
    assert {rule.name for rule in RULES if rule.repairable} == {
        *("voters_few", "voters_even", "partial_run", "unreachable"),
        *("vip_answers", "memory", "disk", "clock", "time_daemon", "kubernetes_skew", "object_store_mounts"),
        "qdrant_memory",
    }


def test_which_rules_never_refuse() -> None:
    assert {rule.name for rule in RULES if rule.warns} == {
        *("kafka_zones", "redis_zones", "object_store_zones", "qdrant_zones")
    }


def test_replacing_a_dead_member_is_only_warned_of() -> None:
    """data3 is dead, data4 takes its place: four names, one silent, the run limited to the newcomer."""
    newcomer = {"host_zone": "a", "host_primary_network": "data", "host_addresses": {"data": "192.0.2.134"}}
    case = {
        "inventory": {"all": {"hosts": {"data4": newcomer}, "children": {"etcd": {"hosts": {"data4": {}}}}}},
        "states": {"data3": None},
        "run": ["data3", "data4"],
    }
    blocked = refusals(situation_of(case))
    assert {one.rule for one in blocked if one.refuses} == {"voters_even", "partial_run", "unreachable"}
    assert [one for one in refusals(situation_of({**case, "purpose": "repair"})) if one.refuses] == []


def test_a_live_site_holds_its_own_vip() -> None:
    answering = {"answering": {"192.0.2.100": "02:00:00:00:00:02"}}
    live = {"states": {"lb1": answering, "lb2": {"addresses": ["192.0.2.12", "192.0.2.100"]}}}
    assert messages(situation_of(live)) == []


def test_a_vip_that_moves_while_the_balancers_are_asked_is_still_the_sites_own() -> None:
    """lb1 is asked before it takes the VIP over from lb2, and lb2 after: neither says that it holds it."""
    answering = {"answering": {"192.0.2.100": "02:00:00:00:00:01"}}
    moving = {"states": {"lb1": {"hardware": ["02:00:00:00:00:01"]}, "lb2": answering}}
    assert messages(situation_of(moving)) == []


def test_a_vip_may_be_held_by_the_balancer_that_was_not_asked() -> None:
    answering = {"answering": {"192.0.2.100": "02:00:00:00:00:02"}}
    assert messages(situation_of({"states": {"lb1": answering, "lb2": None}, "run": ["lb1"]})) == []
    assert messages(situation_of({"states": {"lb1": answering, "lb2": {"addresses": None}}})) == []


def test_one_voter_is_enough_for_a_dev_site_only() -> None:
    alone: dict[str, Any] = {
        "inventory": {
            "all": {
                "vars": {"site_environment": "dev"},
                "children": {
                    "etcd": {"hosts": {"data2": None, "data3": None}},
                    "postgres": {"hosts": {"data2": None, "data3": None}},
                },
            }
        }
    }
    situation = situation_of(alone)
    assert messages(situation) == []
    prod = {host: {**values, "site_environment": "prod"} for host, values in situation.variables.items()}
    assert len(messages(replace(situation, variables=prod))) == 2


def test_a_machine_shows_a_little_less_memory_than_it_was_sold_with() -> None:
    assert messages(situation_of({"states": {"data2": {"memory_mb": 716}}})) == []
    assert messages(situation_of({"states": {"data2": {"memory_mb": 714}}})) != []


def test_a_full_disk_does_not_stop_runs_on_what_filled_it() -> None:
    full = {"size_gb": 40.0, "free_gb": 0.1, "populated": True}
    state = {"filesystems": {"/var/lib/etcd": full, "/var/lib/postgresql": full}}
    assert messages(situation_of({"states": {"data2": state}})) == []


@pytest.mark.parametrize(("address", "good"), [("192.0.2.0", False), ("192.0.2.127", False), ("192.0.2.1", True)])
def test_the_first_and_the_last_address_of_a_subnet_are_no_hosts(address: str, good: bool) -> None:
    change = {"inventory": {"all": {"hosts": {"lb2": {"host_addresses": {"private": address}}}}}}
    assert (messages(situation_of(change)) == []) is good


def test_both_addresses_of_a_point_to_point_link_are_hosts() -> None:
    link = {"link": {"subnet": "198.51.100.0/31", "gateway": "198.51.100.1"}}
    change = {"vars": {"site_networks": link}, "hosts": {"lb2": {"host_addresses": {"link": "198.51.100.0"}}}}
    assert messages(situation_of({"inventory": {"all": change}})) == []


def test_two_names_behind_one_address_with_ports_of_their_own_are_two_machines() -> None:
    hosts = {f"data{n}": {"ansible_host": "127.0.0.1", "ansible_port": 2200 + n} for n in (1, 2, 3)}
    assert messages(situation_of({"inventory": {"all": {"hosts": hosts}}})) == []


UPGRADES = [
    # from, to, rules that refuse
    ("1.34.2", "1.34.4", set()),
    ("1.34.4", "1.35.0", set()),
    ("1.34.4", "1.34.4", set()),
    ("1.34.4", "1.36.0", {"kubernetes_version"}),
    ("1.34.4", "2.35.0", {"kubernetes_version"}),
    ("1.34.4", "1.34.3", {"kubernetes_version"}),
    ("1.34.10", "1.34.9", {"kubernetes_version"}),
]


def kubernetes(**versions: str) -> dict[str, Any]:
    """States of hosts that run one version of all there is."""
    running = {"joined": True}
    return {
        host: {"kubernetes": {**running, "kubelet_version": number, "manifest_version": number}}
        for host, number in versions.items()
    }


@pytest.mark.parametrize(("before", "after", "rules"), UPGRADES)
def test_an_upgrade_goes_one_minor_at_a_time_and_never_back(before: str, after: str, rules: set[str]) -> None:
    wanted = {"inventory": {"all": {"vars": {"kubernetes_upgrade_version": after}}}, "purpose": "upgrade"}
    states = kubernetes(cp1=before, cp2=before, cp3=before)
    assert {one.rule for one in refusals(situation_of({**wanted, "states": states}))} == rules


def test_an_upgrade_that_was_interrupted_may_go_on() -> None:
    wanted = {"inventory": {"all": {"vars": {"kubernetes_upgrade_version": "1.35.1"}}}, "purpose": "upgrade"}
    states = kubernetes(cp1="1.35.1", cp2="1.34.4", cp3="1.34.4")
    states["cp1"]["kubernetes"]["kubelet_version"] = "1.34.4"
    assert messages(situation_of({**wanted, "states": states})) == []


def test_a_kubelet_on_a_host_that_is_in_no_cluster_yet_is_nobodys_version() -> None:
    fresh = {"kubernetes": {"joined": False, "kubelet_version": "1.33.1", "manifest_version": ""}}
    assert messages(situation_of({"states": {"cp1": fresh, "cp2": {"kubernetes": None}}})) == []


def test_servers_two_minors_apart_and_kubelets_left_behind_are_told() -> None:
    states = kubernetes(cp1="1.33.1", cp2="1.35.1", worker1="1.30.9")
    states["worker1"]["kubernetes"]["manifest_version"] = ""
    said = [one.message for one in refusals(situation_of({"states": states})) if one.rule == "kubernetes_skew"]
    assert said == [
        (
            "cp1: the API server is 1.33.1 beside 1.35.1 on cp2, more than one minor apart: "
            "bring the older ones up to date first."
        ),
        "worker1: kubelet 1.30.9 is more than 3 minors older than API server 1.35.1 of cp2: upgrade the node first.",
        (
            "cp2: kubelet 1.35.1 is newer than API server 1.33.1 of cp1: "
            "put the kubelet back or upgrade the API server first."
        ),
    ]


def test_pods_may_not_have_the_address_of_a_host_outside_all_networks() -> None:
    change = {"hosts": {"lb2": {"host_addresses": {"other": "10.244.7.1"}}}}
    said = messages(situation_of({"inventory": {"all": change}}))
    assert (
        "kubernetes: kubernetes_pod_subnet 10.244.0.0/16 overlaps host_addresses.other of lb2 10.244.7.1: "
        "choose a range that no network, host or VIP of the site has."
    ) in said


def test_a_site_without_kubernetes_is_not_asked_about_it() -> None:
    groups = {"kubernetes": [], "kubernetes_control_plane": []}
    change = {"vars": {"kubernetes_pod_subnet": "192.0.2.0/24", "kubernetes_version": "1"}}
    assert messages(situation_of({"inventory": {"all": change}, "groups": groups})) == []


def of_kafka(situation: Situation) -> list[str]:
    return [one.message for one in refusals(situation) if one.rule.startswith("kafka_")]


def test_a_site_without_kafka_is_not_asked_about_it() -> None:
    case = {
        "inventory": {"all": {"vars": {"kafka_replication_factor": 9, "kafka_min_insync_replicas": 9}}},
        "groups": {"kafka": [], "kafka_controller": [], "etcd": []},
    }
    assert of_kafka(situation_of(case)) == []


def test_one_broker_with_one_replica_is_a_site_that_promises_nothing() -> None:
    alone = {"groups": {"kafka": ["broker1"], "kafka_controller": ["broker1"]}}
    assert of_kafka(situation_of(alone)) == []
    stated = {"kafka_replication_factor": 1, "kafka_min_insync_replicas": 1}
    assert of_kafka(situation_of({**alone, "inventory": {"all": {"vars": stated}}})) == []
    stated["kafka_min_insync_replicas"] = 2
    assert of_kafka(situation_of({**alone, "inventory": {"all": {"vars": stated}}})) == [
        "broker1: kafka_min_insync_replicas is 2 of 1 replica, so that no broker could ever be lost: lower it."
    ]


@pytest.mark.parametrize("told", [Unreadable(), "{{ lookup('nothing') }}"])
def test_what_kafka_goes_by_is_not_guessed_where_it_cannot_be_read(told: object) -> None:
    names = ("node_id", "version", "replication_factor", "min_insync_replicas", "properties")
    unread = {f"{group}_{name}": told for group in ("kafka", "kafka_controller") for name in names}
    situation = situation_of({})
    hosts = {host: {**values, **unread, "kafka_topics": told} for host, values in situation.variables.items()}
    assert of_kafka(replace(situation, variables=hosts)) == []
    only = {**situation.variables, "broker2": {**situation.variables["broker2"], "kafka_version": told}}
    assert of_kafka(replace(situation, variables=only)) == []


@pytest.mark.parametrize("topics", ["app", [1, "app"], [{"name": "app", "configs": [1]}], {"name": "app"}])
def test_topics_that_are_none_are_left_to_the_role(topics: object) -> None:
    assert of_kafka(situation_of({"inventory": {"all": {"vars": {"kafka_topics": topics}}}})) == []


def test_a_zone_that_nobody_states_is_not_counted() -> None:
    zones = {"broker2": {"host_zone": None}, "broker3": {"host_zone": "a"}}
    assert of_kafka(situation_of({"inventory": {"all": {"hosts": zones}}})) == []


@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize("stated", [{}, {"kafka_replication_factor": 1}, {"kafka_replication_factor": 3}])
def test_kafkas_numbers_are_those_that_its_roles_make(count: int, stated: dict[str, int]) -> None:
    """The rules cannot read the defaults of the roles, which are templates, and say the same in Python."""
    brokers = [f"b{number}" for number in range(count)]
    situation = replace(
        situation_of({}), groups={"kafka": brokers, "kafka_controller": ["c"]}, variables={"b0": stated, "c": stated}
    )
    for role in ("kafka", "kafka_controller"):
        defaults = yaml.safe_load((ROOT / "roles" / role / "defaults/main.yml").read_text())
        known: dict[str, Any] = {"groups": situation.groups, **stated}
        for name in (f"{role}_replication_factor", f"{role}_min_insync_replicas"):
            known.setdefault(name, NativeEnvironment().from_string(str(defaults[name])).render(known))
        host = "b0" if role == "kafka" else "c"
        assert refusal_kafka._factor(situation, host, role)[1] == known[f"{role}_replication_factor"]
        assert refusal_kafka._minimum(situation, host, role)[1] == known[f"{role}_min_insync_replicas"]


def of_redis(situation: Situation) -> list[str]:
    return [one.message for one in refusals(situation) if one.rule.startswith("redis_")]


def test_a_site_without_redis_is_not_asked_about_it() -> None:
    stated = {"redis_sentinel_quorum": 9, "redis_min_replicas_to_write": 9, "redis_users": [{"name": "admin"}]}
    assert of_redis(situation_of({"inventory": {"all": {"vars": stated}}, "groups": {"redis": [], "etcd": []}})) == []


def test_one_redis_alone_is_a_site_that_promises_nothing() -> None:
    assert of_redis(situation_of({"groups": {"redis": ["cache1"]}})) == []


@pytest.mark.parametrize("told", [Unreadable(), "{{ lookup('nothing') }}"])
def test_what_redis_goes_by_is_not_guessed_where_it_cannot_be_read(told: object) -> None:
    unread = dict.fromkeys((*refusal_redis.SHARED, "redis_users", "host_zone"), told)
    situation = situation_of({})
    hosts = {host: {**values, **unread} for host, values in situation.variables.items()}
    assert of_redis(replace(situation, variables=hosts)) == []


@pytest.mark.parametrize("users", ["app", [1, "app"], {"name": "app"}])
def test_users_of_redis_that_are_none_are_left_to_the_role(users: object) -> None:
    assert of_redis(situation_of({"inventory": {"all": {"vars": {"redis_users": users}}}})) == []


@pytest.mark.parametrize("password", [Unreadable(), "", None, "a" * 40, "kR7v"])
def test_a_password_of_redis_is_never_repeated(password: object) -> None:
    users = [{"name": "shop", "password": password}]
    said = of_redis(situation_of({"inventory": {"all": {"vars": {"redis_users": users}}}}))
    assert len(said) == 1
    assert "password" in said[0]
    assert not password or str(password) not in said[0]


@pytest.mark.parametrize("count", range(1, 8))
def test_numbers_of_redis_are_those_that_its_role_makes(count: int) -> None:
    hosts = [f"h{number}" for number in range(count)]
    situation = replace(situation_of({}), groups={"redis": hosts}, variables={host: {} for host in hosts})
    defaults = yaml.safe_load((ROOT / "roles/redis/defaults/main.yml").read_text())
    made = [
        NativeEnvironment().from_string(str(defaults[name])).render({"groups": situation.groups})
        for name in ("redis_sentinel_quorum", "redis_min_replicas_to_write")
    ]
    assert [refusal_redis._quorum(situation, "h0"), refusal_redis._minimum(situation, "h0")] == made


def of_qdrant(situation: Situation) -> list[str]:
    return [one.message for one in refusals(situation) if one.rule.startswith("qdrant_")]


def test_a_site_without_qdrant_is_not_asked_about_it() -> None:
    stated = {"qdrant_replication_factor": 9, "qdrant_checksum": "", "qdrant_snapshot_bucket": "x"}
    assert of_qdrant(situation_of({"inventory": {"all": {"vars": stated}}, "groups": {"qdrant": [], "etcd": []}})) == []


def test_one_qdrant_alone_is_a_site_that_promises_nothing() -> None:
    assert of_qdrant(situation_of({"groups": {"qdrant": ["vector1"]}})) == []


@pytest.mark.parametrize("told", ["{{ lookup('nothing') }}", Unreadable()])
def test_what_qdrant_goes_by_is_not_guessed_where_it_cannot_be_read(told: object) -> None:
    own = ("host_zone", "qdrant_memory_max_mb", "qdrant_snapshot_bucket", "qdrant_snapshot_keep")
    unread = dict.fromkeys((*(name for name in refusal_qdrant.SHARED if "key" not in name), *own), told)
    situation = situation_of({})
    hosts = {host: {**values, **unread} for host, values in situation.variables.items()}
    assert of_qdrant(replace(situation, variables=hosts)) == []


@pytest.mark.parametrize("name", [*refusal_qdrant.KEYS, "qdrant_snapshot_secret_key"])
@pytest.mark.parametrize("secret", [Unreadable(), "a" * 40, "kR7v"])
def test_a_key_of_qdrant_is_never_repeated(name: str, secret: object) -> None:
    stated = {"qdrant_snapshot_bucket": "backups", "qdrant_snapshot_access_key": "qdrant-writer"}
    sound = {"qdrant_snapshot_secret_key": "Hs4Lc9Yt2Kb7Wm5Xr8Nd3Vf6"}
    said = of_qdrant(situation_of({"inventory": {"all": {"vars": {**stated, **sound, name: secret}}}}))
    assert len(said) == 1
    assert name in said[0]
    assert str(secret) not in said[0]


@pytest.mark.parametrize("count", range(1, 6))
def test_factors_of_qdrant_are_those_that_its_role_makes(count: int) -> None:
    hosts = [f"h{number}" for number in range(count)]
    situation = replace(situation_of({}), groups={"qdrant": hosts}, variables={host: {} for host in hosts})
    defaults = yaml.safe_load((ROOT / "roles/qdrant/defaults/main.yml").read_text())
    for name in (refusal_qdrant.REPLICAS, refusal_qdrant.WRITES):
        made = NativeEnvironment().from_string(str(defaults[name])).render({"groups": situation.groups})
        assert refusal_qdrant._factor(situation, "h0", name) == made


def test_what_the_role_of_qdrant_decides_is_what_its_rules_keep() -> None:
    own = yaml.safe_load((ROOT / "roles/qdrant/vars/main.yml").read_text())

    def paths(told: Mapping[str, Any], above: str = "") -> set[str]:
        found: set[str] = set()
        for key, one in told.items():
            found |= paths(one, f"{above}{key}.") if isinstance(one, Mapping) else {f"{above}{key}"}
        return found

    decided = paths(own["__qdrant_fixed"])
    assert [
        path for path in decided if not any(f"{path}.".startswith(f"{kept}.") for kept in refusal_qdrant.KEPT)
    ] == []
    assert not any(refusal_qdrant._has(own["__qdrant_preset"], path) for path in refusal_qdrant.KEPT)


def of_object_store(situation: Situation) -> list[str]:
    return [one.message for one in refusals(situation) if one.rule.startswith("object_store_")]


def test_a_site_without_an_object_store_is_not_asked_about_it() -> None:
    stated = {"object_store_drives": ["x"], "object_store_parity": 9, "object_store_users": [{"secret_key": "x"}]}
    case = {"inventory": {"all": {"vars": stated}}, "groups": {"object_store": [], "etcd": []}}
    assert of_object_store(situation_of(case)) == []


def test_one_server_with_one_drive_is_a_site_that_promises_nothing() -> None:
    assert of_object_store(situation_of({"groups": {"object_store": ["store1"]}})) == []


@pytest.mark.parametrize("told", [Unreadable(), "{{ lookup('nothing') }}"])
def test_what_an_object_store_goes_by_is_not_guessed_where_it_cannot_be_read(told: object) -> None:
    own = ("object_store_pool", "object_store_drives", "object_store_serials", "host_zone")
    unread = dict.fromkeys((*refusal_object_store.SHARED, *own), told)
    situation = situation_of({})
    hosts = {host: {**values, **unread} for host, values in situation.variables.items()}
    assert of_object_store(replace(situation, variables=hosts)) == []


@pytest.mark.parametrize("record", [None, [], {}, {"pools": 1}, {"pools": []}, "x"])
def test_a_record_that_says_nothing_speaks_against_nothing(record: object) -> None:
    states = {"store1": {"records": {refusal_object_store.RECORD: record}}, "store2": {"records": None}}
    assert of_object_store(situation_of({"states": states})) == []


def test_a_store_may_grow_by_a_pool_and_by_nothing_else() -> None:
    first = [f"https://store{n}.fixture.example:9000/srv/object_store/drive1" for n in (1, 2, 3, 4)]
    states = {f"store{n}": {"records": {refusal_object_store.RECORD: {"pools": [first]}}} for n in (1, 2, 3, 4)}
    newcomers = {
        f"store{n}": {"host_primary_network": "data", "host_addresses": {"data": f"192.0.2.{170 + n}"}}
        for n in (5, 6, 7, 8)
    }
    group = {"object_store": {"hosts": {host: {} for host in newcomers}}}
    alike = {"inventory": {"all": {"hosts": newcomers, "children": group}}, "states": states}
    assert len(of_object_store(situation_of(alike))) == 1
    behind = {host: {**values, "object_store_pool": 2} for host, values in newcomers.items()}
    grown = {"inventory": {"all": {"hosts": behind, "children": group}}, "states": states}
    assert of_object_store(situation_of(grown)) == []


@pytest.mark.parametrize("secret", [Unreadable(), "", "a" * 40, "kR7v"])
def test_a_secret_key_of_an_object_store_is_never_repeated(secret: object) -> None:
    users = [{"name": "shop", "secret_key": secret}]
    said = of_object_store(situation_of({"inventory": {"all": {"vars": {"object_store_users": users}}}}))
    assert len(said) == 1
    assert "secret_key" in said[0]
    assert not secret or str(secret) not in said[0]


def test_what_the_rules_of_an_object_store_take_for_granted_is_what_its_role_says() -> None:
    defaults = yaml.safe_load((ROOT / "roles/object_store/defaults/main.yml").read_text())
    own = yaml.safe_load((ROOT / "roles/object_store/vars/main.yml").read_text())
    assert tuple(defaults["object_store_drives"]) == refusal_object_store.DEFAULT_DRIVES
    assert (defaults["object_store_pool"], defaults["object_store_parity"]) == (1, 0)
    assert own["__object_store_record"] == refusal_object_store.RECORD
    assert f"default={defaults['object_store_drives']}" in own["__object_store_drives_of"]


def test_variables_that_playbooks_take_are_known(tmp_path: Path) -> None:
    (tmp_path / "playbooks" / "meta").mkdir(parents=True)
    (tmp_path / "roles").mkdir()
    path = tmp_path / "playbooks" / "meta" / "argument_specs.yml"
    path.write_text("argument_specs: {site: {options: {site_colour: {type: bool}}}}\n")
    assert argument_options([tmp_path / "roles"])["site_colour"].type == "bool"
    path.write_text("[]\n")
    with pytest.raises(ContractError, match=r"playbooks/meta/argument_specs\.yml: argument_specs: missing"):
        argument_options([tmp_path / "roles"])


def test_variables_of_other_people_and_internals_are_left_alone() -> None:
    others = {"my_company_rack": 7, "ansible_port": 22, "lab_directory": "/x", "_postgres_ttl": 1, "molecule_yml": {}}
    assert messages(situation_of({"inventory": {"all": {"vars": others}}})) == []


def test_a_broken_inventory_is_refused_and_does_not_break_the_rules() -> None:
    broken = {"site_networks": [1], "site_vips": "none", "host_addresses": "10.0.0.1", "site_environment": 3}
    situation = situation_of({})
    found = messages(replace(situation, variables=dict.fromkeys(situation.variables, broken)))
    assert "all hosts: site_networks is no mapping: give it a name and subnet for each row." in found
    assert messages(replace(situation, variables={host: {} for host in situation.variables}))
    unreadable = {name: Unreadable() for name in situation.variables["lb1"]}
    assert messages(replace(situation, variables=dict.fromkeys(situation.variables, unreadable)))


def test_argument_specs_that_are_none_are_named(tmp_path: Path) -> None:
    meta = tmp_path / "thing" / "meta"
    meta.mkdir(parents=True)
    (meta / "argument_specs.yml").write_text("options: {}\n")
    with pytest.raises(ContractError, match=r"thing/meta/argument_specs\.yml: argument_specs: missing"):
        argument_options([tmp_path])


def test_what_a_roles_tasks_install_is_read_from_them(tmp_path: Path) -> None:
    tasks = tmp_path / "thing" / "tasks"
    tasks.mkdir(parents=True)
    install = "groundplane.onprem.artifact"
    listed = [
        {
            "name": "one",
            install: {"name": "kubeadm", "version": "{{ kubernetes_version }}", "dest": "/usr/bin/kubeadm"},
        },
        {"name": "several", install: {"artifacts": [{"name": "kubelet", "dest": "/x"}, {"name": "kubectl"}]}},
        {"name": "in turn", install: {"name": "{{ item }}", "dest": "/x"}, "loop": ["etcdctl", "etcdutl"]},
        {"name": "in a block", "block": [{"name": "one", install: {"name": "helm", "dest": "/x"}}]},
        {"name": "only if it is wanted", install: {"name": "crictl", "dest": "/x"}, "when": "thing_crictl"},
        {"name": "what is not known yet", install: {"name": "{{ thing_tool }}", "dest": "/x"}},
        {"name": "no artifact", "ansible.builtin.debug": {"msg": "x"}},
    ]
    (tasks / "main.yml").write_text(yaml.safe_dump(listed))
    (tasks / "other.yml").write_text(yaml.safe_dump([{"name": "nothing", "ansible.builtin.debug": {}}]))
    names = ["kubelet", "kubectl", "etcdctl", "etcdutl", "helm"]
    first = Need("thing", "kubeadm", "{{ kubernetes_version }}")
    assert role_artifacts(tmp_path / "thing") == [first, *(Need("thing", name) for name in names)]


def test_the_images_of_a_role_are_read_from_its_templates(tmp_path: Path) -> None:
    templates = tmp_path / "thing" / "templates" / "cluster"
    templates.mkdir(parents=True)
    (templates / "a.yaml.j2").write_text("image: {{ thing_image_repository }}/kube-proxy:{{ thing_kube_proxy_tag }}\n")
    (templates / "b.yaml.j2").write_text(
        "{% set x = thing_image_repository ~ '/agent:' ~ thing_agent_tag %}\nimage: {{ x }}\n"
    )
    (templates / "c.yaml").write_text("image: {{ thing_image_repository }}/not-a-template:{{ thing_tag }}\n")
    assert role_images(tmp_path / "thing") == [
        "{{ thing_image_repository }}/agent:{{ thing_agent_tag }}",
        "{{ thing_image_repository }}/kube-proxy:{{ thing_kube_proxy_tag }}",
    ]


def test_a_role_belongs_to_its_contracts_group_or_to_that_of_its_name() -> None:
    situation = situation_of({})
    groups = situation.groups
    assert group_of("kubernetes_control_plane", situation.contracts, groups) == "kubernetes_control_plane"
    assert group_of("kubernetes_network", situation.contracts, groups) == "kubernetes"
    assert group_of("lab_site", situation.contracts, groups) is None


# ---------------------------------------------------------------------------------------------- rules for any numbers


@given(st.integers(1, 9), st.integers(1, 5))
def test_voters_are_refused_when_even_or_few(count: int, minimum: int) -> None:
    situation = situation_of({})
    etcd = situation.contracts["etcd"]
    assert etcd.quorum is not None
    contract = replace(etcd, quorum=replace(etcd.quorum, minimum=minimum))
    members = [f"n{number}" for number in range(count)]
    situation = replace(situation, contracts={"etcd": contract}, groups={"etcd": members})
    found = {one.rule for one in refusals(situation) if one.rule.startswith("voters")}
    assert found == {name for name, bad in (("voters_even", count % 2 == 0), ("voters_few", count < minimum)) if bad}


SUBNETS = st.builds(
    lambda base, prefix: str(ipaddress.ip_network((base, prefix), strict=False)),
    st.integers(0x0A000000, 0x0A0003FF),
    st.integers(22, 30),
)


@given(st.lists(SUBNETS, max_size=6))
def test_overlap_is_refused_for_exactly_the_pairs_that_share_an_address(subnets: list[str]) -> None:
    networks = {f"n{index}": {"subnet": subnet} for index, subnet in enumerate(subnets)}
    situation = replace(situation_of({}), variables={"h": {"site_networks": networks}})
    ranges = [{int(address) for address in ipaddress.ip_network(subnet)} for subnet in subnets]
    sharing = sum(bool(one & other) for index, one in enumerate(ranges) for other in ranges[:index])
    assert sum(one.rule == "subnets_overlap" for one in refusals(situation)) == sharing


@given(st.lists(st.tuples(st.sampled_from(["private", "data"]), st.integers(-1, 258)), max_size=8))
def test_a_vrid_is_refused_when_out_of_range_or_used_on_the_network(rows: list[tuple[str, int]]) -> None:
    vips = {
        f"v{index}": {"address": "192.0.2.1", "network": network, "vrid": number}
        for index, (network, number) in enumerate(rows)
    }
    situation = replace(situation_of({}), variables={"h": {"site_vips": vips}})
    good = [row for row in rows if 1 <= row[1] <= 255]
    expected = len(rows) - len(good) + len(good) - len(set(good))
    assert sum(one.rule == "vrid" for one in refusals(situation)) == expected


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_kafka_is_refused_when_a_broker_could_not_be_lost_or_has_a_replica_twice(
    brokers: int, factor: int, minimum: int
) -> None:
    stated = {"kafka_replication_factor": factor, "kafka_min_insync_replicas": minimum}
    hosts = [f"b{number}" for number in range(brokers)]
    situation = replace(
        situation_of({}), groups={"kafka": hosts, "kafka_controller": hosts[:1]}, variables=dict.fromkeys(hosts, stated)
    )
    found = sum(one.rule == "kafka_replication" for one in refusals(situation))
    assert found == (factor > brokers) + (minimum >= factor and (factor, minimum) != (1, 1))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=5))
def test_a_number_of_kafka_is_refused_as_often_as_it_was_given_before(pairs: list[tuple[int, int]]) -> None:
    variables = {
        f"h{index}": {"kafka_node_id": one, "kafka_controller_node_id": other}
        for index, (one, other) in enumerate(pairs)
    }
    groups = {"kafka": list(variables), "kafka_controller": list(variables)}
    situation = replace(situation_of({}), groups=groups, variables=variables)
    numbers = [number for pair in pairs for number in pair]
    found = sum(one.rule == "kafka_node_id" for one in refusals(situation))
    assert found == len(numbers) - len(set(numbers))


@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 4))
def test_sets_of_an_object_store_are_refused_exactly_when_a_host_could_not_be_lost(
    hosts: int, drives: int, parity: int
) -> None:
    stated = {"object_store_drives": [f"/srv/{number}" for number in range(drives)], "object_store_parity": parity}
    names = [f"h{number}" for number in range(hosts)]
    situation = replace(situation_of({}), groups={"object_store": names}, variables=dict.fromkeys(names, stated))
    found = any(one.rule == "object_store_sets" for one in refusals(situation))
    # Counted anew, drive by drive: each set, each host that is away.
    size = max((one for one in range(2, 17) if hosts * drives % one == 0), default=0)
    away = [[number % hosts for number in range(at, at + size)] for at in range(0, hosts * drives, size or 1)]
    redundant = parity or {2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 3}.get(size, 4)
    quorum = size - redundant + (redundant * 2 == size)
    lost = any(size - members.count(host) < quorum for members in away for host in range(hosts))
    assert found is (not size or parity * 2 > size or lost)


@given(st.floats(-3, 3), st.floats(0, 2), st.floats(0, 1))
def test_a_slow_round_trip_never_refuses_a_good_clock(offset: float, trip: float, share: float) -> None:
    """The host's answer is taken at any point of the round trip."""
    sent, answered, received = 0.0, trip * share, trip
    limits = {"minimum": answered + offset - received, "maximum": answered + offset - sent}
    states = {"data1": {**HEALTHY, "clock": limits}}
    refused = any(one.rule == "clock" for one in refusals(situation_of({"states": states})))
    if abs(offset) <= refusal.CLOCK_LIMIT - 1e-9:
        assert not refused
    if abs(offset) > refusal.CLOCK_LIMIT + trip + 1e-9:
        assert refused


@given(st.integers(24, 64), st.sampled_from([string.hexdigits[:16], string.ascii_letters + string.digits]))
def test_a_random_secret_is_never_weak(length: int, alphabet: str) -> None:
    value = "".join(secrets.choice(alphabet) for _ in range(length))
    assert weakness_of(value, 24, ["data1", "postgres", "fixture.example"]) is None, value


@given(st.text(string.ascii_letters + string.digits, min_size=1, max_size=5), st.integers(24, 60))
def test_a_short_pattern_repeated_is_always_weak(pattern: str, length: int) -> None:
    assert weakness_of((pattern * length)[:length], 24) is not None


@given(st.text(string.ascii_letters + string.digits + "{}'\"\\", min_size=4, max_size=40))
def test_no_sentence_repeats_a_secret(value: str) -> None:
    marked = f"~{value}~"
    case = {"inventory": {"all": {"vars": {"postgres_superuser_password": marked, "postgres_synchronous": marked}}}}
    found = messages(situation_of(case))
    assert found
    assert not any(marked in message for message in found)


# ---------------------------------------------------------------------------------------------------------- the runbook


def test_the_runbook_is_what_the_rules_and_their_examples_say() -> None:
    """`GROUNDPLANE_WRITE=1 pytest tests/unit/test_refusal.py -k runbook` writes its table anew."""
    rows = []
    for rule in RULES:
        case = next(name for name in CASES if name.partition("-")[0] == rule.name)
        why = " ".join(str(rule.check.__doc__).split())
        sentence = load(case)["says"][0].replace("|", "\\|")
        verdict = "warns always" if rule.warns else "warns" if rule.repairable else "refuses"
        rows.append(f"| `{rule.name}` | {why} | {sentence} | {verdict} |")
    path = ROOT / "docs" / "runbooks" / "refusals.md"
    head, line, _ = path.read_text().partition("|---|---|---|---|\n")
    page = head + line + "\n".join(rows) + "\n"
    if os.environ.get("GROUNDPLANE_WRITE"):
        path.write_text(page)
    assert path.read_text() == page
