"""Asking again until a host is back: decisions without a broker, on a clock of the test's own."""

import contextlib
import itertools
import json
import sys
from types import FrameType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale_cli import waiting
from aetherscale_cli.ask import make_call
from aetherscale_cli.errors import CliError, Exit, NoAgent
from aetherscale_cli.insist import renew
from aetherscale_cli.report import report_each
from aetherscale_cli.settle import Call, settle
from aetherscale_cli.waiting import AGAIN_S, Patience, Waiting
from aetherscale_cli.wire import Counted, Delivered, Message, Nacked, Returned
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.options import CreateVm, VmRef
from aetherscale_protocol.topology import MAX_PATIENCE_S

VM, OTHER = "abcdefgh", "bcdefghi"
WAIT, TIMEOUT, GRACE = 60.0, 30.0, 1.0


class Course:
    """One run of a command with --wait-for-host, as a broker and a clock would drive it."""

    def __init__(self, command: str = "start-vm", *vm_ids: str, own_ids: bool = True) -> None:
        self.now = 1000.0
        options = [CreateVm(image="u", vm_id=i) if command == "create-vm" else VmRef(vm_id=i) for i in vm_ids or (VM,)]
        self.patience = Patience(self.now, WAIT, TIMEOUT)
        self.calls = tuple(make_call(COMMANDS[command], one, self.patience.allowed, None) for one in options)
        self.call: Call = self.calls[0]
        self.waiting = Waiting(self.calls, self.patience, renew, own_ids=own_ids, grace=GRACE)
        self.sent: list[Message] = []

    def tick(self, seconds: float = 0, agents: int | None = 3) -> "Course":
        """Time goes by; what is due is sent, if there are agents."""
        self.now += seconds
        self.waiting.pass_time(self.now)
        if self.waiting.hold_due(self.now):
            self.sent += self.waiting.take(Counted("computing-hosts", agents), self.now)
        return self

    def answer(self, code: str | None = None, to: int = -1, **more: Any) -> "Course":
        info: dict[str, Any] = {"status": "error", "code": code, "reason": "because"} if code else {"status": "success"}
        if code == "host-down":
            info["down"] = "h3"
        body = {"execution-info": info | more, "host": "h1"}
        if not code:
            body["response"] = {"status": "starting", "vm-id": self.call.vm_id}
        self.waiting.take(Delivered(self.sent[to].correlation_id, json.dumps(body).encode()), self.now)
        return self

    @property
    def trouble(self) -> CliError:
        assert self.waiting.complete
        assert self.call.trouble is not None
        return self.call.trouble


def test_a_host_that_is_back_does_it_once_and_the_request_is_the_same() -> None:
    course = Course().tick().answer("host-down").tick(AGAIN_S).answer("host-down").tick(AGAIN_S)
    assert len(course.sent) == 3
    assert len({message.request_id for message in course.sent}) == 1
    assert len({message.deadline_ms for message in course.sent}) == 1
    assert len({message.body for message in course.sent}) == 1
    assert len({message.correlation_id for message in course.sent}) == 3
    course.answer()
    assert course.waiting.complete
    assert course.call.trouble is None


def test_what_was_settled_is_not_asked_again() -> None:
    course = Course().tick().answer()
    assert course.waiting.complete
    assert not course.tick(5).waiting.hold_due(course.now)


def test_who_is_waited_for() -> None:
    course = Course("stop-vm", VM, OTHER).tick()
    assert course.waiting.missing == ""
    course.answer("host-down", to=0)
    assert course.waiting.missing == "host h3"
    course.waiting.take(Returned(course.sent[1].correlation_id), course.now)
    assert course.waiting.missing == "host h3"


