#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask for the certificates that a host needs and does not have."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pki_request
short_description: Keys and signing requests for the certificates that a host lacks
version_added: 0.1.0
description:
  - Looks at all certificates that a host is to have, in one call, and returns a signing request for each that is
    missing, differs from what is wanted, or is due for renewal. Returns none when all are good.
  - A new key is made on the host and staged beside the live one, which stays in place until
    M(groundplane.onprem.pki_install) has the certificate for it. The key never leaves the host and is in no result.
  - Completes what an interrupted run or renewal left half done, reloading included, and puts owners and modes right.
  - Needs C(openssl) and nothing else beyond Python's standard library on the host.
author:
  - The groundplane maintainers
options:
  certificates:
    description:
      - The wanted certificates, as R(the contract lookup,ansible_collections.groundplane.onprem.contract_lookup)'s view
        C(certificates) gives them, with C(name), C(directory), C(owner), C(group), C(mode), C(usages), C(common_name),
        C(dns), C(ip) and C(reload). Other keys are ignored.
      - C(authority=true) asks for an issuing CA.
    type: list
    elements: dict
    required: true
  trust_anchors:
    description:
      - The site's roots, PEM. A certificate that does not lead to one of them is asked for anew.
    type: str
    required: true
  renew_before:
    description:
      - How long before its end a certificate is asked for anew, such as V(10d) or V(12h). Empty means a third of its
        life.
    type: str
    default: ""
  maximum_life:
    description:
      - A certificate that lives longer than this, such as V(30d), is asked for anew. Any life is good when empty.
    type: str
    default: ""
  force:
    description:
      - Names of certificates that are asked for anew although they are good; V(all) means all.
    type: list
    elements: str
    default: []
  assume_owners:
    description:
      - In check mode, count certificates whose owner does not exist yet as well, because a real run would have
        installed the package that makes the user.
    type: bool
    default: false
  renewal_timer:
    description:
      - The systemd timer that renews; RV(renewal_active) tells whether it runs as it is on disk.
    type: str
    default: ""
  state_directory:
    description:
      - Where renewal keeps its lock and its marks, readable by root alone.
    type: path
    default: /var/lib/groundplane/pki
attributes:
  check_mode:
    support: full
    description: Can run in check mode and tells exactly what would be asked for, without making a key.
  diff_mode:
    support: full
    description: Shows why each certificate is asked for.
  idempotent:
    support: full
    description: Asks for nothing when all certificates are good.
"""

EXAMPLES = r"""
- name: The certificates that this host needs are asked for
  groundplane.onprem.pki_request:
    certificates: "{{ lookup('groundplane.onprem.contract', 'certificates') }}"
    trust_anchors: "{{ lookup('ansible.builtin.file', pki_ca_directory ~ '/ca.crt') }}"
    maximum_life: 30d
  register: request
