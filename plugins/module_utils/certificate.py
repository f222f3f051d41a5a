# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a certificate says, what was wanted, and when it is to be renewed.

Pure: bytes in, values out; standard library only, because every host of a site runs it (a copy of this file is
installed beside the renewal program). X.509 is read here with a small DER reader instead of one `openssl` process a
question, so that a look at all certificates of a host costs milliseconds. It reads, it does not verify: signatures and
chains are OpenSSL's business.
"""

# ruff: noqa: PLR2004  (tags and lengths are numbers of X.690 itself)
from __future__ import annotations

import base64
import binascii
import calendar
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

DAY = 86400
# A leaf lives 30 days or less: a stolen key is worth little, and renewal is exercised all the time.
MAXIMUM_LEAF_LIFE = 30 * DAY
# Clocks of hosts differ a little; a certificate begins this long before it is signed. Part of its life, not on top.
BACKDATE = 300

COMMON_NAME = "2.5.4.3"
SUBJECT_ALTERNATIVE_NAME = "2.5.29.17"
BASIC_CONSTRAINTS = "2.5.29.19"
EXTENDED_KEY_USAGE = "2.5.29.37"
SIGNED_DATA = "1.2.840.113549.1.7.2"
USAGES = {"1.3.6.1.5.5.7.3.1": "server", "1.3.6.1.5.5.7.3.2": "client"}

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": DAY}
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----\s+([A-Za-z0-9+/=\s]+?)-----END \1-----")
# Letters that need no quoting in `openssl req -subj`, so that a name can never become a second attribute.
_COMMON_NAME = re.compile(r"[A-Za-z0-9_*][A-Za-z0-9 ._@:*-]{0,63}")
_DNS_NAME = re.compile(
    r"(?=.{1,253}\Z)(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*"
)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

_BOOLEAN, _INTEGER, _BIT_STRING, _OCTET_STRING, _OID = 0x01, 0x02, 0x03, 0x04, 0x06
_UTC_TIME, _GENERALIZED_TIME, _SEQUENCE, _SET = 0x17, 0x18, 0x30, 0x31
_STRINGS = {0x0C: "utf-8", 0x13: "ascii", 0x14: "latin-1", 0x16: "ascii", 0x1E: "utf-16-be"}


class CertificateError(ValueError):
    """Bytes that are no certificate, or a wish that no certificate can fulfil."""


# ----------------------------------------------------------------------------------------------------------- durations


def seconds(text: str) -> int:
    """A duration such as `90s`, `30m`, `12h` or `30d` in seconds.

    Raises:
        CertificateError: when it is not a whole positive number with one of those units.
    """
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if match is None or int(match[1]) == 0:
        raise CertificateError(f"{text!r} is not a duration such as 90s, 30m, 12h or 30d")
    return int(match[1]) * _UNITS[match[2]]


# ---------------------------------------------------------------------------------------------------------- DER reader


@dataclass(frozen=True)
class _Node:
    """One tag-length-value of DER (X.690): its tag, its content and all of its bytes."""

    tag: int
    content: bytes
    encoded: bytes

    def children(self) -> list[_Node]:
        nodes = []
        rest = self.content
        while rest:
            node = _read(rest)
            nodes.append(node)
            rest = rest[len(node.encoded) :]
        return nodes


def _read(data: bytes) -> _Node:
    """The first node of some bytes; definite lengths only, as DER demands (X.690, 10.1)."""
    if len(data) < 2:
        raise CertificateError("DER ends in the middle of a value")
    if data[0] & 0x1F == 0x1F:
        raise CertificateError("DER with a multi-byte tag")
    length, start = data[1], 2
    if length >= 0x80:
        octets = length & 0x7F
        if not 1 <= octets <= 4 or len(data) < 2 + octets:
            raise CertificateError("DER with an indefinite or cut length")
        start = 2 + octets
        length = int.from_bytes(data[2:start], "big")
    if len(data) < start + length:
        raise CertificateError("DER ends in the middle of a value")
    return _Node(data[0], data[start : start + length], data[: start + length])


def _expect(node: _Node, tag: int, what: str) -> _Node:
    if node.tag != tag:
        raise CertificateError(f"{what}: DER tag {node.tag:#x} where {tag:#x} belongs")
    return node


def _oid(content: bytes) -> str:
    if not content or content[-1] & 0x80:
        raise CertificateError("a cut object identifier")
    arcs, value = [], 0
    for octet in content:
        value = value << 7 | octet & 0x7F
        if not octet & 0x80:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, [first, arcs[0] - 40 * first, *arcs[1:]]))


def _time(node: _Node) -> int:
    """Seconds since 1970 of a UTCTime or GeneralizedTime (RFC 5280, 4.1.2.5)."""
    text = node.content.decode("ascii", "replace")
    if node.tag == _UTC_TIME and re.fullmatch(r"[0-9]{12}Z", text):
        text = ("19" if text[0] >= "5" else "20") + text
    elif node.tag != _GENERALIZED_TIME or not re.fullmatch(r"[0-9]{14}Z", text):
        raise CertificateError(f"{text!r} is not a time of RFC 5280")
    parts = [int(text[0:4]), *(int(text[at : at + 2]) for at in range(4, 14, 2))]
    if not (parts[0] and 1 <= parts[1] <= 12 and 1 <= parts[2] <= 31):
        raise CertificateError(f"{text!r} is not a time of RFC 5280")
    return calendar.timegm((*parts, 0, 0, 0))


def _subject(node: _Node) -> tuple[tuple[str, str], ...]:
    """The attributes of a distinguished name in their order, as (object identifier, value)."""
    attributes = []
    for relative in node.children():
        for attribute in relative.children():
            parts = attribute.children()
            if len(parts) != 2 or parts[1].tag not in _STRINGS:
                raise CertificateError("a name with an attribute that is not text")
            try:
                value = parts[1].content.decode(_STRINGS[parts[1].tag])
            except UnicodeDecodeError as error:
                raise CertificateError("a name that is not valid text") from error
            attributes.append((_oid(parts[0].content), value))
    return tuple(attributes)


# -------------------------------------------------------------------------------------------------------- certificates


@dataclass(frozen=True)
class Certificate:
    """What matters of an X.509 certificate; times in seconds since 1970."""

    serial: int
    subject: tuple[tuple[str, str], ...]
    issuer: tuple[tuple[str, str], ...]
    not_before: int
    not_after: int
    public_key: bytes
    dns: frozenset[str] = frozenset()
    ip: frozenset[str] = frozenset()
    other_names: int = 0
    usages: frozenset[str] = frozenset()
    authority: bool = False

    @property
    def common_name(self) -> str:
        """The last common name of the subject; empty when it has none."""
        return next((value for oid, value in reversed(self.subject) if oid == COMMON_NAME), "")

    @property
    def life(self) -> int:
        """Seconds from the first to the last moment of validity."""
        return self.not_after - self.not_before


def pem_blocks(text: str, label: str = "CERTIFICATE") -> list[bytes]:
    """The DER content of each PEM block with that label, in order (RFC 7468)."""
    blocks = []
    for match in _PEM.finditer(text):
        if match[1] != label:
            continue
        try:
            blocks.append(base64.b64decode("".join(match[2].split()), validate=True))
        except binascii.Error as error:
            raise CertificateError(f"a PEM block that is not base64: {error}") from error
    return blocks


def as_pem(der: bytes, label: str = "CERTIFICATE") -> str:
    """DER in PEM armour with lines of 64 characters (RFC 7468)."""
    text = base64.b64encode(der).decode("ascii")
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def read(der: bytes) -> Certificate:
    """The certificate in some DER bytes (RFC 5280, 4.1).

    Raises:
        CertificateError: when the bytes are not one certificate.
    """
    outer = _expect(_read(der), _SEQUENCE, "certificate")
    if len(outer.encoded) != len(der):
        raise CertificateError("bytes follow the certificate")
    fields = _expect((outer.children() or [outer])[0], _SEQUENCE, "certificate").children()
    if fields and fields[0].tag == 0xA0:  # version
        fields = fields[1:]
    if len(fields) < 6:
        raise CertificateError("a certificate with too few fields")
    serial, _signature, issuer, validity, subject, public_key = fields[:6]
    times = validity.children()
    if len(times) != 2:
        raise CertificateError("a certificate without its two times")
    extensions: dict[str, Any] = {}
    for field in fields[6:]:
        if field.tag == 0xA3:
            extensions = _extensions(field)
    return Certificate(
        serial=int.from_bytes(_expect(serial, _INTEGER, "serial").content, "big", signed=True),
        subject=_subject(subject),
        issuer=_subject(issuer),
        not_before=_time(times[0]),
        not_after=_time(times[1]),
        public_key=public_key.encoded,
        **extensions,
    )


def _extensions(field: _Node) -> dict[str, Any]:
    """Names, usages and authority out of the extensions; the others are OpenSSL's to judge."""
    found: dict[str, Any] = {}
    for extension in _read(field.content).children():
        parts = extension.children()
        if len(parts) < 2:
            raise CertificateError("an extension without a value")
        oid, value = _oid(parts[0].content), _expect(parts[-1], _OCTET_STRING, "extension").content
        if oid == SUBJECT_ALTERNATIVE_NAME:
            found.update(_names(_read(value)))
        elif oid == EXTENDED_KEY_USAGE:
            found["usages"] = frozenset(
                USAGES.get(_oid(usage.content), _oid(usage.content)) for usage in _read(value).children()
            )
        elif oid == BASIC_CONSTRAINTS:
            found["authority"] = any(node.tag == _BOOLEAN and any(node.content) for node in _read(value).children())
    return found


