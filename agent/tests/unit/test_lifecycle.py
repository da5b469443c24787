"""What each command does in each state: the whole table, cell by cell."""

from pathlib import Path
from typing import get_args

import pytest

from aetherscale_agent.lifecycle import ANY_STATE, TABLE, Act, act_on, heeds_pause
from aetherscale_protocol.answers import VmState
from aetherscale_protocol.commands import COMMANDS, Reach
from aetherscale_protocol.errors import Refused

PAGE = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()
NO = None
VERBS = (
    "start-vm",
    "stop-vm",
    "stop-vm --kill",
    "delete-vm",
    "pause-vm",
    "resume-vm",
    "reboot-vm",
    "reboot-vm --kill",
    "resize-vm",
    "snapshot-vm",
    "restore-vm",
    "delete-snapshot",
    "extend-vm",
)
A, ON, OFF = Act.ALTER, Act.START, Act.KILL
GO, PRESS, RM = Act.NOTHING, Act.PRESS, Act.REMOVE
EXPECTED: dict[VmState, tuple[Act | None, ...]] = {
    # start, stop, kill, delete; pause, resume, reboot, reset; resize, snapshot, restore, delete it, extend
    "creating": (NO, NO, NO, RM, NO, NO, NO, NO, NO, NO, NO, NO, NO),  # only seen when the work got stuck
    "starting": (GO, NO, NO, RM, NO, NO, NO, NO, NO, NO, NO, NO, NO),
    "running": (GO, PRESS, OFF, RM, A, GO, Act.REBOOT, A, A, A, NO, A, A),
    "paused": (NO, NO, OFF, RM, GO, A, NO, NO, A, A, NO, A, A),
    "stopping": (NO, PRESS, OFF, RM, NO, NO, NO, NO, NO, NO, NO, NO, NO),
    "stopped": (ON, GO, GO, RM, NO, NO, NO, NO, A, A, A, A, A),
    "deleting": (NO, NO, NO, RM, NO, NO, NO, NO, NO, NO, NO, NO, NO),  # its removal failed: delete-vm tries again
    "failed": (ON, GO, GO, RM, NO, NO, NO, NO, A, A, A, A, A),
}
CELLS = [(verb, state, acts[n]) for state, acts in EXPECTED.items() for n, verb in enumerate(VERBS)]


@pytest.mark.parametrize(("verb", "state", "act"), [cell for cell in CELLS if cell[2] is not None])
def test_a_cell_that_acts(verb: str, state: VmState, act: Act) -> None:
    assert act_on(verb, state) is act


def test_only_who_pulls_the_plug_does_not_ask_whether_the_guest_stands_still() -> None:
    assert [verb for verb in VERBS if not heeds_pause(verb)] == ["stop-vm --kill", "delete-vm"]


@pytest.mark.parametrize(("verb", "state"), [cell[:2] for cell in CELLS if cell[2] is None])
def test_a_cell_that_refuses(verb: str, state: VmState) -> None:
    with pytest.raises(Refused) as caught:
        act_on(verb, state)
    error = caught.value
    assert (error.code, error.changed) == ("wrong-state", False)
    assert state in error.reason
    assert verb in error.reason
    assert error.hint


def test_the_table_has_every_verb_and_no_state_that_there_is_not() -> None:
    assert set(TABLE) == set(VERBS)
    assert set(ANY_STATE) == set(get_args(VmState)) == set(EXPECTED)
    for row in TABLE.values():
        assert set(row) <= set(ANY_STATE)


def test_every_command_that_changes_a_vm_is_in_the_table() -> None:
    changing = {c.name for c in COMMANDS.values() if c.changes and c.reach is Reach.HOLDER}
    assert changing == {verb.split()[0] for verb in TABLE}


def test_every_state_in_which_a_guest_may_run_can_be_left_by_force() -> None:
    for state in ("running", "paused", "stopping"):
        assert act_on("stop-vm --kill", state) is Act.KILL


def test_a_guest_that_shuts_down_can_be_hurried() -> None:
    with pytest.raises(Refused) as caught:
        act_on("start-vm", "stopping")
    assert "--kill" in (caught.value.hint or "")


def test_what_is_paused_says_how_it_can_be_left() -> None:
    for verb, way in (("start-vm", "resume-vm"), ("stop-vm", "resume-vm first, or stop-vm --kill")):
        with pytest.raises(Refused) as caught:
            act_on(verb, "paused")
        assert way in (caught.value.hint or "")


SIGNS = {None: "–", Act.NOTHING: "="}


def table_of_page() -> str:
    """The table as it should stand in docs/protocol.md."""
    rows = [f"| command | {' | '.join(ANY_STATE)} |", "|---" * (len(ANY_STATE) + 1) + "|"]
    for verb, row in TABLE.items():
        signs = (SIGNS.get(row.get(state), "✓") for state in ANY_STATE)
        rows.append(f"| `{verb}` | {' | '.join(signs)} |")
    return "\n".join(rows)


def test_the_table_of_the_page_is_the_codes() -> None:
    assert table_of_page() in PAGE
