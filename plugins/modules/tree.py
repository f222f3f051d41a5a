#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's side of C(groundplane.onprem.tree); the action plugin of the same name renders and calls it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tree
short_description: Converges all files of a role in one task
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Renders a directory of templates and files on the controller and brings a host's files, directories and links to it
    in one round trip.
  - All or nothing. New files are staged beside their places and validated, then all are swapped by renaming. When any
    step fails, all paths are as they were before.
  - Only what differs is touched. Once a tree is too large to be sent with the call, only contents that differ travel.
options:
  src:
    description:
      - A directory below C(templates/) of the role or the playbook. C(SRC/etc/foo.conf.j2) becomes C(/etc/foo.conf).
      - Files that end in C(.j2) are rendered as by M(ansible.builtin.template), others are copied byte by byte.
      - A file that is executable here is executable there, for whoever may read it.
      - May only be missing when it is not given.
    type: str
    default: tree
  paths:
    description:
      - Path on the host to what is declared for it, where that differs from the defaults or has no file below O(src).
      - Paths may be templates, too.
      - Keys are V(state) (V(file), V(directory), V(link), V(absent), or V(skip) to leave a source out), V(owner),
        V(group), V(mode) (a quoted octal string), V(content) (text), V(template) (a file below C(templates/)), V(vars)
        (additional variables of the template), V(target) (of a link), V(validate) (a command with C(%s) for the staged
        file, run without a shell), V(secret) (no content in diffs and messages, and V("0600") unless a mode is
        declared), V(recurse) (remove a directory with its content), V(notify) (handlers that are notified when this
        path changed).
    type: dict
    default: {}
  owner:
    description: Owner of each path that names no other, and of parent directories that have to be made.
    type: str
    default: root
  group:
    description: Group of each path that names no other, and of parent directories that have to be made.
    type: str
    default: root
  mode:
    description: Permissions of each file that names no other, as a quoted octal string.
    type: str
    default: "0644"
  directory_mode:
    description: Permissions of each declared directory that names no other, and of parents that have to be made.
    type: str
    default: "0755"
notes:
  - A link at the place of a file is replaced, never followed. Links among a path's directories are followed when root
    made them.
  - A replaced file is a new inode. Access control lists and extended attributes of the old one are not carried over.
  - A validation command sees its own staged file, and the other files as they are before the swap.
  - With pipelining, contents are sent by standard input. They are never in arguments, logs or results.
attributes:
  check_mode:
    description:
      - Predicts exactly and writes nothing. Validations run on a copy in a private directory, unless the program is not
        installed yet. Users and groups that do not exist yet are no error.
    support: full
  diff_mode:
    description: Shows each file and each changed attribute, except contents of secret and binary files.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: The files of HAProxy are as declared
  groundplane.onprem.tree:
    paths:
      /etc/haproxy/haproxy.cfg: {mode: "0640", group: haproxy, validate: haproxy -c -f %s, secret: true}
      /etc/haproxy/certs: {state: directory, mode: "0750"}
      /etc/haproxy/errors/old.http: {state: absent}

- name: An instance has the drop-in of its unit
  groundplane.onprem.tree:
    paths:
      "/etc/systemd/system/app@{{ app_instance }}.service.d/limits.conf":
        template: limits.conf.j2
        vars: {limit: 4096}
        notify: [The instance is restarted]
"""

RETURN = r"""
changed_paths:
  description: Each path that changed, declared or made as a parent.
  type: list
  elements: str
  returned: success
  sample: [/etc/haproxy/haproxy.cfg]
created:
  description: Those that were not there before.
  type: list
  elements: str
  returned: success
removed:
  description: Those that are not there any more.
  type: list
  elements: str
  returned: success
skipped_validations:
  description: In check mode, paths whose validation program is not installed yet.
  type: list
  elements: str
  returned: success
"""

import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_converge import Converger, Outcome, describe
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_manifest import (
    Entry,
    TreeError,
    check_paths,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

LOCK_DIRECTORY = "/run/groundplane"
LOCK_SECONDS = 60


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Keep other runs out: this one removes what a killed run left, and must not take theirs for that.

    Raises:
        TreeError: another run works on this host's trees for too long.
    """
    directory = Path(LOCK_DIRECTORY if os.geteuid() == 0 else Path.home() / ".ansible")
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (directory / "tree.lock").open("w", encoding="ascii") as lock:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TreeError(f"another tree task has been running on this host for {LOCK_SECONDS} s") from error
                time.sleep(0.05)
            else:
                yield
                return


def heed_signals(converger: Converger) -> None:
    """Let a lost connection or a stop undo what was begun, instead of leaving it half done."""

    def note(number: int, _frame: FrameType | None) -> None:
        converger.interrupted = signal.Signals(number).name

    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)


def summary(outcome: Outcome) -> dict[str, Any]:
    """Give the result's keys."""
    created = [change.entry.path for change in outcome.changes if change.found.kind == "absent"]
    return {
        "changed": bool(outcome.changes),
        "changed_paths": sorted({*outcome.created_parents, *(change.entry.path for change in outcome.changes)}),
        "created": sorted({*outcome.created_parents, *created}),
        "removed": [change.entry.path for change in outcome.changes if change.entry.state == "absent"],
        "skipped_validations": outcome.skipped_validations,
    }


def run(module: AnsibleModule) -> dict[str, Any]:
    """Converge what the module's parameters declare.

    Raises:
        TreeError: nothing was changed, and the text says why.
    """
    params = module.params
    entries = [Entry.from_dict(raw) for raw in params["entries"]]
    check_paths(entries)
    converger = Converger(
        entries,
        directory_mode=params["directory_mode"],
        owner=params["owner"],
        group=params["group"],
        check=module.check_mode,
        diff=module._diff,  # noqa: SLF001 - how AnsibleModule tells it
        scratch=module.tmpdir,
    )
    heed_signals(converger)
    try:
        outcome = converger.plan()
        contents = unpack(params["index"], params["stream"])
        lacking = [name for name in converger.needed() if name not in contents]
        if lacking:
            return {"changed": False, "needed": lacking}
        converger.apply(contents)
        for warning in outcome.warnings:
            module.warn(warning)
        result = summary(outcome)
        if module._diff:  # noqa: SLF001 - how AnsibleModule tells it
            result["changes"] = [describe(change) for change in outcome.changes]
        return result
    finally:
        converger.close()


def main() -> None:
    """Read the call, converge, answer."""
    module = AnsibleModule(
        argument_spec={
            "entries": {"type": "list", "elements": "dict", "required": True},
            "index": {"type": "list", "elements": "list", "default": [], "no_log": False},
            "stream": {"type": "str", "default": "", "no_log": True},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "directory_mode": {"type": "int", "default": 0o755},
        },
        supports_check_mode=True,
        no_log=True,  # the call is not written to the journal: it is long, and says nothing that a person could read
    )
    # Named here, or Ansible would put all parameters into the result.
    invocation = {"module_args": {"entries": len(module.params["entries"])}}
    try:
        # Looking needs no lock.
        with contextlib.nullcontext() if module.check_mode else exclusive():
            result = run(module)
        module.exit_json(invocation=invocation, **result)
    except TreeError as error:
        module.fail_json(msg=str(error), invocation=invocation)


if __name__ == "__main__":
    main()
