# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The firewall's text: what it allows, how it is compared, and that the kernel takes it."""

from __future__ import annotations

import ipaddress
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import nftables
from ansible_collections.groundplane.onprem.plugins.module_utils.nftables import (
    DropLog,
    ExtraRule,
    Flow,
    Policy,
    RulesError,
    canonical,
    flows_of,
    irreducible,
    render,
)
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    import random

NETWORKS = ["10.77.1.0/24", "10.77.2.0/24", "10.77.3.0/24"]
SSH = {
    "service": "host",
    "name": "ssh",
    "protocol": "tcp",
    "ports": [22],
    "family": "ip",
    "network": "data",
    "sources": ["10.77.4.10"],
    "destinations": ["10.77.3.11"],
}


def policy(extra: list[dict[str, Any]] | None = None, log: DropLog | None = None, **view: Any) -> Policy:
    return Policy.from_view(view, extra or [], NETWORKS, log)


def chain(text: str, name: str) -> list[str]:
    """The rules of one chain of a rendered file."""
    body = text.split(f"\tchain {name} {{\n", 1)[1].split("\n\t}\n", 1)[0]
    return [line.strip() for line in body.splitlines()]


def listed(text: str) -> str:
    """What the kernel makes of a file, in a network namespace of its own."""
    script = "nft --file - && nft --stateless list table inet groundplane"
    done = subprocess.run(
        ["unshare", "--map-root-user", "--net", "sh", "-c", script],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip(f"this machine allows no network namespace: {done.stderr}")
    assert done.returncode == 0, f"{done.stderr}\n{text}"
    return canonical(done.stdout)


# A small world, so that flows meet often.
addresses = st.integers(0, 7).map(lambda last: f"10.0.0.{last}")
ranges = st.one_of(addresses, st.sampled_from(["10.0.0.0/30", "10.0.0.4/30", "10.0.0.0/29", "10.0.0.2/31", "any"]))
flows = st.builds(
    lambda protocol, port, source, destination: flows_of(
        {
            "protocol": protocol,
            "ports": [] if protocol == "vrrp" else [port],
            "sources": [source],
            "destinations": [destination],
        }
    )[0],
    st.sampled_from(nftables.PROTOCOLS),
    st.sampled_from([22, 80]),
    ranges,
    ranges,
)


def allows(some: list[Flow], probe: Flow) -> bool:
    return any(flow.covers(probe) for flow in some)


class TestIrreducible:
    @settings(deadline=None)
    @given(st.lists(flows, max_size=12))
    def test_the_same_is_allowed(self, some: list[Flow]) -> None:
        apart, rest = irreducible(some)
        for source in range(9):
            for destination in range(9):
                for protocol, port in (("tcp", 22), ("tcp", 80), ("udp", 22), ("udp", 80), ("vrrp", 0)):
                    probe = Flow(
                        protocol,
                        port,
                        ipaddress.IPv4Network(f"10.0.0.{source}"),
                        ipaddress.IPv4Network(f"10.0.0.{destination}"),
                    )
                    assert allows([*apart, *rest], probe) == allows(some, probe)

    @settings(deadline=None)
    @given(st.lists(flows, max_size=12))
    def test_elements_of_a_set_never_meet_and_none_is_idle(self, some: list[Flow]) -> None:
        apart, rest = irreducible(some)
        assert not any(one.meets(other) for one in apart for other in apart if one != other)
        everything = [*apart, *rest]
        assert not any(one.covers(other) for one in everything for other in everything if one != other)

    @settings(deadline=None)
    @given(st.lists(flows, max_size=12), st.randoms(use_true_random=False))
    def test_order_does_not_matter(self, some: list[Flow], chance: random.Random) -> None:
        shuffled = list(some)
        chance.shuffle(shuffled)
        assert irreducible(shuffled) == irreducible(some)


class TestRender:
    def test_nothing_stated_is_nothing_allowed(self) -> None:
        text = render(Policy())
        for name in ("input", "forward", "output"):
            assert chain(text, name)[0] == f"type filter hook {name} priority filter; policy drop;"
        accepted = [line for name in ("input", "forward", "output") for line in chain(text, name) if "accept" in line]
        assert [line for line in accepted if "established" not in line and '"lo"' not in line] == [
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept",
            "fib daddr type local accept",
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept",
            "icmpv6 type mld2-listener-report accept",
        ]

    def test_only_our_table_is_replaced_and_in_the_same_file(self) -> None:
        text = render(policy(inbound=[SSH]))
        assert "flush" not in text
        assert "\ntable inet groundplane\ndelete table inet groundplane\ntable inet groundplane {\n" in text

    def test_a_listen_is_an_element_with_its_name_beside_it(self) -> None:
        text = render(policy(inbound=[SSH]))
        assert "\t\t\t# host.ssh\n\t\t\t10.77.4.10 . 10.77.3.11 . 22,\n" in text
        assert "ip saddr . ip daddr . tcp dport @inbound_tcp accept" in chain(text, "input")

    def test_a_host_without_forwarded_flows_forwards_nothing_new(self) -> None:
        rules = chain(render(policy(inbound=[SSH], outbound=[SSH])), "forward")
        assert rules[1:] == [nftables._STATES, "counter name forward_dropped"]

    def test_a_router_drops_borrowed_addresses_before_all_else(self) -> None:
        rules = chain(render(policy(forward=[SSH])), "forward")
        assert rules[1] == "fib saddr . iif oif missing counter name spoofed drop"
        assert "ip saddr . ip daddr . tcp dport @forward_tcp accept" in rules

    def test_the_way_out_does_not_lead_into_the_site(self) -> None:
        egress = {**SSH, "name": "upstream", "ports": [80, 443], "destinations": ["any"]}
        assert "ip daddr != @networks tcp dport { 80, 443 } accept" in chain(
            render(policy(outbound=[egress])), "output"
        )
        forward = chain(render(policy(forward=[egress])), "forward")
        assert "ip saddr 10.77.4.10 ip daddr != @networks tcp dport { 80, 443 } accept" in forward

    def test_any_source_stays_any_source(self) -> None:
        assert "\t\t\t0.0.0.0/0 . 10.77.3.11 . 22,\n" in render(
            policy(inbound=[{**SSH, "sources": ["any", "10.77.4.10"]}])
        )

    def test_vrrp_is_a_protocol_between_members(self) -> None:
        vrrp = {**SSH, "protocol": "vrrp", "ports": []}
        text = render(policy(inbound=[vrrp], outbound=[vrrp]))
        assert "ip protocol vrrp ip saddr . ip daddr @inbound_vrrp accept" in chain(text, "input")
        assert "ip protocol vrrp ip saddr . ip daddr @outbound_vrrp accept" in chain(text, "output")
        assert text.count("10.77.4.10 . 10.77.3.11,") == 2

    def test_a_host_of_kubernetes_sends_to_pods_and_passes_their_packets_on(self) -> None:
        text = render(policy(inbound=[SSH], pods=["10.244.0.0/16"]))
        assert "\t\telements = { 10.244.0.0/16 }\n" in text
        assert "ip daddr @pods accept" in chain(text, "output")
        assert chain(text, "forward")[1:] == [
            "ip saddr @pods accept",
            "ip daddr @pods accept",
            nftables._STATES,
            "counter name forward_dropped",
        ]
        assert "@pods" not in "".join(chain(text, "input"))

    def test_a_host_without_pods_knows_none(self) -> None:
        assert "pods" not in render(policy(inbound=[SSH], outbound=[SSH], forward=[SSH], pods=[]))

    def test_a_router_that_carries_pods_leaves_their_addresses_to_their_network(self) -> None:
        text = render(policy(forward=[SSH], pods=["10.244.0.0/16"]))
        spoofed = "ip saddr != @pods fib saddr . iif oif missing counter name spoofed drop"
        assert spoofed == chain(text, "forward")[1] == chain(text, "input")[2]

    def test_drops_are_logged_only_when_asked_and_where_asked(self) -> None:
        assert " log " not in render(policy())
        assert 'burst 7 packets log prefix "groundplane input drop: " level info' in render(policy(log=DropLog(7)))
        assert 'log prefix "groundplane output drop: " group 3' in render(policy(log=DropLog(7, 3)))

    def test_extra_rules_carry_their_reason(self) -> None:
        extra = [
            {
                "direction": "outbound",
                "reason": "Vendor  updates",
                "ports": ["443", "8005-8010", "8000-8005"],
                "destinations": ["192.0.2.1"],
            },
            {"direction": "forward", "reason": "Pods", "protocol": "any", "in_interface": "cni*"},
        ]
        text = render(policy(extra))
        assert 'ip daddr 192.0.2.1 tcp dport { 443, 8000-8010 } accept comment "Vendor updates"' in chain(
            text, "output"
        )
        assert 'iifname "cni*" meta nfproto ipv4 accept comment "Pods"' in chain(text, "forward")


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"protocol": "sctp"}, "protocol is not one of tcp, udp, vrrp"),
            ({"ports": []}, "[] are no ports of tcp"),
            ({"protocol": "vrrp"}, "[22] are no ports of vrrp"),
            ({"ports": [0]}, "[0] are no ports of tcp"),
            ({"ports": ["x"]}, "invalid literal"),
            ({"family": "ip6"}, "only IPv4 can be allowed"),
            ({"sources": ["10.0.0.1/24"]}, "'10.0.0.1/24' is no IPv4 address or range"),
            ({"destinations": ["fd00::1"]}, "'fd00::1' is no IPv4 address or range"),
        ],
    )
    def test_of_rules(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(RulesError) as caught:
            flows_of({**SSH, **change})
        assert message in str(caught.value)

    def test_of_rules_without_ends(self) -> None:
        with pytest.raises(RulesError, match="sources is missing"):
            flows_of({"protocol": "tcp", "ports": [1], "destinations": []})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"direction": "up"}, "direction 'up' is not one of inbound, outbound, forward"),
            ({"reason": ""}, "it needs a reason"),
            ({"reason": 'a " accept'}, "without double quotes"),
            ({"reason": "x" * 128}, "1 to 127 bytes"),
            ({"protocol": "gre"}, "'gre' is not one of any, icmp, tcp, udp"),
            ({"protocol": "icmp", "ports": ["1"]}, "icmp has no ports"),
            ({"ports": ["9-1"]}, "'9-1' is not within 1 and 65535, lower first"),
            ({"ports": ["70000"]}, "'70000' is not within 1 and 65535"),
            ({"ports": ["http"]}, "'http' is no port"),
            ({"sources": ["2001:db8::/32"]}, "is no IPv4 address or range"),
            ({"in_interface": 'eth0" accept'}, "is no interface name"),
        ],
    )
    def test_of_extra_rules(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(RulesError) as caught:
            ExtraRule.from_mapping({"direction": "inbound", "reason": "Because", **change})
        assert message in str(caught.value)

    def test_of_unknown_directions_and_networks(self) -> None:
        with pytest.raises(RulesError, match="rules: incoming is not one of inbound, outbound, forward, pods"):
            Policy.from_view({"incoming": []})
        with pytest.raises(RulesError, match="networks: 'x' is no IPv4"):
            Policy.from_view({}, networks=["x"])
        with pytest.raises(RulesError, match="networks: 'y' is no IPv4"):
            Policy.from_view({"pods": ["y"]})


class TestCanonical:
    def test_the_order_of_elements_and_the_width_of_lines_do_not_count(self) -> None:
        start, end = "table inet t {\n\tset s {\n\t\telements = { ", " }\n\t}\n"
        one = f"{start}10.0.0.1 . 22,\n\t\t\t     10.0.0.0/8 . 80{end}\n\tchain c {{\n\t}}\n}}\n"
        other = f"{start}10.0.0.0/8 . 80, 10.0.0.1 . 22{end}\tchain c {{\n\t}}\n}}\n"
        assert canonical(one) == canonical(other)

    def test_a_missing_element_counts(self) -> None:
        text = "set s {\n\telements = { 1, 2 }\n}\n"
        assert canonical(text) != canonical(text.replace(", 2", ""))

    def test_the_order_of_rules_counts(self) -> None:
        assert canonical("chain c {\n\ta\n\tb\n}") != canonical("chain c {\n\tb\n\ta\n}")

    def test_nothing_is_nothing(self) -> None:
        assert canonical("") == ""


extras = st.builds(
    lambda direction, protocol, ports, sources, destinations, interface: {
        "direction": direction,
        "reason": "Because",
        "protocol": protocol,
        "ports": ports if protocol in ("tcp", "udp") else [],
        "sources": sources,
        "destinations": destinations,
        "in_interface": interface if direction != "outbound" else "",
    },
    st.sampled_from(list(nftables.CHAINS)),
    st.sampled_from(nftables.EXTRA_PROTOCOLS),
    st.lists(st.sampled_from(["22", "20-30", "25-40", "65535"]), max_size=3),
    st.lists(ranges, max_size=3),
    st.lists(ranges, max_size=3),
    st.sampled_from(["", "eth0", "cni*"]),
)
rules = st.builds(
    lambda flow: {
        "protocol": flow.protocol,
        "ports": [flow.port] if flow.port else [],
        "sources": [str(flow.source)],
        "destinations": [str(flow.destination)],
    },
    flows,
)


class TestKernel:
    @settings(max_examples=60, deadline=None)
    @given(
        st.fixed_dictionaries(
            {name: st.lists(rules, max_size=8) for name in nftables.CHAINS}
            | {"pods": st.lists(st.sampled_from(["10.244.0.0/16", "10.245.0.0/24", "10.244.1.0/24"]), max_size=2)}
        ),
        st.lists(extras, max_size=3),
        st.sampled_from([None, DropLog(), DropLog(5, 2)]),
        st.randoms(use_true_random=False),
    )
    def test_it_takes_every_policy_and_lists_it_the_same_each_time(
        self, view: dict[str, Any], extra: list[dict[str, Any]], log: DropLog | None, chance: random.Random
    ) -> None:
        text = render(policy(extra, log, **view))
        shuffled = {name: chance.sample(items, len(items)) for name, items in view.items()}
        assert render(policy(extra, log, **shuffled)) == text
        assert listed(text) == listed(text + text)

    def test_a_rule_less_is_seen(self) -> None:
        text = render(policy(inbound=[SSH]))
        without = text.replace("\t\tip saddr . ip daddr . tcp dport @inbound_tcp accept\n", "")
        assert without != text
        assert listed(text) != listed(without)
