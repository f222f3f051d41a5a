#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put delivered certificates into service."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pki_install
short_description: Delivered certificates are verified, exchanged with the live ones, and services reloaded
version_added: 0.1.0
description:
  - Takes the certificates that an issuer signed for the requests of M(groundplane.onprem.pki_request).
  - Each is checked against what is wanted, the site's trust anchors and the staged key. Only when all have passed, keys
    and certificates are exchanged and the units that declared them are reloaded, or restarted where they cannot reload.
    Units that do not run are left alone.
author:
  - The groundplane maintainers
options:
  certificates:
    description:
      - The wanted certificates, the same list as for M(groundplane.onprem.pki_request).
    type: list
    elements: dict
    required: true
  issued:
    description:
      - What the issuer delivered.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Directory and name.
        type: str
        required: true
      serial:
        description: The certificate's serial number, for people.
        type: str
      certificate:
        description: The certificate in PEM, followed by the issuing CA's.
        type: str
        required: true
  trust_anchors:
    description:
      - The site's roots, PEM.
    type: str
    required: true
  state_directory:
    description:
      - Where renewal keeps its lock and its marks, readable by root alone.
    type: path
    default: /var/lib/groundplane/pki
attributes:
  check_mode:
    support: full
    description: Can run in check mode; there is nothing to install then, because nothing was signed.
  diff_mode:
    support: full
    description: Shows old and new serial numbers.
  idempotent:
    support: full
    description: A certificate that is already live is not installed again.
"""

EXAMPLES = r"""
- name: The certificates that were signed are in service
  groundplane.onprem.pki_install:
    certificates: "{{ lookup('groundplane.onprem.contract', 'certificates') }}"
    issued: "{{ signed.issued }}"
    trust_anchors: "{{ lookup('ansible.builtin.file', pki_ca_directory ~ '/ca.crt') }}"
"""

RETURN = r"""
installed:
  description: What is live now, by path, each with serial (hexadecimal) and end (seconds since 1970).
  returned: success
  type: dict
reloaded:
  description: Units that were reloaded.
  returned: success
  type: list
  elements: str
"""

import contextlib
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import (
    CertificateError,
    read_pem,
    wanted,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate_files import (
    FilesError,
    Pair,
    locked,
    mark,
    owner_of,
    reload_marked,
)


def install(params: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Stage all, then exchange all, then reload.

    Raises:
        CertificateError: a wanted certificate is described wrongly.
        FilesError: a delivered certificate is refused, or a unit cannot be reloaded.
    """
    items = {item.path: item for item in map(wanted, params["certificates"])}
    installed: dict[str, dict[str, Any]] = {}
    before: list[str] = []
    reloaded: list[str] = []
    with contextlib.ExitStack() as stack:
        if not check:
            stack.enter_context(locked(params["state_directory"]))
        pairs = []
        for issued in params["issued"]:
            path, chain = issued["path"], issued["certificate"]
            if path not in items:
                raise FilesError(f"{path}: no certificate of that path is wanted here")
            owner = owner_of(items[path])
            if owner is None:
                raise FilesError(f"{path}: its owner {items[path].owner}:{items[path].group} does not exist")
            new = read_pem(chain)[0]
            pair = stack.enter_context(Pair.opened(items[path], owner, create=not check))
            old = pair.leaf(pair.certificate_file) if pair else None
            if old is not None and (old.serial, old.public_key) == (new.serial, new.public_key):
                continue
            before.append(f"{path}.crt {f'serial {old.serial:x}' if old else 'absent'}")
            installed[path] = {"serial": f"{new.serial:x}", "end": new.not_after}
            if pair and not check:
                pair.stage(chain, params["trust_anchors"])
                pairs.append(pair)
        if not check:
            mark({unit for pair in pairs for unit in pair.wanted.reload}, params["state_directory"])
            for pair in pairs:
                pair.finish()
            reloaded = reload_marked(params["state_directory"])
    after = [f"{path}.crt serial {item['serial']}" for path, item in installed.items()]
    return {
        "changed": bool(installed or reloaded),
        "installed": installed,
        "reloaded": reloaded,
        "diff": {"before": "".join(f"{line}\n" for line in before), "after": "".join(f"{line}\n" for line in after)},
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "certificates": {"type": "list", "elements": "dict", "required": True},
            "issued": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "str", "required": True},
                    "serial": {"type": "str"},
                    "certificate": {"type": "str", "required": True},
                },
            },
            "trust_anchors": {"type": "str", "required": True},
            "state_directory": {"type": "path", "default": "/var/lib/groundplane/pki"},
        },
        supports_check_mode=True,
    )
    try:
        result = install(module.params, check=module.check_mode)
    except (CertificateError, FilesError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
