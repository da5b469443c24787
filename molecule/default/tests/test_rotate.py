"""New passwords and certificates for everybody by one command: who has the old ones is out, and nobody else notices."""

import contextlib
import json
import os
import ssl
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from pika.exceptions import AMQPError, ProbableAuthenticationError

from aetherscale_testing import onlooker
from aetherscale_testing.certificates import shown_to
from aetherscale_testing.client import parameters_of
from aetherscale_testing.rollout import Rollout
from aetherscale_testing.searching import read_keys

testinfra_hosts = ["broker1"]  # once, not per host

REPOSITORY = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
SECRETS = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "secrets")
USERS = ("operator", "agent-h1", "agent-h2")
PUT_OUT = "log in anew"


def log_in(fleet: Rollout, user: str, password: str) -> pika.BlockingConnection:
    """A connection of this user's, which does not end by itself.

    :raise AMQPError: when the broker refuses the login.
    """
    return pika.BlockingConnection(parameters_of(fleet.broker(), user, password, heartbeat=0))


class Thief:
    """Somebody with a stolen password who connects again all the time, and stays with the last that he got."""

    def __init__(self, fleet: Rollout, user: str, password: str) -> None:
        self._log_in = lambda: log_in(fleet, user, password)
        self.connection = self._log_in()
        self.came = self.refused = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._come_again)
        self._thread.start()

    def _come_again(self) -> None:
        while not self._over.wait(0.1):
            try:
                another = self._log_in()
            except ProbableAuthenticationError:
                self.refused += 1
                continue
            with contextlib.suppress(AMQPError):
                self.connection.close()
            self.connection = another
            self.came += 1

    def give_up(self) -> None:
        """Come no more; the last connection is kept."""
        self._over.set()
        self._thread.join()


def passwords() -> dict[str, str]:
    return {user: (SECRETS / user).read_text().strip() for user in USERS}


@contextlib.contextmanager
def watched(fleet: Rollout, host: str) -> Iterator[list[str]]:
    """The command lines of a host's processes while the block lasts; they are there when it has ended."""
    lines: list[str] = []
    command = fleet.lab.ssh_command(host, ["/usr/bin/python3", "-I", "-c", Path(onlooker.__file__).read_text()])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "looking\n"
        try:
            yield lines
        finally:
            process.stdin.close()
            lines += json.loads(process.stdout.read())


def shown(fleet: Rollout) -> bytes:
    """The broker's certificate, as the CLI is shown it, and accepts it."""
    url = urlsplit(fleet.broker()["url"])
    return shown_to(fleet.broker()["ca_file"], str(url.hostname), url.port or 5671)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Rollout]:
    rollout = Rollout()
    yield rollout
    rollout.cli("delete-vm", "--if-exists", "rotated", check=False)


