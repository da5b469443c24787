"""What can go wrong for the person at the keyboard, and the exit code that says it to a script."""

import enum
from collections.abc import Sequence


class Exit(enum.IntEnum):
    """The exit codes; documented in `--help` and docs/cli.md."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    PARTIAL = 4
    UNKNOWN = 5
    INTERRUPTED = 130


SEVERITY = (Exit.DONE, Exit.FAILED, Exit.PARTIAL, Exit.UNREACHABLE, Exit.USAGE, Exit.UNKNOWN, Exit.INTERRUPTED)


def worst(*codes: Exit) -> Exit:
    """The one code that stands for all of these: what most needs somebody's attention."""
    return max(codes, key=SEVERITY.index, default=Exit.DONE)


class CliError(Exception):
    """The command ends here: `error: <str()>`, `hint: <hint>`, and this exit code."""

    def __init__(self, message: str, hint: str | None = None, exit_code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code


class NoAgent(CliError):
    """The broker was reached, but there is nobody behind it who could answer."""

    def __init__(self) -> None:
        hint = "after a broker's restart agents are back in seconds; else, on a host: systemctl start aetherscale-agent"
        super().__init__("no agent is running", hint, Exit.UNREACHABLE)


class ManifestError(CliError):
    """A file of VMs that is wrong, perhaps in several places."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__(errors[0], "nothing was sent; docs/cli.md shows such a file", Exit.USAGE)
        self.errors = errors
