"""Agents and operators as site.yml makes them: users of their own with the protocol's rights, on a real broker."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from aetherscale_protocol import topology
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import AgentProcess, Fleet
from aetherscale_testing.rights import PASSWORD, locked_down_vhost, log_in

pytestmark = pytest.mark.broker

VHOST = "rights"
EVERYBODY: dict[str, dict[str, object]] = {
    "operator": {},
    "reader": {"readonly": True},
    "carol": {"labels": {"team": "a"}},
}
CLAIM_OF_H2 = topology.claim("abcdefgh", "h2").arguments


@pytest.fixture
def operators() -> list[str]:
    return ["operator"]


@pytest.fixture
def locked_down(broker: TestBroker, tmp_path: Path, operators: list[str]) -> Iterator[Fleet]:
    """Two agents on a vhost of its own, one of which has an image; the shared pieces were declared for them."""
    rights = dict.fromkeys((*operators, "mallory"), topology.OPERATOR_PERMISSIONS)
    rights |= {f"agent-{host}": topology.agent_permissions(host) for host in ("h1", "h2")}
    with locked_down_vhost(broker, VHOST, rights, tmp_path):
        fleet = Fleet(broker, tmp_path, SeedClient(broker.address, "operator", PASSWORD, VHOST))
        for host, images in (("h1", ("a",)), ("h2", ())):
            url = f"amqp://agent-{host}@{broker.address}/{VHOST}"
            told = {name: EVERYBODY[name] for name in operators}
            fleet.add(host, *images, broker={"url": url, "password": PASSWORD}, operators=told)
        fleet.wait_ready()
        yield fleet
        fleet.stop()


def test_the_whole_life_of_a_vm_with_least_rights(locked_down: Fleet, broker: TestBroker) -> None:
    with SeedClient(broker.address, "operator", PASSWORD, VHOST) as client:
        (made,) = [a for _ in range(4) for a in client.ask("create-vm", 1, image="a")][-1:]
        assert made["host"] == "h1", made
        vm_id = made["response"]["vm-id"]
        assert len(client.ask("list-vms", 2)) == 2
        (refused,) = client.ask("create-vm", 1, image="b")
        assert sorted(refused["execution-info"]["reasons"]) == ["h1", "h2"]
        (stopped,) = client.send(f"vm.{vm_id}", "stop-vm", vm_id=vm_id)
        assert stopped["response"]["status"] == "stopped"
        (deleted,) = client.send(f"vm.{vm_id}", "delete-vm", vm_id=vm_id)
        assert deleted["response"]["status"] == "deleted"
        locked_down.agents["h1"].stop()
        (down,) = [a for a in client.ask("stop-vm", 2, vm_id=vm_id) if a["execution-info"].get("code") == "host-down"]
        assert "host h1" in down["execution-info"]["reason"]


def test_a_console_with_least_rights(locked_down: Fleet, broker: TestBroker, tmp_path: Path) -> None:  # noqa: ARG001
    with SeedClient(broker.address, "operator", PASSWORD, VHOST) as client:
        vm_id = client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"]
    typed = type_into_console(vm_id, b"hello", broker, tmp_path)
    assert (typed.returncode, typed.stdout) == (0, b"hello"), typed.stderr


def type_into_console(vm_id: str, text: bytes, broker: TestBroker, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Type this as the operator, with the CLI, whose context is written to this folder."""
    contexts = folder / "aetherscale" / "contexts"
    contexts.mkdir(parents=True)
    context = contexts / "lab.toml"
    context.write_text(f'[broker]\nurl = "amqp://operator@{broker.address}/{VHOST}"\npassword = "{PASSWORD}"\n')
    context.chmod(0o600)
    environ = {**os.environ, "XDG_CONFIG_HOME": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    program = "from aetherscale_cli.main import run; run()"
    return subprocess.run(
        [sys.executable, "-c", program, "console-vm", vm_id], env=environ, input=text, capture_output=True, timeout=20
    )


@pytest.fixture
def as_h2(locked_down: Fleet, broker: TestBroker) -> Iterator[pika.BlockingConnection]:  # noqa: ARG001
    with log_in(broker, "agent-h2", VHOST) as connection:
        yield connection


def wait_for(agent: AgentProcess, words: str, count: int = 1) -> None:
    """Wait until an agent has said this so many times."""
    limit = time.monotonic() + 15
    while agent.log.count(words) < count:
        assert time.monotonic() < limit, agent.log[-3000:]
        time.sleep(0.02)


def test_a_queue_that_another_agent_deletes_is_made_again_with_all_that_it_held(
    locked_down: Fleet, as_h2: pika.BlockingConnection, broker: TestBroker
) -> None:
    """What a rogue agent gains by what it takes to forget a host: its victim connects once more."""
    with SeedClient(broker.address, "operator", PASSWORD, VHOST) as client:
        vm_id = client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"]
        as_h2.channel().queue_delete("computing-host.h1")
        wait_for(locked_down.agents["h1"], "connected as h1", 2)
        (answer,) = client.send(f"vm.{vm_id}", "show-vm", vm_id=vm_id)
        assert answer["host"] == "h1"


@pytest.mark.parametrize("arguments", [{"x-max-length": 1}, {"x-queue-type": "quorum"}])
def test_a_queue_that_another_agent_made_otherwise_is_deleted_and_counts_as_missing(
    locked_down: Fleet, as_h2: pika.BlockingConnection, broker: TestBroker, arguments: dict[str, object]
) -> None:
    """Else its host would be declined for good; and who can replace it can have taken its VMs out of the directory."""
    with SeedClient(broker.address, "operator", PASSWORD, VHOST) as client:
        vm_id = client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"]
        victim = locked_down.agents["h1"]
        victim.stop(SIGKILL)
        rogue = as_h2.channel()
        rogue.queue_delete(f"claim.{vm_id}")
        rogue.queue_delete("computing-host.h1")
        rogue.queue_declare("computing-host.h1", durable=True, arguments=arguments)
        victim.start()
        wait_for(victim, "connected as h1", 2)
        assert "computing-host.h1 is not as this host had made it" in victim.log
        (answer,) = client.send(f"vm.{vm_id}", "show-vm", vm_id=vm_id)
        assert answer["host"] == "h1"
        with pytest.raises(ChannelClosedByBroker, match="current is"):  # its claim: it was not bound unasked
            as_h2.channel().queue_declare(f"claim.{vm_id}", durable=True, arguments=CLAIM_OF_H2)


def test_a_host_that_is_gone_is_forgotten_with_least_rights(locked_down: Fleet, broker: TestBroker) -> None:
    with SeedClient(broker.address, "operator", PASSWORD, VHOST) as client:
        made = client.ask("create-vm", 1, image="a")[0]
        vm_id = made["response"]["vm-id"]
        assert made["host"] == "h1"
        wait_for(locked_down.agents["h1"], "this host has 1 VMs")
        locked_down.agents["h1"].stop(SIGKILL)
        (forgotten,) = client.ask("forget-host", 1, host="h1")
        assert forgotten["host"] == "h2"
        assert forgotten["response"]["claims"] == [vm_id]
        assert client.is_returned(f"vm.{vm_id}")


# What the broker can't tell apart, agents do


def forbidden(answers: list[dict]) -> set[str]:
    """The reasons of answers, all of which must say that it is forbidden."""
    assert answers
    assert {answer["execution-info"].get("code") for answer in answers} == {"forbidden"}, answers
    return {answer["execution-info"]["reason"] for answer in answers}


def signed(name: str, **headers: object) -> dict[str, object]:
    return {"user_id": name, "headers": headers}


@pytest.mark.parametrize("operators", [["operator", "reader", "carol"]])
def test_what_each_operator_may_is_what_agents_do(locked_down: Fleet, broker: TestBroker) -> None:
    clients = {name: SeedClient(broker.address, name, PASSWORD, VHOST) for name in (*EVERYBODY, "mallory")}

    def ask(who: str, command: str, count: int = 1, key: str = "", **options: object) -> list[dict]:
        return clients[who].send(key or command, command, count, 5, properties=signed(who), **options)

    (made,) = ask("operator", "create-vm", image="a")
    vm_id = made["response"]["vm-id"]
    assert "reader may only read" in forbidden(ask("reader", "create-vm", image="a")).pop()
    assert "reader may only read" in forbidden(ask("reader", "delete-vm", key=f"vm.{vm_id}", vm_id=vm_id)).pop()
    assert ask("reader", "show-vm", key=f"vm.{vm_id}", vm_id=vm_id)[0]["execution-info"]["status"] == "success"
    assert "team=a" in forbidden(ask("carol", "stop-vm", key=f"vm.{vm_id}", vm_id=vm_id)).pop()
    assert "the new VM has not" in forbidden(ask("carol", "create-vm", image="a")).pop()
    assert "more than those" in forbidden(ask("carol", "drain-host", key="host.h1", host="h1")).pop()
    hers = [ask("carol", "create-vm", image="a", labels={"team": "a"})[0] for _ in range(3)]  # some were handed on
    assert {answer["host"] for answer in hers} == {"h1"}
    seen = {vm for answer in ask("carol", "list-vms", 2) for vm in answer["response"]}
    assert seen == {f"vm-{answer['response']['vm-id']}" for answer in hers}
    assert "none of this fleet's operators" in forbidden(ask("mallory", "list-vms", 2)).pop()
    assert "unsigned" in forbidden(clients["operator"].ask("list-vms", 2)).pop()
    (deleted,) = ask("operator", "delete-vm", key=f"vm.{vm_id}", vm_id=vm_id)
    assert deleted["response"]["status"] == "deleted"
    log = locked_down.agents["h1"].log
    assert f"delete-vm of VM {vm_id} for 'reader': error (forbidden: " in log
    assert f"delete-vm of VM {vm_id} for 'operator': success" in log
    for client in clients.values():
        client.__exit__()


def test_a_host_commands_nobody_and_forges_no_dead_letter(locked_down: Fleet, broker: TestBroker) -> None:  # noqa: ARG001
    with SeedClient(broker.address, "operator", PASSWORD, VHOST) as client:
        vm_id = client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"]
        with SeedClient(broker.address, "agent-h2", PASSWORD, VHOST) as rogue:

            def tell(exchange: str, key: str, **properties: object) -> list[dict]:
                body = json.dumps({"command": "delete-vm", "options": {"vm-id": vm_id}}).encode()
                return rogue.collect(rogue.publish(key, body, exchange=exchange, **properties), 1, 2)

            as_host = signed("agent-h2", operator="operator", hops=1)
            assert "is a host" in forbidden(tell("computing-agents", f"vm.{vm_id}", **as_host)).pop()
            for exchange, key in (("computing-agents", f"vm.{vm_id}"), ("", "computing-host.h1")):
                assert "unsigned" in forbidden(tell(exchange, key)).pop()
            died = {"x-death": [{"queue": "computing-host.h1", "exchange": "computing"}]}
            (answer,) = tell("computing-undeliverable", "delete-vm", headers=died)
            assert answer["execution-info"]["code"] == "host-down"  # a lie to whoever forged it, and nothing is done
        (shown,) = client.send(f"vm.{vm_id}", "show-vm", vm_id=vm_id)
        assert shown["response"]["state"] == "running"


# What a host gets copies of


@pytest.fixture
def rogue(locked_down: Fleet, as_h2: pika.BlockingConnection) -> BlockingChannel:
    """Somebody with the rights of h2's agent, which runs no more: its own queue is his to make as he likes."""
    locked_down.agents["h2"].stop(SIGKILL)
    channel = as_h2.channel()
    channel.queue_delete(QUEUE_OF_H2)
    return channel


QUEUE_OF_H2 = "computing-host.h2"
TO_AGENTS = {"x-dead-letter-exchange": "computing-agents"}
TO_H1 = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "computing-host.h1"}
LATER = {"x-message-ttl": 2_000}


