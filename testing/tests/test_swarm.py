"""Several agents in one process are several hosts: each has its own name, VMs and connections."""

from pathlib import Path

import pytest

from aetherscale_testing.broker import private_broker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.swarm import Swarm, remember

pytestmark = pytest.mark.broker


def test_each_agent_of_a_process_is_a_host_with_vms_of_its_own(tmp_path: Path) -> None:
    hosts = {name: {"vms": 2} for name in ("s1", "s2", "s3")}
    with private_broker() as broker:
        remember(broker, list(hosts))
        with Swarm(broker, tmp_path, hosts, processes=2) as swarm, SeedClient(broker.address) as client:
            answers = client.ask("list-vms", len(hosts))
            queues = [row["name"] for row in broker.table("list_queues", "name")]
            assert len(swarm.pids) == 2
    assert sorted(answer["host"] for answer in answers) == ["s1", "s2", "s3"]
    assert len({vm for answer in answers for vm in answer["response"]}) == 6
    assert not [name for name in queues if name.startswith("claim.")]  # they were remembered
