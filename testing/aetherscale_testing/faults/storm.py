"""The storm: clients command VMs without pause while faults fall at random; then the reckoning.

    python -m aetherscale_testing.faults.storm --minutes 2 --seed 7      (as root; `make chaos` calls it isolated)

It makes a lab, rolls site.yml out onto it, rages, lets the system settle without help, and holds what hosts and broker
have against what clients were told. Exit code 1: something was lost, doubled, left behind or told wrong.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aetherscale_lab.errors import LabError
from aetherscale_testing.faults.checker import Kind
from aetherscale_testing.faults.storm_book import Book
from aetherscale_testing.faults.storm_clients import Client
from aetherscale_testing.faults.storm_faults import Weather
from aetherscale_testing.faults.storm_plan import BROKER, draw_faults
from aetherscale_testing.faults.storm_reckoning import Found, Say, find_claims, reckon
from aetherscale_testing.faults.storm_stage import REPOSITORY, Stage, set_stage
from aetherscale_testing.faults.storm_wire import CliLine, Line, WireLine, find_broker

LAB = "chaos"

RECORD = REPOSITORY / "docs/results/chaos.json"
LONG_CREATES, LONG_FAULTS = 1000, 100
"""From how many on a storm is long enough to be recorded."""

LOST = (Kind.LOST, Kind.DISK_MISSING, Kind.BINDING_MISSING)
DOUBLED = (Kind.DOUBLE, Kind.DONE_TWICE, Kind.BINDING_DOUBLE, Kind.PROCESSES_MANY)
TOLD_WRONG = (Kind.TOLD_BOTH, Kind.REFUSED_EXISTS, Kind.RESURRECTED, Kind.SHOULD_RUN, Kind.SHOULD_REST)


@dataclass(frozen=True)
class Force:
    """How hard a storm blows. `seconds` is its length, `gap` the mean time between faults."""

    seed: int
    seconds: float
    clients: int = 6
    slots: int = 3
    gap: float = 8.0


def rage(stage: Stage, force: Force, book: Book) -> dict[str, int]:
    """Let clients and faults loose for the storm's time; how many faults of each kind fell, all healed."""
    target = find_broker()

    def make_line(name: str) -> Line:
        number = int(name.split("-")[1])
        return CliLine(dict(os.environ)) if number == 0 else WireLine(target, f"storm {name}")

    stop = threading.Event()
    clients = [Client(n, force.seed, force.slots, make_line, book, stop) for n in range(force.clients)]
    weather = Weather(stage, draw_faults(force.seed, force.seconds, stage.hosts, force.gap), book)
    for client in clients:
        client.start()
    weather.begin()
    try:
        stop.wait(force.seconds)
    finally:
        weather.clear_up()
        stop.set()
        for client in clients:
            client.join()
    for client in clients:
        if client.error is not None:
            raise client.error
    return dict(sorted(weather.fallen.items()))


def blow(stage: Stage, force: Force, folder: Path, say: Say) -> dict[str, Any]:
    """A whole storm on a stage that was prepared: rage, reckon, and the figures. Logs go to `folder`."""
    book = Book(folder / "log.jsonl")
    try:
        old_claims = find_claims(stage)
        began = time.monotonic()
        fallen = rage(stage, force, book)
        raged = time.monotonic() - began
        say(f"raged for {raged:.0f} s: {sum(fallen.values())} faults, {sum(book.creates.values())} creates")
        found = reckon(stage, book, old_claims, say)
        figures = finalize_figures(stage, force, book, fallen, found, raged)
        (folder / "ledger.json").write_text(book.ledger().to_json())
        write_figures(folder / "figures.json", figures)
        if figures["violations"]:
            keep_journals(stage, folder)
        return figures
    finally:
        book.close()


def finalize_figures(
    stage: Stage, force: Force, book: Book, fallen: dict[str, int], found: Found, raged: float
) -> dict[str, Any]:
    """The storm in figures."""

    def count(*kinds: Kind) -> int:
        return sum(kind in kinds for kind in found.violations.values())

    creates = book.creates
    lost, doubled, told = count(*LOST), count(*DOUBLED), count(*TOLD_WRONG)
    return {
        "date": time.strftime("%F"),
        "commit": _find_commit(),
        "seed": force.seed,
        "minutes": round(raged / 60, 1),
        "hosts": len(stage.hosts),
        "clients": force.clients,
        "creates": sum(creates.values()),
        "creates_by_outcome": dict(sorted(creates.items())),
        "create_seconds": {"median": _quantile(book.latencies, 0.5), "p95": _quantile(book.latencies, 0.95)},
        "answers": book.counts,
        "faults": sum(fallen.values()),
        "faults_by_kind": fallen,
        "settle_seconds": round(found.settle_seconds, 1),
        "unknown_asked_again": found.unknown,
        "not_started_again": found.not_started_again,
        "lost": lost,
        "doubled": doubled,
        "left_behind": len(found.violations) - lost - doubled - told,
        "told_wrong": told + len(book.suspicions),
        "violations": [*found.violations, *book.suspicions],
    }


