"""From a delivery to a command in hand: who sent it, until when, and where its answer belongs."""

import base64
import json
import struct
from typing import Any

import pika
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale_agent.decide import MAX_HOPS
from aetherscale_agent.envelope import check_deadline, check_patience, check_reply_to, died_in, is_agent, read_envelope
from aetherscale_protocol import names, topology
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import CreateVm

MANY = settings(max_examples=100, deadline=None, database=None)

PREFIX = "amq.rabbitmq.reply-to."
KEY = "uh3PT7/gnq8t5CwSy0Ejvg=="
NODE = b"reply@61677425"
TOKEN_3_10 = "g1hkAA5yZXBseUA2MTY3NzQyNQAACG0AAAAAZZFkXQ=="
TOKEN_4_2 = "g1h2AA5yZXBseUA2ODc4MTMzNAAAcEoAAAAAaS8eQg=="
REAL = f"{PREFIX}{TOKEN_3_10}.{KEY}"


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def address(data: bytes, key: str = KEY) -> str:
    return f"{PREFIX}{encode(data)}.{key}"


def pid(kind: int = 88, atom: int = 118, node: bytes = NODE, tail: bytes | None = None) -> bytes:
    """A process id in Erlang's external term format."""
    length = struct.pack(">H", len(node)) if atom in (100, 118) else struct.pack("B", len(node))
    default = b"\0\0\x08\x6d\0\0\0\0" + (b"\x65\x91\x64\x5d" if kind == 88 else b"\x03")
    return bytes([131, kind, atom]) + length + node + (default if tail is None else tail)


def refusal(reply_to: Any) -> str:
    with pytest.raises(Refused) as caught:
        check_reply_to(reply_to)
    assert caught.value.code == "bad-request"
    return caught.value.reason


# Where an answer may go


@pytest.mark.parametrize(
    "good",
    [
        REAL,
        f"{PREFIX}{TOKEN_4_2}.{KEY}",
        *(address(pid(kind, atom)) for kind in (88, 103) for atom in (100, 115, 118, 119)),
        address(pid(node=b"rabbit@a-host.with.dots")),
        address(pid(node=b"generated@1")),
        address(pid(node=b"")),
    ],
)
def test_a_direct_reply_to_address_is_accepted(good: str) -> None:
    assert check_reply_to(good) == good


def test_the_real_tokens_are_process_ids() -> None:
    assert base64.b64decode(TOKEN_3_10) == pid(atom=100)
    assert base64.b64decode(TOKEN_4_2)[:19] == pid(node=b"reply@68781334")[:19]
    assert len(base64.b64decode(TOKEN_4_2)) == len(pid())


@pytest.mark.parametrize("nothing", [None, "", b""])
def test_without_an_address_nothing_is_executed(nothing: Any) -> None:
    assert "no reply_to" in refusal(nothing)


@pytest.mark.parametrize(
    "bad",
    [
        "amq.rabbitmq.reply-to",
        PREFIX,
        PREFIX + ".",
        f"{PREFIX}{TOKEN_3_10}",
        f"{PREFIX}{TOKEN_3_10}.",
        f"{PREFIX}.{KEY}",
        f"{PREFIX}{TOKEN_3_10}.{KEY}.x",
        f"{PREFIX}AAAA.BBBB",
        f"{PREFIX}%%%.x",
        f"x{REAL}",
        f" {REAL}",
        f"{REAL} ",
        f"{REAL}\n",
        REAL.upper(),
        REAL.replace("amq.", "amqX", 1),
        "computing-host.h2",
        "host.h2",
        "vm.sgeqxcfi",
        "claim.sgeqxcfi",
        "computing-competing",
        REAL.encode(),  # pika gives bytes for what is not UTF-8
        b"\xff\xfe",
        7,
        f"{PREFIX}{TOKEN_3_10[:-1]}.{KEY}",  # padding cut
        f"{PREFIX}{TOKEN_3_10}=.{KEY}",
        f"{PREFIX}g1hk====AA5yZXBseUA2MTY3NzQyNQAACG0AAAAAZZFkXQ==.{KEY}",  # padding inside
        f"{PREFIX}g1hk-A5yZXBseUA2MTY3NzQyNQAACG0AAAAAZZFkXQ==.{KEY}",  # not RabbitMQ's alphabet
        f"{PREFIX}{TOKEN_3_10}.====",
        f"{PREFIX}{TOKEN_3_10}.uh3PT",  # no base64
        address(b"no erlang term at all"),
        address(bytes([131, 88]) + b"A" * 40),
        address(bytes([131, 104, 1]) + pid()[1:]),  # a tuple
        address(bytes([131, 109, 0, 0, 0, 20]) + b"x" * 20),  # a binary
        address(bytes([130]) + pid()[1:]),
        address(pid(kind=89)),  # a port
        address(pid(atom=97)),
        address(pid() + b"\0"),
        address(pid()[:-1]),
        address(pid(kind=103, tail=b"\0" * 12)),
    ],
)
def test_anything_else_is_not(bad: Any) -> None:
    assert "not a direct reply-to address" in refusal(bad)


