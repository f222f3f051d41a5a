# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a certificate says, compared with what `cryptography` says of it, and the rules of renewal."""

from __future__ import annotations

import dataclasses
import datetime as dt
import ipaddress
from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import certificate as subject
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import CertificateError, Profile
from ansible_collections.groundplane.onprem.plugins.module_utils.issuer import certificates_only
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.pki_site import Site, item, want

KEY = ec.generate_private_key(ec.SECP256R1())
LABEL = st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9]", fullmatch=True)
DNS = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
ADDRESS = st.ip_addresses()
MOMENT = st.datetimes(dt.datetime(1951, 1, 1), dt.datetime(2200, 1, 1), timezones=st.just(dt.UTC)).map(  # noqa: DTZ001
    lambda moment: moment.replace(microsecond=0)
)
EKU = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclasses.dataclass(frozen=True)
class Made:
    der: bytes
    cert: x509.Certificate
    dns: set[str]
    ip: set[str]
    usages: set[str]
    authority: bool


@st.composite
def certificates(draw: Any) -> Made:
    """Any certificate that a site could meet, among them ones it would never issue."""
    dns = draw(st.sets(DNS, max_size=4))
    ip = draw(st.sets(ADDRESS, max_size=4))
    usages = draw(st.sets(st.sampled_from(["server", "client"])))
    authority = draw(st.booleans())
    times = sorted([draw(MOMENT), draw(MOMENT)])
    common_name = draw(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=32))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(KEY.public_key())
    builder = builder.serial_number(draw(st.integers(1, 2**159 - 1)))
    builder = builder.not_valid_before(times[0]).not_valid_after(times[1] + dt.timedelta(seconds=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    if dns or ip:
        names = [*map(x509.DNSName, sorted(dns)), *map(x509.IPAddress, sorted(ip, key=str))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage([EKU[u] for u in sorted(usages)]), critical=False)
    cert = builder.sign(KEY, hashes.SHA256())
    return Made(cert.public_bytes(serialization.Encoding.DER), cert, dns, set(map(str, ip)), usages, authority)


@settings(deadline=None)
@given(certificates())
def test_reads_what_cryptography_wrote(made: Made) -> None:
    read = subject.read(made.der)
    assert read.serial == made.cert.serial_number
    assert read.common_name == made.cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    assert read.subject == read.issuer
    assert read.not_before == made.cert.not_valid_before_utc.timestamp()
    assert read.not_after == made.cert.not_valid_after_utc.timestamp()
    assert read.public_key == KEY.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert (read.dns, read.ip, read.usages) == (made.dns, made.ip, made.usages)
    assert read.authority is made.authority
    assert read.other_names == 0


POSITION = st.integers(0, 4095)  # of any length: a signature is a byte longer or shorter each time


@settings(deadline=None)
@given(certificates(), st.lists(st.tuples(POSITION, st.integers(0, 255)), min_size=1, max_size=4), POSITION)
def test_a_damaged_certificate_is_an_error_and_not_a_crash(made: Made, damage: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(made.der)
    for position, value in damage:
        damaged[position % len(damaged)] = value
    for text in (bytes(damaged), bytes(damaged[: cut % len(damaged)])):
        try:
            subject.read(text)
        except CertificateError:
            continue


@given(st.binary(max_size=200))
def test_noise_is_no_certificate(noise: bytes) -> None:
    with pytest.raises(CertificateError):
        subject.read(noise)


@settings(deadline=None)
@given(certificates())
def test_pem_and_back(made: Made) -> None:
    text = subject.as_pem(made.der)
    assert text.encode() == made.cert.public_bytes(serialization.Encoding.PEM)
    assert subject.pem_blocks(f"a remark\n{text}\n{text}") == [made.der, made.der]


def test_a_text_without_a_certificate_is_refused() -> None:
    with pytest.raises(CertificateError, match="no certificate"):
        subject.read_pem("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n")


def test_pkcs7_has_what_cryptography_put_in() -> None:
    site = Site()
    certs = [site.root.certificate, site.issuer.certificate]
    found = subject.certificates_of_pkcs7(certificates_only(certs))
    assert sorted(found) == sorted(cert.public_bytes(serialization.Encoding.DER) for cert in certs)


def test_a_certificate_is_not_pkcs7() -> None:
    with pytest.raises(CertificateError):
        subject.certificates_of_pkcs7(Site().root.certificate.public_bytes(serialization.Encoding.DER))


# ----------------------------------------------------------------------------------------------------------- durations


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("30m", 1800), ("12h", 43200), ("30d", 2592000)])
def test_durations(text: str, value: int) -> None:
    assert subject.seconds(text) == value


@pytest.mark.parametrize("text", ["", "30", "0d", "-1d", "1.5h", "30 d", "1w", "d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(CertificateError):
        subject.seconds(text)


# ------------------------------------------------------------------------------------------------------------- renewing

LIFE = st.integers(60, 10 * 365 * 86400)
BEFORE = st.none() | st.integers(1, 20 * 365 * 86400)


def alive(life: int, begin: int = 1_700_000_000) -> subject.Certificate:
    return subject.Certificate(
        serial=1,
        subject=((subject.COMMON_NAME, "a"),),
        issuer=(),
        not_before=begin,
        not_after=begin + life,
        public_key=b"",
        usages=frozenset({"server"}),
    )


GOOD = Profile(common_name="a", usages=frozenset({"server"}))


@given(LIFE, BEFORE)
def test_renewal_falls_between_a_third_of_life_and_its_end(life: int, before: int | None) -> None:
    cert = alive(life)
    at = subject.renew_at(cert, before)
    assert cert.not_before + life / 3 <= at <= cert.not_after
    if before is None:
        assert abs((cert.not_after - at) - life / 3) <= 1
    elif before <= life * 2 // 3:
        assert at == cert.not_after - before


@given(LIFE, BEFORE, st.integers(0, 100))
def test_due_from_the_moment_on_and_not_before(life: int, before: int | None, later: int) -> None:
    cert = alive(life)
    at = subject.renew_at(cert, before)
    assert subject.differences(cert, GOOD, at - 1, before) == []
    assert len(subject.differences(cert, GOOD, at + later, before)) == 1


@given(LIFE, BEFORE)
def test_a_fresh_certificate_is_never_asked_for_again(life: int, before: int | None) -> None:
    cert = alive(life)
    assert subject.differences(cert, GOOD, cert.not_before + min(subject.BACKDATE, life // 10), before, life) == []


# ------------------------------------------------------------------------------------------------------------ comparing


def test_each_difference_is_named(tmp_path: Any) -> None:
    site = Site()
    wanted = want(tmp_path)
    chain = site.install(wanted)
    cert = subject.read_pem(chain)[0]
    at = cert.not_before + 600
    assert subject.differences(cert, wanted.profile, at) == []
    cases = {
        "subject is not CN=data2": {"common_name": "data2"},
        "names it lacks db.test.internal": {"dns": [*wanted.profile.dns, "db.test.internal"]},
        "names it has data1.test.internal too many": {"dns": ["data1"]},
        "addresses it lacks 10.0.0.9 and has 10.0.0.1 too many": {"ip": ["10.0.0.9"]},
        "usages it has client too many": {"usages": ["server"]},
        "it is no authority": {"authority": True},
    }
    for message, change in cases.items():
        reasons = subject.differences(cert, want(tmp_path, **change).profile, at)
        assert len(reasons) == 1
        assert message in reasons[0]
    assert "has expired" in subject.differences(cert, wanted.profile, cert.not_after)[0]
    assert "not valid yet" in subject.differences(cert, wanted.profile, cert.not_before - 1)[0]
    assert "lives" in subject.differences(cert, wanted.profile, at, maximum_life=86400)[0]


def test_addresses_are_compared_as_addresses(tmp_path: Any) -> None:
    profile = want(tmp_path, ip=["2001:db8:0:0::1", "::ffff:10.0.0.1"]).profile
    assert profile.ip == {str(ipaddress.ip_address("2001:db8::1")), str(ipaddress.ip_address("::ffff:10.0.0.1"))}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"name": ""},
        {"name": ".hidden"},
        {"directory": "etc/x"},
        {"directory": "/etc/../x"},
        {"mode": "0644"},
        {"mode": "0660"},
        {"mode": "rw"},
        {"usages": []},
        {"usages": ["signer"]},
        {"common_name": "a/O=b"},
        {"common_name": "a+b"},
        {"common_name": ""},
        {"common_name": "x" * 65},
        {"dns": ["a,IP:1.2.3.4"]},
        {"dns": ["-a"]},
        {"dns": ["a..b"]},
        {"dns": ["a\n"]},
        {"common_name": "a\n"},
        {"ip": ["10.0.0.300"]},
        {"ip": ["10.0.0.1/24"]},
    ],
)
def test_a_wish_that_no_certificate_can_fulfil_is_refused(tmp_path: Any, change: dict[str, Any]) -> None:
    with pytest.raises(CertificateError):
        subject.wanted(item(tmp_path) | change)
