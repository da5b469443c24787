"""What may be typed, and what it means."""

import contextlib
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale_cli.arguments import _ADD, TIMEOUTS, parse
from aetherscale_cli.main import main
from aetherscale_protocol import __version__
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.names import id_of_name, is_vm_id
from aetherscale_protocol.options import (
    CreateVm,
    DeleteImage,
    ExtendVm,
    ForgetHost,
    HostRef,
    NoOptions,
    Publish,
    RebootVm,
    ResizeVm,
    ShowVm,
    SnapshotRef,
    StopVm,
    VmRef,
)


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        (["create-vm", "--image", "u", "--vm-id", "abcdefgh"], CreateVm(image="u", vm_id="abcdefgh")),
        (
            ["create-vm", "--image", "u", "--vm-id", "abcdefgh", "--cpus", "4", "--memory", "2G", "--disk", "1T"],
            CreateVm(image="u", vm_id="abcdefgh", cpus=4, memory=2048, disk=1024),
        ),
        (["list-vms"], NoOptions()),
        (["list-hosts"], NoOptions()),
        (["start-vm", "--vm-id", "abcdefgh"], VmRef(vm_id="abcdefgh")),
        (["start-vm", "abcdefgh"], VmRef(vm_id="abcdefgh")),
        (["stop-vm", "--vm-id=abcdefgh", "--kill"], StopVm(vm_id="abcdefgh", kill=True)),
        (["delete-vm", "abcdefgh"], VmRef(vm_id="abcdefgh")),
        (["show-vm", "abcdefgh", "--console-lines", "0"], ShowVm(vm_id="abcdefgh", console_lines=0)),
        (["forget-host", "h3"], ForgetHost(host="h3")),
        (["start-vm", "web1"], VmRef(vm_id=id_of_name("web1"))),
        (["reboot-vm", "abcdefgh", "--kill"], RebootVm(vm_id="abcdefgh", kill=True)),
        (["pause-vm", "abcdefgh"], VmRef(vm_id="abcdefgh")),
        (["resume-vm", "abcdefgh"], VmRef(vm_id="abcdefgh")),
        (["resize-vm", "abcdefgh", "--memory", "2G"], ResizeVm(vm_id="abcdefgh", memory=2048)),
        (["snapshot-vm", "abcdefgh", "s1"], SnapshotRef(vm_id="abcdefgh", snapshot="s1")),
        (["restore-vm", "abcdefgh", "s1"], SnapshotRef(vm_id="abcdefgh", snapshot="s1")),
        (["delete-snapshot", "--vm-id", "abcdefgh", "s1"], SnapshotRef(vm_id="abcdefgh", snapshot="s1")),
        (["list-snapshots", "abcdefgh"], VmRef(vm_id="abcdefgh")),
        (["extend-vm", "abcdefgh", "--ttl", "2h"], ExtendVm(vm_id="abcdefgh", ttl=7200)),
        (["extend-vm", "abcdefgh", "--ttl", "never"], ExtendVm(vm_id="abcdefgh", ttl=None)),
        (["list-images"], NoOptions()),
        (["drain-host", "h1"], HostRef(host="h1")),
        (["undrain-host", "h1"], HostRef(host="h1")),
        (["delete-image", "u", "--host", "h1"], DeleteImage(host="h1", image="u")),
        (
            [
                "create-vm",
                "--image",
                "u",
                "--name",
                "web1",
                "--label",
                "a=b",
                "--publish",
                "8080:80",
                "--ttl",
                "7d",
                "--host",
                "h1",
                "--host-label",
                "disk=ssd",
                "--spread",
                "role=web",
            ],
            CreateVm(
                image="u",
                name="web1",
                vm_id=id_of_name("web1"),
                labels={"a": "b"},
                ttl=604800,
                host="h1",
                publish=(Publish(host_port=8080, guest_port=80),),
                host_labels={"disk": "ssd"},
                spread="role=web",
            ),
        ),
    ],
)
def test_each_command_becomes_the_options_that_the_protocol_knows(argv: list[str], options: Any) -> None:
    invocation = parse(argv)
    assert invocation.options == (options,)
    assert invocation.timeout == TIMEOUTS[argv[0]]


