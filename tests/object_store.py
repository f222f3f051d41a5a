# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's object store as its tests see it: the collection's module for buckets, its gate for waiting.

The lab has it once its inventory has hosts in the group `object_store`, and draws its secret: `object_store_root` in
the lab's directory.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.lab import Lab

PORT = 9000
CA = "/etc/groundplane/pki/ca.crt"
UNIT = "object_store.service"
ASK = f"""
import http.client, socket, ssl, sys
name, address, port, path, scheme = sys.argv[1:]
try:
    caller = http.client.HTTPConnection(name, int(port), timeout=10)
    caller.sock = socket.create_connection((address, int(port)), 10)
    if scheme == "https":
        caller.sock = ssl.create_default_context(cafile="{CA}").wrap_socket(caller.sock, server_hostname=name)
    caller.request("GET", path)
    print(caller.getresponse().status)
except (OSError, http.client.HTTPException) as error:
    print("no answer:", error)
"""
"""Asks one address under a name; hosts have Python and no curl."""


@dataclass(frozen=True)
class ObjectStore:
    """The servers of the lab."""

    lab: Lab

    @property
    def hosts(self) -> list[str]:
        """Its members."""
        return self.lab.groups["object_store"]

    @property
    def domain(self) -> str:
        """Of the site."""
        return str(self.lab.hostvars[self.hosts[0]]["site_domain"])

    @property
    def user(self) -> str:
        """Who may do everything."""
        return str(self.lab.value(self.hosts[0], "object_store", "object_store_root_user"))

    @property
    def password(self) -> str:
        """That user's secret."""
        return self.lab.secret("object_store_root")

    def drives(self, host: str) -> list[str]:
        """The directories of its drives."""
        return list(self.lab.value(host, "object_store", "object_store_drives"))

    def resources(self, **declared: Any) -> dict[str, Any]:
        """Declare buckets, policies or users, and give what the module answered."""
        host = self.hosts[0]
        arguments = {
            "servers": [f"https://{one}.{self.domain}:{PORT}" for one in self.hosts],
            "access_key": self.user,
            "secret_key": self.password,
            **declared,
        }
        answer = self.lab.module(host, "groundplane.onprem.object_store_resources", arguments)[host]
        assert not answer.get("failed"), answer["msg"]
        return answer

    def status(self, host: str, path: str, *, scheme: str = "https") -> str:
        """The status of HTTP of an unsigned request to a server, asked on its host; words when there is no answer."""
        name = f"{host}.{self.domain}"
        return self.ask(host, name, path, scheme=scheme)

    def ask(self, client: str, name: str, path: str, *, address: str = "", scheme: str = "https") -> str:
        """The same of any server.

        Args:
            client: host that asks.
            name: whom it asks, and whose certificate that must be.
            path: what for.
            address: where that is; as its host resolves the name without it.
            scheme: `https`, or `http` in the clear.
        """
        command = shlex.join(["python3", "-", name, address or name, str(PORT), path, scheme])
        return self.lab.run(client, command, stdin=ASK).stdout.strip()

    def wait_until_sound(self, seconds: int = 240) -> float:
        """Wait until each server serves and may leave, and give the seconds that it took."""
        start = time.monotonic()
        arguments: dict[str, Any] = {"engine": "object_store", "action": "none", "timeout": seconds}
        answers = self.lab.module("object_store", "groundplane.onprem.gate", arguments, timeout=seconds + 60)
        assert not [answer["msg"] for answer in answers.values() if answer.get("failed")]
        arguments = {"engine": "object_store", "action": "check"}
        while True:
            answers = self.lab.module("object_store", "groundplane.onprem.gate", arguments)
            if all(answer.get("allowed") for answer in answers.values()):
                return time.monotonic() - start
            reasons = [answer.get("reason") or answer.get("msg") for answer in answers.values()]
            assert time.monotonic() < start + seconds, reasons
            time.sleep(1)
