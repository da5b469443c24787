"""What each of our units can do: the agent, a VM whose guest has broken out of its QEMU, the network's helpers.

Somebody who broke out of a QEMU is its user in its view of the file system; that user in the host's view is tried too.
The tries are made without the unit's filter of system calls, so it is the other walls that are shown to hold.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aetherscale_testing import intruder
from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once; the hosts are parameters

SMALL = ("--image", "ubuntu_base", "--memory", "128M", "--disk", "1G")
MOST_EXPOSED = {
    "aetherscale-agent.service": 2.0,
    "aetherscale-network.service": 2.0,
    "aetherscale-dhcp.service": 2.0,
    "aetherscale-tidy@{}.service": 2.0,
    "aetherscale-tap@{}.service": 4.5,  # root, and without mounts of its own: each start would wait for them
    "aetherscale-vm@{}.service": 2.5,
}
HOME, RUN = "/var/lib/aetherscale/vms", "/run/aetherscale/vms"
AGENT = ("setpriv", "--reuid=aetherscale", "--regid=aetherscale", "--clear-groups")
NOT_THE_AGENTS = (
    # units that are not its own
    "systemctl --no-ask-password stop ssh.service",
    "systemctl --no-ask-password kill aetherscale-network.service",
    "systemctl --no-ask-password reset-failed ssh.service",
    "systemctl --no-ask-password set-property --runtime ssh.service CPUWeight=1",
    "systemctl --no-ask-password set-property --runtime aetherscale-agent.service MemoryMax=infinity",
    "systemctl --no-ask-password start aetherscale-tap@abcdefgh.service",
    "systemctl --no-ask-password stop aetherscale-tap@{}.service",
    "systemctl --no-ask-password set-property --runtime aetherscale-tap@{}.service CPUWeight=1",
    "systemctl --no-ask-password start aetherscale-tidy@abcdefgh.service",
    # names that are almost a VM's
    "systemctl --no-ask-password start aetherscale-vm@evil-name.service",
    "systemctl --no-ask-password stop aetherscale-vm@{}x.service",
    "systemctl --no-ask-password set-property --runtime aetherscale-vm@kvm-probes.service CPUWeight=1",
    # a VM's, and what a rule does not name
    "systemctl --no-ask-password restart aetherscale-vm@{}.service",
    "systemctl --no-ask-password freeze aetherscale-vm@{}.service",
    "systemctl --no-ask-password bind aetherscale-vm@{}.service /etc /mnt",
    "systemctl --no-ask-password enable aetherscale-vm@{}.service",
    # no unit's
    "systemctl --no-ask-password mask ssh.service",
    "systemctl --no-ask-password daemon-reload",
    "systemctl --no-ask-password set-environment A=b",
    "systemd-run --no-ask-password true",
    "systemd-run --no-ask-password --unit=aetherscale-wm@abcdefgh.service true",
)
"""With the id of a VM that runs. What they are refused by is polkit, not the state of a unit."""
POLKITS_REFUSALS = ("ccess denied", "nteractive authentication required")
NOBODY_LISTENS = ("ECONNREFUSED", "EPERM")
"""… or it is a datagram socket that hears one other alone."""
PLANTED = ("\0planted-stream", "\0planted\0datagram")
PLANT = """
import json, socket, sys
stream, datagram = json.loads(sys.argv[1])
sockets = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sockets[0].bind(stream)
sockets[0].listen()
sockets[1].bind(datagram)
print("planted", flush=True)
sys.stdin.read()
"""
UNFILTERED = "unfilter"
"""A VM's id, whose unit comes to no QEMU with a sandbox of its own."""
INSIDE = """
[Service]
Type=oneshot
ExecStart=
ExecStart=/usr/bin/python3 -I - '{}'
StandardInput=file:/root/intruder.py
StandardOutput=file:/root/said
"""
"""The intruder in place of that QEMU: all of the unit's walls hold for it, the filter of system calls among them."""