@pytest.fixture(scope="module")
def rotated(fleet: Rollout, site: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """What was before: a VM's process, passwords, the broker's certificate; and two thieves, who are still there."""
    fleet.create("--name", "rotated", "--host", "h1")
    pid = fleet.unit(fleet.show("rotated", 0)["vm-id"], "MainPID")
    before, secrets, certificate = passwords(), [*passwords().values(), *read_keys(SECRETS).values()], shown(fleet)
    planted = uuid.uuid4().hex
    thieves = [Thief(fleet, user, before[user]) for user in ("operator", "agent-h1")]
    try:
        with watched(fleet, "broker1") as lines:
            fleet.run("broker1", "sh", "-c", "sleep 0.3; true", planted)  # is there for a moment
            done = site("-vvv", playbook="rotate.yml")
    finally:
        for thief in thieves:
            thief.give_up()
    assert done.code == 0, done.said
    assert " EXEC " in done.said  # as talkative as -vvv
    secrets += [*passwords().values(), *read_keys(SECRETS).values()]
    assert not [number for number, secret in enumerate(secrets) if secret in done.said]
    seen = {"lines": lines, "secrets": secrets, "planted": planted}
    yield {**before, **seen, "pid": pid, "thieves": thieves, "certificate": certificate}
    for thief in thieves:
        with contextlib.suppress(AMQPError):
            thief.connection.close()


def test_a_thief_who_comes_again_and_again_is_out(rotated: dict[str, Any]) -> None:
    for thief in rotated["thieves"]:
        assert thief.came, "the control: he came again"
        assert thief.refused, "… until the password was another"
        with pytest.raises(AMQPError, match=PUT_OUT):
            thief.connection.process_data_events(5)
    assert not list((SECRETS / ".rotated").iterdir())


def test_no_process_of_the_brokers_machine_is_given_any_of_it_as_an_argument(rotated: dict[str, Any]) -> None:
    lines = rotated["lines"]
    assert any(rotated["planted"] in line for line in lines), "the control: what is there for a moment is seen"
    assert any("import_definitions" in line for line in lines), "… and so is what tells the broker"
    assert not [number for number, secret in enumerate(rotated["secrets"]) if any(secret in line for line in lines)]


@pytest.mark.parametrize("user", USERS)
def test_the_old_password_is_refused_and_the_new_one_is_not(fleet: Rollout, rotated: dict[str, Any], user: str) -> None:
    assert passwords()[user] != rotated[user]
    with pytest.raises(ProbableAuthenticationError):
        log_in(fleet, user, rotated[user])
    log_in(fleet, user, passwords()[user]).close()


def test_the_broker_shows_a_new_certificate_of_the_same_ca(fleet: Rollout, rotated: dict[str, Any]) -> None:
    assert shown(fleet) != rotated["certificate"]
    assert ssl.DER_cert_to_PEM_cert(shown(fleet)) in (SECRETS / "tls" / "broker.pem").read_text()


def test_agents_and_cli_go_on_and_no_vm_notices(fleet: Rollout, rotated: dict[str, Any]) -> None:
    assert {answer["host"] for answer in fleet.ask("list-vms")} == {"h1", "h2"}
    assert fleet.unit(fleet.show("rotated", 0)["vm-id"], "MainPID") == rotated["pid"]


def test_a_roll_out_afterwards_finds_nothing_to_do_at_the_broker(rotated: dict[str, Any], site) -> None:
    assert rotated
    done = site("--limit", "broker1")
    assert done.code == 0, done.said
    assert not done.changed, done.said


def test_one_operators_password_is_changed_and_nobody_elses(
    fleet: Rollout, rotated: dict[str, Any], site: Callable[..., Any]
) -> None:
    """As after the loss of a laptop."""
    assert rotated
    before = passwords()
    thief, agent = (log_in(fleet, user, before[user]) for user in ("operator", "agent-h1"))
    done = site("--limit", "broker", "-e", "rotate_operators=operator", playbook="rotate.yml")
    assert done.code == 0, done.said
    with pytest.raises(AMQPError, match=PUT_OUT):
        thief.process_data_events(5)
    with pytest.raises(ProbableAuthenticationError):
        log_in(fleet, "operator", before["operator"])
    after = passwords()
    assert {user for user in USERS if after[user] != before[user]} == {"operator"}
    agent.process_data_events(0)  # it is not put out
    agent.close()
    assert {answer["host"] for answer in fleet.ask("list-vms")} == {"h1", "h2"}  # with the new one


@pytest.mark.parametrize("broker_knows", [False, True])
def test_site_yml_ends_a_rotation_that_was_interrupted(
    fleet: Rollout, rotated: dict[str, Any], site: Callable[..., Any], broker_knows: bool
) -> None:
    assert rotated
    old = passwords()["operator"]
    thief = log_in(fleet, "operator", old)
    if broker_knows:  # the rotation itself, which fails at the CLI's configuration
        cut_off = ("-e", "rotate_operators=operator", "-e", "cli_operator=nobody")
        assert site("--limit", "broker1", *cut_off, playbook="rotate.yml").code != 0
    else:
        script = REPOSITORY / "ansible/roles/aetherscale/files/make_secrets.py"
        subprocess.run([sys.executable, script, "--rotate", SECRETS, "operator"], check=True, stdout=subprocess.DEVNULL)
    new = passwords()["operator"]
    assert new != old
    thief.process_data_events(0)  # the control: a changed password ends nothing
    done = site("--limit", "broker1")
    assert done.code == 0, done.said
    with pytest.raises(AMQPError, match=PUT_OUT):
        thief.process_data_events(5)
    with pytest.raises(ProbableAuthenticationError):
        log_in(fleet, "operator", old)
    log_in(fleet, "operator", new).close()
    assert {answer["host"] for answer in fleet.ask("list-vms")} == {"h1", "h2"}
    assert not site("--limit", "broker1").changed
