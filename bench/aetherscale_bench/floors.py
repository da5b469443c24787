"""What create-vm is measured beside, laid out on a host: the same guest, so many times, in plain units and for libvirt.

The floor is what nobody can leave out: `qemu-img create`, systemd starting the very QEMU that the agent starts (in a
plain unit, with a tap that is there already), and that QEMU's greeting. A higher one is the same until the guest runs.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aetherscale_bench import peers, units
from aetherscale_bench.fleet import Fleet
from aetherscale_bench.on_host import Chain, OnHost, Step

BRIDGE = "aetherscale0"
FOLDER = "/var/lib/bench"
UNIT_FILE = """\
[Service]
Type=exec
KillSignal=SIGKILL
SuccessExitStatus=SIGKILL
ExecStart=/usr/bin/qemu-system-x86_64 {argv}
"""
LAY_OUT = """\
for number in $(seq 0 $(($2 - 1))); do
    mkdir -p {folder}/$number
    cp /var/lib/aetherscale/vms/$1/seed.iso {folder}/$number/
    printf %s "$4" | sed "s/@/$number/" >{folder}/$number/peer.xml
    ip tuntap add bench$number mode tap
    ip link set bench$number master {bridge} up
done
printf %s "$3" >/run/systemd/system/bench-floor@.service
systemctl daemon-reload
"""
CLEAR = """\
systemctl stop 'bench-floor@*'
for disk in {images}/peer*.qcow2; do
    test ! -e "$disk" || virsh -q destroy "$(basename "$disk" .qcow2)"
done
rm -f {folder}/*/*.sock {folder}/*/*.qcow2 {folder}/*/*.log {images}/peer*
"""
REMOVE = """\
for tap in /sys/class/net/bench*; do ip link del "${{tap##*/}}"; done
rm -r {folder} /run/systemd/system/bench-floor@.service
systemctl daemon-reload
"""


@dataclass(frozen=True)
class Floors:
    """What makes the guest of a number on a host: steps, and what removes all that they have made."""

    host: OnHost
    base: str  #: the image's file on the host

    def overlay(self, disk: str) -> Step:
        """The same overlay as the agent's."""
        kind = self.base.rpartition(".")[2]
        return ["run", "qemu-img", "create", "-q", "-f", "qcow2", "-b", self.base, "-F", kind, disk, "1G"]

    def started(self, number: int) -> Chain:
        """QEMU in a plain unit."""
        return [self.overlay(f"{FOLDER}/{number}/disk.qcow2"), ["start", f"bench-floor@{number}.service"]]

    def greets(self, number: int) -> Chain:
        """The floor."""
        return [*self.started(number), ["greet", f"{FOLDER}/{number}/qmp.sock"]]

    def runs(self, number: int) -> Chain:
        """The floor, and what QEMU has to do after its greeting."""
        return [*self.started(number), ["running", f"{FOLDER}/{number}/qmp.sock"]]

    def virsh(self, number: int) -> Chain:
        """libvirt's own."""
        return [self.overlay(peers.disk(number)), ["run", "virsh", "-q", "create", f"{FOLDER}/{number}/peer.xml"]]

    def virt_install(self, number: int) -> Chain:
        """The usual way to a guest of libvirt's; it makes the overlay itself."""
        return [["run", *peers.virt_install(number, self.base, BRIDGE)]]

    def clear(self) -> None:
        """Stop them all, remove what they had, and wait until libvirt's taps are gone, too."""
        self.host.do(["run", "sh", "-ec", CLEAR.format(folder=FOLDER, images=peers.IMAGES)])
        units.rest(self.host)


@contextmanager
def laid_out(fleet: Fleet, name: str, count: int) -> Iterator[None]:
    """Units, taps and domains for so many guests at once on a host that has libvirt."""
    vm_id = fleet.create("--host", name)
    argv = fleet.run(name, "cat", f"/run/aetherscale/args/{vm_id}.env").strip().partition("=")[2].strip('"')
    argv = argv.replace(f"ifname=vm-{vm_id}", "ifname=bench%i")
    argv = re.sub(rf"/(?:run|var/lib)/aetherscale/vms/{vm_id}", f"{FOLDER}/%i", argv)
    domain = peers.DOMAIN.format(name="peer@", disk=peers.disk("@"), bridge=BRIDGE)
    script = LAY_OUT.format(folder=FOLDER, bridge=BRIDGE)
    fleet.run(name, "sh", "-ec", script, "sh", vm_id, str(count), UNIT_FILE.format(argv=argv), domain)
    fleet.cli("delete-vm", vm_id)
    try:
        yield
    finally:
        fleet.run(name, "sh", "-ec", REMOVE.format(folder=FOLDER))


def image(fleet: Fleet, host: str, name: str) -> str:
    """An image's file on a host."""
    folder = "/var/lib/aetherscale/images"
    return f"{folder}/{json.loads(fleet.run(host, 'cat', f'{folder}/{name}.json'))['file']}"


def devices(fleet: Fleet, host: str) -> peers.Devices:
    """Those of the only QEMU on a host."""
    script = 'cat "$(dirname "$(grep -lsx qemu-system-x86 /proc/[0-9]*/comm)")/cmdline"'
    return peers.devices(fleet.run(host, "sh", "-c", script).split("\0"))