def _names(sequence: _Node) -> dict[str, Any]:
    dns, ip, other = set(), set(), 0
    for name in sequence.children():
        if name.tag == 0x82:
            dns.add(name.content.decode("ascii", "replace").lower())
        elif name.tag == 0x87 and len(name.content) in {4, 16}:
            ip.add(str(ipaddress.ip_address(name.content)))
        else:
            other += 1
    return {"dns": frozenset(dns), "ip": frozenset(ip), "other_names": other}


def read_pem(text: str) -> list[Certificate]:
    """All certificates of a PEM text, in order; at least one.

    Raises:
        CertificateError: when there is none, or one cannot be read.
    """
    certificates = [read(der) for der in pem_blocks(text)]
    if not certificates:
        raise CertificateError("no certificate in the text")
    return certificates


def certificates_of_pkcs7(der: bytes) -> list[bytes]:
    """The DER certificates of a certs-only CMC response, the answer of EST (RFC 7030, 4.1.3; RFC 5652, 5.1).

    Raises:
        CertificateError: when the bytes are no SignedData.
    """
    parts = _expect(_read(der), _SEQUENCE, "PKCS#7").children()
    if len(parts) != 2 or parts[0].tag != _OID or _oid(parts[0].content) != SIGNED_DATA:
        raise CertificateError("PKCS#7 that is not SignedData")
    signed = _expect(_read(parts[1].content), _SEQUENCE, "SignedData")
    return [node.encoded for field in signed.children() if field.tag == 0xA0 for node in field.children()]


