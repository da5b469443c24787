"""The errors that cross the wire. A closed set of codes; the reason is for people, the hint says what to do."""

from collections.abc import Mapping
from typing import Literal, get_args

Code = Literal[
    "bad-request",  # the message is malformed; nothing was changed
    "unknown-command",
    "forbidden",  # this sender may not do that
    "vm-unknown",
    "vm-id-taken",
    "image-unknown",
    "image-in-use",
    "snapshot-unknown",
    "snapshot-exists",
    "stream-gone",  # a console or tunnel that was open is no more
    "host-unknown",
    "no-capacity",
    "no-host",  # no host can take this VM; the reason holds every host's own
    "wrong-state",  # not in this state; nothing was changed
    "deadline-passed",  # came too late to be begun; nothing was changed
    "host-down",  # the host is not running; never begun: can be asked again
    "guest-ignored",  # the guest did not react to the power button; it still runs
    "failed",  # it was begun, failed, and was undone as far as the reason says
    "outcome-unknown",  # it may have been done: ask again with the same request id, or show-vm
]

CODES: tuple[str, ...] = get_args(Code)

VM_UNKNOWN = "VM does not exist"
"""The seed's words, to the letter."""


def image_unknown(image: str) -> str:
    """The seed's words for an image that a host does not have, to the letter."""
    return f'Image "{image}" does not exist'


class Refused(Exception):
    """A command that was not done. `code` is for programs, `reason` and `hint` for people.

    :param reasons: each host's own reason, by its name, where several hosts refused.
    :param down: the host that this is about, where it is another than the one which says so.
    """

    def __init__(
        self,
        code: Code,
        reason: str,
        hint: str | None = None,
        reasons: Mapping[str, str] | None = None,
        *,
        down: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.code: Code = code
        self.reason = reason
        self.hint = hint
        self.reasons = dict(reasons or {})
        self.down = down

    @property
    def changed(self) -> bool:
        """Whether something may have been changed nevertheless."""
        return self.code in ("failed", "outcome-unknown")
