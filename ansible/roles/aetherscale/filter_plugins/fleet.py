"""What Ansible takes from the protocol: names, and the rules that they obey."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

try:
    from aetherscale_protocol import names
except ImportError:
    names = None  # type: ignore[assignment]

OPERATOR_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
OPERATOR_RULE = (
    "an operator's name is 1 to 64 letters, digits, '.', '_' or '-', starts with a letter or digit, and is not guest"
)


def _names() -> Any:
    """The protocol's module of names.

    :raise AnsibleFilterError: when this Ansible runs outside of the environment that has aetherscale.
    """
    if names is None:
        raise AnsibleFilterError(
            "this Ansible can't import aetherscale_protocol; use the ansible-playbook of the environment that has "
            "aetherscale (pip install 'aetherscale[deploy]', or .venv/bin of a checkout after make)"
        )
    return names


def fleet_problems(groups: Mapping[str, Sequence[str]], operators: Sequence[str]) -> list[str]:
    """What is wrong with the inventory's groups and operators, one sentence each."""
    rules = _names()
    brokers, hosts = groups.get("broker", []), groups.get("compute", [])
    problems = []
    if len(brokers) != 1:
        problems.append(f"the inventory's group broker must hold one host, and holds {', '.join(brokers) or 'none'}")
    if not hosts:
        problems.append("the inventory's group compute holds no host")
    for host in hosts:
        if not rules.is_host_name(host):
            problems.append(f"compute host {host!r}: {rules.HOST_RULE}")
    if not operators:
        problems.append("aetherscale_operators names nobody")
    for operator in operators:
        if operator.startswith(rules.AGENT_USER_PREFIX):
            problems.append(
                f"operator {operator!r}: names beginning with {rules.AGENT_USER_PREFIX} are the agents' own"
            )
        elif operator == "guest" or not re.fullmatch(OPERATOR_PATTERN, operator):
            problems.append(f"operator {operator!r}: {OPERATOR_RULE}")
    if len(set(operators)) != len(operators):
        problems.append("aetherscale_operators names somebody twice")
    return problems


def broker_user(host: str) -> str:
    """The broker user of the agent on `host`."""
    user: str = _names().agent_user(host)
    return user


def url_host(address: str) -> str:
    """An address as a URL has it: one of IPv6 in brackets."""
    return f"[{address}]" if ":" in address and not address.startswith("[") else address


class FilterModule:
    """What Ansible asks a plugin for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {"fleet_problems": fleet_problems, "broker_user": broker_user, "url_host": url_host}
