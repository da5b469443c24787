"""From a delivery to a command in hand: who sent it, until when, and where its answer belongs. Pure."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec

from aetherscale_agent.decide import too_far, too_late
from aetherscale_protocol import names, topology
from aetherscale_protocol.commands import Request, decode_request
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import CreateVm

DEFAULT_PATIENCE_S = 60.0
"""How far ahead the deadline of a create lies that brought none (the seed's client), in seconds."""

CLOCK_SLACK_S = 30.0

_REPLY_TO = re.compile(r"amq\.rabbitmq\.reply-to\.([A-Za-z0-9+/]{16,}={0,2})\.([A-Za-z0-9+/]{4,64}={0,2})")
T = TypeVar("T")

# Source: Erlang's external term format. RabbitMQ 3.9 to 4.2 write the token so: a process id, in base64.
_TERM = 131
_PID_TAIL = {88: 12, 103: 9}  # NEW_PID_EXT, PID_EXT: bytes behind the node's name
_LONG_ATOMS, _SHORT_ATOMS = (100, 118), (115, 119)


@dataclass(frozen=True)
class Incoming:
    """A command in hand. Times in seconds since the epoch; `deadline` None: the client did not say."""

    request: Request
    request_id: str
    deadline: float | None
    hops: int
    sender: str  #: broker-checked user, or '' if the message was not signed
    operator: str  #: on whose behalf: the sender, or who the handing-on agent says it was
    reply_to: str
    correlation_id: str | None
    named: bool = True  #: the client chose the request id; else it is made of what the message holds
    internal: bool = False  #: sent by an agent
    exchange: str = topology.EXCHANGE  #: by which it came here
    died: bool = False  #: nobody took it in time: it is answered, never done

    @property
    def create(self) -> CreateVm:
        """The options of a create or an offer."""
        options = self.request.options
        assert isinstance(options, CreateVm)
        return options

    def with_vm_id(self, vm_id: str) -> "Incoming":
        """The same create, with its id filled in."""
        options = msgspec.structs.replace(self.create, vm_id=vm_id)
        return replace(self, request=Request(self.request.command, options))


def check_reply_to(address: str | None) -> str:
    """`address`, if it has the shape of a direct reply-to address.

    An agent that publishes wherever a message tells it to would write commands into other hosts' queues; and
    on RabbitMQ up to 4.0 an address that can't be decoded costs the connection that publishes to it.

    :raise Refused: `bad-request` otherwise.
    """
    if not address:
        raise Refused("bad-request", "no reply_to: a command that nobody could be told the outcome of is not executed")
    match = _REPLY_TO.fullmatch(address) if isinstance(address, str) else None  # bytes, if it was not UTF-8
    if match is None or not _is_pid(_decode(match[1])) or not _decode(match[2]):
        raise Refused("bad-request", "reply_to is not a direct reply-to address (amq.rabbitmq.reply-to)")
    return address


def find_client(reply_to: str | None) -> str | None:
    """The address of whoever waits for an answer; None if nobody could be told one."""
    try:
        return check_reply_to(reply_to)
    except Refused:
        return None


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""


def _is_pid(data: bytes) -> bool:
    if len(data) < 5 or data[0] != _TERM or data[1] not in _PID_TAIL:
        return False
    if data[2] in _LONG_ATOMS:
        end_of_name = 5 + int.from_bytes(data[3:5], "big")
    elif data[2] in _SHORT_ATOMS:
        end_of_name = 4 + data[3]
    else:
        return False
    return len(data) == end_of_name + _PID_TAIL[data[1]]


def is_agent(user: str, own_user: str) -> bool:
    """Whether this broker user is an agent's: by its name, or (two agents by hand, as guest) by being our own."""
    if not isinstance(user, str):  # bytes, if it was not UTF-8
        return False
    return bool(user) and (user.startswith(names.AGENT_USER_PREFIX) or user == own_user)


def read_envelope(
    body: bytes, properties: Any, *, own_user: str, exchange: str = topology.EXCHANGE, died: bool = False
) -> Incoming:
    """The command that a message carries, which came by this exchange; `died`: nobody took it in time.

    :raise Refused: when body, options or properties are not what the protocol says.
    """
    request = decode_request(body)
    sender = properties.user_id or ""
    if not isinstance(sender, str):
        raise Refused("bad-request", "user_id is not UTF-8")
    internal = is_agent(sender, own_user)
    headers: Mapping[str, Any] = properties.headers or {}
    if not isinstance(properties.message_id, str | None):
        raise Refused("bad-request", "message_id is not UTF-8")
    request_id = properties.message_id or names.derive_request_id(properties.reply_to, properties.correlation_id, body)
    return Incoming(
        request=request,
        request_id=request_id,
        deadline=_deadline(headers),
        hops=_internal_header(headers, "hops", int, 0) if internal else 0,
        sender=sender,
        operator=_internal_header(headers, "operator", str, sender) if internal else sender,
        reply_to=properties.reply_to or "",
        correlation_id=properties.correlation_id,
        named=bool(properties.message_id),
        internal=internal,
        exchange=exchange,
        died=died,
    )


def _deadline(headers: Mapping[str, Any]) -> float | None:
    value = headers.get("deadline")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refused("bad-request", "header `deadline` is not an integer (milliseconds since the epoch)")
    return value / 1000


def _internal_header(headers: Mapping[str, Any], name: str, kind: type[T], default: T) -> T:
    value = headers.get(name)
    return value if isinstance(value, kind) else default


def check_deadline(deadline: float | None, now: float, host: str) -> None:
    """Nothing, if the deadline lies ahead, and not further than any client may ask for.

    :raise Refused: otherwise, with the clock named as what may be off.
    """
    if deadline is None:
        return
    if now > deadline:
        raise too_late(host, deadline, now)
    check_patience(deadline, now, host)


def check_patience(deadline: float | None, now: float, host: str) -> None:
    """Nothing, if the deadline does not lie further ahead than any client may ask for.

    :raise Refused: otherwise.
    """
    if deadline is not None and deadline - now > topology.MAX_PATIENCE_S + CLOCK_SLACK_S:
        raise too_far(host, deadline, now, topology.MAX_PATIENCE_S)


def died_in(consumed_from: str, headers: Mapping[str, Any]) -> str:
    """The queue in which a dead-lettered message died; '' for a message that did not die.

    Only what comes from the queue of the undeliverable did: anybody can write an `x-death` header.
    """
    if consumed_from != topology.UNDELIVERABLE:
        return ""
    try:
        return str(headers["x-death"][0]["queue"])
    except (KeyError, IndexError, TypeError):
        return "a queue that it does not name"


def queue_host(queue: str) -> str:
    """The host whose queue this is; '' if it is no host's."""
    prefix = names.host_queue("")
    return queue.removeprefix(prefix) if queue.startswith(prefix) else ""
