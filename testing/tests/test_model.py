"""The protocol, explored exhaustively: with all rules nothing bad can be reached; without any one something can.

Slow for a unit test (a minute or two), so it has a marker and a target of its own: `make model`.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aetherscale_testing.model.decisions import RULES, without
from aetherscale_testing.model.explore import Exploration, explore
from aetherscale_testing.model.scenarios import SCENARIOS

pytestmark = pytest.mark.model

RESULTS: dict[str, dict[str, Any]] = {"scenarios": {}, "rules": {}}


@pytest.fixture(scope="module", autouse=True)
def _results() -> Iterator[None]:
    """Written down for docs/reliability.md, where AETHERSCALE_RESULTS names a folder."""
    yield
    folder = os.environ.get("AETHERSCALE_RESULTS")
    if folder:
        Path(folder, "model.json").write_text(json.dumps(RESULTS, indent=1) + "\n")


def _explored(name: str, rule: str | None) -> tuple[Exploration, float]:
    began = time.process_time()
    scenario = SCENARIOS[name]
    found = explore(scenario.start, without(rule), allowed=scenario.allowed)
    return found, round(time.process_time() - began, 1)


@pytest.mark.parametrize("name", SCENARIOS)
def test_with_all_rules_nothing_bad_can_be_reached(name: str) -> None:
    found, seconds = _explored(name, None)
    RESULTS["scenarios"][name] = {"what": SCENARIOS[name].what, "worlds": found.worlds, "seconds": seconds}
    assert found.violations == {}
    assert found.complete


@pytest.mark.parametrize("rule", RULES)
def test_without_a_rule_something_bad_can(rule: str) -> None:
    found, _ = _explored(RULES[rule].scenario, rule)
    assert found.violations, f"rule {rule} is not needed in {RULES[rule].scenario!r}: {RULES[rule].says}"
    ((violation, trace),) = found.violations.items()
    RESULTS["rules"][rule] = {"says": RULES[rule].says, "violation": violation, "trace": trace}
