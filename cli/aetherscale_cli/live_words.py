"""`__complete KIND`: what a shell may complete at this moment, a word a line. Silent when anything goes wrong."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from aetherscale_cli import outlet, text
from aetherscale_cli.contexts import ContextStore, find_target
from aetherscale_cli.errors import CliError
from aetherscale_cli.wire import Reply
from aetherscale_protocol.answers import HostReport
from aetherscale_protocol.names import is_host_name, is_image_name

PATIENCE_S = 1.5
"""Longer nobody waits for a tabulator key."""


def complete(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print the words; `argv` is the kind, and `--context NAME` if there is one."""
    with contextlib.suppress(CliError, ValueError, OSError):
        context = argv[2] if len(argv) > 2 and argv[1] == "--context" else None
        words = find_words(argv[0] if argv else "", context, environ)
        outlet.answer("".join(f"{text.safe(word)}\n" for word in sorted(set(words))))
    return 0


def find_words(kind: str, context: str | None, environ: Mapping[str, str]) -> Iterable[str]:
    """The words of this kind; of an unknown one none.

    :raise CliError: when the broker can't be reached, or no agent is running.
    """
    store = ContextStore.of(environ)
    if kind == "contexts":
        return store.names()
    commands = {"vms": "list-vms", "hosts": "list-hosts", "images": "list-hosts"}
    if kind not in commands:
        return []
    from aetherscale_cli import ask, broker

    broker.keep_quiet()
    with broker.open_session(find_target(store, context, environ), "aetherscale-cli __complete") as session:
        everyone = ask.ask_everyone(session, commands[kind], PATIENCE_S)
    if kind == "vms":
        from aetherscale_cli.resolve import names_of

        known = names_of(everyone)
        return [word for word in (*known, *known.values()) if word]
    return [word for reply in everyone.replies for word in _words_of(kind, reply)]


def _words_of(kind: str, reply: Reply) -> list[str]:
    try:
        report = msgspec.json.decode(reply.answer.response or b"", type=HostReport)
    except ValueError:
        return []
    if kind == "images":
        return [image for image in report.images if is_image_name(image)]
    return [host for host in (report.host, *report.fleet) if is_host_name(host)]
