# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of C(groundplane.onprem.gate): what the inventory and the contracts know goes along."""

from __future__ import annotations

import socket
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.groundplane.onprem.plugins.module_utils.contract import (
    ContractError,
    discover,
    roles_directories,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.site import Site, SiteError

if TYPE_CHECKING:
    from ansible_collections.groundplane.onprem.plugins.module_utils.contract import Contract
ETCD = ("etcd", "client")
PATRONI = ("patroni", "rest")
SERVERS = {"kafka": "data", "kafka_controller": "controller", "object_store": "s3", "qdrant": "api"}
"""Engines whose members the gate asks by name, and the listen that it asks."""
REDIS = {"servers": "server", "sentinels": "sentinel"}
"""The listens of Redis' members that the gate asks."""
PASSWORDS = {
    "redis": "redis_admin_password",
    "redis_sentinel": "redis_admin_password",
    "qdrant": "qdrant_api_key",
}
"""Engines that are asked with a secret, and the variable that has it."""
PART_OF = {"redis_sentinel": "redis"}
"""Engines of a process that is in the contract of another engine."""


class ActionModule(ActionBase):  # type: ignore[misc]
    """Completes the module's arguments."""

    _supports_check_mode = True
    _supports_diff = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module on the member's host."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        try:
            arguments = {**self._known(arguments, task_vars), **arguments}
        except (ContractError, SiteError) as error:
            raise AnsibleActionFail(f"gate: {error}") from error
        answer = self._execute_module(module_name="groundplane.onprem.gate", module_args=arguments, task_vars=task_vars)
        result.update(answer)
        return result

    def _known(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        host = task_vars["inventory_hostname"]
        hostvars = task_vars["hostvars"]
        contracts = discover(roles_directories(hostvars[host]))
        site = Site.from_hostvars(contracts, task_vars["groups"], hostvars, host)
        known: dict[str, Any] = {
            "member": host,
            "cluster": self._templar.template(task_vars.get("site_name")) or "site",
            # The run's own temporary directory is the one thing that all its tasks share and no other run has.
            "run": f"{socket.gethostname()}/{PurePath(constants.DEFAULT_LOCAL_TMP).name}",
            "endpoints": _urls(site, *ETCD),
        }
        if arguments.get("engine") == "patroni":
            known["rest"] = _urls(site, *PATRONI)
        elif arguments.get("engine") in SERVERS:
            known["servers"] = _servers(site, arguments["engine"], SERVERS[arguments["engine"]])
        engine = str(arguments.get("engine"))
        if engine in PASSWORDS:
            known["password"] = self._templar.template(task_vars.get(PASSWORDS[engine]))
        contract = _contract(site, PART_OF.get(engine, engine))
        if contract is not None and contract.quorum is not None and contract.quorum.engine == "redis":
            known |= {key: _places(site, contract, listen) for key, listen in REDIS.items()}
        if contract is not None and contract.certificates:
            stem = f"{contract.certificates[0].directory}/{contract.certificates[0].name}"
            known.update(cert=f"{stem}.crt", key=f"{stem}.key")
        return known


def _contract(site: Site, engine: str) -> Contract | None:
    """The contract whose quorum that engine understands."""
    found = (item for item in site.contracts.values() if item.quorum is not None and item.quorum.engine == engine)
    return next(found, None)


def _urls(site: Site, engine: str, listen: str) -> list[str]:
    """Where the members of the service answer."""
    contract = _contract(site, engine)
    if contract is None:
        return []
    urls = []
    for host in site.group(contract.group):
        for entry in site.listens(host.name):
            if entry["service"] == contract.service and entry["name"] == listen:
                addresses = entry["addresses"]
                address = addresses.get(host.primary) or next(iter(addresses.values()))
                urls.append(f"https://{f'[{address}]' if ':' in address else address}:{entry['port']}")
    return urls


def _places(site: Site, contract: Contract, listen: str) -> list[str]:
    """Member, address and port of a listen of each host of a service."""
    port = contract.listen(listen).port
    hosts = site.group(contract.group)
    return [f"{host.name}={f'[{host.address}]' if ':' in host.address else host.address}:{port}" for host in hosts]


def _servers(site: Site, engine: str, listen: str) -> list[str]:
    """The same by name: such a member is the one that its host's name begins with, and Kafka's advertise it so."""
    contract = _contract(site, engine)
    if contract is None:
        return []
    ports = [item.port for item in contract.listens if item.name == listen]
    return [f"{host.name}.{site.domain}:{port}" for host in site.group(contract.group) for port in ports]
