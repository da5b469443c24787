"""Stand-ins for modules that msgspec and pika import unasked, and we never use: time and memory spared."""

import sys
import types
from collections.abc import Sequence


class _Unused(types.ModuleType):
    """Stands for a module that is never used, whatever is imported from it."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def spare(*names: str, absent: Sequence[str] = ()) -> None:
    """Let these modules be imported as nothing. Call it before msgspec or pika is imported; what is loaded stays.

    :param absent: those without which whoever imports them can do: to them, they are not installed.
    """
    for name in names:
        sys.modules.setdefault(name, _Unused(name))
    # msgspec takes typing's own where this is not installed; where it is, it brings inspect, ast and dis along
    for name in ("typing_extensions", *absent):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
