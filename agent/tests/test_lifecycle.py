"""Changes of VMs that are there, over a real broker: done once each, whoever asks again and whatever dies meanwhile."""

import time
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fakes import read_fake_vms
from aetherscale_testing.fleet import AgentProcess, Fleet

pytestmark = pytest.mark.broker

ID, CLONE = "lifecyca", "lifecycb"


@pytest.fixture
def agent(agents: Fleet) -> AgentProcess:
    """An agent whose VMs outlive it, as real ones do."""
    added = agents.add("h1", "a", keep=True)
    agents.wait_ready()
    return added


def ask(client: SeedClient, command: str, request_id: str, vm_id: str = ID, **options: Any) -> dict[str, Any]:
    sent = {"message_id": request_id, "headers": {"deadline": int((time.time() + 30) * 1000)}}
    key = command if command == "create-vm" else f"vm.{vm_id}"
    (answer,) = client.send(key, command, vm_id=vm_id, properties=sent, **options)
    return answer


def told(answer: dict[str, Any]) -> str:
    return str(answer["execution-info"].get("code") or answer["response"]["status"])


def create(client: SeedClient, vm_id: str = ID, **options: Any) -> None:
    assert (
        told(ask(client, "create-vm", f"create-{vm_id}", vm_id, image="a", memory=512, disk=2, **options)) == "starting"
    )


def restart(agents: Fleet, agent: AgentProcess) -> None:
    agent.stop(SIGKILL)
    agent.start()
    agents.wait_ready()


def show(client: SeedClient) -> dict[str, Any]:
    found: dict[str, Any] = ask(client, "show-vm", "show")["response"]
    return found


def vms(agent: AgentProcess) -> Any:
    return read_fake_vms(Path(agent.folder, "vms"))


def test_a_vm_stands_still_over_its_agents_death_and_goes_on(
    agents: Fleet, agent: AgentProcess, client: SeedClient
) -> None:
    create(client)
    for _ in range(2):
        assert told(ask(client, "pause-vm", "r1")) == "paused"
    restart(agents, agent)
    assert show(client)["state"] == "paused"
    assert told(ask(client, "stop-vm", "r2")) == "wrong-state"
    assert told(ask(client, "resume-vm", "r3")) == "running"
    assert told(ask(client, "pause-vm", "r1")) == "paused"  # was done: not done again
    assert show(client)["state"] == "running"


def test_a_disk_grows_is_kept_and_taken_back(agents: Fleet, agent: AgentProcess, client: SeedClient) -> None:
    create(client)
    assert told(ask(client, "snapshot-vm", "r1", snapshot="clean")) == "created"
    assert told(ask(client, "resize-vm", "r2", disk=5)) == "resized"
    assert told(ask(client, "resize-vm", "r3", disk=4)) == "bad-request"
    assert told(ask(client, "resize-vm", "r4", memory=1024)) == "wrong-state"
    restart(agents, agent)
    assert told(ask(client, "snapshot-vm", "r1", snapshot="clean")) == "created"
    assert told(ask(client, "snapshot-vm", "r5", snapshot="clean")) == "snapshot-exists"
    (row,) = ask(client, "list-snapshots", "r6")["response"]
    assert row["snapshot"] == "clean"
    assert told(ask(client, "restore-vm", "r7", snapshot="clean")) == "wrong-state"
    assert told(ask(client, "stop-vm", "r8", kill=True)) == "stopped"
    assert told(ask(client, "restore-vm", "r9", snapshot="clean")) == "restored"
    assert told(ask(client, "resize-vm", "r10", memory=1024, cpus=2)) == "resized"
    found = show(client)
    assert (found["disk"], found["memory"], found["cpus"], vms(agent)[ID].disk) == (5, 1024, 2, 5)
    assert told(ask(client, "delete-snapshot", "r11", snapshot="clean")) == "deleted"
    assert told(ask(client, "delete-snapshot", "r12", snapshot="clean")) == "snapshot-unknown"


def test_a_reboot_boots_once_however_often_it_is_asked(agents: Fleet, agent: AgentProcess, client: SeedClient) -> None:
    create(client)
    for _ in range(2):
        assert told(ask(client, "reboot-vm", "r1")) == "starting"
    restart(agents, agent)
    assert told(ask(client, "reboot-vm", "r1")) == "starting"
    assert told(ask(client, "reboot-vm", "r2", kill=True)) == "starting"
    assert vms(agent)[ID].boots == 3
    answer = ask(client, "extend-vm", "r3", ttl=3600)
    assert told(answer) == "extended"
    assert abs(answer["response"]["expires"] - time.time() - 3600) < 30
    assert ask(client, "extend-vm", "r4", ttl=None)["response"]["expires"] == 0


def test_a_vm_is_cloned_when_it_is_off(agent: AgentProcess, client: SeedClient) -> None:
    create(client)
    answer = ask(client, "create-vm", "c1", CLONE, image="a", memory=512, disk=1, clone_of=ID)
    assert "stop it first" in str(answer["execution-info"])
    ask(client, "stop-vm", "r1", kill=True)
    assert told(ask(client, "create-vm", "c2", CLONE, image="a", memory=512, disk=1, clone_of=ID)) == "starting"
    assert vms(agent)[CLONE].disk == 2


def test_an_agent_that_stops_leaves_nothing_that_it_has_answered(
    agent: AgentProcess, client: SeedClient, broker: TestBroker
) -> None:
    for _ in range(3):
        client.ask("list-vms", 1)
    agent.stop()
    left = {row["name"]: row["messages"] for row in broker.table("list_queues", "name", "messages")}
    assert left["computing-host.h1"] == left["computing-undeliverable"] == 0
