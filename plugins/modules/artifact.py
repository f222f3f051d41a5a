#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's side of C(groundplane.onprem.artifact); the action plugin of that name looks up the declaration."""

from __future__ import annotations

DOCUMENTATION = r"""
module: artifact
short_description: An artifact of the site is installed from the mirror, verified
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Fetches one artifact from the site's mirror and verifies its SHA-256 against the inventory, or against the bundle's
    list on the controller. The mirror is not asked for the checksum, so one that was broken into cannot change what
    hosts run.
  - A file that is installed already is verified again, and replaced when it is another.
options:
  name:
    description: The artifact's name in the variable C(mirror_artifacts).
    type: str
    required: true
  dest:
    description: Where it is installed.
    type: path
    required: true
  owner:
    description: Owner of the installed file.
    type: str
    default: root
  group:
    description: Group of the installed file.
    type: str
    default: root
  mode:
    description: Permissions of the installed file, as a quoted octal string.
    type: str
    default: "0755"
  mirror:
    description: Base URL of the mirror. The default is the first host of group C(mirror), below C(site_domain).
    type: str
  ca_path:
    description: The authority that vouches for the mirror.
    type: path
    default: /etc/groundplane/pki/ca.crt
attributes:
  check_mode:
    description: Compares what is installed; downloads nothing.
    support: full
  diff_mode:
    description: Shows the checksum before and after.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
"""

EXAMPLES = r"""
- name: The registry client is installed
  groundplane.onprem.artifact:
    name: oras
    dest: /usr/local/bin/oras
"""

RETURN = r"""
sha256:
  description: Checksum of what is installed.
  type: str
  returned: success
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils import artifact as library


def install(module: AnsibleModule) -> dict[str, Any]:
    """Bring the file to what is declared.

    Raises:
        ArtifactError: it cannot be had, or what is offered is another file.
    """
    params = module.params
    dest = Path(params["dest"])
    found = library.file_digest(str(dest))
    accepted: list[str] = params["accepted"]
    wrong = found not in accepted
    after = accepted[0] if wrong else found
    if wrong and not module.check_mode:
        if not dest.parent.is_dir():
            raise library.ArtifactError(f"{params['label']}: {dest.parent} is not there")
        part = Path(library.download(params["label"], params["url"], accepted, str(dest), params["ca_path"]))
        after = library.file_digest(str(part))
        # The permissions are right before the name is: nobody runs it half made.
        attributes = module.load_file_common_arguments({**params, "path": str(part)})
        module.set_fs_attributes_if_different(attributes, changed=False)
        part.replace(dest)
    changed = wrong
    if not wrong or not module.check_mode:
        attributes = module.load_file_common_arguments({**params, "path": str(dest)})
        changed = module.set_fs_attributes_if_different(attributes, changed=wrong)
    result: dict[str, Any] = {"changed": changed, "sha256": after}
    if wrong:
        result["diff"] = {
            "before_header": str(dest),
            "after_header": str(dest),
            "before": f"sha256 {found or 'absent'}\n",
            "after": f"sha256 {after}\n",
        }
    return result


def main() -> None:
    """Read the call, install, answer."""
    module = AnsibleModule(
        argument_spec={
            "label": {"type": "str", "required": True},
            "url": {"type": "str", "required": True},
            "accepted": {"type": "list", "elements": "str", "required": True},
            "dest": {"type": "path", "required": True},
            "ca_path": {"type": "path", "default": "/etc/groundplane/pki/ca.crt"},
        },
        add_file_common_args=True,
        supports_check_mode=True,
    )
    try:
        module.exit_json(**install(module))
    except library.ArtifactError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{module.params['label']}: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
