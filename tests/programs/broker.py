# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Kafka of this machine's own: the bundle's jars as one KRaft node on loopback, mutual TLS on all its listeners."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tarfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import ClientTls
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_client import Client, KafkaError

from tests.programs.cluster import BUNDLE, Authority, MissingProgramError, free_port

JAVA = 17
"""The oldest Java that runs Kafka 4."""
START_SECONDS = 120.0
"""In which the broker must answer; a busy machine of two cores takes a tenth of it."""

SERVER = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=DATA://127.0.0.1:{port},LOGIN://127.0.0.1:{login},CONTROLLER://127.0.0.1:{controller}
listener.security.protocol.map=DATA:SSL,LOGIN:SASL_SSL,CONTROLLER:SSL
inter.broker.listener.name=DATA
controller.listener.names=CONTROLLER
ssl.client.auth=required
listener.name.login.ssl.client.auth=required
ssl.keystore.type=PEM
ssl.keystore.location={directory}/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location={directory}/ca.crt
sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512
listener.name.login.scram-sha-256.sasl.jaas.config={scram}
listener.name.login.scram-sha-512.sasl.jaas.config={scram}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=false
super.users=User:CN=broker;User:CN=admin
auto.create.topics.enable=false
log.dirs={directory}/data
num.partitions=2
default.replication.factor=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
connection.failed.authentication.delay.ms=100
"""
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
LOGGING = """\
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
"""


def jars(directory: Path) -> Path:
    """The jars of the newest Kafka in the bundle, put into a directory.

    Raises:
        MissingProgramError: there is none; says how to come by it.
    """
    bundle = Path(os.environ.get("GROUNDPLANE_BUNDLE", BUNDLE))
    found = {path: re.findall(r"\d+", path.name) for path in bundle.glob("kafka-*.tar")}
    if not found:
        raise MissingProgramError(f"{bundle} holds no kafka-*.tar: run lab/artifacts/build.py {bundle} first")
    with tarfile.open(max(found, key=lambda path: [int(part) for part in found[path]])) as archive:
        archive.extractall(directory, filter="data")
    return directory / "libs"


def java() -> str:
    """A Java that is new enough.

    Raises:
        MissingProgramError: there is none; says how to come by it.
    """
    path = shutil.which("java")
    said = subprocess.run([path, "-version"], capture_output=True, text=True, check=True).stderr if path else ""
    version = re.search(r'version "(\d+)', said)
    if path is None or version is None or int(version[1]) < JAVA:
        raise MissingProgramError(
            f"there is no Java {JAVA} or later on this machine: install default-jre-headless, as lab/setup does"
        )
    return path


@dataclass
class Broker:
    """One node that is broker and controller, in the mode that is for laboratories only."""

    directory: Path
    port: int = field(default_factory=free_port)
    login_port: int = field(default_factory=free_port)
    controller_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Format the storage, start the node, and wait until it answers.

        Raises:
            MissingProgramError: Kafka was not built, or there is no Java.
            AssertionError: it ended, or does not answer in time; holds the end of its log.
        """
        program, libraries = java(), jars(self.directory)
        self.authority = Authority(self.directory, "kafka")
        crt, key = self.authority.issue("broker")
        pem = self.directory / "broker.pem"
        pem.touch(mode=0o600)
        pem.write_bytes(key.read_bytes() + crt.read_bytes())
        self.authority.issue("admin")
        properties = self.directory / "server.properties"
        properties.write_text(
            SERVER.format(
                directory=self.directory,
                port=self.port,
                login=self.login_port,
                controller=self.controller_port,
                scram=SCRAM,
            )
        )
        (self.directory / "log4j2.properties").write_text(LOGGING)
        self._command = [
            program, "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            f"-Dlog4j2.configurationFile={self.directory}/log4j2.properties", "-cp", f"{libraries}/*",
        ]  # fmt: skip
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        arguments = ["format", "--standalone", "--cluster-id", cluster, "--config", str(properties)]
        self.tool("kafka.tools.StorageTool", *arguments)
        with (self.directory / "broker.log").open("wb") as log:
            self.process = subprocess.Popen([*self._command, "kafka.Kafka", str(properties)], stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, self.log()
            try:
                self.client().close()
            except KafkaError:
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.2)
            else:
                return

    def tool(self, name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of Kafka's own tools."""
        done = subprocess.run([*self._command, name, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def log(self) -> str:
        """The end of its log."""
        return (self.directory / "broker.log").read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def server(self) -> str:
        """Where it is asked."""
        return f"127.0.0.1:{self.port}"

    @property
    def login(self) -> str:
        """Where users log in."""
        return f"127.0.0.1:{self.login_port}"

    def tls(self, name: str = "admin") -> ClientTls:
        """Files of somebody who has a certificate of the cluster's authority."""
        crt, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        if not crt.exists():
            self.authority.issue(name)
        return ClientTls(str(self.authority.path), str(crt), str(key))

    def client(self, name: str = "admin") -> Client:
        """A new connection."""
        return Client([self.server], self.tls(name).context())
