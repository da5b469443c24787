"""Every step has a name, and every name a step: what tests cut the agent off at is all that there is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import aetherscale_agent
from aetherscale_agent import courses, decide, steps
from aetherscale_agent.steps import STEPS, step
from aetherscale_protocol.errors import Refused

ALL_COURSES = (
    courses.BUILD,
    courses.ERASE,
    courses.BEGIN,
    *courses.CHANGES.values(),
    courses.UNDO_CLAIM,
    courses.BURY,
    *(
        courses.course_of(decision)
        for decision in (
            decide.MakeClaim(),
            decide.Probe(),
            decide.AskOffers(),
            decide.LetGo(),
            decide.HandOn("h2"),
            decide.Leave(),
            decide.Rejoin(),
            decide.Rejoin(prolong=True),
            decide.Refuse(Refused("no-host", "no"), final=True),
            decide.Refuse(Refused("vm-id-taken", "no"), remember=True),
            decide.Refuse(Refused("no-host", "no")),
            decide.Begin(),
        )
    ),
)
IN_COURSES = {name for course in ALL_COURSES for name in course}


def sources() -> Iterator[tuple[str, ast.Module]]:
    folder = Path(aetherscale_agent.__file__).parent
    for path in folder.rglob("*.py"):
        if path.name != "steps.py":
            yield path.name, ast.parse(path.read_text())


def calls_of_step() -> list[ast.expr]:
    """The first argument of every call of `step` in the agent's sources."""
    return [
        node.args[0]
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "step"
    ]


def names_in_calls() -> set[str]:
    """The names that stand in these calls; those of a course, or made of a verb, are variables there."""
    return {str(arg.value) for arg in calls_of_step() if isinstance(arg, ast.Constant)}


def verbs_that_answer() -> set[str]:
    return {f"{courses.verb_of(course)}.answer" for course in (courses.BEGIN, *courses.CHANGES.values())}


def test_every_name_in_the_agent_is_a_steps() -> None:
    assert names_in_calls() <= set(STEPS)
    assert set(STEPS) >= IN_COURSES
    assert verbs_that_answer() <= set(STEPS)
    assert set(STEPS) >= courses.DUE


def test_every_step_is_taken_somewhere() -> None:
    """By name, or as one of a course that somebody walks."""
    assert set(STEPS) == names_in_calls() | IN_COURSES | verbs_that_answer()


def test_every_way_to_take_a_step_is_one_of_a_steps() -> None:
    """The branches of `match name` in the agent: one too many is never taken, and nobody would miss it."""
    taken = {
        pattern.value.value
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.match_case)
        for pattern in ast.walk(node.pattern)
        if isinstance(pattern, ast.MatchValue) and isinstance(pattern.value, ast.Constant)
    }
    dotted = {name for name in taken if isinstance(name, str) and "." in name}
    assert dotted <= IN_COURSES
    assert set(courses.BUILD) | set(courses.ERASE) <= dotted


def test_the_steps_are_listed_in_the_order_in_which_they_are_taken() -> None:
    order = list(STEPS)
    for course in (*courses.CHANGES.values(), courses.BEGIN, courses.ERASE, courses.BURY):
        own = [name for name in course if not name.startswith("erase.")] if course is not courses.ERASE else course
        assert sorted(own, key=order.index) == list(own)


# The watcher


@pytest.fixture
def seen() -> Iterator[list[tuple[str, str, str]]]:
    heard: list[tuple[str, str, str]] = []
    steps.watch(lambda when, name, vm_id: heard.append((when, name, vm_id)))
    yield heard
    steps.watch(None)


def test_a_step_is_announced_before_and_after(seen: list[tuple[str, str, str]]) -> None:
    with step("build.disk", "sgeqxcfi"):
        seen.append(("now", "", ""))
    assert seen == [("before", "build.disk", "sgeqxcfi"), ("now", "", ""), ("after", "build.disk", "sgeqxcfi")]


def test_a_step_that_fails_has_no_after(seen: list[tuple[str, str, str]]) -> None:
    with pytest.raises(OSError), step("agent.load"):
        raise OSError
    assert seen == [("before", "agent.load", "")]


def test_nobody_is_told_when_nobody_watches(seen: list[tuple[str, str, str]]) -> None:
    steps.watch(None)
    with step("agent.load"):
        pass
    assert seen == []
