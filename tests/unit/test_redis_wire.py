# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The words of RESP2: what is sent is what servers read, and what comes is an answer, an error or neither."""

from __future__ import annotations

import io
import socket
import ssl
from contextlib import suppress

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.redis_wire import (
    LIST_LIMIT,
    Connection,
    ProtocolError,
    RedisError,
    Reply,
    ReplyError,
    UnreachableError,
    decode,
    encode,
    parse_info,
    parse_pairs,
)
from hypothesis import given
from hypothesis import strategies as st

TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
REPLIES = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | TEXTS, lambda items: st.lists(items, max_size=4), max_leaves=8
)


def written(reply: Reply) -> bytes:
    """As a server writes it."""
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, str):
        return b"$%d\r\n%b\r\n" % (len(reply.encode()), reply.encode())
    return b"*%d\r\n" % len(reply) + b"".join(written(item) for item in reply)


@given(REPLIES)
def test_what_a_server_writes_is_read(reply: Reply) -> None:
    stream = io.BytesIO(written(reply) + b"+next\r\n")
    assert decode(stream) == reply
    assert decode(stream) == "next"


@given(st.lists(TEXTS | st.integers(), min_size=1, max_size=5))
def test_a_command_is_a_list_of_texts(words: list[str | int]) -> None:
    assert decode(io.BytesIO(encode(*words))) == [str(word) for word in words]


@given(REPLIES, st.data())
def test_an_answer_that_ends_early_is_a_broken_connection(reply: Reply, data: st.DataObject) -> None:
    whole = written(reply)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(UnreachableError, match="ended the connection"):
        decode(io.BytesIO(whole[:cut]))


@given(st.binary(max_size=60))
def test_whatever_comes_is_an_answer_or_one_of_our_errors(noise: bytes) -> None:
    with suppress(RedisError):
        decode(io.BytesIO(noise))


def test_an_error_within_a_list_is_told_after_the_list_is_read() -> None:
    stream = io.BytesIO(b"*2\r\n-NOPERM may not\r\n:1\r\n+next\r\n")
    with pytest.raises(ReplyError, match="host:1: NOPERM may not") as caught:
        decode(stream, "host:1")
    assert caught.value.code == "NOPERM"
    assert decode(stream) == "next"


@pytest.mark.parametrize(
    "noise",
    [
        b"HTTP/1.1 400\r\n",
        b"\x15\x03\x03\n",
        b"$-2\r\n",
        b"$x\r\n",
        b"*%d\r\n" % (LIST_LIMIT + 1),
        b"*1\r\n" * 10,
        b"$1\r\nabc\r\n",
    ],
)
def test_what_is_no_answer_is_told(noise: bytes) -> None:
    with pytest.raises(ProtocolError, match="server: sent"):
        decode(io.BytesIO(noise))


def test_info_and_pairs_are_tables() -> None:
    assert parse_info("# Replication\r\nrole:slave\r\nmaster_host:::1\r\n\r\n") == {
        "role": "slave",
        "master_host": "::1",
    }
    assert parse_pairs(["a", "1", "b", 2]) == {"a": "1", "b": "2"}
    for wrong in (["a"], "a", None):
        with pytest.raises(ProtocolError, match="list of pairs"):
            parse_pairs(wrong)


def test_nothing_that_listens_is_refused_and_nothing_that_answers_is_silent() -> None:
    context = ssl.create_default_context()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UnreachableError, match="no answer in time") as silent:
            Connection(place, context, 0.2)
    with pytest.raises(UnreachableError, match="connection refused") as refused:
        Connection(place, context, 0.2)
    assert (silent.value.silent, silent.value.refused) == (True, False)
    assert (refused.value.silent, refused.value.refused) == (False, True)
    with pytest.raises(UnreachableError, match="no address:port"):
        Connection("127.0.0.1:x", context, 0.2)
