#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Record what a machine looked like before a lab ran on it, and bring that back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_machine
short_description: Records a machine's network settings before a lab, and restores them after it
version_added: 0.1.0
author: The groundplane maintainers (@groundplane)
description:
  - The container engine of a lab turns on IPv4 forwarding and leaves packet filter chains behind when it is killed, and
    hosts that run containers themselves leave control groups behind, and need other kernel settings.
    This module writes down what was there before the lab, once, and restores exactly that when the lab is gone.
  - With O(state=recorded) it also refuses a machine that cannot carry the lab, since another holds its subnets or port.
attributes:
  check_mode:
    support: full
    description: Reads the machine and reports what would change.
  diff_mode:
    support: none
    description: Nothing to compare; the result lists what was restored.
  idempotent:
    support: full
    description: A second run changes nothing.
options:
  state:
    description: V(recorded) writes the record if there is none. V(restored) undoes what differs from it.
    type: str
    choices: [recorded, restored]
    required: true
  directory:
    description: The lab's directory. The record is C(machine.json) in it; the engine's networks are in C(networks/).
    type: path
    required: true
  subnets:
    description: The lab's subnets in CIDR notation. Chains that serve other subnets are another lab's and stay.
    type: list
    elements: str
    default: []
  port:
    description: TCP port on 127.0.0.1 that the lab's bastion will listen on.
    type: int
  settings:
    description: Kernel settings that the machine has while the lab is there, with O(state=recorded).
    type: dict
    default: {}
  minimums:
    description: Kernel settings that are raised to these numbers where they are lower, with O(state=recorded).
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: The machine can carry the lab, and what it looked like before is on record
  groundplane.onprem.lab_machine:
    state: recorded
    directory: /srv/site/.lab
    subnets: [10.77.1.0/24]
    port: 2222
    minimums: {fs.inotify.max_user_instances: 8192}
"""

RETURN = r"""
set:
  description: The kernel settings that were changed, one line each.
  type: list
  elements: str
  returned: O(state=recorded)
restored:
  description: What was put back, one line each.
  type: list
  elements: str
  returned: O(state=restored)
"""

import ipaddress
import json
import os
import re
import shlex
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils import kernel_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
CHAIN = re.compile(r"^:(NETAVARK\S*)")
RULE = re.compile(r"^-A (\S+) (.*-j (?:NETAVARK\S*).*)$")
TABLES = ("filter", "nat")
ADDRESS = re.compile(r"-[sd] (\d+\.\d+\.\d+\.\d+/\d+)")


def engine_interfaces(directory: Path) -> set[str]:
    """Names of the bridges that belong to the engine whose networks are described in `directory`/networks."""
    found = set()
    for description in (directory / "networks").glob("*.json"):
        found.add(json.loads(description.read_text())["network_interface"])
    return found


def overlapping(routes: list[dict[str, Any]], subnets: list[str], own: set[str]) -> list[tuple[str, str]]:
    """Pairs (subnet, interface) of wanted subnets that a foreign interface already routes."""
    wanted = [ipaddress.ip_network(subnet) for subnet in subnets]
    taken = []
    for route in routes:
        if route["dst"] == "default" or route.get("dev") in own:
            continue
        there = ipaddress.ip_network(route["dst"], strict=False)
        taken += [(str(subnet), route["dev"]) for subnet in wanted if subnet.overlaps(there)]
    return taken


def rules_of(saved: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Chains of the container engine and rules that jump to them, from the text of iptables-save for one table."""
    chains = [match[1] for line in saved.splitlines() if (match := CHAIN.match(line))]
    rules = [
        (match[1], match[2])
        for line in saved.splitlines()
        if (match := RULE.match(line)) and not match[1].startswith("NETAVARK")
    ]
    return chains, rules


