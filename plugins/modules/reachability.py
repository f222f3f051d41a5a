# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures which ports of other hosts a host reaches."""

from __future__ import annotations

DOCUMENTATION = r"""
module: reachability
short_description: Measures which ports a host reaches
version_added: 0.1.0
description:
  - Tries many ports of many addresses at once, from the host it runs on, and says of each how it answered.
  - TCP ports are tried by a connection that is closed at once. UDP ports are sent one datagram, a valid time request to
    port 123 and an empty one to others, so that of these a silent service and a filter look the same.
options:
  targets:
    description: What to try.
    type: list
    elements: dict
    required: true
    suboptions:
      addresses:
        description: IP addresses.
        type: list
        elements: str
        required: true
      ports:
        description: Ports of each address.
        type: list
        elements: int
        required: true
      protocol:
        description: The protocol.
        type: str
        default: tcp
        choices: [tcp, udp]
  timeout:
    description: Seconds to wait for an answer. Above 1, so that a lost first packet is sent again.
    type: float
    default: 2.5
  parallel:
    description: How many ports are tried at the same time.
    type: int
    default: 400
attributes:
  check_mode:
    description: Measures in check mode too, because it changes nothing.
    support: full
  diff_mode:
    description: There is nothing to change.
    support: none
  idempotent:
    description: Changes nothing.
    support: full
author: groundplane contributors
"""

EXAMPLES = r"""
- name: The database answers only where it should
  groundplane.onprem.reachability:
    targets:
      - {addresses: [10.77.3.11, 10.77.3.12], ports: [22, 5432]}
"""

RETURN = r"""
results:
  description:
    - One list for each port, of protocol, source address, destination address, port and state.
    - The state is C(open), C(refused) (the host was reached and nothing listens), C(filtered) (no answer),
      C(unreachable) (a router or the own host says no) or C(local) (the address is this host's own).
  type: list
  elements: list
  returned: always
  sample: [[tcp, 10.77.2.11, 10.77.3.11, 5432, open]]
"""

import asyncio
import socket
from typing import Any

from ansible.module_utils.basic import AnsibleModule

NTP_PORT = 123
NTP_REQUEST = bytes([0x23]) + bytes(47)
"""Version 4, mode 3 (client), all else zero: RFC 5905, 7.3."""


def source_of(address: str) -> str:
    """The address from which the host talks to another; nothing without a route. Sends no packet."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


async def try_tcp(address: str, port: int, seconds: float) -> str:
    """How a TCP port answers within some seconds."""
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(address, port)
    except TimeoutError:
        return "filtered"
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "unreachable"
    writer.transport.abort()
    return "open"


class _Answer(asyncio.DatagramProtocol):
    """Waits for the first answer to a datagram, or for the refusal of it."""

    def __init__(self, state: asyncio.Future[str]) -> None:
        self.state = state

    def datagram_received(self, _data: bytes, _address: Any) -> None:
        self._settle("open")

    def error_received(self, error: Exception) -> None:
        self._settle("refused" if isinstance(error, ConnectionRefusedError) else "unreachable")

    def _settle(self, state: str) -> None:
        if not self.state.done():
            self.state.set_result(state)


async def try_udp(address: str, port: int, seconds: float) -> str:
    """How a UDP port answers within some seconds."""
    loop = asyncio.get_running_loop()
    state: asyncio.Future[str] = loop.create_future()
    try:
        transport, _ = await loop.create_datagram_endpoint(lambda: _Answer(state), remote_addr=(address, port))
    except OSError:
        return "unreachable"
    try:
        transport.sendto(NTP_REQUEST if port == NTP_PORT else b"")
        async with asyncio.timeout(seconds):
            return await state
    except TimeoutError:
        return "filtered"
    finally:
        transport.close()


async def measure(targets: list[tuple[str, str, int]], seconds: float, parallel: int) -> list[list[Any]]:
    """Try all targets.

    Args:
        targets: protocol, address and port of each.
        seconds: how long to wait for each.
        parallel: how many at the same time.

    Returns:
        Protocol, source, address, port and state of each, in the order of the targets.
    """
    gate = asyncio.Semaphore(parallel)
    sources = {address: source_of(address) for _, address, _ in targets}

    async def one(protocol: str, address: str, port: int) -> list[Any]:
        source = sources[address]
        if source == address:
            state = "local"
        elif not source:
            state = "unreachable"
        else:
            async with gate:
                state = await (try_tcp if protocol == "tcp" else try_udp)(address, port, seconds)
        return [protocol, source, address, port, state]

    return list(await asyncio.gather(*(one(*target) for target in targets)))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "targets": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "addresses": {"type": "list", "elements": "str", "required": True},
                    "ports": {"type": "list", "elements": "int", "required": True},
                    "protocol": {"type": "str", "default": "tcp", "choices": ["tcp", "udp"]},
                },
            },
            "timeout": {"type": "float", "default": 2.5},
            "parallel": {"type": "int", "default": 400},
        },
        supports_check_mode=True,
    )
    targets = [
        (target["protocol"], address, port)
        for target in module.params["targets"]
        for address in target["addresses"]
        for port in target["ports"]
    ]
    results = asyncio.run(measure(targets, module.params["timeout"], module.params["parallel"]))
    module.exit_json(changed=False, results=results)


if __name__ == "__main__":
    main()
