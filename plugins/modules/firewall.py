# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's packet filter, changed so that it cannot lock out the one who changes it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: firewall
short_description: Default-deny packet filter from flows, with automatic rollback
version_added: 0.1.0
description:
  - Keeps one nftables table, C(inet groundplane), equal to the given flows, in the kernel and in a file that is loaded
    at boot. What no flow allows is denied, inbound, outbound and forwarded. Other tables are not touched.
  - The new table is loaded in one transaction. A timer on the host puts the old one back, unless a new connection to
    the host is made within O(rollback_seconds) and confirms. Only then is the file written.
  - What is in the kernel is compared with what the kernel makes of the wanted rules, in a network namespace of its own,
    so that every difference counts and none of notation does.
options:
  rules:
    description:
      - Lists of rules under C(inbound), C(outbound) and C(forward), as the C(firewall) view of the services' contracts
        has them.
      - C(pods) is a list of ranges instead. To these the host may send anything, and from and to them it passes
        anything on, because the network of pods has policies of its own. What pods may send to the host itself is in
        C(inbound).
      - Each rule has C(protocol) (tcp, udp, vrrp), C(ports), C(family) (ip), C(sources), C(destinations), and for
        comments C(service) and C(name), or C(services).
    type: dict
    required: true
  extra_rules:
    description: Exceptions that no contract states.
    type: list
    elements: dict
    default: []
    suboptions:
      direction:
        description: Whether packets are for this host, from this host, or pass through it.
        type: str
        required: true
        choices: [inbound, outbound, forward]
      reason:
        description: Why the exception is there; it becomes the rule's comment. Up to 127 bytes without double quotes.
        type: str
        required: true
      protocol:
        description: The IP protocol.
        type: str
        default: tcp
        choices: [any, icmp, tcp, udp]
      ports:
        description: Destination ports, and ranges such as V(8000-8010). None means all.
        type: list
        elements: str
        default: []
      sources:
        description: IPv4 addresses and ranges. None means all.
        type: list
        elements: str
        default: []
      destinations:
        description: IPv4 addresses and ranges. None means all.
        type: list
        elements: str
        default: []
      in_interface:
        description: Interface by which the packet arrives; a V(*) at the end stands for any ending.
        type: str
        default: ""
      out_interface:
        description: Interface by which the packet leaves.
        type: str
        default: ""
  networks:
    description: The site's IPv4 ranges, between which ping may pass.
    type: list
    elements: str
    default: []
  log_drops:
    description: Whether a sample of the dropped packets is logged.
    type: bool
    default: true
  log_per_minute:
    description: How many packets at most are logged in a minute, for each chain.
    type: int
    default: 10
  log_group:
    description: Netlink group of a logging daemon such as ulogd. Without it the kernel's log is used.
    type: int
  path:
    description: The file that C(nftables.service) loads at boot.
    type: path
    default: /etc/nftables.conf
  rollback_seconds:
    description: After how many seconds the old rules come back if no new connection confirms the new ones, 10 to 600.
    type: int
    default: 30
  witnesses:
    description:
      - Hosts of the inventory that are reached through this one, for a bastion or a router. Those that answer before
        the change must accept a new connection after it, or the change is not confirmed either.
    type: list
    elements: str
    default: []
  step:
    description: Which part of the change this is. Set by the action plugin.
    type: str
    default: apply
    choices: [compare, apply, confirm, inspect]
  token:
    description: Which change is confirmed or inspected. Set by the action plugin.
    type: str
    default: ""
attributes:
  check_mode:
    description: Says exactly what would change.
    support: full
  diff_mode:
    description: Shows the kernel's table, the file and the boot state before and after.
    support: full
  idempotent:
    description: Changes nothing when kernel, file and boot state are as wanted.
    support: full
notes:
  - Where C(nft) is missing, Debian's package C(nftables) is installed first.
  - Connections that exist when a flow is withdrawn live on until they are closed; new ones are denied at once.
author: groundplane contributors
"""

EXAMPLES = r"""
- name: The packet filter allows what the contracts say
  groundplane.onprem.firewall:
    rules: "{{ lookup('groundplane.onprem.contract', 'firewall') }}"
    networks: "{{ site_networks.values() | map(attribute='subnet') }}"
    extra_rules:
      - {direction: outbound, ports: ["443"], destinations: [192.0.2.10], reason: Fetch updates from the vendor}
"""

RETURN = r"""
kernel_changed:
  description: Whether the kernel's table was replaced.
  type: bool
  returned: success
