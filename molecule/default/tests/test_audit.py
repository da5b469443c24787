"""What the journal of a host tells of each command, and what it never tells."""

import json
import random
import string
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from aetherscale_agent.audit import MESSAGE_ID
from aetherscale_testing.client import SeedClient, parameters_of
from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once, not per host

CANARY = "canary-7e1f-of-user-data"
KEY_CANARY = "canary-7e1f-of-a-key"
BURST = 500
LIMIT = """
mkdir -p /run/systemd/journald.conf.d
printf '[Journal]\\nRateLimitIntervalSec=30s\\nRateLimitBurst=30\\n' >/run/systemd/journald.conf.d/limit.conf
systemctl restart systemd-journald.service
"""
NO_LIMIT = "rm /run/systemd/journald.conf.d/limit.conf; systemctl restart systemd-journald.service"
"""What others may tell the journal of h1; it multiplies the burst by up to six where the disk has room."""
FLOOD = f"""
{{ echo planted-in-a-flood
for _ in $(seq 100); do journalctl -o cat -t "$1" | grep -q planted-in-a-flood && break; sleep 0.1; done
yes planted-in-a-flood | head -n {BURST}; }} | systemd-cat -t "$1"
"""
"""Begun by one line that has come: journald limits nobody whose unit it could not read, for instance who is gone."""
ME = "operator"
FORGE = """
import glob, os, socket, sys
vm_id, message_id, where = sys.argv[1:]
for folder in ("", "*/"):
    for procs in glob.glob(f"/sys/fs/cgroup/{folder}system.slice/{where}/cgroup.procs"):
        with open(procs, "w") as file:
            file.write("0")
fields = f"MESSAGE_ID={message_id}\\nPRIORITY=6\\nAETHERSCALE_OPERATOR=alice\\nAETHERSCALE_VM={vm_id}\\n"
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
    journal.sendto(fields.encode(), "/run/systemd/journal/socket")
print("told", flush=True)
sys.stdin.read()
"""
"""An entry like the agent's, by somebody else, who goes to a unit's cgroup first if he is told one. He stays, for
journald asks whose it was.
"""
AGENT = "aetherscale-agent.service"


@pytest.fixture(scope="module")
def fleet() -> Rollout:
    return Rollout()


def entries(fleet: Rollout, *matches: str) -> list[dict[str, Any]]:
    """What h1's journal has of the audit, by its structured fields."""
    found = fleet.run("h1", "journalctl", "--no-pager", "-o", "json", f"MESSAGE_ID={MESSAGE_ID}", *matches)
    return [json.loads(line) for line in found.splitlines()]


