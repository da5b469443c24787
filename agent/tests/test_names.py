"""Names: one VM each, used again at once, whatever is late; and places that are sought. Real agents, a real broker."""

import json
import time
import uuid
from collections import Counter
from signal import SIGKILL
from typing import Any

import pytest

from aetherscale_protocol.names import id_of_name
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import Fleet

pytestmark = pytest.mark.broker


@pytest.fixture
def name() -> str:
    """A name of the test's own: claims outlive tests."""
    return f"web-{uuid.uuid4().hex[:8]}"


def properties(request_id: str, seconds: float = 30) -> dict[str, Any]:
    return {"message_id": request_id, "headers": {"deadline": int((time.time() + seconds) * 1000)}}


def create(client: SeedClient, request_id: str, **options: Any) -> dict[str, Any]:
    sent = properties(request_id)
    (answer,) = client.send("create-vm", "create-vm", image="a", memory=1024, properties=sent, **options)
    return answer


def code(answer: dict[str, Any]) -> str:
    return str(answer["execution-info"].get("code", "success"))


def delete(client: SeedClient, name: str, request_id: str) -> dict[str, Any]:
    vm_id = id_of_name(name)
    (answer,) = client.send(f"vm.{vm_id}", "delete-vm", vm_id=vm_id, properties=properties(request_id))
    return answer


def held(client: SeedClient, hosts: int) -> dict[str, list[str]]:
    return {a["host"]: a["response"] for a in client.ask("list-vms", hosts)}


def test_two_vms_of_one_name_at_once(agents: Fleet, client: SeedClient, name: str) -> None:
    for host in ("h1", "h2", "h3"):
        agents.add(host, "a")
    agents.wait_ready()
    body = json.dumps({"command": "create-vm", "options": {"image": "a", "name": name}}).encode()
    sent = [client.publish("create-vm", body, **properties(f"r{n}")) for n in range(6)]
    answers = [client.collect(cid, 1)[0] for cid in sent]
    assert Counter(map(code, answers)) == {"success": 1, "vm-id-taken": 5}
    assert f"the name {name} is taken by another VM" in {a["execution-info"].get("reason") for a in answers}
    assert sorted(map(len, held(client, 3).values())) == [0, 0, 1]


def test_a_name_is_free_as_soon_as_its_vm_is_gone(agents: Fleet, client: SeedClient, name: str) -> None:
    """And late copies of what was done before do nothing to the VM that has it then."""
    agents.add("h1", "a")
    agents.add("h2", "a")
    agents.wait_ready()
    for turn in range(4):
        assert code(create(client, f"c{turn}", name=name)) == "success"
        assert code(delete(client, name, f"d{turn}")) == "success"
    assert code(create(client, "last", name=name)) == "success"
    assert code(create(client, "c0", name=name)) == "vm-unknown"  # its VM was deleted
    assert delete(client, name, "d1")["response"]["status"] == "deleted"  # was done: not done to the new one
    assert sorted(map(len, held(client, 2).values())) == [0, 1]


def test_what_late_copies_meet_outlives_the_agent(agents: Fleet, client: SeedClient, name: str) -> None:
    agent = agents.add("h1", "a")
    agents.wait_ready()
    create(client, "c0", name=name)
    delete(client, name, "d0")
    create(client, "c1", name=name)
    assert code(create(client, "c2", name=name)) == "vm-id-taken"
    agent.stop(SIGKILL)
    agent.start()
    agents.wait_ready()
    assert code(create(client, "c0", name=name)) == "vm-unknown"
    assert delete(client, name, "d0")["response"]["status"] == "deleted"
    assert held(client, 1) == {"h1": [f"vm-{id_of_name(name)}"]}
    assert code(delete(client, name, "d1")) == "success"
    assert code(create(client, "c2", name=name)) == "vm-id-taken"  # it was told so, and stays told so


def test_a_name_whose_create_was_refused_is_free_on_the_host_that_refused(
    agents: Fleet, client: SeedClient, name: str
) -> None:
    agents.add("h1", "a", memory=2048)
    agents.wait_ready()
    assert code(create(client, "c0", name=name, cpus=200)) == "no-host"
    assert code(create(client, "c1", name=name)) == "success"
    assert code(create(client, "c0", name=name, cpus=200)) == "no-host"


def test_a_host_without_room_says_how_long_it_keeps_a_name(agents: Fleet, client: SeedClient, name: str) -> None:
    agents.add("h1", "a", memory=2048)
    agents.wait_ready()
    assert code(create(client, "c0", name=name, host="h1")) == "success"
    agents.add("h2", "a")
    agents.wait_ready()
    delete(client, name, "d0")
    refused = create(client, "c1", name=name, host="h2")
    assert code(refused) == "no-capacity"
    assert f"keeps the name {name} for" in refused["execution-info"]["reason"]
    assert held(client, 2) == {"h1": [], "h2": []}


def test_a_host_that_is_asked_for_gets_the_vm(agents: Fleet, client: SeedClient) -> None:
    agents.add("h1", "a", memory=16 * 1024)
    agents.add("h2", "a", memory=2 * 1024)
    agents.wait_ready()
    assert create(client, "c0", host="h2")["host"] == "h2"
    refused = create(client, "c1", host="h9")["execution-info"]
    assert refused["code"] == "no-host"
    assert refused["reasons"]["h1"] == "host h9 is asked for"
    assert refused["reasons"]["h9"] == "its agent is not connected, or did not answer"


def test_vms_are_spread_and_kept_near(agents: Fleet, client: SeedClient) -> None:
    agents.add("h1", "a", memory=16 * 1024)
    agents.add("h2", "a", memory=12 * 1024)
    agents.add("h3", "a", memory=8 * 1024)
    agents.wait_ready()
    spread = [create(client, f"s{n}", labels={"role": "db"}, spread="role=db")["host"] for n in range(6)]
    assert Counter(spread) == {"h1": 2, "h2": 2, "h3": 2}
    lone = create(client, "l0", labels={"app": "x"}, host="h3")["host"]
    near = [create(client, f"n{n}", labels={"app": "x"}, near="app")["host"] for n in range(3)]
    assert {lone, *near} == {"h3"}


@pytest.mark.parametrize(("sought", "host"), [("spread", "h3"), ("near", "h2")])
def test_a_place_is_sought_by_a_host_that_lacks_the_image_too(
    agents: Fleet, client: SeedClient, sought: str, host: str
) -> None:
    agents.add("h1", "b", memory=32 * 1024)
    agents.add("h2", "a", memory=8 * 1024 if sought == "near" else 16 * 1024)
    agents.add("h3", "a", memory=16 * 1024 if sought == "near" else 8 * 1024)
    agents.wait_ready()
    assert create(client, f"{sought}-0", labels={"role": "db"}, host="h2")["host"] == "h2"
    assert create(client, f"{sought}-1", **{sought: "role=db"})["host"] == host


def test_an_operator_may_ask_for_offers(agents: Fleet, client: SeedClient) -> None:
    """What `create-vm --dry-run` is made of: it changes nothing."""
    agents.add("h1", "a", memory=4096)
    agents.add("h2", "b")
    agents.wait_ready()
    answers = {a["host"]: a for a in client.ask("offer-vm", 2, image="a", memory=1024)}
    assert answers["h1"]["response"] == {"score": 4096}
    assert code(answers["h2"]) == "image-unknown"
    assert held(client, 2) == {"h1": [], "h2": []}
