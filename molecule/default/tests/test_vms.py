"""VMs on real hosts, commanded by the operator's CLI: they boot, obey, and outlive agents, brokers and hosts."""

import contextlib
import json
import os
import pty
import time
from collections.abc import Iterator
from typing import Any

import pytest

from aetherscale_agent.audit import MESSAGE_ID
from aetherscale_testing.client import SeedClient, parameters_of
from aetherscale_testing.memory import read_rollup
from aetherscale_testing.rollout import Rollout

HOSTS = ("h1", "h2")
NOT_WAITED_S = 1.5
"""How much longer than a listing a command may take that waits for nobody. (A host would be waited for 2 s.)"""

TTL_S = 15
"""Seconds: for longer than a broker takes to stop."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Rollout]:
    rollout = Rollout()
    yield rollout
    for answer in rollout.ask("list-vms", check=False):
        for name in answer.get("response", []):
            rollout.cli("delete-vm", name.removeprefix("vm-"), check=False)


@pytest.fixture(scope="module")
def pair(fleet: Rollout) -> dict[str, str]:
    """Two VMs, one on each host (the second goes to the emptier one), both booted; host → VM id."""
    made = [fleet.create() for _ in HOSTS]
    for vm_id in made:
        fleet.boot(vm_id)
    return {fleet.show(vm_id, 0)["host"]: vm_id for vm_id in made}


def test_all_hosts_are_up(fleet: Rollout) -> None:
    reports = {a["host"]: a["response"] for a in fleet.ask("list-hosts")}
    assert sorted(reports) == sorted(HOSTS)
    for report in reports.values():
        assert report["state"] == "up"
        assert report["accelerator"] == "tcg"
        assert "ubuntu_base" in report["images"]


def test_placement_uses_both_hosts(pair: dict[str, str]) -> None:
    assert sorted(pair) == sorted(HOSTS)


@pytest.mark.parametrize("host", HOSTS)
def test_guests_boot_to_a_login_with_an_address(fleet: Rollout, pair: dict[str, str], host: str) -> None:
    console = fleet.boot(pair[host])
    assert f"GUEST: serial {pair[host]}" in console
    assert "GUEST: eth0 10.126." in console
    assert "login:" in console


def test_each_vm_has_limits_of_its_own(fleet: Rollout, pair: dict[str, str]) -> None:
    for vm_id in pair.values():
        assert 128 << 20 < int(fleet.unit(vm_id, "MemoryMax")) < 600 << 20
        assert fleet.unit(vm_id, "CPUQuotaPerSecUSec") not in ("", "infinity")


def test_each_vm_has_a_user_of_its_own(fleet: Rollout, pair: dict[str, str]) -> None:
    first, second = pair["h1"], fleet.create()
    while fleet.show(second, 0)["host"] != "h1":  # the emptier host is given the next one
        second = fleet.create()
    uids = {fleet.run("h1", "stat", "-c", "%u", f"/proc/{fleet.unit(vm, 'MainPID')}") for vm in (first, second)}
    assert len(uids) == 2
    assert "0" not in uids
    thief = fleet.run("h1", "stat", "-c", "%u", f"/proc/{fleet.unit(first, 'MainPID')}")
    disk = f"/var/lib/aetherscale/vms/{second}/disk.qcow2"
    fleet.run("h1", "test", "-s", disk)
    inside = ["nsenter", "-m", "-t", fleet.unit(first, "MainPID")]
    user = ["setpriv", f"--reuid={thief}", f"--regid={thief}", "--clear-groups"]
    own = f"/var/lib/aetherscale/vms/{first}/disk.qcow2"
    for view, path, can in ([], disk, False), (inside, disk, False), (inside, own, True):
        assert (fleet.lab.run("h1", [*view, *user, "head", "-c1", path], check=False).returncode == 0) == can


def test_a_guest_obeys_the_power_button_even_while_it_boots(fleet: Rollout) -> None:
    vm_id = fleet.create()
    (answer,) = fleet.ask("stop-vm", vm_id)  # at once: the guest is still in its boot loader
    assert answer["response"]["status"] == "stopped"
    assert fleet.show(vm_id)["state"] == "stopped"
    assert "GUEST: clean shutdown" in fleet.console(vm_id)
    fleet.cli("start-vm", vm_id)
    fleet.eventually(lambda: "GUEST: boot 2 of this disk" in fleet.console(vm_id), 60)
    (answer,) = fleet.ask("stop-vm", "--kill", vm_id)
    assert answer["response"]["status"] == "stopped"
    fleet.cli("delete-vm", vm_id)


def test_a_deleted_vm_leaves_nothing(fleet: Rollout) -> None:
    vm_id = fleet.create()
    host = fleet.show(vm_id, 0)["host"]
    fleet.cli("delete-vm", vm_id)
    ours = ("/var/lib/aetherscale/vms", "/run/aetherscale")
    assert fleet.run(host, "find", *ours, "-name", f"*{vm_id}*") == ""
    # What is root's goes a moment later.
    root = ("/run/systemd/system.control", "/run/aetherscale-network", "/sys/class/net")
    fleet.eventually(lambda: fleet.run(host, "find", *root, "-ignore_readdir_race", "-name", f"*{vm_id}*") == "", 20)
    listing = ("systemctl", "list-units", "--all", "--no-legend", f"aetherscale-*@{vm_id}.service")
    fleet.eventually(lambda: fleet.run(host, *listing) == "", 20)
    assert fleet.cli("show-vm", vm_id, check=False).returncode == 1


def qemu(fleet: Rollout, vm_id: str) -> tuple[str, str]:
    pid = fleet.unit(vm_id, "MainPID")
    started = fleet.run(fleet.show(vm_id, 0)["host"], "cut", "-d ", "-f22", f"/proc/{pid}/stat")
    return pid, started


def wait_up(fleet: Rollout, count: int = len(HOSTS)) -> None:
    fleet.eventually(lambda: fleet.cli("list-hosts", check=False).stdout.count('"state":"up"') == count, 40)


@pytest.mark.parametrize("how", [["restart"], ["kill", "-s", "KILL"]])
def test_no_vm_notices_that_its_agent_goes_away(fleet: Rollout, pair: dict[str, str], how: list[str]) -> None:
    before = {host: qemu(fleet, vm_id) for host, vm_id in pair.items()}
    for host in pair:
        fleet.run(host, "systemctl", *how, "aetherscale-agent.service")
    time.sleep(0.5)
    wait_up(fleet)
    assert {host: qemu(fleet, vm_id) for host, vm_id in pair.items()} == before


def seconds(fleet: Rollout) -> float:
    """How long a listing takes that waits for nobody."""
    begin = time.monotonic()
    fleet.cli("list-vms")
    return time.monotonic() - begin


def test_a_frozen_agent_is_named_and_the_others_are_shown(fleet: Rollout, pair: dict[str, str]) -> None:
    usual = seconds(fleet)
    fleet.run("h2", "systemctl", "kill", "-s", "STOP", "aetherscale-agent.service")
    try:
        begin = time.monotonic()
        done = fleet.cli("list-vms", "--timeout", "2", check=False)
        assert time.monotonic() - begin < 2 + usual + NOT_WAITED_S
    finally:
        fleet.run("h2", "systemctl", "kill", "-s", "CONT", "aetherscale-agent.service")
    assert done.returncode == 4
    assert "h2 did not answer within 2 s" in done.stderr
    assert f"vm-{pair['h1']}" in done.stdout
    wait_up(fleet)


@pytest.mark.parametrize(("command", "head"), [("list-vms", "VM ID"), ("list-hosts", "HOST")])
def test_the_rows_of_a_table_come_while_a_frozen_agent_is_waited_for(
    fleet: Rollout, pair: dict[str, str], command: str, head: str
) -> None:
    first = pair["h1"] if command == "list-vms" else "h1"
    fleet.run("h2", "systemctl", "kill", "-s", "STOP", "aetherscale-agent.service")
    try:
        screen, terminal = pty.openpty()
        with fleet.start(command, "--timeout", "2", stdout=terminal) as program:
            os.close(terminal)
            times, shown = [], b""
            with contextlib.suppress(OSError):  # the program has left its terminal
                while read := os.read(screen, 4096):
                    times.append(time.monotonic())
                    shown += read
            os.close(screen)
        ended = time.monotonic()
    finally:
        fleet.run("h2", "systemctl", "kill", "-s", "CONT", "aetherscale-agent.service")
    lines = shown.decode().splitlines()
    assert program.returncode == 4
    assert lines[0].startswith(head)
    assert sum(line.startswith(f"{first} ") for line in lines) == 1
    assert len(lines) == len(set(lines))
    assert ended - times[0] > 1, times
    wait_up(fleet)


def test_a_stopped_agent_is_named_without_waiting(fleet: Rollout, pair: dict[str, str]) -> None:
    usual = seconds(fleet)
    fleet.run("h2", "systemctl", "stop", "aetherscale-agent.service")
    try:
        begin = time.monotonic()
        listed = fleet.cli("list-vms", check=False)
        assert time.monotonic() - begin < usual + NOT_WAITED_S
        asked = fleet.cli("stop-vm", pair["h2"], check=False)
    finally:
        fleet.run("h2", "systemctl", "start", "aetherscale-agent.service")
    assert listed.returncode == 4
    assert "host h2 is not running" in listed.stderr
    assert asked.returncode == 4
    assert f"host h2, which holds VM {pair['h2']}, is not running" in asked.stdout
    wait_up(fleet)
    assert fleet.show(pair["h2"], 0)["state"] == "running"


def test_after_a_hosts_reboot_what_ran_runs_again_even_without_a_broker(fleet: Rollout, pair: dict[str, str]) -> None:
    stopped = fleet.create()
    host = fleet.show(stopped, 0)["host"]
    fleet.cli("stop-vm", "--kill", stopped)
    running, expiring = pair[host], fleet.create("--host", host, "--ttl", "1h")
    boots = fleet.console(running).count("GUEST: ready")
    fleet.cli("extend-vm", expiring, "--ttl", f"{TTL_S}s")
    fleet.run("broker1", "systemctl", "stop", "rabbitmq-server.service")
    try:
        off_at = time.time()
        fleet.lab.reboot(host)
        fleet.eventually(
            lambda: (
                fleet.run(host, "systemctl", "is-active", f"aetherscale-vm@{running}.service", check=False) == "active"
            ),
            60,
        )
        off = fleet.run(host, "systemctl", "is-active", f"aetherscale-vm@{stopped}.service", check=False)
        assert off == "inactive"
        fleet.eventually(lambda: reaped_at(fleet, host, expiring) > off_at, TTL_S + 20)
    finally:
        fleet.run("broker1", "systemctl", "start", "rabbitmq-server.service")
    wait_up(fleet)
    fleet.eventually(lambda: fleet.console(running).count("GUEST: ready") > boots, 60)
    assert "GUEST: clean shutdown" in fleet.console(running)
    assert fleet.show(stopped, 0)["state"] == "stopped"
    assert fleet.cli("show-vm", expiring, check=False).returncode == 1
    fleet.cli("delete-vm", stopped)


def reaped_at(fleet: Rollout, host: str, vm_id: str) -> float:
    """When a host deleted a VM whose time was over, by its audit, in seconds since the epoch; 0 if it has not."""
    matches = (f"MESSAGE_ID={MESSAGE_ID}", f"AETHERSCALE_OPERATOR=agent-{host}", f"AETHERSCALE_VM={vm_id}")
    told = fleet.run(host, "journalctl", "--no-pager", "-o", "json", *matches).splitlines()
    return max((int(json.loads(line)["__REALTIME_TIMESTAMP"]) / 1e6 for line in told), default=0.0)


@pytest.fixture
def article(fleet: Rollout) -> Iterator[SeedClient]:
    """The article's client: a plain pika script, given nothing but an operator's credentials."""
    with SeedClient(parameters=parameters_of(fleet.broker())) as client:
        yield client


def by_host(answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {a["host"]: a["response"] if "response" in a else a["execution-info"]["reason"] for a in answers}


def test_the_articles_session(article: SeedClient) -> None:
    (made,) = article.ask("create-vm", 1, 20, image="only_on_h1", memory=128, disk=1)
    assert made["host"] == "h1"
    vm_id = made["response"]["vm-id"]
    assert made["response"] == {"status": "starting", "vm-id": vm_id}
    assert f"vm-{vm_id}" in by_host(article.ask("list-vms", 2))["h1"]

    (refused,) = article.ask("create-vm", 1, image="nobody_has_it")
    assert refused["execution-info"]["reason"] == 'Image "nobody_has_it" does not exist'
    assert sorted(refused["execution-info"]["reasons"]) == sorted(HOSTS)

    unknown = "VM does not exist"
    stopped = by_host(article.ask("stop-vm", 2, vm_id=vm_id, kill=True))
    assert stopped == {"h1": {"status": "stopped", "vm-id": vm_id}, "h2": unknown}
    started = by_host(article.ask("start-vm", 2, vm_id=vm_id))
    assert started == {"h1": {"status": "starting", "vm-id": vm_id}, "h2": unknown}
    deleted = by_host(article.ask("delete-vm", 2, vm_id=vm_id))
    assert deleted == {"h1": {"status": "deleted", "vm-id": vm_id}, "h2": unknown}
    assert by_host(article.ask("start-vm", 2, vm_id=vm_id)) == {"h1": unknown, "h2": unknown}


def test_a_full_fleet_refuses_with_every_hosts_reason(fleet: Rollout) -> None:
    done = fleet.cli("create-vm", "--image", "ubuntu_base", "--memory", "900G", "-o", "table", check=False)
    assert done.returncode == 1
    assert "error: no host can take this VM" in done.stderr
    for host in HOSTS:
        assert f"  {host}: memory: 921600 MiB wanted" in done.stderr


@pytest.mark.parametrize("host", HOSTS)
def test_an_agent_that_has_worked_takes_less_than_60_mb(fleet: Rollout, host: str) -> None:
    pid = fleet.run(host, "systemctl", "show", "-P", "MainPID", "aetherscale-agent.service")
    rollup = fleet.run(host, "cat", f"/proc/{pid}/smaps_rollup")
    assert 1 < read_rollup(rollup)["Rss"] < 60e6 / (1 << 20)


def test_an_unknown_vm_is_not_waited_for(fleet: Rollout) -> None:
    usual, begin = seconds(fleet), time.monotonic()
    done = fleet.cli("show-vm", "zzzzzzzz", check=False)
    assert done.returncode == 1
    assert "VM does not exist" in done.stdout
    assert time.monotonic() - begin < usual + NOT_WAITED_S