def test_time_over_before_it_was_begun() -> None:
    course = Course().tick()
    while not course.waiting.complete:
        course.answer("host-down").tick(2)
        assert course.now < 1100
    assert course.now == pytest.approx(1000 + WAIT, abs=2)
    assert course.trouble.exit_code is Exit.PARTIAL
    assert str(course.trouble) == (
        f"VM {VM}: host h3 is not running, still after 60 s; start-vm was not begun, and will not be"
    )
    (answer,) = json.loads(report_each(course.calls, 0, as_json=True).stdout)
    assert answer["execution-info"]["code"] == "host-down"


def test_a_last_answer_that_is_late_still_counts() -> None:
    course = Course().tick().answer("host-down").tick(WAIT - 0.1)
    assert len(course.sent) == 2
    course.tick(20)
    assert not course.waiting.complete
    course.answer()
    assert course.call.trouble is None


def test_an_unknown_outcome_is_asked_about_again() -> None:
    course = Course().tick().tick(TIMEOUT + GRACE)
    assert len(course.sent) == 2
    assert course.sent[0].request_id == course.sent[1].request_id
    course.answer()
    assert course.call.trouble is None


def test_an_unknown_outcome_stays_one_whatever_is_said_of_later_copies() -> None:
    course = Course().tick().tick(TIMEOUT + GRACE)
    while not course.waiting.complete:
        course.answer("host-down").tick(2)
    assert course.trouble.exit_code is Exit.UNKNOWN
    assert "it is not known whether start-vm was done: no answer within 30 s" in str(course.trouble)
    assert course.sent[0].request_id in (course.trouble.hint or "")


def test_a_copy_that_came_too_late_says_nothing_of_the_one_before() -> None:
    course = Course().tick().tick(TIMEOUT + GRACE).answer("deadline-passed")
    assert course.trouble.exit_code is Exit.UNKNOWN


def test_without_an_earlier_try_too_late_is_a_plain_no() -> None:
    course = Course().tick().answer("deadline-passed")
    assert course.waiting.complete
    assert course.call.trouble is None
    assert report_each(course.calls, 0, as_json=True).exit_code is Exit.FAILED


def test_a_late_answer_to_an_earlier_try_settles_it() -> None:
    course = Course().tick().tick(TIMEOUT + GRACE)
    course.answer(to=0)
    assert course.call.trouble is None
    assert course.waiting.complete


def test_a_no_to_an_earlier_try_does_not_count_against_the_one_under_way() -> None:
    course = Course().tick().tick(TIMEOUT + GRACE)
    course.answer("host-down", to=0)
    assert not course.tick(AGAIN_S).waiting.complete
    assert len(course.sent) == 2


def test_no_agent_nothing_is_sent() -> None:
    course = Course().tick(agents=0).tick(AGAIN_S, agents=0)
    assert course.sent == []
    assert course.waiting.missing == "an agent"
    course.tick(AGAIN_S)
    assert len(course.sent) == 1


def test_no_agent_until_the_end() -> None:
    course = Course().tick(agents=0).tick(WAIT)
    assert course.trouble.exit_code is Exit.PARTIAL
    assert str(course.trouble).startswith(f"VM {VM}: no agent is running, still after 60 s; start-vm was not begun")


@pytest.mark.parametrize("consumers", [None, 1])
def test_a_broker_that_does_not_count_is_no_reason_to_wait(consumers: int | None) -> None:
    assert len(Course().tick(agents=consumers).sent) == 1