"""

RETURN = r"""
requests:
  description: One item for each certificate that is to be signed; empty when all are good, and in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    path: {description: Directory and name., type: str}
    csr: {description: PKCS#10 request in PEM., type: str}
needed:
  description: Why certificates are asked for, by path; also filled in check mode.
  returned: success
  type: dict
waiting:
  description: Paths of certificates whose owner does not exist yet; ask again after the package is installed.
  returned: success
  type: list
  elements: str
certificates:
  description: What is on the host, by path, each with serial (hexadecimal) and end (seconds since 1970).
  returned: success
  type: dict
reloaded:
  description: Units that an interrupted run had left with an old certificate.
  returned: success
  type: list
  elements: str
renewal_active:
  description: Whether the timer runs with its file on disk; true when none was named.
  returned: success
  type: bool
"""

import contextlib
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import (
    CertificateError,
    Wanted,
    seconds,
    wanted,
)
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate_files import (
    FilesError,
    Owner,
    Pair,
    locked,
    marked,
    owner_of,
    reasons_to_request,
    reload_marked,
    unverified,
)


@dataclass
class Answer:
    """What the module found and did."""

    requests: list[dict[str, str]] = field(default_factory=list)
    needed: dict[str, list[str]] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    certificates: dict[str, dict[str, Any]] = field(default_factory=dict)
    reloaded: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    renewal_active: bool = True

    @property
    def changed(self) -> bool:
        """Whether anything on the host was, or in check mode would be, different afterwards."""
        return bool(self.needed or self.reloaded or self.repaired)


def look(params: dict[str, Any], *, check: bool) -> Answer:
    """All wanted certificates of this host, and requests for those it lacks.

    Raises:
        CertificateError: a wanted certificate is described wrongly.
        FilesError: openssl is missing, or a directory or unit is in the way.
    """
    answer = Answer()
    items = [wanted(item) for item in params["certificates"]]
    owned: list[tuple[Wanted, Owner]] = []
    for item in items:
        owner = owner_of(item)
        if owner is not None:
            owned.append((item, owner))
        elif check and params["assume_owners"]:
            answer.needed[item.path] = ["there is none"]
        else:
            answer.waiting.append(item.path)
    with contextlib.ExitStack() as stack:
        if not check:
            stack.enter_context(locked(params["state_directory"]))
        pairs = []
        for item, owner in owned:
            pair = stack.enter_context(Pair.opened(item, owner, create=not check))
            if pair is None:
                answer.needed[item.path] = ["there is none"]
            else:
                pairs.append(pair)
        put_right(pairs, answer, params["state_directory"], check=check)
        judge(pairs, answer, params)
        if not check:
            answer.requests = [
                {"path": pair.wanted.path, "csr": pair.request()} for pair in pairs if pair.wanted.path in answer.needed
            ]
    answer.renewal_active = timer_runs(params["renewal_timer"])
    return answer


def put_right(pairs: list[Pair], answer: Answer, state_directory: str, *, check: bool) -> None:
    """Finish interrupted swaps and reloads; owners and modes are as declared."""
    for pair in pairs:
        if pair.half_done():
            answer.repaired.append(f"{pair.wanted.path}: an interrupted exchange is finished")
            if not check:
                pair.finish()
        wrong = pair.wrong_attributes()
        answer.repaired += wrong
        if wrong and not check:
            pair.apply_attributes(pair.key_file, pair.certificate_file)
    answer.reloaded = marked(state_directory) if check else reload_marked(state_directory)


def judge(pairs: list[Pair], answer: Answer, params: dict[str, Any]) -> None:
    """Fill in what is there and what is needed."""
    now = time.time()
    renew_before = seconds(params["renew_before"]) if params["renew_before"] else None
    maximum_life = seconds(params["maximum_life"]) if params["maximum_life"] else None
    there = {}
    for pair in pairs:
        certificate = pair.leaf(pair.certificate_file)
        if certificate is not None:
            there[pair.wanted.path] = certificate
            answer.certificates[pair.wanted.path] = {"serial": f"{certificate.serial:x}", "end": certificate.not_after}
    bad = unverified([f"{path}.crt" for path in there], params["trust_anchors"])
    for pair in pairs:
        path, name = pair.wanted.path, pair.wanted.name
        life = None if pair.wanted.profile.authority else maximum_life
        reasons = reasons_to_request(pair, now, renew_before, life, trusted=f"{path}.crt" not in bad)
        if not reasons and {"all", name} & set(params["force"]):
            reasons = ["its exchange was asked for"]
        if reasons:
            answer.needed[path] = reasons


def timer_runs(timer: str) -> bool:
    """Whether a timer is active, starts at boot, and systemd has read its present file."""
    if not timer:
        return True
    command = ["systemctl", "show", "--property=ActiveState,NeedDaemonReload,UnitFileState", timer]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.splitlines()
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return {"ActiveState=active", "NeedDaemonReload=no", "UnitFileState=enabled"} <= set(shown)


def difference(answer: Answer) -> dict[str, str]:
    """The reasons as a diff."""
    have = {path: f"{path}.crt serial {item['serial']}" for path, item in answer.certificates.items()}
    before = [have.get(path, f"{path}.crt absent") for path in sorted(answer.needed)]
    after = [f"{path}.crt new: {'; '.join(reasons)}" for path, reasons in sorted(answer.needed.items())]
    after += answer.repaired + [f"{unit} reloaded" for unit in answer.reloaded]
    return {"before": "".join(f"{line}\n" for line in before), "after": "".join(f"{line}\n" for line in after)}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "certificates": {"type": "list", "elements": "dict", "required": True},
            "trust_anchors": {"type": "str", "required": True},
            "renew_before": {"type": "str", "default": ""},
            "maximum_life": {"type": "str", "default": ""},
            "force": {"type": "list", "elements": "str", "default": []},
            "assume_owners": {"type": "bool", "default": False},
            "renewal_timer": {"type": "str", "default": ""},
            "state_directory": {"type": "path", "default": "/var/lib/groundplane/pki"},
        },
        supports_check_mode=True,
    )
    try:
        answer = look(module.params, check=module.check_mode)
    except (CertificateError, FilesError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=answer.changed,
        requests=answer.requests,
        needed=answer.needed,
        waiting=answer.waiting,
        certificates=answer.certificates,
        reloaded=answer.reloaded,
        renewal_active=answer.renewal_active,
        diff=difference(answer),
    )


if __name__ == "__main__":
    main()