@pytest.mark.parametrize(
    "arguments", [TO_AGENTS, TO_H1, TO_AGENTS | LATER], ids=["rejected", "rejected to one queue", "expired"]
)
def test_what_a_host_keeps_and_sends_on_later_is_not_done_again(
    locked_down: Fleet, rogue: BlockingChannel, broker: TestBroker, arguments: dict[str, object]
) -> None:
    """A command without `message_id`, as who signs may send it: two equal ones are two."""
    with SeedClient(broker.address, "operator", PASSWORD, VHOST) as client:
        vm_id = client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"]
        key, kill = f"vm.{vm_id}", {"command": "stop-vm", "options": {"vm-id": vm_id, "kill": True}}
        rogue.queue_declare(QUEUE_OF_H2, durable=True, arguments=arguments)
        rogue.queue_bind(QUEUE_OF_H2, "computing", key)
        asked = client.publish(key, json.dumps(kill).encode(), user_id="operator")
        (stopped,) = client.collect(asked, 1)
        assert stopped["response"]["status"] == "stopped"
        rogue.queue_unbind(QUEUE_OF_H2, "computing", key)
        (started,) = client.send(key, "start-vm", vm_id=vm_id, properties=signed("operator"))
        assert started["response"]["status"] == "starting"
        if "x-message-ttl" not in arguments:
            method, _, _ = rogue.basic_get(QUEUE_OF_H2)
            rogue.basic_nack(method.delivery_tag, requeue=False)
        _, again = client.collect(asked, 2)
        assert "a command of operator's that came by" in forbidden([again]).pop()
        (shown,) = client.send(key, "show-vm", vm_id=vm_id, properties=signed("operator"))
        assert shown["response"]["state"] == "running"
    refused = f"stop-vm of VM {vm_id} (kill=True) for 'operator': error (forbidden: a command of operator's"
    assert refused in locked_down.agents["h1"].log


