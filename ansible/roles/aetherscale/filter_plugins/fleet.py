"""What Ansible takes from the protocol: names, and the rules that they obey."""

import ipaddress
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

try:
    from aetherscale_protocol import names
except ImportError:
    names = None  # type: ignore[assignment]

OPERATOR_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
RESERVED = ("guest", "tls")  # the secrets' folder holds a file per user, and one folder, tls
OPERATOR_RULE = (
    "an operator's name is 1 to 64 letters, digits, '.', '_' or '-', starts with a letter or digit, "
    "and is neither guest nor tls"
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
        elif operator in RESERVED or not re.fullmatch(OPERATOR_PATTERN, operator):
            problems.append(f"operator {operator!r}: {OPERATOR_RULE}")
    if len(set(operators)) != len(operators):
        problems.append("aetherscale_operators names somebody twice")
    return problems


OperatorLabels = Mapping[str, Mapping[str, str]]


def operator_problems(operators: Sequence[str], readonly: Sequence[str], labels: OperatorLabels) -> list[str]:
    """What is wrong with what operators may do, one sentence each."""
    rules, problems = _names(), []
    for variable, named in (("readonly_operators", readonly), ("operator_labels", labels)):
        strangers = [operator for operator in named if operator not in operators]
        problems += [f"aetherscale_{variable}: {who!r} is not in aetherscale_operators" for who in strangers]
    for operator, wanted in labels.items():
        if not isinstance(wanted, Mapping) or not wanted:
            problems.append(f"aetherscale_operator_labels of {operator!r} must be labels, as {{team: a}}")
            continue
        for key, value in wanted.items():
            if not isinstance(value, str) or not rules.is_label(key, value):
                problems.append(f"aetherscale_operator_labels of {operator!r}, {key}={value}: {rules.LABEL_RULE}")
    return problems


def operators_toml(operators: Sequence[str], readonly: Sequence[str], labels: OperatorLabels) -> str:
    """The table `[operators]` of an agent's configuration: each by name, with nothing but what he may not do."""
    lines = ["[operators]"]
    for operator in sorted(operators):
        limits = ["readonly = true"] if operator in readonly else []
        wanted = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in sorted(labels.get(operator, {}).items())]
        limits += [f"labels = {{ {', '.join(wanted)} }}"] if wanted else []
        lines.append(f"{json.dumps(operator)} = {{ {', '.join(limits)} }}")
    return "\n".join(lines)


def network_problems(network: str, bridge: str) -> list[str]:
    """What is wrong with the VMs' network, one sentence each."""
    problems = []
    if bridge and not re.fullmatch(r"[A-Za-z0-9._-]{1,15}", bridge):
        problems.append(f"aetherscale_bridge {bridge!r}: a bridge's name is 1 to 15 letters, digits, '.', '_' or '-'")
    try:
        if ipaddress.IPv4Network(network).prefixlen > 29:
            problems.append(f"aetherscale_network {network}: give it room for a few VMs, /29 at least")
    except ValueError as error:
        problems.append(f"aetherscale_network {network!r}: {error}")
    return problems


def network_address(network: str) -> str:
    """The first address of a network."""
    return str(ipaddress.IPv4Network(network).network_address)


def network_mask(network: str) -> str:
    """A network's mask, as 255.255.252.0."""
    return str(ipaddress.IPv4Network(network).netmask)


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
        filters = (
            fleet_problems,
            operator_problems,
            operators_toml,
            network_problems,
            network_address,
            network_mask,
            broker_user,
            url_host,
        )
        return {one.__name__: one for one in filters}
