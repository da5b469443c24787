"""Messages that no client should send: each is answered where it can be, acknowledged, and stops nobody."""

import base64
import json
import time
from typing import Any

import pytest

from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import Fleet

pytestmark = pytest.mark.broker


def is_kept(queue: str) -> bool:
    """Whether a message rests there by design: a host's last word about its VMs."""
    return queue.startswith("computing-known.")


@pytest.fixture
def host(agents: Fleet) -> Fleet:
    agents.add("h1", "ubuntu_base")
    agents.wait_ready()
    return agents


def body(command: Any, options: Any = None, **more: Any) -> bytes:
    return json.dumps({"command": command, "options": options or {}, **more}).encode()


BAD_BODIES = [
    pytest.param(b"not json", "bad-request", "not a command", id="not-json"),
    pytest.param(b"\xff\xfe\x00", "bad-request", "not a command", id="not-utf8"),
    pytest.param(b"[1, 2]", "bad-request", "Expected `object`", id="not-an-object"),
    pytest.param(b"[" * 50_000, "bad-request", "not a command", id="deep"),
    pytest.param(body("format-disk"), "unknown-command", "format-disk", id="unknown-command"),
    pytest.param(body(7), "bad-request", "$.command", id="command-of-wrong-type"),
    pytest.param(body("create-vm"), "bad-request", "image", id="missing-option"),
    pytest.param(body("create-vm", {"image": "a", "colour": "red"}), "bad-request", "colour", id="extra-option"),
    pytest.param(body("create-vm", {"image": "a", "memory": "512"}), "bad-request", "$.memory", id="wrong-type"),
    pytest.param(body("create-vm", {"image": "a", "cpus": True}), "bad-request", "$.cpus", id="bool-for-int"),
    pytest.param(body("create-vm", {"image": "a", "memory": -1}), "bad-request", "$.memory", id="negative-memory"),
    pytest.param(body("create-vm", {"image": "../../etc"}), "bad-request", "../../etc", id="image-with-path"),
    pytest.param(body("stop-vm", {"vm-id": "../../../x"}), "bad-request", "vm-id", id="id-with-slash"),
    pytest.param(body("stop-vm", {"vm-id": "sgeqxcfi\n"}), "bad-request", "vm-id", id="id-with-newline"),
    pytest.param(body("list-vms", {}, more=1), "bad-request", "more", id="extra-key"),
]


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("key", ["list-vms", "create-vm"])
def test_bad_bodies_are_answered_and_acknowledged(client: SeedClient, broker: TestBroker, key: str) -> None:
    for case in BAD_BODIES:
        bad, code, words = case.values
        (answer,) = client.collect(client.publish(key, bad), 1)
        info = answer["execution-info"]
        assert (info["status"], info["code"]) == ("error", code), case.id
        assert words in info["reason"], case.id
    assert_calm(client, broker)


def assert_calm(client: SeedClient, broker: TestBroker) -> None:
    """The agent answers, and no message is left unacknowledged or waiting anywhere."""
    (answer,) = client.ask("list-vms", 1)
    assert answer["response"] == []
    limit = time.monotonic() + 5
    while True:
        queues = broker.table("list_queues", "name", "messages")
        left = {q["name"]: q["messages"] for q in queues if q["messages"] and not is_kept(q["name"])}
        if not left:
            return
        assert time.monotonic() < limit, left
        time.sleep(0.1)


def token(data: bytes) -> str:
    return base64.b64encode(data).decode()


FORGED = [
    "amq.rabbitmq.reply-to.%%%.x",
    "amq.rabbitmq.reply-to.AAAA.BBBB",
    "amq.rabbitmq.reply-to",
    f"amq.rabbitmq.reply-to.{token(b'no erlang term')}.{token(b'key')}",
    f"amq.rabbitmq.reply-to.{token(bytes([131, 88]) + b'A' * 40)}.{token(b'key-of-nobody')}",
    "computing-host.h1",
    "",
]


@pytest.mark.usefixtures("host")
def test_forged_addresses_cost_nothing(client: SeedClient, broker: TestBroker) -> None:
    name = b"reply@123456789"  # of a node that is none: the one shape that only the broker can tell from a good one
    pid = token(bytes([131, 88, 119, len(name)]) + name + b"\0\0\1\2\0\0\0\0\0\0\0\0")
    wrong_node = f"amq.rabbitmq.reply-to.{pid}.{token(b'x' * 16)}"
    for address in [*FORGED, wrong_node]:
        if address == "amq.rabbitmq.reply-to":
            continue  # the broker itself replaces it
        client.publish("list-vms", body("list-vms"), reply_to=address)
    assert_calm(client, broker)


@pytest.mark.usefixtures("host")
def test_no_reply_to_is_not_executed(client: SeedClient, broker: TestBroker) -> None:
    client.publish("create-vm", body("create-vm", {"image": "ubuntu_base"}), reply_to=None)
    assert_calm(client, broker)


def test_an_answer_is_never_written_into_a_queue(host: Fleet, client: SeedClient, broker: TestBroker) -> None:
    victim = host.add("h2", "ubuntu_base")
    host.wait_ready()
    victim.stop()
    client.publish("host.h1", body("list-vms"), reply_to="computing-host.h2")
    client.ask("list-vms", 1)
    time.sleep(0.2)
    (queue,) = [q for q in broker.table("list_queues", "name", "messages") if q["name"] == "computing-host.h2"]
    assert queue["messages"] <= 1  # the broadcast's own copy at most


@pytest.mark.usefixtures("host")
def test_someone_who_is_gone_costs_nothing(client: SeedClient, broker: TestBroker) -> None:
    for _ in range(5):
        with SeedClient(broker.address) as other:
            other.publish("list-vms", body("list-vms"))
    assert_calm(client, broker)


@pytest.mark.usefixtures("host")
def test_a_huge_body_is_refused_by_the_broker(client: SeedClient, broker: TestBroker) -> None:
    with SeedClient(broker.address) as other:
        sent = other.publish("list-vms", b"x" * 10_000_000)
        assert other.collect(sent, 1, 2) == []
        assert "larger than" in other.closed_because
    assert_calm(client, broker)


@pytest.mark.usefixtures("host")
def test_headers_of_wrong_type_are_refused(client: SeedClient, broker: TestBroker) -> None:
    (answer,) = client.send("list-vms", "list-vms", properties={"headers": {"deadline": "tomorrow"}})
    assert "deadline" in answer["execution-info"]["reason"]
    assert_calm(client, broker)


@pytest.mark.usefixtures("host")
def test_a_late_command_is_not_begun_and_the_clock_is_named(client: SeedClient) -> None:
    past = int((time.time() - 30) * 1000)
    (answer,) = client.send("create-vm", "create-vm", image="ubuntu_base", properties={"headers": {"deadline": past}})
    assert answer["execution-info"]["code"] == "deadline-passed"
    assert "clock" in answer["execution-info"]["hint"]
    future = int((time.time() + 7200) * 1000)
    (answer,) = client.send("list-vms", "list-vms", properties={"headers": {"deadline": future}})
    assert answer["execution-info"]["code"] == "bad-request"
