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
import errno
import socket
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    from collections.abc import Callable

NTP_PORT = 123
NTP_REQUEST = bytes([0x23]) + bytes(47)
"""Version 4, mode 3 (client), all else zero: RFC 5905, 7.3."""


def source_of(address: str) -> str:
    """The address from which the host talks to another; nothing without a route. Sends no packet."""
    with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


async def try_tcp(address: str, port: int, seconds: float) -> str:
    """How a TCP port answers within some seconds."""
    loop = asyncio.get_running_loop()
    with socket.socket(_family(address), socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex((address, port))
        if code != errno.EINPROGRESS:
            return _state(code)
        await _event(loop.add_writer, loop.remove_writer, probe, seconds)
        code = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            probe.getpeername()
        except OSError:
            return _state(code) if code else "filtered"
        return _state(code)


async def try_udp(address: str, port: int, seconds: float) -> str:
    """How a UDP port answers within some seconds."""
    loop = asyncio.get_running_loop()
    with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect((address, port))
            probe.send(NTP_REQUEST if port == NTP_PORT else b"")
            await _event(loop.add_reader, loop.remove_reader, probe, seconds)
            probe.recv(1)
        except BlockingIOError:
            return "filtered"
        except OSError as error:
            return _state(error.errno)
        return "open"


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _state(code: int | None) -> str:
    return {0: "open", errno.ECONNREFUSED: "refused"}.get(code or 0, "unreachable")


async def _event(add: Callable[..., None], remove: Callable[..., bool], probe: socket.socket, seconds: float) -> None:
    """Return when something happened at the socket, or the time is over.

    Which of both it was is not told: on a busy host nobody may have come to look in time, so the kernel is asked then.
    """
    happened = asyncio.Event()
    add(probe, happened.set)
    try:
        async with asyncio.timeout(seconds):
            await happened.wait()
    except TimeoutError:
        return
    finally:
        remove(probe)


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
