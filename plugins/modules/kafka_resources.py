#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Topics, ACLs, quotas and users of a Kafka cluster, converged over one connection."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kafka_resources
short_description: Topics, ACLs, quotas and SCRAM users of a Kafka cluster are as declared
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Compares a Kafka cluster with what is declared and changes what differs, over one connection with a client
    certificate, one request for all objects of a kind.
  - What cannot be done is refused before anything is touched, all reasons at once. The cluster itself rehearses new
    topics, partitions, configurations and quotas first, in check mode too.
  - Nothing is deleted but what is declared absent by its name. What the cluster has beyond that is returned.
  - After a change the cluster is read again until it shows what is declared.
options:
  servers:
    description: Brokers, as V(host:port). The first that answers is used; it passes on what is the controller's.
    type: list
    elements: str
    required: true
  certificate:
    description: Our certificate. Its principal must be one of C(super.users), or have these rights by ACLs.
    type: path
    required: true
  key:
    description: The key of it.
    type: path
    required: true
  ca:
    description: The authority that vouches for the brokers.
    type: path
    default: /etc/groundplane/pki/ca.crt
  scram_servers:
    description:
      - Listeners at which O(users) log in, as V(host:port), over TLS with the same certificate.
      - A cluster tells nobody a credential. Whether a password is still the declared one is found by logging in with
        it, each on a connection of its own.
    type: list
    elements: str
    default: []
  wait_seconds:
    description: How long the cluster may take until it shows a change.
    type: float
    default: 30
  topics:
    description: Topics. Those that are not listed are left alone.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the topic.
        type: str
        required: true
      partitions:
        description:
          - How many partitions. More are added, and fewer are refused.
          - Without it a new topic gets the brokers' default, and one that is there is left alone.
        type: int
      replication_factor:
        description:
          - How many replicas of each partition. Another number than the topic has is refused.
          - Without it as for O(topics[].partitions).
        type: int
      configs:
        description:
          - Configurations that the topic has of its own, such as C(retention.ms). V(null) for one that it has not.
          - Those that are not named are left alone.
        type: dict
        default: {}
      purge_configs:
        description: Whether the topic has no other configurations of its own than those of O(topics[].configs).
        type: bool
        default: false
      state:
        description: V(absent) deletes the topic and all records in it.
        type: str
        choices: [present, absent]
        default: present
  acls:
    description: Rules of the authorizer. Each stands for as many rules as it has operations.
    type: list
    elements: dict
    default: []
    suboptions:
      principal:
        description: Whom it is about, such as V(User:CN=orders) or V(User:orders).
        type: str
        required: true
      resource_type:
        description: What kind of thing it is about.
        type: str
        choices: [topic, group, cluster, transactional_id, delegation_token, user]
        required: true
      resource_name:
        description: Which of them. V(*) for all; the one of type V(cluster) is V(kafka-cluster).
        type: str
        required: true
      pattern_type:
        description: Whether O(acls[].resource_name) is the name or how names begin.
        type: str
        choices: [literal, prefixed]
        default: literal
      operations:
        description: What it is about.
        type: list
        elements: str
        choices:
          - all
          - read
          - write
          - create
          - delete
          - alter
          - describe
          - cluster_action
          - describe_configs
          - alter_configs
          - idempotent_write
          - create_tokens
          - describe_tokens
          - two_phase_commit
        required: true
      permission:
        description: Whether it lets or forbids.
        type: str
        choices: [allow, deny]
        default: allow
      host:
        description: The address from which, V(*) for any.
        type: str
        default: "*"
      state:
        description: V(absent) takes these very rules away.
        type: str
        choices: [present, absent]
        default: present
  quotas:
    description: Limits of clients. Whom it is for is either O(quotas[].ip) or one or both of the others.
    type: list
    elements: dict
    default: []
    suboptions:
      user:
        description: Name of the principal. V(<default>) for all users without a quota of their own.
        type: str
      client_id:
        description: Name that the client gives itself. V(<default>) as for O(quotas[].user).
        type: str
      ip:
        description: Address of the client. V(<default>) as for O(quotas[].user).
        type: str
      values:
        description:
          - Limits by name. C(producer_byte_rate) and C(consumer_byte_rate) in bytes a second and broker,
            C(request_percentage) in percent of a thread, C(controller_mutation_rate) in partitions a second, and of an
            address C(connection_creation_rate) a second.
          - V(null) for no limit. Those that are not named are left alone.
        type: dict
        default: {}
      purge_values:
        description: Whether there are no other limits than those of O(quotas[].values).
        type: bool
        default: false
      state:
        description: V(absent) takes all limits away.
        type: str
        choices: [present, absent]
        default: present
  users:
    description: Credentials of users who log in by SCRAM. Each is a user with one mechanism.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the user, whose principal is C(User:) and this.
        type: str
        required: true
      mechanism:
        description: How it logs in.
        type: str
        choices: [SCRAM-SHA-256, SCRAM-SHA-512]
        default: SCRAM-SHA-512
      password:
        description: Its password. The cluster gets a salted hash of it.
        type: str
      iterations:
        description: Rounds of PBKDF2, which each login costs the client.
        type: int
        default: 8192
      state:
        description: V(absent) takes the credential away. Connections that are open stay.
        type: str
        choices: [present, absent]
        default: present
