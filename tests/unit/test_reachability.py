# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a port answered is found out, also by a host that is too busy to look in time."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

import pytest
from ansible_collections.groundplane.onprem.plugins.modules.reachability import measure, try_tcp, try_udp

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 0.2
BUSY = 0.6

Try = Callable[[str, int, float], Coroutine[None, None, str]]


def answer(attempt: Try, port: int, *, busy: bool) -> str:
    """What a try says, on a host that has no time for it from the moment it has begun until it is over."""

    async def look() -> str:
        if busy:
            asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(time.sleep, BUSY))
        return await attempt("127.0.0.1", port, SECONDS)

    return asyncio.run(look())


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def answering() -> Iterator[int]:
    """A UDP service that answers once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            server.sendto(b"here", server.recvfrom(64)[1])

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.fixture
def silent() -> Iterator[int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        yield server.getsockname()[1]


def unused(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.parametrize("busy", [False, True])
def test_an_open_port_is_open(listening: int, busy: bool) -> None:
    assert answer(try_tcp, listening, busy=busy) == "open"


@pytest.mark.parametrize("busy", [False, True])
def test_a_port_that_nobody_listens_at_refuses(busy: bool) -> None:
    assert answer(try_tcp, unused(socket.SOCK_STREAM), busy=busy) == "refused"
    assert answer(try_udp, unused(socket.SOCK_DGRAM), busy=busy) == "refused"


@pytest.mark.parametrize("busy", [False, True])
def test_a_service_that_answers_a_datagram_is_open(answering: int, busy: bool) -> None:
    assert answer(try_udp, answering, busy=busy) == "open"


@pytest.mark.parametrize("busy", [False, True])
def test_silence_is_a_filter(silent: int, busy: bool) -> None:
    assert answer(try_udp, silent, busy=busy) == "filtered"


def test_own_addresses_are_not_tried() -> None:
    assert asyncio.run(measure([("tcp", "127.0.0.1", 1)], SECONDS, 1)) == [
        ["tcp", "127.0.0.1", "127.0.0.1", 1, "local"]
    ]


def test_an_address_without_a_route_is_unreachable() -> None:
    [[*_, state]] = asyncio.run(measure([("tcp", "255.255.255.255", 1)], SECONDS, 1))
    assert state == "unreachable"
