# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small real PKI for tests: root, issuing CA, and certificates for a host of the test."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import Profile, Wanted, wanted
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate_files import new_key, signing_request
from ansible_collections.groundplane.onprem.plugins.module_utils.issuer import (
    Authority,
    load_request,
    make_root,
    pem,
    sign_authority,
    sign_leaf,
)

YEAR = 365 * 86400


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass
class Site:
    """A root and an issuing CA, as the role would have made them `age` ago."""

    age: dt.timedelta = dt.timedelta(0)
    root: Authority = field(init=False)
    issuer: Authority = field(init=False)

    def __post_init__(self) -> None:
        made = now() - self.age
        self.root = make_root("test root CA", 10 * YEAR, made)
        key = new_key()
        profile = Profile(common_name="test issuing CA", authority=True)
        request = load_request(signing_request(key, profile).encode())
        certificate = sign_authority(request, profile, self.root, YEAR, made)
        self.issuer = Authority.load(pem(certificate).encode(), key)

    @property
    def anchors(self) -> str:
        return self.root.certificate_pem()

    def issue(self, profile: Profile, life: int = 30 * 86400, at: dt.datetime | None = None) -> tuple[str, bytes]:
        """Chain and key of a new leaf."""
        key = new_key()
        request = load_request(signing_request(key, profile).encode())
        leaf = sign_leaf(request, profile, self.issuer, life, at or now())
        return pem(leaf) + self.issuer.certificate_pem(), key

    def install(self, item: Wanted, life: int = 30 * 86400, at: dt.datetime | None = None) -> str:
        """Put a leaf where a host has it; the chain."""
        chain, key = self.issue(item.profile, life, at)
        directory = Path(item.directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{item.name}.crt").write_text(chain)
        (directory / f"{item.name}.crt").chmod(0o644)
        (directory / f"{item.name}.key").write_bytes(key)
        (directory / f"{item.name}.key").chmod(item.mode)
        return chain


def item(directory: Path, name: str = "host", **changes: Any) -> dict[str, Any]:
    """A wanted certificate in the shape of the contract's view."""
    plain: dict[str, Any] = {
        "name": name,
        "service": name,
        "directory": str(directory),
        "owner": "root",
        "group": "root",
        "mode": "0600",
        "usages": ["server", "client"],
        "common_name": "data1",
        "dns": ["data1", "data1.test.internal"],
        "ip": ["10.0.0.1"],
        "reload": [],
    }
    return plain | changes


def want(directory: Path, name: str = "host", **changes: Any) -> Wanted:
    return wanted(item(directory, name, **changes))