def test_every_public_command_of_the_protocol_can_be_typed() -> None:
    asked_by_others = {"ping", "check-host"}  # by the doctor
    asked_by_others |= {"offer-vm", "open-stream"}  # by create-vm --dry-run, and what shows streams
    public = {command.name for command in COMMANDS.values()}
    assert public - asked_by_others <= set(TIMEOUTS)
    assert not asked_by_others & set(TIMEOUTS)
    assert set(TIMEOUTS) <= set(_ADD)


def test_a_vm_gets_an_id_here_so_that_asking_again_is_safe() -> None:
    (options,) = parse(["create-vm", "--image", "u"]).options
    assert isinstance(options, CreateVm)
    assert is_vm_id(options.vm_id or "")


def test_several_vms_in_the_order_given_each_once() -> None:
    options = parse(["stop-vm", "bbbbbbbb", "aaaaaaaa", "bbbbbbbb", "--vm-id", "cccccccc"]).options
    assert [getattr(o, "vm_id", "") for o in options] == ["bbbbbbbb", "aaaaaaaa", "cccccccc"]


@pytest.mark.parametrize("argv", [["-o", "json", "list-vms"], ["list-vms", "-o", "json"]])
def test_common_options_stand_before_or_after_the_command(argv: list[str]) -> None:
    assert parse(argv).output == "json"


@pytest.mark.parametrize(("text", "mebibytes"), [("512M", 512), ("2G", 2048), ("2048", 2048), ("2gib", 2048)])
def test_memory_sizes(text: str, mebibytes: int) -> None:
    (options,) = parse(["create-vm", "--image", "u", "--memory", text]).options
    assert getattr(options, "memory", None) == mebibytes


