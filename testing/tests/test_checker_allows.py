"""What the checker must not take for a violation, and the ledger that it reads."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from aetherscale_testing.faults.ledger import Entry, Ledger, Told, told_by
from aetherscale_testing.faults.sample import (
    DONE,
    NEW,
    NONE,
    NOW,
    OFF,
    ON,
    REFUSED,
    TOMB,
    UNKNOWN,
    World,
    clean,
)

Plant = Callable[[World], None]


def _unknown_and_there(world: World) -> None:
    world.forget(ON)
    world.tell("create", ON, UNKNOWN)


def _unknown_and_nowhere(world: World) -> None:
    world.tell("create", NEW, UNKNOWN)


def _no_answer_and_nowhere(world: World) -> None:
    world.tell("create", NEW, NONE)


def _refused_and_nowhere(world: World) -> None:
    world.tell("create", NEW, REFUSED)


def _asked_again_after_a_refusal(world: World) -> None:
    world.forget(ON)
    world.tell("create", ON, Told("refused", "host-down"), NOW - 30)
    world.tell("create", ON, DONE, NOW - 20)


def _two_clients_one_wins(world: World) -> None:
    world.tell("create", ON, Told("refused", "vm-id-taken"), request="another")


def _delete_of_which_nobody_knows(world: World) -> None:
    world.tell("delete", ON, UNKNOWN)
    world.tell("delete", OFF, NONE)
    world.vanish("h2", OFF)


def _delete_that_failed_half_way(world: World) -> None:
    world.tell("delete", ON, Told("refused", "failed"))
    world.vanish("h1", ON)


def _made_again_after_its_deletion(world: World) -> None:
    world.tell("delete", ON, DONE, NOW - 40)
    world.tell("create", ON, DONE, NOW - 20, request="another")
    world.record("h1", ON, request_id="another")


def _started_by_nobody_knows_whom(world: World) -> None:
    world.tell("start", OFF, NONE, NOW - 8)
    world.tell("kill", ON, UNKNOWN, NOW - 8)


def _stopping_still(world: World) -> None:
    world.tell("stop", ON, Told("done", "stopping"))


def _its_qemu_was_killed(world: World) -> None:
    world.off("h1", "running", "units", "processes", vm=ON)
    world.record("h1", ON, wanted="off")
    world.entries.append(Entry(ON, "", "crash", NOW - 1, NOW - 1, DONE, NOW - 1))


def _an_overlapping_start_and_kill(world: World) -> None:
    world.tell("start", OFF, DONE, NOW - 60, took=20)


def _a_claim_whose_time_has_not_come(world: World) -> None:
    world.claim(NEW)
    world.tell("create", NEW, REFUSED)


def _a_claim_that_a_restarted_broker_kept(world: World) -> None:
    world.claim(NEW)
    world.tell("create", NEW, REFUSED, at=NOW - 2000)
    world.entries[-1] = replace(world.entries[-1], deadline=NOW - 1900)
    world.broker = replace(world.broker, started=NOW - 60)


ALLOWED: Iterable[Plant] = (
    _unknown_and_there,
    _unknown_and_nowhere,
    _no_answer_and_nowhere,
    _refused_and_nowhere,
    _asked_again_after_a_refusal,
    _two_clients_one_wins,
    _delete_of_which_nobody_knows,
    _delete_that_failed_half_way,
    _made_again_after_its_deletion,
    _started_by_nobody_knows_whom,
    _stopping_still,
    _its_qemu_was_killed,
    _an_overlapping_start_and_kill,
    _a_claim_whose_time_has_not_come,
    _a_claim_that_a_restarted_broker_kept,
)


@pytest.mark.parametrize("change", ALLOWED)
def test_what_is_allowed_is_no_violation(change: Plant) -> None:
    world = clean()
    world.vanish("h1", TOMB)
    change(world)
    assert world.find(strict=True) == set()


# The ledger


def test_a_ledger_survives_json() -> None:
    ledger = Ledger()
    number = ledger.ask(ON, "r", "create", NOW, NOW - 1)
    ledger.tell(number, Told("refused", "no-host"), NOW)
    ledger.ask(OFF, "s", "delete", NOW, NOW)
    ledger.crash(ON, NOW)
    again = Ledger.from_json(ledger.to_json())
    assert again.entries == ledger.entries
    assert [e.told.outcome for e in again.entries] == ["refused", "none", "done"]


def test_a_ledger_takes_entries_from_many_threads() -> None:
    ledger = Ledger()

    def client(name: str) -> None:
        for n in range(200):
            ledger.tell(ledger.ask(name, f"{name}{n}", "create", 0.0, n), Told("done", f"{name}{n}"), n)

    threads = [threading.Thread(target=client, args=(name,)) for name in ("a", "b", "c", "d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.entries) == 800
    assert all(entry.told.what == entry.request_id for entry in ledger.entries)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"execution-info": {"status": "success"}, "response": {"status": "stopped"}}, Told("done", "stopped")),
        ({"execution-info": {"status": "success"}, "response": ["vm-a"]}, Told("done", "")),
        ({"execution-info": {"status": "error", "code": "no-host"}}, Told("refused", "no-host")),
        ({"execution-info": {"status": "error", "code": "outcome-unknown"}}, Told("unknown", "outcome-unknown")),
        ({}, Told("none")),
    ],
)
def test_what_an_answer_tells(answer: dict[str, Any], told: Told) -> None:
    assert told_by(answer) == told
