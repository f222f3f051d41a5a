# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must change in an object store so that buckets, users and policies are as declared, as pure functions.

`refusals` says what cannot or must not be done, `plan` what is to be done. Nothing is deleted but what is declared
absent by its name; a list of lifecycle rules, or of a user's policies, is the whole of it.

Sources: Amazon S3 user guide, "Bucket naming rules", "Object Lock" and "Lifecycle configuration elements"; MinIO
documentation, "Object lifecycle management" and "Access management".
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import Change, Line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ENABLED, SUSPENDED, NEVER = "enabled", "suspended", "never enabled"
"""What versioning of a bucket is."""

QUOTA, ACCOUNTS = "quota", "accounts"
"""What a provider may be able to do beyond S3: limits of buckets; users and policies."""

SHORTEST_NAME, SHORTEST_SECRET = 3, 8
"""Characters of a user's name and secret, by MinIO's own rule."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MOST_RULES = 1000
_SET_KEYS = ("Action", "NotAction", "Resource", "NotResource")


@dataclass(frozen=True, slots=True)
class Retention:
    """For how long a new object is locked when its writer says nothing.

    Attributes:
        mode: `governance`, which a right overrides, or `compliance`, which nobody does.
        days: for how many; one of the two is set.
        years: or for how many of these.
    """

    mode: str
    days: int | None = None
    years: int | None = None

    def __str__(self) -> str:
        """In words."""
        number, unit = (self.days, "days") if self.days is not None else (self.years, "years")
        return f"{self.mode}, {number} {unit}"


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """One rule of a bucket's lifecycle.

    Attributes:
        id: its name.
        prefix: how the names of the objects begin that it is about; empty for all.
        enabled: it is in force.
        expire_days: age in days at which an object goes, or of a bucket with versions becomes an older version.
        expire_markers: a mark of deletion goes when no version is left below it.
        older_days: days after which an older version goes.
        older_kept: how many older versions stay all the same.
        other: what a live rule has beyond that, in words.
    """

    id: str
    prefix: str = ""
    enabled: bool = True
    expire_days: int | None = None
    expire_markers: bool = False
    older_days: int | None = None
    older_kept: int | None = None
    other: str = ""

    def __str__(self) -> str:
        """In words."""
        said = [f"objects {self.prefix}*"]
        if self.expire_days is not None:
            said.append(f"expire after {self.expire_days} days")
        if self.expire_markers:
            said.append("marks of deletion expire")
        if self.older_days is not None:
            said.append(f"older versions expire after {self.older_days} days")
        if self.older_kept is not None:
            said.append(f"{self.older_kept} older versions stay")
        said += [self.other] if self.other else []
        return ", ".join(said if self.enabled else [*said, "not in force"])


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket as declared; None: this is left alone.

    Attributes:
        name: its name.
        versioning: `enabled` or `suspended`.
        object_lock: objects can be locked, which only a new bucket learns.
        retention: how new objects are locked; empty text: not at all.
        lifecycle: all of its rules.
        quota_bytes: how much it may hold; 0 for any.
        present: False: it is deleted, if nothing is in it.
    """

    name: str
    versioning: str | None = None
    object_lock: bool | None = None
    retention: Retention | str | None = None
    lifecycle: tuple[Rule, ...] | None = None
    quota_bytes: int | None = None
    present: bool = True


@dataclass(frozen=True, slots=True)
class User:
    """A user as declared.

    Attributes:
        name: the access key.
        secret: the secret key.
        policies: all that it has of its own; None: they are left alone.
        present: False: there is no such user.
    """

    name: str
    secret: str = field(default="", repr=False)
    policies: tuple[str, ...] | None = None
    present: bool = True


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy as declared.

    Attributes:
        name: its name.
        document: what it allows.
        present: False: there is no such policy.
    """

    name: str
    document: Mapping[str, Any] = field(default_factory=dict)
    present: bool = True


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that is declared."""

    buckets: tuple[Bucket, ...] = ()
    users: tuple[User, ...] = ()
    policies: tuple[Policy, ...] = ()


@dataclass(frozen=True, slots=True)
class LiveBucket:
    """A bucket as it is, as far as what is declared of it asks for.

    Attributes:
        versioning: see `ENABLED`.
        object_lock: objects can be locked.
        retention: how new objects are.
        lifecycle: its rules.
        quota_bytes: how much it may hold; 0 for any.
        empty: no object, older version or mark of deletion is in it.
    """

    versioning: str = NEVER
    object_lock: bool = False
    retention: Retention | None = None
    lifecycle: tuple[Rule, ...] = ()
    quota_bytes: int = 0
    empty: bool = True


