"""A client of the lab that keeps to the promise's terms: it chooses ids and deadline, and asks again with them."""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pika
from pika.exceptions import AMQPError

from aetherscale_protocol import names, topology
from aetherscale_protocol.streams import is_stream
from aetherscale_testing.client import parameters_of
from aetherscale_testing.faults.ledger import NOTHING, Ledger, Told, Verb, told_by

COMMANDS: dict[Verb, str] = {
    "create": "create-vm",
    "start": "start-vm",
    "stop": "stop-vm",
    "kill": "stop-vm",
    "snapshot": "snapshot-vm",
    "restore": "restore-vm",
    "reboot": "reboot-vm",
    "tunnel": "open-stream",
    "delete": "delete-vm",
}
PATIENCE_S = 20.0
"""How far ahead deadlines lie."""

RETRIABLE = ("host-down",)
"""What a client takes for "not now": it asks again with the same ids until its deadline. A create that nobody took is
refused for good: its refusal is kept, and is the answer to every copy."""


@dataclass(frozen=True)
class Command:
    """A command of one client, however often it is sent. `host`: put into this host's own queue."""

    verb: Verb
    vm_id: str = field(default_factory=names.new_vm_id)
    image: str = "tiny"
    host: str = ""
    memory: int = 64
    request_id: str = field(default_factory=names.new_request_id)
    deadline: float = field(default_factory=lambda: time.time() + PATIENCE_S)

    @property
    def key(self) -> str:
        """The routing key."""
        if self.verb != "create":
            return names.vm_key(self.vm_id)
        return names.host_key(self.host) if self.host else topology.CREATE_KEY

    @property
    def body(self) -> bytes:
        """The body."""
        options: dict[str, Any] = {"vm-id": self.vm_id}
        if self.verb == "create":
            options |= {"image": self.image, "memory": self.memory, "disk": 1}
        if self.verb == "kill":
            options["kill"] = True
        if self.verb in ("snapshot", "restore"):
            options["snapshot"] = "kept"
        if self.verb == "tunnel":
            options |= {"kind": "console", "lines": 10}
        return json.dumps({"command": COMMANDS[self.verb], "options": options}).encode()


class LabClient:
    """Sends commands as an operator, and writes into the ledger what it asked and was told."""

    def __init__(self, broker: dict[str, Any], ledger: Ledger) -> None:
        """`broker`: the table of the CLI's context."""
        self._user = urlsplit(broker["url"]).username or ""
        self._where = parameters_of(broker, socket_timeout=3, blocked_connection_timeout=3)
        self.ledger = ledger

    def send(self, command: Command, seconds: float, enough: Callable[[], bool] = lambda: False) -> Told:
        """Send it once; what came back within so many seconds, or until `enough`."""
        number = self.ledger.ask(command.vm_id, command.request_id, command.verb, command.deadline, sent_at=time.time())
        told = NOTHING
        with contextlib.suppress(AMQPError, OSError), self._exchange(command) as exchange:
            told = exchange.wait(seconds, enough)
        if told != NOTHING:
            self.ledger.tell(number, told, time.time())
        return told

    def insist(self, command: Command, seconds: float = 60.0) -> Told:
        """Send it again and again, until somebody knows its outcome.

        :raise AssertionError: when nobody does within so many seconds.
        """
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            told = self.send(command, 5.0)
            if told.outcome == "done" or (told.outcome == "refused" and told.what not in RETRIABLE):
                return told
            if told.outcome == "refused" and time.time() > command.deadline:
                return told
            time.sleep(0.2)
        raise AssertionError(f"nobody knew within {seconds} s how {command.verb} of {command.vm_id} went: {told}")

    def do(self, verb: Verb, vm_id: str) -> None:
        """A command without a fault.

        :raise AssertionError: when it is not done.
        """
        told = self.insist(Command(verb, vm_id))
        assert told.outcome == "done", f"{verb} of {vm_id}: {told}"

    def create(self, host: str, **more: Any) -> str:
        """A new VM on a host.

        :raise AssertionError: when it is not made.
        """
        command = Command("create", host=host, **more)
        told = self.insist(command)
        assert told.outcome == "done", f"create on {host}: {told}"
        return command.vm_id

    def leave(self, command: Command) -> None:
        """Send it and be gone before anybody can answer."""
        self.ledger.ask(command.vm_id, command.request_id, command.verb, command.deadline, sent_at=time.time())
        with self._exchange(command):
            pass

    def send_twice(self, command: Command, *hosts: str) -> None:
        """Deliver the very same message to each of these hosts; wait for an answer to each."""
        with contextlib.ExitStack() as stack:
            for host in hosts:
                copy = Command(**{**{n: getattr(command, n) for n in command.__dataclass_fields__}, "host": host})
                number = self.ledger.ask(copy.vm_id, copy.request_id, "create", copy.deadline, sent_at=time.time())
                exchange = stack.enter_context(self._exchange(copy))
                stack.callback(self._note, number, exchange)

    def _note(self, number: int, exchange: "_Exchange") -> None:
        self.ledger.tell(number, exchange.wait(15), time.time())

    def agents_alive(self) -> int:
        """How many agents consume; 0 if the broker can't be asked."""
        with contextlib.suppress(AMQPError, OSError), pika.BlockingConnection(self._where) as connection:
            declared = connection.channel().queue_declare(topology.HOSTS, passive=True)
            return int(declared.method.consumer_count)
        return 0

    def _exchange(self, command: Command) -> "_Exchange":
        return _Exchange(self._where, self._user, command)


class _Exchange:
    """One message and its answer, on a connection of its own."""

    def __init__(self, where: pika.ConnectionParameters, user: str, command: Command) -> None:
        self._connection = pika.BlockingConnection(where)
        self._told = NOTHING
        channel = self._connection.channel()
        channel.confirm_delivery()
        channel.basic_consume(topology.ReplyTo, self._on_answer, auto_ack=True)
        properties = pika.BasicProperties(
            reply_to=topology.ReplyTo,
            correlation_id=names.new_request_id(),
            message_id=command.request_id,
            user_id=user,
            delivery_mode=2,
            headers={"deadline": int(command.deadline * 1000)},
        )
        try:
            channel.basic_publish(topology.EXCHANGE, command.key, command.body, properties, mandatory=True)
        except pika.exceptions.UnroutableError:
            self._told = Told("refused", "vm-unknown")

    def __enter__(self) -> "_Exchange":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(AMQPError, OSError):
            self._connection.close()

    def _on_answer(self, _channel: Any, _method: Any, properties: Any, body: bytes) -> None:
        if is_stream(properties.headers):
            return  # what a console shows
        self._told = told_by(json.loads(body))

    def wait(self, seconds: float, enough: Callable[[], bool] = lambda: False) -> Told:
        """What was told within so many seconds, or until `enough`."""
        limit = time.monotonic() + seconds
        while self._told == NOTHING and time.monotonic() < limit and not enough():
            self._connection.process_data_events(0.1)
        return self._told
