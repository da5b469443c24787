"""What an operator may is what real agents do: one who only reads, and one who has the VMs of a team."""

import json
from collections.abc import Callable
from typing import Any

from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once, not per host

HOSTS = ["h1", "h2"]
SMALL = ("--image", "ubuntu_base", "--memory", "128M", "--disk", "1G")
Vm = tuple[str, str, str]
Laptops = Callable[[str], dict[str, str]]


def told(rollout: Rollout, laptop: dict[str, str], *arguments: str) -> dict[str, Any]:
    """The answer, or the refusal, that somebody's command got from the one host that it reached."""
    done = rollout.cli(*arguments, check=False, environ=laptop)
    (answer,) = json.loads(done.stdout)
    assert done.returncode == (0 if answer["execution-info"]["status"] == "success" else 1), done
    return dict(answer.get("response", {}) | answer["execution-info"])


def listed(rollout: Rollout, laptop: dict[str, str]) -> set[str]:
    """The VMs that somebody sees; both hosts answer him."""
    answers = json.loads(rollout.cli("list-vms", environ=laptop).stdout)
    assert sorted(answer["host"] for answer in answers) == HOSTS
    return {name.removeprefix("vm-") for answer in answers for name in answer["response"]}


def test_who_may_only_read_sees_all_and_stops_nothing(rollout: Rollout, kept: Vm, laptop_of: Laptops) -> None:
    (vm_id, host, pid), reader = kept, laptop_of("reader")
    assert vm_id in listed(rollout, reader)
    assert told(rollout, reader, "show-vm", vm_id)["state"] == "running"
    refused = told(rollout, reader, "stop-vm", "--kill", vm_id)
    assert refused["code"] == "forbidden"
    assert "operator reader may only read, and stop-vm does more" in refused["reason"]
    assert told(rollout, reader, "create-vm", *SMALL)["code"] == "forbidden"
    console = rollout.cli("console-vm", vm_id, check=False, environ=reader)
    assert (console.returncode, console.stdout) == (1, "")
    assert "may only read, and open-stream of kind console does more" in console.stderr
    assert rollout.cli("logs-vm", vm_id, environ=reader).returncode == 0
    assert (rollout.show(vm_id, 0)["host"], rollout.unit(vm_id, "MainPID")) == (host, pid)


def test_who_has_a_label_has_the_vms_with_it(rollout: Rollout, kept: Vm, laptop_of: Laptops) -> None:
    (vm_id, _, pid), carol = kept, laptop_of("carol")
    assert "create-vm --label team=a" in told(rollout, carol, "create-vm", *SMALL)["hint"]
    assert told(rollout, carol, "create-vm", "--name", "carols", "--label", "team=a", *SMALL)["status"] == "success"
    own = rollout.show("carols", 0)["vm-id"]
    assert listed(rollout, carol) == {own}
    assert told(rollout, carol, "stop-vm", "--kill", vm_id)["code"] == "forbidden"
    assert told(rollout, carol, "delete-vm", vm_id)["code"] == "forbidden"
    assert rollout.unit(vm_id, "MainPID") == pid
    assert told(rollout, carol, "stop-vm", "--kill", "carols")["status"] == "success"
    assert rollout.show("carols", 0)["state"] == "stopped"
    assert told(rollout, carol, "delete-vm", "carols")["status"] == "success"
    assert own not in listed(rollout, {})
