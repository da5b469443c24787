"""Hosts that are down, hang, or are gone for good: whole commands against real agents over a hypervisor in memory."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import pytest

from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import Fleet, fleet

pytestmark = pytest.mark.broker

RUN = [sys.executable, "-c", "from aetherscale_cli.main import run; run()"]
NAMES = ["h1", "h2"]


@pytest.fixture
def agents(node: Any, tmp_path: Path) -> Iterator[Fleet]:
    """h1 has no image, so that h2 is given the VMs; what h2 has outlives its agent."""
    with fleet(node.broker, tmp_path / "hosts") as running:
        running.add("h1", fleet=NAMES, heartbeat=30)
        running.add("h2", "a", fleet=NAMES, heartbeat=30, keep=True)
        running.wait_ready()
        yield running


@pytest.fixture
def stopped_vm(agents: Fleet, node: Any) -> str:  # noqa: ARG001
    """A VM on h2 that is off."""
    with SeedClient(node.address) as client:
        vm_id = client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"]
        client.send(f"vm.{vm_id}", "stop-vm", vm_id=vm_id)
    return str(vm_id)


def eventually(what: Callable[[], Any], seconds: float = 20) -> Any:
    limit = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < limit
        time.sleep(0.02)
    return found


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(node: Any, tmp_path: Path) -> Iterator[Start]:
    """Start a command that goes on by itself."""
    running: list[subprocess.Popen[str]] = []

    def run(*argv: str, **more: Any) -> "subprocess.Popen[str]":
        paths = os.pathsep.join(sys.path)
        environ = {
            "PYTHONPATH": paths,
            "HOME": str(tmp_path),
            "RABBITMQ_HOST": node.address,
            "PATH": os.environ["PATH"],
        }
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
        running.append(subprocess.Popen([*RUN, *argv], env=environ, text=True, **streams))
        return running[-1]

    yield run
    for process in running:
        process.kill()
        process.communicate()


def end(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def was_told_no(agents: Fleet) -> bool:
    """Whether the command was asked for at least once, and dead-lettered."""
    return "(host-down: " in agents.agents["h1"].log


class TestWaiting:
    def test_a_command_outlives_a_hosts_restart_and_is_done_once(
        self, agents: Fleet, stopped_vm: str, start: Start
    ) -> None:
        agents.agents["h2"].stop(SIGKILL)
        waiting = start("start-vm", stopped_vm, "--wait-for-host", "60s", "-o", "table")
        eventually(lambda: was_told_no(agents))
        agents.agents["h2"].start()
        code, out, err = end(waiting)
        assert (code, err) == (0, "")
        assert out.splitlines()[1].split() == [stopped_vm, "starting", "h2"]
        log = agents.agents["h2"].log
        assert log.count(f"start-vm of VM {stopped_vm} for 'guest': success") == 1
        assert log.count(f"VM {stopped_vm}: starting -> running") == 1

    def test_after_its_deadline_it_is_never_done_not_even_when_the_host_comes_back(
        self, agents: Fleet, stopped_vm: str, cli: Any, node: Any
    ) -> None:
        agents.agents["h2"].stop(SIGKILL)
        began = time.monotonic()
        ran = cli("start-vm", stopped_vm, "--wait-for-host", "3s", "--timeout", "3")
        assert 3 <= time.monotonic() - began < 3 + 3 + 1
        assert ran.code == 4
        assert ran.err.splitlines()[0] == (
            f"error: VM {stopped_vm}: host h2 is not running, still after 3 s; start-vm was not begun, and will not be"
        )
        assert ran.answers[0]["execution-info"]["code"] == "host-down"
        agents.agents["h2"].start()
        agents.wait_ready()
        with SeedClient(node.address) as client:
            (answer,) = client.send(f"vm.{stopped_vm}", "show-vm", vm_id=stopped_vm)
        assert answer["response"]["state"] == "stopped"
        assert "start-vm of" not in agents.agents["h2"].log

    def test_a_create_waits_for_any_agent_and_makes_one_vm(self, agents: Fleet, start: Start, node: Any) -> None:
        for host in NAMES:
            agents.agents[host].stop(SIGKILL)
        waiting = start("create-vm", "--image", "a", "--no-ssh-key", "--wait-for-host", "60s")
        with SeedClient(node.address) as client:
            eventually(lambda: waiting.poll() is not None or client.agents_alive() == 0)
            time.sleep(1)  # a few looks at how many agents there are
            agents.agents["h2"].start()
            code, _, err = end(waiting)
            assert (code, err) == (0, "")
            assert len(client.ask("list-vms", 1)[0]["response"]) == 1
        assert agents.agents["h2"].log.count("created, running") == 1

    def test_a_question_waits_too(self, agents: Fleet, stopped_vm: str, start: Start) -> None:
        agents.agents["h2"].stop(SIGKILL)
        waiting = start("show-vm", stopped_vm, "--wait-for-host", "60s")
        eventually(lambda: was_told_no(agents))
        agents.agents["h2"].start()
        code, out, err = end(waiting)
        assert (code, err) == (0, "")
        assert '"state":"stopped"' in out

    def test_a_broker_restart_does_not_end_the_wait(
        self, agents: Fleet, stopped_vm: str, start: Start, node: Any
    ) -> None:
        agents.agents["h2"].stop(SIGKILL)
        waiting = start("start-vm", stopped_vm, "--wait-for-host", "2m")
        eventually(lambda: was_told_no(agents))
        node.broker.stop(hard=True)
        node.broker.start()
        assert waiting.poll() is None
        agents.agents["h2"].start()
        code, _, err = end(waiting)
        assert (code, err) == (0, "")
        assert agents.agents["h2"].log.count(f"start-vm of VM {stopped_vm} for 'guest': success") == 1

    def test_a_host_that_is_up_costs_nothing(self, agents: Fleet, stopped_vm: str, cli: Any) -> None:  # noqa: ARG002
        began = time.monotonic()
        assert cli("start-vm", stopped_vm, "--wait-for-host", "60s").code == 0
        assert time.monotonic() - began < 2

    def test_ctrl_c_says_what_is_known(self, agents: Fleet, stopped_vm: str, start: Start) -> None:
        agents.agents["h2"].stop(SIGKILL)
        waiting = start("start-vm", stopped_vm, "--wait-for-host", "60s")
        eventually(lambda: was_told_no(agents))
        waiting.send_signal(signal.SIGINT)
        code, _, err = end(waiting)
        assert code == 130
        assert re.match(
            f"error: VM {stopped_vm}: (interrupted while waiting for host h2; start-vm was not begun, and will not be|"
            "it is not known whether start-vm was done: interrupted)\n",
            err,
        )

    def test_on_a_terminal_it_says_whom_it_waits_for(self, agents: Fleet, stopped_vm: str, start: Start) -> None:
        agents.agents["h2"].stop(SIGKILL)
        ours, theirs = pty.openpty()
        waiting = start("start-vm", stopped_vm, "--wait-for-host", "60s", stderr=theirs)
        os.close(theirs)
        shown = read_until(ours, "s left)")
        assert re.search(r"\rwaiting for host h2 \(5\d s left\)", shown.replace("\x1b[K", ""))
        agents.agents["h2"].start()
        assert waiting.wait(30) == 0
        shown += read_until(ours, None)
        os.close(ours)
        assert shown.endswith("\r\x1b[K")

    def test_a_broker_that_was_never_reached_is_not_waited_for(self, cli: Any) -> None:
        began = time.monotonic()
        ran = cli("stop-vm", "abcdefgh", "--wait-for-host", "60s", environ={"RABBITMQ_HOST": "127.0.0.1:1"})
        assert (ran.code, ran.out) == (3, "")
        assert "connection refused" in ran.err
        assert time.monotonic() - began < 5


def read_until(descriptor: int, what: str | None) -> str:
    """What a terminal shows until `what` is among it; None: until nobody writes any more."""
    shown = ""
    limit = time.monotonic() + 20
    while what is None or what not in shown:
        assert time.monotonic() < limit, shown
        if select.select([descriptor], [], [], 0.5)[0]:
            try:
                data = os.read(descriptor, 10_000)
            except OSError:  # the other end is closed
                data = b""
            if not data:
                return shown
            shown += data.decode()
    return shown


class TestSilence:
    def test_the_host_that_died_with_a_command_in_hand_is_named(self, node: Any, tmp_path: Path, start: Start) -> None:
        with fleet(node.broker, tmp_path / "hosts") as running:
            running.add("h1", fleet=NAMES)
            h2 = running.add("h2", "a", fleet=NAMES, deaf=True)  # its guests ignore the power button
            running.wait_ready()
            with SeedClient(node.address) as client:
                vm_id = client.ask("create-vm", 1, image="a")[0]["response"]["vm-id"]
            stopping = start("stop-vm", vm_id, "--timeout", "4")
            eventually(lambda: "running -> stopping" in h2.log)
            h2.stop(SIGKILL)
            code, _, err = end(stopping)
        assert code == 5
        assert err.startswith(
            f"error: VM {vm_id}: it is not known whether stop-vm was done: no answer within 4 s; "
            "host h2, which holds it, is not running\n"
        )

    def test_a_host_that_lives_and_says_nothing_is_named_too(self, cloud: Any, cli: Any) -> None:
        def behave(request: dict[str, Any]) -> Any:
            vm = {"vm-id": "abcdefgh", "state": "running", "image": "a", "cpus": 1, "memory": 64, "disk": 1}
            report = {**vm, "since": 0, "host": "h1", "created": 0}
            return cloud.succeed(report) if request["command"] == "show-vm" else None

        cloud.start("h1", ["h1"], behave).hold("abcdefgh")
        ran = cli("stop-vm", "abcdefgh", "--timeout", "0.2")
        assert ran.code == 5
        assert "no answer within 0.2 s; host h1 holds it, and answers\n" in ran.err


PLAY = (
    "warning: guest may do everything on the broker: that is play mode, and nothing to work with\n"
    "hint: site.yml without rabbitmq_loopback_users makes a user of your own, and guest is gone\n"
)
CHECKS = {
    *("context", "address", "tls", "login", "rights", "agents", "host", "version", "clock", "accelerator", "network"),
    *("disk", "vms", "images"),
}


class TestDoctor:
    def test_a_healthy_fleet(self, agents: Fleet, cli: Any) -> None:  # noqa: ARG002
        ran = cli("doctor", "-o", "table")
        assert (ran.code, ran.err) == (0, PLAY)
        lines = [line.split() for line in ran.out.splitlines()]
        assert lines[0] == ["CHECK", "WHAT", "RESULT", "DETAIL"]
        hosts = re.findall(r"^host +(h1, h2|h1|h2) +ok +answered in \d+ ms; agent \S+", ran.out, re.MULTILINE)
        assert hosts in (["h1", "h2"], ["h1, h2"])  # as fast as each other: one line
        assert {line[0]: line[-3] for line in lines if "ok" in line}.keys() == CHECKS - {"rights"}

    def test_as_json(self, agents: Fleet, cli: Any) -> None:  # noqa: ARG002
        by_check: dict[str, list[Any]] = {}
        for finding in cli("doctor").answers:
            by_check.setdefault(finding["check"], []).append(finding)
        assert [h["subject"] for h in by_check["host"]] == NAMES
        assert by_check["host"][0]["state"] == "up"
        assert 0 < by_check["host"][0]["answer-ms"] < 5000
        assert abs(by_check["host"][0]["clock-ahead-s"]) < 5
        assert by_check["login"][0]["result"] == by_check["network"][1]["result"] == "ok"

    def test_a_host_that_is_down_and_one_that_was_never_there(self, node: Any, tmp_path: Path, cli: Any) -> None:
        with fleet(node.broker, tmp_path / "hosts") as running:
            for host in NAMES:
                running.add(host, "a", fleet=[*NAMES, "h9"])
            running.wait_ready()
            running.agents["h2"].stop()
            began = time.monotonic()
            ran = cli("doctor", "-o", "table")
            assert time.monotonic() - began < 2, "what the broker knows is not waited for"
        assert ran.code == 4
        assert ran.err.splitlines() == [
            *PLAY.splitlines(),
            "error: host h2 is down: its agent is not connected to the broker",
            "hint: on h2: systemctl status aetherscale-agent; if it is gone for good: aetherscale-cli forget-host h2",
            "error: host h9 is unknown to the broker: its agent was never connected, or it was forgotten",
            "hint: on h9: systemctl start aetherscale-agent; if it is gone: take it out of the inventory and run "
            "site.yml",
        ]

    def test_a_frozen_agent(self, agents: Fleet, cli: Any) -> None:
        agents.agents["h2"].signal(SIGSTOP)
        ran = cli("doctor", "--timeout", "1")
        agents.agents["h2"].signal(SIGCONT)
        assert ran.code == 4
        assert "error: host h2 is silent: its agent is connected, but did not answer within 1 s" in ran.err
        assert "on h2: systemctl restart aetherscale-agent (its VMs run on)" in ran.err
        (h2,) = [f for f in ran.answers if f["subject"] == "h2"]
        assert (h2["result"], h2["state"]) == ("error", "silent")

    def test_bindings_that_are_gone(self, agents: Fleet, node: Any, cli: Any) -> None:  # noqa: ARG002
        with SeedClient(node.address) as client:
            client.unbind("computing-host.h2", "host.h2")
            ran = cli("doctor")
        assert ran.code == 4
        assert "host h2 can't be reached: its agent is connected, but its queue is not bound" in ran.err

    def test_hosts_that_no_inventory_names(self, node: Any, tmp_path: Path, cli: Any) -> None:
        with fleet(node.broker, tmp_path / "hosts") as running:
            running.add("h1", "a")
            running.add("h2", "a", heartbeat=30)
            running.wait_ready()
            assert [f["subject"] for f in cli("doctor").answers if f["check"] == "host"] == NAMES
            running.agents["h2"].signal(SIGSTOP)
            ran = cli("doctor", "--timeout", "0.5")
        assert ran.code == 4
        assert "error: 1 agent is connected, did not answer, and no inventory names it" in ran.err

    @pytest.mark.parametrize(("off", "said"), [(60, "60 s ahead"), (-61, "61 s behind")])
    def test_a_clock_that_is_off(self, cloud: Any, cli: Any, off: float, said: str) -> None:
        def behave(host: str, shift: float) -> Callable[[Any], Any]:
            def answer(request: dict[str, Any]) -> Any:
                if request["command"] == "ping":
                    return cloud.succeed({"host": host, "agent-version": "1", "clock": time.time() + shift})
                return cloud.succeed(cloud.host_report(host, NAMES))

            return answer

        cloud.start("h1", NAMES, behave("h1", 0))
        cloud.start("h2", NAMES, behave("h2", off))
        ran = cli("doctor")
        assert ran.code == 0
        assert f"warning: h2: its clock is {said}" in ran.err
        assert "timedatectl" in ran.err

    def test_no_agent_and_no_broker(self, cloud: Any, cli: Any) -> None:  # noqa: ARG002
        ran = cli("doctor")
        assert ran.code == 3
        assert "error: no agent is running" in ran.err
        assert [f["result"] for f in ran.answers if f["check"] == "login"] == ["ok"]
        ran = cli("doctor", environ={"RABBITMQ_HOST": "127.0.0.1:1"})
        assert ran.code == 3
        context, address, login = ran.answers
        assert (context["check"], context["result"]) == ("context", "ok")
        assert (address["check"], address["result"]) == ("address", "error")
        assert "is RabbitMQ running there" in address["hint"]
        assert (login["check"], login["result"]) == ("login", "skipped")


class TestForgetting:
    def test_without_a_terminal_nothing_is_done_unless_told_so(self, agents: Fleet, start: Start, node: Any) -> None:
        agents.agents["h2"].stop(SIGKILL)
        code, out, err = end(start("forget-host", "h2"))
        assert (code, out) == (2, "")
        assert "there is no terminal to ask on; nothing was done\nhint: --yes" in err
        with SeedClient(node.address) as client:
            assert client.consumers("computing-host.h2") == 0, "it is still there"

    def test_what_is_known_is_told_first(self, agents: Fleet, stopped_vm: str, cli: Any, node: Any) -> None:
        told(agents, "h2", 1)
        agents.agents["h2"].stop(SIGKILL)
        ran = cli("forget-host", "h2", "--yes", "-o", "table")
        assert ran.code == 0
        lines = ran.out.splitlines()
        assert re.match(r"Host h2 is not running. \d+s ago it told of this VM:", lines[0])
        assert lines[2].split()[:3] == [stopped_vm, "stopped", "a"]
        assert lines[-1] == "Host h2 is forgotten."
        assert (
            ran.err == "hint: next: take h2 out of the inventory and run site.yml, or lists keep naming it as missing\n"
        )
        began = time.monotonic()
        shown = cli("show-vm", stopped_vm)
        assert (shown.code, shown.answers[0]["execution-info"]["code"]) == (1, "vm-unknown")
        assert time.monotonic() - began < 1
        again = cli("forget-host", "h2", "--yes", "-o", "table")
        assert (again.code, again.out) == (1, "")
        assert again.err.startswith("error: the broker knows nothing of host h2; nothing was changed\n")
        with SeedClient(node.address) as client:
            assert client.is_returned("host.h2")

    def test_programs_get_the_answer_and_people_the_rest(self, agents: Fleet, stopped_vm: str, cli: Any) -> None:
        told(agents, "h2", 1)
        agents.agents["h2"].stop(SIGKILL)
        ran = cli("forget-host", "h2", "--yes")
        (answer,) = ran.answers
        assert answer["response"]["status"] == "forgotten"
        assert [vm["vm-id"] for vm in answer["response"]["vms"]] == [stopped_vm]
        assert stopped_vm in ran.err

    @pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("\x04", 1), ("yess\n", 1)])
    def test_it_asks(self, agents: Fleet, start: Start, node: Any, typed: str, code: int) -> None:
        agents.agents["h2"].stop(SIGKILL)
        ours, theirs = pty.openpty()
        asking = start("forget-host", "h2", "-o", "table", stdin=theirs, stderr=theirs)
        os.close(theirs)
        assert "Forget host h2? [y/N] " in read_until(ours, "[y/N] ")
        os.write(ours, typed.encode())
        assert asking.wait(30) == code
        with contextlib.suppress(OSError):
            os.close(ours)
        with SeedClient(node.address) as client:
            assert client.is_returned("host.h2") == (code == 0)

    def test_a_host_that_lives(self, agents: Fleet, cli: Any) -> None:  # noqa: ARG002
        ran = cli("forget-host", "h2", "--yes", "-o", "table")
        assert (ran.code, ran.out) == (1, "")
        assert ran.err.splitlines()[0] == "error: host h2 is running; nothing was forgotten"

    def test_nobody_to_do_it(self, agents: Fleet, cli: Any) -> None:
        for host in NAMES:
            agents.agents[host].stop(SIGKILL)
        ran = cli("forget-host", "h2", "--yes", "-o", "table")
        assert (ran.code, ran.out) == (3, "")
        assert "no agent is running" in ran.err


def told(agents: Fleet, host: str, vms: int) -> None:
    """Wait until the broker keeps what this host knows of its VMs."""
    eventually(lambda: f"this host has {vms} VMs" in agents.agents[host].log)
    time.sleep(2)  # its last state, too: a look a second
