"""The agent: runs on every compute host, and runs its VMs."""

from aetherscale_protocol.sparing import spare

UNUSED = (
    "msgspec.inspect",
    "msgspec._json_schema",
    "pika.adapters.blocking_connection",
    "pika.adapters.select_connection",
)
"""Modules that msgspec and pika import unasked, and nothing here uses: most of a MiB, on every host and for ever."""

ABSENT = ("bz2", "lzma")
"""What shutil looks for, to unpack archives: a quarter of a MiB."""


def run() -> None:
    """The command `aetherscale-agent`."""
    spare(*UNUSED, absent=ABSENT)
    from aetherscale_agent import main

    main.run()
