# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of the load balancers, rendered by Ansible's own templating from a small site."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.groundplane.onprem.plugins.module_utils import contract
from ansible_collections.groundplane.onprem.plugins.module_utils.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator

ROLE = Path(__file__).parents[2] / "roles" / "load_balancer"
TREE = ROLE / "templates" / "tree"

NETWORKS = {
    "private": {"subnet": "10.1.2.0/24", "gateway": "10.1.2.254"},
    "public": {"subnet": "10.1.1.0/24", "gateway": "10.1.1.254"},
    "data": {"subnet": "10.1.3.0/24", "gateway": "10.1.3.254"},
}
VIPS = {
    "private": {"address": "10.1.2.100", "network": "private", "vrid": 51},
    "public": {"address": "10.1.1.100", "network": "public", "vrid": 52},
}
HOSTS = {
    "lb1": {"host_addresses": {"private": "10.1.2.11", "public": "10.1.1.11"}, "host_primary_network": "private"},
    "lb2": {"host_addresses": {"private": "10.1.2.12", "public": "10.1.1.12"}, "host_primary_network": "private"},
    "lb3": {"host_addresses": {"private": "10.1.2.13"}, "host_primary_network": "private"},
    "db1": {"host_addresses": {"data": "10.1.3.11"}, "host_primary_network": "data"},
    "db2": {"host_addresses": {"data": "10.1.3.12"}, "host_primary_network": "data"},
}
GROUPS = {"load_balancer": ["lb1", "lb2", "lb3"], "database": ["db1", "db2"]}


def database(**endpoint: Any) -> dict[str, Any]:
    return {
        "service": "database",
        "group": "database",
        "listens": [
            {"name": "sql", "port": 6432, "tls": "mutual"},
            {"name": "rest", "port": 8008, "tls": "mutual"},
        ],
        "endpoints": [
            {
                "name": "primary",
                "vip": "private",
                "port": 5432,
                "listen": "sql",
                "check": {"listen": "rest", "path": "/primary"},
                "members": "leader",
                "on_marked_down": "shutdown-sessions",
            }
            | endpoint
        ],
    }


def services(**others: dict[str, Any]) -> dict[str, Any]:
    """The database with further endpoints, each like the first but for what is said of it."""
    service = database()
    first = service["endpoints"][0]
    for number, (name, change) in enumerate(others.items(), 1):
        both = first | {"name": name, "port": first["port"] + number} | change
        service["endpoints"].append({key: value for key, value in both.items() if value is not None})
    return service


def render(path: str, host: str = "lb1", service: dict[str, Any] | None = None, **variables: Any) -> str:
    """A file of the role as it would stand on a host."""
    contracts = {"database": contract.load(service or database())}
    site = Site.from_inventory(contracts, GROUPS, HOSTS, {"site_networks": NETWORKS, "site_vips": VIPS})
    known: dict[str, Any] = {
        **yaml.safe_load((ROLE / "defaults/main.yml").read_text()),
        **yaml.safe_load((ROLE / "vars/main.yml").read_text()),
        **HOSTS[host],
        "inventory_hostname": host,
        "groups": GROUPS,
        "hostvars": HOSTS,
        "site_networks": NETWORKS,
        "site_vips": VIPS,
        "__load_balancer_endpoints": site.endpoints(),
        **variables,
    }
    text = trust_as_template((TREE / f"{path}.j2").read_text())
    return str(Templar(DataLoader(), variables=known).template(text))


def section(text: str, head: str) -> list[str]:
    """The lines of a section of haproxy.cfg, stripped, without comments."""
    found = re.search(rf"^{re.escape(head)}\n((?:[ \t]+.*\n|\n)*)", text, re.MULTILINE)
    assert found, f"no section {head!r}"
    return [line.strip() for line in found[1].splitlines() if line.strip() and not line.strip().startswith("#")]


