"""vm-net up|down|tidy VM-ID, vm-net setup|check: the host's part of the VMs' network, as root.

`setup` makes the bridge (aetherscale-network.service), `check` tells whether that was done as configured; `up` and
`down` are ExecStart= and ExecStopPost= of aetherscale-tap@.service: they make and remove a VM's tap, and what the
firewall and the DHCP server know of the VM. QEMU is executed meanwhile, and waits for what `up` says when it is done.
What the rules know of VMs is made anew each time, from one file per VM, and changes at one stroke. A VM's file is there
before anything else of it, and goes last: a `down` that was cut off, or failed, is done again by `tidy`
(aetherscale-tidy@.service), unless the VM is on again.

What a VM wants is written by the agent, which is not root: none of it is believed. Standard library only, and of that
next to nothing: starts of VMs wait for `up`, and to import json, re, subprocess, pathlib and ipaddress takes longer
than all it does.
"""

import fcntl
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = "/etc/aetherscale/network"
WANTED = "/var/lib/aetherscale/vms"
LIMITS = "/run/systemd/system.control"
"""Where systemd keeps the limits that the agent set of a VM: they live until it is off, and no longer."""

STATE = "/run/aetherscale-network"
"""Root's own: a file per VM that is up, the reservations for dnsmasq, and a lock, and in ready/ an empty file
per VM for which `up` is done: vm-run waits for it.
"""

USERS = "/run/systemd/dynamic-uid"
"""Where systemd has a link per user that it made for a unit: direct:<name> leads to the number."""

PATIENCE_S, TURN_S = 3.0, 0.005
"""How long the VM's user is waited for, whom systemd makes meanwhile, and another VM's `down`; and between looks."""

DNSMASQ = "/etc/aetherscale/dnsmasq.conf"
UNITS = [f"/etc/systemd/system/aetherscale-{name}.service" for name in ("network", "dhcp")]

BRIDGE_MAC = "02:61:65:74:68:01"
"""One of its own: a bridge without takes a guest's, and another one when that goes."""

PROBE = "kvm-probe"
"""The QEMU by which the agent finds out whether KVM works: it has no network."""

LONGEST = 65_536
MOST_GONE = 200
LETTERS, DIGITS = "abcdefghijklmnopqrstuvwxyz", "0123456789"

GUESTS = """\
table bridge aetherscale
delete table bridge aetherscale
table bridge aetherscale {{
  set macs {{
    type ifname . ether_addr
  }}
  set addresses {{
    type ifname . ether_addr . ipv4_addr
  }}
  chain prerouting {{
    type filter hook prerouting priority filter; policy accept;
    iifname "vm-*" jump guest
  }}
  chain guest {{
    iifname . ether saddr != @macs drop
    udp sport 67 drop
{rules}
  }}
  chain dhcp {{
  }}
}}
"""
"""What a guest may send: nothing in another's name."""

ADDRESSED = """\
    udp dport 67 jump dhcp
    ether type arp arp saddr ip 0.0.0.0 accept
    ether type arp iifname . arp saddr ether . arp saddr ip @addresses accept
    ether type ip ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept
    ether type ip iifname . ether saddr . ip saddr @addresses accept
    drop"""
"""On our own bridge, where every address is known: IPv4 and ARP with one's own, and nothing else."""

ROUTED = """\
table ip aetherscale
delete table ip aetherscale
table ip aetherscale {{
  map published {{
    type inet_service : ipv4_addr . inet_service
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local dnat ip to tcp dport map @published
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to tcp dport map @published
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {network} oifname != "{bridge}" masquerade
    ip saddr {network} oifname "{bridge}" ct status dnat masquerade
  }}
}}
table inet aetherscale
delete table inet aetherscale
table inet aetherscale {{
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{bridge}" ip daddr 169.254.0.0/16 drop
    oifname "{bridge}" ct state established,related accept
    oifname "{bridge}" ct status dnat accept
    oifname "{bridge}" iifname != "{bridge}" drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{bridge}" ct state established,related accept
    iifname "{bridge}" udp dport {{ 53, 67 }} accept
    iifname "{bridge}" tcp dport 53 accept
    iifname "{bridge}" icmp type echo-request accept
    iifname "{bridge}" drop
  }}
}}
"""
"""Ways out and in: NAT to the outside, published ports, and of the host only DHCP, names and ping."""


