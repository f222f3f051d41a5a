# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of C(groundplane.onprem.artifact): what the bytes must be is known here."""

from __future__ import annotations

import urllib.parse
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template
from ansible_collections.groundplane.onprem.plugins.module_utils import artifact as library

DEFAULTS = {"owner": "root", "group": "root", "mode": "0755", "unpack": False}
ITEM = frozenset({"name", "version", "dest", *DEFAULTS})
OPTIONS = frozenset({"artifacts", "mirror", "ca_path", "record", *ITEM})


class ActionModule(ActionBase):  # type: ignore[misc]
    """Joins the task with the inventory's declaration of the artifacts."""

    _supports_check_mode = True
    _supports_diff = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Install on one host."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        items = self._items(args)
        try:
            joined = self._joined(items)
        except library.ArtifactError as error:
            raise AnsibleActionFail(str(error)) from error
        call = {"artifacts": joined, **{key: args[key] for key in ("ca_path", "record") if key in args}}
        answer: dict[str, Any] = self._execute_module(
            module_name="groundplane.onprem.artifact", module_args=call, task_vars=task_vars
        )
        answer.pop("invocation", None)
        if "name" in args and "installed" in answer:
            answer["sha256"] = next(iter(answer["installed"].values()))
        result.update(answer)
        return result

    @staticmethod
    def _items(args: dict[str, Any]) -> list[dict[str, Any]]:
        """What the task asks for, with its defaults.

        Raises:
            AnsibleActionFail: an option is unknown, missing, or at odds with another.
        """
        _refuse_unknown(args, OPTIONS)
        if ("name" in args) == ("artifacts" in args):
            raise AnsibleActionFail("one of the options name and artifacts says what to install")
        shared = {key: args.get(key, default) for key, default in DEFAULTS.items()}
        listed = args["artifacts"] if "artifacts" in args else [{key: args[key] for key in ITEM if key in args}]
        for item in listed:
            _refuse_unknown(item, ITEM)
            for option in ("name", "dest"):
                if not item.get(option):
                    raise AnsibleActionFail(f"the option {option} is missing")
        whole = [{**shared, **item} for item in listed]
        return [{**item, "unpack": _truth(item["unpack"])} for item in whole]

    def _joined(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the host is told of each.

        Raises:
            ArtifactError: one is not declared, or the bundle is not as it says.
        """
        declared = library.parse(self._variable("mirror_artifacts | default([])"))
        chosen = [library.choose(declared, str(item["name"]), str(item.get("version") or "")) for item in items]
        origins = list(self._variable("mirror_origins | default([])")) or list(library.ORIGINS)
        bundle = str(self._variable("mirror_bundle_directory | default('')"))
        bundled = library.bundle_sums(chosen, bundle) if bundle and "modules" in origins else {}
        mirror = self._mirror()
        return [
            {
                "label": artifact.label,
                "url": f"{mirror}/{urllib.parse.quote(artifact.destination)}",
                "accepted": list(library.accepted_sums(artifact, bundled, origins).values()),
                **{key: str(item[key]) for key in ("dest", "owner", "group", "mode")},
                "unpack": item["unpack"],
            }
            for item, artifact in zip(items, chosen, strict=True)
        ]

    def _variable(self, expression: str) -> Any:
        return self._templar.evaluate_expression(trust_as_template(expression))

    def _mirror(self) -> str:
        """The mirror's base URL."""
        given = self._task.args.get("mirror")
        return str(given or self._variable("'https://' ~ groups['mirror'][0] ~ '.' ~ site_domain")).rstrip("/")


def _truth(value: Any) -> bool:
    try:
        return bool(boolean(value))
    except TypeError as error:
        raise AnsibleActionFail(f"the option unpack is true or false, not {value!r}") from error


def _refuse_unknown(given: dict[str, Any], known: frozenset[str]) -> None:
    if unknown := sorted(set(given) - known):
        raise AnsibleActionFail(f"unknown option {', '.join(unknown)}; known are {', '.join(sorted(known))}")
