"""The version is written twice."""

import tomllib
from pathlib import Path

from aetherscale_protocol import __version__


def test_it_is_the_projects() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert __version__ == project["version"]
