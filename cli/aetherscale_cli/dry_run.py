"""`create-vm --dry-run`: what every host says to it, and which one would get it. Changes nothing."""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from aetherscale_cli import ask, report, text
from aetherscale_cli.arguments import Invocation
from aetherscale_cli.errors import Exit
from aetherscale_cli.report import Outcome
from aetherscale_cli.wire import Reply, Session
from aetherscale_protocol.answers import Offer
from aetherscale_protocol.options import CreateVm

COLUMNS = ("HOST", "WOULD TAKE IT", "SCORE", "ALIKE", "WHY NOT")


class Bid(Struct, frozen=True):
    """What a host says: an offer, or why not."""

    host: str
    offer: Offer | None = None
    why: str = ""


def ask_for_offers(session: Session, invocation: Invocation) -> Outcome:
    """Ask all hosts, and tell.

    :raise CliError: when no agent is running, or the broker fails.
    """
    options = invocation.options[0]
    assert isinstance(options, CreateVm)
    everyone = ask.ask_everyone(session, "offer-vm", invocation.timeout, options)
    bids = [read_bid(reply) for reply in everyone.replies if reply.answer.execution_info.code != "host-down"]
    best = choose(bids, options)
    outcome = Outcome(stdout=_table(bids, best, options))
    if invocation.output == "name":
        outcome.stdout = report.json_list([msgspec.json.encode({"host": host}) for host in best])
    elif invocation.as_json:
        outcome.stdout = report.json_list([reply.raw for reply in everyone.replies])
    if not best:
        outcome.fail("no host would take this VM", None, Exit.FAILED)
    elif not invocation.as_json:
        hosts = " or ".join(text.safe(host) for host in best)
        outcome.notes.append(f"{hosts} would get it; nothing was changed.")
    report.report_missing(outcome, everyone, invocation.timeout)
    return outcome


def read_bid(reply: Reply) -> Bid:
    """What this answer to offer-vm says."""
    host = reply.answer.host or "?"
    if not reply.answer.ok:
        return Bid(host, why=reply.answer.execution_info.reason or "refused without a reason")
    try:
        return Bid(host, msgspec.json.decode(reply.answer.response, type=Offer))
    except ValueError:
        return Bid(host, why="its answer can't be read")


def choose(bids: Sequence[Bid], options: CreateVm) -> list[str]:
    """The host that would get it, or those, by name, of which one would; none if nobody takes it.

    With spread the one with the fewest alike, with near the one with the most; then the highest score, then the first
    by name. Without either it is the broker that decides, by score alone: those that are equal take turns.
    """
    weight = -1 if options.spread else 1 if options.near else 0
    ranked = sorted(((-weight * bid.offer.alike, -bid.offer.score), bid.host) for bid in bids if bid.offer is not None)
    best = [host for rank, host in ranked if rank == ranked[0][0]]
    return best[:1] if weight else best


def _table(bids: Sequence[Bid], best: Sequence[str], options: CreateVm) -> str:
    would = "yes, gets it" if len(best) == 1 else "yes, may get it"
    rows = [
        (bid.host, would if bid.host in best else "yes", str(bid.offer.score), str(bid.offer.alike), "")
        if bid.offer is not None
        else (bid.host, "no", "", "", bid.why)
        for bid in sorted(bids, key=lambda bid: bid.host)
    ]
    return text.partial_table(COLUMNS, rows, {"WHY NOT"}, () if options.spread or options.near else ("ALIKE",))
