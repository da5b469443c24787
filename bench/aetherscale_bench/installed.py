"""The CLI as its users have it: installed from its wheel, in a virtual environment with nothing else.

The tree's own virtual environment would be measured for what no user has: an import hook for editable packages, and
all that linters and Ansible brought.
"""

import json
import shutil
import sys
import venv
from pathlib import Path

from aetherscale_bench.timing import run

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / ".cache" / "bench" / "cli"
CLI = str(FOLDER / "bin" / "aetherscale-cli")
PYTHON = str(FOLDER / "bin" / "python3")
FLOOR = "python3 importing pika and ssl"
"""What no client of RabbitMQ over TLS in Python is without."""


def floor() -> None:
    """A process that does that."""
    run([PYTHON, "-c", "import pika, ssl"])


def install() -> None:
    """Install it, anew, from the wheels that `make wheelhouse` has built of the tree as it is."""
    told = run([sys.executable, str(REPOSITORY / "ansible" / "wheelhouse.py"), "build"])
    wheels = Path(json.loads(told)["path"])
    shutil.rmtree(FOLDER, ignore_errors=True)
    venv.create(FOLDER, symlinks=True)
    (pip,) = wheels.glob("pip-*.whl")
    quiet = ("--quiet", "--disable-pip-version-check", "--root-user-action", "ignore")
    run([PYTHON, str(pip / "pip"), "install", *quiet, "--no-index", "--find-links", str(wheels), "aetherscale"])
