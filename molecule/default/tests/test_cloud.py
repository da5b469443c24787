"""A Debian with cloud-init, as people boot it; meanwhile, a host whose VMs are on a bridge of its operator's own."""

import contextlib
import os
import pty
import signal
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once, not per host

IMAGE = "debian-12"
BRIDGE, GATEWAY, POOL = "br-operator", "10.99.7.1", "10.99.7.10,10.99.7.90"
LEASES = "/run/operator-dhcp.leases"
USER_DATA = """\
#cloud-config
write_files:
  - {path: /etc/told, content: by user-data}
"""

Site = Callable[..., Any]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ssh") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture(scope="module")
def fleet() -> Rollout:
    return Rollout()


@pytest.fixture(scope="module", autouse=True)
def debian(
    fleet: Rollout, key: Path, cloud_image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator["subprocess.Popen[str]"]:
    """It boots for a minute, so it is begun first and asked for last: the CLI that waits for it."""
    user_data = tmp_path_factory.mktemp("seed") / "user-data"
    user_data.write_text(USER_DATA)
    fleet.cli("import-image", str(cloud_image), "--name", IMAGE, "--host", "h1")
    sized = ("--image", IMAGE, "--host", "h1", "--memory", "512M", "--disk", "2G", "--cpus", "1")
    told = ("--ssh-key", f"{key}.pub", "--user-data", str(user_data), "--wait", "cloud-init", "--timeout", "10m")
    argv = fleet.argv("create-vm", "--name", "debian1", *sized, *told)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    fleet.cli("delete-vm", "--if-exists", "debian1", check=False)
    fleet.cli("delete-image", IMAGE, check=False)


@pytest.fixture(scope="module")
def bridged(fleet: Rollout, key: Path, site: Site) -> Iterator[str]:
    """h2 on a bridge of its operator's, with the operator's DHCP server, and a VM there."""
    fleet.run("h2", "ip", "link", "add", BRIDGE, "type", "bridge")
    fleet.run("h2", "ip", "addr", "add", f"{GATEWAY}/24", "dev", BRIDGE)
    fleet.run("h2", "ip", "link", "set", BRIDGE, "up")
    try:
        run = site("--limit", "h2", "-e", f"aetherscale_bridge={BRIDGE}")
        assert run.code == 0, run.said
        serving = (
            "--conf-file=/dev/null",
            "--port=0",
            "--bind-dynamic",
            "--keep-in-foreground",
            f"--interface={BRIDGE}",
        )
        leasing = (f"--dhcp-range={POOL},10m", f"--dhcp-leasefile={LEASES}", "--pid-file=")
        fleet.run("h2", "systemd-run", "--quiet", "--unit=operator-dhcp", "/usr/sbin/dnsmasq", *serving, *leasing)
        small = ("--image", "ubuntu_base", "--memory", "128M", "--disk", "1G", "--host", "h2")
        fleet.cli(
            "create-vm", "--name", "bridged1", *small, "--ssh-key", f"{key}.pub", "--wait", "ssh", "--timeout", "110s"
        )
        yield "bridged1"
    finally:
        fleet.cli("delete-vm", "--if-exists", "bridged1", check=False)
        fleet.run("h2", "systemctl", "stop", "operator-dhcp", check=False)
        back = site("--limit", "h2")
        fleet.run("h2", "ip", "link", "del", BRIDGE)
        fleet.run("h2", "rm", "-f", LEASES)
        assert back.code == 0, back.said


def inside(fleet: Rollout, key: Path, name: str, command: str) -> str:
    return fleet.cli("ssh-vm", "-i", str(key), name, "--", command).stdout.strip()


def listed(fleet: Rollout, name: str) -> dict[str, Any]:
    """Its row in list-vms; empty while its host does not answer."""
    rows = (row for answer in fleet.ask("list-vms", check=False) for row in answer["details"])
    return dict(next((row for row in rows if row.get("name") == name), {}))


def test_a_guest_on_the_operators_bridge_tells_the_address_it_was_given_there(
    fleet: Rollout, key: Path, bridged: str
) -> None:
    (address,) = listed(fleet, bridged)["addresses"]
    vm = fleet.show(bridged, 0)
    assert vm["address-source"] == "guest-agent"
    (lease,) = [line.split() for line in fleet.run("h2", "cat", LEASES).splitlines() if vm["mac"] in line]
    assert lease[2] == address
    assert f"inet {address}/24" in inside(fleet, key, bridged, "ip -4 addr show eth0")


def test_its_address_is_known_again_to_an_agent_that_was_restarted(fleet: Rollout, bridged: str) -> None:
    before = listed(fleet, bridged)["addresses"]
    fleet.run("h2", "systemctl", "restart", "aetherscale-agent.service")
    fleet.eventually(lambda: listed(fleet, bridged).get("addresses") == before, 30)


def test_it_speaks_with_nobody_elses_mac_address(fleet: Rollout, key: Path, bridged: str) -> None:
    """First with nothing but the interruption, so that what is tried here can succeed."""
    mac = fleet.show(bridged, 0)["mac"]
    tries = "".join(
        f"ifconfig eth0 down; ifconfig eth0 hw ether {name}; ifconfig eth0 up; "
        f"ping -c 2 -W 1 {GATEWAY} > /dev/null && echo heard >> /tmp/tries || echo unheard >> /tmp/tries; "
        for name in (mac, "52:54:00:99:99:99", mac)
    )
    inside(fleet, key, bridged, f"rm -f /tmp/tries; setsid sh -c '{tries}' > /dev/null 2>&1 < /dev/null & sleep 0.2")
    said = "test $(wc -l < /tmp/tries) = 3 && cat /tmp/tries"
    fleet.eventually(lambda: fleet.cli("ssh-vm", "-i", str(key), bridged, "--", said, check=False).returncode == 0, 40)
    assert inside(fleet, key, bridged, "cat /tmp/tries").split() == ["heard", "unheard", "heard"]


def test_a_debian_with_cloud_init_becomes_what_it_was_told(
    fleet: Rollout, key: Path, debian: "subprocess.Popen[str]"
) -> None:
    said, trouble = debian.communicate(timeout=600)
    assert debian.returncode == 0, said + trouble
    assert inside(
        fleet, key, "debian1", "hostname; cat /etc/told; . /etc/os-release; echo; echo $ID-$VERSION_ID"
    ).split("\n") == ["debian1", "by user-data", "debian-12"]
    (address,) = listed(fleet, "debian1")["addresses"]
    assert f"inet {address}/" in inside(fleet, key, "debian1", "ip -4 addr show eth0")
    assert inside(fleet, key, "debian1", "cloud-init status; systemctl is-active qemu-guest-agent").split()[1:] == [
        "done",
        "active",
    ]


def test_its_console_has_the_size_of_the_terminal_at_it(
    fleet: Rollout, key: Path, debian: "subprocess.Popen[str]"
) -> None:
    """Its guest agent is told, at the opening and when the window changes; its getty keeps the line open."""
    assert debian.wait(600) == 0
    keys, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 132))
    viewer = subprocess.Popen(
        fleet.argv("console-vm", "debian1"), stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    threading.Thread(target=read_all, args=(keys,), daemon=True).start()
    try:
        fleet.eventually(lambda: inside(fleet, key, "debian1", "stty -F /dev/ttyS0 size") == "40 132", 60)
        termios.tcsetwinsize(terminal, (25, 91))
        viewer.send_signal(signal.SIGWINCH)
        fleet.eventually(lambda: inside(fleet, key, "debian1", "stty -F /dev/ttyS0 size") == "25 91", 60)
        os.write(keys, b"\x1d")
        assert viewer.wait(10) == 0
    finally:
        viewer.kill()
        viewer.wait()
        os.close(terminal)


def read_all(screen: int) -> None:
    """Show what is printed to nobody, so that nothing waits for somebody who reads."""
    with contextlib.suppress(OSError):  # it was left
        while os.read(screen, 4096):
            pass
    os.close(screen)
