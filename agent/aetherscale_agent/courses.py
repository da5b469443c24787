"""In which order things are done: every command's course, as data. The agent follows these, and so does the model.

A course is a tuple of steps (see `steps`). What stands in it up to the acknowledge is tied to the connection that
the command came on, and is cancelled with it, because the broker gives the command to somebody else then; what
stands after it belongs to the host, and goes on whatever happens.
"""

from aetherscale_agent.decide import AskOffers, Begin, HandOn, Leave, LetGo, MakeClaim, Probe, Refuse, Rejoin, Step

Course = tuple[str, ...]

BUILD: Course = ("build.disk", "build.seed", "build.start", "build.journal")
ERASE: Course = ("erase.journal", "erase.qemu", "erase.remove", "erase.entomb")

BEGIN: Course = (
    "create.journal",
    "create.bind",
    "create.journal-bound",
    "create.capacity",  # before the acknowledge, so that the next create meets the new figure
    "create.acknowledge",
    *BUILD,
    "create.answer",
)
START: Course = ("start.look", "start.acknowledge", "start.journal", "start.qemu", "start.settle", "start.answer")
STOP: Course = (
    "stop.look",
    "stop.acknowledge",
    "stop.journal",
    "stop.press",
    "stop.off",
    "stop.settle",
    "stop.answer",
)
KILL: Course = ("kill.look", "kill.acknowledge", "kill.journal", "kill.qemu", "kill.settle", "kill.answer")
DELETE: Course = ("delete.look", "delete.acknowledge", *ERASE, "delete.answer")
ALTER: Course = ("alter.look", "alter.acknowledge", "alter.journal", "alter.act", "alter.settle", "alter.answer")
REBOOT: Course = (
    "reboot.look",
    "reboot.acknowledge",
    "reboot.journal",
    "reboot.off",
    "reboot.start",
    "reboot.settle",
    "reboot.answer",
)
ALTERS: tuple[str, ...] = (
    "pause-vm",
    "resume-vm",
    "resize-vm",
    "snapshot-vm",
    "restore-vm",
    "delete-snapshot",
    "extend-vm",
    "reboot-vm --kill",
)

CHANGES: dict[str, Course] = {
    "start-vm": START,
    "stop-vm": STOP,
    "stop-vm --kill": KILL,
    "delete-vm": DELETE,
    "reboot-vm": REBOOT,
    **dict.fromkeys(ALTERS, ALTER),
}
"""The course of each command that changes a VM."""

UNDO_CLAIM: Course = ("connect.unbind", "connect.forget")
"""Undo a create that got no further than its claim. Its journal entry goes last: AMQP can't list bindings."""
BURY: Course = ("bury.unbind", "bury.forget")

DUE: frozenset[str] = frozenset(
    {
        "build.disk",
        "build.seed",
        "build.start",
        "start.journal",
        "start.qemu",
        "stop.journal",
        "kill.journal",
        "erase.journal",
        "alter.journal",
        "alter.act",
        "reboot.journal",
    }
)
"""What is not begun once the command's deadline has passed; a build has as much longer as it was at work."""


def course_of(step: Step) -> Course:
    """How a decision about a create is carried out."""
    match step:
        case MakeClaim():
            return ("create.claim",)
        case Probe():
            return ("create.probe",)
        case LetGo():
            return ("create.let-go",)
        case AskOffers():
            return ("create.offers",)
        case HandOn():
            return ("create.hand-on", "create.acknowledge")
        case Leave():
            return ("create.acknowledge",)
        case Rejoin(prolong=True):
            return ("create.prolong", "create.acknowledge", *BUILD, "create.answer")
        case Rejoin():
            return ("create.acknowledge", *BUILD, "create.answer")
        case Refuse(_, final=True):
            return ("create.refuse", "create.acknowledge", "create.answer")
        case Refuse(_, remember=True):
            return ("create.remember", "create.acknowledge", "create.answer")
        case Refuse():
            return ("create.acknowledge", "create.answer")
        case Begin():
            return BEGIN
        case _:
            raise AssertionError(f"{step} has no course")


def is_end(step: Step) -> bool:
    """Whether nothing is left to decide about a create once this decision's course is done."""
    return not isinstance(step, MakeClaim | Probe | AskOffers | LetGo)


def tied(course: Course) -> Course:
    """The part of a course that is tied to the connection: up to the acknowledge."""
    ends = [i for i, name in enumerate(course) if name.endswith(".acknowledge")]
    return course[: ends[0] + 1] if ends else course


def verb_of(course: Course) -> str:
    """The first word of a course's steps: start, stop, kill, delete, create."""
    return course[0].partition(".")[0]