@pytest.fixture(scope="module")
def vm_id(fleet: Rollout, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A VM that was created with user-data, stopped, refused a snapshot's deletion, and deleted."""
    data = tmp_path_factory.mktemp("audit") / "user-data"
    data.write_text(f"#cloud-config\n# {CANARY}\n")
    key = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZmZ {KEY_CANARY}"
    vm_id = fleet.create("--name", "audited", "--host", "h1", "--user-data", str(data), "--ssh-key", key)
    fleet.cli("stop-vm", "audited", "--kill")
    assert "has no snapshot none" in fleet.cli("delete-snapshot", "audited", "none", check=False).stderr
    fleet.cli("delete-vm", "audited")
    return vm_id


def test_who_did_what_to_which_vm_and_what_came_of_it(fleet: Rollout, vm_id: str) -> None:
    told = [
        (e["AETHERSCALE_COMMAND"], e["AETHERSCALE_RESULT"], e.get("AETHERSCALE_CODE"))
        for e in entries(fleet, f"AETHERSCALE_VM={vm_id}", f"AETHERSCALE_OPERATOR={ME}", "PRIORITY=6")
    ]
    assert told == [
        ("create-vm", "success", None),
        ("stop-vm", "success", None),
        ("delete-snapshot", "error", "snapshot-unknown"),
        ("delete-vm", "success", None),
    ]


def test_each_entry_has_a_time_a_request_a_name_and_is_the_agents_own(fleet: Rollout, vm_id: str) -> None:
    told = entries(fleet, f"AETHERSCALE_VM={vm_id}", "PRIORITY=6")
    assert len(told) == 4
    for entry in told:
        assert int(entry["__REALTIME_TIMESTAMP"]) > 0
        assert len(entry["AETHERSCALE_REQUEST_ID"]) == 32
        assert entry["AETHERSCALE_VM_NAME"] == "audited"
        assert entry["_SYSTEMD_UNIT"] == "aetherscale-agent.service"  # said by journald, whatever an entry claims


def forge(fleet: Rollout, where: str, *user: str) -> str:
    """Tell h1's journal of a command to a VM that nobody has; its id."""
    vm_id = "".join(random.choices(string.ascii_lowercase, k=8))
    argv = [*user, "/usr/bin/python3", "-I", "-c", FORGE, vm_id, MESSAGE_ID, where]
    command = fleet.lab.ssh_command("h1", argv)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as he:
        assert he.stdout is not None
        told = he.stdout.readline()
        fleet.run("h1", "journalctl", "--sync")
        said = he.communicate("")[1]
    assert told == "told\n", said
    assert len(entries(fleet, f"AETHERSCALE_VM={vm_id}")) == 1  # the control: it is like the agent's
    return vm_id


def test_nobody_but_root_writes_in_the_agents_name(fleet: Rollout) -> None:
    """Any user of a host may tell its journal what he likes: who asks for what the agent's unit said is not told it."""
    nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    with pytest.raises(AssertionError, match=r"PermissionError.*Permission denied"):
        forge(fleet, AGENT, *nobody)
    nobodys = forge(fleet, "none", *nobody)
    assert entries(fleet, "-u", AGENT, f"AETHERSCALE_VM={nobodys}") == []
    roots = forge(fleet, AGENT)
    assert len(entries(fleet, "-u", AGENT, f"AETHERSCALE_VM={roots}")) == 1


def test_no_journal_has_user_data_or_a_key(fleet: Rollout, vm_id: str) -> None:
    assert entries(fleet, f"AETHERSCALE_VM={vm_id}")
    for host in ("h1", "h2", "broker1"):
        everything = fleet.run(host, "journalctl", "--no-pager", "-o", "json", "--all")
        assert len(everything) > 10_000
        assert CANARY not in everything
        assert KEY_CANARY not in everything


@pytest.fixture
def impatient_journal(fleet: Rollout) -> Iterator[None]:
    """h1's journal takes little from anybody whose unit does not say otherwise."""
    fleet.run("h1", "sh", "-c", LIMIT)
    yield
    fleet.run("h1", "sh", "-c", NO_LIMIT)


@pytest.mark.usefixtures("impatient_journal")
def test_a_flood_takes_no_entry_with_it(fleet: Rollout) -> None:
    vm_id = "".join(random.choices(string.ascii_lowercase, k=8))  # nobody's, and another in each run
    with SeedClient(parameters=parameters_of(fleet.broker())) as client:
        body = json.dumps({"command": "stop-vm", "options": {"vm-id": vm_id}}).encode()
        asked = [client.publish("stop-vm", body) for _ in range(BURST)]
        for one in asked:
            assert len(client.collect(one, 2)) == 2
    tag = f"planted-{vm_id}"
    fleet.run("h1", "sh", "-c", FLOOD, "sh", tag)
    fleet.run("h1", "journalctl", "--sync")
    assert len(entries(fleet, f"AETHERSCALE_VM={vm_id}")) == BURST
    planted = fleet.run("h1", "journalctl", "--no-pager", "-o", "cat", "-t", tag).count("planted-in-a-flood")
    assert planted < BURST, "the control: others are limited"
