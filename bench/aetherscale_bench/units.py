"""A VM's own unit, started by nobody but systemd; and a host at rest, so that no sample pays for the one before."""

from typing import Any

from aetherscale_bench.asking import Asker
from aetherscale_bench.fleet import Fleet
from aetherscale_bench.on_host import OnHost, Step

BUSY = """\
systemctl list-units --plain --no-legend --state=active,activating,deactivating 'aetherscale-vm@*' 'aetherscale-t*@*' |
    grep -q . || grep -qsx qemu-system-x86 /proc/[0-9]*/comm || ls -d /sys/class/net/vnet* >/dev/null 2>&1
"""
"""Whether a host has a VM, libvirt's, too, or what is left of one: tap and rules are removed by systemd 0.1 s later."""
REST = ("timeout", "60", "sh", "-c", f"while {BUSY.strip()}; do sleep 0.02; done")
"""Returns when it has nothing of the kind."""

UNFILTERED = """\
[Service]
SystemCallFilter=
"""
"""A drop-in that takes the filter of system calls out of a VM's sandbox."""
UNHIDDEN = """\
[Service]
TemporaryFileSystem=
BindPaths=
BindReadOnlyPaths=
InaccessiblePaths=
PrivateDevices=no
PrivateIPC=no
ProtectProc=default
ProcSubset=all
ProtectControlGroups=no
ProtectHostname=no
ProtectKernelLogs=no
ProtectKernelModules=no
ProtectKernelTunables=no
ReadWritePaths=/run/aetherscale /var/lib/aetherscale
CapabilityBoundingSet=CAP_DAC_OVERRIDE
AmbientCapabilities=CAP_DAC_OVERRIDE
"""
"""One that takes the view of the file system out of it, but for what `DynamicUser=` brings, and passes its walls."""


def vary(fleet: Fleet, host: str, vm_id: str, drop_in: str) -> None:
    """Give the unit of a VM a drop-in, or with an empty one take it away again."""
    script = 'rm -rf "$1"; test -z "$2" || { mkdir "$1"; printf %s "$2" >"$1/bench.conf"; }; systemctl daemon-reload'
    fleet.run(host, "sh", "-ec", script, "sh", f"/run/systemd/system/aetherscale-vm@{vm_id}.service.d", drop_in)


def monitor(vm_id: str, name: str = "qmp") -> str:
    """A monitor's socket of a VM."""
    return f"/run/aetherscale/vms/{vm_id}/{name}.sock"


def start(host: OnHost, vm_id: str, *before: Step) -> float:
    """Start the unit of a VM that is off, after these steps; ms until its QEMU runs the guest."""
    host.do(["run", "rm", "-f", monitor(vm_id), monitor(vm_id, "stop")])
    return host.ms(*before, ["start", f"aetherscale-vm@{vm_id}.service"], ["running", monitor(vm_id)])


def kill(host: OnHost, client: Asker, vm_id: str) -> None:
    """Pull the plug, and wait until systemd has tidied up."""
    expect(client, "stop-vm", vm_id, "stopped", kill=True)
    rest(host)


def rest(host: OnHost) -> None:
    """Wait until the host is at rest."""
    host.do(["run", *REST])


def expect(client: Asker, command: str, vm_id: str, status: str, **options: Any) -> None:
    """Ask, and see that it was done.

    :raise RuntimeError: when it was not.
    """
    (answer,) = client.ask_vm(command, vm_id, **options).answers
    if f'"status":"{status}"'.encode() not in bytes(answer.response):
        raise RuntimeError(f"{command} {vm_id}: {answer}")
