"""What each command costs a real host, in counts (see `aetherscale_testing.budgets`): calls to systemd over D-Bus, QMP
commands, processes started, files opened, renamed, removed and synced, threads. h1's agent notes them, in its own unit,
confined as ever.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aetherscale_testing import budgets, counting
from aetherscale_testing.counting import Notes
from aetherscale_testing.rollout import Rollout

HOST = "h1"
AGENT = "aetherscale-agent.service"
PYTHON = "/opt/aetherscale/current/bin/python"
PROGRAM, NOTES = "/opt/counting.py", "/run/aetherscale/notes"
DROP_IN = f"/run/systemd/system/{AGENT}.d"
START = f"{PYTHON} {PROGRAM} {NOTES} --config /etc/aetherscale/agent.toml"

CREATE = ("create-vm", "--host", HOST, "--image", "ubuntu_base", "--memory", "128M", "--disk", "1G")

KILLS = ("stop-vm --kill", "delete-vm of a VM that runs")
PRESS = "qmp system_powerdown"
ENDED_FIRST = Counter({"dbus ListUnitsByPatterns": 1, "dbus LoadUnit": 1, "dbus GetAll": 2})
"""What it takes to be told how a unit ended that was over before the agent could listen for its end."""


class Agent:
    """h1's agent, which notes; and the numbers of the messages that each row's command was."""

    def __init__(self, fleet: Rollout) -> None:
        self.fleet = fleet
        self.rows: dict[str, list[int]] = {}
        self._seen: set[int] = set()

    def notes(self) -> Notes:
        """What it has noted."""
        return Notes(self.fleet.run(HOST, "cat", NOTES))

    def run(self, row: str, *line: str) -> list[dict[str, Any]]:
        """Run a command of the CLI; its answers."""
        answers = self.fleet.ask(*line)
        self.rows[row] = self.skip()
        return answers

    def skip(self) -> list[int]:
        """Count none of the messages that have come since the last row; their numbers."""
        new = sorted(self.notes().begun.keys() - self._seen)
        self._seen.update(new)
        return new


@pytest.fixture
def agent() -> Iterator[Agent]:
    fleet = Rollout()
    write(fleet, PROGRAM, Path(counting.__file__).read_text())
    fleet.run(HOST, "mkdir", "-p", DROP_IN)
    write(fleet, f"{DROP_IN}/counting.conf", f"[Service]\nExecStart=\nExecStart={START}\n")
    try:
        restart(fleet)
        yield Agent(fleet)
    finally:
        fleet.run(HOST, "rm", "-rf", PROGRAM, DROP_IN, NOTES)
        restart(fleet)


def write(fleet: Rollout, path: str, text: str) -> None:
    fleet.run(HOST, "sh", "-c", 'printf %s "$1" > "$2"', "sh", text, path)


def restart(fleet: Rollout) -> None:
    fleet.run(HOST, "systemctl", "daemon-reload")
    fleet.run(HOST, "systemctl", "restart", AGENT)
    fleet.eventually(lambda: fleet.cli("doctor", check=False).returncode == 0, 40)


def in_time(row: str, counts: Counter[str]) -> Counter[str]:
    """A row without what only a busy machine brings about, of which there is one cause each.

    A guest that takes longer than a few seconds to shut down has its power button pressed again; and a QEMU may be
    gone before the agent, which has just told it to quit, asks for its unit.
    """
    if row == "stop-vm":
        more = max(0, counts[PRESS] - 1)
        counts -= Counter({PRESS: more, "qmp connect": more})
    if row in KILLS and counts >= ENDED_FIRST:
        counts -= ENDED_FIRST
    return counts


def test_no_command_costs_a_host_more_or_less_than_it_did(agent: Agent) -> None:
    agent.skip()
    (made,) = agent.run("create-vm", *CREATE)
    vm_id = str(made["response"]["vm-id"])
    (alike,) = agent.run("create-vm, alike", *CREATE)
    agent.run("delete-vm of a VM that runs", "delete-vm", str(alike["response"]["vm-id"]))
    agent.run("list-vms", "list-vms")
    agent.run("show-vm", "show-vm", vm_id)
    agent.run("pause-vm", "pause-vm", vm_id)
    agent.run("resume-vm", "resume-vm", vm_id)
    agent.run("extend-vm", "extend-vm", vm_id, "--ttl", "1d")
    agent.run("snapshot-vm", "snapshot-vm", vm_id, "clean")
    agent.run("list-snapshots", "list-snapshots", vm_id)
    agent.fleet.boot(vm_id)  # only then it hears its power button
    agent.skip()
    agent.run("stop-vm", "stop-vm", vm_id)
    agent.run("restore-vm", "restore-vm", vm_id, "clean")
    agent.run("delete-snapshot", "delete-snapshot", vm_id, "clean")
    (copy,) = agent.run("clone-vm", "clone-vm", vm_id)
    agent.run("resize-vm", "resize-vm", vm_id, "--disk", "2G")
    agent.run("start-vm", "start-vm", vm_id)
    agent.run("reboot-vm --kill", "reboot-vm", "--kill", vm_id)
    agent.run("stop-vm --kill", "stop-vm", "--kill", vm_id)
    agent.fleet.ask("delete-vm", str(copy["response"]["vm-id"]))
    agent.skip()
    agent.run("delete-vm", "delete-vm", vm_id)
    agent.fleet.run(HOST, "systemctl", "stop", AGENT)  # it finishes what is under way
    notes = agent.notes()
    counted = {row: in_time(row, notes.of(*numbers)) for row, numbers in agent.rows.items()}
    budgets.hold({"agent on a real host": counted})
