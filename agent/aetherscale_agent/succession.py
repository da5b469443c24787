"""One id, several VMs in turn: what a VM must remember of those that had its id before it. Pure.

A VM with a name has the name's id (`names.id_of_name`), so a name that is used again is an id that is used again. A
create may follow a tombstone of another request; what the tombstone guarded, the follower guards from then on: late
copies of creates that are over, and of commands that were done to a VM that is no more. So only the
host that guards an id may take such a create, as long as there is anything to guard: docs/decisions/006-names.md
"""

from msgspec import Struct

from aetherscale_agent.journal import Done, Ending, Past, Record
from aetherscale_agent.refusals import ending_of
from aetherscale_protocol.errors import Refused

SLACK_S = 5.0
"""How long after its deadline a create is remembered: late copies may be on their way. Seconds."""
MOST_KEPT = 64


class Memory(Struct, frozen=True, omit_defaults=True):
    """Creates that are over, and commands that were done, of an id."""

    past: tuple[Past, ...] = ()
    done: tuple[Done, ...] = ()

    @property
    def until(self) -> float:
        """Until when it is needed; 0 if there is nothing in it."""
        return max((one.until for one in self.past), default=0.0)


NO_MEMORY = Memory()


def memory_of(record: Record | None, now: float) -> Memory:
    """What whoever follows this record must remember. Nothing of a VM that is there: nobody follows it."""
    if record is None or record.phase not in ("claimed", "gone"):
        return NO_MEMORY
    past = [one for one in record.past if one.until >= now]
    done = [one.but(finished=True) for one in record.done if one.until >= now]
    ending = record.ending
    if record.phase == "gone" and ending is not None and record.deadline + SLACK_S >= now:
        past.append(Past(request_id=record.request_id, until=record.deadline + SLACK_S, ending=ending))
        if ending.request_id not in ("", record.request_id):  # whoever deleted it
            done.append(Done(request_id=ending.request_id, until=record.deadline + SLACK_S, finished=True))
    return Memory(tuple(past), tuple(done))


def with_memory(record: Record, memory: Memory) -> Record:
    """A new VM's record, with what was remembered of its id; its own request is no past."""
    past = tuple(one for one in memory.past if one.request_id != record.request_id)
    return record.but(past=past, done=memory.done)


def with_refused(record: Record, request_id: str, deadline: float, error: Refused, now: float) -> Record:
    """A record that remembers a create of its id that was refused."""
    others = [one for one in record.past if one.until >= now and one.request_id != request_id]
    new = Past(request_id=request_id, until=deadline + SLACK_S, ending=ending_of(error, request_id))
    return record.but(past=(*others, new)[-MOST_KEPT:])


def find_past(record: Record | None, request_id: str) -> Ending | None:
    """What a copy of this request's create is answered, if the create is over."""
    past = record.past if record is not None else ()
    return next((one.ending for one in past if one.request_id == request_id), None)


def may_follow(record: Record, request_id: str) -> bool:
    """Whether a create of this request may take the record's place: it is a tombstone of another one."""
    return record.phase == "gone" and record.request_id != request_id


def last_deadline(record: Record) -> float:
    """Until when a tombstone is needed, less the slack. Seconds since the epoch."""
    return max([record.deadline, *(one.until - SLACK_S for one in record.past)])


def fall_back(record: Record, now: float) -> Record | None:
    """What is left of a record that is to be forgotten: a claim's memory makes a tombstone again; else nothing."""
    past = [one for one in record.past if one.until >= now]
    if record.phase != "claimed" or not past:
        return None
    last = past[-1]
    rest = tuple(past[:-1])
    return record.but(
        request_id=last.request_id,
        deadline=last.until - SLACK_S,
        phase="gone",
        ending=last.ending,
        past=rest,
    )
