"""Who asks for a change, and what of it was done before: a command runs once, however often it is asked."""

from dataclasses import dataclass

from aetherscale_agent.journal import Done, Record

UNTIMED_S = 600.0
"""How long a command without a deadline is remembered."""
MOST_KEPT = 16


@dataclass(frozen=True)
class Asked:
    """Who asks for a change: the request's id, and its deadline in seconds since the epoch, if it has one."""

    request_id: str = ""
    deadline: float | None = None

    def begun(self, record: Record, now: float) -> tuple[Done, ...]:
        """The VM's commands once this one is begun; those whose deadline has passed can't be asked again."""
        others = [d for d in record.done if d.until > now and d.request_id != self.request_id][-MOST_KEPT:]
        if not self.request_id:
            return tuple(others)
        until = self.deadline if self.deadline is not None else now + UNTIMED_S
        return (*others, Done(request_id=self.request_id, until=until))

    def finished(self, record: Record) -> tuple[Done, ...]:
        """The VM's commands once this one has come to its end."""
        return tuple(d.but(finished=True) if d.request_id == self.request_id else d for d in record.done)

    def is_over(self, record: Record) -> bool:
        """Whether this was begun before, and has come to its end or been overtaken by another command."""
        ids = [d.request_id for d in record.done]
        if self.request_id not in ids:
            return False
        return record.done[ids.index(self.request_id)].finished or ids[-1] != self.request_id


UNASKED = Asked()
"""What the agent does of itself."""
