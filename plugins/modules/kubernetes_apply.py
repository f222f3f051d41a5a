#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's side of C(groundplane.onprem.kubernetes_apply); the action plugin of that name renders and calls it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kubernetes_apply
short_description: The objects of a directory of manifests are in the cluster, and those that left it are not
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Renders a directory of manifests on the controller, and brings the objects of a cluster to it by server-side apply
    from a host that has a kubeconfig. All in one task and over one connection.
  - The objects are a set. Each carries the label C(groundplane.onprem/set). What carries it and is no longer declared
    is deleted, except where that would take data along.
  - What the last run applied is recorded in the ConfigMap C(groundplane-set-NAME) of the namespace C(kube-system). An
    object whose declaration and whose declared fields are as they were then is not sent again, so that a set that
    nobody touched costs one request for each of its kinds.
extends_documentation_fragment:
  - groundplane.onprem.kubernetes_api
options:
  set:
    description: Name of the set. The field manager is C(groundplane-) and this.
    type: str
    required: true
  src:
    description:
      - A directory below C(templates/) of the role or the playbook. All files below it that end in C(.yaml) or
        C(.yml) are read, those that end in C(.yaml.j2) or C(.yml.j2) are rendered first. Each may hold several
        documents.
      - An object that stands twice, and one without the namespace that its kind needs, are refused.
    type: str
    required: true
  wait_seconds:
    description:
      - How long to wait until Namespaces are active, definitions established, API services available, and Deployments,
        DaemonSets and StatefulSets rolled out. V(0) does not wait for these.
      - Pods on a node whose kubelet does not report are not waited for, but named in a warning.
      - A set that nobody touched and that is not ready is waited for as well.
    type: float
    default: 300
  prune_allow:
    description:
      - Objects that may be deleted although their kind is protected, as V(kind/namespace/name) or V(kind/name).
        Namespaces, CustomResourceDefinitions, PersistentVolumes and PersistentVolumeClaims are.
    type: list
    elements: str
    default: []
  objects:
    description: What the directory holds. Set by the action plugin.
    type: str
    default: ""
attributes:
  check_mode:
    description:
      - Asks the API server itself by a dry run. Only what depends on a namespace or a definition that would be made by
        this run is predicted from the declaration.
      - Where there is no kubeconfig yet, or no server answers, all objects are new.
    support: full
  diff_mode:
    description: Shows of each object what differs; never a value of a Secret.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
notes:
  - Needs nothing beyond Python's standard library on the host.
  - Fields that are not declared are left to others. Do not declare C(spec.replicas) of what is scaled by others; taking
    it out of a declaration that had it sets it to 1 for a moment, unless the other one has changed it before.
  - The objects travel by standard input and never in arguments of a process.
"""

EXAMPLES = r"""
- name: The network of the cluster is as declared
  groundplane.onprem.kubernetes_apply:
    set: network
    src: cluster
    wait_seconds: 300

- name: A namespace that left its set is deleted with what is in it
  groundplane.onprem.kubernetes_apply:
    set: tenants
    src: tenants
    prune_allow: [Namespace/tenant-a]
"""

RETURN = r"""
created:
  description: Objects that were not there before.
  type: list
  elements: str
  returned: always
  sample: [Namespace data, Deployment data/cache]
configured:
  description: Objects that were changed.
  type: list
  elements: str
  returned: always
pruned:
  description: Objects that were deleted because they are no longer declared.
  type: list
  elements: str
  returned: always
kept:
  description: Objects that are no longer declared and were left, because their kind is protected.
  type: list
  elements: str
  returned: always
unchanged:
  description: How many objects were as declared.
  type: int
  returned: always
requests:
  description: How many requests were sent.
  type: int
  returned: always
"""

import dataclasses
from pathlib import Path
from typing import Any

from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_api import (
    API_ARGUMENTS,
    CHECK_PATIENCE,
    PATIENCE,
    Api,
    ApiError,
    TimedOutError,
    UnreachableError,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_config import ConfigError, load
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_manifest import (
    Declared,
    ManifestError,
    unpack,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_object import difference
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_set import ObjectSet, Outcome, SetError
from ansible_collections.groundplane.onprem.plugins.module_utils.unlogged import UnloggedModule


def answer(outcome: Outcome, requests: int) -> dict[str, Any]:
    """Give the result's keys."""
    result = dataclasses.asdict(outcome)
    result.pop("warnings")
    return {**result, "changed": outcome.changed, "requests": requests}


def all_new(declared: list[Declared]) -> Outcome:
    """What a run would do in a cluster that is only being planned."""
    outcome = Outcome(created=[str(one.identity) for one in declared])
    for one in declared:
        after = difference(None, one.body, "")[1]
        outcome.differences.append({"object": str(one.identity), "before": None, "after": after})
    return outcome


def converge(module: UnloggedModule) -> None:
    """Converge what the module's parameters declare, and answer.

    Raises:
        ConfigError: the kubeconfig cannot be used.
        ManifestError: the objects did not arrive, or one is in the wrong place.
    """
    params = module.params
    declared = unpack(params["objects"])
    if module.check_mode and not Path(params["kubeconfig"]).exists():
        module.exit_json(**answer(all_new(declared), 0))
    patience = CHECK_PATIENCE if module.check_mode else PATIENCE
    api = Api(load(params["kubeconfig"]), params["servers"], patience=patience)
    converger = ObjectSet(
        api,
        params["set"],
        declared,
        check=module.check_mode,
        wait_seconds=params["wait_seconds"],
        prune_allow=params["prune_allow"],
    )
    failure = ""
    try:
        converger.converge()
    except (TimedOutError, UnreachableError) as error:
        if module.check_mode:
            module.warn(f"set {params['set']}: no API server answers, all objects count as new: {error}")
            module.exit_json(**answer(all_new(declared), api.requests))
        failure = f"no API server answers: {error}"
    except (ApiError, SetError, ManifestError) as error:
        failure = str(error)
    for warning in converger.outcome.warnings:
        module.warn(warning)
    result = answer(converger.outcome, api.requests)
    if failure:
        module.fail_json(msg=f"set {params['set']}: {failure}", **result)
    module.exit_json(**result)


def main() -> None:
    """Read the call, converge, answer."""
    module = UnloggedModule(
        argument_spec={
            "set": {"type": "str", "required": True},
            "objects": {"type": "str", "default": "", "no_log": True},
            "wait_seconds": {"type": "float", "default": 300},
            **API_ARGUMENTS,
            "prune_allow": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        converge(module)
    except (ConfigError, ManifestError) as error:
        module.fail_json(msg=f"set {module.params['set']}: {error}")


if __name__ == "__main__":
    main()
