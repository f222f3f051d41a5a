#!/usr/bin/python3
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Renew the certificates of this host whose time has come: RFC 7030 simplereenroll over mutual TLS.

Started by groundplane-renew.timer. Python's standard library and `openssl` only. A certificate that cannot be renewed
stays in service as it is, the others are still renewed, and the program ends with 1 so that monitoring sees it.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import http.client
import json
import ssl
import sys
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import (
    Certificate,
    CertificateError,
    Wanted,
    as_pem,
    certificates_of_pkcs7,
    pem_blocks,
    read,
    renew_at,
    seconds,
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

# Seconds for one answer of the issuer, and the most bytes that are read of it.
TIMEOUT = 30
MAXIMUM_ANSWER = 1 << 18


class RenewalError(RuntimeError):
    """The issuer did not deliver; the message says why and holds no secret."""


@dataclass(frozen=True)
class Settings:
    """What the role wrote for this host."""

    url: str
    trust_anchor: Path
    identity: str
    renew_before: int | None
    state_directory: str
    certificates: list[Wanted]

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Read the settings.

        Raises:
            CertificateError: when they are not what the role writes.
        """
        try:
            plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                url=str(plain["url"]),
                trust_anchor=Path(plain["trust_anchor"]),
                identity=str(plain["identity"]),
                renew_before=seconds(plain["renew_before"]) if plain["renew_before"] else None,
                state_directory=str(plain["state_directory"]),
                certificates=[wanted(item) for item in plain["certificates"]],
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise CertificateError(f"{path}: {error!r}") from error


def report(text: str, *, failed: bool = False) -> None:
    """One line to the journal; the prefix is its priority (sd-daemon(3))."""
    print(f"{'<3>' if failed else '<6>'}{text}", flush=True)  # noqa: T201


def ask(settings: Settings, identity: str, request: str) -> str:
    """Send one request and return the certificate with its chain, PEM.

    Args:
        settings: where, and whom to trust.
        identity: path without suffix of the pair that authenticates this host.
        request: PKCS#10 in PEM.

    Raises:
        RenewalError: no answer, or not the answer of RFC 7030, 4.2.3.
    """
    url = urllib.parse.urlsplit(settings.url)
    context = ssl.create_default_context(cafile=str(settings.trust_anchor))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    body = base64.encodebytes(pem_blocks(request, "CERTIFICATE REQUEST")[0])
    headers = {"Content-Type": "application/pkcs10", "Content-Transfer-Encoding": "base64"}
    try:
        context.load_cert_chain(f"{identity}.crt", f"{identity}.key", password=lambda: b"")
        connection = http.client.HTTPSConnection(url.hostname or "", url.port, timeout=TIMEOUT, context=context)
        try:
            connection.request("POST", url.path, body=body, headers=headers)
            response = connection.getresponse()
            answer = response.read(MAXIMUM_ANSWER)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RenewalError(f"{settings.url} as {identity}: {error}") from error
    if response.status != http.HTTPStatus.OK:
        text = answer[:300].decode("utf-8", "replace").strip()
        raise RenewalError(f"{settings.url} answered {response.status}: {text}")
    return chain(answer)


def chain(answer: bytes) -> str:
    """The leaf first, then its CAs, out of a certs-only PKCS#7 in base64 whose order means nothing.

    Raises:
        RenewalError: when it does not hold exactly one leaf.
    """
    try:
        ders = certificates_of_pkcs7(base64.b64decode(answer, validate=False))
        authorities = {der: read(der).authority for der in ders}
    except (binascii.Error, CertificateError) as error:
        raise RenewalError(f"the issuer's answer cannot be read: {error}") from error
    leaves = [der for der, authority in authorities.items() if not authority]
    if len(leaves) != 1:
        raise RenewalError(f"the issuer's answer holds {len(leaves)} leaves where one was asked for")
    return "".join(as_pem(der) for der in [*leaves, *(der for der in ders if authorities[der])])


def authenticates(item: Wanted, certificate: Certificate, pair: Pair, now: float) -> bool:
    """Whether a certificate can ask for its own successor."""
    valid = certificate.not_before <= now < certificate.not_after
    return valid and "client" in item.profile.usages and pair.matches(pair.certificate_file, pair.key_file)


def renew(settings: Settings, item: Wanted, *, force: bool) -> str | None:
    """Renew one certificate if it is due; what was done, or None.

    Raises:
        CertificateError, FilesError, RenewalError: the pair in service is unchanged.
    """
    owner = owner_of(item)
    if owner is None:
        return None  # its package is not installed; the role asks for it when it is
    with Pair.opened(item, owner, create=False) as pair:
        if pair is None:
            return None
        if pair.half_done():
            mark(item.reload, settings.state_directory)
            pair.finish()
        certificate = pair.leaf(pair.certificate_file)
        if certificate is None:
            return None  # never issued: names come from the inventory, so the role has to ask
        now = time.time()
        if not force and now < renew_at(certificate, settings.renew_before):
            return None
        identity = item.path if authenticates(item, certificate, pair, now) else settings.identity
        delivered = ask(settings, identity, pair.request())
        pair.stage(delivered, settings.trust_anchor.read_text(encoding="ascii"))
        mark(item.reload, settings.state_directory)
        pair.finish()
        new = read(pem_blocks(delivered)[0])
        end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(new.not_after))
        return f"{item.path}: renewed, serial {new.serial:x}, ends {end}"


def main(arguments: list[str] | None = None) -> int:
    """Renew what is due; 0 when all is well."""
    parser = argparse.ArgumentParser(description="Renew this host's certificates that are due.")
    parser.add_argument("--settings", type=Path, default=Path("/etc/groundplane/pki/certificates.json"))
    parser.add_argument("--force", action="append", default=[], metavar="NAME", help="renew NAME now; `all` for all")
    options = parser.parse_args(arguments)
    force = set(options.force)
    failed = False
    try:
        settings = Settings.load(options.settings)
    except (CertificateError, OSError) as error:
        report(str(error), failed=True)
        return 1
    unknown = force - {"all"} - {item.name for item in settings.certificates}
    if unknown:
        report(f"no certificate {', '.join(sorted(unknown))} on this host", failed=True)
        return 1
    with locked(settings.state_directory):
        for item in settings.certificates:
            try:
                done = renew(settings, item, force=bool({"all", item.name} & force))
            except (CertificateError, FilesError, RenewalError, OSError) as error:
                report(f"{item.path}: not renewed: {error}", failed=True)
                failed = True
                continue
            if done:
                report(done)
        try:
            for unit in reload_marked(settings.state_directory):
                report(f"{unit}: reloaded")
        except (FilesError, OSError) as error:
            report(str(error), failed=True)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
