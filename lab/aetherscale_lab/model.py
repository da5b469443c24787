"""Names, addresses and the fleet's specification: pure functions, no side effects."""

import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from aetherscale_lab.errors import LabError

SUITES = ("bookworm", "trixie")
DEFAULT_FLEET = ("broker1:trixie", "h1:trixie", "h2:bookworm")

DEMO_SUBNET = "10.77.0.0/24"
CONTROLLER_OFFSET = 1
FIRST_HOST_OFFSET = 11
LAST_HOST_OFFSET = 250

# The kernel's limit for an interface name is 15 characters, "al-" is ours.
_BRIDGE_PREFIX = "al-"
_MAX_LAB_IN_BRIDGE = 12
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


@dataclass(frozen=True)
class HostSpec:
    """What is asked for: a host's name and its Debian suite."""

    name: str
    suite: str


@dataclass(frozen=True)
class Host:
    """A host of a lab, with the address it was given."""

    name: str
    suite: str
    address: str


@dataclass(frozen=True)
class LabPlan:
    """All that is decided about a lab before anything is made; kept as `lab.json`."""

    name: str
    subnet: str
    hosts: tuple[Host, ...]

    @property
    def bridge(self) -> str:
        return bridge_name(self.name)

    @property
    def controller(self) -> str:
        """Address of the bridge, hence of this machine as the hosts see it."""
        return _address(self.subnet, CONTROLLER_OFFSET)

    def host(self, name: str) -> Host:
        """Return the host called `name`.

        :raise LabError: when the lab has no such host.
        """
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.hosts)
        raise LabError(f"lab {self.name} has no host {name}", f"its hosts are: {known}")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "LabPlan":
        data = json.loads(text)
        return cls(data["name"], data["subnet"], tuple(Host(**host) for host in data["hosts"]))


def check_name(kind: str, name: str) -> str:
    """Return `name` if it is fit for host names, interfaces and paths alike.

    :raise LabError: when it isn't.
    """
    if not _NAME.fullmatch(name):
        raise LabError(f"{kind} name {name!r} is not usable", "a letter, then small letters, digits and -")
    return name


def parse_host(text: str) -> HostSpec:
    """Read `name:suite`, as given on the command line.

    :raise LabError: when the name or the suite is not usable.
    """
    name, _, suite = text.partition(":")
    return _checked(HostSpec(name, suite or SUITES[-1]))


def parse_spec(text: str) -> list[HostSpec]:
    """Read a specification file: a list of {"name", "suite"}, or that list under "hosts".

    :raise LabError: when the text is no such JSON.
    """
    try:
        data = json.loads(text)
        entries = data["hosts"] if isinstance(data, dict) else data
        specs = [HostSpec(str(entry["name"]), str(entry.get("suite", SUITES[-1]))) for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabError(
            f"the lab specification is not readable: {error}", 'example: [{"name": "h1", "suite": "trixie"}]'
        ) from error
    return [_checked(spec) for spec in specs]


def _checked(spec: HostSpec) -> HostSpec:
    check_name("host", spec.name)
    if spec.name == "controller":
        raise LabError("a host cannot be called controller", "that name stands for this machine")
    if spec.suite not in SUITES:
        raise LabError(f"host {spec.name}: unknown suite {spec.suite}", f"known: {', '.join(SUITES)}")
    return spec


def bridge_name(lab: str) -> str:
    """Name of the lab's bridge: at most 15 characters, different for different labs."""
    if len(lab) > _MAX_LAB_IN_BRIDGE:
        lab = f"{lab[:7]}-{_digest(lab)[:4]}"
    return _BRIDGE_PREFIX + lab


def bridge_mac(lab: str) -> str:
    """A fixed address: without one the bridge changes its own whenever a host comes or goes."""
    digest = _digest(lab)
    return ":".join(["02"] + [digest[i : i + 2] for i in range(0, 10, 2)])


def machine_name(lab: str, host: str) -> str:
    """What systemd-nspawn calls the host; unique on this machine."""
    return f"{lab}-{host}"


def port_name(lab: str, host: str) -> str:
    """The bridge's port to a host. A long one exists as an alternative name of the link only."""
    return f"vb-{machine_name(lab, host)}"


def cut_table(lab: str, host: str) -> str:
    """Name of the nftables table that cuts a host off; nft allows no '-' in it."""
    return f"aetherscale_lab_{_digest(f'{lab}/{host}')[:12]}"


def candidate_subnets(lab: str) -> Iterator[str]:
    """Subnets to try for a lab, the preferred one first: the same list whenever it is asked."""
    if lab == "demo":
        yield DEMO_SUBNET
        return
    start = int(_digest(lab)[:8], 16)
    for step in range(64):
        number = (start + step * 257) % (48 * 256)
        yield f"10.{78 + number // 256}.{number % 256}.0/24"


def find_free_subnet(lab: str, taken: Iterable[str]) -> str:
    """Return the first candidate that overlaps none of the networks in `taken`.

    :raise LabError: when all candidates are in use.
    """
    used = [ipaddress.ip_network(net, strict=False) for net in taken]
    for candidate in candidate_subnets(lab):
        network = ipaddress.ip_network(candidate)
        if not any(network.overlaps(other) for other in used if other.version == network.version):
            return candidate
    raise LabError(f"no free subnet for lab {lab}", "take another lab down first")


def plan_lab(lab: str, subnet: str, wanted: Sequence[HostSpec], existing: Sequence[Host] = ()) -> LabPlan:
    """Give every wanted host an address; hosts that exist keep theirs and stay in the lab.

    :raise LabError: when a name occurs twice, a host would change its suite, or the subnet is full.
    """
    hosts = {host.name: host for host in existing}
    if len({spec.name for spec in wanted}) != len(wanted):
        raise LabError(f"lab {lab}: a host name occurs twice", "give every host a name of its own")
    free = (_address(subnet, offset) for offset in range(FIRST_HOST_OFFSET, LAST_HOST_OFFSET))
    used = {host.address for host in existing}
    for spec in wanted:
        known = hosts.get(spec.name)
        if known and known.suite != spec.suite:
            raise LabError(f"host {spec.name} of lab {lab} runs {known.suite}", "take the lab down first")
        if not known:
            address = next((a for a in free if a not in used), "")
            if not address:
                raise LabError(f"lab {lab} is full", f"at most {LAST_HOST_OFFSET - FIRST_HOST_OFFSET} hosts")
            hosts[spec.name] = Host(spec.name, spec.suite, address)
    return LabPlan(lab, subnet, tuple(hosts.values()))


def hosts_file(plan: LabPlan) -> str:
    """Contents of /etc/hosts, the same on every host."""
    lines = ["127.0.0.1 localhost", f"{plan.controller} controller"]
    lines += [f"{host.address} {host.name}" for host in plan.hosts]
    return "\n".join(lines) + "\n"


def _address(subnet: str, offset: int) -> str:
    return str(ipaddress.ip_network(subnet)[offset])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