class TestHaproxy:
    def test_frontend_binds_the_address_without_holding_it(self) -> None:
        lines = section(render("etc/haproxy/haproxy.cfg"), "frontend database_primary")
        assert "bind 10.1.2.100:5432 transparent tcp-ut 15s" in lines
        assert "default_backend database_primary" in lines

    def test_members_are_checked_over_verified_mutual_tls(self) -> None:
        lines = section(render("etc/haproxy/haproxy.cfg"), "backend database_primary")
        assert "server db1 10.1.3.11:6432 addr 10.1.3.11 port 8008 verifyhost db1 check-sni db1" in lines
        assert "server db2 10.1.3.12:6432 addr 10.1.3.12 port 8008 verifyhost db2 check-sni db2" in lines
        assert "http-check expect status 200" in lines
        assert any(
            "check-ssl verify required ca-file /etc/groundplane/pki/ca.crt crt /etc/haproxy/tls/load_balancer.crt"
            in line
            for line in lines
        )
        assert not [line for line in lines if " backup" in line]

    def test_the_master_of_redis_is_who_says_so_and_takes_writes(self) -> None:
        service = database(listen="rest", check={"listen": "rest", "protocol": "redis"})
        lines = section(render("etc/haproxy/haproxy.cfg", service=service), "backend database_primary")
        asked = [line for line in lines if "check" in line and not line.startswith(("default-server", "server"))]
        # The site has two members, of which the last one may write alone.
        assert asked == [
            "option tcp-check",
            "tcp-check send AUTH\\ probe\\ probe\\r\\nROLE\\r\\nINFO\\ replication\\r\\nQUIT\\r\\n",
            "tcp-check expect string $6\\r\\nmaster\\r\\n",
        ]
        assert any("check-ssl verify required" in line for line in lines)

    def test_a_member_that_asks_for_no_certificate_is_verified_and_shown_none(self) -> None:
        """The API server of Kubernetes takes any certificate for a user, and one of another authority for a bad one."""
        service = database()
        service["listens"][1] |= {"tls": "server", "reason": "clients prove themselves otherwise"}
        lines = section(render("etc/haproxy/haproxy.cfg", service=service), "backend database_primary")
        assert "default-server check check-ssl verify required ca-file /etc/groundplane/pki/ca.crt" in lines
        assert not [line for line in lines if " crt " in line]

    def test_members_of_which_none_passes_its_check_are_asked_where_any_will_do(self) -> None:
        """Somebody who does not lead is worse than nobody."""
        assert "unchecked" not in render("etc/haproxy/haproxy.cfg")
        text = render("etc/haproxy/haproxy.cfg", service=database(members="all"))
        lines = section(text, "frontend database_primary")
        assert "use_backend database_primary_unchecked if { nbsrv(database_primary) eq 0 }" in lines
        assert "balance roundrobin" in section(text, "backend database_primary")
        unchecked = section(text, "backend database_primary_unchecked")
        assert [line for line in unchecked if line.startswith("server")] == [
            "server db1 10.1.3.11:6432",
            "server db2 10.1.3.12:6432",
        ]
        assert "check" not in " ".join(unchecked)

    def test_sessions_of_a_member_that_goes_down_end_only_where_the_contract_says_so(self) -> None:
        marked = render("etc/haproxy/haproxy.cfg")
        assert "on-marked-down shutdown-sessions" in "\n".join(section(marked, "backend database_primary"))
        service = database()
        del service["endpoints"][0]["on_marked_down"]
        assert "on-marked-down" not in render("etc/haproxy/haproxy.cfg", service=service)

    def test_endpoints_with_one_check_ask_once_and_follow_the_first_of_them(self) -> None:
        text = render("etc/haproxy/haproxy.cfg", service=services(second={}, third={}))
        assert [line for line in section(text, "backend database_primary") if line.startswith("server")] == [
            "server db1 10.1.3.11:6432 addr 10.1.3.11 port 8008 verifyhost db1 check-sni db1",
            "server db2 10.1.3.12:6432 addr 10.1.3.12 port 8008 verifyhost db2 check-sni db2",
        ]
        for name in ("database_second", "database_third"):
            assert section(text, f"backend {name}") == [
                "balance leastconn",
                "default-server tcp-ut 15s on-marked-down shutdown-sessions",
                "server db1 10.1.3.11:6432 track database_primary/db1",
                "server db2 10.1.3.12:6432 track database_primary/db2",
            ]

    def test_a_follower_ends_sessions_only_where_its_own_contract_says_so(self) -> None:
        text = render("etc/haproxy/haproxy.cfg", service=services(second={"on_marked_down": None}))
        assert "default-server tcp-ut 15s" in section(text, "backend database_second")
        assert "on-marked-down" in "\n".join(section(text, "backend database_primary"))

    @pytest.mark.parametrize(
        "other",
        [
            {"check": {"listen": "rest", "path": "/replica"}},
            {"check": {"listen": "rest", "path": "/primary", "method": "GET"}},
            {"check": {"listen": "rest", "path": "/primary", "status": 204}},
            {"check": {"listen": "sql", "path": "/primary"}},
            {"check": None, "members": "all"},
        ],
        ids=["path", "method", "status", "listen", "none"],
    )
    def test_who_asks_something_else_asks(self, other: dict[str, Any]) -> None:
        text = render("etc/haproxy/haproxy.cfg", service=services(second=other))
        assert " track " not in text
        assert "inter 1s" in "\n".join(section(text, "backend database_second"))

    def test_endpoints_without_a_check_do_not_follow_each_other(self) -> None:
        """Each of them asks for a connection at a port of its own."""
        alone = {"check": None, "members": "all"}
        service = services(second=alone | {"listen": "rest"}, third=alone)
        assert " track " not in render("etc/haproxy/haproxy.cfg", service=service)

    def test_the_sites_own_endpoints_ask_once_who_leads(self) -> None:
        """Members of another service may answer to the same question, and are others."""
        real = yaml.safe_load((ROLE.parent / "postgres/meta/service.yml").read_text())
        assert [one["name"] for one in real["endpoints"]] == ["primary", "replicas", "direct"]
        contracts = {"postgres": contract.load(real | {"group": "database"}), "database": contract.load(database())}
        site = Site.from_inventory(contracts, GROUPS, HOSTS, {"site_networks": NETWORKS, "site_vips": VIPS})
        text = render("etc/haproxy/haproxy.cfg", __load_balancer_endpoints=site.endpoints())
        assert re.findall(r" track (\S+)$", text, re.MULTILINE) == ["postgres_primary/db1", "postgres_primary/db2"]
        assert "track" in "\n".join(section(text, "backend postgres_direct"))

    def test_no_peer_goes_unverified(self) -> None:
        text = render("etc/haproxy/haproxy.cfg")
        assert "verify none" not in text
        assert "ssl-server-verify required" in text
        for line in text.splitlines():
            if " ssl " in line:
                assert "verify required" in line, line

    def test_the_only_plain_listeners_are_on_loopback_and_the_passed_through_addresses(self) -> None:
        binds = re.findall(r"^ +bind (.*)$", render("etc/haproxy/haproxy.cfg"), re.MULTILINE)
        assert [bind.split()[0] for bind in binds if " ssl " not in bind] == [
            "127.0.0.1:8404",
            "10.1.2.100:5432",
        ]

    def test_without_a_check_a_member_is_asked_for_a_connection(self) -> None:
        service = database(members="all")
        del service["endpoints"][0]["check"]
        lines = section(render("etc/haproxy/haproxy.cfg", service=service), "backend database_primary")
        assert "default-server check" in lines
        assert "server db1 10.1.3.11:6432" in lines

    def test_an_endpoint_that_this_role_cannot_serve_is_refused(self) -> None:
        with pytest.raises(AnsibleError, match="database_primary has mode http"):
            render("etc/haproxy/haproxy.cfg", service=database(mode="http"))