class TestConnection:
    lost = CliError("the connection to the broker was lost", None, Exit.UNREACHABLE)

    def test_a_lost_connection_is_asked_again_with_the_same_id(self) -> None:
        course = Course().tick()
        course.waiting.disconnect(self.lost, course.now)
        course.tick(AGAIN_S)
        assert len({message.request_id for message in course.sent}) == 1
        assert len(course.sent) == 2
        course.answer()
        assert course.call.trouble is None

    def test_what_had_not_been_sent_was_not_begun(self) -> None:
        course = Course().tick().answer("host-down")
        course.waiting.disconnect(self.lost, course.now)
        assert course.waiting.missing == "the broker"
        course.tick(WAIT)
        assert course.trouble.exit_code is Exit.PARTIAL
        assert "the broker can't be reached, still after 60 s" in str(course.trouble)

    def test_what_had_been_sent_is_unknown_in_the_end(self) -> None:
        course = Course().tick()
        course.waiting.disconnect(self.lost, course.now)
        course.waiting.disconnect(self.lost, course.now + 1)
        course.tick(WAIT)
        assert course.trouble.exit_code is Exit.UNKNOWN

    def test_a_broker_that_knows_no_exchange_took_nothing(self) -> None:
        course = Course().tick()
        course.waiting.disconnect(NoAgent(), course.now)
        course.tick(WAIT)
        assert course.trouble.exit_code is Exit.PARTIAL

    def test_a_broker_that_says_no_is_not_asked_again(self) -> None:
        course = Course("start-vm", VM, OTHER).tick(agents=0)
        course.waiting.fail(CliError("may not publish"))
        assert course.trouble.exit_code is Exit.FAILED


class TestCreate:
    def test_no_agent_ever(self) -> None:
        course = Course("create-vm").tick()
        course.waiting.take(Returned(course.sent[0].correlation_id), course.now)
        course.tick(AGAIN_S)
        assert len({message.request_id for message in course.sent}) == 1
        assert len(course.sent) == 2

    def test_a_create_that_nobody_took_is_made_anew_under_another_id(self) -> None:
        course = Course("create-vm", own_ids=False).tick().answer("no-host").tick(AGAIN_S)
        first, second = course.sent
        assert first.request_id != second.request_id
        assert course.call.vm_id != VM
        assert json.loads(second.body)["options"]["vm-id"] == course.call.vm_id
        assert first.deadline_ms == second.deadline_ms
        course.answer("no-host", to=0)  # the same no once more: there is but one create under way
        course.tick(AGAIN_S)
        assert len(course.sent) == 2

    def test_ids_that_the_operator_chose_are_refused_for_good(self) -> None:
        course = Course("create-vm", own_ids=True).tick().answer("no-host")
        assert course.waiting.complete
        assert report_each(course.calls, 0, as_json=True).exit_code is Exit.FAILED

    def test_what_the_hosts_refused_with_reasons_is_final(self) -> None:
        course = Course("create-vm", own_ids=False).tick().answer("no-host", reasons={"h1": "full"})
        assert course.waiting.complete

    def test_a_vm_that_nobody_holds_is_not_waited_for(self) -> None:
        course = Course("delete-vm").tick()
        course.waiting.take(Returned(course.sent[0].correlation_id), course.now)
        assert course.waiting.complete
        assert report_each(course.calls, 0, as_json=True).exit_code is Exit.FAILED


def test_a_full_queue_is_a_no() -> None:
    course = Course().tick()
    course.waiting.take(Nacked(course.sent[0].correlation_id), course.now)
    assert course.trouble.exit_code is Exit.FAILED


def test_an_interruption_says_what_may_have_been_done() -> None:
    course = Course("stop-vm", VM, OTHER).tick().answer("host-down", to=0)
    course.waiting.interrupt()
    first, second = (call.trouble for call in course.calls)
    assert first is not None
    assert second is not None
    assert str(first) == (f"VM {VM}: interrupted while waiting for host h3; stop-vm was not begun, and will not be")
    assert first.exit_code is Exit.INTERRUPTED
    assert "it is not known whether stop-vm was done: interrupted" in str(second)


@pytest.mark.parametrize("answered", [True, False])
def test_an_interruption_at_an_answer_does_not_hide_it(monkeypatch: pytest.MonkeyPatch, answered: bool) -> None:
    def interrupt(*answer: Any) -> None:
        if answered:
            settle(*answer)
        raise KeyboardInterrupt

    monkeypatch.setattr(waiting, "settle", interrupt)
    course = Course("stop-vm").tick()
    with pytest.raises(KeyboardInterrupt):
        course.answer()
    course.waiting.interrupt()
    assert not course.call.pending
    assert (course.call.trouble is None) == answered


