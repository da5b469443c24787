"""What the page says of a result, and in which order things are measured."""

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from aetherscale_bench import facts, report
from aetherscale_bench.figures import Result, Sample, times
from aetherscale_bench.scale import growth
from aetherscale_bench.timing import in_turn, order

SAMPLES = (Sample("a", "ms", (2.0, 3.0)), Sample("b", "ms", (4.0, 9.0)))
RESULT = Result("create", SAMPLES, facts={"kvm": True, "host": "h1"})


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_each_follows_each_other_equally_often(count: int) -> None:
    names = [str(number) for number in range(count)]
    rounds = [order(names, turn) for turn in range(2 * count)]
    assert all(sorted(one) == sorted(names) for one in rounds)
    followed = Counter(pair for one in rounds for pair in pairwise(one))
    assert len(followed) == count * (count - 1)
    assert set(followed.values()) <= {2}


def test_the_first_round_does_not_count() -> None:
    clocks = {"a": iter((9.0, 1.0, 2.0)), "b": iter((9.0, 3.0, 4.0))}
    samples = in_turn({name: clock.__next__ for name, clock in clocks.items()}, 2)
    assert [(one.name, one.values) for one in samples] == [("a", (1.0, 2.0)), ("b", (3.0, 4.0))]


def test_times_are_taken_run_by_run() -> None:
    assert times("b by a", RESULT.samples[1], RESULT.samples[0]).values == (2.0, 3.0)


@pytest.mark.parametrize(("later", "leaves"), [((9.0,) * 6, 0), ((9.0, 9.5, 10.0, 10.5, 11.0, 11.5), 512)])
def test_growth_is_what_the_later_lists_leave(later: tuple[float, ...], leaves: float) -> None:
    assert growth(Sample("memory", "MiB", (1.0, 5.0, 8.0, *later)), "broker").values == (leaves,)


def test_a_result_is_written_whole(tmp_path: Path) -> None:
    path = RESULT.write(tmp_path)
    assert Result.read(path) == RESULT
    assert [one.name for one in tmp_path.iterdir()] == ["create.json"]


def test_the_digest_is_of_what_a_plot_shows() -> None:
    assert replace(RESULT, facts={}).digest == RESULT.digest
    assert replace(RESULT, samples=RESULT.samples[:1]).digest != RESULT.digest


def test_the_page_says_the_whole_command() -> None:
    assert report.command(RESULT) == "make bench ONLY=create"
    assert report.command(replace(RESULT, facts={"runs": 21})) == "make bench ONLY=create"
    assert report.command(replace(RESULT, facts={"runs": 5})) == "make bench ONLY='create --runs 5'"


def test_what_a_machine_could_is_not_said_of_guests() -> None:
    assert report.shown(RESULT) == {"host": "h1"}


def test_facts_say_what_was_measured_and_how_often() -> None:
    said = facts.machine(7)
    assert said["runs"] == 7
    assert said["date"].endswith(" UTC")
    assert re.fullmatch(r"unknown|[0-9a-f]{7,}(\+changes)?", said["commit"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--check"], 0),
        (["--check", "create", "scale"], 0),
        (["--check", "creat"], 2),
        (["--check", "create", "--runs", "0"], 2),
        (["--check", "create", "--runs", "1"], 0),
        (["--check", "scale", "--runs", "1"], 2),
    ],
)
def test_what_can_not_be_measured_is_told_at_once(arguments: list[str], code: int) -> None:
    argv = [sys.executable, "-m", "aetherscale_bench", *arguments]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert ("error:" in done.stderr) == (code != 0)