def foreign(saved: str, subnets: list[str]) -> set[str]:
    """Subnets in the engine's chains that are not among `subnets`: another lab's, which still needs the chains."""
    used = {
        found
        for line in saved.splitlines()
        if line.startswith("-A NETAVARK")
        for found in ADDRESS.findall(line)
        if not ipaddress.ip_network(found).is_loopback and not ipaddress.ip_network(found).is_multicast
    }
    wanted = [ipaddress.ip_network(subnet) for subnet in subnets]
    return {one for one in used if not any(ipaddress.ip_network(one).overlaps(ours) for ours in wanted)}


def run(*argv: str) -> str:
    """Output of a command of this machine; a failure is the caller's error with its text."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def snapshot() -> dict[str, Any]:
    """What the lab may change: forwarding, tables of the packet filter and the engine's chains in them."""
    return {
        "ip_forward": FORWARD.read_text().strip(),
        "tables": [line.split(" ", 1)[1] for line in run("nft", "list", "tables").splitlines()],
        "chains": {table: rules_of(run("iptables-save", "-t", table))[0] for table in TABLES},
    }


def listener(port: int) -> bool:
    """Whether something listens on this TCP port of the loopback address."""
    return bool(run("ss", "-Hltn", f"sport = :{port}").strip())


def wanted_settings(settings: Mapping[str, Any], minimums: Mapping[str, Any], has: Mapping[str, str]) -> dict[str, str]:
    """Kernel settings that have to change, with their new values.

    Args:
        settings: exact values.
        minimums: least values; what is higher stays.
        has: what the kernel has now. A setting that it does not know is left out.
    """
    wanted = {key: str(value) for key, value in settings.items() if key in has and has[key] != str(value)}
    raised = {key: str(least) for key, least in minimums.items() if key in has and int(has[key]) < int(least)}
    return wanted | raised


def change_settings(wanted: Mapping[str, str], *, check: bool) -> list[str]:
    """Write kernel settings; one line for each."""
    if not check:
        for key, value in wanted.items():
            kernel_settings.path_of(key).write_text(value)
    return [f"{key} = {value}" for key, value in sorted(wanted.items())]


def unmounted(cgroups: str, mounts: str) -> list[str]:
    """Hierarchies of control groups (version 1) that exist and that this machine has not mounted: the lab's hosts did.

    Args:
        cgroups: /proc/self/cgroup, lines of `number:controllers:path`.
        mounts: /proc/self/mounts.
    """
    known = [line.split()[3].split(",") for line in mounts.splitlines() if line.split()[2] == "cgroup"]
    existing = [line.split(":")[1] for line in cgroups.splitlines()]
    return [one for one in existing if one and not any(set(one.split(",")) <= set(options) for options in known)]


@contextmanager
def hierarchy(controllers: str) -> Iterator[Path]:
    """A hierarchy of control groups, mounted for the moment."""
    with tempfile.TemporaryDirectory() as where:
        run("mount", "-t", "cgroup", "-o", controllers, "cgroup", where)
        try:
            yield Path(where)
        finally:
            run("umount", where)


