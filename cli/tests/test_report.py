"""What all hosts' answers look like in the end, and the exit code."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aetherscale_cli import ask
from aetherscale_cli.ask import FULL_HINT, Everyone
from aetherscale_cli.errors import Exit, worst
from aetherscale_cli.gather import Missing
from aetherscale_cli.lists import Filter, Growing
from aetherscale_cli.report import Outcome, report_everyone, report_trouble
from aetherscale_cli.wire import Reply, decode_reply
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.names import id_of_name
from aetherscale_protocol.options import CreateVm

NOW = 1_000_000.0


def reply(**answer: Any) -> Reply:
    decoded = decode_reply(json.dumps({"execution-info": {"status": "success"}, **answer}).encode())
    assert decoded is not None
    return decoded


def vm(vm_id: str, **more: Any) -> dict[str, Any]:
    base = {"vm-id": vm_id, "state": "running", "image": "u", "cpus": 2, "memory": 512, "disk": 10, "since": NOW - 180}
    return base | more


def host(name: str) -> Reply:
    report = {
        "host": name, "state": "drained", "cpus": 8, "cpus-free": 6, "memory": 16384, "memory-free": 15872, "disk": 100,
        "disk-free": 80, "vms": 3, "running": 2, "images": ["a", "b"], "accelerator": "kvm", "agent-version": "0.1",
        "fleet": [],
    }  # fmt: skip
    return reply(host=name, response=report)


def report(
    command: str, *replies: Reply, missing: tuple[Missing, ...] = (), as_json: bool = False, **more: Any
) -> Outcome:
    everyone = Everyone(replies, missing, more.get("nameless", 0), more.get("unreadable", 0), more.get("full", False))
    return report_everyone(command, everyone, 5, NOW, as_json=as_json)


def test_list_vms() -> None:
    outcome = report("list-vms", reply(host="h1", response=["vm-aaaaaaaa"], details=[vm("aaaaaaaa")]))
    assert outcome.stdout == (
        "VM ID     NAME  STATE    HOST  ADDRESS  IMAGE  CPUS  MEMORY  DISK  SINCE\n"
        "aaaaaaaa  -     running  h1    -        u      2     512M    10G   3m\n"
    )
    assert (outcome.notes, outcome.exit_code) == ([], Exit.DONE)


def test_list_vms_of_an_agent_that_knows_only_the_seed_s_answer() -> None:
    outcome = report("list-vms", reply(response=["vm-aaaaaaaa"]))
    assert outcome.stdout.splitlines()[1].split() == ["aaaaaaaa", *["-"] * 9]


def test_no_vms_is_a_header_and_a_friendly_word() -> None:
    outcome = report("list-vms", reply(host="h1", response=[], details=[]))
    assert outcome.stdout.startswith("VM ID")
    assert "no VMs yet" in outcome.notes[0]
    assert outcome.exit_code is Exit.DONE
    assert report("list-vms", reply(host="h1", response=[]), as_json=True).notes == []


def test_nobody_claims_that_there_are_no_vms_while_a_host_is_missing() -> None:
    outcome = report("list-vms", reply(host="h1", response=[]), missing=(Missing("h2", "down"),))
    assert not [note for note in outcome.notes if "no VMs" in note]


def test_labels_of_hosts_are_shown_where_there_are_any() -> None:
    plain, labelled = host("h1"), host("h2")
    assert "LABELS" not in report("list-hosts", plain).stdout
    body = json.loads(labelled.raw)
    body["response"]["labels"] = {"disk": "ssd", "rack": "2"}
    shown = report("list-hosts", plain, reply(**body)).stdout.splitlines()
    assert shown[0].split()[-1] == "LABELS"
    assert [line.split("  ")[-1] for line in shown[1:]] == ["-", "disk=ssd, rack=2"]


def test_list_hosts_with_one_down_and_one_silent() -> None:
    missing = (Missing("h1", "down"), Missing("h3", "silent"))
    outcome = report("list-hosts", host("h2"), missing=missing)
    assert [line.split()[:5] for line in outcome.stdout.splitlines()] == [
        ["HOST", "STATE", "CPUS", "MEMORY", "DISK"],
        ["h1", "down", "-", "-", "-"],
        ["h2", "drained", "2/8", "512M/16G", "20G/100G"],
        ["h3", "silent", "-", "-", "-"],
    ]
    assert outcome.notes[:2] == ["error: host h1 is not running", "error: host h3 did not answer within 5 s"]
    assert outcome.exit_code is Exit.PARTIAL


def test_silent_hosts_whose_names_nobody_knows() -> None:
    assert report("list-hosts", nameless=1).notes == ["error: 1 host did not answer within 5 s"]
    assert report("list-hosts", nameless=2).exit_code is Exit.PARTIAL


def test_hosts_that_may_not_have_been_asked_are_not_called_silent() -> None:
    outcome = report("list-hosts", host("h2"), missing=(Missing("h3", "silent"),), full=True)
    said = "host h3 may not have been asked: a host's queue is full"
    assert outcome.notes == [f"error: {said}", f"hint: {FULL_HINT}"]
    assert outcome.exit_code is Exit.PARTIAL


def test_a_refusal_is_shown_with_its_host_and_hint_beside_the_others_rows() -> None:
    refused = reply(
        host="h2", **{"execution-info": {"status": "error", "reason": "no", "code": "forbidden", "hint": "ask"}}
    )
    outcome = report("list-vms", reply(host="h1", response=["vm-aaaaaaaa"]), refused)
    assert len(outcome.stdout.splitlines()) == 2
    assert outcome.notes == ["error: h2: no", "hint: ask"]
    assert outcome.exit_code is Exit.FAILED


def test_of_several_that_no_host_takes_each_is_named_and_who_says_so_is_not() -> None:
    reasons = {"h1": "memory: 512 MiB wanted, 0 MiB free"}
    info = {"status": "error", "reason": "no host can take this VM", "code": "no-host", "reasons": reasons}
    for several, said in ((True, "VM web1: no host can take this VM"), (False, "no host can take this VM")):
        call = ask.make_call(
            COMMANDS["create-vm"], CreateVm(image="u", name="web1", vm_id=id_of_name("web1")), 5, None, "web1"
        )
        call.reply = reply(host="h1", **{"execution-info": info})
        outcome = Outcome()
        assert report_trouble(outcome, call, several)
        assert outcome.notes == [f"error: {said}", "  h1: memory: 512 MiB wanted, 0 MiB free"]


def test_json_is_the_list_of_answers_as_received() -> None:
    answers = [{"execution-info": {"status": "success"}, "response": [], "host": "h1", "novelty": {"a": [1]}}]
    outcome = report("list-vms", reply(**answers[0]), as_json=True)
    assert json.loads(outcome.stdout) == answers
    assert outcome.stdout.endswith("]\n")
    assert report("list-vms", as_json=True).stdout == "[]\n"


def test_of_several_codes_the_one_that_needs_attention() -> None:
    assert worst() is Exit.DONE
    assert worst(Exit.FAILED, Exit.DONE) is Exit.FAILED
    assert worst(Exit.PARTIAL, Exit.FAILED) is Exit.PARTIAL
    assert worst(Exit.UNKNOWN, Exit.UNREACHABLE, Exit.PARTIAL) is Exit.UNKNOWN


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(JSON, JSON, st.text(max_size=9), st.sampled_from(["list-vms", "list-hosts"]), st.booleans())
def test_whatever_a_host_responds_there_is_no_traceback(
    response: Any, details: Any, name: str, command: str, as_json: bool
) -> None:
    decoded = decode_reply(
        json.dumps(
            {"execution-info": {"status": "success"}, "response": response, "details": details, "host": name}
        ).encode()
    )
    if decoded is None:
        return
    outcome = report(command, decoded, as_json=as_json)
    shown = "".join([outcome.stdout, *outcome.notes])
    assert not [
        c for c in shown if (ord(c) < 0x20 and c != "\n") or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E
    ]


# Rows that are shown before all hosts have answered


def listing(name: str, *ids: str) -> Reply:
    return reply(host=name, response=[f"vm-{one}" for one in ids], details=[vm(one, name=f"of-{name}") for one in ids])


def grow(*batches: tuple[Reply, ...], command: str = "list-vms", wanted: Filter | None = None) -> list[list[str]]:
    """What is shown of each batch: lines, each with its first words."""
    growing = Growing(command, NOW, wide=False, wanted=wanted or Filter())
    return [growing.more(batch).splitlines() for batch in batches]


def test_rows_come_beneath_each_other_and_none_twice() -> None:
    one, two, three = listing("h1", "aaaaaaaa"), listing("h2", "bbbbbbbb"), listing("h3", "cccccccc")
    first, then, end = grow((two, one), (three,), (one, two, three))
    assert [line.split()[:4] for line in first + then] == [
        ["VM", "ID", "NAME", "STATE"],
        ["aaaaaaaa", "of-h1", "running", "h1"],
        ["bbbbbbbb", "of-h2", "running", "h2"],
        ["cccccccc", "of-h3", "running", "h3"],
    ]
    assert len({line.index("running") for line in first[1:] + then}) == 1
    assert end == []


def test_nothing_but_a_row_brings_a_header() -> None:
    first, then = grow((listing("h1"),), (listing("h2", "bbbbbbbb"),))
    assert first == []
    assert [line.split()[0] for line in then] == ["VM", "bbbbbbbb"]


def test_what_only_a_late_host_has_to_say_has_its_column() -> None:
    late = reply(host="h2", response=["vm-bbbbbbbb"], details=[vm("bbbbbbbb", expires=NOW + 3600)])
    first, then = grow((listing("h1", "aaaaaaaa"),), (late,))
    assert first[0].endswith("EXPIRES")
    assert then[0].split()[-1] == "1h"


def test_two_who_claim_to_be_one_host_are_both_shown() -> None:
    first, then = grow((listing("h1", "aaaaaaaa"),), (listing("h1", "bbbbbbbb"),))
    assert [line.split()[0] for line in first[1:] + then] == ["aaaaaaaa", "bbbbbbbb"]


def test_an_answer_that_can_not_be_read_takes_no_other_row_with_it() -> None:
    broken = reply(host="h0", response=7)
    first, then = grow((broken, listing("h1", "aaaaaaaa")), (listing("h2", "bbbbbbbb"),))
    assert [line.split()[0] for line in first + then] == ["VM", "aaaaaaaa", "bbbbbbbb"]


def test_a_filter_holds_for_rows_that_are_shown_early() -> None:
    both = (listing("h1", "aaaaaaaa"), listing("h2", "bbbbbbbb"))
    (first,) = grow(both, wanted=Filter(host="h2"))
    assert [line.split()[0] for line in first] == ["VM", "bbbbbbbb"]


def test_hosts_that_are_missing_come_last() -> None:
    growing = Growing("list-hosts", NOW, wide=False, wanted=Filter())
    shown = growing.more((one := host("h2"),)) + growing.more((one,), (Missing("h1", "silent"),))
    assert [line.split()[:2] for line in shown.splitlines()[1:]] == [["h2", "drained"], ["h1", "silent"]]
