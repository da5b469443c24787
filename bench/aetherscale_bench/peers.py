"""libvirt and virt-install, the peers of create-vm, on a host of the lab.

Their packages are downloaded by `--prepare`, outside of the lab's namespaces, which have no way out.
"""

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from aetherscale_bench.fleet import Fleet
from aetherscale_lab import roots
from aetherscale_lab.debian import AptState, find_sources
from aetherscale_lab.shell import run_command

PACKAGES = ["libvirt-daemon-system", "libvirt-clients", "virtinst"]
FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "bench" / "peers"
IMAGES = "/var/lib/libvirt/images"

# Without a security driver and without cgroups of its own: the lab's hosts have neither AppArmor nor all controllers,
# and it is the quicker for it.
CONF = 'security_driver = "none"\ncgroup_controllers = []\nremember_owner = 0\nuser = "root"\ngroup = "root"\n'

DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>128</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='{disk}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'><source bridge='{bridge}'/><model type='virtio'/></interface>
    <serial type='pty'/>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""

Devices = Counter[str]
NONE = Devices()
SEED = Devices({"virtio-blk-pci": 1})
"""What the agent's guests have and libvirt's need not: a seed disc. There is no other difference."""


def disk(number: int | str) -> str:
    """The disk of a guest of libvirt's."""
    return f"{IMAGES}/peer{number}.qcow2"


def virt_install(number: int, base: str, bridge: str) -> list[str]:
    """The command that makes the guest of `DOMAIN`, with its disk."""
    backing = f"backing_store={base},backing_format={base.rpartition('.')[2]}"
    return [
        *("virt-install", "--name", f"peer{number}", "--memory", "128", "--vcpus", "1"),
        *("--machine", "pc", "--virt-type", "qemu", "--cpu", "mode=maximum"),
        *("--disk", f"path={disk(number)},size=1,{backing},bus=virtio,driver.discard=unmap"),
        *("--network", f"bridge={bridge},model=virtio"),
        *("--serial", "pty", "--channel", "unix,target.type=virtio,target.name=org.qemu.guest_agent.0"),
        *("--rng", "/dev/urandom", "--controller", "usb,model=none", "--memballoon", "none", "--graphics", "none"),
        *("--import", "--transient", "--noautoconsole", "--osinfo", "detect=off,require=off", "--quiet"),
    ]


def devices(argv: Sequence[str]) -> Devices:
    """The devices that a QEMU was given, beside those that its machine always has."""
    given = [value for option, value in pairwise(argv) if option == "-device"]
    models = [json.loads(one)["driver"] if one.startswith("{") else one.partition(",")[0] for one in given]
    return Devices([*models, *("isa-serial" for option in argv if option == "-serial")])


def prepare() -> None:
    """Download the packages, with all they need."""
    for suite in ("bookworm", "trixie"):
        folder = FOLDER / suite
        if any(folder.glob("*.deb")):
            continue
        root = roots.prepare_suite(suite) / "root"
        apt = AptState(folder / "apt", find_sources(suite), root / "var/lib/dpkg/status")
        apt.update()
        for package in apt.download_closure(PACKAGES):
            package.rename(folder / package.name)
        run_command(["sh", "-c", 'cd "$1" && dpkg-scanpackages --multiversion . >Packages', "sh", str(folder)])


def install(fleet: Fleet, host: str) -> None:
    """Install them on a host, and start libvirt's daemon."""
    archive = ["tar", "-C", str(FOLDER / fleet.lab.plan.host(host).suite), "--exclude=./apt", "-cf", "-", "."]
    unpack = fleet.lab.ssh_command(host, ["sh", "-c", "mkdir -p /srv/peers && tar -C /srv/peers -xf -"])
    with subprocess.Popen(archive, stdout=subprocess.PIPE) as tar:
        subprocess.run(unpack, stdin=tar.stdout, check=True)
    lines = (
        "echo 'deb [trusted=yes] file:/srv/peers ./' >/etc/apt/sources.list.d/peers.list",
        "apt-get -qq update",
        "export DEBIAN_FRONTEND=noninteractive",
        f"apt-get -qq -y --no-install-recommends install {' '.join(PACKAGES)} >/dev/null",
        "rm -r /srv/peers /etc/apt/sources.list.d/peers.list",
        'printf %s "$1" >>/etc/libvirt/qemu.conf',
        "systemctl restart virtlogd.service libvirtd.service",
        "virsh -q version >/dev/null",
    )
    fleet.run(host, "sh", "-ec", "\n".join(lines), "sh", CONF)
