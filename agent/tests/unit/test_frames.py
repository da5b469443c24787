"""What pika can't decode must not end the connection that it is delivered on."""

import struct
from typing import Any

import pika
import pytest
from pika import frame, spec
from pika.exceptions import InvalidFrameError

from aetherscale_agent.broker import _TolerantConnection

BODY = 4711


def header_frame(properties: bytes, *, channel: int = 3, kind: int = spec.FRAME_HEADER, end: int = 0xCE) -> bytes:
    payload = struct.pack(">HHQ", spec.Basic.INDEX, 0, BODY) + properties
    return struct.pack(">BHL", kind, channel, len(payload)) + payload + bytes([end])


def with_headers(table: bytes) -> bytes:
    """Properties that hold headers only."""
    return struct.pack(">HI", pika.BasicProperties.FLAG_HEADERS, len(table)) + table


def nested(depth: int) -> bytes:
    table = b""
    for _ in range(depth):
        table = b"\x01aF" + struct.pack(">I", len(table)) + table
    return table


POISON = {
    "a date in the year 10^11": b"\x01tT" + struct.pack(">Q", 2**62),
    "tables nested too deep": nested(5000),
    "a number that is none": b"\x01xd" + struct.pack(">d", float("nan")),
    "an infinite number": b"\x01xf" + struct.pack(">f", float("inf")),
    "a type that there is not": b"\x01xZ",
    "a table cut short": b"\x01xl\0",
    "a name cut short": b"\xffx",
}


def read(data: bytes) -> tuple[int, Any]:
    connection = _TolerantConnection.__new__(_TolerantConnection)
    connection._frame_buffer = data
    return connection._read_frame()


@pytest.mark.parametrize("table", POISON.values(), ids=[*POISON])
def test_properties_that_cannot_be_decoded_are_read_as_none(table: bytes) -> None:
    data = header_frame(with_headers(table))
    with pytest.raises(Exception):  # noqa: B017
        frame.decode_frame(data)
    for rest in (b"", header_frame(b"\0\0")):
        consumed, header = read(data + rest)
        assert consumed == len(data)
        assert (header.channel_number, header.body_size) == (3, BODY)
        assert header.properties == pika.BasicProperties()


def test_properties_that_can_be_decoded_are_read() -> None:
    sent = pika.BasicProperties(headers={"a": [1, {"b": None}]}, reply_to="r", correlation_id="c", message_id="m")
    data = header_frame(b"".join(sent.encode()))
    consumed, header = read(data)
    assert consumed == len(data)
    assert header.properties == sent


def test_what_is_no_frame_still_ends_the_connection() -> None:
    with pytest.raises(InvalidFrameError):
        read(header_frame(b"\0\0", end=0))
    with pytest.raises(Exception):  # noqa: B017
        read(header_frame(b"\xff\xff\xff\xff", kind=spec.FRAME_METHOD))


@pytest.mark.parametrize("length", [0, 3, 7, 20])
def test_half_a_frame_waits_for_the_rest(length: int) -> None:
    assert read(header_frame(with_headers(b""))[:length]) == (0, None)
