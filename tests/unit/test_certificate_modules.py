# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules of the pki role as they are run, on real files: root, issuing CA, leaves, exchange of the root."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import Profile, read_pem, wanted
from cryptography import x509

from tests.unit.pki_site import item


def run(module: str, arguments: dict[str, Any], *, check: bool = False) -> dict[str, Any]:
    """Run a module's main function with arguments, as Ansible does on a host, and return what it prints."""
    main = importlib.import_module(f"ansible_collections.groundplane.onprem.plugins.modules.{module}").main
    printed = io.StringIO()
    given = {name: value for name, value in arguments.items() if value is not None}
    with (
        patch_module_args(given | {"_ansible_check_mode": check, "_ansible_diff": True}),
        contextlib.redirect_stdout(printed),
        pytest.raises(SystemExit),
    ):
        main()
    result: dict[str, Any] = json.loads(printed.getvalue())
    assert "PRIVATE KEY" not in printed.getvalue()
    return result


@dataclass
class Machines:
    """Controller, issuing host and one host, each a directory."""

    base: Path
    certificates: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ca = self.base / "ca"
        self.issuer = self.base / "issuer"
        self.certificates = self.certificates or [
            item(self.base / "pki"),
            item(self.base / "db", "db", common_name="db"),
        ]

    def root(self, *, check: bool = False, **more: Any) -> dict[str, Any]:
        names = {"common_name": "test root CA", "issuer_common_name": "test issuing CA"}
        return run("pki_root", {"directory": str(self.ca), **names, **more}, check=check)

    def request(
        self, certificates: list[dict[str, Any]], anchors: str, *, check: bool = False, **more: Any
    ) -> dict[str, Any]:
        common = {"certificates": certificates, "trust_anchors": anchors, "state_directory": str(self.base / "state")}
        return run("pki_request", common | more, check=check)

    def install(self, certificates: list[dict[str, Any]], issued: Any, anchors: str) -> dict[str, Any]:
        return run(
            "pki_install",
            {
                "certificates": certificates,
                "issued": issued,
                "trust_anchors": anchors,
                "state_directory": str(self.base / "state"),
            },
        )

    def sign(self, requests: Any, **more: Any) -> dict[str, Any]:
        return run(
            "pki_sign",
            {
                "host": "data1",
                "certificates": self.certificates,
                "requests": requests,
                "issuer_directory": str(self.issuer),
                "grants_directory": str(self.base / "grants"),
                **more,
            },
        )

    def converge(self, **options: Any) -> tuple[bool, dict[str, Any]]:
        """What the role does; whether anything changed, and the host's part of it."""
        root = self.root(rollover=options.pop("rollover", None))
        changed = root["changed"]
        authority = [
            item(self.issuer, "issuer", authority=True, common_name="test issuing CA", dns=[], ip=[], usages=[])
        ]
        asked = self.request(authority, root["root"])
        changed |= asked["changed"]
        if asked["requests"]:
            signed = self.root(request=asked["requests"][0])
            self.install(authority, signed["issued"], root["root"])
        asked = self.request(self.certificates, root["anchors"], **options)
        changed |= asked["changed"]
        if asked["requests"]:
            signed = self.sign(asked["requests"])
            assert "failed" not in signed, signed
            installed = self.install(self.certificates, signed["issued"], root["anchors"])
            assert "failed" not in installed, installed
        return changed, asked

    def serials(self) -> dict[str, int]:
        leaves = {plain["name"]: Path(f"{wanted(plain).path}.crt") for plain in self.certificates}
        return {name: read_pem(path.read_text())[0].serial for name, path in leaves.items()}

    def verified(self, anchors: str) -> set[str]:
        """The certificates that lead to some anchors."""
        (self.base / "anchors").write_text(anchors)
        good = set()
        for plain in self.certificates:
            path = f"{wanted(plain).path}.crt"
            command = ["openssl", "verify", "-CAfile", str(self.base / "anchors"), "-untrusted", path, path]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                good.add(plain["name"])
        return good


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


def test_a_site_from_nothing_and_a_second_run_that_changes_nothing(machines: Machines) -> None:
    changed, _ = machines.converge()
    assert changed
    for plain in machines.certificates:
        chain = read_pem(Path(f"{wanted(plain).path}.crt").read_text())
        assert Profile.of(chain[0]) == wanted(plain).profile
        assert chain[1].common_name == "test issuing CA"
    assert machines.verified((machines.ca / "ca.crt").read_text()) == {"host", "db"}
    serials = machines.serials()
    changed, asked = machines.converge()
    assert not changed
    assert asked["requests"] == []
    assert asked["diff"] == {"before": "", "after": ""}
    assert machines.serials() == serials
    grants = json.loads((machines.base / "grants/data1.json").read_text())
    assert [entry["common_name"] for entry in grants] == ["data1", "db"]


def test_check_mode_tells_what_a_run_would_do_and_does_none_of_it(machines: Machines) -> None:
    root = machines.root(check=True)
    assert (root["changed"], root["root"], root["anchors"]) == (True, "", "")
    asked = machines.request(machines.certificates, "", check=True)
    assert asked["changed"]
    assert len(asked["needed"]) == 2
    assert asked["requests"] == []
    assert list(machines.base.iterdir()) == []


