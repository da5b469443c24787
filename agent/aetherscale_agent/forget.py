"""Forgetting a host that is gone for good: its queue with its bindings, its claims, and its last word go.

Done by one live agent, because operators may do no more than publish (docs/decisions/004-forget-host.md). Whatever
interrupts it, it can be done again; the queue goes first, because only its deletion is refused while the host is
alive, and the last word last, so that what is left of a host can be told from a host that never was.
"""

import asyncio
import logging
import time

from aetherscale_agent.broker import BrokerLost, Connection, Declined
from aetherscale_agent.known import read_known
from aetherscale_protocol import names, topology
from aetherscale_protocol.answers import ForgetReport, KnownVms
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import ForgetHost
from aetherscale_protocol.topology import Queue

log = logging.getLogger(__name__)

FORBIDDEN, NOT_FOUND, LOCKED, PRECONDITION_FAILED = 403, 404, 405, 406

EMPTY_WAIT_S = topology.HOST_TTL_MS / 1000 + 1
"""How long commands that wait for the host are let die in its queue, so that their senders are answered."""


class Forgetter:
    """What one connection of an agent can do about hosts that are gone."""

    def __init__(self, connection: Connection, own_host: str, own_user: str, fleet: list[str]) -> None:
        self._connection = connection
        self._own_host = own_host
        self._own_user = own_user
        self._fleet = fleet

    async def forget(self, options: ForgetHost) -> ForgetReport:
        """Forget a host, or (`dry_run`) only say what there is of it.

        :raise Refused: `wrong-state` when it is alive, `host-unknown` when there is nothing of it; nothing was
            changed. `failed`, when it was interrupted or not allowed: it goes on where it was when it is repeated.
        """
        try:
            return await self._forget(options.host, dry_run=options.dry_run)
        except BrokerLost as error:
            again = "repeat it: it goes on where it was"
            raise Refused("failed", f"host {options.host} was not wholly forgotten: {error}", again) from None
        except Declined as error:
            hint = "run site.yml: it sets the rights of agents" if error.code == FORBIDDEN else None
            reason = f"the broker does not let host {self._own_host} forget host {options.host}: {error}"
            raise Refused("failed", reason, hint) from None

    async def _forget(self, host: str, *, dry_run: bool) -> ForgetReport:
        consumers = await self._consumers(names.host_queue(host))
        if consumers or host == self._own_host or await self._has_name(host):
            raise _alive(host)
        has_word = await self._consumers(names.known_queue(host)) is not None
        if consumers is None and not has_word:
            raise _unknown(host)
        known = await read_known(self._connection, host, self._own_user) if has_word else None
        known = known or KnownVms(host=host, time=0, vms=[])
        claims = [vm.vm_id for vm in known.vms if await self._holds_claim(host, vm.vm_id)]
        if not dry_run:
            await self._delete_queue(host)
            for vm_id in claims:
                if await self._holds_claim(host, vm_id):  # still
                    await self._delete(names.claim_queue(vm_id))
            await self._delete(names.known_queue(host))
            log.info("host %s is forgotten: %d VMs, %d claims", host, len(known.vms), len(claims))
        return ForgetReport(
            status="would-forget" if dry_run else "forgotten",
            host=host,
            vms=known.vms,
            told=known.time,
            claims=claims,
            in_fleet=host in self._fleet,
        )

    async def _has_name(self, host: str) -> bool:
        """Whether an agent has this host's name: also one that is just connecting, and consumes nothing yet."""
        try:
            return await self._consumers(names.lock_queue(host)) is not None
        except Declined as error:
            if error.code != LOCKED:
                raise
            return True

    async def _consumers(self, queue: str) -> int | None:
        """How many consume a queue; None if there is no such queue."""
        channel = await self._connection.channel()
        try:
            count = await channel.declare_queue(Queue(queue), passive=True)
        except Declined as error:
            if error.code != NOT_FOUND:
                raise
            return None
        channel.close()
        return count

    async def _holds_claim(self, host: str, vm_id: str) -> bool:
        """Whether this host owns the claim of a VM id: only its own declaration is equal to what is there.

        Never declared in our own name: a claim that we made and took back could be one that a create relies on.
        """
        if await self._consumers(names.claim_queue(vm_id)) is None:
            return False
        channel = await self._connection.channel()
        try:
            await channel.declare_queue(topology.claim(vm_id, host))
        except Declined as error:
            if error.code != PRECONDITION_FAILED:
                raise
            return False
        channel.close()
        return True

    async def _delete_queue(self, host: str) -> None:
        """Delete a host's queue; what waits in it is let expire first, because nobody answers for what is deleted.

        :raise Refused: `wrong-state`, when it has a consumer: the broker looks and deletes in one step.
        """
        patience = time.monotonic() + EMPTY_WAIT_S
        while True:
            channel = await self._connection.channel()
            try:
                empty_only = time.monotonic() < patience
                await channel.delete_queue(names.host_queue(host), if_unused=True, if_empty=empty_only)
            except Declined as error:
                if error.code != PRECONDITION_FAILED:
                    raise
                if "not empty" not in error.text:
                    raise _alive(host) from None
                await asyncio.sleep(0.1)
            else:
                channel.close()
                return

    async def _delete(self, queue: str) -> None:
        channel = await self._connection.channel()
        await channel.delete_queue(queue)
        channel.close()


def _alive(host: str) -> Refused:
    hint = f"stop its agent first, if it is to be forgotten: systemctl stop aetherscale-agent (on {host})"
    return Refused("wrong-state", f"host {host} is running; nothing was forgotten", hint)


def _unknown(host: str) -> Refused:
    return Refused(
        "host-unknown", f"the broker knows nothing of host {host}; nothing was changed", "list-hosts shows the hosts"
    )
