# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan has what differs and nothing else; a cluster that took it needs no other; what would do harm is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_plan import (
    CLIENT_KEYS,
    Acl,
    AclChanged,
    ConfigsSet,
    Entity,
    LiveTopic,
    Quota,
    QuotaSet,
    Setting,
    State,
    Topic,
    TopicCreated,
    TopicDeleted,
    TopicGrown,
    User,
    UserDeleted,
    UserSet,
    Wanted,
    min_isr_refusals,
    normal,
    plan,
    refusals,
    unmanaged,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import Change, difference, summary
from hypothesis import assume, given
from hypothesis import strategies as st

DEFAULTS = {"retention.ms": "604800000", "cleanup.policy": "delete", "min.insync.replicas": "1"}
BROKERS = 4


def applied(state: State, changes: list[Change]) -> State:
    """A cluster after changes, as Kafka makes them."""
    topics, acls = dict(state.topics), set(state.acls)
    quotas = {entity: dict(values) for entity, values in state.quotas.items()}
    users, proven = dict(state.users), set(state.proven)
    for change in changes:
        match change:
            case AclChanged(acl, created):
                assert (acl in acls) != created
                (acls.add if created else acls.remove)(acl)
            case QuotaSet(entity, limits):
                limit(quotas, entity, limits)
            case UserSet(user):
                users[user.key] = user.iterations
                proven.add(user.key)
            case UserDeleted(name, mechanism):
                del users[name, mechanism]
            case _:
                change_topic(topics, change)
    return replace(state, topics=topics, acls=frozenset(acls), quotas=quotas, users=users, proven=frozenset(proven))


def change_topic(topics: dict[str, LiveTopic], change: Change) -> None:
    match change:
        case TopicCreated(topic):
            assert topic.name not in topics
            own = {key: value for key, value in topic.configs.items() if value is not None}
            factor = frozenset({topic.replication_factor or 1})
            topics[topic.name] = LiveTopic(topic.partitions or 1, factor, configs=settings_of(own))
        case TopicGrown(name, before, count):
            assert topics[name].partitions == before < count
            topics[name] = replace(topics[name], partitions=count)
        case ConfigsSet(name, values):
            own = {key: one.value or "" for key, one in topics[name].configs.items() if one.own}
            for key, (old, new) in values.items():
                assert own.pop(key, None) == old
                if new is not None:
                    own[key] = new
            topics[name] = replace(topics[name], configs=settings_of(own))
        case TopicDeleted(name):
            del topics[name]
        case _:
            raise AssertionError(change)


def limit(quotas: dict[Entity, dict[str, float]], entity: Entity, limits: Any) -> None:
    there = quotas.setdefault(entity, {})
    for key, (low, high) in limits.items():
        assert there.pop(key, None) == low
        if high is not None:
            there[key] = high
    if not there:
        del quotas[entity]


def settings_of(own: dict[str, str]) -> dict[str, Setting]:
    return {key: Setting(own.get(key, default), key in own) for key, default in DEFAULTS.items()}


NAMES = st.sampled_from(["a", "b", "c", "d"])
CONFIGS = {
    "retention.ms": st.sampled_from(["1000", "604800000"]),
    "cleanup.policy": st.sampled_from(["delete", "compact,delete"]),
    "min.insync.replicas": st.sampled_from(["1", "2", "3"]),
}
OPTIONAL = {key: st.none() | values for key, values in CONFIGS.items()}
TOPICS = st.builds(
    Topic,
    NAMES,
    st.none() | st.integers(1, 6),
    st.none() | st.integers(1, BROKERS),
    st.fixed_dictionaries({}, optional=OPTIONAL),
    st.booleans(),
    st.booleans(),
)
ACLS = st.builds(
    Acl,
    st.just("topic"),
    NAMES,
    st.sampled_from(["literal", "prefixed"]),
    st.just("User:x"),
    st.just("*"),
    st.sampled_from(["read", "write"]),
    st.sampled_from(["allow", "deny"]),
)
ENTITIES = st.sampled_from([(("user", "x"),), (("user", None),), (("client-id", "c"), ("user", "x"))])
LIMITS = st.sampled_from([1.0, 2.5])
KEYS = sorted(CLIENT_KEYS)[:2]
QUOTAS = st.builds(
    Quota,
    ENTITIES,
    st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, st.none() | LIMITS)),
    st.booleans(),
    st.booleans(),
)
MECHANISMS = st.sampled_from(["SCRAM-SHA-256", "SCRAM-SHA-512"])
USERS = st.builds(User, NAMES, MECHANISMS, st.just("secret"), st.sampled_from([4096, 8192]), st.booleans())


