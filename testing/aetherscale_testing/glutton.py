"""Takes all it can get inside of a VM's cgroup: `python3 -I - PID cpu|memory|tasks SECONDS|MIB|COUNT < glutton.py`.

Run on a host as root, with the process id of the VM's QEMU: it is what a QEMU that was taken over could do, which is in
that cgroup as well. Standard library only. It prints what it got: seconds of processor time, MiB, threads.
"""

import os
import sys
import threading
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
BURNERS = 3
MIB = 1 << 20


def join(pid: str) -> None:
    """Move into all cgroups of a process, on cgroup v1 and v2."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        procs = CGROUPS / names.removeprefix("name=") / path.lstrip("/") / "cgroup.procs"
        if path != "/" and procs.exists():
            procs.write_text("0")


def burn(seconds: float) -> float:
    """Keep a few processors busy for so long; the processor time that was got for it."""
    end = time.monotonic() + seconds
    for _ in range(BURNERS):
        if os.fork() == 0:
            while time.monotonic() < end:
                pass
            os._exit(0)
    for _ in range(BURNERS):
        os.wait()
    return sum(os.times()[2:4])


def fill(mib: int) -> int:
    """Take so much memory, and rather die than see QEMU die for it."""
    Path("/proc/self/oom_score_adj").write_text("1000")
    taken = [bytearray(os.urandom(1) * MIB) for _ in range(mib)]
    return len(taken)


def start_threads(count: int) -> int:
    """Start so many threads, or as many as there may be."""
    threading.stack_size(256 << 10)
    over = threading.Event()
    threads = 0
    try:
        while threads < count:
            threading.Thread(target=over.wait, daemon=True).start()
            threads += 1
    except RuntimeError:
        pass
    over.set()
    return threads


if __name__ == "__main__":
    join(sys.argv[1])
    match sys.argv[2]:
        case "cpu":
            print(burn(float(sys.argv[3])))
        case "memory":
            print(fill(int(sys.argv[3])))
        case "tasks":
            print(start_threads(int(sys.argv[3])))
