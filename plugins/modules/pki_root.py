#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The offline root of a site, on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pki_root
short_description: A site's root CA exists on the controller and signs the issuing CA
version_added: 0.1.0
description:
  - Runs on the controller. The root's key is made there once, is never overwritten, never leaves, and is in no result.
  - Signs the request of the issuing CA when one is given.
  - A root is exchanged in three steps, each of which may be run again. With O(rollover=prepare) the next one is trusted
    too, O(rollover=switch) signs with it, and after O(rollover=finish) the previous one is trusted no longer.
author:
  - The groundplane maintainers
requirements:
  - cryptography on the controller
options:
  directory:
    description:
      - Where C(root/ca.key), C(root/ca.crt) and C(ca.crt) are; mode 0700, keys 0600. Keep a copy of it elsewhere.
    type: path
    required: true
  common_name:
    description:
      - Subject of a root that is made.
    type: str
    required: true
  life:
    description:
      - Life of a root that is made.
    type: str
    default: 3650d
  request:
    description:
      - Request of the issuing CA, as M(groundplane.onprem.pki_request) returned it; without one nothing is signed.
    type: dict
    suboptions:
      path:
        description: Directory and name.
        type: str
        required: true
      csr:
        description: PKCS#10 request in PEM.
        type: str
        required: true
  issuer_common_name:
    description:
      - Subject of the issuing CA; its request must carry it.
    type: str
    default: ""
  issuer_life:
    description:
      - Life of the issuing CA.
    type: str
    default: 365d
  rollover:
    description:
      - The step of an exchange of the root that is to be taken.
    type: str
    choices: [prepare, switch, finish]
attributes:
  check_mode:
    support: full
    description: Makes and signs nothing in check mode.
  diff_mode:
    support: none
    description: What changes is a key.
  idempotent:
    support: full
    description: A root that exists is left as it is.
"""

EXAMPLES = r"""
- name: The root exists
  groundplane.onprem.pki_root:
    directory: "{{ pki_ca_directory }}"
    common_name: "{{ site_name }} root CA"
  delegate_to: localhost
"""

RETURN = r"""
root:
  description: The root's certificate, PEM; empty in check mode when there is none yet.
  returned: success
  type: str
anchors:
  description: All roots that hosts are to trust, PEM.
  returned: success
  type: str
issued:
  description: The issuing CA's certificate, as M(groundplane.onprem.pki_install) takes it.
  returned: success
  type: list
  elements: dict
