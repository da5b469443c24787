"""The VMs' network on real hosts: who reaches whom, in whose name, and what is left of it."""

import base64
import json
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from aetherscale_testing import overheard
from aetherscale_testing.datagrams import Datagram, finalize_sender
from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once, not per host

PORT = 8080
BRIDGE, GATEWAY = "aetherscale0", "10.126.0.1"
EVERYBODY = "255.255.255.255"
DHCP_SERVER, DHCP_CLIENT, ANY_PORT = 67, 68, 6700
HEARD_S = 20.0
SMALL = ("--image", "ubuntu_base", "--memory", "128M", "--disk", "1G", "--host", "h1")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Rollout]:
    rollout = Rollout()
    yield rollout
    rollout.cli("delete-vm", "--if-exists", "net1", "net2", check=False)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ssh") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture(scope="module")
def pair(fleet: Rollout, key: Path) -> dict[str, str]:
    """Two guests on one host, by name; their addresses."""
    keyed = ("--ssh-key", f"{key}.pub", "--wait", "ssh", "--timeout", "2m")
    fleet.cli("create-vm", "--name", "net1", *SMALL, *keyed, "--publish", f"{PORT}:22")
    fleet.cli("create-vm", "--name", "net2", *SMALL, *keyed)
    return {name: fleet.show(name, 0)["addresses"][0] for name in ("net1", "net2")}


def inside(fleet: Rollout, key: Path, name: str, command: str) -> str:
    return fleet.cli("ssh-vm", "-i", str(key), name, "--", command).stdout.strip()


def answers(fleet: Rollout, key: Path, address: str) -> bool:
    said = inside(fleet, key, "net1", f"ping -c 2 -W 2 {address} > /dev/null 2>&1 && echo yes || echo no")
    return said == "yes"


def test_guests_reach_each_other_their_host_and_the_outside(fleet: Rollout, pair: dict[str, str], key: Path) -> None:
    outside = next(row["address"] for row in fleet.lab.inventory() if row["name"] == "broker1")
    for address in (pair["net2"], GATEWAY, outside):
        assert answers(fleet, key, address), address


def test_a_guest_reaches_no_service_of_its_host(fleet: Rollout, pair: dict[str, str], key: Path) -> None:
    assert set(pair) == {"net1", "net2"}
    said = [
        inside(fleet, key, "net1", f"nc -w 2 {address} 22 < /dev/null | head -c 4; echo end")
        for address in (GATEWAY, pair["net2"])
    ]
    assert said == ["end", "SSH-end"]  # the control: another guest's is reached


@pytest.mark.parametrize(
    ("lie", "truth", "outcome"),
    [
        ("down", "up", "heard"),  # nothing but the interruption: what is tried here can succeed
        ("hw ether 52:54:00:99:99:99", "hw ether {mac}", "unheard"),
        ("{other} netmask 255.255.252.0", "{own} netmask 255.255.252.0", "unheard"),
    ],
    ids=["its own name", "another MAC address", "another guest's address"],
)
def test_a_guest_speaks_in_nobody_elses_name(
    fleet: Rollout, pair: dict[str, str], key: Path, lie: str, truth: str, outcome: str
) -> None:
    """It tries for a moment, and tells afterwards: while it lies, it is not heard."""
    names = {"mac": fleet.show("net1", 0)["mac"], "own": pair["net1"], "other": pair["net2"]}
    script = (
        f"sleep 1; ifconfig eth0 down; ifconfig eth0 {lie}; ifconfig eth0 up; "
        f"ping -c 3 -W 1 {GATEWAY} > /dev/null && echo heard > /tmp/lie || echo unheard > /tmp/lie; "
        f"ifconfig eth0 down; ifconfig eth0 {truth}; ifconfig eth0 up; route add default gw {GATEWAY}; "
        "touch /tmp/truth"
    ).format(**names)
    inside(
        fleet,
        key,
        "net1",
        f"rm -f /tmp/lie /tmp/truth; setsid sh -c '{script}' > /dev/null 2>&1 < /dev/null & sleep 0.2",
    )
    told = ("ssh-vm", "-i", str(key), "net1", "--", "test -e /tmp/truth")
    fleet.eventually(lambda: fleet.cli(*told, check=False).returncode == 0, 60)
    assert inside(fleet, key, "net1", "cat /tmp/lie") == outcome


