"""The order of things: what is tied to the connection ends with the acknowledge, and nothing acts before it."""

import inspect

import pytest

from aetherscale_agent import courses
from aetherscale_agent.courses import Course
from aetherscale_agent.decide import AskOffers, Begin, HandOn, Leave, MakeClaim, Probe, Refuse, Rejoin, Step
from aetherscale_agent.session import Session
from aetherscale_protocol.errors import Refused

NO = Refused("no-host", "no")
ENDS: list[Step] = [HandOn("h2"), Leave(), Rejoin(), Rejoin(prolong=True), Refuse(NO), Refuse(NO, final=True), Begin()]
QUESTIONS: list[Step] = [MakeClaim(), Probe(), AskOffers()]

REVERSIBLE = {
    "create.claim",
    "create.probe",
    "create.offers",
    "create.journal",
    "create.bind",
    "create.journal-bound",
    "create.capacity",
    "create.refuse",
    "create.prolong",
    "create.hand-on",
    *(f"{verb}.look" for verb in ("start", "stop", "kill", "delete", "alter", "reboot")),
}
"""What may be done to a message that somebody else may be given next: it can be undone, or done twice."""

COURSES: list[Course] = [*courses.CHANGES.values(), *(courses.course_of(step) for step in ENDS)]


@pytest.mark.parametrize("course", COURSES, ids=str)
def test_nothing_acts_before_the_acknowledge(course: Course) -> None:
    tied = courses.tied(course)
    assert course[: len(tied)] == tied
    assert tied[-1].endswith(".acknowledge")
    assert set(tied[:-1]) <= REVERSIBLE
    assert not any(name.endswith(".acknowledge") or name in REVERSIBLE for name in course[len(tied) :])


@pytest.mark.parametrize("course", COURSES, ids=str)
def test_who_is_answered_is_answered_last(course: Course) -> None:
    answers = [name for name in course if name.endswith(".answer")]
    assert answers == ([course[-1]] if len(course) > len(courses.tied(course)) else [])


@pytest.mark.parametrize("step", QUESTIONS, ids=str)
def test_a_question_is_tied_as_a_whole_and_ends_nothing(step: Step) -> None:
    course = courses.course_of(step)
    assert courses.tied(course) == course
    assert not courses.is_end(step)


@pytest.mark.parametrize("step", ENDS, ids=str)
def test_what_lets_go_of_the_message_is_an_end(step: Step) -> None:
    assert courses.is_end(step)


def test_a_create_is_journalled_bound_and_reserved_before_it_is_acknowledged() -> None:
    assert courses.tied(courses.BEGIN) == (
        "create.journal",
        "create.bind",
        "create.journal-bound",
        "create.capacity",
        "create.acknowledge",
    )


def test_a_final_no_and_a_later_deadline_are_journalled_before_the_acknowledge() -> None:
    assert courses.course_of(Refuse(NO, final=True))[0] == "create.refuse"
    assert courses.course_of(Rejoin(prolong=True))[0] == "create.prolong"


def test_a_create_is_handed_on_before_it_is_let_go_of() -> None:
    assert courses.course_of(HandOn("h2")) == ("create.hand-on", "create.acknowledge")


def test_a_journal_entry_goes_after_its_binding() -> None:
    for course in (courses.UNDO_CLAIM, courses.BURY):
        assert [name.partition(".")[2] for name in course] == ["unbind", "forget"]


def test_the_queue_is_made_after_what_its_absence_asks_for() -> None:
    """Made before, an interruption would let the next connection believe that its bindings are there."""
    source = inspect.getsource(Session.open)
    in_order = ["_take_name", "connect.declare", "_bury", "_undo_claims", "connect.verify", "connect.queue"]
    places = [source.index(name) for name in (*in_order, "connect.bind", "connect.consume", "_take_creates")]
    assert places == sorted(places)


@pytest.mark.parametrize("course", [courses.BUILD, courses.ERASE, *courses.CHANGES.values()], ids=str)
def test_whatever_begins_something_is_due(course: Course) -> None:
    """The first step behind the acknowledge, and every one that starts or makes something."""
    own = course[len(courses.tied(course)) :] if courses.tied(course) != course else course
    assert own[0] in courses.DUE
    assert {name for name in course if name in ("build.disk", "build.seed", "build.start", "start.qemu")} <= courses.DUE


def test_nothing_is_due_that_ends_something() -> None:
    """What is half removed can only be removed, and what runs must be journalled."""
    assert not {name for name in courses.DUE if name.endswith((".settle", ".answer", ".remove", ".entomb", "-bound"))}


@pytest.mark.parametrize(
    ("command", "verb"),
    [
        ("start-vm", "start"),
        ("stop-vm", "stop"),
        ("stop-vm --kill", "kill"),
        ("delete-vm", "delete"),
        ("pause-vm", "alter"),
        ("reboot-vm", "reboot"),
    ],
)
def test_a_courses_verb(command: str, verb: str) -> None:
    assert courses.verb_of(courses.CHANGES[command]) == verb
    assert courses.verb_of(courses.BEGIN) == "create"
