"""Messages of streams: what they say is what is read; and nobody sends more than the other side takes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale_protocol.streams import (
    CHUNK,
    LEAST_WEIGHT,
    LONGEST_REASON,
    MOST_WINDOW,
    Credit,
    Frame,
    Intake,
    Order,
    StreamError,
    is_stream,
    read_frame,
)

FRAMES = [
    Frame("s", "data", 0, b"abc"),
    Frame("s", "data", 7, b""),
    Frame("s", "credit", 1, bytes=4096),
    Frame("s", "eof", 2),
    Frame("s", "close", 3),
    Frame("s", "close", 3, reason="the VM is off", hint="start-vm starts it"),
    Frame("s", "ping", 4),
    Frame("s", "resize", 5, size=(80, 24)),
]


@pytest.mark.parametrize("frame", FRAMES)
def test_what_is_written_is_read(frame: Frame) -> None:
    assert is_stream(frame.headers)
    assert read_frame(frame.headers, frame.body) == frame


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"stream": 1, "kind": "data", "seq": 0}, b""),
        ({"stream": "s" * 65, "kind": "data", "seq": 0}, b""),
        ({"stream": "s", "kind": "date", "seq": 0}, b""),
        ({"stream": "s", "kind": ["data"], "seq": 0}, b""),
        ({"stream": "s", "kind": "data"}, b""),
        ({"stream": "s", "kind": "data", "seq": -1}, b""),
        ({"stream": "s", "kind": "data", "seq": True}, b""),
        ({"stream": "s", "kind": "credit", "seq": 0, "bytes": -5}, b""),
        ({"stream": "s", "kind": "credit", "seq": 0, "bytes": "all"}, b""),
        ({"stream": "s", "kind": "data", "seq": 0}, b"x" * (CHUNK + 1)),
        ({"stream": "s", "kind": "ping", "seq": 0}, b"x"),
    ],
)
def test_what_is_no_frame_is_refused(headers: dict[str, object], body: bytes) -> None:
    with pytest.raises(StreamError):
        read_frame(headers, body)


@pytest.mark.parametrize("size", [(0, 0), (-1, 24), (80, 0), (1001, 24), (80, 1 << 40), ("80", "24"), (80.0, 24.0)])
def test_a_size_that_makes_no_sense_is_none(size: tuple[Any, Any]) -> None:
    headers = {"stream": "s", "kind": "resize", "seq": 0, "columns": size[0], "lines": size[1]}
    assert read_frame(headers, b"") == Frame("s", "resize", 0)


def test_a_stream_that_is_gone_says_so_to_programs() -> None:
    assert Frame("s", "close", 0, reason="the VM is off").headers["code"] == "stream-gone"
    assert "code" not in Frame("s", "close", 0).headers


def test_a_reason_is_never_long() -> None:
    frame = Frame("s", "close", 0, reason="x" * 5000)
    assert len(read_frame(frame.headers, b"").reason) == LONGEST_REASON


@pytest.mark.parametrize("headers", [None, {}, {"deadline": 5}])
def test_a_command_is_no_stream(headers: dict[str, object] | None) -> None:
    assert not is_stream(headers)


def test_a_message_that_comes_again_is_not_new_and_one_that_is_missing_ends_it() -> None:
    order = Order()
    assert [order.is_new(seq) for seq in (0, 1, 1, 0, 2)] == [True, True, False, False, True]
    with pytest.raises(StreamError, match="lost on the way"):
        order.is_new(4)


def test_credit_that_was_never_used_is_refused() -> None:
    credit = Credit(10_000)
    credit.spend(6000)
    credit.grant(6000)
    with pytest.raises(StreamError):
        credit.grant(1)


def test_more_than_the_window_is_refused() -> None:
    intake = Intake(10_000)
    intake.take(10_000)
    with pytest.raises(StreamError):
        intake.take(1)


def test_messages_of_a_byte_take_what_they_cost_to_carry() -> None:
    """Else a window of 64 KiB would be 65,536 messages, each with a thousand bytes of memory in the broker."""
    credit, intake = Credit(4 * LEAST_WEIGHT), Intake(4 * LEAST_WEIGHT)
    for _ in range(4):
        assert credit.chunk > 0
        credit.spend(1)
        intake.take(1)
    assert credit.chunk == 0
    with pytest.raises(StreamError):
        intake.take(1)
    credit.grant(intake.used(1, 1, 1))
    assert credit.left == 3 * LEAST_WEIGHT


@given(st.integers(4096, 4 << 20), st.lists(st.integers(1, CHUNK), max_size=50))
def test_sender_and_receiver_agree_and_never_wait_for_each_other(window: int, offers: list[int]) -> None:
    """However a window is used, what is used up is given back before the sender would stand still."""
    credit, intake = Credit(min(window, MOST_WINDOW)), Intake(window)
    for offer in offers:
        assert credit.chunk > 0
        count = min(offer, credit.chunk)
        credit.spend(count)
        intake.take(count)
        assert 0 <= credit.left <= min(window, MOST_WINDOW)
        credit.grant(intake.used(count))
    assert credit.left > min(window, MOST_WINDOW) // 2
