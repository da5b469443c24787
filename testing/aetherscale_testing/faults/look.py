"""Run on a host as root, by the lab's collector: all that it has of VMs, as JSON. Needs Python alone, asks no agent."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STATE, RUN = Path("/var/lib/aetherscale"), Path("/run/aetherscale")
CONTROL = Path("/run/systemd/system.control")
UNIT = re.compile(r"aetherscale-vm@(.+)\.service")
TAP = re.compile(r"aetherscale-tap@(.+)\.service")
VM_ID = re.compile(r"[a-z]{8}")
RECORD = re.compile(VM_ID.pattern + r"\.json")
OF_THE_HOST = "this-host.json"  # what the journal has of the host itself, beside its VMs
NETWORK = Path("/run/aetherscale-network")
CONFIG = Path("/etc/aetherscale/network.conf")
OF_A_VM = {"disk.qcow2", "console.log", "console.log.1", "seed.iso", "address", "network.conf"}
LINKS = {"lo", "host0", "aetherscale0"}
ALL_LINKS = Path("/sys/class/net")


def journal() -> dict[str, Any]:
    """Every VM's record, as its file has it."""
    records = (path for path in entries(STATE / "journal") if RECORD.fullmatch(path.name))
    return {path.stem: json.loads(path.read_text()) for path in records}


def strays_of_journal() -> Iterator[str]:
    """What the journal's folder has beside the records of VMs and of the host: drafts, most likely."""
    for path in entries(STATE / "journal"):
        if path.name != OF_THE_HOST and not RECORD.fullmatch(path.name):
            yield str(path)


def entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing if there is none."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def units(name: re.Pattern[str] = UNIT) -> dict[str, str]:
    """The state of each unit of a VM (or of its tap) that systemd knows, by the VM's id."""
    listing = ["systemctl", "list-units", "--all", "--output=json", "aetherscale-*"]
    rows = json.loads(subprocess.run(listing, capture_output=True, text=True, check=True).stdout)
    found = ((name.fullmatch(row["unit"]), row["active"]) for row in rows)
    return {match[1]: state for match, state in found if match}


def at_work(name: re.Pattern[str]) -> set[str]:
    """VMs of which such a unit does anything. A dead one can stay loaded: a VM's unit that failed wants its tap's."""
    return {vm_id for vm_id, state in units(name).items() if state not in ("inactive", "failed")}


def drop_ins() -> set[str]:
    """VMs for which limits are set."""
    return {match[1] for path in entries(CONTROL) if (match := UNIT.fullmatch(path.name.removesuffix(".d")))}


def processes() -> list[str]:
    """The name that each QEMU was given."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if b"qemu-system" in argv[0] and b"-name" in argv:
            found.append(argv[argv.index(b"-name") + 1].decode().split(",")[0])
    return sorted(found)


def runtime() -> set[str]:
    """VMs of which anything is under /run."""
    return {path.name for path in entries(RUN / "vms")} | {path.stem for path in entries(RUN / "args")}


def guarded() -> dict[str, set[str]]:
    """VMs that the firewall knows, by the set or chain that names them."""
    listing = ["nft", "list", "table", "bridge", "aetherscale"]
    return parse_rules(subprocess.run(listing, capture_output=True, text=True, check=False).stdout)


def parse_rules(text: str) -> dict[str, set[str]]:
    """The same, from how nft lists the table."""
    parts = re.findall(r"^\t(?:set|chain) (\w+) \{\n(.*?)^\t\}", text, re.MULTILINE | re.DOTALL)
    return {name: set(re.findall(r'"vm-([a-z]{8})"', part)) for name, part in parts}


def plugged_in(bridge: str) -> set[str]:
    """VMs whose tap is up, held by a QEMU, and on the bridge that the VMs' network is."""
    return {path.name.removeprefix("vm-") for path in ALL_LINKS.glob("vm-*") if is_plugged_in(path, bridge)}


def is_plugged_in(link: Path, bridge: str) -> bool:
    """Whether a tap has a bridge at one end, and a carrier, which is QEMU at the other."""
    try:
        return (link / "master").readlink().name == bridge and (link / "carrier").read_text() == "1\n"
    except OSError:  # it has no master, is down, or went meanwhile
        return False


def connected() -> set[str]:
    """VMs that have all of their network: a tap that is up on the bridge, every rule, and, on the bridge that is our
    own, an address that the DHCP server knows.
    """
    config = {key: value for key, _, value in (line.partition(" ") for line in CONFIG.read_text().splitlines())}
    own = config["own"] == "yes"
    rules, files = guarded(), ("vms", "reservations") if own else ("vms",)
    known = [rules.get(part, set()) for part in ("macs", "addresses", "dhcp")[: 3 if own else 1]]
    kept = [{path.stem for path in entries(NETWORK / folder)} for folder in files]
    return plugged_in(config["bridge"]).intersection(*known, *kept)


def strays(on: set[str]) -> Iterator[str]:
    """What no agent should leave: drafts, broken records, files that no VM has, links that nobody made, and of the
    network of VMs that are not on: taps, reservations, addresses in the firewall.
    """
    yield from strays_of_journal()
    for home in entries(STATE / "vms"):
        yield from (str(path) for path in entries(home) if path.name not in OF_A_VM)
    for folder in (STATE, RUN, RUN / "args", STATE / "images"):
        yield from (str(path) for path in entries(folder) if path.name.startswith(".") or path.suffix == ".new")
    taps = {f"vm-{vm_id}" for vm_id in on}
    yield from (f"link {name}" for name in os.listdir(ALL_LINKS) if name not in LINKS | taps)
    for folder in (NETWORK / "vms", NETWORK / "reservations"):
        yield from (str(path) for path in entries(folder) if path.stem not in on)
    yield from (f"rule for vm-{vm_id}" for vm_id in sorted(set().union(*guarded().values()) - on))


def settle() -> None:
    """Wait for the units of taps whose VMs have come to rest: systemd stops them a moment later, and they tidy up."""
    for _ in range(100):
        if at_work(TAP) <= at_work(UNIT):
            return
        time.sleep(0.05)


def look() -> dict[str, Any]:
    """All of it."""
    settle()
    states, limited = units(), drop_ins()
    on = {vm_id for vm_id, state in states.items() if state in ("active", "activating", "deactivating")}
    return {
        "journal": journal(),
        "disks": [path.name for path in entries(STATE / "vms")],
        "running": sorted(on),
        "units": sorted({vm_id for vm_id, state in states.items() if state != "inactive"} | limited),
        "processes": processes(),
        "runtime": sorted(runtime()),
        "cut-off": sorted(on - connected()),
        "strays": list(strays(on)),
    }


if __name__ == "__main__":
    json.dump(look(), sys.stdout)