@st.composite
def wanteds(draw: st.DrawFn) -> Wanted:
    acls = draw(st.lists(ACLS, unique=True, max_size=6))
    split = draw(st.integers(0, len(acls)))
    return Wanted(
        tuple(draw(st.lists(TOPICS, unique_by=lambda topic: topic.name))),
        tuple(acls[:split]),
        tuple(acls[split:]),
        tuple(draw(st.lists(QUOTAS, unique_by=lambda quota: quota.entity))),
        tuple(draw(st.lists(USERS, unique_by=lambda user: user.key))),
    )


@st.composite
def states(draw: st.DrawFn) -> State:
    own = st.fixed_dictionaries({}, optional=CONFIGS).map(settings_of)
    factors = st.frozensets(st.integers(1, BROKERS), min_size=1, max_size=1)
    live = st.builds(LiveTopic, st.integers(1, 6), factors, st.booleans(), own)
    users = draw(st.dictionaries(st.tuples(NAMES, MECHANISMS), st.sampled_from([4096, 8192])))
    return State(
        BROKERS,
        draw(st.dictionaries(NAMES, live)),
        draw(st.frozensets(ACLS, max_size=6)),
        draw(st.dictionaries(ENTITIES, st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, LIMITS)).filter(bool))),
        users,
        draw(st.frozensets(st.sampled_from(sorted(users)))) if users else frozenset(),
    )


@given(states(), wanteds())
def test_what_was_planned_makes_what_is_wanted_and_a_second_plan_is_empty(state: State, wanted: Wanted) -> None:
    assume(not refusals(state, wanted))
    changes = plan(state, wanted)
    after = applied(state, changes)
    assert plan(after, wanted) == []
    # A new topic of the brokers' factor is weighed by the rehearsal, which knows that factor.
    if all(topic.replication_factor or topic.name in state.topics for topic in wanted.topics):
        assert not refusals(after, wanted)
    assert set(wanted.acls) <= after.acls
    assert not set(wanted.absent_acls) & after.acls
    for topic in wanted.topics:
        live = after.topics.get(topic.name)
        assert (live is not None) == topic.present
        if live is None:
            continue
        assert live.partitions >= (topic.partitions or 1)
        own = {key: one.value for key, one in live.configs.items() if one.own}
        assert {key: own.get(key) for key in topic.configs} == topic.configs
        if topic.purge_configs:
            assert own == {key: value for key, value in topic.configs.items() if value is not None}
    for quota in wanted.quotas:
        limits = after.quotas.get(quota.entity, {})
        if not quota.present:
            assert not limits
        elif quota.purge_values:
            assert limits == {key: value for key, value in quota.values.items() if value is not None}
        else:
            assert {key: limits.get(key) for key in quota.values} == quota.values
    for user in wanted.users:
        assert after.users.get(user.key) == (user.iterations if user.present else None)
        assert not user.present or user.key in after.proven


@given(states(), wanteds())
def test_what_nobody_named_is_as_it_was(state: State, wanted: Wanted) -> None:
    assume(not refusals(state, wanted))
    after = applied(state, plan(state, wanted))
    named = {topic.name for topic in wanted.topics}
    assert {name: live for name, live in after.topics.items() if name not in named} == {
        name: live for name, live in state.topics.items() if name not in named
    }
    assert state.acls - after.acls <= set(wanted.absent_acls)
    for topic in wanted.topics:
        before = state.topics.get(topic.name)
        if before and topic.present and not topic.purge_configs:
            others = set(DEFAULTS) - set(topic.configs)
            assert {key: after.topics[topic.name].configs[key] for key in others} == {
                key: before.configs[key] for key in others
            }
    entities = {quota.entity for quota in wanted.quotas}
    assert {e: v for e, v in after.quotas.items() if e not in entities} == {
        e: v for e, v in state.quotas.items() if e not in entities
    }
    for quota in wanted.quotas:
        if quota.present and not quota.purge_values:
            kept = {k: v for k, v in state.quotas.get(quota.entity, {}).items() if k not in quota.values}
            there = after.quotas.get(quota.entity, {})
            assert {k: v for k, v in there.items() if k not in quota.values} == kept
    assert set(state.users) - set(after.users) == {
        user.key for user in wanted.users if not user.present and user.key in state.users
    }


@given(states(), wanteds())
def test_no_topic_is_left_that_cannot_lose_a_broker_or_be_written(state: State, wanted: Wanted) -> None:
    assume(not refusals(state, wanted))
    after = applied(state, plan(state, wanted))
    for topic in wanted.topics:
        live = after.topics.get(topic.name)
        if live and (topic.name in state.topics or topic.configs.get("min.insync.replicas")):
            factor, least = min(live.replicas), int(live.configs["min.insync.replicas"].value or 0)
            if topic.name in state.topics or topic.replication_factor:
                assert least < factor or least == factor == 1


