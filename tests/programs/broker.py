# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Kafka of this machine's own: the bundle's jars as KRaft nodes on loopback, mutual TLS on all their listeners."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import ClientTls
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_client import Client, KafkaError
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_cluster import KafkaBrokers, KafkaControllers

from tests.programs.cluster import BUNDLE, Authority, MissingProgramError, free_port

JAVA = 17
"""The oldest Java that runs Kafka 4."""
START_SECONDS = 120.0
"""In which the broker must answer; a busy machine of two cores takes a tenth of it."""

SERVER = """\
process.roles=broker,controller
node.id={id}
controller.quorum.bootstrap.servers={bootstrap}
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
log.dirs={data}
num.partitions=2
default.replication.factor={replicas}
offsets.topic.replication.factor={replicas}
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr=1
connection.failed.authentication.delay.ms=100
"""
IMPATIENT = """\
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
"""
"""A killed broker is missed after 3 s instead of 9."""
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


def new_id() -> str:
    """An id as Kafka writes it, which does not begin like an option."""
    data = uuid.uuid4().bytes
    return base64.urlsafe_b64encode(bytes([data[0] & 0x7F]) + data[1:]).decode().rstrip("=")


def certify(directory: Path) -> Authority:
    """An authority, the nodes' certificate as a file that Kafka reads, and the administrator's."""
    authority = Authority(directory, "kafka")
    crt, key = authority.issue("broker")
    pem = directory / "broker.pem"
    pem.touch(mode=0o600)
    pem.write_bytes(key.read_bytes() + crt.read_bytes())
    authority.issue("admin")
    (directory / "log4j2.properties").write_text(LOGGING)
    return authority


def command(directory: Path, heap: str) -> list[str]:
    """How Java is called, up to the class.

    Raises:
        MissingProgramError: Kafka was not built, or there is no Java.
    """
    return [
        java(), f"-Xmx{heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
        f"-Dlog4j2.configurationFile={directory}/log4j2.properties", "-cp", f"{jars(directory)}/*",
    ]  # fmt: skip


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
        self._command = command(self.directory, "384m")
        self.authority = certify(self.directory)
        properties = self.directory / "server.properties"
        properties.write_text(
            SERVER.format(
                id=1,
                bootstrap=f"127.0.0.1:{self.controller_port}",
                directory=self.directory,
                data=self.directory / "data",
                port=self.port,
                login=self.login_port,
                controller=self.controller_port,
                scram=SCRAM,
                replicas=1,
            )
        )
        arguments = ["format", "--standalone", "--cluster-id", new_id(), "--config", str(properties)]
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


@dataclass
class Node:
    """One of three."""

    id: int
    properties: Path
    port: int = field(default_factory=free_port)
    controller_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None


@dataclass
class Trio:
    """Three nodes that are broker and controller each, named data1 to data3 by their ports: loopback has one name."""

    directory: Path
    nodes: dict[int, Node] = field(default_factory=dict)

    def start(self) -> None:
        """Format the storage of all, start them, and wait until all answer.

        Raises:
            MissingProgramError: Kafka was not built, or there is no Java.
            AssertionError: one ended, or does not answer in time; holds the end of its log.
        """
        self._command = command(self.directory, "256m")
        self.authority = certify(self.directory)
        self.nodes = {id_: Node(id_, self.directory / f"data{id_}.properties") for id_ in (1, 2, 3)}
        voters = ",".join(f"{node.id}@127.0.0.1:{node.controller_port}:{new_id()}" for node in self.nodes.values())
        bootstrap = ",".join(f"127.0.0.1:{node.controller_port}" for node in self.nodes.values())
        cluster = new_id()
        formatting = []
        for node in self.nodes.values():
            configuration = SERVER.format(
                id=node.id,
                bootstrap=bootstrap,
                directory=self.directory,
                data=self.directory / f"data{node.id}",
                port=node.port,
                login=free_port(),
                controller=node.controller_port,
                scram=SCRAM,
                replicas=3,
            )
            node.properties.write_text(configuration + IMPATIENT)
            formatting.append(
                subprocess.Popen(
                    [
                        *self._command, "kafka.tools.StorageTool", "format", "--cluster-id", cluster,
                        "--initial-controllers", voters, "--config", str(node.properties),
                    ],
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
        for process in formatting:
            said, _ = process.communicate()
            assert process.returncode == 0, said.decode(errors="replace")
        for id_ in self.nodes:
            self.launch(id_)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            for id_, node in self.nodes.items():
                assert node.process is not None
                assert node.process.poll() is None, self.log(id_)
            assert time.monotonic() < deadline, "".join(self.log(id_) for id_ in self.nodes)
            time.sleep(0.3)

    def _answers(self) -> bool:
        try:
            state = self.brokers().read()
        except KafkaError:
            return False
        return len(state.able) == len(self.nodes)

    def launch(self, id_: int) -> None:
        """Start a node; it takes seconds to answer."""
        node = self.nodes[id_]
        with (self.directory / f"data{id_}.log").open("ab") as log:
            node.process = subprocess.Popen(
                [*self._command, "kafka.Kafka", str(node.properties)], stdout=log, stderr=log
            )

    def send(self, id_: int, number: signal.Signals) -> None:
        """Send a node a signal, and wait for its end where that is the end."""
        process = self.nodes[id_].process
        assert process is not None
        process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            process.wait(timeout=START_SECONDS)

    def log(self, id_: int) -> str:
        """The end of a node's log."""
        return (self.directory / f"data{id_}.log").read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """End all."""
        for node in self.nodes.values():
            if node.process is not None:
                node.process.kill()
                node.process.wait()

    def member_of(self, _host: str, port: int) -> str:
        """The member at a port."""
        return next(f"data{id_}" for id_, node in self.nodes.items() if port in (node.port, node.controller_port))

    def tls(self) -> ClientTls:
        """The administrator's files."""
        return ClientTls(str(self.authority.path), str(self.directory / "admin.crt"), str(self.directory / "admin.key"))

    def brokers(self, timeout: float = 5) -> KafkaBrokers:
        """What the gate reads brokers by."""
        servers = [f"127.0.0.1:{node.port}" for node in self.nodes.values()]
        return KafkaBrokers("test", servers, self.tls(), self.member_of, timeout)

    def controllers(self, timeout: float = 5) -> KafkaControllers:
        """What the gate reads controllers by."""
        servers = [f"127.0.0.1:{node.controller_port}" for node in self.nodes.values()]
        return KafkaControllers("test", servers, self.tls(), self.member_of, timeout)
