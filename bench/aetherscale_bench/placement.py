"""Where creates go: 1,000 of them on 200 simulated hosts of mixed size; and one that only one host can take."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from aetherscale_bench import node
from aetherscale_bench.asking import Asker, asking
from aetherscale_bench.figures import Result, Sample, Target
from aetherscale_protocol.answers import Answer, HostReport
from aetherscale_testing.swarm import Swarm

HOSTS = 200
GIB = 1024
SIZES = (16, 24, 32, 48, 64)
"""GiB of memory that hosts have; as many of each."""
VM_GIB, TOO_LARGE_GIB, SMALL_GIB = 4, 128, 1 / 16
CREATES, TOO_LARGE = 1000, 10
"""Of them so many that no host could ever take."""
AT_ONCE = {1: "one after the other", 20: "20 at once", CREATES: "all at once"}
PROCESSES = 2
LIMIT_MS = 400


def measure(runs: int) -> Result:
    """Placements per second, ms from publish to answer, MiB of memory between the fullest host and the emptiest."""
    facts = {"hosts": HOSTS, "GiB of hosts": ", ".join(map(str, SIZES)), "GiB of a VM": VM_GIB}
    samples: list[Sample] = []
    targets: list[Target] = []
    for at_once, words in AT_ONCE.items():
        with node.node() as (broker, folder):
            facts["RabbitMQ"] = node.version(broker)
            with Swarm(broker, folder, dict(fleet()), PROCESSES) as swarm, asking(broker) as client:
                took, wrong = place(client, at_once)
                uneven = unevenness(client)
                samples.append(Sample(f"placements, {words}", "1/s", (round(CREATES / took, 1),)))
                samples.append(Sample(f"fullest to emptiest host, {words}", "VMs", (round(uneven, 2),)))
                targets.append(Target(f"creates that were wrongly placed or refused, {words}: none", wrong, 0))
                targets.append(Target(f"fullest to emptiest host, {words}: at most one VM", uneven, 1))
                if at_once == 20:
                    targets.append(Target("places of the whole fleet that were not filled: none", fill(client), 0))
                if at_once == 1:
                    samples += [one_of_all(client, runs)]
                    targets.append(Target(f"{samples[-1].name}: at most {LIMIT_MS} ms", samples[-1].median, LIMIT_MS))
                facts["MiB of all agents"] = swarm.memory()
    return Result("placement", tuple(samples), tuple(targets), facts)


def fleet() -> Iterator[tuple[str, dict[str, Any]]]:
    """Hosts of mixed size. One has an image that no other has: not one of the largest, which are asked first."""
    for number in range(HOSTS):
        size = SIZES[number % len(SIZES)]
        images = ["a", "rare"] if number == HOSTS // 2 + 2 else ["a"]
        yield f"h{number:03}", {"memory": size * GIB, "cpus": 256, "disk": 10_000, "images": images}


def spec(gib: float, image: str = "a") -> dict[str, Any]:
    """A create's options."""
    return {"image": image, "memory": int(gib * GIB), "disk": 1}


def place(client: Asker, at_once: int) -> tuple[float, int]:
    """Ask for all of them; seconds, and how many outcomes were not what they should have been."""
    wanted = [spec(TOO_LARGE_GIB if number % (CREATES // TOO_LARGE) == 0 else VM_GIB) for number in range(CREATES)]
    begin = time.perf_counter()
    answers = client.ask_each("create-vm", wanted, at_once).answers
    took = time.perf_counter() - begin
    return took, sum(wrong(one, answer) for one, answer in zip(wanted, answers, strict=True))


def wrong(options: dict[str, Any], answer: Answer) -> bool:
    """Whether a create's outcome is not what it should be. There is room for all but those that fit nowhere."""
    if options["memory"] == TOO_LARGE_GIB * GIB:
        return answer.execution_info.code != "no-host" or len(answer.execution_info.reasons) != HOSTS
    return not answer.ok


def reports(client: Asker) -> list[HostReport]:
    """What each host says of itself."""
    return [
        msgspec.json.decode(bytes(one.response), type=HostReport) for one in client.ask("list-hosts", HOSTS).answers
    ]


def unevenness(client: Asker) -> float:
    """How much free memory the emptiest host has more than the fullest of those that were given VMs, in VMs.

    :raise RuntimeError: when a host has promised more than it has.
    """
    there = reports(client)
    if any(one.memory_free < 0 for one in there):
        raise RuntimeError("a host has promised more memory than it has")
    most, least = max(one.memory_free for one in there), min(one.memory_free for one in there if one.vms)
    return (most - least) / (VM_GIB * GIB)


def fill(client: Asker) -> int:
    """Ask for more than the fleet has room for; how many places were left, or given twice."""
    room = sum(one.memory_free // (VM_GIB * GIB) for one in reports(client))
    answers = client.ask_each("create-vm", [spec(VM_GIB)] * (room + TOO_LARGE), at_once=20).answers
    return abs(room - sum(answer.ok for answer in answers)) + sum(one.memory_free for one in reports(client))


def one_of_all(client: Asker, runs: int) -> Sample:
    """A create that one host alone can take, and which another one is given. There is room for as many as are timed."""
    times = []
    for _ in range(runs + 1):
        asked = client.ask("create-vm", **spec(SMALL_GIB, "rare"))
        check(asked.answers)
        times.append(round(asked.times[-1], 1))
    return Sample(f"create-vm that one of {HOSTS} hosts can take, publish to answer", "ms", tuple(times[1:]))


def check(answers: Sequence[Answer]) -> None:
    """What was refused is not what was meant to be timed.

    :raise RuntimeError: when one was.
    """
    for answer in answers:
        if not answer.ok:
            raise RuntimeError(f"host {answer.host} refused: {answer.execution_info.reason}")
