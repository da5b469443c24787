"""How long work took, looked at from beside it: while the agent is frozen, nothing looks, and nothing is at work."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

LOOK_EVERY_S = 1.0
LONGEST_GAP_S = 10.0
"""How much of the time between two looks counts, in seconds: a busy host is late, a frozen agent misses minutes."""


async def time_at_work(work: Coroutine[Any, Any, None], clock: Callable[[], float]) -> float:
    """Do it; the seconds that it was at work, by this clock.

    :raise Exception: whatever the work raises.
    """
    task, seconds, last = asyncio.create_task(work), 0.0, clock()
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=LOOK_EVERY_S)
            now = clock()
            seconds += min(max(0.0, now - last), LONGEST_GAP_S)
            last = now
        task.result()
    finally:
        task.cancel()
    return seconds
