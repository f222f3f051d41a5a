# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parameters of `object_store_resources` as declarations, as pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_plan import (
    Bucket,
    Policy,
    Retention,
    Rule,
    User,
    Wanted,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_RETENTION = "none"


def wanted(params: Mapping[str, Any]) -> Wanted:
    """All that is declared.

    Args:
        params: of the module, checked by its argument specification.
    """
    return Wanted(
        buckets=tuple(_bucket(item) for item in params["buckets"]),
        users=tuple(_user(item) for item in params["users"]),
        policies=tuple(
            Policy(item["name"], item["document"] or {}, present=item["state"] == "present")
            for item in params["policies"]
        ),
    )


def _bucket(item: Mapping[str, Any]) -> Bucket:
    lifecycle = item["lifecycle"]
    return Bucket(
        name=item["name"],
        versioning=item["versioning"],
        object_lock=item["object_lock"],
        retention=_retention(item["retention"]),
        lifecycle=None if lifecycle is None else tuple(_rule(rule) for rule in lifecycle),
        quota_bytes=item["quota_bytes"],
        present=item["state"] == "present",
    )


def _retention(item: Mapping[str, Any] | None) -> Retention | str | None:
    if item is None:
        return None
    if item["mode"] == NO_RETENTION:
        return ""
    return Retention(item["mode"], item["days"], item["years"])


def _rule(item: Mapping[str, Any]) -> Rule:
    return Rule(
        id=item["id"],
        prefix=item["prefix"],
        enabled=item["enabled"],
        expire_days=item["expire_days"],
        expire_markers=item["expire_markers"],
        older_days=item["older_days"],
        older_kept=item["older_kept"],
    )


def _user(item: Mapping[str, Any]) -> User:
    policies = item["policies"]
    return User(
        name=item["name"],
        secret=item["secret_key"] or "",
        policies=None if policies is None else tuple(policies),
        present=item["state"] == "present",
    )
