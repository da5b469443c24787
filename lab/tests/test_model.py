"""Names, addresses and specifications of labs."""

import ipaddress

import pytest

from aetherscale_lab import model
from aetherscale_lab.errors import LabError
from aetherscale_lab.model import Host, HostSpec


@pytest.mark.parametrize("lab", ["a", "demo", "exactly-12ch", "a-very-long-name-of-a-lab"])
def test_bridge_names_fit_the_kernels_limit(lab: str) -> None:
    assert len(model.bridge_name(lab)) <= 15


def test_long_lab_names_keep_different_bridges() -> None:
    assert model.bridge_name("molecule-agent-default") != model.bridge_name("molecule-agent-upgrade")


def test_cut_tables_of_ambiguous_names_differ() -> None:
    assert model.cut_table("a-b", "c") != model.cut_table("a", "b-c")


def test_host_is_parsed_with_its_suite() -> None:
    assert model.parse_host("h1:bookworm") == HostSpec("h1", "bookworm")
    assert model.parse_host("h1") == HostSpec("h1", "trixie")


@pytest.mark.parametrize("text", ["", "H1:trixie", "h1:sid", "-x:trixie", "h 1:trixie", "controller:trixie", "a/b"])
def test_unusable_hosts_are_refused(text: str) -> None:
    with pytest.raises(LabError):
        model.parse_host(text)


@pytest.mark.parametrize(
    "text",
    [
        '[{"name": "h1", "suite": "trixie"}]',
        '{"hosts": [{"name": "h1", "suite": "trixie"}]}',
        '[{"name": "h1"}]',
    ],
)
def test_specification_forms(text: str) -> None:
    assert model.parse_spec(text) == [HostSpec("h1", "trixie")]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '["h1"]', '[{"suite": "trixie"}]', "null"])
def test_broken_specifications_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises(LabError) as caught:
        model.parse_spec(text)
    assert caught.value.hint


def test_demo_has_its_fixed_subnet_and_others_never_get_it() -> None:
    assert model.find_free_subnet("demo", []) == "10.77.0.0/24"
    for number in range(200):
        assert not model.find_free_subnet(f"lab{number}", []).startswith("10.77.")


def test_subnet_is_stable_and_moves_out_of_the_way() -> None:
    first = model.find_free_subnet("mine", [])
    assert model.find_free_subnet("mine", ["192.0.2.2/24"]) == first
    second = model.find_free_subnet("mine", [str(ipaddress.ip_network(first)[7]) + "/32"])
    assert second != first


def test_no_free_subnet_is_an_error() -> None:
    with pytest.raises(LabError):
        model.find_free_subnet("demo", ["10.0.0.0/8"])


def test_plan_gives_addresses_in_order_and_keeps_them() -> None:
    plan = model.plan_lab("mine", "10.80.1.0/24", [HostSpec("a", "trixie"), HostSpec("b", "bookworm")])
    assert [host.address for host in plan.hosts] == ["10.80.1.11", "10.80.1.12"]
    assert plan.controller == "10.80.1.1"
    more = model.plan_lab("mine", plan.subnet, [HostSpec("c", "trixie"), HostSpec("a", "trixie")], plan.hosts)
    assert [(host.name, host.address) for host in more.hosts] == [
        ("a", "10.80.1.11"),
        ("b", "10.80.1.12"),
        ("c", "10.80.1.13"),
    ]


def test_plan_refuses_doubles_and_a_change_of_suite() -> None:
    with pytest.raises(LabError):
        model.plan_lab("mine", "10.80.1.0/24", [HostSpec("a", "trixie")] * 2)
    with pytest.raises(LabError):
        model.plan_lab("mine", "10.80.1.0/24", [HostSpec("a", "trixie")], [Host("a", "bookworm", "10.80.1.11")])


def test_plan_refuses_more_hosts_than_addresses() -> None:
    with pytest.raises(LabError):
        model.plan_lab("mine", "10.80.1.0/24", [HostSpec(f"h{n}", "trixie") for n in range(240)])


def test_plan_survives_json_and_finds_hosts() -> None:
    plan = model.plan_lab("mine", "10.80.1.0/24", [HostSpec("a", "trixie")])
    assert model.LabPlan.from_json(plan.to_json()) == plan
    assert plan.host("a").address == "10.80.1.11"
    with pytest.raises(LabError):
        plan.host("b")


def test_hosts_file_names_everyone() -> None:
    plan = model.plan_lab("mine", "10.80.1.0/24", [HostSpec("a", "trixie"), HostSpec("b", "trixie")])
    assert model.hosts_file(plan).splitlines() == [
        "127.0.0.1 localhost",
        "10.80.1.1 controller",
        "10.80.1.11 a",
        "10.80.1.12 b",
    ]
