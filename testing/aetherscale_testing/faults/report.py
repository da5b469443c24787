"""docs/reliability.md, made from what the tests wrote down: `python -m aetherscale_testing.faults report`.

Nothing in that page is typed by hand but the words between the figures, which stand here. What was not recorded is
said to be missing.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aetherscale_agent.steps import STEPS
from aetherscale_testing.faults.table import FAULTS, SCENARIOS, VM_NET_STEPS, all_cells

Rows = list[dict[str, Any]]

AGENT_KILLED, VM_NET_KILLED, VM_NET_FAILS = "agent killed", "vm-net killed", "ip or nft fails"
EVERYWHERE = {AGENT_KILLED: STEPS, VM_NET_KILLED: VM_NET_STEPS, VM_NET_FAILS: VM_NET_STEPS}
"""The faults that the lab's tests bring to every step of an agent, and to every step of `vm-net`."""

HELD = "held"
"""The verdict of a cell on the lab that went well."""

HEAD = """\
# Reliability

*Made by `make reliability` from the files in [results](results/); don't edit it by hand.*

What aetherscale promises when something dies in the middle, and how that was tried.

- **A create makes exactly one VM, or none and says why**, however often it is sent and whatever dies meanwhile.
- **No command is executed after its caller was told that it failed**, nor begun after its deadline.
- **Nothing is left behind**: no disk, seed disc, tap, address, unit, socket, binding, claim or journal entry of what is
  not a VM.
- **A command runs once**, however often it is asked with the same request id before its deadline (a host remembers the
  last 64 of each VM, and of those about itself).
- **A disk that is restored holds what it held before, or what it held at the snapshot**, and which of both is what was
  told; the VM starts from it. A clone has its source's disk, or is none.
- **A console or a tunnel carries its bytes in order, or ends and says so**; its host lets go of the guest's end.
- `unknown` is an allowed answer only where `show-vm` later tells the truth, and asking again with the same request id
  gives the same VM, or the same no.
"""

RULES = """
## The rules, and the model that needs each of them

The agent's decisions are pure code: what to do next with a create (`decide.py`), in which order each command's steps
are taken (`courses.py`), what to do about a VM after an interruption (`recover.py`). `make model` explores every world
that two or three hosts, a broker and a client can get into by way of these very functions. (Rules 1b, 6 and 9 are what
`session.py` does with its connection: the model has a word of its own for them, and other tests hold the code.) Agents
that die, hosts that
lose power, connections that are lost at any step, copies that expire, requests that are sent again at once or long
after, brokers that are wiped, hosts that are forgotten. Then it takes each rule out in turn, and something bad can be
reached.
"""

MATRIX = """
## The fault matrix

Every step of an agent × every fault, before the step and after it: real agents, a real RabbitMQ, a hypervisor in
memory that is held to the same contract tests as the real one (`make matrix`; heartbeat 1 s, and waits of a minute cut
to a second). The agent is stopped at the step, the
fault falls, it goes on; the client asks again where it was told `unknown`; then everything must settle without help. An
independent checker looks at journals, disks, guests, bindings, queues, claims and tunnels' ends, at what guests wrote
on disks that are copied or restored, and at what the client was told, never at what an agent says of itself. Where two
kinds of commands take the same steps, the second has lines of its own. ✓ passed before and after the step; ✗ failed;
· makes no sense there; ? not recorded yet.
"""

LAB = """
## The same on real hosts

systemd, QEMU and the agent as it is installed, on the lab (a part of `make molecule`). Here the checker asks the hosts
for their processes, units and files.
"""

STORM = """
## The storm

`make chaos MINUTES=… SEED=…` ([storm.md](storm.md)): clients create, stop, start, delete and list on the lab without
pause while faults fall at random; then everything is healed, must settle without help, and is checked; then all VMs
are deleted, and it is checked that nothing is left. The seed gives the schedule of the faults and each client's
sequence of actions; which of them meet is up to the machine.
"""