def instances(text: str) -> dict[str, str]:
    return dict(re.findall(r"^vrrp_instance (\S+) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))


class TestKeepalived:
    def test_an_instance_for_each_address_that_the_host_can_hold(self) -> None:
        assert list(instances(render("etc/keepalived/keepalived.conf"))) == ["private", "public"]
        assert list(instances(render("etc/keepalived/keepalived.conf", "lb3"))) == ["private"]

    def test_peers_see_each_other_both_ways(self) -> None:
        seen = {}
        for host in GROUPS["load_balancer"]:
            private = instances(render("etc/keepalived/keepalived.conf", host))["private"]
            block = re.search(r"unicast_peer \{(.*?)\}", private, re.DOTALL)
            assert block
            seen[host] = set(block[1].split())
            assert f"unicast_src_ip {HOSTS[host]['host_addresses']['private']}" in private  # type: ignore[index]
        addresses = {host: HOSTS[host]["host_addresses"]["private"] for host in seen}  # type: ignore[index]
        for host, peers in seen.items():
            assert peers == set(addresses.values()) - {addresses[host]}

    def test_a_peer_without_a_leg_on_the_network_is_left_out(self) -> None:
        public = instances(render("etc/keepalived/keepalived.conf", "lb1"))["public"]
        assert "10.1.1.12" in public
        assert "10.1.2.13" not in public
        assert "undefined" not in public.lower()

    def test_a_balancer_alone_holds_the_address_without_waiting_for_peers(self) -> None:
        text = render("etc/keepalived/keepalived.conf", groups={"load_balancer": ["lb1"]})
        assert "unicast_peer" not in text
        assert "unicast_fault_no_peer" not in text
        assert list(instances(text)) == ["private", "public"]

    def test_priorities_differ_and_each_host_knows_the_highest_of_the_others(self) -> None:
        own, others = {}, {}
        for host in GROUPS["load_balancer"]:
            private = instances(render("etc/keepalived/keepalived.conf", host))["private"]
            own[host] = int(re.findall(r"^\s+priority (\d+)$", private, re.MULTILINE)[0])
            others[host] = int(re.findall(r"timer_expired_backup (\d+)", private)[0])
        assert len(set(own.values())) == 3
        assert all(1 <= priority <= 254 for priority in own.values())
        for host, highest in others.items():
            assert highest == max(priority for name, priority in own.items() if name != host)

    def test_the_holder_is_never_preempted(self) -> None:
        for instance in instances(render("etc/keepalived/keepalived.conf")).values():
            assert "state BACKUP" in instance
            assert re.search(r"^\s+nopreempt$", instance, re.MULTILINE)

    def test_answers_leave_by_the_network_of_the_address(self) -> None:
        public = instances(render("etc/keepalived/keepalived.conf"))["public"]
        blocks = dict(re.findall(r"^    (virtual_\w+) \{\n(.*?)^    \}", public, re.MULTILINE | re.DOTALL))
        assert blocks["virtual_rules"].strip() == "from 10.1.1.100/32 lookup 1052 preference 1052"
        assert [line.strip() for line in blocks["virtual_routes"].splitlines()] == [
            "10.1.1.0/24 dev public scope link table 1052",
            "default via 10.1.1.254 dev public table 1052",
        ]

    def test_scripts_do_not_run_as_root(self) -> None:
        text = render("etc/keepalived/keepalived.conf")
        assert "enable_script_security" in text
        assert "script_user keepalived_script" in text

    def test_takeover_from_a_frozen_holder_fits_the_promise(self) -> None:
        """RFC 9568, 6.1: three advertisements and a skew of (256 - priority) / 256 of one; the bar is 1.5 s."""
        private = instances(render("etc/keepalived/keepalived.conf", "lb2"))["private"]
        interval = float(re.findall(r"advert_int ([\d.]+)", private)[0])
        priority = int(re.findall(r"^\s+priority (\d+)$", private, re.MULTILINE)[0])
        assert 3 * interval + (256 - priority) / 256 * interval < 1.2


class TestDefaults:
    def test_defaults_are_those_of_the_argument_specs(self) -> None:
        options = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
        defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
        assert {name: option["default"] for name, option in options.items()} == defaults

    def test_the_contract_is_valid(self) -> None:
        assert contract.load(ROLE / "meta/service.yml").service == "load_balancer"


def program(name: str) -> Any:
    """A program that the role installs, as a module."""
    spec = importlib.util.spec_from_file_location(name, TREE / f"usr/local/lib/groundplane/{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestHealthScript:
    @pytest.fixture
    def server(self) -> Iterator[socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield listener

    @staticmethod
    def well(port: int, seconds: str = "2") -> bool:
        script = TREE / "usr/local/lib/groundplane/haproxy_health"
        done = subprocess.run(["/bin/bash", script, str(port), seconds], check=False, capture_output=True, timeout=5)
        return done.returncode == 0

    @pytest.mark.parametrize(
        ("reply", "well"),
        [
            (b"HTTP/1.1 200 OK\r\n\r\n", True),
            (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
            (b"", False),
        ],
    )
    def test_only_an_ok_is_well(self, server: socket.socket, reply: bytes, well: bool) -> None:
        asked = b""

        def serve() -> None:
            nonlocal asked
            connection, _ = server.accept()
            with connection:
                while not asked.endswith(b"\r\n\r\n"):
                    asked += connection.recv(1024)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        assert self.well(server.getsockname()[1]) is well
        thread.join()
        assert asked == b"GET / HTTP/1.0\r\n\r\n"

    def test_a_process_that_hangs_is_not_well(self, server: socket.socket) -> None:
        assert self.well(server.getsockname()[1], "0.1") is False

    def test_no_process_is_not_well(self, server: socket.socket) -> None:
        port = server.getsockname()[1]
        server.close()
        assert self.well(port) is False


STATE = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state ...
5 database_primary 1 db1 10.1.3.11 2 0 1 1 4 15 3 3 6 0 0 0 - 6432 - 0 8008 10.1.3.11 10.1.3.11 8008
5 database_primary 2 db2 10.1.3.12 0 0 1 1 3 17 2 0 6 0 0 0 - 6432 - 0 8008 10.1.3.12 10.1.3.12 8008

"""


class TestStateOverReload:
    """What the old process knows is passed on, but never overrides the configuration that the reload is for."""

    @staticmethod
    def kept(configuration: str) -> dict[str, list[str]]:
        lines = program("haproxy_state").select(STATE, configuration).splitlines()
        assert lines[0] == "1"
        return {line.split()[3]: line.split() for line in lines[2:] if line}

    def test_members_keep_their_state(self) -> None:
        kept = self.kept(render("etc/haproxy/haproxy.cfg"))
        assert {name: line[5] for name, line in kept.items()} == {"db1": "2", "db2": "0"}

    def test_where_to_check_comes_from_the_configuration(self) -> None:
        for line in self.kept(render("etc/haproxy/haproxy.cfg")).values():
            assert line[21:] == ["0", "-", "-", "0"]

    def test_a_member_that_moves_is_not_known(self) -> None:
        configuration = render("etc/haproxy/haproxy.cfg").replace("10.1.3.12:6432", "10.1.3.12:5432")
        assert list(self.kept(configuration)) == ["db1"]

    def test_a_member_that_leaves_is_not_known(self) -> None:
        configuration = re.sub(r"^ +server db1 .*$", "", render("etc/haproxy/haproxy.cfg"), flags=re.MULTILINE)
        assert list(self.kept(configuration)) == ["db2"]

    def test_a_follower_has_no_state_of_its_own(self) -> None:
        """A process of before that asked twice may have seen the two differ, and nothing would put that right."""
        configuration = render("etc/haproxy/haproxy.cfg", service=services(second={}))
        both = STATE + STATE.partition("...\n")[2].replace("5 database_primary", "6 database_second")
        lines = program("haproxy_state").select(both, configuration).splitlines()
        assert [line.split()[1] for line in lines[2:] if line] == ["database_primary", "database_primary"]

    def test_without_an_answer_no_old_state_stays(self, tmp_path: Path) -> None:
        file = tmp_path / "state"
        file.write_text(STATE)
        with pytest.raises(FileNotFoundError):
            program("haproxy_state").keep(str(tmp_path / "nothing.sock"), str(file), str(file))
        assert not file.exists()
