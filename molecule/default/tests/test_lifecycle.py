"""One real guest through all that can be done to it: paused, reset, rebooted, resized, taken back, copied."""

import json
import re
from collections.abc import Iterator

import pytest

from aetherscale_agent.lifecycle import TABLE, Act
from aetherscale_protocol.answers import VmState
from aetherscale_testing.rollout import Rollout

AGENT = "aetherscale-agent.service"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Rollout]:
    rollout = Rollout()
    yield rollout
    for answer in rollout.ask("list-vms", check=False):
        for name in answer.get("response", []):
            rollout.cli("delete-vm", name.removeprefix("vm-"), check=False)


@pytest.fixture(scope="module")
def vm_id(fleet: Rollout) -> str:
    vm_id = fleet.create()
    fleet.boot(vm_id)  # only then it hears its power button
    return vm_id


def told(fleet: Rollout, *arguments: str) -> str:
    """The status that a command was answered, or the code of its refusal."""
    (answer,) = fleet.ask(*arguments, check=False)
    return str(answer["execution-info"].get("code") or answer["response"]["status"])


def disk(fleet: Rollout, vm_id: str) -> dict[str, object]:
    """What qemu-img says of the VM's disk."""
    host = fleet.show(vm_id, 0)["host"]
    path = f"/var/lib/aetherscale/vms/{vm_id}/disk.qcow2"
    found: dict[str, object] = json.loads(fleet.run(host, "qemu-img", "info", "-U", "--output=json", path))
    return found


def test_a_paused_guest_stays_paused_over_its_agents_restart(fleet: Rollout, vm_id: str) -> None:
    host, qemu = fleet.show(vm_id, 0)["host"], fleet.unit(vm_id, "MainPID")
    assert told(fleet, "pause-vm", vm_id) == "paused"
    fleet.run(host, "systemctl", "kill", "--signal=KILL", AGENT)
    fleet.eventually(lambda: fleet.cli("doctor", check=False).returncode == 0, 40)
    assert fleet.show(vm_id, 0)["state"] == "paused"
    assert told(fleet, "stop-vm", vm_id) == "wrong-state"
    assert told(fleet, "resume-vm", vm_id) == "running"
    assert fleet.unit(vm_id, "MainPID") == qemu != "0"


def test_a_reboot_is_a_new_qemu_and_a_reset_keeps_it(fleet: Rollout, vm_id: str) -> None:
    before = fleet.unit(vm_id, "MainPID")
    assert told(fleet, "reboot-vm", vm_id) == "starting"
    qemu = fleet.unit(vm_id, "MainPID")
    assert qemu not in (before, "0")
    assert told(fleet, "reboot-vm", "--kill", vm_id) == "starting"
    assert fleet.unit(vm_id, "MainPID") == qemu
    assert fleet.show(vm_id, 0)["state"] == "running"


def test_a_disk_is_kept_grown_and_taken_back(fleet: Rollout, vm_id: str) -> None:
    before = fleet.show(vm_id, 0)["disk"]
    assert told(fleet, "snapshot-vm", vm_id, "clean") == "created"
    assert told(fleet, "snapshot-vm", vm_id, "clean") == "snapshot-exists"
    (listed,) = fleet.ask("list-snapshots", vm_id)
    assert [row["snapshot"] for row in listed["response"]] == ["clean"]
    assert told(fleet, "resize-vm", vm_id, "--disk", str(before + 1)) == "resized"
    assert told(fleet, "resize-vm", vm_id, "--cpus", "2") == "wrong-state"
    assert told(fleet, "resize-vm", vm_id, "--disk", str(before)) == "bad-request"
    assert disk(fleet, vm_id)["virtual-size"] == (before + 1) << 30
    assert told(fleet, "stop-vm", "--kill", vm_id) == "stopped"
    assert told(fleet, "restore-vm", vm_id, "clean") == "restored"
    assert disk(fleet, vm_id)["virtual-size"] == (before + 1) << 30
    assert told(fleet, "restore-vm", vm_id, "nothing") == "snapshot-unknown"
    assert told(fleet, "resize-vm", vm_id, "--cpus", "2") == "resized"
    assert told(fleet, "start-vm", vm_id) == "starting"
    assert told(fleet, "delete-snapshot", vm_id, "clean") == "deleted"
    assert "snapshots" not in disk(fleet, vm_id)
    (listed,) = fleet.ask("list-snapshots", vm_id)
    assert listed["response"] == []
    assert fleet.show(vm_id, 0)["cpus"] == 2


