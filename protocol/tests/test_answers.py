"""Answers: the seed's JSON to the letter, more beside it, and read tolerantly."""

import contextlib
import json
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale_protocol import answers
from aetherscale_protocol.answers import (
    RESPONSES,
    Answer,
    ExecutionInfo,
    ExpiryStatus,
    Fleet,
    ForgetReport,
    HostCondition,
    HostReport,
    HostStatus,
    ImageDone,
    ImageRow,
    ImageSum,
    KnownVms,
    Milestone,
    Offer,
    Pong,
    SnapshotDone,
    SnapshotRow,
    StreamOpened,
    VmDetails,
    VmReport,
    VmState,
    VmStatus,
    VmTrouble,
    decode_answer,
    encode_answer,
    failure,
    fleet_digest,
    raw,
    success,
)
from aetherscale_protocol.errors import CODES, VM_UNKNOWN, Refused, image_unknown

MANY = settings(max_examples=100, deadline=None, database=None)


def on_the_wire(answer: Answer) -> Any:
    return json.loads(encode_answer(answer))


# The seed's shapes


@pytest.mark.parametrize("status", ["starting", "stopped", "deleted", "stopping"])
def test_a_vm_status_is_the_seeds(status: str) -> None:
    answer = on_the_wire(success(VmStatus(status=status, vm_id="sgeqxcfi"), "h1"))
    assert answer == {
        "execution-info": {"status": "success"},
        "response": {"status": status, "vm-id": "sgeqxcfi"},
        "host": "h1",
    }


def test_a_list_is_the_seeds() -> None:
    assert on_the_wire(success(["vm-sgeqxcfi"], "h1")) == {
        "execution-info": {"status": "success"},
        "response": ["vm-sgeqxcfi"],
        "host": "h1",
    }
    assert on_the_wire(success([], "h1"))["response"] == []


def test_an_error_is_the_seeds() -> None:
    assert on_the_wire(failure(Refused("vm-unknown", VM_UNKNOWN))) == {
        "execution-info": {"status": "error", "reason": "VM does not exist", "code": "vm-unknown"}
    }


def test_error_reasons_of_the_seed_are_word_for_word() -> None:
    assert VM_UNKNOWN == "VM does not exist"
    assert image_unknown("ubuntu_base") == 'Image "ubuntu_base" does not exist'


def test_what_is_more_stands_beside() -> None:
    error = Refused("no-host", "no host can take this VM", "list-hosts", {"h1": "drained", "h2": "full"})
    assert on_the_wire(failure(error, "h1", fleet=Fleet(size=2, digest="d"))) == {
        "execution-info": {
            "status": "error",
            "reason": "no host can take this VM",
            "code": "no-host",
            "hint": "list-hosts",
            "reasons": {"h1": "drained", "h2": "full"},
        },
        "host": "h1",
        "fleet": {"size": 2, "digest": "d"},
    }


def test_details_stand_beside_the_list() -> None:
    row = VmDetails(vm_id="sgeqxcfi", state="running", image="a", cpus=1, memory=64, disk=1, since=1.5)
    answer = on_the_wire(success(["vm-sgeqxcfi"], "h1", details=[row]))
    assert answer["response"] == ["vm-sgeqxcfi"]
    assert answer["details"] == [
        {"vm-id": "sgeqxcfi", "state": "running", "image": "a", "cpus": 1, "memory": 64, "disk": 1, "since": 1.5}
    ]
    assert on_the_wire(success([], "h1", details=[]))["details"] == []


@pytest.mark.parametrize("code", CODES)
def test_every_code_crosses_the_wire(code: Any) -> None:
    answer = decode_answer(encode_answer(failure(Refused(code, "why"), "h1")))
    assert not answer.ok
    assert (answer.execution_info.code, answer.execution_info.reason) == (code, "why")


@pytest.mark.parametrize("code", CODES)
def test_only_two_codes_may_have_changed_something(code: Any) -> None:
    assert Refused(code, "why").changed == (code in ("failed", "outcome-unknown"))


