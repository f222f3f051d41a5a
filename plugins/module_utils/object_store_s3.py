# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Buckets as every S3 server keeps them: read and changed by the S3 API alone.

Source: Amazon S3 API reference: CreateBucket, PutBucketVersioning, PutObjectLockConfiguration,
PutBucketLifecycleConfiguration, ListBuckets, ListObjectVersions.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_plan import (
    ENABLED,
    NEVER,
    SUSPENDED,
    BucketChange,
    BucketCreated,
    BucketDeleted,
    LifecycleSet,
    LiveBucket,
    Retention,
    RetentionSet,
    Rule,
    VersioningSet,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.s3_client import (
    AnswerError,
    Credentials,
    Request,
    S3Client,
    content_md5,
    error_of,
    parsed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_plan import Bucket
    from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import Change

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"

_VERSIONING = {"Enabled": ENABLED, "Suspended": SUSPENDED}
_LIFECYCLE_KNOWN = frozenset(
    {
        "ID",
        "Status",
        "Prefix",
        "Filter",
        "Filter/Prefix",
        "Expiration",
        "Expiration/Days",
        "Expiration/ExpiredObjectDeleteMarker",
        "NoncurrentVersionExpiration",
        "NoncurrentVersionExpiration/NoncurrentDays",
        "NoncurrentVersionExpiration/NewerNoncurrentVersions",
    }
)
_NONE_SUCH = {
    "object-lock": "ObjectLockConfigurationNotFoundError",
    "lifecycle": "NoSuchLifecycleConfiguration",
}


# ----------------------------------------------------------------------------------------------------------------- XML


def create_body(region: str) -> bytes:
    """What a bucket is created with; nothing in the region that is everybody's default."""
    if region == "us-east-1":
        return b""
    root = ET.Element("CreateBucketConfiguration", xmlns=NAMESPACE)
    ET.SubElement(root, "LocationConstraint").text = region
    return _bytes(root)


def versioning_body(versioning: str) -> bytes:
    """Versioning that is `enabled` or `suspended`."""
    root = ET.Element("VersioningConfiguration", xmlns=NAMESPACE)
    ET.SubElement(root, "Status").text = {word: name for name, word in _VERSIONING.items()}[versioning]
    return _bytes(root)


def read_versioning(root: ET.Element) -> str:
    """Versioning of a bucket, one of the words of `object_store_plan`."""
    return _VERSIONING.get(root.findtext("Status") or "", NEVER)


def lock_body(retention: Retention | None) -> bytes:
    """How new objects are locked in a bucket whose objects can be."""
    root = ET.Element("ObjectLockConfiguration", xmlns=NAMESPACE)
    ET.SubElement(root, "ObjectLockEnabled").text = "Enabled"
    if retention:
        default = ET.SubElement(ET.SubElement(root, "Rule"), "DefaultRetention")
        ET.SubElement(default, "Mode").text = retention.mode.upper()
        for name, number in (("Days", retention.days), ("Years", retention.years)):
            if number is not None:
                ET.SubElement(default, name).text = str(number)
    return _bytes(root)


def read_lock(root: ET.Element) -> tuple[bool, Retention | None]:
    """Whether objects can be locked, and how new ones are."""
    default = root.find("Rule/DefaultRetention")
    retention = None
    if default is not None and default.findtext("Mode"):
        mode = (default.findtext("Mode") or "").lower()
        retention = Retention(mode, _number(default, "Days"), _number(default, "Years"))
    return root.findtext("ObjectLockEnabled") == "Enabled", retention


def lifecycle_body(rules: Iterable[Rule]) -> bytes:
    """The rules of a bucket."""
    root = ET.Element("LifecycleConfiguration", xmlns=NAMESPACE)
    for rule in rules:
        told = ET.SubElement(root, "Rule")
        ET.SubElement(told, "ID").text = rule.id
        ET.SubElement(told, "Status").text = "Enabled" if rule.enabled else "Disabled"
        ET.SubElement(ET.SubElement(told, "Filter"), "Prefix").text = rule.prefix
        if rule.expire_days is not None or rule.expire_markers:
            expiration = ET.SubElement(told, "Expiration")
            if rule.expire_days is not None:
                ET.SubElement(expiration, "Days").text = str(rule.expire_days)
            else:
                ET.SubElement(expiration, "ExpiredObjectDeleteMarker").text = "true"
        older = (("NoncurrentDays", rule.older_days), ("NewerNoncurrentVersions", rule.older_kept))
        if any(number is not None for _, number in older):
            told_older = ET.SubElement(told, "NoncurrentVersionExpiration")
            for name, number in older:
                if number is not None:
                    ET.SubElement(told_older, name).text = str(number)
    return _bytes(root)


def read_lifecycle(root: ET.Element) -> tuple[Rule, ...]:
    """The rules of a bucket; what a rule has that we have no word for makes it differ from any declared one."""
    return tuple(_rule(rule) for rule in root.iterfind("Rule"))


def _rule(rule: ET.Element) -> Rule:
    return Rule(
        id=rule.findtext("ID") or "",
        prefix=rule.findtext("Filter/Prefix") or rule.findtext("Prefix") or "",
        enabled=rule.findtext("Status") == "Enabled",
        expire_days=_number(rule, "Expiration/Days"),
        expire_markers=(rule.findtext("Expiration/ExpiredObjectDeleteMarker") or "").strip() == "true",
        older_days=_number(rule, "NoncurrentVersionExpiration/NoncurrentDays"),
        older_kept=_number(rule, "NoncurrentVersionExpiration/NewerNoncurrentVersions"),
        other=", ".join(sorted(_unknown(rule, ""))),
    )


def _unknown(element: ET.Element, path: str) -> Iterator[str]:
    for child in element:
        name = f"{path}{child.tag}"
        if name not in _LIFECYCLE_KNOWN:
            yield f"{name} {' '.join(''.join(child.itertext()).split())}".strip()
        else:
            yield from _unknown(child, f"{name}/")


def _number(element: ET.Element, path: str) -> int | None:
    """A number; 0 is how some servers write that there is none."""
    text = (element.findtext(path) or "").strip()
    return int(text) if text.isdigit() and int(text) else None


def _bytes(root: ET.Element) -> bytes:
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=False))


