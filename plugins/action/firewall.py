# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes a host's packet filter, and keeps the change only if a new connection to the host still works."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

MODULE = "groundplane.onprem.firewall"
PAUSE = 1.0
"""Seconds between two attempts to connect."""
GRACE = 30.0
"""Seconds after the rollback is due in which the host must answer again."""


class ActionModule(ActionBase):  # type: ignore[misc]
    """Load, connect anew, confirm."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the steps; the module documents what they do."""
        super().run(tmp, task_vars)
        started = time.monotonic()
        result = self._step("apply", "", task_vars)
        token = str(result.pop("token", ""))
        if not token or result.get("failed"):
            return result
        window = float(result["invocation"]["module_args"]["rollback_seconds"])
        confirmed = self._confirm(token, started + window, task_vars)
        if confirmed is None or confirmed.get("rolled_back"):
            return self._given_up(token, started + window, result, task_vars)
        return {**result, **confirmed} if confirmed.get("failed") else result

    def _step(self, step: str, token: str, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        arguments = {**self._task.args, "step": step, "token": token}
        result: dict[str, Any] = self._execute_module(module_name=MODULE, module_args=arguments, task_vars=task_vars)
        return result

    def _anew(self, step: str, token: str, task_vars: dict[str, Any] | None) -> dict[str, Any] | None:
        """One step over a new connection; None when there is none to be had."""
        try:
            self._connection.reset()
            return self._step(step, token, task_vars)
        except AnsibleConnectionFailure as error:
            self._display.vv(f"no new connection: {error}", host=self._play_context.remote_addr)
            return None

    def _confirm(self, token: str, deadline: float, task_vars: dict[str, Any] | None) -> dict[str, Any] | None:
        while True:
            result = self._anew("confirm", token, task_vars)
            if result is not None or time.monotonic() + PAUSE >= deadline:
                return result
            time.sleep(PAUSE)

    def _given_up(
        self, token: str, deadline: float, result: dict[str, Any], task_vars: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Say what became of the host that no new connection reached in time."""
        time.sleep(max(0.0, deadline - time.monotonic()) + PAUSE)
        cut = "The new rules let no new connection reach this host"
        while True:
            seen = self._anew("inspect", token, task_vars)
            if seen is not None and seen.get("rolled_back"):
                message = f"{cut}. Its previous rules are back, in the kernel and on disk"
                return {**result, "failed": True, "changed": False, "rolled_back": True, "msg": message}
            if time.monotonic() > deadline + GRACE:
                state = "it does not answer" if seen is None else "its previous rules are not back"
                message = f"{cut}, and {GRACE:.0f} s after the rollback was due {state}: look at its console"
                return {**result, "failed": True, "rolled_back": False, "msg": message}
            time.sleep(PAUSE)
