# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Redis of this machine's own: servers and Sentinels on loopback, mutual TLS, started as the role starts them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import ClientTls
from ansible_collections.groundplane.onprem.plugins.module_utils.redis_cluster import RedisCluster, RedisSentinels
from ansible_collections.groundplane.onprem.plugins.module_utils.redis_wire import Connection, RedisError, Reply

from tests.programs.cluster import ROOT, Authority, MissingProgramError, free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

START_SECONDS = 60.0
"""In which all must be there; a busy machine of two cores takes a fifth of it."""
DOWN_AFTER_MS = 2000
"""A silent master is missed after this instead of 5 s."""
ROLE = ROOT / "roles/redis"
MEMBER = ROLE / "templates/tree/usr/local/lib/groundplane/redis_member.py"
WIRE = ROOT / "plugins/module_utils/redis_wire.py"

PASSWORDS = {name: f"{name}-Zq7wT4mKxV2pR9sLbN" for name in ("replication", "sentinel", "admin", "app", "reader")}

FIRST = (ROLE / "defaults/main.yml", ROLE / "vars/main.yml")
"""What the role goes by."""
HURRY = {"server": "repl-diskless-sync-delay 0\nrepl-ping-replica-period 1\n", "sentinel": ""}
"""What differs from the role, so that nobody waits for long."""


