# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The issuer's rules, and its certificates as `openssl` sees them."""

from __future__ import annotations

import datetime as dt
import ipaddress
import itertools
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import issuer as subject
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate import Profile, pem_blocks, read_pem
from ansible_collections.groundplane.onprem.plugins.module_utils.certificate_files import new_key, signing_request
from ansible_collections.groundplane.onprem.plugins.module_utils.issuer import Authority, Policy, RefusedError
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.pki_site import Site, now

if TYPE_CHECKING:
    from pathlib import Path

DAY = 86400
SIGNING = settings(deadline=None, max_examples=30)  # each example starts openssl
SITE = Site(age=dt.timedelta(days=60))
HOST = Profile(
    common_name="data1",
    dns=frozenset({"data1", "data1.test.internal"}),
    ip=frozenset({"10.0.0.1"}),
    usages=frozenset({"server", "client"}),
)
POLICY = Policy(SITE.issuer, 30 * DAY)


def request(profile: Profile) -> bytes:
    return signing_request(new_key(), profile).encode()


def presented(profile: Profile = HOST, **options: Any) -> bytes:
    return pem_blocks(SITE.issue(profile, **options)[0])[0]


def change(profile: Profile, **fields: Any) -> Profile:
    return Profile(**{**vars(profile), **fields})


# --------------------------------------------------------------------------------------------------- what is signed