@dataclass(frozen=True, slots=True)
class LiveUser:
    """A user as it is.

    Attributes:
        policies: that it has of its own.
        enabled: it can log in.
    """

    policies: frozenset[str] = frozenset()
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Store:
    """What is known of a store before it is asked.

    Attributes:
        provider: whose product it is.
        features: what of `QUOTA` and `ACCOUNTS` it can do.
        administrator: our own access key.
        builtin_policies: that its product brings.
        reserved_buckets: names that it keeps for itself.
    """

    provider: str
    features: frozenset[str] = frozenset()
    administrator: str = ""
    builtin_policies: frozenset[str] = frozenset()
    reserved_buckets: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class State:
    """A store as it is.

    Attributes:
        buckets: by name.
        users: by name.
        all_users: `users` are all that there are, and not only those that were asked for by name.
        policies: document by name, as `canonical` writes it: a store may write each answer in another order.
        proven: users for whom a request with the declared secret was taken.
    """

    buckets: Mapping[str, LiveBucket] = field(default_factory=dict)
    users: Mapping[str, LiveUser] = field(default_factory=dict)
    all_users: bool = False
    policies: Mapping[str, str] = field(default_factory=dict)
    proven: frozenset[str] = frozenset()


# ------------------------------------------------------------------------------------------------------------- changes


@dataclass(frozen=True, slots=True)
class BucketChange(Change):
    """Something that is to be done to a bucket."""

    name: str

    @property
    def subject(self) -> str:
        """The bucket."""
        return f"bucket {self.name}"


@dataclass(frozen=True, slots=True)
class BucketCreated(BucketChange):
    """A bucket that is not there."""

    object_lock: bool

    def lines(self) -> list[Line]:
        """That it comes, and whether its objects can be locked."""
        locked = [Line("object_lock", "no", "yes")] if self.object_lock else []
        return [Line("state", "absent", "present"), *locked]


@dataclass(frozen=True, slots=True)
class VersioningSet(BucketChange):
    """A bucket whose versioning changes."""

    before: str
    after: str

    def lines(self) -> list[Line]:
        """What it was and will be."""
        return [Line("versioning", self.before, self.after)]


@dataclass(frozen=True, slots=True)
class RetentionSet(BucketChange):
    """A bucket whose new objects are locked otherwise."""

    before: Retention | None
    after: Retention | None

    def lines(self) -> list[Line]:
        """How they were and will be."""
        return [Line("retention", _or_none(self.before), _or_none(self.after))]


@dataclass(frozen=True, slots=True)
class LifecycleSet(BucketChange):
    """A bucket whose rules change."""

    before: tuple[Rule, ...]
    after: tuple[Rule, ...]

    def lines(self) -> list[Line]:
        """Each rule that differs."""
        before, after = ({rule.id: rule for rule in rules} for rules in (self.before, self.after))
        return [
            Line(f"lifecycle {name}", _or_none(before.get(name)), _or_none(after.get(name)))
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]


@dataclass(frozen=True, slots=True)
class QuotaSet(BucketChange):
    """A bucket that may hold another amount."""

    before: int
    after: int

    def lines(self) -> list[Line]:
        """The numbers."""
        return [Line("quota_bytes", str(self.before or "none"), str(self.after or "none"))]


@dataclass(frozen=True, slots=True)
class BucketDeleted(BucketChange):
    """An empty bucket that goes."""

    def lines(self) -> list[Line]:
        """That it goes."""
        return [Line("state", "present", "absent")]


@dataclass(frozen=True, slots=True)
class PolicySet(Change):
    """A policy that is made or replaced.

    Attributes:
        name: of the policy.
        before: its document, as `canonical` writes it; None when there is none.
        after: its document.
    """

    name: str
    before: str | None
    after: Mapping[str, Any]

    @property
    def subject(self) -> str:
        """The policy."""
        return f"policy {self.name}"

    def lines(self) -> list[Line]:
        """The documents."""
        return [Line("document", _or_none(self.before), canonical(self.after))]


@dataclass(frozen=True, slots=True)
class PolicyDeleted(Change):
    """A policy that goes."""

    name: str

    @property
    def subject(self) -> str:
        """The policy."""
        return f"policy {self.name}"

    def lines(self) -> list[Line]:
        """That it goes."""
        return [Line("state", "present", "absent")]


@dataclass(frozen=True, slots=True)
class UserChange(Change):
    """Something that is to be done to a user."""

    name: str

    @property
    def subject(self) -> str:
        """The user."""
        return f"user {self.name}"


