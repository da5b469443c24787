"""What is wrong with hosts: facts in, findings out. Pure; see `doctor`.

Hints are copied into shells: what a host says stands in one only quoted, or if it obeys a rule of names.
"""

import shlex
from collections import Counter
from collections.abc import Callable, Iterator

from aetherscale_cli import text
from aetherscale_cli.arguments import PROGRAM
from aetherscale_cli.doctor_facts import Examination, Finding, HostFacts
from aetherscale_cli.errors import Exit
from aetherscale_protocol import names
from aetherscale_protocol.answers import HostCondition, ImageSum

CLOCK_LIMIT_S = 5.0
"""How far a host's clock may be off before it is worth a warning: deadlines of commands are compared with it."""

SLOW_MS = 500.0
"""How long a host may take to answer a ping, beside the way to the broker, before it is worth a warning. One that is
well takes a few milliseconds."""

TIGHT, FULL = 0.05, 0.01
"""What must be free of a disk, as a share of it: less is a warning, or an error."""

MOST_NAMED = 5
"""How many VMs one line names."""


def check_hosts(found: Examination) -> Iterator[Finding]:
    """Does every host answer, and if not, why?"""
    slow = _find_slow(found)
    for name, host in found.hosts.items():
        if found.error is not None and not host.settled:
            continue  # the connection was lost before it could answer
        state = _state(host)
        if state == "up":
            drained = "; drained: it takes no new VMs" if host.drained else ""
            late = "; that is slow: whoever asks it waits as long" if name in slow else ""
            yield Finding(
                check="host", subject=name, result="warning" if late else "ok", state=state,
                text=f"answered in {host.answered_ms:.0f} ms; agent {host.agent_version}{drained}{late}",
                hint=slow.get(name, ""), answer_ms=round(host.answered_ms or 0, 1), agent_version=host.agent_version,
                clock_ahead_s=round(host.clock_ahead_s, 3),
            )  # fmt: skip
        else:
            said, hint = _WRONG[state]
            yield Finding(
                check="host", subject=name, result="error", state=state, exit_code=Exit.PARTIAL,
                text=said.format(host=name, timeout=found.timeout, refusal=host.refusal),
                hint=hint.format(host=name, program=PROGRAM),
            )  # fmt: skip


def _find_slow(found: Examination) -> dict[str, str]:
    """The hosts that answer late, and what to do about each. If all do, it is rather what all have in common."""
    way = found.wire.connected_ms if found.wire is not None else 0.0
    took = {name: host.answered_ms - way for name, host in found.hosts.items() if host.answered_ms is not None}
    slow = [name for name, ms in took.items() if ms > SLOW_MS]
    if len(slow) > 1 and len(slow) == len(took):
        return dict.fromkeys(slow, _SLOW_ALL)
    return {name: _SLOW.format(host=name) for name in slow}


_SLOW = (
    "on {host}: top and journalctl -u aetherscale-agent show what keeps it, ping its way to the broker; "
    "if it is the agent: systemctl restart aetherscale-agent (its VMs run on)"
)
_SLOW_ALL = "all hosts are: rather it is the broker, or the way to it; on the broker's machine: top, rabbitmqctl status"


_WRONG = {
    "down": (
        "is down: its agent is not connected to the broker",
        "on {host}: systemctl status aetherscale-agent; if it is gone for good: {program} forget-host {host}",
    ),
    "silent": (
        "is silent: its agent is connected, but did not answer within {timeout:g} s: it hangs, or is frozen or cut off",
        "on {host}: systemctl restart aetherscale-agent (its VMs run on)",
    ),
    "unknown": (
        "is unknown to the broker: its agent was never connected, or it was forgotten",
        "on {host}: systemctl start aetherscale-agent; if it is gone: take it out of the inventory and run site.yml",
    ),
    "unbound": (
        "can't be reached: its agent is connected, but its queue is not bound to its key any more",
        "its agent mends that within 20 s; else, on {host}: systemctl restart aetherscale-agent (its VMs run on)",
    ),
    "odd": (
        "does not understand a ping: {refusal}",
        "are all agents and the CLI of one version? site.yml brings them up to date",
    ),
}


def _state(host: HostFacts) -> str:
    if host.answered_ms is not None:
        return "up"
    if host.unroutable:
        return "unbound" if host.consumers else "unknown"
    if host.down or (host.counted and host.consumers == 0):
        return "down"
    return "odd" if host.refusal else "silent"


def check_fleet(found: Examination) -> Iterator[Finding]:
    """Is a host there that the inventory does not name?"""
    for name, host in found.hosts.items():
        if found.fleet and name not in found.fleet and host.answered_ms is not None:
            yield Finding(
                check="agents", subject=name, result="warning", text=f"{name} runs an agent, but no inventory names it",
                hint=f"add {name} to the inventory and run site.yml, or stop its agent",
            )  # fmt: skip


