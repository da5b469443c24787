"""The article's session, with the article's client, on two hosts of which one has the image."""

import re

import pytest

from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import Fleet

pytestmark = pytest.mark.broker


@pytest.fixture
def two_hosts(agents: Fleet) -> Fleet:
    agents.add("h1", "ubuntu_base")
    agents.add("h2", "other")
    agents.wait_ready()
    return agents


def by_host(answers: list[dict]) -> dict[str, dict]:
    return {answer["host"]: answer for answer in answers}


def reasons(answers: list[dict]) -> list[str]:
    return [a["execution-info"].get("reason", "") for a in answers]


def create(client: SeedClient) -> str:
    (answer,) = client.ask("create-vm", 1, image="ubuntu_base")
    assert answer["execution-info"] == {"status": "success"}
    assert answer["response"]["status"] == "starting"
    vm_id: str = answer["response"]["vm-id"]
    assert re.fullmatch("[a-z]{8}", vm_id)
    return vm_id


@pytest.mark.usefixtures("two_hosts")
def test_the_articles_session(client: SeedClient) -> None:
    vm_id = create(client)
    listed = by_host(client.ask("list-vms", 2))
    assert listed["h1"]["response"] == [f"vm-{vm_id}"]
    assert listed["h2"]["response"] == []

    (refused,) = client.ask("create-vm", 1, image="nobody_has_it")
    assert refused["execution-info"]["reason"] == 'Image "nobody_has_it" does not exist'
    assert set(refused["execution-info"]["reasons"]) == {"h1", "h2"}

    stopped = by_host(client.ask("stop-vm", 2, vm_id=vm_id))
    assert stopped["h1"]["response"] == {"status": "stopped", "vm-id": vm_id}
    assert stopped["h2"]["execution-info"]["reason"] == "VM does not exist"

    started = by_host(client.ask("start-vm", 2, vm_id=vm_id))
    assert started["h1"]["response"] == {"status": "starting", "vm-id": vm_id}

    deleted = by_host(client.ask("delete-vm", 2, vm_id=vm_id))
    assert deleted["h1"]["response"] == {"status": "deleted", "vm-id": vm_id}
    assert reasons(client.ask("stop-vm", 2, vm_id=vm_id)) == ["VM does not exist"] * 2
    assert [a["response"] for a in client.ask("list-vms", 2)] == [[], []]


@pytest.mark.usefixtures("two_hosts")
def test_a_create_goes_to_the_host_that_has_the_image(client: SeedClient) -> None:
    for _ in range(6):
        create(client)
    listed = by_host(client.ask("list-vms", 2))
    assert len(listed["h1"]["response"]) == 6
    assert listed["h2"]["response"] == []
