"""A shell on a host of the lab that times what it does there (see `host_side`)."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aetherscale_bench import host_side
from aetherscale_bench.fleet import Fleet

PYTHON = "/opt/aetherscale/current/bin/python"
PROGRAM = "/run/aetherscale-bench.py"
Step = Sequence[str]
Chain = Sequence[Step]


class OnHost:
    """Steps on one host."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def do(self, *steps: Step | Sequence[str | Chain]) -> list[Any]:
        """Do them one after the other; what each step came to: ms, but for `told`.

        :raise RuntimeError: when one fails.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(steps) + "\n")
        self._process.stdin.flush()
        answer: list[Any] = json.loads(self._process.stdout.readline() or '["the host is gone"]')
        if len(answer) != len(steps) or any(isinstance(one, str) for one in answer):
            raise RuntimeError(f"{steps}: {answer}")
        return answer

    def ms(self, *steps: Step) -> float:
        """How long they took together, in ms."""
        return float(sum(self.do(*steps)))

    def each_ms(self, chains: Sequence[Chain]) -> list[float]:
        """Do these lists of steps at once; how many ms after their common beginning each was done."""
        (times,) = self.do(["each", *chains])
        return [float(one) for one in times]


@contextmanager
def on_host(fleet: Fleet, host: str) -> Iterator[OnHost]:
    """A shell on a host, that ends with the block."""
    fleet.lab.run(host, ["sh", "-c", f"cat >{PROGRAM}"], stdin=Path(host_side.__file__).read_text())
    argv = fleet.lab.ssh_command(host, [PYTHON, PROGRAM])
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield OnHost(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        fleet.run(host, "rm", "-f", PROGRAM)
