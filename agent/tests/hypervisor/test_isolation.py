"""What a VM's user can reach, tried on a real host as root, as in test_real.py."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

FIRST, SECOND = "isolated", "isolatee"
SYSTEM_CONTROL = Path("/run/systemd/system.control")

pytestmark = pytest.mark.host


def as_agent(*command: str) -> None:
    agent = ("setpriv", "--reuid=aetherscale", "--regid=aetherscale", "--clear-groups")
    subprocess.run([*agent, *command], check=True)


def show(vm_id: str, name: str) -> str:
    command = ["systemctl", "show", "--value", "-p", name, f"aetherscale-vm@{vm_id}.service"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def uid_of(vm_id: str) -> int:
    return Path(f"/proc/{show(vm_id, 'MainPID')}").stat().st_uid


def can(vm_id: str, *command: str, inside: bool) -> bool:
    """Whether the VM's user can do this, in its own unit's view of the file system or in the host's."""
    uid = uid_of(vm_id)
    view = ["nsenter", "-m", "-t", show(vm_id, "MainPID")] if inside else []
    user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--bounding-set=-all"]
    done = subprocess.run([*view, *user, *command], capture_output=True, check=False)
    return done.returncode == 0


def list_units() -> str:
    command = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "aetherscale-vm@*", "aetherscale-tap@*"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def two_vms() -> Iterator[None]:
    assert os.getuid() == 0, "run this as root"
    as_agent(sys.executable, "-m", "aetherscale_testing.real_vm", "start", FIRST, SECOND)
    yield
    as_agent(sys.executable, "-m", "aetherscale_testing.real_vm", "remove", FIRST, SECOND)
    until = time.monotonic() + 20  # the units of taps go a moment after QEMU
    while (units := list_units()) and time.monotonic() < until:
        time.sleep(0.05)
    assert units == ""
    assert not [p for p in Path("/run/systemd").rglob("*") if FIRST in p.name or SECOND in p.name]
    assert not [p for p in Path("/var/lib").rglob("*") if FIRST in p.name or SECOND in p.name]


DISK = "/var/lib/aetherscale/vms/{}/disk.qcow2"
MONITOR = "/run/aetherscale/vms/{}/qmp.sock"


@pytest.mark.usefixtures("two_vms")
class TestIsolation:
    def test_each_vm_has_a_user_of_its_own(self) -> None:
        assert len({0, uid_of(FIRST), uid_of(SECOND), Path("/var/lib/aetherscale").stat().st_uid}) == 4

    def test_a_vm_writes_its_own_disk(self) -> None:
        assert can(FIRST, "true", inside=False)
        assert can(FIRST, "test", "-w", DISK.format(FIRST), inside=True)

    @pytest.mark.parametrize("inside", [True, False])
    @pytest.mark.parametrize(
        "path",
        [
            DISK.format(SECOND),
            MONITOR.format(SECOND),
            f"/run/aetherscale/args/{SECOND}.env",
            f"/run/aetherscale/args/{FIRST}.env",
        ],
    )
    def test_a_vm_does_not_reach(self, path: str, inside: bool) -> None:
        assert Path(path).exists()
        assert not can(FIRST, "test", "-e", path, inside=inside)

    def test_from_the_host_it_does_not_reach_even_its_own(self) -> None:
        assert not can(FIRST, "test", "-e", DISK.format(FIRST), inside=False)

    def test_it_can_make_no_file_beside_its_disk(self) -> None:
        home = f"/var/lib/aetherscale/vms/{FIRST}"
        assert not can(FIRST, "touch", f"{home}/mine", inside=True)
        assert not can(FIRST, "rm", "-f", f"{home}/console.log", inside=True)

    def test_it_sees_no_processes_but_its_own(self) -> None:
        assert not can(FIRST, "test", "-e", "/proc/1/status", inside=True)

    def test_it_does_not_reach_the_hosts_bus(self) -> None:
        assert can(FIRST, "test", "-w", "/run/dbus/system_bus_socket", inside=False)
        assert not can(FIRST, "test", "-w", "/run/dbus/system_bus_socket", inside=True)

    def test_it_reads_images_and_writes_none(self) -> None:
        (image, *_) = Path("/var/lib/aetherscale/images").glob("sha256-*")
        assert can(FIRST, "test", "-r", str(image), inside=True)
        assert not can(FIRST, "test", "-w", str(image), inside=True)

    def test_its_limits_hold(self) -> None:
        assert int(show(FIRST, "MemoryMax")) == (64 + 256 + 1 + 32) << 20
        assert show(FIRST, "CPUQuotaPerSecUSec") in ("1.200000s", "1.200s")
        assert show(FIRST, "TasksMax") == "512"

    def test_qemu_has_no_capability_and_no_way_to_one(self) -> None:
        status = Path(f"/proc/{show(FIRST, 'MainPID')}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


class TestAgentsRights:
    @pytest.mark.parametrize(
        "command",
        [
            ("systemctl", "--no-ask-password", "restart", "systemd-journald.service"),
            ("systemctl", "--no-ask-password", "start", "aetherscale-vm@evil-name.service"),
            ("systemctl", "--no-ask-password", "enable", "aetherscale-vm@isolated.service"),
            ("systemctl", "--no-ask-password", "daemon-reload"),
            ("systemd-run", "--no-ask-password", "--unit=aetherscale-vm@abcdefgh.service", "true"),
        ],
    )
    def test_the_agent_manages_nothing_but_its_vms(self, command: tuple[str, ...]) -> None:
        with pytest.raises(subprocess.CalledProcessError):
            as_agent(*command)
