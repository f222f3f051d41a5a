# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files and decisions of role qdrant for three hosts, rendered by Ansible's own templating."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.groundplane.onprem.plugins.module_utils import contract
from hypothesis import given, settings
from hypothesis import strategies as st

ROLE = Path(__file__).parents[2] / "roles" / "qdrant"
TREE = ROLE / "templates" / "tree"
HOSTS = ("vector1", "vector2", "vector3")
MARK, FOUNDER, JOIN, STATE = (
    "/etc/qdrant/formed", "/etc/qdrant/founder", "/etc/qdrant/join", "/var/lib/qdrant/storage/raft_state.json",
)  # fmt: skip
KEY = "Zk4Wq8Rt2Yb6Nm1Xc5Vg9Hd3Js7Lf0Pa"
SECRET = "Mq3Zt7Kw1Bf5Ny9Cd2Gh6Jr"


def trusted(value: Any) -> Any:
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, dict):
        return {trusted(key): trusted(one) for key, one in value.items()}
    return [trusted(one) for one in value] if isinstance(value, list) else value


def templar(host: str, held: dict[str, list[str]] | None = None, seen: tuple[str, ...] = HOSTS, **more: Any) -> Templar:
    """The role's variables on a host.

    Args:
        host: which.
        held: host to the paths that were found on it.
        seen: hosts that the run has not lost.
        more: of the site, and in place of lookups.
    """
    hosts = tuple(more.pop("hosts", HOSTS))
    hostvars = {
        one: {"__qdrant_found": {"files": [{"path": path} for path in (held or {}).get(one, [])]}} for one in hosts
    }
    known = {
        **trusted(yaml.safe_load((ROLE / "defaults/main.yml").read_text())),
        **trusted(yaml.safe_load((ROLE / "vars/main.yml").read_text())),
        "inventory_hostname": host,
        "hostvars": hostvars,
        "groups": {"qdrant": list(hosts)},
        "ansible_play_hosts": [one for one in hosts if one in seen],
        "host_addresses": {"data": f"10.1.3.{hosts.index(host) + 61}"},
        "host_primary_network": "data",
        "site_domain": "site.example",
        "role_path": str(ROLE),
        "qdrant_api_key": KEY,
        # Lookups need a whole inventory.
        "__qdrant_members": list(hosts),
        "__qdrant_snapshot_servers": ["https://store1.site.example:9000"],
        **more,
    }
    return Templar(DataLoader(), variables=known)


def value(name: str, host: str, *args: Any, **more: Any) -> Any:
    return templar(host, *args, **more).template(trust_as_template(f"{{{{ {name} }}}}"))


def render(path: str, host: str, *args: Any, **more: Any) -> str:
    return str(templar(host, *args, **more).template(trust_as_template((TREE / f"{path}.j2").read_text())))


def config(host: str, **more: Any) -> dict[str, Any]:
    told: dict[str, Any] = yaml.safe_load(render("etc/qdrant/config.yaml", host, **more))
    return told


def unit(path: str, host: str, **more: Any) -> dict[str, list[str]]:
    """Each key of a unit with its values."""
    found: dict[str, list[str]] = {}
    for line in render(path, host, **more).splitlines():
        key, sign, said = line.partition("=")
        if sign and not line.startswith("#"):
            found.setdefault(key, []).append(said)
    return found


