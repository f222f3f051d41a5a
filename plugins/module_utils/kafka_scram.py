# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SCRAM as Kafka has it: the credential that a broker keeps, and the client's side of a login.

A broker tells nobody the credential of a user, only its mechanism and iterations. Whether a password is still the right
one shows in a login and nowhere else: the broker proves that it has the credential, and we that we have the password.

Unlike PostgreSQL, Kafka and its clients hash the UTF-8 of a password as it is, without SASLprep.

Sources: RFC 5802 (SCRAM), RFC 7677; Kafka 4.4 documentation, "Authentication using SASL/SCRAM"; KIP-554.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

HASHES = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}
CODES = {"SCRAM-SHA-256": 1, "SCRAM-SHA-512": 2}
"""Numbers of the mechanisms on the wire."""

FEWEST_ITERATIONS, MOST_ITERATIONS = 4096, 16384
"""What a broker takes."""

SALT_BYTES = 24
"""Length of a salt."""

_FIRST = re.compile(r"r=(?P<nonce>[^,]+),s=(?P<salt>[A-Za-z0-9+/=]+),i=(?P<iterations>[0-9]{1,9})")


class ScramError(Exception):
    """The other side does not speak SCRAM as it should, or does not have the credential."""


def salted(mechanism: str, password: str, salt: bytes, iterations: int) -> bytes:
    """The salted password, all that a broker is told of a password.

    Args:
        mechanism: a key of `HASHES`.
        password: in plain text.
        salt: random bytes.
        iterations: rounds of PBKDF2.
    """
    return hashlib.pbkdf2_hmac(HASHES[mechanism], password.encode(), salt, iterations)


def log_in(
    mechanism: str, user: str, password: str, exchange: Callable[[bytes], bytes | None], nonce: str = ""
) -> bool:
    """Whether the other side has this user with this password.

    Args:
        mechanism: a key of `HASHES`.
        user: name.
        password: in plain text; it is not sent.
        exchange: sends a message and gives the answer; None when the other side refuses.
        nonce: random text; a new one when left out.

    Raises:
        ScramError: the other side answers what is no SCRAM, or does not know the credential itself.
    """
    nonce = nonce or secrets.token_urlsafe(24)
    name = user.replace("=", "=3D").replace(",", "=2C")
    bare = f"n={name},r={nonce}"
    first = exchange(f"n,,{bare}".encode())
    if first is None:
        return False
    text = first.decode("utf-8", "replace")
    parts = _FIRST.match(text)
    if parts is None or not parts["nonce"].startswith(nonce) or int(parts["iterations"]) < 1:
        raise ScramError("the broker's first message of SCRAM is none")
    try:
        salt = base64.b64decode(parts["salt"], validate=True)
    except binascii.Error as error:
        raise ScramError("the broker's salt is not base64") from error
    secret = salted(mechanism, password, salt, int(parts["iterations"]))
    final = f"c=biws,r={parts['nonce']}"
    signed = f"{bare},{text},{final}".encode()
    digest = HASHES[mechanism]
    key = hmac.digest(secret, b"Client Key", digest)
    signature = hmac.digest(hashlib.new(digest, key).digest(), signed, digest)
    proof = bytes(one ^ other for one, other in zip(key, signature, strict=True))
    last = exchange(f"{final},p={base64.b64encode(proof).decode()}".encode())
    if last is None:
        return False
    expected = hmac.digest(hmac.digest(secret, b"Server Key", digest), signed, digest)
    if last != b"v=" + base64.b64encode(expected):
        raise ScramError("the broker does not prove that it has the credential")
    return True
