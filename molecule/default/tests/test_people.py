"""VMs as people use them: the README's "Your first VM", by ssh and scp through nothing but the broker."""

import hashlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale_testing.memory import read_rollup
from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once, not per host

FILE = 50 << 20
MOST_GROWTH_MIB = 20
NOISE, NOISE_S = 2 << 20, 120
"""Bytes, and seconds: a serial port that TCG emulates took 130 kB/s on two busy cores."""
PORT = 9999


@pytest.fixture(scope="module")
def fleet() -> Iterator[Rollout]:
    rollout = Rollout()
    yield rollout
    for name in ("web1", "web2"):
        rollout.cli("delete-vm", "--if-exists", name, check=False)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ssh") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture(scope="module")
def web1(fleet: Rollout, key: Path) -> str:
    """The README's first VM, as it is typed there."""
    begun = time.monotonic()
    sized = ("--memory", "256M", "--disk", "1G")
    keyed = ("--ssh-key", f"{key}.pub")
    fleet.cli(
        "create-vm", "--name", "web1", "--image", "ubuntu_base", *sized, *keyed, "--wait", "ssh", "--timeout", "2m"
    )
    assert time.monotonic() - begun < 120
    return "web1"


def ssh(fleet: Rollout, key: Path, name: str, *command: str) -> str:
    return fleet.cli("ssh-vm", "-i", str(key), name, "--", *command).stdout.strip()


def test_the_first_vm_is_reached_by_its_name(fleet: Rollout, web1: str, key: Path) -> None:
    assert ssh(fleet, key, web1, "hostname") == "web1"


def test_the_list_knows_its_name_and_its_address(fleet: Rollout, web1: str, key: Path) -> None:
    (row,) = [row for answer in fleet.ask("list-vms") for row in answer["details"] if row.get("name") == web1]
    assert f"inet {row['addresses'][0]}/" in ssh(fleet, key, web1, "ip", "-4", "addr")


def test_cloud_init_is_waited_for(fleet: Rollout, web1: str) -> None:
    assert fleet.cli("wait-vm", web1, "--for", "cloud-init", "--timeout", "60s").returncode == 0


def test_a_wait_that_takes_too_long_fails_and_the_vm_does_not(fleet: Rollout) -> None:
    sized = ("--memory", "128M", "--disk", "1G")
    waited = fleet.cli(
        "create-vm", "--name", "web2", "--image", "ubuntu_base", *sized, "--wait", "ssh", "--timeout", "1s", check=False
    )
    assert waited.returncode == 4
    assert "wait-vm web2 --for ssh" in waited.stderr
    assert fleet.show("web2", 0)["state"] == "running"
    assert fleet.cli("delete-vm", "web2").returncode == 0


def test_50_mb_go_by_scp_while_viewers_stall(fleet: Rollout, web1: str, key: Path, tmp_path: Path) -> None:
    """Equal on both ends, and neither agent nor broker keeps what a viewer does not read: of a console that the guest
    floods, and of a port from which it sends without end.

    They stall because nobody reads their pipes: a process that is stopped is given up after 30 s, and told of nothing.
    """
    host = fleet.show(web1, 0)["host"]
    data = os.urandom(FILE)
    (tmp_path / "file").write_bytes(data)
    scp(fleet, key, str(tmp_path / "file"), f"root@{web1}:/tmp/file")  # so that what grows is the viewers'
    ssh(fleet, key, web1, f"nc -l -p {PORT} < /dev/zero > /dev/null 2>&1 &")
    viewer = fleet.start("console-vm", web1, stdout=subprocess.PIPE)
    drain = fleet.start("tunnel-vm", web1, str(PORT), stdout=subprocess.PIPE)
    try:
        time.sleep(1)
        agent, broker = memory(fleet, host, "aetherscale-agent"), memory(fleet, "broker1", "rabbitmq-server")
        print_noise = f"tr '\\0' x < /dev/zero | head -c {NOISE} > /dev/ttyS0"
        noise = fleet.start("ssh-vm", "-i", str(key), web1, "--", print_noise)
        try:
            scp(fleet, key, str(tmp_path / "file"), f"root@{web1}:/tmp/file")
            scp(fleet, key, f"root@{web1}:/tmp/file", str(tmp_path / "back"))
            assert noise.wait(NOISE_S) == 0, "the guest's console was not flooded"
        finally:
            noise.kill()
            noise.wait()
        grown = (
            memory(fleet, host, "aetherscale-agent") - agent,
            memory(fleet, "broker1", "rabbitmq-server") - broker,
        )
        assert (viewer.poll(), drain.poll()) == (None, None), "a viewer did not stall, it ended"
        skipped = read_skipped(viewer)
        assert drain.stdout is not None
        sent = len(drain.stdout.read(2 * MOST_GROWTH_MIB << 20))
    finally:
        for process in (viewer, drain):
            process.kill()
            process.wait()
    assert ssh(fleet, key, web1, "sha256sum", "/tmp/file").split()[0] == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "back").read_bytes() == data
    assert max(grown) < MOST_GROWTH_MIB, f"agent and broker grew by {grown} MiB"
    assert skipped > NOISE // 2, f"the viewer was told that it missed {skipped} bytes of {NOISE}"
    assert sent == 2 * MOST_GROWTH_MIB << 20, f"of what the guest would send {sent} bytes came"


def read_skipped(viewer: subprocess.Popen[bytes]) -> int:
    """Read on where a viewer stalled, until it says how many bytes it missed; 0 if it does not within 30 s."""
    assert viewer.stdout is not None
    os.set_blocking(viewer.stdout.fileno(), False)
    shown, limit = b"", time.monotonic() + 30
    while time.monotonic() < limit:
        shown += viewer.stdout.read() or b""
        if told := re.search("\\[… ([0-9]+) bytes skipped]".encode(), shown):
            return int(told[1])
        time.sleep(0.1)
    return 0


def memory(fleet: Rollout, host: str, unit: str) -> float:
    """What a unit's main process has resident, in MiB."""
    pid = fleet.run(host, "systemctl", "show", "--value", "--property=MainPID", f"{unit}.service")
    if unit == "rabbitmq-server":  # its main process is a shell around the Erlang machine
        pid = fleet.run(host, "pgrep", "-o", "beam.smp")
    return read_rollup(fleet.run(host, "cat", f"/proc/{pid}/smaps_rollup"))["Rss"]


def scp(fleet: Rollout, key: Path, *paths: str) -> None:
    proxy = " ".join(fleet.argv("tunnel-vm", "%h", "%p"))
    unchecked = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
    subprocess.run(["scp", "-q", "-i", key, *unchecked, "-o", f"ProxyCommand={proxy}", *paths], check=True, timeout=120)
