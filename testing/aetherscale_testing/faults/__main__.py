"""`python -m aetherscale_testing.faults matrix`: every step of an agent × every fault, over a fake hypervisor."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from aetherscale_agent.steps import STEPS
from aetherscale_testing.faults.matrix import SIDE_BY_SIDE, Progress, matrix
from aetherscale_testing.faults.play import Row
from aetherscale_testing.faults.table import FAULTS, Cell, all_cells


def run() -> int:
    """Play the cells that the arguments name; 1 if one failed."""
    options = _parse()
    cells = [cell for cell in all_cells() if _is_wanted(cell, options)]
    progress = Progress(len(cells), lambda line: print(line, flush=True))
    with matrix(progress, min(options.batch, len(cells))) as stage:
        rows = stage.run(cells)
    if options.verbose:
        for row in rows:
            print(f"{row.cell}: {row.verdict} in {row.seconds:.1f} s; told: {row.told}; {row.outcome}\n{row.details}")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(to_json(rows))
    return 1 if any(row.verdict == "failed" for row in rows) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m aetherscale_testing.faults")
    commands = parser.add_subparsers(required=True)
    verb = commands.add_parser("matrix", help="every step × every fault, over a fake hypervisor")
    verb.add_argument("--step", action="append", choices=tuple(STEPS), help="only this step; may be repeated")
    verb.add_argument("--fault", action="append", choices=tuple(FAULTS), help="only this fault; may be repeated")
    verb.add_argument("--when", choices=("before", "after"))
    verb.add_argument("--batch", type=int, default=SIDE_BY_SIDE, help="how many cells are played side by side")
    verb.add_argument("--out", type=Path, help="write the results there, as JSON")
    verb.add_argument("--verbose", action="store_true", help="show logs and the broker's state of failed cells")
    return parser.parse_args()


def _is_wanted(cell: Cell, options: argparse.Namespace) -> bool:
    return (
        (options.step is None or cell.step in options.step)
        and (options.fault is None or cell.fault in options.fault)
        and options.when in (None, cell.when)
    )


def to_json(rows: Iterable[Row]) -> str:
    """A row of JSON for each cell, in the matrix's order; what is empty is left out."""
    lines = []
    for row in rows:
        cell = {"step": row.cell.step, "when": row.cell.when, "fault": row.cell.fault, "verdict": row.verdict}
        seen = {"why": row.why, "seconds": round(row.seconds, 1), "told": row.told, "outcome": row.outcome}
        lines.append(json.dumps(cell | {name: value for name, value in seen.items() if value}))
    return "[\n" + ",\n".join(lines) + "\n]\n"


if __name__ == "__main__":
    sys.exit(run())
