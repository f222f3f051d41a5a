# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of C(groundplane.onprem.artifact_publish): verify the bundle, send what the mirror lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template
from ansible_collections.groundplane.onprem.plugins.module_utils import artifact as library

OPTIONS = frozenset({"artifacts", "bundle", "root", "origins", "registry", "ca_path", "record"})


class ActionModule(ActionBase):  # type: ignore[misc]
    """Asks the mirror what it lacks before anything travels."""

    _supports_check_mode = True
    _supports_diff = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Publish on one host."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        unknown = set(args) - OPTIONS
        if unknown:
            raise AnsibleActionFail(
                f"unknown option {', '.join(sorted(unknown))}; known are {', '.join(sorted(OPTIONS))}"
            )
        bundle = str(args.get("bundle") or "")
        origins = list(args.get("origins") or library.ORIGINS)
        try:
            artifacts = library.parse(args.get("artifacts"))
            bundled = library.bundle_sums(artifacts, bundle) if bundle and "modules" in origins else {}
            plan = library.plan(artifacts, bundled, origins)
        except library.ArtifactError as error:
            raise AnsibleActionFail(str(error)) from error
        passed = {key: args[key] for key in ("root", "registry", "ca_path", "record") if key in args}
        if not passed.get("registry") and any(library.image_of(artifact.destination) for artifact in artifacts):
            passed["registry"] = self._own_url()
        call = {**passed, "plan": plan}
        answer = self._call(call, task_vars)
        if answer.get("needed") and not answer.get("failed"):
            first = answer
            paths = {artifact.label: str(Path(bundle, artifact.path).expanduser()) for artifact in artifacts}
            answer = self._call({**call, "staged": self._send(paths, first["needed"])}, task_vars)
            answer["origins"] = {**first["origins"], **answer.get("origins", {})}
            answer["published"] = sorted(answer["origins"])
            answer["changed"] = bool(answer.get("changed") or first.get("changed"))
            self._remove_tmp_path(self._connection._shell.tmpdir)  # noqa: SLF001 - where ActionBase keeps it
        answer.pop("invocation", None)
        result.update(answer)
        return result

    def _call(self, args: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name="groundplane.onprem.artifact_publish", module_args=args, task_vars=task_vars
        )
        return answer

    def _own_url(self) -> str:
        """The mirror by its own name: a push from the mirror itself is always possible."""
        return str(
            self._templar.evaluate_expression(trust_as_template("'https://' ~ inventory_hostname ~ '.' ~ site_domain"))
        )

    def _send(self, paths: dict[str, str], labels: list[str]) -> dict[str, str]:
        """Send files of the bundle into the task's temporary directory; label to path there."""
        directory = self._connection._shell.tmpdir or self._make_tmp_path()  # noqa: SLF001
        staged = {}
        for number, label in enumerate(labels):
            remote = self._connection._shell.join_path(directory, f"artifact-{number}")  # noqa: SLF001
            staged[label] = self._transfer_file(paths[label], remote)
        self._fixup_perms2([directory, *staged.values()])
        return staged
