"""VMs as people use them: the README's "Your first VM", by ssh and scp through nothing but the broker."""

import contextlib
import hashlib
import json
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale_testing.rollout import CLI, Rollout

README = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"], "README.md")

testinfra_hosts = ["broker1"]  # once, not per host

FILE = 50 << 20
MOST_GROWTH_MIB = 20
NOISE, NOISE_S = 2 << 20, 300
"""Bytes, and seconds: a serial port that TCG emulates took 130 kB/s on two busy cores."""
PORT = 9999
SECTOR = 512
"""Bytes, of the sectors in which the kernel counts."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Rollout]:
    rollout = Rollout()
    yield rollout
    for name in ("web1", "web2", "copy"):
        rollout.cli("delete-vm", "--if-exists", name, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of an operator who has made a key, as ssh-keygen does by itself."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir(mode=0o700)
    key = home / ".ssh" / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    return home


@pytest.fixture(scope="module")
def key(home: Path) -> Path:
    return home / ".ssh" / "id_ed25519"


@pytest.fixture(scope="module")
def environ(home: Path, key: Path) -> Iterator[dict[str, str]]:
    """What the operator's programs are started with. ssh looks for keys in the home that the system knows of, whatever
    HOME says, so an ssh-agent offers this one.
    """
    socket = home / "agent.sock"
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    environ = {
        **os.environ,
        "HOME": str(home),
        "XDG_CONFIG_HOME": config,
        "PATH": f"{CLI.parent}:{os.environ['PATH']}",
        "SSH_AUTH_SOCK": str(socket),
    }
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        Rollout.eventually(socket.exists, 10)
        subprocess.run(["ssh-add", "-q", key], env=environ, check=True)
        yield environ
    finally:
        agent.kill()
        agent.wait()


def read_first_vm() -> list[tuple[str, list[str]]]:
    """The commands of the README's "Your first VM", and the lines that it shows of each."""
    section = README.read_text().partition("\n## Your first VM\n")[2].partition("\n## ")[0]
    samples = re.split("^[$] ", section.split("```\n")[1], flags=re.MULTILINE)[1:]
    return [(command, shown.splitlines()) for command, _, shown in (one.strip().partition("\n") for one in samples)]


def type_in(command: str, environ: dict[str, str]) -> list[str]:
    """The lines that a command shows on a terminal, without what it says on stderr."""
    screen, terminal = pty.openpty()
    shown, limit = b"", time.monotonic() + 120
    with subprocess.Popen(
        shlex.split(command), env=environ, stdin=subprocess.DEVNULL, stdout=terminal, stderr=subprocess.PIPE, text=True
    ) as program:
        os.close(terminal)
        try:
            with contextlib.suppress(OSError):  # the program has left its terminal
                while select.select([screen], [], [], max(0.0, limit - time.monotonic()))[0]:
                    shown += os.read(screen, 4096)
            said = program.communicate(timeout=max(5.0, limit - time.monotonic()))[1]
        finally:
            program.kill()
            os.close(screen)
    assert program.returncode == 0, f"{command}: {program.returncode}\n{shown.decode()}{said}"
    return shown.decode().splitlines()


def read_row(lines: list[str]) -> dict[str, str]:
    """The one row of a table, by column."""
    header, row = (re.split(" {2,}", line.strip()) for line in lines)
    return dict(zip(header, row, strict=True))


@pytest.fixture(scope="module")
def created(fleet: Rollout, environ: dict[str, str]) -> list[str]:
    """What the README's first command shows, as it is typed there."""
    shown = type_in(read_first_vm()[0][0], environ)
    assert fleet.show("web1", 0)["state"] == "running"
    return shown


@pytest.fixture(scope="module")
def web1(created: list[str]) -> str:
    """The README's first VM."""
    assert created
    return "web1"


def ssh(fleet: Rollout, key: Path, name: str, *command: str) -> str:
    return fleet.cli("ssh-vm", "-i", str(key), name, "--", *command).stdout.strip()


