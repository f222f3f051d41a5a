# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The requests of Kafka's administration that we send, each in one version, which all of Kafka 4 serve.

Source: Kafka 4.4 documentation, "Protocol" (API messages).
"""

from __future__ import annotations

from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_wire import (
    BOOLEAN,
    DATA,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    NULLABLE_TEXT,
    OLD_TEXT,
    TEXT,
    UINT16,
    UUID,
    Api,
    Codec,
    Record,
    array,
)

NO_ID = bytes(16)
"""The UUID of a topic that is named otherwise."""

_ERROR: dict[str, Codec] = {"error_code": INT16, "error_message": NULLABLE_TEXT}
_THROTTLE: dict[str, Codec] = {"throttle_time_ms": INT32}
_BROKERS = array(Record({"broker_id": INT32, "host": TEXT, "port": INT32, "rack": NULLABLE_TEXT}))
_LEVELS = Record({"name": TEXT, "maximum": INT16, "minimum": INT16})

API_VERSIONS = Api(
    "ApiVersions",
    18,
    3,
    Record({"client_software_name": TEXT, "client_software_version": TEXT}),
    Record(
        {
            "error_code": INT16,
            "api_keys": array(Record({"api_key": INT16, "min_version": INT16, "max_version": INT16})),
            **_THROTTLE,
        },
        {2: ("finalized_features", array(_LEVELS))},
    ),
    plain_answer=True,
)

SASL_HANDSHAKE = Api(
    "SaslHandshake",
    17,
    1,
    Record({"mechanism": OLD_TEXT}, flexible=False),
    Record({"error_code": INT16, "mechanisms": array(OLD_TEXT, compact=False)}, flexible=False),
    flexible=False,
)

SASL_AUTHENTICATE = Api(
    "SaslAuthenticate",
    36,
    2,
    Record({"auth_bytes": DATA}),
    Record({**_ERROR, "auth_bytes": DATA, "session_lifetime_ms": INT64}),
)

DESCRIBE_CLUSTER = Api(
    "DescribeCluster",
    60,
    1,
    Record({"include_operations": BOOLEAN, "endpoint_type": INT8}),
    Record(
        {
            **_THROTTLE,
            **_ERROR,
            "endpoint_type": INT8,
            "cluster_id": TEXT,
            "controller_id": INT32,
            "brokers": _BROKERS,
            "operations": INT32,
        }
    ),
)

DESCRIBE_NODES = Api(
    "DescribeCluster",
    60,
    2,
    Record({"include_operations": BOOLEAN, "endpoint_type": INT8, "include_fenced": BOOLEAN}),
    Record(
        {
            **_THROTTLE,
            **_ERROR,
            "endpoint_type": INT8,
            "cluster_id": TEXT,
            "controller_id": INT32,
            "nodes": array(
                Record({"id": INT32, "host": TEXT, "port": INT32, "rack": NULLABLE_TEXT, "is_fenced": BOOLEAN})
            ),
            "operations": INT32,
        }
    ),
)
"""The version that tells of brokers too which are registered and do not live (KIP-1073)."""

BROKERS, CONTROLLERS = 1, 2
"""Kinds of endpoints of `DESCRIBE_NODES`. A controller tells of controllers only, and whom it takes for the active."""

_REPLICA = Record(
    {
        "id": INT32,
        "directory_id": UUID,
        "log_end": INT64,
        "last_fetch": INT64,
        "last_caught_up": INT64,
    }
)

DESCRIBE_QUORUM = Api(
    "DescribeQuorum",
    55,
    2,
    Record({"topics": array(Record({"name": TEXT, "partitions": array(Record({"index": INT32}))}))}),
    Record(
        {
            **_ERROR,
            "topics": array(
                Record(
                    {
                        "name": TEXT,
                        "partitions": array(
                            Record(
                                {
                                    "index": INT32,
                                    **_ERROR,
                                    "leader": INT32,
                                    "leader_epoch": INT32,
                                    "high_watermark": INT64,
                                    "voters": array(_REPLICA),
                                    "observers": array(_REPLICA),
                                }
                            )
                        ),
                    }
                )
            ),
            "nodes": array(
                Record(
                    {
                        "id": INT32,
                        "listeners": array(Record({"name": TEXT, "host": TEXT, "port": UINT16})),
                    }
                )
            ),
        }
    ),
)
"""The active controller answers it, and a broker passes it on; any other controller answers NOT_LEADER_OR_FOLLOWER.

