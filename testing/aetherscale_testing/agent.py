"""The real agent over a hypervisor in memory, as a process: `python -m aetherscale_testing.agent '<settings>'`.

Settings (JSON): those of the agent's configuration, and `images` (names), `cpus`, `memory` (MiB), `disk` (GiB),
`deaf` (true: every guest ignores the power button), `shutdown` and `build` (seconds), `name` (the host's name, if
it is not the process's own), `keep` (true: disks and running VMs outlive the agent, in the folder `vms` of its state
directory), `faults` (the folder of a fault's cell: see `faults.machine`), `muster` (seconds that it waits for its
fleet when the broker is new), `guest-ports` (ports of the loopback, by the port of every guest that each is),
`condition` (what the host finds when it looks at itself, by `ports.Condition`'s names), `checksums` (what is known of
images' checksums, by name: `wrong`, `pending`, …), `version` (what it says its version is), `notes` (the file in which
it notes what it asks of its host: see `counting`).
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from aetherscale_agent import handlers, main, session
from aetherscale_agent.config import AgentConfig, OperatorRights, load_config
from aetherscale_agent.ports import Checksum, HostResources
from aetherscale_protocol import __version__
from aetherscale_protocol.settings import BrokerSettings
from aetherscale_testing.fakes import Delays, FakeImages
from aetherscale_testing.faults.machine import FaultyHypervisor, Machine


class Deaf(set[str]):
    """Every VM id there may be."""

    def __contains__(self, _vm_id: object) -> bool:
        return True


def run() -> None:
    """Start the agent that the first argument describes."""
    run_with(json.loads(sys.argv[1]))


def run_with(settings: dict[str, Any]) -> None:
    """Be the agent that these settings describe, until it is told to stop."""
    if "notes" in settings:
        from aetherscale_testing import counting  # the real hypervisor's libraries come with it

        counting.install(Path(settings.pop("notes")))
    serve = prepare(settings)
    main._set_up_logging("debug")
    asyncio.run(serve())


def prepare(settings: dict[str, Any]) -> Callable[[], Coroutine[Any, Any, None]]:
    """The agent that these settings describe: to be awaited, in an event loop which it may share with others."""
    images = FakeImages(*settings.pop("images"))
    resources = HostResources(settings.pop("cpus", 64), settings.pop("memory", 16384), settings.pop("disk", 1000))
    delays = Delays(build=settings.pop("build", 0), shutdown=settings.pop("shutdown", 0))
    folder = Path(settings["state_dir"], "vms") if settings.pop("keep", False) else None
    settings["host"] = settings.pop("name", settings["host"])
    cell = settings.pop("faults", None)
    machine = Machine(settings["host"], Path(settings["state_dir"]), images, Path(cell) if cell else None)
    hypervisor = FaultyHypervisor(machine, total=resources, images=images, delays=delays, folder=folder)
    if settings.pop("deaf", False):
        hypervisor.deaf = Deaf()
    ports = settings.pop("guest-ports", {})  # JSON has no numbers for keys
    hypervisor.state = replace(hypervisor.state, **settings.pop("condition", {}))
    images.known = {name: Checksum(state) for name, state in settings.pop("checksums", {}).items()}
    vars(handlers)["__version__"] = settings.pop("version", __version__)
    hypervisor.guest_ports = {int(guest): loopback for guest, loopback in ports.items()}
    session.MUSTER_S = settings.pop("muster", 0.3)
    if "broker" in settings:
        settings["broker"] = BrokerSettings(**settings["broker"])
    if settings.get("operators") is not None:
        settings["operators"] = msgspec.convert(settings["operators"], dict[str, OperatorRights])
    known = {name: settings[name] for name in AgentConfig.__struct_fields__ if name in settings}
    base = load_config(None, os.environ)
    config = msgspec.structs.replace(base, **{"heartbeat": 1, "run_dir": f"{settings['state_dir']}/run", **known})
    main._lock(Path(config.state_dir))
    return lambda: main.serve_over(config, hypervisor, images, clock=machine.clock)


if __name__ == "__main__":
    run()
