"""TLS and nothing else: what is listened to, who can read a key, and a renewal that nobody notices."""

import base64
import contextlib
import json
import os
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from testinfra.host import Host

from aetherscale_agent.audit import MESSAGE_ID
from aetherscale_protocol import names, topology
from aetherscale_testing.certificates import handshake, shown_by_the_broker, shown_to
from aetherscale_testing.client import SeedClient, parameters_of
from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once, not per host

HOSTS = ("h1", "h2")
AGENT = "aetherscale-agent.service"
FOR_H2 = (names.host_queue("h2"), topology.UNDELIVERABLE)
"""The last takes what no agent took in time, until there is one."""
MADE = "made=at-last"
"""A label of the VM that is created: with a name of its own a create that nobody took is not asked for anew."""
UNIT_STARTED = "39f53479d3a045ac8e11786248231fbf"
"""By this systemd's journal tells that a unit was started (sd-messages.h)."""
RENEWAL = {
    ("aetherscale : Make the certificates that are missing, or good for too few days", "broker1"),
    ("rabbitmq : Write the broker's certificate and key", "broker1"),
    ("rabbitmq : Have the broker take a renewed certificate", "broker1"),
}
"""What a renewal changes, and nothing else."""
TLS = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "secrets", "tls")
READABLE_KEYS = (
    "find /etc /opt /var /run /root /home -xdev -type f -size -64k -perm -o+r -exec grep -l 'PRIVATE KEY-' {} +"
)


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    return Rollout()


@pytest.fixture(scope="module")
def address(rollout: Rollout) -> str:
    """Where agents and CLI connect to."""
    return str(urlsplit(rollout.broker()["url"]).hostname)


def served(rollout: Rollout, name: str) -> bytes:
    """The certificate that the broker shows to somebody who knows the fleet's CA, and wants this name."""
    url = urlsplit(rollout.broker()["url"])
    return shown_to(rollout.broker()["ca_file"], str(url.hostname), url.port or 5671, name)


