# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The database and its store as drills find them, break them, and leave them."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from tests.faults.drill import wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.lab import Lab

TLS = "/etc/etcd/tls/etcd"
ETCDCTL = f"ETCDCTL_CACERT=/etc/groundplane/pki/ca.crt ETCDCTL_CERT={TLS}.crt ETCDCTL_KEY={TLS}.key"


def members(lab: Lab, host: str) -> list[dict[str, Any]]:
    """The members of the database as Patroni on a host tells; none when it cannot."""
    done = lab.run(host, "timeout 10 patronictl -c /etc/patroni/config.yml list -f json", check=False)
    listed: list[dict[str, Any]] = json.loads(done.stdout) if done.returncode == 0 else []
    return listed


def sound(lab: Lab, host: str) -> bool:
    """Whether all members are there: one leads, the others stream on its timeline and may acknowledge writes."""
    found = members(lab, host)
    leaders = [member for member in found if member["Role"] == "Leader" and member["State"] == "running"]
    standbys = [member for member in found if member["Role"] == "Quorum Standby" and member["State"] == "streaming"]
    return (
        len(leaders) == 1
        and len(standbys) == len(lab.groups["postgres"]) - 1
        and len({member["TL"] for member in found}) == 1
    )


def wait_until_sound(lab: Lab, host: str | None = None, seconds: float = 120) -> float:
    """Wait for that, as one host sees it, and give the seconds that it took."""
    start = time.monotonic()
    wait_for(lambda: sound(lab, host or lab.groups["postgres"][0]), seconds, "every member leads or streams")
    return time.monotonic() - start


def sql(lab: Lab, host: str, text: str, database: str = "postgres") -> str:
    """What the superuser gets over the unix socket of a member."""
    command = f"cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -h /run/postgresql -d {database}"
    return lab.run(host, command, stdin=text).stdout.strip()


def leader(lab: Lab) -> str:
    """The member that leads now."""
    found: str = wait_for(
        lambda: next((m["Member"] for m in members(lab, lab.groups["postgres"][0]) if m["Role"] == "Leader"), None),
        60,
        "a leader",
    )
    return found


def etcdctl(lab: Lab, host: str, arguments: str, hosts: Sequence[str] | None = None) -> str:
    """What etcdctl on a host answers when it asks some members; nothing when it fails."""
    asked = ",".join(f"https://{lab.address(member)}:2379" for member in hosts or lab.groups["etcd"])
    command = f"{ETCDCTL} ETCDCTL_ENDPOINTS={asked} timeout 10 etcdctl {arguments}"
    done = lab.run(host, command, check=False)
    return done.stdout if done.returncode == 0 else ""


def etcd_leader(lab: Lab) -> str | None:
    """The member of the store that leads, when all agree and all are there."""
    answer = etcdctl(lab, lab.groups["etcd"][0], "endpoint status -w json")
    states = [item["Status"] for item in json.loads(answer)] if answer else []
    leaders = {state["leader"] for state in states}
    if len(states) != len(lab.groups["etcd"]) or len(leaders) != 1:
        return None
    names = {member["ID"]: member["name"] for member in _etcd_members(lab)}
    name: str | None = names.get(leaders.pop())
    return name


def _etcd_members(lab: Lab) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(etcdctl(lab, lab.groups["etcd"][0], "member list -w json"))["members"]
    return listed
