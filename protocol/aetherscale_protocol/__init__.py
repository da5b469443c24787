"""What the agent and the CLI both speak: commands, answers, names, and the broker's topology.

This package is the whole contract. It imports neither the agent nor the CLI.
"""

__version__ = "0.1.0"
"""As in pyproject.toml. Not looked up: importlib.metadata costs 1 MiB, and each call of the CLI that asks 12 ms."""
