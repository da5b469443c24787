"""Who may do what, over the whole command table: what nobody has thought of is refused."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale_agent import access
from aetherscale_agent.access import Access
from aetherscale_agent.config import OperatorRights
from aetherscale_agent.envelope import Incoming
from aetherscale_agent.handlers import Handlers
from aetherscale_protocol.commands import COMMANDS, Reach, Request
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import CreateVm
from aetherscale_testing.dealings import Dealings
from aetherscale_testing.world import ID, OTHER, World, record

MINE, THEIRS, UNKNOWN = "abcdefgh", "hgfedcba", "qqqqqqqq"
LABELS = {MINE: {"team": "a", "role": "web"}, THEIRS: {"team": "b"}}

OPERATORS = {
    "alice": OperatorRights(),
    "reader": OperatorRights(readonly=True),
    "carol": OperatorRights(labels={"team": "a"}),
    "both": OperatorRights(readonly=True, labels={"team": "a"}),
}
CLOSED = Access(OPERATORS)
UNRESTRICTED = Access({"alice": OperatorRights()})
OPEN = Access(None)

REQUIRED: dict[str, Any] = {
    "vm-id": MINE,
    "image": "a",
    "host": "h1",
    "snapshot": "s",
    "ttl": 60,
    "kind": "console",
}
"""A value for each option that some command needs."""


def request(command: str, **more: Any) -> Request:
    row = COMMANDS[command]
    fields = [f.encode_name for f in msgspec.structs.fields(row.options) if f.required]
    options = {name: REQUIRED[name] for name in fields} | more
    if command == "resize-vm":
        options.setdefault("cpus", 1)
    return Request(row, msgspec.convert(options, row.options))


def incoming(command: str, who: str, **more: Any) -> Incoming:
    internal = who.startswith("agent-")
    envelope = {key: more.pop(key) for key in ("hops", "operator", "exchange", "died") if key in more}
    return Incoming(
        **{
            "request": request(command, **more),
            "request_id": "r",
            "deadline": None,
            "hops": 0,
            "sender": who,
            "operator": who,
            "reply_to": "",
            "correlation_id": None,
            "internal": internal,
            **envelope,
        }
    )


def reason(rules: Access, asked: Incoming, labels: Mapping[str, Mapping[str, str]] = LABELS) -> str:
    """Why it is refused; '' if it is not."""
    try:
        rules.check(asked, labels)
    except Refused as error:
        refused = error
    else:
        return ""
    assert refused.code == "forbidden"
    assert refused.hint
    return refused.reason


EVERY = pytest.mark.parametrize("command", COMMANDS)


@EVERY
def test_an_operator_may_do_everything(command: str) -> None:
    assert reason(CLOSED, incoming(command, "alice")) == ""


@EVERY
@pytest.mark.parametrize("who", ["", "guest", "alice", "agent-h2"])
def test_without_a_list_everybody_may(command: str, who: str) -> None:
    assert reason(OPEN, incoming(command, who, exchange="")) == ""


@EVERY
def test_who_is_not_in_the_list_may_nothing(command: str) -> None:
    assert "'mallory' is none of this fleet's operators" in reason(CLOSED, incoming(command, "mallory"))


@EVERY
def test_a_reader_changes_nothing(command: str) -> None:
    told = reason(CLOSED, incoming(command, "reader"))
    if COMMANDS[command].changes or command == "open-stream":
        assert "operator reader may only read" in told
        assert command in told
    else:
        assert told == ""


def test_a_reader_may_follow_a_log_and_not_type() -> None:
    assert reason(CLOSED, incoming("open-stream", "reader", kind="log")) == ""
    assert "of kind console" in reason(CLOSED, incoming("open-stream", "reader", kind="console"))
    assert "of kind tcp" in reason(CLOSED, incoming("open-stream", "reader", kind="tcp", port=22))


def test_what_a_reader_may_is_a_list_of_commands_that_change_nothing() -> None:
    assert {c.name for c in COMMANDS.values() if not c.changes} >= access.READS
    assert access.OF_ALL_VMS <= access.READS


@EVERY
def test_an_operator_of_a_label_touches_his_own_vms_only(command: str) -> None:
    row = COMMANDS[command]
    if row.reach is Reach.HOLDER:
        assert reason(CLOSED, incoming(command, "carol")) == ""
        told = reason(CLOSED, incoming(command, "carol", **{"vm-id": THEIRS}))
        assert "operator carol may only touch VMs with team=a" in told
        assert THEIRS in told
        assert reason(CLOSED, incoming(command, "carol", **{"vm-id": UNKNOWN})) == ""  # its own words are better
    elif row.options is CreateVm:
        assert "the new VM has not" in reason(CLOSED, incoming(command, "carol"))
        assert "the new VM has not" in reason(CLOSED, incoming(command, "carol", labels={"team": "b"}))
        assert reason(CLOSED, incoming(command, "carol", labels={"team": "a", "x": "y"})) == ""
    else:
        assert (reason(CLOSED, incoming(command, "carol")) == "") == (command in access.OF_ALL_VMS)


def test_a_clone_of_somebody_elses_vm_would_be_his_disk() -> None:
    mine = {"labels": {"team": "a"}}
    assert reason(CLOSED, incoming("create-vm", "carol", **mine, **{"clone-of": MINE})) == ""
    assert THEIRS in reason(CLOSED, incoming("create-vm", "carol", **mine, **{"clone-of": THEIRS}))


@EVERY
def test_both_limits_hold_together(command: str) -> None:
    told = reason(CLOSED, incoming(command, "both"))
    assert (told == "") == (command in access.READS and command != "offer-vm")


def test_lists_show_an_operator_of_a_label_his_own() -> None:
    asked = incoming("list-vms", "carol")
    assert CLOSED.sees(asked, LABELS[MINE])
    assert not CLOSED.sees(asked, LABELS[THEIRS])
    assert not CLOSED.sees(asked, {})
    assert CLOSED.sees(incoming("list-vms", "alice"), LABELS[THEIRS])


# Hosts


@EVERY
def test_a_host_commands_nobody(command: str) -> None:
    told = reason(CLOSED, incoming(command, "agent-h2", operator="alice"))
    if command in access.OF_HOSTS:
        assert told == ""
    else:
        assert "agent-h2 is a host" in told


def test_a_host_hands_creates_on_and_the_operators_rights_go_with_them() -> None:
    handed = {"hops": 1, "labels": {"team": "a"}}
    assert reason(CLOSED, incoming("create-vm", "agent-h2", operator="alice", **handed)) == ""
    assert reason(CLOSED, incoming("create-vm", "agent-h2", operator="carol", **handed)) == ""
    assert "may only read" in reason(CLOSED, incoming("create-vm", "agent-h2", operator="reader", **handed))
    assert "none of this" in reason(CLOSED, incoming("create-vm", "agent-h2", operator="mallory", **handed))
    assert THEIRS in reason(
        CLOSED, incoming("create-vm", "agent-h2", operator="carol", **handed, **{"clone-of": THEIRS})
    )


def test_who_is_no_host_can_not_say_that_he_hands_on() -> None:
    assert "none of this" in reason(CLOSED, incoming("create-vm", "mallory", hops=1))


@EVERY
@pytest.mark.parametrize("exchange", ["", "computing-agents", "computing-undeliverable"])
def test_what_a_host_sends_on_as_a_dead_letter_is_refused_whoever_signed_it(command: str, exchange: str) -> None:
    assert "a command of alice's that came by" in reason(CLOSED, incoming(command, "alice", exchange=exchange))
    assert reason(OPEN, incoming(command, "alice", exchange=exchange)) == ""


@EVERY
def test_what_nobody_took_is_answered_as_that(command: str) -> None:
    """It is never done (`Handlers._dispatch`): not `forbidden`, for it was an operator's, but `host-down`."""
    asked = incoming(command, "alice", exchange="computing-undeliverable", died=True)
    assert reason(CLOSED, asked) == ""


