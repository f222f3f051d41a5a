# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection to a Redis server or Sentinel over TLS, and the few words of RESP2 that it takes.

By the standard library alone and without an import of ours: the role `redis` also puts this file on hosts, beside the
program that starts members there.

Source: Redis serialization protocol specification, RESP2 (redis.io/docs/latest/develop/reference/protocol-spec).
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import ssl

Reply = int | str | None | list["Reply"]
"""What a server answers; an error is a `ReplyError` instead, also within a list."""

TIMEOUT = 3.0
"""Seconds for one answer, when the caller does not say."""

LINE_LIMIT = 64 * 1024
"""Bytes of a line; the longest that a server sends is an error message."""
TEXT_LIMIT = 64 * 1024 * 1024
"""Bytes of a text; what we ask for has some thousand."""
LIST_LIMIT = 1024 * 1024
"""Items of a list."""
DEPTH_LIMIT = 8
"""Lists within lists."""


class RedisError(Exception):
    """A server did not answer, or not what it should."""


class UnreachableError(RedisError):
    """There is no connection, or it broke.

    Attributes:
        refused: nothing listens there, so the process is not running (unlike a timeout or a bad certificate, which
            prove nothing about it).
        silent: it did not answer in time; to ask again would take as long.
    """

    def __init__(self, message: str, *, refused: bool = False, silent: bool = False) -> None:
        """Keep what is known."""
        super().__init__(message)
        self.refused, self.silent = refused, silent


class ProtocolError(RedisError):
    """What came is no RESP2."""


class ReplyError(RedisError):
    """The server answered with an error.

    Attributes:
        code: its first word, such as `NOPERM`.
    """

    def __init__(self, server: str, text: str) -> None:
        """Take the answer apart."""
        super().__init__(f"{server}: {text}")
        self.code = text.split(" ", 1)[0]


def encode(*words: str | int) -> bytes:
    """A command as servers read it: a list of texts."""
    parts = [str(word).encode() for word in words]
    return b"".join([b"*%d\r\n" % len(parts), *(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)])


def decode(stream: BinaryIO, server: str = "server", depth: int = 0) -> Reply:
    """The next answer of a stream.

    Args:
        stream: where it comes from.
        server: who answers, for messages.
        depth: how many lists it is within.

    Raises:
        ReplyError: the answer is an error.
        ProtocolError: it is no answer.
        UnreachableError: it ends before it is complete.
        OSError: the stream cannot be read.
    """
    line = stream.readline(LINE_LIMIT)
    if not line.endswith(b"\r\n"):
        if len(line) >= LINE_LIMIT or line.endswith(b"\n"):
            raise ProtocolError(f"{server}: sent a line that is no answer of Redis")
        raise UnreachableError(f"{server}: ended the connection")
    kind, rest = line[:1], line[1:-2]
    if kind == b"+":
        return _text(rest)
    if kind == b"-":
        raise ReplyError(server, _text(rest))
    if kind == b":":
        return _number(rest, server)
    if kind == b"$":
        return _bulk(stream, _number(rest, server), server)
    if kind == b"*":
        return _list(stream, _number(rest, server), server, depth)
    raise ProtocolError(f"{server}: sent {_text(line[:20])!r}, which is no answer of Redis")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _number(data: bytes, server: str) -> int:
    try:
        return int(data)
    except ValueError as error:
        raise ProtocolError(f"{server}: sent {_text(data[:20])!r} for a number") from error


def _bulk(stream: BinaryIO, length: int, server: str) -> str | None:
    if length == -1:
        return None
    if not 0 <= length <= TEXT_LIMIT:
        raise ProtocolError(f"{server}: sent a text of {length} bytes")
    data = stream.read(length + 2)
    if len(data) < length + 2:
        raise UnreachableError(f"{server}: ended the connection")
    if not data.endswith(b"\r\n"):
        raise ProtocolError(f"{server}: sent a text that is longer than it said")
    return _text(data[:-2])


def _list(stream: BinaryIO, length: int, server: str, depth: int) -> list[Reply] | None:
    if length == -1:
        return None
    if not 0 <= length <= LIST_LIMIT or depth >= DEPTH_LIMIT:
        raise ProtocolError(f"{server}: sent a list of {length} items, {depth} deep")
    items: list[Reply] = []
    failed: ReplyError | None = None
    for _ in range(length):
        try:
            items.append(decode(stream, server, depth + 1))
        except ReplyError as error:  # the rest of the list is read first, or the next answer would begin within it
            failed = failed or error
    if failed is not None:
        raise failed
    return items


def parse_info(text: str) -> dict[str, str]:
    """The `key:value` lines of an answer of INFO."""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line and not line.startswith("#"))
    return {key: value for key, _colon, value in pairs}


def parse_pairs(reply: Reply, server: str = "server") -> dict[str, str]:
    """The `key value key value` list by which CONFIG GET and Sentinel tell what they know.

    Raises:
        ProtocolError: it is none.
    """
    if not isinstance(reply, list) or len(reply) % 2:
        raise ProtocolError(f"{server}: sent {str(reply)[:40]!r} for a list of pairs")
    return dict(zip(map(str, reply[::2]), map(str, reply[1::2]), strict=True))


class Connection:
    """One connection to one server."""

    def __init__(self, server: str, context: ssl.SSLContext, timeout: float = TIMEOUT) -> None:
        """Connect.

        Args:
            server: `address:port`; the server's certificate has to be for that address or name.
            context: our certificate and whom we trust.
            timeout: seconds for the connection, and for each answer.

        Raises:
            UnreachableError: there is no connection.
        """
        self.server = server
        host, _, port = server.rpartition(":")
        host = host.strip("[]")
        try:
            plain = socket.create_connection((host, int(port)), timeout)
        except ValueError as error:
            raise UnreachableError(f"{server} is no address:port") from error
        except OSError as error:
            raise _broken(server, error) from error
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = context.wrap_socket(plain, server_hostname=host)
        except OSError as error:  # ssl.SSLError is one
            plain.close()
            raise _broken(server, error) from error
        self._stream: BinaryIO = self._socket.makefile("rb")

    def ask(self, *words: str | int) -> Reply:
        """The answer to one command.

        Raises:
            ReplyError: the server refuses.
            UnreachableError: the connection broke, or the answer did not come in time.
            ProtocolError: what came is no answer.
        """
        try:
            self._socket.sendall(encode(*words))
            return decode(self._stream, self.server)
        except OSError as error:
            raise _broken(self.server, error) from error

    def login(self, user: str, password: str) -> None:
        """Be that user from here on.

        Raises:
            ReplyError: the server does not know such a user.
            UnreachableError: the connection broke.
        """
        self.ask("AUTH", user, password)

    def close(self) -> None:
        """End it; to end what has broken already is no error."""
        with suppress(OSError):
            self._stream.close()
        with suppress(OSError):
            self._socket.close()


def _broken(server: str, error: OSError) -> UnreachableError:
    silent = isinstance(error, TimeoutError)
    cause = "no answer in time" if silent else (error.strerror or str(error)).lower()
    return UnreachableError(f"{server}: {cause}", refused=isinstance(error, ConnectionRefusedError), silent=silent)
