# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a host for its state, and the clock by as short a round trip as there is."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.groundplane.onprem.plugins.module_utils.contract import (
    ContractError,
    discover,
    roles_directories,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.refusal import CLOCK_LIMIT, KUBERNETES
from ansible_collections.groundplane.onprem.plugins.module_utils.refusal_object_store import GROUP as OBJECT_STORE
from ansible_collections.groundplane.onprem.plugins.module_utils.refusal_object_store import RECORD, drives_of
from ansible_collections.groundplane.onprem.plugins.module_utils.site import LOAD_BALANCER

MODULE = "groundplane.onprem.host_state"
NODE_MODULE = "groundplane.onprem.kubernetes_node_state"
NODE_FACTS = ("joined", "kubelet_version", "manifest_version")
SAMPLES = 3


class ActionModule(ActionBase):  # type: ignore[misc]
    """Fills in the module's arguments and adds the clock to its answer."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module and measure."""
        super().run(tmp, task_vars)
        variables = task_vars or {}
        own = variables["hostvars"][variables["inventory_hostname"]]
        try:
            arguments = {
                "paths": self._paths(own, variables["groups"]),
                "records": [RECORD] if self._in(own, variables["groups"], OBJECT_STORE) else [],
                "probes": self._probes(own, variables["groups"]),
            }
        except ContractError as error:
            raise AnsibleError(f"host_state: {error}") from error
        result: dict[str, Any] = self._execute_module(
            module_name=MODULE, module_args={**arguments, **self._task.args}, task_vars=task_vars
        )
        if not result.get("failed"):
            result["clock"] = self._clock()
            if variables["inventory_hostname"] in variables["groups"].get(KUBERNETES, ()):
                node = self._execute_module(module_name=NODE_MODULE, module_args={}, task_vars=task_vars)
                result["kubernetes"] = None if node.get("failed") else {key: node.get(key) for key in NODE_FACTS}
        return result

    @staticmethod
    def _in(own: Any, groups: Any, group: str) -> bool:
        """Whether the host is in a group."""
        return own["inventory_hostname"] in groups.get(group, ())

    @staticmethod
    def _paths(own: Any, groups: Any) -> list[str]:
        """Where the services of this host keep their data."""
        host = own["inventory_hostname"]
        paths = ["/"]
        for contract in discover(roles_directories(own)).values():
            if contract.group == "all" or host in groups.get(contract.group, ()):
                paths += [data.path for data in contract.data]
        if ActionModule._in(own, groups, OBJECT_STORE):
            # Of a template that cannot be computed preflight and the role tell.
            with contextlib.suppress(AnsibleError):
                paths += drives_of(own.get("object_store_drives"))
        return list(dict.fromkeys(paths))

    @staticmethod
    def _probes(own: Any, groups: Any) -> list[dict[str, str]]:
        """The VIPs that this host can ask for on its own links."""
        if own["inventory_hostname"] not in groups.get(LOAD_BALANCER, ()):
            return []
        legs = own.get("host_addresses") or {}
        vips = (own.get("site_vips") or {}).values()
        return [
            {"address": str(vip["address"]), "source": str(legs[vip["network"]])}
            for vip in vips
            if "address" in vip and vip.get("network") in legs
        ]

    def _clock(self) -> dict[str, float] | None:
        """How far the host's clock is ahead of ours, in seconds, between two limits.

        What the host says lies between our sending and our receiving, so that a slow round trip widens the limits and
        never moves them (RFC 5905, 8).
        """
        minimum, maximum = float("-inf"), float("inf")
        for _ in range(SAMPLES):
            sent = time.time()
            answer = self._low_level_execute_command("date +%s.%N", sudoable=False)
            received = time.time()
            try:
                theirs = float(answer["stdout"].strip())
            except ValueError:
                return None
            minimum, maximum = max(minimum, theirs - received), min(maximum, theirs - sent)
            if max(-minimum, maximum) <= CLOCK_LIMIT or max(minimum, -maximum) > CLOCK_LIMIT:
                break  # certain either way: a better round trip would not change the verdict
        return {"minimum": round(minimum, 3), "maximum": round(maximum, 3)}
