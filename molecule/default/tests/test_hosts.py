"""Hosts that hang, go away and come back, on real systems: what systemd, the agents and the CLI make of it."""

import json
from collections.abc import Iterator

import pytest

from aetherscale_testing.rollout import Rollout

AGENT = "aetherscale-agent.service"
HOSTS = ("h1", "h2")
DROP_IN = f"/run/systemd/system/{AGENT}.d/test-watchdog.conf"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Rollout]:
    rollout = Rollout()
    yield rollout
    for answer in rollout.ask("list-vms", check=False):
        for name in answer.get("response", []):
            rollout.cli("delete-vm", name.removeprefix("vm-"), check=False)


def is_healthy(fleet: Rollout) -> bool:
    return fleet.cli("doctor", check=False).returncode == 0


@pytest.fixture
def impatient(fleet: Rollout) -> Iterator[str]:
    """A host whose systemd waits 3 s for its agent's sign of life, not 30."""
    host = "h2"
    fleet.run(host, "sh", "-c", f"mkdir -p $(dirname {DROP_IN}) && printf '[Service]\\nWatchdogSec=3\\n' >{DROP_IN}")
    fleet.run(host, "systemctl", "daemon-reload")
    fleet.run(host, "systemctl", "restart", AGENT)
    fleet.eventually(lambda: is_healthy(fleet), 40)
    yield host
    fleet.run(host, "sh", "-c", f"rm -r $(dirname {DROP_IN}) && systemctl daemon-reload && systemctl restart {AGENT}")
    fleet.eventually(lambda: is_healthy(fleet), 40)


def test_systemd_restarts_an_agent_that_hangs_and_no_vm_notices(fleet: Rollout, impatient: str) -> None:
    made = [fleet.create() for _ in HOSTS]
    vm_id = next(vm for vm in made if fleet.show(vm, 0)["host"] == impatient)
    qemu = fleet.unit(vm_id, "MainPID")
    agent = fleet.run(impatient, "systemctl", "show", "-P", "MainPID", AGENT)
    fleet.run(impatient, "kill", "-STOP", agent)

    def restarted() -> bool:
        pid = fleet.run(impatient, "systemctl", "show", "-P", "MainPID", AGENT, check=False)
        return pid not in ("", "0", agent)

    fleet.eventually(restarted, 20)
    assert "watchdog" in fleet.run(impatient, "journalctl", "--no-pager", "-u", AGENT, "-n", "60").lower()
    fleet.eventually(lambda: is_healthy(fleet), 40)
    assert fleet.unit(vm_id, "MainPID") == qemu != "0"
    assert fleet.show(vm_id, 0)["state"] == "running"


def test_the_doctor_names_a_host_whose_agent_is_stopped(fleet: Rollout) -> None:
    assert is_healthy(fleet)
    fleet.run("h2", "systemctl", "stop", AGENT)
    done = fleet.cli("doctor", check=False)
    assert done.returncode == 4
    assert "error: host h2 is down: its agent is not connected to the broker" in done.stderr
    states = {f["subject"]: f["state"] for f in json.loads(done.stdout) if f["check"] == "host"}
    assert states == {"h1": "up", "h2": "down"}
    fleet.run("h2", "systemctl", "start", AGENT)
    fleet.eventually(lambda: is_healthy(fleet), 40)


def test_a_command_outlives_its_hosts_reboot(fleet: Rollout) -> None:
    vm_id = fleet.create()
    host = fleet.show(vm_id, 0)["host"]
    fleet.cli("stop-vm", "--kill", vm_id)
    fleet.lab.reboot(host)
    (answer,) = fleet.ask("start-vm", vm_id, "--wait-for-host", "90s")
    assert (answer["host"], answer["response"]["status"]) == (host, "starting")
    starts = fleet.run(host, "journalctl", "--no-pager", "-b", "-u", AGENT).count(f"start-vm of VM {vm_id} for")
    assert starts == 1
    assert fleet.show(vm_id, 0)["state"] == "running"


def test_a_host_that_is_forgotten_and_comes_back_brings_its_vms_along(fleet: Rollout) -> None:
    made = [fleet.create() for _ in HOSTS]
    vm_id = next(vm for vm in made if fleet.show(vm, 0)["host"] == "h2")
    assert fleet.cli("forget-host", "h2", "--yes", check=False).returncode == 1, "it is alive"
    fleet.run("h2", "sh", "-c", f"sleep 2; systemctl stop {AGENT}")  # what it knows is told once a second
    (forgotten,) = fleet.ask("forget-host", "h2", "--yes")
    assert vm_id in [vm["vm-id"] for vm in forgotten["response"]["vms"]]
    assert fleet.cli("show-vm", vm_id, check=False).returncode == 1
    fleet.run("h2", "systemctl", "start", AGENT)
    fleet.eventually(lambda: is_healthy(fleet), 40)
    assert fleet.show(vm_id, 0)["host"] == "h2"
