# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers of a MinIO, asked for their health over HTTPS. No secret is needed for that.

Source: MinIO documentation, "Healthcheck API".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.gate import Health
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_object_store import Server, ServersState
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import (
    TIMEOUT,
    Clients,
    ClientTls,
    Crew,
    HttpsError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import Answer

CLUSTER = "/minio/health/cluster"
MAINTENANCE = "/minio/health/cluster?maintenance=true"
OK, NOT_NOW, NO_QUORUM = 200, 412, 503


class ObjectStoreError(Exception):
    """A store has no servers that could be asked, or answers what is no answer."""


class ObjectStoreServers:
    """What the gate reads a store by."""

    def __init__(
        self, cluster: str, servers: Sequence[str], tls: ClientTls, member_of: Callable[[str], str] | None = None
    ) -> None:
        """Ask nothing yet.

        Args:
            cluster: the name used in messages.
            servers: `host:port` of all servers.
            tls: whom we trust, and who we are.
            member_of: the member of a `host:port`; left out, the first label of the host.

        Raises:
            ObjectStoreError: there are no servers.
            HttpsError: the certificate files cannot be read.
        """
        if not servers:
            raise ObjectStoreError(f"nobody says where the servers of object store {cluster} are: name them in servers")
        self.cluster = cluster
        self._urls = {(member_of or _first_label)(server): f"https://{server}" for server in servers}
        self._clients = Clients(tls, TIMEOUT)
        self._crew = Crew(len(self._urls))

    def read(self, member: str = "") -> ServersState:
        """All servers as they are now.

        Args:
            member: is asked whether it could be spared, too.

        Raises:
            ObjectStoreError: a server answers what is none of its answers.
        """

        def look(name: str) -> Server:
            return self._look(name, self._urls[name], asked=name == member)

        return ServersState(self.cluster, tuple(self._crew.map(look, self._urls)))

    def _look(self, name: str, url: str, *, asked: bool) -> Server:
        client = self._clients[url]
        try:
            said = health_of(url, client.request("GET", CLUSTER))
            if said is Health.FAILING:
                return Server(name, said, cause="it counts no write quorum, or has just begun")
            spare = spare_of(url, client.request("GET", MAINTENANCE)) if asked else None
        except HttpsError as error:
            return Server(name, Health.DOWN if error.refused else Health.UNKNOWN, cause=str(error))
        return Server(name, said, spare)

    def move_leader(self, _state: Any, _target: str, _timeout: float, *, named: bool = True) -> tuple[float, str]:  # noqa: ARG002 - the gate's interface
        """Refuse: nobody leads."""
        raise ObjectStoreError(f"object store {self.cluster} has no leader to move")


def _first_label(server: str) -> str:
    return server.partition(":")[0].partition(".")[0]


def health_of(url: str, answer: Answer) -> Health:
    """What a server's answer says.

    Args:
        url: of the server, for the message.
        answer: to `CLUSTER`.

    Raises:
        ObjectStoreError: it is none.
    """
    if answer.status == OK:
        return Health.SERVING
    if answer.status == NO_QUORUM:
        return Health.FAILING
    raise ObjectStoreError(f"{url}{CLUSTER} answers {answer.status}, as no MinIO does: see what listens there")


def spare_of(url: str, answer: Answer) -> bool:
    """Whether a server could be spared.

    Args:
        url: of the server, for the message.
        answer: to `MAINTENANCE`.

    Raises:
        ObjectStoreError: it is none.
    """
    if answer.status == OK:
        return True
    # 503: it stopped counting a quorum between two questions.
    if answer.status in (NOT_NOW, NO_QUORUM):
        return False
    raise ObjectStoreError(f"{url}{MAINTENANCE} answers {answer.status}, as no MinIO does: see what listens there")
