"""How long 200 agents take to consume again after their broker was killed: `python bench/recovery.py`.

All run on this machine, on a private RabbitMQ: real agents over a fake hypervisor, each with its own two connections.
Prints a line per run and medians; `--out FILE` writes all of it as JSON (see docs/benchmarks.md).
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[1:1] = [str(ROOT / "testing")]

from aetherscale_testing.broker import private_broker  # noqa: E402
from aetherscale_testing.forkserver import ForkServer  # noqa: E402
from aetherscale_testing.recovery import Herd, Recovery, count_calls  # noqa: E402

FIGURES = ("boot", "half", "hosts", "creates", "answers", "consuming", "peak", "planned_peak", "refused")
CPU = ("agents_cpu", "broker_cpu", "busy_cores")


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--vms", type=int, default=3, help="of each agent")
    parser.add_argument("--down", type=float, nargs="*", default=[5, 30], help="seconds that the broker is down")
    parser.add_argument("--wiped", type=float, nargs="*", default=[5], help="the same, and it comes back empty")
    parser.add_argument("--runs", type=int, default=5, help="of each")
    parser.add_argument("--label", default="now", help="under which these runs stand in the file")
    parser.add_argument("--out", type=Path, help="JSON file; runs under other labels in it are kept")
    options = parser.parse_args()
    kinds = [(down, False) for down in options.down] + [(down, True) for down in options.wiped]
    runs: list[Recovery] = []
    shm = Path("/dev/shm")
    with (
        private_broker() as broker,
        tempfile.TemporaryDirectory(prefix="herd-", dir=shm if shm.is_dir() else None) as folder,
        ForkServer() as server,
    ):
        calls = count_calls(broker, Path(folder))
        print(f"an agent that connects calls the broker {calls} times, one after the other", flush=True)
        herd = Herd(broker, server, Path(folder), options.agents, options.vms)
        try:
            herd.start()
            for down, wiped in kinds * options.runs:
                runs.append(herd.recover(down, wiped=wiped))
                print(line(runs[-1]), flush=True)
                if options.out:
                    write(options.out, options.label, calls, runs)
        finally:
            herd.stop()
    print("\n".join(f"median of {len(some)}: {summary(some)}" for some in grouped(runs)))


def line(run: Recovery) -> str:
    """One run, for people."""
    kind = "wiped" if run.wiped else "killed"
    figures = ", ".join(f"{name} {getattr(run, name)}" for name in (*FIGURES, *CPU))
    return f"{run.agents} agents, broker {kind}, down {run.down:.0f} s: {figures}"


def grouped(runs: Sequence[Recovery]) -> list[list[Recovery]]:
    """Runs of the same kind together."""
    kinds = dict.fromkeys((run.down, run.wiped) for run in runs)
    return [[run for run in runs if (run.down, run.wiped) == kind] for kind in kinds]


def summary(runs: Sequence[Recovery]) -> dict[str, object]:
    """Median, lowest and highest of each figure."""
    table: dict[str, object] = {"down": runs[0].down, "wiped": runs[0].wiped, "runs": len(runs)}
    for name in (*FIGURES, *CPU):
        values = [getattr(run, name) for run in runs]
        table[name] = [round(statistics.median(values), 2), min(values), max(values)]
    return table


def write(out: Path, label: str, calls: dict[str, int], runs: Sequence[Recovery]) -> None:
    """Put these runs into the file, in place of those under the same label."""
    known = json.loads(out.read_text()) if out.exists() else {}
    known[label] = {
        "machine": f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        "calls": calls,
        "summary": [summary(some) for some in grouped(runs)],
        "runs": [run.as_json() for run in runs],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
