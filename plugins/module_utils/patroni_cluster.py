# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Patroni 4 cluster, read and led through its REST API over HTTPS with a client certificate.

Who leads, who is synchronous and how the cluster is configured is in /cluster and /config, which any member answers
from the DCS. Whether a member runs, streams and how far it is comes from its own /patroni: the copy in the DCS is up to
loop_wait old and outlives a member by ttl (Patroni documentation, rest_api).
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.gate import Health, PatroniMember, PatroniState
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

LEADER_FIRST = frozenset(
    (
        "max_connections",
        "max_prepared_transactions",
        "max_locks_per_transaction",
        "max_wal_senders",
        "max_worker_processes",
    )
)
"""A hot standby has to have at least what its primary has of these (PostgreSQL 17, 26.4.3 Administrator's Overview)."""

MODES = {"quorum": "quorum", "on": "on", "true": "on", "yes": "on"}

RESTART_LIMIT = 30
"""Seconds for which a leader may be down while PostgreSQL restarts in place."""

PROBE = 0.05
"""Seconds between two looks while the gap of a switchover is measured."""


class PatroniError(Exception):
    """Patroni refused, or no member answered."""


class PatroniCluster:
    """A connection to each member's REST API."""

    def __init__(self, name: str, rest: Sequence[str], tls: ClientTls, timeout: float = TIMEOUT) -> None:
        """Connect nothing yet.

        Args:
            name: of the cluster, for messages.
            rest: the REST APIs of all members, `https://host:8008`.
            tls: our certificate and whom we trust.
            timeout: seconds for a request.

        Raises:
            HttpsError: the certificate files cannot be read.
            PatroniError: there is no member.
        """
        if not rest:
            raise PatroniError(f"Patroni cluster {name} has no members to ask")
        self.name = name
        self._clients = Clients(tls, timeout)
        self.rest = sorted({origin(url) for url in rest}, key=is_local)
        self._crew = Crew(len(self.rest) + 1)

    # --- reading ---

    def read(self, member: str = "") -> PatroniState:
        """The cluster as it is now.

        Args:
            member: the name of the member on this host, which Patroni cannot tell when it is down.

        Raises:
            PatroniError: nobody knows the cluster.
        """
        answers = self._answers()
        answering = [url for url, (_health, status, _cause) in answers.items() if status]
        cluster = self.ask("GET", "/cluster", urls=answering or self.rest).json()
        config = self.ask("GET", "/config", urls=answering or self.rest).json()
        here = next((url for url in self.rest if is_local(url)), "")
        return parse_state(self.name, cluster, config, answers, {here: member} if here and member else {})

    def _answers(self) -> dict[str, tuple[Health, dict[str, Any], str]]:
        """Each member's own word, by its REST API."""
        return dict(zip(self.rest, self._crew.map(self._look, self.rest), strict=True))

    def _look(self, url: str) -> tuple[Health, dict[str, Any], str]:
        """One member's own word."""
        try:
            answer = self._clients[url].request("GET", "/patroni")
        except HttpsError as error:
            return Health.DOWN if error.refused else Health.UNKNOWN, {}, str(error)
        status = answer.json()
        if answer.status != OK or not status:
            return Health.UNKNOWN, {}, f"{url}: answered {answer.status}"
        return (Health.SERVING if status.get("state") == "running" else Health.FAILING), status, ""

    def last_seen(self) -> dict[str, int]:
        """When each member last read the store, in seconds since the epoch by its own clock.

        One that runs and does not answer has 0; one whose REST API is closed is left out: it reads when it starts.
        """
        return {
            url: int(status.get("dcs_last_seen", 0))
            for url, (health, status, _cause) in self._answers().items()
            if health is not Health.DOWN
        }

    def scope(self) -> str:
        """The name that the cluster has for Patroni itself.

        Raises:
            PatroniError: nobody answers.
        """
        return str(self.ask("GET", "/cluster").json().get("scope") or self.name)

    # --- asking ---

    def ask(self, method: str, path: str, body: Any = None, urls: Iterable[str] = ()) -> Answer:
        """Ask the first member that answers.

        Raises:
            PatroniError: a definite refusal, or nobody answered.
        """
        causes = []
        for url in urls or self.rest:
            try:
                answer = self._clients[url].request(method, path, body)
            except HttpsError as error:
                causes.append(str(error))
                continue
            if answer.status == OK:
                return answer
            causes.append(f"{url}: {method} {path} answered {answer.status} {answer.text}".rstrip())
            if method != "GET":
                break
        raise PatroniError(f"Patroni cluster {self.name} cannot be asked: {'; '.join(causes)}")

    def command(self, url: str, path: str, body: dict[str, Any], timeout: float) -> str:
        """Tell one member to do something, once.

        Raises:
            PatroniError: it refused or did not answer in time.
        """
        client = self._clients.fresh(url, timeout)
        try:
            answer = client.request("POST", path, body, once=True)
        except HttpsError as error:
            raise PatroniError(f"Patroni cluster {self.name}: {path} of {error}") from error
        finally:
            client.close()
        if answer.status not in (OK, 202):
            raise PatroniError(f"Patroni cluster {self.name}: {url}{path} answered {answer.status}: {answer.text}")
        return answer.text

    # --- acting ---

    def restart_postgres(self, member: PatroniMember, timeout: float) -> None:
        """Let Patroni restart PostgreSQL, in place; a leader that takes longer than `RESTART_LIMIT` loses the lead.

        Raises:
            PatroniError: it did not restart in time.
        """
        # Patroni measures a leader's start by primary_start_timeout, which is made for crashes, unless it is told.
        self.command(member.url, "/restart", {"timeout": RESTART_LIMIT}, timeout)

    def reload(self, member: PatroniMember, timeout: float) -> None:
        """Let Patroni read its files again.

        Raises:
            PatroniError: it refused.
        """
        self.command(member.url, "/reload", {}, timeout)

    def move_leader(self, state: PatroniState, target: str, timeout: float, *, named: bool = True) -> tuple[float, str]:
        """Switch over, and see how long nobody was primary.

        A standby that sees another one named sits still for two seconds before it follows the new leader (Patroni 4.0,
        ha.py, process_unhealthy_cluster); where each write is on two hosts none is acknowledged meanwhile. So Patroni
        is told a name only when it matters: otherwise the standbys, which have everything when a leader has stopped
        cleanly, race for the lock, and who loses follows at once.

        Args:
            state: as read a moment ago.
            target: the member's name.
            timeout: seconds until it has to lead.
            named: whether it has to be this one.

        Returns:
            Seconds between the last look at which the old leader was primary and the first at which the new one was,
            and the new one's name.

        Raises:
            PatroniError: Patroni refused, or nobody else leads in time.
        """
        old, new = state.leader, state.find(target)
        if old is None or new is None:
            raise PatroniError(f"Patroni cluster {self.name} cannot hand over to {target}")
        began = last = time.monotonic()
        request = {"leader": old.name} | ({"candidate": new.name} if named else {})
        heirs = [new] if named else [member for member in state.members if member.url and member != old]
        with ThreadPoolExecutor(max_workers=1) as pool:
            command = pool.submit(self.command, old.url, "/switchover", request, timeout)
            while time.monotonic() - began < timeout:
                looked = time.monotonic()
                leader = next((member.name for member in heirs if self._is_primary(member.url)), None)
                if leader is not None:
                    return time.monotonic() - last, leader
                if self._is_primary(old.url):
                    last = looked
                if command.done() and command.exception() is not None:
                    command.result()  # raises why Patroni refused
                time.sleep(PROBE)
        raise PatroniError(f"Patroni cluster {self.name}: {target} does not lead {timeout:g} s after it was asked to")

    def _is_primary(self, url: str) -> bool:
        try:
            return self._clients[url].request("GET", "/primary").status == OK
        except HttpsError:
            return False


