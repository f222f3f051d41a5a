# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running lab as tests see it: commands on its hosts over SSH, faults through its engine, playbooks against it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils.contract import discover
from ansible_collections.groundplane.onprem.plugins.module_utils.site import Site, site_variables

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
RECAP = re.compile(
    r"^(?P<host>\S+)\s+: ok=(?P<ok>\d+)\s+changed=(?P<changed>\d+)\s+"
    r"unreachable=(?P<unreachable>\d+)\s+failed=(?P<failed>\d+)",
    re.MULTILINE,
)


@dataclass
class Play:
    """Outcome of one ansible-playbook run."""

    returncode: int
    output: str

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """Host name to its counts: ok, changed, unreachable, failed."""
        return {
            match["host"]: {key: int(match[key]) for key in ("ok", "changed", "unreachable", "failed")}
            for match in RECAP.finditer(self.output)
        }

    @property
    def changed(self) -> dict[str, int]:
        """Hosts that changed, with the number of changed tasks."""
        return {host: counts["changed"] for host, counts in self.recap.items() if counts["changed"]}

    @property
    def changes(self) -> list[str]:
        """What the run printed of each change, its diff included, under the name of its task."""
        tasks = re.split(r"^(?=TASK \[|RUNNING HANDLER \[|PLAY )", self.output, flags=re.MULTILINE)
        return [task for task in tasks if re.search(r"^changed: \[", task, re.MULTILINE)]


