"""What the agent makes of systemd's answers, without systemd."""

import asyncio
from typing import Any

import pytest

from aetherscale_agent.hypervisor import units
from aetherscale_agent.hypervisor.units import Units, UnitsError, find_unit, tap_unit_name, unit_name

VM, OTHERS = "abcdefgh", [f"other{n:03d}" for n in range(12)]


def path_of(unit: str) -> str:
    escaped = "".join(c if c.isalnum() else f"_{ord(c):02x}" for c in unit)
    return f"/org/freedesktop/systemd1/unit/{escaped}"


class Systemd:
    """Taps that are at rest or not, and what was asked for."""

    def __init__(self, here: Units, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here, self.states, self.stopped = here, {tap_unit_name(VM): "deactivating"}, list[str]()
        monkeypatch.setattr(here, "_manager", self._manager)

    async def _manager(self, member: str, _signature: str = "", body: Any = None) -> list[Any]:
        if member == "StopUnit":
            self.stopped.append(body[0])
            return [""]
        assert member == "ListUnitsByPatterns"
        return [[[name, "", "", state] for name, state in self.states.items() if name in body[1]]]

    def rest(self, vm_id: str) -> None:
        """The VM's tap comes to rest, and systemd tells."""
        unit = tap_unit_name(vm_id)
        self.states[unit] = "inactive"
        assert find_unit(path_of(unit)) == unit
        self.here._on_properties(path_of(unit), units.UNIT, {"ActiveState": units.Variant("s", "inactive")})


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Systemd:
    return Systemd(Units(lambda _vm_id, _end: None), monkeypatch)


async def some_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_tap_at_rest_is_not_waited_for(systemd: Systemd) -> None:
    systemd.rest(VM)
    asyncio.run(systemd.here.wait_tidy(VM))
    assert systemd.stopped == []


def test_taps_of_others_that_come_to_rest_first_cost_nothing(systemd: Systemd) -> None:
    """As when twenty VMs were killed at once, and are started at once."""

    async def start() -> None:
        waiting = asyncio.create_task(systemd.here.wait_tidy(VM))
        for other in OTHERS:
            await some_turns()
            systemd.rest(other)
        await some_turns()
        assert not waiting.done()
        systemd.rest(VM)
        await waiting

    asyncio.run(start())
    assert systemd.stopped == []


def test_a_tap_that_systemd_forgot_is_stopped(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "TIDY_TIMEOUT", 0)
    with pytest.raises(UnitsError, match=r"aetherscale-tap@abcdefgh\.service does not come to rest"):
        asyncio.run(systemd.here.wait_tidy(VM))
    assert systemd.stopped == [unit_name(VM)] * units.TIDY_TURNS
