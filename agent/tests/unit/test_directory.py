"""Whom the directory may name: what a host asks before it binds a VM that another may hold."""

import asyncio
from pathlib import Path
from typing import cast

import pytest

from aetherscale_agent.broker import BrokerLost, Connection, Declined, Unroutable
from aetherscale_agent.decide import Claim
from aetherscale_agent.host import Host
from aetherscale_agent.session import Session
from aetherscale_protocol.answers import Answer, success
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.topology import Queue
from aetherscale_testing.dealings import Dealings
from aetherscale_testing.world import ID, OTHER, World, create


class Asking(Dealings):
    """A session that is told this of the claim, and of the VM's holder ('': there is none; None: it is silent)."""

    def __init__(self, host: Host, claim: Claim | Refused, holder: str | None) -> None:
        super().__init__(host)
        self._claim, self._holder = claim, holder

    async def claim(self, vm_id: str) -> Claim:  # noqa: ARG002
        if isinstance(self._claim, Refused):
            raise self._claim
        return self._claim

    async def _ask(self, key: str, body: bytes, *, expected: int) -> list[Answer]:  # noqa: ARG002
        if self._holder == "":
            raise Unroutable(key)
        return [] if self._holder is None else [success({}, self._holder)]


WON = Claim(won=True)


@pytest.mark.parametrize(
    ("claim", "holder", "ours"),
    [
        (WON, "", True),
        (WON, "h1", True),  # this very host: it is bound already, and its journal did not know
        (WON, "h2", False),
        (WON, None, False),
        (Claim(won=False, owner="h2"), "", False),
        (Refused("failed", "the id can't be claimed"), "", False),
    ],
)
def test_a_contested_vm_is_bound_only_when_nobody_else_may_hold_it(
    tmp_path: Path, claim: Claim | Refused, holder: str | None, ours: bool
) -> None:
    """And whatever the broker says of one VM, the others are not kept waiting: the session goes on."""

    async def scenario() -> None:
        world = World(tmp_path)
        host = await world.started()
        vm = await create(host)
        await host.set_bound(vm, False)
        asking = Asking(host, claim, holder)
        await asking._verify(has_queue=True)
        await asking._rebuild_directory()
        assert (vm.record.bound, ID in asking.bound) == (ours, ours)
        assert world.on_disk() == vm.record
        assert vm.state == "running"  # contested or not, it is kept

    asyncio.run(scenario())


# Claims


class Claims:
    """A broker's claims, as connection and as channel: a claim that another host owns closes the channel."""

    def __init__(self, owned_elsewhere: set[str]) -> None:
        self.own: set[str] = set()
        self._elsewhere = owned_elsewhere

    async def channel(self) -> "Claims":
        again = Claims(self._elsewhere)
        again.own = self.own
        again.closed = asyncio.get_running_loop().create_future()
        return again

    closed: asyncio.Future[Exception]

    async def declare_queue(self, queue: Queue) -> None:
        vm_id = queue.name.removeprefix("claim.")
        if vm_id in self._elsewhere:
            refused = Declined(406, "but current is the value 'h2' of type 'longstr'")
            self.closed.set_result(refused)
            raise refused
        self.own.add(vm_id)

    async def delete_queue(self, name: str) -> None:
        if self.closed.done():
            raise BrokerLost("the channel is closed")
        self.own.discard(name.removeprefix("claim."))


def test_a_claim_is_let_go_of_although_another_was_lost_meanwhile(tmp_path: Path) -> None:
    """A lost claim closes the channel that they share; the session must not end with it."""

    async def scenario() -> None:
        claims = Claims({OTHER})
        session = Session(cast(Connection, claims), await World(tmp_path).started(), "guest", lambda _s, _d: nothing())
        assert await session.claim(ID) == WON
        assert await session.claim(OTHER) == Claim(won=False, owner="h2")
        await session.let_go(ID)
        assert claims.own == set()

    asyncio.run(scenario())


async def nothing() -> None:
    pass
