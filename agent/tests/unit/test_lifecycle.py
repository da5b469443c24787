"""What each command does in each state: the whole table, cell by cell."""

from typing import get_args

import pytest

from aetherscale_agent.lifecycle import ANY_STATE, TABLE, Act, act_on
from aetherscale_protocol.answers import VmState
from aetherscale_protocol.commands import COMMANDS, Reach
from aetherscale_protocol.errors import Refused

NO = None
VERBS = (
    "start-vm",
    "stop-vm",
    "stop-vm --kill",
    "reboot-vm",
    "reboot-vm --kill",
    "pause-vm",
    "resume-vm",
    "resize-vm",
    "snapshot-vm",
    "restore-vm",
    "delete-snapshot",
    "extend-vm",
    "delete-vm",
)
_ = NO
S, P, K, B, A, D, N = Act.START, Act.PRESS, Act.KILL, Act.REBOOT, Act.ALTER, Act.REMOVE, Act.NOTHING
EXPECTED: dict[VmState, tuple[Act | None, ...]] = {
    # start stop kill reboot reset pause resume resize snapshot restore unsnapshot extend delete
    "creating": (_, _, _, _, _, _, _, _, _, _, _, _, D),  # only seen when the work got stuck
    "starting": (N, _, _, _, _, _, _, _, _, _, _, _, D),
    "running": (N, P, K, B, A, A, N, A, A, _, A, A, D),
    "paused": (_, _, K, _, _, N, A, A, A, _, A, A, D),
    "stopping": (_, P, K, _, _, _, _, _, _, _, _, A, D),
    "stopped": (S, N, N, _, _, _, _, A, A, A, A, A, D),
    "deleting": (_, _, _, _, _, _, _, _, _, _, _, _, D),  # its removal failed: delete-vm tries again
    "failed": (S, N, N, _, _, _, _, A, A, A, A, A, D),
}
CELLS = [(verb, state, acts[n]) for state, acts in EXPECTED.items() for n, verb in enumerate(VERBS)]


@pytest.mark.parametrize(("verb", "state", "act"), [cell for cell in CELLS if cell[2] is not None])
def test_a_cell_that_acts(verb: str, state: VmState, act: Act) -> None:
    assert act_on(verb, state) is act


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
