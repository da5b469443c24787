"""This host's last word about its VMs, kept in the broker for the day on which the host is gone for good."""

import asyncio
import contextlib
import logging

import msgspec
import pika

from aetherscale_agent.broker import Channel, Connection, Declined, NotTaken
from aetherscale_agent.host import Host
from aetherscale_protocol import names, topology
from aetherscale_protocol.answers import KnownVms, VmDetails

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""How often what is kept is compared with what is there, in seconds: it never lags further behind."""


async def keep_known(connection: Connection, host: Host, user: str) -> None:
    """Keep it up to date, until cancelled. If the broker does not let us, that is said, and nothing else suffers.

    :raise BrokerLost: when the connection is lost.
    """
    channel = await connection.channel()
    try:
        await channel.confirm()
        told: list[VmDetails] | None = None
        while True:
            rows = host.details()
            if rows != told:
                with contextlib.suppress(NotTaken):  # tried again at the next look
                    await _tell(channel, KnownVms(host=host.name, time=host.clock(), vms=rows), user)
                    told = rows
            await asyncio.sleep(LOOK_EVERY_S)
    except Declined as error:
        log.warning("the broker does not keep what this host knows of its VMs: %s", error)


async def _tell(channel: Channel, known: KnownVms, user: str) -> None:
    queue = topology.known(known.host)
    await channel.declare_queue(queue)
    properties = pika.BasicProperties(user_id=user, delivery_mode=2, content_type="application/json")
    await channel.publish(queue.name, msgspec.json.encode(known), properties, exchange="")
    log.debug("the broker keeps: this host has %d VMs", len(known.vms))


async def read_known(connection: Connection, host: str, own_user: str) -> KnownVms | None:
    """What `host` said last, left where it is; None if there is nothing, or nothing that it said itself.

    :raise Declined: 404 when there is no such queue, 403 when we may not read it.
    :raise BrokerLost: when the connection is lost.
    """
    channel = await connection.channel()
    message = await channel.get(names.known_queue(host))
    if message is None:
        channel.close()
        return None
    channel.reject(message)  # back to where it was, for whoever asks next
    channel.close()
    if message.properties.user_id not in (names.agent_user(host), own_user):
        log.warning("what is kept of host %s was written by %.80r: ignored", host, message.properties.user_id)
        return None
    try:
        return msgspec.json.decode(message.body, type=KnownVms)
    except ValueError as error:
        log.warning("what is kept of host %s can't be read: %s", host, error)
        return None
