# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes a host's packet filter, and keeps the change only if new connections still work."""

from __future__ import annotations

import time
from typing import Any

from ansible import constants
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

MODULE = "groundplane.onprem.firewall"
PACKAGE = {"name": "nftables", "install_recommends": False, "policy_rc_d": 101}
PAUSE = 1.0
"""Seconds between two attempts to connect."""
PATIENCE = 5
"""Seconds in which a witness must accept a connection."""
GRACE = 30.0
"""Seconds after the rollback is due in which the host must answer again."""


class ActionModule(ActionBase):  # type: ignore[misc]
    """Load, connect anew, confirm."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the steps; the module documents what they do."""
        super().run(tmp, task_vars)
        self.variables = task_vars or {}
        witnesses = list(self._task.args.get("witnesses") or [])
        if witnesses:
            compared = self._step("compare")
            if compared.get("failed") or not compared.get("changed") or self._task.check_mode:
                return compared
            witnesses = self._living(witnesses) if compared["kernel_changed"] else []
        started = time.monotonic()
        result = self._step("apply")
        if result.get("nft_missing"):
            # Here and not as a task: asking apt costs each run of each host more than all else that a firewall needs.
            installed = self._execute_module("ansible.builtin.apt", module_args=PACKAGE, task_vars=self.variables)
            if installed.get("failed"):
                return {**result, **installed}
            started = time.monotonic()
            result = self._step("apply")
        token = str(result.pop("token", ""))
        if not token or result.get("failed"):
            return result
        deadline = started + float(result["invocation"]["module_args"]["rollback_seconds"])
        cut = self._silent(witnesses, deadline)
        if cut:
            problem = f"The new rules cut off what is behind this host: {', '.join(cut)}"
            return self._taken_back(problem, token, deadline, result)
        confirmed = self._confirm(token, deadline)
        if confirmed is None or confirmed.get("rolled_back"):
            return self._taken_back("The new rules let no new connection reach this host", token, deadline, result)
        return {**result, **confirmed} if confirmed.get("failed") else result

    def _step(self, step: str, token: str = "") -> dict[str, Any]:
        arguments = {**self._task.args, "step": step, "token": token}
        result: dict[str, Any] = self._execute_module(
            module_name=MODULE, module_args=arguments, task_vars=self.variables
        )
        return result

    def _anew(self, step: str, token: str) -> dict[str, Any] | None:
        """One step over a new connection; None when there is none to be had."""
        try:
            self._connection.reset()
            return self._step(step, token)
        except AnsibleConnectionFailure as error:
            self._display.vv(f"no new connection: {error}", host=self._play_context.remote_addr)
            return None

    def _living(self, witnesses: list[str]) -> list[str]:
        """The witnesses that answer now. One that is down before the change says nothing about it."""
        living = [host for host in witnesses if self._answers(host)]
        if len(living) < len(witnesses):
            dead = ", ".join(host for host in witnesses if host not in living)
            self._display.warning(f"{self.variables.get('inventory_hostname')}: no witness of its change: {dead}")
        return living

    def _answers(self, host: str) -> bool:
        """Whether another host of the inventory accepts a connection of its own, that no other task shares."""
        kind = self._connection._load_name  # noqa: SLF001 - as TaskExecutor names it
        known = self.variables["hostvars"][host]
        options = {name: known[name] for name in constants.config.get_plugin_vars("connection", kind) if name in known}
        connection = self._shared_loader_obj.connection_loader.get(kind, self._play_context)
        connection.set_options(var_options=options)
        connection.set_option("ssh_args", "-o ControlMaster=no -o ControlPath=none")
        connection.set_option("timeout", PATIENCE)
        try:
            return bool(connection.exec_command("true", sudoable=False)[0] == 0)
        except AnsibleConnectionFailure as error:
            self._display.vv(f"witness {host} does not answer: {error}", host=self._play_context.remote_addr)
            return False

    def _silent(self, witnesses: list[str], deadline: float) -> list[str]:
        """The witnesses that accept no new connection until it would be too late to confirm."""
        while True:
            witnesses = [host for host in witnesses if not self._answers(host)]
            if not witnesses or time.monotonic() + PATIENCE + PAUSE > deadline:
                return witnesses
            time.sleep(PAUSE)

    def _confirm(self, token: str, deadline: float) -> dict[str, Any] | None:
        while True:
            result = self._anew("confirm", token)
            if result is not None or time.monotonic() + PAUSE >= deadline:
                return result
            time.sleep(PAUSE)

    def _taken_back(self, problem: str, token: str, deadline: float, result: dict[str, Any]) -> dict[str, Any]:
        """Wait for the rollback of a change that was not confirmed, and say what became of it."""
        time.sleep(max(0.0, deadline - time.monotonic()) + PAUSE)
        while True:
            seen = self._anew("inspect", token)
            if seen is not None and seen.get("rolled_back"):
                message = f"{problem}. Its previous rules are back, in the kernel and on disk"
                return {**result, "failed": True, "changed": False, "rolled_back": True, "msg": message}
            if time.monotonic() > deadline + GRACE:
                state = "it does not answer" if seen is None else "its previous rules are not back"
                message = f"{problem}, and {GRACE:.0f} s after the rollback was due {state}: look at its console"
                return {**result, "failed": True, "rolled_back": False, "msg": message}
            time.sleep(PAUSE)
