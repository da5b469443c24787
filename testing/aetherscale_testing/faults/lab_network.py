"""Faults at the steps of a host's `vm-net`, which is root's: it is killed, or stands still, or what it calls fails.

A program that fails is found before the real one, by the path of units' commands; it tells by its parent whether that
is `vm-net`, and at which of its works.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aetherscale_testing.faults.lab_courses import Cell
from aetherscale_testing.faults.lab_world import LabWorld, Order
from aetherscale_testing.faults.table import VM_NET_STEPS

_FOLDER = "/run/aetherscale-vm-net"
_PLACE = "/usr/local/sbin"

_VERBS = {"up": "up", "down": "(down|tidy)"}
"""By a step's first word: what `vm-net` was asked for, as its command line has it. `tidy` does a `down` again."""

_DO = {
    ("kill", "before"): "kill -s KILL $PPID; exit 1",
    ("kill", "after"): '{program} "$@"; kill -s KILL $PPID; exit 1',
    ("freeze", "before"): "exec sleep 600",
    ("freeze", "after"): '{program} "$@"; exec sleep 600',
    ("fail", "before"): "echo planted >&2; exit 1",
}

_PROGRAM = """#!/bin/sh
# A fault at a call of vm-net's, planted by a test.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
armed={folder}/{program}.armed
if test -e $armed && tr '\\0' ' ' </proc/$PPID/cmdline | grep -Eq 'vm-net {verb} '; then
  touch {folder}/{program}.struck
  {disarm}
  {do}
fi
exec {program} "$@"
"""


def finalize_program(cell: Cell) -> str:
    """What is found in the place of the program that `vm-net` calls at this step. A fault that is none of the program's
    own falls once."""
    program, _ = VM_NET_STEPS[cell.step]
    verb, do = _VERBS[cell.step.partition(".")[0]], _DO[cell.do, cell.when].format(program=program)
    disarm = ":" if cell.do == "fail" else "rm $armed"
    return _PROGRAM.format(folder=_FOLDER, program=program, verb=verb, disarm=disarm, do=do)


@contextmanager
def planted(world: LabWorld, *cells: Cell) -> Iterator[list[Order]]:
    """Faults at the next of these steps on their hosts, one for each program of a host; each must have fallen when the
    block ends."""
    plant = f"mkdir -p {_FOLDER} {_PLACE}; cat >{_PLACE}/$1; chmod 755 {_PLACE}/$1; touch {_FOLDER}/$1.armed"
    try:
        for cell in cells:
            world.shell(cell.host, plant, VM_NET_STEPS[cell.step][0], stdin=finalize_program(cell))
        orders = [
            world.await_file(cell.host, f"{_FOLDER}/{VM_NET_STEPS[cell.step][0]}.struck", f"{cell.when} {cell.step}")
            for cell in cells
        ]
        yield orders
        for order in orders:
            order.wait(5.0)
    finally:
        for host in {cell.host for cell in cells}:
            world.shell(host, f"rm -rf {_FOLDER}; cd {_PLACE}; rm -f {programs(cells, host)}")


def programs(cells: Sequence[Cell], host: str) -> str:
    """Names of what was planted on a host."""
    return " ".join(sorted({VM_NET_STEPS[cell.step][0] for cell in cells if cell.host == host}))
