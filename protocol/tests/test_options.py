"""What options hold beside their types: rules across fields, limits, and which labels a selector selects."""

from typing import Any

import pytest

from aetherscale_protocol import names, options
from aetherscale_protocol.commands import decode_request, encode_request
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import (
    CreateVm,
    ExtendVm,
    OpenStream,
    Options,
    Publish,
    ResizeVm,
    SnapshotRef,
    selects,
    split_selector,
)

VM_ID = "sgeqxcfi"
WEB1 = names.id_of_name("web1")


def create(**given: Any) -> CreateVm:
    return CreateVm(image="a", **given)


def refused(command: str, made: Options) -> str:
    """Why the other side refuses what was made here without its being checked."""
    with pytest.raises(Refused) as caught:
        decode_request(encode_request(command, made))
    assert (caught.value.code, caught.value.changed) == ("bad-request", False)
    return caught.value.reason


# Names


@pytest.mark.parametrize("vm_id", [None, WEB1])
def test_a_create_with_a_name_has_its_id_or_none(vm_id: str | None) -> None:
    made = create(name="web1", vm_id=vm_id)
    assert decode_request(encode_request("create-vm", made)).options == made


@pytest.mark.parametrize("vm_id", [VM_ID, names.id_of_name("web2"), names.derive_vm_id("web1")])
def test_a_create_with_the_id_of_something_else_than_its_name_is_refused(vm_id: str) -> None:
    with pytest.raises(ValueError, match=f"vm-id '{vm_id}' is not that of name 'web1': leave one of them out"):
        create(name="web1", vm_id=vm_id)


@pytest.mark.parametrize("name", ["", "Web", "web_1", "-web", "web-", "a.b", "a" * 64, "web\n"])
def test_a_bad_name_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(ValueError, match=r"name .*: a VM's name is 1 to 63 lower-case letters"):
        create(name=name)


# Labels


@pytest.mark.parametrize("field", ["labels", "host_labels"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("", "web"), ("role=", "web"), ("-role", "web"), ("role", "a b"), ("role", "a=b"), ("a", "b" * 64)],
)
def test_a_bad_label_is_refused_with_the_rule(field: str, key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"label {key}={value}: a label is KEY=VALUE"):
        create(**{field: {key: value}})


@pytest.mark.parametrize("field", ["spread", "near"])
@pytest.mark.parametrize("selector", ["=web", "role==web", "role=a=b", "role web", "-role"])
def test_a_bad_selector_is_refused_with_the_rule(field: str, selector: str) -> None:
    with pytest.raises(ValueError, match=f"label '{selector}': a label is KEY=VALUE"):
        create(**{field: selector})


@pytest.mark.parametrize("selector", ["role", "role=web", "role=", "example.org/role=v1.2_3-x"])
def test_a_create_goes_away_from_a_label_or_to_it(selector: str) -> None:
    assert create(spread=selector).spread == selector
    assert create(near=selector).near == selector
    with pytest.raises(ValueError, match="spread and near exclude each other"):
        create(spread=selector, near=selector)


@pytest.mark.parametrize(
    ("selector", "key", "value"), [("role", "role", ""), ("role=", "role", ""), ("role=web", "role", "web")]
)
def test_a_selector_has_a_key_and_a_value(selector: str, key: str, value: str) -> None:
    assert split_selector(selector) == (key, value)


@pytest.mark.parametrize(
    ("selector", "labels", "selected"),
    [
        ("role", {"role": "web"}, True),
        ("role", {"role": ""}, True),
        ("role", {}, False),
        ("role", {"roles": "web", "rol": "web"}, False),
        ("role=web", {"role": "web", "env": "prod"}, True),
        ("role=web", {"role": "web2"}, False),
        ("role=web", {"role": "we"}, False),
        ("role=web", {"env": "web"}, False),
        ("role=web", {}, False),
        ("role=", {"role": ""}, True),
        ("role=", {"role": "web"}, False),
        ("role=", {}, False),
    ],
)
def test_a_selector_selects_by_key_or_by_key_and_value(selector: str, labels: dict[str, str], selected: bool) -> None:
    assert selects(selector, labels) is selected


# Limits