@dataclass
class Lab:
    """A site made by playbooks/lab_up.yml."""

    directory: Path = field(default_factory=lambda: ROOT / ".lab")
    inventory: Path = field(default_factory=lambda: ROOT / "inventories" / "lab")

    @cached_property
    def environment(self) -> dict[str, str]:
        """Environment in which `podman` talks to the lab's own engine."""
        return os.environ | {
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
            "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
        }

    @cached_property
    def hostvars(self) -> dict[str, dict[str, Any]]:
        """Variables of each host as the inventory gives them, without templates resolved."""
        hostvars: dict[str, dict[str, Any]] = self._listing["_meta"]["hostvars"]
        return hostvars

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Group name to its hosts, those of its children included; groups without hosts are left out."""

        def members(name: str) -> list[str]:
            group = self._listing.get(name, {})
            below = [host for child in group.get("children", []) for host in members(child)]
            return list(dict.fromkeys([*group.get("hosts", []), *below]))

        named = {name: members(name) for name in self._listing if name not in ("_meta", "all")}
        return {name: hosts for name, hosts in named.items() if hosts}

    @cached_property
    def site(self) -> Site:
        """The site as contracts and inventory say it is, by the very values that Ansible makes of its variables."""
        here = next(iter(self.hostvars))
        own = self.hostvars[here]
        contracts = discover([ROOT / "roles"])
        templates = {name: f"{{{{ {name} }}}}" for name in site_variables(contracts) if name in own}
        resolved = self.module(here, "ansible.builtin.debug", {"msg": templates})[here]["msg"]
        hostvars = {**self.hostvars, here: {**own, **resolved}}
        return Site.from_hostvars(contracts, {**self.groups, "all": list(hostvars)}, hostvars, here)

    @cached_property
    def pattern(self) -> str:
        """The hosts that plays run on unless a test names others: GROUNDPLANE_HOSTS, by default all."""
        return os.environ.get("GROUNDPLANE_HOSTS") or "all"

    @cached_property
    def hosts(self) -> list[str]:
        """The hosts of that pattern, sorted: those of the inventory that are awake."""
        return self.matching(self.pattern)

    def matching(self, pattern: str) -> list[str]:
        """The hosts of a pattern, sorted."""
        done = self.local("ansible", "-i", str(self.inventory), pattern, "--list-hosts")
        return sorted(done.stdout.split()[2:])  # after "hosts (N):"

    def address(self, host: str) -> str:
        """Where its peers reach a host."""
        facts = self.hostvars[host]
        return str(facts["host_addresses"][facts["host_primary_network"]])

    def vip(self, network: str = "private") -> str:
        """The virtual address on a network."""
        return str(next(iter(self.hostvars.values()))["site_vips"][network]["address"])

    def value(self, host: str, role: str, name: str) -> Any:
        """A variable of a role as a host has it; its default where the inventory has none."""
        defaults = yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text())
        return self.hostvars[host].get(name, defaults.get(name))

    def secret(self, name: str) -> str:
        """A secret that the lab has drawn."""
        return (self.directory / "secrets" / name).read_text().split()[0]

    @cached_property
    def _listing(self) -> dict[str, Any]:
        done = self.local("ansible-inventory", "-i", str(self.inventory), "--list")
        listing: dict[str, Any] = json.loads(done.stdout)
        return listing

    def certificates(self, service: str) -> list[dict[str, Any]]:
        """Certificates that the contract of a service names."""
        contract = yaml.safe_load((ROOT / "roles" / service / "meta" / "service.yml").read_text())
        named: list[dict[str, Any]] = contract.get("certificates", [])
        return named

    def local(
        self, *argv: str, timeout: float = 120, check: bool = True, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command of this machine, in the repository's root; `environment` adds to the lab's."""
        return subprocess.run(
            argv,
            cwd=ROOT,
            env=self.environment | (environment or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=check,
            stdin=subprocess.DEVNULL,
        )

    def run(
        self,
        host: str,
        command: str,
        *,
        timeout: float = 60,
        check: bool = True,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """A shell command on a host as root, over SSH through the bastion."""
        done = subprocess.run(
            ["ssh", "-F", str(self.directory / "ssh_config"), host, "sudo", "-n", "sh", "-c", _quote(command)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            input=stdin or "",
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{host}: {command}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def out(self, host: str, command: str, *, timeout: float = 60) -> str:
        """Stripped standard output of a command on a host."""
        return self.run(host, command, timeout=timeout).stdout.strip()

    def engine(self, *argv: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """A command of the container engine: `pause`, `unpause`, `kill`, `start`, ..."""
        return self.local("podman", *argv, timeout=timeout)

    def module(
        self, pattern: str, name: str, arguments: dict[str, Any], *options: str, timeout: float = 120
    ) -> dict[str, dict[str, Any]]:
        """Run a module or an action, and give what it answered on each host of a pattern.

        Args:
            pattern: the hosts.
            name: of the module, with its collection.
            arguments: of the module.
            options: of `ansible`, such as `--check`.
            timeout: seconds.
        """
        done = self.local(
            *("ansible", "-i", str(self.inventory), pattern, "-m", name, "-a", json.dumps(arguments), *options),
            timeout=timeout,
            check=False,
            environment={"ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
        )
        said = done.stdout[done.stdout.find("{") :]
        assert said, done.stderr
        answers: dict[str, dict[str, Any]] = json.loads(said)["plays"][0]["tasks"][0]["hosts"]
        gone = [host for host, answer in answers.items() if answer.get("unreachable")]
        assert not gone, {host: answers[host]["msg"] for host in gone}
        return answers

    def play(
        self, playbook: str, *arguments: str, timeout: float = 1800, environment: dict[str, str] | None = None
    ) -> Play:
        """Run playbooks/<playbook>.yml against the lab to its end; without `--limit` on the hosts of `pattern`.

        Args:
            playbook: its name.
            arguments: of the run.
            timeout: seconds.
            environment: adds to the lab's.
        """
        limit = [] if self.pattern == "all" or "--limit" in arguments else ["--limit", self.pattern]
        done = self.local(
            "ansible-playbook",
            "-i",
            str(self.inventory),
            f"playbooks/{playbook}.yml",
            *limit,
            *arguments,
            timeout=timeout,
            check=False,
            environment=environment,
        )
        return Play(done.returncode, done.stdout + done.stderr)

    def play_killed(
        self, playbook: str, *arguments: str, at: Callable[[str], bool], delay: float, log: Path
    ) -> str | None:
        """Start playbooks/<playbook>.yml, and kill it and its forks `delay` seconds after a line of its output.

        Args:
            playbook: its name.
            arguments: of the run.
            at: whether it is this line.
            delay: seconds.
            log: file that gets the output.

        Returns:
            That line; None for a run that ended before.
        """
        command = ["ansible-playbook", "-i", str(self.inventory), f"playbooks/{playbook}.yml", *arguments]
        with (
            log.open("w") as output,
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            ) as run,
        ):
            if run.stdout is None:
                raise RuntimeError("the run has no output to read")
            for line in run.stdout:
                output.write(line)
                if at(line):
                    time.sleep(delay)
                    os.killpg(run.pid, signal.SIGKILL)
                    return line
        return None


def _quote(command: str) -> str:
    return "'" + command.replace("'", "'\"'\"'") + "'"
