# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signing: the root, the issuing CA below it, and the leaves of hosts, with Python's `cryptography`.

Runs in three places: on the controller (root), on the issuing host within a run (`pki_sign`), and in the issuer service
that answers re-enrolments. Works with `cryptography` 43 (Debian 13) and later. What is copied from a request into a
certificate is its public key and nothing else: subject, names, usages and life are the issuer's decision.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import (
    BACKDATE,
    MAXIMUM_LEAF_LIFE,
    CertificateError,
    Profile,
    read,
)
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_USAGES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


class RefusedError(ValueError):
    """A request that breaks the issuer's rules; the message says which, and holds no secret."""


@dataclass(frozen=True)
class Authority:
    """A CA: its certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def load(cls, certificate: bytes, key: bytes) -> Authority:
        """The CA in two PEM texts.

        Raises:
            RefusedError: when they cannot be read or do not belong together.
        """
        try:
            loaded = x509.load_pem_x509_certificate(certificate)
            private = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise RefusedError(f"the CA cannot be read: {error}") from error
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != loaded.public_key():
            raise RefusedError("the CA's key is not that of its certificate")
        return cls(loaded, private)

    def key_pem(self) -> bytes:
        """The key as unencrypted PKCS#8; file permissions protect it."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def certificate_pem(self) -> str:
        """The certificate in PEM."""
        return pem(self.certificate)


def pem(certificate: x509.Certificate) -> str:
    """A certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def load_request(data: bytes) -> x509.CertificateSigningRequest:
    """A PKCS#10 request in PEM or DER whose signature proves that the sender has the key (RFC 2986).

    Only the curves P-256, P-384 and P-521 are accepted.

    Raises:
        RefusedError: when it is no such request.
    """
    load = x509.load_pem_x509_csr if data.lstrip().startswith(b"-----") else x509.load_der_x509_csr
    try:
        request = load(data)
        valid = request.is_signature_valid
        key = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise RefusedError(f"no certificate request: {error}") from error
    if not valid:
        raise RefusedError("the request is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in {"secp256r1", "secp384r1", "secp521r1"}:
        raise RefusedError("the request's key is not on the curve P-256, P-384 or P-521")
    return request


def check_request(request: x509.CertificateSigningRequest, profile: Profile) -> None:
    """A request must carry exactly the subject and the alternative names that are its sender's (RFC 7030, 4.2.2).

    Raises:
        RefusedError: when it carries more, fewer or others.
    """
    if request.subject != _name(profile.common_name):
        raise RefusedError(
            f"the request's subject {request.subject.rfc4514_string()!r} is not CN={profile.common_name}"
        )
    names, usages = x509.SubjectAlternativeName([]), None
    try:
        for extension in request.extensions:
            if isinstance(extension.value, x509.SubjectAlternativeName):
                names = extension.value
            elif isinstance(extension.value, x509.ExtendedKeyUsage):
                usages = set(extension.value)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise RefusedError(f"the request's extensions cannot be read: {error}") from error
    dns = {name.lower() for name in names.get_values_for_type(x509.DNSName)}
    ip = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    if len(list(names)) != len(dns) + len(ip):
        raise RefusedError("the request has names that are neither DNS nor address, or one twice")
    if dns != profile.dns or ip != profile.ip:
        asked, allowed = ", ".join(sorted(dns | ip)), ", ".join(sorted(profile.dns | profile.ip))
        raise RefusedError(f"the request asks for the names [{asked}] where [{allowed}] are its sender's")
    # A request that states usages tells apart two certificates of one host that carry the same names.
    if usages is not None and usages != {_USAGES[usage] for usage in profile.usages}:
        raise RefusedError(f"the request asks for other usages than {', '.join(sorted(profile.usages)) or 'none'}")


# ------------------------------------------------------------------------------------------------------------- signing


def make_root(common_name: str, life: int, now: dt.datetime) -> Authority:
    """A self-signed root on P-384 that may have one CA below it.

    Args:
        common_name: its subject.
        life: seconds.
        now: aware time of signing.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name(common_name)
    builder = _builder(name, name, key.public_key(), _validity(now, life))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
    builder = _identified(builder, key.public_key(), key.public_key())
    return Authority(_signing_usage(builder).sign(key, hashes.SHA384()), key)


