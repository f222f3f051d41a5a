# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts a copy of this member's data into the object store, and gets one back.

Usage: redis_backup.py take|master|aside|place|count FILE, or fetch FILE UNTIL. FILE is JSON, with the keys of
`Settings`.

take: Redis sends the copy as it does to a replica, so that nothing is written beside its data; Redis' own tool reads it
through before it is sent; the oldest of this member go that are more than `keep`. master: whether a majority of the
Sentinels names this member. fetch: the newest copy of any member until a moment, or `newest`, is here, whole. aside:
what the server has is under another name. place: the copy is what the server starts with. count: its keys.

Sources: Redis 8.0 documentation (redis-cli, "Remote backups of RDB files"; persistence, "Multi part AOF").
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))

import redis_member  # they lie beside this file
from redis_wire import RedisError
from snapshot_store import Place, Snapshot, SnapshotError, Store, chosen, context_of, digest_of, settings_of, surplus

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 4 * 3600.0
"""Seconds for Redis to send a copy, and for its tool to read it."""

MOMENT = "%Y-%m-%d-%H-%M-%S"
DATA = ("appendonlydir", "dump.rdb", "whole")
"""What a server has, and what says that it is whole."""

KEYS = re.compile(r"\[info\] (\d+) keys read")
EXPIRES = re.compile(r"\[info\] (\d+) expires")

BASE = "appendonly.aof.1.base.rdb"
MANIFEST = "appendonly.aof.manifest"
"""What a log of commands begins with: a copy, and a file that names it."""


@dataclass(frozen=True, kw_only=True)
class Settings(Place):
    """What this host is told.

    Attributes:
        member: its name, with which those of its copies begin.
        cluster: name under which Sentinels watch the master, and of the directory of copies in the store.
        declared: file with what the member itself is told.
        user: who may have a copy, as replicas do.
        password: that user's.
        directory: for what is on its way.
    """

    member: str
    cluster: str
    declared: str
    user: str
    password: str = field(repr=False)
    directory: str

    @property
    def fetched(self) -> Path:
        """Where a copy waits to be placed."""
        return Path(self.directory, "fetched.rdb")


def counted(said: str) -> dict[str, int]:
    """Keys of a copy, and how many of them end by themselves, as Redis' tool says.

    Raises:
        SnapshotError: it does not.
    """
    keys, expires = KEYS.search(said), EXPIRES.search(said)
    if keys is None or expires is None:
        raise SnapshotError(f"redis-check-rdb says no number of keys: {said[-300:]}")
    return {"keys": int(keys[1]), "expires": int(expires[1])}


def own(names: list[str], member: str) -> list[str]:
    """The copies of one member."""
    return [name for name in names if re.fullmatch(rf"{re.escape(member)}-\d{{4}}(?:-\d\d){{5}}\.rdb", name)]


