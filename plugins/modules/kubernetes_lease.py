#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time changes the cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kubernetes_lease
short_description: One run at a time changes the cluster
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Takes a Lease of the cluster for this run of Ansible before it empties, changes or removes a member, and lets go of
    it afterwards.
  - A run that holds it already takes it anew. A run that was killed on this controller is known to be over, and its
    lease is taken. While another holds it and its time is not over, the module fails and says who that is.
  - Runs on a host with a kubeconfig of an administrator, a member of the control plane.
extends_documentation_fragment:
  - groundplane.onprem.kubernetes_api
options:
  state:
    description: V(held) by this run, or V(released) if this run held it.
    type: str
    choices: [held, released]
    default: held
  member:
    description: What the run works on, for others to read.
    type: str
    default: ""
  seconds:
    description: For how long at most, unless it is taken again. Longer than the longest step between two times.
    type: int
    default: 900
  name:
    description: Name of the Lease, in the namespace C(kube-system).
    type: str
    default: groundplane
  run:
    description: The run of Ansible. Known by itself.
    type: dict
    required: true
    suboptions:
      user:
        description: Who runs it.
        type: str
        required: true
      controller:
        description: Where.
        type: str
        required: true
      kernel:
        description: In which boot and namespace its process is.
        type: str
        required: true
      process:
        description: The id of its process.
        type: int
        required: true
      started:
        description: When that was started, in ticks since the boot.
        type: int
        required: true
  over:
    description: A run that is known to have ended. Known by itself.
    type: str
    default: ""
attributes:
  check_mode:
    description: Takes nothing, and waits for nobody.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
  idempotent:
    description: A run that holds it may take it as often as it wants. It is never a change of the cluster.
    support: full
notes:
  - Needs nothing beyond Python's standard library on the host.
  - It keeps honest runs apart. That no quorum breaks does not rest on it, because members are asked again before each
    step.
"""

EXAMPLES = r"""
- name: No other run changes the cluster
  groundplane.onprem.kubernetes_lease: {member: cp1}

- name: Others may change the cluster
  groundplane.onprem.kubernetes_lease: {state: released}
"""

RETURN = r"""
holder:
  description: The run that holds it, when that is another one.
  type: dict
  returned: failure
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_api import API_ARGUMENTS, Api, ApiError
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_config import ConfigError, load
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_lease import (
    ClusterLease,
    LeaseHeldError,
    Run,
)

RUN: dict[str, Any] = {
    "user": {"type": "str", "required": True},
    "controller": {"type": "str", "required": True},
    "kernel": {"type": "str", "required": True},
    "process": {"type": "int", "required": True},
    "started": {"type": "int", "required": True},
}


def main() -> None:
    """Read the call, take or let go, answer."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["held", "released"], "default": "held"},
            "member": {"type": "str", "default": ""},
            "seconds": {"type": "int", "default": 900},
            "name": {"type": "str", "default": "groundplane"},
            "run": {"type": "dict", "required": True, "options": RUN},
            "over": {"type": "str", "default": ""},
            **API_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode or not Path(params["kubeconfig"]).exists():
        module.exit_json(changed=False)
    run = Run(**params["run"], member=params["member"])
    try:
        lease = ClusterLease(Api(load(params["kubeconfig"]), params["servers"]), params["name"])
        if params["state"] == "held":
            lease.take(run, params["seconds"], params["over"])
        else:
            lease.let_go(run)
    except LeaseHeldError as error:
        module.fail_json(msg=f"kubernetes_lease: {error}", holder=asdict(error.run))
    except (ApiError, ConfigError) as error:
        module.fail_json(msg=f"kubernetes_lease: {params['name']}: {error}")
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