`last_fetch` and `last_caught_up` are milliseconds by the leader's clock, -1 when not known; the leader's own
`last_caught_up` is its time of the answer (KIP-836)."""

METADATA_LOG = {"topics": [{"name": "__cluster_metadata", "partitions": [{"index": 0}]}]}
"""The question that `DESCRIBE_QUORUM` is sent with: there is only this quorum."""

_PARTITION = Record(
    {
        "error_code": INT16,
        "index": INT32,
        "leader": INT32,
        "leader_epoch": INT32,
        "replicas": array(INT32),
        "in_sync": array(INT32),
        "offline": array(INT32),
    }
)

METADATA = Api(
    "Metadata",
    3,
    12,
    Record(
        {
            "topics": array(Record({"topic_id": UUID, "name": NULLABLE_TEXT}), nullable=True),
            "allow_auto_topic_creation": BOOLEAN,
            "include_topic_operations": BOOLEAN,
        }
    ),
    Record(
        {
            **_THROTTLE,
            "brokers": _BROKERS,
            "cluster_id": NULLABLE_TEXT,
            "controller_id": INT32,
            "topics": array(
                Record(
                    {
                        "error_code": INT16,
                        "name": NULLABLE_TEXT,
                        "topic_id": UUID,
                        "is_internal": BOOLEAN,
                        "partitions": array(_PARTITION),
                        "operations": INT32,
                    }
                )
            ),
        }
    ),
)

LIST_REASSIGNMENTS = Api(
    "ListPartitionReassignments",
    46,
    0,
    Record(
        {
            "timeout_ms": INT32,
            "topics": array(Record({"name": TEXT, "partitions": array(INT32)}), nullable=True),
        }
    ),
    Record(
        {
            **_THROTTLE,
            **_ERROR,
            "topics": array(
                Record(
                    {
                        "name": TEXT,
                        "partitions": array(
                            Record(
                                {
                                    "index": INT32,
                                    "replicas": array(INT32),
                                    "adding": array(INT32),
                                    "removing": array(INT32),
                                }
                            )
                        ),
                    }
                )
            ),
        }
    ),
)

_RESOURCE: dict[str, Codec] = {"resource_type": INT8, "resource_name": TEXT}

DESCRIBE_CONFIGS = Api(
    "DescribeConfigs",
    32,
    4,
    Record(
        {
            "resources": array(Record({**_RESOURCE, "keys": array(TEXT, nullable=True)})),
            "include_synonyms": BOOLEAN,
            "include_documentation": BOOLEAN,
        }
    ),
    Record(
        {
            **_THROTTLE,
            "results": array(
                Record(
                    {
                        **_ERROR,
                        **_RESOURCE,
                        "configs": array(
                            Record(
                                {
                                    "name": TEXT,
                                    "value": NULLABLE_TEXT,
                                    "read_only": BOOLEAN,
                                    "source": INT8,
                                    "sensitive": BOOLEAN,
                                    "synonyms": array(Record({"name": TEXT, "value": NULLABLE_TEXT, "source": INT8})),
                                    "type": INT8,
                                    "documentation": NULLABLE_TEXT,
                                }
                            )
                        ),
                    }
                )
            ),
        }
    ),
)

INCREMENTAL_ALTER_CONFIGS = Api(
    "IncrementalAlterConfigs",
    44,
    1,
    Record(
        {
            "resources": array(
                Record(
                    {
                        **_RESOURCE,
                        "configs": array(Record({"name": TEXT, "operation": INT8, "value": NULLABLE_TEXT})),
                    }
                )
            ),
            "validate_only": BOOLEAN,
        }
    ),
    Record({**_THROTTLE, "responses": array(Record({**_ERROR, **_RESOURCE}))}),
)

_ASSIGNMENT = Record({"index": INT32, "broker_ids": array(INT32)})

CREATE_TOPICS = Api(
    "CreateTopics",
    19,
    7,
    Record(
        {
            "topics": array(
                Record(
                    {
                        "name": TEXT,
                        "partitions": INT32,
                        "replication_factor": INT16,
                        "assignments": array(_ASSIGNMENT),
                        "configs": array(Record({"name": TEXT, "value": NULLABLE_TEXT})),
                    }
                )
            ),
            "timeout_ms": INT32,
            "validate_only": BOOLEAN,
        }
    ),
    Record(
        {
            **_THROTTLE,
            "topics": array(
                Record(
                    {
                        "name": TEXT,
                        "topic_id": UUID,
                        **_ERROR,
                        "partitions": INT32,
                        "replication_factor": INT16,
                        "configs": array(
                            Record(
                                {
                                    "name": TEXT,
                                    "value": NULLABLE_TEXT,
                                    "read_only": BOOLEAN,
                                    "source": INT8,
                                    "sensitive": BOOLEAN,
                                }
                            ),
                            nullable=True,
                        ),
                    },
                    {0: ("config_error_code", INT16)},
                )
            ),
        }
    ),
)

CREATE_PARTITIONS = Api(
    "CreatePartitions",
    37,
    3,
    Record(
        {
            "topics": array(
                Record(
                    {
                        "name": TEXT,
                        "count": INT32,
                        "assignments": array(Record({"broker_ids": array(INT32)}), nullable=True),
                    }
                )
            ),
            "timeout_ms": INT32,
            "validate_only": BOOLEAN,
        }
    ),
    Record({**_THROTTLE, "results": array(Record({"name": TEXT, **_ERROR}))}),
)

DELETE_TOPICS = Api(
    "DeleteTopics",
    20,
    6,
    Record({"topics": array(Record({"name": NULLABLE_TEXT, "topic_id": UUID})), "timeout_ms": INT32}),
    Record({**_THROTTLE, "responses": array(Record({"name": NULLABLE_TEXT, "topic_id": UUID, **_ERROR}))}),
)

_ACL: dict[str, Codec] = {"principal": TEXT, "host": TEXT, "operation": INT8, "permission": INT8}
_PATTERN: dict[str, Codec] = {"resource_type": INT8, "resource_name": TEXT, "pattern_type": INT8}
_FILTER = Record(
    {
        "resource_type": INT8,
        "resource_name": NULLABLE_TEXT,
        "pattern_type": INT8,
        "principal": NULLABLE_TEXT,
        "host": NULLABLE_TEXT,
        "operation": INT8,
        "permission": INT8,
    }
)

DESCRIBE_ACLS = Api(
    "DescribeAcls",
    29,
    3,
    _FILTER,
    Record({**_THROTTLE, **_ERROR, "resources": array(Record({**_PATTERN, "acls": array(Record(_ACL))}))}),
)

CREATE_ACLS = Api(
    "CreateAcls",
    30,
    3,
    Record({"creations": array(Record({**_PATTERN, **_ACL}))}),
    Record({**_THROTTLE, "results": array(Record(_ERROR))}),
)

DELETE_ACLS = Api(
    "DeleteAcls",
    31,
    3,
    Record({"filters": array(_FILTER)}),
    Record(
        {
            **_THROTTLE,
            "results": array(Record({**_ERROR, "matching": array(Record({**_ERROR, **_PATTERN, **_ACL}))})),
        }
    ),
)

_ENTITY = array(Record({"type": TEXT, "name": NULLABLE_TEXT}))

DESCRIBE_CLIENT_QUOTAS = Api(
    "DescribeClientQuotas",
    48,
    1,
    Record(
        {
            "components": array(Record({"type": TEXT, "match_type": INT8, "match": NULLABLE_TEXT})),
            "strict": BOOLEAN,
        }
    ),
    Record(
        {
            **_THROTTLE,
            **_ERROR,
            "entries": array(
                Record({"entity": _ENTITY, "values": array(Record({"key": TEXT, "value": FLOAT64}))}), nullable=True
            ),
        }
    ),
)

ALTER_CLIENT_QUOTAS = Api(
    "AlterClientQuotas",
    49,
    1,
    Record(
        {
            "entries": array(
                Record({"entity": _ENTITY, "ops": array(Record({"key": TEXT, "value": FLOAT64, "remove": BOOLEAN}))})
            ),
            "validate_only": BOOLEAN,
        }
    ),
    Record({**_THROTTLE, "entries": array(Record({**_ERROR, "entity": _ENTITY}))}),
)

DESCRIBE_SCRAM = Api(
    "DescribeUserScramCredentials",
    50,
    0,
    Record({"users": array(Record({"name": TEXT}), nullable=True)}),
    Record(
        {
            **_THROTTLE,
            **_ERROR,
            "results": array(
                Record(
                    {
                        "user": TEXT,
                        **_ERROR,
                        "credentials": array(Record({"mechanism": INT8, "iterations": INT32})),
                    }
                )
            ),
        }
    ),
)

ALTER_SCRAM = Api(
    "AlterUserScramCredentials",
    51,
    0,
    Record(
        {
            "deletions": array(Record({"name": TEXT, "mechanism": INT8})),
            "upsertions": array(
                Record({"name": TEXT, "mechanism": INT8, "iterations": INT32, "salt": DATA, "salted_password": DATA})
            ),
        }
    ),
    Record({**_THROTTLE, "results": array(Record({"user": TEXT, **_ERROR}))}),
)

ADMINISTRATION = (
    DESCRIBE_CLUSTER,
    METADATA,
    LIST_REASSIGNMENTS,
    DESCRIBE_CONFIGS,
    INCREMENTAL_ALTER_CONFIGS,
    CREATE_TOPICS,
    CREATE_PARTITIONS,
    DELETE_TOPICS,
    DESCRIBE_ACLS,
    CREATE_ACLS,
    DELETE_ACLS,
    DESCRIBE_CLIENT_QUOTAS,
    ALTER_CLIENT_QUOTAS,
    DESCRIBE_SCRAM,
    ALTER_SCRAM,
)
"""What a broker must serve before anything is asked of it."""

BROKER_HEALTH = (DESCRIBE_NODES, DESCRIBE_QUORUM, METADATA, LIST_REASSIGNMENTS, DESCRIBE_CONFIGS)
CONTROLLER_HEALTH = (DESCRIBE_NODES, DESCRIBE_QUORUM)
"""What the rolling gate asks. Controllers serve a smaller set than brokers."""

EVERY = (API_VERSIONS, SASL_HANDSHAKE, SASL_AUTHENTICATE, *ADMINISTRATION, DESCRIBE_NODES, DESCRIBE_QUORUM)
"""All that we speak."""

ERRORS = {
    -1: "the broker had an unexpected error",
    3: "there is no such topic",
    6: "it does not lead",
    7: "the request was not carried out in time",
    10: "the message is too large",
    17: "the name of the topic is not valid",
    29: "the principal of our certificate may not do that to this topic",
    31: "the principal of our certificate may not do that to the cluster",
    36: "the topic is there already",
    37: "the number of partitions is not valid",
    38: "the replication factor is not valid",
    39: "the replicas are not valid",
    40: "the configuration is not valid",
    41: "the controller moved",
    42: "the request is not valid",
    44: "a policy of the broker forbids it",
    54: "the broker has no authorizer",
    58: "the authentication failed",
    73: "the topic may not be deleted: delete.topic.enable is off",
    89: "the principal of our certificate is over its quota of changes",
    91: "there is no such resource",
    92: "a resource is named twice",
    93: "the credential is not acceptable",
}
"""What a code means where the broker gives no words (documentation, "Error codes")."""

PASSING = frozenset({3, 5, 6, 7, 8, 41, 89})
"""Codes after which the same request may succeed: the controller or the metadata are on their way."""

UNKNOWN_TOPIC = 3
NOT_LEADER = 6
TOPIC_FORBIDDEN = 29
UNKNOWN_MECHANISM = 33
AUTHENTICATION_FAILED = 58
NO_SUCH_RESOURCE = 91


def words(code: int, message: str | None) -> str:
    """What an error is called: the broker's words, else ours."""
    return message.rstrip(".") if message else ERRORS.get(code, f"error {code} of Kafka's protocol")
