"""docs/security.md: each row of its tables names the tests that show it, which exist; or it says what is not shown."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "docs/security.md").read_text()
TEST = re.compile(r"`([\w/]+/test_\w+\.py)::(test_\w+)`")
NOT_SHOWN = re.compile(r"not shown: \w")
SHOWN_BY = "shown by"
GLOSSARIES = [["field", ""]]
"""The headers of tables that claim nothing."""


def split_row(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def find_tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The header and the rows of each table."""
    for table in re.findall(r"^(?:\|.*\n?)+", text, re.MULTILINE):
        header, _, *rows = map(split_row, table.splitlines())
        yield header, rows


def find_unshown(text: str) -> Iterator[str]:
    """Why a table, or a row of one, names no test."""
    for header, rows in find_tables(text):
        if header in GLOSSARIES:
            continue
        if header[-1] != SHOWN_BY:
            yield f"this table has no column {SHOWN_BY!r}: {header}"
        for row in rows:
            if len(row) != len(header) or not (TEST.search(row[-1]) or NOT_SHOWN.search(row[-1])):
                yield f"this row names no test: {row}"


def find_dangling(text: str) -> Iterator[str]:
    """Citations of what is no test, or of none that is there."""
    for cited in re.findall("`[^`]*::[^`]*`", text):
        match = TEST.fullmatch(cited)
        path = REPOSITORY / match[1] if match else None
        defined = rf"^(?:async )?def {match[2]}\(" if match else ""
        if path is None or not path.is_file() or not re.search(defined, path.read_text(), re.MULTILINE):
            yield cited


def test_each_row_names_a_test_or_says_what_is_not_shown() -> None:
    assert list(find_unshown(TEXT)) == []


def test_each_test_that_is_named_is_there() -> None:
    assert list(find_dangling(TEXT)) == []
    assert len(set(TEST.findall(TEXT))) > 20


THIS = "`protocol/tests/test_security_md.py::test_a_row_without_a_test_is_noticed`"


@pytest.mark.parametrize(
    ("row", "is_noticed"),
    [
        (f"| a thief | can't | {THIS} |", False),
        ("| a thief | can | not shown: nobody has tried |", False),
        (f"| a thief {THIS} | can't | |", True),
        ("| a thief | can | not shown: |", True),
        ("| a thief | can | (its own machine) |", True),
        (f"| a thief | {THIS} |", True),
    ],
)
def test_a_row_without_a_test_is_noticed(row: str, is_noticed: bool) -> None:
    table = f"| who | what | shown by |\n|---|---|---|\n| a guest | can't | {THIS} |\n"
    assert not list(find_unshown(table))
    assert bool(list(find_unshown(f"text\n{table}{row}\n\ntext"))) is is_noticed


def test_a_table_without_tests_is_noticed() -> None:
    assert list(find_unshown(f"| who | can |\n|---|---|\n| a thief | {THIS} |\n"))
    assert not list(find_unshown("| field | |\n|---|---|\n| `_PID` | who |\n"))


@pytest.mark.parametrize(
    ("cited", "dangles"),
    [
        (THIS, False),
        (THIS.replace("noticed", "forgotten"), True),
        (THIS.replace("protocol", "prologue"), True),
        (THIS.replace("test_security_md.py", "test_security.py"), True),
        ("`test_security_md.py::test_a_row_without_a_test_is_noticed`", True),
        ("`protocol/tests/test_security_md.py::find_tables`", True),
    ],
)
def test_a_citation_that_leads_nowhere_is_noticed(cited: str, dangles: bool) -> None:
    assert list(find_dangling(f"| a | {cited} |")) == ([cited] if dangles else [])
