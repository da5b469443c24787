"""Timing things side by side: one run of each in turn, so that a noisy minute falls on all of them alike."""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from aetherscale_bench.figures import Sample

Action = Callable[[], object]


def nothing() -> None:
    """Do nothing: what `after` is where a run leaves nothing behind."""


def milliseconds(action: Action) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1000


def side_by_side(actions: Mapping[str, Action], runs: int, after: Mapping[str, Action] | None = None) -> list[Sample]:
    """Samples in ms of each action, run in turn. `after` a run what it left is removed, untimed."""
    return in_turn({name: partial(milliseconds, action) for name, action in actions.items()}, runs, after)


def in_turn(
    timers: Mapping[str, Callable[[], float]], runs: int, after: Mapping[str, Action] | None = None
) -> list[Sample]:
    """Samples of what each of these says in ms, asked in turn. `after` each what it left is removed.

    Each is asked once before, uncounted: that loads the files that any second run of a user finds in memory, too.
    """
    times: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(runs + 1):
        for name in order(list(timers), turn):
            times[name].append(timers[name]())
            (after or {}).get(name, nothing)()
    return [Sample(name, "ms", tuple(round(value, 3) for value in values[1:])) for name, values in times.items()]


def order(names: Sequence[str], turn: int) -> list[str]:
    """The order of a round: another in each, so that what one leaves behind does not always fall on the same other.

    A row of a balanced Latin square: within rounds each follows each other equally often.
    (E. J. Williams, 1949, Aust. J. Sci. Res.)
    """
    count = len(names)
    zigzag = [(step + 1) // 2 * (1 if step % 2 else -1) for step in range(count)]
    row = [names[(place + turn) % count] for place in zigzag]
    return row[::-1] if count % 2 and turn % 2 else row


def run(argv: Sequence[str], codes: tuple[int, ...] = (0,), **options: object) -> str:
    """What a program prints.

    :raise RuntimeError: when it ends with another exit code: then what was timed is not what was meant.
    """
    done = subprocess.run([*argv], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    if done.returncode not in codes:
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr or done.stdout}")
    printed: str = done.stdout
    return printed
