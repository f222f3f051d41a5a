# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No mutual TLS port of the site lets in a client without a certificate, with another CA's, or with an expired one."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.lab import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab import Lab

pytestmark = pytest.mark.nodes

# Runs where the issuing CA is: a certificate that it signed, of yesterday; and one of a CA that nobody knows.
FORGE = r"""
import datetime, json, pathlib
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

now = datetime.datetime.now(datetime.timezone.utc)
day = datetime.timedelta(days=1)
issuer = pathlib.Path("/etc/groundplane/issuer")
site = x509.load_pem_x509_certificate((issuer / "issuer.crt").read_bytes())
site_key = serialization.load_pem_private_key((issuer / "issuer.key").read_bytes(), None)

def named(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

def make(subject, signer, signer_key, start, end, key):
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = x509.CertificateBuilder().subject_name(named(subject)).issuer_name(signer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
    return builder.add_extension(usages, False).sign(signer_key, hashes.SHA256())

def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM).decode()

def secret(key):
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()

expired_key, stranger_key, other_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
expired = make("data1", site.subject, site_key, now - 2 * day, now - day, expired_key)
stranger = make("data1", named("Another CA"), other_key, now - day, now + day, stranger_key)
print(json.dumps({
    "expired.crt": pem(expired) + pem(site), "expired.key": secret(expired_key),
    "stranger.crt": pem(stranger), "stranger.key": secret(stranger_key),
}))
"""


def test_only_the_sites_own_come_in(lab: Lab, tmp_path: Path) -> None:
    forged = json.loads(lab.run(lab.groups["pki"][0], "python3 -", stdin=FORGE).stdout)
    variables = tmp_path / "unwelcome.json"
    variables.touch(mode=0o600)
    variables.write_text(json.dumps({"unwelcome": {name: {"content": text} for name, text in forged.items()}}))
    done = subprocess.run(
        ["ansible-playbook", "-i", str(lab.inventory), "tests/integration/mutual_tls.yml", "-e", f"@{variables}"],
        cwd=ROOT,
        env=lab.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    refused = [int(count) for count in re.findall(r"asked \d+ refused (\d+)", done.stdout)]
    assert len(refused) == len({host for members in lab.groups.values() for host in members})
    assert sum(refused) >= 3 * 5 * len(lab.groups["postgres"]), (
        "five mutual ports on each data host refuse three strangers each"
    )
