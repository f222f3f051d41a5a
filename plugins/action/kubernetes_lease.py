# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of C(groundplane.onprem.kubernetes_lease): which run this is, and whether another is over."""

from __future__ import annotations

import getpass
import os
import socket
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.groundplane.onprem.plugins.module_utils.kubernetes_lease import Run, ended
from ansible_collections.groundplane.onprem.plugins.module_utils.process import kernel, started


def this_run() -> dict[str, Any]:
    """The run whose fork this is."""
    process = os.getppid()
    return {
        "user": getpass.getuser(),
        "controller": socket.gethostname(),
        "kernel": kernel(),
        "process": process,
        "started": started(process),
    }


class ActionModule(ActionBase):  # type: ignore[misc]
    """Completes the module's arguments, and asks again when the holder is known to be over."""

    _supports_check_mode = True
    _supports_diff = False
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module on the member's host."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = {**self._task.args, "run": this_run()}
        answer = self._module(arguments, task_vars)
        holder = Run(**answer["holder"]) if answer.get("failed") and answer.get("holder") else None
        if holder is not None and ended(holder):
            answer = self._module({**arguments, "over": holder.name}, task_vars)
        result.update(answer)
        return result

    def _module(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name="groundplane.onprem.kubernetes_lease", module_args=arguments, task_vars=task_vars
        )
        return answer
