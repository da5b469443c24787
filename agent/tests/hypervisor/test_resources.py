"""What the host has for VMs."""

from pathlib import Path

import pytest

from aetherscale_agent.hypervisor import HypervisorConfig, resources
from aetherscale_agent.hypervisor.resources import GIB, Resources

MEMINFO = "MemTotal:       16384000 kB\nMemFree:         1024000 kB\n"


def test_memory_is_the_hosts_less_a_reserve() -> None:
    assert resources.total_memory(MEMINFO) == 16000
    assert resources.memory_for_vms(HypervisorConfig(), 16000) == 16000 - 1600
    assert resources.memory_for_vms(HypervisorConfig(), 4000) == 4000 - 1024
    assert resources.memory_for_vms(HypervisorConfig(memory_reserve=500), 4000) == 3500
    assert resources.memory_for_vms(HypervisorConfig(memory=123), 4000) == 123
    assert resources.memory_for_vms(HypervisorConfig(), 512) == 0


def test_memory_may_be_promised_more_than_once() -> None:
    """What there is for VMs is multiplied, found out or told; the reserve is taken away before."""
    assert resources.memory_for_vms(HypervisorConfig(memory_overcommit=1.5), 16000) == (16000 - 1600) * 3 // 2
    assert resources.memory_for_vms(HypervisorConfig(memory=1024, memory_overcommit=2.0), 4000) == 2048
    assert resources.memory_for_vms(HypervisorConfig(memory_reserve=500, memory_overcommit=0.5), 4000) == 1750
    assert resources.memory_for_vms(HypervisorConfig(memory=3, memory_overcommit=1.5), 4000) == 4, "whole MiB"
    assert resources.memory_for_vms(HypervisorConfig(memory_overcommit=3.0), 512) == 0


def test_cores_are_shared() -> None:
    assert resources.cpus_for_vms(HypervisorConfig(), 2) == 8
    assert resources.cpus_for_vms(HypervisorConfig(cpu_overcommit=1.5), 3) == 4
    assert resources.cpus_for_vms(HypervisorConfig(cpu_overcommit=0.1), 1) == 1
    assert resources.cpus_for_vms(HypervisorConfig(cpus=7), 2) == 7


def test_disk_is_what_is_free_and_what_vms_have_already() -> None:
    config = HypervisorConfig()
    assert resources.disk_for_vms(config, size=100 * GIB, free=50 * GIB, used=20 * GIB) == 65
    assert resources.disk_for_vms(config, size=100 * GIB, free=1 * GIB, used=0) == 0
    assert resources.disk_for_vms(HypervisorConfig(disk_reserve=10), size=100 * GIB, free=50 * GIB, used=0) == 40
    assert resources.disk_for_vms(HypervisorConfig(disk=9), size=1, free=1, used=1) == 9


def test_a_disk_with_holes_counts_for_what_it_takes(tmp_path: Path) -> None:
    (tmp_path / "sgeqxcfi").mkdir()
    with (tmp_path / "sgeqxcfi" / "disk.qcow2").open("wb") as disk:
        disk.truncate(10 * GIB)
        disk.write(b"x" * 4096)
    used = resources.used_by(tmp_path)
    assert set(used) == {"sgeqxcfi"}
    assert 4096 <= used["sgeqxcfi"] < 1 << 20
    assert resources.used_by(tmp_path / "nothing") == {}


def test_a_vm_that_is_being_removed_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "abcdefgh").mkdir()
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "stray").touch()
    assert resources.used_by(tmp_path) == {"abcdefgh": 0}


@pytest.mark.parametrize(
    ("used", "taken"),
    [(0, 0), (4 * resources.MIB, 0), (64 * resources.MIB, 0), (10 * GIB, 10 * GIB - 64 * resources.MIB)],
)
def test_what_a_vm_takes_is_what_its_files_take_but_for_its_tables(used: int, taken: int) -> None:
    assert resources.taken_by(used) == taken


def test_room_is_what_is_free_less_the_reserve_and_what_the_configuration_leaves() -> None:
    assert resources.room_for_writing(disk=65, free=50 * GIB, used=20 * GIB) == 45 * GIB
    assert resources.room_for_writing(disk=500, free=50 * GIB, used=20 * GIB) == 50 * GIB
    assert resources.room_for_writing(disk=10, free=50 * GIB, used=20 * GIB) == 0


def test_the_disks_are_not_looked_at_too_often(tmp_path: Path) -> None:
    now = [0.0]
    found = Resources(HypervisorConfig(state_dir=tmp_path), tmp_path / "vms", clock=lambda: now[0])
    first = found.get()
    assert found.get() is first
    now[0] = resources.FRESH
    assert found.get() is not first
