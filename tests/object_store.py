# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's object store as its tests see it: the collection's module for buckets, its gate for waiting.

The lab has it once its inventory has hosts in the group `object_store`, and draws its secret: `object_store_root` in
the lab's directory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from tests.lab import ROOT

if TYPE_CHECKING:
    from tests.lab import Lab

PORT = 9000
CA = "/etc/groundplane/pki/ca.crt"
UNIT = "object_store.service"


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
        defaults = yaml.safe_load((ROOT / "roles/object_store/defaults/main.yml").read_text())
        return str(self.lab.hostvars[self.hosts[0]].get("object_store_root_user", defaults["object_store_root_user"]))

    @property
    def password(self) -> str:
        """That user's secret."""
        return (self.lab.directory / "secrets" / "object_store_root").read_text().split()[0]

    def drives(self, host: str) -> list[str]:
        """The directories of its drives."""
        defaults = yaml.safe_load((ROOT / "roles/object_store/defaults/main.yml").read_text())
        return list(self.lab.hostvars[host].get("object_store_drives", defaults["object_store_drives"]))

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

    def status(self, host: str, path: str) -> str:
        """The status of HTTP of an unsigned request to a server, asked on its host; `000` when there is no answer."""
        url = f"https://{host}.{self.domain}:{PORT}{path}"
        command = f"curl --silent --max-time 10 --output /dev/null --write-out '%{{http_code}}' --cacert {CA} '{url}'"
        return self.lab.run(host, command, check=False).stdout.strip()

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
