"""A fleet whose broker was killed is back soon after it, and does not come as a herd. `make bench` takes 200."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale_testing.broker import private_broker
from aetherscale_testing.forkserver import ForkServer
from aetherscale_testing.recovery import Herd

pytestmark = pytest.mark.broker

AGENTS = 40
BACK_S = 10.0
PEAK = AGENTS // 2  # within 100 ms; of a herd in step all come at once, with two connections each


@pytest.fixture
def herd(tmp_path: Path) -> Iterator[Herd]:
    with private_broker() as broker, ForkServer() as server:
        agents = Herd(broker, server, tmp_path, AGENTS)
        try:
            agents.start()
            yield agents
        finally:
            agents.stop()


def test_agents_are_back_soon_after_their_broker_and_not_all_at_once(herd: Herd) -> None:
    run = herd.recover(down=1)
    assert run.consuming < BACK_S, run
    assert run.accepted <= 2 * AGENTS + 1, run  # none had to come twice; one is the watcher's
    assert run.late_failures == 0, run
    assert 0 < run.planned_peak < PEAK, run
