"""From a VM's spec to QEMU's arguments and the unit's limits. Pure."""

import functools
from collections.abc import Mapping, Sequence

from aetherscale_agent.hypervisor.config import VmPaths
from aetherscale_agent.ports import HypervisorError
from aetherscale_protocol.options import CreateVm

MIB = 1 << 20
USEC_PER_SEC = 1_000_000

TRANSLATION_CACHE = 32
"""MiB for TCG's translated code. QEMU's own default grows to 1 GiB, and then the VM's memory limit kills it."""

OVERHEAD = 256
"""MiB that a QEMU may need beside its guest's memory (measured: 78 with 128 MiB; the rest is room for busy disks)."""

OVERHEAD_SHARE = 64
"""And a 64th of the guest's memory, for page tables and KVM's own book-keeping."""

HELPER_CPU = 0.2
"""Cores beside the guest's own, so that disk and network threads don't take from the guest's share."""

ARGS_VARIABLE = "AETHERSCALE_QEMU_ARGS"

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def finalize_accelerator(accelerator: str) -> list[str]:
    """The arguments that choose `kvm` or `tcg`, and the processor that goes with it."""
    if accelerator == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", f"tcg,tb-size={TRANSLATION_CACHE}", "-cpu", "max"]


def finalize_argv(vm_id: str, spec: CreateVm, paths: VmPaths, accelerator: str, *, bridged: bool = False) -> list[str]:
    """QEMU's arguments for a VM. `bridged`: it has a tap, which `vm-net` made."""
    return [
        *("-name", f"{vm_id},debug-threads=on"),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none"),
        *("-sandbox", SANDBOX),
        *("-machine", "pc"),
        *finalize_accelerator(accelerator),
        *("-smp", str(spec.cpus)),
        *("-m", f"{spec.memory}M"),
        *("-smbios", f"type=1,serial={vm_id}"),
        *_monitor("agent", str(paths.agent_monitor)),
        *_monitor("stop", str(paths.stop_monitor)),
        *("-chardev", f"socket,id=console,path={paths.console_socket},server=on,wait=off,{_log_to(paths)}"),
        *("-serial", "chardev:console"),
        *("-blockdev", f"driver=file,node-name=file,filename={paths.disk},discard=unmap"),
        *("-blockdev", "driver=qcow2,node-name=disk,file=file,discard=unmap"),
        *("-device", "virtio-blk-pci,drive=disk"),
        *("-netdev", f"tap,id=net,ifname=vm-{vm_id},script=no,downscript=no" if bridged else "user,id=net"),
        *("-device", f"virtio-net-pci,netdev=net,romfile=,mac={finalize_mac(vm_id)}"),
        *("-device", "virtio-rng-pci"),
    ]


def finalize_seed(paths: VmPaths) -> list[str]:
    """The arguments that attach a VM's seed disc, which go behind all others.

    Behind: a PCI slot in the middle would rename the interfaces of guests that go by slots, and take `vda` from the
    disk. A disc on virtio-blk, and no CD-ROM: the kernels that distributions build for clouds have no ATA or SCSI,
    and cloud-init goes by the label of any block device.
    """
    return [
        *("-blockdev", f"driver=file,node-name=seed,filename={paths.seed},read-only=on"),
        *("-device", "virtio-blk-pci,drive=seed"),
    ]


def finalize_guest_agent(paths: VmPaths) -> list[str]:
    """The arguments that give the guest's agent its port, behind all others for the reason above.

    Source: QEMU, docs/interop/qemu-ga: the agent looks for a virtio port of this name.
    """
    return [
        *("-chardev", f"socket,id=guest-agent,path={paths.guest_agent},server=on,wait=off"),
        *("-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=guest-agent,name=org.qemu.guest_agent.0"),
    ]


def _log_to(paths: VmPaths) -> str:
    return f"logfile={paths.console},logappend=on"


def _monitor(name: str, path: str) -> list[str]:
    return ["-chardev", f"socket,id={name},path={path},server=on,wait=off", "-mon", f"chardev={name},mode=control"]


@functools.lru_cache(maxsize=1024)  # asked for each VM of every list, and once a second
def finalize_mac(vm_id: str) -> str:
    """A MAC address of the VM's own, in QEMU's range: the same at every start, so that guests keep their interface."""
    number = 0
    for letter in vm_id:
        number = (number * 26 + ord(letter) - ord("a")) % (1 << 24)
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in number.to_bytes(3, "big"))


def finalize_env(argv: Sequence[str]) -> str:
    """The unit's environment file with these arguments; systemd splits them at spaces again.

    :raise HypervisorError: when an argument has a character that systemd would take for its own.
    """
    for argument in argv:
        if not argument or set(argument) & set(" \t\r\n'\"\\$"):
            raise HypervisorError(f"QEMU's argument {argument!r} can't be passed to its unit")
    return f"{ARGS_VARIABLE}={' '.join(argv)}\n"


def finalize_limits(spec: CreateVm, accelerator: str) -> Mapping[str, int]:
    """The unit's limits, as properties of systemd: bytes, and microseconds of processor time per second."""
    overhead = OVERHEAD + spec.memory // OVERHEAD_SHARE + (TRANSLATION_CACHE if accelerator == "tcg" else 0)
    return {
        "MemoryMax": (spec.memory + overhead) * MIB,
        "CPUQuotaPerSecUSec": round((spec.cpus + HELPER_CPU) * USEC_PER_SEC),
    }
