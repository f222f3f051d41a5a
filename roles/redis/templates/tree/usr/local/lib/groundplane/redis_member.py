# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts the Redis server or the Sentinel of this host as what it is now, which is not in any file that we manage.

Usage: redis_member.py server|settle|reload|sentinel FILE. FILE is JSON, with the keys of `Member`.

A server is never what it was but what a majority of the Sentinels says, the newest of their words: so a master that
comes back where another was promoted is no master for a moment. Its data are whole once it had caught up, or was the
first master; a mark beside them says so. A server whose data are not whole is never a master, because its replicas
would copy that it has nothing; and never promoted until it has caught up (replica-priority 0). The first master of a
site is the exception, and only while the file `initial` names it and no failover has been.

What Redis and Sentinel write themselves is theirs: the server's file is made anew at each start, and of the Sentinel's
the lines stay that tell of the others and of what it has voted for.

server: starts it, once it is known as what. settle: waits until its data are whole, and makes it fit to be promoted.
reload: it takes users and certificates from disk. sentinel: starts the Sentinel.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from redis_wire import Connection, RedisError, parse_info, parse_pairs  # it lies beside this file

SECONDS = 1.0
"""For one answer of one member."""

PAUSE = 0.5
"""Seconds between two rounds of questions."""

REMINDER = 20
"""Rounds after which it is said again what is waited for."""

PROBE = ("probe", "probe")
"""Who may ask a Sentinel for the master, and a server for its role; any password is right."""

OWN = ("myid", "current-epoch")
OF_THE_MASTER = ("config-epoch", "leader-epoch")
OF_OTHERS = ("known-replica", "known-sentinel")
"""Lines `sentinel WORD ...` that are the Sentinel's own."""


@dataclass(frozen=True)
class Member:
    """What this host is told.

    Attributes:
        cluster: name under which Sentinels watch the master.
        server: `address:port` of this host's server.
        servers: those of all members.
        sentinels: `address:port` of all members' Sentinels.
        own_sentinel: that of this host's.
        quorum: Sentinels that must agree that the master is down.
        priority: the server's replica-priority once its data are whole.
        ca: file with the trust anchor.
        crt: file with the certificate.
        key: file with its key.
        user: who may configure the server.
        password: that user's.
        initial: file that names the first master, where none ever was.
        data: directory of the data.
        runtime: directory for the server's file.
        state: directory for the Sentinel's file.
        server_config: what is declared for the server.
        sentinel_config: what is declared for the Sentinel.
        server_program: what is started.
        sentinel_program: what is started.
    """

    cluster: str
    server: str
    servers: list[str]
    sentinels: list[str]
    own_sentinel: str
    quorum: int
    priority: int
    ca: str
    crt: str
    key: str
    user: str
    password: str
    initial: str
    data: str
    runtime: str
    state: str
    server_config: str
    sentinel_config: str
    server_program: str = "/usr/bin/redis-server"
    sentinel_program: str = "/usr/bin/redis-sentinel"

    @property
    def mark(self) -> Path:
        """Says that the data beside it are whole."""
        return Path(self.data, "whole")

    @property
    def whole(self) -> bool:
        """Whether the data are a copy that was complete once."""
        return self.mark.exists() and any(Path(self.data, "appendonlydir").glob("*.manifest"))

    @property
    def first(self) -> str:
        """The first master of a site that never had one; empty on any other."""
        try:
            return Path(self.initial).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return ""

    def connect(self, server: str, login: tuple[str, str]) -> Connection:
        """A connection as that user.

        Raises:
            RedisError: there is none.
        """
        context = ssl.create_default_context(cafile=self.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.crt, self.key)
        connection = Connection(server, context, SECONDS)
        try:
            connection.login(*login)
        except RedisError:
            connection.close()
            raise
        return connection


def load(path: str) -> Member:
    """Read the file.

    Raises:
        ValueError: it is not what it should be.
        OSError: it cannot be read.
    """
    told = json.loads(Path(path).read_text(encoding="utf-8"))
    known = {field.name for field in fields(Member)}
    if not isinstance(told, dict) or not set(told) <= known:
        raise ValueError(f"{path} has keys that are not known")
    return Member(**told)


# --- decisions ---