def is_pid(data: bytes) -> bool:
    """Written another way than the product's check, from the same specification."""
    for kind, tail in ((88, 12), (103, 9)):
        for atoms, width in (((100, 118), 2), ((115, 119), 1)):
            for atom in atoms:
                head = bytes([131, kind, atom])
                name = data[3 + width : len(data) - tail]
                fits = len(data) >= 3 + width + tail and len(name) < 256**width
                if fits and data[:3] == head and data[3 : 3 + width] == len(name).to_bytes(width, "big"):
                    return True
    return False


@MANY
@given(st.binary(max_size=60) | st.builds(bytes.__add__, st.just(b"\x83X"), st.binary(max_size=40)))
def test_no_token_passes_but_a_process_id(data: bytes) -> None:
    try:
        check_reply_to(address(data))
    except Refused:
        assert not is_pid(data)
    else:
        assert is_pid(data)


@MANY
@given(st.sampled_from([88, 103]), st.sampled_from([100, 115, 118, 119]), st.binary(max_size=100))
def test_every_process_id_passes(kind: int, atom: int, node: bytes) -> None:
    check_reply_to(address(pid(kind, atom, node)))


@MANY
@given(st.text() | st.text("abcgG1hkA0+/=.-_%\n").map(PREFIX.__add__) | st.binary())
def test_no_text_passes_that_is_not_base64(text: Any) -> None:
    try:
        check_reply_to(text)
    except Refused:
        return
    token, key = text.removeprefix(PREFIX).split(".")
    assert is_pid(base64.b64decode(token, validate=True))
    assert base64.b64decode(key, validate=True)


@MANY
@given(st.integers(0, len(REAL) - 1), st.characters(codec="utf-8"))
def test_one_letter_changed_is_refused_or_still_an_address(place: int, letter: str) -> None:
    changed = REAL[:place] + letter + REAL[place + 1 :]
    try:
        check_reply_to(changed)
    except Refused:
        return
    assert changed.startswith(PREFIX)
    assert is_pid(base64.b64decode(changed.removeprefix(PREFIX).split(".")[0], validate=True))


# Who sent it


@pytest.mark.parametrize(
    ("user", "own_user", "agent"),
    [
        ("agent-h1", "agent-h2", True),
        ("agent-", "x", True),
        ("alice", "agent-h1", False),
        ("guest", "guest", True),  # two agents by hand, as guest
        ("", "", False),
        ("", "agent-h1", False),
        ("Agent-h1", "agent-h2", False),
        ("xagent-h1", "agent-h2", False),
        ("operator-agent-h1", "agent-h2", False),
    ],
)
def test_who_is_an_agent(user: str, own_user: str, agent: bool) -> None:
    assert is_agent(user, own_user) is agent


def read(
    command: str = "list-vms", options: dict[str, Any] | None = None, *, own_user: str = "agent-h1", **props: Any
) -> Any:
    body = json.dumps({"command": command, "options": options or {}}).encode()
    properties = pika.BasicProperties(**{"reply_to": REAL, "correlation_id": "c", **props})
    return read_envelope(body, properties, own_user=own_user)


@pytest.mark.parametrize(
    ("user", "hops", "operator"),
    [
        ("alice", 0, "alice"),
        (None, 0, ""),
        ("agent-h2", 3, "bob"),
        ("guest", 0, "guest"),
    ],
)
def test_internal_headers_count_only_from_agents(user: str | None, hops: int, operator: str) -> None:
    incoming = read(user_id=user, headers={"hops": 3, "operator": "bob"})
    assert (incoming.hops, incoming.operator) == (hops, operator)
    assert incoming.sender == (user or "")


@pytest.mark.parametrize("value", ["3", None, 2.5, b"\xff", [], {}])
def test_internal_headers_of_another_type_are_ignored(value: Any) -> None:
    incoming = read(user_id="agent-h2", headers={"hops": value, "operator": 7})
    assert (incoming.hops, incoming.operator) == (0, "agent-h2")


# Its ids


def test_the_request_id_is_the_messages_own() -> None:
    assert read(message_id="r1").request_id == "r1"


@pytest.mark.parametrize("message_id", [None, ""])
def test_without_one_it_is_derived_from_the_message(message_id: str | None) -> None:
    body = b'{"command": "list-vms", "options": {}}'
    assert read(message_id=message_id).request_id == names.derive_request_id(REAL, "c", body)


def test_a_redelivered_message_gets_the_same_id_and_any_other_does_not() -> None:
    one = read()
    assert read().request_id == one.request_id
    others = [
        read(correlation_id="d"),
        read("list-hosts"),
        read(reply_to=address(pid(node=b"x"))),
        read(message_id="m"),
    ]
    assert len({one.request_id, *(other.request_id for other in others)}) == 5


def test_headers_do_not_change_the_derived_id() -> None:
    """A dead-lettered copy, or one from an agent that handed it on, is the same message."""
    assert read(headers={"x-death": []}).request_id == read().request_id


