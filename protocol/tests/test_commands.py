"""The command table, and every way into it: whatever bytes come, a request comes out, or `Refused`, nothing else."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale_protocol import commands, names
from aetherscale_protocol.answers import RESPONSES, decode_answer, encode_answer, failure
from aetherscale_protocol.commands import (
    BROADCAST_KEYS,
    COMMANDS,
    MAX_BODY,
    Command,
    Reach,
    decode_request,
    encode_request,
)
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import (
    CheckHost,
    CreateVm,
    DeleteImage,
    ExtendVm,
    ForgetHost,
    HostRef,
    NoOptions,
    OpenStream,
    Options,
    Publish,
    RebootVm,
    ResizeVm,
    ShowVm,
    SnapshotRef,
    StopVm,
    VmRef,
)

VM_ID = "sgeqxcfi"

MANY = settings(max_examples=100, deadline=None, database=None)
SOME = settings(max_examples=40, deadline=None, database=None)

vm_ids = st.text("abcdefghijklmnopqrstuvwxyz", min_size=8, max_size=8)
images = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)

hosts = st.from_regex(names.HOST_PATTERN, fullmatch=True)
vm_names = st.from_regex(names.VM_NAME_PATTERN, fullmatch=True)
label_keys = st.from_regex(names.LABEL_KEY_PATTERN, fullmatch=True)
label_values = st.from_regex(names.LABEL_VALUE_PATTERN, fullmatch=True)
labels = st.dictionaries(label_keys, label_values, max_size=3)
selectors = label_keys | st.builds("{}={}".format, label_keys, label_values)
cpus = st.integers(1, 256)
memory = st.integers(64, 4 * 1024 * 1024)
disk = st.integers(1, 64 * 1024)
ports = st.integers(1, 65535)
ttls = st.none() | st.integers(1, 10 * 366 * 86_400)
key_letters = st.characters(codec="utf-8").filter(str.isprintable)
ssh_keys = st.text(key_letters, min_size=1, max_size=30).filter(lambda key: bool(key.strip()))


@st.composite
def creates(draw: st.DrawFn) -> CreateVm:
    """Any create that keeps the rules across its fields."""
    name = draw(st.none() | vm_names)
    own = vm_ids if name is None else st.just(names.id_of_name(name))
    spread, near = draw(st.sampled_from([(None, None), (draw(selectors), None), (None, draw(selectors))]))
    published = draw(st.dictionaries(ports, ports, max_size=3))
    return CreateVm(
        image=draw(images),
        vm_id=draw(st.none() | own),
        name=name,
        cpus=draw(cpus),
        memory=draw(memory),
        disk=draw(disk),
        labels=draw(labels),
        ssh_keys=tuple(draw(st.lists(ssh_keys, max_size=2))),
        user_data=draw(st.text(max_size=40)),
        publish=tuple(Publish(host_port=outer, guest_port=inner) for outer, inner in published.items()),
        ttl=draw(ttls),
        host=draw(st.none() | hosts),
        host_labels=draw(labels),
        spread=spread,
        near=near,
        clone_of=draw(st.none() | vm_ids),
    )


@st.composite
def resizes(draw: st.DrawFn) -> ResizeVm:
    sizes = draw(st.fixed_dictionaries({}, optional={"cpus": cpus, "memory": memory, "disk": disk}).filter(bool))
    return ResizeVm(vm_id=draw(vm_ids), **sizes)


lines = st.integers(0, 1000)
windows = st.integers(4096, 4 << 20)

OPTIONS: dict[type[Options], st.SearchStrategy[Options]] = {
    NoOptions: st.builds(NoOptions),
    CheckHost: st.builds(CheckHost, checksums=st.booleans()),
    CreateVm: creates(),
    VmRef: st.builds(VmRef, vm_id=vm_ids),
    StopVm: st.builds(StopVm, vm_id=vm_ids, kill=st.booleans()),
    RebootVm: st.builds(RebootVm, vm_id=vm_ids, kill=st.booleans()),
    ResizeVm: resizes(),
    SnapshotRef: st.builds(SnapshotRef, vm_id=vm_ids, snapshot=st.from_regex(names.SNAPSHOT_PATTERN, fullmatch=True)),
    ExtendVm: st.builds(ExtendVm, vm_id=vm_ids, ttl=ttls),
    OpenStream: st.builds(OpenStream, vm_id=vm_ids, kind=st.just("tcp"), port=ports, lines=lines, window=windows)
    | st.builds(OpenStream, vm_id=vm_ids, kind=st.sampled_from(["console", "log"]), lines=lines, window=windows),
    HostRef: st.builds(HostRef, host=hosts),
    DeleteImage: st.builds(DeleteImage, host=hosts, image=images),
    ForgetHost: st.builds(ForgetHost, host=hosts, dry_run=st.booleans()),
    ShowVm: st.builds(ShowVm, vm_id=vm_ids, console_lines=lines, reached=st.booleans()),
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def body(command: Any, options: Any = None) -> bytes:
    return json.dumps({"command": command} if options is None else {"command": command, "options": options}).encode()


def refusal(data: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        decode_request(data)
    return caught.value


# The table


def test_the_table_is_closed() -> None:
    assert list(COMMANDS) == [
        *("create-vm", "list-vms", "start-vm", "stop-vm", "reboot-vm", "pause-vm", "resume-vm", "resize-vm"),
        *("snapshot-vm", "restore-vm", "delete-snapshot", "list-snapshots", "extend-vm", "delete-vm", "show-vm"),
        *("open-stream", "list-hosts", "list-images", "delete-image", "drain-host", "undrain-host", "offer-vm"),
        *("ping", "check-host", "forget-host"),
    ]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda c: c.name)
def test_each_row_is_consistent(command: Command) -> None:
    assert COMMANDS[command.name] is command
    assert command.options in OPTIONS, "a new kind of options needs a strategy here"
    assert command.name in RESPONSES
    assert command.summary == command.summary.strip(".").strip()
    assert (command.name in BROADCAST_KEYS) == (command.reach in (Reach.ALL, Reach.HOLDER))
    assert (command.reach is Reach.HOLDER) == issubclass(command.options, VmRef)
    assert (command.reach is Reach.HOST) == issubclass(command.options, HostRef)


def test_no_response_type_without_a_command() -> None:
    assert set(RESPONSES) == set(COMMANDS)


def test_those_that_read_change_nothing() -> None:
    """An offer promises nothing and changes nothing: a client asks for them too, to say where a VM would go."""
    reading = [
        *("list-vms", "list-snapshots", "show-vm", "open-stream", "list-hosts", "list-images", "offer-vm", "ping"),
        "check-host",
    ]
    assert [c.name for c in COMMANDS.values() if not c.changes] == reading


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda c: c.name)
def test_options_are_kebab_case_on_the_wire(command: Command) -> None:
    for python, wire in zip(command.options.__struct_fields__, command.options.__struct_encode_fields__, strict=True):
        assert wire == python.replace("_", "-")


# The seed's own messages


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"command": "create-vm", "options": {"image": "ubuntu_base"}}', CreateVm(image="ubuntu_base")),
        (b'{"command": "list-vms", "options": {}}', NoOptions()),
        (b'{"command": "list-vms"}', NoOptions()),
        (b'{"command": "start-vm", "options": {"vm-id": "sgeqxcfi"}}', VmRef(vm_id=VM_ID)),
        (b'{"command": "stop-vm", "options": {"vm-id": "sgeqxcfi", "kill": true}}', StopVm(vm_id=VM_ID, kill=True)),
        (b'{"command": "stop-vm", "options": {"vm-id": "sgeqxcfi", "kill": false}}', StopVm(vm_id=VM_ID)),
        (b'{"command": "delete-vm", "options": {"vm-id": "sgeqxcfi"}}', VmRef(vm_id=VM_ID)),
        (b' \n{"options": {"image": "a"}, "command": "create-vm"}\t ', CreateVm(image="a")),
        (b'{"command": "create-vm", "options": {"image": "a", "vm-id": null}}', CreateVm(image="a")),
    ],
)
def test_messages_of_the_seed_are_understood(data: bytes, expected: Options) -> None:
    request = decode_request(data)
    assert request.options == expected
    assert type(request.options) is type(expected) is request.command.options
    assert request.vm_id == getattr(expected, "vm_id", None)


def test_defaults_are_left_out_on_the_wire() -> None:
    assert json.loads(encode_request("create-vm", CreateVm(image="a"))) == {
        "command": "create-vm",
        "options": {"image": "a"},
    }
    assert json.loads(encode_request("list-vms", NoOptions())) == {"command": "list-vms", "options": {}}


# Round trips


@SOME
@given(st.data())
@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda c: c.name)
def test_what_is_encoded_is_decoded_again(command: Command, data: st.DataObject) -> None:
    options = data.draw(OPTIONS[command.options])
    request = decode_request(encode_request(command.name, options))
    assert request.command is command
    assert request.options == options


# Bounds

BOUNDS = [
    ("create-vm", "cpus", 1, 256),
    ("create-vm", "memory", 64, 4 * 1024 * 1024),
    ("create-vm", "disk", 1, 64 * 1024),
    ("offer-vm", "cpus", 1, 256),
    ("show-vm", "console-lines", 0, 1000),
    ("create-vm", "ttl", 1, 316_224_000),
    ("extend-vm", "ttl", 1, 316_224_000),
    ("resize-vm", "cpus", 1, 256),
    ("resize-vm", "memory", 64, 4 * 1024 * 1024),
    ("resize-vm", "disk", 1, 64 * 1024),
    ("open-stream", "port", 1, 65535),
    ("open-stream", "lines", 0, 1000),
    ("open-stream", "window", 4096, 4 * 1024 * 1024),
]
MAY_BE_NULL = [("create-vm", "ttl"), ("extend-vm", "ttl"), ("open-stream", "port")]
MAY_BE_NULL += [("resize-vm", "cpus"), ("resize-vm", "memory"), ("resize-vm", "disk")]
NO_NUMBERS: list[Any] = [True, False, None, "1", "", [], {}, [1]]
OTHER_TYPES = [
    (command, option, value)
    for command, option, _, _ in BOUNDS
    for value in NO_NUMBERS
    if value is not None or (command, option) not in MAY_BE_NULL
]


def with_option(command: str, option: str, value: Any) -> bytes:
    required: dict[type[Options], dict[str, Any]] = {
        CreateVm: {"image": "a"},
        ForgetHost: {"host": "h1"},
        HostRef: {"host": "h1"},
        DeleteImage: {"host": "h1", "image": "a"},
        SnapshotRef: {"vm-id": VM_ID, "snapshot": "s"},
        OpenStream: {"vm-id": VM_ID, "kind": "tcp", "port": 22},
        NoOptions: {},
        CheckHost: {"checksums": False},
    }
    base = required.get(COMMANDS[command].options, {"vm-id": VM_ID})
    return body(command, {**base, option: value})


@pytest.mark.parametrize(("command", "option", "least", "most"), BOUNDS)
def test_both_ends_of_a_range_are_accepted(command: str, option: str, least: int, most: int) -> None:
    for value in (least, most):
        options = decode_request(with_option(command, option, value)).options
        assert getattr(options, option.replace("-", "_")) == value


@pytest.mark.parametrize(("command", "option", "least", "most"), BOUNDS)
def test_what_lies_outside_of_a_range_is_refused_by_name(command: str, option: str, least: int, most: int) -> None:
    for value in (least - 1, most + 1, -(2**63), 2**63, 2**64, 10**40, 1e300, 1.5):
        error = refusal(with_option(command, option, value))
        assert (error.code, error.changed) == ("bad-request", False)
        assert f"$.{option}" in error.reason


@pytest.mark.parametrize(("command", "option", "value"), OTHER_TYPES)
def test_a_number_of_another_type_is_refused_by_name(command: str, option: str, value: Any) -> None:
    assert f"$.{option}" in refusal(with_option(command, option, value)).reason


# Refusals

BAD_SHAPES = [
    pytest.param(b"", id="empty"),
    pytest.param(b"null", id="null"),
    pytest.param(b"[]", id="list"),
    pytest.param(b'"create-vm"', id="string"),
    pytest.param(b"{}", id="no-command"),
    pytest.param(b'{"command": "list-vms"} {}', id="two-values"),
    pytest.param(b'{"command": "list-vms", "more": 1}', id="extra-key"),
    pytest.param(b'{"Command": "list-vms"}', id="capital-key"),
    pytest.param(b'{"command": null}', id="command-null"),
    pytest.param(b'{"command": ["list-vms"]}', id="command-list"),
    pytest.param(b'{"command": "list-vms", "options": null}', id="options-null"),
    pytest.param(b'{"command": "list-vms", "options": []}', id="options-list"),
    pytest.param(b'{"command": "list-vms", "options": "x"}', id="options-string"),
    pytest.param(b'{"command": "list-vms", "options": {"all": true}}', id="unknown-option"),
    pytest.param(b'{"command": "list-vms", "options": {', id="cut-short"),
    pytest.param(b'\xef\xbb\xbf{"command": "list-vms"}', id="byte-order-mark"),
    pytest.param('{"command": "list-vms"}'.encode("utf-16"), id="utf-16"),
    pytest.param(b'{"command": "list-vms\xff"}', id="bad-utf8-in-command"),
    pytest.param(b'{"command": "start-vm", "options": {"vm-id": "\xff\xfe"}}', id="bad-utf8-in-option"),
    pytest.param(b'{"command": "start-vm", "options": {"\xff\xfe": 1}}', id="bad-utf8-in-key"),
    pytest.param(b'{"command": "start-vm", "options": {"vm-id": "\\ud800"}}', id="lone-surrogate"),
    pytest.param(b'{"command": "start-vm", "options": {"vm_id": "sgeqxcfi"}}', id="snake-case"),
    pytest.param(b'{"command": "start-vm", "options": {}}', id="no-vm-id"),
    pytest.param(b'{"command": "stop-vm", "options": {"vm-id": "sgeqxcfi", "kill": "yes"}}', id="kill-string"),
    pytest.param(b'{"command": "stop-vm", "options": {"vm-id": "sgeqxcfi", "kill": 1}}', id="kill-number"),
    pytest.param(b'{"command": "create-vm", "options": {"image": "a", "cpus": NaN}}', id="nan"),
    pytest.param(b'{"command": "create-vm", "options": {"image": "a", "cpus": 1e400}}', id="infinite"),
    pytest.param(b"[" * 100_000, id="deep-list"),
    pytest.param(b'{"command": "list-vms", "options": ' + b'{"a":' * 50_000, id="deep-options"),
    pytest.param(
        b'{"command": "list-vms", "options": {"a":' + b"[" * 9_000 + b"]" * 9_000 + b"}}", id="deep-and-whole"
    ),
]


@pytest.mark.parametrize("data", BAD_SHAPES)
def test_what_is_no_command_is_a_bad_request(data: bytes) -> None:
    error = refusal(data)
    assert (error.code, error.changed) == ("bad-request", False)
    assert error.reason


@pytest.mark.parametrize("name", ["", "format-disk", "CREATE-VM", "create_vm", "create-vm ", "create-vm\n", "x" * 9999])
def test_an_unknown_command_is_named_with_those_that_are_known(name: str) -> None:
    error = refusal(body(name))
    assert error.code == "unknown-command"
    assert repr(name[:64]) in error.reason
    for command in COMMANDS.values():
        assert command.name in (error.hint or "")


def test_the_largest_body_is_read_and_a_larger_one_is_not() -> None:
    base = body("list-vms")
    assert decode_request(base + b" " * (MAX_BODY - len(base))).command.name == "list-vms"
    error = refusal(base + b" " * (MAX_BODY - len(base) + 1))
    assert error.code == "bad-request"
    assert str(MAX_BODY + 1) in error.reason


@pytest.mark.parametrize("host", ["", "H1", "-h1", "h1.", "h 1", "h1\n", "h" * 64, "*", "../h1"])
def test_a_bad_host_name_is_refused_with_the_rule(host: str) -> None:
    error = refusal(body("forget-host", {"host": host}))
    assert error.code == "bad-request"
    assert "a host name is" in error.reason


BAD_IDS = ["", "a", "abcdefg", "abcdefghi", "ABCDEFGH", "abcdefg1", "abcdefgh\n", "\nabcdefgh", "../../..", "äbcdefgh"]


@pytest.mark.parametrize("vm_id", BAD_IDS)
@pytest.mark.parametrize("command", ["create-vm", "start-vm", "stop-vm", "delete-vm", "show-vm", "offer-vm"])
def test_a_bad_vm_id_is_refused_with_the_rule(command: str, vm_id: str) -> None:
    options = {"vm-id": vm_id, **({"image": "a"} if command in ("create-vm", "offer-vm") else {})}
    error = refusal(body(command, options))
    assert error.code == "bad-request"
    assert repr(vm_id) in error.reason
    assert "8 lower-case letters" in error.reason


@pytest.mark.parametrize("image", ["", ".", "..", "-x", "_x", "a/b", "../a", "a\n", "a b", "a\0", "ä", "a" * 65])
def test_a_bad_image_name_is_refused_with_the_rule(image: str) -> None:
    error = refusal(body("create-vm", {"image": image}))
    assert error.code == "bad-request"
    assert "image" in error.reason
    assert "starts with a letter or digit" in error.reason


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_names_an_option_that_it_does_not_know(command: str) -> None:
    assert "colour" in refusal(with_option(command, "colour", "red")).reason


# Whatever comes


def answer_to(data: bytes) -> bytes:
    """The answer's body, whatever the request's was; the only error that may come out is `Refused`."""
    try:
        decode_request(data)
    except Refused as error:
        refused = error
    else:
        return b""
    assert refused.code in ("bad-request", "unknown-command")
    return encode_answer(failure(refused, "h1"))


@MANY
@given(st.binary())
def test_arbitrary_bytes_are_decoded_or_refused(data: bytes) -> None:
    answer_to(data)


@MANY
@given(json_values)
def test_arbitrary_json_is_decoded_or_refused(value: Any) -> None:
    answer_to(json.dumps(value).encode())


@MANY
@given(st.sampled_from([*COMMANDS]), json_values, st.dictionaries(st.text(), json_values, max_size=2))
def test_arbitrary_options_are_decoded_or_refused(command: str, options: Any, more: dict[str, Any]) -> None:
    answer_to(json.dumps({"command": command, "options": options, **more}).encode())


@MANY
@given(st.sampled_from([*COMMANDS]), st.data())
def test_a_good_message_with_one_byte_spoilt_is_decoded_or_refused(command: str, data: st.DataObject) -> None:
    good = bytearray(encode_request(command, data.draw(OPTIONS[COMMANDS[command].options])))
    good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    answer_to(bytes(good))


@MANY
@given(st.sampled_from(["image", "vm-id"]), st.text())
def test_any_text_as_a_name_is_accepted_only_by_its_rule(option: str, text: str) -> None:
    data = body("create-vm", {"image": "a", option: text})
    rule = {"image": r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "vm-id": "[a-z]{8}"}[option]
    if re.fullmatch(rule, text):
        decode_request(data)
    else:
        refusal(data)


# What a refusal repeats of the message

HUGE = [
    pytest.param(b'{"command": "start-vm", "options": {"vm-id": "%s"}}', id="vm-id"),
    pytest.param(b'{"command": "create-vm", "options": {"image": "%s"}}', id="image"),
    pytest.param(b'{"command": "list-vms", "options": {"%s": 1}}', id="unknown-option"),
    pytest.param(b'{"command": "%s"}', id="command"),
    pytest.param(b'{"command": "list-vms", "%s": 1}', id="unknown-key"),
]


@pytest.mark.parametrize("data", HUGE)
def test_a_refusal_repeats_little_of_a_huge_message(data: bytes) -> None:
    """An answer above the broker's limit would cost the connection that all answers go by."""
    assert 0 < len(answer_to(data % (b"\x7f" * 900_000))) < 4000


@pytest.mark.parametrize("evil", ["x\nERROR disk on fire", "x\r", "\x1b[2J", "\x9b2J", "\u202edrow"])
@pytest.mark.parametrize("where", ["option", "key", "image", "command"])
def test_a_refusal_holds_no_control_characters(where: str, evil: str) -> None:
    data = {
        "option": body("list-vms", {evil: 1}),
        "key": json.dumps({"command": "list-vms", evil: 1}).encode(),
        "image": body("create-vm", {"image": evil}),
        "command": body(evil),
    }[where]
    assert refusal(data).reason.isprintable()
    assert decode_answer(answer_to(data)).execution_info.reason


def test_the_limit_of_a_body_is_near_one_mebibyte() -> None:
    assert commands.MAX_BODY == 1 << 20