def newest(words: list[tuple[int, str]], total: int) -> tuple[int, str] | None:
    """Epoch and `address:port` of the master by the newest word of a majority; None when there is no majority.

    Args:
        words: what each Sentinel that answered says.
        total: how many there are.
    """
    if len(words) <= total // 2:
        return None
    epoch = max(word[0] for word in words)
    where = {word[1] for word in words if word[0] == epoch}
    return (epoch, where.pop()) if len(where) == 1 else None


@dataclass(frozen=True)
class Start:
    """How a server starts.

    Attributes:
        master: `address:port` of the master that it copies; empty when it is the master.
        fit: whether it may be promoted.
        wait: why it does not start yet; empty when it does.
    """

    master: str = ""
    fit: bool = True
    wait: str = ""


def plan(member: Member, named: tuple[int, str] | None, *, whole: bool, alive: bool) -> Start:
    """What the server of this host is now.

    Args:
        member: this host.
        named: of `newest`.
        whole: whether its data are.
        alive: whether the master that is named says that it is one.
    """
    if named is None:
        return Start(wait="a majority of the Sentinels does not say who is the master")
    epoch, master = named
    if master != member.server:
        if whole:
            return Start(master)
        if alive:
            return Start(master, fit=False)
        return Start(wait=f"it has no data of its own, and {master} is no running master that it could copy")
    if whole or (epoch == 0 and member.first == member.server):
        return Start()
    return Start(
        wait="the Sentinels name it as the master, and it has no data: replicas would lose theirs. It waits until they "
        "have promoted another; if nobody has data any more, see the runbook of Redis, 'All data are lost'"
    )


def server_file(member: Member, start: Start) -> str:
    """The file that the server is started with."""
    lines = [f"include {member.server_config}"]
    if start.master:
        host, _, port = start.master.rpartition(":")
        lines.append(f"replicaof {host.strip('[]')} {port}")
    if not start.fit:
        lines.append("replica-priority 0")
    return "\n".join(lines) + "\n"


def own_lines(member: Member, text: str) -> list[str]:
    """The lines of a Sentinel's file that are its own, of members that still are; without that of the master."""
    kept = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] != ["sentinel"]:
            continue
        verb, rest = words[1] if len(words) > 1 else "", words[2:]
        there = member.servers if verb == "known-replica" else member.sentinels
        own = verb in OWN or (verb in OF_THE_MASTER and rest[:1] == [member.cluster])
        other = verb in OF_OTHERS and rest[:1] == [member.cluster] and joined(rest[1:3]) in there
        if own or other:
            kept.append(line)
    return kept


def watched(member: Member, text: str) -> str:
    """The master by a Sentinel's file; empty when it has none."""
    for line in text.splitlines():
        words = line.split()
        if words[:3] == ["sentinel", "monitor", member.cluster]:
            return joined(words[3:5])
    return ""


def joined(words: list[str]) -> str:
    """`address:port` of the two."""
    return ":".join(f"[{word}]" if ":" in word else word for word in words)


def sentinel_file(member: Member, declared: str, state: str, master: str) -> str:
    """The file that the Sentinel is started with.

    Args:
        member: this host.
        declared: what we manage.
        state: the file that it has left.
        master: whom to watch.
    """
    host, _, port = master.rpartition(":")
    monitor = f"sentinel monitor {member.cluster} {host.strip('[]')} {port} {member.quorum}"
    return "\n".join([declared.rstrip("\n"), monitor, *own_lines(member, state)]) + "\n"


# --- asking ---


def word_of(member: Member, sentinel: str) -> tuple[int, str] | None:
    """Epoch and master by one Sentinel; None without an answer."""
    try:
        connection = member.connect(sentinel, PROBE)
        try:
            rows = connection.ask("SENTINEL", "MASTERS")
        finally:
            connection.close()
        if not isinstance(rows, list) or len(rows) != 1:
            return None
        told = parse_pairs(rows[0], sentinel)
        return int(told["config-epoch"]), joined([told["ip"], told["port"]])
    except (RedisError, KeyError, ValueError):
        return None


def words(member: Member, sentinels: list[str]) -> list[tuple[int, str]]:
    """What each Sentinel says that answers."""
    with ThreadPoolExecutor(max(1, len(sentinels))) as crew:
        return [word for word in crew.map(lambda one: word_of(member, one), sentinels) if word is not None]


