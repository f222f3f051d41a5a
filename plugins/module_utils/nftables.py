# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Host firewall rules: from allowed flows to one nftables table, and back to a listing that can be compared.

Pure text work, without Ansible, files or processes. The table is ours alone: loading the file replaces the table in one
transaction of the kernel and leaves all other tables as they are (nft(8), "Input file formats").
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FAMILY: Final = "inet"
TABLE: Final = "groundplane"
REPLACE: Final = f"table {FAMILY} {TABLE}\ndelete table {FAMILY} {TABLE}\n"
"""Removes our table, whether it is there or not; in front of a new one it makes the swap atomic."""

HEAD: Final = (
    "#!/usr/sbin/nft -f\n"
    "# Made by Ansible from roles/*/meta/service.yml and the inventory; edits by hand are undone by the next run.\n"
    "# Replaces this one table in one transaction. Other tables, such as those of Kubernetes, are not touched.\n\n"
)

EVERYWHERE: Final = ipaddress.IPv4Network("0.0.0.0/0")
Direction = Literal["inbound", "outbound", "forward"]
CHAINS: Final[dict[Direction, str]] = {"inbound": "input", "outbound": "output", "forward": "forward"}
PROTOCOLS: Final = ("tcp", "udp", "vrrp")
EXTRA_PROTOCOLS: Final = ("any", "icmp", "tcp", "udp")

_COMMENT_LIMIT: Final = 127  # NFTNL_UDATA_COMMENT_MAXLEN less the closing zero, libnftnl
_LAST_PORT: Final = 65535


class RulesError(ValueError):
    """Rules that cannot be turned into a table; the message names the rule."""


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """Connections that may be opened.

    Attributes:
        protocol: tcp, udp or vrrp.
        port: destination port; 0 for vrrp.
        source: IPv4 range of those who open the connection.
        destination: IPv4 range of those who accept it.
        service: what it is for, in a comment only.
    """

    protocol: str
    port: int
    source: ipaddress.IPv4Network
    destination: ipaddress.IPv4Network
    service: str = field(default="", compare=False)

    def covers(self, other: Flow) -> bool:
        """Whether whatever the other flow allows is allowed by this one too."""
        return (
            (self.protocol, self.port) == (other.protocol, other.port)
            and other.source.subnet_of(self.source)
            and other.destination.subnet_of(self.destination)
        )

    def meets(self, other: Flow) -> bool:
        """Whether some packet belongs to both flows."""
        return (
            (self.protocol, self.port) == (other.protocol, other.port)
            and self.source.overlaps(other.source)
            and self.destination.overlaps(other.destination)
        )


def flows_of(rule: Mapping[str, Any]) -> list[Flow]:
    """The flows that one rule of the contracts' firewall view stands for.

    Args:
        rule: protocol, ports (none for vrrp), family, sources, destinations; as comment services, or service and name.

    Raises:
        RulesError: a missing key, another protocol or family, ports that do not fit, an address that is no IPv4 range.
    """
    try:
        protocol, ports = str(rule["protocol"]), [int(port) for port in rule.get("ports") or ()]
        sources = [_network(item) for item in rule["sources"]]
        destinations = [_network(item) for item in rule["destinations"]]
    except KeyError as error:
        raise RulesError(f"rule {dict(rule)}: {error.args[0]} is missing") from error
    except (TypeError, ValueError) as error:
        raise RulesError(f"rule {dict(rule)}: {error}") from error
    if rule.get("family", "ip") != "ip":
        raise RulesError(f"rule {dict(rule)}: only IPv4 can be allowed; all IPv6 but neighbour discovery is denied")
    if protocol not in PROTOCOLS:
        raise RulesError(f"rule {dict(rule)}: protocol is not one of {', '.join(PROTOCOLS)}")
    if bool(ports) == (protocol == "vrrp") or not all(1 <= port <= _LAST_PORT for port in ports):
        raise RulesError(f"rule {dict(rule)}: {ports} are no ports of {protocol}")
    named = rule.get("services") or [".".join(str(rule[key]) for key in ("service", "name") if rule.get(key))]
    service = ", ".join(str(name) for name in named)
    return [Flow(protocol, *item, service) for item in product(ports or [0], sources, destinations)]