attributes:
  check_mode:
    description:
      - Reads the cluster, lets it rehearse what it can, and tells what would change.
      - Where we have no certificate yet, or no broker answers, all that is declared is new.
    support: full
  diff_mode:
    description: Shows each attribute that differs. Of credentials only that they differ.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
notes:
  - Needs nothing beyond Python's standard library on the host, and Kafka 4.0 or later.
  - More partitions of a topic with keys move keys to other partitions.
  - Each password that is no longer right costs one failed login, which brokers log and answer late
    (C(connection.failed.authentication.delay.ms)).
"""

EXAMPLES = r"""
- name: The orders service has its topic, its rights and its limits
  groundplane.onprem.kafka_resources:
    servers: [data-1.example.org:9092, data-2.example.org:9092]
    certificate: /etc/kafka/tls/kafka.crt
    key: /etc/kafka/tls/kafka.key
    scram_servers: [data-1.example.org:9094]
    topics:
      - name: orders
        partitions: 12
        replication_factor: 3
        configs: {retention.ms: 604800000, min.insync.replicas: 2}
    acls:
      - principal: User:orders
        resource_type: topic
        resource_name: orders
        operations: [read, write, describe]
    quotas:
      - user: orders
        values: {producer_byte_rate: 10485760}
    users:
      - name: orders
        password: "{{ orders_kafka_password }}"

- name: A topic is deleted with its records
  groundplane.onprem.kafka_resources:
    servers: [data-1.example.org:9092]
    certificate: /etc/kafka/tls/kafka.crt
    key: /etc/kafka/tls/kafka.key
    topics:
      - {name: orders-of-last-year, state: absent}
"""

RETURN = r"""
changes:
  description: What differed, one line each.
  type: list
  elements: str
  returned: always
  sample: ["topic orders: partitions", "user orders SCRAM-SHA-512: credential"]
unmanaged:
  description: What the cluster has and nobody declares, by kind. Topics of Kafka's own are left out.
  type: dict
  returned: when a broker answered
  contains:
    topics:
      description: Names of topics.
      type: list
      elements: str
    acls:
      description: Rules, in words.
      type: list
      elements: str
    quotas:
      description: Whom limits are for, in words.
      type: list
      elements: str
    users:
      description: Users with their mechanism.
      type: list
      elements: str
refusals:
  description: Why nothing was touched, one sentence each.
  type: list
  elements: str
  returned: when something was refused
requests:
  description: How many requests were sent over the one connection.
  type: int
  returned: when a broker answered
logins:
  description: How many logins were tried to prove passwords.
  type: int
  returned: when a broker answered