RECOVERY = """
## After a broker's restart, and in memory

Wanted: 200 agents consume again within 10 s of the broker's return, and an agent that holds 100 VMs takes less than
60 MB. What was measured: [benchmarks.md](benchmarks.md#recovery). A broker that was wiped is another matter: there
agents wait for each other first.
"""

RUN = """
## How to run it

| what | command | time on two cores |
|---|---|---|
| the model, and each rule taken out | `make model` | 2 minutes |
| the matrix over a hypervisor in memory | `make matrix` (one cell: `--step`, `--when`, `--fault`) | 20 minutes |
| a slice of it, the model, the lab's matrix and a short storm | `make test` | see there |
| a storm | `make chaos MINUTES=20 SEED=1` | as asked, and 3 minutes |
| recovery of 200 agents; memory of an agent | `make bench ONLY=recovery`, `make bench ONLY=memory` | 5 minutes |
| this page | `make reliability` | at once |

## What is not promised

- **Answers.** An agent that dies may take an answer with it: the caller is told `unknown` when its time is over.
- **A broker that loses its data** while a host is away for longer than 15 s: agents wait that long for their fleet when
  they find a broker that does not know them, then go on. A create whose answer was lost, asked again then, may be made
  a second time; when the first host comes back it keeps its copy out of the directory and says so.
  Agents that were started by hand, without a list of the fleet, do not wait at all.
- **A host that is forgotten and comes back** likewise.
- **A disk that lies about fsync**, and a host whose journal is gone: an overlay without a journal entry is named in the
  log and left alone, never deleted.
- **Clocks that are further apart than a deadline**: such a host refuses what it is asked, and says that its clock may
  be off. It does not do things late. A VM's `--ttl` goes by its host's clock: to give a wrong one time to be set, no VM
  is deleted for that within two minutes of the host's boot, or of a leap of its clock by more than a minute (an agent
  that is started anew after a leap does not know of it).
- **A start, stop or kill that was begun before its deadline** may come to its end after it. A start that was cut off
  is not begun again after it. A create, too, is finished after its deadline if its disk's copy took that long; it is
  undone if its agent was restarted or frozen meanwhile.
- **The guest's own data** at a power loss is what the guest had flushed.
- **Two clients that use one request id for different commands**: ids are random, 128 bits.
"""


def make_page(folder: Path) -> str:
    """The page, from the results in this folder."""
    parts = [HEAD, *_model(folder), *_matrix(folder), *_lab(folder), *_storm(folder), RECOVERY, RUN]
    return "".join(parts)


def _load(folder: Path, name: str) -> Any:
    path = folder / name
    return json.loads(path.read_text()) if path.exists() else None


def _missing(what: str) -> str:
    return f"\nNot recorded: run `{what}`.\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def _model(folder: Path) -> Iterator[str]:
    yield RULES
    found = _load(folder, "model.json")
    if found is None:
        yield _missing("make record")
        return
    yield _table(
        ("", "rule", "without it"),
        ((name, rule["says"], rule["violation"].lower()) for name, rule in found["rules"].items()),
    )
    worlds = sum(scenario["worlds"] for scenario in found["scenarios"].values())
    yield f"\nWith all rules nothing bad can be reached, in {worlds:,} worlds:\n"
    yield _table(
        ("scenario", "worlds"),
        ((scenario["what"], f"{scenario['worlds']:,}") for scenario in found["scenarios"].values()),
    )


def _matrix(folder: Path) -> Iterator[str]:
    yield MATRIX
    rows: Rows | None = _load(folder, "matrix.json")
    if rows is None:
        yield _missing("make matrix")
        return
    yield f"\n{_count(rows)}\n"
    letters = {fault: chr(ord("A") + number) for number, fault in enumerate(FAULTS)}
    yield _table(("", "fault"), ((letter, FAULTS[fault]) for fault, letter in letters.items()))
    by_cell: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        by_cell.setdefault((row["step"], row.get("also", ""), row["fault"]), []).append(row["verdict"])
    lines = dict.fromkeys((cell.step, cell.scenario if cell.also else "") for cell in all_cells())
    yield _table(
        ("step", *letters.values()),
        (
            (f"`{step}`" + (f" ({also})" if also else ""), *(_sign(by_cell.get((step, also, f), [])) for f in letters))
            for step, also in lines
        ),
    )
    reasons = sorted({str(row["why"]) for row in rows if row["verdict"] == "not-applicable"})
    yield "\nWhy a cell makes no sense: " + "; ".join(reasons) + ".\n"
    yield "\nWhat comes to a step:\n\n" + "".join(f"- *{name}*: {what}\n" for name, what in SCENARIOS.items())


