# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Buckets, users and policies against a real MinIO: as declared, as predicted, and nothing but what was named.

What is of S3 alone is run against each store that there is: the same tests, whoever made the store.
"""

from __future__ import annotations

import itertools
import socket
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import minio_sealed
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_admin import Admin, Outcome
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_plan import (
    Bucket,
    Policy,
    Retention,
    Rule,
    State,
    User,
    Wanted,
    plan,
    unmanaged,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_s3 import accepts, lifecycle_body
from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import (
    RefusedError,
    UnfinishedError,
    difference,
    summary,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.s3_client import (
    AnswerError,
    Credentials,
    Request,
    S3Client,
    UnreachableError,
    content_md5,
    server_context,
)

from tests.programs.cluster import Authority, free_port, running
from tests.programs.play import Role
from tests.programs.resources import Converged
from tests.programs.store import REGION, Minio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.programs.play import Answer
    from tests.programs.store import Server

_COUNT = itertools.count()
SECRET, OTHER = "geheim-eins", "geheim-zwei"


class Runs(Converged[Wanted]):
    """Runs against a store; the names of what a test makes begin with its prefix."""

    def __init__(self, server: Server) -> None:
        self.server, self.prefix = server, f"t{next(_COUNT)}-"
        self.client = server.client()
        self.requests = self.logins = 0

    def run(self, wanted: Wanted, *, check: bool = False, credentials: Credentials | None = None) -> Outcome:
        """Converge over a session of its own."""
        client = self.server.client(credentials)
        admin = Admin(client, self.server.provider)
        try:
            return admin.converge(wanted, check=check, wait_seconds=20)
        finally:
            self.requests, self.logins = client.requests, admin.logins
            client.close()

    def read(self, wanted: Wanted) -> State:
        """What there is."""
        return Admin(self.client, self.server.provider).read(wanted)

    def bucket(self, name: str = "a", **more: Any) -> Bucket:
        return Bucket(f"{self.prefix}{name}", **more)

    def user(self, name: str = "u", secret: str = SECRET, **more: Any) -> User:
        return User(f"{self.prefix}{name}", secret, **more)

    def policy(self, name: str = "p", *actions: str) -> Policy:
        statement = {
            "Effect": "Allow",
            "Action": list(actions) or "s3:*",
            "Resource": [f"arn:aws:s3:::{self.prefix}a/*", f"arn:aws:s3:::{self.prefix}a"],
        }
        return Policy(f"{self.prefix}{name}", {"Version": "2012-10-17", "Statement": [statement]})

    def put(self, bucket: Bucket, key: str = "k", body: bytes = b"x", who: Credentials | None = None) -> None:
        self.client.ask(Request("PUT", f"/{bucket.name}/{key}", body=body), who)

    def lines(self, outcome: Outcome) -> list[str]:
        return [line.replace(self.prefix, "") for line in summary(outcome.changes)]


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minio]:
    """A running MinIO; a test that needs it fails, and does not skip, where it was not built."""
    with running(Minio(tmp_path_factory.mktemp("minio"))) as server:
        yield server


@pytest.fixture
def store(minio: Minio) -> Runs:
    return Runs(minio)


@pytest.fixture(params=["minio", "minio as s3"])
def any_store(request: pytest.FixtureRequest) -> Runs:
    """Each store that there is, and MinIO when nothing is known of it but S3."""
    server = request.getfixturevalue("minio")
    runs = Runs(server)
    if request.param.endswith("as s3"):
        runs.server = replace(server, provider="s3")
        runs.server.authority = server.authority
    return runs


# --------------------------------------------------------------------------------------------- what every S3 server has


def test_a_bucket_is_made_and_configured(any_store: Runs) -> None:
    bucket = any_store.bucket(versioning="enabled", lifecycle=(Rule("a", "logs/", expire_days=3),))
    made = any_store.both(Wanted((bucket, any_store.bucket("plain"))))
    assert any_store.lines(made) == [
        "bucket a: state", "bucket a: versioning", "bucket a: lifecycle a", "bucket plain: state",
    ]  # fmt: skip
    changed = replace(
        bucket,
        versioning="suspended",
        lifecycle=(
            Rule("a", "logs/", expire_days=4, enabled=False),
            Rule("b", older_days=2, older_kept=3),
            Rule("c", "ü &<", expire_markers=True),
        ),
    )
    before, after = difference(any_store.both(Wanted((changed,))).changes)
    assert before.replace(f"bucket {bucket.name}: ", "").splitlines() == [
        "versioning: enabled",
        "lifecycle a: objects logs/*, expire after 3 days",
        "lifecycle b: none",
        "lifecycle c: none",
    ]
    assert after.replace(f"bucket {bucket.name}: ", "").splitlines() == [
        "versioning: suspended",
        "lifecycle a: objects logs/*, expire after 4 days, not in force",
        "lifecycle b: objects *, older versions expire after 2 days, 3 older versions stay",
        "lifecycle c: objects ü &<*, marks of deletion expire",
    ]
    # What is not said is left, and what is said to be none is none.
    assert any_store.both(Wanted((Bucket(bucket.name),))).changes == []
    emptied = any_store.both(Wanted((Bucket(bucket.name, lifecycle=()),)))
    assert any_store.lines(emptied) == [f"bucket a: lifecycle {rule}" for rule in "abc"]


def test_what_somebody_else_changed_is_put_right(any_store: Runs) -> None:
    bucket = any_store.bucket(lifecycle=(Rule("a", expire_days=3),))
    any_store.both(Wanted((bucket,)))
    foreign = lifecycle_body((Rule("a", expire_days=3),)).replace(
        b"<Filter><Prefix /></Filter>",
        b"<Filter><And><Prefix>x</Prefix><Tag><Key>k</Key><Value>v</Value></Tag></And></Filter>",
    )
    assert b"<Tag>" in foreign
    any_store.client.ask(Request("PUT", f"/{bucket.name}", {"lifecycle": ""}, foreign, content_md5(foreign)))
    (change,) = any_store.run(Wanted((bucket,)), check=True).changes
    assert "Filter/And" in change.lines()[0].before
    assert any_store.lines(any_store.both(Wanted((bucket,)))) == ["bucket a: lifecycle a"]


def test_objects_are_locked_from_the_first(any_store: Runs) -> None:
    bucket = any_store.bucket(object_lock=True, retention=Retention("governance", days=1))
    made = any_store.both(Wanted((bucket,)))
    assert any_store.lines(made) == ["bucket a: state", "bucket a: object_lock", "bucket a: retention"]
    any_store.put(bucket)
    listed = any_store.client.ask(Request("GET", f"/{bucket.name}", {"versions": ""})).text
    version = listed.split("<VersionId>")[1].split("<")[0]
    with pytest.raises(AnswerError, match=r"WORM|[Ll]ock|AccessDenied"):
        any_store.client.ask(Request("DELETE", f"/{bucket.name}/k", {"versionId": version}))
    longer = replace(bucket, retention=Retention("compliance", years=1))
    assert difference(any_store.both(Wanted((longer,))).changes) == (
        f"bucket {bucket.name}: retention: governance, 1 days\n",
        f"bucket {bucket.name}: retention: compliance, 1 years\n",
    )
    any_store.both(Wanted((replace(bucket, retention=""),)))
    for wrong, reason in (
        (replace(bucket, object_lock=False, retention=None), "object_lock is false, and the bucket has got it"),
        (Bucket(bucket.name, versioning="suspended"), "versioning is suspended, and its objects can be locked"),
    ):
        with pytest.raises(RefusedError, match=reason):
            any_store.run(Wanted((wrong,)))


def test_a_bucket_that_was_made_without_locks_gets_none(any_store: Runs) -> None:
    bucket = any_store.bucket()
    any_store.both(Wanted((bucket,)))
    for wrong in (replace(bucket, object_lock=True), replace(bucket, retention=Retention("governance", days=1))):
        with pytest.raises(RefusedError, match=r"object_lock is true|its objects cannot be locked"):
            any_store.run(Wanted((wrong,)))


def test_a_bucket_is_deleted_only_by_its_name_and_only_when_it_is_empty(any_store: Runs) -> None:
    one, other = any_store.bucket("a", versioning="enabled"), any_store.bucket("b")
    any_store.both(Wanted((one, other)))
    any_store.put(one)
    assert any_store.both(Wanted((other,))).changes == []
    assert any_store.both(Wanted()).changes == []
    absent = Wanted((replace(one, present=False), replace(other, present=False)))
    for check in (True, False):
        with pytest.raises(RefusedError, match=f"bucket {one.name}: it is declared absent, and objects or older"):
            any_store.run(absent, check=check)
    assert {one.name, other.name} <= set(any_store.read(Wanted()).buckets)
    # An object that is deleted where there are versions leaves its version and a mark.
    any_store.client.ask(Request("DELETE", f"/{one.name}/k"))
    with pytest.raises(RefusedError, match="objects or older versions are in it"):
        any_store.run(absent)
    listed = any_store.client.ask(Request("GET", f"/{one.name}", {"versions": ""})).text
    for version in [part.split("<")[0] for part in listed.split("<VersionId>")[1:]]:
        any_store.client.ask(Request("DELETE", f"/{one.name}/k", {"versionId": version}))
    assert any_store.lines(any_store.both(absent)) == ["bucket a: state", "bucket b: state"]
    assert not {one.name, other.name} & set(any_store.read(Wanted()).buckets)


def test_what_cannot_be_is_refused_before_anything_is_touched_and_all_at_once(any_store: Runs) -> None:
    there = any_store.bucket("there")
    any_store.both(Wanted((there,)))
    wanted = Wanted(
        (
            replace(there, object_lock=True),
            any_store.bucket("A"),
            any_store.bucket("fine"),
            any_store.bucket("rule", lifecycle=(Rule("a"),)),
        )
    )
    for check in (True, False):
        with pytest.raises(RefusedError) as refused:
            any_store.run(wanted, check=check)
        assert len(refused.value.reasons) >= 2
    assert any_store.bucket("fine").name not in any_store.read(Wanted()).buckets
    with pytest.raises(RefusedError) as refused:
        any_store.run(Wanted((replace(there, object_lock=True), any_store.bucket("fine"))))
    assert any_store.bucket("fine").name not in any_store.read(Wanted()).buckets


def test_what_only_s3_has_needs_no_provider(any_store: Runs) -> None:
    if any_store.server.provider != "s3":
        pytest.skip("it is about a store of which we know S3 alone")
    wanted = Wanted((any_store.bucket(quota_bytes=5),), (any_store.user(),))
    with pytest.raises(RefusedError) as refused:
        any_store.run(wanted)
    assert next(reason.split(": ")[0] for reason in refused.value.reasons) == f"bucket {any_store.prefix}a"
    assert unmanaged(Admin(any_store.client, "s3").store, any_store.read(Wanted()), Wanted()).keys() == {"buckets"}


# ------------------------------------------------------------------------------------------------- what MinIO has more


def test_a_bucket_holds_no_more_than_its_quota(store: Runs) -> None:
    bucket = store.bucket(quota_bytes=1 << 20)
    store.both(Wanted((bucket,)))
    with pytest.raises(AnswerError, match="quota"):
        store.put(bucket, body=bytes((1 << 20) + 1))
    before, after = difference(store.both(Wanted((replace(bucket, quota_bytes=0),))).changes)
    assert (before, after) == (
        f"bucket {bucket.name}: quota_bytes: 1048576\n",
        f"bucket {bucket.name}: quota_bytes: none\n",
    )
    store.put(bucket, body=bytes((1 << 20) + 1))


def test_users_may_what_their_policies_say_and_no_more(store: Runs) -> None:
    bucket, policy = store.bucket(), store.policy("p", "s3:PutObject")
    user = store.user(policies=(policy.name,))
    made = store.both(Wanted((bucket,), (user,), (policy,)))
    assert store.lines(made) == [
        "bucket a: state", "policy p: document", "user u: secret_key", "user u: policies",
    ]  # fmt: skip
    assert store.logins == 1
    who = Credentials(user.name, SECRET)
    store.put(bucket, who=who)
    with pytest.raises(AnswerError, match="AccessDenied"):
        store.client.ask(Request("GET", f"/{bucket.name}/k"), who)
    store.both(Wanted(policies=(store.policy("p", "s3:GetObject"),)))
    store.client.ask(Request("GET", f"/{bucket.name}/k"), who)
    with pytest.raises(AnswerError, match="AccessDenied"):
        store.put(bucket, who=who)
    before, after = difference(
        store.both(Wanted(users=(replace(user, policies=("readwrite", "diagnostics")),))).changes
    )
    assert before == f"user {user.name}: policies: {policy.name}\n"
    assert after == f"user {user.name}: policies: diagnostics, readwrite\n"
    store.put(bucket, who=who)
    assert store.lines(store.both(Wanted(users=(replace(user, policies=()),)))) == ["user u: policies"]
    with pytest.raises(AnswerError, match="AccessDenied"):
        store.put(bucket, who=who)


def test_a_secret_is_proven_and_never_told(store: Runs) -> None:
    user = store.user(secret="geheim-ü&\"'")
    store.both(Wanted(users=(user,)))
    assert accepts(store.client, Credentials(user.name, user.secret))
    other = replace(user, secret=OTHER)
    changed = store.both(Wanted(users=(other,)))
    assert difference(changed.changes) == (
        f"user {user.name}: secret_key: another one\n",
        f"user {user.name}: secret_key: as declared\n",
    )
    assert not accepts(store.client, Credentials(user.name, user.secret))
    assert accepts(store.client, Credentials(user.name, OTHER))
    assert not accepts(store.client, Credentials(f"{store.prefix}nobody", OTHER))


def test_a_user_who_was_shut_out_is_let_in_with_its_policies(store: Runs) -> None:
    user = store.user(policies=("readonly",))
    store.both(Wanted(users=(user,)))
    query = {"accessKey": user.name, "status": "disabled"}
    store.client.ask(Request("PUT", "/minio/admin/v3/set-user-status", query))
    assert not accepts(store.client, Credentials(user.name, SECRET))
    changed = store.both(Wanted(users=(user,)))
    assert difference(changed.changes)[0] == f"user {user.name}: secret_key: one that cannot log in\n"
    assert store.read(Wanted(users=(user,))).users[user.name].policies == {"readonly"}


def test_users_and_policies_go_only_by_name(store: Runs) -> None:
    policy = store.policy()
    user, other = store.user(policies=(policy.name,)), store.user("other")
    store.both(Wanted(users=(user, other), policies=(policy,)))
    assert store.both(Wanted()).changes == []
    gone = replace(policy, present=False)
    with pytest.raises(RefusedError, match=f"user {user.name} has it, and it is declared absent"):
        store.run(Wanted(policies=(gone,)))
    done = store.both(Wanted(users=(replace(user, present=False),), policies=(gone,)))
    assert store.lines(done) == ["user u: state", "policy p: state"]
    state = store.read(Wanted())
    assert user.name not in state.users
    assert other.name in state.users
    assert policy.name not in state.policies
    assert not accepts(store.client, Credentials(user.name, SECRET))


def test_a_policy_means_the_same_however_it_is_written(store: Runs) -> None:
    statement = {
        "Sid": "one",
        "Effect": "Deny",
        "Action": ["s3:PutObject", "s3:DeleteObject", "s3:PutObject"],
        "Resource": "arn:aws:s3:::x/*",
        "Condition": {
            "Bool": {"aws:SecureTransport": False},
            "IpAddress": {"aws:SourceIp": ["192.0.2.0/24", "10.0.0.0/8"]},
        },
    }
    list_statement = {
        "Effect": "Allow",
        "Action": "s3:ListBucket",
        "Resource": "arn:aws:s3:::x",
        "Condition": {"NumericLessThanEquals": {"s3:max-keys": 3}, "StringLike": {"s3:prefix": "logs/*"}},
    }
    document = {"Version": "2012-10-17", "Statement": [statement, list_statement, list_statement]}
    store.both(Wanted(policies=(Policy(f"{store.prefix}p", document),)))


def test_what_is_not_ours_is_told(store: Runs) -> None:
    wanted = Wanted((store.bucket(),), (store.user(),), (store.policy(),))
    store.both(wanted)
    none = unmanaged(Admin(store.client).store, store.read(Wanted()), Wanted())
    assert {kind: [name for name in names if name.startswith(store.prefix)] for kind, names in none.items()} == {
        "buckets": [f"{store.prefix}a"],
        "policies": [f"{store.prefix}p"],
        "users": [f"{store.prefix}u"],
    }
    assert "readonly" not in none["policies"]


def test_without_argon2_users_are_asked_for_by_name(store: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.kdf.argon2", None)
    policy = store.policy()
    user = store.user(policies=(policy.name,))
    wanted = Wanted(users=(user, store.user("absent", present=False)), policies=(policy,))
    store.both(wanted)
    state = store.read(wanted)
    assert set(state.users) == {user.name}
    assert not state.all_users
    assert "users" not in unmanaged(Admin(store.client).store, state, wanted)
    # Who else has a policy is then for the store to say.
    with pytest.raises(UnfinishedError, match=f"policy {policy.name}: state: .*"):
        store.run(Wanted(policies=(replace(policy, present=False),)))
    assert policy.name in store.read(Wanted()).policies


def test_what_the_store_seals_is_opened(store: Runs) -> None:
    body = store.client.ask(Request("GET", "/minio/admin/v3/list-users")).body
    assert minio_sealed.unseal(store.server.credentials.secret_key, body).startswith(b"{")
    with pytest.raises(minio_sealed.SealError, match="does not open"):
        minio_sealed.unseal("another", body)


# -------------------------------------------------------------------------------------------------------- who may what


def test_nobody_else_changes_anything_and_is_told_so(store: Runs) -> None:
    wanted = Wanted((store.bucket(),), (store.user("v"),))
    for stranger, code in (
        (Credentials("nobody", SECRET), "InvalidAccessKeyId"),
        (replace(store.server.credentials, secret_key=SECRET), "SignatureDoesNotMatch"),
    ):
        with pytest.raises(AnswerError, match=code):
            store.run(wanted, credentials=stranger)
    user = store.user()
    store.both(Wanted(users=(user,)))
    with pytest.raises(AnswerError, match="AccessDenied"):
        store.run(wanted, credentials=Credentials(user.name, SECRET))
    assert store.bucket().name not in store.read(Wanted()).buckets


def test_a_store_of_another_authority_is_not_trusted(minio: Minio, tmp_path: Path) -> None:
    strange = server_context(str(Authority(tmp_path, "another").path))
    with pytest.raises(UnreachableError, match="its certificate was not accepted"):
        S3Client([minio.url], strange, minio.credentials, region=REGION)


def test_another_server_is_asked_when_the_first_does_not_answer(minio: Minio) -> None:
    context = server_context(str(minio.authority.path))
    nowhere = f"https://127.0.0.1:{free_port()}"
    S3Client([nowhere, minio.url], context, minio.credentials, region=REGION).close()
    with pytest.raises(UnreachableError, match=r"connection refused; .*connection refused"):
        S3Client([nowhere, nowhere], context, minio.credentials, region=REGION)


def test_a_connection_that_was_closed_is_opened_again(store: Runs) -> None:
    store.client._connection.sock.close()
    store.client._connection.close()
    store.client.ask(Request("GET", "/"))
    # One that the server closed while we were idle is seen only when it is used.
    store.client._connection.sock.shutdown(socket.SHUT_WR)
    store.client.ask(Request("GET", "/"))


def test_a_change_that_fails_on_the_way_is_named_and_the_rest_is_done(store: Runs) -> None:
    # A condition that the store does not know, which only the store can say.
    wrong = store.policy("wrong")
    wrong.document["Statement"][0]["Action"] = ["s3:NoSuchAction"]
    wanted = Wanted((store.bucket(),), policies=(wrong, store.policy("fine")))
    with pytest.raises(UnfinishedError, match=f"policy {wrong.name}: document: .*answers 400"):
        store.run(wanted)
    state = store.read(Wanted())
    assert store.bucket().name in state.buckets
    assert store.policy("fine").name in state.policies
    assert wrong.name not in state.policies


def test_a_bucket_that_somebody_made_meanwhile_is_looked_at_again(store: Runs) -> None:
    wanted = Wanted((store.bucket(object_lock=True),))
    changes = plan(store.read(wanted), wanted)
    store.both(Wanted((store.bucket(),)))
    with pytest.raises(UnfinishedError, match=r"somebody else changed the store meanwhile. .*object_lock is true"):
        Admin(store.client)._carry_out(wanted, changes, 0)


# ------------------------------------------------------------------------------------------------------------- in bulk


def test_a_hundred_of_each_are_one_session(store: Runs) -> None:
    numbers = range(100)
    wanted = Wanted(
        tuple(store.bucket(str(number)) for number in numbers),
        tuple(store.user(str(number), policies=(f"{store.prefix}{number}",)) for number in numbers),
        tuple(store.policy(str(number)) for number in numbers),
    )
    started = time.monotonic()
    store.run(wanted)
    middle = time.monotonic()
    again = store.run(wanted)
    print(f"\n100 of each: first {middle - started:.1f} s, again {time.monotonic() - middle:.1f} s")
    assert again.changes == []
    # The lists of buckets, users and policies; two documents of each bucket; one proof of each user.
    assert (store.requests, store.logins) == (3 + 2 * 100 + 100, 100)
    gone = Wanted(
        *(
            tuple(replace(one, present=False) for one in kind)  # type: ignore[type-var]
            for kind in (wanted.buckets, wanted.users, wanted.policies)
        )
    )
    assert len(store.run(gone).changes) == 300


# -------------------------------------------------------------------------------------------------------------- a play


class Play:
    """The module as a play runs it."""

    def __init__(self, store: Runs, directory: Path) -> None:
        self.store, self.role = store, Role(directory)
        server = store.server
        self.variables = {"secret": SECRET, "root": server.credentials.secret_key}
        self.arguments = {
            "servers": [server.url],
            "ca": str(server.authority.path),
            "access_key": server.credentials.access_key,
            "secret_key": "{{ root }}",
        }

    def run(self, *flags: str, **arguments: Any) -> Answer:
        return self.role.run(
            "object_store_resources", {**self.arguments, **arguments}, *flags, variables=self.variables
        )


@pytest.fixture
def play(store: Runs, tmp_path: Path) -> Play:
    return Play(store, tmp_path)


def declared(prefix: str) -> dict[str, Any]:
    statement = {"Effect": "Allow", "Action": ["s3:*"], "Resource": [f"arn:aws:s3:::{prefix}a/*"]}
    return {
        "buckets": [
            {
                "name": f"{prefix}a",
                "object_lock": True,
                "retention": {"mode": "governance", "days": 2},
                "lifecycle": [{"id": "old", "older_days": 3}],
                "quota_bytes": 1048576,
            }
        ],
        "policies": [{"name": f"{prefix}p", "document": {"Version": "2012-10-17", "Statement": [statement]}}],
        "users": [{"name": f"{prefix}u", "secret_key": "{{ secret }}", "policies": [f"{prefix}p"]}],
    }


def test_a_play_predicts_does_and_has_nothing_left_to_do(play: Play) -> None:
    prefix = play.store.prefix
    predicted, done, again = (
        play.run(*flags, **declared(prefix)) for flags in (("--check", "--diff"), ("--diff", "-vvvv"), ("--diff",))
    )
    assert (predicted.result["changed"], done.result["changed"], again.result["changed"]) == (True, True, False)
    assert predicted.result["diff"] == done.result["diff"]
    assert done.result["changes"] == [
        *(f"bucket {prefix}a: {it}" for it in ("state", "object_lock", "retention", "lifecycle old", "quota_bytes")),
        f"policy {prefix}p: document",
        f"user {prefix}u: secret_key",
        f"user {prefix}u: policies",
    ]
    assert again.result["changes"] == []
    assert f"{prefix}a" not in again.result["unmanaged"]["buckets"]
    assert (again.result["requests"], again.result["logins"]) == (8, 1)
    play.variables["secret"] = OTHER
    rotated = play.run("--diff", "-vvvv", **declared(prefix))
    assert rotated.result["changes"] == [f"user {prefix}u: secret_key"]
    for one in (predicted, done, again, rotated):
        told = one.output + one.warnings
        assert "geheim" not in told
        assert play.store.server.credentials.secret_key not in told


def test_a_play_is_told_all_that_is_wrong_at_once(play: Play) -> None:
    given = declared(play.store.prefix)
    given["buckets"][0]["object_lock"] = False
    given["users"][0]["secret_key"] = "short"
    given["policies"][0]["document"] = {}
    answer = play.run(**given)
    assert answer.result["msg"].startswith("Nothing was touched. ")
    assert len(answer.result["refusals"]) == 3
    assert play.store.bucket().name not in play.store.read(Wanted()).buckets


def test_where_there_is_no_store_yet(play: Play, tmp_path: Path) -> None:
    given = declared(play.store.prefix)
    nowhere = f"https://127.0.0.1:{free_port()}"
    for change in ({"servers": [nowhere]}, {"ca": str(tmp_path / "absent.crt")}):
        predicted = play.run("--check", **given, **change)
        assert len(predicted.result["changes"]) == 8
        assert "all objects count as new" in "".join(predicted.result["warnings"])
        assert play.run(**given, **change).result["failed"]
