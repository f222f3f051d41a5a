# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The site: service contracts joined with the inventory.

Everything that cuts across services is computed here, as plain data in a stable order. Pure: no Ansible, no files.

How two hosts reach each other. A listen binds one leg of its host (`network`, or the primary one), or all (`any`).
A client that has a leg on that network uses it; else it comes from its primary address, through the router. Of a
listen on all legs a client uses the networks that both have a leg on, and the server's primary address, because that
is how peers are addressed.

Pods are no hosts. They talk from the range of pods, within the hosts that carry them; what leaves such a host for
another has the host's own address, or is wrapped by the network of pods.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ansible_collections.groundplane.onprem.plugins.module_utils.contract import (
        Check,
        Condition,
        Contract,
        Endpoint,
        Listen,
    )

HOST_VARIABLES = ("host_addresses", "host_primary_network", "host_zone")
SITE_VARIABLES = ("site_networks", "site_vips", "site_domain", "kubernetes_pod_subnet")

LOAD_BALANCER = "load_balancer"
ROUTER = "router"
KUBERNETES = "kubernetes"
PODS = "pods"
"""In `from`: whoever has an address of the range of pods. As a network: one that no router of the site serves."""

Plain = dict[str, Any]
"""JSON-able data."""


class SiteError(ValueError):
    """The inventory lacks what a view needs."""


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the inventory: its legs by network."""

    name: str
    addresses: Mapping[str, str]
    primary: str
    zone: str = ""

    @property
    def address(self) -> str:
        """The address by which peers reach it."""
        return self.addresses[self.primary]

    def leg_to(self, network: str) -> str:
        """The address it has when it talks to that network."""
        return self.addresses.get(network, self.address)


@dataclass(frozen=True, slots=True)
class Vip:
    """A virtual address that the load balancers hold in turn."""

    name: str
    address: str
    network: str
    vrid: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """One allowed conversation: who opens it, to where.

    Attributes:
        service: whose contract allows it.
        name: the listen, endpoint or egress in that contract.
        protocol: tcp, udp or vrrp.
        port: 0 where the protocol has none.
        source: an address or a range.
        destination: an address or a range.
        client: the host that opens it; empty for whoever has an address in the range.
        server: the host that answers; empty for whoever has an address in the range.
        client_network: the leg of the client; `pods` for pods, empty outside the site.
        server_network: the leg of the server; empty outside the site.
    """

    service: str
    name: str
    protocol: str
    port: int
    source: str
    destination: str
    client: str
    server: str
    client_network: str
    server_network: str


@dataclass(frozen=True, slots=True)
class _Door:
    """A port of a server, open on some of its legs."""

    service: str
    name: str
    protocol: str
    port: int
    server: str
    legs: Mapping[str, str]
    primary: str

    def networks_for(self, client_networks: Iterable[str]) -> list[str]:
        """The legs by which a client with legs on some networks comes in."""
        if len(self.legs) == 1 and self.protocol != "vrrp":
            return list(self.legs)
        shared = [network for network in self.legs if network in set(client_networks)]
        if self.protocol == "vrrp" or self.primary in shared or self.primary not in self.legs:
            return shared
        return [*shared, self.primary]

    def flow(self, network: str, client: str, client_network: str, source: str) -> Flow:
        address = self.legs[network]
        return Flow(
            self.service,
            self.name,
            self.protocol,
            self.port,
            source,
            address,
            client,
            self.server,
            client_network,
            network,
        )


@dataclass(frozen=True)
class Site:
    """Contracts and inventory.

    Attributes:
        contracts: by service name.
        groups: the inventory's groups, each with the names of its hosts.
        hosts: by name, in the order of the inventory.
        networks: name to subnet.
        vips: by name.
        domain: the domain of the site's names.
        pods: the range of pods; empty on a site without them.
    """

    contracts: Mapping[str, Contract]
    groups: Mapping[str, Sequence[str]]
    hosts: Mapping[str, Host]
    networks: Mapping[str, str] = field(default_factory=dict)
    vips: Mapping[str, Vip] = field(default_factory=dict)
    domain: str = ""
    pods: str = ""

    @classmethod
    def from_inventory(
        cls,
        contracts: Mapping[str, Contract],
        groups: Mapping[str, Sequence[str]],
        hostvars: Mapping[str, Mapping[str, Any]],
        variables: Mapping[str, Any],
    ) -> Site:
        """Join contracts with the variables of an inventory.

        Args:
            contracts: by service name, as `contract.discover` returns them.
            groups: group name to host names.
            hostvars: of each host `host_addresses`, `host_primary_network`, `host_zone`.
            variables: `site_networks`, `site_vips`, `site_domain`, `kubernetes_pod_subnet` where there are pods, and
                those that contracts have conditions on.

        Raises:
            SiteError: a host without addresses, or whose primary network is none of its legs.
        """
        hosts = {}
        for name, values in hostvars.items():
            addresses = values.get("host_addresses")
            primary = values.get("host_primary_network")
            if not isinstance(addresses, Mapping) or not addresses:
                raise SiteError(f"{name}: host_addresses is missing: give it the name and address of each leg")
            if primary not in addresses:
                legs = ", ".join(str(network) for network in addresses)
                raise SiteError(f"{name}: host_primary_network is {primary!r}: make it one of the host's legs ({legs})")
            legs_of = {str(network): str(address) for network, address in addresses.items()}
            hosts[str(name)] = Host(str(name), legs_of, str(primary), str(values.get("host_zone") or ""))
        networks = {str(name): str(net["subnet"]) for name, net in (variables.get("site_networks") or {}).items()}
        vips = {
            str(name): Vip(str(name), str(vip["address"]), str(vip["network"]), int(vip.get("vrid", 0)))
            for name, vip in (variables.get("site_vips") or {}).items()
        }
        members = {str(group): [str(name) for name in names if name in hosts] for group, names in groups.items()}
        domain, pods = (str(variables.get(key) or "") for key in ("site_domain", "kubernetes_pod_subnet"))
        contracts = {name: contract.under(variables) for name, contract in contracts.items()}
        return cls(contracts, members, hosts, networks, vips, domain, pods)

    @classmethod
    def from_hostvars(
        cls,
        contracts: Mapping[str, Contract],
        groups: Mapping[str, Sequence[str]],
        hostvars: Mapping[str, Mapping[str, Any]],
        here: str,
    ) -> Site:
        """The same from all of Ansible's variables, of which only the few that count are looked at (and templated).

        Args:
            contracts: by service name.
            groups: group name to host names; `all` has every host.
            hostvars: of each host, all its variables.
            here: the host whose site-wide variables count.

        Raises:
            SiteError: the inventory lacks what every view needs.
        """
        own = hostvars[here]
        hosts = {}
        for name in groups["all"]:
            values = hostvars[name]
            hosts[name] = {key: values[key] for key in HOST_VARIABLES if key in values}
        return cls.from_inventory(
            contracts, groups, hosts, {key: own[key] for key in site_variables(contracts) if key in own}
        )

    # ------------------------------------------------------------------------------------------------------- membership

    def group(self, name: str) -> list[Host]:
        """The hosts of a group: of `all`, the whole inventory; of a group that is not there, none."""
        if name == "all":
            return list(self.hosts.values())
        return [self.hosts[host] for host in self.groups.get(name, ())]

    def contracts_of(self, host: str) -> list[Contract]:
        """The contracts that apply to a host, by service name.

        Raises:
            SiteError: there is no such host.
        """
        self._host(host)
        ordered = (self.contracts[name] for name in sorted(self.contracts))
        return [
            contract for contract in ordered if contract.group == "all" or host in self.groups.get(contract.group, ())
        ]

    def _host(self, name: str) -> Host:
        try:
            return self.hosts[name]
        except KeyError:
            raise SiteError(f"{name}: not a host of this inventory") from None

    def _served(self, contract: Contract) -> tuple[Endpoint, ...]:
        """The endpoints of a contract that exist: it has members and the site has load balancers."""
        return contract.endpoints if self.group(contract.group) and self.group(LOAD_BALANCER) else ()

    def _vip(self, contract: Contract, endpoint: Endpoint) -> Vip:
        try:
            return self.vips[endpoint.vip]
        except KeyError:
            raise SiteError(
                f"all hosts: site_vips has no {endpoint.vip!r}, "
                f"which the endpoint {endpoint.name} of {contract.service} needs: add it"
            ) from None

    def _legs(self, contract: Contract, listen: Listen, host: Host) -> dict[str, str]:
        """The legs of a host on which a listen is open."""
        if listen.protocol == "vrrp":
            wanted = (
                {vip.network for vip in self.vips.values()} if listen.network in (None, "any") else {listen.network}
            )
            return {network: address for network, address in host.addresses.items() if network in wanted}
        if listen.network == "any":
            return dict(host.addresses)
        network = listen.network or host.primary
        if network not in host.addresses:
            raise SiteError(
                f"{host.name}: has no leg on {network}, where {contract.service} listens ({listen.name}): "
                f"add it to host_addresses"
            )
        return {network: host.addresses[network]}

    # ------------------------------------------------------------------------------------------------------------ flows

    def flows(self, host: str | None = None) -> list[Flow]:
        """Every conversation that a contract allows, each once and in a stable order.

        Args:
            host: only those that this host opens or answers.
        """
        flows: set[Flow] = set()
        for contract in self.contracts.values():
            for door, groups, networks in self._doors(contract):
                everyone = host is None or door.server == host
                clients = None if everyone else {str(host)}
                flows.update(self._through(door, groups, networks, clients))
            for member in self.group(contract.group):
                if host in (None, member.name):
                    flows.update(_egress(contract, member))
        return sorted(flows)

    def _doors(self, contract: Contract) -> Iterator[tuple[_Door, Sequence[str], Sequence[str]]]:
        """Each port that a contract opens, with the groups and the networks that may come in."""
        balanced = {name for endpoint in contract.endpoints for name in _behind(endpoint)}
        for server in self.group(contract.group):
            for listen in contract.listens:
                legs = self._legs(contract, listen, server)
                door = _Door(
                    contract.service, listen.name, listen.protocol, listen.port or 0, server.name, legs, server.primary
                )
                groups = (*listen.from_, LOAD_BALANCER) if listen.name in balanced else listen.from_
                yield door, groups, listen.from_networks
        for endpoint in self._served(contract):
            vip = self._vip(contract, endpoint)
            for balancer in self.group(LOAD_BALANCER):
                legs = {vip.network: vip.address}
                yield (
                    _Door(contract.service, endpoint.name, "tcp", endpoint.port, balancer.name, legs, vip.network),
                    endpoint.from_,
                    endpoint.from_networks,
                )

    def _through(
        self, door: _Door, groups: Sequence[str], networks: Sequence[str], only: set[str] | None
    ) -> Iterator[Flow]:
        """The flows through one door; `only` leaves out other clients."""
        clients = {client.name: client for name in groups for client in self.group("all" if name == "any" else name)}
        for network in networks:
            clients.update({host.name: host for host in self.hosts.values() if network in host.addresses})
        for client in clients.values():
            if client.name == door.server or (only is not None and client.name not in only):
                continue
            for network in door.networks_for(client.addresses):
                leg = network if network in client.addresses else client.primary
                if _family(client.addresses[leg]) == _family(door.legs[network]):
                    yield door.flow(network, client.name, leg, client.addresses[leg])
        if only is None:
            yield from self._from_ranges(door, groups, networks)

    def _from_ranges(self, door: _Door, groups: Sequence[str], networks: Sequence[str]) -> Iterator[Flow]:
        """The flows from whoever has an address in a range: the world, pods, a network."""
        if "any" in groups:
            for network, address in door.legs.items():
                yield door.flow(network, "", "", _everywhere(address))
        if PODS in groups and self.pods:
            for network, address in door.legs.items():
                if _family(self.pods) == _family(address):
                    yield door.flow(network, "", PODS, self.pods)
        for name in networks:
            if name not in self.networks:
                raise SiteError(
                    f"all hosts: site_networks has no {name!r}, "
                    f"from which {door.service} ({door.name}) is reached: add it"
                )
            for network in door.networks_for([name]):
                if _family(self.networks[name]) == _family(door.legs[network]):
                    yield door.flow(network, "", name, self.networks[name])

    # --------------------------------------------------------------------------------------------------------- firewall

    def firewall(self, host: str) -> Plain:
        """What may come in, go out and pass through a host; all else may not.

        Each rule has `service`, `name`, `protocol`, `ports` (none for VRRP), `family` (ip or ip6), `network` (the
        host's own leg), `sources` and `destinations`; a forward rule has `services` (`service.name`) instead of the
        first two, and no `network`. `pods` has the ranges to which a host of Kubernetes may send whatever it wants,
        and from and to which it passes everything on: what pods may do to each other is for their network to say.

        Raises:
            SiteError: there is no such host, or the inventory lacks what a contract needs.
        """
        self._host(host)
        router = host in self.groups.get(ROUTER, ())
        flows = self.flows(None if router else host)
        return {
            "inbound": _rules((flow for flow in flows if flow.server == host), "destination"),
            "outbound": _rules((flow for flow in flows if flow.client == host), "source"),
            "forward": self._forward(host, flows) if router else [],
            "pods": [self.pods] if self.pods and host in self.groups.get(KUBERNETES, ()) else [],
        }

    def _forward(self, router: str, flows: Iterable[Flow]) -> list[Plain]:
        """The flows between two networks of a router, as few rules as their equal ends allow."""
        legs = self.hosts[router].addresses
        crossing: dict[tuple[str, str, int], set[tuple[str, str]]] = defaultdict(set)
        names: dict[tuple[str, str, int, str], set[str]] = defaultdict(set)
        for flow in flows:
            ends = {flow.client_network, flow.server_network}
            if len(ends) == 1 or not ends <= {*legs, ""} or router in (flow.client, flow.server):
                continue
            key = (_family(flow.destination), flow.protocol, flow.port)
            crossing[key].add((flow.source, flow.destination))
            names[(*key, flow.destination)].add(f"{flow.service}.{flow.name}")
        merged: dict[tuple[str, str, tuple[str, ...], tuple[str, ...]], list[int]] = defaultdict(list)
        for (family, protocol, port), pairs in sorted(crossing.items()):
            for sources, destinations in _products(pairs):
                merged[family, protocol, sources, destinations].append(port)
        rules = []
        for (family, protocol, sources, destinations), ports in merged.items():
            services = {name for port in ports for end in destinations for name in names[(family, protocol, port, end)]}
            rules.append(
                {
                    "services": sorted(services),
                    "protocol": protocol,
                    "ports": sorted(ports),
                    "family": family,
                    "sources": list(sources),
                    "destinations": list(destinations),
                }
            )
        return rules

    # ------------------------------------------------------------------------------------------------------ other views

    def services(self, host: str) -> list[Plain]:
        """The contracts that apply to a host, as plain data."""
        return [contract.as_mapping() for contract in self.contracts_of(host)]

    def listens(self, host: str) -> list[Plain]:
        """What is open on a host, by service: what its contract says of the listen, and `addresses` by network."""
        return [
            {
                "service": contract.service,
                "name": listen.name,
                "protocol": listen.protocol,
                "port": listen.port,
                "tls": listen.tls,
                "authority": listen.authority,
                "starttls": listen.starttls,
                "addresses": self._legs(contract, listen, self.hosts[host]),
            }
            for contract in self.contracts_of(host)
            for listen in contract.listens
        ]

    def endpoints(self) -> list[Plain]:
        """What the load balancer serves: each endpoint with its VIP, its check and its members' addresses.

        `follows` names the first endpoint of the service with the very same check, for all others that have it: what a
        member answered the one holds for the others.
        """
        endpoints = []
        for name in sorted(self.contracts):
            contract = self.contracts[name]
            askers: dict[Check, str] = {}
            for endpoint in self._served(contract):
                vip = self._vip(contract, endpoint)
                listen = contract.listen(endpoint.listen)
                check = endpoint.check
                asked = contract.listen(check.listen) if check else listen
                asker = askers.setdefault(check, endpoint.name) if check else endpoint.name
                members = [
                    {
                        "name": host.name,
                        "zone": host.zone,
                        "address": self._balanced_leg(contract, listen, host),
                        "port": listen.port,
                        "check_address": self._balanced_leg(contract, asked, host),
                    }
                    for host in self.group(contract.group)
                ]
                endpoints.append(
                    {
                        "service": contract.service,
                        "name": endpoint.name,
                        "vip": vip.name,
                        "address": vip.address,
                        "port": endpoint.port,
                        "mode": endpoint.mode,
                        "tls": endpoint.tls,
                        "starttls": listen.starttls if endpoint.mode == "tcp" else None,
                        "kind": endpoint.members,
                        "on_marked_down": endpoint.on_marked_down,
                        "check": {
                            "port": asked.port,
                            "protocol": check.protocol,
                            "method": check.method,
                            "path": check.path,
                            "status": check.status,
                            "tls": asked.tls,
                        }
                        if check
                        else None,
                        "follows": None if asker == endpoint.name else asker,
                        "members": members,
                    }
                )
        return endpoints

    def _balanced_leg(self, contract: Contract, listen: Listen, host: Host) -> str:
        """The address by which every load balancer reaches a listen: a network they all share, or the primary one."""
        legs = self._legs(contract, listen, host)
        if len(legs) == 1:
            return next(iter(legs.values()))
        balancers = self.group(LOAD_BALANCER)
        shared = [network for network in legs if all(network in balancer.addresses for balancer in balancers)]
        return legs[host.primary if host.primary in shared or not shared else shared[0]]

    def certificates(self, host: str) -> list[Plain]:
        """The certificates of a host, as contracts state them, with `service`, `common_name` and the SANs computed.

        `dns` has the inventory name, also below the site's domain, for each endpoint the service's and the endpoint's
        name below the domain, and what the contract names besides; `ip` has all the host's addresses and the endpoints'
        VIPs.
        """
        subject = self._host(host)
        certificates = []
        for contract in self.contracts_of(host):
            endpoints = {endpoint.name: endpoint for endpoint in contract.endpoints}
            for plain in contract.as_mapping()["certificates"]:
                names, addresses = [host, f"{host}.{self.domain}"], list(subject.addresses.values())
                for name in plain["endpoints"]:
                    names += [f"{contract.service}.{self.domain}", f"{name}.{contract.service}.{self.domain}"]
                    if endpoints[name] in self._served(contract):
                        addresses.append(self._vip(contract, endpoints[name]).address)
                names += [name[:-1] if name.endswith(".") else f"{name}.{self.domain}" for name in plain["names"]]
                common_name = host if plain["common_name"] == "host" else plain["common_name"]
                certificates.append(
                    {
                        **plain,
                        "service": contract.service,
                        "common_name": common_name,
                        "dns": list(dict.fromkeys(names)),
                        "ip": list(dict.fromkeys(addresses)),
                    }
                )
        return certificates

    def members(self, service: str) -> list[Plain]:
        """The hosts that run a service, in the order of the inventory: `name`, `address` (the primary one), `zone`.

        Raises:
            SiteError: no contract states that service.
        """
        if service not in self.contracts:
            raise SiteError(f"{service}: no contract states this service")
        hosts = self.group(self.contracts[service].group)
        return [
            {"name": host.name, "address": host.address, "zone": host.zone, "addresses": dict(host.addresses)}
            for host in hosts
        ]

    def secrets(self) -> list[Plain]:
        """The secrets of the services that have members: `name`, `service`, `group`, `minimum_length`."""
        return [
            {
                "name": secret.name,
                "service": name,
                "group": self.contracts[name].group,
                "minimum_length": secret.minimum_length,
            }
            for name in sorted(self.contracts)
            for secret in self.contracts[name].secrets
            if self.group(self.contracts[name].group)
        ]


def site_variables(contracts: Mapping[str, Contract]) -> set[str]:
    """Names of the variables that say the same on all hosts of a site and decide what it looks like."""
    return {*SITE_VARIABLES, *(condition.variable for condition in conditions(contracts))}


def conditions(contracts: Mapping[str, Contract]) -> set[Condition]:
    """What some port of some service depends on."""
    return {listen.when for contract in contracts.values() for listen in contract.listens if listen.when is not None}


def _behind(endpoint: Endpoint) -> list[str]:
    """The listens that the load balancer connects to for an endpoint."""
    return [endpoint.listen, *([endpoint.check.listen] if endpoint.check else [])]


def _egress(contract: Contract, host: Host) -> Iterator[Flow]:
    for egress in contract.egress:
        for target in egress.to:
            where = _everywhere(host.address) if target == "any" else target
            if _family(where) != _family(host.address):
                continue
            for port in egress.ports:
                yield Flow(
                    contract.service,
                    egress.name,
                    egress.protocol,
                    port,
                    host.address,
                    where,
                    host.name,
                    "",
                    host.primary,
                    "",
                )


def _family(address: str) -> str:
    return "ip6" if ":" in address else "ip"


def _everywhere(address: str) -> str:
    """The range of all addresses of an address's family."""
    return "::/0" if _family(address) == "ip6" else "0.0.0.0/0"


def _in_order(addresses: Iterable[str]) -> list[str]:
    """Addresses and ranges by number, without those that another range of them contains."""
    ranges = {address: ipaddress.ip_network(address) for address in addresses}
    wide = [network for network in ranges.values() if network.num_addresses > 1]
    kept = [
        address
        for address, network in ranges.items()
        if not any(network != other and _contains(other, network) for other in wide)
    ]
    return sorted(kept, key=lambda address: (ranges[address].version, ranges[address]))


def _contains(
    outer: ipaddress.IPv4Network | ipaddress.IPv6Network, inner: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> bool:
    return outer.version == inner.version and outer.supernet_of(inner)  # type: ignore[arg-type]


def _rules(flows: Iterable[Flow], own: str) -> list[Plain]:
    """Flows of one host as rules: one for each listen, own address and set of peers."""
    grouped: dict[tuple[str, str, str, int, str, str], list[str]] = defaultdict(list)
    inbound = own == "destination"
    for flow in flows:
        address, peer = (flow.destination, flow.source) if inbound else (flow.source, flow.destination)
        network = flow.server_network if inbound else flow.client_network
        grouped[flow.service, flow.name, flow.protocol, flow.port, network, address].append(peer)
    merged: dict[tuple[str, str, str, str, str, tuple[str, ...]], list[int]] = defaultdict(list)
    for (service, name, protocol, port, network, address), peers in grouped.items():
        merged[service, name, protocol, network, address, tuple(_in_order(peers))].append(port)
    return [
        {
            "service": service,
            "name": name,
            "protocol": protocol,
            "ports": sorted(port for port in ports if port),
            "family": _family(address),
            "network": network,
            "sources": list(peers) if inbound else [address],
            "destinations": [address] if inbound else list(peers),
        }
        for (service, name, protocol, network, address, peers), ports in merged.items()
    ]


def _products(pairs: Iterable[tuple[str, str]]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Pairs as products of two sets, grouped by equal sources or by equal destinations, whichever makes fewer."""
    by_destination: dict[str, list[str]] = defaultdict(list)
    for source, destination in pairs:
        by_destination[destination].append(source)
    sources_of = {destination: tuple(_in_order(sources)) for destination, sources in by_destination.items()}
    by_source: dict[str, list[str]] = defaultdict(list)
    for destination, sources in sources_of.items():
        for source in sources:
            by_source[source].append(destination)
    destinations_of = {source: tuple(_in_order(destinations)) for source, destinations in by_source.items()}
    first = _invert(sources_of)
    second = _invert(destinations_of)
    if len(first) <= len(second):
        return sorted((peers, ends) for peers, ends in first.items())
    return sorted((ends, peers) for peers, ends in second.items())


def _invert(ends_of: Mapping[str, tuple[str, ...]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    grouped: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for end, peers in ends_of.items():
        grouped[peers].append(end)
    return {peers: tuple(_in_order(ends)) for peers, ends in grouped.items()}
