"""The storm's plan, its clients' bookkeeping and its reckoning, without a lab."""

import itertools
from pathlib import Path

import pytest

from aetherscale_protocol import names
from aetherscale_testing.faults.ledger import NOTHING, Entry, Told
from aetherscale_testing.faults.storm_book import Book
from aetherscale_testing.faults.storm_clients import best
from aetherscale_testing.faults.storm_faults import KINDS
from aetherscale_testing.faults.storm_plan import (
    BROKER,
    LENGTHS,
    MOST_AT_ONCE,
    RECOVERY_S,
    Fault,
    draw_faults,
    draw_life,
    draw_slots,
)
from aetherscale_testing.faults.storm_reckoning import find_unknown
from aetherscale_testing.faults.storm_wire import NOT_SENT, Answered, Order

HOSTS = ("h1", "h2", "h3")
SEEDS = range(40)


def end(fault: Fault) -> float:
    return fault.at + fault.seconds + RECOVERY_S.get(fault.kind, 1.0)


def test_the_same_seed_draws_the_same_storm_and_another_draws_another() -> None:
    assert draw_faults(7, 600, HOSTS, 8) == draw_faults(7, 600, HOSTS, 8)
    assert draw_faults(7, 600, HOSTS, 8) != draw_faults(8, 600, HOSTS, 8)
    lives = [draw_life(7, client, slot, n) for client in range(4) for slot in range(3) for n in range(5)]
    assert lives == [draw_life(7, client, slot, n) for client in range(4) for slot in range(3) for n in range(5)]
    assert lives != [draw_life(8, client, slot, n) for client in range(4) for slot in range(3) for n in range(5)]
    first, second = (list(itertools.islice(draw_slots(7, 2, 3), 50)) for _ in range(2))
    assert first == second


def test_a_longer_storm_begins_as_the_shorter_one_does() -> None:
    short, long = draw_faults(3, 100, HOSTS, 8), draw_faults(3, 600, HOSTS, 8)
    assert long[: len(short)] == short


@pytest.mark.parametrize("seed", SEEDS)
def test_faults_keep_to_their_bounds(seed: int) -> None:
    faults = draw_faults(seed, 900, HOSTS, 8)
    assert len(faults) >= 75
    assert {fault.kind for fault in faults[: len(LENGTHS)]} == set(LENGTHS)
    for fault in faults:
        assert fault.at + fault.seconds <= 900
        assert LENGTHS[fault.kind][0] <= fault.seconds <= LENGTHS[fault.kind][1]
        assert (fault.target == BROKER) == fault.kind.startswith("broker-")
        others = [f for f in faults if f.number < fault.number and end(f) > fault.at + 0.2]
        assert fault.target not in {other.target for other in others}
        assert len(others) < MOST_AT_ONCE


@pytest.mark.parametrize("seed", SEEDS)
def test_a_short_storm_has_faults_of_many_kinds(seed: int) -> None:
    faults = draw_faults(seed, 80, ("h1", "h2"), 6)
    assert len(faults) >= 8
    assert len({fault.kind for fault in faults}) >= 8


def test_every_kind_of_fault_can_be_made() -> None:
    assert set(KINDS) == set(LENGTHS)


def test_every_life_begins_with_a_create_and_ends_with_a_delete() -> None:
    lives = [draw_life(1, client, slot, n) for client in range(6) for slot in range(3) for n in range(50)]
    assert len({life.vm_id for life in lives}) == len(lives)
    for life in lives:
        assert names.is_vm_id(life.vm_id)
        assert (life.steps[0].verb, life.steps[-1].verb) == ("create", "delete")
        assert not any(life.deaf and step.verb == "stop" for step in life.steps)
        assert all(step.timeout <= 30 for step in life.steps)
    steps = [step for life in lives for step in life.steps]
    assert {step.verb for step in steps} == {"create", "start", "stop", "kill", "delete", "list", "show"}
    assert {step.manner for step in steps} == {"once", "twice", "again", "gone", "contest"}


def test_of_several_answers_the_one_counts_that_says_most() -> None:
    done, no, lost = Told("done"), Told("refused", "failed"), Told("unknown")
    assert best(no, done, lost) == done
    assert best(lost, no) == no
    assert best(NOTHING, lost) == lost
    assert best(lost, NOT_SENT) == lost  # a copy that was not sent does not say that the other was not done
    assert best(NOT_SENT, NOT_SENT) == NOT_SENT


def entry(verb: str, told: Told, at: float, vm_id: str = "abcdefgh", request: str = "") -> Entry:
    return Entry(vm_id, request or f"request-{at}", verb, at + 10, at, told, at + 1)  # type: ignore[arg-type]


def test_unknown_is_what_was_never_told_in_any_copy() -> None:
    open_, again = entry("create", NOTHING, 1.0, request="a"), entry("create", Told("unknown"), 2.0, request="a")
    assert find_unknown([open_, again]) == [again]
    assert find_unknown([open_, entry("create", Told("done"), 2.0, request="a")]) == []
    assert find_unknown([open_, entry("create", Told("refused", "no-host"), 2.0, request="a")]) == []


def test_what_can_do_harm_is_not_asked_again() -> None:
    create, stop, delete = entry("create", NOTHING, 1), entry("stop", NOTHING, 2), entry("delete", NOTHING, 3)
    assert find_unknown([create, stop]) == [create, stop]
    assert find_unknown([create, stop, entry("start", Told("done"), 3)]) == [create]  # a late stop would undo it
    assert find_unknown([create, stop, delete]) == [delete]


def test_the_book_counts_a_request_once_and_forgets_what_was_not_sent(tmp_path: Path) -> None:
    book = Book(tmp_path / "log.jsonl")
    order = Order("create", "abcdefgh", False, "a", 5.0)
    for answer in (NOTHING, Told("unknown"), Told("done", "starting"), NOT_SENT):
        numbers = book.asked("client-1", order, "once")
        book.told("client-1", order, numbers, [Answered(answer, "h1")], 0.1)
    numbers = book.asked("client-1", Order("create", "bcdefghi", False, "b", 5.0), "once")
    book.told("client-1", order, numbers, [Answered(NOT_SENT)], 0.1)
    assert book.creates == {"done": 1}
    assert [e.told.outcome for e in book.ledger().entries] == ["none", "unknown", "done"]
    book.close()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 10