def test_the_first_vm_is_as_the_readme_shows_it(created: list[str], environ: dict[str, str]) -> None:
    """Made with the operator's own keys, which nobody named; what differs from one run to the next is left out."""
    (_, shown), *others = read_first_vm()
    would, did = read_row(shown), read_row(created)
    assert list(did) == list(would)
    assert {name: did[name] for name in ("VM ID", "NAME", "STATE")} == {
        name: would[name] for name in ("VM ID", "NAME", "STATE")
    }
    assert re.fullmatch("running, ip, ssh(, cloud-init)?", did["REACHED"]), "the last may come a moment later"
    assert re.fullmatch("h[12]", did["HOST"])
    assert re.fullmatch(r"10\.126\.[0-9]+\.[0-9]+", did["ADDRESS"])
    (reached, hostname), (listed, row) = others
    assert type_in(reached, environ) == hostname == ["web1"]
    would, now = read_row(row), read_row(type_in(listed, environ))
    assert list(now) == list(would)
    assert {name: now[name] for name in ("HOST", "ADDRESS")} == {name: did[name] for name in ("HOST", "ADDRESS")}
    own = set(would) - {"HOST", "ADDRESS", "SINCE"}
    assert {name: now[name] for name in own} == {name: would[name] for name in own}


def test_the_list_knows_its_name_and_its_address(fleet: Rollout, web1: str, key: Path) -> None:
    (row,) = [row for answer in fleet.ask("list-vms") for row in answer["details"] if row.get("name") == web1]
    assert f"inet {row['addresses'][0]}/" in ssh(fleet, key, web1, "ip", "-4", "addr")


def test_cloud_init_is_waited_for(fleet: Rollout, web1: str) -> None:
    assert fleet.cli("wait-vm", web1, "--for", "cloud-init", "--timeout", "60s").returncode == 0


class Typist:
    """A terminal with a program at it, and what that has shown."""

    def __init__(self, argv: list[str]) -> None:
        self._keys, self._terminal = pty.openpty()
        self.usual = termios.tcgetattr(self._terminal)
        self.program = subprocess.Popen(
            argv, stdin=self._terminal, stdout=self._terminal, stderr=self._terminal, start_new_session=True
        )
        self._seen = b""

    def __enter__(self) -> "Typist":
        return self

    def __exit__(self, *_: object) -> None:
        self.program.kill()
        self.program.wait()
        os.close(self._keys)
        os.close(self._terminal)

    def types(self, keys: bytes) -> None:
        self._seen = b""
        os.write(self._keys, keys)

    def sees(self, text: bytes, seconds: float = 20) -> None:
        """Wait until this is on the screen, since something was typed."""
        limit = time.monotonic() + seconds
        while text not in self._seen:
            left = limit - time.monotonic()
            assert left > 0, f"{text!r} is not in {self._seen!r}"
            if select.select([self._keys], [], [], left)[0]:
                self._seen += os.read(self._keys, 4096)

    @property
    def is_usual(self) -> bool:
        """Whether the terminal is as it was before."""
        return bool(termios.tcgetattr(self._terminal) == self.usual)


def test_a_console_is_typed_at_and_left(fleet: Rollout, web1: str) -> None:
    with Typist(fleet.argv("console-vm", web1)) as at:
        at.sees(b"login:")
        assert not at.is_usual
        for keys, shown in (
            (b"\r", b"web1 login:"),
            (b"root\r", b"root\r\n"),  # its echo
            (b"", b"Password:"),
            (b"aetherscale\r", b"# "),
            (b"echo $((6 * 7))-it-was\r", b"42-it-was"),
            (b"exit\r", b"login:"),
        ):
            if keys:
                at.types(keys)
            at.sees(shown)
        at.types(b"\x1d")
        assert at.program.wait(10) == 0
        assert at.is_usual


def test_a_log_that_is_followed_shows_what_comes(fleet: Rollout, web1: str, key: Path) -> None:
    following = subprocess.Popen(fleet.argv("logs-vm", "-f", "-n", "1", web1), stdout=subprocess.PIPE)
    with following:
        try:
            assert following.stdout is not None
            following.stdout.readline()  # from here on it follows
            ssh(fleet, key, web1, "echo it-is-new > /dev/ttyS0")
            readable = select.select([following.stdout], [], [], 20)[0]
            assert readable, "nothing came within 20 s"
            assert b"it-is-new" in os.read(following.stdout.fileno(), 4096)
            assert following.poll() is None
        finally:
            following.kill()


