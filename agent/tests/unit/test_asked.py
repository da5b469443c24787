"""What is remembered of commands, so that each runs once: pure."""

import pytest

from aetherscale_agent.asked import MOST_KEPT, UNASKED, UNTIMED_S, Asked, ended
from aetherscale_agent.journal import Record
from aetherscale_agent.refusals import ending_refusal
from aetherscale_protocol.errors import Refused
from aetherscale_testing.world import NOW, record

R1, R2 = Asked("r1", NOW + 30), Asked("r2", NOW + 60)


def after(*asked: Asked, now: float = NOW, start: Record | None = None) -> Record:
    """A VM on which these were begun, one after the other."""
    known = start or record("ready")
    for one in asked:
        known = known.but(done=one.begun(known, now))
    return known


def ids(known: Record) -> list[str]:
    return [done.request_id for done in known.done]


def over(known: Record) -> Record:
    return known.but(done=ended(known))


@pytest.mark.parametrize(
    ("known", "r1_is_over"),
    [
        (record("ready"), False),
        (after(R1), False),  # unfinished and last: it may go on
        (over(after(R1)), True),
        (after(R1, R2), True),  # overtaken
        (after(R2, R1), False),
        (after(R1, R2, R1), False),
    ],
)
def test_what_is_over_is_not_begun_again(known: Record, r1_is_over: bool) -> None:
    assert R1.is_over(known) is r1_is_over


def test_what_came_to_its_end_took_all_before_it_along_and_nothing_after() -> None:
    known = after(R2, start=over(after(R1)))
    assert [done.finished for done in known.done] == [True, False]
    assert [done.finished for done in over(known).done] == [True, True]


def test_a_failure_is_remembered_word_for_word_and_no_success_becomes_one() -> None:
    known = after(R2, start=over(after(R1)))
    known = known.but(done=ended(known, Refused("failed", "start-vm: no memory", "free some")))
    first, second = known.done
    assert first.ending is None
    assert second.ending is not None
    told = ending_refusal(second.ending)
    assert (told.code, told.reason, told.hint) == ("failed", "start-vm: no memory", "free some")


def test_what_can_not_be_asked_any_more_is_forgotten() -> None:
    known = after(R1, R2)
    assert ids(after(Asked("r3", NOW + 90), now=NOW + 31, start=known)) == ["r2", "r3"]
    assert ids(after(Asked("r3", NOW + 90), now=NOW + 30, start=known)) == ["r1", "r2", "r3"]


def test_only_so_many_are_kept_and_the_latest_of_them() -> None:
    known = after(*(Asked(f"r{n}", NOW + 60) for n in range(100)))
    assert ids(known) == [f"r{n}" for n in range(99 - MOST_KEPT, 100)]


def test_one_without_a_deadline_is_remembered_for_a_while() -> None:
    known = after(Asked("r1"))
    assert known.done[0].until == NOW + UNTIMED_S


def test_who_names_no_request_is_not_remembered_and_overtakes_nobody() -> None:
    known = after(R1, UNASKED, Asked("", NOW + 60))
    assert ids(known) == ["r1"]
    assert not Asked("").is_over(known)
    assert Asked("").find(known) is None