# ----------------------------------------------------------------------------------------------------- what was wanted


@dataclass(frozen=True)
class Profile:
    """What a certificate must say, whoever signs it."""

    common_name: str
    dns: frozenset[str] = frozenset()
    ip: frozenset[str] = frozenset()
    usages: frozenset[str] = frozenset()
    authority: bool = False

    @classmethod
    def of(cls, certificate: Certificate) -> Profile:
        """The profile that a certificate has."""
        return cls(
            common_name=certificate.common_name,
            dns=certificate.dns,
            ip=certificate.ip,
            usages=certificate.usages,
            authority=certificate.authority,
        )


@dataclass(frozen=True)
class Wanted:
    """A certificate that a host shall have: `<name>.crt` and `<name>.key` in a directory."""

    name: str
    directory: str
    owner: str
    group: str
    mode: int
    profile: Profile
    reload: tuple[str, ...]

    @property
    def path(self) -> str:
        """Directory and name; tells certificates of a host apart."""
        return f"{self.directory}/{self.name}"


def wanted(item: Mapping[str, Any]) -> Wanted:
    """One item of the contract's `certificates` view, checked again: these values reach a root shell-less command line.

    Args:
        item: name, directory, owner, group, mode, usages, common_name, dns, ip, reload; `authority: true` asks
            for an issuing CA. Other keys are for other readers.

    Raises:
        CertificateError: naming the certificate and the value that is wrong.
    """
    name = str(item.get("name", ""))
    if not _FILE_NAME.fullmatch(name):
        raise CertificateError(f"{name!r} is not a certificate's name")
    directory = str(item.get("directory", "")).rstrip("/")
    if not directory.startswith("/") or ".." in directory.split("/"):
        raise CertificateError(f"{name}: directory {directory!r} is not an absolute path")
    mode = str(item.get("mode", "0600"))
    if not re.fullmatch(r"0?[0-7]{3}", mode) or int(mode, 8) & 0o137:
        raise CertificateError(f"{name}: mode {mode!r} of a key is neither 0600 nor 0640 nor less")
    names = item.get("sans") or item
    authority = bool(item.get("authority"))
    usages = frozenset(map(str, item.get("usages") or ()))
    if not authority and (not usages or not usages <= set(USAGES.values())):
        raise CertificateError(f"{name}: usages {sorted(usages)} are not server, client or both")
    return Wanted(
        name=name,
        directory=directory,
        owner=str(item.get("owner", "root")),
        group=str(item.get("group", "root")),
        mode=int(mode, 8),
        profile=Profile(
            common_name=_checked(_COMMON_NAME, str(item.get("common_name", "")), f"{name}: common name"),
            dns=frozenset(_checked(_DNS_NAME, str(dns), f"{name}: DNS name").lower() for dns in names.get("dns") or ()),
            ip=frozenset(_address(str(ip), name) for ip in names.get("ip") or ()),
            usages=usages,
            authority=authority,
        ),
        reload=tuple(map(str, item.get("reload") or ())),
    )


