"""The worlds that are explored: how many hosts, and what may go wrong how often."""

from dataclasses import dataclass

from aetherscale_testing.model.state import Budget, Entry, HostState, Message, State


@dataclass(frozen=True)
class Scenario:
    """A world to begin with, and what is no violation in it."""

    what: str
    start: State
    allowed: frozenset[str] = frozenset()


def world(hosts: tuple[HostState, ...], budget: Budget, *creates: Message, vm_on: int | None = None) -> State:
    """A world with these hosts, and these creates in the shared queue."""
    count = len(hosts)
    return State(
        hosts=hosts,
        comp=tuple(sorted(creates, key=repr)),
        inbox=((),) * count,
        dead=(),
        claim=vm_on,
        queue=(True,) * count,
        bound=tuple(number == vm_on for number in range(count)),
        time=0,
        told=frozenset(),
        budget=budget,
    )


def _told_ok(state: State) -> State:
    """The same world, whose client was told that its VM was made."""
    return state.tell("A", "ok")


ROOM, FULL = HostState(), HostState(room=False)
A, B = Message("C", "A"), Message("C", "B")
STOPPED = HostState(entry=Entry("ready", "A", bound=True, wanted="off", started="now"), disk=True)
OVER = HostState(entry=Entry("gone", "A", ending="no"), room=False)

CLAIMED = HostState(entry=Entry("claimed", "A"), alive=False, connected=False, consuming=False)

SCENARIOS: dict[str, Scenario] = {
    "crash": Scenario(
        "an agent dies, copies expire, the client asks again, and deletes",
        world((ROOM, ROOM), Budget(crash=1, resend=1, delete=1, expire=1), A),
    ),
    "drop": Scenario(
        "a connection is lost, copies expire, the client asks again, and deletes",
        world((ROOM, ROOM), Budget(drop=1, resend=1, delete=1, expire=1), A),
    ),
    "both": Scenario(
        "an agent dies and a connection is lost; copies expire",
        world((ROOM, ROOM), Budget(crash=1, drop=1, expire=1), A),
    ),
    "twice": Scenario(
        "agents die twice, the client asks again, and deletes",
        world((ROOM, ROOM), Budget(crash=2, resend=1, delete=1), A),
    ),
    "power": Scenario(
        "a host loses power and a connection is lost, the client deletes",
        world((ROOM, ROOM), Budget(power=1, drop=1, delete=1), A),
    ),
    "full": Scenario(
        "no host has room; a connection is lost, copies expire, the client asks again",
        world((FULL, FULL), Budget(drop=1, resend=1, expire=1), A),
    ),
    "mixed": Scenario(
        "one host is full and hands on; a connection is lost, the client asks again",
        world((FULL, ROOM), Budget(drop=1, resend=1, expire=1), A),
    ),
    "owner": Scenario(
        "a host that is full owns a claim that guards nothing; a connection is lost, copies expire",
        world((FULL, ROOM), Budget(drop=1, expire=1), A)._replace(claim=0),
    ),
    "three": Scenario("three hosts, one full; an agent dies", world((FULL, ROOM, ROOM), Budget(crash=1, expire=1), A)),
    "fails": Scenario(
        "the build fails, an agent dies, the client asks again",
        world((ROOM, ROOM), Budget(fail=1, crash=1, resend=1), A),
    ),
    "two": Scenario("two clients create one id; a connection is lost", world((ROOM, ROOM), Budget(drop=1), A, B)),
    "again": Scenario(
        "asked again long after; an agent dies, a connection is lost",
        world((ROOM, ROOM), Budget(crash=1, drop=1, again=1), A),
    ),
    "reuse": Scenario(
        "a VM is deleted and its id used anew, while copies of its create are about; an agent dies",
        _told_ok(world((STOPPED, ROOM), Budget(crash=1, delete=1, reuse=1, resend=1), vm_on=0)),
    ),
    "reuse-full": Scenario(
        "the same where the host that had the VM has no room",
        _told_ok(world((STOPPED._replace(room=False), ROOM), Budget(delete=1, reuse=1, resend=1), vm_on=0)),
    ),
    "over": Scenario(
        "a create was refused, its id is used anew, a copy of it is about; a connection is lost",
        world((OVER, ROOM), Budget(drop=1, resend=1), B._replace(fresh=True))._replace(claim=0).tell("A", "no"),
    ),
    "refused": Scenario(
        "a create is refused because another VM has its id; that VM is deleted, copies of the create are about",
        _told_ok(world((STOPPED, ROOM), Budget(delete=1, drop=1), B, B, vm_on=0)),
    ),
    "start": Scenario(
        "a start; an agent dies, a connection is lost, power is lost",
        world((STOPPED, ROOM), Budget(crash=1, drop=1, power=1, start=1, expire=1), vm_on=0),
    ),
    "wipe": Scenario(
        "the broker is wiped, an agent dies, the client asks again",
        world((ROOM, ROOM), Budget(wipe=1, resend=1, crash=1), A),
    ),
    "claimed": Scenario(
        "a host that had only claimed comes back to a new broker, where the client has asked again",
        world((CLAIMED, ROOM), Budget(drop=1, crash=1), A)._replace(queue=(False, True), wiped=True),
    ),
    "bound": Scenario(
        "a host that had claimed and bound comes back",
        world((CLAIMED, ROOM), Budget(drop=1, crash=1, expire=1), A, vm_on=0),
    ),
    "forget": Scenario(
        "a host is forgotten, the client asks again, and the host comes back",
        world((ROOM, ROOM), Budget(forget=1, crash=1, again=1), A),
        frozenset({"TWO VMS"}),
    ),
}
