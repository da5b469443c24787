"""How long the CLI takes to say anything. No broker, no lab: `--help`, and what a shell completes.

A command's name is completed by bash itself, from the script that `completion bash` prints: beside it stands a bash
that completes nothing. Contexts are completed by a process; VMs and hosts, too, which then asks the broker.
"""

import os
import shlex
import tempfile
from pathlib import Path

from aetherscale_bench import installed
from aetherscale_bench.figures import Result, Target
from aetherscale_bench.installed import CLI, PYTHON
from aetherscale_bench.timing import run, side_by_side

LIMIT_MS = 60
TAB = """\
. {script}
COMP_WORDS=(aetherscale-cli {words}) COMP_CWORD={at}
_aetherscale_cli
test "${{COMPREPLY[*]}}" = "{expected}"
"""


def measure(runs: int) -> Result:
    """ms of whole processes."""
    with tempfile.TemporaryDirectory(prefix="aetherscale-bench-") as folder:
        return measure_in(Path(folder), runs)


def measure_in(folder: Path, runs: int) -> Result:
    """The same, with a folder for what is needed."""
    contexts = folder / "aetherscale" / "contexts"
    contexts.mkdir(parents=True)
    (contexts / "lab.toml").write_text('[broker]\nurl = "amqp://guest@localhost"\n')
    script = folder / "completion.bash"
    script.write_text(run([CLI, "completion", "bash"]))
    env = {**os.environ, "XDG_CONFIG_HOME": str(folder), "PATH": f"{installed.FOLDER}/bin:{os.environ['PATH']}"}

    def tab(words: str, expected: str) -> str:
        at = len(words.split(" "))
        told = TAB.format(script=shlex.quote(str(script)), words=words, at=at, expected=expected)
        return run(["bash", "--norc", "-c", told], env=env)

    samples = side_by_side(
        {
            "python3 -I -S -c pass": lambda: run([PYTHON, "-I", "-S", "-c", "pass"]),
            "python3 -c pass": lambda: run([PYTHON, "-c", "pass"]),
            "python3 importing argparse and msgspec": lambda: run([PYTHON, "-c", "import argparse, msgspec"]),
            "bash, completing nothing": lambda: run(["bash", "--norc", "-c", ":"]),
            "aetherscale-cli --help": lambda: run([CLI, "--help"], env=env),
            "aetherscale-cli create-vm --help": lambda: run([CLI, "create-vm", "--help"], env=env),
            "aetherscale-cli --version": lambda: run([CLI, "--version"], env=env),
            "completion: a command's name, bash's whole process": lambda: tab("list-v", "list-vms"),
            "completion: an option's name, bash's whole process": lambda: tab("list-vms --lab", "--label"),
            "completion: a context, bash's whole process": lambda: tab("list-vms --context l", "lab"),
            "completion: the script for bash": lambda: run([CLI, "completion", "bash"], env=env),
        },
        runs,
    )
    targets = [Target(f"{one.name}: at most {LIMIT_MS} ms", one.median, LIMIT_MS) for one in samples[4:]]
    return Result("startup", tuple(samples), tuple(targets), {"installed": "from the wheel"})
