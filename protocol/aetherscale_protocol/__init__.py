"""What the agent and the CLI both speak: commands, answers, names, and the broker's topology.

This package is the whole contract. It imports neither the agent nor the CLI.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """`__version__`, looked up when asked for: importlib.metadata would cost every CLI call 15 ms."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("aetherscale")
        except PackageNotFoundError:  # run from a source tree that was never installed
            return "0+unknown"