@dataclass(frozen=True, slots=True)
class ExtraRule:
    """An exception that no contract states, with the reason why it is there.

    Attributes:
        direction: inbound, outbound or forward.
        reason: why, for the next reader; becomes the rule's comment.
        protocol: tcp, udp, icmp or any.
        ports: destination ports and port ranges such as 8000-8010; none means all.
        sources: IPv4 ranges; none means all.
        destinations: IPv4 ranges; none means all.
        in_interface: interface by which the packet arrives; a trailing * stands for any ending.
        out_interface: interface by which the packet leaves.
    """

    direction: Direction
    reason: str
    protocol: str = "tcp"
    ports: tuple[tuple[int, int], ...] = ()
    sources: tuple[ipaddress.IPv4Network, ...] = ()
    destinations: tuple[ipaddress.IPv4Network, ...] = ()
    in_interface: str = ""
    out_interface: str = ""

    @classmethod
    def from_mapping(cls, value: Mapping[str, Any]) -> ExtraRule:
        """Read a rule as the inventory writes it.

        Args:
            value: direction, reason, and what narrows it: the other attributes by their names.

        Raises:
            RulesError: a value out of its range, or a rule without a reason.
        """
        label = f"extra rule {value.get('reason') or dict(value)!r}"
        direction, reason = value.get("direction"), " ".join(str(value.get("reason") or "").split())
        protocol = str(value.get("protocol") or "tcp")
        if direction not in CHAINS:
            raise RulesError(f"{label}: direction {direction!r} is not one of {', '.join(CHAINS)}")
        if not reason or '"' in reason or len(reason.encode()) > _COMMENT_LIMIT:
            raise RulesError(f"{label}: it needs a reason of 1 to {_COMMENT_LIMIT} bytes without double quotes")
        if protocol not in EXTRA_PROTOCOLS:
            raise RulesError(f"{label}: protocol {protocol!r} is not one of {', '.join(EXTRA_PROTOCOLS)}")
        try:
            ports = _merge_ports(_port_range(item) for item in value.get("ports") or ())
            sources = _collapse(value.get("sources") or ())
            destinations = _collapse(value.get("destinations") or ())
        except ValueError as error:
            raise RulesError(f"{label}: {error}") from error
        if ports and protocol not in ("tcp", "udp"):
            raise RulesError(f"{label}: {protocol} has no ports")
        interfaces = {key: str(value.get(key) or "") for key in ("in_interface", "out_interface")}
        for key, name in interfaces.items():
            if not re.fullmatch(r"(?:[\w.@-]{1,15}|[\w.@-]{1,14}\*)?", name, re.ASCII):
                raise RulesError(f"{label}: {key} {name!r} is no interface name")
        return cls(direction, reason, protocol, ports, sources, destinations, **interfaces)


@dataclass(frozen=True, slots=True)
class DropLog:
    """A sample of the dropped packets is logged.

    Attributes:
        per_minute: how many at most, for each chain.
        group: netlink group for ulogd; None is the kernel's log, which network namespaces of containers may not use.
    """

    per_minute: int = 10
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """All that a host's firewall is made of.

    Attributes:
        inbound: flows to this host.
        outbound: flows from this host.
        forward: flows through this host; a host that is no router has none.
        extra: exceptions with a reason.
        networks: the site's ranges, between which an echo request (ping) may pass.
        log: how dropped packets are logged; None is not at all.
        pods: ranges to which this host sends anything, and from and to which it passes anything on.
    """

    inbound: tuple[Flow, ...] = ()
    outbound: tuple[Flow, ...] = ()
    forward: tuple[Flow, ...] = ()
    extra: tuple[ExtraRule, ...] = ()
    networks: tuple[ipaddress.IPv4Network, ...] = ()
    log: DropLog | None = None
    pods: tuple[ipaddress.IPv4Network, ...] = ()

    @classmethod
    def from_view(
        cls,
        view: Mapping[str, Any],
        extra_rules: Iterable[Mapping[str, Any]] = (),
        networks: Iterable[str] = (),
        log: DropLog | None = None,
    ) -> Policy:
        """Join a host's view of the contracts with what the inventory adds.

        Args:
            view: lists of rules under inbound, outbound and forward, as `flows_of` reads them; under pods, the ranges
                of pods that the host carries or reaches.
            extra_rules: exceptions, as `ExtraRule.from_mapping` reads them.
            networks: the site's ranges.
            log: how dropped packets are logged; None is not at all.

        Raises:
            RulesError: with the first rule that does not fit.
        """
        unknown = set(view) - {*CHAINS, "pods"}
        if unknown:
            raise RulesError(f"rules: {', '.join(sorted(unknown))} is not one of {', '.join(CHAINS)}, pods")
        flows = {key: tuple(flow for rule in view.get(key) or () for flow in flows_of(rule)) for key in CHAINS}
        try:
            ranges, pods = _collapse(networks), _collapse(view.get("pods") or ())
        except ValueError as error:
            raise RulesError(f"networks: {error}") from error
        extra = tuple(ExtraRule.from_mapping(item) for item in extra_rules)
        return cls(flows["inbound"], flows["outbound"], flows["forward"], extra, ranges, log, pods)


