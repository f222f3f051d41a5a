#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask many TLS ports, as many identities, in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tls_probe
short_description: Asks TLS ports whom they let in
version_added: 0.1.0
author: The groundplane authors (@groundplane)
description:
  - Connects from the host to each target as each identity, all at once, verifies the server's certificate against the
    site's CA and says whether the server let the identity in.
  - A port is asked for TLS as its clients ask, at once or by O(targets[].starttls).
attributes:
  check_mode:
    support: full
    description: Reads only. On a host that has no trust anchor yet the task is skipped.
  diff_mode:
    support: none
    description: Nothing is changed.
  idempotent:
    support: full
    description: Reads only.
options:
  targets:
    description: Where to connect.
    type: list
    elements: dict
    required: true
    suboptions:
      address:
        description: IP address.
        type: str
        required: true
      port:
        description: TCP port.
        type: int
        required: true
      server_name:
        description: Name that the server's certificate must carry.
        type: str
        required: true
      ca:
        description: Trust anchors, PEM, of this target, where they are not O(ca).
        type: path
      starttls:
        description: How the target is asked for TLS where a connection does not begin with it.
        type: str
        choices: [postgres]
      identities:
        description: Identities that ask this target only, besides O(identities).
        type: dict
        default: {}
  identities:
    description: Name of the identity to C({certificate, key}), paths on the host; empty for a client without one.
    type: dict
    required: true
  ca:
    description: Trust anchors, PEM.
    type: path
    default: /etc/groundplane/pki/ca.crt
  timeout:
    description:
      - Seconds for each step of a connection. What has not answered by then is C(silent), and a session that is still
        open by then counts as C(accepted), so that a host which is busy needs some.
    type: float
    default: 10.0
"""

EXAMPLES = r"""
- name: The database lets members in and nobody else
  groundplane.onprem.tls_probe:
    targets: [{address: 10.0.3.11, port: 5432, server_name: data1, starttls: postgres}]
    identities:
      host: {certificate: /etc/groundplane/pki/host.crt, key: /etc/groundplane/pki/host.key}
      nobody: {}
"""

RETURN = r"""
answers:
  description: One for each target and identity.
  type: list
  elements: dict
  returned: success
  sample:
    - {address: 10.0.3.11, port: 5432, identity: host, outcome: accepted, detail: "", version: TLSv1.3, days_left: 29.5}
"""

import ssl
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils.tls_probe import Answer, Identity, context, probe

TARGET = {
    "address": {"type": "str", "required": True},
    "port": {"type": "int", "required": True},
    "server_name": {"type": "str", "required": True},
    "ca": {"type": "path"},
    "starttls": {"type": "str", "choices": ["postgres"]},
    "identities": {"type": "dict", "default": {}},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "targets": {"type": "list", "elements": "dict", "required": True, "options": TARGET},
            "identities": {"type": "dict", "required": True},
            "ca": {"type": "path", "default": "/etc/groundplane/pki/ca.crt"},
            "timeout": {"type": "float", "default": 10.0},
        },
        supports_check_mode=True,
    )
    if module.check_mode and not Path(module.params["ca"]).exists():
        module.exit_json(changed=False, skipped=True, answers=[], msg=f"{module.params['ca']} does not exist yet")
    trusts: dict[tuple[str, str], ssl.SSLContext] = {}

    def trust(ca: str, name: str, files: dict[str, str] | None) -> ssl.SSLContext:
        if (ca, name) not in trusts:
            identity = Identity(name, (files or {}).get("certificate"), (files or {}).get("key"))
            trusts[ca, name] = context(ca, identity)
        return trusts[ca, name]

    for name, files in module.params["identities"].items():
        try:
            trust(module.params["ca"], name, files)
        except (OSError, ssl.SSLError) as error:
            module.fail_json(msg=f"tls_probe: identity {name}, CA {module.params['ca']}: {error}")

    def ask(question: tuple[dict[str, Any], str, dict[str, str] | None]) -> dict[str, Any]:
        target, name, files = question
        ca = target["ca"] or module.params["ca"]
        try:
            trusted = trust(ca, name, files)
        except (OSError, ssl.SSLError) as error:
            answer = Answer("untrusted", f"{ca}, asked as {name}: {error}")
        else:
            answer = probe(
                target["address"],
                target["port"],
                target["server_name"],
                trusted,
                module.params["timeout"],
                starttls=target["starttls"],
            )
        return {"address": target["address"], "port": target["port"], "identity": name, **answer.plain()}

    questions = [
        (target, name, files)
        for target in module.params["targets"]
        for name, files in {**module.params["identities"], **target["identities"]}.items()
    ]
    with ThreadPoolExecutor(max_workers=32) as pool:
        answers = list(pool.map(ask, questions))
    module.exit_json(changed=False, answers=answers)


if __name__ == "__main__":
    main()