def _quantile(values: list[float], share: float) -> float | None:
    return round(values[int(len(values) * share)], 2) if values else None


def _find_commit() -> str:
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=REPOSITORY, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.stdout.strip()


def keep_journals(stage: Stage, folder: Path) -> None:
    """Keep all that a violation could be traced with."""
    for host in stage.everybody:
        journal = stage.shell(host, "journalctl", "--no-pager", "--output=short-iso-precise", check=False, timeout=120)
        (folder / f"{host}.journal").write_text(journal)
    log = stage.shell(BROKER, "sh", "-c", "cat /var/log/rabbitmq/*.log", check=False)
    (folder / f"{BROKER}.log").write_text(log)


SUMMARY = """
seed {seed}, {minutes} minutes, {hosts} hosts, {clients} clients, commit {commit}
  {creates} creates: {outcomes}
  {faults} faults: {kinds}
  create to answer: median {median} s, 95 % within {p95} s
  settled without help {settle_seconds} s after the last; {unknown_asked_again} unknown outcomes asked for again
  {failed} VMs ran and could not be started again after their hosts went down, as show-vm says
  lost {lost}, doubled {doubled}, left behind {left_behind}, told wrong {told_wrong}
"""


def summarise(figures: dict[str, Any]) -> str:
    """The figures for people."""
    words = {
        "outcomes": ", ".join(f"{count} {outcome}" for outcome, count in figures["creates_by_outcome"].items()),
        "kinds": ", ".join(f"{count} {kind}" for kind, count in figures["faults_by_kind"].items()),
        "failed": len(figures["not_started_again"]),
        **figures["create_seconds"],
    }
    lines = SUMMARY.format(**figures, **words)
    return lines + "".join(f"  VIOLATION {text}\n" for text in figures["violations"])


def report(figures: dict[str, Any]) -> None:
    """Write a short storm's figures down, if AETHERSCALE_RESULTS names a folder."""
    if folder := os.environ.get("AETHERSCALE_RESULTS"):
        write_figures(Path(folder) / "storm.json", figures)


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Write the figures to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")


def main() -> int:
    """Run a storm on a lab of its own; the exit code."""
    options = _parse(sys.argv[1:])
    folder = Path(options.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    force = Force(options.seed, options.minutes * 60, options.clients, gap=options.gap)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    try:
        figures = _storm_on_a_lab_of_its_own(force, folder, say)
    except LabError as error:
        print(f"error: {error}\nhint: {error.hint or ''}", file=sys.stderr)
        return 1
    if figures["creates"] >= LONG_CREATES and figures["faults"] >= LONG_FAULTS:
        write_figures(RECORD, figures)
    print(summarise(figures) + f"  log, ledger and journals: {folder}")
    return int(bool(figures["violations"]))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="storm", description="Clients and faults on the real lab; then a reckoning.")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long it rages (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what to draw it from (default: the time)")
    parser.add_argument("--clients", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--gap", type=float, default=8.0, help="mean seconds between faults (default: %(default)s)")
    parser.add_argument("--folder", default="build/chaos", help="for logs (default: %(default)s)")
    return parser.parse_args(arguments)


def _storm_on_a_lab_of_its_own(force: Force, folder: Path, say: Say) -> dict[str, Any]:
    os.umask(0o022)  # a host's files are made here, too
    with tempfile.TemporaryDirectory(prefix="aetherscale-chaos-") as scratch:
        os.environ |= {"XDG_CONFIG_HOME": f"{scratch}/config", "ANSIBLE_LOCAL_TEMP": f"{scratch}/ansible"}
        stage = set_stage(LAB, Path(scratch), say)
        try:
            stage.prepare()
            return blow(stage, force, folder, say)
        finally:
            stage.lab.down()
            say("the lab is gone")


if __name__ == "__main__":
    sys.exit(main())
