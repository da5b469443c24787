"""How fast bytes go through the broker, and what commands feel of it: `python bench/streams.py`.

It starts a broker and an agent of its own on this machine; the guest's ports are servers on the loopback, and the CLI
is a process. Prints medians of MB/s in both directions, and how long list-vms takes while bytes flow and while none do.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / part) for part in ("testing", "lab", "protocol", "agent", "cli")]

from aetherscale_testing import peers  # noqa: E402
from aetherscale_testing.broker import private_broker  # noqa: E402
from aetherscale_testing.client import SeedClient  # noqa: E402
from aetherscale_testing.fleet import fleet  # noqa: E402

MB = 1_000_000
CLI = [sys.executable, "-c", "from aetherscale_cli.main import run; run()"]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, default=200, help="MB for each run")
    options = parser.parse_args()
    data = os.urandom(options.size * MB)
    with (
        tempfile.TemporaryDirectory() as folder,
        private_broker() as broker,
        fleet(broker, Path(folder)) as agents,
        peers.listening(peers.give(data)) as giver,
        peers.listening(peers.take) as taker,
        SeedClient(broker.address) as client,
    ):
        agents.add("h1", "tiny", **{"guest-ports": {"1": giver.port, "2": taker.port}})
        agents.wait_ready()
        (made,) = client.ask("create-vm", 1, image="tiny")
        vm_id = made["response"]["vm-id"]
        environ = {**os.environ, "RABBITMQ_HOST": broker.address, "HOME": folder, "PYTHONPATH": ":".join(sys.path)}
        Path(folder, "data").write_bytes(data)
        quiet = ask(client, 100)
        for what, port, peer in (("from the guest", 1, giver), ("to the guest", 2, taker)):

            def run(port: int = port, peer: peers.Peer = peer) -> float:
                return transfer(environ, vm_id, port, Path(folder), peer)

            rates = [run() for _ in range(options.runs)]
            busy = []
            for _ in range(options.runs):
                work = threading.Thread(target=run)
                work.start()
                time.sleep(0.5)  # until it flows
                while work.is_alive():
                    busy += ask(client, 1)
                work.join()
            print(f"tunnel {what:15} median {statistics.median(rates):6.1f} MB/s   min {min(rates):6.1f}", flush=True)
            report(f"list-vms meanwhile, {what}", busy)
        report("list-vms, nothing else going on", quiet)


def transfer(environ: dict[str, str], vm_id: str, port: int, folder: Path, peer: peers.Peer) -> float:
    """One run through the CLI; MB/s, from the guest's accepting to its last byte."""
    peer.done.clear()
    with (folder / "data").open("rb") as source:
        stdin = source if port == 2 else subprocess.DEVNULL
        subprocess.run(
            [*CLI, "tunnel-vm", vm_id, str(port)], env=environ, stdin=stdin, stdout=subprocess.DEVNULL, check=True
        )
    peer.done.wait(10)
    return peer.count / MB / peer.seconds


def ask(client: SeedClient, times: int) -> list[float]:
    """How long list-vms takes, from publish to answer, in ms."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        client.ask("list-vms", 1)
        found.append((time.perf_counter() - begin) * 1000)
    return found


def report(what: str, times: list[float]) -> None:
    """Print one row."""
    print(f"{what:38} median {statistics.median(times):6.1f} ms   max {max(times):6.1f}   n {len(times)}", flush=True)


if __name__ == "__main__":
    main()
