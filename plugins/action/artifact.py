# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of C(groundplane.onprem.artifact): what the bytes must be is known here."""

from __future__ import annotations

import urllib.parse
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template
from ansible_collections.groundplane.onprem.plugins.module_utils import artifact as library

DEFAULTS = {"owner": "root", "group": "root", "mode": "0755"}
OPTIONS = frozenset({"name", "dest", "mirror", "ca_path", *DEFAULTS})


class ActionModule(ActionBase):  # type: ignore[misc]
    """Joins the task with the inventory's declaration of the artifact."""

    _supports_check_mode = True
    _supports_diff = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Install on one host."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        unknown = set(args) - OPTIONS
        if unknown:
            raise AnsibleActionFail(
                f"unknown option {', '.join(sorted(unknown))}; known are {', '.join(sorted(OPTIONS))}"
            )
        for option in ("name", "dest"):
            if not args.get(option):
                raise AnsibleActionFail(f"the option {option} is missing")
        try:
            artifact, accepted = self._declared(str(args["name"]))
        except library.ArtifactError as error:
            raise AnsibleActionFail(str(error)) from error
        call = {
            **DEFAULTS,
            **{key: args[key] for key in (*DEFAULTS, "dest", "ca_path") if key in args},
            "label": artifact.label,
            "url": f"{self._mirror()}/{urllib.parse.quote(artifact.destination)}",
            "accepted": accepted,
        }
        answer: dict[str, Any] = self._execute_module(
            module_name="groundplane.onprem.artifact", module_args=call, task_vars=task_vars
        )
        answer.pop("invocation", None)
        result.update(answer)
        return result

    def _variable(self, expression: str) -> Any:
        return self._templar.evaluate_expression(trust_as_template(expression))

    def _declared(self, name: str) -> tuple[library.Artifact, list[str]]:
        """Find the artifact and the checksums that it may have.

        Raises:
            ArtifactError: it is not declared, or the bundle is not as it says.
        """
        declared = library.parse(self._variable("mirror_artifacts | default([])"))
        chosen = [artifact for artifact in declared if artifact.name == name]
        if not chosen:
            known = ", ".join(artifact.name for artifact in declared) or "none"
            raise library.ArtifactError(f"{name}: is not in mirror_artifacts; declared are: {known}")
        origins = list(self._variable("mirror_origins | default([])")) or list(library.ORIGINS)
        bundle = str(self._variable("mirror_bundle_directory | default('')"))
        bundled = library.bundle_sums(chosen, bundle) if bundle and "modules" in origins else {}
        return chosen[0], list(library.accepted_sums(chosen[0], bundled, origins).values())

    def _mirror(self) -> str:
        """The mirror's base URL."""
        given = self._task.args.get("mirror")
        return str(given or self._variable("'https://' ~ groups['mirror'][0] ~ '.' ~ site_domain")).rstrip("/")
