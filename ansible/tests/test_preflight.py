"""Machines that were not tried are refused: the preflight's own conditions, rendered as Ansible does."""

from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROLE = Path(__file__).resolve().parents[1] / "roles/aetherscale"

TRIED = {
    "distribution": "Debian",
    "distribution_major_version": "12",
    "architecture": "x86_64",
    "python_version": "3.11.2",
}


def is_accepted(facts: dict[str, str]) -> bool:
    from ansible.plugins.filter.core import regex_search

    tasks = yaml.safe_load((ROLE / "tasks/preflight.yml").read_text())
    (conditions,) = [
        t["ansible.builtin.assert"]["that"] for t in tasks if t["name"].startswith("Check that such a mach")
    ]
    variables: dict[str, Any] = yaml.safe_load((ROLE / "vars/main.yml").read_text())
    environment = jinja2.Environment(autoescape=False)  # no HTML
    environment.filters["regex_search"] = regex_search
    return all(environment.compile_expression(c)(ansible_facts=facts, **variables) for c in conditions)


@pytest.mark.parametrize("change", [{}, {"distribution_major_version": "13", "python_version": "3.13.5"}])
def test_what_was_tried_is_accepted(change: dict[str, str]) -> None:
    assert is_accepted(TRIED | change)


@pytest.mark.parametrize(
    "change",
    [
        {"distribution": "Ubuntu", "distribution_major_version": "24"},
        {"distribution": "Ubuntu", "distribution_major_version": "12"},
        {"distribution_major_version": "11"},
        {"distribution_major_version": "14"},
        {"architecture": "aarch64"},
        {"python_version": "3.12.1"},
        {"python_version": "3.1"},
    ],
)
def test_what_was_not_tried_is_refused(change: dict[str, str]) -> None:
    assert not is_accepted(TRIED | change)
