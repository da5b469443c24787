"""Every world that can be reached, breadth first, and the shortest way to a bad one."""

from collections import deque
from dataclasses import dataclass

from aetherscale_testing.model.decisions import Decisions
from aetherscale_testing.model.moves import Moves
from aetherscale_testing.model.state import State
from aetherscale_testing.model.verdicts import find_violations


@dataclass(frozen=True)
class Exploration:
    """What was found: how many worlds there are, and the violations, each with its shortest trace."""

    worlds: int
    complete: bool
    violations: dict[str, tuple[str, ...]]


def explore(
    start: State,
    decisions: Decisions,
    *,
    most: int = 2_000_000,
    first_only: bool = True,
    allowed: frozenset[str] = frozenset(),
) -> Exploration:
    """All worlds that can be reached from this one. A bad world is not followed further.

    :param first_only: stop at the first violation.
    :param allowed: violations that are none here.
    """
    moves = Moves(decisions)
    came: dict[State, tuple[str, State] | None] = {start: None}
    queue = deque([start])
    violations: dict[str, tuple[str, ...]] = {}
    while queue and len(came) < most:
        state = queue.popleft()
        for label, after in moves.after(state):
            bad = [v for v in find_violations(state, after) if v not in allowed]
            if bad:
                violations.setdefault(bad[0], (*_trace(came, state), label))
                if first_only:
                    return Exploration(len(came), False, violations)
                continue
            if after not in came:
                came[after] = (label, state)
                queue.append(after)
    return Exploration(len(came), not queue, violations)


def _trace(came: dict[State, tuple[str, State] | None], state: State) -> tuple[str, ...]:
    labels = []
    step = came[state]
    while step is not None:
        label, before = step
        labels.append(label)
        step = came[before]
    return tuple(reversed(labels))
