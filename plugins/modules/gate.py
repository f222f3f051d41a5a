#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes a member of a running cluster only when the cluster can lose it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gate
short_description: A member of a running cluster is restarted only when the cluster can lose it
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Takes the cluster's lock (a leased key in etcd), asks the cluster whether it can lose this member now, acts, waits
    until the member is healthy and has caught up, and lets go of the lock.
  - It refuses rather than breaks. What time could mend it waits for, at most O(patience) seconds.
  - A unit that already runs with what is on disk is not restarted, so an interrupted run is finished by the next one
    and two passes (followers first, the leader last) restart each member once.
  - Runs on the member's host. What is left out is taken from the inventory and from the service contract whose
    C(quorum.engine) is O(engine).
options:
  engine:
    description: What kind of cluster it is.
    type: str
    required: true
    choices: [etcd, patroni, kafka, kafka_controller, redis, redis_sentinel, object_store, qdrant]
  action:
    description:
      - V(restart) restarts O(unit). With O(engine=patroni) and no O(unit), Patroni restarts only PostgreSQL, and only
        if parameters wait for that. A restart of the unit C(patroni.service) stops PostgreSQL too.
      - V(reload) reloads it; no member leaves, so nobody is asked.
      - V(stop) stops O(unit) for good, for maintenance of its host.
      - V(switchover) lets O(candidate) lead, or the best follower; in Patroni the standbys then race for it. Kafka,
        Qdrant and an object store have nothing to switch over, and it is refused. Of Redis the Sentinels choose who it
        is, so that none is named.
      - V(check) only says whether the member may leave now.
      - V(none) only waits until the member is healthy and has caught up.
    type: str
    default: restart
    choices: [restart, reload, stop, switchover, check, none]
  unit:
    description: The systemd unit of the member.
    type: str
  lead:
    description: >-
      V(defer) leaves a member that leads alone and says so in RV(deferred); V(yield) first moves leadership to the most
      up to date follower. The active controller of Kafka and the leader of Qdrant's consensus are restarted where they
      are, and another is elected; brokers, the Sentinels of Redis and servers of an object store have no leader.
    type: str
    default: defer
    choices: [defer, yield]
  force:
    description: Restart even if it already runs with what is on disk, or no parameter waits for it.
    type: bool
    default: false
  candidate:
    description: Who leads next, with O(action=switchover).
    type: str
    default: ""
  accept_outage:
    description: >-
      Accept that a cluster too small to lose anybody is gone while its member restarts; with O(engine=kafka) that the
      partitions are which have no replica to spare, with O(engine=qdrant) that such shards are; with
      O(engine=object_store) that writes are.
    type: bool
    default: false
  patience:
    description: Seconds for which a refusal that time could mend is not yet final.
    type: float
    default: 30
  timeout:
    description: Seconds until the member has to be healthy again, and for a change of the leader.
    type: float
    default: 120
  lag_limit:
    description: Bytes of WAL that a standby may be behind and still count.
    type: int
    default: 1048576
  member:
    description: Name of the member on this host. Left out, the inventory name.
    type: str
  cluster:
    description: >-
      Name of the cluster, for messages, and of the lock of a Kafka cluster, of Redis, of Qdrant or of an object store.
      Left out, C(site_name).
    type: str
  run:
    description: Who asks, the same for all tasks of a run. Left out, it is made from the run of C(ansible-playbook).
    type: str
  endpoints:
    description: Client URLs of etcd; with another O(engine) of the etcd that keeps the lock.
    type: list
    elements: str
  rest:
    description: URLs of the REST API of all members, with O(engine=patroni).
    type: list
    elements: str
  servers:
    description: >-
      C(host:port) of all brokers' listener for certificates, or of all controllers, with O(engine=kafka) and
      O(engine=kafka_controller), or of all servers of an object store with O(engine=object_store), or of all members
      with O(engine=qdrant). The first label of a host is the member's name. With O(engine=redis) and
      O(engine=redis_sentinel) C(member=address:port) of all servers.
    type: list
    elements: str
  sentinels:
    description: C(member=address:port) of all Sentinels, with O(engine=redis) and O(engine=redis_sentinel).
    type: list
    elements: str
  user:
    description: Who asks Redis and its Sentinels.
    type: str
    default: admin
  password:
    description: >-
      That user's password, or the key of Qdrant's API. Left out, C(redis_admin_password), and C(qdrant_api_key) with
      O(engine=qdrant).
    type: str
  ca:
    description: File with the trust anchor.
    type: path
    default: /etc/groundplane/pki/ca.crt
  cert:
    description: File with this host's certificate for the cluster.
    type: path
  key:
    description: File with its key.
    type: path
