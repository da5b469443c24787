"""Hostile words: whatever an agent, a broker, a file or whoever typed says, no control character reaches a terminal."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

import aetherscale_cli
from aetherscale_cli import outlet, progress
from aetherscale_cli.arguments import build_parser
from aetherscale_protocol.answers import RESPONSES, VmDetails
from aetherscale_testing.session import MemorySession, refusal, success, vm

WORDS = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\n\x00\x7f\u202ekcatta\u2066\u2028\u200b"
EVIL = WORDS + "\udc80"  # what no JSON can say: half a character
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
VM = "abcdefgh"
EVERYWHERE = ["-o", "table"], ["-o", "wide"], ["-o", "json"], ["-o", "yaml"], ["-o", "name"]

COMMANDS: dict[str, list[str]] = {
    "create-vm": ["--image", "debian"],
    "list-vms": [],
    "start-vm": [VM],
    "stop-vm": [VM],
    "reboot-vm": [VM],
    "pause-vm": [VM],
    "resume-vm": [VM],
    "resize-vm": [VM, "--memory", "1G"],
    "snapshot-vm": [VM, "one"],
    "restore-vm": [VM, "one"],
    "delete-snapshot": [VM, "one"],
    "list-snapshots": [VM],
    "extend-vm": [VM, "--ttl", "1h"],
    "delete-vm": [VM],
    "show-vm": [VM],
    "list-hosts": [],
    "list-images": [],
    "delete-image": ["debian"],
    "drain-host": ["h1"],
    "undrain-host": ["h1"],
    "forget-host": ["h9", "--yes"],
    "clone-vm": [VM, "--name", "copy"],
    "wait-vm": [VM, "--for", "ssh", "--timeout", "1"],
    "apply": ["-f", "vms.yml", "--prune", "--label", "app=shop", "--yes"],
    "doctor": [],
    "list-contexts": [],
    "use-context": ["evil"],
    "console-vm": [VM],
    "logs-vm": [VM],
    "tunnel-vm": [VM, "22"],
    "ssh-vm": [VM],
    "import-image": ["disk.img", "--name", "debian"],
    "completion": ["bash"],
}
STREAMS = {"console-vm", "logs-vm", "tunnel-vm", "ssh-vm"}


def hostile(kind: inspect.Type) -> Any:
    """A value of this type, whose every text is hostile."""
    match kind:
        case inspect.StructType():
            return {field.encode_name: hostile(field.type) for field in kind.fields}
        case inspect.StrType():
            return WORDS
        case inspect.ListType() | inspect.VarTupleType():
            return [hostile(kind.item_type)]
        case inspect.DictType():
            return {WORDS: WORDS}
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.BoolType():
            return True
        case inspect.UnionType():
            return hostile(kind.types[0])
        case _:
            return 1


def respond(command: str) -> dict[str, Any]:
    """A success whose every text is hostile; the VM that is asked about can be found in it."""
    row = hostile(inspect.type_info(VmDetails)) | {"labels": {"app": "shop"}}
    details = {"details": [row, row | {"vm-id": VM}]} if command == "list-vms" else {}
    return success(hostile(inspect.type_info(RESPONSES[command])), host=WORDS, **details)


def refuse(code: str) -> dict[str, Any]:
    """A refusal whose every text is hostile."""
    no = refusal(code, WORDS, host=WORDS)
    no["execution-info"] |= {"hint": WORDS, "reasons": {WORDS: WORDS}, "down": WORDS}
    return no


BEHAVIOURS = {
    "success": respond,
    "refusal": lambda _: refuse("failed"),
    "vm-unknown": lambda _: refuse("vm-unknown"),
    "host-down": lambda _: refuse("host-down"),
    "unknown-code": lambda _: refuse(WORDS),
    "wrong-shape": lambda _: success({WORDS: [WORDS]}, host=WORDS, details=[{WORDS: WORDS}]),
    "half-a-character": lambda _: success([EVIL], host=EVIL),
    "refusal-but-lists": lambda command: respond(command) if command == "list-vms" else refuse("failed"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what commands read, hostile as well."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vms.yml").write_text("vms:\n  - {name: web1, image: debian, labels: {app: shop}}\n")
    (tmp_path / "disk.img").write_text(EVIL, errors="surrogateescape")
    contexts = tmp_path / ".config/aetherscale/contexts"
    contexts.mkdir(parents=True)
    (contexts / "evil.toml").write_text(f"[broker]\nurl = {json.dumps('amqp://u@h/' + WORDS)}\n")
    (contexts / "bad.toml").write_text(EVIL, errors="surrogateescape")
    return tmp_path


def check(ran: Any, output: str = "table") -> None:
    """Nothing that a terminal would obey, and something that a person can read."""
    assert not RAW.findall(ran.out + ran.err)
    assert "\n\\x00" not in ran.out + ran.err, "a line break of theirs begins a line of ours"
    assert "Traceback" not in ran.err
    assert ran.out or ran.err
    if output == "json" and ran.out:
        json.loads(ran.out)


def test_every_command_is_among_them() -> None:
    (choices,) = [action.choices for action in build_parser()._actions if isinstance(action.choices, dict)]
    assert set(COMMANDS) == set(choices)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("command", sorted(set(COMMANDS) - STREAMS - {"completion", "use-context", "import-image"}))
def test_what_agents_say_is_harmless(use: Any, cli: Any, command: str, behaviour: str) -> None:
    for output in EVERYWHERE if command != "apply" else EVERYWHERE[:3]:
        use(MemorySession({"h1": [vm(VM)]}, down={"h9": []}, behave=lambda _, asked, __: BEHAVIOURS[behaviour](asked)))
        check(cli(command, *COMMANDS[command], *output, environ={"RABBITMQ_HOST": "127.0.0.1:1"}), output[1])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_what_is_typed_is_echoed_harmlessly(use: Any, cli: Any, command: str) -> None:
    use(MemorySession({"h1": [vm(VM)]}))
    typed = COMMANDS[command] or [EVIL]
    for place in range(len(typed)):
        words = [*typed[:place], EVIL, *typed[place + 1 :]]
        if command == "doctor":
            words = ["--context", EVIL]
        ran = cli(command, *words, environ={"RABBITMQ_HOST": "127.0.0.1:1"})
        assert ran.code != 0
        check(ran)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "argv",
    [
        ["use-context", "bad"],
        ["list-vms", "--context", "bad"],
        ["list-vms", "--context", "evil"],
        ["list-contexts"],
        ["list-contexts", "-o", "json"],
        ["import-image", "disk.img", "--name", "debian"],
    ],
)
def test_what_files_say_is_harmless(cli: Any, argv: list[str]) -> None:
    check(cli(*argv))


@pytest.mark.parametrize("text", [f"vms: [{{name: {json.dumps(EVIL)}}}]", f"{json.dumps(WORDS)}: 1", EVIL, "vms: *x"])
def test_what_a_file_of_vms_says_is_harmless(cli: Any, folder: Path, text: str) -> None:
    (folder / "vms.yml").write_text(text, errors="surrogateescape")
    check(cli("apply", "-f", "vms.yml"))


def test_a_broker_and_the_environment_are_no_friends_either(cli: Any) -> None:
    for environ in ({"RABBITMQ_HOST": EVIL}, {"AETHERSCALE_CONTEXT": EVIL}):
        check(cli("list-vms", environ=environ))


def test_an_unexpected_error_is_harmless_with_its_traceback_too(use: Any, cli: Any) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError(EVIL)

    use(MemorySession({"h1": []}, behave=fail))
    for more in ([], ["--debug"]):
        ran = cli("list-hosts", *more, environ={"RABBITMQ_HOST": "127.0.0.1:1"})
        assert not RAW.findall(ran.out + ran.err)
        assert "RuntimeError" in ran.err


def test_a_line_of_progress_is_harmless(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress.Line().show(EVIL)
    assert not RAW.findall(capsys.readouterr().err.removeprefix("\r\x1b[K"))


def test_a_question_is_harmless(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin.readline", lambda: "yes\n", raising=False)
    assert outlet.agreed(f"Delete {EVIL}?")
    assert not RAW.findall(capsys.readouterr().err)


DOORS = {"outlet.py", "progress.py", "terminal.py"}
"""terminal.py prints a line break; `conversation.FileSink` writes what a console or a tunnel carries, as it is."""


def test_there_is_no_other_way_out() -> None:
    for source in Path(aetherscale_cli.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if source.name not in DOORS and isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called != "print", source.name
                assert not re.fullmatch(r"sys\.std(out|err)(\.buffer)?\.write(lines)?", called), source.name


@pytest.mark.parametrize("command", RESPONSES)
def test_the_hostile_answers_are_read(command: str) -> None:
    """Else the tests above would show nothing but errors of decoding."""
    msgspec.json.decode(json.dumps(respond(command)["response"]), type=RESPONSES[command])


def test_hostile_words_are_shown_escaped(use: Any, cli: Any) -> None:
    use(MemorySession({"h1": [vm(VM)]}, behave=lambda _, asked, __: respond(asked)))
    for command in ("list-vms", "list-hosts", "list-images", "show-vm", "list-snapshots", "snapshot-vm"):
        ran = cli(command, *COMMANDS[command], "-o", "table", environ={"RABBITMQ_HOST": "127.0.0.1:1"})
        assert (command, ran.code) == (command, 0)
        assert "\\x1b]0;owned\\x07" in ran.out, command
