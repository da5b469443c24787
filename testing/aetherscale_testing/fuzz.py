"""Coverage-guided fuzzing of what reads other people's bytes: `make fuzz`, or

    python -m aetherscale_testing.fuzz TARGET [CORPUS] [libFuzzer's options, such as -max_total_time=300]

Whatever a target (`fuzz_targets`) raises is a find, which libFuzzer writes to a file `crash-…`. That file, as CORPUS,
shows it again. Needs the extra `fuzz` (atheris).
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["aetherscale_protocol", "aetherscale_agent", "aetherscale_cli", "yaml"]):
    from aetherscale_testing.fuzz_targets import SEEDS, TARGETS


def run() -> None:
    """Fuzz the target that the first argument names, until libFuzzer has enough or finds something."""
    target, options = TARGETS[sys.argv[1]], sys.argv[2:]
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(SEEDS[sys.argv[1]]):
            Path(folder, str(number)).write_bytes(seed)
        own = [] if any(not option.startswith("-") for option in options) else [folder]
        atheris.Setup([sys.argv[0], *options, *own], target)
        atheris.Fuzz()


if __name__ == "__main__":
    run()