def trusted(value: Any) -> Any:
    """Variables as Ansible reads them from a file of a role: their texts are templates."""
    if isinstance(value, dict):
        return {trusted(key): trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


def rendered(name: str, **variables: Any) -> str:
    """A file of the role below /etc/redis/declared, by Ansible's own templating."""
    known: dict[str, Any] = {}
    for path in FIRST:
        known |= yaml.safe_load(path.read_text())
    text = trust_as_template((ROLE / "templates/tree/etc/redis/declared" / f"{name}.j2").read_text())
    return str(Templar(DataLoader(), variables={**trusted(known), **variables}).template(text)) + "\n"


def programs(directory: Path) -> None:
    """Put server and Sentinel into a directory: one program of redis-tools, which goes by its name.

    The packages that carry the names start a server on this machine, which nobody here wants.

    Raises:
        MissingProgramError: it is not there; says how to come by it.
    """
    program = shutil.which("redis-check-rdb")
    if program is None:
        raise MissingProgramError("there is no Redis on this machine: install redis-tools, as lab/setup does")
    for name in ("redis-server", "redis-sentinel"):
        (directory / name).symlink_to(program)


@dataclass
class Host:
    """One member: a server and a Sentinel."""

    name: str
    directory: Path
    port: int = field(default_factory=free_port)
    sentinel_port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def server(self) -> str:
        """Where the server answers."""
        return f"127.0.0.1:{self.port}"

    @property
    def sentinel(self) -> str:
        """Where the Sentinel answers."""
        return f"127.0.0.1:{self.sentinel_port}"

    @property
    def data(self) -> Path:
        """The data of the server."""
        return self.directory / "data"


@dataclass
class Trio:
    """As many members as names are given, data1 the first master."""

    directory: Path
    names: tuple[str, ...] = ("data1", "data2", "data3")
    minimum: int = 1
    hosts: dict[str, Host] = field(default_factory=dict)

    def start(self) -> None:
        """Make files and start all, as a first run of the role does.

        Raises:
            MissingProgramError: Redis is not installed.
            AssertionError: not all are there in time; holds the ends of their logs.
        """
        self.prepare()
        for name in self.names:
            self.launch(name, "sentinel")
            self.launch(name, "server")
        self.until(lambda: not self.missing(), "all are there")
        for host in self.hosts.values():
            self.run(host.name, "settle")
            (host.directory / "initial").unlink()

    def prepare(self) -> None:
        """Make the files of all members.

        Raises:
            MissingProgramError: Redis is not installed.
        """
        programs(self.directory)
        self.authority = Authority(self.directory, "redis")
        self.authority.issue("server")
        for path in (MEMBER, WIRE):
            shutil.copy(path, self.directory)
        self.hosts = {name: Host(name, self.directory / name) for name in self.names}
        for host in self.hosts.values():
            for directory in ("data", "run", "state"):
                (host.directory / directory).mkdir(parents=True)
            self.declare(host)

    def declare(self, host: Host) -> None:
        """Write what the role manages for a member, and that the first one is the first master."""
        for kind, port in (("server", host.port), ("sentinel", host.sentinel_port)):
            (host.directory / f"{kind}.acl").write_text(rendered(f"{kind}.acl", **self.variables(host)))
            text = rendered(f"{kind}.conf", **self.variables(host)) + HURRY[kind]
            (host.directory / f"{kind}.conf").write_text(re.sub(r"\b2?6379\b", str(port), text))
        (host.directory / "initial").write_text(f"{self.hosts[self.names[0]].server}\n")
        told = {
            "cluster": "test", "server": host.server, "servers": [one.server for one in self.hosts.values()],
            "sentinels": [one.sentinel for one in self.hosts.values()], "own_sentinel": host.sentinel,
            "quorum": len(self.names) // 2 + 1, "priority": 100, "ca": str(self.authority.path),
            "crt": str(self.directory / "server.crt"), "key": str(self.directory / "server.key"),
            "user": "admin", "password": PASSWORDS["admin"], "initial": str(host.directory / "initial"),
            "data": str(host.data), "runtime": str(host.directory / "run"), "state": str(host.directory / "state"),
            "server_config": str(host.directory / "server.conf"),
            "sentinel_config": str(host.directory / "sentinel.conf"),
            "server_program": str(self.directory / "redis-server"),
            "sentinel_program": str(self.directory / "redis-sentinel"),
        }  # fmt: skip
        (host.directory / "member.json").write_text(json.dumps(told))

    def variables(self, host: Host) -> dict[str, Any]:
        """What an inventory says of a member, and where its files are here."""
        passwords = {f"redis_{name}_password": PASSWORDS[name] for name in ("replication", "sentinel", "admin")}
        app = {"name": "app", "password": PASSWORDS["app"], "keys": ["*"], "channels": ["news*"]}
        reader = {
            "name": "reader",
            "password": PASSWORDS["reader"],
            "keys": ["%R~key*"],
            "commands": ["+@read", "+keys"],
        }
        return {
            **passwords, "redis_users": [app, reader], "redis_master_name": "test", "redis_maxmemory_mb": 64,
            "redis_min_replicas_to_write": self.minimum, "redis_down_after_ms": DOWN_AFTER_MS,
            "__redis_address": "127.0.0.1", "__redis_data": str(host.data),
            "__redis_state": str(host.directory / "state"), "__redis_declared": str(host.directory),
            "__redis_ca": str(self.authority.path), "__redis_crt": str(self.directory / "server.crt"),
            "__redis_key": str(self.directory / "server.key"),
        }  # fmt: skip

    # --- processes ---

    def launch(self, name: str, what: str) -> None:
        """Start the server or the Sentinel of a member; it takes a moment to answer."""
        host = self.hosts[name]
        with (host.directory / f"{what}.log").open("ab") as log:
            host.processes[what] = subprocess.Popen(
                [sys.executable, "-IS", str(self.directory / MEMBER.name), what, str(host.directory / "member.json")],
                stdout=log,
                stderr=log,
            )

    def run(self, name: str, verb: str) -> None:
        """Run a verb of the program that ends by itself."""
        host = self.hosts[name]
        command = [sys.executable, "-IS", str(self.directory / MEMBER.name), verb, str(host.directory / "member.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_SECONDS)
        assert done.returncode == 0, done.stderr + self.logs()

    def send(self, name: str, number: signal.Signals, *kinds: str) -> None:
        """Send the server, or what is named, a signal, and wait for its end where that is the end."""
        for kind in kinds or ("server",):
            process = self.hosts[name].processes[kind]
            process.send_signal(number)
            if number in (signal.SIGKILL, signal.SIGTERM):
                process.wait(timeout=START_SECONDS)

    def restart(self, name: str, kind: str = "server") -> None:
        """Stop it as systemd does, and start it."""
        self.send(name, signal.SIGTERM, kind)
        self.launch(name, kind)

    def stop(self) -> None:
        """End all."""
        for host in self.hosts.values():
            for process in host.processes.values():
                process.kill()
                process.wait()

    # --- asking ---

    def tls(self) -> ClientTls:
        """The files of a member."""
        return ClientTls(
            str(self.authority.path), str(self.directory / "server.crt"), str(self.directory / "server.key")
        )

    def cluster(self, kind: type[RedisCluster] = RedisCluster, timeout: float = 3) -> RedisCluster:
        """What the gate reads servers by, or Sentinels."""
        places = {
            "servers": [f"{host.name}={host.server}" for host in self.hosts.values()],
            "sentinels": [f"{host.name}={host.sentinel}" for host in self.hosts.values()],
        }
        return kind("test", places, ("admin", PASSWORDS["admin"]), self.tls(), timeout)

    def sentinels(self) -> RedisCluster:
        """What the gate reads Sentinels by."""
        return self.cluster(RedisSentinels)

    def connect(self, name: str, user: str = "app") -> Connection:
        """A connection to a server as that user."""
        connection = Connection(self.hosts[name].server, self.tls().context())
        connection.login(user, PASSWORDS.get(user, "x"))
        return connection

    def ask(self, name: str, *words: str | int, user: str = "app") -> Reply:
        """The answer of a server."""
        connection = self.connect(name, user)
        try:
            return connection.ask(*words)
        finally:
            connection.close()

    def master(self) -> str:
        """Who is the master that all agree on; empty while nobody is."""
        try:
            leader = self.cluster().read().leader
        except RedisError:
            return ""
        return leader.name if leader else ""

    def missing(self) -> str:
        """What is not well; empty when all is."""
        try:
            state = self.cluster().read()
        except RedisError as error:
            return str(error)
        if state.leader is None:
            return state.doubt
        faults = [f"{member.name} {state.fault(member, 0)}" for member in state.members if state.fault(member, 0)]
        return ", ".join(fault for fault in faults if "may not be promoted" not in fault)

    def until(self, done: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> float:
        """Wait for something; the seconds that it took.

        Raises:
            AssertionError: it is not so in time.
        """
        began = time.monotonic()
        while not done():
            assert time.monotonic() - began < seconds, (
                f"not within {seconds:g} s: {what}; {self.missing()}{self.logs()}"
            )
            time.sleep(0.1)
        return time.monotonic() - began

    def last_start(self, name: str) -> str:
        """As what a server last said that it starts."""
        return (self.hosts[name].directory / "server.log").read_text(errors="replace").rpartition(" starts as ")[2]

    def logs(self) -> str:
        """The ends of all logs."""
        found = sorted(self.directory.glob("*/*.log"))
        return "".join(
            f"\n--- {path.parent.name} {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in found
        )
