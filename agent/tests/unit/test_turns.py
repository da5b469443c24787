"""Turns: nobody waits for more than one message of each of the others, and what waits is bounded."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale_agent import turns as turns_module
from aetherscale_agent.turns import LONG, Turns

USERS, CLIENTS = ["", "alice", "bob"], ["c1", "c2"]
GIVEN_UP = "given up: "
MESSAGES = st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from(CLIENTS), st.integers(0, 40)), max_size=60)


def turns_of(most: int) -> Turns[str]:
    return Turns(most, lambda message: GIVEN_UP + message)


def test_who_sends_one_message_comes_behind_one_of_each_other_user() -> None:
    turns = turns_of(1000)
    for number in range(500):
        turns.put("mallory", f"c{number}", f"m{number}", 1)
        turns.put("", f"c{number}", f"u{number}", 1)
    turns.put("bob", "c", "bob's", 1)
    assert "bob's" in [turns.take() for _ in range(3)]


def test_a_users_own_clients_take_turns_too() -> None:
    turns = turns_of(1000)
    for number in range(500):
        turns.put("alice", "script", f"s{number}", 1)
    turns.put("alice", "shell", "hers", 1)
    assert [turns.take() for _ in range(3)] == ["s0", "hers", "s1"]


def test_nobody_waits() -> None:
    turns = turns_of(1)
    assert not turns
    with pytest.raises(KeyError):
        turns.take()


def test_who_is_busy_waits_and_others_do_not() -> None:
    turns = turns_of(100)
    turns.put("mallory", "c", "m0")
    turns.put("bob", "c", "bob's")
    assert turns.take({"mallory"}) == "bob's"
    with pytest.raises(KeyError):
        turns.take({"mallory"})
    assert turns.take() == "m0"


def test_who_holds_most_gives_way_and_keeps_his_place() -> None:
    turns = turns_of(100)
    turns.put("bob", "c", "bob's", 30)
    turns.put("mallory", "c", "m0", 60)
    turns.put("mallory", "c", "m1", 60)  # gives way at once
    turns.put("mallory", "d", "m2", 10)
    turns.put("bob", "c", "more of bob's", 5)  # for which m2 does
    turns.put("eve", "c", "huge", 1000)
    taken = [turns.take() for _ in range(len(turns))]
    assert taken == ["bob's", "m0", "given up: huge", "more of bob's", "given up: m2", "given up: m1"]


@settings(deadline=None, max_examples=150)
@given(MESSAGES)
def test_nothing_is_lost_and_each_client_is_heard_in_order(messages: list[tuple[str, str, int]]) -> None:
    given_up: set[int] = set()

    def lighten(message: tuple[str, str, int]) -> tuple[str, str, int]:
        assert message[2] not in given_up
        given_up.add(message[2])
        return message

    turns: Turns[tuple[str, str, int]] = Turns(200, lighten)
    for number, (user, client, size) in enumerate(messages):
        turns.put(user, client, (user, client, number), size)
        assert sum(size for n, (*_, size) in enumerate(messages[: number + 1]) if n not in given_up) <= 200
        assert len(turns) == number + 1
    taken = [turns.take() for _ in range(len(turns))]
    assert sorted(number for *_, number in taken) == list(range(len(messages)))
    for user in USERS:
        for client in CLIENTS:
            heard = [number for u, c, number in taken if (u, c) == (user, client)]
            assert heard == sorted(heard)
    assert not turns


def test_who_can_be_told_no_answer_is_in_the_line_of_his_users_flood() -> None:
    """Forged addresses, each another, stay in the order of their sender's messages: RabbitMQ pays for any other."""
    turns = turns_of(1000)
    for number in range(LONG):
        turns.put("mallory", "laptop", f"list {number}")
    for number in range(3):
        turns.put("mallory", None, f"forged {number}")
        turns.put("mallory", "laptop", f"more {number}")
    turns.put("bob", None, "alone")
    taken = [turns.take() for _ in range(len(turns))]
    assert taken.pop(1) == "alone"
    assert taken[LONG:] == [f"{what} {n}" for n in range(3) for what in ("forged", "more")]


def test_who_can_be_told_no_answer_holds_up_nobody_who_can() -> None:
    """All who do not sign are one user to an agent."""
    turns = turns_of(1000)
    turns.put("", "laptop", "list 1")
    for number in range(3 * LONG):
        turns.put("", None, f"forged {number}")
    turns.put("", "laptop", "list 2")
    assert {turns.take() for _ in range(4)} >= {"list 1", "list 2"}


def test_giving_up_looks_at_nobody_who_has_nothing_left_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of forged addresses: each is a client, and what each had is given up."""
    looks = 0

    class Watched(turns_module._Client[str]):
        def __getattribute__(self, name: str) -> Any:
            nonlocal looks
            looks += name == "heavy"
            return super().__getattribute__(name)

    monkeypatch.setattr(turns_module, "_Client", Watched)
    turns = turns_of(10)
    turns.put("mallory", "first", "first", 10)
    for number in range(500):
        turns.put("mallory", f"client{number}", "next", 10)
    looks = 0
    for _ in range(500):
        turns.put("mallory", "first", "again", 10)
    assert len(turns) == 1001
    assert looks < 10 * 500


def test_who_had_a_turn_last_gives_up_first() -> None:
    given_up: list[str] = []

    def lighten(message: str) -> str:
        given_up.append(message)
        return message

    turns: Turns[str] = Turns(40, lighten)
    for message in ("a1", "b1", "a2", "b2"):
        turns.put("mallory", message[0], message, 10)
    assert turns.take() == "a1"
    for message in ("b3", "b4"):
        turns.put("mallory", "b", message, 10)
    assert given_up == ["a2"]
    assert [turns.take() for _ in range(len(turns))] == ["b1", "a2", "b2", "b3", "b4"]
