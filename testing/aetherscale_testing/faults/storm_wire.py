"""Two ways for a storm's clients to send commands: over the CLI's own session, and through the CLI's process.

Both tell what a client is told: done, refused, unknown or nothing, as in `ledger`; `NOT_SENT` is a refusal too.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aetherscale_cli.ask import GRACE_S, ask_everyone, make_call
from aetherscale_cli.broker import BrokerSession, keep_quiet, open_session
from aetherscale_cli.contexts import ContextStore, Target, find_target
from aetherscale_cli.errors import CliError, Exit
from aetherscale_cli.wire import Counted, Delivered, Event, Message, Nacked, Returned
from aetherscale_protocol import topology
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.options import CreateVm, Options, ShowVm, StopVm, VmRef
from aetherscale_testing import guests
from aetherscale_testing.faults.ledger import NOTHING, Told, told_by
from aetherscale_testing.faults.storm_plan import Verb

NOT_SENT = Told("refused", "not-sent")

CLI = str(Path(sys.executable).with_name("aetherscale-cli"))

LATE_COPY_S = 3.0
"""How long a client waits for the answer to a second copy once it has the first's."""

COMMAND_OF: dict[Verb, str] = {
    "create": "create-vm", "start": "start-vm", "stop": "stop-vm", "kill": "stop-vm", "delete": "delete-vm",
    "show": "show-vm",
}  # fmt: skip


@dataclass(frozen=True)
class Order:
    """A command for one VM. `timeout` in seconds from when it is sent."""

    verb: Verb
    vm_id: str
    deaf: bool
    request_id: str
    timeout: float

    def finalize_options(self) -> Options:
        """The command's options on the wire."""
        match self.verb:
            case "create":
                image = guests.DEAF if self.deaf else guests.POLITE
                return CreateVm(image=image, vm_id=self.vm_id, memory=64, disk=1)
            case "stop" | "kill":
                return StopVm(vm_id=self.vm_id, kill=self.verb == "kill")
            case "show":
                return ShowVm(vm_id=self.vm_id, console_lines=0)
            case _:
                return VmRef(vm_id=self.vm_id)


@dataclass(frozen=True)
class Answered:
    """What one copy of a command was answered, by which host, and why not; `state` and `why` are show-vm's."""

    told: Told
    host: str = ""
    text: str = ""
    state: str = ""
    why: str = ""


def read_answer(body: bytes | str) -> Answered:
    """What an answer's body tells."""
    answer: Any = json.loads(body)
    info, response = answer.get("execution-info", {}), answer.get("response")
    shown = response if isinstance(response, dict) else {}
    return Answered(
        told_by(answer),
        host=str(answer.get("host") or ""),
        text=str(info.get("reason", "")),
        state=str(shown.get("state", "")),
        why=str(shown.get("reason", "")),
    )


class Line(Protocol):
    """A way to send commands. What is started must be finished before the next is started."""

    def start(self, order: Order, copies: int = 1) -> None:
        """Send a command, or the same message so many times."""

    def finish(self) -> list[Answered]:
        """What each copy was answered, in time; one entry for each."""

    def vanish(self, order: Order) -> None:
        """Send a command and be gone before it can be answered."""

    def list_vms(self, timeout: float) -> set[str] | None:
        """The ids of all VMs; None when not every host answered."""

    def close(self) -> None:
        """Hang up."""


