"""A lab as tests and the command line use it.

lab = Lab("mine")
lab.up([HostSpec("h1", "trixie")])
lab.run("h1", ["systemctl", "is-system-running"])
lab.power_loss("h1")
lab.down()
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aetherscale_lab import host, model, network, paths, roots
from aetherscale_lab import ssh as ssh_access
from aetherscale_lab.errors import LabError
from aetherscale_lab.host import HostDirectory, Launch
from aetherscale_lab.model import Host, HostSpec, LabPlan
from aetherscale_lab.shell import check_tools

_TOOLS = ("systemd-nspawn", "ip", "nft", "ssh", "ssh-keygen", "mount", "umount")
_READY_PATIENCE = 90.0


@dataclass(frozen=True)
class HostReport:
    """How a host came up: systemd's own word on it, and the seconds from the start of `up`."""

    host: Host
    state: str
    seconds: float


@dataclass(frozen=True)
class HostStatus:
    """A host as it is now. `supervised` is false if its supervisor was killed: it can't reboot then."""

    host: Host
    running: bool
    supervised: bool
    cut: bool


class Lab:
    """A lab by name; it exists on this machine between `up` and `down`.

    `sync`: what its hosts sync is written to this machine's disk before they go on. Else they don't wait: tests lose
    nothing by it, for the page cache outlives a host's power loss.
    """

    def __init__(self, name: str, *, sync: bool = False) -> None:
        self._sync = sync
        self.name = model.check_name("lab", name)
        self.directory = paths.state_root() / name

    @property
    def identity_file(self) -> Path:
        return self.directory / "key"

    @property
    def known_hosts_file(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def plan(self) -> LabPlan:
        """The lab's plan.

        :raise LabError: when the lab is not there.
        """
        plan = self._find_plan()
        if plan is None:
            raise LabError(f"there is no lab {self.name}", f"make it: up --lab {self.name}")
        return plan

    def up(self, wanted: Sequence[HostSpec]) -> list[HostReport]:
        """Make the lab, or whatever of it is missing or off, and wait until every host takes commands.

        Hosts of an earlier `up` stay and are started too.

        :raise LabError: when something can't be made or a host isn't ready within 90 s.
        """
        _check_root()
        check_tools(_TOOLS)
        for suite in sorted({spec.suite for spec in wanted}):
            roots.prepare_suite(suite)
        began = time.monotonic()
        with _changing_labs():
            plan = self._make_plan(wanted)
            self._make_key()
            network.make_bridge(plan)
            self._lay_out(plan)
            for entry in plan.hosts:
                self._start(plan, entry)
        return self._wait_ready(plan, began)

    def down(self) -> None:
        """Remove the lab with all it has on this machine. Works on any remains, and on nothing."""
        _check_root()
        with _changing_labs():
            directories = self._host_directories()
            for directory in directories:
                host.kill(directory)
            for directory in directories:
                network.heal(self.name, directory.path.name)
                host.remove(directory, self.name)
            network.remove_bridge(model.bridge_name(self.name))
            shutil.rmtree(self.directory, ignore_errors=True)
            _remove_if_empty(self.directory.parent)

    def status(self) -> list[HostStatus]:
        """All hosts of the lab, in the order they were asked for."""
        return [self._status_of(entry) for entry in self.plan.hosts]

    def inventory(self) -> list[dict[str, Any]]:
        """What ssh and Ansible need to know of each host."""
        return [
            {
                "name": entry.name,
                "address": entry.address,
                "user": "root",
                "port": 22,
                "identity_file": str(self.identity_file),
                "known_hosts_file": str(self.known_hosts_file),
                "suite": entry.suite,
            }
            for entry in self.plan.hosts
        ]

    def ssh_command(self, name: str, argv: Sequence[str]) -> list[str]:
        """The ssh command line that runs `argv` on a host, its arguments kept apart."""
        address = self.plan.host(name).address
        return ssh_access.finalize_ssh(address, self.identity_file, self.known_hosts_file, argv)

    def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 300.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host as root.

        :param timeout: seconds; `subprocess.TimeoutExpired` is raised after them.
        :raise LabError: when `check` is set and the command fails (255: ssh itself failed).
        """
        command = self.ssh_command(name, argv)
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode != 0:
            what = f"on {name}: {' '.join(argv)} failed with code {done.returncode}"
            raise LabError(f"{what}: {done.stderr.strip()}")
        return done

    def power_loss(self, name: str) -> None:
        """Cut a host's power: its peers hear nothing, its processes are gone at once, its disk stays.

        What it had written but not synced survives: the page cache is this machine's.
        """
        directory = self._directory_of(name)
        network.set_port_down(self.name, name)
        leader = host.find_leader(directory)
        if leader:
            os.kill(leader, signal.SIGKILL)
        try:
            host.wait_until_off(directory, 5.0)
        except LabError:
            host.kill(directory)

    def power_on(self, name: str) -> HostReport:
        """Start a host that is off and wait until it takes commands; fine if it is on."""
        plan, entry = self.plan, self.plan.host(name)
        began = time.monotonic()
        with _changing_labs():
            network.make_bridge(plan)
            self._start(plan, entry)
        return self._wait_ready_one(entry, began)

    def reboot(self, name: str) -> HostReport:
        """Reboot a host in good order and wait until it takes commands again.

        :raise LabError: when its old system hasn't ended within 90 s.
        """
        entry, directory = self.plan.host(name), self._directory_of(name)
        began = time.monotonic()
        old = host.find_leader(directory)
        # ssh loses its connection half way, so its exit code says nothing
        self.run(name, ["systemctl", "reboot"], check=False)
        while host.find_leader(directory) in (old, None):
            if time.monotonic() - began > _READY_PATIENCE:
                raise LabError(f"host {name} does not reboot", f"see {directory.path / 'console.log'}")
            time.sleep(0.05)
        return self._wait_ready_one(entry, began)

    def cut(self, name: str) -> None:
        """Cut a host off the network in silence, until `heal`."""
        self.plan.host(name)
        network.cut(self.name, name)

    def heal(self, name: str) -> None:
        """Undo `cut`."""
        self.plan.host(name)
        network.heal(self.name, name)

    def _find_plan(self) -> LabPlan | None:
        path = self.directory / "lab.json"
        return LabPlan.from_json(path.read_text()) if path.exists() else None

    def _make_plan(self, wanted: Sequence[HostSpec]) -> LabPlan:
        known = self._find_plan()
        subnet = known.subnet if known else self._choose_subnet()
        plan = model.plan_lab(self.name, subnet, wanted, known.hosts if known else ())
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = self.directory / "lab.json.partial"
        partial.write_text(plan.to_json())
        partial.rename(self.directory / "lab.json")
        return plan

    def _choose_subnet(self) -> str:
        # a bridge without a plan is the rest of a lab of this name; its addresses are free
        network.remove_bridge(model.bridge_name(self.name))
        return model.find_free_subnet(self.name, network.networks_in_use())

    def _make_key(self) -> None:
        if not self.identity_file.exists():
            ssh_access.make_key(self.identity_file, f"aetherscale-lab-{self.name}")

    def _lay_out(self, plan: LabPlan) -> None:
        """Write every host's own files; they are the same each time."""
        public_key = self.identity_file.with_suffix(".pub").read_text()
        known = []
        for entry in plan.hosts:
            directory = self._directory_of(entry.name)
            directory.make()
            key = host.write_identity(directory, entry, public_key)
            host.write_hosts_file(directory, plan)
            known.append(f"{entry.address},{entry.name} {key}\n")
        self.known_hosts_file.write_text("".join(known))

    def _start(self, plan: LabPlan, entry: Host) -> None:
        directory = self._directory_of(entry.name)
        if host.find_leader(directory):
            return
        host.kill(directory)
        build = self._build_of(directory, entry)
        host.mount(directory, plan.name, entry.name, build)
        argv = host.finalize_nspawn(plan, entry, directory.root, build, sync=self._sync)
        host.start(directory, Launch(plan.name, entry.name, str(build), argv, _systemd_is_init()))

    def _build_of(self, directory: HostDirectory, entry: Host) -> Path:
        """The build a host lies on: for its whole life the one it was made with."""
        if not directory.launch_file.exists():
            return roots.prepare_suite(entry.suite)
        build = Path(Launch.load(directory).build)
        if not build.is_dir():
            raise LabError(f"the root below host {entry.name} is gone", f"start afresh: down --lab {self.name}")
        return build

    def _wait_ready(self, plan: LabPlan, began: float) -> list[HostReport]:
        with ThreadPoolExecutor(max_workers=len(plan.hosts) or 1) as pool:
            return list(pool.map(lambda entry: self._wait_ready_one(entry, began), plan.hosts))

    def _wait_ready_one(self, entry: Host, began: float) -> HostReport:
        if network.is_cut(self.name, entry.name):
            return HostReport(entry, "cut off", time.monotonic() - began)
        command = self.ssh_command(entry.name, ["systemctl", "is-system-running", "--wait"])
        try:
            state = ssh_access.wait_ready(entry.address, command, began + _READY_PATIENCE)
        except TimeoutError as error:
            what = f"host {entry.name} is not ready after {_READY_PATIENCE:.0f} s"
            raise LabError(what, f"see the logs in {self._directory_of(entry.name).path}") from error
        return HostReport(entry, state, time.monotonic() - began)

    def _status_of(self, entry: Host) -> HostStatus:
        directory = self._directory_of(entry.name)
        running = host.find_leader(directory) is not None
        supervised = host.find_supervisor(directory) is not None
        return HostStatus(entry, running, supervised, network.is_cut(self.name, entry.name))

    def _directory_of(self, name: str) -> HostDirectory:
        return HostDirectory(self.directory / "hosts" / name)

    def _host_directories(self) -> list[HostDirectory]:
        """By what is on disk, so that remains without a plan are found too."""
        return [HostDirectory(path) for path in sorted((self.directory / "hosts").glob("*"))]


def list_labs() -> list[str]:
    """Names of the labs on this machine."""
    return sorted(path.parent.name for path in paths.state_root().glob("*/lab.json"))


def _changing_labs() -> AbstractContextManager[None]:
    """One change at a time: labs share the choice of subnets and the parents of cgroups."""
    return paths.locked(paths.isolated_runs() / "lock")


def _check_root() -> None:
    if os.geteuid() != 0:
        raise LabError("the lab needs root", "run it with sudo")


def _systemd_is_init() -> bool:
    """True where cgroups have to be asked of systemd: it would take away what others make."""
    return Path("/run/systemd/system").is_dir() and not paths.inside_isolated_run()


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        return
