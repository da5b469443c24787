"""What a host finds when it looks at itself, from the files that the kernel shows."""

from pathlib import Path

import pytest

from aetherscale_agent.config import NetworkSettings
from aetherscale_agent.hypervisor import condition, probe
from aetherscale_agent.hypervisor.condition import (
    expected_services,
    find_address,
    find_bridge_state,
    offers_virtualization,
)
from aetherscale_agent.hypervisor.reasons import UnitEnd

OWN, THEIRS = NetworkSettings(bridge="br0", network="10.126.0.0/22"), NetworkSettings(bridge="br0")


def make_device(folder: Path, flags: str) -> None:
    (folder / "br0").mkdir()
    (folder / "br0" / "flags").write_text(f"{flags}\n")


def test_a_bridge_that_is_not_there(tmp_path: Path) -> None:
    assert find_bridge_state(THEIRS, tmp_path) == "absent"
    assert find_bridge_state(NetworkSettings(), tmp_path) == "up", "there is to be none"


@pytest.mark.parametrize(("flags", "state"), [("0x1003", "up"), ("0x1002", "down")])
def test_a_bridge_counts_as_up_also_without_a_carrier(tmp_path: Path, flags: str, state: str) -> None:
    make_device(tmp_path, flags)
    assert find_bridge_state(THEIRS, tmp_path) == state


@pytest.mark.parametrize(("address", "state"), [("10.126.0.1", "up"), ("10.0.0.1", "no-address"), (None, "no-address")])
def test_our_own_bridge_has_the_first_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str | None, state: str
) -> None:
    make_device(tmp_path, "0x1003")
    monkeypatch.setattr(condition, "find_address", lambda device: {"br0": address}[device])
    assert find_bridge_state(OWN, tmp_path) == state
    assert find_bridge_state(THEIRS, tmp_path) == "up", "its address is not our business"


def test_the_address_of_a_real_device() -> None:
    assert find_address("lo") == "127.0.0.1"
    assert find_address("no-such-device-has-this-name") is None


def test_services_go_with_the_network() -> None:
    assert expected_services(NetworkSettings()) == []
    assert expected_services(THEIRS) == ["aetherscale-network.service"]
    assert expected_services(OWN) == ["aetherscale-network.service", "aetherscale-dhcp.service"]


@pytest.mark.parametrize(
    ("flags", "offered"), [("fpu vmx sse", True), ("fpu svm", True), ("fpu sse svm_lock", False), ("", False)]
)
def test_what_the_cpu_offers(tmp_path: Path, flags: str, offered: bool) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: a vmx\nflags\t\t: {flags}\nbugs\t\t: none\n")
    assert offers_virtualization(path) == offered


def test_why_it_is_not_kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "KERNEL_KVM", tmp_path)
    assert probe._reason(None) == "a guest under it made no progress in 15 s"
    assert probe._reason(UnitEnd("failed", "signal", 2, 6)) == "QEMU was killed by SIGABRT (signal 6)"
    monkeypatch.setattr(probe, "KERNEL_KVM", tmp_path / "kvm")
    assert probe._reason(UnitEnd("failed", "exit-code", 1, 1)) == "this kernel has no KVM"