class Host:
    """One compute host, with two VMs on it."""

    def __init__(self, fleet: Rollout, name: str) -> None:
        self.fleet, self.name = fleet, name
        self.first, self.second = (fleet.create("--host", name, "--name", f"wall{n}-{name}") for n in (1, 2))
        units = [
            *(f"aetherscale-vm@{vm_id}.service" for vm_id in (self.first, self.second)),
            "aetherscale-agent.service",
        ]
        self.first_pid, self.second_pid, self.agent_pid = self.run("systemctl", "show", "-P", "MainPID", *units).split()
        self.uid = self.run("stat", "-c", "%u", f"/proc/{self.first_pid}")
        self.pids = {self.first: self.first_pid, self.second: self.second_pid}

    def run(self, *argv: str, check: bool = True) -> str:
        return self.fleet.run(self.name, *argv, check=check)

    def show(self, unit: str, what: str) -> str:
        return self.run("systemctl", "show", "-P", what, unit)

    def status(self, pid: str) -> dict[str, str]:
        lines = self.run("cat", f"/proc/{pid}/status").splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    def settled(self, pid: str) -> dict[str, str]:
        """The status of a VM's process that has all its walls: while systemd builds them, it has another name."""
        self.fleet.eventually(lambda: self.status(pid)["Name"] == "vm-run")
        return self.status(pid)

    def intrude(self, argument: str, *, inside: bool) -> list[str]:
        """What `intruder` says that the first VM's user can do."""
        view = ["nsenter", "--mount", "--net", "--target", self.first_pid] if inside else []
        user = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "--bounding-set=-all"]
        return self.intrude_as([*view, *user], argument)

    def intrude_as(self, user: list[str], argument: str) -> list[str]:
        command = self.fleet.lab.ssh_command(self.name, [*user, "/usr/bin/python3", "-I", "-", argument])
        source = Path(intruder.__file__).read_bytes()
        done = subprocess.run(command, input=source, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        said: list[str] = json.loads(done.stdout)
        return said

    def tries(self, vm_id: str) -> list[tuple[str, str]]:
        """All that somebody may want of a VM."""
        return [
            ("read", f"{HOME}/{vm_id}/disk.qcow2"),
            ("write", f"{HOME}/{vm_id}/disk.qcow2"),
            ("read", f"{HOME}/{vm_id}/seed.iso"),
            ("write", f"{HOME}/{vm_id}/console.log"),
            ("connect", f"{RUN}/{vm_id}/stop.sock"),
            ("connect", f"{RUN}/{vm_id}/console.sock"),
            ("send_signal", self.pids[vm_id]),
        ]

    def forbidden(self) -> list[tuple[str, str]]:
        """What belongs to the agent, to root or to the host."""
        journal = f"/var/lib/aetherscale/journal/{self.first}.json"
        paths = ["/etc/aetherscale/agent.toml", f"/run/aetherscale/args/{self.first}.env", journal, "/etc/shadow"]
        return [
            *(("read", path) for path in paths),
            *(("read", f"/proc/{pid}/environ") for pid in (self.agent_pid, self.second_pid)),
            *(("write", f"/proc/{pid}/mem") for pid in (self.agent_pid, self.second_pid)),
            ("write", "/var/lib/aetherscale/agent.lock"),
            ("send_signal", self.agent_pid),
        ]


@pytest.fixture(scope="module", params=["h1", "h2"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    fleet = Rollout()
    pair = Host(fleet, str(request.param))
    yield pair
    fleet.cli("delete-vm", pair.first, pair.second)


def test_how_exposed_each_unit_is(host: Host) -> None:
    """systemd's own rating: 0 is shut, 10 is open."""
    units = [unit.format(host.first) for unit in MOST_EXPOSED]
    script = 'for unit; do systemd-analyze security --no-pager "$unit" | tail -n 1; done'
    lines = host.run("sh", "-c", script, "sh", *units).splitlines()
    for line, unit, most in zip(lines, units, MOST_EXPOSED.values(), strict=True):
        assert f"Overall exposure level for {unit}: " in line
        assert 0 < float(line.rpartition(": ")[2].split()[0]) <= most, line


def test_a_vm_can_use_what_is_its_own(host: Host) -> None:
    """The control: what is refused below, is refused for its owner."""
    tries = host.tries(host.first)
    assert host.intrude(json.dumps(tries), inside=True) == ["done"] * len(tries)


@pytest.mark.parametrize("inside", [True, False])
def test_a_vm_reaches_nothing_of_another(host: Host, inside: bool) -> None:
    tries = host.tries(host.second)
    said = host.intrude(json.dumps(tries), inside=inside)
    wall = "ENOENT" if inside else "EACCES"
    assert dict(zip(tries, said, strict=True)) == {one: "EPERM" if one[0] == "send_signal" else wall for one in tries}


def test_root_reaches_all_of_a_vm(host: Host) -> None:
    """What is refused above is there; and whoever is root on a host has its VMs."""
    tries = host.tries(host.second)
    assert host.intrude_as([], json.dumps(tries)) == ["done"] * len(tries)


def test_a_vm_reaches_nothing_of_its_host(host: Host) -> None:
    tries = host.forbidden()
    starts = [("start_unit", unit) for unit in (f"aetherscale-vm@{host.second}.service", "systemd-journald.service")]
    for inside in (True, False):
        said = host.intrude(json.dumps(tries + starts), inside=inside)
        assert set(said) <= {"ENOENT", "EACCES", "EPERM"}, dict(zip(tries + starts, said, strict=True))
    allowed = host.intrude_as([], json.dumps(tries))
    assert dict.fromkeys(tries, "done") == dict(zip(tries, allowed, strict=True))  # the control: root can


def test_a_vm_takes_no_tap_but_its_own(host: Host) -> None:
    tries = [("take_tap", f"vm-{vm_id}") for vm_id in (host.second, host.first)]
    assert host.intrude(json.dumps(tries), inside=True) == ["EPERM", "EBUSY"]  # its own is in use, by its QEMU


def test_a_vm_reaches_no_sockets_but_its_own(host: Host) -> None:
    inside = host.intrude("sockets", inside=True)
    assert f"{RUN}/{host.first}/stop.sock" in inside
    assert all(path.startswith(f"{RUN}/{host.first}/") for path in inside), inside
    assert "/run/dbus/system_bus_socket" in host.intrude("sockets", inside=False)  # the control: it finds sockets


@pytest.fixture
def planted(host: Host) -> Iterator[set[str]]:
    """Abstract sockets on the host, of root's, that listen to whoever comes."""
    command = host.fleet.lab.ssh_command(host.name, ["/usr/bin/python3", "-I", "-c", PLANT, json.dumps(PLANTED)])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "planted\n"
        yield set(PLANTED)


def test_no_abstract_socket_listens_to_a_vm(host: Host, planted: set[str]) -> None:
    """They have no file that its view could hide, and their namespace is the network's, which is its host's.

    So nothing on a host may listen on one. Those that were planted are the control.
    """
    names = host.intrude_as([], "abstract")
    said = host.intrude(json.dumps([("connect", name) for name in names]), inside=True)
    outcomes = dict(zip(names, said, strict=True))
    assert {name for name, outcome in outcomes.items() if outcome not in NOBODY_LISTENS} == planted, outcomes


@pytest.fixture
def unfiltered(host: Host) -> Iterator[str]:
    """The unit of a VM that waits for a tap that never comes: it has what systemd gives it, and QEMU never begins."""
    unit, tap = f"aetherscale-vm@{UNFILTERED}.service", f"aetherscale-tap@{UNFILTERED}.service"
    host.run("systemctl", "mask", "--runtime", tap)
    homes = (f"{HOME}/{UNFILTERED}", f"{RUN}/{UNFILTERED}")
    host.run("mkdir", "-p", *homes)
    arguments = f"/run/aetherscale/args/{UNFILTERED}.env"
    host.run("touch", arguments)
    yield unit
    host.run("systemctl", "stop", unit, check=False)
    host.run("rm", "-rf", arguments, *homes, f"/run/systemd/system.control/{unit}.d")
    host.run("systemctl", "unmask", "--runtime", tap)
    host.run("systemctl", "daemon-reload")


def test_qemu_filters_its_own_system_calls(host: Host, unfiltered: str) -> None:
    """One filter more than its unit has."""
    host.run("systemctl", "start", unfiltered)
    by_systemd = host.settled(host.show(unfiltered, "MainPID"))
    with_sandbox = host.status(host.first_pid)
    assert with_sandbox["Seccomp"] == "2"
    assert int(with_sandbox["Seccomp_filters"]) == int(by_systemd["Seccomp_filters"]) + 1
    argv = host.run("cat", f"/proc/{host.first_pid}/cmdline").split("\0")
    assert argv[argv.index("-sandbox") + 1] == (
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    )


@pytest.fixture
def instead(host: Host, unfiltered: str) -> Iterator[Callable[[list[tuple[str, str]]], list[str]]]:
    """What the intruder says when it is run by a VM's unit in place of QEMU."""
    folder = f"/run/systemd/system/{unfiltered}.d"

    def intrude(tries: list[tuple[str, str]]) -> list[str]:
        files = {
            "/root/intruder.py": Path(intruder.__file__).read_text(),
            f"{folder}/x.conf": INSIDE.format(json.dumps(tries)),
        }
        host.run("mkdir", "-p", folder)
        for path, text in files.items():
            host.fleet.lab.run(host.name, ["sh", "-c", f"cat >{path}"], stdin=text)
        host.run("systemctl", "daemon-reload")
        host.run("systemctl", "start", unfiltered)
        said: list[str] = json.loads(host.run("cat", "/root/said"))
        return said

    yield intrude
    host.run("rm", "-rf", folder, "/root/intruder.py", "/root/said")
    host.run("systemctl", "daemon-reload")


def test_a_vm_speaks_on_no_network_but_by_its_tap(host: Host, instead: Callable[..., list[str]]) -> None:
    families = ("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK")
    assert instead([("open_socket", family) for family in families]) == ["done"] + ["EAFNOSUPPORT"] * 5
    unconfined = host.intrude_as([], json.dumps([("open_socket", "AF_INET"), ("open_socket", "AF_INET6")]))
    assert unconfined == ["done", "done"]  # the control


def test_the_agent_is_not_root_and_has_no_way_to_become_so(host: Host) -> None:
    status = host.status(host.agent_pid)
    assert set(status["Uid"].split()) == {host.run("id", "-u", "aetherscale")} != {"0"}
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"


def test_the_agent_starts_limits_and_ends_vms(host: Host, unfiltered: str) -> None:
    """The control of what it is refused: the same verbs, of a VM's unit."""
    agents = (*AGENT, "systemctl", "--no-ask-password")
    host.run(*agents, "start", unfiltered)
    pid = host.show(unfiltered, "MainPID")
    assert host.settled(pid)
    host.run(*agents, "set-property", "--runtime", unfiltered, "TasksMax=99")
    assert host.show(unfiltered, "TasksMax") == "99"
    host.run(*agents, "stop", unfiltered)
    assert host.show(unfiltered, "ActiveState") == "inactive"
    assert host.run("sh", "-c", f"test -e /proc/{pid} || echo ended") == "ended"
    host.run(*agents, "start", unfiltered)
    host.run(*agents, "kill", "-s", "KILL", unfiltered)
    host.fleet.eventually(lambda: host.show(unfiltered, "ActiveState") == "failed")
    host.run(*agents, "reset-failed", unfiltered)
    assert host.show(unfiltered, "ActiveState") == "inactive"


def test_the_agent_manages_nothing_but_its_vms(host: Host) -> None:
    script = "for command; do $command 2>&1 | head -n 1; done"
    commands = [command.format(host.first) for command in NOT_THE_AGENTS]
    refusals = host.run(*AGENT, "bash", "-c", script, "bash", *commands).splitlines()
    for command, said in zip(commands, refusals, strict=True):
        assert any(refusal in said for refusal in POLKITS_REFUSALS), (command, said)


def test_no_program_runs_under_a_vms_name(host: Host) -> None:
    """A unit without a file, of the agent's making, would be root's.

    systemd 257 asks polkit of it as of a VM's start, and our rule would agree: there it is systemd that refuses a name
    that has a file, to whoever asks. With 252 it is polkit.
    """
    script = 'systemd-run --no-ask-password --unit="aetherscale-vm@abcdefgh.service" true 2>&1 || :'
    has_a_file = "has a fragment file"
    assert has_a_file in host.run("sh", "-c", script)  # as root
    said = host.run(*AGENT, "sh", "-c", script)
    assert any(refusal in said for refusal in (has_a_file, *POLKITS_REFUSALS)), said