def test_a_refusal_keeps_its_reasons_to_itself() -> None:
    reasons = {"h1": "full"}
    error = Refused("no-host", "why", reasons=reasons)
    reasons["h2"] = "drained"
    assert error.reasons == {"h1": "full"}
    assert str(error) == "why"


# Round trips

texts = st.text(max_size=30)
counts = st.integers(-(2**31), 2**31)
times = st.floats(0, 1e11)
states = st.sampled_from(get_args(VmState))
labels = st.dictionaries(texts, texts, max_size=3)
some = st.lists(texts, max_size=3)
DETAILS: dict[str, st.SearchStrategy[Any]] = {
    "vm_id": texts,
    "state": states,
    "image": texts,
    "cpus": counts,
    "memory": counts,
    "disk": counts,
    "since": times,
    "name": texts,
    "labels": labels,
    "addresses": some,
    "published": some,
    "expires": times,
}
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    VmStatus: st.builds(VmStatus, status=texts, vm_id=texts),
    list[str]: st.lists(texts, max_size=4),
    Offer: st.builds(Offer, score=counts, alike=counts),
    SnapshotDone: st.builds(SnapshotDone, status=texts, vm_id=texts, snapshot=texts),
    list[SnapshotRow]: st.lists(st.builds(SnapshotRow, snapshot=texts, created=times), max_size=3),
    ExpiryStatus: st.builds(ExpiryStatus, status=texts, vm_id=texts, expires=times),
    StreamOpened: st.builds(StreamOpened, stream=texts, window=counts),
    list[ImageRow]: st.lists(
        st.builds(ImageRow, image=texts, format=texts, virtual_size=counts, size=counts, sha256=texts, used_by=some),
        max_size=3,
    ),
    ImageDone: st.builds(ImageDone, status=texts, image=texts),
    HostStatus: st.builds(HostStatus, status=st.sampled_from(get_args(answers.HostState)), host=texts),
    Pong: st.builds(Pong, host=texts, agent_version=texts, clock=times),
    HostCondition: st.builds(
        HostCondition,
        **dict.fromkeys(("host", "accelerator", "accelerator_reason", "bridge"), texts),
        **dict.fromkeys(("accelerator_chosen", "virtualization"), st.booleans()),
        **dict.fromkeys(("disk_size", "disk_free", "disk_growth", "unread"), counts),
        bridge_state=st.sampled_from(get_args(answers.BridgeState)),
        services=labels,
        troubles=st.lists(st.builds(VmTrouble, vm_id=texts, state=states, name=texts, reason=texts), max_size=3),
        manifests=some,
        images=st.lists(
            st.builds(
                ImageSum, image=texts, sha256=texts, state=st.sampled_from(get_args(answers.SumState)), reason=texts
            ),
            max_size=3,
        ),
    ),
    ForgetReport: st.builds(
        ForgetReport,
        status=st.sampled_from(["would-forget", "forgotten"]),
        host=texts,
        vms=st.lists(st.builds(VmDetails, **DETAILS), max_size=3),
        told=times,
        claims=some,
        in_fleet=st.booleans(),
    ),
    VmReport: st.builds(
        VmReport,
        **DETAILS,
        **dict.fromkeys(("host", "accelerator", "reason", "instance", "mac", "clone_of"), texts),
        created=times,
        console=st.lists(texts),
        reached=st.lists(st.sampled_from(get_args(Milestone)), max_size=4),
    ),
    HostReport: st.builds(
        HostReport,
        **dict.fromkeys(("cpus", "cpus_free", "memory", "memory_free", "disk", "disk_free"), counts),
        vms=counts,
        running=counts,
        state=st.sampled_from(get_args(answers.HostState)),
        images=some,
        fleet=some,
        labels=labels,
        **dict.fromkeys(("host", "accelerator", "agent_version"), texts),
    ),
}


@MANY
@given(st.data())
@pytest.mark.parametrize("command", RESPONSES)
def test_a_response_survives_the_wire(command: str, data: st.DataObject) -> None:
    kind = RESPONSES[command]
    value = data.draw(VALUES[kind])
    fleet = data.draw(st.none() | st.builds(Fleet, size=counts, digest=texts))
    answer = decode_answer(encode_answer(success(value, "h1", details=[value], fleet=fleet)))
    assert answer.ok
    assert (answer.host, answer.fleet) == ("h1", fleet)
    assert msgspec.json.decode(answer.response, type=kind) == value
    assert msgspec.json.decode(answer.details, type=list[kind]) == [value]  # type: ignore[valid-type]


