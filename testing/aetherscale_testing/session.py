"""A CLI's session with hosts that exist in memory only: what is asked is answered at once, and noted."""

import json
import time
from collections.abc import Callable
from typing import Any

from aetherscale_cli.wire import Counted, Delivered, Event, Message, Returned
from aetherscale_protocol import topology
from aetherscale_protocol.answers import fleet_digest

Answer = dict[str, Any] | None
Behaviour = Callable[[str, str, dict[str, Any]], Answer]
"""What a host answers: its name, the command, the options; None: nothing."""


def success(response: Any, **more: Any) -> dict[str, Any]:
    """An answer that says that it was done."""
    return {"execution-info": {"status": "success"}, "response": response, **more}


def refusal(code: str, reason: str, **more: Any) -> dict[str, Any]:
    """An answer that says no."""
    return {"execution-info": {"status": "error", "code": code, "reason": reason, **more}}


class MemorySession:
    """A session with hosts, each with VMs, by id, as list-vms tells of them.

    :param hosts: the VMs of each host.
    :param down: hosts of the fleet that do not run; their VMs are still held.
    :param behave: what a host does about a command; the default knows lists and show-vm, and says `done` to the rest.
    """

    def __init__(
        self,
        hosts: dict[str, list[dict[str, Any]]],
        down: dict[str, list[str]] | None = None,
        behave: Behaviour | None = None,
    ) -> None:
        self.hosts = hosts
        self.down = down or {}
        self.behave = behave or (lambda *_: {})
        self.asked: list[tuple[str, str, dict[str, Any]]] = []  #: key, command, options
        self.now = time.monotonic()
        self._events: list[Event] = []

    def publish(self, message: Message) -> None:
        """Send a command; who gets it answers at once."""
        request = json.loads(message.body)
        command, options = request["command"], request.get("options", {})
        self.asked.append((message.key, command, options))
        kind, _, whom = message.key.partition(".")
        if kind == "vm":
            self._ask_holder(message, command, options, whom)
        elif kind == "host":
            self._ask_hosts(message, command, options, [whom] if whom in self.hosts else [])
        elif command == "create-vm":
            self._ask_hosts(message, command, options, list(self.hosts)[:1])
        else:
            self._ask_hosts(message, command, options, list(self.hosts))

    def _ask_holder(self, message: Message, command: str, options: dict[str, Any], vm_id: str) -> None:
        holders = [host for host, vms in self.hosts.items() if any(vm["vm-id"] == vm_id for vm in vms)]
        dead = [host for host, ids in self.down.items() if vm_id in ids]
        if dead:
            no = refusal("host-down", f"host {dead[0]}, which holds this VM, is not running", down=dead[0])
            self._events.append(Delivered(message.correlation_id, json.dumps(no).encode()))
        else:
            self._ask_hosts(message, command, options, holders)

    def _ask_hosts(self, message: Message, command: str, options: dict[str, Any], hosts: list[str]) -> None:
        if not hosts:
            self._events.append(Returned(message.correlation_id))
        fleet = sorted([*self.hosts, *self.down])
        for host in hosts:
            answer = self.behave(host, command, options)
            if answer == {}:
                answer = self._answer(host, command, options)
            if answer is not None:
                whole = {"host": host, "fleet": {"size": len(fleet), "digest": fleet_digest(fleet)}, **answer}
                self._events.append(Delivered(message.correlation_id, json.dumps(whole).encode()))

    def _answer(self, host: str, command: str, options: dict[str, Any]) -> dict[str, Any]:
        vms = self.hosts[host]
        if command == "list-vms":
            return success([f"vm-{vm['vm-id']}" for vm in vms], details=vms)
        if command == "list-hosts":
            return success(host_report(host, sorted([*self.hosts, *self.down])))
        if command == "show-vm":
            vm = next(vm for vm in vms if vm["vm-id"] == options["vm-id"])
            return success(vm | {"host": host, "created": 0})
        return success({"status": "done", "vm-id": options.get("vm-id", ""), **_extra(command, options)})

    def count_consumers(self, queue: str) -> None:
        """How many agents run; a host's own queue has one, if it runs."""
        alive = len(self.hosts) if queue == topology.HOSTS else int(queue.rpartition(".")[2] in self.hosts)
        self._events.append(Counted(queue, alive))

    def next_event(self, deadline: float) -> Event | None:
        """What happened; with nothing left to happen time jumps to the deadline."""
        if self._events:
            return self._events.pop(0)
        self.now = max(self.now, deadline)
        return None

    def clock(self) -> float:
        """The session's own time, in seconds, which passes only where something is waited for in vain."""
        return self.now

    @property
    def commands(self) -> list[str]:
        """The commands that were sent, in order."""
        return [command for _, command, _ in self.asked]


def _extra(command: str, options: dict[str, Any]) -> dict[str, Any]:
    if command == "create-vm":
        return {}
    return {key: options[key] for key in ("snapshot", "image", "host") if options.get(key)}


def vm(vm_id: str, **more: Any) -> dict[str, Any]:
    """A VM as list-vms has it."""
    base = {"state": "running", "image": "debian", "cpus": 1, "memory": 1024, "disk": 10, "since": 0}
    return {"vm-id": vm_id, **base, **more}


def host_report(host: str, fleet: list[str]) -> dict[str, Any]:
    """A response to list-hosts."""
    return {
        "host": host, "state": "up", "cpus": 8, "cpus-free": 6, "memory": 16384, "memory-free": 14336, "disk": 100,
        "disk-free": 80, "vms": 2, "running": 1, "images": ["debian"], "accelerator": "tcg", "agent-version": "0.1.0",
        "fleet": fleet,
    }  # fmt: skip