attributes:
  check_mode:
    description: Says from the live state what would be done, without lock, waiting or change.
    support: full
  diff_mode:
    description: Shows who would leave and who would lead.
    support: full
  idempotent:
    description: Unless O(force), a member that needs nothing is not touched.
    support: full
"""

EXAMPLES = r"""
- name: Followers that need it are restarted one at a time
  groundplane.onprem.gate: {engine: etcd, unit: etcd.service, lead: defer}
  throttle: 1

- name: A leader that needs it hands over and is restarted
  groundplane.onprem.gate: {engine: etcd, unit: etcd.service, lead: yield}
  throttle: 1

- name: PostgreSQL takes the parameters that wait for a restart
  groundplane.onprem.gate: {engine: patroni, lead: yield}
  throttle: 1

- name: Brokers that need it are restarted one at a time
  groundplane.onprem.gate: {engine: kafka, unit: kafka.service}
  throttle: 1

- name: Replicas that need it are restarted one at a time
  groundplane.onprem.gate: {engine: redis, unit: redis-server.service}
  throttle: 1

- name: The host may be taken down
  groundplane.onprem.gate: {engine: etcd, action: check}
"""

RETURN = r"""
decision:
  description: What the gate does with the member, V(restart), V(yield_then_restart), V(defer) or V(nothing).
  type: str
  returned: success
reason:
  description: One sentence that names cluster, member and cause.
  type: str
  returned: success
  sample: "etcd cluster lab keeps 2 of 2 needed voters without data1"
allowed:
  description: Whether the member may leave now.
  type: bool
  returned: O(action=check) and check mode
deferred:
  description: The member leads and is left for the next pass.
  type: bool
  returned: success
waited:
  description: Seconds spent waiting for the cluster.
  type: float
  returned: success
target:
  description: Who leads instead; empty when leadership did not move.
  type: str
  returned: success
gap:
  description: Seconds without a leader as seen from this host; none when leadership did not move.
  type: float
  returned: success
"""

import socket
import uuid
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils import unit_state
from ansible_collections.groundplane.onprem.plugins.module_utils.cluster_lock import ClusterLock, Holder
from ansible_collections.groundplane.onprem.plugins.module_utils.etcd_cluster import EtcdCluster
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import Action, Verdict, Wish
from ansible_collections.groundplane.onprem.plugins.module_utils.gate_run import (
    UNANSWERED,
    Gate,
    GateError,
    Patience,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import ClientTls, HttpsError
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_cluster import KafkaBrokers, KafkaControllers
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_cluster import ObjectStoreServers
from ansible_collections.groundplane.onprem.plugins.module_utils.patroni_cluster import PatroniCluster, PatroniError
from ansible_collections.groundplane.onprem.plugins.module_utils.qdrant_cluster import QdrantCluster
from ansible_collections.groundplane.onprem.plugins.module_utils.redis_cluster import RedisCluster, RedisSentinels
from ansible_collections.groundplane.onprem.plugins.module_utils.unit_state import UnitError

NEEDED = ("member", "cluster", "cert", "key")


def _etcd(params: dict[str, Any], tls: ClientTls) -> EtcdCluster:
    return EtcdCluster(params["cluster"], params["endpoints"] or [], tls)


def _redis(params: dict[str, Any], tls: ClientTls, kind: type[RedisCluster] = RedisCluster) -> RedisCluster:
    places = {key: params[key] or [] for key in ("servers", "sentinels")}
    return kind(params["cluster"], places, (params["user"], params["password"] or ""), tls)


LOCK_OF = {"kafka_controller": "kafka", "redis_sentinel": "redis"}
"""Engines whose members have the lock of another engine's."""
ENGINES: dict[str, Any] = {
    "etcd": _etcd,
    "patroni": lambda params, tls: PatroniCluster(params["cluster"], params["rest"] or [], tls),
    "kafka": lambda params, tls: KafkaBrokers(params["cluster"], params["servers"] or [], tls),
    "kafka_controller": lambda params, tls: KafkaControllers(params["cluster"], params["servers"] or [], tls),
    "redis": _redis,
    "redis_sentinel": lambda params, tls: _redis(params, tls, RedisSentinels),
    "object_store": lambda params, tls: ObjectStoreServers(params["cluster"], params["servers"] or [], tls),
    "qdrant": lambda params, tls: QdrantCluster(
        params["cluster"], params["servers"] or [], params["password"] or "", tls
    ),
}
"""What connects to a cluster of each kind."""


