"""How long the CLI takes to say anything. No broker, no lab: `--help`, and completion of a command's name."""

import sys

from aetherscale_bench.figures import Result, Target, machine
from aetherscale_bench.fleet import CLI
from aetherscale_bench.timing import run, side_by_side

LIMIT_MS = 60


def measure(runs: int) -> Result:
    """ms of whole processes."""
    facts = machine()
    samples = side_by_side(
        {
            "python3 -c pass": lambda: run([sys.executable, "-c", "pass"]),
            "aetherscale-cli --version": lambda: run([CLI, "--version"]),
            "aetherscale-cli --help": lambda: run([CLI, "--help"]),
            "aetherscale-cli create-vm --help": lambda: run([CLI, "create-vm", "--help"]),
        },
        runs,
    )
    targets = [Target(f"{one.name}: at most {LIMIT_MS} ms", one.median, LIMIT_MS) for one in samples[1:]]
    return Result("startup", tuple(samples), tuple(targets), facts)
