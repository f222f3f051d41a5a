# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Object stores of this machine's own: the bundle's MinIO on four drives, and others of which we know S3 alone."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from ansible_collections.groundplane.onprem.plugins.module_utils.gate import Health
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import ClientTls
from ansible_collections.groundplane.onprem.plugins.module_utils.object_store_cluster import ObjectStoreServers
from ansible_collections.groundplane.onprem.plugins.module_utils.s3_client import (
    Credentials,
    Request,
    S3Client,
    StoreError,
    server_context,
)

from tests.programs.cluster import BUNDLE, Authority, MissingProgramError, free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

DRIVES = 4
START_SECONDS = 120.0
"""In which a store must answer; a busy machine of two cores takes a tenth of it."""
REGION = "us-east-1"


def program(name: str) -> Path:
    """The newest of a program in the bundle.

    Raises:
        MissingProgramError: there is none; says how to come by it.
    """
    bundle = Path(os.environ.get("GROUNDPLANE_BUNDLE", BUNDLE))
    found = {
        path: [int(part) for part in re.findall(r"\d+", path.name)]
        for path in bundle.glob(f"{name}-*")
        if re.fullmatch(rf"{name}-[\d][\dTZ.-]*", path.name)
    }
    if not found:
        raise MissingProgramError(f"{bundle} holds no {name}: run lab/artifacts/build.py {bundle}")
    return max(found, key=lambda path: found[path])


@dataclass
class Server:
    """One process of a store, with TLS."""

    directory: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    credentials: Credentials = field(default_factory=lambda: Credentials("admin", secrets.token_hex(16)))
    provider: str = ""

    def command(self) -> list[str]:
        """What is started."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Its environment beyond ours."""
        return {}

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            MissingProgramError: it was not built.
            AssertionError: it ended, or does not answer in time; holds the end of its log.
        """
        self.authority = Authority(self.directory, "store")
        self.crt, self.key = self.authority.issue("server")
        command = self.command()
        with (self.directory / "store.log").open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **self.environment()}, cwd=self.directory
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            client = self.client()
        except StoreError:
            return False
        try:
            client.ask(Request("GET", "/"))
        except StoreError:
            return False
        finally:
            client.close()
        return True

    def log(self) -> str:
        """The end of its log."""
        return (self.directory / "store.log").read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"https://127.0.0.1:{self.port}"

    def client(self, credentials: Credentials | None = None) -> S3Client:
        """A new session."""
        context = server_context(str(self.authority.path))
        return S3Client([self.url], context, credentials or self.credentials, region=REGION)


@dataclass
class Minio(Server):
    """One node with four drives, which are directories: MinIO lets these be on the root disk in its CI mode only."""

    provider: str = "minio"

    def command(self) -> list[str]:
        """MinIO, with its certificate where it looks for it."""
        certs = self.directory / "certs"
        certs.mkdir()
        shutil.copyfile(self.crt, certs / "public.crt")
        (certs / "private.key").touch(mode=0o600)
        (certs / "private.key").write_bytes(self.key.read_bytes())
        drives = [str(self.directory / f"drive{number}") for number in range(1, DRIVES + 1)]
        return [
            str(program("minio")), "server", "--quiet", "--certs-dir", str(certs),
            "--address", f"127.0.0.1:{self.port}", *drives,
        ]  # fmt: skip

    def environment(self) -> Mapping[str, str]:
        """Who is root there, and nothing that asks outside."""
        return {
            "MINIO_ROOT_USER": self.credentials.access_key,
            "MINIO_ROOT_PASSWORD": self.credentials.secret_key,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "MINIO_CI_CD": "on",
        }


def own_address() -> str:
    """Where servers that find each other can listen: in a container MinIO takes no loopback for a server's address."""
    if not any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")):
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.connect(("192.0.2.1", 9))  # sends nothing: the kernel says from where it would
        return str(asker.getsockname()[0])


@dataclass
class Quartet:
    """Four servers of one MinIO with one drive each, named data1 to data4 by their ports: they have one address."""

    directory: Path
    ports: dict[str, int] = field(default_factory=lambda: {f"data{number}": free_port() for number in range(1, 5)})
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    address: str = field(default_factory=own_address)

    def start(self) -> None:
        """Start all, and wait until each counts a write quorum.

        Raises:
            MissingProgramError: MinIO was not built.
            AssertionError: one ended, or does not answer in time; holds the end of its log.
        """
        self.program = str(program("minio"))
        self.authority = Authority(self.directory, "store")
        self.authority.issue("server", address=self.address)
        certs = self.directory / "certs"
        (certs / "CAs").mkdir(parents=True)
        # The names that MinIO wants, of files that somebody else writes.
        (certs / "CAs/ca.crt").symlink_to(self.authority.path)
        (certs / "public.crt").symlink_to(self.directory / "server.crt")
        (certs / "private.key").symlink_to(self.directory / "server.key")
        password = secrets.token_hex(16)
        drives = [f"https://{self.address}:{port}{self.directory}/{one}" for one, port in self.ports.items()]
        for name, port in self.ports.items():
            configuration = self.directory / f"{name}.yml"
            configuration.touch(mode=0o600)
            configuration.write_text(
                yaml.safe_dump(
                    {
                        "version": "v2",
                        "rootUser": "admin",
                        "rootPassword": password,
                        "address": f"{self.address}:{port}",
                        "certs-dir": str(certs),
                        "pools": [{"args": drives}],
                    }
                )
            )
        for name in self.ports:
            self.launch(name)
        deadline = time.monotonic() + START_SECONDS
        while any(server.health is not Health.SERVING for server in self.servers().read().members):
            for name, process in self.processes.items():
                assert process.poll() is None, self.log(name)
            assert time.monotonic() < deadline, "".join(self.log(name) for name in self.ports)
            time.sleep(0.3)

    def launch(self, name: str, **environment: str) -> None:
        """Start a server; it takes seconds to answer. Its secret is in a file alone."""
        command = [self.program, "server", "--quiet", "--config", str(self.directory / f"{name}.yml")]
        given = {"MINIO_BROWSER": "off", "MINIO_UPDATE": "off", "MINIO_CI_CD": "on", **environment}
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **given}, cwd=self.directory
            )

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a server a signal, and wait for its end where that is the end."""
        process = self.processes[name]
        process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            process.wait(timeout=START_SECONDS)

    def log(self, name: str) -> str:
        """The end of a server's log."""
        return (self.directory / f"{name}.log").read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """End all."""
        for process in self.processes.values():
            process.kill()
            process.wait()

    def servers(self) -> ObjectStoreServers:
        """What the gate reads them by."""
        crt, key = self.directory / "server.crt", self.directory / "server.key"
        tls = ClientTls(str(self.authority.path), str(crt), str(key))
        by_port = {str(port): name for name, port in self.ports.items()}
        return ObjectStoreServers(
            "test",
            [f"{self.address}:{port}" for port in by_port],
            tls,
            lambda server: by_port[server.rpartition(":")[2]],
        )
