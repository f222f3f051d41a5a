# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bodies that only the secret opens. That MinIO itself opens and seals them is seen in tests/programs."""

from __future__ import annotations

import sys

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import minio_sealed
from ansible_collections.groundplane.onprem.plugins.module_utils.minio_sealed import (
    CannotDeriveError,
    SealError,
    seal,
    unseal,
)
from hypothesis import given, settings
from hypothesis import strategies as st

SECRET = "geheim-ü"
HEADER = 32 + 1 + 8


@given(st.sampled_from([0, 1, 100, (1 << 14) - 1, 1 << 14, (1 << 14) + 1, 3 << 14]), st.binary(max_size=1))
@settings(deadline=None, max_examples=30)
def test_what_is_sealed_opens(size: int, filler: bytes) -> None:
    text = (filler or b"x") * size
    sealed = seal(SECRET, text)
    assert unseal(SECRET, sealed) == text
    assert len(sealed) == HEADER + size + 16 * max(1, -(-size // (1 << 14)))
    assert sealed[32] == minio_sealed.PBKDF2_AES


def test_no_two_bodies_are_alike() -> None:
    assert seal(SECRET, b"x") != seal(SECRET, b"x")


@pytest.mark.parametrize("at", [0, 33, 40, 41, 50, -1])
def test_a_changed_byte_opens_nothing(at: int) -> None:
    sealed = bytearray(seal(SECRET, b"a secret"))
    sealed[at] ^= 1
    with pytest.raises(SealError, match="does not open with our secret"):
        unseal(SECRET, bytes(sealed))


def test_another_secret_opens_nothing() -> None:
    with pytest.raises(SealError, match="does not open with our secret"):
        unseal("another", seal(SECRET, b"x"))


def test_parts_can_neither_be_left_out_nor_swapped() -> None:
    part = (1 << 14) + 16
    sealed = seal(SECRET, b"1" * (3 << 14))
    head, parts = (
        sealed[:HEADER],
        [sealed[HEADER + part * number : HEADER + part * (number + 1)] for number in range(3)],
    )
    assert unseal(SECRET, head + b"".join(parts)) == b"1" * (3 << 14)
    for wrong in (parts[:2], [parts[1], parts[0], parts[2]], [parts[0], parts[2]]):
        with pytest.raises(SealError, match="does not open"):
            unseal(SECRET, head + b"".join(wrong))


@pytest.mark.parametrize("kind", [minio_sealed.ARGON2_AES, minio_sealed.ARGON2_CHACHA])
def test_what_is_sealed_by_argon2_opens_where_it_can_be_derived(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = seal(SECRET, b"x", kind)
    assert sealed[32] == kind
    assert unseal(SECRET, sealed) == b"x"
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.kdf.argon2", None)
    with pytest.raises(CannotDeriveError, match="cryptography 44"):
        unseal(SECRET, sealed)


def test_what_is_no_sealed_body_is_told() -> None:
    with pytest.raises(SealError, match="too short"):
        unseal(SECRET, b"{}")
    with pytest.raises(SealError, match=r"not known \(9\)"):
        unseal(SECRET, bytes(32) + b"\x09" + bytes(40))


def test_without_cryptography_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(SealError, match="install python3-cryptography"):
        seal(SECRET, b"x")
