"""Draining: a host that takes no new VMs, while those that it has go on. A mark in its journal, so that it lasts."""

from aetherscale_agent.journal import Journal
from aetherscale_protocol.answers import HostStatus
from aetherscale_protocol.errors import Refused

DRAINED = "drained"


def is_drained(journal: Journal) -> bool:
    """Whether the host takes no new VMs."""
    return journal.has_mark(DRAINED)


def misfit(journal: Journal, host: str) -> Refused | None:
    """Why a drained host takes no VM; None if it is not drained."""
    return Refused("no-capacity", f"host {host} is drained") if is_drained(journal) else None


def drain(journal: Journal, host: str) -> HostStatus:
    """Take no new VMs from now on.

    :raise Refused: `failed`, when that can't be written; it holds until the agent is started anew.
    """
    if not journal.mark(DRAINED):
        raise _unwritten(f"host {host} is drained only until its agent is started anew")
    return HostStatus(status="drained", host=host)


def undrain(journal: Journal, host: str) -> HostStatus:
    """Take VMs again.

    :raise Refused: `failed`, when that can't be written; it holds until the agent is started anew.
    """
    if not journal.unmark(DRAINED):
        raise _unwritten(f"host {host} takes VMs only until its agent is started anew; then it is drained again")
    return HostStatus(status="up", host=host)


def _unwritten(what: str) -> Refused:
    return Refused("failed", f"{what}: its journal can't be written", "free space on the host, or repair its disk")