@MANY
@given(st.sampled_from(CODES), texts, st.none() | texts, st.dictionaries(texts, texts, max_size=3), st.none() | texts)
def test_a_refusal_survives_the_wire(
    code: Any, reason: str, hint: str | None, reasons: dict[str, str], down: str | None
) -> None:
    refused = Refused(code, reason, hint, reasons, down=down)
    info = decode_answer(encode_answer(failure(refused, "h1"))).execution_info
    assert info == ExecutionInfo(status="error", reason=reason, code=code, hint=hint, reasons=reasons, down=down)


def test_keys_are_kebab_case() -> None:
    for kind in (
        Answer,
        ExecutionInfo,
        Fleet,
        VmStatus,
        VmDetails,
        VmReport,
        HostReport,
        Offer,
        Pong,
        KnownVms,
        ForgetReport,
        SnapshotRow,
        SnapshotDone,
        ExpiryStatus,
        ImageRow,
        ImageDone,
        HostStatus,
        StreamOpened,
    ):
        assert kind.__struct_encode_fields__ == tuple(name.replace("_", "-") for name in kind.__struct_fields__)


# Read tolerantly


@pytest.mark.parametrize(
    "text",
    [
        '{"execution-info": {"status": "success"}}',
        '{"execution-info": {"status": "success", "mood": "good"}, "response": [], "weather": {"rain": true}}',
        '{"fleet": {"size": 3, "digest": "x", "age": 1}, "execution-info": {"status": "success"}, "response": null}',
        '{"execution-info": {"status": "success"}, "host": null, "fleet": null}',
    ],
)
def test_unknown_keys_of_a_newer_agent_are_ignored(text: str) -> None:
    assert decode_answer(text.encode()).ok


def test_unknown_keys_in_responses_are_ignored() -> None:
    text = b'{"status": "starting", "vm-id": "sgeqxcfi", "node": 7}'
    assert msgspec.json.decode(text, type=VmStatus) == VmStatus(status="starting", vm_id="sgeqxcfi")


def test_an_unknown_code_of_a_newer_agent_is_read() -> None:
    text = b'{"execution-info": {"status": "error", "code": "on-strike", "reason": "r"}}'
    assert decode_answer(text).execution_info.code == "on-strike"


def test_the_seeds_own_answer_is_read() -> None:
    answer = decode_answer(b'{"execution-info": {"status": "error", "reason": "VM does not exist"}}')
    assert not answer.ok
    assert not answer.response
    assert not answer.details
    assert answer.host is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"execution-info": {}}',
        b'{"execution-info": {"status": "maybe"}}',
        b'{"execution-info": {"status": "success"}, "host": 7}',
        b"\xff",
    ],
)
def test_what_is_no_answer_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_answer(data)


@MANY
@given(st.binary())
def test_arbitrary_bytes_are_an_answer_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        decode_answer(data)


def test_nothing_is_left_out_and_null_is_not() -> None:
    nothing = Answer(execution_info=ExecutionInfo(status="success"))
    assert on_the_wire(nothing) == {"execution-info": {"status": "success"}}
    assert on_the_wire(success(None, "h1"))["response"] is None
    assert decode_answer(encode_answer(nothing)) == nothing


def test_raw_is_json() -> None:
    assert bytes(raw({"a": [1]})) == b'{"a":[1]}'


# The fleet's digest


def test_a_fleets_digest_depends_on_its_names_and_not_on_their_order() -> None:
    assert fleet_digest(["h1", "h2"]) == fleet_digest(["h2", "h1"])
    assert len({fleet_digest(f) for f in ([], ["h1"], ["h1", "h2"], ["h1", "h3"], ["h12"], ["h1", "h2", "h3"])}) == 6
    assert fleet_digest(["h1", "h2"]) == "8c82e2a61dc1"
