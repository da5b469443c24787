"""The checks of the inventory, and the passwords."""

import stat
import subprocess
import sys

import pytest

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
