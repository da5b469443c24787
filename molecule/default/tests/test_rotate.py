"""New passwords for everybody by one command: the old ones are refused, and neither agents nor VMs are lost."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from pika.exceptions import AMQPError, ProbableAuthenticationError

from aetherscale_testing.client import parameters_of
from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once, not per host

SECRETS = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "secrets")
USERS = ("operator", "agent-h1", "agent-h2")


def log_in(fleet: Rollout, user: str, password: str) -> pika.BlockingConnection:
    """A connection of this user's.

    :raise AMQPError: when the broker refuses the login.
    """
    return pika.BlockingConnection(parameters_of(fleet.broker(), user, password))


def passwords() -> dict[str, str]:
    return {user: (SECRETS / user).read_text().strip() for user in USERS}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Rollout]:
    rollout = Rollout()
    yield rollout
    rollout.cli("delete-vm", "--if-exists", "rotated", check=False)


@pytest.fixture(scope="module")
def rotated(fleet: Rollout) -> dict[str, str]:
    """The old passwords; a VM has run since before, and a thief has a connection of the operator's."""
    fleet.create("--name", "rotated", "--host", "h1")
    pid = fleet.unit(fleet.show("rotated", 0)["vm-id"], "MainPID")
    before = passwords()
    thief = log_in(fleet, "operator", before["operator"])
    playbook = Path(sys.executable).with_name("ansible-playbook")
    repository = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
    done = subprocess.run(
        [playbook, "-i", os.environ["MOLECULE_INVENTORY_FILE"], "rotate.yml"],
        cwd=repository / "ansible",
        env={**os.environ, "ANSIBLE_CONFIG": str(repository / "ansible/ansible.cfg"), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for password in (*before.values(), *passwords().values()):
        assert password not in done.stdout + done.stderr
    with pytest.raises(AMQPError):
        thief.process_data_events(5)
    return {**before, "pid": pid}


@pytest.mark.parametrize("user", USERS)
def test_the_old_password_is_refused_and_the_new_one_is_not(fleet: Rollout, rotated: dict[str, str], user: str) -> None:
    assert passwords()[user] != rotated[user]
    with pytest.raises(ProbableAuthenticationError):
        log_in(fleet, user, rotated[user])
    log_in(fleet, user, passwords()[user]).close()


def test_agents_and_cli_go_on_and_no_vm_notices(fleet: Rollout, rotated: dict[str, str]) -> None:
    assert {answer["host"] for answer in fleet.ask("list-vms")} == {"h1", "h2"}
    assert fleet.unit(fleet.show("rotated", 0)["vm-id"], "MainPID") == rotated["pid"]


def test_a_roll_out_afterwards_finds_nothing_to_do_at_the_broker(rotated: dict[str, str], site) -> None:
    assert rotated
    done = site("--limit", "broker1")
    assert done.code == 0, done.said
    assert not done.changed, done.said
