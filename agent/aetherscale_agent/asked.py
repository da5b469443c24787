"""Who asks for a change, and what of it was done before: a command runs once, however often it is asked."""

from dataclasses import dataclass
from typing import Protocol

from aetherscale_agent.journal import Done, Record
from aetherscale_agent.refusals import ending_of
from aetherscale_protocol.errors import Refused

UNTIMED_S = 600.0
"""How long a command without a deadline is remembered."""
MOST_KEPT = 64


class Remembers(Protocol):
    """A record of commands: a VM's, or the host's own."""

    @property
    def done(self) -> tuple[Done, ...]:
        """What was begun, oldest first."""


@dataclass(frozen=True)
class Asked:
    """Who asks for a change: the request's id, and its deadline in seconds since the epoch, if it has one.

    `request_id` is empty for a client that named none. Such a client may mean two equal commands to be two.
    """

    request_id: str = ""
    deadline: float | None = None

    def begun(self, record: Remembers, now: float) -> tuple[Done, ...]:
        """The commands once this one is begun; those whose deadline has passed can't be asked again."""
        others = [d for d in record.done if d.until >= now and d.request_id != self.request_id][-MOST_KEPT:]
        if not self.request_id:
            return tuple(others)
        until = self.deadline if self.deadline is not None else now + UNTIMED_S
        return (*others, Done(request_id=self.request_id, until=until))

    def find(self, record: Remembers) -> Done | None:
        """What is remembered of this, if it was asked before."""
        return next((d for d in record.done if d.request_id == self.request_id), None)

    def is_over(self, record: Remembers) -> bool:
        """Whether this was begun before, and has come to its end or been overtaken by another command."""
        done = self.find(record)
        return done is not None and (done.finished or done is not record.done[-1])


def ended(record: Record, error: Refused | None = None) -> tuple[Done, ...]:
    """The VM's commands once those at work have come to their end. `error`: what they failed with, if they did."""
    ending = None if error is None else ending_of(error, "")
    altering = record.altering  # which ends by itself: a reboot is no more over when the guest is off than when it runs
    own = altering.request_id if altering is not None else None
    return tuple(
        d if d.finished or (own is not None and d.request_id == own) else d.but(finished=True, ending=ending)
        for d in record.done
    )


def ended_alone(record: Remembers, request_id: str, error: Refused | None) -> tuple[Done, ...]:
    """The commands once this one is over; others that are at work go on."""
    ending = None if error is None else ending_of(error, "")
    return tuple(d.but(finished=True, ending=ending) if d.request_id == request_id else d for d in record.done)


UNASKED = Asked()
"""What the agent does of itself."""