file_changed:
  description: Whether the file was written.
  type: bool
  returned: success
boot_changed:
  description: Whether the unit that loads the file at boot was changed.
  type: bool
  returned: success
"""

import fcntl
import json
import os
import secrets
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils import nftables

if TYPE_CHECKING:
    from collections.abc import Iterator

STATE = Path("/run/groundplane/firewall")
"""Gone after a boot, which loads the file: an unconfirmed change does not outlive one."""

UNIT = "nftables.service"
TIMER = "groundplane-firewall-rollback"
DROP_IN = Path("/etc/systemd/system/nftables.service.d/groundplane.conf")
DROP_IN_TEXT = """\
# Stopping or restarting the unit leaves the rules in force. Debian's own would remove every table of the host.
[Service]
ExecStop=
"""
ROLLBACK = """\
#!/bin/sh
# Puts back the rules of before a change that no new connection has confirmed.
set -eu
exec 9>>{state}/lock
flock 9
[ -e {state}/pending ] || exit 0
{nft} --file {state}/previous.nft
if [ -e {state}/previous.conf ]; then
  cp --preserve=mode,ownership {state}/previous.conf {path}.rollback
  mv {path}.rollback {path}
else
  rm -f {path}
fi
mv {state}/pending {state}/rolled-back
echo "groundplane: the new firewall rules were not confirmed by a new connection; the previous ones are back"
"""


class Firewall:
    """One host's table, file and boot state."""

    def __init__(self, module: AnsibleModule) -> None:
        """Render what is wanted."""
        self.module = module
        self.path = Path(module.params["path"])
        self.nft = module.get_bin_path("nft", opt_dirs=["/usr/sbin", "/sbin"])
        self.text, self.adopting = self._render()

    def _render(self) -> tuple[str, str]:
        params = self.module.params
        log = nftables.DropLog(params["log_per_minute"], params["log_group"]) if params["log_drops"] else None
        try:
            policy = nftables.Policy.from_view(params["rules"], params["extra_rules"], params["networks"], log)
        except nftables.RulesError as error:
            self.module.fail_json(msg=f"The rules cannot be loaded: {error}")
        return nftables.render(policy), nftables.render(policy, adopt=True)

    # ------------------------------------------------------------------------------------------------------- what is so

    def kernel_now(self) -> str:
        """The table in the kernel, canonical; nothing where there is none."""
        if self.nft is None:
            return ""
        code, out, err = self.module.run_command([self.nft, *LIST])
        if code != 0 and "No such file or directory" not in err:
            self.module.fail_json(msg=f"The rules in the kernel cannot be read: {err.strip()}")
        return nftables.canonical(out if code == 0 else "")

    def kernel_wanted(self) -> str:
        """What the kernel makes of the wanted rules, canonical. Loading them in an empty namespace also proves them."""
        if self.nft is None:
            return nftables.canonical(self.text)  # Check mode before the package is there.
        listing, problem = self._tried(self.text)
        if problem:
            self.module.fail_json(msg=f"The kernel refuses the new rules, nothing was changed: {problem}")
        return listing

    def _tried(self, text: str) -> tuple[str, str]:
        """What the kernel makes of a text in an empty namespace, canonical, and why it refuses it."""
        script = f"{self.nft} --file - && {{ {self.nft} {' '.join(LIST)} 2>/dev/null || true; }}"
        code, out, err = self.module.run_command(["unshare", "--net", "sh", "-c", script], data=text)
        return nftables.canonical(out), err.strip() if code else ""

    def boot_now(self) -> dict[str, Any]:
        """Whether the file is loaded at boot, and what stopping the unit would do."""
        _, out, _ = self.module.run_command(
            ["systemctl", "show", "--property=UnitFileState,ActiveState,NeedDaemonReload", UNIT]
        )
        shown = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
        return {
            "enabled": shown.get("UnitFileState") == "enabled",
            "active": shown.get("ActiveState") == "active",
            "loaded": shown.get("NeedDaemonReload") == "no",
            "drop_in": _read(DROP_IN),
        }

    # ---------------------------------------------------------------------------------------------------------- changes

    def apply(self) -> dict[str, Any]:
        """Compare, and where the kernel differs load the new table with the rollback armed."""
        if (STATE / "pending").exists() and not self.module.check_mode:  # Left by a run that was killed.
            self._run(["sh", str(STATE / "rollback.sh")], "An earlier, unconfirmed change cannot be taken back")
        before, after = self.kernel_now(), self.kernel_wanted()
        file_before, boot_before = _read(self.path), self.boot_now()
        mode_right = file_before is not None and self.path.stat().st_mode & 0o7777 == FILE_MODE
        result: dict[str, Any] = {
            "kernel_changed": before != after,
            "file_changed": file_before != self.text or not mode_right,
            "boot_changed": boot_before != BOOT_WANTED,
            "diff": [
                {"before_header": "kernel", "after_header": "kernel", "before": before, "after": after},
                {
                    "before_header": str(self.path),
                    "after_header": str(self.path),
                    "before": file_before or "",
                    "after": self.text,
                },
                {
                    "before_header": UNIT,
                    "after_header": UNIT,
                    "before": json.dumps(boot_before, indent=2) + "\n",
                    "after": json.dumps(BOOT_WANTED, indent=2) + "\n",
                },
            ],
        }
        result["changed"] = result["kernel_changed"] or result["file_changed"] or result["boot_changed"]
        result["diff"] = [part for part in result["diff"] if part["before"] != part["after"]]
        if self.module.check_mode or self.module.params["step"] == "compare" or not result["changed"]:
            return result
        if self.nft is None:
            self.module.fail_json(msg="nft is missing: install the package nftables", nft_missing=True)
        if result["kernel_changed"]:
            result["token"] = self._load(before)
        else:
            self._persist()
        return result

    def _load(self, before: str) -> str:
        """Arm the rollback to the rules of before, then load. Returns the token by which the change is confirmed."""
        STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
        token = secrets.token_hex(8)
        for name in ("rolled-back", "previous.conf"):
            (STATE / name).unlink(missing_ok=True)
        _write(STATE / "previous.nft", self._previous(before), 0o600)
        if self.path.exists():
            _write(STATE / "previous.conf", self.path.read_text(), self.path.stat().st_mode & 0o7777)
        script = ROLLBACK.format(state=STATE, nft=self.nft, path=self.path)
        _write(STATE / "rollback.sh", script, 0o700)
        pending = {
            "token": token,
            "connection": ssh_connection(os.getpid()),
            "adopting": before == "",
        }
        _write(STATE / "pending", json.dumps(pending), 0o600)
        self._stop_timer()
        self._run(
            [
                "systemd-run",
                "--quiet",
                "--collect",
                f"--unit={TIMER}",
                "--description=Puts back the firewall rules unless a new connection confirms the new ones",
                f"--on-active={self.module.params['rollback_seconds']}s",
                "--timer-property=AccuracySec=100ms",
                "/bin/sh",
                str(STATE / "rollback.sh"),
            ],
            "The rollback cannot be armed, nothing was changed",
        )
        # Where no rules were, no connection is tracked yet; those that exist are found until the change is confirmed.
        text = self.text if before else self.adopting
        code, _, err = self.module.run_command([self.nft, "--file", "-"], data=text)
        if code != 0:
            (STATE / "pending").unlink(missing_ok=True)
            self._stop_timer()
            self.module.fail_json(msg=f"The kernel refuses the new rules, nothing was changed: {err.strip()}")
        return token

    def _previous(self, before: str) -> str:
        """What brings back the rules of before: the file that made them, or else the kernel's listing of them.

        nft can print a table that it reads back as another notation of the same, or cannot read back at all.
        """
        _, listing, _ = self.module.run_command([self.nft, *LIST])
        own = _read(self.path) or ""
        candidates = [own] if own.startswith(nftables.HEAD) else []
        tried: list[tuple[str, str, str]] = [
            (text, *self._tried(text)) for text in (*candidates, nftables.REPLACE + listing)
        ]
        for text, result, problem in tried:
            if not problem and result == before:
                return text
        return next((text for text, _, problem in reversed(tried) if not problem), nftables.REPLACE)

    def confirm(self) -> dict[str, Any]:
        """Keep the loaded table: write it to disk and disarm the rollback."""
        token = self.module.params["token"]
        with _locked():
            pending = json.loads(_read(STATE / "pending") or "{}")
            if pending.get("token") != token:
                why = "another run has replaced them" if pending else "the rollback has put the previous ones back"
                self.module.fail_json(msg=f"The new rules cannot be confirmed: {why}", rolled_back=not pending)
            if pending["connection"] and pending["connection"] == ssh_connection(os.getpid()):
                self.module.fail_json(msg="The new rules can only be confirmed by a new connection, not by the old one")
            if pending["adopting"]:
                code, _, err = self.module.run_command([self.nft, "--file", "-"], data=self.text)
                if code != 0:
                    self.module.fail_json(msg=f"The kernel refuses the new rules, the old ones will be back: {err}")
            self._persist()
            (STATE / "pending").unlink()
        self._stop_timer()
        return {"changed": True}

    def inspect(self) -> dict[str, Any]:
        """Whether a change was rolled back."""
        rolled_back = json.loads(_read(STATE / "rolled-back") or "{}")
        return {"changed": False, "rolled_back": rolled_back.get("token") == self.module.params["token"]}

    def _persist(self) -> None:
        """Write the file and let it be loaded at boot."""
        _write(self.path, self.text, FILE_MODE)
        if self.boot_now() == BOOT_WANTED:
            return
        DROP_IN.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _write(DROP_IN, DROP_IN_TEXT, 0o644)
        self._run(["systemctl", "daemon-reload"], "systemd does not read its units")
        self._run(["systemctl", "enable", "--now", UNIT], "The rules would not be loaded at boot")

    def _stop_timer(self) -> None:
        self.module.run_command(["systemctl", "stop", f"{TIMER}.timer"])
        self.module.run_command(["systemctl", "reset-failed", f"{TIMER}.timer", f"{TIMER}.service"])

    def _run(self, command: list[str], problem: str) -> None:
        code, out, err = self.module.run_command(command)
        if code != 0:
            self.module.fail_json(msg=f"{problem}: {(err or out).strip()}")


