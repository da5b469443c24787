"""`aetherscale-cli`: parse, ask, show. Read this first; it calls everything else.

arguments -> execute: contexts -> broker (pika) -> dialogue -> resolve (which VM) -> ask -> gather / settle (who
answered, what became of it) -> report. What takes more than that, such as a create that is waited for, is in workflows.

Nothing is imported before it is needed: most of a short command's time goes into that.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from aetherscale_protocol.sparing import spare

if TYPE_CHECKING:
    from aetherscale_cli.errors import CliError

UNUSED = (
    "msgspec.inspect",
    "msgspec._json_schema",
    "pika.adapters.asyncio_connection",
    "pika.adapters.blocking_connection",
)
"""Modules that msgspec and pika import unasked, and nothing here uses: a tenth of what a command imports, or more."""


def run() -> None:
    """The entry point: exits, and shows no traceback unless `--debug` asks for it."""
    gc.disable()  # in so short a life collecting costs more than the garbage
    spare(*UNUSED)
    code = main(sys.argv[1:], os.environ)
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    os._exit(code)  # all is said: taking pika's modules down would cost 10 ms, a resolver that hangs much more


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Do what `argv` asks for; the exit code."""
    from aetherscale_cli.errors import CliError, Exit

    try:
        if list(argv[:1]) == ["__complete"]:
            from aetherscale_cli import live_words

            return live_words.complete(argv[1:], environ)
        from aetherscale_cli.arguments import parse

        invocation = parse(argv)
        if invocation.command == "completion":
            from aetherscale_cli import completion

            completion.show(invocation.name)
            return Exit.DONE
        from aetherscale_cli.execute import execute

        return execute(invocation, environ)
    except SystemExit as error:  # argparse has said what there is to say
        return error.code if isinstance(error.code, int) else Exit.USAGE
    except CliError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except Exception as error:
        if "--debug" in argv:
            _show_traceback()
        hint = "--debug shows where; please report it"
        return _fail(CliError(f"unexpected {type(error).__name__}: {error}", hint))


def _fail(error: "CliError") -> int:
    from aetherscale_cli import execute, report

    return execute.show(report.failed(error))


def _show_traceback() -> None:
    import traceback

    from aetherscale_cli import outlet

    outlet.say(traceback.format_exc().splitlines())


def _flush(stream: object) -> None:
    with contextlib.suppress(OSError, ValueError):
        getattr(stream, "flush", lambda: None)()
