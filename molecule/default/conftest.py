"""What the tests on the hosts share: the hosts by name, and the product's own playbook run once more."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

REPOSITORY = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
INVENTORY = os.environ["MOLECULE_INVENTORY_FILE"]


@dataclass
class Run:
    """A run of a playbook: its exit code, what it said, and which tasks changed which host."""

    code: int
    said: str
    changed: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        task = ""
        for line in self.said.splitlines():
            if match := re.match(r"TASK \[(.*)\] \*+", line):
                task = match[1]
            elif match := re.match(r"changed: \[([\w-]+)", line):
                self.changed.add((task, match[1]))


@pytest.fixture(scope="session")
def site() -> Callable[..., Run]:
    """Run site.yml, or another playbook, with these options, as an operator would."""

    def run(*options: str, playbook: str = "site.yml") -> Run:
        program = Path(sys.executable).with_name("ansible-playbook")
        environment = {**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible/ansible.cfg"), "NO_COLOR": "1"}
        done = subprocess.run(
            [program, "-i", INVENTORY, playbook, *options],
            cwd=REPOSITORY / "ansible", env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return Run(done.returncode, done.stdout + done.stderr)

    return run


@pytest.fixture(scope="session")
def fleet() -> dict[str, Host]:
    """The hosts by name, for tests that look at several."""
    names = ("broker1", "h1", "h2")
    return {name: testinfra.get_host(f"ansible://{name}", ansible_inventory=INVENTORY) for name in names}


@pytest.fixture(scope="session")
def rabbitmqctl(fleet: dict[str, Host]) -> Callable[..., Any]:
    """What rabbitmqctl lists on the broker, decoded."""

    def call(command: str) -> Any:
        return json.loads(fleet["broker1"].check_output(f"rabbitmqctl --quiet {command} --formatter json"))

    return call


@pytest.fixture(scope="session")
def cloud_image() -> Path:
    """A Debian with cloud-init (aetherscale_lab.cloud)."""
    return Path(os.environ["AETHERSCALE_CLOUD_IMAGE"])