def is_master(member: Member, server: str) -> bool:
    """Whether a server says that it is a master."""
    try:
        connection = member.connect(server, PROBE)
        try:
            role = connection.ask("ROLE")
        finally:
            connection.close()
    except RedisError:
        return False
    return isinstance(role, list) and role[:1] == ["master"]


def say(text: str) -> None:
    """A line for the journal."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


# --- verbs ---


def write(path: Path, text: str) -> None:
    """Put a file there that the account alone can read."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600, exist_ok=False)
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def run_server(member: Member) -> None:
    """Become the server, once it is known as what."""
    rounds = 0
    while True:
        named = newest(words(member, member.sentinels), len(member.sentinels))
        master = named[1] if named else ""
        whole = member.whole
        alive = not whole and master not in ("", member.server) and is_master(member, master)
        start = plan(member, named, whole=whole, alive=alive)
        if not start.wait:
            break
        if rounds % REMINDER == 0:
            say(f"{member.server} does not start yet: {start.wait}")
        rounds += 1
        time.sleep(PAUSE)
    if not whole:
        member.mark.unlink(missing_ok=True)
    say(f"{member.server} starts as {f'a replica of {start.master}' if start.master else 'the master'}")
    path = Path(member.runtime, "server.conf")
    write(path, server_file(member, start))
    os.execv(member.server_program, [member.server_program, str(path)])  # noqa: S606 - no shell is wanted


def settle(member: Member) -> None:
    """Return when the data of the running server are whole, and it may be promoted."""
    while not member.whole:
        try:
            if settled(member):
                return
        except RedisError as error:
            say(f"{member.server} is not asked: {error}")
        time.sleep(PAUSE)


def settled(member: Member) -> bool:
    """Whether the data are whole; if so it is said, to the server too.

    Raises:
        RedisError: the server cannot be asked.
    """
    connection = member.connect(member.server, (member.user, member.password))
    try:
        info = parse_info(str(connection.ask("INFO", "replication")))
        if info.get("role") != "master":
            if info.get("master_link_status") != "up" or info.get("master_sync_in_progress") != "0":
                return False
            connection.ask("CONFIG", "SET", "replica-priority", member.priority)
        member.mark.touch(mode=0o600)
        return True
    finally:
        connection.close()


def reload(member: Member) -> None:
    """Let the running server take users and certificates from disk.

    Raises:
        RedisError: it refuses.
    """
    connection = member.connect(member.server, (member.user, member.password))
    try:
        files = ("tls-cert-file", member.crt, "tls-key-file", member.key, "tls-ca-cert-file", member.ca)
        connection.ask("CONFIG", "SET", *files)
        connection.ask("ACL", "LOAD")  # last: it ends the connections of users that are others now
    finally:
        connection.close()


def run_sentinel(member: Member) -> None:
    """Become the Sentinel, once it is known whom it watches."""
    path = Path(member.state, "sentinel.conf")
    state = path.read_text(encoding="utf-8") if path.exists() else ""
    others = [one for one in member.sentinels if one != member.own_sentinel]
    rounds = 0
    while not (master := watched(member, state) or first_master(member, others)):
        if rounds % REMINDER == 0:
            say(f"{member.own_sentinel} does not start yet: a majority of the Sentinels does not say who is the master")
        rounds += 1
        time.sleep(PAUSE)
    write(path, sentinel_file(member, Path(member.sentinel_config).read_text(encoding="utf-8"), state, master))
    os.execv(member.sentinel_program, [member.sentinel_program, str(path)])  # noqa: S606 - no shell is wanted


def first_master(member: Member, others: list[str]) -> str:
    """Whom a Sentinel without a memory watches; empty while nobody knows."""
    if not others:
        return member.server
    named = newest(words(member, others), len(member.sentinels))
    return named[1] if named else member.first


VERBS = {"server": run_server, "settle": settle, "reload": reload, "sentinel": run_sentinel}

if __name__ == "__main__":
    try:
        VERBS[sys.argv[1]](load(sys.argv[2]))
    except (RedisError, OSError, ValueError, TypeError) as problem:
        sys.exit(f"{' '.join(sys.argv[1:])}: {problem}")