def test_the_chain_is_what_openssl_calls_strict(tmp_path: Path) -> None:
    chain, _ = SITE.issue(HOST)
    (tmp_path / "leaf.pem").write_text(chain)
    (tmp_path / "root.pem").write_text(SITE.anchors)
    for purpose in ("sslserver", "sslclient"):
        done = subprocess.run(
            [
                *("openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "root.pem"),
                *("-untrusted", "leaf.pem", "-verify_hostname", "data1.test.internal", "leaf.pem"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    text = subprocess.run(
        ["openssl", "x509", "-noout", "-text"], input=chain, capture_output=True, text=True, check=True
    ).stdout
    assert "CA:FALSE" in text
    assert "Digital Signature" in text
    assert "Certificate Sign" not in text


def test_an_issuing_ca_cannot_make_another_ca(tmp_path: Path) -> None:
    """Path length 0: a CA below it is refused by OpenSSL although the signature is good."""
    constraints = SITE.issuer.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    below = Profile(common_name="below", authority=True)
    key = new_key()
    signed = subject.sign_authority(
        subject.load_request(signing_request(key, below).encode()), below, SITE.issuer, DAY, now()
    )
    rogue = Authority.load(subject.pem(signed).encode(), key)
    leaf = subject.sign_leaf(subject.load_request(request(HOST)), HOST, rogue, DAY, now())
    (tmp_path / "chain.pem").write_text(subject.pem(leaf) + subject.pem(signed) + SITE.issuer.certificate_pem())
    (tmp_path / "root.pem").write_text(SITE.anchors)
    done = subprocess.run(
        ["openssl", "verify", "-CAfile", "root.pem", "-untrusted", "chain.pem", "chain.pem"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "path length" in done.stderr


@SIGNING
@given(st.integers(60, 30 * DAY))
def test_a_leaf_lives_exactly_as_long_as_asked(life: int) -> None:
    leaf = read_pem(SITE.issue(HOST, life=life)[0])[0]
    assert leaf.life == life
    assert leaf.not_before <= now().timestamp() < leaf.not_after


def test_a_leaf_of_more_than_thirty_days_is_refused() -> None:
    with pytest.raises(RefusedError, match="may live"):
        SITE.issue(HOST, life=30 * DAY + 1)


def test_a_leaf_does_not_outlive_its_issuer() -> None:
    old = Site(age=dt.timedelta(days=355))
    leaf = read_pem(old.issue(HOST)[0])[0]
    assert leaf.not_after == old.issuer.certificate.not_valid_after_utc.timestamp()


def test_a_ca_that_is_over_signs_nothing() -> None:
    with pytest.raises(RefusedError, match="not valid now"):
        Site(age=dt.timedelta(days=366)).issue(HOST)


def test_a_key_that_is_not_the_cas_is_refused() -> None:
    with pytest.raises(RefusedError, match="not that of its certificate"):
        Authority.load(SITE.root.certificate_pem().encode(), SITE.issuer.key_pem())


def test_serial_numbers_do_not_repeat() -> None:
    serials = {read_pem(SITE.issue(HOST)[0])[0].serial for _ in range(50)}
    assert len(serials) == 50
    assert all(serial.bit_length() > 64 for serial in serials)


# ------------------------------------------------------------------------------------------------- what is asked

POOL_DNS = ["data1", "data1.test.internal", "data2", "db.test.internal"]
POOL_IP = ["10.0.0.1", "10.0.0.2"]
PROFILES = st.builds(
    Profile,
    common_name=st.sampled_from(["data1", "data2", "postgres"]),
    dns=st.frozensets(st.sampled_from(POOL_DNS)),
    ip=st.frozensets(st.sampled_from(POOL_IP)),
    usages=st.sampled_from([frozenset({"server", "client"}), frozenset({"client"})]),
)


@SIGNING
@given(PROFILES, st.data())
def test_one_gets_what_one_is_and_nothing_else(own: Profile, data: Any) -> None:
    asked = data.draw(st.just(own) | PROFILES)
    holder, body = presented(own), request(asked)
    if asked == own:
        new = read_pem(subject.pem(subject.reenrol(holder, body, POLICY)))[0]
        assert Profile.of(new) == own
    else:
        with pytest.raises(RefusedError):
            subject.reenrol(holder, body, POLICY)


@SIGNING
@given(PROFILES, st.lists(PROFILES, max_size=3))
def test_a_grant_widens_by_exactly_what_it_says(asked: Profile, grants: list[Profile]) -> None:
    holder, body = presented(), request(asked)
    kept = subject.granted(subject.grant(grants))
    assert kept == grants
    if asked in [HOST, *grants]:
        assert Profile.of(read_pem(subject.pem(subject.reenrol(holder, body, POLICY, kept)))[0]) == asked
    else:
        with pytest.raises(RefusedError):
            subject.reenrol(holder, body, POLICY, kept)


@pytest.mark.parametrize(
    "asked",
    [
        change(HOST, dns=HOST.dns | {"evil.test.internal"}),
        change(HOST, dns=frozenset({"data1"})),
        change(HOST, ip=HOST.ip | {"10.0.0.2"}),
        change(HOST, common_name="data2"),
        change(HOST, usages=frozenset({"server"})),
    ],
)
def test_other_names_are_refused(asked: Profile) -> None:
    with pytest.raises(RefusedError, match="the request"):
        subject.reenrol(presented(), request(asked), POLICY)


def build(key: Any, *extensions: x509.ExtensionType, name: str = "data1") -> bytes:
    subject_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject_name)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


NAMES = [x509.DNSName("data1"), x509.DNSName("data1.test.internal")]


def test_names_of_another_kind_are_refused() -> None:
    names = [*NAMES, x509.IPAddress(ipaddress.ip_address("10.0.0.1"))]
    good = build(ec.generate_private_key(ec.SECP256R1()), x509.SubjectAlternativeName(names))
    assert subject.reenrol(presented(), good, POLICY)
    for extra in (x509.RFC822Name("root@test.internal"), x509.UniformResourceIdentifier("spiffe://x/y"), names[0]):
        body = build(ec.generate_private_key(ec.SECP256R1()), x509.SubjectAlternativeName([*names, extra]))
        with pytest.raises(RefusedError):
            subject.reenrol(presented(), body, POLICY)


def test_being_an_authority_cannot_be_asked_for() -> None:
    """Only the key is taken from a request; an extension that asks for more has no effect."""
    profile = change(HOST, dns=frozenset({"data1"}), ip=frozenset())
    body = build(
        ec.generate_private_key(ec.SECP256R1()),
        x509.SubjectAlternativeName([x509.DNSName("data1")]),
        x509.BasicConstraints(ca=True, path_length=None),
    )
    new = subject.reenrol(presented(profile), body, POLICY)
    assert not new.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize(
    "key", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP224R1())], ids=["rsa", "p224"]
)
def test_weak_or_other_keys_are_refused(key: Any) -> None:
    with pytest.raises(RefusedError, match="curve"):
        subject.load_request(build(key))


def test_a_request_that_its_key_did_not_sign_is_refused() -> None:
    body = bytearray(pem_blocks(request(HOST).decode(), "CERTIFICATE REQUEST")[0])
    at = bytes(body).index(b"data1.test")
    body[at : at + 5] = b"data9"
    with pytest.raises(RefusedError, match="not signed by its own key"):
        subject.load_request(bytes(body))


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(RefusedError):
        subject.load_request(noise)


# ------------------------------------------------------------------------------------------------------ who asks


def test_an_expired_certificate_renews_nothing() -> None:
    old = presented(life=DAY, at=now() - dt.timedelta(days=2))
    with pytest.raises(RefusedError, match="not valid now"):
        subject.reenrol(old, request(HOST), POLICY)


def test_a_revoked_certificate_renews_nothing() -> None:
    holder = presented()
    serial = read_pem(subject.pem(x509.load_der_x509_certificate(holder)))[0].serial
    revoked = subject.serials(f"# stolen\n{serial:x}  # laptop\n")
    with pytest.raises(RefusedError, match="revoked"):
        subject.reenrol(holder, request(HOST), Policy(SITE.issuer, DAY, revoked))
    assert subject.reenrol(presented(), request(HOST), Policy(SITE.issuer, DAY, revoked))


def test_a_certificate_for_servers_only_renews_nothing() -> None:
    server = change(HOST, usages=frozenset({"server"}))
    with pytest.raises(RefusedError, match="not one of a host"):
        subject.reenrol(presented(server), request(server), POLICY)


def test_a_ca_renews_nothing() -> None:
    with pytest.raises(RefusedError, match="not one of a host"):
        subject.reenrol(SITE.issuer.certificate.public_bytes(Encoding.DER), request(HOST), POLICY)


@pytest.mark.parametrize("text", ["xyz", "12 34", "0x12", "-1"])
def test_a_revocation_list_that_is_half_read_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="line 2"):
        subject.serials(f"ab12\n{text}\n")


def test_revocation_lists_as_people_write_them() -> None:
    texts = ["AB:12", "ab12", "  ab12  # x", "\nab12\n\n# nothing\n"]
    assert {subject.serials(text) for text in texts} == {frozenset({0xAB12})}
    assert subject.serials("") == frozenset()


@pytest.mark.parametrize("grant", [{}, "x", [1], None])
def test_a_grant_that_cannot_be_read_is_refused(grant: object) -> None:
    with pytest.raises(RefusedError):
        subject.granted(grant)


def test_names_differ_in_no_way_that_is_forgotten() -> None:
    """Every single change of a profile is a different profile to the issuer."""
    variants = [
        HOST,
        change(HOST, common_name="x"),
        change(HOST, dns=HOST.dns - {"data1"}),
        change(HOST, ip=frozenset()),
        change(HOST, usages=frozenset({"client"})),
    ]
    for left, right in itertools.permutations(variants, 2):
        with pytest.raises(RefusedError):
            subject.check_request(subject.load_request(request(left)), right)