# Those who do not sign: the article's client


@EVERY
def test_an_unsigned_command_is_an_operators_if_it_was_published_where_operators_may(command: str) -> None:
    assert reason(UNRESTRICTED, incoming(command, "")) == ""
    for exchange in ("", "computing-agents", "computing-undeliverable", "other"):
        assert "not published to `computing`" in reason(UNRESTRICTED, incoming(command, "", exchange=exchange))


@EVERY
def test_an_unsigned_command_may_be_anybodys_once_some_may_not_do_everything(command: str) -> None:
    assert "an unsigned command" in reason(CLOSED, incoming(command, ""))


def test_an_unsigned_create_may_be_handed_on() -> None:
    asked = incoming("create-vm", "agent-h2", operator="", hops=1)
    assert reason(UNRESTRICTED, asked) == ""
    assert "unsigned" in reason(CLOSED, asked)


@given(
    who=st.text(max_size=20),
    operator=st.text(max_size=20),
    hops=st.integers(0, 20),
    exchange=st.sampled_from(["", "computing", "computing-agents"]),
    command=st.sampled_from(sorted(COMMANDS)),
)
def test_nobody_else_gets_in(who: str, operator: str, hops: int, exchange: str, command: str) -> None:
    if who in OPERATORS or operator in OPERATORS:
        return
    asked = incoming(command, who, operator=operator or who, hops=hops, exchange=exchange)
    if not (asked.internal and command in access.OF_HOSTS):
        assert reason(CLOSED, asked)


@pytest.mark.parametrize(("who", "seen"), [("alice", {ID, OTHER}), ("carol", {ID})])
def test_where_many_vms_are_told_of_an_operator_of_a_label_hears_of_his_own(
    tmp_path: Path, who: str, seen: set[str]
) -> None:
    access = Access({"alice": OperatorRights(), "carol": OperatorRights(labels={"team": "a"})})

    async def scene() -> None:
        host = await World(tmp_path).started()
        for vm_id, labels in ((ID, {"team": "a"}), (OTHER, {"team": "b"})):
            spec = CreateVm(image="tiny", vm_id=vm_id, memory=512, disk=2, labels=labels)
            await host.admit(record(vm_id=vm_id, spec=spec))
            await host.bound(vm_id)
            await host.build(host.vms[vm_id])
            host.vms[vm_id].state = "failed"
        dealings = Dealings(host)
        dealings.handlers = Handlers(host, dealings.letters, [], access=access)

        async def told(command: str) -> Any:
            answer = await dealings.ask(command, user=who)
            assert answer.response is not None
            return msgspec.json.decode(answer.response)

        assert set(await told("list-vms")) == {f"vm-{vm_id}" for vm_id in seen}
        assert set((await told("list-images"))[0]["used-by"]) == seen
        assert {trouble["vm-id"] for trouble in (await told("check-host"))["troubles"]} == seen

    asyncio.run(scene())


def test_a_message_that_nobody_took_gives_no_more_rights(tmp_path: Path) -> None:
    """Else a reader could have names claimed, and creates of them refused for minutes."""

    async def scene() -> None:
        host = await World(tmp_path).started()
        dealings = Dealings(host)
        dealings.handlers = Handlers(host, dealings.letters, [], access=CLOSED)
        answer = await dealings.ask(
            "create-vm", user="reader", died="computing-competing", deadline=1060.0, image="tiny", name="prod"
        )
        assert answer.execution_info.code == "forbidden"
        assert not host.vms  # nor is it remembered, which would claim the name

    asyncio.run(scene())