def checked(file: Path) -> dict[str, int]:
    """What is in a copy, which is read to its end.

    Raises:
        SnapshotError: it is none.
    """
    done = subprocess.run(  # noqa: S603 - the file is ours
        ["/usr/bin/redis-check-rdb", str(file)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if done.returncode != 0:
        raise SnapshotError(f"{file} is no whole copy: redis-check-rdb says {(done.stdout + done.stderr)[-300:]}")
    return counted(done.stdout)


def copy(settings: Settings, member: redis_member.Member, file: Path) -> None:
    """Have the server of this host send a copy.

    Raises:
        SnapshotError: it does not.
    """
    host, _, port = member.server.rpartition(":")
    command = [
        *("/usr/bin/redis-cli", "--no-auth-warning", "--user", settings.user, "-h", host.strip("[]"), "-p", port),
        *("--tls", "--cacert", member.ca, "--cert", member.crt, "--key", member.key, "--rdb", str(file)),
    ]
    # Gone with the program; an argument would be there for all of the host to see.
    environment = {"PATH": os.defpath, "REDISCLI_AUTH": settings.password}
    try:
        done = subprocess.run(  # noqa: S603 - all of it is what the role declares
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SnapshotError(f"{member.server} has sent no whole copy after {PATIENCE:g} s") from error
    if done.returncode != 0 or not file.exists():
        raise SnapshotError(f"{member.server} sends no copy: redis-cli says {(done.stdout + done.stderr)[-300:]}")


def take(settings: Settings, member: redis_member.Member, store: Store) -> dict[str, object]:
    """Put one copy away, and drop those that are too many.

    Raises:
        SnapshotError: it is not there.
    """
    name = f"{settings.member}-{dt.datetime.now(dt.UTC).strftime(MOMENT)}.rdb"
    file = Path(settings.directory, name)
    try:
        copy(settings, member, file)
        found = checked(file)
        snapshot = Snapshot(settings.cluster, name, file.stat().st_size, digest_of(file))
        store.put(snapshot, file)
    finally:
        file.unlink(missing_ok=True)
    for one in surplus(own(store.names(settings.cluster), settings.member), settings.keep):
        store.delete(settings.cluster, one)
    return {**asdict(snapshot), **found}


def fetch(settings: Settings, store: Store, until: str) -> dict[str, object]:
    """Get a copy, and read it through.

    Raises:
        SnapshotError: there is none so old, or it is not what was put there.
    """
    name = chosen(store.names(settings.cluster), until)
    if not name:
        raise SnapshotError(f"bucket {settings.bucket} has no copy of {settings.cluster} of {until} or before")
    snapshot = store.get(settings.cluster, name, settings.fetched)
    return {**asdict(snapshot), **checked(settings.fetched)}


def aside(member: redis_member.Member) -> str:
    """Put what a server has under a name that nobody looks for; the directory, or nothing when it had nothing."""
    there = [path for path in (Path(member.data, name) for name in DATA) if path.exists()]
    if not there:
        return ""
    kept = Path(member.data, f"aside-{dt.datetime.now(dt.UTC).strftime(MOMENT)}")
    kept.mkdir(mode=0o700)
    for path in there:
        path.rename(kept / path.name)
    return str(kept)


def count(member: redis_member.Member) -> int:
    """Keys that the running server has.

    Raises:
        RedisError: it does not say.
    """
    connection = member.connect(member.server, (member.user, member.password))
    try:
        return int(str(connection.ask("DBSIZE")))
    finally:
        connection.close()


def place(settings: Settings, member: redis_member.Member) -> None:
    """Make the copy that waits what the server starts with.

    Raises:
        SnapshotError: the server has data, or no copy waits.
    """
    log = Path(member.data, "appendonlydir")
    if log.exists() and any(log.iterdir()):
        raise SnapshotError(f"{log} is there: nothing is written over; playbooks/redis_restore.yml puts it aside")
    if not settings.fetched.exists():
        raise SnapshotError(f"{settings.fetched} is not there: fetch one first")
    log.mkdir(mode=0o700, exist_ok=True)
    settings.fetched.replace(log / BASE)
    (log / MANIFEST).write_text(f"file {BASE} seq 1 type b\n", encoding="utf-8")
    # Last: a server without it takes nothing that it has for whole.
    member.mark.touch(mode=0o600)


def master(member: redis_member.Member) -> dict[str, object]:
    """Whom a majority of the Sentinels names, and whether that is this member."""
    named = redis_member.newest(redis_member.words(member, member.sentinels), len(member.sentinels))
    server = named[1] if named else ""
    return {"named": server, "here": server == member.server}


def store_of(settings: Settings, member: redis_member.Member) -> Store:
    """Where all members' copies are.

    Raises:
        SnapshotError: no server of it answers.
    """
    return Store(settings, context_of(member.ca))


VERBS: dict[str, Callable[..., object]] = {
    "take": lambda settings, member: take(settings, member, store_of(settings, member)),
    "master": lambda _, member: master(member),
    "fetch": lambda settings, member, until: fetch(settings, store_of(settings, member), until),
    "aside": lambda _, member: aside(member),
    "place": place,
    "count": lambda _, member: count(member),
}


def main(arguments: list[str]) -> int:
    """Do one of them."""
    verb = arguments[0] if arguments else ""
    if len(arguments) != (3 if verb == "fetch" else 2) or verb not in VERBS:
        sys.stderr.write(f"usage: redis_backup.py {'|'.join(VERBS)} FILE [UNTIL]\n")
        return 2
    try:
        settings = settings_of(Settings, Path(arguments[1]).read_text(encoding="utf-8"), "redis")
        said = VERBS[verb](settings, redis_member.load(settings.declared), *arguments[2:])
    except (SnapshotError, RedisError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(said, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main(sys.argv[1:]))