@pytest.mark.parametrize(("text", "gibibytes"), [("10G", 10), ("7", 7), ("10240M", 10), ("1T", 1024)])
def test_disk_sizes(text: str, gibibytes: int) -> None:
    (options,) = parse(["create-vm", "--image", "u", "--disk", text]).options
    assert getattr(options, "disk", None) == gibibytes


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["list-vm"], "invalid choice"),
        (["create-vm"], "--image"),
        (["create-vm", "--image", "../etc"], "an image name is"),
        (["create-vm", "--image", "u", "--cpus", "0"], "cores from 1 to 256"),
        (["create-vm", "--image", "u", "--memory", "63M"], "from 64M"),
        (["create-vm", "--image", "u", "--memory", "1.5G"], "512M or 2G"),
        (["create-vm", "--image", "u", "--memory", "-1"], "from 64M"),
        (["create-vm", "--image", "u", "--memory", "-1G"], "from 64M"),
        (["create-vm", "--image", "u", "--disk", "-1"], "from 1G"),
        (["create-vm", "--image", "u", "--cpus", "-1"], "cores from 1 to 256"),
        (["create-vm", "--image", "u", "--ttl", "-1h"], "'-1h' is not a time such as 30m, 2h or 7d, from 1s to 3660d"),
        (["create-vm", "--image", "u", "--publish", "-1:80"], "each from 1 to 65535"),
        (["list-vms", "--timeout", "-1"], "above 0 and up to 600"),
        (["list-vms", "--timeout", "-1.5s"], "above 0 and up to 600"),
        (["logs-vm", "web1", "-n", "-1"], "lines from 0"),
        (["stop-vm", "aaaaaaaa", "--wait-for-host", "-1m"], "above 0 and up to 600s"),
        (["create-vm", "--image", "u", "--disk", "100M"], "whole number of G"),
        (["create-vm", "--image", "u", "--vm-id", "ABCDEFGH"], "8 lower-case letters"),
        (["create-vm", "--image", "u", "--vm-id", ""], "8 lower-case letters"),
        (["start-vm"], "which VM?"),
        (["start-vm", "ABC"], "8 lower-case letters"),
        (["start-vm", "web_1"], "neither a VM's id nor its name"),
        (["start-vm", "aaaaaaaa", "bbbbbbbb", "--request-id", "0" * 32], "one VM"),
        (["start-vm", "aaaaaaaa", "--request-id", "x"], "32 hexadecimal digits"),
        (["list-vms", "--timeout", "0"], "above 0 and up to 600"),
        (["list-vms", "--timeout", "nan"], "above 0 and up to 600"),
        (["list-vms", "--timeout", "601"], "above 0 and up to 600"),
        (["list-vms", "--time", "5"], "unrecognized arguments"),
        (["list-vms", "-o", "xml"], "invalid choice"),
        (["logs-vm", "web1", "-o", "json"], "unrecognized arguments: -o json"),
        (["-o", "json", "logs-vm", "web1"], "-o does not go with it"),
        (["-o", "json", "completion", "bash"], "-o does not go with it"),
        (["use-context", "lab", "-o", "json"], "unrecognized arguments: -o json"),
        (["list-vms", "--label", "ro le"], "KEY=VALUE or KEY"),
        (["list-vms", "--state", "dead"], "invalid choice"),
        (["resize-vm", "web1"], "nothing to resize"),
        (["extend-vm", "web1"], "--ttl"),
        (["extend-vm", "web1", "--ttl", "-1"], "--ttl"),
        (["extend-vm", "web1", "--ttl", "0s"], "from 1s to 3660d"),
        (["extend-vm", "web1", "--ttl", "99999d"], "from 1s to 3660d"),
        (["snapshot-vm", "web1", "-x"], "unrecognized"),
        (["snapshot-vm", "web1", "--timeout", "5", "clean"], "unrecognized"),
        (["stop-vm", "web1", "--kill", "web2", "-x"], "unrecognized arguments: web2 -x"),
        (["stop-vm", "web1", "--kill", "W*"], "neither a VM's id nor its name"),
        (["snapshot-vm", "only-one"], "which VM?"),
        (["snapshot-vm", "web1", "a b"], "a snapshot's name is"),
        (["drain-host"], "HOST"),
        (["drain-host", "H1"], "a host name is"),
        (["delete-image", "../x"], "an image name is"),
        (["wait-vm", "web1", "--for", "ever"], "invalid choice"),
        (["apply"], "--file"),
        (["apply", "-f", "x", "--prune"], "--prune and --label K=V go together"),
        (["apply", "-f", "x", "--label", "a=b"], "--prune and --label K=V go together"),
        (["create-vm", "-f", "x", "--image", "u"], "does not go with it"),
        (["create-vm", "--image", "u", "--publish", "80"], "8080:80"),
        (["create-vm", "--image", "u", "--publish", "0:80"], "each from 1 to 65535"),
        (["create-vm", "--image", "u", "--publish", "80:80", "--publish", "80:81"], "named twice"),
        (["create-vm", "--image", "u", "--label", "a"], "a label is KEY=VALUE"),
        (["create-vm", "--image", "u", "--label", "a=b", "--label", "a=c"], "two values"),
        (["create-vm", "--image", "u", "--name", "Web"], "a VM's name is"),
        (["create-vm", "--image", "u", "--name", "web1", "--vm-id", "aaaaaaaa"], "leave one of them out"),
        (["create-vm", "--image", "u", "--spread", "a", "--near", "b"], "not allowed with"),
        (["create-vm", "--image", "u", "--ttl", "never"], "30m, 2h or 7d"),
        (["clone-vm"], "SOURCE"),
        (["completion", "tcsh"], "invalid choice"),
        (["show-vm", "aaaaaaaa", "--console-lines", "1001"], "from 0 to 1000"),
        (["offer-vm"], "invalid choice"),
        (["ping"], "invalid choice"),
        (["stop-vm", "aaaaaaaa", "--wait-for-host", "0"], "60s or 2m, above 0 and up to 600s"),
        (["stop-vm", "aaaaaaaa", "--wait-for-host", "-1"], "wait-for-host"),
        (["stop-vm", "aaaaaaaa", "--wait-for-host", "11m"], "60s or 2m, above 0 and up to 600s"),
        (["stop-vm", "aaaaaaaa", "--wait-for-host", "601"], "60s or 2m, above 0 and up to 600s"),
        (["stop-vm", "aaaaaaaa", "--wait-for-host", "1h"], "60s or 2m"),
        (["stop-vm", "aaaaaaaa", "--wait-for-host", "nan"], "60s or 2m"),
        (["stop-vm", "aaaaaaaa", "--wait-for-host", "6_0"], "60s or 2m"),
        (["stop-vm", "aaaaaaaa", "--wait-for-host", "\u0666s"], "60s or 2m"),
        (["list-vms", "--wait-for-host", "60s"], "unrecognized arguments"),
        (["forget-host"], "HOST"),
        (["forget-host", "H3"], "a host name is"),
        (["forget-host", "h3", "h4"], "unrecognized arguments"),
    ],
)
def test_a_usage_error_is_one_error_and_one_hint(argv: list[str], said: str, cli: Any) -> None:
    ran = cli(*argv)
    assert ran.code == 2
    assert ran.out == ""
    error, hint = ran.err.splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert hint.startswith("hint: ")
    assert "--help" in hint


