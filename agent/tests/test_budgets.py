"""What each command costs over a real broker, in counts (see `aetherscale_testing.budgets`): methods on the wire of the
CLI, from connect to close, and of each agent; modules that the CLI imports; files that an agent syncs.

h1 has more memory than h2, so that the broker gives it every create; only h2 has the image `b`.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from aetherscale_protocol import names, topology
from aetherscale_testing import budgets
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.counting import Notes
from aetherscale_testing.fleet import READY_TIMEOUT_S, Fleet
from aetherscale_testing.proxy import Wires
from aetherscale_testing.round_trips import Sleeper
from aetherscale_testing.tally import Tally

pytestmark = pytest.mark.broker

HOSTS = ["h1", "h2"]
IMPORTS, NOTES = "CLI, modules", "agent of h1, its host"
WIRES = {"CLI": "CLI, wire", "h1": "agent of h1, wire", "h2": "agent of h2, wire"}
CLI = """
from aetherscale_cli import main

def patient(*args, real=main.main):
    from aetherscale_cli import broker
    broker.CONNECT_TIMEOUT_S = broker._CLOSE_TIMEOUT_S = 60.0
    return real(*args)

main.main = patient
main.run()
"""
"""As it is, but that it has more time to come and go, because each answer is held back for a while."""
PARTIAL = 4
SETTLE_S = 0.5
DEAD_LETTER_S = topology.HOST_TTL_MS / 1000 + SETTLE_S

CREATE = "create-vm --memory 512M --disk 1G --image"
COMMANDS = (
    ("list-vms", "list-vms", 0),
    ("list-hosts", "list-hosts", 0),
    ("create-vm, the first here", f"{CREATE} a --vm-id {{one}}", 0),
    ("create-vm", f"{CREATE} a --name web-{{two}}", 0),
    ("create-vm, handed on to h2", f"{CREATE} b --vm-id {{three}}", 0),
    ("create-vm, no such image", f"{CREATE} none", 1),
    ("show-vm", "show-vm {one}", 0),
    ("show-vm NAME", "show-vm web-{two}", 0),
    ("show-vm, no such VM", "show-vm {four}", 1),
    ("stop-vm", "stop-vm {one}", 0),
    ("start-vm", "start-vm {one}", 0),
    ("stop-vm --kill", "stop-vm --kill {one}", 0),
    ("delete-vm", "delete-vm {one}", 0),
)
"""Row, command line, and the exit code that shows that what is counted is what was meant."""


class Counted:
    """Two agents and a CLI, all of whose wires are counted: what each row has cost, by section."""

    def __init__(self, broker: TestBroker, fleet: Fleet, wires: Wires, home: Path) -> None:
        self.sections: dict[str, dict[str, Counter[str]]] = {IMPORTS: {}, **{section: {} for section in WIRES.values()}}
        self._broker, self._fleet, self._home = broker, fleet, home
        ways = {end: wires.open(("127.0.0.1", broker.port)) for end in WIRES}
        self._tallies = {section: Tally(ways[end]) for end, section in WIRES.items()}
        self._expected = {section: budgets.load(section) for section in self._tallies}
        self._ids = {name: names.new_vm_id() for name in ("one", "two", "three", "four")}
        self._environ = {"RABBITMQ_HOST": f"127.0.0.1:{ways['CLI'].port}", "HOME": str(home)}
        self._numbers: dict[str, list[int]] = {}  #: of the messages that h1 was sent, by row
        for host, images, memory in (("h1", ("a",), 32768), ("h2", ("a", "b"), 8192)):
            options = {"broker": {"url": broker.url(port=ways[host].port)}, "fleet": HOSTS, "heartbeat": 600}
            fleet.add(host, *images, memory=memory, keep=True, notes=str(home / f"{host}.notes"), **options)
            self._hold(host)
        self._come_to_rest()

    def _come_to_rest(self) -> None:
        """Wait until all agents take creates, which is the last that they do when they connect."""
        self._fleet.wait_ready()
        limit = time.monotonic() + READY_TIMEOUT_S
        with SeedClient(self._broker.address) as client:
            while client.consumers(topology.COMPETING) < len(HOSTS):
                assert time.monotonic() < limit
                time.sleep(0.01)
        self._forget()

    def _hold(self, host: str) -> None:
        """Count round trips of this agent, which has just been started."""
        process = self._fleet.agents[host].process
        assert process is not None
        self._tallies[WIRES[host]].client = Sleeper(process.pid)

    def _forget(self) -> None:
        for tally in self._tallies.values():
            tally.forget(SETTLE_S)

    def run(self, row: str, line: str, code: int = 0) -> None:
        """Run the CLI, and count."""
        argv = [sys.executable, "-X", "importtime", "-c", CLI, *line.format(**self._ids).split()]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **self._environ}
        with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            self._tallies[WIRES["CLI"]].client = Sleeper(process.pid)
            output, errors = process.communicate(timeout=120)
        assert process.returncode == code, (line, output, [w for w in errors.splitlines() if "|" not in w])
        self.sections[IMPORTS][row] = budgets.count_imports(errors)
        self.settle(row, ends=WIRES)
        seen = {number for numbers in self._numbers.values() for number in numbers}
        self._numbers[row] = [number for number in self._notes().begun if number not in seen]

    def settle(self, row: str, patience: float = SETTLE_S, ends: Iterable[str] = HOSTS) -> None:
        """Count what passes the wires until it is what is expected, or nothing more comes."""
        for section in (WIRES[end] for end in ends):
            tally, expected = self._tallies[section], self._expected[section].get(row, Counter())
            counted = tally.settle(None, patience) if budgets.is_writing() else tally.settle(expected)
            self.sections[section][row] = counted

    def stop(self, host: str) -> None:
        """Stop an agent; what that costs is not counted."""
        self._fleet.agents[host].stop()
        self._forget()

    def connect(self, host: str, row: str) -> None:
        """Start an agent that was stopped."""
        self._fleet.agents[host].options.pop("notes")
        self._fleet.agents[host].start()
        self._hold(host)
        self._fleet.wait_ready()
        self.settle(row)

    def read_notes(self) -> None:
        """Read what h1 noted, which has been stopped: all of it is there."""
        notes = self._notes()
        self.sections[NOTES] = {row: notes.of(*numbers) for row, numbers in self._numbers.items()}

    def _notes(self) -> Notes:
        return Notes((self._home / "h1.notes").read_text())


def test_no_command_costs_more_or_less_than_it_did(broker: TestBroker, agents: Fleet, tmp_path: Path) -> None:
    with Wires() as wires:
        counted = Counted(broker, agents, wires, tmp_path)
        for row, line, code in COMMANDS:
            counted.run(row, line, code)
        counted.stop("h1")
        counted.read_notes()
        counted.connect("h1", "an agent connects, with one VM")
        counted.stop("h2")
        counted.run("list-vms, one host down", "list-vms", PARTIAL)
        counted.settle("the message to it, dead-lettered", DEAD_LETTER_S)
        time.sleep(SETTLE_S)
        counted.settle("afterwards")
    budgets.hold(counted.sections)
