"""A private broker for all tests that need one, and agents that answer as a test tells them to."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pika
import pytest

from aetherscale_cli import broker as broker_module
from aetherscale_cli.main import main
from aetherscale_protocol import names, topology
from aetherscale_protocol.answers import fleet_digest
from aetherscale_testing.broker import TestBroker, private_broker
from aetherscale_testing.certificates import Authority
from aetherscale_testing.interrupts import interruptible as interruptible
from aetherscale_testing.session import MemorySession

Behaviour = Callable[[dict[str, Any]], dict[str, Any] | bytes | None]


@dataclass(frozen=True)
class Node:
    """The broker, whose certificate is for `localhost` and 127.0.0.1, and the CA that vouches for it."""

    broker: TestBroker
    authority: Authority

    @property
    def address(self) -> str:
        return self.broker.address

    @property
    def tls_port(self) -> int:
        return self.broker.tls_port


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A broker with the vhost `cloud`, whose operator is alice; bob may log in, and no more."""
    authority = Authority(tmp_path_factory.mktemp("tls"))
    with private_broker(certificate=authority.broker("localhost", "127.0.0.1")) as broker:
        rights = topology.OPERATOR_PERMISSIONS
        broker.ctl("add_vhost", "cloud")
        broker.ctl("set_permissions", "-p", "cloud", "guest", ".*", ".*", ".*")
        for user, write in (("alice", rights.write), ("bob", "^$")):
            broker.ctl("add_user", user, "sesame")
            broker.ctl("set_permissions", "-p", "cloud", user, rights.configure, write, rights.read)
        yield Node(broker, authority)


class FakeAgent:
    """One host's agent in a thread: it declares what an agent declares, and answers as `behaviour` says."""

    def __init__(self, address: str, vhost: str, host: str, fleet: list[str], behaviour: Behaviour) -> None:
        self.host = host
        self.seen: list[tuple[dict[str, Any], pika.BasicProperties]] = []
        self._fleet = fleet
        self._behaviour = behaviour
        ip, _, port = address.partition(":")
        self._connection = pika.BlockingConnection(pika.ConnectionParameters(ip, int(port), vhost, heartbeat=0))
        self._channel = self._connection.channel()
        self._declare()
        self._thread = threading.Thread(target=self._consume, daemon=True)
        self._thread.start()

    def _declare(self) -> None:
        own = topology.host_queue(self.host)
        for exchange in topology.EXCHANGES:
            self._channel.exchange_declare(exchange.name, exchange.type, durable=True)
        for queue in (*topology.SHARED_QUEUES, own):
            self._channel.queue_declare(queue.name, durable=True, arguments=queue.arguments)
        for binding in (*topology.SHARED_BINDINGS, *topology.host_bindings(self.host)):
            self._channel.queue_bind(binding.queue, binding.exchange, binding.key)
        for name in (own.name, topology.COMPETING, topology.HOSTS):
            self._channel.basic_consume(name, self._on_command, auto_ack=True)

    def _consume(self) -> None:
        with contextlib.suppress(pika.exceptions.AMQPError):  # a test may take the connection away
            self._channel.start_consuming()

    def _on_command(self, channel: Any, _method: Any, properties: Any, body: bytes) -> None:
        request = json.loads(body)
        self.seen.append((request, properties))
        answer = self._behaviour(request)
        if isinstance(answer, dict):
            whole = {"host": self.host, "fleet": {"size": len(self._fleet), "digest": fleet_digest(self._fleet)}}
            answer = json.dumps({**whole, **answer}).encode()
        if answer is not None:
            reply = pika.BasicProperties(correlation_id=properties.correlation_id)
            channel.basic_publish("", properties.reply_to, answer, reply)

    def hold(self, vm_id: str) -> None:
        """Make this the holder of a VM."""
        key = names.vm_key(vm_id)
        done = threading.Event()

        def bind() -> None:
            self._channel.queue_bind(names.host_queue(self.host), topology.EXCHANGE, key)
            done.set()

        self._connection.add_callback_threadsafe(bind)
        assert done.wait(10)

    def stop(self) -> None:
        """Be gone, as an agent that was stopped: the queue stays."""
        with contextlib.suppress(pika.exceptions.AMQPError):
            self._connection.add_callback_threadsafe(self._channel.stop_consuming)
            self._thread.join(10)
            self._connection.close()


def succeed(response: Any, **more: Any) -> dict[str, Any]:
    """An answer that says success."""
    return {"execution-info": {"status": "success"}, "response": response, **more}