@pytest.mark.parametrize(
    "argv", [["list-vms", "--time", "5"], ["snapshot-vm", "web1", "-x"], ["-o", "json", "logs-vm"]]
)
def test_the_hint_names_the_command_that_was_typed(argv: list[str], cli: Any) -> None:
    command = next(word for word in argv if word.endswith(("-vm", "-vms")))
    assert f"hint: aetherscale-cli {command} --help" in cli(*argv).err


def test_what_was_typed_does_not_reach_the_terminal_raw(cli: Any) -> None:
    assert "\x1b" not in cli("\x1b[2J").err
    assert "\x1b" not in cli("start-vm", "\x1b[2J").err


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("2m", 120), ("90", 90), ("0.5s", 0.5), ("10m", 600)])
@pytest.mark.parametrize("command", ["start-vm", "stop-vm", "delete-vm", "show-vm"])
def test_how_long_to_wait_for_a_host(command: str, text: str, seconds: float) -> None:
    assert parse([command, "aaaaaaaa", "--wait-for-host", text]).wait == seconds
    assert parse(["create-vm", "--image", "u", "--wait-for-host", text]).wait == seconds
    assert parse([command, "aaaaaaaa"]).wait == 0


@pytest.mark.parametrize(
    ("more", "own"), [([], False), (["--vm-id", "aaaaaaaa"], True), (["--request-id", "0" * 32], True)]
)
def test_whether_the_operator_chose_ids_is_known(more: list[str], own: bool) -> None:
    assert parse(["create-vm", "--image", "u", *more]).own_ids is own


def test_help_states_exit_codes_and_time_outs(cli: Any) -> None:
    ran = cli("--help")
    assert ran.code == 0
    assert "5    outcome unknown" in ran.out
    told, seconds = {}, 0
    for line in ran.out.partition("Unless given it is\n")[2].partition("\n\n")[0].splitlines():
        number, _, named = line.strip().rpartition(" s ")
        seconds = int(number or seconds)
        told |= {name.strip(): seconds for name in named.split(",")}
    assert told == TIMEOUTS
    assert max(len(line) for line in ran.out.splitlines()) <= 120


def test_a_command_s_help_states_its_own_time_out(cli: Any) -> None:
    assert "(default: 60)" in " ".join(cli("stop-vm", "--help").out.split())


def test_the_version_is_an_answer(cli: Any) -> None:
    done = cli("--version")
    assert (done.code, done.out, done.err) == (0, f"aetherscale-cli {__version__}\n", "")


def test_without_a_command_there_is_help_on_stderr(cli: Any) -> None:
    ran = cli()
    assert (ran.code, ran.out) == (2, "")
    assert "create-vm" in ran.err


WORDS = st.sampled_from(
    ["create-vm", "list-vms", "stop-vm", "show-vm", "use-context", "--image", "--vm-id", "--kill", "-o", "json",
     "table", "--timeout", "1", "--context", "--debug", "--", "abcdefgh", "--memory", "2G", "--version",
     "--help", "--cpus=2"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS | st.text(max_size=12), max_size=7))
def test_no_command_line_ends_in_a_traceback(argv: list[str]) -> None:
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    nowhere = {"RABBITMQ_HOST": "127.0.0.1:1", "HOME": "/nonexistent"}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([word for word in argv if word != "--debug"], nowhere)
    assert code in (0, 2, 3)
    assert "Traceback" not in err.getvalue()
    assert "unexpected" not in err.getvalue()
    assert not set(err.getvalue()) & set("\x1b\x00\x07\x9b\u202e")


def test_vms_may_stand_on_both_sides_of_an_option() -> None:
    assert parse(["stop-vm", "web1", "--kill", "web2", "web3"]).vms == ("web1", "web2", "web3")
