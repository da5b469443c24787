"""Asking, with a session that plays a script: what no broker of ours can be made to do in a test."""

import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from aetherscale_cli import ask, dialogue, outlet
from aetherscale_cli.arguments import parse
from aetherscale_cli.ask import FULL_HINT, ask_each, ask_everyone, make_call
from aetherscale_cli.errors import CliError, Exit
from aetherscale_cli.gather import Missing
from aetherscale_cli.settle import CREATES_AT_ONCE, Call
from aetherscale_cli.wire import Counted, Delivered, Event, Message, Nacked, Returned
from aetherscale_protocol import names
from aetherscale_protocol.answers import fleet_digest
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.options import CreateVm, VmRef

FLEET = ["h1", "h2"]


def answer(message: Message, host: str, fleet: Sequence[str] = FLEET) -> Delivered:
    report = {
        "host": host, "state": "up", "cpus": 1, "cpus-free": 1, "memory": 1, "memory-free": 1, "disk": 1,
        "disk-free": 1, "vms": 0, "running": 0, "images": [], "accelerator": "tcg", "agent-version": "0",
        "fleet": fleet,
    }  # fmt: skip
    body = {
        "execution-info": {"status": "success"}, "response": [] if message.key == "list-vms" else report, "host": host,
        "fleet": {"size": len(fleet), "digest": fleet_digest([*fleet])},
    }  # fmt: skip
    return Delivered(message.correlation_id, json.dumps(body).encode())


class Script:
    """A session that answers a publish and a count as it is told, and is silent when nothing is left."""

    def __init__(self, on_publish: Callable[[Message], list[Any]], counts: dict[str, list[int | None]]) -> None:
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


SILENCE, COUNTED = "(nothing more in time)", "(a count taken)"


class Told(Script):
    """A session that also notes, in `asked`, when nothing more came in time and when a count was taken."""

    def next_event(self, deadline: float) -> Event | None:
        event = super().next_event(deadline)
        if event is None or isinstance(event, Counted):
            self.asked.append(SILENCE if event is None else COUNTED)
        return event


@pytest.mark.parametrize("tell", [None, lambda _: None], ids=["JSON", "a terminal"])
def test_who_is_in_the_fleet_is_asked_while_others_are_waited_for(tell: Any) -> None:
    told = Told(only_h1, {"computing-hosts": [2, 2], "computing-host.h2": [1]})
    assert ask_everyone(told, "list-vms", 5, tell=tell).missing == (Missing("h2", "silent"),)
    assert told.asked == [
        "list-vms", "computing-hosts", COUNTED, SILENCE, "host.h1", SILENCE,
        "computing-host.h2", "computing-hosts", COUNTED, COUNTED,
    ]  # fmt: skip


def test_a_time_out_shorter_than_a_moment_leaves_that_to_the_end() -> None:
    told = Told(only_h1, {"computing-hosts": [2, 2], "computing-host.h2": [0]})
    assert ask_everyone(told, "list-vms", ask.PROMPT_S / 2).missing == (Missing("h2", "down"),)
    assert told.asked[:5] == ["list-vms", "computing-hosts", COUNTED, SILENCE, "host.h1"]


def test_many_that_are_silent_are_counted_all_at_once() -> None:
    silent = [f"s{number:02}" for number in range(20)]
    counts: dict[str, list[int | None]] = {f"computing-host.{host}": [number % 2] for number, host in enumerate(silent)}
    told = Told(lambda m: [answer(m, "h1", ["h1", *silent])], counts | {"computing-hosts": [21, 11]})
    everyone = ask_everyone(told, "list-vms", 5)
    assert [one.state for one in everyone.missing] == ["down", "silent"] * 10
    assert everyone.nameless == 0
    assert told.asked[-42:] == [*counts, "computing-hosts", *[COUNTED] * 21]