def boots(fleet: Rollout, vm_id: str) -> list[int]:
    """What the guest counted at each of its boots, on its disk."""
    said = "\n".join(fleet.show(vm_id, 1000)["console"])
    return [int(count) for count in re.findall(r"GUEST: boot ([0-9]+) of this disk", said)]


def boot_again(fleet: Rollout, vm_id: str, *command: str) -> int:
    """Have the guest boot by this command; what it counts then, which is on its disk when it says so."""
    before = len(boots(fleet, vm_id))
    fleet.cli(*command, vm_id)
    fleet.eventually(lambda: len(boots(fleet, vm_id)) > before, 60)
    return boots(fleet, vm_id)[-1]


def test_a_restored_disk_holds_what_it_held_at_the_snapshot(fleet: Rollout, vm_id: str) -> None:
    """The guest counts on where it was then. The snapshot is taken while it runs."""
    fleet.cli("stop-vm", "--kill", vm_id)
    counted = boot_again(fleet, vm_id, "start-vm")
    assert told(fleet, "snapshot-vm", vm_id, "counted") == "created"
    assert boot_again(fleet, vm_id, "reboot-vm", "--kill") == counted + 1
    assert told(fleet, "stop-vm", "--kill", vm_id) == "stopped"
    assert told(fleet, "restore-vm", vm_id, "counted") == "restored"
    assert boot_again(fleet, vm_id, "start-vm") == counted + 1


def walk(fleet: Rollout, vm_id: str, state: VmState) -> None:
    """Ask for all that a VM in this state is refused, and for all that leaves it in it."""
    fleet.eventually(lambda: fleet.show(vm_id, 0)["state"] == state)
    qemu = fleet.unit(vm_id, "MainPID")
    stays = {
        "resize-vm": ["--disk", str(fleet.show(vm_id, 0)["disk"])],
        "snapshot-vm": ["walked"],
        "restore-vm": ["walked"],
        "delete-snapshot": ["walked"],
        "extend-vm": ["--ttl", "never"],
    }
    for verb, row in TABLE.items():
        act = row.get(state)
        if act in (None, Act.NOTHING) or verb in stays:
            (answer,) = fleet.ask(*verb.split(), vm_id, *stays.get(verb, []), check=False)
            said = answer["execution-info"]
            expected = ("error", "wrong-state", True) if act is None else ("success", None, False)
            assert (said["status"], said.get("code"), "hint" in said) == expected, f"{verb} of a VM that is {state}"
    assert (fleet.show(vm_id, 0)["state"], fleet.unit(vm_id, "MainPID")) == (state, qemu)


def test_what_a_state_refuses_changes_nothing_and_says_what_to_do(fleet: Rollout) -> None:
    """The table of docs/protocol.md, in the states in which a VM stays; it is `failed` when its QEMU was killed."""
    vm_id = fleet.create()
    walk(fleet, vm_id, "running")
    assert told(fleet, "pause-vm", vm_id) == "paused"
    walk(fleet, vm_id, "paused")
    assert told(fleet, "stop-vm", "--kill", vm_id) == "stopped"
    walk(fleet, vm_id, "stopped")
    assert told(fleet, "start-vm", vm_id) == "starting"
    unit = f"aetherscale-vm@{vm_id}.service"
    fleet.run(fleet.show(vm_id, 0)["host"], "systemctl", "kill", "--signal=KILL", unit)
    walk(fleet, vm_id, "failed")
    fleet.cli("delete-vm", vm_id)
