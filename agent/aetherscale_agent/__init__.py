"""The agent: runs on every compute host, and runs its VMs."""

from aetherscale_protocol.sparing import spare

UNUSED = (
    "msgspec.inspect",
    "msgspec._json_schema",
    "pika.adapters.blocking_connection",
    "pika.adapters.select_connection",
)
"""Modules that msgspec and pika import unasked, and nothing here uses: most of a MiB, on every host and for ever."""


def run() -> None:
    """The command `aetherscale-agent`."""
    spare(*UNUSED)
    from aetherscale_agent import main

    main.run()