@pytest.mark.parametrize("broken", [[], [Returned("")], [Delivered("", b"no JSON")]], ids=["silent", "gone", "odd"])
def test_an_informant_that_did_not_say_it_in_time_is_asked_again(broken: list[Event]) -> None:
    def behave(message: Message) -> list[Any]:
        if message.key == "host.h1" and len(told.asked) < 6:
            return [msgspec.structs.replace(one, correlation_id=message.correlation_id) for one in broken]
        return only_h1(message)

    told = Told(behave, {"computing-hosts": [2, 2], "computing-host.h2": [1]})
    everyone = ask_everyone(told, "list-vms", 5)
    assert told.asked.count("host.h1") == 2
    assert (everyone.missing, everyone.nameless) == ((Missing("h2", "silent"),), 0)


def test_another_is_asked_when_an_informant_did_not_say_it_in_time() -> None:
    fleet = ["h1", "h2", "h3"]

    def behave(message: Message) -> list[Any]:
        if message.key == "list-vms":
            return [answer(message, host, fleet) for host in ("h1", "h2")]
        return [answer(message, "h2", fleet)] if message.key == "host.h2" else []

    told = Told(behave, {"computing-hosts": [3, 3], "computing-host.h3": [1]})
    assert ask_everyone(told, "list-vms", 5).missing == (Missing("h3", "silent"),)
    assert (told.asked.count("host.h1"), told.asked.count("host.h2")) == (1, 1)


def test_names_of_another_fleet_than_most_speak_of_in_the_end_are_asked_for_again() -> None:
    grown = ["h1", "h2", "h3", "h4"]

    def behave(message: Message) -> list[Any]:
        if message.key == "list-vms":
            return [answer(message, "h1")]
        if message.key == "host.h1":  # meanwhile others answer, who have the new inventory
            return [answer(message, "h1"), *(answer(script.first, host, grown) for host in ("h2", "h3"))]
        return [answer(message, "h2", grown)]

    class First(Script):
        first: Message

        def publish(self, message: Message) -> None:
            if not self.asked:
                self.first = message
            super().publish(message)

    script = First(behave, {"computing-hosts": [4, 4], "computing-host.h4": [1]})
    assert ask_everyone(script, "list-vms", 5).missing == (Missing("h4", "silent"),)
    assert script.asked == [
        "list-vms", "computing-hosts", "host.h1", "host.h2", "computing-host.h4", "computing-hosts",
    ]  # fmt: skip


def test_a_question_for_the_fleet_that_the_broker_has_no_room_for_is_not_waited_for() -> None:
    def behave(message: Message) -> list[Any]:
        return only_h1(message) if message.key == "list-vms" else [Nacked(message.correlation_id)]

    told = Told(behave, {"computing-hosts": [2, 2]})
    everyone = ask_everyone(told, "list-vms", 5)
    assert (everyone.missing, everyone.nameless) == ((), 1)
    assert told.asked.count(SILENCE) == 2  # a moment, and the time-out


def test_an_informant_that_falls_silent_leaves_the_missing_nameless() -> None:
    script = Script(lambda m: only_h1(m) if m.key == "list-vms" else [], {"computing-hosts": [2, 2]})
    everyone = ask_everyone(script, "list-vms", 5)
    assert (everyone.missing, everyone.nameless) == ((), 1)


def test_a_question_that_the_broker_has_no_room_for_is_said_to_be_so() -> None:
    script = Script(lambda m: [Nacked(m.correlation_id)], {"computing-hosts": [1]})
    with pytest.raises(CliError, match="the broker did not take list-vms: a host's queue is full") as raised:
        ask_everyone(script, "list-vms", ask.AGAIN_S)
    assert raised.value.hint == FULL_HINT


def test_a_question_that_the_broker_had_no_room_for_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "AGAIN_S", 0)
    events = [[None, "h1"], [None, "h1"], ["h1", "h2"]]

    def behave(message: Message) -> list[Event]:
        said = events.pop(0)
        return [answer(message, one) if one else Nacked(message.correlation_id) for one in said]

    script = Script(behave, {"computing-hosts": [2]})
    everyone = ask_everyone(script, "list-vms", 5)
    assert [reply.answer.host for reply in everyone.replies] == ["h1", "h2"]
    assert not everyone.full
    assert script.asked.count("list-vms") == 3