def test_ansible_goes_through_the_broker(fleet: Rollout, web1: str, key: Path, tmp_path: Path) -> None:
    proxy = " ".join(fleet.argv("tunnel-vm", "%h", "%p"))
    options = f"-o ProxyCommand='{proxy}' -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    row = {"ansible_user": "root", "ansible_ssh_private_key_file": str(key), "ansible_ssh_common_args": options}
    (tmp_path / "ansible.cfg").touch()  # none of this machine's
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": {web1: row}}}))
    ansible = Path(sys.executable).with_name("ansible")
    done = subprocess.run(
        [ansible, "-i", tmp_path / "hosts.json", "all", "-m", "raw", "-a", "hostname; cat /proc/uptime"],
        env={**os.environ, "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg")},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[:2] == ["web1 | CHANGED | rc=0 >>", "web1"]


def test_a_wait_that_takes_too_long_fails_and_the_vm_does_not(fleet: Rollout) -> None:
    sized = ("--memory", "128M", "--disk", "1G")
    waited = fleet.cli(
        "create-vm", "--name", "web2", "--image", "ubuntu_base", *sized, "--wait", "ssh", "--timeout", "2s", check=False
    )
    assert waited.returncode == 4
    assert re.search("VM web2 has not reached ssh: not within 2 s; it is (starting|running)", waited.stderr)
    assert "go on waiting: aetherscale-cli wait-vm web2 --for ssh --timeout" in waited.stderr
    (row,) = fleet.ask("wait-vm", "web2", "--for", "ip", "--timeout", "90s")
    assert row["response"]["state"] == "running"
    address = row["response"]["addresses"][0]
    assert fleet.show("web2", 0)["addresses"] == [address]
    assert fleet.cli("delete-vm", "web2").returncode == 0


def test_50_mb_go_by_scp_while_viewers_stall(fleet: Rollout, web1: str, key: Path, tmp_path: Path) -> None:
    """Equal on both ends, and neither agent nor broker keeps what a viewer does not read: of a console that the guest
    floods, and of a port from which it sends without end. Who does read the console beside it sees what is printed.

    They stall because nobody reads their pipes: a process that is stopped is given up after 30 s, and told of nothing.
    """
    host = fleet.show(web1, 0)["host"]
    data, watched = os.urandom(FILE), tmp_path / "watched"
    (tmp_path / "file").write_bytes(data)
    scp(fleet, key, str(tmp_path / "file"), f"root@{web1}:/tmp/file")
    scp(fleet, key, f"root@{web1}:/tmp/file", str(tmp_path / "back"))  # both ways, so that what grows is the viewers'
    ssh(fleet, key, web1, f"nc -l -p {PORT} < /dev/zero > /dev/null 2>&1 &")
    with watched.open("wb") as file:
        watcher = fleet.start("console-vm", web1, stdout=file.fileno())
    viewer = fleet.start("console-vm", web1, stdout=subprocess.PIPE)
    drain = fleet.start("tunnel-vm", web1, str(PORT), stdout=subprocess.PIPE)
    try:
        fleet.eventually(lambda: watched.stat().st_size > 0)
        time.sleep(1)
        processes = [
            (host, find_pid(fleet, host, "aetherscale-agent")),
            ("broker1", find_pid(fleet, "broker1", "rabbitmq-server")),
        ]
        print_noise = f"tr '\\0' x < /dev/zero | head -c {NOISE} > /dev/ttyS0"
        before = {one: begin_peak(fleet, *one) for one in processes}
        noise = fleet.start("ssh-vm", "-i", str(key), web1, "--", print_noise)
        try:
            scp(fleet, key, str(tmp_path / "file"), f"root@{web1}:/tmp/file")
            scp(fleet, key, f"root@{web1}:/tmp/file", str(tmp_path / "back"))
            assert noise.wait(NOISE_S) == 0, "the guest's console was not flooded"
        finally:
            noise.kill()
            noise.wait()
        grown = [peak(fleet, *process) - rss for process, rss in before.items()]
        assert [one.poll() for one in (watcher, viewer, drain)] == [None] * 3, "a viewer did not stall, it ended"
        fleet.eventually(lambda: watched.read_bytes().count(b"x") > NOISE * 9 // 10, 20)
        skipped = read_skipped(viewer)
        assert drain.stdout is not None
        sent = len(drain.stdout.read(2 * MOST_GROWTH_MIB << 20))
    finally:
        for process in (watcher, viewer, drain):
            process.kill()
            process.wait()
    assert ssh(fleet, key, web1, "sha256sum", "/tmp/file").split()[0] == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "back").read_bytes() == data
    assert max(grown) < MOST_GROWTH_MIB, f"agent and broker grew by {grown} MiB, at their peaks"
    assert skipped > NOISE // 2, f"the viewer was told that it missed {skipped} bytes of {NOISE}"
    assert sent == 2 * MOST_GROWTH_MIB << 20, f"of what the guest would send {sent} bytes came"