@given(states(), wanteds())
def test_no_secret_is_shown(state: State, wanted: Wanted) -> None:
    assume(not refusals(state, wanted))
    changes = plan(state, wanted)
    assert "secret" not in "".join([*difference(changes), *summary(changes), repr(changes)])


def test_who_is_forbidden_is_forbidden_first_and_allowed_again_last() -> None:
    allow = Acl("topic", "a", "literal", "User:x", "*", "read", "allow")
    deny = replace(allow, permission="deny")
    user, topic = User("x", password="p"), Topic("a")
    changes = plan(State(), Wanted((topic,), (allow, deny), users=(user,)))
    assert [change.subject for change in changes] == [
        "user x SCRAM-SHA-512",
        "acl deny User:x read on topic a",
        "acl allow User:x read on topic a",
        "topic a",
    ]
    gone = plan(State(acls=frozenset({allow, deny})), Wanted(absent_acls=(deny, allow)))
    assert [change.subject for change in gone] == [
        "acl allow User:x read on topic a",
        "acl deny User:x read on topic a",
    ]


LIVE = State(
    3,
    {
        "t": LiveTopic(6, frozenset({3}), configs={"min.insync.replicas": Setting("2", own=False)}),
        "mixed": LiveTopic(2, frozenset({2, 3})),
        "behind": LiveTopic(1, frozenset({3}), whole=False, configs={"min.insync.replicas": Setting("2", own=True)}),
    },
    remembers_leaders=True,
)
READ = Acl("topic", "t", "literal", "User:x", "*", "read", "allow")
X = (("user", "x"),)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            Topic("t", 3),
            "topic t: partitions is 3 and it has 6: a topic cannot shrink, so set partitions to 6 or more.",
        ),
        (Topic("t", 0), "topic t: partitions is 0: set it to 1 or more."),
        (Topic("t", 6, 2), "topic t: replication_factor is 2 and its partitions have 3: reassign them"),
        (Topic("mixed", 2, 3), "topic mixed: replication_factor is 3 and its partitions have 2, 3: reassign them"),
        (Topic("new", 1, 4), "topic new: replication_factor is 4 and the cluster has 3 brokers: set it to 3 or less"),
        (Topic("new", 1, 0), "topic new: replication_factor is 0: set it to 1 or more."),
        (
            Topic("t", configs={"min.insync.replicas": "3"}),
            "topic t: min.insync.replicas is 3, as many as its replicas, so that no broker could be lost: set it to 2.",
        ),
        (
            Topic("t", configs={"min.insync.replicas": "4"}),
            "topic t: min.insync.replicas is 4 and its replication factor 3, so that nothing could be written: set",
        ),
        (
            Topic("new", 1, 2, {"min.insync.replicas": "2"}),
            "topic new: min.insync.replicas is 2, as many as its replicas",
        ),
        (Topic("t", configs={"min.insync.replicas": "x"}), "topic t: min.insync.replicas is 'x': set it to a number"),
        (
            Topic("behind", configs={"min.insync.replicas": "1"}),
            "topic behind: min.insync.replicas changes while replicas are behind",
        ),
        (
            Topic("t", configs={"unclean.leader.election.enable": "True"}),
            "topic t: unclean.leader.election.enable is true, which loses acknowledged records",
        ),
        (Topic("a b"), "topic 'a b': a name is at most 249 letters"),
        (Topic(".."), "topic '..': a name is at most 249 letters"),
        (Topic("__consumer_offsets", present=False), "topic __consumer_offsets: it is Kafka's own"),
        (replace(READ, principal="x"), "its principal has no type: write User: before the name."),
        (replace(READ, operation="cluster_action"), "there is no operation cluster_action on a topic: choose of all,"),
        (replace(READ, resource_type="cluster", operation="all"), "the only resource of type cluster is kafka-cluster"),
        (replace(READ, pattern_type="prefixed", resource_name="*"), "a prefix is taken as it is"),
        (Quota(()), "it is for nobody, or for an address and more"),
        (Quota((("ip", "::1"), ("user", "x"))), "it is for nobody, or for an address and more"),
        (Quota(X, {"connection_creation_rate": 1}), "quota user x: connection_creation_rate is no limit of it"),
        (Quota((("ip", None),), {"producer_byte_rate": 1}), "quota ip <default>: producer_byte_rate is no limit of it"),
        (Quota(X, {"producer_byte_rate": 0}), "quota user x: producer_byte_rate is 0: set it to more than 0"),
        (Quota(X, {"producer_byte_rate": float("nan")}), "quota user x: producer_byte_rate is nan"),
        (Quota(X), "quota user x: it has no values: give some, or declare it absent."),
        (User("x"), "user x SCRAM-SHA-512: password is empty: set one."),
        (User("ü", password="p"), "user ü SCRAM-SHA-512: no broker lets a name log in by SCRAM that is not ASCII"),
        (User("", password="p"), "user  SCRAM-SHA-512: it has no name: set name."),
        (User("x", password="p", iterations=100), "user x SCRAM-SHA-512: iterations is 100: set it to 4096 to 16384"),
    ],
)
def test_what_would_do_harm_is_refused(wanted: Any, said: str) -> None:
    kinds = {Topic: "topics", Acl: "acls", Quota: "quotas", User: "users"}
    (found,) = refusals(LIVE, Wanted(**{kinds[type(wanted)]: (wanted,)}))
    assert said in found
    assert found.endswith(".")


