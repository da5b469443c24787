"""`python -m aetherscale_testing.faults matrix`: every step of an agent × every fault, over a fake hypervisor.
`… report`: docs/reliability.md, from the results.
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from aetherscale_agent.steps import STEPS
from aetherscale_testing.faults.matrix import SIDE_BY_SIDE, Progress, matrix
from aetherscale_testing.faults.play import Row
from aetherscale_testing.faults.report import find_gaps, make_page
from aetherscale_testing.faults.table import FAULTS, SCENARIOS, Cell, all_cells


def run() -> int:
    """Do what the arguments ask for; 1 if a cell failed, the page is not what the results say, or they lack a step."""
    options = _parse()
    return _report(options) if options.verb == "report" else _play(options)


def _report(options: argparse.Namespace) -> int:
    page = make_page(options.results)
    if not options.check:
        options.page.write_text(page)
        return 0
    if options.page.read_text() != page:
        print(f"error: {options.page} is not what {options.results} says\nhint: make reliability", file=sys.stderr)
        return 1
    if gaps := find_gaps(options.results):
        lab = options.results / "lab-matrix.jsonl"
        print(f"error: {lab} is not of these steps: {'; '.join(gaps)}\nhint: make record", file=sys.stderr)
        return 1
    return 0


def _play(options: argparse.Namespace) -> int:
    """Play the cells that the arguments name. Told to stop, it leaves no broker behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
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
    commands = parser.add_subparsers(required=True, dest="verb")
    page = commands.add_parser("report", help="make docs/reliability.md from what the tests wrote down")
    page.add_argument("--results", type=Path, default=Path("docs/results"))
    page.add_argument("--page", type=Path, default=Path("docs/reliability.md"))
    page.add_argument("--check", action="store_true", help="only say whether it is up to date, and of all steps")
    verb = commands.add_parser("matrix", help="every step × every fault, over a fake hypervisor")
    verb.add_argument("--scenario", action="append", choices=tuple(SCENARIOS), help="only this one; may be repeated")
    verb.add_argument("--step", action="append", choices=tuple(STEPS), help="only this step; may be repeated")
    verb.add_argument("--fault", action="append", choices=tuple(FAULTS), help="only this fault; may be repeated")
    verb.add_argument("--when", choices=("before", "after"))
    verb.add_argument("--batch", type=int, default=SIDE_BY_SIDE, help="how many cells are played side by side")
    verb.add_argument("--out", type=Path, help="write the results there, as JSON")
    verb.add_argument("--verbose", action="store_true", help="show logs and the broker's state of failed cells")
    return parser.parse_args()


def _is_wanted(cell: Cell, options: argparse.Namespace) -> bool:
    return (
        (options.scenario is None or cell.scenario in options.scenario)
        and (options.step is None or cell.step in options.step)
        and (options.fault is None or cell.fault in options.fault)
        and options.when in (None, cell.when)
    )


def to_json(rows: Iterable[Row]) -> str:
    """A row of JSON for each cell, in the matrix's order; what is empty is left out."""
    lines = []
    for row in rows:
        cell = {"step": row.cell.step, "when": row.cell.when, "fault": row.cell.fault, "verdict": row.verdict}
        also = row.cell.scenario if row.cell.also else ""
        seen = {
            "also": also,
            "why": row.why,
            "seconds": round(row.seconds, 1),
            "told": row.told,
            "outcome": row.outcome,
        }
        lines.append(json.dumps(cell | {name: value for name, value in seen.items() if value}))
    return "[\n" + ",\n".join(lines) + "\n]\n"


if __name__ == "__main__":
    sys.exit(run())
