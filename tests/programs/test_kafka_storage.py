# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kafka's own tool formats once: what it wrote is what it says, and what it left when it was killed is finished."""

from __future__ import annotations

import grp
import ipaddress
import json
import os
import pwd
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_storage import (
    Controller,
    directory_id,
    new_cluster_id,
)
from ansible_collections.groundplane.onprem.plugins.modules import kafka_storage

from tests.programs.broker import jars, java
from tests.programs.cluster import MissingProgramError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
OWNER, GROUP = (
    ("nobody", "nogroup")
    if os.geteuid() == 0
    else (pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name)
)
"""Whom the storage is for. Root makes it for somebody without rights."""
VOTERS = [{"node_id": node, "host": f"c{node}.example.org", "port": 9093} for node in (1, 2, 3)]
META, LOG, CHECKPOINT = "meta.properties", "__cluster_metadata-0", "00000000000000000000-0000000000.checkpoint"


@dataclass
class Host:
    """A place for one node's storage that others may enter, and Kafka's jars."""

    directory: Path
    libraries: Path
    program: str

    def arguments(self, **more: Any) -> dict[str, Any]:
        """The module's arguments for a broker."""
        return {
            "state": "formatted",
            "directories": [str(self.directory / "data")],
            "mark": str(self.directory / "formed"),
            "owner": OWNER,
            "group": GROUP,
            "libraries": str(self.libraries),
            "java": self.program,
            "role": "broker",
            "node_id": 11,
            **more,
        }

    def run(self, *, check_mode: bool = False, **more: Any) -> dict[str, Any]:
        """What the module answers when it is run as Ansible does."""
        arguments = {**self.arguments(**more), "_ansible_check_mode": check_mode}
        done = subprocess.run(
            [sys.executable, kafka_storage.__file__],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(ROOT / "collections"), "PATH": os.environ["PATH"]},
            check=False,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def tool(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of Kafka's own tools."""
        command = [
            self.program,
            "-Xmx256m",
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-cp",
            f"{self.libraries}/*",
        ]
        return subprocess.run([*command, name, *arguments], capture_output=True, text=True, check=False)

    def info(self, role: str, *paths: Path) -> subprocess.CompletedProcess[str]:
        """What the tool says of directories."""
        listener = "CONTROLLER" if role == "controller" else "PLAINTEXT"
        configuration = self.directory / "info.properties"
        configuration.write_text(
            f"process.roles={role}\nnode.id=1\nlog.dirs={','.join(map(str, paths))}\n"
            "controller.quorum.bootstrap.servers=127.0.0.1:9093\ncontroller.listener.names=CONTROLLER\n"
            f"listeners={listener}://127.0.0.1:9093\n"
        )
        return self.tool("kafka.tools.StorageTool", "info", "--config", str(configuration))

    def voters(self, path: Path) -> list[dict[str, Any]]:
        """The voters in the first snapshot of a directory."""
        program = "org.apache.kafka.tools.DumpLogSegments"
        done = self.tool(program, "--cluster-metadata-decoder", "--files", str(path / LOG / CHECKPOINT))
        assert done.returncode == 0, done.stdout + done.stderr
        found = re.search(r"KRaftVoters (\{.*\})", done.stdout)
        assert 'KRaftVersion {"version":0,"kRaftVersion":1}' in done.stdout, done.stdout
        return json.loads(found[1])["voters"] if found else []


@pytest.fixture(scope="module")
def libraries() -> Iterator[Path]:
    """Kafka's jars, where everybody may read them."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        try:
            yield jars(Path(place))
        except MissingProgramError as error:
            pytest.fail(str(error))


@pytest.fixture
def host(libraries: Path) -> Iterator[Host]:
    """A host without anything."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Host(Path(place), libraries, java())


def files(root: Path) -> dict[str, tuple[str, int, bytes]]:
    """All files with owner, mode and content."""
    return {
        str(path.relative_to(root)): (
            path.owner(),
            path.stat().st_mode & 0o777,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in root.rglob("*")
    }


def test_a_broker_is_formatted_once(host: Host) -> None:
    cluster_id, data = new_cluster_id(), host.directory / "data"
    predicted = host.run(check_mode=True, cluster_id=cluster_id)
    assert (predicted["changed"], predicted["formatted"], data.exists()) == (True, False, False)
    done = host.run(cluster_id=cluster_id)
    assert (done.get("msg"), done["changed"], done["formatted"]) == (None, True, True)
    assert done["diff"] == predicted["diff"]
    assert (done["cluster_id"], done["node_id"], done["empty"], done["problems"]) == (cluster_id, 11, False, [])
    found = files(data)
    assert list(found) == [META]
    assert found[META][:2] == (OWNER, 0o600)
    assert (data.owner(), data.stat().st_mode & 0o777) == (OWNER, 0o700)
    said = host.info("broker", data)
    assert said.returncode == 0, said.stdout + said.stderr
    expected = f"cluster.id={cluster_id}, directory.id={done['directory_ids'][str(data)]}, node.id=11, version=1"
    assert expected in said.stdout
    for check_mode in (True, False):
        again = host.run(check_mode=check_mode, cluster_id=cluster_id)
        assert (again["changed"], again["directory_ids"]) == (False, done["directory_ids"])
        assert "failed" not in again
    for other in ({"cluster_id": new_cluster_id()}, {"cluster_id": cluster_id, "node_id": 12}):
        refused = host.run(**other)
        assert refused["msg"].startswith(f"Nothing was formatted. {data} is of ")
    assert files(data) == found
    # A member on record that has lost its data.
    (host.directory / "formed").write_text(f"{cluster_id}\n")
    assert "failed" not in host.run(cluster_id=cluster_id)
    (data / META).unlink()
    refused = host.run(cluster_id=cluster_id)
    assert f"was a member of cluster {cluster_id} and has lost its data" in refused["msg"]
    assert files(data) == {}


def test_initial_controllers_are_given_the_same_voters(host: Host) -> None:
    cluster_id = new_cluster_id()
    expected = [(node, directory_id(cluster_id, node), f"c{node}.example.org", 9093) for node in (1, 2, 3)]
    for node in (1, 2):
        data = host.directory / f"data{node}"
        wanted: dict[str, Any] = {
            "directories": [str(data)],
            "role": "controller",
            "node_id": node,
            "controllers": VOTERS,
        }
        done = host.run(cluster_id=cluster_id, controller_listener="QUORUM", **wanted)
        assert done.get("msg") is None
        assert done["directory_ids"] == {str(data): directory_id(cluster_id, node)}
        assert [item["directory_id"] for item in done["initial_controllers"]] == [item[1] for item in expected]
        voters = host.voters(data)
        assert [endpoint["name"] for voter in voters for endpoint in voter["endpoints"]] == ["QUORUM"] * 3
        assert expected == [
            (voter["voterId"], voter["voterDirectoryId"], voter["endpoints"][0]["host"], voter["endpoints"][0]["port"])
            for voter in voters
        ]
        assert not host.run(cluster_id=cluster_id, controller_listener="QUORUM", **wanted)["changed"]


def test_a_controller_that_joins_later_knows_no_voters(host: Host) -> None:
    cluster_id, data = new_cluster_id(), host.directory / "data"
    done = host.run(cluster_id=cluster_id, role="controller", node_id=4)
    assert (done.get("msg"), done["formatted"]) == (None, True)
    assert done["directory_ids"][str(data)] != directory_id(cluster_id, 4)
    assert host.voters(data) == []
    assert host.info("controller", data).returncode == 0


def test_the_rest_of_a_controller_is_plain(host: Host) -> None:
    """The metadata log's directory was done when the tool was killed; no other may become a second one."""
    cluster_id, paths = new_cluster_id(), [host.directory / name for name in ("a", "b")]
    wanted: dict[str, Any] = {"role": "controller", "node_id": 1, "controllers": VOTERS, "cluster_id": cluster_id}
    assert host.run(directories=[str(paths[0])], **wanted)["formatted"]
    done = host.run(directories=list(map(str, paths)), **wanted)
    assert (done.get("msg"), done["changed"], done["formatted"]) == (None, True, True)
    assert done["directory_ids"][str(paths[0])] == directory_id(cluster_id, 1)
    assert done["directory_ids"][str(paths[1])] not in [directory_id(cluster_id, node) for node in (1, 2, 3)]
    assert not (paths[1] / LOG).exists()
    assert host.info("controller", *paths).returncode == 0


def test_controllers_may_have_addresses(host: Host) -> None:
    cluster_id, data = new_cluster_id(), host.directory / "data"
    controllers = [{"node_id": 1, "host": "fd00::1"}, {"node_id": 2, "host": "10.0.3.12", "port": 19093}]
    done = host.run(cluster_id=cluster_id, role="controller", node_id=1, controllers=controllers)
    assert done.get("msg") is None
    hosts = [Controller(item["node_id"], item["host"], item["port"]).address for item in done["initial_controllers"]]
    assert hosts == ["[fd00::1]:9093", "10.0.3.12:19093"]
    endpoints = [voter["endpoints"][0] for voter in host.voters(data)]
    found = [(str(ipaddress.ip_address(item["host"])), item["port"]) for item in endpoints]
    assert found == [("fd00::1", 9093), ("10.0.3.12", 19093)]
