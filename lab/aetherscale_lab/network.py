"""The lab's bridge and the ways to disturb it."""

import json
from typing import Any

from aetherscale_lab import model
from aetherscale_lab.errors import LabError
from aetherscale_lab.shell import run_command, succeeds

_PREFIX_LENGTH = 24


def _ip_json(*arguments: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = json.loads(run_command(["ip", "-j", *arguments]) or "[]")
    return answer


def networks_in_use() -> list[str]:
    """Networks this machine has an address in or a route to, in CIDR form; the default route excepted."""
    addresses = [
        f"{info['local']}/{info['prefixlen']}"
        for link in _ip_json("-4", "addr")
        for info in link.get("addr_info", [])
        if "local" in info
    ]
    routes = [route["dst"] for route in _ip_json("-4", "route") if route["dst"] != "default"]
    return addresses + [route if "/" in route else f"{route}/32" for route in routes]


def make_bridge(plan: model.LabPlan) -> None:
    """Make the lab's bridge with its address, unless it is there."""
    bridge = plan.bridge
    if not link_exists(bridge):
        run_command(["ip", "link", "add", bridge, "address", model.bridge_mac(plan.name), "type", "bridge"])
    run_command(["ip", "addr", "replace", f"{plan.controller}/{_PREFIX_LENGTH}", "dev", bridge])
    run_command(["ip", "link", "set", bridge, "up"])


def remove_bridge(bridge: str) -> None:
    """Remove a bridge, and ports that a killed host left on it."""
    if not link_exists(bridge):
        return
    for port in _ip_json("link", "show", "master", bridge):
        succeeds(["ip", "link", "del", str(port["ifname"])])
    run_command(["ip", "link", "del", bridge])


def link_exists(name: str) -> bool:
    return succeeds(["ip", "link", "show", "dev", name])


def find_port(lab: str, host: str) -> str | None:
    """Real name of the bridge's port to a host; None while the host is off.

    systemd-nspawn shortens names over 15 characters and keeps the long one as an alternative name.
    """
    name = model.port_name(lab, host)
    if not link_exists(name):
        return None
    return str(_ip_json("link", "show", "dev", name)[0]["ifname"])


def set_port_down(lab: str, host: str) -> None:
    """Pull the plug: peers of the host hear nothing from now on, not even that it is gone."""
    if port := find_port(lab, host):
        run_command(["ip", "link", "set", port, "down"])


def cut_rules(table: str, port: str) -> str:
    """nftables input that drops every frame to and from a bridge port, in silence."""
    chains = (
        ("forward", f'iifname "{port}" drop\n    oifname "{port}" drop'),
        ("input", f'iifname "{port}" drop'),
        ("output", f'oifname "{port}" drop'),
    )
    lines = [f"table bridge {table} {{"]
    for hook, rules in chains:
        lines += [f"  chain {hook} {{", f"    type filter hook {hook} priority 0;", f"    {rules}", "  }"]
    return "\n".join([*lines, "}", ""])


def cut(lab: str, host: str) -> None:
    """Drop all traffic of a host; its links stay up and nobody is told. Lasts over reboots until healed.

    :raise LabError: when the host is off.
    """
    port = find_port(lab, host)
    if port is None:
        raise LabError(f"host {host} is off, there is no link to cut", f"power it on first: power-on {host}")
    heal(lab, host)
    run_command(["nft", "-f", "-"], stdin=cut_rules(model.cut_table(lab, host), port))


def heal(lab: str, host: str) -> None:
    """Undo `cut`; nothing happens if the host is not cut off."""
    succeeds(["nft", "delete", "table", "bridge", model.cut_table(lab, host)])


def is_cut(lab: str, host: str) -> bool:
    return succeeds(["nft", "list", "table", "bridge", model.cut_table(lab, host)])