def remove_groups(*, check: bool) -> list[str]:
    """Remove the control groups that hosts of a lab made for themselves where the engine makes none; a line for each.

    Groups with a process in them are of a container that runs: another lab's.
    """
    undone = []
    for controllers in unmounted(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mounts").read_text()):
        with hierarchy(controllers) as root:
            for container in sorted(root.glob("**/libpod_parent/libpod-*")):
                if any(processes.read_text() for processes in container.rglob("cgroup.procs")):
                    continue
                undone.append(f"{controllers}: {container.relative_to(root)}")
                if not check:
                    for directory, _, _ in os.walk(container, topdown=False):
                        Path(directory).rmdir()
            for parent in [] if check else list(root.glob("**/libpod_parent")):
                if not any(path.is_dir() for path in parent.iterdir()):
                    parent.rmdir()
    return undone


def remove_chains(table: str, known: list[str], *, check: bool) -> list[str]:
    """Remove the engine's chains that are not `known`, after the rules that jump to them; one line for each."""
    chains, rules = rules_of(run("iptables-save", "-t", table))
    mine = [chain for chain in chains if chain not in known]
    jumps = [(chain, rule) for chain, rule in rules if any(name in rule for name in mine)]
    if not check:
        for chain, rule in jumps:
            run("iptables", "-t", table, "-D", chain, *shlex.split(rule))
        for action in ("-F", "-X"):
            for chain in mine:
                run("iptables", "-t", table, action, chain)
    return [f"{table}: rule of {chain}" for chain, _ in jumps] + [f"{table}: chain {chain}" for chain in mine]


def remove_tables(known: list[str], *, check: bool) -> list[str]:
    """Remove the tables that the engine made, where nothing but empty base chains is left in them."""
    undone = []
    for line in run("nft", "list", "tables").splitlines():
        name = line.split(" ", 1)[1]
        if name in known or name not in {"ip filter", "ip nat"}:
            continue
        if re.search(r"^\t\t(?!type)", run("nft", "list", "table", *name.split()), re.MULTILINE):
            continue
        undone.append(f"table {name}")
        if not check:
            run("nft", "delete", "table", *name.split())
    return undone


def restore(before: dict[str, Any], subnets: list[str], *, check: bool) -> list[str]:
    """Undo what differs from the record and is the engine's own; returns one line for each thing undone."""
    undone = remove_groups(check=check)
    if any(foreign(run("iptables-save", "-t", table), subnets) for table in TABLES):
        return undone
    for table in TABLES:
        undone += remove_chains(table, before["chains"][table], check=check)
    undone += remove_tables(before["tables"], check=check)
    if FORWARD.read_text().strip() != before["ip_forward"]:
        undone.append(f"net.ipv4.ip_forward = {before['ip_forward']}")
        if not check:
            FORWARD.write_text(before["ip_forward"])
    settings: dict[str, str] = before.get("settings", {})
    now = kernel_settings.running(settings)
    return undone + change_settings({key: settings[key] for key in now if now[key] != settings[key]}, check=check)


def record(module: AnsibleModule, path: Path) -> dict[str, Any]:
    """Refuse a machine that cannot carry the lab, else write the record if there is none, then change what is needed.

    A setting that the record does not know yet, of a lab that has grown, is added to it as it is.
    """
    directory = path.parent
    routes = json.loads(run("ip", "-json", "-4", "route"))
    for subnet, interface in overlapping(routes, module.params["subnets"], engine_interfaces(directory)):
        module.fail_json(
            msg=f"The subnet {subnet} of site_networks is already routed by {interface} of this machine, maybe for the "
            f"lab of another clone: run make lab-down there, or choose other subnets in the inventory."
        )
    port = module.params["port"]
    if port and not path.exists() and listener(port):
        module.fail_json(
            msg=f"Port {port} of 127.0.0.1 is in use, maybe by the lab of another clone: run make lab-down there, "
            f"or set GROUNDPLANE_LAB_PORT to a free port."
        )
    known = json.loads(path.read_text()) if path.exists() else None
    settings, minimums = module.params["settings"], module.params["minimums"]
    has = kernel_settings.running({*settings, *minimums})
    before = known or snapshot()
    before = before | {"settings": has | before.get("settings", {})}
    if not module.check_mode and before != known:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(json.dumps(before, indent=1))
    changes = change_settings(wanted_settings(settings, minimums, has), check=module.check_mode)
    return {"changed": before != known or bool(changes), "set": changes}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["recorded", "restored"], "required": True},
            "directory": {"type": "path", "required": True},
            "subnets": {"type": "list", "elements": "str", "default": []},
            "port": {"type": "int"},
            "settings": {"type": "dict", "default": {}},
            "minimums": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    path = Path(module.params["directory"]) / "machine.json"
    try:
        if module.params["state"] == "recorded":
            module.exit_json(**record(module, path))
        undone = (
            restore(json.loads(path.read_text()), module.params["subnets"], check=module.check_mode)
            if path.exists()
            else []
        )
    except (RuntimeError, OSError, ValueError) as error:
        module.fail_json(msg=f"lab_machine {module.params['state']}: {error}")
    module.exit_json(changed=bool(undone), restored=undone)


if __name__ == "__main__":
    main()
