"""One lab for all fault tests: its agents under orders, every host with the tiny image."""

from collections.abc import Iterator

import pytest

from aetherscale_testing.faults.lab_world import LabWorld
from aetherscale_testing.rollout import Rollout


@pytest.fixture(scope="session")
def world() -> Iterator[LabWorld]:
    rollout = Rollout()
    if left := rollout.cli("list-vms", "-o", "name").stdout.split():
        rollout.cli("delete-vm", *left)  # of a test that failed before: what is looked for here is left by faults
    with LabWorld().installed() as world:
        yield world