@dataclass(frozen=True, slots=True)
class UserSet(UserChange):
    """A user who is made, let in again, or gets another secret.

    Attributes:
        secret: the secret key.
        before: what there is, in words.
    """

    secret: str = field(repr=False)
    before: str

    def lines(self) -> list[Line]:
        """That it differs, and not how."""
        return [Line("secret_key", self.before, "as declared")]


@dataclass(frozen=True, slots=True)
class UserPoliciesSet(UserChange):
    """A user who may do something else."""

    before: frozenset[str]
    after: frozenset[str]

    def lines(self) -> list[Line]:
        """The names of the policies."""
        return [Line("policies", _names(self.before), _names(self.after))]


@dataclass(frozen=True, slots=True)
class UserDeleted(UserChange):
    """A user who goes."""

    def lines(self) -> list[Line]:
        """That it goes."""
        return [Line("state", "present", "absent")]


def _or_none(value: object) -> str:
    return "none" if value is None else str(value)


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


# ------------------------------------------------------------------------------------------------------------ policies


def canonical(document: Mapping[str, Any]) -> str:
    """A policy's document in the one way in which it is compared.

    A store sorts actions and resources, makes a list of what is one, and leaves out what is empty.

    Args:
        document: with the keys `Version` and `Statement`.
    """
    statements = document.get("Statement", [])
    told = [_statement(one) for one in (statements if isinstance(statements, list) else [statements])]
    # Neither order nor number of statements has a meaning: what one of them denies is denied.
    distinct = {_json(statement): statement for statement in told}
    rest = {key: value for key, value in document.items() if key != "Statement" and value}
    return _json({**rest, "Statement": [distinct[text] for text in sorted(distinct)]})


