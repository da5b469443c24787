"""This end of a stream: what is typed, what is shown, and what ssh is told. The rest: agent/tests/test_streams.py."""

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale_cli import ssh
from aetherscale_cli.arguments import parse
from aetherscale_cli.ssh import SshWish
from aetherscale_cli.stream_commands import CleanSink
from aetherscale_cli.terminal import TypedSource


@pytest.mark.parametrize(
    ("argv", "wish"),
    [
        (["ssh-vm", "web1"], SshWish()),
        (["ssh-vm", "web1", "--", "ls", "-l", "--", "x"], SshWish(command=("ls", "-l", "--", "x"))),
        (["ssh-vm", "web1", "--user", "debian", "-i", "k", "--port", "2222"], SshWish("debian", 2222, "k")),
        (["ssh-vm", "--user", "debian", "-i", "k", "web1", "-p", "2222"], SshWish("debian", 2222, "k")),
        (["ssh-vm", "web1", "-L", "80:x:80", "-A"], SshWish(options=("-L", "80:x:80", "-A"))),
        (
            ["ssh-vm", "web1", "-oBatchMode=yes", "-l", "me", "-v", "--", "id"],
            SshWish("me", options=("-oBatchMode=yes", "-v"), command=("id",)),
        ),
        (["--context", "lab", "ssh-vm", "web1", "--", "--help"], SshWish(command=("--help",))),
    ],
)
def test_what_is_ours_is_ours_and_the_rest_is_sshs(argv: list[str], wish: SshWish) -> None:
    invocation = parse(argv)
    assert (invocation.vm, invocation.ssh) == ("web1", wish)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["console-vm", "web1"], {"vm": "web1", "lines": 10}),
        (["console-vm", "-n", "0", "abcdefgh"], {"vm": "abcdefgh", "lines": 0}),
        (["logs-vm", "web1"], {"vm": "web1", "lines": 100, "follow": False}),
        (["logs-vm", "-f", "-n", "7", "web1"], {"vm": "web1", "lines": 7, "follow": True}),
        (["tunnel-vm", "web1", "22"], {"vm": "web1", "port": 22}),
    ],
)
def test_each_command_says_what_it_wants(argv: list[str], expected: dict[str, Any]) -> None:
    invocation = parse(argv)
    assert {name: getattr(invocation, name) for name in expected} == expected
    assert invocation.timeout == 15


@pytest.mark.parametrize(
    "argv",
    [
        ["console-vm"],
        ["console-vm", "../etc"],
        ["console-vm", "-n", "1001", "web1"],
        ["tunnel-vm", "web1"],
        ["tunnel-vm", "web1", "0"],
        ["tunnel-vm", "web1", "65536"],
        ["ssh-vm"],
        ["ssh-vm", "-oProxyCommand=evil"],
        ["ssh-vm", "web1", "--port", "x"],
    ],
)
def test_what_can_not_be_meant_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_ssh_finds_this_program_again_and_never_mistakes_one_vm_for_another() -> None:
    proxy = ssh.finalize_proxy("/opt/100% mine/python", "lab", "abcdefgh")
    assert proxy == (
        "'/opt/100%% mine/python' -P -c 'from aetherscale_cli.main import run; run()'"
        " --context lab tunnel-vm abcdefgh %p"
    )
    wish = SshWish("debian", 2222, "key", ("-A",), ("id", "-u"))
    argv = ssh.finalize_argv(wish, "web1", "aetherscale-i-1", proxy, "/home/a b/known_hosts")
    assert argv[:2] == ["ssh", "-A"]
    assert argv[argv.index("web1") :] == ["web1", "--", "id", "-u"]
    for option in (
        f"ProxyCommand={proxy}",
        "HostKeyAlias=aetherscale-i-1",
        'UserKnownHostsFile="/home/a b/known_hosts"',
        "StrictHostKeyChecking=accept-new",
    ):
        assert argv[argv.index(option) - 1] == "-o"


