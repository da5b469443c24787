"""Who answered, who is missing, and when to stop waiting: decisions without a broker."""

import json
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale_cli.gather import Gathering, Missing, classify, find_absent
from aetherscale_cli.wire import Reply, decode_reply
from aetherscale_protocol.answers import fleet_digest

FLEET = ["h1", "h2", "h3"]


def reply(host: str | None, fleet: list[str] | None = None, **info: Any) -> Reply:
    answer: dict[str, Any] = {"execution-info": {"status": "success", **info}, "response": []}
    if host is not None:
        answer["host"] = host
    if fleet is not None:
        answer["fleet"] = {"size": len(fleet), "digest": fleet_digest(fleet)}
    decoded = decode_reply(json.dumps(answer).encode())
    assert decoded is not None
    return decoded


def gathered(alive: int | None, *replies: Reply | None) -> Gathering:
    gathering = Gathering()
    gathering.count(alive)
    for one in replies:
        gathering.take(one)
    return gathering


@pytest.mark.parametrize("order", list(permutations(["count", "h1", "h2"])))
def test_complete_with_the_last_of_count_and_answers_in_any_order(order: tuple[str, ...]) -> None:
    gathering = Gathering()
    for number, step in enumerate(order):
        assert not gathering.complete
        if step == "count":
            gathering.count(2)
        else:
            gathering.take(reply(step, FLEET))
        assert gathering.complete == (number == 2)


def test_a_host_that_answers_twice_counts_once() -> None:
    assert not gathered(2, reply("h1"), reply("h1")).complete


def test_something_unreadable_counts_for_nobody() -> None:
    gathering = gathered(1, None)
    assert not gathering.complete
    assert gathering.unreadable == 1
    assert gathering.silent == 1


def test_an_answer_without_a_host_counts_as_one_of_its_own() -> None:
    assert gathered(2, reply(None), reply(None)).complete


def test_a_notice_that_a_host_is_down_is_no_answer_of_a_host() -> None:
    gathering = gathered(2, reply("h1", FLEET), reply("h2", FLEET, status="error", code="host-down", reason="down"))
    assert not gathering.complete
    assert gathering.silent == 1


def test_where_the_broker_does_not_count_the_fleet_s_size_decides() -> None:
    assert not gathered(None, reply("h1", FLEET), reply("h2", FLEET)).complete
    assert gathered(None, reply("h1", FLEET), reply("h2", FLEET), reply("h3", FLEET)).complete
    assert not gathered(None, reply("h1")).complete  # neither is known: wait for the deadline


def test_nobody_is_asked_for_names_when_the_fleet_is_complete_or_unknown() -> None:
    assert gathered(3, *(reply(host, FLEET) for host in FLEET)).find_informant() is None
    assert gathered(2, reply("h1"), reply("h2")).find_informant() is None
    assert gathered(1, reply("h1", [])).find_informant() is None


def test_a_stranger_does_not_hide_that_one_of_the_fleet_is_missing() -> None:
    gathering = gathered(3, reply("h1", FLEET), reply("h2", FLEET), reply("stranger", FLEET))
    assert gathering.find_informant() == "h1"
    assert find_absent(gathering, FLEET) == ["h3"]


def test_hosts_that_disagree_about_the_fleet() -> None:
    grown = [*FLEET, "h4"]
    gathering = gathered(3, reply("h1", FLEET), reply("h2", grown), reply("h3", grown))
    assert gathering.find_informant() == "h2"
    assert find_absent(gathering, grown) == ["h4"]


def test_names_that_can_t_be_hosts_are_not_looked_for() -> None:
    assert find_absent(gathered(1, reply("h1")), ["h1", "h2", "\x1b[2J", "", "a" * 300]) == ["h2"]


@pytest.mark.parametrize(
    ("consumers", "silent", "states"),
    [
        ({}, 0, ["down", "down"]),
        ({"h2": 0, "h3": 1}, 1, ["down", "silent"]),
        ({"h2": 1, "h3": 1}, 2, ["silent", "silent"]),
        ({"h2": None, "h3": None}, 1, ["silent", "silent"]),  # the broker does not say: claim only what is sure
        ({"h2": 0, "h3": None}, 1, ["down", "silent"]),
    ],
)
def test_down_or_silent(consumers: dict[str, int | None], silent: int, states: list[str]) -> None:
    assert [m.state for m in classify(["h2", "h3"], consumers, silent)] == states


@given(
    st.lists(st.sampled_from(["h1", "h2", "h3", "h4"]), max_size=8),
    st.one_of(st.none(), st.integers(0, 5)),
)
def test_every_host_of_the_fleet_is_either_answered_for_or_named(hosts: list[str], alive: int | None) -> None:
    gathering = gathered(alive, *(reply(host, FLEET) for host in hosts))
    informant = gathering.find_informant()
    named = find_absent(gathering, FLEET) if informant else []
    if hosts:
        assert set(FLEET) <= set(hosts) | set(named)
        assert not set(hosts) & set(named)
    assert all(isinstance(m, Missing) for m in classify(named, {}, gathering.silent))