def sign_authority(
    request: x509.CertificateSigningRequest, profile: Profile, root: Authority, life: int, now: dt.datetime
) -> x509.Certificate:
    """The issuing CA's certificate: path length 0, so that it signs leaves only.

    Raises:
        RefusedError: when the request is not the profile's, or the root is over.
    """
    check_request(request, profile)
    builder = _below(root, request, profile, life, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return _signing_usage(builder).sign(root.key, hashes.SHA384())


def sign_leaf(
    request: x509.CertificateSigningRequest, profile: Profile, issuer: Authority, life: int, now: dt.datetime
) -> x509.Certificate:
    """A host's certificate for TLS, as server, client or both.

    Args:
        request: who proves to have the key.
        profile: what the certificate says.
        issuer: the issuing CA.
        life: seconds, from its first to its last moment; shorter when the issuer ends before.
        now: aware time of signing.

    Raises:
        RefusedError: when the request is not the profile's, the life too long, or the issuer over.
    """
    check_request(request, profile)
    if life > MAXIMUM_LEAF_LIFE:
        raise RefusedError(f"a leaf may live {MAXIMUM_LEAF_LIFE} s, not {life} s")
    if profile.authority or not profile.usages or not profile.usages <= set(_USAGES):
        raise RefusedError("a leaf is a server, a client or both")
    builder = _below(issuer, request, profile, life, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(
        x509.ExtendedKeyUsage([_USAGES[usage] for usage in sorted(profile.usages)]), critical=False
    )
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in sorted(profile.dns)]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in sorted(profile.ip)]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def _below(
    issuer: Authority, request: x509.CertificateSigningRequest, profile: Profile, life: int, now: dt.datetime
) -> x509.CertificateBuilder:
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise RefusedError("the request's key is not on an elliptic curve")
    end = issuer.certificate.not_valid_after_utc
    if not issuer.certificate.not_valid_before_utc <= now < end:
        raise RefusedError("the CA that should sign is not valid now")
    begin, last = _validity(now, life)
    builder = _builder(_name(profile.common_name), issuer.certificate.subject, key, (begin, min(last, end)))
    return _identified(builder, key, issuer.key.public_key())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, validity: tuple[dt.datetime, dt.datetime]
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(validity[0]).not_valid_after(validity[1])


def _validity(now: dt.datetime, life: int) -> tuple[dt.datetime, dt.datetime]:
    """First and last moment. A little of the life lies in the past, for hosts whose clock is behind."""
    begin = (now - dt.timedelta(seconds=min(BACKDATE, life // 10))).replace(microsecond=0)
    return begin, begin + dt.timedelta(seconds=life)


def _identified(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePublicKey, issuer: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    subject = x509.SubjectKeyIdentifier.from_public_key(key)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer)
    return builder.add_extension(subject, critical=False).add_extension(authority, critical=False)


def _signing_usage(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    return builder.add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


# -------------------------------------------------------------------------------------------------------- re-enrolment


def serials(text: str) -> frozenset[int]:
    """The serial numbers of a revocation list: one in hexadecimal a line, `#` begins a remark.

    Raises:
        RefusedError: naming the line that is no number; a list that is half read would let a revoked key pass.
    """
    found = set()
    for number, line in enumerate(text.splitlines(), 1):
        value = line.split("#", 1)[0].replace(":", "").strip()
        if not value:
            continue
        if not re.fullmatch(r"[0-9A-Fa-f]{1,40}", value):
            raise RefusedError(f"revocation list, line {number}: {value!r} is no serial number in hexadecimal")
        found.add(int(value, 16))
    return frozenset(found)


def grant(profiles: list[Profile]) -> list[dict[str, Any]]:
    """What a host may ask for with its own certificate, as plain data for a file."""
    return [
        {
            "common_name": profile.common_name,
            "dns": sorted(profile.dns),
            "ip": sorted(profile.ip),
            "usages": sorted(profile.usages),
        }
        for profile in profiles
    ]


def granted(items: object) -> list[Profile]:
    """The profiles in a grant.

    Raises:
        RefusedError: when it is not a grant.
    """
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise RefusedError("the grant of this host cannot be read")
    return [
        Profile(
            common_name=str(item.get("common_name", "")),
            dns=frozenset(map(str, item.get("dns") or ())),
            ip=frozenset(map(str, item.get("ip") or ())),
            usages=frozenset(map(str, item.get("usages") or ())),
        )
        for item in items
    ]


@dataclass(frozen=True)
class Policy:
    """Who signs, for how long (seconds), and which serial numbers are refused."""

    issuer: Authority
    life: int
    revoked: frozenset[int] = frozenset()


def reenrol(presented: bytes, body: bytes, policy: Policy, grants: Sequence[Profile] = ()) -> x509.Certificate:
    """The answer to RFC 7030's simplereenroll.

    A certificate renews itself: same subject, names and usages. One that is for servers only cannot authenticate a
    client, so the host's own certificate may ask for what the site granted to that host.

    Args:
        presented: DER of the client certificate that TLS has verified.
        body: the PKCS#10 request, PEM or DER.
        policy: the issuer's rules.
        grants: what the presenting host may ask for besides.

    Raises:
        RefusedError: with the rule that was broken.
    """
    try:
        holder = read(presented)
    except CertificateError as error:
        raise RefusedError(f"the client's certificate cannot be read: {error}") from error
    if holder.serial in policy.revoked:
        raise RefusedError("the client's certificate is revoked")
    now = dt.datetime.now(dt.UTC)
    if not holder.not_before <= now.timestamp() < holder.not_after:
        raise RefusedError("the client's certificate is not valid now")
    if holder.authority or "client" not in holder.usages or holder.other_names:
        raise RefusedError("the client's certificate is not one of a host")
    request = load_request(body)
    own = Profile.of(holder)
    try:
        check_request(request, own)
    except RefusedError:
        for profile in grants:
            if _fits(request, profile):
                return sign_leaf(request, profile, policy.issuer, policy.life, now)
        raise
    return sign_leaf(request, own, policy.issuer, policy.life, now)


def _fits(request: x509.CertificateSigningRequest, profile: Profile) -> bool:
    try:
        check_request(request, profile)
    except RefusedError:
        return False
    return True


def certificates_only(certificates: list[x509.Certificate]) -> bytes:
    """A certs-only CMC simple PKI response in DER (RFC 7030, 4.1.3 and 4.2.3)."""
    return pkcs7.serialize_certificates(certificates, serialization.Encoding.DER)
