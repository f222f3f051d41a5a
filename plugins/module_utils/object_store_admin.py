# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Buckets, users and policies of a live object store: read, changed, and looked at again.

What every S3 server has is `object_store_s3`; what is of one product is a provider.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_minio import MinioProvider, minio_store
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_plan import (
    ACCOUNTS,
    LiveBucket,
    LiveUser,
    State,
    Store,
    Wanted,
    plan,
    refusals,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_s3 import Buckets, accepts
from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import (
    Change,
    RefusedError,
    UnfinishedError,
    summary,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.s3_client import (
    AnswerError,
    Credentials,
    S3Client,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_plan import Bucket, User

FIRST_PAUSE, LAST_PAUSE = 0.05, 1.0
"""Seconds between two looks, growing."""
PROVIDERS = ("minio", "s3")
"""Whose administration we speak; `s3` is any server, without any."""


class Provider(Protocol):
    """What a product can do beyond S3."""

    def read_quota(self, bucket: str) -> int:
        """How many bytes a bucket may hold; asked only of a provider that has `QUOTA`."""

    def read_policies(self) -> Mapping[str, str]:
        """Documents of all policies, as `canonical` writes them; asked only of a provider that has `ACCOUNTS`."""

    def read_users(self, names: Iterable[str]) -> tuple[Mapping[str, LiveUser], bool]:
        """Users, and whether they are all; asked only of a provider that has `ACCOUNTS`."""

    def apply(self, change: Change) -> None:
        """Do what is beyond S3."""


class PlainProvider:
    """A server of which we know S3 alone."""

    def read_quota(self, bucket: str) -> int:
        """Never asked."""
        raise NotImplementedError(bucket)

    def read_policies(self) -> Mapping[str, str]:
        """Never asked."""
        raise NotImplementedError

    def read_users(self, names: Iterable[str]) -> tuple[Mapping[str, LiveUser], bool]:
        """Never asked."""
        raise NotImplementedError(names)

    def apply(self, change: Change) -> None:
        """Never asked."""
        raise NotImplementedError(change.subject)


def provider_of(name: str, client: S3Client) -> Provider:
    """The provider of that name.

    Args:
        name: one of `PROVIDERS`.
        client: the session that it shares.
    """
    return MinioProvider(client) if name == "minio" else PlainProvider()


def store_of(name: str, administrator: str) -> Store:
    """What is known of a store before it is asked.

    Args:
        name: one of `PROVIDERS`.
        administrator: our access key.
    """
    return minio_store(administrator) if name == "minio" else Store(name, administrator=administrator)


@dataclass(frozen=True, slots=True)
class Failure:
    """One change that the store did not take."""

    change: Change
    error: AnswerError

    def __str__(self) -> str:
        """One sentence without its end."""
        return f"{self.change.subject}: {summary([self.change])[0].rpartition(': ')[2]}: {self.error}"


@dataclass
class Outcome:
    """What was found and done."""

    store: Store
    changes: list[Change] = field(default_factory=list)
    state: State = field(default_factory=State)


class Admin:
    """The administration of one store."""

    def __init__(self, client: S3Client, provider: str = "minio") -> None:
        """Ask nothing yet.

        Args:
            client: a session whose credentials may do all of it.
            provider: one of `PROVIDERS`.
        """
        self.client, self.buckets = client, Buckets(client)
        self.provider = provider_of(provider, client)
        self.store = store_of(provider, client.credentials.access_key)
        self.logins = 0

    def converge(self, wanted: Wanted, *, check: bool, wait_seconds: float) -> Outcome:
        """Make the store what is declared, or say what that would do.

        Args:
            wanted: what is declared.
            check: change nothing.
            wait_seconds: how long a change may take until the store shows it.

        Raises:
            RefusedError: it cannot or must not be done; nothing was touched.
            UnfinishedError: the store did not take a part of it.
            StoreError: it does not answer.
        """
        reasons = refusals(self.store, None, wanted)
        if reasons:
            raise RefusedError(reasons)
        state = self.read(wanted)
        reasons = refusals(self.store, state, wanted)
        if reasons:
            raise RefusedError(reasons)
        changes = plan(state, wanted)
        if changes and not check:
            self._carry_out(wanted, changes, wait_seconds)
        return Outcome(self.store, changes, state)

    def _carry_out(self, wanted: Wanted, changes: Sequence[Change], wait_seconds: float) -> None:
        if failures := self.apply(changes):
            raise UnfinishedError("; ".join(map(str, failures)))
        deadline, pause = time.monotonic() + wait_seconds, FIRST_PAUSE
        while True:
            state = self.read(wanted)
            if reasons := refusals(self.store, state, wanted):
                # A bucket that somebody else made in the same moment is there, and may be of another kind.
                raise UnfinishedError(f"somebody else changed the store meanwhile. {' '.join(reasons)}")
            left = plan(state, wanted)
            if not left:
                return
            if time.monotonic() > deadline:
                raise UnfinishedError(f"the store took it, and does not show: {', '.join(summary(left))}")
            # Another server of the store may know of a change a moment later.
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    def apply(self, changes: Iterable[Change]) -> list[Failure]:
        """Do all that can be done; what rests on a change of the same object that failed is left.

        Raises:
            UnreachableError: the store is gone.
        """
        failures: list[Failure] = []
        for change in changes:
            if any(failure.change.subject == change.subject for failure in failures):
                continue
            try:
                if not self.buckets.apply(change):
                    self.provider.apply(change)
            except AnswerError as error:
                failures.append(Failure(change, error))
        return failures

    def read(self, wanted: Wanted) -> State:
        """The store as far as what is declared needs it.

        Raises:
            StoreError: it does not answer, or refuses.
        """
        there = self.buckets.names()
        declared = {bucket.name: bucket for bucket in wanted.buckets}
        buckets = {name: self._read_bucket(declared.get(name)) for name in there}
        if ACCOUNTS not in self.store.features:
            return State(buckets)
        users, all_users = self.provider.read_users(user.name for user in wanted.users)
        return State(
            buckets=buckets,
            users=users,
            all_users=all_users,
            policies=self.provider.read_policies(),
            proven=frozenset(user.name for user in wanted.users if self._is_proven(user, users)),
        )

    def _read_bucket(self, bucket: Bucket | None) -> LiveBucket:
        if bucket is None:
            return LiveBucket()
        live = self.buckets.read(bucket)
        if not bucket.present or bucket.quota_bytes is None:
            return live
        return replace(live, quota_bytes=self.provider.read_quota(bucket.name))

    def _is_proven(self, user: User, users: Mapping[str, LiveUser]) -> bool:
        """A store tells nobody a secret: whether it is still the declared one is seen when it is used."""
        if not user.present or user.name not in users or not users[user.name].enabled:
            return False
        self.logins += 1
        return accepts(self.client, Credentials(user.name, user.secret))
