"""The VMs' network, as the agent sees it: each VM's address, and what `vm-net` is told of it.

The agent chooses addresses and writes down what a VM wants; root's `vm-net`, which the unit of the VM's tap runs, makes
it so and believes none of it. An address lies in the VM's home, so it stays for as long as the VM does.
"""

import hashlib
import ipaddress
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from aetherscale_agent.config import NetworkSettings
from aetherscale_agent.hypervisor import files
from aetherscale_agent.hypervisor.config import Layout
from aetherscale_agent.ports import HypervisorError, Nic
from aetherscale_protocol.answers import AddressSource
from aetherscale_protocol.options import CreateVm

_log = logging.getLogger(__name__)

LEASE_S = 300
"""As dnsmasq's configuration has it: so long it gives an address to nobody but who had it last. Seconds."""
LISTENING = "0A"
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


class Network:
    """The network of one host's VMs."""

    def __init__(self, settings: NetworkSettings, layout: Layout) -> None:
        self._settings = settings
        self._layout = layout
        self._addresses: dict[str, str] = {}
        self._freed: dict[str, float] = {}  #: addresses that a lease may still hold, and since when

    @property
    def source(self) -> AddressSource:
        """How the addresses of VMs that start now become known: on an operator's own bridge only guests know them."""
        if self._settings.network:
            return "host"
        return "guest-agent" if self.bridged else "none"

    @property
    def bridged(self) -> bool:
        """Whether VMs are on a bridge; else each is behind a network of its QEMU's own."""
        return bool(self._settings.bridge)

    def load(self) -> None:
        """Read the addresses that VMs have. What can't be read, or is none, is passed over: its VM is given another."""
        for path in self._layout.homes.glob("*/address"):
            try:
                self._addresses[path.parent.name] = str(ipaddress.IPv4Address(path.read_bytes().decode().strip()))
            except (OSError, ValueError) as error:
                _log.warning(
                    "VM %s: its address can't be read, and it will be given another: %s", path.parent.name, error
                )

    def take(self, vm_id: str) -> None:
        """Give a VM an address, unless it has one of this network: at its making, and at the start of one that was made
        before there was such a network.

        :raise HypervisorError: when none is left.
        """
        network = self._settings.network
        if not network:
            self._drop(vm_id)
        if not network or _is_in(self._addresses.get(vm_id, ""), network):
            return
        lately = [address for address, since in self._freed.items() if time.monotonic() - since < LEASE_S]
        try:
            address = find_address(vm_id, network, [*self._addresses.values(), *lately])
        except HypervisorError:
            address = find_address(vm_id, network, self._addresses.values())
        files.write_whole(self._layout.vm(vm_id).address, f"{address}\n".encode())
        self._addresses[vm_id] = address

    def _drop(self, vm_id: str) -> None:
        """Of a network that was aetherscale's own before."""
        if self._addresses.pop(vm_id, None) is not None:
            self._layout.vm(vm_id).address.unlink(missing_ok=True)

    def release(self, vm_id: str) -> None:
        """A VM is gone, and its home with it."""
        address = self._addresses.pop(vm_id, None)
        if address is not None:
            self._freed[address] = time.monotonic()

    def nic(self, vm_id: str, mac: str) -> Nic:
        """A VM's network interface, without what its guest says. One that this host gave an address has no other."""
        address = self._addresses.get(vm_id)
        return Nic(mac, (address,), "host") if address else Nic(mac, (), self.source)

    def finalize_wanted(self, vm_id: str, spec: CreateVm, mac: str) -> str | None:
        """What `vm-net` is told of a VM; None if there is nothing for it to do."""
        if not self.bridged:
            return None
        published = " ".join(f"{port.host_port}:{port.guest_port}" for port in spec.publish)
        lines = {
            "mac": mac,
            "address": self._addresses.get(vm_id, ""),
            "name": spec.name or vm_id,
            "published": published,
        }
        return "".join(f"{key} {value}\n" for key, value in lines.items())

    def port_conflict(self, spec: CreateVm) -> str:
        """Why the ports of this VM can't be published on this host; '' if they can, or there are none."""
        if not spec.publish:
            return ""
        if not self._settings.network:
            return "ports can only be published where the VMs' network is aetherscale's own"
        used = find_listening(TABLES)
        taken = [port.host_port for port in spec.publish if port.host_port in used]
        return f"port {taken[0]} is in use on this host" if taken else ""


def _is_in(address: str, network: str) -> bool:
    return bool(address) and ipaddress.IPv4Address(address) in ipaddress.IPv4Network(network)


def find_address(vm_id: str, network: str, taken: Iterable[str]) -> str:
    """An address for a VM: the one that its id says, or the next that is free. The first is the host's.

    :raise HypervisorError: when none is left.
    """
    cidr = ipaddress.IPv4Network(network)
    first, count = 2, cidr.num_addresses - 3
    start = int.from_bytes(hashlib.sha256(vm_id.encode()).digest()[:8], "big") % count
    others = set(taken)
    for offset in range(count):
        address = str(cidr[first + (start + offset) % count])
        if address not in others:
            return address
    raise HypervisorError(f"no address is left in {network}")


def find_listening(tables: Iterable[Path]) -> set[int]:
    """The TCP ports on which this host listens. Source: proc(5), /proc/net/tcp."""
    ports = set()
    for table in tables:
        if table.exists():
            rows = [row.split() for row in table.read_text().splitlines()[1:]]
            ports |= {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == LISTENING}
    return ports
