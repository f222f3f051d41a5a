# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A login succeeds with the password and no other, and only where the other side has the credential too."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import kafka_scram
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_scram import ScramError, log_in, salted
from hypothesis import given
from hypothesis import strategies as st

WORDS = st.text(min_size=1, max_size=20)


def test_the_example_of_rfc_7677() -> None:
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    said = []
    answers = [
        f"r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096".encode(),
        b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
    ]

    def exchange(message: bytes) -> bytes:
        said.append(message.decode())
        return answers.pop(0)

    assert log_in("SCRAM-SHA-256", "user", "pencil", exchange, "rOprNGfwEbeRWgbNEkqO")
    assert said == [
        "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
        f"c=biws,r={nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
    ]


class Server:
    """The broker's side, which has a user's credential and not the password."""

    def __init__(self, mechanism: str, user: str, password: str) -> None:
        self.digest, self.user, self.salt = kafka_scram.HASHES[mechanism], user, b"salt"
        secret = salted(mechanism, password, self.salt, 1)
        self.stored = hashlib.new(self.digest, hmac.digest(secret, b"Client Key", self.digest)).digest()
        self.key = hmac.digest(secret, b"Server Key", self.digest)
        self.before = ""

    def __call__(self, message: bytes) -> bytes | None:
        text = message.decode()
        if not self.before:
            bare = text.removeprefix("n,,")
            name, nonce = bare.split(",r=")
            if name.removeprefix("n=").replace("=2C", ",").replace("=3D", "=") != self.user:
                return None
            first = f"r={nonce}more,s={base64.b64encode(self.salt).decode()},i=1"
            self.before = f"{bare},{first}"
            return first.encode()
        final, proof = text.split(",p=")
        signed = f"{self.before},{final}".encode()
        signature = hmac.digest(self.stored, signed, self.digest)
        key = bytes(one ^ other for one, other in zip(base64.b64decode(proof), signature, strict=True))
        if hashlib.new(self.digest, key).digest() != self.stored:
            return None
        return b"v=" + base64.b64encode(hmac.digest(self.key, signed, self.digest))


@given(st.sampled_from(sorted(kafka_scram.HASHES)), WORDS, WORDS, WORDS)
def test_the_password_and_no_other(mechanism: str, user: str, password: str, other: str) -> None:
    assert log_in(mechanism, user, password, Server(mechanism, user, password))
    assert log_in(mechanism, user, other, Server(mechanism, user, password)) == (other == password)
    assert log_in(mechanism, other, password, Server(mechanism, user, password)) == (other == user)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([b"r=other,s=c2FsdA==,i=1"], "first message of SCRAM is none"),
        ([b"r=nonce1,s=c2FsdA==,i=0"], "first message of SCRAM is none"),
        ([b"e=other-error"], "first message of SCRAM is none"),
        ([b"r=nonce1,s=c2F,i=1"], "salt is not base64"),
        ([b"r=nonce1,s=c2FsdA==,i=1", b"v=c2FsdA=="], "does not prove that it has the credential"),
    ],
)
def test_what_is_no_scram_is_an_error_and_no_wrong_password(answers: list[bytes], said: str) -> None:
    with pytest.raises(ScramError, match=said):
        log_in("SCRAM-SHA-512", "user", "pencil", lambda _: answers.pop(0), "nonce")
