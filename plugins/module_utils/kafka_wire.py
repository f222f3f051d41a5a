# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kafka's wire protocol: how values, messages and frames are written and read, as pure functions.

A message is a dictionary, and a `Record` says which keys it has and how each is written. What is not given and has no
default is an error of the caller, and is told as a KeyError.

Source: Kafka 4.4 documentation, "Protocol" (primitive types, headers), and KIP-482 (flexible versions, tagged fields).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

_VARINT_BYTES = 5
"""Most bytes of an unsigned variable-length integer of 32 bits."""


class WireError(Exception):
    """Bytes that are no message of the kind that was expected."""


class Reader:
    """Bytes, and how far they were read."""

    def __init__(self, data: bytes) -> None:
        """Begin at the first byte."""
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            WireError: there are not so many.
        """
        end = self.at + count
        if count < 0 or end > len(self.data):
            raise WireError(f"{count} bytes are announced at {self.at} of {len(self.data)}")
        found = self.data[self.at : end]
        self.at = end
        return found

    def varint(self) -> int:
        """An unsigned integer in groups of seven bits, the lowest first.

        Raises:
            WireError: it does not end, or in more than 32 bits.
        """
        value = 0
        for position in range(_VARINT_BYTES):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << (7 * position)
            if byte < 0x80:  # noqa: PLR2004 - the eighth bit says that another byte follows
                if value >> 32:
                    break
                return value
        raise WireError(f"the number before {self.at} has more than 32 bits")


def varint(value: int) -> bytes:
    """What `Reader.varint` reads."""
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Codec(Protocol):
    """How one value is written and read."""

    def write(self, out: bytearray, value: Any) -> None:
        """Append a value."""

    def read(self, reader: Reader) -> Any:
        """Take a value.

        Raises:
            WireError: there is none.
        """


@dataclass(frozen=True)
class Number:
    """A number of fixed length, or a truth value.

    Attributes:
        format: as module struct has it, without the byte order.
    """

    format: str

    def write(self, out: bytearray, value: Any) -> None:
        """Append it."""
        out += struct.pack(f">{self.format}", value)

    def read(self, reader: Reader) -> Any:
        """Take it."""
        return struct.unpack(f">{self.format}", reader.take(struct.calcsize(self.format)))[0]


@dataclass(frozen=True)
class Uuid:
    """Sixteen bytes."""

    def write(self, out: bytearray, value: bytes) -> None:
        """Append it."""
        out += value

    def read(self, reader: Reader) -> bytes:
        """Take it."""
        return reader.take(16)


@dataclass(frozen=True)
class _Sized:
    """What has its length before it.

    Attributes:
        nullable: whether None is a value.
        compact: the length plus one as a variable-length integer, 0 for None, as in flexible versions; otherwise a
            fixed number, -1 for None.
    """

    nullable: bool = False
    compact: bool = True

    def _write_size(self, out: bytearray, size: int | None, fixed: str) -> None:
        if size is None and not self.nullable:
            raise WireError("a value is missing")
        if self.compact:
            out += varint(0 if size is None else size + 1)
        else:
            out += struct.pack(f">{fixed}", -1 if size is None else size)

    def _read_size(self, reader: Reader, fixed: str) -> int | None:
        size = reader.varint() - 1 if self.compact else int(Number(fixed).read(reader))
        if size < -1 or (size == -1 and not self.nullable):
            raise WireError(f"no length stands before {reader.at}")
        return None if size == -1 else size


@dataclass(frozen=True)
class Text(_Sized):
    """Text in UTF-8."""

    def write(self, out: bytearray, value: str | None) -> None:
        """Append it."""
        data = None if value is None else value.encode()
        self._write_size(out, None if data is None else len(data), "h")
        out += data or b""

    def read(self, reader: Reader) -> str | None:
        """Take it."""
        size = self._read_size(reader, "h")
        if size is None:
            return None
        try:
            return reader.take(size).decode()
        except UnicodeDecodeError as error:
            raise WireError(f"the text before {reader.at} is not UTF-8") from error


@dataclass(frozen=True)
class Data(_Sized):
    """Bytes."""

    def write(self, out: bytearray, value: bytes | None) -> None:
        """Append them."""
        self._write_size(out, None if value is None else len(value), "i")
        out += value or b""

    def read(self, reader: Reader) -> bytes | None:
        """Take them."""
        size = self._read_size(reader, "i")
        return None if size is None else reader.take(size)


@dataclass(frozen=True)
class Array(_Sized):
    """A list.

    Attributes:
        of: how an element is written.
    """

    of: Codec = field(default_factory=lambda: Number("b"))

    def write(self, out: bytearray, value: list[Any] | None) -> None:
        """Append it."""
        self._write_size(out, None if value is None else len(value), "i")
        for element in value or ():
            self.of.write(out, element)

    def read(self, reader: Reader) -> list[Any] | None:
        """Take it."""
        size = self._read_size(reader, "i")
        if size is None:
            return None
        # Each element takes a byte at least, so a wrong length ends before memory does.
        if size > len(reader.data) - reader.at:
            raise WireError(f"{size} elements are announced at {reader.at} of {len(reader.data)}")
        return [self.of.read(reader) for _ in range(size)]


@dataclass(frozen=True)
class Record:
    """A dictionary.

    Attributes:
        fields: name to how it is written, in the order of the wire.
        tagged: tag to name and codec of what may be there. What we do not know is passed over.
        flexible: whether tagged fields follow.
    """

    fields: Mapping[str, Codec]
    tagged: Mapping[int, tuple[str, Codec]] = field(default_factory=dict)
    flexible: bool = True

    def write(self, out: bytearray, value: Mapping[str, Any]) -> None:
        """Append it."""
        for name, codec in self.fields.items():
            codec.write(out, value[name])
        if not self.flexible:
            return
        there = [(tag, *item) for tag, item in sorted(self.tagged.items()) if item[0] in value]
        out += varint(len(there))
        for tag, name, codec in there:
            content = bytearray()
            codec.write(content, value[name])
            out += varint(tag) + varint(len(content)) + content

    def read(self, reader: Reader) -> dict[str, Any]:
        """Take it."""
        value = {name: codec.read(reader) for name, codec in self.fields.items()}
        if not self.flexible:
            return value
        for _ in range(reader.varint()):
            tag = reader.varint()
            content = Reader(reader.take(reader.varint()))
            if tag in self.tagged:
                name, codec = self.tagged[tag]
                value[name] = codec.read(content)
        return value


@dataclass(frozen=True)
class Api:
    """One request in one version, and the answer to it.

    Attributes:
        name: as Kafka calls it.
        key: its number.
        version: the one that is spoken.
        request: the question.
        response: the answer.
        flexible: whether the headers may have tagged fields.
        plain_answer: whether the header of the answer has none all the same. That of ApiVersions is such, because who
            asks cannot know yet what the other side speaks.
    """

    name: str
    key: int
    version: int
    request: Record
    response: Record
    flexible: bool = True
    plain_answer: bool = False


INT8, INT16, INT32, INT64, UINT16 = Number("b"), Number("h"), Number("i"), Number("q"), Number("H")
FLOAT64, BOOLEAN, UUID = Number("d"), Number("?"), Uuid()
TEXT, NULLABLE_TEXT, DATA = Text(), Text(nullable=True), Data()
OLD_TEXT = Text(compact=False)
_CLIENT = Text(nullable=True, compact=False)


def array(of: Codec, *, nullable: bool = False, compact: bool = True) -> Array:
    """A list of something."""
    return Array(nullable=nullable, compact=compact, of=of)


def frame(api: Api, correlation: int, client: str, message: Mapping[str, Any]) -> bytes:
    """A request as it is sent, its length first.

    Args:
        api: what is asked.
        correlation: number that the answer will carry.
        client: name of the client, for quotas and logs of the broker.
        message: the question.
    """
    out = bytearray(struct.pack(">hhi", api.key, api.version, correlation))
    _CLIENT.write(out, client)
    if api.flexible:
        out += varint(0)
    api.request.write(out, message)
    return struct.pack(">i", len(out)) + bytes(out)


def answer(api: Api, correlation: int, data: bytes) -> dict[str, Any]:
    """The message in an answer, without its length.

    Raises:
        WireError: it is the answer to another request, cut off, or followed by something.
    """
    reader = Reader(data)
    number = INT32.read(reader)
    if number != correlation:
        raise WireError(f"{api.name}: the answer is to request {number}, not to {correlation}")
    if api.flexible and not api.plain_answer:
        Record({}).read(reader)
    try:
        message = api.response.read(reader)
    except WireError as error:
        raise WireError(f"{api.name}: {error}") from error
    if reader.at != len(data):
        raise WireError(f"{api.name}: {len(data) - reader.at} bytes follow the answer")
    return message
