# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real client of Redis, for drills: it sets a key of its own every 50 ms through the virtual address.

The host that is asked to runs this file after `drill.py`: what runs there needs only the standard library.
"""

from __future__ import annotations

import socket
import ssl
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tests.faults.drill import ACTIONS, HostClient, HostProbe

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.drill import Attempt, Outcome
    from tests.redis import Redis

CA = "/etc/groundplane/pki/ca.crt"
TLS = "/etc/groundplane/pki/host"
PATIENCE = 2.0
"""Seconds that the writer gives each step: to connect, and to be acknowledged."""


def redis_set(address: str, name: str, prefix: str) -> Callable[[int], None]:
    """Set keys on one connection; a new one after an error.

    Reads the password of `app` from a line of standard input.

    Args:
        address: where.
        name: what the certificate must be for.
        prefix: of the keys.
    """
    password = sys.stdin.readline().strip()
    context = ssl.create_default_context(cafile=CA)
    context.load_cert_chain(f"{TLS}.crt", f"{TLS}.key")
    sessions: list[tuple[ssl.SSLSocket, BinaryIO]] = []

    def ask(line: str) -> None:
        sessions[0][0].sendall(f"{line}\r\n".encode())
        said = sessions[0][1].readline()
        if said != b"+OK\r\n":
            raise ConnectionError(f"{said!r}")

    def write(turn: int) -> None:
        try:
            if not sessions:
                plain = socket.create_connection((address, 6379), PATIENCE)
                wrapped = context.wrap_socket(plain, server_hostname=name)
                sessions.append((wrapped, wrapped.makefile("rb")))
                ask(f"AUTH app {password}")
            ask(f"SET {prefix}{turn} {turn}")
        except OSError:
            while sessions:
                connection, stream = sessions.pop()
                stream.close()
                connection.close()
            raise

    return write


ACTIONS["redis_set"] = redis_set


class RedisWriter(HostClient):
    """The client, on a host that has a leg on the network of the virtual address."""

    SAYS = "keys are acknowledged"

    def __init__(self, redis: Redis, host: str) -> None:
        """Prepare a run of its own."""
        self.prefix = f"drill:{uuid.uuid4().hex}:"
        self._redis = redis
        name = f"redis.redis.{redis.lab.hostvars[host]['site_domain']}"
        self._probe = HostProbe(
            redis.lab, host, "redis_set", redis.lab.vip(), name, self.prefix, interval=0.05, prefix=["sudo", "-n"],
            program=Path(__file__), secret=f"{redis.password('app')}\n",
        )  # fmt: skip

    def there(self) -> set[int]:
        """The numbers of the keys that the master has."""
        return {int(key.removeprefix(self.prefix)) for key in self._redis.keys(f"{self.prefix}*")}

    def outcome(self) -> Outcome:
        """Read all back from the master."""
        return self.record.outcome(self.there())

    def lost(self) -> list[Attempt]:
        """The writes that were acknowledged and are not there."""
        there = self.there()
        return [one for one in self.record.acknowledged if one.id not in there]
