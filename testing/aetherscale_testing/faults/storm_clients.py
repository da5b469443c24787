"""The clients of a storm: each puts one VM after the other through its script, in a few slots, without pause.

What a client does next depends on what it is told only where it must: an unknown outcome is asked for again with the
same request id, a command that was not sent or not begun is given again, a VM that was refused is given up.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from aetherscale_protocol import names
from aetherscale_testing.faults.ledger import NOTHING, Told
from aetherscale_testing.faults.storm_book import Book
from aetherscale_testing.faults.storm_plan import Life, Step, draw_life, draw_slots
from aetherscale_testing.faults.storm_wire import NOT_SENT, Answered, Line, Order

MOST_TRIES = 8
"""How often a step is tried before its VM is left to the reckoning after the storm."""

AGAIN_AFTER_S = 1.5
"""How long a client waits before it asks again."""

_RANK = ("none", "unknown", "refused", "done")


@dataclass
class Slot:
    """One VM of a client, and how far its script is."""

    life: Life
    number: int = 0
    at: int = 0
    due: float = 0.0
    tries: int = 0
    request_id: str = field(default_factory=names.new_request_id)
    open: bool = False  #: the outcome of the step is not known yet
    exists: bool = False  #: its create was told done, and no delete was sent since

    @property
    def step(self) -> Step:
        """What is next."""
        return self.life.steps[self.at]

    def renew(self, life: Life) -> None:
        """The next VM's turn."""
        self.life, self.number, self.at, self.exists = life, self.number + 1, 0, False
        self.fresh()

    def advance(self) -> None:
        """The step is done."""
        self.at += 1
        self.fresh()

    def fresh(self) -> None:
        """A new request, for the next step or for the same again."""
        self.request_id, self.open, self.tries = names.new_request_id(), False, 0

    def again(self, *, same: bool) -> None:
        """Try the step again in a moment, as the same request or as a new one."""
        tries = self.tries + 1
        if not same:
            self.fresh()
        self.tries, self.open = tries, same
        self.later()

    def later(self) -> None:
        """It could not be tried at all; do so in a moment."""
        self.due = time.monotonic() + AGAIN_AFTER_S


class Client(threading.Thread):
    """One client, a thread."""

    def __init__(
        self, number: int, seed: int, slots: int, make_line: Callable[[str], Line], book: Book, stop: threading.Event
    ) -> None:
        super().__init__(name=f"client-{number}")
        self._number, self._seed = number, seed
        self._line, self._rival = make_line(self.name), make_line(f"{self.name}-rival")
        self._book = book
        self._stopped = stop
        self._slots = [Slot(draw_life(seed, number, slot, 0)) for slot in range(slots)]
        self.error: BaseException | None = None

    def run(self) -> None:
        """Work until told to stop; what goes wrong in here is kept as `error`."""
        try:
            for index in draw_slots(self._seed, self._number, len(self._slots)):
                if self._stopped.is_set():
                    return
                self._turn(index)
        except BaseException as error:
            self.error = error
        finally:
            self._line.close()
            self._rival.close()

    def _turn(self, index: int) -> None:
        slot = self._slots[index]
        if time.monotonic() < slot.due:
            self._stopped.wait(0.02)
            return
        step = slot.step
        if step.verb == "list":
            self._list(step)
            slot.advance()
        else:
            self._settle(index, slot, self._perform(slot, step))
        self._stopped.wait(step.pause)

    # One step

    def _perform(self, slot: Slot, step: Step) -> Told:
        order = Order(step.verb, slot.life.vm_id, slot.life.deaf, slot.request_id, step.timeout)
        if slot.open:
            return self._ask(order, "repeated")
        match step.manner:
            case "twice":
                return self._ask(order, "twice", copies=2)
            case "again":
                told = self._ask(order, "again")
                return told if told == NOT_SENT else best(told, self._ask(order, "again"))
            case "gone":
                return self._vanish(order)
            case "contest":
                return self._contest(slot, order)
            case _:
                return self._ask(order, "once")

    def _ask(self, order: Order, manner: str, copies: int = 1) -> Told:
        began = time.monotonic()
        numbers = self._book.asked(self.name, order, manner, copies)
        self._line.start(order, copies)
        answers = self._line.finish()
        self._book.told(self.name, order, numbers, answers, time.monotonic() - began)
        return best(*(answer.told for answer in answers))

    def _vanish(self, order: Order) -> Told:
        self._book.asked(self.name, order, "gone")
        self._line.vanish(order)
        return NOTHING

    def _contest(self, slot: Slot, order: Order) -> Told:
        """Two clients create one id: the slot goes on with whichever request may have made the VM."""
        other = replace(order, request_id=names.new_request_id())
        mine = self._book.asked(self.name, order, "contest")
        theirs = self._book.asked(self._rival_name, other, "contest")
        self._line.start(order)
        self._rival.start(other)
        own = self._conclude(order, mine, self._line, self.name)
        rival = self._conclude(other, theirs, self._rival, self._rival_name)
        if rival == NOT_SENT or rival.outcome == "refused" or best(rival, own) == own:
            return own
        slot.request_id = other.request_id
        return rival

    @property
    def _rival_name(self) -> str:
        return f"{self.name}-rival"

    def _conclude(self, order: Order, numbers: list[int], line: Line, who: str) -> Told:
        began = time.monotonic()
        answers: list[Answered] = line.finish()
        self._book.told(who, order, numbers, [*answers], time.monotonic() - began)
        return answers[0].told

    def _list(self, step: Step) -> None:
        """Whoever gets a complete list finds in it all that there must be."""
        there = {slot.life.vm_id for slot in self._slots if slot.exists}
        found = self._line.list_vms(step.timeout)
        self._book.note("list", who=self.name, vms=None if found is None else len(found))
        if found is not None and there - found:
            self._book.suspect(f"{self.name}: a complete list of VMs lacked {', '.join(sorted(there - found))}")

    # What became of it

    def _settle(self, index: int, slot: Slot, told: Told) -> None:
        verb = slot.step.verb
        perhaps_deleted = verb == "delete" and (slot.open or slot.step.manner != "once")
        if told.what == "vm-unknown" and slot.exists and not perhaps_deleted:
            self._book.suspect(f"{self.name}: {verb} of VM {slot.life.vm_id}, which exists, was told vm-unknown")
        if verb == "delete":
            slot.exists = slot.exists and told == NOT_SENT
        if told == NOT_SENT:
            slot.later()
        elif told.outcome in ("none", "unknown") and verb != "show":
            slot.again(same=True)
        elif verb == "create":
            self._created(index, slot, told)
        elif verb == "delete":
            self._deleted(index, slot, told)
        else:
            slot.advance()
        if slot.tries > MOST_TRIES:
            self._renew(index, slot)

    def _created(self, index: int, slot: Slot, told: Told) -> None:
        if told.outcome == "done":
            slot.exists = True
            slot.advance()
        else:
            self._renew(index, slot)

    def _deleted(self, index: int, slot: Slot, told: Told) -> None:
        if told.outcome == "done" or told.what == "vm-unknown":
            self._renew(index, slot)
        else:
            slot.again(same=False)

    def _renew(self, index: int, slot: Slot) -> None:
        slot.renew(draw_life(self._seed, self._number, index, slot.number + 1))


def best(*told: Told) -> Told:
    """Of several answers to one request the one that says most; that a copy was not sent says least."""
    return max(told, key=lambda t: -1 if t == NOT_SENT else _RANK.index(t.outcome))
