# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done to a store, what is refused, and that doing it leaves nothing to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_minio import minio_store
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_plan import (
    ENABLED,
    NEVER,
    SUSPENDED,
    Bucket,
    BucketChange,
    BucketCreated,
    BucketDeleted,
    LifecycleSet,
    LiveBucket,
    LiveUser,
    Policy,
    PolicyDeleted,
    PolicySet,
    QuotaSet,
    Retention,
    RetentionSet,
    Rule,
    State,
    Store,
    User,
    UserDeleted,
    UserPoliciesSet,
    UserSet,
    VersioningSet,
    Wanted,
    canonical,
    plan,
    refusals,
    unmanaged,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import Change, difference, summary
from hypothesis import given
from hypothesis import strategies as st

MINIO = minio_store("root")
SECRET = "geheim-eins"


def document(*actions: str) -> dict[str, Any]:
    statement = {"Effect": "Allow", "Action": list(actions) or ["s3:GetObject"], "Resource": ["arn:aws:s3:::a/*"]}
    return {"Version": "2012-10-17", "Statement": [statement]}


def refused(wanted: Wanted, state: State | None = None, store: Store = MINIO) -> list[str]:
    return refusals(store, state, wanted)


# ----------------------------------------------------------------------------------------------------------- a model


def done(state: State, changes: list[Change]) -> State:
    """A store that does what it is told."""
    after = state
    for change in changes:
        if isinstance(change, BucketChange):
            after = replace(after, buckets=bucket_done(dict(after.buckets), change))
        else:
            after = account_done(after, change)
    return after


def bucket_done(buckets: dict[str, LiveBucket], change: BucketChange) -> dict[str, LiveBucket]:
    name = change.name
    match change:
        case BucketCreated():
            assert name not in buckets
            buckets[name] = LiveBucket(ENABLED if change.object_lock else NEVER, change.object_lock)
        case VersioningSet():
            buckets[name] = replace(buckets[name], versioning=change.after)
        case RetentionSet():
            assert buckets[name].object_lock
            buckets[name] = replace(buckets[name], retention=change.after)
        case LifecycleSet():
            buckets[name] = replace(buckets[name], lifecycle=change.after)
        case QuotaSet():
            buckets[name] = replace(buckets[name], quota_bytes=change.after)
        case _:
            assert isinstance(change, BucketDeleted)
            assert buckets.pop(name).empty
    return buckets


def account_done(state: State, change: Change) -> State:
    users, policies = dict(state.users), dict(state.policies)
    name, proven = change.name, state.proven
    match change:
        case PolicySet():
            policies[name] = canonical(change.after)
        case PolicyDeleted():
            assert not any(name in user.policies for user in users.values())
            del policies[name]
        case UserSet():
            users[name] = LiveUser(users[name].policies if name in users else frozenset())
            proven |= {name}
        case UserPoliciesSet():
            assert change.after <= {*policies, *MINIO.builtin_policies}
            users[name] = replace(users[name], policies=change.after)
        case _:
            assert isinstance(change, UserDeleted)
            del users[name]
    return replace(state, users=users, policies=policies, proven=proven)


names = st.sampled_from(["aaa", "bbb", "ccc"])
retentions = st.none() | st.builds(Retention, st.just("governance"), st.integers(1, 3))
rule_lists = st.lists(
    st.builds(Rule, st.sampled_from(["r1", "r2"]), expire_days=st.integers(1, 3)),
    max_size=2,
    unique_by=lambda rule: rule.id,
).map(tuple)
buckets = st.builds(
    Bucket,
    names,
    st.none() | st.sampled_from([ENABLED, SUSPENDED]),
    st.none() | st.booleans(),
    retentions | st.just(""),
    st.none() | rule_lists,
    st.none() | st.integers(0, 2),
    st.booleans(),
)
policies = st.builds(Policy, names, st.sampled_from([document(), document("s3:PutObject")]), st.booleans())
users = st.builds(
    User,
    names,
    st.sampled_from([SECRET, "geheim-zwei"]),
    st.none() | st.lists(names | st.just("readonly"), max_size=2).map(tuple),
    st.booleans(),
)
live_buckets = st.builds(
    lambda locked, versioning, retention, rules, quota, empty: LiveBucket(
        ENABLED if locked else versioning, locked, retention if locked else None, rules, quota, empty
    ),
    st.booleans(),
    st.sampled_from([ENABLED, SUSPENDED, NEVER]),
    retentions,
    rule_lists,
    st.integers(0, 2),
    st.booleans(),
)
live_policies = st.dictionaries(names, st.sampled_from([document(), document("s3:PutObject")]).map(canonical))
states = live_policies.flatmap(
    lambda policies: st.builds(
        State,
        st.dictionaries(names, live_buckets),
        st.dictionaries(
            names, st.builds(LiveUser, st.frozensets(st.sampled_from(["readonly", *policies])), st.booleans())
        ),
        st.booleans(),
        st.just(policies),
        st.frozensets(names),
    )
)
wanteds = st.builds(
    Wanted,
    *(
        st.lists(kind, max_size=3, unique_by=lambda one: one.name).map(tuple)  # type: ignore[attr-defined]
        for kind in (buckets, users, policies)
    ),
)


@given(states, wanteds)
def test_what_is_planned_and_not_refused_can_be_done_and_leaves_nothing_to_do(state: State, wanted: Wanted) -> None:
    if refused(wanted, state):
        return
    after = done(state, plan(state, wanted))
    assert plan(after, wanted) == []
    assert refused(wanted, after) == []
    # What nobody declares is as it was.
    for kind in ("buckets", "users", "policies"):
        declared = {one.name for one in getattr(wanted, kind)}
        for name, live in getattr(state, kind).items():
            if name not in declared:
                assert getattr(after, kind)[name] == live


@given(states, wanteds)
def test_nothing_goes_that_is_not_declared_absent(state: State, wanted: Wanted) -> None:
    absent = {
        (kind, one.name) for kind in ("bucket", "user", "policy") for one in _declared(wanted, kind) if not one.present
    }
    for change in plan(state, wanted):
        if isinstance(change, BucketDeleted | UserDeleted | PolicyDeleted):
            assert tuple(change.subject.split()) in absent


def _declared(wanted: Wanted, kind: str) -> tuple[Any, ...]:
    return {"bucket": wanted.buckets, "user": wanted.users, "policy": wanted.policies}[kind]


@given(states, wanteds)
def test_no_secret_is_in_what_is_told(state: State, wanted: Wanted) -> None:
    changes = plan(state, wanted)
    told = [*difference(changes), *summary(changes), *refused(wanted, state), repr(changes), repr(wanted)]
    assert "geheim" not in "".join(told)


# ---------------------------------------------------------------------------------------------------------------- plan


def test_a_new_bucket_is_told_line_by_line() -> None:
    bucket = Bucket(
        "logs", ENABLED, True, Retention("governance", days=3), (Rule("a", "x/", expire_days=1),), quota_bytes=5
    )
    before, after = difference(plan(State(), Wanted((bucket,))))
    assert before.replace("bucket logs: ", "").splitlines() == [
        "state: absent", "object_lock: no", "retention: none", "lifecycle a: none", "quota_bytes: none",
    ]  # fmt: skip
    assert after.replace("bucket logs: ", "").splitlines() == [
        "state: present", "object_lock: yes", "retention: governance, 3 days",
        "lifecycle a: objects x/*, expire after 1 days", "quota_bytes: 5",
    ]  # fmt: skip


def test_what_is_not_said_of_a_bucket_is_left() -> None:
    live = LiveBucket(ENABLED, True, Retention("compliance", years=1), (Rule("a", expire_days=1),), 7, empty=False)
    assert plan(State({"logs": live}), Wanted((Bucket("logs"),))) == []
    nothing = Bucket("logs", retention="", lifecycle=(), quota_bytes=0)
    assert summary(plan(State({"logs": live}), Wanted((nothing,)))) == [
        f"bucket logs: {aspect}" for aspect in ("retention", "lifecycle a", "quota_bytes")
    ]


def test_only_rules_that_differ_are_told_and_their_order_does_not_matter() -> None:
    rules = (Rule("a", expire_days=1), Rule("b", expire_days=1))
    state = State({"logs": LiveBucket(lifecycle=rules)})
    assert plan(state, Wanted((Bucket("logs", lifecycle=rules[::-1]),))) == []
    changed = (rules[0], replace(rules[1], older_days=4, older_kept=2, enabled=False))
    before, after = difference(plan(state, Wanted((Bucket("logs", lifecycle=changed),))))
    assert before == "bucket logs: lifecycle b: objects *, expire after 1 days\n"
    assert after == before.removesuffix("\n") + (
        ", older versions expire after 4 days, 2 older versions stay, not in force\n"
    )


def test_what_never_had_versions_is_not_suspended() -> None:
    wanted = Wanted((Bucket("logs", SUSPENDED),))
    assert plan(State({"logs": LiveBucket()}), wanted) == []
    assert summary(plan(State({"logs": LiveBucket(ENABLED)}), wanted)) == ["bucket logs: versioning"]


def test_what_goes_goes_last_and_users_before_their_policies() -> None:
    state = State({"old": LiveBucket()}, {"eve": LiveUser(frozenset({"old"}))}, policies={"old": canonical(document())})
    wanted = Wanted(
        (Bucket("old", present=False), Bucket("new")),
        (User("eve", present=False), User("bob", SECRET, ("new",))),
        (Policy("old", present=False), Policy("new", document())),
    )
    assert refused(wanted, state) == []
    assert summary(plan(state, wanted)) == [
        "bucket new: state", "policy new: document", "user bob: secret_key", "user bob: policies", "user eve: state",
        "policy old: state", "bucket old: state",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("state", "before"),
    [
        (State(), "none"),
        (State(users={"bob": LiveUser(enabled=False)}, proven=frozenset({"bob"})), "one that cannot log in"),
        (State(users={"bob": LiveUser()}), "another one"),
    ],
)
def test_a_secret_is_set_where_it_is_not_proven(state: State, before: str) -> None:
    changes = plan(state, Wanted(users=(User("bob", SECRET),)))
    assert difference(changes) == (f"user bob: secret_key: {before}\n", "user bob: secret_key: as declared\n")


# ------------------------------------------------------------------------------------------------------------ policies


def test_documents_that_mean_the_same_are_the_same() -> None:
    one = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Deny", "Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::a/*"},
            {
                "Effect": "Allow",
                "Action": ["s3:PutObject", "s3:GetObject", "s3:PutObject"],
                "Resource": ["arn:aws:s3:::a/*"],
                "Condition": {"Bool": {"aws:SecureTransport": True}, "IpAddress": {"aws:SourceIp": "10.0.0.0/8"}},
            },
        ],
    }
    other = {
        "ID": "",
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "",
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject"],
                "Resource": ["arn:aws:s3:::a/*"],
                "Condition": {"Bool": {"aws:SecureTransport": ["true"]}, "IpAddress": {"aws:SourceIp": ["10.0.0.0/8"]}},
            },
            {"Effect": "Deny", "Action": ["s3:DeleteObject"], "Resource": ["arn:aws:s3:::a/*"]},
        ],
    }
    assert canonical(one) == canonical(other)
    assert plan(State(policies={"p": canonical(other)}), Wanted(policies=(Policy("p", one),))) == []


@pytest.mark.parametrize("key", ["Effect", "Action", "Resource", "Condition"])
def test_documents_that_differ_are_not_the_same(key: str) -> None:
    one = document()
    one["Statement"][0]["Condition"] = {"Bool": {"aws:SecureTransport": "true"}}
    other = {"Version": one["Version"], "Statement": [{**one["Statement"][0], key: "x" if key != "Condition" else {}}]}
    assert canonical(one) != canonical(other)


# ------------------------------------------------------------------------------------------------------------- refusal


@pytest.mark.parametrize(
    "name", ["ab", "A-bucket", "a_b", "-ab", "ab-", "a..b", "a.-b", "192.0.2.1", "x" * 64, "minio"]
)
def test_a_bucket_has_a_name_that_every_store_takes(name: str) -> None:
    (reason,) = refused(Wanted((Bucket(name),)))
    assert reason.startswith(f"bucket {name}: a name is 3 to 63")
    assert refused(Wanted((Bucket("a-1.b"),))) == []


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (Wanted((Bucket("aaa"), Bucket("aaa"))), "bucket aaa is declared more than once: declare it once."),
        (Wanted((Bucket("aaa", SUSPENDED, True),)), "bucket aaa: versioning is suspended, and its objects can be"),
        (Wanted((Bucket("aaa", retention=Retention("governance", 1)),)), "bucket aaa: retention is set, and its"),
        (Wanted((Bucket("aaa", None, True, Retention("governance")),)), "bucket aaa: retention needs either days or"),
        (Wanted((Bucket("aaa", None, True, Retention("governance", 1, 1)),)), "bucket aaa: retention needs either"),
        (Wanted((Bucket("aaa", None, True, Retention("governance", 0)),)), "bucket aaa: retention needs either"),
        (Wanted((Bucket("aaa", quota_bytes=-1),)), "bucket aaa: quota_bytes is -1: set it to a number"),
        (Wanted((Bucket("aaa", lifecycle=(Rule("r", expire_days=0),)),)), "bucket aaa: lifecycle r: expire_days is 0"),
        (Wanted((Bucket("aaa", lifecycle=(Rule("r"),)),)), "bucket aaa: lifecycle r: it does nothing"),
        (Wanted((Bucket("aaa", lifecycle=(Rule("", expire_days=1),)),)), "bucket aaa: lifecycle : it has no name"),
        (
            Wanted((Bucket("aaa", lifecycle=(Rule("r", expire_days=1),) * 2),)),
            "bucket aaa: lifecycle has r more than once",
        ),
        (
            Wanted((Bucket("aaa", lifecycle=(Rule("r", expire_days=1, expire_markers=True),)),)),
            "bucket aaa: lifecycle r: it has expire_days and expire_markers",
        ),
        (Wanted(users=(User("ab", SECRET),)), "user ab: a name has 3 characters"),
        (Wanted(users=(User("a,b", SECRET),)), "user a,b: a name has 3 characters"),
        (Wanted(users=(User("bob", "short"),)), "user bob: secret_key has fewer than 8"),
        (Wanted(users=(User("bobbybob", "bobbybob"),)), "user bobbybob: secret_key is the name itself"),
        (Wanted(users=(User("root", present=False),)), "user root: it is who makes this change"),
        (Wanted(policies=(Policy("a,b", document()),)), "policy a,b: a name has no comma"),
        (Wanted(policies=(Policy("readonly", document()),)), "policy readonly: it is the product's own"),
        (Wanted(policies=(Policy("readonly", present=False),)), "policy readonly: it is the product's own"),
        (Wanted(policies=(Policy("p"),)), "policy p: document has no Version"),
        (
            Wanted(policies=(Policy("p", {"Version": "1", "Statement": [{"Action": "s3:*"}]}),)),
            "policy p: document: statement 1 has no Effect",
        ),
        (
            Wanted(policies=(Policy("p", {"Version": "1", "Statement": [{"Effect": "Allow"}]}),)),
            "policy p: document: statement 1 has no Action",
        ),
        (
            Wanted(
                policies=(
                    Policy(
                        "p",
                        {"Version": "1", "Statement": [{"Effect": "Deny", "Action": "s3:*", "Condition": {"a": 1}}]},
                    ),
                )
            ),
            "policy p: document: statement 1 has a Condition that is no operator",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(wanted: Wanted, reason: str) -> None:
    (told,) = refused(wanted)
    assert told.startswith(reason)
    assert told.endswith(".")
    (again,) = refused(wanted, State())
    assert again == told


def test_what_a_bucket_is_settles_what_it_can_be() -> None:
    locked, plain = State({"aaa": LiveBucket(ENABLED, True)}), State({"aaa": LiveBucket()})
    assert (
        "object_lock is false, and the bucket has got it" in refused(Wanted((Bucket("aaa", None, False),)), locked)[0]
    )
    assert "object_lock is true, and the bucket has not got" in refused(Wanted((Bucket("aaa", None, True),)), plain)[0]
    assert "versioning is suspended, and its objects" in refused(Wanted((Bucket("aaa", SUSPENDED),)), locked)[0]
    retained = Wanted((Bucket("aaa", retention=Retention("governance", 1)),))
    assert refused(retained, locked) == []
    assert "its objects cannot be locked" in refused(retained, plain)[0]


def test_a_bucket_with_something_in_it_stays() -> None:
    absent = Wanted((Bucket("aaa", present=False),))
    (reason,) = refused(absent, State({"aaa": LiveBucket(empty=False)}))
    assert reason == ("bucket aaa: it is declared absent, and objects or older versions are in it: delete these first.")
    assert refused(absent, State({"aaa": LiveBucket()})) == []
    assert plan(State(), absent) == []


def test_a_user_has_only_policies_that_there_will_be() -> None:
    bob = Wanted(users=(User("bob", SECRET, ("readonly", "mine", "gone")),), policies=(Policy("gone", present=False),))
    (reason,) = refused(bob, State(policies={"gone": canonical(document())}))
    assert reason == "user bob: there is no policy gone, mine: declare it, or leave it out."
    declared = replace(bob, policies=(Policy("gone", document()), Policy("mine", document())))
    assert refused(declared, State()) == []


@pytest.mark.parametrize("user", [None, User("bob", SECRET)])
def test_a_policy_that_somebody_has_stays(user: User | None) -> None:
    state = State(users={"bob": LiveUser(frozenset({"mine"}))}, policies={"mine": canonical(document())})
    wanted = Wanted(users=(user,) if user else (), policies=(Policy("mine", present=False),))
    (reason,) = refused(wanted, state)
    assert reason == "policy mine: user bob has it, and it is declared absent: take it away first."
    assert refused(replace(wanted, users=(User("bob", SECRET, ()),)), state) == []
    assert refused(replace(wanted, users=(User("bob", present=False),)), state) == []


def test_what_a_provider_has_not_is_refused() -> None:
    wanted = Wanted((Bucket("aaa", quota_bytes=1),), (User("bob", SECRET),))
    quota, accounts = refused(wanted, store=Store("s3"))
    assert quota == "bucket aaa: quota_bytes is set, and provider s3 has none: leave it out."
    assert accounts.startswith("users or policies are declared, which provider s3 does not manage")
    assert refused(Wanted((Bucket("aaa"),)), store=Store("s3")) == []


def test_what_nobody_declares_is_told() -> None:
    state = State(
        {"aaa": LiveBucket(), "bbb": LiveBucket()},
        {"bob": LiveUser(), "eve": LiveUser()},
        policies=dict.fromkeys(("mine", "old", "readonly"), canonical(document())),
    )
    wanted = Wanted((Bucket("aaa"),), (User("bob", SECRET),), (Policy("mine", document()),))
    assert unmanaged(MINIO, state, wanted) == {"buckets": ["bbb"], "policies": ["old"]}
    assert unmanaged(MINIO, replace(state, all_users=True), wanted)["users"] == ["eve"]
    assert unmanaged(Store("s3"), state, wanted) == {"buckets": ["bbb"]}
