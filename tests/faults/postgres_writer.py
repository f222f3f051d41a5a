# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real client of the database, and witnesses of who can be written to, for drills under load.

    with Witnesses(lab) as witnesses, writer:      # `writer` is the fixture `postgres_writer`
        with frozen(lab, witnesses.leader()):
            writer.watch(30)
    writer.outcome()                               # acknowledged, lost, ghosts, gap

The writer inserts a row every 50 ms on one session through the virtual address, and opens a new session after an error.
An insert that failed is not tried again: its id is read back like all others, and may be there (a ghost) or not.
A host runs this file after `drill.py`: what runs there needs the standard library, and psycopg for the writer.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import socket
import struct
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.faults.drill import ACTIONS, HostProbe, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.drill import Attempt, Outcome, Record
    from tests.lab import Lab

# ------------------------------------------------------------------------------------------------------- on the client

PATIENCE = 2.0
"""Seconds that the writer gives each step: to connect, and to be acknowledged."""


def insert(run: str) -> Callable[[int], str]:
    """Insert rows on one session; the answer is the address of the member that acknowledged.

    Reads the parameters of the connection, JSON, from a line of standard input.

    Args:
        run: what the rows of this writer are marked with.
    """
    import psycopg  # noqa: PLC0415 - hosts that run the rest of this file do not have it

    parameters: dict[str, Any] = json.loads(sys.stdin.readline())
    sessions: list[psycopg.Connection[Any]] = []

    def write(turn: int) -> str:
        try:
            if not sessions:
                sessions.append(psycopg.connect(**parameters, connect_timeout=int(PATIENCE), autocommit=True))
            # The session is cut, and nothing is cancelled: a commit that is cancelled while it waits for its standbys
            # is acknowledged without them.
            peer = socket.socket(fileno=socket.dup(sessions[0].fileno()))
            overdue = threading.Timer(PATIENCE, peer.shutdown, [socket.SHUT_RDWR])
            overdue.start()
            try:
                row = (
                    sessions[0]
                    .execute(
                        "INSERT INTO writes (run, id) VALUES (%s, %s) RETURNING host(inet_server_addr())", (run, turn)
                    )
                    .fetchone()
                )
            finally:
                overdue.cancel()
                peer.close()
        except psycopg.Error:
            while sessions:
                sessions.pop().close()
            raise
        return str(row[0]) if row else ""

    return write


READ_BACK = """
import json, sys, psycopg
asked = json.loads(sys.stdin.read())
with psycopg.connect(**asked["connect"], connect_timeout=5) as session:
    rows = session.execute("SELECT id FROM writes WHERE run = %s", (asked["run"],)).fetchall()
print(json.dumps([row[0] for row in rows]))
"""

# ------------------------------------------------------------------------------------------------------- on the members


class Session:
    """A session over the member's unix socket, by the simple query protocol (PostgreSQL, "Message Flow")."""

    def __init__(self, path: str = "/run/postgresql/.s.PGSQL.5432") -> None:
        """Connect as the user that this process runs as, who needs no password there.

        Raises:
            OSError: nobody listens, or says no.
        """
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(path)
        self._stream = self._socket.makefile("rb")
        startup = struct.pack("!i", 196608) + b"user\0postgres\0database\0postgres\0application_name\0drill\0\0"
        self._socket.sendall(struct.pack("!i", len(startup) + 4) + startup)
        self._answers()

    def ask(self, query: str) -> str:
        """The one value that a query gives.

        Raises:
            OSError: the session is gone, or the query failed.
        """
        text = query.encode() + b"\0"
        self._socket.sendall(b"Q" + struct.pack("!i", len(text) + 4) + text)
        return next(iter(self._answers()), "")

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def _answers(self) -> list[str]:
        values: list[str] = []
        while True:
            head = self._stream.read(5)
            if len(head) < 5:
                raise ConnectionError("the session ended")
            kind, body = head[:1], self._stream.read(struct.unpack("!i", head[1:])[0] - 4)
            if kind == b"E":
                raise ConnectionError(body.replace(b"\0", b" ").decode(errors="replace"))
            if kind == b"D":
                values.append(body[6 : 6 + struct.unpack("!i", body[2:6])[0]].decode())
            if kind == b"Z":
                return values


def _asking(query: Callable[[Session], str]) -> Callable[[int], str]:
    sessions: list[Session] = []

    def ask(_: int) -> str:
        try:
            if not sessions:
                sessions.append(Session())
            return query(sessions[0])
        except OSError:
            while sessions:
                sessions.pop().close()
            raise

    return ask


def standing() -> Callable[[int], str]:
    """What the member holds itself for; the answer is `primary` or `standby`."""
    recovery = "select case when pg_is_in_recovery() then 'standby' else 'primary' end"
    return _asking(lambda session: session.ask(recovery))


def commit() -> Callable[[int], str]:
    """Commit something that no table sees; the answer is `committed`, or `standby`."""

    def query(session: Session) -> str:
        if session.ask("select pg_is_in_recovery()") == "t":
            return "standby"
        session.ask("select pg_logical_emit_message(true, 'drill', '')")
        return "committed"

    return _asking(query)


ACTIONS |= {"insert": insert, "standing": standing, "commit": commit}

# ---------------------------------------------------------------------------------------------------- on the controller