def test_a_missing_owner_waits_and_in_check_mode_may_be_assumed(machines: Machines) -> None:
    machines.certificates[1]["owner"] = "nobody-of-that-name"
    path = wanted(machines.certificates[1]).path
    _, asked = machines.converge()
    assert asked["waiting"] == [path]
    again = machines.request(machines.certificates, machines.root()["anchors"])
    assert (again["changed"], again["waiting"]) == (False, [path])
    assumed = machines.request(machines.certificates, machines.root()["anchors"], check=True, assume_owners=True)
    assert list(assumed["needed"]) == [path]


def test_names_that_change_are_asked_for_and_only_those(machines: Machines) -> None:
    machines.converge()
    before = machines.serials()
    machines.certificates[1]["dns"] = ["data1", "db.test.internal"]
    changed, asked = machines.converge()
    assert changed
    assert list(asked["needed"]) == [wanted(machines.certificates[1]).path]
    assert machines.serials()["host"] == before["host"]
    assert machines.serials()["db"] != before["db"]


@pytest.mark.parametrize(("force", "exchanged"), [(["all"], {"host", "db"}), (["db"], {"db"}), (["other"], set())])
def test_forced_exchange(machines: Machines, force: list[str], exchanged: set[str]) -> None:
    machines.converge()
    before = machines.serials()
    machines.converge(force=force)
    assert {name for name, serial in machines.serials().items() if serial != before[name]} == exchanged


def test_what_a_host_asks_for_beyond_the_inventory_is_not_signed(machines: Machines) -> None:
    machines.converge()
    wider = [machines.certificates[0] | {"dns": ["data1", "evil.test.internal"]}]
    asked = machines.request(wider, machines.root()["anchors"])
    signed = machines.sign(asked["requests"])
    assert signed["failed"]
    assert "evil.test.internal" in signed["msg"]
    unknown = machines.sign([{"path": "/etc/other", "csr": asked["requests"][0]["csr"]}])
    assert "no certificate of that path" in unknown["msg"]
    too_long = machines.sign(asked["requests"], life="31d")
    assert "more than the 30d" in too_long["msg"]


def test_the_root_is_private_and_never_replaced(machines: Machines) -> None:
    machines.converge()
    key = machines.ca / "root/ca.key"
    assert machines.ca.stat().st_mode & 0o777 == 0o700
    assert key.stat().st_mode & 0o777 == 0o600
    before = {path: path.read_bytes() for path in machines.ca.rglob("*") if path.is_file()}
    assert not machines.root()["changed"]
    assert {path: path.read_bytes() for path in machines.ca.rglob("*") if path.is_file()} == before
    key.chmod(0o640)
    assert "others than its owner" in machines.root()["msg"]
    key.chmod(0o600)
    (machines.ca / "root").rename(machines.base / "lost")
    assert "restore it from its copy" in machines.root()["msg"]
    root = x509.load_pem_x509_certificate((machines.base / "lost/ca.crt").read_bytes())
    assert (root.not_valid_after_utc - root.not_valid_before_utc).days == 3650


def test_the_root_is_exchanged_in_three_steps_without_a_certificate_that_nobody_trusts(machines: Machines) -> None:
    machines.converge()
    first = (machines.ca / "root/ca.crt").read_text()
    assert "prepare first" in machines.root(rollover="switch")["msg"]
    assert not machines.root(rollover="finish")["changed"]

    assert machines.root(rollover="prepare", check=True)["changed"]
    assert not (machines.ca / "next").exists()
    changed, asked = machines.converge(rollover="prepare")
    both = (machines.ca / "ca.crt").read_text()
    assert changed
    assert both.startswith(first)
    assert both != first
    assert asked["requests"] == []  # signing goes on as before
    assert "switch first" in machines.root(rollover="finish")["msg"]

    changed, asked = machines.converge(rollover="switch")
    second = (machines.ca / "root/ca.crt").read_text()
    assert second != first
    assert asked["requests"] == []  # old leaves are trusted still
    assert machines.verified(first) == {"host", "db"}
    machines.converge(force=["all"])
    assert machines.verified(second) == {"host", "db"}
    assert machines.verified(first) == set()

    changed, asked = machines.converge(rollover="finish")
    assert changed
    assert (machines.ca / "ca.crt").read_text() == second
    assert asked["requests"] == []
    assert not machines.root(rollover="finish")["changed"]
    changed, _ = machines.converge()
    assert not changed


def test_an_exchange_that_stops_between_two_renames_is_completed(machines: Machines) -> None:
    machines.converge()
    machines.converge(rollover="prepare")
    following = (machines.ca / "next/ca.crt").read_text()
    (machines.ca / "root").rename(machines.ca / "previous")
    assert "take the step switch again" in machines.root()["msg"]
    machines.converge(rollover="switch")
    assert (machines.ca / "root/ca.crt").read_text() == following


def test_a_leaf_that_was_left_under_the_old_root_is_exchanged_when_that_is_dropped(machines: Machines) -> None:
    machines.converge()
    for step in ("prepare", "switch"):
        machines.converge(rollover=step)
    _, asked = machines.converge(rollover="finish")
    assert len(asked["needed"]) == 2
    assert machines.verified((machines.ca / "root/ca.crt").read_text()) == {"host", "db"}
