"""Text for people: harmless, aligned, short."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale_cli.text import age, block, left, listed, mebibytes, safe, safe_json, table

DANGEROUS = "\x00\x07\x08\x1b\n\r\x7f\x85\x9b\u061c\u200b\u200e\u2028\u202e\u2066\ufeff\ud800\U000e0041"


def test_what_could_move_a_cursor_or_turn_text_round_is_escaped() -> None:
    shown = safe(DANGEROUS)
    assert not set(shown) & set(DANGEROUS)
    assert shown.startswith("\\x00\\x07\\x08\\x1b\\x0a\\x0d\\x7f\\x85\\x9b\\u061c")
    assert shown.endswith("\\U000e0041")


def test_other_text_stays() -> None:
    assert safe("Zürich, 東京 – läuft 🙂") == "Zürich, 東京 – läuft 🙂"


@given(st.text())
def test_nothing_dangerous_is_left_of_any_text(text: str) -> None:
    assert not [c for c in safe(text) if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E]


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_json_means_the_same_after_escaping(value: object) -> None:
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace").decode()
    shown = safe_json(compact)
    assert json.loads(shown) == json.loads(compact)
    assert not set(shown) & set(DANGEROUS)


def test_a_table() -> None:
    assert table(("VM ID", "STATE"), [("aaaaaaaa", "running"), ("b", "")]) == (
        "VM ID     STATE\n"  # left-aligned, no trailing blanks
        "aaaaaaaa  running\n"
        "b         -\n"
    )


def test_an_empty_table_is_its_header() -> None:
    assert table(("A", "B"), []) == "A  B\n"


def test_a_block_leaves_out_what_is_not_known() -> None:
    assert block((("Host", "h1"), ("Reason", ""), ("VM ID", "a\nb"))) == "Host:   h1\nVM ID:  a\\x0ab\n"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59.9, "59s"), (180, "3m"), (7200, "2h"), (200_000, "2d"), (-50, "0s"), (1e300, "-")],
)
def test_ages(seconds: float, shown: str) -> None:
    assert age(1_000_000 - seconds, 1_000_000) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.5, "0s"),
        (59.9, "59s"),
        (7199, "1h59m"),
        (7200, "2h"),
        (90, "1m30s"),
        (86_405, "1d"),
        (-1, "now"),
        (1e300, "-"),
    ],
)
def test_the_time_left_is_not_rounded_to_half_of_it(seconds: float, shown: str) -> None:
    assert left(1_000_000 + seconds, 1_000_000) == shown


def test_memory_is_shown_as_it_would_be_typed() -> None:
    assert [mebibytes(n) for n in (0, 512, 1024, 1536, 2048)] == ["0M", "512M", "1G", "1536M", "2G"]


def test_lists_of_names() -> None:
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
