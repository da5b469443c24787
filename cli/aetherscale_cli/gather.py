"""Who answered a command that went to all hosts, and who is missing. Pure: events in, decisions out.

How many to expect: the agents alive (the broker counts them) and the fleet (what the inventory names; answers
carry its size and digest, so that names are fetched only when somebody is missing).
"""

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from aetherscale_cli.wire import Reply
from aetherscale_protocol.answers import Fleet, fleet_digest
from aetherscale_protocol.names import is_host_name


class Missing(Struct, frozen=True):
    """A host that did not answer: `down` when the broker knows of no agent there, else `silent`."""

    host: str
    state: Literal["down", "silent"]


class Gathering(Struct):
    """The answers so far. `alive` is None as long as the broker has not said how many agents there are."""

    alive: int | None = None
    counted: bool = False
    by_host: dict[str, Reply] = {}
    replies: list[Reply] = []
    unreadable: int = 0

    def count(self, alive: int | None) -> None:
        """The broker said how many agents are alive, or that it does not say."""
        self.counted, self.alive = True, alive

    def take(self, reply: Reply | None) -> None:
        """An answer came, or (None) something that is none. Of a host that was asked again the first counts."""
        if reply is None:
            self.unreadable += 1
            return
        if reply.answer.execution_info.code != "host-down" and reply.answer.host in self.by_host:
            return
        self.replies.append(reply)
        if reply.answer.execution_info.code != "host-down":  # said by another host about one that is missing
            self.by_host.setdefault(reply.answer.host or f"?{len(self.replies)}", reply)

    @property
    def fleet(self) -> Fleet | None:
        """The fleet that most answers speak of; hosts differ while a new inventory is being rolled out."""
        known = Counter(
            (reply.answer.fleet.size, reply.answer.fleet.digest)
            for reply in self.by_host.values()
            if reply.answer.fleet is not None and reply.answer.fleet.size > 0
        )
        if not known:
            return None
        size, digest = max(known, key=lambda key: (known[key], key))
        return Fleet(size=size, digest=digest)

    @property
    def complete(self) -> bool:
        """Whether all that can be expected to answer have."""
        if not self.counted:
            return False
        if self.alive is not None:
            return len(self.by_host) >= self.alive
        fleet = self.fleet
        return fleet is not None and len(self.by_host) >= fleet.size

    @property
    def silent(self) -> int | None:
        """How many of the agents alive have not answered; None where the broker does not count for us."""
        return None if self.alive is None else max(0, self.alive - len(self.by_host))

    def is_fleet(self, fleet: list[str]) -> bool:
        """Whether these are the names of the fleet that most answers speak of."""
        return self.fleet is not None and self.fleet.digest == fleet_digest(fleet)

    def find_informant(self, but: str | None = None) -> str | None:
        """A host to ask for the fleet's names, another than `but` if there is one; None when nobody of the fleet is
        missing, or none knows it.
        """
        fleet = self.fleet
        if fleet is None or self.is_fleet(list(self.by_host)):
            return None
        knowing = [host for host, reply in self.by_host.items() if reply.answer.fleet == fleet]
        return next((host for host in knowing if host != but), knowing[0])


def find_absent(gathering: Gathering, fleet: list[str]) -> list[str]:
    """The names of the fleet that did not answer."""
    return sorted({host for host in fleet if is_host_name(host)} - gathering.by_host.keys())


def classify(absent: list[str], consumers: Mapping[str, int | None], silent: int | None) -> list[Missing]:
    """Which of the absent are down, and which only silent.

    `consumers` is what the broker says of each one's queue, where it says anything; where it does not, the
    number of agents that are alive and `silent` settles it if it can, and `silent` is claimed if it can't.
    """
    if silent == 0:
        consumers = dict.fromkeys(absent, 0)
    return [Missing(host, "down" if consumers.get(host) == 0 else "silent") for host in absent]
