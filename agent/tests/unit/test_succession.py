"""What a VM remembers of those that had its id before it."""

import pytest

from aetherscale_agent import succession as s
from aetherscale_agent.journal import Done, Ending, Past, Record
from aetherscale_agent.recover import burial
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import CreateVm

NOW, DEADLINE = 1000.0, 1030.0
DELETED = Ending(code="vm-unknown", reason="VM was deleted", request_id="d1")
REFUSED = Ending(code="no-host", reason="no host can take this VM", request_id="r1")


def record(**changes: object) -> Record:
    made = Record(
        vm_id="sgeqxcfi",
        request_id="r1",
        spec=CreateVm(image="tiny", vm_id="sgeqxcfi"),
        deadline=DEADLINE,
        created=NOW,
        phase="gone",
        ending=DELETED,
    )
    return made.but(**changes)


def old(request: str, until: float = DEADLINE + 5) -> Past:
    return Past(request_id=request, until=until, ending=REFUSED)


def test_a_tombstone_is_remembered_with_its_create_and_whoever_deleted_it() -> None:
    memory = s.memory_of(record(done=(Done(request_id="s1", until=DEADLINE),), past=(old("r0"),)), NOW)
    assert [one.request_id for one in memory.past] == ["r0", "r1"]
    assert [(one.request_id, one.finished) for one in memory.done] == [("s1", True), ("d1", True)]
    assert memory.until == DEADLINE + s.SLACK_S


def test_what_was_refused_was_deleted_by_nobody() -> None:
    memory = s.memory_of(record(ending=REFUSED), NOW)
    assert ([one.request_id for one in memory.past], memory.done) == (["r1"], ())


@pytest.mark.parametrize("phase", ["bound", "ready", "deleting"])
def test_nobody_follows_a_vm_that_is_there(phase: str) -> None:
    assert s.memory_of(record(phase=phase), NOW) == s.NO_MEMORY
    assert not s.may_follow(record(phase=phase), "r2")


def test_what_is_over_for_good_is_forgotten() -> None:
    memory = s.memory_of(record(past=(old("r0", until=NOW - 1),)), DEADLINE + s.SLACK_S + 1)
    assert memory == s.NO_MEMORY
    assert memory.until == 0


def test_a_tombstone_is_followed_by_another_request_only() -> None:
    assert s.may_follow(record(), "r2")
    assert not s.may_follow(record(), "r1")


def test_a_follower_answers_for_those_before_it_and_not_for_itself() -> None:
    memory = s.Memory((old("r1"), old("r2")), (Done(request_id="d1", until=DEADLINE, finished=True),))
    follower = s.with_memory(record(request_id="r2", phase="claimed", ending=None), memory)
    assert s.find_past(follower, "r1") == REFUSED
    assert s.find_past(follower, "r2") is None
    assert [one.request_id for one in follower.done] == ["d1"]
    assert s.find_past(None, "r1") is None


def test_a_refused_create_is_remembered_once_and_no_longer_than_needed() -> None:
    error = Refused("vm-id-taken", "the name web1 is taken by another VM")
    kept = s.with_refused(record(phase="ready", past=(old("r0", until=NOW - 1),)), "r9", DEADLINE, error, NOW)
    kept = s.with_refused(kept, "r9", DEADLINE + 10, error, NOW)
    assert [(one.request_id, one.until) for one in kept.past] == [("r9", DEADLINE + 15)]
    assert kept.past[0].ending.code == "vm-id-taken"


def test_the_memory_of_refusals_is_bounded() -> None:
    kept = record(phase="ready")
    for number in range(s.MOST_KEPT + 10):
        kept = s.with_refused(kept, f"r{number}", DEADLINE, Refused("vm-id-taken", "taken"), NOW)
    assert len(kept.past) == s.MOST_KEPT


def test_a_claim_that_is_forgotten_falls_back_to_the_tombstone_before_it() -> None:
    claimed = record(request_id="r2", phase="claimed", ending=None, bound=True, past=(old("r0"), old("r1")))
    tomb = s.fall_back(claimed, NOW)
    assert tomb is not None
    assert (tomb.phase, tomb.request_id, tomb.bound, tomb.ending) == ("gone", "r1", True, REFUSED)
    assert [one.request_id for one in tomb.past] == ["r0"]


@pytest.mark.parametrize(
    "forgotten",
    [
        record(phase="claimed", ending=None),
        record(phase="claimed", ending=None, past=(old("r0", until=NOW - 1),)),
        record(past=(old("r0"),)),
    ],
)
def test_else_nothing_is_left_of_it(forgotten: Record) -> None:
    assert s.fall_back(forgotten, NOW) is None


def test_a_tombstone_is_not_buried_before_what_it_remembers_is_over() -> None:
    tomb = record(past=(old("r0", until=DEADLINE + 100),))
    assert burial(tomb, DEADLINE + 99) == ()
    assert burial(tomb, DEADLINE + 101) != ()
