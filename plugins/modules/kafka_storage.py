#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host holds of a Kafka cluster, and its storage formatted exactly once."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kafka_storage
short_description: What a host holds of a Kafka cluster, and its storage formatted exactly once
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Reports what the directories of a Kafka node hold, so that a role knows whether the host is to be formatted, refused
    or left alone. Reads files and asks no broker, so that it works before there is a cluster and after one was lost.
  - Formats the directories with C(kafka.tools.StorageTool) when there is nothing in any of them, and never otherwise.
    What is formatted, and whatever else has content, is not touched. A format that was interrupted is finished.
  - The directory ids of initial controllers are derived from cluster id and node id, so that each of them is formatted
    with the same list by whatever run, and an interrupted first run goes on with it.
options:
  state:
    description: V(formatted) formats what is empty, and refuses as soon as there is one of RV(problems).
    type: str
    choices: [read, formatted]
    default: read
  directories:
    description: Log directories. Their parents exist.
    type: list
    elements: path
    required: true
  metadata_directory:
    description: Directory of the metadata log; the first of O(directories) when it is not given.
    type: path
  mark:
    description:
      - File outside of the data that begins with the id of the cluster of which the host is a member. Whoever made it
        one writes it; this module only reads it. Where it is and data is not, nothing is formatted.
    type: path
  owner:
    description: Account that runs Kafka. The tool runs as it.
    type: str
    default: kafka
  group:
    description: Its group.
    type: str
    default: kafka
  cluster_id:
    description:
      - Id of the cluster, as of RV(new_cluster_id). Data of another one is one of RV(problems). Needed to format.
    type: str
  node_id:
    description: Id of the node, unique among brokers and controllers. As for O(cluster_id).
    type: int
  role:
    description: What the node is. Needed to format.
    type: str
    choices: [broker, controller]
  controllers:
    description:
      - The voters that the cluster begins with, the same list on each of them.
      - None for a broker, and for a controller that joins later.
    type: list
    elements: dict
    default: []
    suboptions:
      node_id:
        description: Id of the controller.
        type: int
        required: true
      host:
        description: Name or address at which the others reach it.
        type: str
        required: true
      port:
        description: Port of O(controller_listener).
        type: int
        default: 9093
  controller_listener:
    description: Name of the controllers' listener, which goes into the first voters; the same as in the configuration.
    type: str
    default: CONTROLLER
  libraries:
    description: Directory of Kafka's jars. Needed to format.
    type: path
  java:
    description: The program that runs them.
    type: path
    default: java
  timeout:
    description: Seconds that the tool may take, and that a tool of an interrupted run is waited for.
    type: int
    default: 120
attributes:
  check_mode:
    description:
      - Reads and refuses as ever, tells whether it would format, and runs nothing. That the account, the jars and Java
        are not there yet is no reason to fail.
    support: full
  diff_mode:
    description: Shows each directory with its cluster and node.
    support: full
  idempotent:
    description: What is formatted is not formatted again.
    support: full
notes:
  - Needs nothing beyond Python's standard library on the host, and to format Java 17 and Kafka 4.
  - C(--ignore-formatted) is never used. Removing what was lost or is of another cluster is a person's decision.
  - Features are those that the tool of this version begins with.
"""

EXAMPLES = r"""
- name: What the host holds of the cluster is known
  groundplane.onprem.kafka_storage:
    directories: [/var/lib/kafka-controller]
    mark: /etc/kafka/controller.formed
  register: __kafka_controller_state

- name: The storage of the first controllers is formatted
  groundplane.onprem.kafka_storage:
    state: formatted
    directories: [/var/lib/kafka-controller]
    mark: /etc/kafka/controller.formed
    libraries: /opt/kafka/4.4.0/libs
    role: controller
    cluster_id: "{{ __kafka_controller_cluster_id }}"
    node_id: 1
    controllers:
      - {node_id: 1, host: controller-1.example.org}
      - {node_id: 2, host: controller-2.example.org}
      - {node_id: 3, host: controller-3.example.org}

