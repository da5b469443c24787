"""Run on a host as root: the command line of every process that was there for a while, until stdin ends.

    python3 -I -c "$(cat onlooker.py)"

It says `looking`, and at its end a list in JSON. Standard library only.
"""

import json
import os
import select
import sys
from collections.abc import Iterator

EVERY_S = 0.02


def look() -> Iterator[str]:
    """The command line of each process, its words a space apart."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    yield file.read().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # it ended meanwhile


def run() -> None:
    """Look until nobody wants it any more."""
    print("looking", flush=True)
    seen: set[str] = set()
    while not select.select([sys.stdin], [], [], EVERY_S)[0]:
        seen.update(look())
    json.dump(sorted(seen), sys.stdout)


if __name__ == "__main__":
    run()
