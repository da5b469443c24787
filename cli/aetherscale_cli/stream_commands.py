"""The commands that speak with a VM itself: console-vm, logs-vm, tunnel-vm and ssh-vm."""

import codecs
import contextlib
import functools
import os
import re
import sys
from contextlib import AbstractContextManager
from typing import TypeVar

import msgspec

from aetherscale_cli import ask, outlet, terminal, text
from aetherscale_cli.arguments import PROGRAM, Invocation
from aetherscale_cli.broker import open_session_of
from aetherscale_cli.contexts import ContextStore, Target
from aetherscale_cli.conversation import Conversation, FileSink, FileSource, Opened, Sink
from aetherscale_cli.errors import CliError, Exit
from aetherscale_cli.report import EXIT_OF
from aetherscale_cli.resolve import resolve
from aetherscale_cli.ssh import finalize_alias, finalize_argv, finalize_proxy
from aetherscale_cli.stream_session import StreamSession
from aetherscale_cli.wire import Session
from aetherscale_protocol import names
from aetherscale_protocol.answers import Answer, StreamOpened, VmReport
from aetherscale_protocol.commands import COMMANDS
from aetherscale_protocol.options import OpenStream, Options, ShowVm

TUNNEL_WINDOW = 1 << 20
"""What a tunnel takes before it gives credit, in bytes: 20 MB/s at 50 ms to the VM's host and back."""
CONSOLE_WINDOW = 64 << 10
"""A viewer that stalls misses what comes after this much, and sees that soon after it goes on."""

T = TypeVar("T")


def execute(invocation: Invocation, target: Target, store: ContextStore, context: str | None) -> int:
    """Do it; the exit code.

    :raise CliError: when it can't be done, or the stream was lost.
    """

    def connect() -> AbstractContextManager[StreamSession]:
        return open_session_of(StreamSession, target, f"{PROGRAM} {invocation.command}")

    if invocation.command == "ssh-vm":
        return _ssh(connect(), invocation, store, context)
    with terminal.signals_as_interrupts():
        match invocation.command:
            case "console-vm":
                return _console(connect(), invocation)
            case "tunnel-vm":
                return _tunnel(connect(), invocation)
            case "logs-vm" if invocation.follow:
                return _follow(connect(), invocation)
            case _:
                return _print_log(connect(), invocation)


def _console(connecting: AbstractContextManager[StreamSession], invocation: Invocation) -> int:
    with connecting as session:
        opened = _open(session, invocation, kind="console", lines=invocation.lines, window=CONSOLE_WINDOW)
        outlet.say([f"connected to the console of VM {opened.vm_id}; Ctrl-] leaves it"])

        def leave() -> None:
            session.call(conversation.leave)

        def resize(columns: int, lines: int) -> None:
            session.call(functools.partial(conversation.resize, columns, lines))

        source = terminal.TypedSource(0, leave, lambda: conversation.quiet_s)
        conversation = Conversation(session, opened, source, FileSink(1, closes=False))
        with terminal.raw(0) as is_raw, terminal.resizes(resize) if is_raw else contextlib.nullcontext():
            conversation.run()
    return Exit.DONE


def _tunnel(connecting: AbstractContextManager[StreamSession], invocation: Invocation) -> int:
    with connecting as session:
        opened = _open(session, invocation, kind="tcp", port=invocation.port, window=TUNNEL_WINDOW)
        Conversation(session, opened, FileSource(0), FileSink(1, closes=True)).run()
    return Exit.DONE


def _follow(connecting: AbstractContextManager[StreamSession], invocation: Invocation) -> int:
    with connecting as session:
        opened = _open(session, invocation, kind="log", lines=invocation.lines, window=CONSOLE_WINDOW)
        Conversation(session, opened, None, CleanSink(FileSink(1, closes=False))).run()
    return Exit.DONE


def _print_log(connecting: AbstractContextManager[StreamSession], invocation: Invocation) -> int:
    with connecting as session:
        vm_id = resolve(session, [invocation.vm], invocation.timeout)[0].vm_id
        report = _show(session, vm_id, invocation, lines=invocation.lines)
    with contextlib.suppress(BrokenPipeError):  # as `… | head` does: whoever read has seen enough
        FileSink(1, closes=False).write("".join(f"{text.safe(line)}\n" for line in report.console).encode())
    return Exit.DONE


