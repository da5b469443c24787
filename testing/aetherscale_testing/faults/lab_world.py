"""A lab under test: agents that obey orders to die or freeze at a step, clients with a ledger, and the checker."""

import contextlib
import inspect
import itertools
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pika

from aetherscale_protocol import names
from aetherscale_testing.client import parameters_of
from aetherscale_testing.faults import launcher, tiny_guest
from aetherscale_testing.faults.checker import Kind, Violation, check
from aetherscale_testing.faults.lab_client import Command, LabClient
from aetherscale_testing.faults.lab_view import collect, look_at
from aetherscale_testing.faults.ledger import Ledger
from aetherscale_testing.faults.views import BrokerView, HostView
from aetherscale_testing.rollout import Rollout

HOSTS = ("h1", "h2")
FOLDER = str(launcher.FOLDER)
HEARTBEAT_S = 2
SETTLE_S = 25.0
"""How long the system may take to settle after a fault, without help."""

AGENT = "aetherscale-agent.service"
_DROP_IN = f"""[Service]
ExecStart=
ExecStart=/opt/aetherscale/current/bin/python {FOLDER}/launcher.py --config {FOLDER}/agent.toml
ReadWritePaths={FOLDER}
RestartSec=100ms
"""
_INSTALL = f"""set -e
mkdir -p {FOLDER}/orders {FOLDER}/taken /run/systemd/system/{AGENT}.d
cat >{FOLDER}/launcher.py
{{ echo 'heartbeat = {HEARTBEAT_S}'; cat /etc/aetherscale/agent.toml; }} >{FOLDER}/agent.toml
chmod 640 {FOLDER}/agent.toml
chown -R aetherscale: {FOLDER}
printf '%s' "$1" >/run/systemd/system/{AGENT}.d/faults.conf
systemctl daemon-reload
systemctl restart {AGENT}
"""
_REMOVE = f"""rm -rf {FOLDER} /run/systemd/system/{AGENT}.d/faults.conf
rmdir --ignore-fail-on-non-empty /run/systemd/system/{AGENT}.d
systemctl daemon-reload
systemctl restart {AGENT}
"""
_IMAGES = "/var/lib/aetherscale/images"


@dataclass
class Order:
    """An order to a host's agent, or what was planted for its `vm-net`; `is_taken` once that has come to its step."""

    name: str
    watcher: subprocess.Popen[str]

    @property
    def is_taken(self) -> bool:
        """Whether it has been obeyed, or is about to be."""
        return self.watcher.poll() is not None

    def wait(self, seconds: float = 20.0) -> None:
        """Wait until it is taken.

        :raise AssertionError: when nobody came to that step.
        """
        try:
            code = self.watcher.wait(seconds)
        except subprocess.TimeoutExpired:
            self.watcher.kill()
            self.watcher.wait()
            raise AssertionError(f"nobody came to {self.name} within {seconds:.0f} s") from None
        assert code == 0, f"nobody came to {self.name}"