def _checked(pattern: re.Pattern[str], value: str, what: str) -> str:
    if not pattern.fullmatch(value):
        raise CertificateError(f"{what} {value!r} cannot stand in a certificate")
    return value


def _address(value: str, name: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError as error:
        raise CertificateError(f"{name}: {error}") from error


# ---------------------------------------------------------------------------------------------- comparing and renewing


def renew_at(certificate: Certificate, renew_before: int | None = None) -> int:
    """The moment (seconds since 1970) from which a certificate is to be renewed.

    Args:
        certificate: the certificate.
        renew_before: seconds before its end; None means a third of its life. A certificate whose life was cut short by
            its issuer's end is never asked for again in the first third of its life, or each run would ask anew.
    """
    life = certificate.life
    before = life // 3 if renew_before is None else min(renew_before, life * 2 // 3)
    return certificate.not_after - before


def differences(
    certificate: Certificate,
    profile: Profile,
    now: float,
    renew_before: int | None = None,
    maximum_life: int | None = None,
) -> list[str]:
    """Why a certificate is not, or not for much longer, the one that is wanted; empty when it is.

    Args:
        certificate: the certificate on the host.
        profile: what it must say.
        now: seconds since 1970.
        renew_before: see `renew_at`.
        maximum_life: seconds it may live at most; None allows any life.
    """
    reasons = []
    if certificate.subject != ((COMMON_NAME, profile.common_name),):
        reasons.append(f"its subject is not CN={profile.common_name}")
    for what, have, want in (
        ("names", certificate.dns, profile.dns),
        ("addresses", certificate.ip, profile.ip),
        ("usages", certificate.usages, profile.usages),
    ):
        if have != want:
            missing, surplus = ", ".join(sorted(want - have)), ", ".join(sorted(have - want))
            parts = [f"lacks {missing}" if missing else "", f"has {surplus} too many" if surplus else ""]
            reasons.append(f"among its {what} it {' and '.join(filter(None, parts))}")
    if certificate.other_names:
        reasons.append("it has names that are neither DNS nor address")
    if certificate.authority != profile.authority:
        reasons.append("it is an authority" if certificate.authority else "it is no authority")
    if maximum_life is not None and certificate.life > maximum_life:
        reasons.append(f"it lives {certificate.life} s where {maximum_life} s are allowed")
    if now < certificate.not_before:
        reasons.append("it is not valid yet")
    elif now >= certificate.not_after:
        reasons.append("it has expired")
    elif now >= renew_at(certificate, renew_before):
        reasons.append("its time to be renewed has come")
    return reasons
