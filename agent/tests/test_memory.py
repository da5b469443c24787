"""An agent is small: it holds a hundred VMs in less than 60 MB. `make bench ONLY=memory` says what takes how much."""

import pytest

from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import Fleet
from aetherscale_testing.memory import memory_of
from aetherscale_testing.recovery import give_vms

pytestmark = pytest.mark.broker

VMS = 100
MOST_MIB = 60e6 / (1 << 20)


def test_an_agent_that_holds_a_hundred_vms_takes_less_than_60_mb(agents: Fleet, broker: TestBroker) -> None:
    give_vms(agents.folder / "h1", VMS)
    agent = agents.add("h1", "a", keep=True)
    agents.wait_ready()
    with SeedClient(broker.address) as client:
        for _ in range(20):
            (answer,) = client.ask("list-vms", 1)
            assert len(answer["response"]) == VMS
    assert agent.process is not None
    assert memory_of(agent.process.pid)["Rss"] < MOST_MIB
