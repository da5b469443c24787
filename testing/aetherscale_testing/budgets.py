"""The regression guard: what each command may cost, in counts that are the same on any machine, and is held to.

The numbers stand in `budgets.toml`. A test fails when one rises, and when one falls, which is to be written down:

    AETHERSCALE_BUDGETS=write make unit protocol-tests molecule      # the table anew, for `git diff` and a review
"""

import fcntl
import functools
import operator
import os
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

TABLE = Path(__file__).with_name("budgets.toml")
WRITE = "AETHERSCALE_BUDGETS"

COSTLY = frozenset({"asyncio", "dataclasses", "logging", "msgspec", "pika", "ssl", "yaml"})
"""Modules whose import is felt. All others' number is Python's and pika's own affair, and differs by version."""

COMMON = "each of them"
"""The row of what all rows of a section have in common; they have only what comes on top."""

Counts = Mapping[str, Mapping[str, int]]
"""By row, which is a command, and by what was counted."""


def load(section: str) -> dict[str, Counter[str]]:
    """A section's rows, each with what is common to all of them."""
    rows = {name: _parse(row) for name, row in tomllib.loads(TABLE.read_text()).get(section, {}).items()}
    common = rows.pop(COMMON, Counter())
    return {name: row + common for name, row in rows.items()}


def is_writing() -> bool:
    """Whether the table is to be written, not held."""
    return os.environ.get(WRITE) == "write"


def hold(sections: Mapping[str, Counts]) -> None:
    """Nothing, if all was counted that these sections say, and no more and no less; or write them.

    :raise AssertionError: otherwise, with each command, what was counted, the number expected and that found.
    """
    if is_writing():
        for section, counted in sections.items():
            _write(section, counted)
        return
    complaints = [
        line for section, counted in sections.items() for line in find_differences(section, load(section), counted)
    ]
    assert not complaints, "\n".join([f"what commands cost is not what {TABLE.name} says", *complaints])


def find_differences(section: str, expected: Counts, counted: Counts) -> list[str]:
    """A line for each number that is another, and each row that is new."""
    complaints = [f"{section}, {row}: no such row" for row in counted if row not in expected]
    for row, had in expected.items():
        got = counted.get(row, {})
        complaints += [
            f"{section}, {row}: {what}: {had.get(what, 0)} expected, {got.get(what, 0)} counted"
            for what in sorted({*had, *got})
            if had.get(what, 0) != got.get(what, 0)
        ]
    return complaints


def count_imports(told: str) -> Counter[str]:
    """What `python -X importtime` told: how many modules are ours, and which of the others are that cost much."""
    modules = {line.rpartition("|")[2].strip() for line in told.splitlines() if line.startswith("import time:")}
    ours = sum(module.startswith("aetherscale_") for module in modules)
    return Counter({"of ours": ours} | dict.fromkeys(modules & COSTLY, 1))


def _parse(row: str) -> Counter[str]:
    """`2 Queue.Declare, 1 Basic.Ack`."""
    parts = (part.split(" ", 1) for part in row.split(", ") if part)
    return Counter({what: int(number) for number, what in parts})


def _format(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in sorted(counts.items()) if number)


def _write(section: str, counted: Counts) -> None:
    """Replace a section's rows; what is written above it stays. Several processes may write at once."""
    common = functools.reduce(operator.and_, map(Counter, counted.values())) if len(counted) > 1 else Counter()
    table = ({COMMON: common} if common else {}) | {name: Counter(row) - common for name, row in counted.items()}
    rows = "".join(f'"{name}" = "{_format(row)}"\n' for name, row in table.items())
    with TABLE.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        head, title, rest = file.read().partition(f'["{section}"]\n')
        after = re.search(r"\n(?=\n(#.*\n)*\[)", rest)  # an empty line, comments, and the next section's title
        text = head + (title or f'\n["{section}"]\n') + rows + (rest[after.end() :] if after else "")
        file.seek(0)
        file.truncate()
        file.write(text)
