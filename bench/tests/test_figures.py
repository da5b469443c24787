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
from aetherscale_bench.lifecycle import OURS, read_parts
from aetherscale_bench.scale import growth
from aetherscale_bench.timing import in_turn, order

SAMPLES = (Sample("a", "ms", (2.0, 3.0)), Sample("b", "ms", (4.0, 9.0)))
RESULT = Result("create", SAMPLES, facts={"commit": "98423d4", "date": "2026-11-30 22:30 UTC", "runs": 21})


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
    assert report.command(replace(RESULT, facts={"runs": 5})) == "make bench ONLY='create --runs 5'"


def test_the_page_makes_no_command_up() -> None:
    assert "make bench" in "".join(report.section(RESULT))
    assert "make bench" not in "".join(report.section(replace(RESULT, facts={"host": "h1"})))


@pytest.mark.parametrize("missing", [{"commit"}, {"date"}, {"runs"}, {"commit", "date", "runs"}])
def test_a_result_says_what_was_measured_when_and_how_often(
    missing: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {name: fact for name, fact in RESULT.facts.items() if name not in missing}
    assert checked(RESULT, tmp_path, monkeypatch) == 0
    assert checked(replace(RESULT, facts=told), tmp_path, monkeypatch) == 1
    assert "make bench ONLY='create'" in capsys.readouterr().err


def test_an_unknown_commit_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(replace(RESULT, facts={**RESULT.facts, "commit": "unknown"}), tmp_path, monkeypatch) == 1


def checked(result: Result, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """What the check says of a page and a plot that are this result's."""
    monkeypatch.setattr(report, "read_results", lambda: [result])
    monkeypatch.setattr(report, "PLOTS", folder)
    monkeypatch.setattr(report, "PAGE", folder / "page.md")
    report.plot(result).write_text(result.digest)
    report.PAGE.write_text(report.page([result]))
    return report.check()


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


def test_each_part_of_an_end_is_whose_it_was() -> None:
    told = {"begin": 1.0, "POWERDOWN": 1.01, "SHUTDOWN": 3.01, "EXIT": 3.02, "REST": 3.04, "end": 3.05}
    whole, *parts = read_parts(told).values()
    assert (whole, parts) == (2050.0, [2000.0, 10.0, 20.0, 20.0])
    del told["POWERDOWN"]
    assert read_parts(told)[OURS] == 2020.0
