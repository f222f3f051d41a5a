# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis servers and their Sentinels, read and led over mutual TLS for the rolling gate.

All are asked at the same time, each for its own word. A Sentinel names the master by its address, which is a member's.

How the master is changed without the loss of an acknowledged write. SENTINEL FAILOVER alone promotes a replica while
the old master goes on to acknowledge writes, for seconds, and then drops them. So writes are paused first (clients
wait, nothing fails), the replica has all of them, the Sentinels promote it, and the old master is made its replica at
once instead of when the Sentinels correct it, which they do after eight seconds. The pause ends by itself when whoever
asked for it is gone, and is renewed while the failover goes on, because what would be written then would be lost.

Sources: Redis 8.0 documentation (commands/client-pause, commands/sentinel; management/sentinel) and sentinel.c.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ansible_collections.groundplane.onprem.plugins.module_utils.gate import Health
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_redis import (
    MASTER,
    REPLICA,
    RedisState,
    Sentinel,
    SentinelState,
    Server,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import ClientTls, Crew
from ansible_collections.groundplane.onprem.plugins.module_utils.redis_wire import (
    TIMEOUT,
    Connection,
    ProtocolError,
    RedisError,
    Reply,
    UnreachableError,
    parse_info,
    parse_pairs,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PAUSE = 4.0
"""Seconds for which the old master makes writes wait without word from us: then it goes on by itself."""

PATIENCE = 10.0
"""Seconds in which a replica has to be the master once a failover has begun. It takes one or two."""

CATCH_UP = 1.0
"""Seconds of the pause that may pass until the replicas have all of the master's writes."""

POLL = 0.05
"""Seconds between two looks while the master changes."""

OFFSET = "master_repl_offset"


def split(entry: str) -> tuple[str, str]:
    """Member and `address:port` of `member=address:port`.

    Raises:
        RedisError: it is not that.
    """
    name, _, server = entry.partition("=")
    if not name or not server.rpartition(":")[2].isdigit():
        raise RedisError(f"{entry} is no member=address:port")
    return name, server


class RedisCluster:
    """A kept connection to each server and each Sentinel."""

    title: ClassVar[str] = "Redis"
    state: ClassVar[type[RedisState]] = RedisState

    def __init__(
        self,
        name: str,
        places: Mapping[str, Sequence[str]],
        login: tuple[str, str],
        tls: ClientTls,
        timeout: float = TIMEOUT,
    ) -> None:
        """Connect nothing yet.

        Args:
            name: of the site's Redis, for messages.
            places: `servers` and `sentinels`, each a list of `member=address:port`.
            login: user and password, good for both.
            tls: our certificate and whom we trust.
            timeout: seconds for an answer.

        Raises:
            HttpsError: the certificate files cannot be read.
            RedisError: a member has no server or no Sentinel, or there is none at all.
        """
        self.name, self._login, self._timeout = name, login, timeout
        self._servers = dict(map(split, places.get("servers") or ()))
        self._sentinels = dict(map(split, places.get("sentinels") or ()))
        if not self._servers:
            raise RedisError(f"{self.title} {name} has no servers to ask")
        alone = sorted(set(self._servers) ^ set(self._sentinels))
        if alone:
            raise RedisError(f"{self.title} {name}: {', '.join(alone)} needs both a server and a Sentinel")
        self._members = {server: member for member, server in self._servers.items()}
        self._context = tls.context()
        self._kept: dict[str, Connection] = {}
        self._crew = Crew(2 * len(self._servers))

    # --- asking ---

    def ask(self, server: str, *words: str | int) -> Reply:
        """The answer of one server, over the kept connection if it still stands.

        Raises:
            RedisError: there is none.
        """
        kept = self._kept.pop(server, None)
        if kept is not None:
            try:
                return self._through(server, kept, *words)
            except UnreachableError as error:
                # It may have been restarted, or have ended an idle connection; one that is silent stays so.
                if error.silent:
                    raise
        fresh = Connection(server, self._context, self._timeout)
        try:
            fresh.login(*self._login)
        except RedisError:
            fresh.close()
            raise
        return self._through(server, fresh, *words)

    def _through(self, server: str, connection: Connection, *words: str | int) -> Reply:
        try:
            answer = connection.ask(*words)
        except (UnreachableError, ProtocolError):
            connection.close()
            raise
        except RedisError:
            self._kept[server] = connection
            raise
        self._kept[server] = connection
        return answer

    def _info(self, server: str) -> dict[str, str]:
        answer = self.ask(server, "INFO", "replication", "persistence")
        return parse_info(str(answer))

    # --- reading ---

    def read(self, _member: str = "") -> RedisState:
        """All as they are now; who does not answer is a fact about it.

        Raises:
            RedisError: a server answers and refuses to tell.
        """
        asked: list[Callable[[], Any]] = [
            *(lambda server=server: self._server(server) for server in self._servers.values()),
            *(lambda server=server: self._sentinel(server) for server in self._sentinels.values()),
        ]
        told = self._crew.map(lambda ask: ask(), asked)
        half = len(self._servers)
        servers = dict(zip(self._servers, told[:half], strict=True))
        sentinels = dict(zip(self._sentinels, told[half:], strict=True))
        return self.state(self.name, parse_servers(servers, sentinels, self._members))

    def _server(self, server: str) -> dict[str, str] | UnreachableError:
        try:
            said = self._info(server)
            said |= parse_pairs(self.ask(server, "CONFIG", "GET", "min-replicas-to-write"), server)
        except UnreachableError as error:
            return error
        return said

    def _sentinel(self, server: str) -> Sentinel:
        try:
            watched = self.ask(server, "SENTINEL", "MASTERS")
            replicas = self.ask(server, "SENTINEL", "REPLICAS", _masters(watched, server)["name"])
            told = parse_sentinel(watched, replicas, server, self._members)
            return tilted(told, parse_info(str(self.ask(server, "INFO", "sentinel"))))
        except UnreachableError as error:
            health = Health.DOWN if error.refused else Health.UNKNOWN
            return Sentinel(health, cause=str(error))
        except RedisError as error:
            return Sentinel(Health.FAILING, cause=str(error))

    # --- leading ---

    def move_leader(
        self,
        state: RedisState,
        target: str,  # noqa: ARG002 - Sentinel chooses
        timeout: float,
        *,
        named: bool = False,
    ) -> tuple[float, str]:
        """Let a replica be the master.

        Args:
            state: as read a moment ago.
            target: who is expected to be it.
            timeout: seconds until all Sentinels have to agree on it.
            named: whether it has to be this one, which Sentinel does not offer.

        Returns:
            Seconds in which no write was taken, and who is the master.

        Raises:
            RedisError: it was refused, or nobody else is the master in time; the old one then still is.
        """
        former = state.leader
        if former is None or named:
            raise RedisError(f"{self.title} {self.name} cannot hand over to a replica of somebody's choice")
        old = self._servers[former.name]
        others = {name: server for name, server in self._servers.items() if name != former.name}
        began = time.monotonic()
        self._pause(old)
        try:
            self._await_copy(former.name, others, began + CATCH_UP)
            self._fail_over(former.name)
            new = self._await_master(former.name, others)
            host, _, port = others[new].rpartition(":")
            self.ask(old, "REPLICAOF", host.strip("[]"), port)
            gap = time.monotonic() - began
            # Who is connected to the old master comes back by the address of the new one.
            self.ask(old, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        finally:
            with suppress(RedisError):  # it ends by itself, too
                self.ask(old, "CLIENT", "UNPAUSE")
        while time.monotonic() - began < timeout:
            now = self.read().leader
            if now is not None and now.name == new:
                return gap, new
            time.sleep(POLL)
        raise RedisError(f"{self.title} {self.name}: its Sentinels do not agree on {new} within {timeout:g} s")

    def _pause(self, server: str) -> None:
        self.ask(server, "CLIENT", "PAUSE", int(PAUSE * 1000), "WRITE")

    def _await_copy(self, former: str, others: Mapping[str, str], deadline: float) -> None:
        """Wait until each replica that is connected has all that the paused master wrote.

        Raises:
            RedisError: they do not in time.
        """
        while True:
            written = int(self._info(self._servers[former])[OFFSET])
            had = {name: self._info(server).get("slave_repl_offset", "-1") for name, server in others.items()}
            late = sorted(name for name, offset in had.items() if int(offset) < written)
            if not late:
                return
            if time.monotonic() >= deadline:
                raise RedisError(
                    f"{self.title} {self.name}: {', '.join(late)} has not got all that {former} wrote "
                    f"within {CATCH_UP:g} s"
                )
            time.sleep(POLL)

    def _fail_over(self, former: str) -> None:
        """Ask a Sentinel for a failover, one of another host first.

        Raises:
            RedisError: none begins one.
        """
        refusals = []
        for name in sorted(self._sentinels, key=lambda name: (name == former, name)):
            server = self._sentinels[name]
            try:
                watched = _masters(self.ask(server, "SENTINEL", "MASTERS"), server)
                self.ask(server, "SENTINEL", "FAILOVER", watched["name"])
            except RedisError as error:
                refusals.append(str(error))
            else:
                return
        raise RedisError(f"{self.title} {self.name}: no Sentinel begins a failover: {'; '.join(refusals)}")

    def _await_master(self, former: str, others: Mapping[str, str]) -> str:
        """The member that has become the master; until then the former one keeps writes waiting.

        Raises:
            RedisError: none has in time.
        """
        began = renewed = time.monotonic()
        while time.monotonic() - began < PATIENCE:
            for name, server in others.items():
                if self._info(server).get("role") == MASTER:
                    return name
            if time.monotonic() - renewed > PAUSE / 4:
                renewed = time.monotonic()
                self._pause(self._servers[former])
            time.sleep(POLL)
        raise RedisError(
            f"{self.title} {self.name}: a failover was begun, and no replica of {former} became the master within "
            f"{PATIENCE:g} s: see the logs of redis-sentinel.service"
        )


class RedisSentinels(RedisCluster):
    """The same, for the gate in front of a Sentinel."""

    title = "Redis Sentinel"
    state = SentinelState

    def move_leader(self, state: RedisState, target: str, timeout: float, *, named: bool = False) -> tuple[float, str]:  # noqa: ARG002 - the gate's interface
        """Refuse: no verdict asks for it.

        Raises:
            RedisError: always.
        """
        raise RedisError(f"{self.title} {self.name} has no leader to move")


# --- what answers mean ---


def parse_servers(
    servers: Mapping[str, Mapping[str, str] | UnreachableError],
    sentinels: Mapping[str, Sentinel],
    members: Mapping[str, str],
) -> tuple[Server, ...]:
    """Join each server's own word with that of the Sentinel beside it.

    Args:
        servers: member to what INFO and CONFIG GET said, or why nothing did.
        sentinels: member to its Sentinel.
        members: `address:port` of each server, to its member.
    """
    offsets = [int(said[OFFSET]) for said in servers.values() if _role(said) == MASTER and OFFSET in said]  # type: ignore[operator, index]
    newest = max(offsets, default=None)
    found = []
    for name, said in servers.items():
        sentinel = sentinels.get(name, Sentinel())
        if isinstance(said, UnreachableError):
            health = Health.DOWN if said.refused else Health.UNKNOWN
            found.append(Server(name, health, sentinel=sentinel, cause=str(said)))
            continue
        loading = said.get("loading", "0") != "0"
        replica = _role(said) == REPLICA
        where = _joined(said.get("master_host", ""), said.get("master_port", "")) if replica else ""
        syncing = said.get("master_sync_in_progress", "0") != "0"
        offset = said.get("slave_repl_offset")
        known = replica and newest is not None and offset is not None
        found.append(
            Server(
                name,
                Health.FAILING if loading else Health.SERVING,
                _role(said),
                follows=members.get(where, where),
                linked=replica and said.get("master_link_status") == "up" and not syncing,
                behind=max(0, (newest or 0) - int(offset or 0)) if known else None,
                priority=int(said.get("slave_priority", "100")),
                minimum=int(said.get("min-replicas-to-write", "0")),
                sentinel=sentinel,
                cause="it is loading its data" if loading else "",
            )
        )
    return tuple(found)


def _role(said: Mapping[str, str] | UnreachableError) -> str:
    """The role in today's words."""
    role = "" if isinstance(said, UnreachableError) else said.get("role", "")
    return REPLICA if role == "slave" else role


def _joined(host: str, port: str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_sentinel(reply: Reply, replicas: Reply, server: str, members: Mapping[str, str]) -> Sentinel:
    """What answers of SENTINEL MASTERS and SENTINEL REPLICAS say.

    Args:
        reply: the first answer.
        replicas: the second one.
        server: who gave it.
        members: `address:port` of each Redis server, to its member.

    Raises:
        RedisError: it does not watch exactly one master.
    """
    watched = _masters(reply, server)
    where = _joined(watched.get("ip", ""), watched.get("port", ""))
    flags = frozenset(watched.get("flags", "").split(",")) - {MASTER, ""}
    others, epoch = (int(watched.get(key, "0")) for key in ("num-other-sentinels", "config-epoch"))
    rows = [parse_pairs(row, server) for row in replicas] if isinstance(replicas, list) else []
    fit = frozenset(_named(row, members) for row in rows if _promotable(row))
    return Sentinel(Health.SERVING, members.get(where, where), others, epoch, flags, fit)


def tilted(sentinel: Sentinel, info: Mapping[str, str]) -> Sentinel:
    """The same, unless it is in TILT: it answers, and neither judges a master nor promotes anybody for half a minute.

    A Sentinel goes into it when two seconds passed between two of its ticks, which come ten times a second.

    Args:
        sentinel: what it answered.
        info: its INFO.
    """
    if info.get("sentinel_tilt", "0") == "0":
        return sentinel
    cause = "in TILT for 30 s, as it or its host stood still for more than 2 s"
    return replace(sentinel, health=Health.FAILING, cause=cause)


def _named(row: Mapping[str, str], members: Mapping[str, str]) -> str:
    where = _joined(row.get("ip", ""), row.get("port", ""))
    return members.get(where, where)


def _promotable(row: Mapping[str, str]) -> bool:
    """Whether Sentinel would choose it (sentinelSelectSlave)."""
    well = row.get("flags") == "slave" and row.get("master-link-status") == "ok"
    return well and row.get("slave-priority", "0") != "0"


def _masters(reply: Reply, server: str) -> dict[str, str]:
    rows = reply if isinstance(reply, list) else []
    if len(rows) != 1:
        raise RedisError(f"{server}: watches {len(rows)} masters instead of one")
    return parse_pairs(rows[0], server)