# ------------------------------------------------------------------------------------------------------------ rendering


def render(policy: Policy, *, adopt: bool = False) -> str:
    """The file that, loaded by `nft -f`, makes the kernel's table what the policy says.

    The same policy gives the same text, in whatever order its flows come.

    Args:
        policy: what is allowed; all else is denied.
        adopt: for the moment in which the kernel begins to track connections. Answers to allowed flows pass then,
            although their questions were never seen. Not for longer: a connection could be opened in that disguise.
    """
    sets = _ranges_set("networks", policy.networks) if policy.networks else []
    sets += _ranges_set("pods", policy.pods) if policy.pods else []
    rules: dict[Direction, list[str]] = {}
    for direction in CHAINS:
        flows: tuple[Flow, ...] = getattr(policy, direction)
        leaving = {
            flow
            for flow in flows
            if direction != "inbound" and flow.destination == EVERYWHERE and flow.protocol != "vrrp"
        }
        rules[direction] = _flow_rules(direction, [flow for flow in flows if flow not in leaving], sets)
        rules[direction] += _leaving_rules(direction, leaving, policy)
        rules[direction] += [_extra_rule(rule) for rule in policy.extra if rule.direction == direction]
    inward = _answers("ip saddr . tcp sport", "outbound_tcp", sets) if adopt else []
    through = _answers("ip daddr . ip saddr . tcp sport", "forward_tcp", sets) if adopt else []
    body = [
        'comment "Default deny, from the contracts of the services of this site"',
        *(
            f"counter {name} {{ }}"
            for name in ("invalid", "spoofed", *(f"{chain}_dropped" for chain in CHAINS.values()))
        ),
        *sets,
        *_chain("invalid", [], ["counter name invalid drop"]),
        *_chain("input", [*_input_before(policy), *inward], rules["inbound"], _dropped("input", policy), "drop"),
        *_chain("forward", [*_forward_before(policy), *through], rules["forward"], _dropped("forward", policy), "drop"),
        *_chain(
            "output",
            _output_before(policy, sets),
            rules["outbound"],
            # A program without a contract is told at once, instead of waiting for the timeout of its connection.
            [*_dropped("output", policy), "reject with icmpx admin-prohibited"],
            "drop",
        ),
    ]
    return HEAD + REPLACE + f"table {FAMILY} {TABLE} {{\n" + "".join(f"\t{line}\n" for line in body) + "}\n"


def irreducible(flows: Iterable[Flow]) -> tuple[list[Flow], list[Flow]]:
    """The fewest flows that allow the same, in order.

    Args:
        flows: in any order, with repetitions and flows that wider ones cover.

    Returns:
        Flows of which no two meet, as the kernel wants a set's elements, and the rest, which overlap those in part.
    """
    unique: dict[Flow, Flow] = {}
    for flow in flows:
        known = unique.setdefault(flow, flow)
        if flow.service and flow.service < known.service:
            unique[flow] = flow
    widest = [
        flow for flow in sorted(unique.values()) if not any(other != flow and other.covers(flow) for other in unique)
    ]
    apart: list[Flow] = []
    rest: list[Flow] = []
    for flow in widest:
        (rest if any(flow.meets(other) for other in apart) else apart).append(flow)
    return apart, rest


def _flow_rules(direction: Direction, flows: Sequence[Flow], sets: list[str]) -> list[str]:
    """The rules that accept flows; the sets that they look into are appended to `sets`."""
    rules: list[str] = []
    if direction == "outbound":  # Whichever own address the route chooses, the peer checks it.
        flows = [
            flow
            if flow.protocol == "vrrp"
            else Flow(flow.protocol, flow.port, EVERYWHERE, flow.destination, flow.service)
            for flow in flows
        ]
    for protocol in PROTOCOLS:
        apart, rest = irreducible(flow for flow in flows if flow.protocol == protocol)
        if apart:
            name = f"{direction}_{protocol}"
            columns = _columns(direction, protocol)
            sets += _set(name, columns, apart)
            guard = "ip protocol vrrp " if protocol == "vrrp" else ""
            rules.append(f"{guard}{' . '.join(columns.values())} @{name} accept")
        rules += [_single_rule(flow) for flow in rest]
    return rules