def read_skipped(viewer: subprocess.Popen[bytes]) -> int:
    """Read on where a viewer stalled, until it says how many bytes it missed; 0 if it does not within 30 s."""
    assert viewer.stdout is not None
    os.set_blocking(viewer.stdout.fileno(), False)
    shown, limit = b"", time.monotonic() + 30
    while time.monotonic() < limit:
        shown += viewer.stdout.read() or b""
        if told := re.search("\\[… ([0-9]+) bytes skipped]".encode(), shown):
            return int(told[1])
        time.sleep(0.1)
    return 0


def test_a_clone_has_its_sources_data_and_a_name_of_its_own(fleet: Rollout, web1: str, key: Path) -> None:
    """Boots are counted on a disk: the clone's goes on from where its source's was."""
    ssh(fleet, key, web1, "echo of-web1 > /data/word; sync")
    refused = fleet.cli("clone-vm", web1, "--name", "too-early", check=False)
    assert (refused.returncode, "only one that is off can be cloned" in refused.stderr) == (1, True)
    fleet.cli("stop-vm", web1)
    fleet.cli("clone-vm", web1, "--name", "copy", "--ssh-key", f"{key}.pub", "--wait", "ssh", "--timeout", "2m")
    assert ssh(fleet, key, "copy", "hostname; cat /data/word").splitlines() == ["copy", "of-web1"]
    source, clone = fleet.show(web1, 0), fleet.show("copy")
    assert clone["vm-id"] != source["vm-id"]
    assert "GUEST: boot 2 of this disk" in clone["console"]
    fleet.cli("delete-vm", "copy")


def test_a_guest_sees_what_its_vm_was_given(fleet: Rollout, web1: str, key: Path) -> None:
    """Cores, memory and disk at its next boot; a disk that grows while it runs, at once."""
    fleet.cli("stop-vm", web1)  # unless it is off already
    fleet.cli("resize-vm", web1, "--cpus", "2", "--memory", "512M", "--disk", "2G")
    fleet.cli("start-vm", web1)
    fleet.cli("wait-vm", web1, "--for", "ssh", "--timeout", "60s")
    cores, total, sectors = ssh(
        fleet, key, web1, "nproc; awk '/^MemTotal/ {print $2}' /proc/meminfo; cat /sys/block/vda/size"
    ).split()
    assert int(cores) == 2
    assert 400 < int(total) / 1024 < 512, "MiB, without what the kernel keeps for itself"
    assert int(sectors) * SECTOR == 2 << 30
    fleet.cli("resize-vm", web1, "--disk", "3G")
    grown = f"test $(cat /sys/block/vda/size) = {(3 << 30) // SECTOR}"
    fleet.eventually(lambda: fleet.cli("ssh-vm", "-i", str(key), web1, "--", grown, check=False).returncode == 0, 20)


def find_pid(fleet: Rollout, host: str, unit: str) -> str:
    """The process of a unit that does its work."""
    if unit == "rabbitmq-server":  # its main process is a shell around the Erlang machine
        return fleet.run(host, "pgrep", "-o", "beam.smp")
    return fleet.run(host, "systemctl", "show", "--value", "--property=MainPID", f"{unit}.service")


def begin_peak(fleet: Rollout, host: str, pid: str) -> float:
    """Have the kernel forget the most that a process had resident; what it has now, in MiB."""
    fleet.run(host, "sh", "-c", f"echo 5 > /proc/{pid}/clear_refs")
    return peak(fleet, host, pid)


def peak(fleet: Rollout, host: str, pid: str) -> float:
    """The most that a process has had resident since `begin_peak`, in MiB."""
    (line,) = re.findall(r"^VmHWM:\s*([0-9]+) kB$", fleet.run(host, "cat", f"/proc/{pid}/status"), re.MULTILINE)
    return int(line) / 1024


def scp(fleet: Rollout, key: Path, *paths: str) -> None:
    proxy = " ".join(fleet.argv("tunnel-vm", "%h", "%p"))
    unchecked = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
    subprocess.run(["scp", "-q", "-i", key, *unchecked, "-o", f"ProxyCommand={proxy}", *paths], check=True, timeout=300)
