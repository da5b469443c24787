"""The host's own refusals, and how a tombstone remembers one for late copies of its create."""

from aetherscale_agent.journal import Ending, JournalError
from aetherscale_protocol.errors import Code, Refused

_DISK_HINT = "free space on the host, or repair its disk"


def failed(command: str, error: Exception) -> Refused:
    """The refusal of a command that was begun and failed."""
    hint = _DISK_HINT if isinstance(error, JournalError) else None
    return Refused("failed", f"{command}: {error}", hint)


def ignored(reason: str) -> Refused:
    """The refusal of a shutdown that the guest did not react to; it still runs."""
    return Refused("guest-ignored", reason, "stop-vm --kill pulls the plug")


def unwritten(error: JournalError) -> Refused:
    """The refusal of a create that could not be journalled."""
    return Refused("failed", str(error), _DISK_HINT)


def ending_of(error: Refused, request_id: str) -> Ending:
    """A refusal as a tombstone keeps it."""
    return Ending(code=error.code, reason=error.reason, hint=error.hint, reasons=error.reasons, request_id=request_id)


def ending_refusal(ending: Ending) -> Refused:
    """What a tombstone's create is answered when a late copy of it comes."""
    code: Code = ending.code  # type: ignore[assignment]  # written from a Refused
    return Refused(code, ending.reason, ending.hint, ending.reasons)


def because(reason: object) -> str:
    """A reason as a line of the log has it; nothing if there is none."""
    return f" ({reason})" if reason else ""