"""

from typing import Any

from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import ClientTls, HttpsError
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_admin import Admin, Outcome
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_client import (
    Client,
    KafkaError,
    UnreachableError,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_declared import DeclarationError, wanted
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_plan import (
    State,
    Wanted,
    plan,
    refusals,
    unmanaged,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.resource_change import (
    RefusedError,
    answer,
    result,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.unlogged import UnloggedModule

STATE = {"type": "str", "choices": ["present", "absent"], "default": "present"}
TOPIC = {
    "name": {"type": "str", "required": True},
    "partitions": {"type": "int"},
    "replication_factor": {"type": "int"},
    "configs": {"type": "dict", "default": {}},
    "purge_configs": {"type": "bool", "default": False},
    "state": STATE,
}
ACL = {
    "principal": {"type": "str", "required": True},
    "resource_type": {
        "type": "str",
        "choices": ["topic", "group", "cluster", "transactional_id", "delegation_token", "user"],
        "required": True,
    },
    "resource_name": {"type": "str", "required": True},
    "pattern_type": {"type": "str", "choices": ["literal", "prefixed"], "default": "literal"},
    "operations": {
        "type": "list",
        "elements": "str",
        "choices": [
            "all",
            "read",
            "write",
            "create",
            "delete",
            "alter",
            "describe",
            "cluster_action",
            "describe_configs",
            "alter_configs",
            "idempotent_write",
            "create_tokens",
            "describe_tokens",
            "two_phase_commit",
        ],
        "required": True,
    },
    "permission": {"type": "str", "choices": ["allow", "deny"], "default": "allow"},
    "host": {"type": "str", "default": "*"},
    "state": STATE,
}
QUOTA = {
    "user": {"type": "str"},
    "client_id": {"type": "str"},
    "ip": {"type": "str"},
    "values": {"type": "dict", "default": {}},
    "purge_values": {"type": "bool", "default": False},
    "state": STATE,
}
USER = {
    "name": {"type": "str", "required": True},
    "mechanism": {"type": "str", "choices": ["SCRAM-SHA-256", "SCRAM-SHA-512"], "default": "SCRAM-SHA-512"},
    "password": {"type": "str", "no_log": True},
    "iterations": {"type": "int", "default": 8192},
    "state": STATE,
}


def all_new(declared: Wanted) -> Outcome:
    """What a run would do in a cluster that is only being planned.

    Raises:
        RefusedError: what is declared contradicts itself.
    """
    reasons = refusals(State(), declared)
    if reasons:
        raise RefusedError(reasons)
    return Outcome(plan(State(), declared))


def converge(module: UnloggedModule) -> dict[str, Any]:
    """Converge what the module's parameters declare, and give its result.

    Raises:
        DeclarationError: a declaration has a value that is none.
        HttpsError: a certificate cannot be used.
        KafkaError: the cluster does not answer, or not as it should.
        RefusedError: nothing was touched.
        UnfinishedError: the cluster did not take a part of it.
    """
    params = module.params
    declared = wanted(params)
    try:
        client = Client(params["servers"], ClientTls(params["ca"], params["certificate"], params["key"]).context())
    except (HttpsError, UnreachableError) as error:
        if not module.check_mode:
            raise
        module.warn(f"all objects count as new: {error}")
        return result(all_new(declared).changes)
    try:
        outcome = Admin(client, params["scram_servers"]).converge(
            declared, check=module.check_mode, wait_seconds=params["wait_seconds"]
        )
    finally:
        client.close()
    return {
        **result(outcome.changes),
        "unmanaged": unmanaged(outcome.state, declared),
        "requests": client.requests,
        "logins": client.logins,
    }


def main() -> None:
    """Read the call, converge, answer."""
    module = UnloggedModule(
        argument_spec={
            "servers": {"type": "list", "elements": "str", "required": True},
            "certificate": {"type": "path", "required": True},
            "key": {"type": "path", "required": True},
            "ca": {"type": "path", "default": "/etc/groundplane/pki/ca.crt"},
            "scram_servers": {"type": "list", "elements": "str", "default": []},
            "wait_seconds": {"type": "float", "default": 30},
            "topics": {"type": "list", "elements": "dict", "default": [], "options": TOPIC},
            "acls": {"type": "list", "elements": "dict", "default": [], "options": ACL},
            "quotas": {"type": "list", "elements": "dict", "default": [], "options": QUOTA},
            "users": {"type": "list", "elements": "dict", "default": [], "options": USER},
        },
        supports_check_mode=True,
    )
    answer(module, converge, DeclarationError, HttpsError, KafkaError)


if __name__ == "__main__":
    main()
