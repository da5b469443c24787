"""A short storm on real hosts: clients command VMs without pause while faults fall at random; then the reckoning."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale_lab.lab import Lab
from aetherscale_testing.faults.storm import Force, blow, report, summarise
from aetherscale_testing.faults.storm_stage import Stage

testinfra_hosts = ["broker1"]  # once, not per host

FOLDER = Path(__file__).resolve().parents[3] / "build/storm"
FORCE = Force(seed=3, seconds=80, clients=5, slots=2, gap=5)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage(Lab(os.environ["AETHERSCALE_LAB"]))
    stage.prepare()
    yield stage
    stage.restore()


def test_a_storm_leaves_nothing_lost_doubled_or_behind(stage: Stage) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    figures = blow(stage, FORCE, FOLDER, print)
    report(figures)
    assert not figures["violations"], summarise(figures)
    assert figures["faults"] >= 8
    assert len(figures["faults_by_kind"]) >= 6
    assert figures["creates"] >= 20
    assert figures["creates_by_outcome"]["done"] >= 10
