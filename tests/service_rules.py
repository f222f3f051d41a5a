# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the rules by which a node's kernel translates addresses of services are those that the cluster knows."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tests.kubernetes import Cluster, Plain

Endpoints = dict[str, set[str]]
"""`namespace/service/protocol/port name` to `address/port` of each endpoint."""

CHAIN = re.compile(r"\tchain service-[A-Z0-9]+-(?P<service>\S+) \{\n(?P<rules>.*?)\n\t\}", re.DOTALL)
ADDRESSES = re.compile(r"\tmap service-ips \{\n.*?\n\t\}", re.DOTALL)
LED_TO = re.compile(r": goto service-[A-Z0-9]+-([^\s,]+)")
ENDPOINT = re.compile(r"__([0-9.]+/\d+)")


def declared(slices: list[Plain]) -> Endpoints:
    """The endpoints that are ready, by the cluster's endpoint slices."""
    found: Endpoints = {}
    for one in slices:
        service = f"{one['metadata']['namespace']}/{one['metadata']['labels'].get('kubernetes.io/service-name')}"
        for port in one.get("ports") or []:
            ready = [each for each in one.get("endpoints") or [] if each.get("conditions", {}).get("ready")]
            key = f"{service}/{port['protocol'].lower()}/{port.get('name') or ''}"
            addresses = {f"{address}/{port['port']}" for each in ready for address in each["addresses"]}
            found[key] = found.get(key, set()) | addresses
    return {service: addresses for service, addresses in found.items() if addresses}


def written(table: str) -> Endpoints:
    """The endpoints that the table of kube-proxy leads to, as `nft list table ip kube-proxy` shows it.

    A service has a chain, and its address an entry in a map that leads there. Without that entry it leads nowhere.
    """
    addresses = ADDRESSES.search(table)
    reached = set(LED_TO.findall(addresses[0])) if addresses else set()
    return {
        match["service"]: set(ENDPOINT.findall(match["rules"])) if match["service"] in reached else set()
        for match in CHAIN.finditer(table)
    }


def wrong(cluster: Cluster, nodes: list[str]) -> list[str]:
    """What nodes' rules have otherwise than the cluster; a service without a rule of its own is headless."""
    want = declared(cluster.get("endpointslices", "-A")["items"])
    rules = {node: written(cluster.lab.out(node, "nft list table ip kube-proxy")) for node in nodes}
    return [
        f"{node}: {service} leads to {_listed(have[service])}, and is at {_listed(want[service])}"
        for node, have in rules.items()
        for service in sorted(want.keys() & have.keys())
        if want[service] != have[service]
    ]


def _listed(addresses: set[str]) -> str:
    return ", ".join(sorted(addresses)) or "nobody"


@dataclass
class RulesWitness:
    """Looks every so often, while entered, and keeps what stays wrong from one look to the next.

    Attributes:
        cluster: where.
        nodes: whose rules.
        pause: seconds between two looks.
        stale: what was wrong twice in a row, with the time.
        looks: how often it could look; an API that does not answer cannot be asked.
    """

    cluster: Cluster
    nodes: list[str]
    pause: float = 30.0
    stale: list[str] = field(default_factory=list)
    looks: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Begin."""
        self._thread = threading.Thread(target=self._watch, name="rules", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(60)

    def _watch(self) -> None:
        before: set[str] = set()
        while not self._over.wait(self.pause):
            try:
                now = set(wrong(self.cluster, self.nodes))
            except (AssertionError, ValueError, OSError, subprocess.SubprocessError):
                continue
            self.looks += 1
            self.stale += [f"{time.strftime('%H:%M:%S', time.gmtime())} {line}" for line in sorted(now & before)]
            before = now
