"""A slice of the fault matrix, played on a real broker: every step with the agent killed, every other fault once.

`make matrix` plays all of it.
"""

import pytest

from aetherscale_testing.faults.matrix import again, matrix
from aetherscale_testing.faults.play import Row
from aetherscale_testing.faults.table import FAULTS, Cell, all_cells, why_not

pytestmark = pytest.mark.broker

ONE_OF_EACH = {
    "agent-frozen": ("create.acknowledge", "after"),
    "power-lost": ("stop.press", "after"),
    "network-cut": ("create.bind", "before"),
    "twice": ("create.journal", "before"),
    "resend": ("delete.acknowledge", "after"),
    "client-gone": ("build.start", "before"),
    "same-id": ("create.claim", "after"),
    "clock-ahead": ("start.acknowledge", "before"),
    "clock-behind": ("kill.look", "after"),
    "disk-full": ("create.journal-bound", "before"),
    "build-fails": ("build.disk", "before"),
    "start-fails": ("start.qemu", "before"),
    "qemu-dies": ("build.start", "before"),
    "image-gone": ("create.acknowledge", "after"),
    "broker-killed": ("create.probe", "after"),
    "broker-wiped": ("build.journal", "before"),
}


def the_slice() -> list[Cell]:
    """The cells that are played here."""
    killed = [cell for cell in all_cells() if cell.fault == "agent-killed"]
    others = [c for c in all_cells() if (c.step, c.when) == ONE_OF_EACH.get(c.fault)]
    return [*killed, *others]


def test_a_slice_of_the_matrix() -> None:
    cells = the_slice()
    assert {cell.fault for cell in cells} == set(FAULTS)
    assert not any(why_not(cell) for cell in cells)
    failed: list[Row] = []
    with matrix(lambda row: failed.append(row) if row.verdict == "failed" else None) as stage:
        rows = stage.run(cells)
    assert len(rows) == len(cells)
    assert not failed, "\n\n".join(f"{row.cell}: {row.why}\n{again(row.cell)}\n{row.details}" for row in failed)
