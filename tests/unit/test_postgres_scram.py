# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verifiers are those of the RFC, and match what they were made from and nothing else."""

from __future__ import annotations

import base64

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.postgres_scram import (
    make_verifier,
    matches,
    saslprep,
)
from hypothesis import given, settings
from hypothesis import strategies as st

# RFC 7677, section 3: password "pencil", 4096 rounds.
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
VERIFIER = (
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ=="
    "$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)


def test_the_verifier_of_the_rfc() -> None:
    assert make_verifier("pencil", SALT) == VERIFIER
    assert matches("pencil", VERIFIER)


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40), st.integers(1, 50))
def test_a_verifier_matches_its_password_alone(password: str, other: str, rounds: int) -> None:
    verifier = make_verifier(password, iterations=rounds)
    assert matches(password, verifier)
    assert matches(other, verifier) == (saslprep(other) == saslprep(password))


def test_two_verifiers_of_a_password_differ() -> None:
    assert make_verifier("x" * 24, iterations=1) != make_verifier("x" * 24, iterations=1)


@pytest.mark.parametrize(
    "verifier",
    [
        None,
        "",
        "md5ac4bbe016b808c3c0b816981f240dcae",
        "pencil",
        VERIFIER.replace("4096", "0"),
        VERIFIER.replace("W22Z", "W22!"),
        VERIFIER + "x",
        VERIFIER.replace("SHA-256", "SHA-512"),
    ],
)
def test_what_is_no_verifier_matches_nothing(verifier: str | None) -> None:
    assert not matches("pencil", verifier)


@pytest.mark.parametrize(
    ("password", "normal"),
    [
        ("plain ASCII \t", "plain ASCII \t"),
        ("I\u00adX", "IX"),  # RFC 4013, section 3: SOFT HYPHEN is mapped to nothing
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("\u0627\u0031", "\u0627\u0031"),  # forbidden by the bidirectional rule: taken as it is, as the server does
        ("\u00ad", "\u00ad"),  # would be empty
        ("\ue000x\u00aa", "\ue000x\u00aa"),  # private use is forbidden
    ],
)
def test_passwords_are_normalised_as_the_server_does(password: str, normal: str) -> None:
    assert saslprep(password) == normal