def _ssh(
    connecting: AbstractContextManager[StreamSession], invocation: Invocation, store: ContextStore, context: str | None
) -> int:
    """Become ssh. The VM is looked up here, so that what is wrong with it is said in our words."""
    with connecting as session:
        vm_id = resolve(session, [invocation.vm], invocation.timeout)[0].vm_id
        report = _show(session, vm_id, invocation, lines=0)
    os.makedirs(store.folder, mode=0o700, exist_ok=True)
    known_hosts = os.path.join(store.folder, "known_hosts")
    assert invocation.ssh is not None
    proxy = finalize_proxy(sys.executable, context, vm_id)
    alias = finalize_alias(vm_id, report.instance)
    argv = finalize_argv(invocation.ssh, invocation.vm, alias, proxy, known_hosts)
    sys.stdout.flush()
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise CliError(f"can't run ssh: {error.strerror}", "is OpenSSH's client installed?") from None


def _show(session: Session, vm_id: str, invocation: Invocation, *, lines: int) -> VmReport:
    answer, _ = _ask(session, "show-vm", ShowVm(vm_id=vm_id, console_lines=lines), invocation.timeout)
    return _decode(answer, VmReport)


def _open(session: StreamSession, invocation: Invocation, *, window: int, **wish: object) -> Opened:
    """Open a stream to the VM that was meant.

    :raise CliError: when that can't be done.
    """
    vm_id = resolve(session, [invocation.vm], invocation.timeout)[0].vm_id
    options = msgspec.convert({"vm-id": vm_id, "window": window, **wish}, OpenStream)
    answer, correlation_id = _ask(session, "open-stream", options, invocation.timeout)
    opened = _decode(answer, StreamOpened)
    key = names.host_key(answer.host or "")
    return Opened(opened.stream, vm_id, key, correlation_id, window, opened.window)


def _ask(session: Session, command: str, options: Options, timeout: float) -> tuple[Answer, str]:
    """The answer to a command for one VM, and the correlation id that it was asked under.

    :raise CliError: when it was refused, or nobody answered.
    """
    call = ask.make_call(COMMANDS[command], options, timeout, None)
    ask.ask_each(session, [call], timeout)
    if call.trouble is not None:
        raise call.trouble
    assert call.reply is not None, "settled without an answer"
    answer = call.reply.answer
    if not answer.ok:
        info = answer.execution_info
        where = f"{answer.host or call.subject}: " if info.code != "host-down" else ""
        reason = info.reason or "refused without a reason"
        raise CliError(f"{where}{reason}", info.hint, EXIT_OF.get(info.code or "", Exit.FAILED))
    return answer, call.message.correlation_id


def _decode(answer: Answer, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.response, type=kind)
    except ValueError as error:
        hint = "are agent and CLI of one version?"
        raise CliError(f"the answer can't be read: {error}", hint) from None


_SEQUENCES = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|[\\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\\\)|[ -/]*[0-~])")
_BEGUN = re.compile("\x1b(?:\\[[0-?]{0,4096}[ -/]{0,4096}|[\\]PX^_][^\x07\x1b]{0,4096}\x1b?|[ -/]{0,4096})$")
"""The beginning of a sequence at the end of what came: it may go on with what comes next, but not for ever."""


class CleanSink:
    """Guests' output without escape sequences and control characters: they could play with the reader's terminal."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def write(self, data: bytes) -> None:
        """Write what is harmless of it."""
        shown = self._rest + self._decoder.decode(data)
        begun = _BEGUN.search(shown)
        self._rest = begun[0] if begun else ""
        self._sink.write(_harmless(_SEQUENCES.sub("", shown[: len(shown) - len(self._rest)])))

    def end(self) -> None:
        """There will be no more."""
        self._sink.write(_harmless(self._rest + self._decoder.decode(b"", final=True)))
        self._sink.end()


def _harmless(shown: str) -> bytes:
    kept = ("".join(one for one in line if text.safe(one) == one or one == "\t") for line in shown.split("\n"))
    return "\n".join(kept).encode()