- name: The storage of a broker is formatted
  groundplane.onprem.kafka_storage:
    state: formatted
    directories: [/var/lib/kafka]
    mark: /etc/kafka/broker.formed
    libraries: /opt/kafka/4.4.0/libs
    role: broker
    cluster_id: "{{ __kafka_cluster_id }}"
    node_id: 11
"""

RETURN = r"""
formatted:
  description:
    - Whether all directories are formatted, for one cluster and one node. In check mode what is, not what would be.
  type: bool
  returned: always
empty:
  description: Whether no directory holds anything but C(lost+found). Directories that are missing hold nothing.
  type: bool
  returned: always
interrupted:
  description:
    - Whether what is there is the beginning of a format that did not end, on which no server has ever run, and which
      V(formatted) would finish.
  type: bool
  returned: always
cluster_id:
  description: Id of the cluster of all directories that are formatted. Empty when none is, or they do not agree.
  type: str
  returned: always
  sample: kBpdXWZ2Qn-0vWJkB1cLmQ
node_id:
  description: Id of the node of all directories that are formatted. V(null) when none is, or they do not agree.
  type: int
  returned: always
  sample: 1
directory_ids:
  description: Directory to its id, of those that are formatted.
  type: dict
  returned: always
  sample: {/var/lib/kafka: uKmYtm0fSTyvCWKcoqTKXw}
marked:
  description: Whether O(mark) is there.
  type: bool
  returned: always
marked_cluster_id:
  description: Id of the cluster in it; empty when it is not there.
  type: str
  returned: always
account:
  description: Whether O(owner) and O(group) exist.
  type: bool
  returned: always
problems:
  description: Why the host is neither formatted nor may be, one sentence each.
  type: list
  elements: str
  returned: always
initial_controllers:
  description: O(controllers) with their directory ids.
  type: list
  elements: dict
  returned: when O(cluster_id) is given
  contains:
    node_id:
      description: Id of the controller.
      type: int
    host:
      description: Name or address at which the others reach it.
      type: str
    port:
      description: Port there.
      type: int
    directory_id:
      description: Id of the directory of its metadata log, derived from cluster id and node id.
      type: str
new_cluster_id:
  description: An id for a cluster that is to be made. Random, another one in each call.
  type: str
  returned: always
  sample: kBpdXWZ2Qn-0vWJkB1cLmQ
"""

import contextlib
import fcntl
import grp
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_storage import (
    LOST_FOUND,
    Asked,
    Controller,
    Directory,
    Mark,
    Order,
    State,
    StorageError,
    check,
    directories,
    directory_id,
    judge,
    new_cluster_id,
    observe,
    order,
    read_mark,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MODE = 0o700
UMASK = 0o077
TOOL = "kafka.tools.StorageTool"
JVM = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
"""A short life in little memory, without a file in /tmp for others to look at."""
OUTPUT_LIMIT = 2000
"""Characters of the tool's output that a message shows."""
POLL = 0.2
"""Seconds between two looks whether another format has ended."""


class RefusedError(RuntimeError):
    """Nothing was formatted; holds the reasons."""

    def __init__(self, reasons: Sequence[str]) -> None:
        """Keep the reasons."""
        super().__init__("; ".join(reasons))
        self.reasons = list(reasons)


class ToolError(RuntimeError):
    """The tool could not be run, or did not do it; a further run finishes what it began."""


