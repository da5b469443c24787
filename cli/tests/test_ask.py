"""Asking, with a session that plays a script: what no broker of ours can be made to do in a test."""

import json
from collections.abc import Callable
from typing import Any

from aetherscale_cli.ask import ask_everyone
from aetherscale_cli.gather import Missing
from aetherscale_cli.wire import Counted, Delivered, Event, Message
from aetherscale_protocol.answers import fleet_digest

FLEET = ["h1", "h2"]


def answer(message: Message, host: str) -> Delivered:
    report = {
        "host": host, "state": "up", "cpus": 1, "cpus-free": 1, "memory": 1, "memory-free": 1, "disk": 1,
        "disk-free": 1, "vms": 0, "running": 0, "images": [], "accelerator": "tcg", "agent-version": "0",
        "fleet": FLEET,
    }  # fmt: skip
    body = {
        "execution-info": {"status": "success"}, "response": [] if message.key == "list-vms" else report, "host": host,
        "fleet": {"size": len(FLEET), "digest": fleet_digest(FLEET)},
    }  # fmt: skip
    return Delivered(message.correlation_id, json.dumps(body).encode())


class Script:
    """A session that answers a publish and a count as it is told, and is silent when nothing is left."""

    def __init__(self, on_publish: Callable[[Message], list[Event]], counts: dict[str, list[int | None]]) -> None:
        self._on_publish = on_publish
        self._counts = counts
        self._events: list[Event] = []
        self.asked: list[str] = []

    def publish(self, message: Message) -> None:
        self.asked.append(message.key)
        self._events += self._on_publish(message)

    def count_consumers(self, queue: str) -> None:
        self.asked.append(queue)
        self._events.append(Counted(queue, self._counts[queue].pop(0)))

    def next_event(self, deadline: float) -> Event | None:  # noqa: ARG002
        return self._events.pop(0) if self._events else None


def only_h1(message: Message) -> list[Any]:
    return [answer(message, "h1")]


def test_a_complete_fleet_costs_one_publish_and_one_count() -> None:
    script = Script(lambda m: [answer(m, "h1"), answer(m, "h2")], {"computing-hosts": [2]})
    everyone = ask_everyone(script, "list-vms", 5)
    assert [reply.answer.host for reply in everyone.replies] == ["h1", "h2"]
    assert (everyone.missing, everyone.nameless) == ((), 0)
    assert script.asked == ["list-vms", "computing-hosts"]


def test_who_is_down_is_found_out_with_one_more_question() -> None:
    script = Script(only_h1, {"computing-hosts": [1]})
    assert ask_everyone(script, "list-vms", 5).missing == (Missing("h2", "down"),)
    assert script.asked == ["list-vms", "computing-hosts", "host.h1"]


def test_a_broker_that_does_not_count_for_us_costs_the_wait_and_no_more() -> None:
    script = Script(only_h1, {"computing-hosts": [None, None], "computing-host.h2": [None]})
    everyone = ask_everyone(script, "list-vms", 5)
    assert everyone.missing == (Missing("h2", "silent"),)
    assert everyone.nameless == 0


def test_a_host_that_dies_while_it_is_waited_for_is_down_and_is_named_once() -> None:
    script = Script(only_h1, {"computing-hosts": [2, 1], "computing-host.h2": [0]})
    everyone = ask_everyone(script, "list-vms", 5)
    assert everyone.missing == (Missing("h2", "down"),)
    assert everyone.nameless == 0


def test_an_informant_that_falls_silent_leaves_the_missing_nameless() -> None:
    script = Script(lambda m: only_h1(m) if m.key == "list-vms" else [], {"computing-hosts": [2, 2]})
    everyone = ask_everyone(script, "list-vms", 5)
    assert (everyone.missing, everyone.nameless) == ((), 1)
