"""What to do next with a create: pure decisions, no I/O. The caller does the step and adds what it learnt.

The order is the protocol's: claim → probe → journal → bind → acknowledge and barrier → build → answer.
Every rule that a step depends on is one `if` here, so that a checker can walk all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from aetherscale_agent.journal import Record
from aetherscale_agent.succession import may_follow
from aetherscale_protocol.errors import Refused

MAX_HOPS = 6
"""How often a create may be handed on before the hosts are said to disagree."""


@dataclass(frozen=True)
class Claim:
    """Whether this host owns the id's claim; if not, who does ('' if the broker did not say)."""

    won: bool
    owner: str = ""


@dataclass(frozen=True)
class HostOffer:
    """What one host said to an offer: a score, or why not."""

    host: str
    score: int | None
    refusal: str = ""
    alike: int = 0  #: how many VMs it has of those that the new one is to be spread from, or near


Sought = Literal["", "spread", "near"]


@dataclass(frozen=True)
class Choice:
    """A create that asks for a place: away from some VMs, or near them. `own`: this host's own offer."""

    sought: Sought
    own: HostOffer


@dataclass
class Facts:
    """All that is known of one copy of a create. `None` means: not asked yet."""

    host: str
    request_id: str
    now: float
    deadline: float
    hops: int = 0
    dead_lettered: bool = False
    dead_host: str = ""  #: the host in whose queue the copy died, '' if it was the shared queue
    fleet: list[str] = field(default_factory=list)  #: the hosts that the inventory names, if it is known
    recorded_request: str | None = None  #: request id of the journal's record for this VM id
    refused_before: Refused | None = None  #: what the journal says of this create, if it is over already
    guards_until: float = 0.0  #: this host guards the id until then, against copies of creates that are over
    holds_grave: bool = False  #: the directory names this host for the id, because of a tombstone of another request
    recorded_deadline: float = 0.0  #: until when that record is kept at least
    same_options: bool = True  #: whether that record is of such a VM as this create asks for
    misfit: Refused | None = None
    offers: list[HostOffer] | None = None
    silent_hosts: int = 0
    claim: Claim | None = None
    held_elsewhere: bool | None = None  #: the probe's answer
    let_go: bool = False  #: the claim was taken back, if it was this host's
    name: str = ""  #: the name that is asked for, if one is
    wanted_host: str = ""  #: the host that is asked for, if one is
    choice: Choice | None = None


_NO_END = Refused(
    "outcome-unknown",
    f"this create was handed on {MAX_HOPS} times, and no host kept it",
    "repeat the command with the same ids; list-hosts shows what is free",
)


class Step:
    """What to do next."""


@dataclass(frozen=True)
class Rejoin(Step):
    """The journal knows this request: answer what it was, or will be, answered.

    `prolong`: it is asked with a later deadline than before, and must be remembered until then.
    """

    prolong: bool = False


@dataclass(frozen=True)
class Refuse(Step):
    """Say no. `final`: record it under the claim, so that a late copy meets the refusal. `remember`: note it in the
    record of the VM that has the id, for the same reason.
    """

    error: Refused
    final: bool = False
    remember: bool = False


@dataclass(frozen=True)
class MakeClaim(Step):
    """Claim the id."""


@dataclass(frozen=True)
class Probe(Step):
    """Ask the directory: publish this create to `vm.<id>`. Routed means that the holder has it now."""


@dataclass(frozen=True)
class LetGo(Step):
    """Take this host's claim back: it guards nothing, and would send the create back here from wherever it goes."""


@dataclass(frozen=True)
class AskOffers(Step):
    """Ask all hosts how well they could take it."""


@dataclass(frozen=True)
class HandOn(Step):
    """Give the create to this host, then let go of it."""

    host: str


@dataclass(frozen=True)
class Leave(Step):
    """Somebody else has it and will answer; let go of this copy."""


@dataclass(frozen=True)
class Begin(Step):
    """It is ours: journal, bind, acknowledge, build."""


def recorded_request(record: Record | None, request_id: str) -> str | None:
    """The request that a journal's record is of; None for what a create of this request may take the place of: what is
    left over from a copy that got no further, and tombstones of other requests.
    """
    if record is None or record.phase == "claimed" or may_follow(record, request_id):
        return None
    return record.request_id


def next_step(facts: Facts) -> Step:
    """What to do next with this copy of a create."""
    if facts.refused_before is not None:
        return Refuse(facts.refused_before)
    if facts.recorded_request is not None:
        return _known(facts)
    if facts.now > facts.deadline:
        return _settle(facts, too_late(facts.host, facts.deadline, facts.now))
    if facts.dead_lettered:
        return _settle(facts, _nobody_took_it(facts))
    if facts.misfit is not None:
        return _place_elsewhere(facts, facts.misfit)
    return _take(facts)


def _known(facts: Facts) -> Step:
    if facts.recorded_request == facts.request_id and not facts.same_options:
        other = Refused("vm-id-taken", "this request was made before, for a VM with other options", "leave its ids out")
        return Refuse(other)
    if facts.recorded_request == facts.request_id:
        return Rejoin(prolong=facts.deadline > facts.recorded_deadline)
    return Refuse(_taken(facts), remember=True)


def _taken(facts: Facts) -> Refused:
    if facts.name:
        return Refused("vm-id-taken", f"the name {facts.name} is taken by another VM", "choose another name")
    return Refused("vm-id-taken", "this VM id is taken by another request", "leave the id out, or choose another")