# -------------------------------------------------------------------------------------------------------------- server


class Buckets:
    """Buckets of a store."""

    def __init__(self, client: S3Client) -> None:
        """Ask nothing yet."""
        self.client = client

    def names(self) -> list[str]:
        """All buckets that we may see.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        root = parsed(self.client.ask(Request("GET", "/")), "the list of buckets")
        return [name.text or "" for name in root.iterfind("Buckets/Bucket/Name")]

    def read(self, bucket: Bucket) -> LiveBucket:
        """One that is there, as far as its declaration asks for.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        if not bucket.present:
            return LiveBucket(empty=self._is_empty(bucket.name))
        versioning = self._read(bucket.name, "versioning")
        lock = self._read(bucket.name, "object-lock")
        lifecycle = None if bucket.lifecycle is None else self._read(bucket.name, "lifecycle")
        can_lock, retention = (False, None) if lock is None else read_lock(lock)
        return LiveBucket(
            versioning=NEVER if versioning is None else read_versioning(versioning),
            object_lock=can_lock,
            retention=retention,
            lifecycle=() if lifecycle is None else read_lifecycle(lifecycle),
        )

    def _read(self, name: str, what: str) -> ET.Element | None:
        """One of a bucket's documents; None when it has none."""
        try:
            answer = self.client.ask(Request("GET", f"/{name}", {what: ""}))
        except AnswerError as error:
            if error.code == _NONE_SUCH.get(what):
                return None
            raise
        return parsed(answer, f"bucket {name}: {what}")

    def _is_empty(self, name: str) -> bool:
        root = parsed(
            self.client.ask(Request("GET", f"/{name}", {"versions": "", "max-keys": "1"})), f"bucket {name}: versions"
        )
        return root.find("Version") is None and root.find("DeleteMarker") is None

    def apply(self, change: Change) -> bool:
        """Do it, if it is about what every S3 server has.

        Returns:
            Whether it was.

        Raises:
            StoreError: the store does not answer, or refuses.
        """
        if not isinstance(change, BucketChange):
            return False
        path = f"/{change.name}"
        if isinstance(change, BucketCreated):
            self._create(change)
        elif isinstance(change, VersioningSet):
            self._put(path, "versioning", versioning_body(change.after))
        elif isinstance(change, RetentionSet):
            self._put(path, "object-lock", lock_body(change.after))
        elif isinstance(change, LifecycleSet) and change.after:
            self._put(path, "lifecycle", lifecycle_body(change.after))
        elif isinstance(change, LifecycleSet):
            self.client.ask(Request("DELETE", path, {"lifecycle": ""}))
        elif isinstance(change, BucketDeleted):
            self.client.ask(Request("DELETE", path))
        else:
            return False
        return True

    def _create(self, change: BucketCreated) -> None:
        headers = {"x-amz-bucket-object-lock-enabled": "true"} if change.object_lock else {}
        try:
            self.client.ask(
                Request("PUT", f"/{change.name}", body=create_body(self.client.region), headers=headers),
            )
        except AnswerError as error:
            # A request that was sent again; whether it is the bucket that is declared, the next look says.
            if error.code != "BucketAlreadyOwnedByYou":
                raise

    def _put(self, path: str, what: str, body: bytes) -> None:
        self.client.ask(Request("PUT", path, {what: ""}, body, content_md5(body)))


def accepts(client: S3Client, credentials: Credentials) -> bool:
    """Whether the store takes what somebody signs; what they may do does not matter.

    Raises:
        StoreError: the store does not answer, or says something else.
    """
    answer = client.send(Request("GET", "/"), credentials)
    code, reason = error_of(answer) if answer.status not in range(200, 300) else ("", "")
    if not code or code == "AccessDenied":
        return True
    if code in ("SignatureDoesNotMatch", "InvalidAccessKeyId"):
        return False
    raise AnswerError(f"{client.url}: a request of user {credentials.access_key}", answer.status, code, reason)