def test_plain_amqp_is_closed(host: Host, address: str) -> None:
    assert not host.socket("tcp://5672").is_listening
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, 5672), 10)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_only_tls_1_2_and_later(address: str) -> None:
    assert handshake(address, 5671, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    assert handshake(address, 5671, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            handshake(address, 5671, old)


def test_the_certificate_is_for_the_broker_and_nobody_else(rollout: Rollout, address: str) -> None:
    assert served(rollout, address) == served(rollout, "broker1")
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for 'h1'"):
        served(rollout, "h1")


def test_the_cli_refuses_another_name(rollout: Rollout, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_HOST", f"[::ffff:{address}]")  # the same broker, by an address that it has no name for
    done = rollout.cli("list-vms", "-o", "table", check=False)
    assert done.returncode == 3, done
    assert f"error: the broker at [::ffff:{address}]:5671 shows a certificate that is not made for" in done.stderr


def test_nobody_else_reads_a_key(fleet: dict[str, Host]) -> None:
    key = fleet["broker1"].file("/etc/rabbitmq/aetherscale.pem")
    assert (key.user, key.group, key.mode) == ("root", "rabbitmq", 0o640)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in TLS.iterdir()} == {
        "authority.pem": 0o600, "broker.pem": 0o600, "ca.pem": 0o644,
    }  # fmt: skip
    for name, machine in fleet.items():
        assert machine.run(READABLE_KEYS).stdout == "", name


def test_a_key_that_others_read_would_be_found(fleet: dict[str, Host]) -> None:
    """The control of the test above, on each machine: what finds nothing there can find something."""
    for name, machine in fleet.items():
        machine.check_output("install -m 644 /dev/null /var/lib/planted.pem; echo 'PRIVATE KEY-' >/var/lib/planted.pem")
        found = machine.run(READABLE_KEYS).stdout
        machine.check_output("rm /var/lib/planted.pem")
        assert found == "/var/lib/planted.pem\n", name


def test_the_cas_key_stays_on_the_controller(fleet: dict[str, Host]) -> None:
    secret = (TLS / "authority.pem").read_text().split("PRIVATE KEY-----\n")[1].splitlines()[1]
    public = (TLS / "ca.pem").read_text().splitlines()[1]
    for name, machine in fleet.items():
        assert files_with(machine, secret) == set(), name
        planted = {f"/var/lib/planted-{name}"}
        machine.check_output(f"echo a-planted-word >/var/lib/planted-{name}")
        assert files_with(machine, "a-planted-word") == planted, "the control"
        machine.check_output(f"rm /var/lib/planted-{name}")
        assert ("/etc/aetherscale/ca.pem" in files_with(machine, public)) == (name in HOSTS), "another: the public part"


def files_with(machine: Host, word: str) -> set[str]:
    """The files of a machine that have this word."""
    places = "/etc /opt /var/lib /root"
    found = machine.run(f"grep --recursive --files-with-matches --fixed-strings -e '{word}' {places}")
    return set(found.stdout.splitlines())


@contextmanager
def commands_all_the_time(rollout: Rollout) -> Iterator[list[int]]:
    """Ask all hosts again and again, on one connection; how many answered each time."""
    answers: list[int] = []
    done = threading.Event()

    def ask() -> None:
        with SeedClient(parameters=parameters_of(rollout.broker())) as client:
            while not done.is_set():
                answers.append(len(client.ask("list-vms", len(HOSTS))))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield answers
    finally:
        done.set()
        asking.join()


def test_a_renewal_is_noticed_by_nobody(
    rollout: Rollout, site: Callable[..., Any], rabbitmqctl: Callable[..., list[dict[str, object]]], address: str
) -> None:
    vm_id = rollout.create()
    host = rollout.show(vm_id, 0)["host"]

    def state() -> dict[str, object]:
        running = [(host, f"aetherscale-vm@{vm_id}"), ("broker1", "rabbitmq-server"),
                   *((name, "aetherscale-agent") for name in HOSTS)]  # fmt: skip
        pids = {unit: rollout.run(name, "systemctl", "show", "-P", "MainPID", unit) for name, unit in running}
        return {**pids, "agents": agents()}

    def agents() -> set[str]:
        connections = rabbitmqctl("list_connections pid user")
        return {str(c["pid"]) for c in connections if str(c["user"]).startswith("agent-")}

    rollout.eventually(lambda: len(agents()) == 2 * len(HOSTS))  # and none that a test left half closed
    before, shown = state(), served(rollout, address)
    (TLS / "broker.pem").unlink()
    with commands_all_the_time(rollout) as answers:
        run = site()
    assert run.code == 0, run.said
    assert run.changed == RENEWAL
    assert len(answers) > 5
    assert set(answers) == {len(HOSTS)}
    assert state() == before
    assert base64.b64encode(served(rollout, address)) != base64.b64encode(shown)
    rollout.cli("delete-vm", vm_id)


@contextmanager
def away(rollout: Rollout) -> Iterator[Callable[[], None]]:
    """No agent does anything: h2's is stopped, as for maintenance, and h1's hangs. What it gives brings them back."""

    with contextlib.ExitStack() as back:
        back.callback(rollout.run, "h2", "systemctl", "start", AGENT)
        rollout.run("h2", "systemctl", "stop", AGENT)
        back.callback(rollout.run, "h1", "systemctl", "service-watchdogs", "yes")
        rollout.run("h1", "systemctl", "service-watchdogs", "no")  # else systemd restarts what hangs for 30 s
        back.callback(rollout.run, "h1", "systemctl", "kill", "-s", "CONT", AGENT)
        rollout.run("h1", "systemctl", "kill", "-s", "STOP", AGENT)
        yield back.close
    rollout.eventually(lambda: rollout.cli("list-vms", check=False).returncode == 0, 60)


@contextmanager
def asked(rollout: Rollout, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A command that waits for hosts; it is ended if it is still there afterwards."""
    with rollout.start(*arguments, "--wait-for-host", "3m", stdout=subprocess.PIPE) as program:
        try:
            yield program
        finally:
            program.kill()


def answer_of(program: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """What it was answered in the end, which is a success."""
    out, _ = program.communicate(timeout=120)
    assert program.returncode == 0, out
    (answer,) = json.loads(out)
    response: dict[str, Any] = answer["response"]
    return response


def done(rollout: Rollout, command: str, vm_id: str) -> int:
    """How often agents did this with a VM, as their journals have it."""
    fields = (f"AETHERSCALE_COMMAND={command}", f"AETHERSCALE_VM={vm_id}", "AETHERSCALE_RESULT=success")
    query = ("journalctl", "--no-pager", "-o", "cat", f"MESSAGE_ID={MESSAGE_ID}", *fields)
    return sum(len(rollout.run(host, *query).splitlines()) for host in HOSTS)


def started(rollout: Rollout, vm_id: str) -> int:
    """How often h2's systemd started this VM's QEMU."""
    query = ("journalctl", "--no-pager", "-o", "cat", f"MESSAGE_ID={UNIT_STARTED}")
    return len(rollout.run("h2", *query, f"UNIT=aetherscale-vm@{vm_id}.service").splitlines())


def kept(rollout: Rollout) -> set[str]:
    """The VMs of which there is anything on a host."""
    return {name for host in HOSTS for name in rollout.run(host, "ls", "/var/lib/aetherscale/vms").split()}


@contextmanager
def deleted_in_the_end(rollout: Rollout) -> Iterator[None]:
    """Whatever comes of the create."""
    try:
        yield
    finally:
        for vm_id in rollout.cli("list-vms", "--label", MADE, "-o", "name").stdout.split():
            rollout.cli("delete-vm", vm_id)


@pytest.fixture
def running(rollout: Rollout) -> Iterator[dict[str, str]]:
    """A running VM for each host."""
    vms = {host: rollout.create("--host", host) for host in HOSTS}
    yield vms
    rollout.cli("delete-vm", *vms.values())


@pytest.fixture
def idle(rollout: Rollout) -> Iterator[str]:
    """A VM of h2's that ran once, and is off."""
    vm_id = rollout.create("--host", "h2")
    rollout.cli("stop-vm", "--kill", vm_id)
    yield vm_id
    rollout.cli("delete-vm", vm_id)


def held(rabbitmqctl: Callable[..., list[dict[str, Any]]]) -> tuple[bool, bool]:
    """Whether the broker holds commands for h2, and creates: in a queue, or given to an agent that says nothing."""
    listed = rabbitmqctl("list_queues -p aetherscale name messages")
    waiting = {queue["name"] for queue in listed if int(queue["messages"])}
    return not waiting.isdisjoint(FOR_H2), topology.COMPETING in waiting


def test_what_lies_in_a_queue_outlives_a_renewal(
    rollout: Rollout, rabbitmqctl: Callable[..., list[dict[str, Any]]], address: str, idle: str
) -> None:
    """The command itself, and who sent it: it has waited too long for h2, and is told so in the end."""
    shown = served(rollout, address)
    with SeedClient(parameters=parameters_of(rollout.broker())) as client, away(rollout) as come_back:
        body = json.dumps({"command": "start-vm", "options": {"vm-id": idle}}).encode()
        sent = client.publish(f"vm.{idle}", body, user_id="operator")
        rollout.eventually(lambda: held(rabbitmqctl)[0])
        with shown_by_the_broker(rollout, address, 30):
            assert served(rollout, address) != shown
            assert held(rabbitmqctl)[0]
        come_back()
        (answer,) = client.collect(sent, 1, 60)
    assert answer["execution-info"]["code"] == "host-down", answer
    assert rollout.show(idle, 0)["state"] == "stopped"


def test_a_renewal_loses_no_command_that_waits(
    rollout: Rollout,
    site: Callable[..., Any],
    rabbitmqctl: Callable[..., list[dict[str, Any]]],
    address: str,
    running: dict[str, str],
    idle: str,
) -> None:
    """A start waits for h2, and h1 was given a create, when the certificate is renewed. Later both are done, once.

    Nothing lies in a queue for longer than a minute: the CLI asks again (`--wait-for-host`), and each is done once.
    """

    def pids() -> dict[str, str]:
        units = {host: f"aetherscale-vm@{vm_id}" for host, vm_id in running.items()}
        return {host: rollout.run(host, "systemctl", "show", "-P", "MainPID", unit) for host, unit in units.items()}

    before, shown, vms = pids(), served(rollout, address), kept(rollout)
    small = ("--label", MADE, "--image", "ubuntu_base", "--memory", "128M", "--disk", "1G")
    with (
        deleted_in_the_end(rollout),
        away(rollout) as come_back,
        asked(rollout, "start-vm", idle) as start,
        asked(rollout, "create-vm", *small) as create,
    ):
        rollout.eventually(lambda: held(rabbitmqctl) == (True, True))
        (TLS / "broker.pem").unlink()
        run = site("--limit", "broker1")
        assert (run.code, run.changed) == (0, RENEWAL), run.said
        assert served(rollout, address) != shown
        assert (start.poll(), create.poll()) == (None, None), "nobody could answer yet"
        come_back()
        assert answer_of(start) == {"status": "starting", "vm-id": idle}
        made = str(answer_of(create)["vm-id"])
        for host in HOSTS:
            rollout.run(host, "journalctl", "--sync")
        assert done(rollout, "start-vm", idle) == 1
        rollout.eventually(lambda: bool(rollout.show(idle, 0)["state"] == "running"))
        assert started(rollout, idle) == 2, "once before, and once now"
        assert done(rollout, "create-vm", made) == 1
        assert kept(rollout) == vms | {made}, "one VM, and nothing of another"
        assert pids() == before
