"""The forms of data: JSON as it is, the same as YAML, or one name a line. Pure."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from aetherscale_cli import text
from aetherscale_cli.report import Outcome


def convert(outcome: Outcome, output: str | None, names: Mapping[str, str] | None = None) -> Outcome:
    """An outcome whose stdout is JSON, in the form that is wanted. `names`: of VMs, by their ids, as far as known."""
    if output == "yaml" and outcome.stdout:
        outcome.stdout = to_yaml(json.loads(outcome.stdout))
    elif output == "name" and outcome.stdout:
        found = dict.fromkeys(_names(json.loads(outcome.stdout), names or {}))
        outcome.stdout = "".join(f"{text.safe(name)}\n" for name in found)
    return outcome


def to_yaml(data: Any) -> str:
    """The data as YAML, in the order it has."""
    import yaml

    shown: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=False, width=120)
    return shown


def _names(answers: Any, known: Mapping[str, str]) -> Iterator[str]:
    """What each answer speaks of: a VM's name, or its id if it has none; a host; an image; a snapshot."""
    for answer in answers if isinstance(answers, list) else []:
        if not isinstance(answer, dict):
            continue
        if "execution-info" not in answer:
            yield from _name(answer, known)
        elif answer.get("execution-info", {}).get("status") == "success":
            listed = answer.get("details") or answer.get("response")
            for one in listed if isinstance(listed, list) else [listed]:
                yield from _name(one, known)


_SPEAKING = ("snapshot", "vm", "name", "vm-id", "image", "host", "subject")
"""What a row may be named by, the best first. (A row with an image of its own is a VM, which has an id.)"""


def _name(row: Any, known: Mapping[str, str]) -> Iterator[str]:
    if isinstance(row, str):
        yield row.removeprefix("vm-")
    elif isinstance(row, dict):
        vm_id = row.get("vm-id")
        found = known.get(vm_id) if isinstance(vm_id, str) and "snapshot" not in row else None
        found = found or next((row[key] for key in _SPEAKING if row.get(key)), None)
        if isinstance(found, str):
            yield found
