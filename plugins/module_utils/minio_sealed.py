# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sealed bodies in which MinIO's administration takes and gives what is secret.

A body is a salt of 32 bytes, one byte that says how it is sealed, 8 bytes of nonce, and then the text in parts of
16 KiB, each sealed by AES-256-GCM under a key that is derived from the asker's secret. The nonce of a part ends in its
number; what is authenticated beside it says which part is the last.

What we send is sealed by PBKDF2, which every MinIO opens. What it answers it seals by Argon2id, unless it was built for
FIPS: `cryptography` derives that from its version 44, and Debian 13 has 43.

Sources: madmin-go v3.0.109, `encrypt.go`; sio-go v0.3.1, its package documentation.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ARGON2_AES, ARGON2_CHACHA, PBKDF2_AES = 0, 1, 2
"""How a body is sealed."""

SALT_BYTES, NONCE_BYTES, KEY_BYTES, TAG_BYTES = 32, 8, 32, 16
PART_BYTES = 1 << 14
ROUNDS = 8192
"""Of PBKDF2."""
ARGON2_PASSES, ARGON2_LANES, ARGON2_KIB = 1, 4, 64 * 1024

_HEADER = SALT_BYTES + 1 + NONCE_BYTES
_LAST = 0x80


class SealError(Exception):
    """A body cannot be sealed or opened here; the text says why."""


class CannotDeriveError(SealError):
    """The body is sealed by Argon2id, and the `cryptography` of this host derives none."""


def seal(secret: str, text: bytes, kind: int = PBKDF2_AES) -> bytes:
    """A body that the server opens.

    Args:
        secret: of who asks.
        text: what is in it.
        kind: how it is sealed.

    Raises:
        SealError: `cryptography` is not installed.
    """
    salt, nonce = secrets.token_bytes(SALT_BYTES), secrets.token_bytes(NONCE_BYTES)
    encrypt, _ = _cipher(kind, _key(kind, secret, salt))
    numbers, check = _numbers(nonce, encrypt)
    starts = range(0, max(len(text), 1), PART_BYTES)
    parts = [
        encrypt(next(numbers), text[start : start + PART_BYTES], _marked(check, last=start == starts[-1]))
        for start in starts
    ]
    return salt + bytes([kind]) + nonce + b"".join(parts)


def unseal(secret: str, body: bytes) -> bytes:
    """What is in a body that the server sealed.

    Args:
        secret: of who asked.
        body: the answer.

    Raises:
        CannotDeriveError: `cryptography` is not installed, or too old for it.
        SealError: it is none, or of another secret.
    """
    if len(body) < _HEADER + TAG_BYTES:
        raise SealError("the answer is no sealed body: it is too short")
    salt, kind, nonce = body[:SALT_BYTES], body[SALT_BYTES], body[SALT_BYTES + 1 : _HEADER]
    encrypt, decrypt = _cipher(kind, _key(kind, secret, salt))
    numbers, check = _numbers(nonce, encrypt)
    step = PART_BYTES + TAG_BYTES
    starts = range(_HEADER, len(body), step)
    return b"".join(
        decrypt(next(numbers), body[start : start + step], _marked(check, last=start == starts[-1])) for start in starts
    )


def _numbers(nonce: bytes, encrypt: Callable[[bytes, bytes, bytes], bytes]) -> tuple[Iterator[bytes], bytes]:
    """The nonces of the parts, and what is authenticated with each: the tag of nothing under the first nonce of all."""

    def counted() -> Iterator[bytes]:
        number = 0
        while True:
            number += 1
            yield nonce + number.to_bytes(4, "little")

    return counted(), encrypt(nonce + bytes(4), b"", b"")


def _marked(check: bytes, *, last: bool) -> bytes:
    return bytes([_LAST if last else 0]) + check


def _key(kind: int, secret: str, salt: bytes) -> bytes:
    if kind == PBKDF2_AES:
        return hashlib.pbkdf2_hmac("sha256", secret.encode(), salt, ROUNDS, KEY_BYTES)
    if kind not in (ARGON2_AES, ARGON2_CHACHA):
        raise SealError(f"the answer is sealed in a way that is not known ({kind})")
    try:
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id  # noqa: PLC0415
    except ImportError as error:
        raise CannotDeriveError(
            "the answer is sealed by Argon2id, for which cryptography 44 or later is needed"
        ) from error
    derived = Argon2id(
        salt=salt, length=KEY_BYTES, iterations=ARGON2_PASSES, lanes=ARGON2_LANES, memory_cost=ARGON2_KIB
    ).derive(secret.encode())
    return bytes(derived)


def _cipher(
    kind: int, key: bytes
) -> tuple[Callable[[bytes, bytes, bytes], bytes], Callable[[bytes, bytes, bytes], bytes]]:
    """To encrypt and to decrypt: nonce, text, what is authenticated beside it."""
    try:
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415
        from cryptography.hazmat.primitives.ciphers import aead  # noqa: PLC0415
    except ImportError as error:
        raise SealError("a secret of MinIO is sealed by Python's cryptography: install python3-cryptography") from error
    cipher = aead.ChaCha20Poly1305(key) if kind == ARGON2_CHACHA else aead.AESGCM(key)

    def decrypt(nonce: bytes, data: bytes, beside: bytes) -> bytes:
        try:
            return cipher.decrypt(nonce, data, beside)
        except InvalidTag as error:
            raise SealError("the answer does not open with our secret key") from error

    return cipher.encrypt, decrypt
