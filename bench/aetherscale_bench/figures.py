"""What was measured, as values: samples, targets, and the file of JSON that a benchmark leaves."""

import hashlib
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True)
class Sample:
    """Repeated measurements of one thing, in the order in which they were made, all in `unit` (ms, s, MiB, 1/s …)."""

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """Lowest and highest."""
        return min(self.values), max(self.values)


@dataclass(frozen=True)
class Target:
    """What a sample must show, and whether it did: `median of A is 1.2 × that of B; at most 1.3`."""

    claim: str  #: for people: "at most 1.3 × python importing pika and ssl"
    got: float
    limit: float
    at_most: bool = True  #: else at least

    @property
    def met(self) -> bool:
        """Whether what was measured keeps to the limit."""
        return self.got <= self.limit if self.at_most else self.got >= self.limit


@dataclass(frozen=True)
class Result:
    """All that one benchmark has found. `facts` name what it ran on: versions, numbers of hosts, load before it."""

    name: str
    samples: tuple[Sample, ...]
    targets: tuple[Target, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def sample(self, name: str) -> Sample:
        """The sample of that name.

        :raise KeyError: when there is none.
        """
        return {sample.name: sample for sample in self.samples}[name]

    def write(self, folder: Path = RESULTS) -> Path:
        """Write `<name>.json`, whole or not at all; the file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        os.replace(partial, path)
        return path

    @property
    def digest(self) -> str:
        """Of the samples: a plot of them carries it, so that one of others is noticed."""
        return hashlib.sha256(json.dumps([asdict(sample) for sample in self.samples]).encode()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote."""
        table = json.loads(path.read_text())
        return cls(
            table["name"],
            tuple(Sample(**(row | {"values": tuple(row["values"])})) for row in table["samples"]),
            tuple(Target(**row) for row in table["targets"]),
            table["facts"],
        )


def ratio(one: Sample, other: Sample) -> float:
    """How many times the median of another the median of one is."""
    return one.median / other.median


def times(name: str, one: Sample, other: Sample) -> Sample:
    """How many times another one is, run by run: what was measured in the same round."""
    return Sample(name, "×", tuple(round(a / b, 2) for a, b in zip(one.values, other.values, strict=True)))


def table(samples: Sequence[Sample]) -> list[str]:
    """Samples as the rows of a Markdown table."""
    head = ["| what | unit | median | lowest | highest | runs |", "|---|---|---|---|---|---|"]
    return head + [row(one) for one in samples]


def row(sample: Sample) -> str:
    """One row of it."""
    low, high = sample.spread
    cells = (rounded(sample.median), rounded(low), rounded(high), len(sample.values))
    return "| {} | {} | **{}** | {} | {} | {} |".format(sample.name, sample.unit, *cells)


def rounded(value: float) -> str:
    """Three digits that mean something, and no more."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2g}" if abs(value) < 1 else f"{value:.2f}"
