"""The passwords' folder: what is made, what is never touched, and what goes with its user."""

import stat
import subprocess
import sys

import pytest

from .conftest import ANSIBLE

SCRIPT = ANSIBLE / "roles/aetherscale/files/make_secrets.py"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "secrets"


def make(what, folder, users):
    return subprocess.run([sys.executable, SCRIPT, what, folder, users], capture_output=True, text=True)


def modes(folder):
    return {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()] if path.name != ".rotated"
    }


def passwords(folder):
    return {file.name: file.read_text() for file in folder.iterdir() if file.is_file()}


def marks(folder):
    return sorted(file.name for file in (folder / ".rotated").iterdir())


def test_rotation_makes_new_passwords_for_those_alone(folder):
    make("--make", folder, "a,b")
    before = passwords(folder)
    assert make("--rotate", folder, "a").stdout == f"made {folder}/a\n"
    assert (folder / "a").read_text() != before["a"]
    assert (folder / "b").read_text() == before["b"]
    assert modes(folder) == {"secrets": 0o700, "a": 0o600, "b": 0o600}


def test_passwords_are_made_once_and_closed(folder):
    assert make("--make", folder, "a,b").stdout.count("made /") == 3
    assert modes(folder) == {"secrets": 0o700, "a": 0o600, "b": 0o600}
    before = passwords(folder)
    assert len(set(before.values())) == 2
    assert make("--make", folder, "a,b,c").stdout == f"made {folder}/c\n"
    assert {name: (folder / name).read_text() for name in before} == before
    assert make("--make", folder, "a,b,c").stdout == ""


def test_a_check_makes_nothing_and_tells_the_same(folder):
    told = make("--check", folder, "a,b").stdout
    assert not folder.exists()
    assert make("--make", folder, "a,b").stdout == told


def test_what_stands_open_is_closed(folder):
    make("--make", folder, "a")
    (folder / "a").chmod(0o644)
    folder.chmod(0o755)
    assert make("--make", folder, "a").stdout.count("closed /") == 2
    assert modes(folder) == {"secrets": 0o700, "a": 0o600}


def test_no_password_is_printed(folder):
    done = make("--make", folder, "a")
    assert (folder / "a").read_text().strip() not in done.stdout + done.stderr


def test_a_leaver_who_is_listed_again_gets_another_one(folder):
    make("--make", folder, "alice,dave")
    before = passwords(folder)
    assert make("--check", folder, "alice").stdout == f"removed {folder / 'dave'}\n"
    assert passwords(folder) == before
    assert make("--make", folder, "alice").stdout == f"removed {folder / 'dave'}\n"
    assert passwords(folder) == {"alice": before["alice"]}
    assert marks(folder) == ["alice"]
    make("--make", folder, "alice,dave")
    assert passwords(folder)["dave"] != before["dave"]


@pytest.mark.parametrize("text", ["", "a note of mine\n", "hand-made\n"])
def test_what_was_not_made_here_is_left_alone(folder, text):
    make("--make", folder, "alice")
    (folder / "notes").write_text(text)
    (folder / "tls").mkdir()
    assert make("--make", folder, "alice").stdout == ""
    assert (folder / "notes").read_text() == text


def test_it_is_known_whose_old_password_is_to_be_put_out(folder):
    make("--make", folder, "alice,bob")
    assert marks(folder) == ["alice", "bob"]
    make("--done", folder, "alice,bob")
    assert marks(folder) == []
    make("--make", folder, "alice,bob")
    assert marks(folder) == []
    make("--rotate", folder, "bob")
    assert marks(folder) == ["bob"]
