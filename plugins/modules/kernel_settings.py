#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running kernel has the settings that the files of the host give it at boot."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_settings
short_description: The running kernel has the settings of sysctl.d
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Compares settings of the running kernel with what C(sysctl.d) gives at boot, and sets those that differ.
  - The files themselves are written by whoever declares a setting. Where two of them declare the same one, the later
    name holds, here as at boot.
  - A setting that this kernel does not have is left out, as it is at boot.
attributes:
  check_mode:
    support: full
    description: Reports what differs and sets nothing.
  diff_mode:
    support: full
    description: Shows the settings that differ, one a line.
  idempotent:
    support: full
    description: A second run changes nothing.
options:
  keys:
    description: The settings to compare, with dots between their parts.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: The kernel runs with the settings on disk
  groundplane.onprem.kernel_settings:
    keys: [net.ipv4.conf.all.accept_redirects, net.ipv4.tcp_syncookies]
"""

RETURN = r"""
changed_settings:
  description: The settings that differed, and the value that they should have.
  type: dict
  returned: success
  sample: {net.ipv4.tcp_syncookies: "1"}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils import kernel_settings


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"keys": {"type": "list", "elements": "str", "required": True, "no_log": False}},
        supports_check_mode=True,
    )
    try:
        module.exit_json(**kernel_settings.bring(module.params["keys"], check=module.check_mode))
    except kernel_settings.KernelSettingsError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
