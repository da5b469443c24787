"""What to do about a VM after an interruption: every record that there may be, against the rules as they are meant."""

import itertools
from typing import get_args

import pytest

from aetherscale_agent import courses
from aetherscale_agent.journal import Phase
from aetherscale_agent.ports import Power
from aetherscale_agent.recover import TOMBSTONE_SLACK_S, Finding, Right, burial, find, right_to, undo_course
from aetherscale_testing.world import DEADLINE, NOW, record

PHASES: tuple[Phase, ...] = get_args(Phase)
HERE, BEFORE, NEVER = "boot-2", "boot-1", ""
IN_TIME, LATE = NOW + 60, NOW - 1

READY = {
    # power, wanted, boot id: of this boot, of one before, of none; a start in time; a start that is late
    (Power.ON, "on", HERE): Finding.RUNS,
    (Power.ON, "on", BEFORE): Finding.STARTED,
    (Power.ON, "on", NEVER): Finding.STARTED,
    (Power.ON, "off", HERE): Finding.STOPPING,
    (Power.ON, "off", BEFORE): Finding.STOPPING,
    (Power.ON, "off", NEVER): Finding.STOPPING,
    (Power.OFF, "on", HERE): Finding.RESTED,
    (Power.OFF, "on", BEFORE): Finding.HOST_WENT_DOWN,
    (Power.OFF, "on", NEVER): Finding.HOST_WENT_DOWN,
    (Power.OFF, "off", HERE): Finding.OFF,
    (Power.OFF, "off", BEFORE): Finding.OFF,
    (Power.OFF, "off", NEVER): Finding.OFF,
}


@pytest.mark.parametrize("start_by", [0.0, IN_TIME, NOW, LATE])
@pytest.mark.parametrize(("power", "wanted", "boot_id"), READY)
def test_what_an_agent_finds_of_a_vm(power: Power, wanted: str, boot_id: str, start_by: float) -> None:
    expected = READY[power, wanted, boot_id]
    if start_by == LATE and power is Power.OFF and wanted == "on":
        expected = Finding.TOO_LATE
    found = record("ready", wanted=wanted, boot_id=boot_id, start_by=start_by)
    assert find(found, power, HERE, NOW) is expected
    if power is Power.OFF:  # a QEMU that died is at rest, too
        assert find(found, Power.FAILED, HERE, NOW) is expected


def test_a_vm_that_ran_starts_after_a_reboot_whatever_its_creates_deadline() -> None:
    ran = record("ready", boot_id=BEFORE)
    assert find(ran, Power.OFF, HERE, DEADLINE + 10_000) is Finding.HOST_WENT_DOWN


@pytest.mark.parametrize("phase", PHASES)
def test_what_is_no_vm_yet_or_no_more_is_not_powered(phase: Phase) -> None:
    expected = {"deleting": Finding.DELETING, "ready": None}.get(phase, Finding.NOT_YET)
    if expected is None:
        return
    for power, wanted, boot_id in READY:
        assert find(record(phase, wanted=wanted, boot_id=boot_id), power, HERE, NOW) is expected


@pytest.mark.parametrize(("phase", "bound", "has_queue"), list(itertools.product(PHASES, [False, True], [False, True])))
def test_what_may_be_done_about_a_binding(phase: Phase, bound: bool, has_queue: bool) -> None:
    """Only a binding that was journalled, in a queue that is still there, may be trusted without a question."""
    right = right_to(record(phase, bound=bound), has_queue=has_queue)
    if phase == "claimed":
        assert right is Right.UNDO
    elif phase == "gone" and not bound:
        assert right is Right.NONE
    else:
        assert right is (Right.BIND if bound and has_queue else Right.ASK)


def test_a_claim_is_undone_with_or_without_a_queue() -> None:
    assert undo_course(has_queue=True) == courses.UNDO_CLAIM
    assert undo_course(has_queue=False) == ("connect.forget",)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("late", [-100.0, 0.0, TOMBSTONE_SLACK_S, TOMBSTONE_SLACK_S + 0.1, 10_000.0])
def test_only_a_tombstone_is_buried_and_only_after_its_time(phase: Phase, late: float) -> None:
    due = phase == "gone" and late > TOMBSTONE_SLACK_S
    assert burial(record(phase), DEADLINE + late) == (courses.BURY if due else ())
    assert burial(record(phase), DEADLINE + late, has_queue=False) == (("bury.forget",) if due else ())
