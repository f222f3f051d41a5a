# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An etcd 3.5 cluster, read and led through its JSON gateway over HTTPS with a client certificate.

Numbers of 64 bits travel as text in the gateway's JSON, keys and values as base64 (etcd documentation, dev-guide:
api_grpc_gateway; the paths are those of rpc.swagger.json of 3.5).
"""

from __future__ import annotations

import base64
import time
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.gate import EtcdMember, EtcdState, Health
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import (
    TIMEOUT,
    Answer,
    Clients,
    ClientTls,
    Crew,
    HttpsError,
    is_local,
    origin,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OK = 200

HEALTH = "/health?exclude=NOSPACE&exclude=CORRUPT"
"""A linearizable read; the alarms are asked for by name, because a quorum works in spite of them."""

UNAVAILABLE = 14
"""gRPC code: this member cannot answer now, another may."""


class EtcdError(Exception):
    """etcd answered with an error, or no endpoint answered.

    Attributes:
        code: gRPC code, 0 when nobody answered.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        """Keep the gRPC code."""
        super().__init__(message)
        self.code = code


def encode(text: str) -> str:
    """A key or value as the gateway wants it."""
    return base64.b64encode(text.encode()).decode()


def decode(text: str) -> str:
    """A key or value as the gateway gave it."""
    return base64.b64decode(text).decode("utf-8", "replace")


class EtcdCluster:
    """A connection to each endpoint of a cluster."""

    def __init__(self, name: str, endpoints: Sequence[str], tls: ClientTls, timeout: float = TIMEOUT) -> None:
        """Connect nothing yet.

        Args:
            name: of the cluster, for messages.
            endpoints: client URLs, `https://host:2379`.
            tls: our certificate and whom we trust.
            timeout: seconds for a request.

        Raises:
            HttpsError: the certificate files cannot be read.
            EtcdError: there is no endpoint.
        """
        if not endpoints:
            raise EtcdError(f"etcd cluster {name} has no endpoints to ask")
        self.name = name
        self._clients = Clients(tls, timeout)
        # This host's own member goes last: it is the one that is about to be restarted.
        self.endpoints = sorted({origin(url) for url in endpoints}, key=is_local)
        self._crew = Crew(2 * len(self.endpoints))

    # --- reading ---

    def read(self, _member: str = "") -> EtcdState:
        """The cluster as it is now.

        Raises:
            EtcdError: nobody gave a member list.
        """
        answers = dict(zip(self.endpoints, self._crew.map(self._look, self.endpoints), strict=True))
        serving = [url for url, (health, _status, _cause) in answers.items() if health is Health.SERVING]
        alive = [url for url, (_health, status, _cause) in answers.items() if status]
        listed = self.call("/v3/cluster/member/list", {"linearizable": bool(serving)}, serving or alive)
        # Alarms are read through the log, so without a quorum nobody can tell them.
        alarms = self.call("/v3/maintenance/alarm", {"action": "GET"}, serving) if serving else {}
        return parse_state(self.name, listed, alarms, answers)

    def _look(self, url: str) -> tuple[Health, dict[str, Any], str]:
        """One endpoint's own word: health, status, and what is wrong."""
        try:
            answer = self._clients[url].request("POST", "/v3/maintenance/status", {})
        except HttpsError as error:
            return Health.DOWN if error.refused else Health.UNKNOWN, {}, str(error)
        status = answer.json()
        if answer.status != OK:
            return Health.FAILING, {}, _message(answer)
        if not int(status.get("leader", 0)):
            return Health.FAILING, status, "it sees no leader"  # its health would take seconds to say the same
        try:
            health = self._clients[url].request("GET", HEALTH)
        except HttpsError as error:
            return Health.FAILING, status, str(error)
        if health.status == OK and str(health.json().get("health")) == "true":
            return Health.SERVING, status, ""
        return Health.FAILING, status, str(health.json().get("reason") or f"health answered {health.status}")

    # --- asking anybody ---

    def call(self, path: str, body: dict[str, Any], urls: Iterable[str] = ()) -> dict[str, Any]:
        """Ask the first endpoint that can answer.

        Raises:
            EtcdError: a definite refusal, or nobody could answer.
        """
        causes = []
        for url in urls or self.endpoints:
            try:
                answer = self._clients[url].request("POST", path, body)
            except HttpsError as error:
                causes.append(str(error))
                continue
            if answer.status == OK:
                return answer.json()
            code = int(answer.json().get("code") or 0)
            if code != UNAVAILABLE and answer.status < 500:  # noqa: PLR2004 the class of server errors
                raise EtcdError(f"etcd cluster {self.name}: {_message(answer)}", code)
            causes.append(f"{url}: {_message(answer)}")
        raise EtcdError(f"etcd cluster {self.name} cannot be asked: {'; '.join(causes)}")

    # --- leading ---

    def move_leader(
        self,
        state: EtcdState,
        target: str,
        timeout: float,
        *,
        named: bool = True,  # noqa: ARG002 - the gate's interface
    ) -> tuple[float, str]:
        """Let another member lead.

        Args:
            state: as read a moment ago.
            target: the member's name.
            timeout: seconds until it has to lead.
            named: whether it has to be this one; etcd wants a name in any case.

        Returns:
            Seconds from the request until the target led, and the target.

        Raises:
            EtcdError: etcd refused, or the target does not lead in time.
        """
        leader, follower = state.leader, state.find(target)
        if leader is None or follower is None:
            raise EtcdError(f"etcd cluster {self.name} cannot hand over to {target}")
        began = time.monotonic()
        # Only the leader itself takes this request.
        self.call("/v3/maintenance/transfer-leadership", {"targetID": str(follower.id)}, leader.urls)
        while time.monotonic() - began < timeout:
            now = self.read().leader
            if now is not None and now.id == follower.id:
                return time.monotonic() - began, target
            time.sleep(0.1)
        raise EtcdError(f"etcd cluster {self.name}: {target} does not lead {timeout:g} s after it was asked to")