def check_versions(found: Examination) -> Iterator[Finding]:
    """Are all of one version?"""
    versions = {name: host.agent_version for name, host in found.hosts.items() if host.answered_ms is not None}
    if not versions:
        return
    usual, _ = Counter(versions.values()).most_common(1)[0]
    other = {name: version for name, version in versions.items() if version != usual}
    for name, version in other.items():
        said = f"its agent is {version}; of most others it is {usual}, and this CLI is {found.version}"
        hint = "site.yml brings all agents to one version"
        yield Finding(check="version", subject=name, result="warning", text=said, hint=hint, agent_version=version)
    if usual != found.version:
        said = f"this CLI is {found.version}, the agents are {usual}"
        hint = "bring the older ones up to date: site.yml the agents, pip install the CLI"
        yield Finding(check="version", subject="this machine", result="warning", text=said, hint=hint)
    elif not other:
        yield Finding(check="version", subject="all", result="ok", text=f"agents and CLI are {usual}")


def check_clocks(found: Examination) -> Iterator[Finding]:
    """Do the hosts and we agree about the time?"""
    ahead = {name: host.clock_ahead_s for name, host in found.hosts.items() if host.answered_ms is not None}
    off = {name: seconds for name, seconds in ahead.items() if abs(seconds) > CLOCK_LIMIT_S}
    if len(off) > 1 and len(off) == len(ahead) and max(off.values()) - min(off.values()) <= CLOCK_LIMIT_S:
        said = f"all hosts' clocks are {_off(sum(off.values()) / len(off))}: more likely it is yours"
        yield Finding(check="clock", subject="this machine", result="warning", text=said, hint=_CLOCK_HINT)
        return
    for name, seconds in off.items():
        said = f"its clock is {_off(seconds)}: commands may come too late for it, or seem to"
        hint = f"on {name}: {_CLOCK_HINT}"
        yield Finding(check="clock", subject=name, result="warning", text=said, hint=hint, clock_ahead_s=seconds)
    if ahead and not off:
        most = max(abs(seconds) for seconds in ahead.values())
        yield Finding(check="clock", subject="all", result="ok", text=f"at most {most:.1f} s from this machine's")


_CLOCK_HINT = "timedatectl shows whether a time service runs; chrony or systemd-timesyncd keeps it right"


def _off(seconds: float) -> str:
    return f"{abs(seconds):.0f} s {'ahead' if seconds > 0 else 'behind'}"


def check_told(found: Examination) -> Iterator[Finding]:
    """Is there a host that answers, and does not say how it is?"""
    for name, host in found.hosts.items():
        if host.untold:
            yield Finding(
                check="host", subject=name, result="warning", text=f"does not say how it is: {host.untold}",
                hint=f"is its agent older than this CLI? site.yml brings it up to date; else see {name}'s journal",
            )  # fmt: skip


def check_accelerators(name: str, host: HostCondition) -> Iterator[Finding]:
    """Do VMs run on the CPU itself?"""
    said, hint = host.accelerator, ""
    look = f"on {name}: is virtualization on in the firmware, and kvm_intel or kvm_amd loaded? Then "
    look += "rm /var/lib/aetherscale/accelerator.json; systemctl restart aetherscale-agent"
    why = host.accelerator_reason or "its agent noted no reason"
    slow = "VMs are much slower than under KVM"
    if host.accelerator == "kvm" and host.accelerator_chosen and host.accelerator_reason:
        said += f", as its configuration says, and it does not work ({why}): no VM starts there"
        yield _error("accelerator", name, said, f"{look}. Else agent_accelerator=auto for {name} in the inventory")
        return
    if host.accelerator != "kvm" and host.accelerator_chosen:
        said += ", as its configuration says"
    elif host.accelerator != "kvm" and not host.virtualization:
        said += f": its CPU offers no virtualization; {slow}"
    elif host.accelerator != "kvm":
        said, hint = f"{said}: KVM does not work ({why}); {slow}", look
    yield Finding(check="accelerator", subject=name, result="warning" if hint else "ok", text=said, hint=hint)


def check_network(name: str, host: HostCondition) -> Iterator[Finding]:
    """Are VMs connected to anything?"""
    if not host.bridge:
        yield Finding(check="network", subject=name, result="ok", text="no bridge: each VM has a network of its own")
        return
    wrong = {
        "down": (f"bridge {host.bridge} is down", "no VM reaches anything"),
        "absent": (f"bridge {host.bridge} is not there", "no VM can be started"),
        "no-address": (f"bridge {host.bridge} has lost its address", "VMs have no way out, and get no addresses"),
    }.get(host.bridge_state)
    if wrong:
        own = _DHCP in host.services
        hint = "systemctl restart aetherscale-network makes it anew; VMs stay connected" if own else _NOT_OURS
        yield _error("network", name, f"{wrong[0]}: {wrong[1]}", f"on {name}: {hint}")
    idle = {unit: state for unit, state in host.services.items() if state != "active"}
    for unit, state in idle.items():
        quoted = shlex.quote(unit)
        hint = f"on {name}: journalctl -u {quoted} says why; systemctl restart {quoted}"
        yield _error("network", name, f"{unit} is {state}", hint)
    if not wrong and not idle:
        serving = "".join(f"; {unit.removesuffix('.service')} runs" for unit in host.services)
        yield Finding(check="network", subject=name, result="ok", text=f"bridge {host.bridge} is up{serving}")