def test_a_question_that_one_host_had_no_room_for_is_answered_by_the_others() -> None:
    def but_h2(message: Message) -> list[Any]:
        return [Nacked(message.correlation_id)] * (message.key == "list-vms") + [answer(message, "h1")]

    script = Script(but_h2, {"computing-hosts": [2, 2], "computing-host.h2": [1]})
    everyone = ask_everyone(script, "list-vms", ask.AGAIN_S)
    assert [reply.answer.host for reply in everyone.replies] == ["h1"]
    assert (everyone.missing, everyone.full) == ((Missing("h2", "silent"),), True)


TIMEOUT = 5.0
PACE_S = 1 / 32
Choose = Callable[[list[Message]], Message | None]


class Queue:
    """A session with a clock of its own: of what is unanswered a test chooses one after the other to be answered."""

    def __init__(self, choose: Choose = lambda unanswered: unanswered[0]) -> None:
        self._choose = choose
        self._counts: list[Event] = []
        self.now = 1000.0
        self.unanswered: list[Message] = []
        self.most_unanswered = 0
        self.sent: dict[str, tuple[float, Message]] = {}  #: when, and what, by correlation id

    def publish(self, message: Message) -> None:
        assert message.correlation_id not in self.sent
        self.sent[message.correlation_id] = (self.now, message)
        self.unanswered.append(message)
        self.most_unanswered = max(self.most_unanswered, len(self.unanswered))

    def count_consumers(self, queue: str) -> None:
        self._counts.append(Counted(queue, 200))

    def next_event(self, deadline: float) -> Event | None:
        if self._counts:
            return self._counts.pop()
        chosen = self._choose(self.unanswered)
        if chosen is None or self.now + PACE_S > deadline:
            self.now = deadline
            return None
        self.now += PACE_S
        self.unanswered.remove(chosen)
        return answer(chosen, "h1")

    def monotonic(self) -> float:
        return self.now

    time = monotonic


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Queue, list[Call]], None]:
    """Ask each, on the queue's clock."""

    def run(queue: Queue, calls: list[Call]) -> None:
        monkeypatch.setattr(ask, "time", queue)
        ask_each(queue, calls, TIMEOUT)

    return run


def creates(many: int) -> list[Call]:
    options = [CreateVm(image="u", vm_id=names.new_vm_id()) for _ in range(many)]
    return [make_call(COMMANDS["create-vm"], one, TIMEOUT, None) for one in options]


def outcomes(calls: list[Call]) -> list[Exit]:
    assert not any(call.pending for call in calls)
    return [Exit.DONE if call.trouble is None else call.trouble.exit_code for call in calls]


def troubles(calls: list[Call]) -> list[str]:
    return [str(call.trouble).removeprefix(f"{call.subject}: ") for call in calls if call.trouble is not None]


chance = random.Random(1)
UNKNOWN = "it is not known whether create-vm was done: "