def parse_state(
    cluster: str,
    listed: dict[str, Any],
    config: dict[str, Any],
    answers: dict[str, tuple[Health, dict[str, Any], str]],
    here: dict[str, str],
) -> PatroniState:
    """Join what the DCS says of the cluster with each member's own word.

    Args:
        cluster: name for messages.
        listed: answer of /cluster.
        config: answer of /config.
        answers: for each REST API its health, its answer of /patroni, and what is wrong with it.
        here: REST API of this host to its member's name.
    """
    entries = {str(entry["name"]): entry for entry in listed.get("members", [])}
    by_url = {origin(str(entry["api_url"])): name for name, entry in entries.items() if entry.get("api_url")}
    named = {
        url: str(status.get("patroni", {}).get("name") or by_url.get(url) or here.get(url) or url)
        for url, (_health, status, _cause) in answers.items()
    }
    by_name = {name: url for url, name in named.items()}
    leader = next((name for name, entry in entries.items() if "leader" in str(entry.get("role", ""))), "")
    location = _location(answers.get(by_name.get(leader, ""), (Health.UNKNOWN, {}, ""))[1])
    members = []
    for name in sorted({*entries, *by_name}):
        url = by_name.get(name, "")
        health, status, cause = answers.get(url, (Health.UNKNOWN, {}, "its REST API is not among those to ask"))
        entry = entries.get(name, {})
        if health is Health.SERVING and entry.get("role") == "leader" and status.get("role") == "replica":
            health, cause = Health.FAILING, "holds the leader lock and is not yet primary"
        position = _location(status)
        reasons = status.get("pending_restart_reason") or entry.get("pending_restart_reason") or {}
        tags = status.get("tags") or entry.get("tags") or {}
        members.append(
            PatroniMember(
                name=name,
                health=health,
                leader=name == leader,
                state=str(status.get("state") or entry.get("state") or ""),
                streaming=status.get("replication_state") == "streaming",
                timeline=int(status.get("timeline") or 0),
                lag=None if location is None or position is None else max(0, location - position),
                sync=str(entry.get("role", "")) in ("sync_standby", "quorum_standby"),
                pending_restart=bool(status.get("pending_restart", entry.get("pending_restart", False))),
                lowered=tuple(sorted(key for key, change in reasons.items() if _lowered(key, change))),
                nofailover=bool(tags.get("nofailover", False)),
                url=url,
                cause=cause,
            )
        )
    return PatroniState(
        cluster,
        tuple(members),
        paused=bool(listed.get("pause", False)),
        mode=MODES.get(str(config.get("synchronous_mode", "off")).lower(), "off"),
        wanted=int(config.get("synchronous_node_count", 1)),
        scheduled=str(listed.get("scheduled_switchover", {}).get("at", "")),
    )


def _location(status: dict[str, Any]) -> int | None:
    """Bytes of WAL written (leader) or replayed (standby)."""
    xlog = status.get("xlog", {})
    value = xlog.get("location", xlog.get("replayed_location"))
    return None if value is None else int(value)


def _lowered(parameter: str, change: Any) -> bool:
    if parameter not in LEADER_FIRST or not isinstance(change, dict):
        return False
    try:
        return int(change.get("new_value", 0)) < int(change.get("old_value", 0))
    except (TypeError, ValueError):
        return False
