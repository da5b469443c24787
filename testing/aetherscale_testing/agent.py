"""The real agent over a hypervisor in memory, as a process: `python -m aetherscale_testing.agent '<settings>'`.

Settings (JSON): those of the agent's configuration, and `images` (names), `cpus`, `memory` (MiB), `disk` (GiB),
`deaf` (true: every guest ignores the power button), `shutdown` and `build` (seconds), `name` (the host's name, if
it is not the process's own), `muster` (seconds that it waits for its fleet when the broker is new).
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import msgspec

from aetherscale_agent import main, session
from aetherscale_agent.config import AgentConfig, load_config
from aetherscale_agent.ports import HostResources
from aetherscale_protocol.settings import BrokerSettings
from aetherscale_testing.fakes import Delays, FakeHypervisor, FakeImages


class Deaf(set[str]):
    """Every VM id there may be."""

    def __contains__(self, _vm_id: object) -> bool:
        return True


def run() -> None:
    """Start the agent that the first argument describes."""
    settings = json.loads(sys.argv[1])
    images = FakeImages(*settings.pop("images"))
    resources = HostResources(settings.pop("cpus", 64), settings.pop("memory", 16384), settings.pop("disk", 1000))
    delays = Delays(build=settings.pop("build", 0), shutdown=settings.pop("shutdown", 0))
    hypervisor = FakeHypervisor(total=resources, images=images, delays=delays)
    if settings.pop("deaf", False):
        hypervisor.deaf = Deaf()
    session.MUSTER_S = settings.pop("muster", 0.3)
    settings["host"] = settings.pop("name", settings["host"])
    if "broker" in settings:
        settings["broker"] = BrokerSettings(**settings["broker"])
    known = {name: settings[name] for name in AgentConfig.__struct_fields__ if name in settings}
    base = load_config(None, os.environ)
    config = msgspec.structs.replace(base, **{"heartbeat": 1, "run_dir": f"{settings['state_dir']}/run", **known})
    main._set_up_logging("debug")
    main._lock(Path(config.state_dir))
    asyncio.run(main.serve_over(config, hypervisor, images))


if __name__ == "__main__":
    run()
