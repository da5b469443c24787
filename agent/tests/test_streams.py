"""Consoles and tunnels, through a real broker, by the real CLI: what goes in comes out, and nothing piles up."""

import contextlib
import hashlib
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aetherscale_protocol.streams import Frame
from aetherscale_testing import peers
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fakes import read_fake_vms
from aetherscale_testing.fleet import Fleet
from aetherscale_testing.memory import memory_of

pytestmark = pytest.mark.broker

CLI = [sys.executable, "-c", "from aetherscale_cli.main import run; run()"]
PATIENCE_S = 20.0
MB = 1_000_000
RESTARTED = "its agent knows nothing of it: was it restarted?"


def eventually(condition: Callable[[], object], what: str = "it never came", seconds: float = PATIENCE_S) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


@dataclass
class Running:
    """A CLI process, and what it has printed so far."""

    process: subprocess.Popen[bytes]
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)

    def watch(self) -> None:
        for stream, into in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            if stream is not None:
                threading.Thread(target=self._read, args=(stream.fileno(), into), daemon=True).start()

    @staticmethod
    def _read(descriptor: int, into: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(descriptor, 1 << 16):
                into += data

    def type(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def sees(self, text: bytes) -> None:
        eventually(lambda: text in self.out, f"{text!r} is not in {bytes(self.out[-300:])!r}; {bytes(self.err)!r}")

    def ends(self, seconds: float = PATIENCE_S) -> int:
        code = self.process.wait(seconds)
        time.sleep(0.1)  # until its last words are read
        return code


@dataclass
class Cloud:
    """One agent with one VM that runs, and the CLI."""

    broker: TestBroker
    agents: Fleet
    folder: Path
    vm_id: str
    started: list[Running] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        own = {"RABBITMQ_HOST": self.broker.address, "HOME": str(self.folder), "PYTHONPATH": os.pathsep.join(sys.path)}
        return {**os.environ, **own}

    def cli(self, *argv: str, watched: bool = True, **more: Any) -> Running:
        """Start a command."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
        running = Running(subprocess.Popen([*CLI, *argv], env=self.environ, **pipes))
        self.started.append(running)
        if watched:
            running.watch()
        return running

    def console(self, *argv: str) -> Running:
        """A viewer who is there."""
        viewer = self.cli("console-vm", self.vm_id, *argv)
        eventually(lambda: b"connected to the console" in viewer.err, viewer.err.decode())
        return viewer

    @property
    def agent_pid(self) -> int:
        process = self.agents.agents["h1"].process
        assert process is not None
        return process.pid

    @property
    def beam_pid(self) -> int:
        return int(Path(self.broker.environ["RABBITMQ_PID_FILE"]).read_text())

    @property
    def size(self) -> tuple[int, int] | None:
        """The columns and lines of its terminal, as the guest was told last."""
        return read_fake_vms(self.agents.agents["h1"].folder / "vms")[self.vm_id].terminal

    @property
    def log(self) -> str:
        return self.agents.agents["h1"].log


@pytest.fixture
def guest() -> Iterator[dict[str, peers.Peer]]:
    """What listens in the guest: on port 1 it takes, on 2 it echoes."""
    with peers.listening(peers.take) as taker, peers.listening(peers.echo) as echoer:
        yield {"1": taker, "2": echoer}


@pytest.fixture
def cloud(
    broker: TestBroker, agents: Fleet, tmp_path: Path, guest: dict[str, peers.Peer], client: SeedClient
) -> Iterator[Cloud]:
    ports = {port: peer.port for port, peer in guest.items()}
    agents.add("h1", "tiny", keep=True, **{"guest-ports": ports})
    agents.wait_ready()
    (made,) = client.ask("create-vm", 1, image="tiny")
    running = Cloud(broker, agents, tmp_path, made["response"]["vm-id"])
    yield running
    for started in running.started:
        started.process.send_signal(signal.SIGCONT)
        started.process.kill()
        started.process.wait()


# What works


def test_two_viewers_see_what_either_types(cloud: Cloud) -> None:
    one, two = cloud.console(), cloud.console()
    one.type(b"hello from one\r")
    two.sees(b"hello from one")
    one.sees(b"hello from one")
    two.type(b"hello from two\r")
    one.sees(b"hello from two")
    two.sees(b"hello from two")


def test_ctrl_bracket_leaves_and_the_other_viewer_stays(cloud: Cloud) -> None:
    one, two = cloud.console(), cloud.console()
    one.type(b"last words\x1dnever typed")
    two.sees(b"last words")
    assert one.ends() == 0, one.err
    two.type(b"still here")
    two.sees(b"still here")
    assert b"never typed" not in two.out


def test_who_types_from_a_pipe_sees_what_came_until_its_end(cloud: Cloud) -> None:
    done = subprocess.run(
        [*CLI, "console-vm", cloud.vm_id],
        env=cloud.environ,
        input=b"by pipe\r",
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout) == (0, b"by pipe\r"), done.stderr
    later = cloud.console("-n", "5")
    later.sees(b"by pipe")


def test_a_log_is_followed_without_what_could_play_with_the_terminal(cloud: Cloud) -> None:
    viewer = cloud.console()
    viewer.type(b"before\r")
    viewer.sees(b"before")
    follower = cloud.cli("logs-vm", "-f", "-n", "5", cloud.vm_id)
    follower.sees(b"before\n")
    viewer.type(b"\x1b[2J\x1b]0;owned\x07af\x08ter\xc2\x9b31m\r")
    follower.sees(b"after31m")
    assert b"\x1b" not in follower.out
    follower.process.send_signal(signal.SIGINT)
    assert follower.ends() == 130
    shown = subprocess.run([*CLI, "logs-vm", cloud.vm_id], env=cloud.environ, capture_output=True, check=True)
    assert b"before\n" in shown.stdout


def test_a_tunnel_carries_bytes_both_ways_and_ends_when_both_have_ended(cloud: Cloud) -> None:
    data = os.urandom(3 * MB)
    done = subprocess.run(
        [*CLI, "tunnel-vm", cloud.vm_id, "2"], env=cloud.environ, input=data, capture_output=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == data


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_tunnel_that_is_ended_as_ssh_does_leaves_its_place(cloud: Cloud, number: signal.Signals) -> None:
    tunnel = cloud.cli("tunnel-vm", cloud.vm_id, "2")
    tunnel.type(b"through")
    tunnel.sees(b"through")
    tunnel.process.send_signal(number)
    eventually(lambda: "(port 2) for" in cloud.log and "close-stream of VM" in cloud.log, cloud.log, 3)
    assert tunnel.ends() == 130


def test_a_vm_is_reached_by_its_name_or_the_beginning_of_its_id(cloud: Cloud, client: SeedClient) -> None:
    (made,) = client.ask("create-vm", 1, image="tiny", name="web1")
    for token in ("web1", made["response"]["vm-id"][:5]):
        done = subprocess.run(
            [*CLI, "tunnel-vm", token, "2"], env=cloud.environ, input=b"hello", capture_output=True, timeout=PATIENCE_S
        )
        assert (done.returncode, done.stdout) == (0, b"hello"), done.stderr
    unknown = cloud.cli("console-vm", "web2")
    assert unknown.ends() == 1
    assert b"error: " in unknown.err
    assert b"does not exist" in unknown.err


# What stalls


def test_viewers_who_stall_cost_nobody_anything(cloud: Cloud, guest: dict[str, peers.Peer]) -> None:
    """One whose terminal takes nothing, one who is frozen; meanwhile a guest that floods its console, and 50 MB."""
    typist = cloud.console()
    stuck = cloud.cli("console-vm", cloud.vm_id, watched=False)
    frozen = cloud.console()
    eventually(lambda: cloud.log.count("open-stream of VM") == 3)
    frozen.process.send_signal(signal.SIGSTOP)
    before = memory_of(cloud.agent_pid)["Rss"], memory_of(cloud.beam_pid)["Rss"]
    typist.type(b"flood 30000000\r")
    data = os.urandom(50 * MB)
    peak = [0.0, 0.0]
    tunnel = cloud.cli("tunnel-vm", cloud.vm_id, "1")
    feeder = threading.Thread(target=feed, args=(tunnel, data))
    feeder.start()
    while tunnel.process.poll() is None:
        for at, pid in enumerate((cloud.agent_pid, cloud.beam_pid)):
            peak[at] = max(peak[at], memory_of(pid)["Rss"])
        time.sleep(0.02)
    feeder.join()
    assert tunnel.ends() == 0, tunnel.err
    assert guest["1"].digest == hashlib.sha256(data).hexdigest() == tunnel.out.decode()
    eventually(lambda: len(typist.out) >= 29 * MB or b"skipped" in typist.out)
    grown = [(peak[at] - before[at]) * 1.048576 for at in (0, 1)]
    print(f"agent grew by {grown[0]:.1f} MB, broker by {grown[1]:.1f} MB")
    assert max(grown) < 20, grown
    frozen.process.send_signal(signal.SIGCONT)
    stuck.watch()
    typist.type(b"after the flood\r")
    for viewer in (stuck, frozen):
        viewer.sees(b" bytes skipped]")
        viewer.sees(b"after the flood")


def feed(tunnel: Running, data: bytes) -> None:
    tunnel.type(data)
    assert tunnel.process.stdin is not None
    tunnel.process.stdin.close()


# What ends


def test_a_vm_that_is_off_has_nothing_to_connect_to(cloud: Cloud, client: SeedClient) -> None:
    viewer = cloud.console()
    client.send(f"vm.{cloud.vm_id}", "stop-vm", vm_id=cloud.vm_id, kill=True)
    assert viewer.ends() == 1
    assert f"error: the stream to VM {cloud.vm_id} was lost: the VM is off\n".encode() in viewer.err
    for argv in (("console-vm", cloud.vm_id), ("tunnel-vm", cloud.vm_id, "1"), ("logs-vm", "-f", cloud.vm_id)):
        refused = cloud.cli(*argv)
        assert refused.ends() == 1
        assert b"is stopped" in refused.err
        assert f"hint: start-vm {cloud.vm_id}".encode() in refused.err


def test_a_port_that_nobody_listens_on(cloud: Cloud) -> None:
    refused = cloud.cli("tunnel-vm", cloud.vm_id, "9")
    assert refused.ends() == 1
    assert f"port 9 of VM {cloud.vm_id} can't be reached".encode() in refused.err


def test_an_agent_that_is_killed_takes_its_streams_along(cloud: Cloud) -> None:
    viewer, tunnel = cloud.console(), cloud.cli("tunnel-vm", cloud.vm_id, "2")
    tunnel.type(b"through")
    tunnel.sees(b"through")
    agent = cloud.agents.agents["h1"]
    agent.stop(signal.SIGKILL)
    agent.start()
    for lost in (viewer, tunnel):
        assert lost.ends() == 1
        assert f"error: the stream to VM {cloud.vm_id} was lost: {RESTARTED}\n".encode() in lost.err
        assert b"hint: " in lost.err
    assert not [line for line in agent.log.splitlines() if " ERROR " in line]


def test_an_agent_that_is_stopped_says_so(cloud: Cloud) -> None:
    viewer = cloud.console()
    cloud.agents.agents["h1"].stop()
    assert viewer.ends() == 1
    assert b"was lost: its agent was stopped\n" in viewer.err


def test_a_broker_that_is_restarted_ends_streams(cloud: Cloud) -> None:
    viewer = cloud.console()
    cloud.broker.stop(hard=True)
    try:
        assert viewer.ends() == 3
        assert f"error: the stream to VM {cloud.vm_id} was lost: ".encode() in viewer.err
    finally:
        cloud.broker.start()
    eventually(lambda: "the answers" in cloud.log or "close-stream of VM" in cloud.log)
    cloud.agents.wait_ready()
    again = cloud.console()
    again.type(b"and again")
    again.sees(b"and again")


def test_frames_for_a_host_that_is_gone_are_answered_by_another(cloud: Cloud) -> None:
    viewer = cloud.console()
    cloud.agents.add("h2", "tiny")
    cloud.agents.wait_ready()
    cloud.agents.agents["h1"].signal(signal.SIGSTOP)
    viewer.type(b"anybody there?")
    assert viewer.ends() == 1
    assert b"was lost: its host took no message in time\n" in viewer.err
    cloud.agents.agents["h1"].signal(signal.SIGCONT)
    assert " ERROR " not in cloud.agents.agents["h2"].log


# Who may


class RawClient(SeedClient):
    """A client that keeps the headers of what comes."""

    def __init__(self, *args: Any) -> None:
        self.frames: list[tuple[dict[str, Any], bytes]] = []
        super().__init__(*args)

    def _on_answer(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if properties.headers and "stream" in properties.headers:
            self.frames.append((properties.headers, body))
        else:
            super()._on_answer(channel, method, properties, body)

    def wait_frame(self, kind: str) -> tuple[dict[str, Any], bytes]:
        def found() -> list[tuple[dict[str, Any], bytes]]:
            self._connection.process_data_events(0.02)
            return [frame for frame in self.frames if frame[0]["kind"] == kind]

        eventually(found, f"no {kind} came")
        return found()[0]

    def say(self, frame: Frame, user: str | None = None) -> None:
        self.publish("host.h1", frame.body, headers=frame.headers, user_id=user)


def test_a_stream_that_is_not_there_is_answered_at_once(cloud: Cloud) -> None:
    with RawClient(cloud.broker.address) as client:
        client.say(Frame("0" * 32, "data", 0, b"rm -rf /\r"))
        headers, _ = client.wait_frame("close")
        assert headers["reason"] == RESTARTED
    assert " ERROR " not in cloud.log


def test_a_stream_is_its_openers_and_nobody_elses(cloud: Cloud) -> None:
    cloud.broker.ctl("add_user", "trudy", "sesame")
    cloud.broker.ctl("set_permissions", "trudy", "^$", "^computing$", "^$")
    try:
        with RawClient(cloud.broker.address) as owner, RawClient(cloud.broker.address, "trudy", "sesame") as other:
            (opened,) = owner.send(
                f"vm.{cloud.vm_id}", "open-stream", vm_id=cloud.vm_id, kind="console", properties={"user_id": "guest"}
            )
            stream = opened["response"]["stream"]
            assert len(stream) == 32
            for user in ("trudy", None):
                other.frames.clear()
                other.say(Frame(stream, "data", 0, b"poweroff\r"), user)
                other.wait_frame("close")
            owner.say(Frame(stream, "data", 0, b"mine"), "guest")
            assert owner.wait_frame("data")[1] == b"mine"
    finally:
        cloud.broker.ctl("delete_user", "trudy")


def test_a_part_that_is_missing_ends_the_stream(cloud: Cloud) -> None:
    with RawClient(cloud.broker.address) as client:
        (opened,) = client.send(f"vm.{cloud.vm_id}", "open-stream", vm_id=cloud.vm_id, kind="console")
        client.say(Frame(opened["response"]["stream"], "data", 3, b"late"))
        assert client.wait_frame("close")[0]["reason"] == "a part of it was lost on the way"


# The terminal


@pytest.mark.parametrize("end", ["ctrl-]", "SIGTERM", "SIGHUP", "agent", "broker"])
def test_the_terminal_is_as_it_was(cloud: Cloud, end: str) -> None:
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 132))
    before = termios.tcgetattr(terminal)
    viewer = cloud.cli("console-vm", cloud.vm_id, watched=False, stdin=terminal, stdout=terminal, stderr=terminal)
    screen = bytearray()
    threading.Thread(target=Running._read, args=(master, screen), daemon=True).start()
    eventually(lambda: b"Ctrl-] leaves" in screen)
    eventually(lambda: not termios.tcgetattr(terminal)[3] & termios.ICANON)
    os.write(master, b"echo\x03\r")
    eventually(lambda: b"echo\x03\r" in screen, "Ctrl-C is the guest's")
    eventually(lambda: cloud.size == (132, 40), "the guest was told no size at first")
    termios.tcsetwinsize(terminal, (25, 91))
    for _ in range(20):
        viewer.process.send_signal(signal.SIGWINCH)
    eventually(lambda: cloud.size == (91, 25), "the guest was not told the new size")
    os.write(master, b"resized")
    eventually(lambda: b"resized" in screen)
    match end:
        case "ctrl-]":
            os.write(master, b"\x1d")
        case "agent":
            cloud.agents.agents["h1"].stop()
        case "broker":
            cloud.broker.stop(hard=True)
        case name:
            viewer.process.send_signal(signal.Signals[name])
    try:
        code = viewer.ends()
    finally:
        if end == "broker":
            cloud.broker.start()
    assert code == {"ctrl-]": 0, "agent": 1, "broker": 3}.get(end, 130)
    assert termios.tcgetattr(terminal) == before
    os.close(terminal)
    os.close(master)
