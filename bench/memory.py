"""What an agent takes of its host's memory: `python bench/memory.py`. One real agent over a fake hypervisor.

It is started as a program, not forked, so that its memory is its own; VMs are in its journal when it starts. Prints
Rss and Pss in MiB from the kernel's smaps_rollup: idle, after list-vms, after VMs were created and deleted.
"""

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[1:1] = [str(ROOT / "testing")]

from aetherscale_testing.broker import private_broker  # noqa: E402
from aetherscale_testing.client import SeedClient  # noqa: E402
from aetherscale_testing.fleet import fleet  # noqa: E402
from aetherscale_testing.memory import memory_of  # noqa: E402
from aetherscale_testing.recovery import give_vms  # noqa: E402


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, nargs="*", default=[0, 100, 1000])
    parser.add_argument("--lists", type=int, default=1000, help="how often list-vms is asked")
    parser.add_argument("--changes", type=int, default=200, help="how many VMs are created and deleted")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    rows = []
    with private_broker() as broker, tempfile.TemporaryDirectory(prefix="memory-") as folder:
        for vms in options.vms:
            with fleet(broker, Path(folder) / str(vms)) as agents:
                give_vms(agents.folder / "h1", vms)
                room = {"cpus": 10_000, "memory": 1 << 24, "disk": 1 << 20}
                agent = agents.add("h1", "a", keep=True, heartbeat=5, **room)
                agents.wait_ready()
                assert agent.process is not None
                pid = agent.process.pid
                row: dict[str, object] = {"vms": vms, "idle": memory_of(pid)}
                with SeedClient(broker.address) as client:
                    for _ in range(options.lists):
                        (answer,) = client.ask("list-vms", 1)
                        assert len(answer["response"]) == vms
                    row[f"after {options.lists} list-vms"] = memory_of(pid)
                    for _ in range(options.changes):
                        (made,) = client.ask("create-vm", 1, image="a", memory=128, disk=1)
                        (gone,) = client.ask("delete-vm", 1, vm_id=made["response"]["vm-id"])
                        assert gone["response"]["status"] == "deleted"
                    row[f"and {options.changes} created and deleted"] = memory_of(pid)
                rows.append(row)
                print(json.dumps(row), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        table = {
            "machine": f"{platform.system()}, Python {platform.python_version()}",
            "MiB": rows,
        }
        options.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