def test_a_published_port_leads_to_its_guest(fleet: Rollout, pair: dict[str, str]) -> None:
    assert set(pair) == {"net1", "net2"}
    host = next(row["address"] for row in fleet.lab.inventory() if row["name"] == "h1")
    with socket.create_connection((host, PORT), timeout=5) as connection:
        connection.settimeout(5)
        assert connection.recv(4) == b"SSH-"
    refused = fleet.cli("create-vm", *SMALL, "--publish", f"{PORT}:80", check=False)
    assert f"port {PORT} is published by VM net1" in refused.stderr
    refused = fleet.cli("create-vm", *SMALL, "--publish", "22:22", check=False)
    assert "port 22 is in use on this host" in refused.stderr


def test_nobody_but_root_writes_what_the_rules_are_made_of(fleet: Rollout, pair: dict[str, str]) -> None:
    assert set(pair) == {"net1", "net2"}
    assert fleet.run("h1", "find", "/run/aetherscale-network/vms", "-type", "f").count("\n") >= 1
    assert fleet.run("h1", "find", "/run/aetherscale-network", "-perm", "/022", "-not", "-type", "l") == ""


@pytest.mark.parametrize(
    "command",
    [
        "nft flush ruleset; systemctl reload aetherscale-network",
        "systemctl restart nftables",
        "systemctl reload nftables",
        "systemctl stop nftables; systemctl start nftables",
    ],
)
def test_the_rules_come_back_when_somebody_took_them_away(
    fleet: Rollout, pair: dict[str, str], key: Path, command: str
) -> None:
    vm_id = fleet.show("net1", 0)["vm-id"]
    fleet.run("h1", "sh", "-c", command)
    macs = ("nft", "list", "set", "bridge", "aetherscale", "macs")
    fleet.eventually(lambda: f'"vm-{vm_id}"' in fleet.run("h1", *macs, check=False), 10)  # after nftables' own job
    assert answers(fleet, key, pair["net2"])
    fleet.eventually(lambda: fleet.run("h1", "systemctl", "is-active", "aetherscale-dhcp", check=False) == "active", 10)


def test_what_a_dhcp_server_says_is_dropped_before_anything_of_a_guest_is_let_through(
    fleet: Rollout, pair: dict[str, str]
) -> None:
    assert set(pair) == {"net1", "net2"}
    rules = [
        line.strip() for line in fleet.run("h1", "nft", "list", "chain", "bridge", "aetherscale", "guest").splitlines()
    ]
    accepting = [number for number, rule in enumerate(rules) if rule.endswith("accept")]
    assert rules.index("udp sport 67 drop") < min(accepting)


def send(fleet: Rollout, key: Path, name: str, datagrams: Sequence[Datagram]) -> None:
    """Have a guest send these."""
    program = base64.b64encode(finalize_sender(datagrams)).decode()
    inside(fleet, key, name, f"echo {program} | base64 -d > /tmp/send; chmod +x /tmp/send; /tmp/send")


def overhear(
    fleet: Rollout, key: Path, name: str, datagrams: Sequence[Datagram], interfaces: Sequence[str]
) -> set[tuple[str, int, str]]:
    """Have a guest of h1 send these; on which of its host's interfaces they came by, from which port, and to whom.

    It is listened until the last has come by on the last interface.
    """
    first, last = (one.payload.decode() for one in (datagrams[0], datagrams[-1]))
    arguments = [str(HEARD_S), first.split()[0], last, *interfaces]
    command = fleet.lab.ssh_command("h1", ["/usr/bin/python3", "-I", "-", *arguments])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdin is not None
        assert listener.stdout is not None
        listener.stdin.write(Path(overheard.__file__).read_text())
        listener.stdin.close()
        assert listener.stdout.readline() == "listening\n"
        send(fleet, key, name, datagrams)
        return {(interface, source, to) for interface, source, to in json.loads(listener.stdout.readline())}


def test_what_a_guest_sends_as_a_dhcp_server_ends_at_its_own_tap(
    fleet: Rollout, pair: dict[str, str], key: Path
) -> None:
    """As offers go: from port 67, to everybody and to one neighbour. The control is sent last, from another port."""
    mine, neighbours = (f"vm-{fleet.show(name, 0)['vm-id']}" for name in ("net1", "net2"))
    neighbour = pair["net2"]
    sent = [(source, to) for source in (DHCP_SERVER, ANY_PORT) for to in (EVERYBODY, neighbour)]
    datagrams = [
        Datagram(source, to, DHCP_CLIENT, b"offer number %d" % number) for number, (source, to) in enumerate(sent)
    ]
    assert overhear(fleet, key, "net1", datagrams, (mine, BRIDGE, neighbours)) == {
        *((mine, source, to) for source, to in sent),
        (BRIDGE, ANY_PORT, EVERYBODY),
        *((neighbours, ANY_PORT, to) for to in (EVERYBODY, neighbour)),
    }


