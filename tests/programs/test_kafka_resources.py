# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Topics, ACLs, quotas and users against a real broker: as declared, as predicted, and nothing but what was named."""

from __future__ import annotations

import itertools
import socket
import ssl
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import ClientTls
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_admin import Admin, Outcome
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_client import (
    Client,
    KafkaError,
    UnreachableError,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_plan import (
    Acl,
    Quota,
    State,
    Topic,
    User,
    Wanted,
    plan,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import (
    RefusedError,
    UnfinishedError,
    difference,
    summary,
)

from tests.programs.cluster import Authority, free_port
from tests.programs.play import Role
from tests.programs.resources import Converged

if TYPE_CHECKING:
    from pathlib import Path

    from tests.programs.broker import Broker
    from tests.programs.play import Answer

_COUNT = itertools.count()


class Cluster(Converged[Wanted]):
    """Runs against the broker; the names of what a test makes begin with its prefix."""

    def __init__(self, broker: Broker) -> None:
        self.broker, self.prefix = broker, f"t{next(_COUNT)}-"
        self.requests = self.logins = 0

    def run(self, wanted: Wanted, *, check: bool = False, name: str = "admin") -> Outcome:
        """Converge over a connection of its own."""
        client = self.broker.client(name)
        try:
            return Admin(client, [self.broker.login]).converge(wanted, check=check, wait_seconds=20)
        finally:
            self.requests, self.logins = client.requests, client.logins
            client.close()

    def read(self, wanted: Wanted) -> State:
        """What there is."""
        client = self.broker.client()
        try:
            return Admin(client, [self.broker.login]).read(wanted)
        finally:
            client.close()

    def user(self, name: str, password: str = "geheim-eins", **more: Any) -> User:
        return User(f"{self.prefix}{name}", password=password, **more)

    def topic(self, name: str, *numbers: int, **more: Any) -> Topic:
        return Topic(f"{self.prefix}{name}", *numbers, **more)

    def acl(self, operation: str = "read", **more: Any) -> Acl:
        return replace(Acl("topic", f"{self.prefix}a", "literal", "User:x", "*", operation, "allow"), **more)

    def logs_in(self, user: User) -> bool:
        client = self.broker.client()
        try:
            return client.accepts([self.broker.login], user.name, user.mechanism, user.password)
        finally:
            client.close()


@pytest.fixture
def kafka(broker: Broker) -> Cluster:
    return Cluster(broker)


# -------------------------------------------------------------------------------------------------------------- topics


def test_topics_are_made_grown_and_configured(kafka: Cluster) -> None:
    first = kafka.topic("a", 2, 1, configs={"retention.ms": "1000", "cleanup.policy": "compact, delete"})
    made = kafka.both(Wanted((first, kafka.topic("b"))))
    assert summary(made.changes)[:3] == [
        f"topic {first.name}: {it}" for it in ("state", "partitions", "replication_factor")
    ]
    second = replace(
        first, partitions=3, configs={"retention.ms": "2000", "segment.ms": "9000", "cleanup.policy": None}
    )
    before, after = difference(kafka.both(Wanted((second,))).changes)
    assert before.replace(f"topic {first.name}: ", "").splitlines() == [
        "partitions: 2",
        "cleanup.policy: compact,delete",
        "retention.ms: 1000",
        "segment.ms: default",
    ]
    assert after.replace(f"topic {first.name}: ", "").splitlines() == [
        "partitions: 3",
        "cleanup.policy: default",
        "retention.ms: 2000",
        "segment.ms: 9000",
    ]
    # What is not named is left, until the declaration says that it is the whole.
    few = replace(second, configs={"retention.ms": "2000"})
    assert kafka.both(Wanted((few,))).changes == []
    assert summary(kafka.both(Wanted((replace(few, purge_configs=True),))).changes) == [
        f"topic {first.name}: segment.ms"
    ]
    assert kafka.read(Wanted()).topics[f"{kafka.prefix}b"].partitions == 2


def test_a_topic_is_deleted_only_by_its_name(kafka: Cluster) -> None:
    one, other = kafka.topic("a", 1), kafka.topic("b", 1)
    kafka.both(Wanted((one, other)))
    assert kafka.both(Wanted((one,))).changes == []
    assert kafka.both(Wanted()).changes == []
    assert other.name in kafka.read(Wanted()).topics
    assert summary(kafka.both(Wanted((replace(other, present=False),))).changes) == [f"topic {other.name}: state"]
    topics = kafka.read(Wanted()).topics
    assert one.name in topics
    assert other.name not in topics


def test_what_cannot_be_is_refused_before_anything_is_touched_and_all_at_once(kafka: Cluster) -> None:
    there = kafka.topic("a", 3, 1)
    kafka.both(Wanted((there,)))
    wanted = Wanted(
        (
            replace(there, partitions=2),
            kafka.topic("large", 1, 3),
            kafka.topic("odd", 1, 1, configs={"retention.minutes": "1"}),
            kafka.topic("fine", 1, 1),
        ),
        (kafka.acl(),),
        users=(kafka.user("u"),),
    )
    for check in (True, False):
        with pytest.raises(RefusedError) as refused:
            kafka.run(wanted, check=check)
        shrinks, large, unknown = refused.value.reasons
        assert shrinks.startswith(f"topic {there.name}: partitions is 2 and it has 3: a topic cannot shrink, so set")
        assert large.startswith(f"topic {kafka.prefix}large: replication_factor is 3 and the cluster has 1 broker: set")
        assert unknown == f"topic {kafka.prefix}odd: Unknown topic config name: retention.minutes."
    state = kafka.read(Wanted())
    assert f"{kafka.prefix}fine" not in state.topics
    assert kafka.acl() not in state.acls
    assert (f"{kafka.prefix}u", "SCRAM-SHA-512") not in state.users


def test_what_only_the_cluster_knows_is_rehearsed(kafka: Cluster) -> None:
    there = kafka.topic("a", 1, 1)
    kafka.both(Wanted((there,)))
    wanted = Wanted(
        (
            kafka.topic("no-such-key", 1, 1, configs={"retention.minutes": "1"}),
            kafka.topic("weak", 1, configs={"min.insync.replicas": "2"}),
            kafka.topic("fine", 1, 1),
            replace(there, configs={"retention.ms": "soon"}),
        ),
        (kafka.acl(),),
        quotas=(Quota((("ip", "no address"),), {"connection_creation_rate": 5.0}),),
    )
    for check in (True, False):
        with pytest.raises(RefusedError) as refused:
            kafka.run(wanted, check=check)
        said = "\n".join(refused.value.reasons)
        assert len(refused.value.reasons) == 4, said
        assert f"topic {kafka.prefix}no-such-key: Unknown topic config name: retention.minutes." in said
        assert f"topic {kafka.prefix}weak: min.insync.replicas is 2 and its replication factor 1" in said
        assert f"topic {there.name}: Invalid value soon for configuration retention.ms" in said
        assert "quota ip no address: " in said
    state = kafka.read(Wanted())
    assert f"{kafka.prefix}fine" not in state.topics
    assert kafka.acl() not in state.acls


def test_the_replication_factor_of_a_topic_is_not_changed(kafka: Cluster) -> None:
    there = kafka.topic("a", 1, 1)
    kafka.both(Wanted((there,)))
    with pytest.raises(RefusedError, match="replication_factor is 2 and its partitions have 1: reassign them"):
        kafka.run(Wanted((replace(there, replication_factor=2),)))


# ---------------------------------------------------------------------------------------------------- ACLs and quotas


def test_rules_come_and_go_by_name(kafka: Cluster) -> None:
    rules = tuple(kafka.acl(operation) for operation in ("read", "write"))
    deny = kafka.acl("all", permission="deny", host="192.0.2.9", pattern_type="prefixed")
    group = kafka.acl(resource_type="group", resource_name="*")
    made = kafka.both(Wanted(acls=(*rules, deny, group)))
    assert summary(made.changes)[0] == f"acl deny User:x from 192.0.2.9 all on topic prefixed {kafka.prefix}a: state"
    assert kafka.both(Wanted(acls=rules[:1])).changes == []
    gone = kafka.both(Wanted(acls=rules[:1], absent_acls=(rules[1], kafka.acl("alter"))))
    assert summary(gone.changes) == [f"acl allow User:x write on topic {kafka.prefix}a: state"]
    assert {rules[0], deny, group} <= kafka.read(Wanted()).acls
    assert rules[1] not in kafka.read(Wanted()).acls


def test_limits_come_and_go_by_name(kafka: Cluster) -> None:
    mine = Quota((("user", f"{kafka.prefix}u"),), {"producer_byte_rate": 1024.0, "request_percentage": 12.5})
    default = Quota((("client-id", f"{kafka.prefix}c"), ("user", None)), {"consumer_byte_rate": 1.0})
    address = Quota((("ip", "192.0.2.7"),), {"connection_creation_rate": 5.0})
    kafka.both(Wanted(quotas=(mine, default, address)))
    less = replace(mine, values={"producer_byte_rate": 2048.0})
    assert difference(kafka.both(Wanted(quotas=(less,))).changes) == (
        f"quota user {kafka.prefix}u: producer_byte_rate: 1024\n",
        f"quota user {kafka.prefix}u: producer_byte_rate: 2048\n",
    )
    assert kafka.read(Wanted()).quotas[mine.entity] == {"producer_byte_rate": 2048.0, "request_percentage": 12.5}
    kafka.both(Wanted(quotas=(replace(less, purge_values=True), replace(address, present=False))))
    quotas = kafka.read(Wanted()).quotas
    assert quotas[mine.entity] == {"producer_byte_rate": 2048.0}
    assert default.entity in quotas
    assert address.entity not in quotas


# --------------------------------------------------------------------------------------------------------------- users


def test_a_password_is_proven_and_never_kept(kafka: Cluster) -> None:
    user = kafka.user("u,=x", "geheim-ü")
    both = (user, replace(user, mechanism="SCRAM-SHA-256"))
    made = kafka.both(Wanted(users=both))
    assert difference(made.changes)[0].count("credential: none\n") == 2
    assert kafka.logins == 2
    assert kafka.logs_in(user)
    # Another password with the same iterations is seen, and somebody else's change is put right.
    other = replace(user, password="geheim-zwei")
    changed = kafka.both(Wanted(users=(other,)))
    assert difference(changed.changes) == (
        f"user {user.name} SCRAM-SHA-512: credential: another one\n",
        f"user {user.name} SCRAM-SHA-512: credential: as declared, 8192 iterations\n",
    )
    assert kafka.logs_in(other)
    assert not kafka.logs_in(user)
    assert kafka.logs_in(both[1])
    slower = kafka.both(Wanted(users=(replace(other, iterations=16384),)))
    assert difference(slower.changes)[0] == f"user {user.name} SCRAM-SHA-512: credential: one, 8192 iterations\n"


def test_a_user_is_deleted_only_by_name_and_mechanism(kafka: Cluster) -> None:
    user = kafka.user("u")
    both = (user, replace(user, mechanism="SCRAM-SHA-256"))
    kafka.both(Wanted(users=both))
    assert kafka.both(Wanted()).changes == []
    kafka.both(Wanted(users=(replace(user, present=False),)))
    assert not kafka.logs_in(user)
    assert kafka.logs_in(both[1])


def test_users_need_a_listener_at_which_they_log_in(kafka: Cluster) -> None:
    client = kafka.broker.client()
    wanted = Wanted(users=(kafka.user("u"),))
    with pytest.raises(RefusedError, match="scram_servers is empty"):
        Admin(client).converge(wanted, check=False, wait_seconds=1)
    Admin(client, [kafka.broker.login]).converge(wanted, check=False, wait_seconds=20)
    # One that takes no logins is no proof of a wrong password.
    with pytest.raises(KafkaError, match=kafka.broker.server):
        Admin(client, [kafka.broker.server]).converge(wanted, check=False, wait_seconds=1)
    with pytest.raises(KafkaError, match="connection refused"):
        Admin(client, [f"127.0.0.1:{free_port()}"]).converge(wanted, check=False, wait_seconds=1)
    client.close()


# -------------------------------------------------------------------------------------------------------- who may what


def test_nobody_is_let_in_without_a_certificate_of_the_authority(broker: Broker, tmp_path: Path) -> None:
    for port in (broker.port, broker.login_port, broker.controller_port):
        with socket.create_connection(("127.0.0.1", port), 5) as plain:
            plain.settimeout(5)
            # ApiVersions 0, as a client without TLS begins: nothing of Kafka answers, at most an alert of TLS.
            plain.sendall(bytes.fromhex("0000000a 0012 0000 00000001 0000".replace(" ", "")))
            assert b"\0\0\0\1" not in plain.recv(100)
        nobody = ssl.create_default_context(cafile=str(broker.authority.path))
        with pytest.raises(UnreachableError, match=r"TLS failed .*certificate"):
            Client([f"127.0.0.1:{port}"], nobody)
        (tmp_path / str(port)).mkdir()
        strange = Authority(tmp_path / str(port), "another").issue("admin")
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1"):
            Client([f"127.0.0.1:{port}"], ClientTls(str(broker.authority.path), *map(str, strange)).context())


def test_a_broker_of_another_authority_is_not_trusted(broker: Broker, tmp_path: Path) -> None:
    ours = broker.tls()
    with pytest.raises(UnreachableError, match="its certificate was not accepted"):
        Client([broker.server], replace(ours, ca=str(Authority(tmp_path, "another").path)).context())


def test_who_has_no_right_changes_nothing_and_is_told_so(kafka: Cluster) -> None:
    wanted = Wanted((kafka.topic("a", 1),))
    for check in (True, False):
        with pytest.raises(RefusedError, match="lacks create, alter, describe, describe_configs, alter_configs on the"):
            kafka.run(wanted, check=check, name="nobody")
    # Rights on the cluster alone show no topic: one that cannot be seen is not taken for one that is not there.
    rights = Acl("cluster", "kafka-cluster", "literal", "User:CN=half", "*", "all", "allow")
    kafka.both(Wanted(wanted.topics, (rights,)))
    with pytest.raises(KafkaError, match=f"may not see topic {kafka.prefix}a"):
        kafka.run(wanted, name="half")
    kafka.both(Wanted(absent_acls=(rights,)))


def test_another_broker_is_asked_when_the_first_does_not_answer(broker: Broker) -> None:
    client = Client([f"127.0.0.1:{free_port()}", broker.server], broker.tls().context())
    client.close()
    with pytest.raises(UnreachableError, match=r"refused; .*refused"):
        Client([f"127.0.0.1:{free_port()}", f"localhost:{free_port()}"], broker.tls().context())


def test_a_change_that_fails_on_the_way_is_named(kafka: Cluster) -> None:
    # Somebody else makes the topic after we have looked.
    wanted = Wanted((kafka.topic("a", 1),))
    changes = plan(kafka.read(wanted), wanted)
    kafka.both(wanted)
    client = kafka.broker.client()
    with pytest.raises(UnfinishedError, match=f"topic {kafka.prefix}a: Topic '{kafka.prefix}a' already exists"):
        Admin(client)._carry_out(wanted, changes, frozenset(), 0)
    client.close()


# ------------------------------------------------------------------------------------------------------------- in bulk


def test_hundreds_of_objects_cost_one_request_a_kind(kafka: Cluster) -> None:
    topics = tuple(kafka.topic(str(number), 1, 1, configs={"retention.ms": "1000"}) for number in range(200))
    acls = tuple(kafka.acl("read", principal=f"User:{number}") for number in range(200))
    users = tuple(kafka.user(str(number), iterations=4096) for number in range(50))
    wanted = Wanted(topics, acls, quotas=(Quota((("user", None),), {"request_percentage": 200.0}),), users=users)
    started = time.monotonic()
    kafka.run(wanted)
    middle = time.monotonic()
    again = kafka.run(wanted)
    print(f"\n200 topics, 200 ACLs, 50 users: first {middle - started:.1f} s, again {time.monotonic() - middle:.1f} s")
    assert again.changes == []
    assert (kafka.requests, kafka.logins) == (7, 50)
    absent = tuple(replace(topic, present=False) for topic in topics)
    gone = replace(
        wanted, topics=absent, acls=(), absent_acls=acls, users=tuple(replace(u, present=False) for u in users)
    )
    assert len(kafka.run(gone).changes) == 450


# -------------------------------------------------------------------------------------------------------------- a play


class Play:
    """The module as a play runs it."""

    def __init__(self, kafka: Cluster, directory: Path) -> None:
        self.kafka, self.role = kafka, Role(directory)
        self.variables = {"password": "geheim-eins"}
        tls = kafka.broker.tls()
        self.arguments = {
            "servers": [kafka.broker.server],
            "scram_servers": [kafka.broker.login],
            "ca": tls.ca,
            "certificate": tls.cert,
            "key": tls.key,
        }

    def run(self, *flags: str, **arguments: Any) -> Answer:
        return self.role.run("kafka_resources", {**self.arguments, **arguments}, *flags, variables=self.variables)


@pytest.fixture
def play(kafka: Cluster, tmp_path: Path) -> Play:
    return Play(kafka, tmp_path)


def declared(prefix: str) -> dict[str, Any]:
    return {
        "topics": [{"name": f"{prefix}a", "partitions": 3, "replication_factor": 1, "configs": {"retention.ms": 1000}}],
        "acls": [
            {
                "principal": f"User:{prefix}u",
                "resource_type": "topic",
                "resource_name": prefix,
                "pattern_type": "prefixed",
                "operations": ["read", "describe"],
            }
        ],
        "quotas": [{"user": f"{prefix}u", "client_id": "<default>", "values": {"producer_byte_rate": 1048576}}],
        "users": [{"name": f"{prefix}u", "password": "{{ password }}", "iterations": 4096}],
    }


def test_a_play_predicts_does_and_has_nothing_left_to_do(play: Play) -> None:
    prefix = play.kafka.prefix
    predicted, done, again = (
        play.run(*flags, **declared(prefix)) for flags in (("--check", "--diff"), ("--diff", "-vvvv"), ("--diff",))
    )
    assert (predicted.result["changed"], done.result["changed"], again.result["changed"]) == (True, True, False)
    assert predicted.result["diff"] == done.result["diff"]
    assert predicted.result["changes"] == done.result["changes"]
    assert again.result["changes"] == []
    assert done.result["changes"][:3] == [
        f"user {prefix}u SCRAM-SHA-512: credential",
        f"acl allow User:{prefix}u describe on topic prefixed {prefix}: state",
        f"acl allow User:{prefix}u read on topic prefixed {prefix}: state",
    ]
    assert f"{prefix}a" not in again.result["unmanaged"]["topics"]
    assert (again.result["requests"], again.result["logins"]) == (7, 1)
    play.variables["password"] = "geheim-zwei"
    rotated = play.run("--diff", "-vvvv", **declared(prefix))
    assert rotated.result["changes"] == [f"user {prefix}u SCRAM-SHA-512: credential"]
    for one in (predicted, done, again, rotated):
        assert "geheim" not in one.output + one.warnings


def test_a_play_is_told_all_that_is_wrong_at_once(play: Play) -> None:
    given = declared(play.kafka.prefix)
    given["topics"][0]["replication_factor"] = 3
    given["acls"][0]["principal"] = "u"
    given["users"][0]["iterations"] = 1
    answer = play.run(**given)
    assert answer.result["msg"].startswith("Nothing was touched. ")
    # One rule of two operations is two.
    assert len(answer.result["refusals"]) == 4
    assert play.kafka.read(Wanted()).topics.get(f"{play.kafka.prefix}a") is None


def test_where_there_is_no_broker_yet(play: Play, tmp_path: Path) -> None:
    given = declared(play.kafka.prefix)
    nowhere = f"127.0.0.1:{free_port()}"
    for change in ({"servers": [nowhere]}, {"certificate": str(tmp_path / "absent.crt")}):
        predicted = play.run("--check", **given, **change)
        assert len(predicted.result["changes"]) == 8
        assert "all objects count as new" in "".join(predicted.result["warnings"])
        assert play.run(**given, **change).result["failed"]
