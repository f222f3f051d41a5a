# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is MinIO's own: limits of buckets, users and policies, by its administration API.

Sources: madmin-go v3.0.109 and MinIO of 2026-02-12, `cmd/admin-router.go`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils import minio_sealed
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_plan import (
    ACCOUNTS,
    QUOTA,
    LiveUser,
    PolicyDeleted,
    PolicySet,
    QuotaSet,
    Store,
    UserDeleted,
    UserPoliciesSet,
    UserSet,
    canonical,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.s3_client import AnswerError, Request, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import Change
    from ansible_collections.groundplane.onprem.plugins.module_utils.s3_client import S3Client

ADMIN = "/minio/admin/v3"
BUILTIN_POLICIES = frozenset({"consoleAdmin", "diagnostics", "readonly", "readwrite", "writeonly"})
RESERVED_BUCKETS = frozenset({"minio"})

_NO_USER = "XMinioAdminNoSuchUser"


def minio_store(administrator: str) -> Store:
    """What is known of MinIO before it is asked.

    Args:
        administrator: our access key.
    """
    return Store(
        provider="minio",
        features=frozenset({QUOTA, ACCOUNTS}),
        administrator=administrator,
        builtin_policies=BUILTIN_POLICIES,
        reserved_buckets=RESERVED_BUCKETS,
    )


class MinioProvider:
    """MinIO beyond S3."""

    def __init__(self, client: S3Client) -> None:
        """Ask nothing yet."""
        self.client = client

    def read_quota(self, bucket: str) -> int:
        """How many bytes a bucket may hold; 0 for any.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        told = self.client.ask_json(Request("GET", f"{ADMIN}/get-bucket-quota", {"bucket": bucket}))
        # `quota` is what versions before August 2023 wrote.
        return int(str(told.get("size") or told.get("quota") or 0))

    def read_policies(self) -> dict[str, str]:
        """Documents of all policies by name, as `canonical` writes them.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        told = self.client.ask_json(Request("GET", f"{ADMIN}/list-canned-policies"))
        return {name: canonical(document) for name, document in told.items() if isinstance(document, dict)}

    def read_users(self, names: Iterable[str]) -> tuple[dict[str, LiveUser], bool]:
        """Users, and whether they are all that there are.

        Args:
            names: of those who are asked for one by one where the list of all cannot be opened.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        answer = self.client.ask(Request("GET", f"{ADMIN}/list-users"))
        try:
            text = minio_sealed.unseal(self.client.credentials.secret_key, answer.body)
        except minio_sealed.CannotDeriveError:
            found = {name: self._read_user(name) for name in names}
            return {name: user for name, user in found.items() if user}, False
        except minio_sealed.SealError as error:
            raise StoreError(f"{self.client.url}: the list of users: {error}") from error
        return {name: _user(told) for name, told in json.loads(text).items()}, True

    def _read_user(self, name: str) -> LiveUser | None:
        try:
            return _user(self.client.ask_json(Request("GET", f"{ADMIN}/user-info", {"accessKey": name})))
        except AnswerError as error:
            if error.code == _NO_USER:
                return None
            raise

    def apply(self, change: Change) -> None:
        """Do it.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        if isinstance(change, QuotaSet):
            body = json.dumps({"size": change.after, "quotatype": "hard"} if change.after else {}).encode()
            self._put("set-bucket-quota", {"bucket": change.name}, body)
        elif isinstance(change, PolicySet):
            self._put("add-canned-policy", {"name": change.name}, json.dumps(change.after).encode())
        elif isinstance(change, PolicyDeleted):
            self.client.ask(Request("DELETE", f"{ADMIN}/remove-canned-policy", {"name": change.name}))
        elif isinstance(change, UserSet):
            self._set_user(change)
        elif isinstance(change, UserPoliciesSet):
            names = ",".join(sorted(change.after))
            whom = {"userOrGroup": change.name, "isGroup": "false", "policyName": names}
            self._put("set-user-or-group-policy", whom, b"")
        elif isinstance(change, UserDeleted):
            self.client.ask(Request("DELETE", f"{ADMIN}/remove-user", {"accessKey": change.name}))
        else:  # pragma: no cover - the plan has no other
            raise TypeError(type(change).__name__)

    def _set_user(self, change: UserSet) -> None:
        told = json.dumps({"secretKey": change.secret, "status": "enabled"}).encode()
        try:
            body = minio_sealed.seal(self.client.credentials.secret_key, told)
        except minio_sealed.SealError as error:
            raise StoreError(f"user {change.name}: {error}") from error
        self._put("add-user", {"accessKey": change.name}, body)

    def _put(self, what: str, query: Mapping[str, str], body: bytes) -> None:
        self.client.ask(Request("PUT", f"{ADMIN}/{what}", query, body))


def _user(told: Mapping[str, Any]) -> LiveUser:
    names = str(told.get("policyName") or "").split(",")
    return LiveUser(frozenset(name for name in names if name), told.get("status") == "enabled")
