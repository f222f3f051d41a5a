#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Labels, taints and the state of a cluster's nodes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kubernetes_node
short_description: Nodes have their labels and taints, take pods, are empty, or are gone
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Reconciles labels and taints of nodes, of all nodes at once where wanted, and brings a node into a state.
  - Runs on a host with a kubeconfig of an administrator, a member of the control plane.
extends_documentation_fragment:
  - groundplane.onprem.kubernetes_api
options:
  name:
    description: Name of the node. Either this or O(nodes).
    type: str
  nodes:
    description: Nodes with labels and taints, for many nodes in one call.
    type: list
    elements: dict
    suboptions:
      name:
        description: Name of the node.
        type: str
        required: true
      labels:
        description: As O(labels).
        type: dict
      taints:
        description: As O(taints).
        type: list
        elements: dict
        suboptions:
          key:
            description: As O(taints[].key).
            type: str
            required: true
          value:
            description: As O(taints[].value).
            type: str
            default: ""
          effect:
            description: As O(taints[].effect).
            type: str
            required: true
            choices: [NoSchedule, PreferNoSchedule, NoExecute]
  labels:
    description:
      - Labels of the node. Not looked at when left out.
      - Labels below C(groundplane.onprem/), C(topology.kubernetes.io/zone), and those that were declared here before
        are removed when they are no longer declared. Others stay.
    type: dict
  taints:
    description:
      - Taints of the node. Not looked at when left out.
      - Which are removed is decided as for O(labels).
    type: list
    elements: dict
    suboptions:
      key:
        description: Its key.
        type: str
        required: true
      value:
        description: Its value.
        type: str
        default: ""
      effect:
        description: What it does to pods that do not tolerate it.
        type: str
        required: true
        choices: [NoSchedule, PreferNoSchedule, NoExecute]
  state:
    description:
      - V(schedulable) takes new pods, V(cordoned) takes none.
      - V(drained) takes none and has none left but those of DaemonSets and of the node's own files. Pods are evicted,
        so that disruption budgets are respected and waited for.
      - V(ready) waits until the kubelet reports that it is, and changes nothing.
      - V(absent) is no node of the cluster any more. It has to be drained before, unless O(lost).
    type: str
    choices: [schedulable, cordoned, drained, ready, absent]
  grace_seconds:
    description: Seconds that an evicted pod may take to end. Negative leaves it to the pod.
    type: int
    default: -1
  timeout_seconds:
    description: Seconds until a node must be ready, or empty.
    type: float
    default: 300
    aliases: [timeout]
  force:
    description: Evict also pods without a controller, which nothing starts again.
    type: bool
    default: false
  delete_emptydir_data:
    description: Evict also pods with data in an emptyDir, which is lost.
    type: bool
    default: false
  lost:
    description: The node does not come back, so that its object may be deleted although it was not drained.
    type: bool
    default: false
attributes:
  check_mode:
    description:
      - Asks the API server by a dry run, and names the pods that would be evicted and those that forbid it.
      - Where there is no cluster or no such node yet, all that is declared is new.
    support: full
  diff_mode:
    description: Shows labels, taints and state that change.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
notes:
  - Needs nothing beyond Python's standard library on the host.
  - What forbids a drain is known before anything is changed.
"""

EXAMPLES = r"""
- name: Nodes have the labels and taints of their pools
  groundplane.onprem.kubernetes_node:
    nodes:
      - {name: worker1, labels: {groundplane.onprem/pool: general, topology.kubernetes.io/zone: a}, taints: []}
      - name: worker2
        labels: {groundplane.onprem/pool: postgres, topology.kubernetes.io/zone: b}
        taints: [{key: groundplane.onprem/pool, value: postgres, effect: NoSchedule}]

- name: A worker is empty
  groundplane.onprem.kubernetes_node:
    name: worker1
    state: drained
    delete_emptydir_data: true
    timeout_seconds: 600

- name: A worker that burnt is no node of the cluster any more
  groundplane.onprem.kubernetes_node: {name: worker1, state: absent, lost: true}
"""

RETURN = r"""
evicted:
  description: Pods that were evicted, as C(namespace/name).
  type: list
  elements: str
  returned: always
  sample: [data/cache-0]
was:
  description: Whether the node took pods before, V(schedulable) or V(cordoned), or V(absent). With O(name) only.
  type: str
  returned: success
  sample: schedulable
