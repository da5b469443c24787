"""How long commands take on a fleet that is up: `python bench/commands.py --context FILE` (see docs/benchmarks.md).

Prints medians in milliseconds, with the lowest and highest of the runs. `create-vm, publish to answer` is measured by
a client that is connected already; the agent answers when QEMU runs the guest. `whole process` is what a user waits.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "testing"), str(ROOT / "lab")]

from aetherscale_testing.client import SeedClient, parameters_of  # noqa: E402

Action = Callable[[], object]
PARTIAL = 4
"""The CLI's exit code when hosts are missing: to be measured, too, with one switched off."""
CLI = Path(sys.executable).with_name("aetherscale-cli")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=Path, required=True, help="the CLI's context file")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--image", default="ubuntu_base")
    parser.add_argument("--only", default="", help="only what has this text in its name")
    options = parser.parse_args()
    os.environ["XDG_CONFIG_HOME"] = str(options.context.absolute().parents[2])
    os.environ["AETHERSCALE_CONTEXT"] = options.context.stem
    broker = tomllib.loads(options.context.read_text())["broker"]
    broker |= {key: str(options.context.parent / name) for key, name in broker.items() if key.endswith("_file")}
    with SeedClient(parameters=parameters_of(broker, heartbeat=600)) as client:
        for what, action, after in measurements(client, options.image):
            if options.only in what:
                report(what, options.runs, action, after)


def measurements(client: SeedClient, image: str) -> Iterator[tuple[str, Action, Action]]:
    """What is measured: its name, what is timed, and what is done untimed after each run."""
    made: list[str] = []

    def nothing() -> None:
        pass

    def delete() -> None:
        cli("delete-vm", made.pop())

    yield "list-vms, whole process", lambda: cli("list-vms", codes=(0, PARTIAL)), nothing
    yield "show-vm of an unknown id, whole process", lambda: cli("show-vm", "zzzzzzzz", codes=(1,)), nothing
    yield "list-vms, publish to last answer", lambda: client.ask("list-vms", client.agents_alive()), nothing
    yield "create-vm, publish to answer", lambda: made.append(create(client, image)), delete
    yield "create-vm, whole process", lambda: made.append(create_by_cli(image)), delete
    yield "python -c pass", lambda: python("pass"), nothing
    yield "python -c 'import pika'", lambda: python("import pika"), nothing


def python(program: str) -> None:
    """Run a Python process, for scale."""
    subprocess.run([sys.executable, "-c", program], check=True)


def create(client: SeedClient, image: str) -> str:
    """Create a VM; its id."""
    (answer,) = client.ask("create-vm", 1, image=image, memory=128, disk=1)
    vm_id: str = answer["response"]["vm-id"]
    return vm_id


def create_by_cli(image: str) -> str:
    """Create a VM with the CLI; its id."""
    (answer,) = json.loads(cli("create-vm", "--image", image, "--memory", "128M", "--disk", "1G"))
    vm_id: str = answer["response"]["vm-id"]
    return vm_id


def cli(*arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    """What the CLI prints; it must end with one of these exit codes, or what was timed is not what was meant."""
    done = subprocess.run([CLI, *arguments], capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        sys.exit(f"error: aetherscale-cli {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def report(what: str, runs: int, action: Action, after: Action) -> None:
    """Time `runs` runs of an action, after one that does not count; `after` each, untimed, what it left is removed."""
    times = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        action()
        times.append((time.perf_counter() - begin) * 1000)
        after()
    del times[0]
    print(
        f"{what:40} median {statistics.median(times):6.1f}   min {min(times):6.1f}   max {max(times):6.1f} ms",
        flush=True,
    )


if __name__ == "__main__":
    main()