def main() -> int:
    """Exit status 0; else 1, with the reason on stderr."""
    command, vm_id = (*sys.argv[1:], "", "")[:2]
    try:
        if command in ("up", "down") and not consists(vm_id, LETTERS, 8) and vm_id != PROBE:
            raise ValueError(f"{vm_id!r} is no VM")
        if command == "up":
            remove(f"{STATE}/ready/{vm_id}")  # of a run before, whose `down` was killed
            # One whose tap is in use runs, from before there was this unit; one that wants none has QEMU's own network.
            if not is_in_use(f"vm-{vm_id}") and find(f"{WANTED}/{vm_id}/network"):
                work("up", vm_id, load(CONFIG))
            os.makedirs(f"{STATE}/ready", mode=0o755, exist_ok=True)
            write(f"{STATE}/ready/{vm_id}", "")
            return 0
        if command == "down":
            give_up(vm_id)
            if os.path.exists(limits_of(vm_id)) and is_at_rest("vm", vm_id):  # else they are those of its next start
                lift_limits(vm_id)
            if vm_id == PROBE or not find(CONFIG):
                return 0
        if command == "tidy" and not (consists(vm_id, LETTERS, 8) and find(CONFIG)):
            return 0
        return work(command, vm_id, load(CONFIG))
    except (OSError, ValueError) as error:
        print(f"vm-net: {error}", file=sys.stderr)
        return 1


def give_up(vm_id: str) -> None:
    """The VM has no network any more. If it waits for what never came, it is ended, by a signal nobody else sends."""
    if os.path.exists(f"{STATE}/ready/{vm_id}"):
        os.unlink(f"{STATE}/ready/{vm_id}")
    elif os.environ.get("SERVICE_RESULT", "success") != "success":
        try:
            run("systemctl", "kill", "--kill-whom=main", "--signal=USR1", f"aetherscale-vm@{vm_id}.service")
        except ValueError as error:
            print(f"vm-net: {error}", file=sys.stderr)  # it has ended already


def work(command: str, vm_id: str, config: dict[str, str]) -> int:
    """Do what was asked for, alone."""
    for folder in ("", "/vms", "/reservations"):
        os.makedirs(STATE + folder, mode=0o755, exist_ok=True)
    if command != "up":
        return work_alone(command, vm_id, config)
    user = find_uid(f"aetherscale-vm-{vm_id}")
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return work_alone(command, vm_id, config, user)
        except Clash:  # with one that has just ended, and whose `down` is on its way
            if time.monotonic() > until:
                raise
            time.sleep(TURN_S)