class TestConfiguration:
    @pytest.mark.parametrize("host", HOSTS)
    def test_each_host_listens_with_tls_at_its_own_address_and_is_clustered(self, host: str) -> None:
        told = config(host)
        service, cluster, tls = told["service"], told["cluster"], told["tls"]
        assert service["host"] == f"10.1.3.{HOSTS.index(host) + 61}"
        assert (service["http_port"], service["grpc_port"], service["enable_tls"]) == (6333, None, True)
        assert (cluster["enabled"], cluster["p2p"]) == (True, {"port": 6335, "enable_tls": True})
        assert (tls["cert"], tls["key"]) == ("/etc/qdrant/tls/server.crt", "/etc/qdrant/tls/server.key")
        assert tls["ca_cert"] == "/etc/groundplane/pki/ca.crt"
        assert told["telemetry_disabled"] is True

    def test_but_for_the_address_it_is_the_same_on_all(self) -> None:
        told = [config(host) for host in HOSTS]
        for one in told:
            one["service"].pop("host")
        assert told[0] == told[1] == told[2]

    def test_ports_are_those_of_the_contract(self) -> None:
        stated = contract.load(ROLE / "meta/service.yml")
        told = config("vector1")
        assert stated.listen("api").port == told["service"]["http_port"]
        assert stated.listen("peer").port == told["cluster"]["p2p"]["port"]
        assert (stated.listen("api").tls, stated.listen("peer").tls) == ("server", "mutual")
        (endpoint,) = stated.endpoints
        assert endpoint.check is not None
        assert (endpoint.name, endpoint.check.path, endpoint.check.method) == ("qdrant", "/readyz", "GET")

    def test_keys_are_texts_and_only_those_that_are_set(self) -> None:
        service = config("vector1")["service"]
        assert service["api_key"] == KEY
        assert not {"read_only_api_key", "alt_api_key"} & set(service)
        service = config("vector1", qdrant_read_only_api_key="1" * 32, qdrant_next_api_key="true")["service"]
        assert (service["read_only_api_key"], service["alt_api_key"]) == ("1" * 32, "true")

    def test_a_site_adds_settings_and_overrides_no_decision(self) -> None:
        told = config(
            "vector1",
            qdrant_settings={
                "service": {"enable_tls": False, "max_workers": 4},
                "storage": {"storage_path": "/x", "optimizers": {"flush_interval_sec": 9}, "on_disk_payload": False},
                "cluster": {"enabled": False},
            },
        )
        assert (told["service"]["max_workers"], told["storage"]["optimizers"]) == (4, {"flush_interval_sec": 9})
        assert told["storage"]["on_disk_payload"] is False
        assert told["service"]["enable_tls"] is True
        assert told["cluster"]["enabled"] is True
        assert told["storage"]["storage_path"] == "/var/lib/qdrant/storage"

    @pytest.mark.parametrize(("count", "factor"), [(1, 1), (2, 2), (3, 2), (5, 2)])
    def test_two_replicas_take_each_write_where_there_are_two_hosts(self, count: int, factor: int) -> None:
        hosts = tuple(f"vector{number}" for number in range(1, count + 1))
        told = config("vector1", hosts=hosts)["storage"]["collection"]
        assert told == {"replication_factor": factor, "write_consistency_factor": factor}

    def test_snapshots_stay_on_the_member_first_because_only_then_their_checksum_is_told(self) -> None:
        told = config("vector1", qdrant_snapshot_bucket="backups")["storage"]
        assert told["snapshots_config"] == {"snapshots_storage": "local"}