def refuse(code: str, reason: str, **more: Any) -> dict[str, Any]:
    """An answer that says error."""
    return {"execution-info": {"status": "error", "code": code, "reason": reason, **more}}


def host_report(host: str, fleet: list[str]) -> dict[str, Any]:
    """A response to list-hosts."""
    return {
        "host": host, "state": "up", "cpus": 8, "cpus-free": 6, "memory": 16384, "memory-free": 14336, "disk": 100,
        "disk-free": 80, "vms": 2, "running": 1, "images": ["ubuntu_base"], "accelerator": "tcg",
        "agent-version": "0.1.0", "fleet": fleet,
    }  # fmt: skip


def vm_details(vm_id: str, since: float = 0) -> dict[str, Any]:
    """One of list-vms' details."""
    return {
        "vm-id": vm_id, "state": "running", "image": "ubuntu_base", "cpus": 1, "memory": 1024, "disk": 10,
        "since": since,
    }  # fmt: skip


def well_behaved(host: str, fleet: list[str]) -> Behaviour:
    """What an agent does on a good day; each host has one VM, named after it."""
    vm_id = (host + "aaaaaaaa")[:1] + "abcdefg"

    def behave(request: dict[str, Any]) -> dict[str, Any]:
        options = request.get("options", {})
        asked = options.get("vm-id", vm_id)
        done = {"create-vm": "starting", "start-vm": "starting", "stop-vm": "stopped", "delete-vm": "deleted"}
        match request["command"]:
            case "list-vms":
                return succeed([f"vm-{vm_id}"], details=[vm_details(vm_id)])
            case "list-hosts":
                return succeed(host_report(host, fleet))
            case "show-vm":
                return succeed(vm_details(asked) | {"host": host, "created": 0, "console": ["hello \u001b[31m"]})
            case command:
                return succeed({"status": done[command], "vm-id": asked})

    return behave


@dataclass
class Cloud:
    """The fake agents of one test, and the answers that they may be told to give."""

    node: Node
    agents: dict[str, FakeAgent] = field(default_factory=dict)

    succeed = staticmethod(succeed)
    refuse = staticmethod(refuse)
    host_report = staticmethod(host_report)

    def start(self, host: str, fleet: list[str], behaviour: Behaviour | None = None, vhost: str = "/") -> FakeAgent:
        """Start a host's agent."""
        agent = FakeAgent(self.node.address, vhost, host, fleet, behaviour or well_behaved(host, fleet))
        self.agents[host] = agent
        return agent

    def start_all(self, *fleet: str) -> None:
        """Start the agents of a whole fleet."""
        for host in fleet:
            self.start(host, list(fleet))

    def stop(self, host: str) -> None:
        """Stop a host's agent."""
        self.agents.pop(host).stop()


def _wipe(address: str) -> None:
    """Remove all that agents leave in a broker."""
    ip, _, port = address.partition(":")
    for vhost in ("/", "cloud"):
        with pika.BlockingConnection(pika.ConnectionParameters(ip, int(port), vhost)) as connection:
            channel = connection.channel()
            for name in (*(q.name for q in topology.SHARED_QUEUES), *(names.host_queue(f"h{i}") for i in range(9))):
                channel.queue_delete(name)
            for exchange in topology.EXCHANGES:
                channel.exchange_delete(exchange.name)


@pytest.fixture
def cloud(node: Node) -> Iterator[Cloud]:
    running = Cloud(node)
    yield running
    for host in list(running.agents):
        running.stop(host)
    _wipe(node.address)


@dataclass(frozen=True)
class Ran:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def answers(self) -> Any:
        """The output as JSON."""
        return json.loads(self.out)


Cli = Callable[..., Ran]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, request: pytest.FixtureRequest) -> Cli:
    """Run a command in this process. `environ` adds to an environment that knows of nothing but the broker."""

    def run(*argv: str, environ: dict[str, str] | None = None) -> Ran:
        base = {"HOME": str(tmp_path)}
        if "node" in request.fixturenames:
            base["RABBITMQ_HOST"] = request.getfixturevalue("node").address
        code = main(argv, base | (environ or {}))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


Use = Callable[[MemorySession], MemorySession]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Let commands speak to this session."""

    def install(session: MemorySession) -> MemorySession:
        @contextlib.contextmanager
        def open_session(*_: Any) -> Iterator[MemorySession]:
            yield session

        monkeypatch.setattr(broker_module, "open_session", open_session)
        return session

    return install