PORTS = tuple(Publish(host_port=8000 + n, guest_port=80) for n in range(options.MOST_PUBLISHED + 1))
MOST: list[tuple[str, Any, Any]] = [
    (
        "labels",
        {f"l{n}": "" for n in range(options.MOST_LABELS)},
        {f"l{n}": "" for n in range(options.MOST_LABELS + 1)},
    ),
    ("ssh_keys", ("key",) * options.MOST_KEYS, ("key",) * (options.MOST_KEYS + 1)),
    ("publish", PORTS[:-1], PORTS),
    ("user_data", "x" * options.LONGEST_TEXT, "x" * (options.LONGEST_TEXT + 1)),
]


@pytest.mark.parametrize(("field", "most", "more"), MOST)
def test_the_most_is_accepted_and_more_is_refused_with_the_limit(field: str, most: Any, more: Any) -> None:
    assert getattr(create(**{field: most}), field) == most
    with pytest.raises(ValueError, match=rf"^{field.replace('_', '-')}.* {len(more)} .*; {len(most)} are the most"):
        create(**{field: more})


@pytest.mark.parametrize("key", ["", " ", "two\nlines", "tab\there", "x" * (options.LONGEST_KEY + 1)])
def test_a_key_that_is_not_one_line_is_refused_by_its_beginning(key: str) -> None:
    assert create(ssh_keys=("x" * options.LONGEST_KEY,)).ssh_keys
    with pytest.raises(ValueError, match="is not one line of a public key") as caught:
        create(ssh_keys=("ssh-ed25519 AAAA", key))
    assert len(str(caught.value)) < 200


def test_a_port_of_the_host_is_published_once() -> None:
    one, two, again = (Publish(host_port=h, guest_port=g) for h, g in ((8080, 80), (8081, 80), (8080, 443)))
    assert create(publish=(one, two)).publish == (one, two)
    with pytest.raises(ValueError, match="publish: a port of the host is named twice"):
        create(publish=(one, two, again))


@pytest.mark.parametrize("ttl", [0, -1, 10 * 366 * 86_400 + 1])
def test_a_time_to_live_is_some_time_but_not_for_ever(ttl: int) -> None:
    assert "$.ttl" in refused("create-vm", create(ttl=ttl))
    assert "$.ttl" in refused("extend-vm", ExtendVm(vm_id=VM_ID, ttl=ttl))


def test_when_a_vm_expires_must_be_said_and_never_is_null() -> None:
    with pytest.raises(Refused, match="missing required field `ttl`"):
        decode_request(b'{"command": "extend-vm", "options": {"vm-id": "sgeqxcfi"}}')
    never = decode_request(b'{"command": "extend-vm", "options": {"vm-id": "sgeqxcfi", "ttl": null}}')
    assert never.options == ExtendVm(vm_id=VM_ID, ttl=None)


# Of the other commands


@pytest.mark.parametrize("snapshot", ["", ".", "..", "a/b", "-a", "a b", "a" * 65, "a\n"])
def test_a_bad_snapshots_name_is_refused_with_the_rule(snapshot: str) -> None:
    with pytest.raises(ValueError, match=r"snapshot .*: a snapshot's name is 1 to 64 letters"):
        SnapshotRef(vm_id=VM_ID, snapshot=snapshot)


def test_a_resize_changes_something() -> None:
    with pytest.raises(ValueError, match="nothing to resize: give cpus, memory or disk"):
        ResizeVm(vm_id=VM_ID)
    for one in ({"cpus": 1}, {"memory": 64}, {"disk": 1}):
        assert ResizeVm(vm_id=VM_ID, **one)


@pytest.mark.parametrize(
    ("kind", "port", "right"),
    [
        ("tcp", 22, True),
        ("tcp", None, False),
        ("console", None, True),
        ("console", 22, False),
        ("log", None, True),
        ("log", 22, False),
    ],
)
def test_a_stream_to_a_port_has_one_and_no_other_stream_has(kind: Any, port: int | None, right: bool) -> None:
    body = b'{"command": "open-stream", "options": {"vm-id": "sgeqxcfi", "kind": "%s", "port": %s}}'
    data = body % (kind.encode(), b"null" if port is None else b"%d" % port)
    if right:
        assert decode_request(data).options == OpenStream(vm_id=VM_ID, kind=kind, port=port)
    else:
        with pytest.raises(Refused, match="port goes with kind tcp, and with no other"):
            decode_request(data)