def work_alone(command: str, vm_id: str, config: dict[str, str], user: int = 0) -> int:
    """Do it while nobody else does anything."""
    with open(f"{STATE}/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if command == "setup":
            set_up(config)
            write(f"{STATE}/applied", fingerprint())
        elif command == "check":
            return int(not os.path.exists(f"{STATE}/applied") or read(f"{STATE}/applied") != fingerprint())
        elif command == "up":
            bring_up(vm_id, config, user)
        elif command == "down":
            take_down(vm_id, config)
        elif command == "tidy":
            return tidy(vm_id, config)
        else:
            raise ValueError("usage: vm-net setup | check | up VM-ID | down VM-ID | tidy VM-ID")
    return 0


def fingerprint() -> str:
    """What the network is made of: another one when any of it was changed."""
    import hashlib

    return hashlib.sha256("".join(map(read, (__file__, find(CONFIG), DNSMASQ, *UNITS))).encode()).hexdigest()


# Programs and files


def begin(*command: str, stdin: str = "") -> "Callable[[], str]":
    """Start a program. Call what is returned, and it waits for its end: what it said on stdout.

    :raise ValueError: by that call, when it failed: with what it said on stderr.
    """
    files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
    with open(files[0], "w", closefd=False) as given:
        given.write(stdin)
    os.lseek(files[0], 0, os.SEEK_SET)
    actions = [(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(files)]
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)

    def end() -> str:
        failed = os.waitpid(pid, 0)[1] != 0
        os.lseek(files[1 + failed], 0, os.SEEK_SET)
        with open(files[1 + failed], closefd=False, errors="replace") as told:
            said = told.read().strip()
        for file in files:
            os.close(file)
        if failed:
            raise ValueError(f"{command[0]} failed: {said}")
        return said

    return end


def run(*command: str, stdin: str = "") -> str:
    """What a program says on stdout.

    :raise ValueError: when it failed.
    """
    return begin(*command, stdin=stdin)()


def read(path: str) -> str:
    """A small file that somebody else may have put there: no link, no pipe, no more than a small file."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(file) as stream:
        return stream.read(LONGEST)


def write(path: str, text: str) -> None:
    """A file of root's own, whole or not at all."""
    draft = f"{STATE}/.{path.rpartition('/')[2]}"
    with open(draft, "w") as stream:
        stream.write(text)
    os.replace(draft, path)


def remove(path: str) -> None:
    """A file of root's own, if it is there."""
    if os.path.exists(path):
        os.unlink(path)


# What a VM wants


def find(path: str) -> str:
    """The newer of `path`.conf and `path`.json, which agents and roll-outs wrote once; '' if there is neither."""
    there = [one for one in (f"{path}.conf", f"{path}.json") if os.path.lexists(one)]
    return max(there, key=lambda one: os.lstat(one).st_mtime, default="")


def load(path: str) -> dict[str, str]:
    """What is written in such a file."""
    found = find(path)
    return parse_old(read(found)) if found.endswith(".json") else parse(read(found))


def parse(text: str) -> dict[str, str]:
    """Lines of a word, and what belongs to it."""
    return {key: value for key, _, value in (line.partition(" ") for line in text.splitlines())}


def parse_old(text: str) -> dict[str, str]:
    """The same, written as JSON.

    :raise ValueError: when it is none, or something else.
    """
    import json

    table = json.loads(text)
    if not isinstance(table, dict) or not isinstance(table.get("published", []), list):
        raise ValueError("what is wanted is no object")
    pairs = [pair for pair in table.pop("published", []) if isinstance(pair, list)]
    table["published"] = " ".join(":".join(map(str, pair)) for pair in pairs)
    words = {True: "yes", False: "no"}
    return {key: words[value] if isinstance(value, bool) else str(value) for key, value in table.items()}


def check(wanted: dict[str, str], config: dict[str, str]) -> dict[str, str]:
    """What a VM wants, made of nothing but what was checked.

    :raise ValueError: when it is not what a VM may want.
    """
    mac, address, name, published = (wanted.get(key, "") for key in ("mac", "address", "name", "published"))
    if not mac.startswith("52:54:00:") or not all(consists(part, DIGITS + "abcdef", 2) for part in mac.split(":")):
        raise ValueError(f"MAC {mac!r} is none of ours")
    if mac.count(":") != 5:
        raise ValueError(f"MAC {mac!r} is none")
    if not 0 < len(name) < 64 or not consists(name, LETTERS + DIGITS + "-") or "-" in (name[0], name[-1]):
        raise ValueError(f"name {name!r} is none")
    if is_own(config):
        first, size = network_of(config)
        if not 1 < number_of(address) - first < size - 1:
            raise ValueError(f"{address} is no guest's in {config['network']}")
    for pair in published.split():
        host, _, guest = pair.partition(":")
        for port in (host, guest):
            if not consists(port, DIGITS) or not 0 < len(port) < 6 or not 0 < int(port) < 65_536:
                raise ValueError(f"{port!r} is no port")
    return {"mac": mac, "address": address if is_own(config) else "", "name": name, "published": published}


def consists(word: str, of: str, length: int = -1) -> bool:
    """Whether a word consists of these letters alone, and is so long, if that matters."""
    return length in (-1, len(word)) and all(letter in of for letter in word)


def is_own(config: dict[str, str]) -> bool:
    """Whether the bridge is aetherscale's own, and none of the operator's."""
    return config["own"] == "yes"


def number_of(address: str) -> int:
    """An IPv4 address as a number.

    :raise ValueError: when it is none.
    """
    parts = address.split(".")
    if len(parts) != 4 or not all(consists(part, DIGITS) and part == str(int(part or "-1")) for part in parts):
        raise ValueError(f"{address!r} is no IPv4 address")
    if max(map(int, parts)) > 255:
        raise ValueError(f"{address!r} is no IPv4 address")
    return sum(int(part) << shift for part, shift in zip(parts, (24, 16, 8, 0), strict=True))


def network_of(config: dict[str, str]) -> tuple[int, int]:
    """The first address of the VMs' network, and how many it has."""
    first, _, length = config["network"].partition("/")
    return number_of(first), 1 << (32 - int(length))


def port_pairs(vm: dict[str, str]) -> list[list[str]]:
    """The ports that a VM publishes: the host's, and the guest's."""
    return [pair.split(":") for pair in vm["published"].split()]


def others(vm_id: str) -> dict[str, dict[str, str]]:
    """The other VMs that are up."""
    found = {name.partition(".")[0] for name in os.listdir(f"{STATE}/vms")}
    return {other: load(f"{STATE}/vms/{other}") for other in found if other != vm_id}


class Clash(ValueError):
    """Another VM that is up has what this one wants."""


def refuse_clashes(vm_id: str, vm: dict[str, str]) -> None:
    """Two VMs with one address or one port, or a port that the host itself needs: the agent should have seen to it."""
    wanted = [host for host, _ in port_pairs(vm)]
    for other, its in others(vm_id).items():
        if vm["mac"] == its["mac"] or (vm["address"] and vm["address"] == its["address"]):
            raise Clash(f"VM {other} has the same address")
        for port, _ in port_pairs(its):
            if port in wanted:
                raise Clash(f"port {port} is published by VM {other}")
    taken = listening() if wanted else set()
    for port in wanted:
        if int(port) in taken:
            raise ValueError(f"port {port} is in use on this host")


def listening() -> set[int]:
    """The TCP ports on which this host listens. Source: proc(5), /proc/net/tcp; state 0A is LISTEN."""
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if os.path.exists(table):
            with open(table) as stream:
                rows = [row.split() for row in stream.read().splitlines()[1:]]
            ports |= {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}
    return ports


# What is made of it


def set_up(config: dict[str, str]) -> None:
    """Make the bridge, unless it is the operator's own, and the rules for what is up."""
    if is_own(config):
        bridge, (first, _), length = config["bridge"], network_of(config), config["network"].partition("/")[2]
        gateway = ".".join(str(first + 1 >> shift & 255) for shift in (24, 16, 8, 0))
        if not os.path.exists(f"/sys/class/net/{bridge}"):
            run("ip", "link", "add", bridge, "address", BRIDGE_MAC, "type", "bridge", "forward_delay", "0")
        run("ip", "addr", "replace", f"{gateway}/{length}", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        with open("/proc/sys/net/ipv4/ip_forward", "w") as forward:
            forward.write("1")
    begin_rules(config)()
    # Those that were started before there was aetherscale-tap@ have their taps, and nobody else who would remove them.
    if vm_ids := list(others("")):
        try:
            adopt(vm_ids)
        except ValueError as error:
            print(f"vm-net: {error}", file=sys.stderr)  # the network is there all the same


def adopt(vm_ids: list[str]) -> None:
    """Start the units of the taps of VMs that want them. One that nobody wants would stop at once, and its VM with it:
    so it is before systemd has read the VMs' new unit.
    """
    vms = [f"aetherscale-vm@{vm_id}.service" for vm_id in vm_ids]
    wanted = run("systemctl", "show", "--value", "--property=Wants", *vms)
    if taps := [tap for one in vm_ids if (tap := f"aetherscale-tap@{one}.service") in wanted.split()]:
        run("systemctl", "start", "--no-block", *taps)


def bring_up(vm_id: str, config: dict[str, str], user: int) -> None:
    """Make a VM's rules and its tap; a tap that is left of the run before is made anew.

    Both at once, for both mostly wait for the kernel. Nothing uses the tap before both are there.
    """
    vm = check(load(f"{WANTED}/{vm_id}/network"), config)
    refuse_clashes(vm_id, vm)
    write(f"{STATE}/vms/{vm_id}.conf", "".join(f"{key} {value}\n" for key, value in vm.items()))
    if vm["address"]:
        reserve(vm_id, f"{vm['mac']},{vm['address']},{vm['name']}\n")
    done = begin_rules(config)
    tap = f"vm-{vm_id}"
    try:
        remove_tap(tap)
        link = f"tuntap add {tap} mode tap user {user}\nlink set {tap} master {config['bridge']} up\n"
        run("ip", "-batch", "-", stdin=link)
    finally:
        done()


def find_uid(user: str) -> int:
    """The VM's user of the day, whom systemd makes while this begins."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            return int(os.readlink(f"{USERS}/direct:{user}"))
        except FileNotFoundError:
            time.sleep(TURN_S)
    manager = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
    return int(run("busctl", "call", *manager, "LookupDynamicUserByName", "s", user).split()[1])


def is_in_use(tap: str) -> bool:
    """Whether a QEMU has it open."""
    try:
        return read(f"/sys/class/net/{tap}/carrier") == "1\n"
    except OSError:  # there is none, or it is down
        return False


def take_down(vm_id: str, config: dict[str, str]) -> None:
    """Remove all that `bring_up` made; nothing happens if there is nothing."""
    done = begin_rules(config, without=vm_id)
    try:
        remove_tap(f"vm-{vm_id}")
    finally:
        done()
    forget(vm_id)
    for kind in ("conf", "json"):
        remove(f"{STATE}/vms/{vm_id}.{kind}")


def tidy(vm_id: str, config: dict[str, str]) -> int:
    """Do what a `down` left undone. 1, to be asked again, while the VM is on its way down; one that is on is let be."""
    if not is_left(vm_id):
        return 0
    if not is_at_rest("vm", vm_id):
        return int(is_at_rest("tap", vm_id))
    remove(f"{STATE}/ready/{vm_id}")
    lift_limits(vm_id)
    take_down(vm_id, config)
    return 0


def is_left(vm_id: str) -> bool:
    """Whether there is anything of a VM that `down` removes."""
    paths = (
        f"{STATE}/ready/{vm_id}",
        f"{STATE}/reservations/{vm_id}",
        f"/sys/class/net/vm-{vm_id}",
        limits_of(vm_id),
    )
    return bool(find(f"{STATE}/vms/{vm_id}")) or any(map(os.path.exists, paths))


def is_at_rest(what: str, vm_id: str) -> bool:
    """Whether a unit of a VM is: its own, or that of its tap."""
    unit = f"aetherscale-{what}@{vm_id}.service"
    return run("systemctl", "show", "--value", "--property=ActiveState", unit) in ("inactive", "failed")


def limits_of(vm_id: str) -> str:
    """The folder of the limits that the agent set of a VM."""
    return f"{LIMITS}/aetherscale-vm@{vm_id}.service.d"


def lift_limits(vm_id: str) -> None:
    """Remove the limits that the agent set: systemd keeps them until the next boot."""
    folder = limits_of(vm_id)
    try:
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            os.unlink(f"{folder}/{name}")
        os.rmdir(folder)
    except OSError:  # the agent sets some in this very moment, or there are none
        return


def reserve(vm_id: str, line: str) -> None:
    """Tell dnsmasq: it watches the folder for files that are written, or moved there, and not for those that go.

    So what has gone is told when another VM wants any of it, and no end of a VM waits for that.
    """
    wanted = set(line.strip().split(","))
    gone = read_gone()
    write(f"{STATE}/reservations/{vm_id}", line)
    if len(gone) >= MOST_GONE or any(wanted & set(one.split(",")) and one != line.strip() for one in gone):
        try:
            run("systemctl", "kill", "--signal=HUP", "aetherscale-dhcp.service")
        except ValueError as error:
            print(f"vm-net: {error}", file=sys.stderr)  # it does not run, and will hear of all when it does
        remove(f"{STATE}/gone")


def forget(vm_id: str) -> None:
    """Remove a VM's reservation, and note what dnsmasq has not heard of."""
    path = f"{STATE}/reservations/{vm_id}"
    if os.path.exists(path):
        write(f"{STATE}/gone", "".join(f"{line}\n" for line in {*read_gone(), read(path).strip()}))
        os.unlink(path)


def read_gone() -> list[str]:
    """The reservations of which dnsmasq has not heard that they have gone."""
    return read(f"{STATE}/gone").splitlines() if os.path.exists(f"{STATE}/gone") else []


def remove_tap(tap: str) -> None:
    """QEMU may take a moment to let go of it."""
    for _ in range(20):
        if not os.path.exists(f"/sys/class/net/{tap}"):
            return
        try:
            run("ip", "link", "del", tap)
        except ValueError:
            time.sleep(0.05)
    raise ValueError(f"{tap} can't be removed")


def begin_rules(config: dict[str, str], without: str = "") -> "Callable[[], str]":
    """Make the rules and what they know of VMs anew, at one stroke: so does whoever finds them taken away.

    They forget the VM `without`.
    """
    tables = GUESTS.format(rules=ADDRESSED if is_own(config) else "")
    if is_own(config):
        tables += ROUTED.format(network=config["network"], bridge=config["bridge"])
    else:
        tables += "".join(f"table {one} aetherscale\ndelete table {one} aetherscale\n" for one in ("ip", "inet"))
    return begin("nft", "-f", "-", stdin=tables + finalize_elements(config, without))


def finalize_elements(config: dict[str, str], without: str = "") -> str:
    """What the rules know of the VMs that are up, but for one, as nft takes it."""
    vms = others(without)
    macs = [f'"vm-{vm_id}" . {vm["mac"]}' for vm_id, vm in vms.items()]
    addresses = [f'"vm-{vm_id}" . {vm["mac"]} . {vm["address"]}' for vm_id, vm in vms.items() if vm["address"]]
    # One that was started while the bridge was another may have ports and no address: that costs no other its own.
    addressed = [vm for vm in vms.values() if vm["address"]]
    ports = [f"{host} : {vm['address']} . {guest}" for vm in addressed for host, guest in port_pairs(vm)]
    sets = {"bridge aetherscale macs": macs, "bridge aetherscale addresses": addresses}
    if is_own(config):
        sets["ip aetherscale published"] = ports
    lines = []
    for vm_id, vm in vms.items():  # who asks for an address asks for its own: chaddr, 28 bytes into the datagram
        chaddr = int(vm["mac"].replace(":", ""), 16)
        lines.append(f'add rule bridge aetherscale dhcp iifname "vm-{vm_id}" @th,288,48 {chaddr:#x} return')
    lines.append("add rule bridge aetherscale dhcp drop")
    lines += [f"add element {name} {{ {', '.join(items)} }}" for name, items in sets.items() if items]
    return "\n".join(lines) + "\n"