def test_what_nobody_took_is_answered_host_down_to_who_signs(locked_down: Fleet, broker: TestBroker) -> None:
    """Its exchange is another by then, too."""
    with SeedClient(broker.address, "operator", PASSWORD, VHOST) as client:
        vm_id = client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"]
        locked_down.agents["h1"].stop()
        (down,) = client.send(f"vm.{vm_id}", "stop-vm", vm_id=vm_id, properties=signed("operator"))
        assert (down["host"], down["execution-info"]["code"]) == ("h2", "host-down")
        assert "host h1" in down["execution-info"]["reason"]


def test_a_host_reads_what_is_typed_into_consoles_of_other_hosts(
    locked_down: Fleet,  # noqa: ARG001
    rogue: BlockingChannel,
    broker: TestBroker,
    tmp_path: Path,
) -> None:
    """RabbitMQ can't forbid it: who may bind a key of a direct exchange may bind all (docs/security.md)."""
    with SeedClient(broker.address, "operator", PASSWORD, VHOST) as client:
        vm_id = client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"]
    rogue.queue_declare(QUEUE_OF_H2, durable=True)
    rogue.queue_bind(QUEUE_OF_H2, "computing", "host.h1")
    typed = type_into_console(vm_id, b"s3cret", broker, tmp_path)
    assert typed.stdout == b"s3cret", typed.stderr
    read = []
    while (message := rogue.basic_get(QUEUE_OF_H2, auto_ack=True))[0] is not None:
        read.append(message[2])
    assert b"s3cret" in read
