"""The storm: clients command VMs without pause while faults fall at random; then the reckoning.

    python -m aetherscale_testing.faults.storm --minutes 2 --seed 7      (as root; `make chaos` calls it isolated)

It makes a lab, rolls site.yml out onto it, rages, lets the system settle without help, and holds what hosts and broker
have against what clients were told. Exit code 1: something was lost, doubled, left behind or told wrong.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from aetherscale_testing.faults.storm_book import Book
from aetherscale_testing.faults.storm_clients import Client
from aetherscale_testing.faults.storm_faults import Weather
from aetherscale_testing.faults.storm_plan import draw_faults
from aetherscale_testing.faults.storm_stage import Stage
from aetherscale_testing.faults.storm_wire import CliLine, Line, WireLine, find_broker

Say = Callable[[str], None]


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
