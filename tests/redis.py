# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's Redis as its tests see it: asked on its own hosts, with the tool that comes with it.

The lab has it once its inventory has hosts in the group `redis`, a user `app` that may write all keys, and draws its
secrets: `redis_app` and `redis_admin` in the lab's directory.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.faults.drill import wait_for

if TYPE_CHECKING:
    import subprocess

    from tests.lab import Lab

SERVER, SENTINEL = 6379, 26379
CA = "/etc/groundplane/pki/ca.crt"
TLS = "/etc/redis/tls/redis"


@dataclass(frozen=True)
class Redis:
    """Servers and Sentinels of the lab."""

    lab: Lab

    @property
    def hosts(self) -> list[str]:
        """Its members."""
        return self.lab.groups["redis"]

    def password(self, user: str) -> str:
        """Of a user that the lab has drawn one for; whatever one says for `probe`."""
        return user if user == "probe" else self.lab.secret(f"redis_{user}")

    def tool(
        self, host: str, user: str, *words: str, port: int = SERVER, certificate: str = TLS
    ) -> subprocess.CompletedProcess[str]:
        """What `redis-cli` says on a host of its own server or Sentinel."""
        command = shlex.join(
            [
                *("redis-cli", "--no-auth-warning", "--user", user, "--tls", "--cacert", CA),
                *("--cert", f"{certificate}.crt", "--key", f"{certificate}.key"),
                *("-h", self.lab.address(host), "-p", str(port), *words),
            ]
        )
        # By standard input and the environment: an argument would be there for all of the host to see.
        shell = f"read -r REDISCLI_AUTH && export REDISCLI_AUTH && exec timeout 10 {command}"
        return self.lab.run(host, shell, stdin=f"{self.password(user)}\n", check=False)

    def ask(self, host: str, user: str, *words: str, port: int = SERVER) -> list[str]:
        """The lines of an answer; none when there is no answer."""
        return self.tool(host, user, *words, port=port).stdout.splitlines()

    def role(self, host: str) -> str:
        """What a server says that it is: `master`, `slave`, or nothing."""
        return next(iter(self.ask(host, "probe", "ROLE")), "")

    def master(self, *, besides: str = "") -> str:
        """The one that says it is the master, with one left out of account."""

        def found() -> str:
            masters = [host for host in self.hosts if host != besides and self.role(host) == "master"]
            return masters[0] if len(masters) == 1 else ""

        host: str = wait_for(found, 60, "a master")
        return host

    def others(self, host: str) -> list[str]:
        """The members but one."""
        return [one for one in self.hosts if one != host]

    def keys(self, pattern: str) -> set[str]:
        """Keys that the master has."""
        return set(self.ask(self.master(), "app", "--scan", "--pattern", pattern))

    def wait_until_sound(self, seconds: int = 180) -> float:
        """Wait until the gate finds all members as they should be, and give the seconds that it took."""
        start = time.monotonic()
        for engine in ("redis_sentinel", "redis"):
            arguments = {"engine": engine, "action": "none", "timeout": seconds}
            answers = self.lab.module("redis", "groundplane.onprem.gate", arguments, timeout=seconds + 60)
            assert not [answer["msg"] for answer in answers.values() if answer.get("failed")]
        return time.monotonic() - start
