# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written is what is read, in every message that we speak, and what is no message is told so."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils import kafka_messages, kafka_wire
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_client import lacking_apis
from ansible_collections.groundplane.onprem.plugins.module_utils.kafka_wire import (
    INT8,
    TEXT,
    Api,
    Array,
    Codec,
    Data,
    Number,
    Reader,
    Record,
    Text,
    Uuid,
    WireError,
    array,
    frame,
    varint,
)
from hypothesis import given
from hypothesis import strategies as st

APIS = st.sampled_from(kafka_messages.EVERY)


def values(codec: Codec) -> st.SearchStrategy[Any]:
    """Whatever a codec can write."""
    found: st.SearchStrategy[Any]
    match codec:
        case Number("d"):
            return st.floats(allow_nan=False)
        case Number("?"):
            return st.booleans()
        case Number("H"):
            return st.integers(0, 2**16 - 1)
        case Number():
            limit = 2 ** (8 * struct.calcsize(codec.format) - 1)
            return st.integers(-limit, limit - 1)
        case Uuid():
            return st.binary(min_size=16, max_size=16)
        case Text():
            found = st.text(max_size=20)
        case Data():
            found = st.binary(max_size=200)
        case Array():
            found = st.lists(values(codec.of), max_size=3)
        case Record():
            must = {name: values(one) for name, one in codec.fields.items()}
            may = dict(values_of_tagged(codec))
            return st.fixed_dictionaries(must, optional=may)
        case _:
            raise AssertionError(codec)
    return st.none() | found if codec.nullable else found


def values_of_tagged(codec: Record) -> list[tuple[str, st.SearchStrategy[Any]]]:
    return [(name, values(one)) for name, one in codec.tagged.values()]


def answered(api: Api, correlation: int, message: dict[str, Any]) -> bytes:
    """An answer as a broker sends it, without its length."""
    out = bytearray(struct.pack(">i", correlation))
    if api.flexible and not api.plain_answer:
        out += b"\0"
    api.response.write(out, message)
    return bytes(out)


@given(st.data(), APIS, st.integers(0, 2**31 - 1))
def test_what_is_written_is_what_is_read(data: st.DataObject, api: Api, correlation: int) -> None:
    question, told = data.draw(values(api.request)), data.draw(values(api.response))
    framed = frame(api, correlation, "us", question)
    assert struct.unpack(">ihhih2s", framed[:16]) == (len(framed) - 4, api.key, api.version, correlation, 2, b"us")
    reader = Reader(framed[17 if api.flexible else 16 :])
    assert api.request.read(reader) == question
    assert reader.at == len(reader.data)
    assert kafka_wire.answer(api, correlation, answered(api, correlation, told)) == told


@given(st.data(), APIS)
def test_an_answer_that_is_cut_off_or_goes_on_is_none(data: st.DataObject, api: Api) -> None:
    whole = answered(api, 1, data.draw(values(api.response)))
    with pytest.raises(WireError, match=rf"{api.name}: .*|\d+ bytes are announced"):
        kafka_wire.answer(api, 1, whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(WireError, match=rf"{api.name}: 1 bytes follow the answer"):
        kafka_wire.answer(api, 1, whole + b"\0")


@given(st.binary(max_size=300), APIS)
def test_noise_is_an_answer_or_an_error_and_nothing_else(noise: bytes, api: Api) -> None:
    try:
        message = kafka_wire.answer(api, 0, b"\0\0\0\0" + noise)
    except WireError:
        return
    assert set(api.response.fields) <= set(message)


@given(st.integers(0, 2**32 - 1))
def test_a_number_of_variable_length(value: int) -> None:
    written = varint(value)
    assert len(written) == max(1, math.ceil(value.bit_length() / 7))
    assert Reader(written).varint() == value


@pytest.mark.parametrize("data", [b"\x80", b"\xff\xff\xff\xff\xff", b"\xff\xff\xff\xff\x1f", b""])
def test_a_number_that_does_not_end_or_is_too_large(data: bytes) -> None:
    with pytest.raises(WireError):
        Reader(data).varint()


def test_numbers_and_texts_are_those_of_the_documentation() -> None:
    # KIP-482: the length of a compact text is one more, 0 is null; fields that are not known are passed over by length.
    out = bytearray()
    record = Record({"name": TEXT, "few": array(INT8)}, {1: ("late", TEXT)})
    record.write(out, {"name": "é" * 70, "few": [1, -1], "late": "x"})
    assert bytes(out) == b"\x8d\x01" + "é".encode() * 70 + b"\x03\x01\xff" + b"\x01\x01\x02\x02x"
    newer = bytes(out[:-5]) + b"\x02\x01\x02\x02y\x07\x03abc"
    assert record.read(Reader(newer)) == {"name": "é" * 70, "few": [1, -1], "late": "y"}
    with pytest.raises(WireError, match="not UTF-8"):
        TEXT.read(Reader(b"\x02\xff"))
    with pytest.raises(WireError, match="elements are announced"):
        array(INT8).read(Reader(b"\xff\xff\xff\xff\x0f"))
    for codec, data in ((TEXT, b"\0"), (Text(compact=False), b"\xff\xff"), (Data(compact=False), b"\xff\xff\xff\xfe")):
        with pytest.raises(WireError, match="no length stands"):
            codec.read(Reader(data))
    with pytest.raises(WireError, match="a value is missing"):
        TEXT.write(bytearray(), None)


def test_the_answer_to_another_request_is_none() -> None:
    with pytest.raises(WireError, match="ApiVersions: the answer is to request 2, not to 1"):
        kafka_wire.answer(kafka_messages.API_VERSIONS, 1, b"\0\0\0\x02")


def test_a_broker_that_lacks_a_request_is_known_by_it() -> None:
    served = {api.key: (0, api.version) for api in kafka_messages.ADMINISTRATION}
    assert lacking_apis(served) == []
    served[kafka_messages.DESCRIBE_ACLS.key] = (0, 2)
    served[kafka_messages.METADATA.key] = (13, 14)
    del served[kafka_messages.ALTER_SCRAM.key]
    assert lacking_apis(served) == ["Metadata 12", "DescribeAcls 3", "AlterUserScramCredentials 0"]


def test_a_controller_need_not_serve_what_brokers_do() -> None:
    served = {55: (0, 2), 60: (0, 2)}
    assert lacking_apis(served, kafka_messages.CONTROLLER_HEALTH) == []
    assert lacking_apis(served, kafka_messages.BROKER_HEALTH) == [
        "Metadata 12", "ListPartitionReassignments 0", "DescribeConfigs 4",
    ]  # fmt: skip
    assert lacking_apis({55: (0, 1), 60: (0, 2)}, kafka_messages.CONTROLLER_HEALTH) == ["DescribeQuorum 2"]


def test_an_error_has_words() -> None:
    assert kafka_messages.words(40, "Unknown topic config name: x.") == "Unknown topic config name: x"
    assert kafka_messages.words(36, None) == "the topic is there already"
    assert kafka_messages.words(4711, None) == "error 4711 of Kafka's protocol"
