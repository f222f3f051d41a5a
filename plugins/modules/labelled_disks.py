#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give blank disks a file system by their serial numbers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: labelled_disks
short_description: Disks that are named by their serial numbers have a labelled file system
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Makes XFS with a label on the whole of each blank disk of a list. One that has its label already is left as it is.
  - Nothing is ever wiped. A disk that holds anything else is refused, and so is one that is not there or whose number
    two disks have; then no disk is touched.
attributes:
  check_mode:
    support: full
    description: Reports which disks would get a file system.
  diff_mode:
    support: none
    description: A blank disk has nothing to compare.
  idempotent:
    support: full
    description: A second run changes nothing.
options:
  disks:
    description: Serial number to label. A label has 12 characters at the most.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: The drives of the store have file systems
  groundplane.onprem.labelled_disks:
    disks:
      S4EVNX0R100123: drive1
      S4EVNX0R100456: drive2
"""

RETURN = r"""
made:
  description: Devices that got a file system, with their labels.
  type: dict
  returned: success
  sample: {/dev/sdb: drive1}
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils.disk_label import COLUMNS, disks_of, to_format


def main() -> None:
    """Look, refuse or make."""
    module = AnsibleModule(argument_spec={"disks": {"type": "dict", "required": True}}, supports_check_mode=True)
    status, output, error = module.run_command(["lsblk", "--json", "--output", ",".join(COLUMNS)])
    if status != 0:
        module.fail_json(msg=f"lsblk: {error.strip()}")
    wanted = {str(serial): str(label) for serial, label in module.params["disks"].items()}
    try:
        made, reasons = to_format(wanted, disks_of(json.loads(output)))
    except ValueError as wrong:
        module.fail_json(msg=f"lsblk: {wrong}")
    if reasons:
        module.fail_json(msg=f"No disk was touched. {'. '.join(reasons)}", refusals=reasons)
    for device, label in made.items():
        if module.check_mode:
            continue
        # Without -f: it looks for what is there once more itself.
        status, _, error = module.run_command(["mkfs.xfs", "-q", "-L", label, device])
        if status != 0:
            module.fail_json(msg=f"{device}: {error.strip()}", changed=True)
    module.exit_json(changed=bool(made), made=made)


if __name__ == "__main__":
    main()
