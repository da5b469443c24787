"""Text for people: made harmless, measured, and set in columns. Pure."""

import re
from collections.abc import Collection, Mapping, Sequence

# C0, DEL, C1; zero-width and bidirectional controls; line and paragraph separators; lone surrogates; tags.
# Any of them could move the cursor, hide text or turn it round in the terminal of whoever reads an answer.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_LONGEST = 2_000


def safe(text: str) -> str:
    """`text` as a terminal may see it: control characters escaped, and not endlessly long."""
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "…"
    return _UNSAFE.sub(_escape, text)


def harmless(text: str) -> str:
    """`text` with all of its line breaks and its whole length, and else as a terminal may see it."""
    return "\n".join(_UNSAFE.sub(_escape, line) for line in text.split("\n"))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def safe_json(text: str) -> str:
    """Compact JSON (no white space between tokens) with what a terminal must not see as `\\u` escapes.

    Compact JSON has these characters inside of strings only, so its meaning stays.
    """
    return _UNSAFE.sub(_escape_json, text)


def _escape_json(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A left-aligned table with a header; cells are made safe, empty ones become `-`."""
    shown = cells([columns, *rows])
    return lines(shown, find_widths(shown))


def cells(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """What a table shows of these rows: made safe, and `-` where there is nothing."""
    return [[safe(cell) or "-" for cell in row] for row in rows]


def find_widths(shown: Sequence[Sequence[str]]) -> list[int]:
    """The widths of columns that hold these cells."""
    return [max(map(len, column)) for column in zip(*shown, strict=True)]


def lines(shown: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    """Rows of cells in columns of these widths; a cell that is longer moves what follows it."""
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in shown)
    return "".join("  ".join(line).rstrip() + "\n" for line in padded)


def partial_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], optional: Collection[str], hidden: Collection[str] = ()
) -> str:
    """A table without its `hidden` columns, and without those `optional` ones that no row has anything to say in."""
    empty = {column for place, column in enumerate(columns) if column in optional and not any(r[place] for r in rows)}
    places = [place for place, column in enumerate(columns) if column not in hidden and column not in empty]
    return table([columns[place] for place in places], [[row[place] for place in places] for row in rows])


def block(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair a line, values aligned and made safe; pairs without a value are left out."""
    shown = [(name, safe(value)) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    return "".join(f"{name + ':':<{width + 1}}  {value}\n" for name, value in shown)


def mebibytes(amount: int) -> str:
    """An amount of memory in MiB, as `--memory` would take it: `512M`, `2G`."""
    return f"{amount // 1024}G" if amount and amount % 1024 == 0 else f"{amount}M"


def gibibytes(amount: int) -> str:
    """An amount of disk in GiB, as `--disk` would take it."""
    return f"{amount}G"


_AGES = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
_OLDEST_S = 100 * 366 * 86_400


def age(since: float, now: float) -> str:
    """How long ago `since` was, in its largest unit: `3m`. Both in seconds since the epoch."""
    return _span(now - since, 1)


def left(until: float, now: float) -> str:
    """How long it is until `until`, in its two largest units: `1h59m`; `now` when it is past, '' for 0 (never)."""
    if not until:
        return ""
    return "now" if until <= now else _span(until - now, 2)


def _span(seconds: float, units: int) -> str:
    if not seconds < _OLDEST_S:
        return "-"
    rest = max(0, int(seconds))
    shown: list[str] = []
    for size, unit in _AGES:
        count, rest = divmod(rest, size)
        if count or shown:
            shown.append(f"{count}{unit}" if count else "")
    return "".join(shown[:units]) or "0s"


def size(amount: int) -> str:
    """A number of bytes, in the largest unit that it fills: `104M`."""
    for power, unit in ((3, "G"), (2, "M"), (1, "K")):
        if amount >= 1024**power:
            whole = amount / 1024**power
            return f"{whole:.0f}{unit}" if whole >= 10 else f"{whole:.1f}".removesuffix(".0") + unit
    return f"{amount}B"


def labels(of: Mapping[str, str]) -> str:
    """Labels, as `--label` would take them."""
    return ", ".join(f"{key}={value}" for key, value in sorted(of.items()))


def short_sum(digest: str) -> str:
    """As much of a checksum as tells one from another."""
    return digest[:12]


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: `h1`, `h1 and h2`, `h1, h2 and h3`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
