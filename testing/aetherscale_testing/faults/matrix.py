"""The whole matrix: cells side by side on one broker, each in a vhost of its own."""

import contextlib
import itertools
import queue
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aetherscale_testing.broker import private_broker
from aetherscale_testing.faults.listing import Listing
from aetherscale_testing.faults.meeting import Hall
from aetherscale_testing.faults.play import Row, play
from aetherscale_testing.faults.scene import Stage
from aetherscale_testing.faults.table import BROKER_FAULTS, Cell, why_not
from aetherscale_testing.faults.trouble import Rendezvous
from aetherscale_testing.forkserver import ForkServer
from aetherscale_testing.proxy import Wires

SIDE_BY_SIDE = 24
MEETING_S = 60.0
DOWN_S = 0.5

Report = Callable[[Row], None]


class Matrix:
    """A stage, and the cells that are played on it."""

    def __init__(self, stage: Stage, folder: Path, vhosts: Sequence[str], report: Report) -> None:
        self._stage = stage
        self._folder = folder
        self._vhosts: queue.Queue[str] = queue.Queue()
        for vhost in vhosts:
            self._vhosts.put(vhost)
        self._width = len(vhosts)
        self._report = report
        self._numbers = itertools.count()

    def run(self, cells: Sequence[Cell]) -> list[Row]:
        """Play these cells; their rows in the same order."""
        rows: dict[Cell, Row] = {}
        alone = [cell for cell in cells if cell.fault not in BROKER_FAULTS]
        with ThreadPoolExecutor(self._width) as pool:
            for row in pool.map(self._play, alone):
                rows[row.cell] = row
            for fault in BROKER_FAULTS:
                playable = [c for c in cells if c.fault == fault and why_not(c) is None]
                for start in range(0, len(playable), self._width):
                    batch = playable[start : start + self._width]
                    rows |= {row.cell: row for row in self._play_together(pool, batch, fault)}
        return [rows[cell] for cell in cells]

    def _play(self, cell: Cell, together: Rendezvous | None = None) -> Row:
        vhost = self._vhosts.get()
        try:
            row = play(self._stage, cell, vhost, self._folder / f"{next(self._numbers):04}", together)
        finally:
            self._vhosts.put(vhost)
        self._report(row)
        return row

    def _play_together(self, pool: ThreadPoolExecutor, cells: Sequence[Cell], fault: str) -> list[Row]:
        """Play cells that the same fault of the broker hits at the same moment."""
        together = Rendezvous()
        futures = [pool.submit(self._play, cell, together) for cell in cells]
        limit = time.monotonic() + MEETING_S
        for _ in cells:  # a cell that never comes to its step has failed by then, and the others need not wait
            while not together.arrived.acquire(timeout=0.1):
                if time.monotonic() > limit or all(future.done() for future in futures):
                    break
        broker = self._stage.broker
        broker.stop(hard=True)
        together.down.set()
        time.sleep(DOWN_S)
        if fault == "broker-wiped":
            broker.lose_data()
        broker.start()
        together.up.set()
        return [future.result() for future in futures]


@contextlib.contextmanager
def matrix(report: Report, width: int = SIDE_BY_SIDE) -> Iterator[Matrix]:
    """A stage of its own, which is gone when the block ends."""
    vhosts = [f"cell{number:02}" for number in range(width)]
    shm = Path("/dev/shm")
    with (
        private_broker(vhosts=vhosts) as broker,
        tempfile.TemporaryDirectory(prefix="matrix-", dir=shm if shm.is_dir() else None) as folder,
        ForkServer() as server,
        Wires() as wires,
        Listing(broker) as listing,
        contextlib.closing(Hall(Path(folder))) as hall,
    ):
        yield Matrix(Stage(broker, server, wires, hall, listing), Path(folder), vhosts, report)


class Progress:
    """Says how far it is, and how each failed cell can be played again."""

    def __init__(self, count: int, say: Callable[[str], None], every: int = 50) -> None:
        self._count, self._say, self._every = count, say, every
        self._verdicts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._begun = time.monotonic()

    def __call__(self, row: Row) -> None:
        """A cell was played."""
        with self._lock:
            self._verdicts[row.verdict] += 1
            done = sum(self._verdicts.values())
            if row.verdict == "failed":
                self._say(f"FAILED {row.cell}: {row.why}\n  told: {row.told}; {row.outcome}\n  {again(row.cell)}")
            if done % self._every == 0 or done == self._count:
                counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(self._verdicts.items()))
                self._say(f"{done} of {self._count} cells after {time.monotonic() - self._begun:.0f} s: {counts}")


def again(cell: Cell) -> str:
    """The command that plays a cell again."""
    return (
        "python -m aetherscale_testing.faults matrix"
        f" --scenario {cell.scenario} --step {cell.step} --when {cell.when} --fault {cell.fault} --verbose"
    )
