#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the SSH key pairs that do not exist yet, all in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ssh_keys
short_description: Ed25519 key pairs exist
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Makes each key pair of a list that does not exist yet. An existing private key is never replaced.
attributes:
  check_mode:
    support: full
    description: Reports which keys would be made.
  diff_mode:
    support: none
    description: Keys are not shown.
  idempotent:
    support: full
    description: A second run changes nothing.
options:
  keys:
    description: Path of the private key to the comment of its public key. Directories must exist.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: The operator and the host have keys
  groundplane.onprem.ssh_keys:
    keys:
      /srv/site/id_ed25519: operator
      /srv/site/hosts/data1/ssh_host_ed25519_key: data1
"""

RETURN = r"""
made:
  description: Private keys that were made.
  type: list
  elements: str
  returned: success
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"keys": {"type": "dict", "required": True, "no_log": False}},
        supports_check_mode=True,
    )
    made = [path for path in module.params["keys"] if not (Path(path).exists() and Path(f"{path}.pub").exists())]
    for path in made:
        if module.check_mode:
            continue
        if Path(path).exists():
            module.fail_json(msg=f"{path} has no {path}.pub beside it: restore that with ssh-keygen -y.")
        comment = module.params["keys"][path]
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path]
        status, _, error = module.run_command(argv)
        if status != 0:
            module.fail_json(msg=f"{path}: {error.strip()}")
    module.exit_json(changed=bool(made), made=made)


if __name__ == "__main__":
    main()