def _leaving_rules(direction: Direction, flows: Iterable[Flow], policy: Policy) -> list[str]:
    """The rules for what may leave the site: to everywhere but the site's own networks, which state who may enter."""
    ports: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for flow in flows:
        source = f"ip saddr {_operand(flow.source)} " if direction == "forward" else ""
        ports.setdefault((flow.protocol, source), set()).add((flow.port, flow.port))
    outside = "ip daddr != @networks " if policy.networks else ""
    return [
        f"{source}{outside}{_port_match(protocol, _merge_ports(among))} accept"
        for (protocol, source), among in sorted(ports.items())
    ]


def _port_match(protocol: str, ports: Sequence[tuple[int, int]]) -> str:
    return f"{protocol} dport " + _group(str(first) if first == last else f"{first}-{last}" for first, last in ports)


def _columns(direction: Direction, protocol: str) -> dict[str, str]:
    """What an element of a set is made of: attribute of the flow to expression of nft, in order."""
    columns = {"source": "ip saddr", "destination": "ip daddr", "port": f"{protocol} dport"}
    if protocol == "vrrp":
        del columns["port"]
    elif direction == "outbound":
        del columns["source"]
    return columns


def _set(name: str, columns: Mapping[str, str], flows: Sequence[Flow]) -> list[str]:
    kinds = {"source": "ipv4_addr", "destination": "ipv4_addr", "port": "inet_service"}
    lines = [
        f"set {name} {{",
        f"\ttype {' . '.join(kinds[column] for column in columns)}",
        "\tflags interval",
        "\telements = {",
    ]
    service = ""
    for flow in sorted(flows, key=lambda item: (item.service, item)):
        if flow.service != service:
            service = flow.service
            lines.append(f"\t\t# {service}")
        lines.append("\t\t" + " . ".join(_operand(getattr(flow, column)) for column in columns) + ",")
    return [*lines, "\t}", "}"]


def _ranges_set(name: str, ranges: Iterable[ipaddress.IPv4Network]) -> list[str]:
    elements = ", ".join(map(_operand, ranges))
    return [f"set {name} {{", "\ttype ipv4_addr", "\tflags interval", f"\telements = {{ {elements} }}", "}"]


def _operand(value: int | ipaddress.IPv4Network) -> str:
    if isinstance(value, int):
        return str(value)
    return str(value.network_address) if value.prefixlen == value.max_prefixlen else str(value)


def _single_rule(flow: Flow) -> str:
    match = [f"ip saddr {_operand(flow.source)}", f"ip daddr {_operand(flow.destination)}"]
    match.append("ip protocol vrrp" if flow.protocol == "vrrp" else f"{flow.protocol} dport {flow.port}")
    return " ".join([*match, "accept"])


def _extra_rule(rule: ExtraRule) -> str:
    match: list[str] = []
    match += [f'iifname "{rule.in_interface}"'] if rule.in_interface else []
    match += [f'oifname "{rule.out_interface}"'] if rule.out_interface else []
    match += [f"ip saddr {_group(map(_operand, rule.sources))}"] if rule.sources else []
    match += [f"ip daddr {_group(map(_operand, rule.destinations))}"] if rule.destinations else []
    if rule.ports:
        match.append(_port_match(rule.protocol, rule.ports))
    elif rule.protocol != "any":
        match.append(f"ip protocol {rule.protocol}")
    elif not (rule.sources or rule.destinations):
        match.append("meta nfproto ipv4")
    return f'{" ".join(match)} accept comment "{rule.reason}"'


def _group(items: Iterable[str]) -> str:
    listed = list(items)
    return listed[0] if len(listed) == 1 else "{ " + ", ".join(listed) + " }"


def _chain(
    name: str, before: Sequence[str], rules: Sequence[str], after: Sequence[str] = (), policy: str = ""
) -> list[str]:
    # Priority filter is after dstnat, where the service proxy of Kubernetes turns a service's address into a real one:
    # what is judged is where a packet goes, not what it asked for.
    hook = [f"\ttype filter hook {name} priority filter; policy {policy};"] if policy else []
    return [f"chain {name} {{", *hook, *(f"\t{rule}" for rule in (*before, *rules, *after)), "}"]


