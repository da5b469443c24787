"""What every benchmark's facts begin with: what was measured, when, how often, and on which machine."""

import os
import platform
import time
from pathlib import Path
from typing import Any

from aetherscale_bench.timing import run

REPOSITORY = Path(__file__).resolve().parents[2]
WRITTEN = (":!bench/results", ":!docs/benchmarks", ":!docs/benchmarks.md")
"""What benchmarks themselves write: a run leaves the tree that the next one measures as it was."""


def machine(runs: int) -> dict[str, Any]:
    """Asked before anything is measured: the load is the one that was there already."""
    return {
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "runs": runs,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load before": round(os.getloadavg()[0], 2),
    }


def commit() -> str:
    """The commit that is measured, with `+changes` when the tree is not that commit's; "unknown" in no clone."""
    git = ("git", "-c", f"safe.directory={REPOSITORY}", "-C", str(REPOSITORY))
    try:
        name = run([*git, "rev-parse", "--short", "HEAD"]).strip()
        changed = run([*git, "status", "--porcelain", "--", ".", *WRITTEN])
    except (OSError, RuntimeError):
        return "unknown"
    return f"{name}+changes" if changed else name