_DHCP = "aetherscale-dhcp.service"
"""What runs only where the bridge is aetherscale's own."""
_NOT_OURS = "the bridge is one of your own: bring it up as it was made"


def check_disks(name: str, host: HostCondition) -> Iterator[Finding]:
    """Is there room, also for what VMs were promised?"""
    free, size, growth = (text.size(amount) for amount in (host.disk_free, host.disk_size, host.disk_growth))
    said = f"{free} of {size} free; VMs may still take {growth}"
    hint = f"on {name}: df -h /var/lib/aetherscale; delete VMs, snapshots or images, or enlarge its disk"
    if host.disk_size and host.disk_free < FULL * host.disk_size:
        yield _error("disk", name, f"{said}: VMs that write are paused when it is full", hint)
    elif host.disk_free < TIGHT * host.disk_size or host.disk_free < host.disk_growth:
        yield Finding(check="disk", subject=name, result="warning", text=said, hint=hint)
    else:
        yield Finding(check="disk", subject=name, result="ok", text=said)


def check_vms(name: str, host: HostCondition) -> Iterator[Finding]:
    """Has any VM failed?"""
    if not host.troubles:
        yield Finding(check="vms", subject=name, result="ok", text="none has failed")
    for vm in host.troubles[:MOST_NAMED]:
        called = vm.name if names.is_vm_name(vm.name) else shlex.quote(vm.vm_id)
        state = "has failed" if vm.state == "failed" else "is in trouble"
        said = f"VM {vm.name or vm.vm_id} {state}: {vm.reason or 'unknown why'}"
        hint = f"{PROGRAM} show-vm {called} shows its console; {PROGRAM} start-vm {called}"
        yield Finding(check="vms", subject=name, result="warning", text=said, hint=hint)
    if (more := len(host.troubles) - MOST_NAMED) > 0:
        said, hint = f"{more} more VMs are in trouble", f"{PROGRAM} list-vms --host {name} --state failed"
        yield Finding(check="vms", subject=name, result="warning", text=said, hint=hint)


_AGAIN = "site.yml brings it again if the inventory names it, images.yml if not; then restart the VMs that stand on it"


def check_images(name: str, host: HostCondition) -> Iterator[Finding]:
    """Are the images what their checksums say?"""
    for broken in host.manifests:
        yield _error("images", name, broken, "site.yml brings images that the inventory names, images.yml others")
    for image in host.images:
        if image.state == "wrong":
            said = f'Image "{image.image}" is damaged: its file is not what its checksum {image.sha256[:12]}… says'
            yield _error("images", name, said, _AGAIN)
        elif image.state == "unreadable":
            yield _error("images", name, f'Image "{image.image}" can\'t be read: {image.reason}', _AGAIN)
    yield from _count_images(name, host.images, host.unread)


def _count_images(name: str, images: list[ImageSum], unread: int) -> Iterator[Finding]:
    right = sum(image.state == "right" for image in images)
    pending = sum(image.state == "pending" for image in images)
    if pending:
        said = f"{right} of {len(images)} have the right checksum; {text.size(unread)} are still to be read"
        hint = f"{name} reads on by itself, slowly: ask again later, or wait longer (--wait-images 10m)"
        yield Finding(check="images", subject=name, result="warning", text=said, hint=hint)
    elif images and right == len(images):
        said = "1 has the right checksum" if right == 1 else f"all {right} have the right checksum"
        yield Finding(check="images", subject=name, result="ok", text=said)
    elif not images:
        yield Finding(check="images", subject=name, result="ok", text="there are none, or they were not to be checked")


def _error(check: str, subject: str, said: str, hint: str) -> Finding:
    return Finding(check=check, subject=subject, result="error", text=said, hint=hint, exit_code=Exit.FAILED)


OF_ONE: tuple[Callable[[str, HostCondition], Iterator[Finding]], ...] = (
    check_accelerators,
    check_network,
    check_disks,
    check_vms,
    check_images,
)


def check_conditions(found: Examination) -> Iterator[Finding]:
    """What hosts found when they looked at themselves."""
    for check in OF_ONE:
        for name, host in found.hosts.items():
            if host.condition is not None:
                yield from check(name, host.condition)


CHECKS: tuple[Callable[[Examination], Iterator[Finding]], ...] = (
    check_hosts,
    check_fleet,
    check_told,
    check_versions,
    check_clocks,
    check_conditions,
)