LIST = ["--stateless", "list", "table", nftables.FAMILY, nftables.TABLE]
FILE_MODE = 0o600
BOOT_WANTED = {"enabled": True, "active": True, "loaded": True, "drop_in": DROP_IN_TEXT}


def ssh_connection(process: int, proc: Path = Path("/proc")) -> str:
    """The SSH connection that a process descends from: addresses and ports of both ends, as sshd(8) tells its children.

    sudo hides it from its own child, so the ancestors are asked.

    Args:
        process: number of the process.
        proc: where procfs is mounted.

    Returns:
        The value of SSH_CONNECTION; nothing on a console.
    """
    while process > 1:
        try:
            environment = (proc / str(process) / "environ").read_bytes()
            status = (proc / str(process) / "stat").read_text()
        except OSError:
            return ""
        for variable in environment.split(b"\0"):
            if variable.startswith(b"SSH_CONNECTION="):
                return variable.partition(b"=")[2].decode(errors="replace")
        process = int(status.rpartition(")")[2].split()[1])
    return ""


@contextmanager
def _locked() -> Iterator[None]:
    """Alone with the rollback: whichever comes first decides."""
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (STATE / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _write(path: Path, text: str, mode: int) -> None:
    """All or nothing, also when the host dies meanwhile."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "rules": {"type": "dict", "required": True},
            "extra_rules": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "direction": {"type": "str", "required": True, "choices": list(nftables.CHAINS)},
                    "reason": {"type": "str", "required": True},
                    "protocol": {"type": "str", "default": "tcp", "choices": list(nftables.EXTRA_PROTOCOLS)},
                    "ports": {"type": "list", "elements": "str", "default": []},
                    "sources": {"type": "list", "elements": "str", "default": []},
                    "destinations": {"type": "list", "elements": "str", "default": []},
                    "in_interface": {"type": "str", "default": ""},
                    "out_interface": {"type": "str", "default": ""},
                },
            },
            "networks": {"type": "list", "elements": "str", "default": []},
            "log_drops": {"type": "bool", "default": True},
            "log_per_minute": {"type": "int", "default": 10},
            "log_group": {"type": "int"},
            "path": {"type": "path", "default": "/etc/nftables.conf"},
            "rollback_seconds": {"type": "int", "default": 30},
            "witnesses": {"type": "list", "elements": "str", "default": []},
            "step": {"type": "str", "default": "apply", "choices": ["compare", "apply", "confirm", "inspect"]},
            "token": {"type": "str", "default": "", "no_log": False},
        },
        supports_check_mode=True,
    )
    if not MINIMUM_ROLLBACK <= module.params["rollback_seconds"] <= MAXIMUM_ROLLBACK:
        module.fail_json(msg=f"rollback_seconds is not within {MINIMUM_ROLLBACK} and {MAXIMUM_ROLLBACK}")
    firewall = Firewall(module)
    steps = {
        "compare": firewall.apply,
        "apply": firewall.apply,
        "confirm": firewall.confirm,
        "inspect": firewall.inspect,
    }
    module.exit_json(**steps[module.params["step"]]())


MINIMUM_ROLLBACK = 10
MAXIMUM_ROLLBACK = 600

if __name__ == "__main__":
    main()
