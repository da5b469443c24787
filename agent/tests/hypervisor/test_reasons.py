"""What systemd says of a unit, in words for people."""

import pytest

from aetherscale_agent.hypervisor import reasons
from aetherscale_agent.hypervisor.reasons import UnitEnd
from aetherscale_agent.ports import Power


@pytest.mark.parametrize(
    ("end", "power", "words"),
    [
        (UnitEnd("inactive"), Power.OFF, "the guest shut itself down"),
        (UnitEnd("failed", "exit-code", 1, 1), Power.FAILED, "exit status 1"),
        (UnitEnd("failed", "signal", 2, 10), Power.FAILED, "its network could not be made"),
        (UnitEnd("failed", "exit-code", 1, 226), Power.FAILED, "sandbox (status 226)"),
        (UnitEnd("failed", "signal", 2, 9), Power.FAILED, "SIGKILL (signal 9)"),
        (UnitEnd("failed", "signal", 2, 250), Power.FAILED, "signal 250"),
        (UnitEnd("failed", "core-dump", 3, 6), Power.FAILED, "crashed with SIGABRT"),
        (UnitEnd("failed", "oom-kill", 2, 9), Power.FAILED, "more memory than the VM's limit"),
        (UnitEnd("failed", "timeout", 2, 9), Power.FAILED, "did not stop in time"),
        (UnitEnd("failed", "resources"), Power.FAILED, "could not set its unit up"),
        (UnitEnd("failed", "what-comes-next"), Power.FAILED, "its unit failed (what-comes-next)"),
    ],
)
def test_an_end_has_a_power_and_a_reason(end: UnitEnd, power: Power, words: str) -> None:
    assert end.power is power
    assert words in reasons.finalize_reason(end)


@pytest.mark.parametrize("active", ["active", "activating", "deactivating", "reloading", "maintenance"])
def test_a_unit_that_is_not_at_rest_is_on(active: str) -> None:
    assert reasons.find_power(active) is Power.ON


def test_units_and_vms_are_told_apart() -> None:
    assert reasons.find_vm_id(reasons.unit_name("sgeqxcfi")) == "sgeqxcfi"
    assert reasons.find_vm_id("aetherscale-vm@kvm-probe.service") == reasons.PROBE
    for other in ("aetherscale-vm@sgeqxcfi.service.d", "aetherscale-vm@SGEQXCFI.service", "ssh.service", ""):
        assert reasons.find_vm_id(other) is None


def test_the_unit_of_a_tap_is_no_vms() -> None:
    assert reasons.find_vm_id(reasons.tap_unit_name("sgeqxcfi")) is None


def test_an_object_path_names_its_unit() -> None:
    path = "/org/freedesktop/systemd1/unit/aetherscale_2dvm_40sgeqxcfi_2eservice"
    assert reasons.find_unit(path) == "aetherscale-vm@sgeqxcfi.service"


def test_changed_properties_add_to_what_is_known() -> None:
    end = reasons.merge_end(UnitEnd("active"), {"Result": "signal", "ExecMainStatus": 9, "Unknown": 1})
    assert reasons.merge_end(end, {"ActiveState": "failed"}) == UnitEnd("failed", "signal", 0, 9)
