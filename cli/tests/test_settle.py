"""What became of commands that get one answer each: decisions without a broker."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale_cli.ask import make_call
from aetherscale_cli.errors import CliError, Exit
from aetherscale_cli.report import report_each
from aetherscale_cli.settle import CREATES_AT_ONCE, Call, Settling
from aetherscale_cli.wire import Counted, Delivered, Event, Nacked, Returned
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.options import CreateVm, VmRef

VM = "abcdefgh"
UNTIL = 31.0


def call(command: str, vm_id: str = VM) -> Call:
    options = CreateVm(image="u", vm_id=vm_id) if command == "create-vm" else VmRef(vm_id=vm_id)
    return make_call(COMMANDS[command], options, 30, None)


def delivered(one: Call, body: bytes | None = None, **answer: Any) -> Delivered:
    if body is None:
        body = json.dumps({"execution-info": {"status": "success"}, "host": "h1", **answer}).encode()
    return Delivered(one.message.correlation_id, body)


def sent(*calls: Call) -> Settling:
    settling = Settling(calls)
    assert list(settling.release(UNTIL)) == list(calls)
    return settling


def settle(one: Call, *events: Event) -> Settling:
    settling = sent(one)
    for event in events:
        settling.take(event)
    return settling


def test_keys_and_deadlines() -> None:
    assert call("create-vm").message.key == "create-vm"
    assert call("start-vm").message.key == f"vm.{VM}"
    assert call("start-vm").message.deadline_ms > 1_700_000_000_000
    assert call("start-vm").message.changes
    assert not call("show-vm").message.changes


def test_the_first_answer_settles_it() -> None:
    one = call("start-vm")
    settling = settle(
        one, delivered(one, response={"status": "starting", "vm-id": VM}), Nacked(one.message.correlation_id)
    )
    assert settling.complete
    assert one.trouble is None


def test_answers_to_others_do_not_count() -> None:
    one, other = call("start-vm"), call("start-vm")
    assert not settle(one, delivered(other)).complete


def test_a_key_that_nobody_is_bound_to_is_a_vm_that_does_not_exist_in_the_seed_s_words() -> None:
    one = call("delete-vm")
    settle(one, Returned(one.message.correlation_id))
    outcome = report_each([one], 0, as_json=True)
    (answer,) = json.loads(outcome.stdout)
    assert answer["execution-info"]["status"] == "error"
    assert answer["execution-info"]["reason"] == "VM does not exist"
    assert answer["execution-info"]["code"] == "vm-unknown"
    assert outcome.exit_code is Exit.FAILED


def test_a_create_that_comes_back_means_that_no_agent_was_ever_there() -> None:
    one = call("create-vm")
    settle(one, Returned(one.message.correlation_id))
    assert one.trouble is not None
    assert one.trouble.exit_code is Exit.UNREACHABLE


def test_how_to_ask_again_speaks_of_the_name() -> None:
    for command, again in (
        ("create-vm", "create-vm --name web1 --request-id"),
        ("stop-vm", "stop-vm --vm-id web1 --re"),
    ):
        one = call(command)
        one.name = "web1"
        sent(one).time_out([one], 5)
        assert "VM web1: it is not known" in str(one.trouble)
        assert again in ((one.trouble and one.trouble.hint) or "")


def test_a_full_queue_is_a_plain_failure() -> None:
    one = call("start-vm")
    settle(one, Nacked(one.message.correlation_id))
    assert one.trouble is not None
    assert one.trouble.exit_code is Exit.FAILED


@pytest.mark.parametrize("command", [c.name for c in COMMANDS.values() if c.changes])
def test_silence_after_a_command_that_changes_something_is_an_unknown_outcome(command: str) -> None:
    one = call(command)
    settle(one).time_out([one], 30)
    assert one.trouble is not None
    assert one.trouble.exit_code is Exit.UNKNOWN
    assert "no answer within 30 s" in str(one.trouble)
    hint = one.trouble.hint or ""
    assert f"aetherscale-cli show-vm {VM}" in hint
    assert f"{command} --vm-id {VM} --request-id {one.message.request_id}" in hint
    (answer,) = json.loads(report_each([one], 0, as_json=True).stdout)
    assert answer["execution-info"]["code"] == "outcome-unknown"


def test_silence_after_a_question_is_no_more_than_that() -> None:
    one = call("show-vm")
    settle(one).time_out([one], 5)
    assert one.trouble is not None
    assert one.trouble.exit_code is Exit.PARTIAL


def test_a_lost_connection_leaves_what_was_answered_and_makes_the_rest_unknown() -> None:
    first, second = call("stop-vm", "aaaaaaaa"), call("stop-vm", "bbbbbbbb")
    settling = sent(first, second)
    settling.take(delivered(first, response={"status": "stopped", "vm-id": "aaaaaaaa"}))
    settling.lose(CliError("the connection was lost", exit_code=Exit.UNREACHABLE))
    outcome = report_each([first, second], 0, as_json=False)
    assert outcome.stdout.splitlines()[1].split() == ["aaaaaaaa", "stopped", "h1"]
    assert outcome.exit_code is Exit.UNKNOWN


def test_a_time_that_ran_out_makes_room_and_the_answer_counts_nevertheless() -> None:
    first, *others, last = calls = [call("create-vm") for _ in range(CREATES_AT_ONCE + 1)]
    settling = Settling(calls)
    assert list(settling.release(UNTIL)) == [first, *others]
    settling.time_out([first], 30)
    assert list(settling.release(UNTIL + 1)) == [last]
    settling.take(delivered(first, response={"status": "starting", "vm-id": VM}))
    assert (first.trouble, first.pending) == (None, False)
    assert settling.wake_at == UNTIL
    assert settling.find_late(UNTIL) == others


@pytest.mark.parametrize("how", [delivered, lambda one: Nacked(one.message.correlation_id)])
def test_no_more_are_sent_while_so_many_times_ran_out_in_a_row(how: Any) -> None:
    calls = [call("create-vm") for _ in range(3 * CREATES_AT_ONCE)]
    settling = Settling(calls)
    first, *others = settling.release(UNTIL)
    settling.time_out(others, 30)
    second = list(settling.release(2 * UNTIL))
    assert len(second) == CREATES_AT_ONCE - 1
    settling.time_out([first], 30)
    assert list(settling.release(3 * UNTIL)) == []
    assert not settling.complete
    settling.take(how(second[0]))
    assert len(list(settling.release(3 * UNTIL))) == 2
    settling.time_out(second, 30)
    settling.time_out(settling.find_late(3 * UNTIL), 30)
    assert settling.complete
    assert "VM abcdefgh: the time of 20 creates ran out with no answer in between; " in str(calls[-1].trouble)


def test_no_agent_alive_settles_all_that_is_left() -> None:
    one = call("show-vm")
    assert settle(one, Counted("computing-hosts", 0)).complete
    other = call("show-vm")
    assert not settle(other, Counted("computing-hosts", None)).complete


@given(st.binary(max_size=60), st.sampled_from(["create-vm", "stop-vm", "show-vm"]), st.booleans())
def test_whatever_an_agent_sends_it_ends_in_words(body: bytes, command: str, as_json: bool) -> None:
    one = call(command)
    settle(one, delivered(one, body))
    outcome = report_each([one], 0, as_json=as_json)
    assert outcome.exit_code in (Exit.FAILED, Exit.UNKNOWN)
    assert outcome.notes[0].startswith("error: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.fixed_dictionaries(
        {"execution-info": st.fixed_dictionaries(
            {"status": st.sampled_from(["success", "error"])},
            optional={"reason": st.text(), "code": st.text(max_size=9), "hint": st.text()})},
        optional={"response": JSON, "host": st.text(max_size=9), "details": JSON},
    ),
    st.sampled_from(["create-vm", "stop-vm", "show-vm"]),
    st.booleans(),
)  # fmt: skip
def test_whatever_is_in_an_answer_nothing_raw_of_it_is_shown(
    answer: dict[str, Any], command: str, as_json: bool
) -> None:
    one = call(command)
    settle(one, delivered(one, json.dumps(answer).encode()))
    outcome = report_each([one], 0, as_json=as_json)
    shown = "".join([outcome.stdout, *outcome.notes])
    assert not [
        c for c in shown if (ord(c) < 0x20 and c != "\n") or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E
    ]
    if as_json:
        assert isinstance(json.loads(outcome.stdout), list)


def test_a_vm_that_still_shuts_down_is_not_taken_for_one_that_is_off() -> None:
    one = call("stop-vm")
    settle(one, delivered(one, response={"status": "stopping", "vm-id": VM}))
    for as_json in (True, False):
        outcome = report_each([one], 0, as_json=as_json)
        assert outcome.exit_code is Exit.UNKNOWN
        assert outcome.notes[0] == f"error: VM {VM} is still shutting down"


def test_a_refusal_of_the_whole_fleet_shows_every_hosts_reason() -> None:
    one = call("create-vm")
    why = 'Image "u" does not exist'
    info = {"status": "error", "reason": why, "code": "image-unknown", "reasons": {"h2": why, "h1": why}}
    settle(one, delivered(one, **{"execution-info": info}))
    assert report_each([one], 0, as_json=False).notes == [f"error: {why}", f"  h1: {why}", f"  h2: {why}"]
