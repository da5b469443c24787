"""Whose command is done: what a broker user may ask of this host. Pure; nothing that is not named here is allowed.

The broker checks that a message's `user_id` is its sender's, and lets operators publish to `computing` alone, and
agents to everything but that. It can't tell a command from another (docs/decisions/010-access.md), so this is where
read-only operators, those of a label, and hosts that command others are refused. So are operators' commands that a host
had sent on as dead letters of a queue of its own: the broker leaves `user_id` in them, and names another exchange.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from aetherscale_agent.config import OperatorRights
from aetherscale_agent.envelope import Incoming
from aetherscale_protocol import topology
from aetherscale_protocol.commands import Reach, Request
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import CreateVm, OpenStream

READS = frozenset(
    {"list-vms", "list-hosts", "list-images", "list-snapshots", "show-vm", "offer-vm", "check-host", "ping"}
)
"""What a read-only operator may ask; beside these, `open-stream` of kind `log`."""

OF_ALL_VMS = frozenset({"list-vms", "list-hosts", "list-images", "check-host", "ping"})
"""What an operator of a label may ask beside what speaks of one VM. Of `list-vms` he gets his own only."""

OF_HOSTS = frozenset({"offer-vm", "show-vm"})
"""What one host may ask of another, beside a create that it hands on."""

Labels = Mapping[str, str]


ALL = OperatorRights()


@dataclass(frozen=True)
class Access:
    """Who may do what. `operators` None: whoever reaches the broker may do everything (play mode, agents by hand)."""

    operators: Mapping[str, OperatorRights] | None = None

    def rights_of(self, incoming: Incoming) -> OperatorRights:
        """The rights of the operator whose command this is.

        :raise Refused: `forbidden`, when it is none's.
        """
        if self.operators is None:
            return ALL
        if incoming.internal and not _is_of_hosts(incoming):
            raise _forbidden(f"{incoming.sender} is a host: hosts don't command, they hand creates on")
        if incoming.internal and incoming.request.command.name in OF_HOSTS:
            return ALL
        if not incoming.operator:
            return self._rights_of_unsigned(incoming)
        rights = self.operators.get(incoming.operator)
        if rights is None:
            raise _forbidden(
                f"{incoming.operator[:64]!r} is none of this fleet's operators", "aetherscale_operators lists them"
            )
        if not incoming.internal and not incoming.died and incoming.exchange != topology.EXCHANGE:
            raise _forbidden(
                f"a command of {incoming.operator}'s that came by {incoming.exchange!r}, not by `computing`: a copy",
                _COPY,
            )
        return rights

    def _rights_of_unsigned(self, incoming: Incoming) -> OperatorRights:
        """The article's client does not sign. That it is an operator's is sure, but not which one's."""
        if not incoming.internal and incoming.exchange != topology.EXCHANGE:
            raise _forbidden("an unsigned command that was not published to `computing`", _SIGN)
        assert self.operators is not None
        if any(rights.restricted for rights in self.operators.values()):
            raise _forbidden("an unsigned command: some operators may not do everything, and this may be theirs", _SIGN)
        return ALL

    def check(self, incoming: Incoming, labels_of: Mapping[str, Labels]) -> None:
        """Nothing, if whoever asks this may.

        :param labels_of: the labels of each VM that this host knows, by its id.
        :raise Refused: `forbidden`, with who and what; nothing was changed.
        """
        rights, request = self.rights_of(incoming), incoming.request
        if rights.readonly and not _only_reads(request):
            raise _forbidden(f"operator {incoming.operator} may only read, and {_what(request)} does more")
        if rights.labels:
            self._check_labels(incoming, rights.labels, labels_of)

    def _check_labels(self, incoming: Incoming, wanted: Labels, labels_of: Mapping[str, Labels]) -> None:
        request = incoming.request
        whose = f"operator {incoming.operator} may only touch VMs with {_said(wanted)}"
        if isinstance(request.options, CreateVm):
            if not has(request.options.labels, wanted):
                raise _forbidden(f"{whose}; the new VM has not", f"create-vm --label {_said(wanted, ' --label ')}")
            self._check_vm(request.options.clone_of, wanted, labels_of, whose)
        elif request.command.reach is Reach.HOLDER and request.vm_id is not None:
            self._check_vm(request.vm_id, wanted, labels_of, whose)
        elif request.command.name not in OF_ALL_VMS:
            raise _forbidden(f"{whose}; {request.command.name} speaks of more than those")

    def _check_vm(self, vm_id: str | None, wanted: Labels, labels_of: Mapping[str, Labels], whose: str) -> None:
        """A VM that this host does not know is refused by whoever it is unknown to, in its own words."""
        labels = labels_of.get(vm_id or "")
        if labels is not None and not has(labels, wanted):
            raise _forbidden(f"{whose}; VM {vm_id} has not")

    def sees(self, incoming: Incoming, labels: Labels) -> bool:
        """Whether a VM with these labels is in the list that whoever asks is given."""
        return has(labels, self.rights_of(incoming).labels)


def has(labels: Labels, wanted: Labels) -> bool:
    """Whether a VM has all the labels that are wanted."""
    return all(labels.get(key) == value for key, value in wanted.items())


def _is_of_hosts(incoming: Incoming) -> bool:
    name = incoming.request.command.name
    return name in OF_HOSTS or (name == "create-vm" and incoming.hops > 0)


def _only_reads(request: Request) -> bool:
    options = request.options
    return request.command.name in READS or (isinstance(options, OpenStream) and options.kind == "log")


def _what(request: Request) -> str:
    options = request.options
    return f"{request.command.name} of kind {options.kind}" if isinstance(options, OpenStream) else request.command.name


def _said(labels: Labels, between: str = ", ") -> str:
    return between.join(f"{key}={value}" for key, value in sorted(labels.items()))


_SIGN = "set `user_id` to your broker user, as aetherscale-cli does"
_COPY = (
    "some host sends copies of operators' commands: run site.yml, which tells what a host had bound, and takes it away"
)
_ASK = "ask who keeps the inventory: aetherscale_operators, aetherscale_readonly_operators, aetherscale_operator_labels"


def _forbidden(reason: str, hint: str = _ASK) -> Refused:
    return Refused("forbidden", reason, hint)
