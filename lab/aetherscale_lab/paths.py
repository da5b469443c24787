"""Where the lab keeps things on this machine."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """Things that are built once and shared by all labs; safe to delete while no lab runs."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "aetherscale-lab"


def state_root() -> Path:
    """Parent of the directories of running labs."""
    return Path(os.environ.get("AETHERSCALE_LAB_STATE") or "/var/lib/aetherscale-lab")


def isolated_runs() -> Path:
    """Records of isolated runs, so that the remains of a killed one can be found."""
    return Path("/run/aetherscale-lab")


def inside_isolated_run() -> bool:
    """True in a process started by `isolated`: there is no network and nothing can be built."""
    return bool(os.environ.get("AETHERSCALE_LAB_ISOLATED"))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; waits for whoever has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
