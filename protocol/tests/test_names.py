"""Rules of names: a full match, every time; and ids that are derived, the same on every host."""

import re
import string
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale_protocol import names

MANY = settings(max_examples=100, deadline=None, database=None)

Rule = Callable[[str], bool]

GOOD: dict[Rule, list[str]] = {
    names.is_vm_id: ["sgeqxcfi", "aaaaaaaa", "zzzzzzzz"],
    names.is_image_name: ["a", "0", "ubuntu_base", "Debian-12.1", "a..b", "a" * 64, "v1.", "x-"],
    names.is_host_name: ["a", "h1", "h-1", "node1.example.org", "1", "a" * 63, "a--b", "0.0"],
    names.is_vm_name: ["a", "web1", "1", "web-1", "a" * 63, "a--b", "sgeqxcfi"],
    names.is_snapshot_name: ["a", "0", "before-upgrade", "2024_01.02", "a..b", "a" * 64, "v1.", "x-"],
}
BAD: dict[Rule, list[str]] = {
    names.is_vm_id: ["sgeqxcf", "sgeqxcfii", "Sgeqxcfi", "sgeqxcf1", "sgeqxcf-", "ſgeqxcfi", "sgeqxcﬁ"],
    names.is_image_name: [".", "..", ".a", "-a", "_a", "a/b", "a\\b", "a b", "a:b", "a%b", "é", "a" * 65, "a@b", "١"],
    names.is_host_name: ["-a", "a-", ".a", "a.", "H1", "a_b", "a/b", "a b", "a" * 64, "h1:5672", "*", "#", "h١", "."],
    names.is_vm_name: ["-a", "a-", ".a", "a.b", "a_b", "Web", "a/b", "a b", "a" * 64, "*", "é", "w١", "-", "a=b"],
    names.is_snapshot_name: [".", "..", ".a", "-a", "_a", "a/b", "a b", "a:b", "a@b", "a%b", "é", "a" * 65, "١"],
}
RULES = [*GOOD]


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in GOOD.items() for text in texts])
def test_a_good_name_passes(rule: Rule, text: str) -> None:
    assert rule(text)


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in BAD.items() for text in ["", *texts]])
def test_a_bad_name_does_not(rule: Rule, text: str) -> None:
    assert not rule(text)


@pytest.mark.parametrize("spoil", ["{}\n", "\n{}", "{}\r", "{} ", " {}", "{}\0", "{}\u2028", "{}/", "../{}", "{}\n{}"])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_a_full_match(rule: Rule, spoil: str) -> None:
    for text in GOOD[rule]:
        assert not rule(spoil.replace("{}", text))


@MANY
@given(st.text())
@pytest.mark.parametrize("rule", RULES)
def test_what_passes_is_harmless_in_paths_units_keys_and_patterns(rule: Rule, text: str) -> None:
    if rule(text):
        assert re.fullmatch(r"[A-Za-z0-9._-]+", text, re.ASCII)
        assert text not in (".", "..")
        assert len(text) <= 64


# Labels

LABELS = [("role", "web"), ("role", ""), ("a", "-"), ("example.org/role", "v1.2_3-x"), ("a" * 63, "b" * 63), ("0", "0")]
NO_LABELS = [
    *[(key, "web") for key in ("", "-a", "a-", ".a", "a.", "/a", "a/", "_", "a b", "a=b", "a" * 64, "é", "a\n", "a,b")],
    *[("role", value) for value in ("a b", "a=b", "a/b", "a,b", "b" * 64, "é", "a\n", "\n", "*", "\0")],
]


@pytest.mark.parametrize(("key", "value"), LABELS)
def test_a_good_label_passes(key: str, value: str) -> None:
    assert names.is_label(key, value)


@pytest.mark.parametrize(("key", "value"), NO_LABELS)
def test_a_bad_label_does_not(key: str, value: str) -> None:
    assert not names.is_label(key, value)


# Ids


def test_new_ids_are_ids_and_differ() -> None:
    vm_ids = {names.new_vm_id() for _ in range(200)}
    assert len(vm_ids) == 200
    assert all(names.is_vm_id(vm_id) for vm_id in vm_ids)
    request_ids = {names.new_request_id() for _ in range(200)}
    assert len(request_ids) == 200
    assert all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in request_ids)


def test_derived_ids_never_change() -> None:
    """Other hosts, and other releases, must derive the same: a redelivered create would else be made twice."""
    request_id = names.derive_request_id("amq.rabbitmq.reply-to.x.y", "1", b"{}")
    assert request_id == "7e421cd33bd650b0f8783adacab3aa42"
    assert names.derive_vm_id(request_id) == "divmppcj"


def test_the_id_of_a_name_never_changes() -> None:
    """Who knows a VM's name finds it by this id, in any release: VMs made by an older one would else be lost."""
    assert names.id_of_name("web1") == "lqrhsuri"
    assert names.id_of_name("a") == "gqipkgiz"


@MANY
@given(st.from_regex(names.VM_NAME_PATTERN, fullmatch=True))
def test_any_name_gives_a_vm_id_of_its_own_kind(name: str) -> None:
    """A request id with the letters of a name must not lead to the VM of that name."""
    assert names.is_vm_id(names.id_of_name(name))
    assert names.id_of_name(name) != names.derive_vm_id(name)
    assert names.id_of_name(name) != names.id_of_name(f"{name}1")


@MANY
@given(st.text(max_size=80))
def test_any_request_id_gives_a_vm_id(request_id: str) -> None:
    assert names.is_vm_id(names.derive_vm_id(request_id))
    assert names.derive_vm_id(request_id) == names.derive_vm_id(request_id)


parts = st.lists(st.text(min_size=1) | st.binary(min_size=1), min_size=1, max_size=4)


@MANY
@given(parts, st.data())
def test_a_derived_request_id_differs_by_any_part(one: list[str | bytes], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(one) - 1))
    part = data.draw(st.text(min_size=1) | st.binary(min_size=1))
    other = [*one[:place], part, *one[place + 1 :]]

    def as_bytes(texts: list[str | bytes]) -> list[bytes]:
        return [text.encode() if isinstance(text, str) else text for text in texts]

    same = names.derive_request_id(*one) == names.derive_request_id(*other)
    assert same == (as_bytes(one) == as_bytes(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (("ab",), ("a", "b")),
        (("", "a"), ("a", "")),
        (("a", None), ("a",)),
        ((None, "a"), ("a", None)),
    ],
)
def test_parts_do_not_run_into_each_other(one: tuple[str | None, ...], other: tuple[str | None, ...]) -> None:
    assert names.derive_request_id(*one) != names.derive_request_id(*other)


def test_derived_ids_use_the_whole_alphabet() -> None:
    letters = {letter for n in range(100) for letter in names.derive_vm_id(str(n))}
    assert letters == set(string.ascii_lowercase)


# Names of the broker's pieces


def test_names_of_the_brokers_pieces() -> None:
    assert names.vm_key("sgeqxcfi") == "vm.sgeqxcfi"
    assert names.host_key("h1") == "host.h1"
    assert names.host_queue("h1") == "computing-host.h1"
    assert names.lock_queue("h1") == "agent.h1"
    assert names.known_queue("h1") == "computing-known.h1"
    assert names.claim_queue("sgeqxcfi") == "claim.sgeqxcfi"
    assert names.agent_user("h1") == "agent-h1"
