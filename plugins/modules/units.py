#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Converges systemd units, and lets them follow their files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: units
short_description: Systemd units are as declared and run with what is on disk
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Converges any number of systemd units in one round trip. All states are read in one call. Systemd reloads its unit
    files at most once, and only when one of these units has a newer file on disk.
  - A unit is stale when what it was started (or last reloaded) with differs from what is on disk. That is read from the
    host and not from a notification, so an interrupted run is finished by the next one, and a restart by hand is not
    repeated.
options:
  units:
    description: The units, in the order in which they are acted on.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Full name with type, such as V(haproxy.service).
        type: str
        required: true
      enabled:
        description: Whether it starts at boot (or with what it belongs to). Not touched when left out.
        type: bool
      masked:
        description: Whether it is masked. Not touched when left out.
        type: bool
      state:
        description:
          - Whether it runs. Not touched when left out, but a running stale unit is still restarted or reloaded.
          - A one-shot without C(RemainAfterExit) counts as started when it ran well with the files on disk since boot.
        type: str
        choices: [started, stopped]
      restart_on:
        description: Files and directories that it reads at its start. It is restarted when they changed since.
        type: list
        elements: path
        default: []
      reload_on:
        description: Files and directories that a reload reads. A needed restart makes a reload unneeded.
        type: list
        elements: path
        default: []
      gated:
        description:
          - Never restart it here. When a restart is needed it is listed in RV(restart_required).
          - It is started when it does not run.
        type: bool
        default: false
      validate:
        description: A command that must succeed before the unit is started, restarted or reloaded. Run without a shell.
        type: str
      timeout:
        description: Seconds until it must be up.
        type: int
        default: 90
  changed_paths:
    description:
      - What an earlier task changed, such as RV(groundplane.onprem.tree#module:changed_paths).
      - Used in check mode only, where the files are not on disk yet, to predict restarts and reloads.
    type: list
    elements: path
    default: []
  settle:
    description: Seconds after which a unit that was acted on must still be up.
    type: float
    default: 0.5
attributes:
  check_mode:
    description: Predicts exactly. A unit that does not exist yet would change, and is no error.
    support: full
  diff_mode:
    description: Shows the states of each unit that changes.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: HAProxy runs with the configuration on disk
  groundplane.onprem.units:
    units:
      - name: haproxy.service
        enabled: true
        state: started
        reload_on: [/etc/haproxy]
        restart_on: [/etc/systemd/system/haproxy.service.d]
        validate: haproxy -c -q -f /etc/haproxy/haproxy.cfg

- name: etcd runs; whether it must be restarted is known
  groundplane.onprem.units:
    units:
      - {name: etcd.service, enabled: true, state: started, restart_on: [/etc/default/etcd], gated: true}
  register: __etcd_units
"""

RETURN = r"""
restart_required:
  description: Gated units that run with something else than what is on disk.
  type: list
  elements: str
  returned: success
started:
  description: Units that were started.
  type: list
  elements: str
  returned: success
stopped:
  description: Units that were stopped.
  type: list
  elements: str
  returned: success
restarted:
  description: Units that were restarted.
  type: list
  elements: str
  returned: success
reloaded:
  description: Units that were reloaded.
  type: list
  elements: str
  returned: success
daemon_reloaded:
  description: Whether systemd had to read its unit files.
  type: bool
  returned: success
units:
  description: Name of each unit to its state afterwards (in check mode the present one).
  type: dict
  returned: success
  sample: {haproxy.service: {state: active, sub_state: running, unit_file: enabled, load: loaded}}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils.unit_converge import (
    SETTLE_SECONDS,
    UNIT_OPTIONS,
    Units,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.unit_state import UnitError


def main() -> None:
    """Read the call, converge, answer."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "dict", "required": True, "options": UNIT_OPTIONS},
            "changed_paths": {"type": "list", "elements": "path", "default": []},
            "settle": {"type": "float", "default": SETTLE_SECONDS},
        },
        supports_check_mode=True,
    )
    try:
        run = Units(
            module.params["units"],
            changed_paths=module.params["changed_paths"],
            settle=module.params["settle"],
            check=module.check_mode,
            diff=module._diff,  # noqa: SLF001 - how AnsibleModule tells it
        )
        module.exit_json(**run.run())
    except UnitError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