class CtrlC:
    """Ctrl-C at the nth line of `waiting`."""

    def __init__(self, nth: int) -> None:
        self.left = nth
        self._before: Any = None

    def __enter__(self) -> "CtrlC":
        self._before = sys.gettrace()
        sys.settrace(lambda frame, *_: self._step if frame.f_code.co_filename == waiting.__file__ else None)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _step(self, _frame: FrameType, event: str, _arg: object) -> Any:
        self.left -= event == "line"
        if self.left == 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return self._step


@pytest.mark.parametrize("uncertain", [True, False])
def test_an_interruption_when_the_time_is_over_says_whether_it_may_have_been_done(uncertain: bool) -> None:
    for nth in itertools.count(1):
        course = Course("stop-vm").tick().answer("host-down").tick(AGAIN_S)
        if uncertain:
            course.waiting.disconnect(TestConnection.lost, course.now)
        else:
            course.answer("host-down")
        with CtrlC(nth) as ctrl_c, contextlib.suppress(KeyboardInterrupt):
            course.tick(WAIT)
        if ctrl_c.left > 0:
            break
        course.waiting.interrupt()
        outcome = report_each(course.calls, 0, as_json=False)
        assert ("it is not known whether stop-vm was done" in outcome.notes[0]) == uncertain, nth
        assert ("stop-vm was not begun, and will not be" in outcome.notes[0]) != uncertain, nth
    assert nth > 10


def test_several_vms_wait_each_for_its_own() -> None:
    course = Course("start-vm", VM, OTHER).tick()
    course.answer("host-down", to=0).answer(to=1)
    course.tick(AGAIN_S).answer()
    assert [call.trouble for call in course.calls] == [None, None]
    assert len(course.sent) == 3


@pytest.mark.parametrize(
    ("wait", "timeout", "allowed"), [(60, 30, 90), (600, 60, MAX_PATIENCE_S), (570, 30, 600), (1, 600, 600)]
)
def test_the_deadline_is_the_wait_and_the_time_for_an_answer_but_never_too_far(
    wait: float, timeout: float, allowed: float
) -> None:
    assert Patience(0, wait, timeout).allowed == allowed


events = st.lists(
    st.tuples(
        st.sampled_from(["tick", "down", "done", "lost", "nacked", "late", "refused", "returned"]),
        st.floats(0, 20),
        st.integers(0, 3),
    ),
    max_size=40,
)


@given(events, st.sampled_from(["start-vm", "create-vm", "delete-vm", "stop-vm"]))
def test_whatever_happens_it_ends_in_time_and_never_contradicts_itself(
    course_of_events: list[tuple[str, float, int]], command: str
) -> None:
    """One request under way at a time, never sent after its time, an unknown try never forgotten."""
    course = Course(command)
    lost, resolved = False, False
    for what, pause, agents in course_of_events:
        if course.waiting.complete:
            break
        before = len(course.sent)
        course.tick(pause, agents)
        if len(course.sent) > before:
            assert course.now < course.patience.until
        pending = not course.waiting.complete
        if what == "lost" and pending:
            lost = lost or course.waiting._tries[0].state == "sent"
            course.waiting.disconnect(TestConnection.lost, course.now)
        elif course.sent and pending and what in ("down", "done", "late", "refused"):
            codes = {"down": "host-down", "done": None, "late": "deadline-passed", "refused": "wrong-state"}
            course.answer(codes[what])
            resolved = resolved or (course.waiting.complete and what in ("done", "refused"))
    while not course.waiting.complete:
        course.tick(1)
        assert course.now < 1000 + course.patience.allowed + GRACE + 21
    code = report_each(course.calls, 0, as_json=True).exit_code
    if lost and not resolved:
        assert code is Exit.UNKNOWN
    assert msgspec.json.decode(course.calls[0].message.body)["command"] == command