"""

import datetime as dt
import os
import secrets
import stat
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import CertificateError, Profile, seconds

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    from ansible_collections.groundplane.onprem.plugins.module_utils.issuer import (
        Authority,
        RefusedError,
        load_request,
        make_root,
        pem,
        sign_authority,
    )

    MISSING = ""
except ImportError:
    MISSING = traceback.format_exc()

# An issuing CA that is about to be signed should not be cut short by its root.
WARNING_BEFORE = 2 * 365 * 86400


class Directory:
    """A folder for each CA, so that it is whole or absent: `root` signs, `next` and `previous` are trusted only."""

    def __init__(self, path: Path) -> None:
        """Name the files; touch none."""
        self.path = path
        self.anchors = path / "ca.crt"

    def authority(self, name: str) -> Authority | None:
        """A CA of the directory; None when it is not there.

        Raises:
            RefusedError: when others can read its key, or it cannot be read.
        """
        folder = self.path / name
        if not folder.exists():
            return None
        key = folder / "ca.key"
        if stat.S_IMODE(key.stat().st_mode) & 0o077:
            raise RefusedError(f"{key} may be read by others than its owner: make it 0600")
        return Authority.load((folder / "ca.crt").read_bytes(), key.read_bytes())

    def make(self, name: str, common_name: str, life: int) -> Authority:
        """A new CA; its folder gets its name last, which fails rather than replaces one."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        made = make_root(common_name, life, dt.datetime.now(dt.UTC))
        folder = self.path / f".{name}.{secrets.token_hex(6)}"
        folder.mkdir(mode=0o700)
        self._write(folder / "ca.key", made.key_pem())
        self._write(folder / "ca.crt", made.certificate_pem().encode("ascii"))
        folder.rename(self.path / name)
        return made

    def _write(self, path: Path, content: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def move(self, source: str, target: str) -> None:
        """Rename a CA."""
        (self.path / source).rename(self.path / target)

    def trusted(self) -> str:
        """The certificates of root, next and previous that are there, PEM."""
        files = [self.path / name / "ca.crt" for name in ("root", "next", "previous")]
        return "".join(file.read_text(encoding="ascii") for file in files if file.exists())

    def publish(self) -> bool:
        """`ca.crt` has what hosts are to trust; whether it had to be written."""
        content = self.trusted()
        if self.anchors.exists() and self.anchors.read_text(encoding="ascii") == content:
            return False
        temporary = self.path / f".ca.crt.{secrets.token_hex(6)}"
        self._write(temporary, content.encode("ascii"))
        temporary.replace(self.anchors)
        return True


def roll(directory: Directory, step: str, common_name: str, life: int, *, check: bool) -> bool:
    """Take one step of an exchange of the root; whether something had, or in check mode has, to be done.

    Raises:
        RefusedError: when the step before was not taken.
    """
    following, previous = directory.authority("next"), directory.authority("previous")
    if step == "prepare":
        needed = not following and not previous
        if needed and not check:
            directory.make("next", f"{common_name} {dt.datetime.now(dt.UTC):%Y-%m-%d}", life)
        return needed
    if step == "switch":
        if not following and not previous:
            raise RefusedError("there is no next root: take the step prepare first and run the site")
        if following and not check:
            if directory.authority("root"):
                directory.move("root", "previous")
            directory.move("next", "root")
        return bool(following)
    if following:
        raise RefusedError("the next root does not sign yet: take the step switch first and rotate all certificates")
    if previous and not check:
        directory.move("previous", f"retired-{previous.certificate.serial_number:x}")
    return bool(previous)


def ensure(params: dict[str, Any], warn: Callable[[str], None], *, check: bool) -> dict[str, Any]:
    """The root exists, the step is taken, the request is signed.

    Raises:
        CertificateError: a life is described wrongly.
        RefusedError: the directory or the request is not as it should be.
    """
    directory = Directory(Path(params["directory"]))
    life = seconds(params["life"])
    changed = False
    if params["rollover"]:
        changed = roll(directory, params["rollover"], params["common_name"], life, check=check)
    root = directory.authority("root")
    if root is None:
        if directory.trusted() or directory.anchors.exists():
            raise RefusedError(
                f"{directory.path} had a root and has none: restore it from its copy, or take the step switch again"
            )
        changed = True
        if not check:
            root = directory.make("root", params["common_name"], life)
    result: dict[str, Any] = {"root": root.certificate_pem() if root else "", "issued": []}
    if not check and root:
        changed = directory.publish() or changed
        now = dt.datetime.now(dt.UTC)
        left = root.certificate.not_valid_after_utc - now
        if left < dt.timedelta(seconds=WARNING_BEFORE):
            warn(f"the root CA ends in {left.days} days: exchange it, see docs/runbooks/certificates.md")
        if params["request"]:
            request = load_request(params["request"]["csr"].encode("ascii", "replace"))
            profile = Profile(common_name=params["issuer_common_name"], authority=True)
            certificate = sign_authority(request, profile, root, seconds(params["issuer_life"]), now)
            result["issued"] = [{"path": params["request"]["path"], "certificate": pem(certificate)}]
            changed = True
    return {**result, "changed": changed, "anchors": directory.trusted()}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "common_name": {"type": "str", "required": True},
            "life": {"type": "str", "default": "3650d"},
            "request": {
                "type": "dict",
                "options": {"path": {"type": "str", "required": True}, "csr": {"type": "str", "required": True}},
            },
            "issuer_common_name": {"type": "str", "default": ""},
            "issuer_life": {"type": "str", "default": "365d"},
            "rollover": {"type": "str", "choices": ["prepare", "switch", "finish"]},
        },
        supports_check_mode=True,
    )
    if MISSING:
        module.fail_json(msg=missing_required_lib("cryptography"), exception=MISSING)
    try:
        result = ensure(module.params, module.warn, check=module.check_mode)
    except (CertificateError, RefusedError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
