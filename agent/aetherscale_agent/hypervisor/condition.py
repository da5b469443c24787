"""What the host finds when it looks at itself, as far as the agent's user can see it. The firewall's rules it can't."""

import fcntl
import ipaddress
import os
import re
import socket
import struct
from pathlib import Path

from aetherscale_agent.config import NetworkSettings
from aetherscale_agent.hypervisor.config import Layout
from aetherscale_agent.hypervisor.probe import Finding
from aetherscale_agent.hypervisor.units import Units
from aetherscale_agent.ports import Condition
from aetherscale_protocol.answers import BridgeState

DEVICES = Path("/sys/class/net")
CPUINFO = Path("/proc/cpuinfo")

NETWORK_UNIT, DHCP_UNIT = "aetherscale-network.service", "aetherscale-dhcp.service"

IFF_UP = 1
SIOCGIFADDR = 0x8915
IFREQ = "40s"
"""A struct ifreq: the name in 16 bytes, and a sockaddr_in, whose address begins 4 bytes further on."""


async def look(found: Finding, settings: NetworkSettings, layout: Layout, units: Units) -> Condition:
    """What is to be seen now; `found`: what the probe for KVM found.

    :raise HypervisorError: when systemd can't be asked.
    :raise OSError: when the disk can't be looked at.
    """
    disk = os.statvfs(layout.homes)
    services = expected_services(settings)
    return Condition(
        accelerator_chosen=not found.key,
        accelerator_reason=found.reason,
        virtualization=offers_virtualization(),
        bridge=settings.bridge,
        bridge_state=find_bridge_state(settings),
        services=await units.states_of(services) if services else {},
        disk_size=disk.f_blocks * disk.f_frsize,
        disk_free=disk.f_bavail * disk.f_frsize,
    )


def expected_services(settings: NetworkSettings) -> list[str]:
    """The units that should be active on a host with such a network."""
    if not settings.bridge:
        return []
    return [NETWORK_UNIT, DHCP_UNIT] if settings.network else [NETWORK_UNIT]


def offers_virtualization(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the CPU offers hardware virtualization to this system."""
    return re.search(r"^flags\s*:.*\b(vmx|svm)\b", cpuinfo.read_text(), re.MULTILINE) is not None


def find_bridge_state(settings: NetworkSettings, devices: Path = DEVICES) -> BridgeState:
    """What the VMs' bridge is like. One without VMs has no carrier, and is none the worse for that."""
    if not settings.bridge:
        return "up"
    try:
        flags = int((devices / settings.bridge / "flags").read_text(), 16)
    except OSError:
        return "absent"
    if not flags & IFF_UP:
        return "down"
    wanted = str(ipaddress.IPv4Network(settings.network)[1]) if settings.network else None
    return "up" if wanted in (None, find_address(settings.bridge)) else "no-address"


def find_address(device: str) -> str | None:
    """The IPv4 address of a network device, if it has one. Source: netdevice(7), SIOCGIFADDR."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            told = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack(IFREQ, device.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(told[20:24])