@dataclass(frozen=True, slots=True)
class Account:
    """Where the rows go: a database and a role made for the drills."""

    client: str
    connect: dict[str, str]
    address: str


class Writer:
    """The client. Each `with` is a run of its own; `outcome` tells of the last one."""

    def __init__(self, lab: Lab, account: Account, interval: float = 0.05) -> None:
        self._lab = lab
        self._account = account
        self._interval = interval
        self._run = ""
        self._probe: HostProbe | None = None

    @property
    def record(self) -> Record:
        assert self._probe
        return self._probe.record

    def __enter__(self) -> Self:
        self._run = uuid.uuid4().hex
        self._probe = HostProbe(
            self._lab,
            self._account.client,
            "insert",
            self._run,
            interval=self._interval,
            prefix=["sudo", "-n"],
            program=Path(__file__),
            secret=json.dumps(self._account.connect) + "\n",
        ).start()
        wait_for(lambda: len(self.record.acknowledged) >= 20, 60, "rows are acknowledged")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._probe
        self._probe.stop()

    def watch(self, seconds: float) -> None:
        """Let it write."""
        time.sleep(seconds)

    def recovered(self, since: float, seconds: float) -> float:
        """Wait until a row that was sent after a time is acknowledged, and give when, in seconds since that time."""

        def first() -> Attempt | None:
            later = (attempt for attempt in self.record.acknowledged if attempt.sent > since)
            return next(later, None)

        found: Attempt = wait_for(first, seconds, "rows are acknowledged again")
        assert found.acked
        return found.acked - since

    def outcome(self) -> Outcome:
        """Read all back through the virtual address."""
        asked = json.dumps({"connect": self._account.connect, "run": self._run})
        command = f"python3 -c {shlex.quote(READ_BACK)}"

        def read() -> str:
            done = self._lab.run(self._account.client, command, stdin=asked, check=False)
            return done.stdout if done.returncode == 0 else ""

        there = set(json.loads(wait_for(read, 60, "the rows can be read")))
        return self.record.outcome(there)


class Witnesses:
    """On each member: what it holds itself for, and whether it commits, all by the one clock of the machine."""

    STANDING = 0.05
    COMMIT = 0.1

    def __init__(self, lab: Lab) -> None:
        self._members = lab.groups["postgres"]
        probe = {"program": Path(__file__), "prefix": ["sudo", "-n", "runuser", "-u", "postgres", "--"]}
        self.standing = {
            host: HostProbe(lab, host, "standing", interval=self.STANDING, **probe)  # type: ignore[arg-type]
            for host in self._members
        }
        self.commits = {
            host: HostProbe(lab, host, "commit", interval=self.COMMIT, **probe)  # type: ignore[arg-type]
            for host in self._members
        }

    def __enter__(self) -> Self:
        probes = [*self.standing.values(), *self.commits.values()]
        with contextlib.ExitStack() as started, ThreadPoolExecutor(len(probes)) as pool:
            for probe in pool.map(HostProbe.start, probes):
                started.callback(probe.stop)
            wait_for(self._leads, 30, "a primary")
            self._started = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._started.close()

    def leader(self, *, besides: str = "") -> str:
        """Who leads now, or comes to lead while one is left out of account."""
        leader: str = wait_for(lambda: self._leads(besides), 60, "a primary")
        return leader

    def _leads(self, besides: str = "") -> str | None:
        """The one member whose last answer, not older than a second, was that it is the primary."""
        recent = time.time() - 1
        last = {host: probe.record.attempts[-1] for host, probe in self.standing.items() if probe.record.attempts}
        found = [
            host
            for host, attempt in last.items()
            if host != besides and attempt.answer == "primary" and attempt.sent > recent
        ]
        return found[0] if len(found) == 1 else None

    def dual(self) -> float:
        """Milliseconds in which two members acknowledged commits."""
        return overlap({host: spans_of(p.record, "committed", self.COMMIT) for host, p in self.commits.items()})

    def claimed(self) -> float:
        """Milliseconds in which two members held themselves for the primary, whether a commit could succeed or not."""
        return overlap({host: spans_of(p.record, "primary", self.STANDING) for host, p in self.standing.items()})


def spans_of(record: Record, answer: str, period: float) -> list[tuple[float, float]]:
    """When a member gave an answer without a break: from the first question to the last answer.

    A question that waited longer than a period counts for one period only: who stood still meanwhile did nothing.
    """
    spans: list[tuple[float, float]] = []
    open_ended = False
    for attempt in sorted(record.attempts, key=lambda attempt: attempt.sent):
        if attempt.answer != answer or attempt.acked is None:
            open_ended = False
            continue
        end = min(attempt.acked, attempt.sent + period)
        if open_ended and attempt.sent - spans[-1][1] < 1:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((attempt.sent, end))
        open_ended = True
    return spans


def overlap(spans: dict[str, list[tuple[float, float]]]) -> float:
    """Milliseconds for which spans of two hosts overlap, rounded up: none is too short to be told."""
    hosts = sorted(spans)
    seconds = sum(
        max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
        for index, host in enumerate(hosts)
        for other in hosts[index + 1 :]
        for a in spans[host]
        for b in spans[other]
    )
    return math.ceil(round(1000 * seconds, 3))  # below a microsecond it is the arithmetic, not the clock
