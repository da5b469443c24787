"""The module that has many files and folders as they should be in one visit, run as Ansible runs it."""

import grp
import importlib.util
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

ROLE = Path(__file__).parents[1] / "roles/compute"
MODULE = ROLE / "library/files_and_folders.py"
ME, MINE = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name


def run(*entries: dict[str, Any], check: bool = False) -> dict[str, Any]:
    owned = [{"owner": ME, "group": MINE, **entry} for entry in entries]
    given = json.dumps({"ANSIBLE_MODULE_ARGS": {"entries": owned, "_ansible_check_mode": check}})
    done = subprocess.run([sys.executable, MODULE], input=given, capture_output=True, text=True, check=False)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.fixture
def entries(tmp_path: Path) -> list[dict[str, Any]]:
    folder = tmp_path / "some" / "where"
    return [
        {"path": str(folder), "mode": "0750"},
        {"path": str(folder / "motto"), "mode": "0640", "content": "first things first\n"},
    ]


def test_what_is_not_there_is_made_and_a_second_run_changes_nothing(entries: list[dict[str, Any]]) -> None:
    folder, file = (Path(entry["path"]) for entry in entries)
    told = run(*entries)
    after = {"before_header": str(file), "after_header": str(file), "before": "", "after": "first things first\n"}
    assert told | {"invocation": 0} == {
        "changed": True, "paths": [str(folder), str(file)], "diff": [after], "invocation": 0,
    }  # fmt: skip
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o750, 0o640)
    assert file.read_text() == "first things first\n"
    again = run(*entries)
    assert (again["changed"], again["paths"], again["diff"]) == (False, [], [])


def test_a_run_with_diff_shows_what_a_file_was_and_becomes(entries: list[dict[str, Any]]) -> None:
    run(*entries)
    path = entries[1]["path"]
    Path(path).write_text("last things last\n")
    (shown,) = run(*entries, check=True)["diff"]
    assert (shown["before_header"], shown["before"], shown["after"]) == (
        path,
        "last things last\n",
        "first things first\n",
    )


def test_what_a_link_in_a_files_place_leads_to_is_not_shown(entries: list[dict[str, Any]], tmp_path: Path) -> None:
    run(*entries)
    (tmp_path / "secret").write_text("a secret\n")
    file = Path(entries[1]["path"])
    file.unlink()
    file.symlink_to(tmp_path / "secret")
    told = run(*entries, check=True)
    assert told["changed"]
    assert [shown["before"] for shown in told["diff"]] == [""]


def test_what_can_not_be_done_is_told_with_what_was_done_before(entries: list[dict[str, Any]]) -> None:
    told = run(*entries, {"path": "/proc/nothing", "mode": "0755"})
    assert told["failed"]
    assert "/proc/nothing" in told["msg"]
    assert told["paths"] == [entry["path"] for entry in entries]


@pytest.mark.parametrize("drift", ["content", "mode of the file", "mode of the folder", "a link in its place"])
def test_drift_is_reported_and_repaired(entries: list[dict[str, Any]], drift: str, tmp_path: Path) -> None:
    run(*entries)
    folder, file = (Path(entry["path"]) for entry in entries)
    if drift == "content":
        file.write_text("last things last\n")
    elif drift == "a link in its place":
        (tmp_path / "other").write_text("first things first\n")
        file.unlink()
        file.symlink_to(tmp_path / "other")
    else:
        (file if "file" in drift else folder).chmod(0o700)
    told = run(*entries, check=True)
    assert told["paths"] == [str(folder if "folder" in drift else file)]
    assert run(*entries)["paths"] == told["paths"]  # nothing was done to it by looking
    assert run(*entries)["changed"] is False
    assert not file.is_symlink()


def test_a_check_makes_nothing(entries: list[dict[str, Any]]) -> None:
    told = run(*entries, check=True)
    assert told["paths"] == [entry["path"] for entry in entries]
    assert not Path(entries[0]["path"]).exists()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_something_else_is_named_and_left(entries: list[dict[str, Any]], kind: str) -> None:
    place = Path(entries[0 if kind == "folder" else 1]["path"])
    place.parent.mkdir(parents=True)
    place.write_text("mine") if kind == "folder" else place.mkdir()
    told = run(*entries)
    assert told["failed"]
    assert f"{place} should be a {kind}" in told["msg"]
    assert place.exists()


def test_who_owns_what_is_set(entries: list[dict[str, Any]]) -> None:
    told = run({**entries[0], "owner": "no-such-user"})
    assert told["failed"]
    assert "no-such-user" in told["msg"]


def test_the_filter_reads_what_the_role_installs(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("files", ROLE / "filter_plugins/files.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "a").write_text("text\n")
    wanted = {"src": str(tmp_path / "a"), "path": "/b", "mode": "0644"}
    assert module.with_content([wanted]) == [
        {"path": "/b", "mode": "0644", "owner": "root", "group": "root", "content": "text\n"}
    ]
    with pytest.raises(AnsibleFilterError, match="No such file"):
        module.with_content([{**wanted, "src": str(tmp_path / "c")}])
