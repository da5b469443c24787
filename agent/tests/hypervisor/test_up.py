"""Whether a VM's unit runs, as a start asks: what is on its way down is waited for, without systemd."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from aetherscale_agent.hypervisor.config import HypervisorConfig
from aetherscale_agent.hypervisor.qemu import QemuHypervisor
from aetherscale_agent.hypervisor.reasons import UnitEnd, tap_unit_name, unit_name
from aetherscale_agent.ports import HypervisorError

VM = "abcdefgh"


class Units:
    """The units of one VM and of its tap, and who was waited for; `ends`: whether the VM's ever does."""

    def __init__(self, unit: str, tap: str, *, ends: bool = True) -> None:
        self._states, self.ends = {unit_name(VM): unit, tap_unit_name(VM): tap}, ends
        self.waited: list[str] = []

    async def states_of(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self._states[name] for name in names}

    async def wait_end(self, vm_id: str) -> UnitEnd:
        self.waited.append(unit_name(vm_id))
        if not self.ends:
            await asyncio.Event().wait()
        return UnitEnd("inactive")

    async def wait_tidy(self, vm_id: str) -> None:
        self.waited.append(tap_unit_name(vm_id))


def is_up(units: Units, monkeypatch: pytest.MonkeyPatch) -> bool:
    folders = Path("/state"), Path("/run/a")
    hypervisor = QemuHypervisor(HypervisorConfig(*folders, start_timeout=15.0 if units.ends else 0.0))
    monkeypatch.setattr(hypervisor, "_units", units)
    return asyncio.run(hypervisor._is_up(VM))


@pytest.mark.parametrize("unit", ["active", "activating", "reloading"])
def test_one_that_runs_or_begins_to_is_up_and_nobody_is_waited_for(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    units = Units(unit, "active")
    assert is_up(units, monkeypatch)
    assert units.waited == []


@pytest.mark.parametrize("unit", ["inactive", "failed"])
@pytest.mark.parametrize(
    ("tap", "waited"),
    [
        ("inactive", []),
        ("failed", []),
        ("active", [tap_unit_name(VM)]),
        ("deactivating", [tap_unit_name(VM)]),
    ],
)
def test_one_at_rest_is_not_up_and_its_tap_comes_to_rest_first(
    unit: str, tap: str, waited: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    units = Units(unit, tap)
    assert not is_up(units, monkeypatch)
    assert units.waited == waited


@pytest.mark.parametrize(("tap", "waited"), [("inactive", []), ("active", [tap_unit_name(VM)])])
def test_one_on_its_way_down_is_waited_for_and_then_its_tap(
    tap: str, waited: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    units = Units("deactivating", tap)
    assert not is_up(units, monkeypatch)
    assert units.waited == [unit_name(VM), *waited]


def test_one_that_does_not_come_down_in_time_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    units = Units("deactivating", "active", ends=False)
    with pytest.raises(HypervisorError, match=f"VM {VM} is not off after 0 s"):
        is_up(units, monkeypatch)
    assert units.waited == [unit_name(VM)]
