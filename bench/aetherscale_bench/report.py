"""docs/benchmarks.md from the results: a section for each benchmark, with its command, its figures and its notes.

What a table can't say (which call the floor is, what was mended) is prose, kept beside the code in
`bench/notes/<name>.md` and taken over as it is.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from aetherscale_bench.benches import BENCHES
from aetherscale_bench.figures import RESULTS, Result, Target, rounded, table

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "benchmarks.md"
PLOTS = REPOSITORY / "docs" / "benchmarks"
NOTES = REPOSITORY / "bench" / "notes"


def write() -> int:
    """Write page and plots; 0."""
    from aetherscale_bench import plots

    results = read_results()
    for result in results:
        plots.draw(result, plot(result))
    PAGE.write_text(page(results))
    return 0


def check() -> int:
    """0 if page and plots are what the results make, and each says of what it is; else 1, and it is said."""
    results = read_results()
    stale = [plot(result).name for result in results if not drawn(result)]
    if PAGE.read_text() != page(results):
        stale.append(PAGE.name)
    nameless = [result.name for result in results if not traceable(result)]
    if stale:
        print(f"error: not what bench/results and bench/notes make: {', '.join(stale)}", file=sys.stderr)
        print("hint: make benchmarks", file=sys.stderr)
    if nameless:
        print(f"error: these results name no commit, date and number of runs: {', '.join(nameless)}", file=sys.stderr)
        print(f"hint: make bench ONLY='{' '.join(nameless)}' && make benchmarks", file=sys.stderr)
    return int(bool(stale or nameless))


def traceable(result: Result) -> bool:
    """Whether it says what was measured, when and how often: a figure of which nobody knows that is hearsay."""
    return result.facts.get("commit", "unknown") != "unknown" and {"date", "runs"} <= result.facts.keys()


def drawn(result: Result) -> bool:
    """Whether its plot is there, and of these samples."""
    return plot(result).exists() and result.digest in plot(result).read_text()


def plot(result: Result) -> Path:
    """Where the plot of a result is."""
    return PLOTS / f"{result.name}.svg"


def read_results(folder: Path = RESULTS) -> list[Result]:
    """What there is, in the order of the benchmarks."""
    return [Result.read(path) for name in BENCHES if (path := folder / f"{name}.json").exists()]


def page(results: Sequence[Result]) -> str:
    """The page, as Markdown."""
    parts = [(NOTES / "introduction.md").read_text().rstrip(), "\n".join(overview(results))]
    for result in results:
        parts.append("\n".join(section(result)))
    return "\n\n".join(parts) + "\n"


def overview(results: Sequence[Result]) -> Iterator[str]:
    """All targets in one table."""
    yield "| benchmark | target | measured | |"
    yield "|---|---|---|---|"
    for result in results:
        for target in result.targets:
            yield f"| [{result.name}](#{result.name}) | {target.claim} | {rounded(target.got)} | {verdict(target)} |"


def section(result: Result) -> Iterator[str]:
    """One benchmark."""
    yield f"## {result.name}\n"
    if "runs" in result.facts:
        yield f"    {command(result)}\n"
    about = BENCHES[result.name].about
    yield f"{about[0].upper()}{about[1:]}. {'; '.join(f'{k}: {v}' for k, v in result.facts.items())}.\n"
    yield "\n".join(table(result.samples))
    if plot(result).exists():
        yield f"\n![{result.name}](benchmarks/{result.name}.svg)"
    if result.targets:
        yield ""
        yield from (f"- {target.claim}: {rounded(target.got)}, **{verdict(target)}**" for target in result.targets)
    notes = NOTES / f"{result.name}.md"
    if notes.exists():
        yield "\n" + notes.read_text().rstrip()


def command(result: Result) -> str:
    """What made it.

    :raise KeyError: when the result does not say how often it measured each thing.
    """
    runs = result.facts["runs"]
    usual = runs == BENCHES[result.name].runs
    return f"make bench ONLY={result.name}" if usual else f"make bench ONLY='{result.name} --runs {runs}'"


def verdict(target: Target) -> str:
    """In a word."""
    return "met" if target.met else "missed"