class TestUnit:
    @pytest.mark.parametrize("path", ["qdrant.service", "qdrant-snapshot.service", "qdrant-snapshot.timer"])
    def test_no_secret_is_in_a_unit(self, path: str) -> None:
        text = render(
            f"etc/systemd/system/{path}", "vector1", qdrant_read_only_api_key=SECRET, qdrant_snapshot_secret_key=SECRET
        )
        assert KEY not in text
        assert SECRET not in text

    def test_who_was_a_member_and_has_no_data_does_not_start(self) -> None:
        told = unit("etc/systemd/system/qdrant.service", "vector1")
        assert told["AssertPathExists"] == [f"|!{MARK}", f"|{STATE}"]

    def test_without_a_file_that_says_whom_to_join_nothing_starts(self) -> None:
        told = unit("etc/systemd/system/qdrant.service", "vector2")
        assert told["EnvironmentFile"] == [JOIN]
        assert told["ExecStart"] == [
            "/opt/qdrant/1.19.0/qdrant --config-path /etc/qdrant/config.yaml --uri https://vector2.site.example:6335"
        ]
        assert "MemoryMax" not in told
        assert unit("etc/systemd/system/qdrant.service", "vector2", qdrant_memory_max_mb=900)["MemoryMax"] == ["900M"]

    def test_the_units_file_is_one_that_parses(self) -> None:
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(render("etc/systemd/system/qdrant.service", "vector1"))
        assert set(parser.sections()) == {"Unit", "Service", "Install"}

    def test_whom_a_member_joined_restarts_nothing(self) -> None:
        service = value("__qdrant_units", "vector1")[0]
        assert JOIN not in service["restart_on"]
        assert {"/etc/qdrant/config.yaml", "/opt/qdrant/1.19.0.manifest"} <= set(service["restart_on"])

    @pytest.mark.parametrize(("bucket", "state"), [("", "stopped"), ("backups", "started")])
    def test_snapshots_are_taken_where_there_is_a_bucket(self, bucket: str, state: str) -> None:
        timer = value("__qdrant_units", "vector1", qdrant_snapshot_bucket=bucket)[1]
        assert (timer["state"], timer["enabled"]) == (state, bool(bucket))
        # Not all of the paths: one of them looks up a file, for which Ansible's plugins are not loaded here.
        path = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__qdrant_paths"]["/etc/qdrant/snapshot.json"]
        told = templar("vector1", qdrant_snapshot_bucket=bucket).template(trust_as_template(path))
        assert told == ({"group": "qdrant", "mode": "0640", "secret": True} if bucket else {"state": "absent"})


# --- who forms a cluster ---


def doors(held: dict[str, list[str]], seen: tuple[str, ...] = HOSTS) -> dict[str, str]:
    """Whom each host would join; empty: nobody."""
    return {host: value("__qdrant_door_of", host, held, seen) for host in seen}


def refused(held: dict[str, list[str]], seen: tuple[str, ...] = HOSTS) -> dict[str, list[str]]:
    found = {host: value("__qdrant_contradictions", host, held, seen) for host in seen}
    return {host: said for host, said in found.items() if said}