def _count(rows: Rows) -> str:
    count = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("passed", "failed")}
    rest = len(rows) - sum(count.values())
    return f"**{count['passed']:,} cells passed, {count['failed']} failed**, {rest} make no sense."


def _sign(verdicts: list[str]) -> str:
    if not verdicts:
        return "?"
    if "failed" in verdicts:
        return "✗"
    return "✓" if "passed" in verdicts else "·"


def _lines(folder: Path, name: str) -> Rows:
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _lab(folder: Path) -> Iterator[str]:
    yield LAB
    rows = _lines(folder, "lab-matrix.jsonl")
    if not rows:
        yield _missing("make record")
        return
    failed = [row for row in rows if row["verdict"] != HELD]
    yield f"\n{len(rows)} cells on the lab, {len(failed)} failed.\n"
    steps: dict[str, list[str]] = {}
    for row in rows:
        mark = "" if row["verdict"] == HELD else " ✗"
        steps.setdefault(row["fault"], []).append(f"{row['when']} `{row['step']}`{mark}" if row["step"] else "")
    yield _table(("fault", "at"), ((fault, ", ".join(filter(None, where))) for fault, where in steps.items()))
    if any(row["step"] in VM_NET_STEPS for row in rows):
        yield "\nBeside the agent's steps, those of `vm-net`, which makes and removes a VM's network as root:\n\n"
        yield from (f"- `{step}`: {what} (`{program}`)\n" for step, (program, what) in VM_NET_STEPS.items())


def find_gaps(folder: Path) -> list[str]:
    """Steps that the lab's tests strike, and what is recorded does not have or did not hold; and steps it has that are
    none any more.
    """
    rows = _lines(folder, "lab-matrix.jsonl")
    held = {(row["fault"], row["step"]) for row in rows if row["verdict"] == HELD}
    known = {"", *STEPS, *VM_NET_STEPS}
    return [
        *(f"{fault} at {step}" for fault, steps in EVERYWHERE.items() for step in steps if (fault, step) not in held),
        *(f"{step}, which is no step" for step in sorted({row["step"] for row in rows} - known)),
    ]


def _storm(folder: Path) -> Iterator[str]:
    yield STORM
    figures: Mapping[str, Any] | None = _load(folder, "chaos.json")
    if figures is None:
        yield _missing("make chaos MINUTES=20")
        return
    kinds = ", ".join(f"{count} × {kind}" for kind, count in figures["faults_by_kind"].items())
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in figures["creates_by_outcome"].items())
    latency = figures["create_seconds"]
    yield _table(
        ("", "the recorded storm"),
        (
            ("seed, date, commit", f"{figures['seed']}, {figures['date']}, {figures['commit']}"),
            ("minutes, hosts, clients", f"{figures['minutes']}, {figures['hosts']}, {figures['clients']}"),
            ("creates", f"**{figures['creates']:,}**: {outcomes}"),
            ("faults", f"**{figures['faults']}**: {kinds}"),
            ("lost, doubled, left behind", f"**{figures['lost']}, {figures['doubled']}, {figures['left_behind']}**"),
            ("told wrong", f"**{figures['told_wrong']}**"),
            ("unknown outcomes that were asked again", figures["unknown_asked_again"]),
            ("VMs that could not be started again, and said so", len(figures["not_started_again"])),
            ("settled after the last fault within", f"{figures['settle_seconds']} s"),
            ("create to answer, median and 95 %", f"{latency['median']} s, {latency['p95']} s"),
        ),
    )
