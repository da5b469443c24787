"""What is read of a roll-out that added a host."""

from types import SimpleNamespace
from typing import Any

import pytest

from aetherscale_bench import rollout
from aetherscale_bench.fleet import BROKER

SAID = """\
TASK [aetherscale : Make the passwords that are missing] ***********************
changed: [broker1 -> localhost]

TASK [agent : Install the wheels] **********************************************
ok: [h1]
changed: [h4] => (item=a)
changed: [h4 -> h1(10.0.0.2)] => (item=b)

RUNNING HANDLER [compute : Reload] *********************************************
changed: [h4]
"""
STATE = """\
00aa  ./fstab
11bb  -

MainPID=7
ActiveEnterTimestamp=Tue 2026-12-01 10:00:00 UTC
Id=aetherscale-vm@x.service

MainPID=0
ActiveEnterTimestamp=
Id=rabbitmq-server.service
"""


def test_a_change_is_the_machines_on_which_it_is_made() -> None:
    assert list(rollout.read_changes(SAID)) == [
        ("localhost", "Make the passwords that are missing"),
        ("h4", "Install the wheels"),
        ("h1", "Install the wheels"),
        ("h4", "Reload"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("00aa", "00ab", "./fstab"),
        ("11bb", "11bc", "-"),
        ("00aa  ./fstab\n", "", "./fstab"),
        ("00aa", "22cc  ./new\n00aa", "./new"),
        ("MainPID=7", "MainPID=8", "aetherscale-vm@x.service"),
        ("MainPID=0", "MainPID=8", "rabbitmq-server.service"),
        ("10:00:00", "10:00:01", "aetherscale-vm@x.service"),
    ],
)
def test_what_differs_on_a_host_is_named(old: str, new: str, name: str) -> None:
    before = rollout.read_state(STATE)
    assert rollout.differing(before, before) == []
    assert rollout.differing(before, rollout.read_state(STATE.replace(old, new))) == [name]


MUST = [
    *(("localhost", task) for task in rollout.PASSWORD),
    *((BROKER, task) for task in rollout.USER),
    *((host, task) for host in ("h1", "h2") for task in rollout.FLEET_LIST),
    ("h3", "Anything"),
]


@pytest.mark.parametrize("stray", [("h1", "Write the agent's unit"), (BROKER, "Start the broker"), ("x", "y")])
def test_only_what_must_change_elsewhere_may(stray: tuple[str, str]) -> None:
    assert rollout.strays(run_of(MUST), ["h1", "h2"], "h3") == set()
    assert rollout.strays(run_of([*MUST, stray]), ["h1", "h2"], "h3") == {stray}


@pytest.mark.parametrize("place", range(len(MUST)))
def test_what_must_change_is_no_more_than_what_does(place: int) -> None:
    with pytest.raises(RuntimeError, match="changed nothing"):
        rollout.strays(run_of(MUST[:place] + MUST[place + 1 :]), ["h1", "h2"], "h3")


def run_of(changed: list[tuple[str, str]]) -> rollout.Run:
    """A run that changed this, of a fleet that is none."""
    said = "".join(f"TASK [{task}] ***\nchanged: [{host}]\n" for host, task in changed)
    fleet: Any = SimpleNamespace(roll_out=lambda: said)
    return rollout.Run(fleet)
