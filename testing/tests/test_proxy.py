"""The wire that can be cut: what it carries, what it swallows, and what each side hears of the other."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from aetherscale_testing.proxy import DeliveryFilter, Wire, Wires

SILENCE_S = 0.1


class Broker:
    """Something that accepts connections."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(2)
        self.address: tuple[str, int] = self._server.getsockname()

    def accept(self) -> socket.socket:
        connection, _ = self._server.accept()
        connection.settimeout(2)
        return connection

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def broker() -> Iterator[Broker]:
    with contextlib.closing(Broker()) as listening:
        yield listening


@pytest.fixture
def wire(broker: Broker) -> Iterator[Wire]:
    with Wires() as wires:
        yield wires.open(broker.address)


def connect(wire: Wire) -> socket.socket:
    agent = socket.create_connection(("127.0.0.1", wire.port))
    agent.settimeout(2)
    return agent


def is_silent(end: socket.socket) -> bool:
    end.settimeout(SILENCE_S)
    try:
        end.recv(100)
    except TimeoutError:
        return True
    finally:
        end.settimeout(2)
    return False


def frame(kind: int, payload: bytes, channel: int = 1) -> bytes:
    return struct.pack(">BHL", kind, channel, len(payload)) + payload + b"\xce"


def method(class_id: int, method_id: int, rest: bytes = b"", channel: int = 1) -> bytes:
    return frame(1, struct.pack(">HH", class_id, method_id) + rest, channel)


def header(size: int, channel: int = 1) -> bytes:
    return frame(2, struct.pack(">HHQ", 60, 0, size), channel)


DELIVERY = method(60, 60, b"tag") + header(5) + frame(3, b"he") + frame(3, b"llo")
HEARTBEAT = frame(8, b"", 0)


def test_it_relays_both_ways(wire: Wire, broker: Broker) -> None:
    agent = connect(wire)
    other = broker.accept()
    agent.sendall(b"ping")
    assert other.recv(100) == b"ping"
    other.sendall(HEARTBEAT)
    assert agent.recv(100) == HEARTBEAT


def test_either_end_hears_that_the_other_closed(wire: Wire, broker: Broker) -> None:
    first, second = connect(wire), connect(wire)
    ends = {0: broker.accept(), 1: broker.accept()}
    first.close()
    assert sorted([is_silent(end) for end in ends.values()]) == [False, True]
    for end in ends.values():
        end.close()
    assert second.recv(100) == b""


def test_a_cut_is_silence_and_what_was_sent_flows_on_when_it_is_healed(wire: Wire, broker: Broker) -> None:
    agent = connect(wire)
    other = broker.accept()
    wire.cut()
    agent.sendall(b"ping")
    other.sendall(HEARTBEAT)
    assert is_silent(agent)
    assert is_silent(other)
    wire.heal()
    assert agent.recv(100) == HEARTBEAT
    assert other.recv(100) == b"ping"


def test_a_cut_hides_that_an_end_closed(wire: Wire, broker: Broker) -> None:
    agent = connect(wire)
    other = broker.accept()
    wire.cut()
    other.close()
    assert is_silent(agent)
    wire.heal()
    assert agent.recv(100) == b""


def test_behind_a_cut_a_new_connection_gets_nothing_until_it_is_healed(wire: Wire, broker: Broker) -> None:
    wire.cut()
    agent = connect(wire)
    agent.sendall(b"AMQP")
    assert is_silent(agent)
    wire.heal()
    assert broker.accept().recv(100) == b"AMQP"


def test_a_host_without_power_is_not_heard_to_go_and_its_next_boot_connects(wire: Wire, broker: Broker) -> None:
    agent = connect(wire)
    other = broker.accept()
    wire.lose_power()
    agent.close()
    assert is_silent(other)
    again = connect(wire)
    again.sendall(b"again")
    assert broker.accept().recv(100) == b"again"
    assert is_silent(other)
    wire.heal()
    with contextlib.suppress(ConnectionResetError):
        assert other.recv(100) == b""


def test_a_broker_that_is_down_closes_the_connection(wire: Wire, broker: Broker) -> None:
    broker.close()
    with contextlib.suppress(ConnectionResetError):
        assert connect(wire).recv(100) == b""


def test_a_deaf_connection_gets_all_but_deliveries(wire: Wire, broker: Broker) -> None:
    agent = connect(wire)
    other = broker.accept()
    other.sendall(DELIVERY)
    assert agent.recv(1000)
    wire.deafen()
    threading.Thread(target=other.sendall, args=(DELIVERY + HEARTBEAT,)).start()
    got = b""
    while not got.endswith(HEARTBEAT):
        got += agent.recv(1000)
    assert method(60, 60, b"tag") not in got
    assert wire.swallowed == 1
    hears = connect(wire)
    broker.accept().sendall(DELIVERY)
    assert hears.recv(1000)


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_deliveries_are_swallowed_however_the_bytes_are_cut(size: int) -> None:
    deaf = DeliveryFilter()
    deaf.deaf = True
    empty = method(60, 60) + header(0)
    declared, confirmed = method(50, 11, b"queue"), method(60, 80, b"tag")
    answered = method(60, 71) + header(2) + frame(3, b"ok")  # Basic.GetOk, which no agent uses, has content too
    stream = declared + DELIVERY + HEARTBEAT + empty + confirmed + answered + DELIVERY
    passed = b"".join(deaf.feed(stream[start : start + size]) for start in range(0, len(stream), size))
    assert passed == declared + HEARTBEAT + confirmed + answered
    assert deaf.swallowed == 3


def test_frames_of_other_channels_pass_between_those_of_a_delivery() -> None:
    deaf = DeliveryFilter()
    deaf.deaf = True
    other = method(60, 50, b"return", 2) + header(3, 2) + frame(3, b"abc", 2)
    assert deaf.feed(method(60, 60) + other + header(1) + HEARTBEAT + frame(3, b"x")) == other + HEARTBEAT


def test_a_filter_that_hears_changes_nothing() -> None:
    assert DeliveryFilter().feed(DELIVERY + HEARTBEAT) == DELIVERY + HEARTBEAT
