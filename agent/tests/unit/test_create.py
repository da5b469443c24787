"""A copy of a create, from its delivery on: what it learns of its host, and where it is handed on to."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aetherscale_protocol.answers import Answer, ExecutionInfo, Offer
from aetherscale_testing.dealings import Dealings
from aetherscale_testing.world import DEADLINE, ID, World, quiet, until


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "journal"
    folder.mkdir()
    return World(folder)


def offer(host: str, score: int, alike: int) -> Answer:
    response = msgspec.Raw(msgspec.json.encode(Offer(score=score, alike=alike)))
    return Answer(execution_info=ExecutionInfo(status="success"), response=response, host=host)


UNFIT = {
    "image": {"image": "other"},
    "memory": {"image": "tiny", "memory": 1 << 20},
    "label": {"host_labels": {"a": "b"}},
}


@pytest.mark.parametrize("why", UNFIT)
@pytest.mark.parametrize(("sought", "host"), [("spread", "h3"), ("near", "h2")])
def test_a_host_that_cannot_take_a_vm_hands_it_to_the_place_it_seeks(
    world: World, why: str, sought: str, host: str
) -> None:
    async def scenario() -> None:
        dealings = Dealings(await world.started())
        dealings.offers = [offer("h2", 9000 if sought == "spread" else 100, 5), offer("h3", 500, 0)]
        options: dict[str, Any] = {"image": "tiny", **UNFIT[why], sought: "role=web"}
        asking = dealings.begin("create-vm", request_id="r1", **options)
        await until(lambda: bool(dealings.handed_on))
        asking.cancel()
        assert dealings.handed_on == [host]

    asyncio.run(scenario())


@pytest.mark.parametrize(("theirs", "handed_on"), [(-1, []), (0, []), (1, ["h2"])])
@pytest.mark.parametrize("sought", ["spread", "near"])
def test_a_host_offers_itself_without_the_vm_that_it_was_given_as_the_others_do(
    world: World, sought: str, theirs: int, handed_on: list[str]
) -> None:
    async def scenario() -> None:
        host = await world.started()
        dealings = Dealings(host)
        dealings.offers = [offer("h2", host.score() + theirs, 0)]
        options = {"image": "tiny", "vm_id": ID, "memory": 512, sought: "role=web"}
        asking = dealings.begin("create-vm", request_id="r1", deadline=DEADLINE, **options)
        await until(lambda: asking.done() or bool(dealings.handed_on))
        asking.cancel()
        assert dealings.handed_on == handed_on
        await quiet(host)

    asyncio.run(scenario())
