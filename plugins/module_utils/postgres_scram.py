# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SCRAM-SHA-256 verifiers as PostgreSQL keeps them in `pg_authid.rolpassword`.

A verifier is made where the password is, so that the server never sees the password and can never log it. It has a
random salt: two verifiers of one password differ. The question is never whether they are equal but whether one matches.

Sources: RFC 5802 (SCRAM), RFC 7677 (SCRAM-SHA-256), RFC 4013 (SASLprep), PostgreSQL 17 documentation, "pg_authid".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import stringprep
import unicodedata

ITERATIONS = 4096
"""Rounds of PBKDF2 that PostgreSQL uses by default (`scram_iterations`)."""

SALT_BYTES = 16
"""Length of PostgreSQL's own salts."""

_VERIFIER = re.compile(r"SCRAM-SHA-256\$(?P<rounds>[0-9]{1,9}):(?P<salt>[^$:]+)\$(?P<stored>[^$:]+):(?P<server>[^$:]+)")


def saslprep(password: str) -> str:
    """The password as PostgreSQL normalises it before it is hashed.

    Like the server, this takes a password that SASLprep forbids as it is instead of refusing it.

    Args:
        password: what a person or a vault has given.
    """
    if password.isascii():
        # SASLprep forbids control characters and changes nothing else, and what it forbids is taken as it is.
        return password
    mapped = "".join(
        " " if stringprep.in_table_c12(character) else character
        for character in password
        if not stringprep.in_table_b1(character)
    )
    normal = unicodedata.normalize("NFKC", mapped)
    return normal if normal and _allowed(normal) else password


def _allowed(text: str) -> bool:
    forbidden = (
        stringprep.in_table_c12,
        stringprep.in_table_c21_c22,
        stringprep.in_table_c3,
        stringprep.in_table_c4,
        stringprep.in_table_c5,
        stringprep.in_table_c6,
        stringprep.in_table_c7,
        stringprep.in_table_c8,
        stringprep.in_table_c9,
        stringprep.in_table_a1,
    )
    if any(table(character) for table in forbidden for character in text):
        return False
    right_to_left = [stringprep.in_table_d1(character) for character in text]
    if not any(right_to_left):
        return True
    return right_to_left[0] and right_to_left[-1] and not any(stringprep.in_table_d2(character) for character in text)


def make_verifier(password: str, salt: bytes | None = None, iterations: int = ITERATIONS) -> str:
    """A verifier for `ALTER ROLE ... PASSWORD`.

    Args:
        password: the password in plain text.
        salt: random bytes; new ones when left out.
        iterations: rounds of PBKDF2.
    """
    if salt is None:
        salt = secrets.token_bytes(SALT_BYTES)
    salted = hashlib.pbkdf2_hmac("sha256", saslprep(password).encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${iterations}:{_base64(salt)}${_base64(stored)}:{_base64(server)}"


def matches(password: str, verifier: str | None) -> bool:
    """Whether a role with this verifier accepts this password.

    Args:
        password: the password in plain text.
        verifier: `rolpassword`; None, an MD5 hash and anything malformed match nothing.
    """
    parts = _VERIFIER.fullmatch(verifier or "")
    if parts is None or int(parts["rounds"]) < 1:
        return False
    try:
        salt = base64.b64decode(parts["salt"], validate=True)
    except binascii.Error:
        return False
    expected = make_verifier(password, salt, int(parts["rounds"]))
    return hmac.compare_digest(expected.encode(), parts.string.encode())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
