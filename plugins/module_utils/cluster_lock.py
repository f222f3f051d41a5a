# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time on one cluster: a leased key in etcd.

The key is made only if it is absent, in one transaction, and hangs on a lease that a thread renews. A run that dies
stops renewing, so its lock goes with its lease. The lock keeps two honest runs apart; that no quorum is broken does not
rest on it alone, because the gate asks the cluster again right before each step.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from ansible_collections.groundplane.onprem.plugins.module_utils.etcd_cluster import (
    EtcdCluster,
    EtcdError,
    decode,
    encode,
)

if TYPE_CHECKING:
    from types import TracebackType

PREFIX = "/groundplane/gate/"

LEASE = 60
"""Seconds that a lock outlives a run that died."""

POLL = 0.2
"""Seconds between two tries for a lock that the same run holds for another member."""


class LockHeldError(Exception):
    """Another run works on the cluster."""


class LockLostError(Exception):
    """The lease could not be renewed in time, somebody else may hold the lock by now."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock.

    Attributes:
        run: one for each run of ansible.
        member: the member that the run is at.
        host: where the module runs.
        since: UTC by that host's clock, ISO 8601.
    """

    run: str
    member: str
    host: str
    since: str = ""

    @classmethod
    def parse(cls, text: str) -> Holder:
        """Read what `text` wrote; tolerate what somebody else wrote."""
        try:
            value = json.loads(text)
        except ValueError:
            value = {}
        known = value if isinstance(value, dict) else {}
        return cls(*(str(known.get(key, "unknown")) for key in ("run", "member", "host", "since")))

    def text(self) -> str:
        """As stored."""
        return json.dumps(asdict(self))


class ClusterLock:
    """The lock of one cluster; use it as a context manager."""

    def __init__(self, etcd: EtcdCluster, key: str, holder: Holder, *, patience: float, lease: int = LEASE) -> None:
        """Ask nothing yet.

        Args:
            etcd: a connection of the lock's own, because a thread uses it.
            key: what is locked, `patroni/main`, by a name that all runs agree on.
            holder: us.
            patience: seconds to wait for another member of the same run.
            lease: seconds.
        """
        self._etcd, self._name, self._holder = etcd, key, holder
        self._patience, self._ttl = patience, lease
        self._key = encode(PREFIX + key)
        self._lease = ""
        self._renewed = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            LockHeldError: another run has it, or this run at another member for longer than the patience.
            EtcdError: etcd cannot be asked.
        """
        self._lease = str(self._etcd.call("/v3/lease/grant", {"TTL": str(self._ttl), "ID": "0"})["ID"])
        self._renewed = time.monotonic()
        try:
            self._take()
        except (LockHeldError, EtcdError):
            self._revoke()
            raise
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._revoke()

    def check(self) -> None:
        """Stand still unless the lock is ours for sure.

        Raises:
            LockLostError: it may not be.
        """
        if time.monotonic() - self._renewed > self._ttl:
            raise LockLostError(f"the lock of {self._name} could not be renewed for {self._ttl} s")

    def _take(self) -> None:
        deadline = time.monotonic() + self._patience
        while (holder := self._claim()) is not None:
            if holder.run != self._holder.run or time.monotonic() >= deadline:
                raise LockHeldError(
                    f"{self._name} is being changed by run {holder.run}, at {holder.member} since {holder.since}"
                )
            time.sleep(POLL)
            self._renew()

    def _claim(self) -> Holder | None:
        """Take the key if nobody has it, or if we are the same run at the same member again; else say who has it."""
        mine = Holder(self._holder.run, self._holder.member, self._holder.host, datetime.now(UTC).strftime("%FT%TZ"))
        put = {"request_put": {"key": self._key, "value": encode(mine.text()), "lease": self._lease}}
        get = {"request_range": {"key": self._key}}
        absent = {"key": self._key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
        answer = self._txn(absent, put, get)
        if answer.get("succeeded"):
            return None
        found = answer["responses"][0]["response_range"].get("kvs", [])
        if not found:
            return self._claim()  # it went between the two looks
        holder = Holder.parse(decode(found[0].get("value", "")))
        if (holder.run, holder.member) != (mine.run, mine.member):
            return holder
        same = {"key": self._key, "target": "MOD", "result": "EQUAL", "mod_revision": found[0]["mod_revision"]}
        return None if self._txn(same, put, get).get("succeeded") else holder

    def _txn(self, compare: dict[str, Any], success: dict[str, Any], failure: dict[str, Any]) -> dict[str, Any]:
        return self._etcd.call("/v3/kv/txn", {"compare": [compare], "success": [success], "failure": [failure]})

    def _keep(self) -> None:
        while not self._stop.wait(self._ttl / 4):
            self._renew()

    def _renew(self) -> None:
        asked = time.monotonic()
        try:
            answer = self._etcd.call("/v3/lease/keepalive", {"ID": self._lease})
        except EtcdError:
            return  # the next try is due before the lease ends; `check` knows when it was not
        if int(answer.get("result", {}).get("TTL", 0)) > 0:
            self._renewed = asked

    def _revoke(self) -> None:
        try:
            self._etcd.call("/v3/lease/revoke", {"ID": self._lease})
        except EtcdError:
            return  # it ends by itself
