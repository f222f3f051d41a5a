# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real client of the store, for drills: it puts a key of its own every 50 ms and reads all back.

The host that is asked to runs this file after `drill.py`: what runs there needs only the standard library.
"""

from __future__ import annotations

import http.client
import json
import ssl
import uuid
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.drill import ACTIONS, HostClient, HostProbe

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab import Lab

CA = "/etc/groundplane/pki/ca.crt"
TLS = "/etc/etcd/tls/etcd"
PATIENCE = 1.0
"""Seconds that the writer gives each member before it asks the next."""


def put(prefix: str, *members: str) -> Callable[[int], None]:
    """Put keys over the JSON gateway (etcd, "gRPC gateway"), asking one member until it fails, then the next.

    Args:
        prefix: of the keys.
        members: addresses.
    """
    context = ssl.create_default_context(cafile=CA)
    context.load_cert_chain(f"{TLS}.crt", f"{TLS}.key")
    asked = list(members)
    sessions: list[http.client.HTTPSConnection] = []

    def write(turn: int) -> None:
        body = json.dumps({"key": b64encode(f"{prefix}{turn:08}".encode()).decode(), "value": ""})
        try:
            if not sessions:
                sessions.append(http.client.HTTPSConnection(asked[0], 2379, timeout=PATIENCE, context=context))
            sessions[0].request("POST", "/v3/kv/put", body, {"Content-Type": "application/json"})
            answer = sessions[0].getresponse()
            said = answer.read()
            if answer.status != 200:
                raise ConnectionError(f"{answer.status}: {said!r}")
        except (OSError, http.client.HTTPException):
            while sessions:
                sessions.pop().close()
            asked.append(asked.pop(0))
            raise

    return write


ACTIONS["put"] = put


class EtcdWriter(HostClient):
    """The client, on a member's host."""

    SAYS = "keys are acknowledged"

    def __init__(self, lab: Lab, host: str, members: list[str]) -> None:
        """Prepare a run of its own.

        Args:
            lab: where the hosts are.
            host: where it runs.
            members: addresses, in the order in which they are asked.
        """
        self.prefix = f"/drill/{uuid.uuid4().hex}/"
        self._probe = HostProbe(
            lab, host, "put", self.prefix, *members, interval=0.05, prefix=["sudo", "-n"], program=Path(__file__)
        )

    def lost(self, keys: str) -> int:
        """How many acknowledged keys are not among those that the store lists, one a line."""
        there = set(keys.split())
        return sum(f"{self.prefix}{attempt.id:08}" not in there for attempt in self.record.acknowledged)
