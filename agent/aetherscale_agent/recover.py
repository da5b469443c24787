"""What to do about a VM after an interruption: when the agent starts, when it connects, when time has passed. Pure."""

import enum

from aetherscale_agent.courses import BURY, UNDO_CLAIM, Course
from aetherscale_agent.journal import Record
from aetherscale_agent.ports import Power
from aetherscale_agent.succession import SLACK_S, fall_back, last_deadline

TOMBSTONE_SLACK_S = SLACK_S
"""How long after its create's deadline a tombstone stays: late copies may be on their way. Seconds."""


class Finding(enum.Enum):
    """What an agent that starts finds of a VM, by its record and its unit."""

    NOT_YET = "nothing is done about it before the broker is there"
    DELETING = "its deletion was begun: finish it"
    RUNS = "it runs, as it should"
    STARTED = "it was just being started when the agent went away, and runs"
    STOPPING = "its shutdown was under way: finish it"
    OFF = "it is off, as it should be"
    RESTED = "it came to rest while the agent was away"
    HOST_WENT_DOWN = "it should run, but the host went down, or its start was cut off: start it again"
    TOO_LATE = "its start was cut off, and its caller's deadline has passed: leave it off"


def find(record: Record, power: Power, boot_id: str, now: float) -> Finding:
    """What an agent that starts finds of a VM."""
    if record.phase == "deleting":
        return Finding.DELETING
    if record.phase != "ready":
        return Finding.NOT_YET
    if power is Power.ON:
        if record.wanted == "off":
            return Finding.STOPPING
        return Finding.RUNS if record.boot_id == boot_id else Finding.STARTED
    if record.wanted == "off":
        return Finding.OFF
    if record.start_by and now > record.start_by:
        return Finding.TOO_LATE
    return Finding.RESTED if record.boot_id == boot_id else Finding.HOST_WENT_DOWN


class Right(enum.Enum):
    """What an agent that connects may do about a VM."""

    NONE = "it is no VM yet, or no more"
    UNDO = "undo it: another host may have begun it meanwhile"
    BIND = "the directory names this host: bind it again"
    ASK = "claim and probe first: another host may have been given it"


def right_to(record: Record, *, has_queue: bool) -> Right:
    """What an agent that connects may do about a VM. `has_queue`: the host's queue, and so the bindings, are there.

    Without its queue (the broker was wiped, or the queue deleted) nothing that the journal says of bindings holds.
    """
    if record.phase == "claimed":
        return Right.UNDO
    if record.phase == "gone" and not record.bound:
        return Right.NONE
    return Right.BIND if has_queue and record.bound else Right.ASK


def undo_course(*, has_queue: bool, keeps_grave: bool = False) -> Course:
    """How a claim is undone. `keeps_grave`: it falls back to a tombstone that the directory names, and must name on."""
    return _where_bound(UNDO_CLAIM, has_queue=has_queue and not keeps_grave)


def keeps_grave(record: Record, now: float) -> bool:
    """Whether a claim, undone, leaves a tombstone that has its place in the directory."""
    return record.bound and fall_back(record, now) is not None


def burial(record: Record, now: float, *, has_queue: bool = True) -> Course:
    """How a tombstone is buried, if it is one and its time has come; else nothing."""
    if record.phase != "gone" or now <= last_deadline(record) + TOMBSTONE_SLACK_S:
        return ()
    return _where_bound(BURY, has_queue=has_queue)


def _where_bound(course: Course, *, has_queue: bool) -> Course:
    """There is nothing to unbind where there is no queue."""
    return tuple(name for name in course if has_queue or not name.endswith(".unbind"))
