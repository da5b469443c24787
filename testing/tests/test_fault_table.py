"""The matrix as data is complete: every step, both sides of it, every fault; and what is left out says why."""

import json
from collections import Counter
from pathlib import Path

import pytest

from aetherscale_agent import courses
from aetherscale_agent.steps import STEPS
from aetherscale_testing.faults.report import AGENT_KILLED, EVERYWHERE, VM_NET_KILLED, find_gaps
from aetherscale_testing.faults.table import BROKER_FAULTS, FAULTS, SCENARIOS, Cell, all_cells, why_not
from aetherscale_testing.faults.trouble import FAULTS as PLAYED

LEFT_OUT = {"build-fails", "image-gone", "start-fails", "qemu-dies", "client-gone"}


def test_every_step_meets_every_fault_before_and_after_it_once() -> None:
    cells = Counter(all_cells())
    assert set(cells.values()) == {1}
    assert len([cell for cell in cells if not cell.also]) == len(STEPS) * 2 * len(FAULTS)


@pytest.mark.parametrize(("scenario", "steps"), [("restore", courses.ALTER), ("clone", courses.BUILD)])
def test_every_step_of_a_second_scenario_is_played_too(scenario: str, steps: courses.Course) -> None:
    cells = [cell for cell in all_cells() if cell.scenario == scenario]
    assert {cell.step for cell in cells} == set(steps)
    assert len(cells) == len(steps) * 2 * len(FAULTS)


def test_every_fault_can_be_played() -> None:
    assert set(PLAYED) | set(BROKER_FAULTS) == set(FAULTS)


def test_every_scenario_comes_to_a_step() -> None:
    assert {cell.scenario for cell in all_cells()} == set(SCENARIOS)


def test_only_faults_of_what_a_step_does_not_do_are_left_out() -> None:
    assert {cell.fault for cell in all_cells() if why_not(cell)} <= LEFT_OUT


def test_no_step_and_no_fault_is_left_out_altogether() -> None:
    played = [cell for cell in all_cells() if why_not(cell) is None]
    assert {cell.step for cell in played} == set(STEPS)
    assert {cell.fault for cell in played} == set(FAULTS)


@pytest.mark.parametrize(
    ("step", "when", "fault", "played"),
    [
        ("create.claim", "before", "build-fails", True),
        ("build.disk", "before", "build-fails", True),
        ("build.disk", "after", "build-fails", False),
        ("build.start", "before", "qemu-dies", True),
        ("build.start", "after", "qemu-dies", False),
        ("start.qemu", "before", "start-fails", True),
        ("start.settle", "before", "start-fails", False),
        ("start.qemu", "before", "image-gone", False),
        ("delete.look", "before", "start-fails", False),
        ("connect.bind", "after", "build-fails", True),
        ("create.hand-on", "before", "build-fails", False),
        ("bury.unbind", "before", "client-gone", False),
        ("erase.qemu", "after", "disk-full", True),
    ],
)
def test_a_fault_falls_only_where_something_can_still_fail(step: str, when: str, fault: str, played: bool) -> None:
    assert (why_not(Cell(step, "before" if when == "before" else "after", fault)) is None) is played


def record(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "lab-matrix.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_record_of_the_lab_has_every_step(tmp_path: Path) -> None:
    cells = [(fault, step) for fault, steps in EVERYWHERE.items() for step in steps]
    rows = [{"fault": fault, "step": step, "verdict": "held"} for fault, step in (*cells, ("the client is gone", ""))]
    record(tmp_path, rows)
    assert find_gaps(tmp_path) == []
    missing = (VM_NET_KILLED, "down.tap")
    record(tmp_path, [row for row in rows if (row["fault"], row["step"]) != missing])
    assert find_gaps(tmp_path) == ["vm-net killed at down.tap"]
    record(tmp_path, [row | {"verdict": "broken"} if row["step"] == "kill.look" else row for row in rows])
    assert find_gaps(tmp_path) == ["agent killed at kill.look"]
    record(tmp_path, [*rows, {"fault": AGENT_KILLED, "step": "create.gone", "verdict": "held"}])
    assert find_gaps(tmp_path) == ["create.gone, which is no step"]