"""

import json
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_api import (
    API_ARGUMENTS,
    CHECK_PATIENCE,
    NODES,
    PATIENCE,
    Api,
    ApiError,
    TimedOutError,
    UnreachableError,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_config import ConfigError, load
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_nodes import (
    NodeError,
    Nodes,
    Wish,
    taint_list,
)

TAINTS: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "options": {
        "key": {"type": "str", "required": True, "no_log": False},
        "value": {"type": "str", "default": ""},
        "effect": {"type": "str", "required": True, "choices": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
    },
}
UNSCHEDULABLE = {"schedulable": False, "cordoned": True}


def wish(declared: dict[str, Any], state: str | None = None) -> Wish:
    """What one node is to be.

    Raises:
        NodeError: its taints contradict each other.
    """
    labels, taints = declared["labels"], declared["taints"]
    return Wish(
        declared["name"],
        None if labels is None else {key: str(value) for key, value in labels.items()},
        None if taints is None else taint_list(taints),
        UNSCHEDULABLE.get(state or ""),
    )


def converge(params: dict[str, Any], nodes: Nodes) -> dict[str, Any]:
    """Do what is declared; what is to be returned besides the result of `nodes`.

    Raises:
        NodeError: a node is not as wanted.
        ApiError: nobody answers.
    """
    if params["nodes"] is not None:
        nodes.reconcile([wish(one) for one in params["nodes"]])
        return {}
    name, state = params["name"], params["state"]
    live = nodes.api.find(NODES, "", name)
    was = "absent" if live is None else "cordoned" if (live.get("spec") or {}).get("unschedulable") else "schedulable"
    if state == "absent":
        nodes.remove(name, lost=params["lost"])
        return {"was": was}
    if state == "ready":
        nodes.wait_until_ready(name, params["timeout_seconds"])
    wanted = wish(params, state)
    if (wanted.labels, wanted.taints, wanted.unschedulable) != (None, None, None):
        nodes.reconcile([wanted])
    if state == "drained":
        nodes.drain(
            name,
            grace=params["grace_seconds"],
            timeout=params["timeout_seconds"],
            force=params["force"],
            delete_emptydir_data=params["delete_emptydir_data"],
        )
    return {"was": was}


def shown(one: dict[str, Any]) -> dict[str, Any]:
    """One of Ansible's differences."""
    texts = {key: json.dumps(one[key], indent=2) + "\n" if one[key] else "" for key in ("before", "after")}
    return {"before_header": one["name"], "after_header": one["name"], **texts}


def main() -> None:
    """Read the call, converge, answer."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str"},
            "nodes": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "labels": {"type": "dict"},
                    "taints": TAINTS,
                },
            },
            "labels": {"type": "dict"},
            "taints": TAINTS,
            "state": {"type": "str", "choices": ["schedulable", "cordoned", "drained", "ready", "absent"]},
            "grace_seconds": {"type": "int", "default": -1},
            "timeout_seconds": {"type": "float", "default": 300, "aliases": ["timeout"]},
            "force": {"type": "bool", "default": False},
            "delete_emptydir_data": {"type": "bool", "default": False},
            "lost": {"type": "bool", "default": False},
            **API_ARGUMENTS,
        },
        mutually_exclusive=[["nodes", "name"], ["nodes", "labels"], ["nodes", "taints"], ["nodes", "state"]],
        required_one_of=[["nodes", "name"]],
        supports_check_mode=True,
    )
    params = module.params
    declares = params["nodes"] or any(params[key] for key in ("labels", "taints"))
    new = {"changed": bool(declares or params["state"] in ("cordoned", "drained")), "evicted": [], "was": "absent"}
    if module.check_mode and not Path(params["kubeconfig"]).exists():
        module.exit_json(**new)
    nodes = None
    try:
        api = Api(
            load(params["kubeconfig"]), params["servers"], patience=CHECK_PATIENCE if module.check_mode else PATIENCE
        )
        nodes = Nodes(api, check=module.check_mode)
        more, failure = converge(params, nodes), ""
    except (TimedOutError, UnreachableError) as error:
        if module.check_mode:
            module.warn(f"no API server answers, all that is declared counts as new: {error}")
            module.exit_json(**new)
        more, failure = {}, f"no API server answers: {error}"
    except (ApiError, ConfigError, NodeError) as error:
        more, failure = {}, str(error)
    result: dict[str, Any] = {"changed": False, "evicted": [], **more}
    if nodes is not None:
        result.update(changed=nodes.result.changed, evicted=nodes.result.evicted)
        result["diff"] = [shown(one) for one in nodes.result.differences]
    if failure:
        module.fail_json(msg=f"kubernetes_node: {failure}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
