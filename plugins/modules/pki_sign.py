#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sign a host's requests on the issuing host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pki_sign
short_description: The issuing CA signs what the inventory says a host may have
version_added: 0.1.0
description:
  - Runs on the host of group C(pki), delegated to by each host of the site. The issuing CA's key stays there.
  - A request is signed when it carries exactly the subject, names and usages that are wanted for it. What the
    certificate says comes from O(certificates), which the inventory decides, and from the request only the public key.
  - Also notes what the host may ask the issuer service for later with its own certificate.
author:
  - The groundplane maintainers
requirements:
  - cryptography >= 43 (Debian's python3-cryptography) on the issuing host
options:
  host:
    description:
      - The host that asks, by its inventory name.
    type: str
    required: true
  certificates:
    description:
      - All certificates that are wanted on that host, the same list as for M(groundplane.onprem.pki_request).
    type: list
    elements: dict
    required: true
  requests:
    description:
      - What M(groundplane.onprem.pki_request) returned.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Directory and name.
        type: str
        required: true
      csr:
        description: PKCS#10 request in PEM.
        type: str
        required: true
  life:
    description:
      - How long the certificates live, such as V(30d), which is also the most.
    type: str
    default: 30d
  issuer_directory:
    description:
      - Where C(issuer.crt) and C(issuer.key) are.
    type: path
    default: /etc/groundplane/issuer
  grants_directory:
    description:
      - Where the service reads what each host may ask for.
    type: path
    default: /var/lib/groundplane/issuer/grants
attributes:
  check_mode:
    support: full
    description: Checks the requests and signs nothing in check mode.
  diff_mode:
    support: none
    description: A signature replaces nothing.
  idempotent:
    support: none
    description: Each call makes new certificates; call it for requests only.
"""

EXAMPLES = r"""
- name: The certificates are signed by the issuing CA
  groundplane.onprem.pki_sign:
    host: "{{ inventory_hostname }}"
    certificates: "{{ lookup('groundplane.onprem.contract', 'certificates') }}"
    requests: "{{ request.requests }}"
  delegate_to: "{{ groups['pki'] | first }}"
  register: signed
"""

RETURN = r"""
issued:
  description: What was signed.
  returned: success
  type: list
  elements: dict
  contains:
    path: {description: Directory and name., type: str}
    serial: {description: Serial number in hexadecimal., type: str}
    certificate: {description: The certificate in PEM followed by the issuing CA's., type: str}
"""

import datetime as dt
import json
import os
import tempfile
import traceback
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import (
    MAXIMUM_LEAF_LIFE,
    CertificateError,
    seconds,
    wanted,
)

try:
    from ansible_collections.groundplane.onprem.plugins.module_utils.issuer import (
        Authority,
        RefusedError,
        check_request,
        grant,
        load_request,
        pem,
        sign_leaf,
    )

    MISSING = ""
except ImportError:
    MISSING = traceback.format_exc()


def sign(params: dict[str, Any], *, check: bool) -> list[dict[str, str]]:
    """Sign every request of a host.

    Raises:
        CertificateError: a wanted certificate or the life is described wrongly.
        RefusedError: a request is not what is wanted; nothing is signed then.
    """
    life = seconds(params["life"])
    if life > MAXIMUM_LEAF_LIFE:
        raise CertificateError(f"life {params['life']} is more than the 30d that a leaf may live")
    items = {item.path: item for item in map(wanted, params["certificates"])}
    requests = []
    for request in params["requests"]:
        if request["path"] not in items:
            raise RefusedError(f"{request['path']}: no certificate of that path is wanted on {params['host']}")
        loaded = load_request(request["csr"].encode("ascii", "replace"))
        check_request(loaded, items[request["path"]].profile)
        requests.append((items[request["path"]], loaded))
    if check:
        return []
    directory = Path(params["issuer_directory"])
    issuer = Authority.load((directory / "issuer.crt").read_bytes(), (directory / "issuer.key").read_bytes())
    now = dt.datetime.now(dt.UTC)
    issued = []
    for item, loaded in requests:
        certificate = sign_leaf(loaded, item.profile, issuer, life, now)
        chain = pem(certificate) + issuer.certificate_pem()
        issued.append({"path": item.path, "serial": f"{certificate.serial_number:x}", "certificate": chain})
    note(Path(params["grants_directory"]), params["host"], grant([item.profile for item in items.values()]))
    return issued


def note(directory: Path, host: str, content: list[dict[str, Any]]) -> None:
    """Write what a host may ask for; names and addresses only, which the service's own user reads."""
    if "/" in host or host.startswith("."):
        raise RefusedError(f"{host!r} is not the name of a host")
    for parent in (*reversed(directory.parents), directory):
        if not parent.exists():
            parent.mkdir(mode=0o755)
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=".")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        os.fchmod(file.fileno(), 0o644)
    Path(temporary).replace(directory / f"{host}.json")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "certificates": {"type": "list", "elements": "dict", "required": True},
            "requests": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"path": {"type": "str", "required": True}, "csr": {"type": "str", "required": True}},
            },
            "life": {"type": "str", "default": "30d"},
            "issuer_directory": {"type": "path", "default": "/etc/groundplane/issuer"},
            "grants_directory": {"type": "path", "default": "/var/lib/groundplane/issuer/grants"},
        },
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(msg=missing_required_lib("cryptography"), exception=MISSING)
    try:
        issued = sign(module.params, check=module.check_mode)
    except (CertificateError, RefusedError, OSError) as error:
        module.fail_json(msg=str(error))
    for item in issued:
        module.log(f"issued serial {item['serial']} for {module.params['host']} {item['path']}")
    module.exit_json(changed=bool(issued), issued=issued)


if __name__ == "__main__":
    main()