def dhcp_release(sender: bytes, address: str, client: bytes) -> bytes:
    """Say that an address is given back, in the name of a client. Source: RFC 2131, figure 1 and table 5; RFC 2132."""
    head = struct.pack("!4B L 2H 4s 12x", 1, 1, len(sender), 0, 0x5EED, 0, 0, socket.inet_aton(address))
    client_id = bytes((61, 1 + len(client), 1)) + client
    options = bytes((53, 1, 7, 54, 4)) + socket.inet_aton(GATEWAY) + client_id + b"\xff"
    return head + sender.ljust(16 + 64 + 128, b"\0") + b"\x63\x82\x53\x63" + options


def find_leases(fleet: Rollout) -> dict[str, str]:
    """The address of each lease of h1, by MAC."""
    rows = (line.split() for line in fleet.run("h1", "cat", "/var/lib/aetherscale-network/leases").splitlines())
    return {mac: address for _, mac, address, *_ in rows}


def test_a_guest_gives_its_own_lease_back_and_nobody_elses(fleet: Rollout, pair: dict[str, str], key: Path) -> None:
    """First it says its neighbour's client id, of the neighbour's address: its own MAC it must say."""
    mine, neighbours = (fleet.show(name, 0)["mac"] for name in ("net1", "net2"))
    sender, neighbour = (bytes.fromhex(mac.replace(":", "")) for mac in (mine, neighbours))
    assert find_leases(fleet).items() >= {mine: pair["net1"], neighbours: pair["net2"]}.items()
    for address, client in ((pair["net2"], neighbour), (pair["net1"], sender)):
        payload = dhcp_release(sender, address, client)
        send(fleet, key, "net1", [Datagram(DHCP_CLIENT, GATEWAY, DHCP_SERVER, payload)])
    fleet.eventually(lambda: mine not in find_leases(fleet), 10)  # the control, sent last
    assert find_leases(fleet)[neighbours] == pair["net2"]


def assert_no_trace(fleet: Rollout, vm_id: str) -> None:
    """systemd stops the unit of a VM's tap a moment after its QEMU has gone."""
    for command in (("ip", "link"), ("nft", "list", "ruleset"), ("find", "/run/aetherscale-network")):
        fleet.eventually(lambda command=command: vm_id not in fleet.run("h1", *command), 10)  # type: ignore[misc]


def test_an_address_outlives_a_stop_and_nothing_outlives_the_vm(
    fleet: Rollout, pair: dict[str, str], key: Path
) -> None:
    vm_id = fleet.show("net1", 0)["vm-id"]
    fleet.cli("stop-vm", "net1")
    fleet.eventually(lambda: vm_id not in fleet.run("h1", "ip", "link"), 10)
    fleet.cli("start-vm", "net1")
    fleet.cli("wait-vm", "net1", "--for", "ssh", "--timeout", "60s")
    assert f"inet {pair['net1']}/" in inside(fleet, key, "net1", "ip -4 addr")
    fleet.cli("delete-vm", "net1")
    assert_no_trace(fleet, vm_id)


def test_a_network_that_is_slow_to_go_outlives_nothing_and_is_met_by_nobody(
    fleet: Rollout, pair: dict[str, str]
) -> None:
    assert set(pair) == {"net1", "net2"}
    vm_id = fleet.show("net2", 0)["vm-id"]
    fleet.run("h1", "sh", "-c", "setsid flock /run/aetherscale-network/lock sleep 6 > /dev/null 2>&1 & sleep 0.3")
    fleet.cli("delete-vm", "net2")
    assert f"vm-{vm_id}" in fleet.run("h1", "ip", "link")  # the control: it is slow
    assert fleet.create("--host", "h1", "--name", "net2") == vm_id  # the name is free, and its network comes anew
    assert f"vm-{vm_id}" in fleet.run("h1", "nft", "list", "ruleset")
    fleet.cli("delete-vm", "net2")
    assert_no_trace(fleet, vm_id)