@pytest.mark.parametrize("message_id", [b"\xff\xfe", b""])
def test_a_message_id_that_is_not_text_is_refused(message_id: bytes) -> None:
    with pytest.raises(Refused, match="message_id"):
        read(message_id=message_id)


def test_a_correlation_id_goes_back_as_it_came() -> None:
    for given_id in (None, "", "x" * 255, b"\xff\xfe"):
        assert read(correlation_id=given_id).correlation_id == given_id


def test_a_creates_id_is_filled_in_and_nothing_else_changes() -> None:
    incoming = read("create-vm", {"image": "a", "cpus": 3})
    filled = incoming.with_vm_id("abcdefgh")
    assert filled.create == CreateVm(image="a", cpus=3, vm_id="abcdefgh")
    assert filled.request.command is incoming.request.command
    assert incoming.create.vm_id is None


# Deadlines


@pytest.mark.parametrize(("header", "deadline"), [(None, None), (1500, 1.5), (0, 0.0), (-1, -0.001)])
def test_a_deadline_is_in_milliseconds(header: int | None, deadline: float | None) -> None:
    headers = None if header is None else {"deadline": header}
    assert read(headers=headers).deadline == deadline


@pytest.mark.parametrize("value", ["tomorrow", "1500", 1.5, True, [1500], {}, b"1"])
def test_a_deadline_of_another_type_is_refused(value: Any) -> None:
    with pytest.raises(Refused, match="deadline"):
        read(headers={"deadline": value})


@pytest.mark.parametrize(
    ("ahead", "code"),
    [
        (0.0, None),
        (0.001, None),
        (60.0, None),
        (topology.MAX_PATIENCE_S, None),
        (topology.MAX_PATIENCE_S + 30.0, None),
        (topology.MAX_PATIENCE_S + 30.5, "bad-request"),
        (1e12, "bad-request"),
        (-0.001, "deadline-passed"),
        (-1e9, "deadline-passed"),
    ],
)
def test_a_deadline_lies_ahead_and_not_too_far(ahead: float, code: str | None) -> None:
    now = 1_000_000.0
    if code is None:
        check_deadline(now + ahead, now, "h1")
        return
    with pytest.raises(Refused) as caught:
        check_deadline(now + ahead, now, "h1")
    assert caught.value.code == code
    assert "clock of h1" in caught.value.reason


def test_no_deadline_is_never_late() -> None:
    check_deadline(None, 1e12, "h1")
    check_patience(None, 1e12, "h1")


def test_a_create_may_be_late_but_not_ask_for_too_much() -> None:
    """A late one is not refused before its claim: another host may have begun it."""
    check_patience(1000.0, 2000.0, "h1")
    with pytest.raises(Refused, match="600 s is the most"):
        check_patience(3000.0, 2000.0, "h1")


# Dead letters


NAMELESS = "a queue that it does not name"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-death": [{"queue": "q", "routing-keys": ["k"]}, {"queue": "r"}]}, "q"),
        ({}, NAMELESS),
        ({"x-death": []}, NAMELESS),
        ({"x-death": [{}]}, NAMELESS),
        ({"x-death": None}, NAMELESS),
        ({"x-death": "q"}, NAMELESS),
        ({"x-death": 7}, NAMELESS),
        ({"x-death": {"queue": "q"}}, NAMELESS),
        ({"x-death": [["queue"]]}, NAMELESS),
    ],
)
def test_where_a_message_died(headers: dict[str, Any], expected: str) -> None:
    assert died_in("computing-undeliverable", headers) == expected
    assert died_in("computing-host.h1", headers) == "", "a client can write that header, too"


table_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@MANY
@given(
    st.dictionaries(st.sampled_from(["deadline", "hops", "operator", "x-death", "other"]), table_values),
    st.none() | st.text() | st.binary(),
    st.none() | st.text() | st.binary(),
    st.sampled_from([None, "alice", "agent-h2"]),
)
def test_any_properties_are_read_or_refused(
    headers: dict[str, Any], message_id: Any, correlation_id: Any, user_id: Any
) -> None:
    died_in("computing-undeliverable", headers)
    try:
        incoming = read(headers=headers, message_id=message_id, correlation_id=correlation_id, user_id=user_id)
    except Refused:
        return
    assert isinstance(incoming.request_id, str)
    assert isinstance(incoming.hops, int)
    assert isinstance(incoming.operator, str)


def test_more_hops_than_there_may_be_are_read_as_they_are() -> None:
    assert read(user_id="agent-h2", headers={"hops": MAX_HOPS + 5}).hops == MAX_HOPS + 5


def test_a_user_that_is_not_utf8_is_refused_and_is_no_agent() -> None:
    properties = pika.BasicProperties(user_id=b"\xff", reply_to=REAL)
    with pytest.raises(Refused, match="user_id"):
        read_envelope(b'{"command": "list-vms"}', properties, own_user="agent-h1")
    assert not is_agent(b"agent-\xff", "agent-h1")  # type: ignore[arg-type]