class LabWorld:
    """The lab that AETHERSCALE_LAB names."""

    def __init__(self) -> None:
        self.rollout = Rollout()
        self.lab = self.rollout.lab
        self.ledger = Ledger()
        self.client = LabClient(self.rollout.broker(), self.ledger)
        self._orders = itertools.count(1)
        self._older = frozenset(self._collect()[1].claims)  #: of what was made before; their requests are not known

    # Agents under orders

    def install(self, *hosts: str) -> None:
        """Have these hosts' agents run under orders, until `remove` or the host's next boot."""
        for host in hosts:
            self.shell(host, _INSTALL, _DROP_IN, stdin=inspect.getsource(launcher))
        self.await_agents()

    def remove(self, *hosts: str) -> None:
        """Undo `install`."""
        for host in hosts:
            self.shell(host, _REMOVE)
        self.await_agents()

    @contextlib.contextmanager
    def installed(self) -> Iterator["LabWorld"]:
        """Agents under orders and the tiny image on all hosts, while the block lasts."""
        try:
            for host in HOSTS:
                self.add_image(host)
            self.install(*HOSTS)
            yield self
        finally:
            self.remove(*HOSTS)
            for host in HOSTS:
                self.remove_images(host)

    def order(self, host: str, step: str, when: str, do: str, *, vm: str | None = None, seconds: float = 0) -> Order:
        """Tell a host's agent to `kill` or `freeze` itself at a step, once."""
        number = f"{next(self._orders):04}.json"
        order = {"step": step, "when": when, "do": do, "seconds": seconds} | ({"vm": vm} if vm else {})
        folder = f"{FOLDER}/orders"
        write = (
            f'printf %s "$1" >{folder}/.new && chown aetherscale: {folder}/.new && mv {folder}/.new {folder}/{number}'
        )
        self.shell(host, write, json.dumps(order))
        return self.await_file(host, f"{FOLDER}/taken/{number}", f"{when} {step}")

    def await_file(self, host: str, path: str, name: str) -> Order:
        """An order that is taken when this file is there."""
        wait = f"for _ in $(seq 600); do test -e {path} && exit 0; sleep 0.05; done; exit 1"
        command = self.lab.ssh_command(host, ["sh", "-c", wait])
        watcher = subprocess.Popen(command, text=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return Order(f"{name} on {host}", watcher)

    def forget_orders(self, host: str) -> None:
        """Withdraw what no agent has come to."""
        self.shell(host, f"rm -f {FOLDER}/orders/*.json")

    def kill_agent(self, host: str) -> None:
        """Kill a host's agent, as a crash would."""
        self.shell(host, f"systemctl kill -s KILL {AGENT}")

    def await_agents(self, count: int = len(HOSTS), seconds: float = 60.0) -> None:
        """Wait until so many agents consume."""
        self.rollout.eventually(lambda: self.client.agents_alive() == count, seconds)

    # Hosts

    def shell(self, host: str, script: str, *arguments: str, stdin: str | None = None) -> str:
        """What a shell script prints on a host.

        :raise LabError: when it fails.
        """
        return self.lab.run(host, ["sh", "-c", script, "sh", *arguments], stdin=stdin).stdout

    def add_image(self, host: str, name: str = tiny_guest.NAME) -> None:
        """Put the tiny image on a host, as site.yml would."""
        file, manifest = f"{_IMAGES}/{tiny_guest.file_name()}", f"{_IMAGES}/{name}.json"
        sector = tiny_guest.image()[:512].hex()
        script = f"""set -e
        python3 -c 'import sys; sys.stdout.buffer.write(bytes.fromhex("{sector}"))' >{file}
        truncate -s {tiny_guest.SIZE} {file}
        printf %s "$1" >{manifest}; chmod 644 {file} {manifest}"""
        self.shell(host, script, tiny_guest.manifest(name))

    def remove_images(self, host: str) -> None:
        """Undo `add_image`."""
        self.shell(host, f"rm -f {_IMAGES}/{tiny_guest.file_name()} {_IMAGES}/{tiny_guest.NAME}*.json")

    def await_guest(self, host: str, vm_id: str, boots: int = 1) -> None:
        """Wait until a tiny guest has come up so many times: from then on it obeys the power button."""
        console = f"/var/lib/aetherscale/vms/{vm_id}/console.log"
        count = f'"$(grep -c {tiny_guest.READY} {console} 2>/dev/null)"'
        self.shell(host, f"for _ in $(seq 200); do test {count} -ge {boots} && exit; sleep 0.1; done; exit 1")

    # The verdict

    def look(self, strict: bool = False) -> list[Violation]:
        """What the checker finds now."""
        hosts, broker = self._collect()
        claims = {vm_id: claim for vm_id, claim in broker.claims.items() if vm_id not in self._older}
        return check(hosts, replace(broker, claims=claims), self.ledger, time.time(), strict)

    def _collect(self) -> tuple[list[HostView], BrokerView]:
        return collect(self.lab, HOSTS)

    def look_at(self, host: str) -> HostView:
        """What one host has now."""
        return look_at(self.lab, host)

    def settle(self, seconds: float = SETTLE_S, *, strict: bool = False) -> float:
        """Wait until the checker finds nothing; how long that took, in seconds.

        :raise AssertionError: with what it still finds when so many seconds have passed.
        """
        began = looked = time.monotonic()
        before: set[tuple[Kind, str, str]] = set()
        while found := self.look(strict):
            # What changes during a look looks wrong, and some take long: what two in a row find is what counts.
            now = {(one.kind, one.vm_id, one.host) for one in found}
            late = looked - began
            assert late < seconds or not (before & now or late > 4 * seconds), "not settled:\n" + "\n".join(
                map(str, found)
            )
            before, looked = now, time.monotonic()
        return time.monotonic() - began

    @contextmanager
    def as_agent(self) -> Iterator[Any]:
        """A channel with the rights of h1's agent, by which a mistake of its own could get into the broker."""
        password = self.shell("h1", "sed -n 's/^password = \"\\(.*\\)\"/\\1/p' /etc/aetherscale/agent.toml").strip()
        parameters = parameters_of(self.rollout.broker(), names.agent_user("h1"), password)
        with pika.BlockingConnection(parameters) as connection:
            yield connection.channel()

    def delete_all(self) -> None:
        """Delete all VMs that were made, or may have been."""
        entries = self.ledger.entries
        deleted = {entry.vm_id for entry in entries if entry.verb == "delete" and entry.told.outcome == "done"}
        made = {entry.vm_id for entry in entries if entry.verb == "create" and entry.may_have_worked}
        for vm_id in sorted(made - deleted):
            told = self.client.insist(Command("delete", vm_id))
            assert told.outcome == "done" or told.what == "vm-unknown", f"delete of {vm_id}: {told}"

    def record(self, step: str, when: str, fault: str, verdict: str, seconds: float) -> None:
        """A row of the matrix, for docs/reliability.md: a line of JSON in the folder that AETHERSCALE_RESULTS names."""
        folder = os.environ.get("AETHERSCALE_RESULTS")
        row = {"step": step, "when": when, "fault": fault, "verdict": verdict, "seconds": round(seconds, 1)}
        if folder:
            with Path(folder, "lab-matrix.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
