"""The fuzzer's targets, without the fuzzer: over their seeds, and over those with bytes that were hit."""

import random
import re
from pathlib import Path

import pytest

from aetherscale_testing.fuzz_targets import SEEDS, TARGETS

ROOT = Path(__file__).parents[2]
HITS = 40
LAST = {
    "decoder": "seed.finalize_files",
    "envelope": "check_reply_to",
    "reply_to": "check_reply_to",
    "image": "read_qcow2",
    "manifest": "read_manifest",
    "answer": "text.safe_json",
    "console": "clean_lines",
    "arguments": "encode_request",
    "seed_disc": "read_disc",
}
"""What a target calls last, or where nothing is refused before: a finding there is seen."""


def hit(seed: bytes, number: int) -> bytes:
    """A seed with a byte replaced, or cut off there: the same for the same number."""
    chance = random.Random(number)
    at = chance.randrange(len(seed))
    return seed[:at] + (bytes([chance.randrange(256)]) + seed[at + 1 :] if chance.random() < 0.8 else b"")


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_seeds_and_what_is_near_them(name: str) -> None:
    for seed in SEEDS[name]:
        for data in (seed, b"", *(hit(seed, number) for number in range(HITS))):
            TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_its_first_seed_is_not_refused_on_the_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(f"aetherscale_testing.fuzz_targets.{LAST[name]}", fail)
    with pytest.raises(ZeroDivisionError):
        TARGETS[name](SEEDS[name][0])


def test_each_target_has_seeds_and_is_one_of_make_fuzz() -> None:
    (looped,) = re.findall(r"for target in ([\w ]+);", (ROOT / "Makefile").read_text())
    assert looped.split() == list(TARGETS)
    assert set(SEEDS) == set(TARGETS)
