"""Whose connections are closed at the end of a run: the roles' own tasks and variables, run by Ansible."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .conftest import ANSIBLE

PROGRAM = Path(sys.executable).with_name("ansible-playbook")
INVENTORY = """
[broker]
broker1
[compute]
h1
h2
[all:vars]
ansible_connection=local
ansible_python_interpreter={{ ansible_playbook_python }}
aetherscale_operators=["alice", "bob"]
"""


def find_task(path: str, name: str) -> dict:
    (task,) = [task for task in yaml.safe_load((ANSIBLE / path).read_text()) if task["name"] == name]
    return task


@pytest.mark.parametrize(
    ("limit", "out"),
    [
        ("all", ["agent-h1", "agent-h2", "alice", "bob"]),
        ("broker1", ["alice", "bob"]),
        ("!h2", ["agent-h1", "alice", "bob"]),
    ],
)
def test_an_agent_is_put_out_by_a_run_that_gave_it_its_new_password(tmp_path, limit, out):
    """Marked are bob, h1 and others; alice and h2 had other passwords at the broker."""
    (tmp_path / "secrets/.rotated").mkdir(parents=True)
    for user in ("bob", "agent-h1", "another-inventorys"):
        (tmp_path / "secrets/.rotated" / user).touch()
    note = find_task("roles/aetherscale/tasks/preflight.yml", "Note for the broker which hosts are in this run")
    tell = {"ansible.builtin.copy": {"content": "{{ _rabbitmq_put_out | to_json }}", "dest": str(tmp_path / "out")}}
    variables = {
        "_rabbitmq_drift": {"put_out": ["alice", "agent-h2"]},
        "aetherscale_secrets_dir": f"{tmp_path}/secrets",
    }
    files = [str(ANSIBLE / f"roles/{role}/vars/main.yml") for role in ("aetherscale", "rabbitmq")]
    plays = [
        {"hosts": "broker:compute", "gather_facts": False, "tasks": [note]},
        {"hosts": "broker", "gather_facts": False, "vars": variables, "vars_files": files, "tasks": [tell]},
    ]
    (tmp_path / "play.yml").write_text(json.dumps(plays))
    (tmp_path / "inventory.ini").write_text(INVENTORY)
    mine = os.environ | {
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
        "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
        "ANSIBLE_FILTER_PLUGINS": str(ANSIBLE / "roles/aetherscale/filter_plugins"),
    }
    command = [PROGRAM, "-i", "inventory.ini", "--limit", limit, "play.yml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=mine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(json.loads((tmp_path / "out").read_text())) == out
