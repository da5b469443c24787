"""Run benchmarks: `python -m aetherscale_bench [NAME …] [--runs N]`; `--list` names them, `--report` writes the page.

Each writes `bench/results/<name>.json`. Those that need a lab want root and namespaces of their own: `make bench`.
"""

import argparse
import sys
from pathlib import Path

from aetherscale_bench import benches, peers, report
from aetherscale_bench.figures import Result, rounded


def main() -> int:
    """0, or 1 where a target was missed."""
    parser = argparse.ArgumentParser(prog="aetherscale_bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; without: all of them")
    parser.add_argument("--runs", type=count, help="how often each thing is measured (default: as the benchmark says)")
    parser.add_argument("--out", type=Path, default=None, help="folder for the results (default: bench/results)")
    parser.add_argument("--list", action="store_true", help="name them, and run none")
    parser.add_argument("--report", action="store_true", help="write docs/benchmarks.md from the results, and run none")
    parser.add_argument("--prepare", action="store_true", help="download what peers need, and run none")
    parser.add_argument(
        "--check", action="store_true", help="run none: are the names known? with --report: is it fresh?"
    )
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:20} {bench.about}" for name, bench in benches.BENCHES.items()))
        return 0
    if options.prepare:
        peers.prepare()
        return 0
    if options.report:
        return report.check() if options.check else report.write()
    unknown = [name for name in options.names if name not in benches.BENCHES]
    if unknown:
        print(f"error: no benchmark is named {', '.join(unknown)}", file=sys.stderr)
        print(f"hint: there are {', '.join(benches.BENCHES)}", file=sys.stderr)
        return 2
    names = options.names or list(benches.BENCHES)
    few = [name for name in names if options.runs and options.runs < benches.BENCHES[name].least]
    if few:
        print(f"error: {options.runs} is too few runs for {', '.join(few)}", file=sys.stderr)
        print(f"hint: --runs {max(benches.BENCHES[name].least for name in few)}", file=sys.stderr)
        return 2
    if options.check:
        return 0
    missed = 0
    for result in benches.run(names, options.runs):
        show(result)
        result.write(*([options.out] if options.out else []))
        missed += sum(not target.met for target in result.targets)
    return int(missed > 0)


def count(word: str) -> int:
    """How often, of the command line.

    :raise argparse.ArgumentTypeError: when it is less than one.
    :raise ValueError: when it is no number.
    """
    if (number := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def show(result: Result) -> None:
    """Print what was found, for people."""
    print(f"== {result.name}")
    for sample in result.samples:
        low, high = sample.spread
        print(f"{sample.name:60} {rounded(sample.median):>9} {sample.unit:5} ({rounded(low)} to {rounded(high)})")
    for target in result.targets:
        print(f"{'met' if target.met else 'MISSED':6} {target.claim}: {rounded(target.got)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