class WireLine:
    """A connection of its own, spoken as the CLI speaks it; made anew whenever it is lost."""

    def __init__(self, target: Target, name: str) -> None:
        self._target = target
        self._name = name
        self._stack = contextlib.ExitStack()
        self._session: BrokerSession | None = None
        self._sent: Message | None = None
        self._until = 0.0
        self._copies = 0
        self._early: deque[Event] = deque()
        keep_quiet()

    def start(self, order: Order, copies: int = 1) -> None:
        """Send a command, or the same message so many times."""
        self._copies, self._sent = copies, None
        self._early.clear()
        try:
            session = self._open()
            if COMMANDS[COMMAND_OF[order.verb]].changes and not self._somebody_consumes(session):
                return
            message = self._message(order)
            self._until = time.monotonic() + order.timeout + GRACE_S
            for _ in range(copies):
                session.publish(message)
                self._sent = message
        except CliError:
            self.close()

    def finish(self) -> list[Answered]:
        """What each copy was answered, in time."""
        if self._sent is None:
            return [Answered(NOT_SENT)] * self._copies
        answers: list[Answered] = []
        until = self._until
        try:
            while len(answers) < self._copies and (event := self._next(until)) is not None:
                if getattr(event, "correlation_id", "") == self._sent.correlation_id:
                    answers.append(_read_event(event, self._sent))
                    until = min(until, time.monotonic() + LATE_COPY_S)
        except CliError as error:
            self.close()
            lost = Answered(Told("unknown", "connection-lost"), text=str(error))
            answers += [lost] * (self._copies - len(answers))
        return answers + [Answered(NOTHING)] * (self._copies - len(answers))

    def vanish(self, order: Order) -> None:
        """Send a command and close the connection at once."""
        self.start(order)
        self.close()

    def list_vms(self, timeout: float) -> set[str] | None:
        """The ids of all VMs; None when not every host answered."""
        try:
            everyone = ask_everyone(self._open(), "list-vms", timeout)
        except CliError:
            self.close()
            return None
        if everyone.missing or everyone.nameless or everyone.unreadable:
            return None
        return _ids_in([json.loads(reply.raw) for reply in everyone.replies])

    def close(self) -> None:
        """Hang up."""
        self._session = None
        with contextlib.suppress(CliError):
            self._stack.close()

    def _open(self) -> BrokerSession:
        if self._session is None:
            self._session = self._stack.enter_context(open_session(self._target, self._name))
        return self._session

    def _message(self, order: Order) -> Message:
        command = COMMANDS[COMMAND_OF[order.verb]]
        return make_call(command, order.finalize_options(), order.timeout, order.request_id).message

    def _somebody_consumes(self, session: BrokerSession) -> bool:
        """As the CLI does: what changes something is not sent while the broker knows of no agent."""
        session.count_consumers(topology.HOSTS)
        limit = time.monotonic() + 5.0
        while (event := session.next_event(limit)) is not None:
            if isinstance(event, Counted):
                return event.consumers != 0
        return False

    def _next(self, until: float) -> Event | None:
        if self._session is None:
            return None
        return self._session.next_event(until)


def _read_event(event: Event, message: Message) -> Answered:
    match event:
        case Delivered(_, body):
            return read_answer(body)
        case Returned():
            if message.key == topology.CREATE_KEY:
                return Answered(NOT_SENT, text="there is no queue for creates")
            return Answered(Told("refused", "vm-unknown"), text="returned by the broker")
        case Nacked():
            return Answered(NOT_SENT, text="a queue is full")
        case Counted():
            raise AssertionError("a count has no correlation id")


class CliLine:
    """The real `aetherscale-cli`, a process for each command."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._running: list[subprocess.Popen[str]] = []
        self._limit = 0.0

    def start(self, order: Order, copies: int = 1) -> None:
        """Run the CLI, so many times at once."""
        self._limit = order.timeout + 30.0
        self._running = [self._run(order) for _ in range(copies)]

    def finish(self) -> list[Answered]:
        """What each process printed."""
        return [_read_process(process, self._limit) for process in self._running]

    def vanish(self, order: Order) -> None:
        """Run the CLI and kill it before it may have heard of its command's end."""
        process = self._run(order)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=0.3)
        process.kill()
        process.communicate()

    def list_vms(self, timeout: float) -> set[str] | None:
        """What `list-vms` prints; None unless its exit code says that it is complete."""
        command = [CLI, "list-vms", "--timeout", str(timeout), "-o", "json"]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        return _ids_in(json.loads(done.stdout)) if done.returncode == Exit.DONE else None

    def close(self) -> None:
        """Nothing is kept open."""

    def _run(self, order: Order) -> "subprocess.Popen[str]":
        options = [order.vm_id]
        if order.verb == "create":
            image = guests.DEAF if order.deaf else guests.POLITE
            options = ["--vm-id", order.vm_id, "--image", image, "--memory", "64M", "--disk", "1G"]
            options += ["--no-ssh-key"]  # whoever runs this may have keys, and copies are of one request
        if order.verb == "kill":
            options.append("--kill")
        if order.verb != "show":
            options += ["--request-id", order.request_id]
        command = [CLI, COMMAND_OF[order.verb], *options, "--timeout", str(order.timeout), "-o", "json"]
        return subprocess.Popen(
            command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip


def _read_process(process: "subprocess.Popen[str]", limit: float) -> Answered:
    """What a process of the CLI told: its answer, or what its exit code says."""
    try:
        printed, complaint = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Answered(NOTHING, text="aetherscale-cli did not end")
    answers = json.loads(printed) if printed.strip() else []
    if answers:
        return read_answer(json.dumps(answers[0]))
    text = complaint.splitlines()[0] if complaint else ""
    if process.returncode == Exit.UNREACHABLE:
        return Answered(NOT_SENT, text=text)
    outcome = Told("unknown", "exit-5") if process.returncode == Exit.UNKNOWN else None
    return Answered(outcome or Told("refused", f"exit-{process.returncode}"), text=text)


def _ids_in(answers: list[dict[str, Any]]) -> set[str]:
    return {name.removeprefix("vm-") for answer in answers for name in answer.get("response", [])}


def find_broker() -> Target:
    """The broker of the CLI's current context."""
    return find_target(ContextStore.of(os.environ), None, os.environ)