@pytest.mark.parametrize(
    ("instance", "alias"),
    [
        ("aaaaaaaa-0f3c", "aaaaaaaa-0f3c"),
        ("bbbbbbbb-0f3c", "aaaaaaaa"),
        ("aaaaaaaa-1,aetherscale-bbbbbbbb-2", "aaaaaaaa-1_aetherscale-bbbbbbbb-2"),
        ("aaaaaaaa-1 *", "aaaaaaaa-1__"),
        ("", "aaaaaaaa"),
    ],
)
def test_a_guests_key_is_remembered_under_its_own_name_alone(instance: str, alias: str) -> None:
    assert ssh.finalize_alias("aaaaaaaa", instance) == f"aetherscale-{alias}"


class Collected:
    """A sink that keeps all."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def end(self) -> None:
        self.data += b"<end>"


@pytest.mark.parametrize(
    ("shown", "seen"),
    [
        (b"plain\r\n\ttext\r\n", b"plain\n\ttext\n"),
        (b"\x1b[1;31mred\x1b[0m", b"red"),
        (b"\x1b]0;title\x07a\x1b]52;c;eA==\x1b\\b", b"ab"),
        ("Grüße …".encode(), "Grüße …".encode()),
        (b"a\x9b31m", b"a\xef\xbf\xbd31m"),  # no UTF-8
        (b"\xc2\xc2\x9b\x9b2J", b"\xef\xbf\xbd\xef\xbf\xbd2J"),
        ("a\u202eb".encode(), b"ab"),
        (b"a\xc2\x9b31m", b"a31m"),
    ],
)
def test_a_log_shows_text_and_no_tricks(shown: bytes, seen: bytes) -> None:
    sink = Collected()
    CleanSink(sink).write(shown)
    CleanSink(sink).end()
    assert sink.data == seen + b"<end>"


@given(st.lists(st.binary(max_size=20)))
def test_no_escape_gets_through_however_it_is_cut(pieces: list[bytes]) -> None:
    sink = Collected()
    clean = CleanSink(sink)
    for piece in pieces:
        clean.write(piece)
    assert not set(sink.data) & ({*range(32), 127} - set(b"\n\t"))


@pytest.mark.parametrize(
    ("typed", "sent", "leaves_at_once"),
    [(b"abc", [b"abc"], False), (b"abc\x1ddef", [b"abc", b""], False), (b"\x1d", [b""], True)],
)
def test_ctrl_bracket_ends_what_is_typed(typed: bytes, sent: list[bytes], leaves_at_once: bool) -> None:
    read, write = os.pipe()
    left: list[bool] = []
    source = TypedSource(read, lambda: left.append(True), lambda: 0.0)
    os.write(write, typed)
    assert [source.read(100) for _ in sent] == sent
    assert bool(left) is leaves_at_once
    os.close(read)
    os.close(write)


def test_what_comes_from_a_pipe_ends_when_the_console_is_quiet() -> None:
    read, write = os.pipe()
    os.close(write)
    quiet = [9.0, 1.0, 0.999, 0.9999]
    assert TypedSource(read, lambda: None, quiet.pop).read(100) == b""
    assert quiet == [9.0]
    os.close(read)


@pytest.mark.parametrize(
    ("begun", "goes_on"), [(b"\x1b[", b"0"), (b"\x1b[0", b" "), (b"\x1b]", b"x"), (b"\x1b", b" ")], ids=repr
)
def test_a_sequence_that_never_ends_is_not_waited_for(begun: bytes, goes_on: bytes) -> None:
    sink = Collected()
    clean = CleanSink(sink)
    clean.write(begun)
    for _ in range(100):
        clean.write(goes_on * 1000)
    assert len(clean._rest) < 10_000
    assert sink.data.count(goes_on) > 90_000  # it was text


def test_what_comes_in_pieces_is_cleaned_as_a_whole() -> None:
    for whole in (b"a\x1b[31mb", b"a\xc2\x9b2Jb", b"a\x1b]0;title\x07b", "aü".encode()):
        sink, apart = Collected(), Collected()
        CleanSink(sink).write(whole)
        pieces = CleanSink(apart)
        for byte in whole:
            pieces.write(bytes([byte]))
        assert apart.data == sink.data, whole
    CleanSink(sink).end()
