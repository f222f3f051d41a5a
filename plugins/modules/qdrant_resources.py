#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collections and peers of a Qdrant cluster, converged in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: qdrant_resources
short_description: Collections of a Qdrant cluster are as declared, and its shards have their replicas
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Compares a cluster with what is declared and changes what differs, over kept-alive TLS connections.
  - What contradicts itself, or what the cluster cannot do, is refused before anything is touched, all reasons at once.
  - Nothing is deleted but what is declared absent by its name, and no peer is removed that is not named. Collections
    that nobody declares are returned.
  - Shards of declared collections that have fewer replicas than their factor get some. Their points follow by
    themselves, for as long as that takes; RV(transfers) says how many are under way.
  - It has not run against a server yet. See the decision about Qdrant for what that leaves open.
options:
  servers:
    description: C(host:port) of all members. The first label of a host is the name of its peer.
    type: list
    elements: str
    required: true
  api_key:
    description: Key of the service.
    type: str
    required: true
  ca:
    description: The authority that vouches for the members.
    type: path
    default: /etc/groundplane/pki/ca.crt
  certificate:
    description: File with this host's certificate.
    type: path
    required: true
  key:
    description: File with its key.
    type: path
    required: true
  replication_factor:
    description: Replicas of each shard of a collection that says nothing else.
    type: int
    default: 2
  write_consistency_factor:
    description: Replicas that have to take a write to a collection that says nothing else.
    type: int
    default: 2
  wait_seconds:
    description: How long the cluster may take until it shows a change.
    type: float
    default: 60
  collections:
    description: Collections. Those that are not listed are left alone.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the collection.
        type: str
        required: true
      vectors:
        description:
          - Either C(size) and C(distance) of the one vector, or such a mapping for each name.
          - C(size), C(distance), C(datatype) and C(multivector_config) are settled when a collection is made; another
            value than it has is refused. C(on_disk), C(memory), C(hnsw_config) and C(quantization_config) can change.
        type: dict
        default: {}
      sparse_vectors:
        description: Name to parameters. They are used when a collection is made, and not compared later.
        type: dict
        default: {}
      shard_number:
        description: How many shards. It is settled when a collection is made. Without it, Qdrant makes one a peer.
        type: int
      replication_factor:
        description: Replicas of each shard. Without it, O(replication_factor).
        type: int
      write_consistency_factor:
        description: Replicas that have to take a write. Without it, O(write_consistency_factor).
        type: int
      on_disk_payload:
        description: Whether payloads are read from disk. Without it, it is left as it is.
        type: bool
      hnsw_config:
        description: Settings of the index. Those that are not named are left as they are.
        type: dict
        default: {}
      optimizers_config:
        description: Settings of the optimizers. Those that are not named are left as they are.
        type: dict
        default: {}
      strict_mode_config:
        description: Limits for clients. Those that are not named are left as they are.
        type: dict
        default: {}
      quantization_config:
        description: >-
          Quantization of all vectors, such as C({scalar: {type: int8, always_ram: true}}). An empty mapping for none.
          Without it, it is left as it is.
        type: dict
      state:
        description: V(absent) deletes the collection with its points.
        type: str
        choices: [present, absent]
        default: present
  removed_peers:
    description:
      - Names of peers that are gone for good, and that the consensus still counts on.
      - It is refused for one that answers, and where it has the last active replica of a shard.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description:
      - Reads the cluster and tells what would change.
      - Where no member answers, all that is declared is new.
    support: full
  diff_mode:
    description: Shows each attribute that differs, and each replica.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: The collections are there
  groundplane.onprem.qdrant_resources:
    servers: [vector1.example.org:6333, vector2.example.org:6333, vector3.example.org:6333]
    api_key: "{{ qdrant_api_key }}"
    certificate: /etc/qdrant/tls/server.crt
    key: /etc/qdrant/tls/server.key
    collections:
      - name: articles
        vectors: {size: 768, distance: Cosine, on_disk: true}
        shard_number: 6
        quantization_config: {scalar: {type: int8, always_ram: true}}
      - {name: drafts, state: absent}

- name: A peer is forgotten whose host is gone for good
  groundplane.onprem.qdrant_resources:
    servers: [vector1.example.org:6333, vector3.example.org:6333]
    api_key: "{{ qdrant_api_key }}"
    certificate: /etc/qdrant/tls/server.crt
    key: /etc/qdrant/tls/server.key
    removed_peers: [vector2]
"""

RETURN = r"""
changes:
  description: What differed, one line each.
  type: list
  elements: str
  returned: always
  sample: ["collection articles: replication_factor", "collection articles: replica of shard 0 on vector3"]
