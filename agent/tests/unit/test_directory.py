"""Whom the directory may name: what a host asks before it binds a VM that another may hold."""

import asyncio
from pathlib import Path

import pytest

from aetherscale_agent.broker import Unroutable
from aetherscale_agent.decide import Claim
from aetherscale_agent.host import Host
from aetherscale_protocol.answers import Answer, success
from aetherscale_protocol.errors import Refused
from aetherscale_testing.dealings import Dealings
from aetherscale_testing.world import ID, World, create


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
