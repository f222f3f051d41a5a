#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's side of C(groundplane.onprem.tree); the action plugin of the same name renders and calls it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tree
short_description: Brings all files of a role, its packages, kernel settings and units, in one task
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Renders a directory of templates and files on the controller and brings a host's files, directories and links to it
    in one round trip.
  - All or nothing. New files are staged beside their places and validated, then all are swapped by renaming. When any
    step fails, all paths are as they were before.
  - Only what differs is touched. Once a tree is too large to be sent with the call, only contents that differ travel.
  - Packages, kernel settings and units of the same role cost no call of their own. On the host come the packages first,
    then the files, the kernel settings and the units. When a part fails, those before it are done; a next run goes on.
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
        path changed), V(before_packages) (in place before O(packages) are installed, as what says where they come from;
        such paths are a set of their own).
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
  packages:
    description: As O(groundplane.onprem.packages#module:names).
    type: list
    elements: str
    default: []
  packages_absent:
    description: As O(groundplane.onprem.packages#module:absent).
    type: list
    elements: str
    default: []
  package_lists:
    description: As O(groundplane.onprem.packages#module:lists).
    type: bool
    default: false
  kernel_settings:
    description: As O(groundplane.onprem.kernel_settings#module:keys).
    type: list
    elements: str
    default: []
  units:
    description: As O(groundplane.onprem.units#module:units). They follow the files of this call, in check mode too.
    type: list
    elements: dict
    default: []
  changed_paths:
    description: What earlier tasks changed besides, as O(groundplane.onprem.units#module:changed_paths).
    type: list
    elements: path
    default: []
  settle:
    description: As O(groundplane.onprem.units#module:settle).
    type: float
    default: 0.5
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
        installed yet. Users, groups and units that do not exist yet are no error. Kernel settings are compared with
        the files as they would be.
    support: full
  diff_mode:
    description: >-
      Shows packages, each file and each changed attribute except contents of secret and binary files, kernel settings,
      and the states of units.
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

- name: HAProxy is installed and runs with the configuration on disk
  groundplane.onprem.tree:
    packages: [haproxy]
    paths:
      /etc/haproxy/haproxy.cfg: {mode: "0640", group: haproxy, validate: haproxy -c -f %s}
    units:
      - {name: haproxy.service, enabled: true, state: started, reload_on: [/etc/haproxy]}
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
installed:
  description: Packages that were installed or finished.
  type: list
  elements: str
  returned: when packages are declared
purged:
  description: Packages that were removed.
  type: list
  elements: str
  returned: when packages are declared
refreshed:
  description: Whether package lists were fetched.
  type: bool
  returned: when packages are declared
changed_settings:
  description: As RV(groundplane.onprem.kernel_settings#module:changed_settings).
  type: dict
  returned: when O(kernel_settings) are declared
restart_required:
  description: >-
    As RV(groundplane.onprem.units#module:restart_required). RV(started), RV(stopped), RV(restarted), RV(reloaded),
    RV(daemon_reloaded) and RV(units) are those of M(groundplane.onprem.units), too.
  type: list
  elements: str
  returned: when O(units) are declared
"""

from typing import Any

from ansible_collections.groundplane.onprem.plugins.module_utils.debian_packages import Declaration, PackagesError
from ansible_collections.groundplane.onprem.plugins.module_utils.kernel_settings import KernelSettingsError
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_call import Answer, Call, run
from ansible_collections.groundplane.onprem.plugins.module_utils.tree_manifest import Entry, TreeError, unpack
from ansible_collections.groundplane.onprem.plugins.module_utils.unit_converge import SETTLE_SECONDS, UNIT_OPTIONS
from ansible_collections.groundplane.onprem.plugins.module_utils.unit_state import UnitError
from ansible_collections.groundplane.onprem.plugins.module_utils.unlogged import UnloggedModule


def call_of(module: UnloggedModule) -> Call:
    """Read what the module's parameters declare.

    Raises:
        TreeError: the controller's side is of another version, or contents did not arrive whole.
    """
    params = module.params
    packages = Declaration(tuple(params["packages"]), tuple(params["packages_absent"]), params["package_lists"])
    return Call(
        entries=[Entry.from_dict(raw) for raw in params["entries"]],
        contents=unpack(params["index"], params["stream"]),
        packages=packages,
        check=module.check_mode,
        diff=module._diff,  # noqa: SLF001 - how AnsibleModule tells it
        scratch=module.tmpdir,
        **{key: params[key] for key in ("owner", "group", "directory_mode")},
        **{key: params[key] for key in ("kernel_settings", "units", "changed_paths", "settle")},
    )


def result_of(answer: Answer, *, diff: bool) -> dict[str, Any]:
    """Give what the action plugin makes the task's result of."""
    return {**answer.result, **({"changes": answer.changes, "diffs": answer.diffs} if diff else {})}


def main() -> None:
    """Read the call, converge, answer."""
    module = UnloggedModule(
        argument_spec={
            "entries": {"type": "list", "elements": "dict", "required": True},
            "index": {"type": "list", "elements": "list", "default": [], "no_log": False},
            "stream": {"type": "str", "default": "", "no_log": True},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "directory_mode": {"type": "int", "default": 0o755},
            "packages": {"type": "list", "elements": "str", "default": []},
            "packages_absent": {"type": "list", "elements": "str", "default": []},
            "package_lists": {"type": "bool", "default": False},
            "kernel_settings": {"type": "list", "elements": "str", "default": []},
            "units": {"type": "list", "elements": "dict", "default": [], "options": UNIT_OPTIONS},
            "changed_paths": {"type": "list", "elements": "path", "default": []},
            "settle": {"type": "float", "default": SETTLE_SECONDS},
        },
        supports_check_mode=True,
    )
    diff = module._diff  # noqa: SLF001 - how AnsibleModule tells it
    # Named here, or Ansible would put all parameters into the result.
    invocation = {"module_args": {"entries": len(module.params["entries"])}}
    answer = Answer()
    problem = ""
    try:
        run(call_of(module), answer)
    except (TreeError, PackagesError, KernelSettingsError, UnitError) as error:
        problem = str(error)
    for warning in answer.warnings:
        module.warn(warning)
    result = result_of(answer, diff=diff)
    if problem:
        # With what was done before: a person wants to know, and the next run does not tell.
        module.fail_json(msg=problem, invocation=invocation, **result)
    module.exit_json(invocation=invocation, **result)


if __name__ == "__main__":
    main()
