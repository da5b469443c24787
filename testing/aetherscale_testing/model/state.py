"""The model's world: one VM id, some hosts, a broker, clients. Small tuples, because millions of them are compared."""

from typing import NamedTuple

from aetherscale_agent.courses import Course


class Past(NamedTuple):
    """A create that is over, and what a late copy of it is answered: no, deleted, taken."""

    request: str
    ending: str
    fresh: bool = False


Pasts = tuple[Past, ...]


class Message(NamedTuple):
    """A message in a queue. `died` is the queue in which it expired: a host's number, or SHARED; None if it did not."""

    kind: str  #: C create, D delete, S start
    request: str
    hops: int = 0
    by_vm_key: bool = False
    died: int | None = None
    fresh: bool = False  #: asked again long after, with a deadline of its own

    @property
    def asker(self) -> str:
        """Whom its answer is for: a client that asks again long after no longer hears the answer to its first."""
        return self.request + "+" * self.fresh


SHARED = -1
"""The number of the queue that all hosts share, where a host's number is asked for."""


class Entry(NamedTuple):
    """A journal entry. `ending`: '' or what a tombstone answers; `started`: when the VM was last started."""

    phase: str
    request: str
    bound: bool = False
    ending: str = ""  #: no: the create was refused or undone; deleted: it was a VM once
    wanted: str = "on"
    started: str = ""  #: now: since the host's last boot; old: before it; '': a start was begun and not finished
    timed: bool = False  #: the start that is not finished has a deadline
    fresh: bool = False  #: of a create that was asked again long after
    past: Pasts = ()  #: creates of the id that are over

    @property
    def asker(self) -> str:
        """Who asked for it: see Message."""
        return self.request + "+" * self.fresh


class Known(NamedTuple):
    """What a copy of a create has learnt so far: see `decide.Facts`."""

    claim: int | None = None  #: who owns the claim; None: not asked yet
    held: bool | None = None
    offers: tuple[bool, ...] | None = None
    let_go: bool = False


class Tied(NamedTuple):
    """Work that is tied to the connection: a message in hand, or (no message) connecting, or burying."""

    message: Message | None
    source: str  #: comp, host, dead; '' without a message
    known: Known
    course: Course
    step: int
    decision: str
    to: int = SHARED  #: whom it is handed on to
    acknowledged: bool = False
    stale: bool = False  #: its connection is lost, and it has not noticed


class Line(NamedTuple):
    """Work that goes on whatever happens to the connection: the VM's line. `told`: somebody waits for the answer."""

    course: Course
    step: int
    outcome: str  #: ok, no, deleted, started
    told: bool
    request: str = ""


class HostState(NamedTuple):
    """One host: what survives its agent (journal, disk, power), and its agent."""

    entry: Entry | None = None
    disk: bool = False
    on: bool = False
    alive: bool = True
    connected: bool = True
    consuming: bool = True
    room: bool = True
    tied: Tied | None = None
    line: Line | None = None
    new_broker: bool = False  #: noted on disk: it found a new broker, and has taken no creates since
    restock: bool = False  #: the agent has just started and has not looked at its VMs


class Budget(NamedTuple):
    """How often each thing may still happen."""

    crash: int = 0
    power: int = 0
    drop: int = 0
    resend: int = 0
    delete: int = 0
    start: int = 0
    expire: int = 0
    wipe: int = 0
    forget: int = 0
    fail: int = 0
    again: int = 0
    reuse: int = 0


class State(NamedTuple):
    """The world. `queue` and `bound`: per host, whether its queue exists and vm.<id> is bound to it."""

    hosts: tuple[HostState, ...]
    comp: tuple[Message, ...]
    inbox: tuple[tuple[Message, ...], ...]
    dead: tuple[Message, ...]
    claim: int | None
    queue: tuple[bool, ...]
    bound: tuple[bool, ...]
    time: int  #: 0: before the deadline; 1: after it; 2: after the tombstones' slack, and claims may have expired
    told: frozenset[tuple[str, str]]
    budget: Budget
    wiped: bool = False

    def host(self, number: int, **changes: object) -> "State":
        """The same world with a host changed."""
        hosts = list(self.hosts)
        hosts[number] = hosts[number]._replace(**changes)  # type: ignore[arg-type]
        return self._replace(hosts=tuple(hosts))

    def tell(self, request: str, outcome: str) -> "State":
        """The same world after a client was told this."""
        return self._replace(told=self.told | {(request, outcome)})

    def put(self, number: int, message: Message) -> "State":
        """The same world with one more message in a host's queue."""
        return self._replace(inbox=change(self.inbox, number, add(self.inbox[number], message)))


def change(items: tuple, number: int, value: object) -> tuple:  # type: ignore[type-arg]
    """A tuple with one item changed."""
    return (*items[:number], value, *items[number + 1 :])


def add(messages: tuple[Message, ...], message: Message) -> tuple[Message, ...]:
    """A queue with one more message: in order of their names, because order is no promise."""
    return tuple(sorted((*messages, message), key=repr))


def take(messages: tuple[Message, ...], message: Message) -> tuple[Message, ...]:
    """A queue with one message less."""
    rest = list(messages)
    rest.remove(message)
    return tuple(rest)


LOCAL = frozenset(
    {
        "create.journal",
        "create.journal-bound",
        "create.refuse",
        "create.prolong",
        "create.remember",
        "connect.forget",
        "bury.forget",
        "create.capacity",
    }
    | {"delete.look", "start.look"}
)
"""Steps that need no broker: work whose connection is lost may still take them before it notices."""

EXISTS = ("bound", "ready", "deleting")
"""The phases in which a journal entry is a VM to the outside."""