def _take(facts: Facts) -> Step:
    if facts.choice is not None and facts.hops == 0 and not facts.guards_until:
        if facts.offers is None:
            return AskOffers()
        best = best_offer([*facts.offers, facts.choice.own], facts.choice.sought)
        if best != facts.host and best is not None:
            return HandOn(best)
    if facts.holds_grave:
        return Begin()  # the directory names this host for the id, so nobody else can have it
    if facts.claim is None:
        return MakeClaim()
    if not facts.claim.won:
        return _to_owner(facts, facts.claim.owner)
    if facts.held_elsewhere is None:
        return Probe() if facts.hops < MAX_HOPS else Refuse(_NO_END)
    return Leave() if facts.held_elsewhere else Begin()


def _place_elsewhere(facts: Facts, misfit: Refused) -> Step:
    if facts.guards_until:
        return _settle(facts, _guarded(facts, misfit))
    if facts.offers is None:
        return AskOffers()
    sought = facts.choice.sought if facts.choice is not None else ""
    best = best_offer([o for o in facts.offers if o.host != facts.host], sought)
    if best is not None and facts.hops < MAX_HOPS:
        return HandOn(best) if facts.hops == 0 or facts.let_go else _let_go(facts)
    return _settle(facts, no_host(facts, misfit))


def _guarded(facts: Facts, misfit: Refused) -> Refused:
    what = f"the name {facts.name}" if facts.name else "this VM id"
    seconds = facts.guards_until - facts.now
    return Refused(
        "no-capacity",
        f"host {facts.host} can't take this VM ({misfit.reason}), and keeps {what} for {seconds:.0f} s more, because "
        "a VM or a create of it ended just now",
        "repeat it after that time, or choose another name",
    )


def _let_go(facts: Facts) -> Step:
    """A create that was handed to this host, which can't take it: perhaps because this host owns its claim."""
    if facts.claim is None:
        return MakeClaim()
    return LetGo() if facts.claim.won else _to_owner(facts, facts.claim.owner)


def _settle(facts: Facts, error: Refused) -> Step:
    """A final no. Claim first, so that no copy is taken afterwards; probe, because a VM outlives its claim."""
    if facts.holds_grave:
        return Refuse(error, final=True)
    if facts.claim is None:
        return MakeClaim()
    if not facts.claim.won:
        return _unknown(facts.claim.owner) if facts.dead_lettered else _to_owner(facts, facts.claim.owner)
    if facts.held_elsewhere is None:
        return Probe() if facts.hops < MAX_HOPS else Refuse(_NO_END)
    return Leave() if facts.held_elsewhere else Refuse(error, final=True)


def _to_owner(facts: Facts, owner: str) -> Step:
    if owner and owner != facts.host and facts.hops < MAX_HOPS:
        return HandOn(owner)
    return _unknown(owner)


def _unknown(owner: str) -> Refuse:
    who = f"host {owner}" if owner else "another host"
    return Refuse(
        Refused(
            "outcome-unknown",
            f"{who} holds this VM id and may have made the VM",
            "ask with show-vm, or repeat the command with the same ids",
        )
    )


def _nobody_took_it(facts: Facts) -> Refused:
    if facts.dead_host:
        reason = f"host {facts.dead_host}, to which this create was handed, is not running"
    else:
        reason = "no agent took this create in time"
    return Refused("no-host", reason, "repeat the command; list-hosts shows who is up")


def best_offer(offers: Sequence[HostOffer], sought: Sought = "") -> str | None:
    """The host with the highest score; of equals the first by name. If VMs are to be spread or near, their number
    comes first.
    """
    sign = {"": 0, "spread": 1, "near": -1}[sought]
    able = [o for o in offers if o.score is not None]
    return min(able, key=lambda o: (sign * o.alike, -(o.score or 0), o.host)).host if able else None


ABSENT = "its agent is not connected, or did not answer"


def no_host(facts: Facts, misfit: Refused) -> Refused:
    """The final refusal, with every host's reason; in the seed's words if no host at all has the image."""
    reasons = {facts.host: misfit.reason, **{o.host: o.refusal for o in facts.offers or [] if o.refusal}}
    wanted = [facts.wanted_host] if facts.wanted_host else []
    known = {*reasons, *(o.host for o in facts.offers or [])}
    absent = [host for host in dict.fromkeys([*facts.fleet, *wanted]) if host not in known]
    reasons = dict(sorted({**reasons, **dict.fromkeys(absent, ABSENT)}.items()))
    nameless = 0 if absent else facts.silent_hosts
    if set(reasons.values()) == {misfit.reason} and misfit.code == "image-unknown" and not nameless:
        return Refused("image-unknown", misfit.reason, "list-hosts shows the images of each host", reasons)
    quiet = f"; {nameless} more did not answer" if nameless else ""
    return Refused("no-host", f"no host can take this VM{quiet}", "list-hosts shows what is free", reasons)


def too_late(host: str, deadline: float, now: float) -> Refused:
    """The refusal of what came after its deadline."""
    return Refused(
        "deadline-passed",
        f"the deadline of this command passed {now - deadline:.0f} s ago by the clock of {host}; it was not begun",
        "if it was sent just now, compare the clocks of this host and of your machine",
    )


def too_far(host: str, deadline: float, now: float, limit: float) -> Refused:
    """The refusal of a deadline that lies further ahead than any client may ask for."""
    return Refused(
        "bad-request",
        f"the deadline lies {deadline - now:.0f} s ahead by the clock of {host}; {limit:.0f} s is the most",
        "ask for less, or compare the clocks of this host and of your machine",
    )
