"""The checks of the inventory."""

import pytest

from aetherscale_agent.config import OperatorRights, load_config

GOOD = {"broker": ["b"], "compute": ["h1", "h2"]}


def test_a_good_inventory_has_no_problems(fleet):
    assert fleet.fleet_problems(GOOD, ["operator", "alice.b_2"]) == []
    assert fleet.fleet_problems({"broker": ["h1"], "compute": ["h1"]}, ["operator"]) == []


@pytest.mark.parametrize(
    ("groups", "operators", "words"),
    [
        ({"compute": ["h1"]}, ["o"], "must hold one host, and holds none"),
        ({"broker": ["a", "b"], "compute": ["h1"]}, ["o"], "holds a, b"),
        ({"broker": ["a"]}, ["o"], "compute holds no host"),
        ({"broker": ["a"], "compute": ["H1"]}, ["o"], "'H1'"),
        ({"broker": ["a"], "compute": ["h_1"]}, ["o"], "'h_1'"),
        (GOOD, [], "names nobody"),
        (GOOD, ["agent-h1"], "agents' own"),
        (GOOD, ["guest"], "neither guest nor tls"),
        (GOOD, ["tls"], "neither guest nor tls"),
        (GOOD, ["a/b"], "'a/b'"),
        (GOOD, ["a", "a"], "twice"),
    ],
)
def test_problems_are_named(fleet, groups, operators, words):
    (problem,) = fleet.fleet_problems(groups, operators)
    assert words in problem


def test_what_operators_may_do_is_checked(fleet):
    assert fleet.operator_problems(["a", "b"], ["b"], {"a": {"team": "a"}}) == []
    for readonly, labels, words in (
        (["c"], {}, "readonly_operators: 'c' is not in aetherscale_operators"),
        ([], {"c": {"team": "a"}}, "operator_labels: 'c' is not in"),
        ([], {"a": {}}, "must be labels"),
        ([], {"a": "team=a"}, "must be labels"),
        ([], {"a": {"team": 7}}, "team=7"),
        ([], {"a": {"te am": "a"}}, "te am=a"),
    ):
        (problem,) = fleet.operator_problems(["a", "b"], readonly, labels)
        assert words in problem


def test_agents_read_the_operators_that_they_are_told(fleet, tmp_path):
    text = fleet.operators_toml(["z.y", "b", "c"], ["b"], {"c": {"team": "a", "x.y/z": ""}, "b": {"team": "b"}})
    (tmp_path / "agent.toml").write_text('host = "h1"\n' + text)
    operators = load_config(tmp_path / "agent.toml", {}).operators
    assert operators == {
        "b": OperatorRights(readonly=True, labels={"team": "b"}),
        "c": OperatorRights(labels={"team": "a", "x.y/z": ""}),
        "z.y": OperatorRights(),
    }