class TestCreatesAtOnce:
    @pytest.mark.parametrize(
        "choose", [lambda some: some[0], lambda some: some[-1], chance.choice], ids=["first", "last", "any"]
    )
    def test_so_many_are_unanswered_and_no_more_in_whatever_order_they_are_answered(
        self, run: Any, choose: Choose
    ) -> None:
        queue, calls = Queue(choose), creates(100)
        asked = [call.message.request_id for call in calls]
        run(queue, calls)
        assert outcomes(calls) == [Exit.DONE] * 100
        assert queue.most_unanswered == CREATES_AT_ONCE
        assert [message.request_id for _, message in queue.sent.values()] == asked

    def test_each_has_the_whole_time_from_when_it_is_sent(self, run: Any) -> None:
        queue, calls = Queue(), creates(400)
        run(queue, calls)
        assert outcomes(calls) == [Exit.DONE] * 400
        assert queue.now > 1000 + 2 * TIMEOUT
        for sent_at, message in queue.sent.values():
            assert message.deadline_ms == int((sent_at + TIMEOUT) * 1000)

    def test_few_are_sent_at_once(self, run: Any) -> None:
        queue, calls = Queue(), creates(CREATES_AT_ONCE)
        run(queue, calls)
        assert outcomes(calls) == [Exit.DONE] * CREATES_AT_ONCE
        assert {sent_at for sent_at, _ in queue.sent.values()} == {1000.0}

    @pytest.mark.parametrize("command", ["stop-vm", "delete-vm", "show-vm"])
    def test_what_does_not_go_to_the_shared_queue_is_sent_at_once(self, run: Any, command: str) -> None:
        calls = [make_call(COMMANDS[command], VmRef(vm_id=names.new_vm_id()), TIMEOUT, None) for _ in range(100)]
        queue = Queue()
        run(queue, calls)
        assert outcomes(calls) == [Exit.DONE] * 100
        assert queue.most_unanswered == 100

    def test_those_that_are_never_answered_hold_up_no_others(self, run: Any) -> None:
        calls = creates(400)
        silent = {call.message.correlation_id for call in calls[::5]}

        def choose(unanswered: list[Message]) -> Message | None:
            return next((one for one in unanswered if one.correlation_id not in silent), None)

        queue = Queue(choose)
        run(queue, calls)
        assert outcomes(calls) == [Exit.UNKNOWN, *[Exit.DONE] * 4] * 80
        assert troubles(calls) == [f"{UNKNOWN}no answer within 5 s"] * 80

    def test_where_nobody_answers_no_more_are_sent(self, run: Any) -> None:
        queue, calls = Queue(lambda _: None), creates(100)
        run(queue, calls)
        assert outcomes(calls) == [Exit.UNKNOWN] * 20 + [Exit.PARTIAL] * 80
        said = "the time of 20 creates ran out with no answer in between; create-vm was not sent"
        assert troubles(calls)[20:] == [said] * 80
        assert queue.now == 1000 + TIMEOUT + ask.GRACE_S
        assert len(queue.sent) == 20

    def test_where_nobody_answers_any_more_it_ends_too(self, run: Any) -> None:
        calls = creates(100)
        queue = Queue(lambda some: some[0] if len(queue.sent) - len(some) < 30 else None)
        run(queue, calls)
        # The first 19 of the 20 whose time ran out were each followed by one more.
        assert outcomes(calls) == [Exit.DONE] * 30 + [Exit.UNKNOWN] * 39 + [Exit.PARTIAL] * 31
        said = "the time of 39 creates ran out with no answer in between; create-vm was not sent"
        assert troubles(calls)[39:] == [said] * 31

    @pytest.mark.parametrize(
        ("why", "code"), [(CliError("lost", "log in", Exit.UNREACHABLE), Exit.UNREACHABLE), (None, Exit.INTERRUPTED)]
    )
    def test_what_was_not_sent_when_it_ended_is_said_to_be_so(self, run: Any, why: CliError | None, code: Exit) -> None:
        calls = creates(100)

        def end_after_30(unanswered: list[Message]) -> Message:
            if len(queue.sent) - len(unanswered) < 30:
                return unanswered[0]
            raise why or KeyboardInterrupt

        queue = Queue(end_after_30)
        if why is None:
            with pytest.raises(KeyboardInterrupt):
                run(queue, calls)
        else:
            run(queue, calls)
        said = "lost" if why else "interrupted"
        assert outcomes(calls) == [Exit.DONE] * 30 + [Exit.UNKNOWN] * 20 + [code] * 50
        assert troubles(calls) == [f"{UNKNOWN}{said}"] * 20 + [f"{said}; create-vm was not sent"] * 50
        assert calls[-1].trouble is not None
        assert calls[-1].trouble.hint == ("log in" if why else None)

    def test_one_whose_sending_was_cut_short_may_have_been_sent(
        self, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        queue, calls = Queue(), creates(3)
        publish = queue.publish

        def cut_short(message: Message) -> None:
            publish(message)
            if len(queue.sent) == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(queue, "publish", cut_short)
        with pytest.raises(KeyboardInterrupt):
            run(queue, calls)
        assert outcomes(calls) == [Exit.UNKNOWN, Exit.UNKNOWN, Exit.INTERRUPTED]


# What is shown before all hosts have answered


class Slow(Script):
    """A session where nothing more comes in time after the first answers, and some later."""

    def __init__(self, first: list[str], later: list[str], alive: int, key: str = "list-vms") -> None:
        super().__init__(lambda m: [answer(m, host) for host in first] if m.key == key else [], {})
        self._counts = {"computing-hosts": [alive, alive]}
        self._later, self.waits = later, list[float]()
        self._message: Message | None = None

    def publish(self, message: Message) -> None:
        self._message = self._message or message
        super().publish(message)

    def count_consumers(self, queue: str) -> None:
        if queue in self._counts:
            super().count_consumers(queue)

    def next_event(self, deadline: float) -> Event | None:
        event = super().next_event(deadline)
        if event is None:
            self.waits.append(deadline - time.monotonic())
            assert self._message is not None
            self._events += [answer(self._message, host) for host in self._later]
            self._later = []
        return event


def told_of(script: Script) -> list[list[str | None]]:
    batches: list[list[str | None]] = []
    ask_everyone(script, "list-vms", 5, tell=lambda replies: batches.append([r.answer.host for r in replies]))
    return batches


def test_answers_that_are_all_there_at_once_are_not_told_one_by_one() -> None:
    script = Script(lambda m: [answer(m, "h1"), answer(m, "h2")], {"computing-hosts": [2]})
    assert told_of(script) == []


def test_answers_are_told_when_others_are_late_and_then_as_they_come() -> None:
    slow = Slow(["h1"], ["h3", "h2"], 4)
    assert told_of(slow) == [["h1"], ["h3"], ["h2"]]
    assert 0 < slow.waits[0] <= ask.PROMPT_S < slow.waits[1]  # a moment for those that are well; then to the deadline


@pytest.mark.parametrize(
    ("output", "is_terminal", "early"), [("table", True, 1), ("table", False, 0), ("json", True, 0)]
)
def test_rows_of_a_table_on_a_terminal_come_while_a_host_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, output: str, is_terminal: bool, early: int
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(outlet, "is_terminal", lambda: is_terminal)
    monkeypatch.setattr(outlet, "answer", shown.append)
    slow = Slow(["h1"], ["h2"], 3, key="list-hosts")
    outcome = dialogue.ask(slow, parse(["list-hosts", "--output", output]))
    assert len(shown) == 2 * early
    if output == "table":
        lines = "".join([*shown, outcome.stdout]).splitlines()
        assert [line.split()[0] for line in lines] == ["HOST", "h1", "h2"]
    assert outcome.exit_code is Exit.PARTIAL
    assert "did not answer within 5 s" in outcome.notes[0]


def test_images_are_shown_in_the_end_since_hosts_with_the_same_one_share_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(outlet, "is_terminal", lambda: True)
    monkeypatch.setattr(outlet, "answer", shown.append)
    slow = Slow(["h1"], ["h2"], 3, key="list-images")
    dialogue.ask(slow, parse(["list-images", "--output", "table"]))
    assert shown == []


def test_who_is_not_to_be_told_waits_for_all() -> None:
    slow = Slow(["h1"], ["h2"], 3)
    assert len(ask_everyone(slow, "list-vms", 5).replies) == 2
    assert 0 < slow.waits[0] <= ask.PROMPT_S < slow.waits[1]
