"""The checks of the inventory, and the passwords."""

import stat
import subprocess
import sys

import pytest

from aetherscale_agent.config import OperatorRights, load_config

from .conftest import ANSIBLE

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


def test_rotation_makes_new_passwords_for_those_alone(tmp_path):
    folder = tmp_path / "secrets"
    make("--make", folder, "a,b")
    before = {file.name: file.read_text() for file in folder.iterdir()}
    assert make("--rotate", folder, "a").stdout == f"made {folder}/a\n"
    assert (folder / "a").read_text() != before["a"]
    assert (folder / "b").read_text() == before["b"]
    assert modes(folder) == {"secrets": 0o700, "a": 0o600, "b": 0o600}


def make(what, folder, users):
    script = ANSIBLE / "roles/aetherscale/files/make_secrets.py"
    return subprocess.run([sys.executable, script, what, folder, users], capture_output=True, text=True)


def modes(folder):
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}


def test_passwords_are_made_once_and_closed(tmp_path):
    folder = tmp_path / "secrets"
    assert make("--make", folder, "a,b").stdout.count("made /") == 3
    assert modes(folder) == {"secrets": 0o700, "a": 0o600, "b": 0o600}
    before = {file.name: file.read_text() for file in folder.iterdir()}
    assert len(set(before.values())) == 2
    assert make("--make", folder, "a,b,c").stdout == f"made {folder}/c\n"
    assert {name: (folder / name).read_text() for name in before} == before
    assert make("--make", folder, "a,b,c").stdout == ""


def test_a_check_makes_nothing_and_tells_the_same(tmp_path):
    folder = tmp_path / "secrets"
    told = make("--check", folder, "a,b").stdout
    assert not folder.exists()
    assert make("--make", folder, "a,b").stdout == told


def test_what_stands_open_is_closed(tmp_path):
    folder = tmp_path / "secrets"
    make("--make", folder, "a")
    (folder / "a").chmod(0o644)
    folder.chmod(0o755)
    assert make("--make", folder, "a").stdout.count("closed /") == 2
    assert modes(folder) == {"secrets": 0o700, "a": 0o600}


def test_no_password_is_printed(tmp_path):
    folder = tmp_path / "secrets"
    done = make("--make", folder, "a")
    assert (folder / "a").read_text().strip() not in done.stdout + done.stderr