unmanaged:
  description: Collections that are there and that nobody declares.
  type: list
  elements: str
  returned: when a member answered
transfers:
  description: Transfers of shards of declared collections that are under way.
  type: int
  returned: when a member answered
refusals:
  description: Why nothing was touched, one sentence each.
  type: list
  elements: str
  returned: when something was refused
requests:
  description: How many requests were sent.
  type: int
  returned: when a member answered
"""

from typing import TYPE_CHECKING, Any

from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import ClientTls, HttpsError
from ansible_collections.groundplane.onprem.plugins.module_utils.qdrant_admin import (
    Outcome,
    QdrantAdmin,
    SilentError,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.qdrant_cluster import QdrantError, clients
from ansible_collections.groundplane.onprem.plugins.module_utils.qdrant_plan import (
    SECTIONS,
    Collection,
    State,
    Wanted,
    moving,
    named_vectors,
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

if TYPE_CHECKING:
    from collections.abc import Mapping

COLLECTION = {
    "name": {"type": "str", "required": True},
    "vectors": {"type": "dict", "default": {}},
    "sparse_vectors": {"type": "dict", "default": {}},
    "shard_number": {"type": "int"},
    "replication_factor": {"type": "int"},
    "write_consistency_factor": {"type": "int"},
    "on_disk_payload": {"type": "bool"},
    "hnsw_config": {"type": "dict", "default": {}},
    "optimizers_config": {"type": "dict", "default": {}},
    "strict_mode_config": {"type": "dict", "default": {}},
    "quantization_config": {"type": "dict"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


def declared(params: Mapping[str, Any]) -> Wanted:
    """All that is declared.

    Args:
        params: of the module, checked by its argument specification.
    """
    return Wanted(tuple(_collection(item, params) for item in params["collections"]), tuple(params["removed_peers"]))


def _collection(item: Mapping[str, Any], params: Mapping[str, Any]) -> Collection:
    factors = {
        key: params[key] if item[key] is None else item[key]
        for key in ("replication_factor", "write_consistency_factor")
    }
    return Collection(
        name=item["name"],
        vectors=named_vectors(item["vectors"]),
        sparse_vectors=item["sparse_vectors"],
        shard_number=item["shard_number"],
        on_disk_payload=item["on_disk_payload"],
        sections={key: item[key] for key in SECTIONS},
        quantization=item["quantization_config"],
        present=item["state"] == "present",
        **factors,
    )


def all_new(wanted: Wanted) -> Outcome:
    """What a run would do in a cluster that is only being planned.

    Raises:
        RefusedError: what is declared contradicts itself.
    """
    if reasons := refusals(None, wanted):
        raise RefusedError(reasons)
    return Outcome(plan(State(), wanted))


def converge(module: UnloggedModule) -> dict[str, Any]:
    """Converge what the module's parameters declare, and give its result.

    Raises:
        HttpsError: a certificate cannot be used.
        RefusedError: nothing was touched.
        QdrantError: the cluster does not answer, or not as it should.
        UnfinishedError: the cluster did not take a part of it.
    """
    params = module.params
    wanted = declared(params)
    try:
        connections = clients(params["api_key"], ClientTls(params["ca"], params["certificate"], params["key"]))
        admin = QdrantAdmin(params["servers"], connections)
        outcome = admin.converge(wanted, check=module.check_mode, wait_seconds=params["wait_seconds"])
    except (HttpsError, SilentError) as error:
        if not module.check_mode:
            raise
        module.warn(f"all objects count as new: {error}")
        return result(all_new(wanted).changes)
    return {
        **result(outcome.changes),
        "unmanaged": unmanaged(outcome.state, wanted),
        "transfers": moving(outcome.state, wanted),
        "requests": admin.requests,
    }


def main() -> None:
    """Read the call, converge, answer."""
    module = UnloggedModule(
        argument_spec={
            "servers": {"type": "list", "elements": "str", "required": True},
            "api_key": {"type": "str", "required": True, "no_log": True},
            "ca": {"type": "path", "default": "/etc/groundplane/pki/ca.crt"},
            "certificate": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            "replication_factor": {"type": "int", "default": 2},
            "write_consistency_factor": {"type": "int", "default": 2},
            "wait_seconds": {"type": "float", "default": 60},
            "collections": {"type": "list", "elements": "dict", "default": [], "options": COLLECTION},
            "removed_peers": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    answer(module, converge, HttpsError, QdrantError)


if __name__ == "__main__":
    main()