class Node:
    """The storage of this host, and the account it belongs to."""

    def __init__(self, params: dict[str, Any]) -> None:
        """Take what was asked.

        Raises:
            StorageError: it cannot be meant.
        """
        paths, metadata = directories(params["directories"], params["metadata_directory"])
        self.params = params
        self.asked = Asked(
            directories=paths,
            metadata_directory=metadata,
            cluster_id=params["cluster_id"],
            node_id=params["node_id"],
            role=params["role"],
            controllers=tuple(Controller(**item) for item in params["controllers"]),
            listener=params["controller_listener"],
        )
        check(self.asked)
        self.look()

    def look(self) -> State:
        """Read the directories and the mark.

        Raises:
            OSError: one of them cannot be read.
        """
        self.found: list[Directory] = [observe(path) for path in self.asked.directories]
        self.mark: Mark = read_mark(self.params["mark"])
        self.state = judge(self.found, self.mark, self.asked)
        return self.state

    def ids(self) -> tuple[int, int] | None:
        """User and group of the account; None when one does not exist."""
        try:
            return pwd.getpwnam(self.params["owner"]).pw_uid, grp.getgrnam(self.params["group"]).gr_gid
        except KeyError:
            return None

    def answer(self) -> dict[str, Any]:
        """The result's keys that every run has."""
        asked, state = self.asked, self.state
        return {
            "formatted": state.formatted,
            "empty": state.empty,
            "interrupted": state.interrupted,
            "cluster_id": state.cluster_id,
            "node_id": state.node_id,
            "directory_ids": state.directory_ids,
            "marked": self.mark.cluster_id is not None,
            "marked_cluster_id": self.mark.cluster_id or "",
            "account": self.ids() is not None,
            "problems": list(state.problems),
            "new_cluster_id": new_cluster_id(),
            **({"initial_controllers": self.voters(asked.cluster_id)} if asked.cluster_id else {}),
        }

    def voters(self, cluster_id: str) -> list[dict[str, Any]]:
        """The initial controllers with their directory ids."""
        return [
            {
                "node_id": item.node_id,
                "host": item.host,
                "port": item.port,
                "directory_id": directory_id(cluster_id, item.node_id),
            }
            for item in self.asked.controllers
        ]

    def diff(self) -> dict[str, str]:
        """Each directory before and after it is formatted."""
        after = f"cluster {self.asked.cluster_id} node {self.asked.node_id}"
        lines = [
            (item.path, f"cluster {item.meta.cluster_id} node {item.meta.node_id}" if item.meta else "not formatted")
            for item in self.found
        ]
        return {
            "before": "".join(f"{path}: {text}\n" for path, text in lines),
            "after": "".join(f"{path}: {after}\n" for path, _ in lines),
        }

    def format(self) -> None:
        """Format the directories that are not formatted.

        Raises:
            RefusedError: there is a problem by now, or the account does not exist.
            ToolError: the tool cannot be run, or failed.
            OSError: a directory cannot be made.
        """
        ids = self.ids()
        if ids is None:
            raise RefusedError([f"there is no account {self.params['owner']}:{self.params['group']} on this host"])
        command = self.command()
        for path in self.asked.directories:
            prepare(path, *ids)
        with locked(self.asked.directories[0], self.params["timeout"]) as lock:
            refuse(self.look())
            if not self.state.formatted:
                self.run(command, order(self.found, self.asked), ids, lock)
        refuse(self.look())
        if not self.state.formatted:
            left = ", ".join(item.path for item in self.found if not item.meta)
            raise ToolError(f"{TOOL} says that it has formatted, and {left} is not")

    def command(self) -> list[str]:
        """The tool and what all its calls have in common.

        Raises:
            ToolError: there is no Java, or no jars.
        """
        java, libraries = shutil.which(self.params["java"]), Path(self.params["libraries"])
        if java is None:
            raise ToolError(f"{self.params['java']}: there is no such program; Debian's default-jre-headless has it")
        if not any(libraries.glob("*.jar")):
            raise ToolError(f"{libraries}: there are no jars; the artifact kafka has them")
        return [java, *JVM, "-cp", f"{libraries}/*", TOOL, "format"]

    def run(self, command: Sequence[str], wanted: Order, ids: tuple[int, int], lock: int) -> None:
        """Run the tool as the account.

        Args:
            command: from `command`.
            wanted: what it is to format.
            ids: user and group.
            lock: descriptor that says that a format goes on. The tool has it too, and so it says so as long as the tool
                lives, even if this run does not.

        Raises:
            ToolError: it failed, or took too long; holds the end of its output.
        """
        seconds = self.params["timeout"]
        with tempfile.TemporaryDirectory(prefix="kafka-storage-") as place:
            configuration = Path(place) / "format.properties"
            configuration.touch(mode=0o600)
            configuration.write_text(wanted.configuration, encoding="utf-8")
            for path in (configuration, Path(place)):
                os.chown(path, *ids)
            try:
                done = subprocess.run(
                    [*command, "--config", str(configuration), *wanted.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
                    cwd="/",
                    umask=UMASK,
                    timeout=seconds,
                    pass_fds=(lock,),
                    check=False,
                    **account(ids),
                )
            except subprocess.TimeoutExpired as error:
                raise ToolError(f"{TOOL} took longer than {seconds} s and was ended; run again to finish") from error
            except OSError as error:
                raise ToolError(f"{command[0]} cannot be run as {self.params['owner']}: {error}") from error
        if done.returncode != 0:
            output = done.stdout.decode(errors="replace").strip()[-OUTPUT_LIMIT:]
            raise ToolError(f"{TOOL} returned {done.returncode}: {output}")


def account(ids: tuple[int, int]) -> dict[str, Any]:
    """How a program is run as an account; as whoever we are when that is the account."""
    if ids == (os.geteuid(), os.getegid()):
        return {}
    return {"user": ids[0], "group": ids[1], "extra_groups": []}


def prepare(path: str, uid: int, gid: int) -> None:
    """Make a directory, or take over one that is empty, such as the root of a new file system.

    Raises:
        OSError: its parent is missing, or it is no directory.
    """
    with contextlib.suppress(FileExistsError):
        Path(path).mkdir(mode=MODE)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with os.scandir(descriptor) as entries:
            empty = all(entry.name == LOST_FOUND for entry in entries)
        if empty:
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, MODE)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: str, seconds: int) -> Iterator[int]:
    """Keep two formats off each other, such as ours and the tool of a run that was killed.

    Args:
        path: directory that stands for all.
        seconds: how long to wait for the other one.

    Yields:
        The descriptor that holds the lock.

    Raises:
        ToolError: the other one goes on.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    deadline = time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ToolError(f"{path}: another run formats it, and has not ended in {seconds} s") from error
                time.sleep(POLL)
        yield descriptor
    finally:
        os.close(descriptor)


def refuse(state: State) -> None:
    """Go on only when there is no problem.

    Raises:
        RefusedError: there is.
    """
    if state.problems:
        raise RefusedError(state.problems)


def converge(node: Node, *, wanted: bool, check_mode: bool) -> dict[str, Any]:
    """Read, and format what is to be formatted and is not.

    Args:
        node: the storage.
        wanted: whether it is to be formatted.
        check_mode: whether to change nothing.

    Raises:
        RefusedError: there is a problem.
        ToolError: it was not formatted.
        OSError: something cannot be read or made.
    """
    if not wanted:
        return {"changed": False, **node.answer()}
    refuse(node.state)
    if node.state.formatted:
        return {"changed": False, **node.answer()}
    diff = node.diff()
    if not check_mode:
        node.format()
    return {"changed": True, "diff": diff, **node.answer()}


def main() -> None:
    """Read the call, converge, answer."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["read", "formatted"], "default": "read"},
            "directories": {"type": "list", "elements": "path", "required": True},
            "metadata_directory": {"type": "path"},
            "mark": {"type": "path"},
            "owner": {"type": "str", "default": "kafka"},
            "group": {"type": "str", "default": "kafka"},
            "cluster_id": {"type": "str"},
            "node_id": {"type": "int"},
            "role": {"type": "str", "choices": ["broker", "controller"]},
            "controllers": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "node_id": {"type": "int", "required": True},
                    "host": {"type": "str", "required": True},
                    "port": {"type": "int", "default": 9093},
                },
            },
            "controller_listener": {"type": "str", "default": "CONTROLLER"},
            "libraries": {"type": "path"},
            "java": {"type": "path", "default": "java"},
            "timeout": {"type": "int", "default": 120},
        },
        required_if=[("state", "formatted", ["cluster_id", "node_id", "role", "libraries"])],
        supports_check_mode=True,
    )
    try:
        node = Node(module.params)
    except (StorageError, OSError) as error:
        module.fail_json(msg=f"kafka_storage: {error}")
    try:
        module.exit_json(**converge(node, wanted=module.params["state"] == "formatted", check_mode=module.check_mode))
    except RefusedError as error:
        module.fail_json(msg=f"Nothing was formatted. {error}", **node.answer())
    except (ToolError, OSError) as error:
        module.fail_json(msg=f"kafka_storage: {error}", **node.answer())


if __name__ == "__main__":
    main()