class TestFormation:
    def test_the_first_host_forms_and_the_others_join_it(self) -> None:
        assert doors({}) == {"vector1": "", "vector2": "vector1", "vector3": "vector1"}
        assert value("__qdrant_founder", "vector2", {}) == "vector1"
        assert refused({}) == {}
        assert "QDRANT_BOOTSTRAP=https://vector1.site.example:6335" in render("etc/qdrant/join", "vector2", {})
        assert "QDRANT_BOOTSTRAP" not in render("etc/qdrant/join", "vector1", {})

    def test_a_run_that_was_interrupted_is_gone_on_with_on_the_same_host(self) -> None:
        held = {"vector1": [JOIN, STATE], "vector2": [FOUNDER, JOIN, STATE]}
        assert doors(held) == {"vector1": "vector2", "vector2": "", "vector3": "vector2"}
        assert refused(held) == {}

    def test_where_there_is_a_member_nobody_forms_another_cluster(self) -> None:
        held = {"vector2": [MARK, JOIN, STATE]}
        assert doors(held) == {"vector1": "vector2", "vector2": "vector1", "vector3": "vector2"}
        assert value("__qdrant_founder", "vector1", held) == ""

    def test_a_member_that_lost_its_data_is_refused_in_a_sentence(self) -> None:
        held = {host: [MARK, JOIN, STATE] for host in HOSTS} | {"vector1": [MARK, JOIN]}
        said = refused(held)
        assert list(said) == ["vector1"]
        assert said["vector1"][0].startswith("vector1 is on record as a member in /etc/qdrant/formed, and has no ")
        assert said["vector1"][0].endswith("playbooks/qdrant_remove.yml -e qdrant_remove=vector1")

    def test_where_only_a_mark_is_left_nobody_forms_a_cluster(self) -> None:
        held = {"vector2": [MARK, JOIN]}
        assert value("__qdrant_founder", "vector1", held) == ""
        assert doors(held)["vector1"] == "vector2"

    def test_data_that_nobody_knows_are_refused(self) -> None:
        held = {"vector1": [MARK, JOIN, STATE], "vector3": [STATE]}
        assert "is on record as no member" in refused(held)["vector3"][0]
        lost = {"vector2": [JOIN, STATE], "vector3": [JOIN, STATE]}
        assert "vector2, vector3 hold data" in refused(lost)["vector2"][0]
        assert value("__qdrant_founder", "vector1", lost) == ""

    def test_a_run_that_does_not_see_all_forms_nothing(self) -> None:
        seen = ("vector1", "vector3")
        said = refused({}, seen)
        assert set(said) == set(seen)
        assert said["vector1"][0].startswith("this run does not see vector2 ")
        assert refused({"vector3": [MARK, JOIN, STATE]}, seen) == {}

    def test_an_address_of_ipv6_is_refused(self) -> None:
        said = value("__qdrant_contradictions", "vector1", {}, host_addresses={"data": "2001:db8::1"})
        assert "is an address of IPv6" in said[0]

    @pytest.mark.parametrize("host", HOSTS)
    def test_what_is_written_afterwards_is_what_the_next_run_writes(self, host: str) -> None:
        after = value("__qdrant_others | first", host)
        formed = {one: [MARK, JOIN, STATE] for one in HOSTS}
        assert value("__qdrant_door_of", host, formed) == after

    @settings(max_examples=25)
    @given(
        held=st.dictionaries(
            st.sampled_from(HOSTS), st.lists(st.sampled_from([MARK, FOUNDER, JOIN, STATE]), unique=True), max_size=3
        ),
        seen=st.lists(st.sampled_from(HOSTS), unique=True, min_size=1).map(tuple),
    )
    def test_nobody_without_data_starts_alone_where_a_member_ever_was(
        self, held: dict[str, list[str]], seen: tuple[str, ...]
    ) -> None:
        """Whoever would begin a cluster of its own is the one founder, or is refused, or cannot start."""
        alone = []
        for host in seen:
            paths = held.get(host, [])
            starts = MARK not in paths or STATE in paths
            begins = STATE not in paths and not value("__qdrant_door_of", host, held, seen)
            if begins and starts and not value("__qdrant_contradictions", host, held, seen):
                alone.append(host)
        assert len(alone) <= 1
        if alone:
            assert set(seen) == set(HOSTS)
            assert not [host for host in HOSTS if MARK in held.get(host, [])]


class TestRemoval:
    def doubts(self, held: dict[str, list[str]], removed: str, seen: tuple[str, ...] = HOSTS) -> list[str]:
        told: list[str] = value("__qdrant_remove_doubts", seen[0], held, seen, qdrant_remove=removed)
        return told

    def test_a_host_that_lost_its_data_or_is_in_no_inventory_is_removed(self) -> None:
        held = {host: [MARK, JOIN, STATE] for host in HOSTS} | {"vector2": [MARK, JOIN]}
        assert self.doubts(held, "vector2") == []
        assert self.doubts(held, "vector9") == []

    def test_one_that_holds_data_is_silent_or_is_the_last_stays(self) -> None:
        held = {host: [MARK, JOIN, STATE] for host in HOSTS}
        assert self.doubts(held, "vector2")[0].startswith(f"still has {STATE}. Nothing is ever wiped")
        assert self.doubts(held, "vector2", ("vector1", "vector3"))[0].startswith("is in the group qdrant, and did not")
        assert self.doubts({"vector1": [MARK]}, "vector1")[0].startswith("is the only host that is on record")
