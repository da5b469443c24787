"""What a storm will do, drawn from its seed: the faults that fall, and what each client does to each of its VMs.

Pure. A fault's moment, kind, target and length, and the script of a client's n-th VM in a slot, depend on nothing but
the seed. Which fault meets which command does not: that is timing, which no seed repeats.
"""

import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "agent-kill",
    "agent-freeze",
    "agent-restart",
    "host-power",
    "host-reboot",
    "network-cut",
    "qemu-kill",
    "disk-full",
    "image-gone",
    "broker-kill",
    "broker-restart",
    "broker-cut",
]

BROKER = "broker1"

LENGTHS: dict[Kind, tuple[float, float]] = {
    "agent-kill": (0.0, 0.0),
    "agent-freeze": (2.0, 14.0),  # from less than one heartbeat to more than three
    "agent-restart": (0.0, 0.0),
    "host-power": (0.0, 5.0),
    "host-reboot": (0.0, 0.0),
    "network-cut": (1.0, 12.0),
    "qemu-kill": (0.0, 0.0),
    "disk-full": (2.0, 6.0),
    "image-gone": (2.0, 6.0),
    "broker-kill": (0.0, 3.0),
    "broker-restart": (0.0, 0.0),
    "broker-cut": (1.0, 8.0),
}
"""How long each lasts before it is healed, in seconds, drawn evenly between these."""

RECOVERY_S: dict[Kind, float] = {"host-power": 4.0, "host-reboot": 4.0, "broker-kill": 10.0, "broker-restart": 10.0}
"""What healing is reckoned to take beyond that; one second where nothing is said."""

OFTEN: tuple[Kind, ...] = ("agent-kill", "agent-freeze", "host-power", "network-cut", "qemu-kill")
"""Kinds that fall twice as often as the others."""

MOST_AT_ONCE = 3


@dataclass(frozen=True)
class Fault:
    """One fault: falls `at` seconds after the storm began, and is healed `seconds` later."""

    number: int
    at: float
    kind: Kind
    target: str
    seconds: float


def draw_faults(seed: int, seconds: float, hosts: Sequence[str], gap: float) -> list[Fault]:
    """The faults of a storm of so many seconds: one every `gap` seconds on average, a few at a time at most.

    The first twelve are all of different kinds. No host has two at once.
    """
    draw = random.Random(f"faults {seed}")
    faults: list[Fault] = []
    busy: dict[str, float] = {}  # when each target's last fault should be over
    clock = draw.uniform(2.0, 4.0)
    for kind in _deal(draw):
        target = BROKER if kind.startswith("broker-") else draw.choice(hosts)
        length = round(draw.uniform(*LENGTHS[kind]), 1)
        clock = max(clock, busy.get(target, 0.0), _room(busy, clock))
        if clock + length > seconds:
            return faults
        faults.append(Fault(len(faults), round(clock, 1), kind, target, length))
        busy[target] = clock + length + RECOVERY_S.get(kind, 1.0)
        clock += draw.uniform(0.4, 1.6) * gap
    raise AssertionError("the deck never ends")


def _deal(draw: random.Random) -> Iterator[Kind]:
    """Kinds without end, from shuffled decks, so that each gets its share."""
    while True:
        yield from draw.sample(list(LENGTHS), len(LENGTHS))
        yield from draw.sample(OFTEN, len(OFTEN))


def _room(busy: dict[str, float], clock: float) -> float:
    """When the next fault may fall without being one too many."""
    ends = sorted((end for end in busy.values() if end > clock), reverse=True)
    return ends[MOST_AT_ONCE - 1] if len(ends) >= MOST_AT_ONCE else clock


Verb = Literal["create", "start", "stop", "kill", "delete", "list", "show"]

Manner = Literal[
    "once",
    "twice",  #: the same message is published twice
    "again",  #: and once it is answered, the same request is made again
    "gone",  #: the client is gone once it is published; another asks again with the same request id
    "contest",  #: another client creates the same id at the same time
]


@dataclass(frozen=True)
class Step:
    """One thing that a client does to a VM. `timeout` and `pause` (after it) in seconds."""

    verb: Verb
    manner: Manner
    timeout: float
    pause: float


@dataclass(frozen=True)
class Life:
    """What one VM is put through, from its create to its delete. `deaf`: it does not hear the power button."""

    vm_id: str
    deaf: bool
    steps: tuple[Step, ...]


MANNERS: tuple[Manner, ...] = ("once", "twice", "again", "gone")
TIMEOUTS = (6.0, 10.0, 15.0)


def draw_life(seed: int, client: int, slot: int, number: int) -> Life:
    """The script of the `number`th VM in a client's slot."""
    draw = random.Random(f"life {seed} {client} {slot} {number}")
    deaf = draw.random() < 0.3
    verbs: list[Verb] = ["create", *_middle(draw, deaf=deaf), "delete"]
    vm_id = "".join(draw.choices(string.ascii_lowercase, k=8))
    return Life(vm_id, deaf, tuple(_step(draw, verb) for verb in verbs))


def _middle(draw: random.Random, *, deaf: bool) -> list[Verb]:
    """What happens to a VM between its create and its delete; often nothing."""
    off: Verb = "kill" if deaf or draw.random() < 0.4 else "stop"
    courses: list[list[Verb]] = [[], [], [], [off], [off, "start"], ["list"], ["show"], ["start"], [off, "list"]]
    return draw.choice(courses)


def _step(draw: random.Random, verb: Verb) -> Step:
    manner: Manner = "once"
    if verb in ("create", "delete", "start", "kill"):
        manner = draw.choices(MANNERS, (70, 10, 10, 10))[0]
    if verb == "create" and draw.random() < 0.08:
        manner = "contest"
    return Step(verb, manner, draw.choice(TIMEOUTS), round(draw.uniform(0.0, 0.2), 2))


def draw_slots(seed: int, client: int, slots: int) -> Iterator[int]:
    """In which order a client turns to its VMs, without end."""
    draw = random.Random(f"slots {seed} {client}")
    while True:
        yield draw.randrange(slots)
