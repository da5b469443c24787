"""A client that is connected already: the CLI's own session, so that what is timed is what it would see."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aetherscale_cli.broker import BrokerSession, open_session
from aetherscale_cli.contexts import Target
from aetherscale_cli.wire import Delivered, Message
from aetherscale_protocol import names
from aetherscale_protocol.answers import Answer, decode_answer
from aetherscale_protocol.settings import BrokerSettings
from aetherscale_testing.broker import TestBroker

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Asked:
    """What came of commands: the answers, and when they came, in ms since the (first) command was published."""

    bodies: tuple[bytes, ...]
    times: tuple[float, ...]

    @property
    def answers(self) -> list[Answer]:
        """The answers, decoded."""
        return [decode_answer(body) for body in self.bodies]

    @property
    def responses(self) -> list[Any]:
        """What is in them."""
        return [json.loads(bytes(answer.response)) for answer in self.answers]


def vm_of(answer: Answer) -> str:
    """The id of the VM that an answer is about.

    :raise RuntimeError: when it is about none.
    """
    if not answer.ok or not answer.response:
        raise RuntimeError(f"no VM: {answer.execution_info.reason}")
    return str(json.loads(bytes(answer.response))["vm-id"])


class Asker:
    """Asks one thing after the other, or many at once."""

    def __init__(self, session: BrokerSession) -> None:
        self._session = session

    def ask(self, command: str, expected: int = 1, **options: Any) -> Asked:
        """Publish a command to all who take it, and wait for so many answers.

        :raise TimeoutError: when they don't come.
        """
        return self._ask(command, options, command, expected)

    def ask_vm(self, command: str, vm_id: str, **options: Any) -> Asked:
        """Ask for something of one VM, as the CLI does.

        :raise TimeoutError: when no answer comes.
        """
        return self._ask(command, {"vm-id": vm_id, **options}, f"vm.{vm_id}", 1)

    def _ask(self, command: str, options: dict[str, Any], key: str, expected: int) -> Asked:
        begin = time.perf_counter()
        self._publish(command, options, key)
        bodies: list[bytes] = []
        times: list[float] = []
        while len(bodies) < expected:
            bodies.append(self._next().body)
            times.append((time.perf_counter() - begin) * 1000)
        return Asked(tuple(bodies), tuple(times))

    def ask_each(self, command: str, options: Sequence[dict[str, Any]], at_once: int) -> Asked:
        """Publish a command with each of these options, so many of them unanswered at a time; the answer to each.

        :raise TimeoutError: when they don't come.
        """
        begin = time.perf_counter()
        numbers: dict[str, int] = {}
        answers: dict[int, tuple[bytes, float]] = {}

        def take() -> None:
            event = self._next()
            answers[numbers[event.correlation_id]] = event.body, (time.perf_counter() - begin) * 1000

        for number, one in enumerate(options):
            while len(numbers) - len(answers) >= at_once:
                take()
            numbers[self._publish(command, one)] = number
        while len(answers) < len(options):
            take()
        bodies, times = zip(*(answers[number] for number in range(len(options))), strict=True)
        return Asked(bodies, times)

    def _publish(self, command: str, options: dict[str, Any], key: str = "") -> str:
        request_id = names.new_request_id()
        body = json.dumps({"command": command, "options": options}).encode()
        deadline_ms = int((time.time() + PATIENCE_S) * 1000)
        self._session.publish(Message(key or command, body, request_id, request_id, deadline_ms, changes=True))
        return request_id

    def _next(self) -> Delivered:
        event = self._session.next_event(time.monotonic() + PATIENCE_S)
        if not isinstance(event, Delivered):
            raise TimeoutError(f"no answer came, but {event}")
        return event


@contextmanager
def asking(broker: TestBroker) -> Iterator[Asker]:
    """A client of this broker."""
    with asking_at(Target(BrokerSettings(url=broker.url()), "the benchmark's own broker")) as asker:
        yield asker


@contextmanager
def asking_at(target: Target) -> Iterator[Asker]:
    """A client of the broker that a context of the CLI names."""
    with open_session(target, "aetherscale-bench") as session:
        yield Asker(session)
