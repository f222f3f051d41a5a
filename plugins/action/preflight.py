# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refuses a run that the inventory or the hosts speak against. The rules are in module_utils/refusal.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.template import Templar, trust_as_template
from ansible_collections.groundplane.onprem.plugins.module_utils import (
    refusal_kafka,  # noqa: F401 - puts its rules among the others
    refusal_object_store,  # noqa: F401 - likewise
    refusal_qdrant,  # noqa: F401 - likewise
    refusal_redis,  # noqa: F401 - likewise
)
from ansible_collections.groundplane.onprem.plugins.module_utils.contract import (
    ContractError,
    discover,
    roles_directories,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.refusal import (
    PURPOSES,
    Need,
    Refusal,
    Situation,
    Unreadable,
    argument_options,
    group_of,
    refusals,
    role_artifacts,
    role_images,
    role_names,
)

if TYPE_CHECKING:
    from pathlib import Path

    from ansible_collections.groundplane.onprem.plugins.module_utils.contract import Contract
    from ansible_collections.groundplane.onprem.plugins.module_utils.refusal import Option


class Readable(Mapping[str, Any]):
    """The variables of a host, templated one by one when they are looked at."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        """Wrap what Ansible has of one host."""
        self._variables = variables

    def __getitem__(self, name: str) -> Any:
        """The value, or what stands for one that cannot be computed."""
        try:
            return self._variables[name]
        except AnsibleError:
            # Its text may quote the template or the value, so that it goes nowhere.
            return Unreadable()

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._variables)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._variables)


class ActionModule(ActionBase):  # type: ignore[misc]
    """Runs once for all hosts of the play."""

    BYPASS_HOST_LOOP = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Collect what there is, ask all rules, and fail with every refusal at once."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "purpose": {"type": "str", "choices": list(PURPOSES), "default": "converge"},
                "state_variable": {"type": "str", "default": "__preflight_host_state"},
            }
        )
        directories = roles_directories(variables["hostvars"][variables["inventory_hostname"]])
        try:
            contracts, options = discover(directories), argument_options(directories)
            needs = self._needs(directories, contracts, options, variables)
        except ContractError as error:
            found = [Refusal("contract", problem) for problem in error.problems]
        else:
            hosts = {host: Readable(variables["hostvars"][host]) for host in variables["groups"]["all"]}
            situation = Situation(
                contracts=contracts,
                options=options,
                roles=role_names(directories),
                groups=variables["groups"],
                variables=hosts,
                states=_states(hosts, arguments["state_variable"]),
                run=variables["ansible_play_hosts_all"],
                purpose=arguments["purpose"],
                needs=needs,
            )
            found = refusals(situation)
        refusing = [refusal.message for refusal in found if refusal.refuses]
        result |= {
            "changed": False,
            "rules": list(dict.fromkeys(refusal.rule for refusal in found)),
            "warnings": [refusal.message for refusal in found if not refusal.refuses],
        }
        if refusing:
            reasons = "one reason" if len(refusing) == 1 else f"{len(refusing)} reasons"
            lines = "\n".join(f"- {message}" for message in refusing)
            result |= {"failed": True, "msg": f"Refused for {reasons}, and nothing was changed:\n{lines}"}
        return result

    def _needs(
        self,
        directories: list[Path],
        contracts: Mapping[str, Contract],
        options: Mapping[str, Option],
        variables: Mapping[str, Any],
    ) -> list[Need]:
        """What the roles of this site take from the mirror, as the first host of each sees it.

        An image is what a variable `*_image` or `*_images` of a role or its templates name, as far as it is in the
        site's own registry.
        """
        groups, found = variables["groups"], []
        defaults = {option.name: _trusted(option.default) for option in options.values() if option.default is not None}
        for directory in sorted(path for top in directories for path in top.iterdir() if path.is_dir()):
            role = directory.name
            hosts = groups.get(group_of(role, contracts, groups) or "", ())
            names = [name for name, option in options.items() if option.role == role]
            images = [f"{{{{ {name} }}}}" for name in names if name.endswith(("_image", "_images"))]
            images += role_images(directory)
            artifacts = role_artifacts(directory)
            if not hosts or not (images or artifacts):
                continue
            known = defaults | variables["hostvars"].raw_get(hosts[0])
            if self._task.args.get("purpose") == "upgrade" and "kubernetes_upgrade_version" in known:
                known["kubernetes_version"] = known["kubernetes_upgrade_version"]
            templar = Templar(loader=self._loader, variables=known)
            registry = self._read(templar, "{{ groups['mirror'] | first }}.{{ site_domain }}/")
            for need in artifacts:
                version = self._read(templar, need.version)
                if version is not None:
                    found.append(Need(role, need.name, str(version)))
            for image in images:
                value = self._read(templar, image)
                found += [
                    Need(role, str(one).removeprefix(registry), image=True)
                    for one in (value if isinstance(value, list) else [value])
                    if registry and str(one).startswith(registry)
                ]
        return found

    @staticmethod
    def _read(templar: Templar, text: str) -> Any:
        """The value of a template; None for one that cannot be computed here, which its own task will say."""
        try:
            return templar.template(trust_as_template(text))
        except AnsibleError:
            return None


def _trusted(value: Any) -> Any:
    """A default out of a role's specification, whose templates are the collection's own."""
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, list):
        return [_trusted(item) for item in value]
    if isinstance(value, dict):
        return {key: _trusted(item) for key, item in value.items()}
    return value


def _states(hosts: Mapping[str, Mapping[str, Any]], variable: str) -> dict[str, Mapping[str, Any]]:
    """What host_state registered of the hosts that answered."""
    registered = {host: values.get(variable) for host, values in hosts.items()}
    return {host: state for host, state in registered.items() if isinstance(state, Mapping) and "memory_mb" in state}
