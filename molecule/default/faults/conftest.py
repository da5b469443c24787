"""One lab for all fault tests: its agents under orders, every host with the tiny image."""

from collections.abc import Iterator

import pytest

from aetherscale_testing.faults.lab_world import LabWorld


@pytest.fixture(scope="session")
def world() -> Iterator[LabWorld]:
    with LabWorld().installed() as world:
        yield world
