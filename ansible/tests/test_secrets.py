"""The passwords' folder: what is made, what is never touched, and what goes with its user."""

import shutil
import stat
import subprocess
import sys

import pytest

from .conftest import ANSIBLE

SCRIPT = ANSIBLE / "roles/aetherscale/files/make_secrets.py"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "secrets"


@pytest.fixture(autouse=True)
def inventories(folder):
    for name in ("inventory.ini", "other.ini"):
        (folder.parent / name).touch()


def make(what, folder, users, inventory="inventory.ini"):
    given = [] if what in ("--rotate", "--mark", "--done") else [folder.parent / inventory]
    done = subprocess.run([sys.executable, SCRIPT, what, folder, users, *given], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done


def modes(folder):
    return {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in [folder, *folder.iterdir()]
        if path.name not in (".made", ".rotated")
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
    certificate = folder / "tls/clients/dave.pem"
    certificate.parent.mkdir(parents=True)
    certificate.touch()
    before = passwords(folder)
    gone = f"removed {folder / 'dave'}\nremoved {certificate}\n"
    assert make("--check-leave", folder, "alice").stdout == gone
    assert passwords(folder) == before
    assert make("--leave", folder, "alice").stdout == gone
    assert passwords(folder) == {"alice": before["alice"]}
    assert not certificate.exists()
    assert marks(folder) == ["alice"]
    assert make("--leave", folder, "alice").stdout == ""
    make("--make", folder, "alice,dave")
    assert passwords(folder)["dave"] != before["dave"]


@pytest.mark.parametrize("what", ["--make", "--check"])
def test_nobody_leaves_before_the_broker_is_told(folder, what):
    make("--make", folder, "alice,dave")
    before = passwords(folder)
    assert make(what, folder, "alice").stdout == ""
    assert passwords(folder) == before
    assert make("--leave", folder, "alice").stdout == f"removed {folder / 'dave'}\n"


def test_who_was_listed_before_there_was_a_record_leaves_like_others(folder):
    make("--make", folder, "alice,dave")
    shutil.rmtree(folder / ".made")
    make("--make", folder, "alice,dave")
    assert make("--leave", folder, "alice").stdout == f"removed {folder / 'dave'}\n"


@pytest.mark.parametrize("text", ["", "a note of mine\n", f"{16 * 'a1'}\n"])
def test_what_was_not_made_here_is_left_alone(folder, text):
    make("--make", folder, "alice")
    (folder / "monitoring").write_text(text)
    (folder / "tls/clients").mkdir(parents=True)
    (folder / "tls/clients/monitoring.pem").touch()
    assert make("--make", folder, "bob").stdout == f"made {folder / 'bob'}\n"
    assert make("--leave", folder, "bob").stdout == f"removed {folder / 'alice'}\n"
    assert (folder / "monitoring").read_text() == text
    assert (folder / "tls/clients/monitoring.pem").exists()


def test_inventories_that_share_the_folder_leave_each_others_passwords_alone(folder):
    make("--make", folder, "operator,agent-h1")
    make("--make", folder, "operator,agent-g1", "other.ini")
    before = passwords(folder)
    assert make("--leave", folder, "operator,agent-h1").stdout == ""
    assert make("--leave", folder, "operator,agent-g1", "other.ini").stdout == ""
    assert make("--leave", folder, "agent-h1").stdout == ""  # the other one has an operator still
    assert passwords(folder) == before
    assert make("--leave", folder, "agent-g1", "other.ini").stdout == f"removed {folder / 'operator'}\n"


def test_an_inventory_that_is_gone_keeps_nobodys_password(folder):
    make("--make", folder, "alice,dave")
    (folder.parent / "inventory.ini").rename(folder.parent / "renamed.ini")
    make("--make", folder, "alice,dave", "renamed.ini")
    assert make("--leave", folder, "alice", "renamed.ini").stdout == f"removed {folder / 'dave'}\n"


def test_the_folder_may_be_moved_together_with_its_inventory(folder, tmp_path):
    make("--make", folder, "alice,dave")
    (tmp_path / "elsewhere").mkdir()
    for path in (folder, folder.parent / "inventory.ini"):
        path.rename(tmp_path / "elsewhere" / path.name)
    moved = tmp_path / "elsewhere/secrets"
    assert make("--leave", moved, "alice").stdout == f"removed {moved / 'dave'}\n"


def test_it_is_known_whose_old_password_is_to_be_put_out(folder):
    make("--make", folder, "alice,bob")
    assert marks(folder) == ["alice", "bob"]
    make("--done", folder, "alice,bob")
    assert marks(folder) == []
    make("--make", folder, "alice,bob")
    assert marks(folder) == []
    make("--rotate", folder, "bob")
    assert marks(folder) == ["bob"]
    make("--mark", folder, "alice")
    assert marks(folder) == ["alice", "bob"]
