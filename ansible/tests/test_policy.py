"""What holds for every role and play."""

import configparser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment

from .conftest import ANSIBLE

ROLES = sorted(path.name for path in (ANSIBLE / "roles").iterdir() if path.is_dir())
PLAYS = yaml.safe_load((ANSIBLE / "site.yml").read_text())
ROTATION = yaml.safe_load((ANSIBLE / "rotate.yml").read_text())
SECRETS = ("password", "_rabbitmq_drift.import", "_rabbitmq_wanted", "_rabbitmq_held", "_config_text", "_context_text",
           "_rabbitmq_export", "_agent_expected", "_certificate_text")  # fmt: skip
"""What a task mentions when it has a password in hand."""
HARMLESS = {"Make the passwords that are missing", "Warn of play mode", "Say what differs"}
"""Tasks that mention one of these, and print none: they see names, digests of files, and guest's password."""


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def find_tasks(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for task in tasks or []:
        yield task
        for section in ("block", "rescue", "always"):
            yield from find_tasks(task.get(section, []))


def tasks_of(role: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in sorted((ANSIBLE / "roles" / role / "tasks").glob("*.yml")):
        for task in find_tasks(load(file)):
            yield file, task


ALL_TASKS = [pytest.param(task, id=f"{role}:{task['name']}") for role in ROLES for _, task in tasks_of(role)]


@pytest.mark.parametrize("role", ROLES)
def test_the_arguments_are_the_defaults(role):
    defaults = load(ANSIBLE / f"roles/{role}/defaults/main.yml") or {}
    specs = load(ANSIBLE / f"roles/{role}/meta/argument_specs.yml")["argument_specs"]
    for entry in specs.values():
        assert set(entry["options"]) == set(defaults)
        for name, option in entry["options"].items():
            value = defaults[name]
            if not (isinstance(value, str) and "{{" in value):
                assert option.get("default") == value, name
            assert option["description"]


@pytest.mark.parametrize("role", ROLES)
def test_public_variables_bear_the_roles_name_and_internal_ones_an_underscore(role):
    assert all(name.startswith(f"{role}_") for name in load(ANSIBLE / f"roles/{role}/defaults/main.yml"))
    internal = ANSIBLE / f"roles/{role}/vars/main.yml"
    if internal.exists():
        assert all(name.startswith(f"_{role}_") for name in load(internal))


@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_task_with_a_password_in_hand_prints_nothing(task):
    simple = {key: value for key, value in task.items() if key not in ("block", "rescue", "always", "name")}
    if any(secret in str(simple) for secret in SECRETS) and task["name"] not in HARMLESS:
        assert task.get("no_log") is True


@pytest.mark.parametrize("task", ALL_TASKS)
def test_no_password_is_an_argument(task):
    for module in ("ansible.builtin.command", "ansible.builtin.shell"):
        call = task.get(module) or {}
        words = call if isinstance(call, str) else " ".join(str(call.get(key, "")) for key in ("cmd", "argv"))
        assert not any(f"{secret}" in words for secret in SECRETS)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_what_runs_on_the_controller_runs_as_the_operator(task):
    if task.get("delegate_to") == "localhost":
        assert task.get("become") is False


@pytest.mark.parametrize("play", PLAYS, ids=lambda play: str(play["name"]))
def test_a_failure_stops_the_roll_out(play):
    if "any_errors_fatal" in play:
        assert play["any_errors_fatal"] is True  # a template would always count as true
        assert "serial" not in play  # it would drag healthy neighbours into a rescue
    else:
        assert play["max_fail_percentage"] == 0
    assert "force_handlers" not in play
    assert play["gather_facts"] is False


@pytest.mark.parametrize("play", ROTATION, ids=lambda play: str(play["name"]))
def test_a_rotation_stops_at_the_first_that_fails_and_takes_agents_one_by_one(play):
    assert play.get("any_errors_fatal") is True or play["max_fail_percentage"] == 0
    assert play["gather_facts"] is False
    assert play.get("serial", 1) == 1
    assert ("serial" in play) == (play["hosts"] == "compute")


def test_only_the_play_that_restarts_agents_does_so_one_host_first():
    rolling = [play for play in PLAYS if "serial" in play]
    assert [play["tasks"][0]["ansible.builtin.include_role"]["tasks_from"] for play in rolling] == ["switch"]
    assert "[1, " in rolling[0]["serial"]
    for role in ROLES:
        for file, task in tasks_of(role):
            service = task.get("ansible.builtin.systemd_service", {})
            if service.get("name") == "aetherscale-agent.service" and "state" in service:
                assert file.name == "restart.yml"


@pytest.mark.parametrize("role", ROLES)
def test_no_role_touches_a_running_vm_or_uses_handlers(role):
    assert not (ANSIBLE / "roles" / role / "handlers").exists()
    for _, task in tasks_of(role):
        assert "aetherscale-vm@" not in str(task.get("ansible.builtin.systemd_service", ""))


@pytest.mark.parametrize("template", sorted(ANSIBLE.glob("roles/*/templates/*.j2")), ids=lambda path: path.name)
def test_templates_parse(template):
    Environment(autoescape=True).parse(template.read_text())


def test_the_configuration_of_ansible():
    config = configparser.ConfigParser()
    config.read(ANSIBLE / "ansible.cfg")
    assert config["defaults"]["inventory"] == "../inventory.ini"
    assert config["defaults"]["inject_facts_as_vars"] == "False"
    assert "ServerAliveInterval=2" in config["ssh_connection"]["ssh_args"]


def test_the_example_inventory_parses():
    program = Path(sys.executable).with_name("ansible-inventory")
    example = ANSIBLE.parent / "inventory.example.ini"
    done = subprocess.run([program, "-i", example, "--list"], capture_output=True, text=True, cwd=ANSIBLE, check=True)
    groups = yaml.safe_load(done.stdout)
    assert len(groups["broker"]["hosts"]) == 1
    assert len(groups["compute"]["hosts"]) == 2
    assert "WARN" not in done.stderr
