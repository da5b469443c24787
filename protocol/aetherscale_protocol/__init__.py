"""What the agent and the CLI both speak: commands, answers, names, and the broker's topology.

This package is the whole contract. It imports neither the agent nor the CLI.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("aetherscale")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