class Call:
    """One call of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        """Take the parameters.

        Raises:
            HttpsError: the certificate files cannot be read.
            EtcdError: there are no endpoints.
            PatroniError: there are no members.
            KafkaError: there are no servers.
            RedisError: there are no servers, or one has no Sentinel.
            ObjectStoreError: there are no servers.
            QdrantError: there are no servers, or no key.
        """
        self.module = module
        p = self.params = module.params
        self.tls = ClientTls(p["ca"], p["cert"], p["key"])
        self.wish = Wish(
            p["member"],
            p["lead"],
            outage=p["accept_outage"],
            postgres=p["engine"] == "patroni" and not p["unit"],
            lag_limit=p["lag_limit"],
        )
        cluster = ENGINES[p["engine"]](p, self.tls)
        self.patroni = cluster if isinstance(cluster, PatroniCluster) else None
        self.gate: Gate[Any] = Gate(cluster, self.wish, Patience(p["patience"], p["timeout"]), self.lock)

    def lock(self) -> ClusterLock:
        """The lock of the cluster, over connections of its own.

        Raises:
            GateError: the site has no etcd.
            PatroniError: nobody says what the cluster is called.
        """
        p = self.params
        if not p["endpoints"]:
            raise GateError(
                f"the site has no etcd that could keep the lock of {p['engine']} {p['cluster']}: name one in endpoints"
            )
        # A broker and a controller of one host have its name and this lock in common, and are two. So have a server of
        # Redis and its Sentinel.
        member = f"{p['engine']} of {p['member']}" if p["engine"].startswith(("kafka", "redis")) else p["member"]
        holder = Holder(p["run"] or str(uuid.uuid4()), member, socket.gethostname())
        return ClusterLock(_etcd(p, self.tls), self.key(), holder, patience=p["timeout"])

    def key(self) -> str:
        """What the lock is called, by a name that all runs agree on.

        Raises:
            PatroniError: nobody says what the cluster is called.
        """
        # Whatever the callers call it: an etcd keeps its own lock, and Patroni knows its scope.
        if self.patroni:
            return f"patroni/{self.patroni.scope()}"
        engine = self.params["engine"]
        # One for brokers and controllers, and not by Kafka's own id, which nobody tells when all are down.
        return "etcd" if engine == "etcd" else f"{LOCK_OF.get(engine, engine)}/{self.params['cluster']}"

    def run(self) -> dict[str, Any]:
        """Do it.

        Raises:
            GateError: the gate refuses, or the cluster did not recover.
            UnitError: the unit did not restart.
            PatroniError: Patroni refused.
            KafkaError: a Kafka cluster cannot be asked.
            RedisError: a server of Redis refuses to tell.
            ObjectStoreError: an object store cannot be asked.
            QdrantError: a Qdrant cannot be asked.
        """
        action = self.params["action"]
        if action == "check" or self.module.check_mode:
            return self.would(action)
        if action == "none":
            return self.gate.settle().plain()
        if action == "switchover":
            return self.gate.switch_over(self.params["candidate"]).plain()
        if action == "reload":
            self.reload()
            return {**self.gate.outcome.plain(), "changed": True, "reason": f"{self.wish.member} was reloaded"}
        idle = self.idle() if action == "restart" else ""
        if idle:
            return {**self.gate.outcome.plain(), "reason": idle}
        return self.gate.leave(self.restart if action == "restart" else self.stop, back=action == "restart").plain()

    def would(self, action: str) -> dict[str, Any]:
        """Say what would be done, from the live state."""
        if action in ("reload", "none"):
            return {**self.gate.outcome.plain(), "changed": action == "reload", "allowed": True}
        try:
            verdict = self.gate.look_over(self.params["candidate"]) if action == "switchover" else self.gate.look()
        except GateError as error:
            verdict = Verdict(False, Action.NOTHING, str(error))
        does = action != "check" and verdict.allowed and verdict.action is not Action.NOTHING
        if action != "check" and not verdict.allowed and verdict.action is not Action.DEFER:
            self.module.warn(f"the gate would refuse now: {verdict.reason}")
        outcome = self.gate.outcome.plain()
        return {**outcome, "changed": does, "reason": verdict.reason, "allowed": verdict.allowed}

    def idle(self) -> str:
        """Why there is nothing to restart; empty when there is."""
        if self.params["force"]:
            return ""
        unit = self.params["unit"]
        if unit:
            known = unit_state.read_record(unit)
            # Files first, state second: a restart in between then counts as one that has read them.
            seen = unit_state.snapshots([*known.restart_on, *known.reload_on])
            status = unit_state.read_units([unit])[unit]
            if status.running and unit_state.is_stale(status, known, known.restart_on, known.reload_on, seen) == "":
                return f"{unit} of {self.wish.member} runs with what is on disk"
            return ""
        member = self.patroni.read(self.wish.member).find(self.wish.member) if self.patroni else None
        if member is not None and not member.pending_restart:
            return f"PostgreSQL of {self.wish.member} has taken all its parameters"
        return ""

    def restart(self, state: Any) -> None:
        """Restart the unit, or only PostgreSQL."""
        if self.params["unit"]:
            unit_state.restart(self.params["unit"], timeout=self.params["timeout"])
        elif self.patroni is not None:
            member = state.find(self.wish.member)
            if member.pending_restart or self.params["force"]:  # to hand over was a restart too
                self.patroni.restart_postgres(member, self.params["timeout"])

    def stop(self, _state: Any) -> None:
        """Stop the unit."""
        unit_state.act("stop", self.params["unit"], self.params["timeout"])

    def reload(self) -> None:
        """Reload the unit, or let Patroni read its files."""
        if self.params["unit"]:
            unit_state.act("reload", self.params["unit"], self.params["timeout"])
        elif self.patroni is not None:
            member = self.patroni.read(self.wish.member).find(self.wish.member)
            if member is None:
                raise PatroniError(f"Patroni cluster {self.params['cluster']} has no member {self.wish.member}")
            self.patroni.reload(member, self.params["timeout"])


def main() -> None:
    """Read the call, act, answer."""
    module = AnsibleModule(
        argument_spec={
            "engine": {"type": "str", "required": True, "choices": list(ENGINES)},
            "action": {
                "type": "str",
                "default": "restart",
                "choices": ["restart", "reload", "stop", "switchover", "check", "none"],
            },
            "unit": {"type": "str"},
            "lead": {"type": "str", "default": "defer", "choices": ["defer", "yield"]},
            "force": {"type": "bool", "default": False},
            "candidate": {"type": "str", "default": ""},
            "accept_outage": {"type": "bool", "default": False},
            "patience": {"type": "float", "default": 30},
            "timeout": {"type": "float", "default": 120},
            "lag_limit": {"type": "int", "default": 1048576},
            "member": {"type": "str"},
            "cluster": {"type": "str"},
            "run": {"type": "str"},
            "endpoints": {"type": "list", "elements": "str"},
            "rest": {"type": "list", "elements": "str"},
            "servers": {"type": "list", "elements": "str"},
            "sentinels": {"type": "list", "elements": "str"},
            "user": {"type": "str", "default": "admin"},
            "password": {"type": "str", "no_log": True},
            "ca": {"type": "path", "default": "/etc/groundplane/pki/ca.crt"},
            "cert": {"type": "path"},
            "key": {"type": "path", "no_log": False},
        },
        required_if=[("action", "stop", ("unit",))],
        supports_check_mode=True,
    )
    missing = [name for name in NEEDED if not module.params[name]]
    if missing:
        module.fail_json(msg=f"gate: {', '.join(missing)} is neither given nor known from the inventory")
    if (
        module.params["engine"] != "patroni"
        and module.params["action"] in ("restart", "reload")
        and not module.params["unit"]
    ):
        module.fail_json(msg=f"gate: unit is needed to restart a member of {module.params['engine']}")
    try:
        module.exit_json(**Call(module).run())
    except HttpsError as error:
        if not module.check_mode:
            module.fail_json(msg=f"gate: {error}")
        # On a host that is only being planned there is no certificate yet, and no cluster.
        module.exit_json(changed=False, decision=str(Action.NOTHING), reason=str(error), deferred=False, waited=0.0)
    except (GateError, UnitError, *UNANSWERED) as error:
        module.fail_json(msg=f"gate: {error}")


if __name__ == "__main__":
    main()