def _statement(statement: Mapping[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in statement.items() if value}
    for key in _SET_KEYS:
        if key in told:
            told[key] = _set(told[key])
    if "Condition" in told:
        told["Condition"] = {
            operator: {key: _set(value) for key, value in tests.items()}
            for operator, tests in told["Condition"].items()
        }
    return told


def _set(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return sorted({json.dumps(one) if isinstance(one, bool) else str(one) for one in values})


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


# ------------------------------------------------------------------------------------------------------------- refusal


def refusals(store: Store, state: State | None, wanted: Wanted) -> list[str]:
    """What is declared and cannot be, or must not be done, one sentence each.

    Args:
        store: what is known of it.
        state: as it is; None when nobody was asked, and then only what contradicts itself is found.
        wanted: what is declared.
    """
    there = state or State()
    found = [*_twice(wanted), *_missing_features(store, wanted)]
    for bucket in wanted.buckets:
        found += _bucket_refusals(bucket, there.buckets.get(bucket.name), store)
    for policy in wanted.policies:
        found += _policy_refusals(policy, store)
    for user in wanted.users:
        found += _user_refusals(user, store)
    if state is not None:
        found += _reference_refusals(store, state, wanted)
    return found


def _twice(wanted: Wanted) -> Iterator[str]:
    names = Counter(
        [
            *(f"bucket {bucket.name}" for bucket in wanted.buckets),
            *(f"user {user.name}" for user in wanted.users),
            *(f"policy {policy.name}" for policy in wanted.policies),
        ]
    )
    return (f"{name} is declared more than once: declare it once." for name, count in names.items() if count > 1)


def _missing_features(store: Store, wanted: Wanted) -> Iterator[str]:
    if QUOTA not in store.features:
        for bucket in wanted.buckets:
            if bucket.quota_bytes is not None:
                yield f"bucket {bucket.name}: quota_bytes is set, and provider {store.provider} has none: leave it out."
    if ACCOUNTS not in store.features and (wanted.users or wanted.policies):
        yield (
            f"users or policies are declared, which provider {store.provider} does not manage: leave them out, and "
            f"make them by the means of the product."
        )


def _bucket_refusals(bucket: Bucket, live: LiveBucket | None, store: Store) -> Iterator[str]:
    name = f"bucket {bucket.name}"
    if not _is_bucket_name(bucket.name) or bucket.name in store.reserved_buckets:
        yield (
            f"{name}: a name is 3 to 63 lower-case letters, digits, '.' or '-', begins and ends with a letter or a "
            f"digit, is no address, and is not reserved by the product: give it such a name."
        )
        return
    if not bucket.present:
        if live and not live.empty:
            yield f"{name}: it is declared absent, and objects or older versions are in it: delete these first."
        return
    yield from _lock_refusals(bucket, live)
    if bucket.quota_bytes is not None and bucket.quota_bytes < 0:
        yield f"{name}: quota_bytes is {bucket.quota_bytes}: set it to a number of bytes, or to 0 for no limit."
    yield from _lifecycle_refusals(bucket)


def _is_bucket_name(name: str) -> bool:
    if not _BUCKET.fullmatch(name) or ".." in name or ".-" in name or "-." in name:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return True
    return False


def _lock_refusals(bucket: Bucket, live: LiveBucket | None) -> Iterator[str]:
    name = f"bucket {bucket.name}"
    if live and bucket.object_lock is not None and bucket.object_lock != live.object_lock:
        has, wants = ("has", "false") if live.object_lock else ("has not", "true")
        yield (
            f"{name}: object_lock is {wants}, and the bucket {has} got it, which is settled when a bucket is made: "
            f"make another bucket and copy the objects."
        )
        return
    locked = live.object_lock if live else bool(bucket.object_lock)
    if locked and bucket.versioning == SUSPENDED:
        yield f"{name}: versioning is suspended, and its objects can be locked: leave versioning out, or enable it."
    retention = bucket.retention
    if not isinstance(retention, Retention):
        return
    if not locked:
        yield f"{name}: retention is set, and its objects cannot be locked: set object_lock, which needs a new bucket."
    numbers = [number for number in (retention.days, retention.years) if number is not None]
    if len(numbers) != 1 or numbers[0] < 1:
        yield f"{name}: retention needs either days or years, of 1 or more: set one of them."


def _lifecycle_refusals(bucket: Bucket) -> Iterator[str]:
    rules = bucket.lifecycle or ()
    name = f"bucket {bucket.name}"
    if len(rules) > _MOST_RULES:
        yield f"{name}: it has {len(rules)} lifecycle rules, and {_MOST_RULES} are the most: merge some."
    for rule_id, count in Counter(rule.id for rule in rules).items():
        if count > 1:
            yield f"{name}: lifecycle has {rule_id} more than once: give each rule a name of its own."
    for rule in rules:
        where = f"{name}: lifecycle {rule.id}"
        numbers = {"expire_days": rule.expire_days, "older_days": rule.older_days, "older_kept": rule.older_kept}
        for key, number in numbers.items():
            if number is not None and number < 1:
                yield f"{where}: {key} is {number}: set it to 1 or more."
        if not rule.id:
            yield f"{where}: it has no name: set id."
        if rule.expire_days is not None and rule.expire_markers:
            yield f"{where}: it has expire_days and expire_markers, which S3 takes in two rules only: make two."
        if not rule.expire_markers and all(number is None for number in numbers.values()):
            yield f"{where}: it does nothing: set expire_days, expire_markers, older_days or older_kept."


def _policy_refusals(policy: Policy, store: Store) -> Iterator[str]:
    name = f"policy {policy.name}"
    if not policy.name or policy.name != policy.name.strip() or "," in policy.name:
        yield f"{name}: a name has no comma, and no space at its ends: give it such a name."
    if policy.name in store.builtin_policies:
        yield f"{name}: it is the product's own, and others rely on what it allows: choose another name."
    if policy.present and (fault := _document_fault(policy.document)):
        yield f"{name}: {fault}"


def _document_fault(document: Mapping[str, Any]) -> str:
    statements = document.get("Statement")
    if not document.get("Version") or not isinstance(statements, list) or not statements:
        return "document has no Version, or no list of Statement: write both."
    for number, statement in enumerate(statements, 1):
        if not isinstance(statement, dict) or statement.get("Effect") not in ("Allow", "Deny"):
            return f"document: statement {number} has no Effect that is Allow or Deny: set it."
        if not statement.get("Action") and not statement.get("NotAction"):
            return f"document: statement {number} has no Action: set it."
        condition = statement.get("Condition", {})
        if not isinstance(condition, dict) or not all(isinstance(tests, dict) for tests in condition.values()):
            return f"document: statement {number} has a Condition that is no operator with keys: write it so."
    return ""


def _user_refusals(user: User, store: Store) -> Iterator[str]:
    name = f"user {user.name}"
    if len(user.name) < SHORTEST_NAME or user.name != user.name.strip() or {"=", ","} & set(user.name):
        yield (
            f"{name}: a name has {SHORTEST_NAME} characters or more, no '=' or ',', and no space at its ends: give it "
            f"such a name."
        )
    if user.name == store.administrator:
        yield f"{name}: it is who makes this change: declare other users."
    if not user.present:
        return
    if len(user.secret) < SHORTEST_SECRET:
        yield f"{name}: secret_key has fewer than {SHORTEST_SECRET} characters: set a longer one."
    elif user.secret == user.name:
        yield f"{name}: secret_key is the name itself: set another."


def _reference_refusals(store: Store, state: State, wanted: Wanted) -> Iterator[str]:
    """What users refer to and will not be there."""
    leaving = {policy.name for policy in wanted.policies if not policy.present}
    coming = {policy.name for policy in wanted.policies if policy.present}
    known = (set(state.policies) | coming | store.builtin_policies) - leaving
    declared = {user.name: user for user in wanted.users}
    for user in wanted.users:
        if missing := sorted(set(user.policies or ()) - known) if user.present else []:
            yield f"user {user.name}: there is no policy {', '.join(missing)}: declare it, or leave it out."
    for name, live in state.users.items():
        who = declared.get(name)
        stays = who is None or (who.present and who.policies is None)
        if held := sorted(live.policies & leaving) if stays else []:
            yield f"policy {', '.join(held)}: user {name} has it, and it is declared absent: take it away first."


# ---------------------------------------------------------------------------------------------------------------- plan


def plan(state: State, wanted: Wanted) -> list[Change]:
    """What must be done, in the order in which it is: what there is, who may, and last what goes.

    Args:
        state: the store; `State()` for an empty one.
        wanted: what is declared and was not refused.
    """
    changes: list[Change] = []
    for bucket in wanted.buckets:
        if bucket.present:
            changes += _bucket_changes(bucket, state.buckets.get(bucket.name))
    for policy in wanted.policies:
        live = state.policies.get(policy.name)
        if policy.present and live != canonical(policy.document):
            changes.append(PolicySet(policy.name, live, policy.document))
    for user in wanted.users:
        if user.present:
            changes += _user_changes(user, state)
    users = [user.name for user in wanted.users if not user.present and user.name in state.users]
    policies = [policy.name for policy in wanted.policies if not policy.present and policy.name in state.policies]
    buckets = [bucket.name for bucket in wanted.buckets if not bucket.present and bucket.name in state.buckets]
    return [
        *changes,
        *(UserDeleted(name) for name in users),
        *(PolicyDeleted(name) for name in policies),
        *(BucketDeleted(name) for name in buckets),
    ]


def _bucket_changes(bucket: Bucket, live: LiveBucket | None) -> Iterator[Change]:
    if live is None:
        locked = bool(bucket.object_lock)
        yield BucketCreated(bucket.name, locked)
        # Who can lock objects keeps their versions.
        live = LiveBucket(versioning=ENABLED if locked else NEVER, object_lock=locked)
    # A bucket that never had versions has nothing that could be suspended.
    as_good_as = {SUSPENDED: {SUSPENDED, NEVER}, ENABLED: {ENABLED}}
    if bucket.versioning is not None and live.versioning not in as_good_as[bucket.versioning]:
        yield VersioningSet(bucket.name, live.versioning, bucket.versioning)
    if bucket.retention is not None:
        retention = bucket.retention if isinstance(bucket.retention, Retention) else None
        if retention != live.retention:
            yield RetentionSet(bucket.name, live.retention, retention)
    if bucket.lifecycle is not None and sorted(bucket.lifecycle, key=_by_id) != sorted(live.lifecycle, key=_by_id):
        yield LifecycleSet(bucket.name, live.lifecycle, bucket.lifecycle)
    if bucket.quota_bytes is not None and bucket.quota_bytes != live.quota_bytes:
        yield QuotaSet(bucket.name, live.quota_bytes, bucket.quota_bytes)


def _by_id(rule: Rule) -> str:
    return rule.id


def _user_changes(user: User, state: State) -> Iterator[Change]:
    live = state.users.get(user.name)
    if live is None:
        yield UserSet(user.name, user.secret, "none")
    elif not live.enabled:
        yield UserSet(user.name, user.secret, "one that cannot log in")
    elif user.name not in state.proven:
        yield UserSet(user.name, user.secret, "another one")
    policies = live.policies if live else frozenset()
    if user.policies is not None and set(user.policies) != policies:
        yield UserPoliciesSet(user.name, policies, frozenset(user.policies))


def unmanaged(store: Store, state: State, wanted: Wanted) -> dict[str, list[str]]:
    """What the store has and nobody declares, by kind; no users where it does not tell them to us."""
    buckets, users, policies = (
        {one.name for one in declared} for declared in (wanted.buckets, wanted.users, wanted.policies)
    )
    found = {"buckets": sorted(set(state.buckets) - buckets)}
    if ACCOUNTS in store.features:
        found["policies"] = sorted(set(state.policies) - policies - store.builtin_policies)
        if state.all_users:
            found["users"] = sorted(set(state.users) - users)
    return found