def parse_state(
    cluster: str,
    listed: dict[str, Any],
    alarms: dict[str, Any],
    answers: dict[str, tuple[Health, dict[str, Any], str]],
) -> EtcdState:
    """Join the member list with each endpoint's own word.

    Args:
        cluster: name for messages.
        listed: answer of /v3/cluster/member/list.
        alarms: answer of /v3/maintenance/alarm.
        answers: for each endpoint its health, its answer of /v3/maintenance/status, and what is wrong with it.
    """
    ours = str(listed.get("header", {}).get("cluster_id"))
    strangers, by_id = [], {}
    for url, (_health, status, _cause) in answers.items():
        header = status.get("header", {})
        if header.get("cluster_id") not in (None, ours):
            strangers.append(url)
        elif header.get("member_id"):
            by_id[str(header["member_id"])] = url
    members = []
    for member in listed.get("members", []):
        urls = tuple(origin(url) for url in member.get("clientURLs", []))
        url = by_id.get(str(member["ID"])) or next((known for known in urls if known in answers), "")
        health, status, cause = answers.get(url, (Health.UNKNOWN, {}, "none of its client URLs is among the endpoints"))
        members.append(
            EtcdMember(
                id=int(member["ID"]),
                name=str(member.get("name", "")),
                health=health,
                learner=bool(member.get("isLearner", False)),
                leader=int(status.get("leader", 0)),
                applied=int(status.get("raftAppliedIndex", 0)),
                index=int(status.get("raftIndex", 0)),
                urls=(url,) if url else urls,
                cause=cause,
            )
        )
    names = {member.id: member.name for member in members}
    raised = [
        f"{alarm.get('alarm', 'NONE')} of {names.get(int(alarm.get('memberID', 0)), alarm.get('memberID'))}"
        for alarm in alarms.get("alarms", [])
    ]
    return EtcdState(cluster, tuple(members), tuple(raised), tuple(strangers))


def _message(answer: Answer) -> str:
    value = answer.json()
    return str(value.get("message") or value.get("error") or answer.text or f"HTTP status {answer.status}")