_STATES: Final = "ct state vmap { established : accept, related : accept, invalid : goto invalid }"
# What has turned out to be for the host itself after its way was chosen: a service's address that its proxy translated.
_TO_ITSELF: Final = "fib daddr type local accept"
# Without neighbour discovery a link has no IPv6; hop limit 255 proves that the sender is on it (RFC 4861, 7.1).
_NEIGHBOURS: Final = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept"


def _input_before(policy: Policy) -> list[str]:
    return ['iif "lo" accept', *_origin(policy), _STATES, *_echo(policy, both=False), _NEIGHBOURS]


def _forward_before(policy: Policy) -> list[str]:
    # Whatever its state: the network of pods may take one direction of a connection past this hook.
    pods = ["ip saddr @pods accept", "ip daddr @pods accept"] if policy.pods else []
    return [*_origin(policy), *pods, _STATES, *(_echo(policy, both=True) if policy.forward else [])]


def _origin(policy: Policy) -> list[str]:
    """On a router: no network can borrow the addresses of another (BCP 38)."""
    # Pods come by interfaces to which no route leads; their network looks whose address they use.
    others = "ip saddr != @pods " if policy.pods else ""
    return [f"{others}fib saddr . iif oif missing counter name spoofed drop"] if policy.forward else []


def _answers(columns: str, name: str, sets: Sequence[str]) -> list[str]:
    """The other direction of the flows in a set, without the packets that open a connection."""
    return [f"{columns} @{name} tcp flags & syn == 0 accept"] if f"set {name} {{" in sets else []


def _output_before(policy: Policy, sets: Sequence[str]) -> list[str]:
    # Of connections older than their tracking (first load, flushed table), whose next packet is our answer.
    rules = ['oif "lo" accept', _STATES, _TO_ITSELF, *_answers("ip daddr . ip saddr . tcp sport", "inbound_tcp", sets)]
    if policy.networks:
        rules.append("ip daddr @networks icmp type echo-request accept")
    if policy.pods:
        rules.append("ip daddr @pods accept")
    return [*rules, _NEIGHBOURS, "icmpv6 type mld2-listener-report accept"]


def _echo(policy: Policy, *, both: bool) -> list[str]:
    if not policy.networks:
        return []
    to = "ip daddr @networks " if both else ""
    return [f"ip saddr @networks {to}icmp type echo-request limit rate 50/second burst 100 packets accept"]


def _dropped(chain: str, policy: Policy) -> list[str]:
    lines = []
    if policy.log is not None:
        where = "level info" if policy.log.group is None else f"group {policy.log.group}"
        rate = f"limit rate {policy.log.per_minute}/minute burst {policy.log.per_minute} packets"
        # What is said to all is noise on every network.
        lines.append(f'meta pkttype host {rate} log prefix "groundplane {chain} drop: " {where}')
    return [*lines, f"counter name {chain}_dropped"]


# -------------------------------------------------------------------------------------------------------------- listing


def canonical(listing: str) -> str:
    """A listing of our table in which only the meaning counts.

    The kernel keeps sets in no order of their own, and nft wraps them by width: here each element has a line, sorted.

    Args:
        listing: what `nft --stateless list table inet groundplane` prints, or nothing.
    """

    def sort(match: re.Match[str]) -> str:
        elements = sorted(" ".join(item.split()) for item in match["elements"].split(","))
        return "elements = {\n" + "".join(f"\t\t\t{element},\n" for element in elements if element) + "\t\t}"

    text = re.sub(r"elements = \{(?P<elements>[^{}]*)\}", sort, listing)
    return "".join(line.rstrip() + "\n" for line in text.splitlines() if line.strip())


# --------------------------------------------------------------------------------------------------------------- values


def _network(value: object) -> ipaddress.IPv4Network:
    text = "0.0.0.0/0" if value == "any" else str(value)
    try:
        return ipaddress.IPv4Network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no IPv4 address or range ({error})") from error


def _collapse(values: Iterable[object]) -> tuple[ipaddress.IPv4Network, ...]:
    return tuple(ipaddress.collapse_addresses([_network(value) for value in values]))


def _port_range(value: object) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", str(value), re.ASCII)
    if match is None:
        raise ValueError(f"{value!r} is no port or range of ports")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= _LAST_PORT:
        raise ValueError(f"{value!r} is not within 1 and {_LAST_PORT}, lower first")
    return first, last


def _merge_ports(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)
