"""An operator's client in a cell: the CLI's protocol, and a ledger of what it asked and what it was told."""

import contextlib
import json
import time
import uuid
from dataclasses import dataclass, replace
from typing import Any

import pika
from pika.exceptions import AMQPError

from aetherscale_protocol import names
from aetherscale_protocol.streams import Frame, is_stream, read_frame
from aetherscale_testing.faults.ledger import NOTHING, Ledger, Told, Verb, told_by
from aetherscale_testing.faults.tunnel import GREETING, PROBE_S, Tunnel

GRACE_S = 1.0
"""How much longer than the deadline a client waits."""

_COMMANDS: dict[Verb, str] = {
    "create": "create-vm",
    "start": "start-vm",
    "stop": "stop-vm",
    "kill": "stop-vm",
    "delete": "delete-vm",
    "snapshot": "snapshot-vm",
    "restore": "restore-vm",
    "resize": "resize-vm",
    "reboot": "reboot-vm",
    "tunnel": "open-stream",
}


@dataclass(frozen=True)
class Request:
    """A command that was sent: all that is needed to send the very same message again."""

    verb: Verb
    vm_id: str
    request_id: str
    deadline: float
    key: str
    body: bytes
    correlation_id: str
    number: int  #: in the ledger


class Client:
    """One operator's connection. For one thread."""

    def __init__(self, port: int, vhost: str, ledger: Ledger) -> None:
        self._parameters = pika.ConnectionParameters(
            "127.0.0.1", port, vhost, pika.PlainCredentials("guest", "guest"), heartbeat=600
        )
        self._ledger = ledger
        self._answers: dict[str, dict[str, Any]] = {}
        self._keys: dict[str, str] = {}
        self._tunnels: dict[str, Tunnel] = {}
        self._connect()

    def _connect(self) -> None:
        self._connection = pika.BlockingConnection(self._parameters)
        self._channel = self._connection.channel()
        self._channel.basic_consume("amq.rabbitmq.reply-to", self._on_answer, auto_ack=True)
        self._channel.add_on_return_callback(self._on_return)

    def reconnect(self) -> None:
        """Come back after the connection was lost: the next client, from the broker's point of view."""
        self.close()
        self._tunnels.clear()  # they end with the connection
        self._connect()

    def close(self) -> None:
        """Go away, whatever is under way."""
        with contextlib.suppress(AMQPError):
            self._connection.close()

    def _on_answer(self, _channel: Any, _method: Any, properties: Any, body: bytes) -> None:
        if is_stream(properties.headers):
            tunnel = self._tunnels.get(properties.correlation_id)
            if tunnel is not None:
                tunnel.take(read_frame(properties.headers, body))
            return
        answer = json.loads(body)
        self._answers.setdefault(properties.correlation_id, answer)
        opened = (answer.get("response") or {}) if isinstance(answer, dict) else {}
        if "stream" in opened:
            self._begin(properties.correlation_id, opened["stream"])

    def _begin(self, correlation_id: str, stream: str) -> None:
        """The first stream that a command opened is its client's; copies may open more, which their host ends."""
        if correlation_id not in self._tunnels:
            tunnel = self._tunnels[correlation_id] = Tunnel(stream)
            self._post(correlation_id, tunnel.write(GREETING))

    def _post(self, correlation_id: str, frame: Frame) -> None:
        properties = pika.BasicProperties(
            correlation_id=correlation_id, reply_to="amq.rabbitmq.reply-to", user_id="guest", headers=frame.headers
        )
        self._channel.basic_publish("computing", self._keys[correlation_id], frame.body, properties)

    def probe_tunnels(self) -> list[str]:
        """What is wrong with this connection's tunnels: each must carry bytes, or say that it is over."""
        for correlation_id, tunnel in self._tunnels.items():
            if not tunnel.over:
                self._post(correlation_id, tunnel.write(GREETING))
        limit = time.time() + PROBE_S
        with contextlib.suppress(AMQPError):
            while time.time() < limit and not all(tunnel.is_settled for tunnel in self._tunnels.values()):
                self._connection.process_data_events(0.1)
        return [wrong for tunnel in self._tunnels.values() if (wrong := tunnel.find_fault())]

    def leave_tunnels(self) -> None:
        """Close them all."""
        for correlation_id, tunnel in self._tunnels.items():
            if not tunnel.over:
                self._post(correlation_id, tunnel.close())

    def _on_return(self, _channel: Any, _method: Any, properties: Any, _body: bytes) -> None:
        gone = {"status": "error", "code": "vm-unknown", "reason": "VM does not exist"}
        self._answers.setdefault(properties.correlation_id, {"execution-info": gone})

    def send(self, verb: Verb, vm_id: str, *, patience: float, request_id: str = "", **options: Any) -> Request:
        """Send a command; with a request id, it is asked again."""
        if verb == "kill":
            options["kill"] = True
        body = json.dumps({"command": _COMMANDS[verb], "options": {"vm-id": vm_id, **options}}).encode()
        now = time.time()
        request_id, deadline = request_id or uuid.uuid4().hex, now + patience
        number = self._ledger.ask(vm_id, request_id, verb, deadline, now)
        key = "create-vm" if verb == "create" else names.vm_key(vm_id)
        request = Request(verb, vm_id, request_id, deadline, key, body, uuid.uuid4().hex, number)
        self._keys[request.correlation_id] = key
        self._publish(request)
        return request

    def again(self, request: Request, *, patience: float) -> Request:
        """Ask again: the same request id, a fresh deadline."""
        now = time.time()
        number = self._ledger.ask(request.vm_id, request.request_id, request.verb, now + patience, now)
        fresh = replace(request, deadline=now + patience, correlation_id=uuid.uuid4().hex, number=number)
        self._keys[fresh.correlation_id] = fresh.key
        self._publish(fresh)
        return fresh

    def duplicate(self, request: Request) -> None:
        """Have the same message delivered twice."""
        self._publish(request)

    def _publish(self, request: Request) -> None:
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,
            correlation_id=request.correlation_id,
            message_id=request.request_id,
            reply_to="amq.rabbitmq.reply-to",
            user_id="guest",
            headers={"deadline": int(request.deadline * 1000)},
        )
        self._channel.basic_publish("computing", request.key, request.body, properties, mandatory=True)

    def is_answered(self, request: Request) -> bool:
        """Whether an answer is there."""
        with contextlib.suppress(AMQPError):
            self._connection.process_data_events(0)
        return request.correlation_id in self._answers

    def learn(self, request: Request) -> Told:
        """Wait for the answer, as long as an operator would; what it tells goes into the ledger."""
        answer = self._wait(request.correlation_id, request.deadline + GRACE_S)
        told = NOTHING if answer is None else told_by(answer)
        if answer is not None:
            self._ledger.tell(request.number, told, time.time())
        return told

    def show(self, vm_id: str, patience: float = 5.0) -> dict[str, Any] | None:
        """What `show-vm` answers; None if nothing comes."""
        body = json.dumps({"command": "show-vm", "options": {"vm-id": vm_id, "console-lines": 0}}).encode()
        deadline = time.time() + patience
        self._publish(Request("create", vm_id, uuid.uuid4().hex, deadline, names.vm_key(vm_id), body, "show", -1))
        return self._wait("show", deadline + GRACE_S)

    def _wait(self, correlation_id: str, until: float) -> dict[str, Any] | None:
        with contextlib.suppress(AMQPError):
            while correlation_id not in self._answers and (left := until - time.time()) > 0:
                self._connection.process_data_events(min(left, 0.5))
        return self._answers.pop(correlation_id, None)
