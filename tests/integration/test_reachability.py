# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who reaches whom, measured from every host to every port that a contract names and to some that none does.

Reached means that the packet got there: a refused connection has passed every firewall. What is compared is what the
contracts and the inventory say, not what the firewall made of them.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ansible_collections.groundplane.onprem.plugins.module_utils.site import Flow

    from tests.lab import Lab

pytestmark = pytest.mark.nodes

NAMED_BY_NOBODY = [7, 111, 3306, 8080, 65001]
NTP = 123
NETWORK_GEAR = 1
"""Last byte of the address at which the machine under the lab answers in each network: outside the site."""

Hop = tuple[str, str, str, int]
"""Host, protocol, destination address, port."""


@dataclass
class Matrix:
    """What is allowed and what was measured."""

    lab: Lab

    @cached_property
    def gear(self) -> list[str]:
        """Addresses within the lab's networks that belong to no host of the site."""
        return [str(ipaddress.ip_network(subnet)[NETWORK_GEAR]) for subnet in self.lab.site.networks.values()]

    @cached_property
    def addresses(self) -> list[str]:
        """Every address that a contract could mean, and those outside."""
        legs = [address for host in self.lab.site.hosts.values() for address in host.addresses.values()]
        return [*legs, *(vip.address for vip in self.lab.site.vips.values()), *self.gear]

    def ports(self, protocol: str) -> list[int]:
        """Every port that a contract names for a protocol."""
        return sorted({flow.port for flow in self.lab.site.flows() if flow.protocol == protocol})

    @cached_property
    def answers(self) -> dict[str, list[tuple[str, str, str, int, str]]]:
        """Of each host: protocol, its own address, the address tried, port and state."""
        targets = [
            {"addresses": self.addresses, "ports": sorted({*self.ports("tcp"), *NAMED_BY_NOBODY}), "protocol": "tcp"},
            {"addresses": self.addresses, "ports": sorted({*self.ports("udp"), NTP}), "protocol": "udp"},
        ]
        answered = self.lab.module("all", "groundplane.onprem.reachability", {"targets": targets})
        return {host: [tuple(answer) for answer in result["results"]] for host, result in answered.items()}

    @cached_property
    def reached(self) -> set[Hop]:
        """What was measured to be open, or refused by the host itself."""
        return {
            (host, protocol, address, port)
            for host, answers in self.answers.items()
            for protocol, _, address, port, state in answers
            if state in ("open", "refused")
        }

    @cached_property
    def allowed(self) -> set[Hop]:
        """What the contracts allow of that which was measured."""
        flows: dict[tuple[str, str, int], list[Flow]] = {}
        for flow in self.lab.site.flows():
            flows.setdefault((flow.client, flow.protocol, flow.port), []).append(flow)
        return {
            (host, protocol, address, port)
            for host, answers in self.answers.items()
            for protocol, source, address, port, state in answers
            if state != "local"
            and any(self._covers(flow, source, address) for flow in flows.get((host, protocol, port), ()))
        }

    def _covers(self, flow: Flow, source: str, destination: str) -> bool:
        if not flow.server and any(_within(destination, network) for network in self.lab.site.networks.values()):
            return False  # The way out of the site does not lead into it.
        return _within(source, flow.source) and _within(destination, flow.destination)


def _within(address: str, network: str) -> bool:
    return bool(address) and ipaddress.ip_address(address) in ipaddress.ip_network(network)


def _lines(hops: set[Hop]) -> str:
    return "\n".join(f"{host} -> {protocol} {address}:{port}" for host, protocol, address, port in sorted(hops))


@pytest.fixture(scope="module")
def matrix(lab: Lab) -> Matrix:
    return Matrix(lab)


def test_every_host_has_measured_every_port(matrix: Matrix) -> None:
    count = len(matrix.addresses) * (len({*matrix.ports("tcp"), *NAMED_BY_NOBODY}) + len({*matrix.ports("udp"), NTP}))
    assert {host: len(answers) for host, answers in matrix.answers.items()} == dict.fromkeys(
        matrix.lab.site.hosts, count
    )


def test_what_a_contract_allows_is_reached(matrix: Matrix) -> None:
    """Of UDP only time answers by itself; a silent service cannot be told from a filter."""
    missing = {hop for hop in matrix.allowed - matrix.reached if hop[1] == "tcp" or hop[3] == NTP}
    assert not missing, f"allowed, but not reached:\n{_lines(missing)}"


def test_what_no_contract_allows_is_not_reached(matrix: Matrix) -> None:
    excess = matrix.reached - matrix.allowed
    assert not excess, f"reached, but not allowed:\n{_lines(excess)}"


def test_hosts_talk_from_the_addresses_that_the_contracts_expect(matrix: Matrix) -> None:
    """A flow from an address that its host never uses towards there would be a hole that no packet needs."""
    measured = {
        (host, protocol, source, address, port)
        for host, answers in matrix.answers.items()
        for protocol, source, address, port, _ in answers
    }
    expected = {
        (flow.client, flow.protocol, flow.source, flow.destination, flow.port)
        for flow in matrix.lab.site.flows()
        if flow.client
        and flow.server
        and flow.protocol != "vrrp"
        and flow.destination in matrix.addresses
        # Whoever holds a virtual address reaches it without a packet.
        and (flow.client, flow.destination) not in _own(matrix)
    }
    assert not expected - measured


def _own(matrix: Matrix) -> set[tuple[str, str]]:
    return {
        (host, address)
        for host, answers in matrix.answers.items()
        for _, _, address, _, state in answers
        if state == "local"
    }


def test_data_hosts_reach_nothing_outside(matrix: Matrix) -> None:
    hosts = [host.name for host in matrix.lab.site.hosts.values() if set(host.addresses) == {"data"}]
    found = {hop for hop in matrix.reached if hop[0] in hosts and hop[2] in matrix.gear}
    assert hosts
    assert not found, _lines(found)
    routes = _on_each(matrix.lab, dict.fromkeys(hosts, "ip -4 route show default"))
    assert routes == dict.fromkeys(hosts, ""), "there is a way out"


def _on_each(lab: Lab, commands: dict[str, str]) -> dict[str, str]:
    """What a command says on each of some hosts, asked at the same time."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(commands, pool.map(lab.out, commands, commands.values()), strict=True))


def test_no_host_reaches_another_by_ipv6(lab: Lab) -> None:
    """Link-local addresses are always there; only neighbour discovery may use them."""
    members = [name for name, values in lab.hostvars.items() if "data" in values["host_addresses"]]
    shown = _on_each(lab, dict.fromkeys(members, "ip -6 -json address show dev data"))
    addresses = {name: json.loads(text)[0]["addr_info"][0]["local"] for name, text in shown.items()}
    assert len(members) > 1
    probe = (
        "import socket,sys\n"
        "for a in sys.argv[1:]:\n"
        "    s=socket.socket(socket.AF_INET6); s.settimeout(1.5)\n"
        "    try: s.connect((a,22,0,socket.if_nametoindex('data'))); print(a,'open')\n"
        "    except ConnectionRefusedError: print(a,'refused')\n"
        "    except OSError: pass\n"
    )
    others = {name: " ".join(addresses[other] for other in members if other != name) for name in members}
    reached = _on_each(lab, {name: f"python3 -c {shlex.quote(probe)} {others[name]}" for name in members})
    assert reached == dict.fromkeys(members, "")
