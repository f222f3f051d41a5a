# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real packets through rendered rules: a client and a server with a router between, in namespaces of the kernel."""

from __future__ import annotations

import subprocess
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.nftables import Policy, render

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT, SERVER, OTHER = "10.9.1.2", "10.9.2.2", "10.9.1.3"
NETWORKS = ["10.9.1.0/24", "10.9.2.0/24"]
LAYOUT = """
mount -t tmpfs none /run
for name in client router server; do ip netns add $name; ip -n $name link set lo up; done
for name in client server; do
  ip link add $name netns router type veth peer name eth0 netns $name
  ip -n router link set $name up; ip -n $name link set eth0 up
done
ip -n router address add 10.9.1.1/24 dev client; ip -n router address add 10.9.2.1/24 dev server
ip -n client address add 10.9.1.2/24 dev eth0; ip -n client address add 10.9.1.3/24 dev eth0
ip -n client address add 10.9.2.77/32 dev lo
ip -n server address add 10.9.2.2/24 dev eth0
ip -n client route add default via 10.9.1.1; ip -n server route add default via 10.9.2.1
ip netns exec router sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
for name in client router server; do
  ip netns exec $name sh -c 'for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done'
done
"""


class World:
    """Three hosts in namespaces of one process."""

    def __init__(self) -> None:
        self.holder = subprocess.Popen(
            ["unshare", "--map-root-user", "--net", "--mount", "sh", "-c", "echo ready; exec sleep 600"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.holder.stdout is not None
        if self.holder.stdout.readline() != "ready\n":
            pytest.skip("this machine allows no network namespaces")
        self.sh("set -e\n" + LAYOUT)

    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self.holder.pid}", "--user", "--net", "--mount", "--preserve-credentials"]

    def sh(self, script: str, stdin: str = "") -> str:
        done = subprocess.run(
            [*self._enter(), "sh", "-c", script], input=stdin, capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def on(self, host: str, *argv: str, stdin: str = "") -> str:
        done = subprocess.run(
            [*self._enter(), "ip", "netns", "exec", host, *argv],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 0, f"{host}: {argv}\n{done.stdout}{done.stderr}"
        return done.stdout

    def python(self, host: str, script: str, *argv: str) -> str:
        return self.on(host, "python3", "-", *argv, stdin=textwrap.dedent(script)).strip()

    def start(self, host: str, script: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*self._enter(), "ip", "netns", "exec", host, "python3", "-u", "-c", textwrap.dedent(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def load(self, host: str, policy: Policy) -> None:
        self.on(host, "nft", "--file", "-", stdin=render(policy))

    def clear(self) -> None:
        for host in ("client", "router", "server"):
            self.on(host, "nft", "flush", "ruleset")

    def connect(self, host: str, source: str, address: str, port: int) -> str:
        """How a connection ends: open, refused, filtered, or unreachable."""
        return self.python(
            host,
            """
            import socket, sys
            s = socket.socket(); s.settimeout(1.8); s.bind((sys.argv[1], 0))
            try: s.connect((sys.argv[2], int(sys.argv[3]))); print("open")
            except ConnectionRefusedError: print("refused")
            except TimeoutError: print("filtered")
            except OSError: print("unreachable")
            """,
            source,
            address,
            str(port),
        )

    def count(self, host: str, counter: str) -> int:
        words = self.on(host, "nft", "list", "counter", "inet", "groundplane", counter).split()
        return int(words[words.index("packets") + 1])


@pytest.fixture(scope="module")
def _world() -> Iterator[World]:
    world = World()
    try:
        yield world
    finally:
        world.holder.kill()
        world.holder.wait()


@pytest.fixture
def world(_world: World) -> World:
    _world.clear()
    return _world


def rule(protocol: str, ports: list[int], source: str, destination: str) -> dict[str, Any]:
    return {"protocol": protocol, "ports": ports, "sources": [source], "destinations": [destination]}


WEB = rule("tcp", [80], CLIENT, SERVER)


def policy(**view: Any) -> Policy:
    return Policy.from_view(view, networks=NETWORKS)


def test_without_rules_all_is_reached(world: World) -> None:
    assert world.connect("client", CLIENT, SERVER, 80) == "refused"
    assert world.connect("client", "10.9.2.77", SERVER, 80) == "filtered"  # The answer goes astray, not the question.


def test_a_server_lets_in_only_whom_the_flow_names(world: World) -> None:
    world.load("server", policy(inbound=[WEB]))
    assert world.connect("client", CLIENT, SERVER, 80) == "refused"
    assert world.connect("client", OTHER, SERVER, 80) == "filtered"
    assert world.connect("client", CLIENT, SERVER, 81) == "filtered"
    assert world.connect("server", SERVER, CLIENT, 80) == "unreachable"
    assert world.connect("server", SERVER, SERVER, 81) == "refused"  # By the loopback.
    assert world.count("server", "input_dropped") >= 2
    assert world.count("server", "output_dropped") >= 1


def test_a_client_is_told_at_once_what_it_may_not(world: World) -> None:
    world.load("client", policy(outbound=[WEB]))
    assert world.connect("client", CLIENT, SERVER, 80) == "refused"
    assert world.connect("client", CLIENT, SERVER, 81) == "unreachable"  # Who is not told waits, and is "filtered".


def test_a_router_passes_only_flows_and_only_from_their_network(world: World) -> None:
    world.load("router", policy(forward=[WEB, rule("tcp", [82], "10.9.2.77", SERVER)]))
    assert world.connect("client", CLIENT, SERVER, 80) == "refused"
    assert world.connect("client", CLIENT, SERVER, 81) == "filtered"
    assert world.connect("server", SERVER, CLIENT, 80) == "filtered"
    before = world.count("router", "spoofed")
    assert world.connect("client", "10.9.2.77", SERVER, 82) == "filtered"
    assert world.count("router", "spoofed") > before


def test_a_host_that_is_no_router_passes_nothing(world: World) -> None:
    world.load("router", policy(inbound=[WEB], outbound=[WEB]))
    assert world.connect("client", CLIENT, SERVER, 80) == "filtered"
    assert world.count("router", "forward_dropped") >= 1


def test_the_way_out_does_not_lead_into_the_site(world: World) -> None:
    world.load("client", policy(outbound=[rule("tcp", [80], CLIENT, "any")]))
    assert world.connect("client", CLIENT, SERVER, 80) == "unreachable"
    world.load("client", Policy.from_view({"outbound": [rule("tcp", [80], CLIENT, "any")]}, networks=["10.9.1.0/24"]))
    assert world.connect("client", CLIENT, SERVER, 80) == "refused"


# As kube-proxy does it in mode nftables: 10.96.0.1:443 is a service with one endpoint.
SERVICE = """
table ip kube-proxy {
  chain prerouting { type nat hook prerouting priority dstnat; ip daddr 10.96.0.1 tcp dport 443 dnat to ENDPOINT; }
  chain output { type nat hook output priority -100; ip daddr 10.96.0.1 tcp dport 443 dnat to ENDPOINT; }
}
"""


def serve(world: World, host: str, endpoint: str) -> None:
    world.on(host, "nft", "--file", "-", stdin=SERVICE.replace("ENDPOINT", endpoint))


def test_what_asks_for_a_service_is_judged_by_where_it_goes(world: World) -> None:
    serve(world, "client", f"{SERVER}:80")
    world.load("client", policy(outbound=[WEB]))
    assert world.connect("client", CLIENT, "10.96.0.1", 443) == "refused"
    world.load("client", policy(outbound=[rule("tcp", [443], CLIENT, "10.96.0.1")]))
    assert world.connect("client", CLIENT, "10.96.0.1", 443) == "unreachable"


def test_what_asks_for_a_service_on_its_way_through_is_judged_by_where_it_goes(world: World) -> None:
    serve(world, "router", f"{SERVER}:80")
    world.load("router", policy(forward=[WEB]))
    assert world.connect("client", CLIENT, "10.96.0.1", 443) == "refused"
    world.load("router", policy(forward=[rule("tcp", [443], CLIENT, "10.96.0.1")]))
    assert world.connect("client", CLIENT, "10.96.0.1", 443) == "filtered"


def test_a_service_whose_endpoint_is_the_host_itself_is_judged_by_the_hosts_own_address(world: World) -> None:
    serve(world, "router", "10.9.1.1:80")
    world.load("router", policy(inbound=[rule("tcp", [80], "10.9.1.0/24", "10.9.1.1")]))
    assert world.connect("client", CLIENT, "10.96.0.1", 443) == "refused"
    world.load("router", policy(inbound=[rule("tcp", [81], "10.9.1.0/24", "10.9.1.1")]))
    assert world.connect("client", CLIENT, "10.96.0.1", 443) == "filtered"


def test_a_host_that_carries_pods_passes_their_packets_and_lets_in_what_is_stated(world: World) -> None:
    """The client is a pod of the host in the middle."""
    pods = {"pods": ["10.9.1.0/24"]}
    world.load("router", Policy.from_view({**pods, "inbound": [rule("tcp", [80], "10.9.1.0/24", "10.9.1.1")]}))
    assert world.connect("client", CLIENT, SERVER, 81) == "refused"
    assert world.connect("server", SERVER, CLIENT, 81) == "refused"
    assert world.connect("router", "10.9.1.1", CLIENT, 81) == "refused"
    assert world.connect("client", CLIENT, "10.9.1.1", 80) == "refused"
    assert world.connect("client", CLIENT, "10.9.1.1", 81) == "filtered"
    assert world.connect("router", "10.9.2.1", SERVER, 81) == "unreachable"
    world.load("router", Policy.from_view({}))
    assert world.connect("client", CLIENT, SERVER, 81) == "filtered"


def test_a_router_that_carries_pods_still_drops_other_borrowed_addresses(world: World) -> None:
    forward = [rule("tcp", [82], "10.9.2.77", SERVER)]
    world.load("router", Policy.from_view({"forward": forward, "pods": ["10.9.3.0/24"]}, networks=NETWORKS))
    before = world.count("router", "spoofed")
    assert world.connect("client", "10.9.2.77", SERVER, 82) == "filtered"
    assert world.count("router", "spoofed") > before


def test_ping_passes_within_the_site_alone(world: World) -> None:
    ping = """
        import socket, sys
        s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP); s.settimeout(0.5)
        identifier = int(sys.argv[1])
        s.sendto(bytes([8, 0]) + (0xf7ff - identifier).to_bytes(2) + identifier.to_bytes(2) + bytes(2), ("10.9.2.2", 0))
        try:
            print("answered" if s.recv(200)[20] == 0 else "refused")
        except TimeoutError: print("silent")
    """
    world.load("server", policy())
    assert world.python("client", ping, "7") == "answered"
    world.load("server", Policy.from_view({}, networks=["10.9.2.0/24"]))
    assert world.python("client", ping, "8") == "silent"


def test_vrrp_passes_between_the_named_alone(world: World) -> None:
    vrrp = rule("vrrp", [], CLIENT, SERVER)
    world.load("server", policy(inbound=[vrrp]))
    listener = world.start(
        "server",
        """
        import socket
        s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 112); s.settimeout(2); print("ready")
        seen = set()
        try:
            while True: seen.add(s.recvfrom(200)[1][0])
        except TimeoutError: print(sorted(seen))
        """,
    )
    send = """
        import socket, sys
        for source in sys.argv[1:]:
            s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 112); s.bind((source, 0))
            s.sendto(b"advertisement", ("10.9.2.2", 0))
    """
    world.python("client", send, CLIENT, OTHER)
    out, _ = listener.communicate(timeout=10)
    assert out.strip() == str([CLIENT])


@pytest.mark.parametrize(
    ("host", "direction", "adopt", "heard"),
    [
        ("server", "inbound", False, "2"),
        ("client", "outbound", True, "2"),
        ("router", "forward", True, "2"),
        ("client", "outbound", False, "stalled"),
        ("router", "forward", False, "stalled"),
    ],
)
def test_a_session_older_than_the_rules_goes_on_when_the_server_speaks_next(
    world: World, host: str, direction: str, adopt: bool, heard: str
) -> None:
    server = world.start(
        "server",
        """
        import socket, sys
        l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        l.bind(("10.9.2.2", 80)); l.listen(); print("ready")
        c, _ = l.accept(); c.sendall(b"1"); print("sent"); sys.stdin.readline(); c.sendall(b"2")
        c.settimeout(5); c.recv(1)
        """,
    )
    client = world.start(
        "client",
        """
        import socket
        s = socket.create_connection(("10.9.2.2", 80)); s.settimeout(2.5); s.recv(1); print("ready")
        try: print(s.recv(1).decode())
        except TimeoutError: print("stalled")
        """,
    )
    text = render(policy(**{direction: [WEB]}), adopt=adopt)
    world.on(host, "nft", "--file", "-", stdin=text)
    assert server.stdin is not None
    server.stdin.write("go\n")
    server.stdin.flush()
    out, _ = client.communicate(timeout=10)
    server.kill()
    server.wait()
    assert out.strip() == heard


def test_while_adopting_an_answer_opens_no_connection(world: World) -> None:
    """A SYN from the port of a service to its client is no answer."""
    world.on("client", "nft", "--file", "-", stdin=render(policy(outbound=[WEB]), adopt=True))
    reverse = """
        import socket
        s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.settimeout(1.5); s.bind(("10.9.2.2", 80))
        try: s.connect(("10.9.1.2", 22)); print("open")
        except ConnectionRefusedError: print("refused")
        except TimeoutError: print("filtered")
    """
    assert world.python("server", reverse) == "filtered"


def test_of_ipv6_only_neighbours_are_discovered(world: World) -> None:
    world.on("server", "sh", "-c", "ip address add fd00:9::2/64 dev eth0 nodad")
    world.on("router", "sh", "-c", "ip address add fd00:9::1/64 dev server nodad")
    connect = """
        import socket
        s = socket.socket(socket.AF_INET6); s.settimeout(1.5)
        try: s.connect(("fd00:9::2", 80)); print("open")
        except ConnectionRefusedError: print("refused")
        except TimeoutError: print("filtered")
        except OSError: print("unreachable")
    """
    assert world.python("router", connect) == "refused"
    world.on("router", "ip", "neighbour", "flush", "dev", "server")
    world.load("server", policy(inbound=[WEB]))
    assert world.python("router", connect) == "filtered"
    assert "lladdr" in world.on("router", "ip", "neighbour", "show", "fd00:9::2")