def test_all_reasons_are_told_at_once_and_what_is_declared_twice_is_told_once() -> None:
    topics = (Topic("t", 3), Topic("t", 3), Topic("new", 1, 9), Topic("t"))
    found = refusals(LIVE, Wanted(topics, (READ,), (READ,), (Quota(X, present=False),) * 2))
    assert [reason.partition(":")[0] for reason in found] == [
        "topic t is declared more than once",
        "acl allow User",
        "quota user x is declared more than once",
        "topic t",
        "topic t",
        "topic new",
    ]


@pytest.mark.parametrize(
    "topic",
    [
        Topic("t", 6, 3, {"min.insync.replicas": "2"}),
        Topic("t", 7, 3, {"min.insync.replicas": "1"}),
        Topic("behind", 1, 3, {"min.insync.replicas": "2"}),
        Topic("new", 1, 3, {"min.insync.replicas": "2"}),
        Topic("new", 1, 1, {"min.insync.replicas": "1"}),
        Topic("t", present=False),
    ],
)
def test_what_does_no_harm_is_not(topic: Topic) -> None:
    assert refusals(LIVE, Wanted((topic,))) == []


def test_the_brokers_count_only_where_somebody_counted_them() -> None:
    assert refusals(State(), Wanted((Topic("new", 1, 3),))) == []
    assert list(min_isr_refusals("t", "1", 1)) == []


@pytest.mark.parametrize(
    ("declared", "there", "kind"),
    [
        ("True", "true", 1),
        ("01000", "1000", 5),
        ("0.50", "0.5", 6),
        ("compact, delete", "compact,delete", 7),
        ("x", "x", 2),
    ],
)
def test_one_value_may_be_written_in_several_ways(declared: str, there: str, kind: int) -> None:
    live = LiveTopic(1, frozenset({1}), configs={"k": Setting(there, own=True, type=kind)})
    state = State(1, {"t": live})
    assert plan(state, Wanted((Topic("t", configs={"k": declared}),))) == []
    # The same value of the broker's own is another thing: the topic would follow the broker.
    state = State(1, {"t": replace(live, configs={"k": Setting(there, own=False, type=kind)})})
    assert summary(plan(state, Wanted((Topic("t", configs={"k": declared}),)))) == ["topic t: k"]
    assert normal("not a number", 5) == "not a number"


def test_a_limit_that_is_not_named_is_left_unless_the_declaration_is_the_whole() -> None:
    state = State(quotas={X: {"producer_byte_rate": 1.0, "consumer_byte_rate": 2.0}})
    quota = Quota(X, {"producer_byte_rate": 3.0})
    (change,) = plan(state, Wanted(quotas=(quota,)))
    assert change == QuotaSet(X, {"producer_byte_rate": (1.0, 3.0)})
    (change,) = plan(state, Wanted(quotas=(replace(quota, purge_values=True),)))
    assert change == QuotaSet(X, {"producer_byte_rate": (1.0, 3.0), "consumer_byte_rate": (2.0, None)})


def test_what_nobody_declares_is_told() -> None:
    state = State(
        1,
        {name: LiveTopic(1, frozenset({1})) for name in ("a", "b", "__consumer_offsets")},
        frozenset({READ}),
        {X: {"producer_byte_rate": 1.0}},
        {("x", "SCRAM-SHA-256"): 4096},
    )
    assert unmanaged(state, Wanted((Topic("a"),))) == {
        "topics": ["b"],
        "acls": ["allow User:x read on topic t"],
        "quotas": ["user x"],
        "users": ["x SCRAM-SHA-256"],
    }
    everything = Wanted(
        (Topic("a"), Topic("b")), absent_acls=(READ,), quotas=(Quota(X),), users=(User("x", "SCRAM-SHA-256"),)
    )
    assert not any(unmanaged(state, everything).values())
