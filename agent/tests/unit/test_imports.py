"""What the agent's process loads, and what it does not."""

import os
import subprocess
import sys

import pytest

from aetherscale_agent import ABSENT, UNUSED


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The modules of an agent as its command starts it, once its hypervisor is there."""
    code = (
        "import sys; sys.argv = ['aetherscale-agent', '--version']\n"
        "import aetherscale_agent\n"
        "try: aetherscale_agent.run()\n"
        "except SystemExit: pass\n"
        "import aetherscale_agent.hypervisor.qemu\n"
        "print(*[name for name, module in sys.modules.items() if getattr(module, '__spec__', None)])"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_it_loads_none_of_what_it_never_uses(loaded: set[str]) -> None:
    """On every host, and for ever."""
    others = {"_bz2", "_lzma", "typing_extensions", "importlib.metadata", "yaml", "http", "email", "multiprocessing"}
    assert not loaded & {*UNUSED, *ABSENT, *others}


def test_it_is_ready_for_the_first_create_before_it_is_asked(loaded: set[str]) -> None:
    """What only a create needs is loaded and counted from the beginning, and a broken one fails the roll-out."""
    assert {"pycdlib", "qemu.qmp", "dbus_fast.aio", "pika.adapters.asyncio_connection", "ssl"} <= loaded
