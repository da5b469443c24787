"""Run on a host in place of aetherscale-agent, by the release's own Python: the agent, but it obeys orders.

An order is a file in `orders`: {"step", "when", "do", "vm", "seconds"}. The agent that comes to that step moves it to
`taken`, so that it is obeyed once, and then kills or freezes itself. `clock` holds by how many seconds its clock is
off.
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

FOLDER = Path("/run/aetherscale-faults")
ORDERS, TAKEN, CLOCK = FOLDER / "orders", FOLDER / "taken", FOLDER / "clock"


def obey(when: str, step: str, vm_id: str) -> None:
    """Obey the first order for this moment, if there is one."""
    for path in sorted(ORDERS.glob("*.json")):
        order = json.loads(path.read_text())
        if (order["when"], order["step"]) == (when, step) and order.get("vm", vm_id) == vm_id:
            path.rename(TAKEN / path.name)
            stop(order["do"], order.get("seconds", 0))


def stop(how: str, seconds: float) -> None:
    """Kill this process as a crash would, or freeze it for so many seconds."""
    if how == "freeze":
        subprocess.Popen(["/bin/sh", "-c", f"sleep {seconds}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP if how == "freeze" else signal.SIGKILL)


def set_clock(seconds: float) -> None:
    """Put the agent's clock off: before it is imported, because it keeps the function."""
    right = time.time
    time.time = lambda: right() + seconds


def run() -> None:
    """The agent, under orders."""
    if CLOCK.exists():
        set_clock(float(CLOCK.read_text()))
    from aetherscale_agent import main, steps

    steps.watch(obey)
    main.run()


if __name__ == "__main__":
    run()
