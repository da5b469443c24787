"""Decisions about a create: every combination of facts is walked to its end, with every answer the world may give."""

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from functools import cache
from itertools import product

import pytest

from aetherscale_agent import decide as d
from aetherscale_agent.decide import Claim, Facts, HostOffer, next_step
from aetherscale_protocol.errors import CODES, Refused, image_unknown

OWN, PEER, THIRD = "h1", "h2", "h3"
NOW, DEADLINE = 1000.0, 1060.0
LATE = DEADLINE + 1

NO_MEMORY = Refused("no-capacity", "memory: 9 MiB wanted, 1 MiB free")
NO_IMAGE = Refused("image-unknown", image_unknown("tiny"))

CLAIMS = [Claim(won=True), Claim(won=False), Claim(won=False, owner=PEER), Claim(won=False, owner=OWN)]
OFFERS = [
    [],
    [HostOffer(OWN, None, NO_MEMORY.reason)],
    [HostOffer(OWN, 10), HostOffer(PEER, None, "drained")],
    [HostOffer(PEER, 5), HostOffer(THIRD, 5), HostOffer(OWN, 9)],
    [HostOffer(PEER, 0)],
    [HostOffer(PEER, -1), HostOffer(THIRD, None, image_unknown("tiny"))],
]

OVER = Refused("no-host", "no host can take this VM", "list-hosts shows what is free")

Path = list[tuple[Facts, d.Step]]


def facts(**known: object) -> Facts:
    return replace(Facts(host=OWN, request_id="r1", now=NOW, deadline=DEADLINE), **known)  # type: ignore[arg-type]


def starts() -> Iterator[Facts]:
    """Every create that may come in."""
    for recorded, late, hops, dead, misfit in product(
        (None, "r1", "r2"), (False, True), range(d.MAX_HOPS + 2), (None, "", PEER), (None, NO_MEMORY, NO_IMAGE)
    ):
        yield facts(
            recorded_request=recorded,
            now=LATE if late else NOW,
            hops=hops,
            dead_lettered=dead is not None,
            dead_host=dead or "",
            misfit=misfit,
        )
    yield from successors()
    for sought, hops, misfit in product(("spread", "near"), (0, 1), (None, NO_MEMORY)):
        yield facts(choice=choice(sought, misfit), hops=hops, misfit=misfit)


def choice(sought: d.Sought, misfit: Refused | None = None) -> d.Choice:
    """As `CreateFlow` makes it."""
    own = HostOffer(OWN, 9, alike=1) if misfit is None else HostOffer(OWN, None, misfit.reason)
    return d.Choice(sought, own)


def successors() -> Iterator[Facts]:
    """Every create of an id that this host guards against copies of creates that are over."""
    for grave, late, hops, dead, misfit, sought in product(
        (False, True), (False, True), (0, 2, d.MAX_HOPS), (False, True), (None, NO_MEMORY), ("", "spread")
    ):
        yield facts(
            guards_until=NOW + 30,
            holds_grave=grave,
            now=LATE if late else NOW,
            hops=hops,
            dead_lettered=dead,
            misfit=misfit,
            choice=choice("spread", misfit) if sought else None,
        )
    yield facts(refused_before=OVER)


def learn(known: Facts, step: d.Step) -> list[Facts]:
    """What may be known after a step; nothing, if it was the last. `HandOn` may fail: see handlers._hand_on."""
    match step:
        case d.MakeClaim():
            return [replace(known, claim=claim) for claim in CLAIMS]
        case d.Probe():
            return [replace(known, held_elsewhere=held) for held in (False, True)]
        case d.AskOffers():
            return [replace(known, offers=copy(o), silent_hosts=s) for o, s in product(OFFERS, (0, 2))]
        case d.LetGo():
            return [replace(known, claim=None, let_go=True)]
        case d.HandOn(host):
            if known.claim is not None and not known.claim.won:
                return [replace(known, hops=d.MAX_HOPS)]
            return [replace(known, offers=[o for o in known.offers or [] if o.host != host])]
    return []


def walk(known: Facts, path: Path) -> Iterator[Path]:
    """All ways to the end from here; the clock may run out between any two steps."""
    step = next_step(known)
    path = [*path, (known, step)]
    assert len(path) < 12, path
    after = learn(known, step)
    if not after or isinstance(step, d.HandOn):
        yield path
    for later in after:
        yield from walk(later, path)
        if later.now <= later.deadline:
            yield from walk(replace(later, now=LATE), path)


@cache
def paths() -> list[Path]:
    return [path for start in starts() for path in walk(start, [])]


@cache
def moments() -> list[tuple[Facts, d.Step]]:
    return [moment for path in paths() for moment in path]


LAST = (d.Rejoin, d.Refuse, d.Leave, d.Begin, d.HandOn)


def test_the_walk_is_not_empty() -> None:
    assert len(paths()) > 2000
    assert {type(step) for _, step in moments()} == set(d.Step.__subclasses__())


def test_every_create_comes_to_an_end_soon() -> None:
    for path in paths():
        assert isinstance(path[-1][1], LAST)
    assert max(map(len, paths())) <= 9


def test_nothing_is_asked_twice_but_a_claim_that_was_let_go_of() -> None:
    for path in paths():
        let_go = sum(isinstance(step, d.LetGo) for _, step in path)
        assert let_go <= 1
        for question, most in ((d.MakeClaim, 1 + let_go), (d.Probe, 1), (d.AskOffers, 1)):
            assert sum(isinstance(step, question) for _, step in path) <= most, path


def test_only_a_claim_of_its_own_that_guards_nothing_is_let_go_of() -> None:
    for known, step in moments():
        if isinstance(step, d.LetGo):
            assert known.claim == Claim(won=True)
            assert known.recorded_request is None
            assert known.misfit is not None
            assert not known.dead_lettered


def test_no_begin_without_a_claim_that_was_won_and_a_probe_that_found_nobody() -> None:
    for known, step in moments():
        if isinstance(step, d.Begin):
            assert known.misfit is None
            assert known.recorded_request is None
            if not known.holds_grave:  # for which it need not ask: the directory names this host
                assert known.claim == Claim(won=True)
                assert known.held_elsewhere is False


def test_a_dead_lettered_create_is_never_begun_nor_given_to_a_host_by_its_offer() -> None:
    for known, step in moments():
        if known.dead_lettered:
            assert not isinstance(step, d.Begin | d.HandOn | d.AskOffers), known


def test_a_final_no_follows_a_claim_that_was_won_and_a_probe_that_found_nobody() -> None:
    """Rules 2 and 3: the claim stays, so that a late copy meets the refusal; and a VM outlives its claim."""
    for known, step in moments():
        if isinstance(step, d.Refuse) and step.final and not known.holds_grave:
            assert known.claim == Claim(won=True), known
            assert known.held_elsewhere is False, known


def test_a_no_that_is_not_final_says_that_others_may_know_more() -> None:
    for known, step in moments():
        if isinstance(step, d.Refuse) and not step.final:
            assert step.error.code in ("vm-id-taken", "outcome-unknown") or step.error is known.refused_before


def test_a_dead_lettered_create_that_somebody_owns_has_an_unknown_outcome() -> None:
    for known, step in moments():
        if known.dead_lettered and known.claim in CLAIMS[1:] and known.recorded_request is None:
            assert known.claim is not None
            assert isinstance(step, d.Refuse)
            assert step.error.code == "outcome-unknown"
            assert (known.claim.owner or "another host") in step.error.reason


def test_what_is_late_is_neither_begun_nor_placed() -> None:
    """Rule 7. It is refused, unless somebody owns the id: then the owner says what became of it."""
    for known, step in moments():
        if known.now > known.deadline and known.recorded_request is None:
            assert not isinstance(step, d.Begin | d.AskOffers), known
            if isinstance(step, d.HandOn):
                assert known.claim == Claim(won=False, owner=step.host)
            if isinstance(step, d.Refuse):
                assert step.error.code == ("deadline-passed" if step.final else "outcome-unknown")
                assert not step.final or OWN in step.error.reason


def test_a_request_that_the_journal_knows_is_rejoined_and_another_is_refused_as_taken() -> None:
    for known, step in moments():
        if known.recorded_request == known.request_id:
            assert step == d.Rejoin(prolong=known.deadline > known.recorded_deadline)
        elif known.recorded_request is not None:
            assert isinstance(step, d.Refuse)
            assert (step.error.code, step.final, step.remember) == ("vm-id-taken", False, True)
        else:
            assert not isinstance(step, d.Rejoin)


def test_hops_are_bounded() -> None:
    """What has travelled enough is neither handed on nor probed for: both publish it again."""
    for known, step in moments():
        if known.hops >= d.MAX_HOPS:
            assert not isinstance(step, d.HandOn | d.Probe), known


def test_nothing_is_handed_to_oneself() -> None:
    for known, step in moments():
        if isinstance(step, d.HandOn):
            assert step.host
            assert step.host != known.host


def test_it_is_let_go_of_only_when_somebody_else_has_it() -> None:
    for known, step in moments():
        if isinstance(step, d.Leave):
            assert known.held_elsewhere is True


def test_a_probe_comes_after_the_claim() -> None:
    for known, step in moments():
        if isinstance(step, d.Probe):
            assert known.claim == Claim(won=True)


def test_offers_are_asked_for_only_what_does_not_fit_here_or_seeks_a_place() -> None:
    for known, step in moments():
        if isinstance(step, d.AskOffers):
            assert known.misfit is not None or (known.choice is not None and known.hops == 0)


def test_what_guards_an_id_neither_lets_go_of_it_nor_gives_it_to_a_host_by_its_offer() -> None:
    for known, step in moments():
        if known.guards_until:
            assert not isinstance(step, d.LetGo | d.AskOffers), known
            if isinstance(step, d.HandOn):
                assert known.claim == Claim(won=False, owner=step.host)


def test_a_create_that_is_over_is_answered_the_same_again() -> None:
    assert next_step(facts(refused_before=OVER)) == d.Refuse(OVER)


def test_a_guard_without_room_says_for_how_long() -> None:
    error = refused(misfit=NO_MEMORY, guards_until=NOW + 30, name="web1")
    assert (error.code, "keeps the name web1 for 30 s more" in error.reason) == ("no-capacity", True)


@pytest.mark.parametrize(
    ("sought", "peer", "step"),
    [
        ("spread", HostOffer(PEER, 5, alike=0), d.HandOn(PEER)),
        ("spread", HostOffer(PEER, 50, alike=1), d.HandOn(PEER)),
        ("spread", HostOffer(PEER, 5, alike=1), d.MakeClaim()),
        ("spread", HostOffer(PEER, 50, alike=2), d.MakeClaim()),
        ("near", HostOffer(PEER, 5, alike=2), d.HandOn(PEER)),
        ("near", HostOffer(PEER, 50, alike=0), d.MakeClaim()),
        ("near", HostOffer(PEER, None, "drained"), d.MakeClaim()),
    ],
)
def test_a_place_that_is_sought_comes_before_room(sought: d.Sought, peer: HostOffer, step: d.Step) -> None:
    mine = choice(sought)
    assert next_step(facts(choice=mine)) == d.AskOffers()
    assert next_step(facts(choice=mine, offers=[peer])) == step
    assert next_step(facts(choice=mine, offers=[peer], hops=1)) == d.MakeClaim()


@pytest.mark.parametrize(("sought", "host"), [("spread", THIRD), ("near", PEER)])
def test_a_place_is_sought_too_by_a_host_that_cannot_take_it(sought: d.Sought, host: str) -> None:
    offers = [HostOffer(PEER, 50, alike=5), HostOffer(THIRD, 90, alike=0)]
    if sought == "spread":
        offers = [HostOffer(PEER, 90, alike=5), HostOffer(THIRD, 50, alike=0)]
    known = facts(choice=choice(sought, NO_MEMORY), misfit=NO_MEMORY)
    assert next_step(known) == d.AskOffers()
    assert next_step(replace(known, offers=offers)) == d.HandOn(host)


def test_every_error_has_a_code_and_a_hint() -> None:
    for _, step in moments():
        if isinstance(step, d.Refuse):
            assert step.error.code in CODES
            assert step.error.reason
            assert step.error.hint


def test_the_deadline_itself_is_not_late() -> None:
    assert next_step(facts(now=DEADLINE)) == d.MakeClaim()


# Single decisions


@pytest.mark.parametrize(
    ("known", "step"),
    [
        ({}, d.MakeClaim()),
        ({"claim": Claim(True)}, d.Probe()),
        ({"now": LATE}, d.MakeClaim()),
        ({"now": LATE, "claim": Claim(True)}, d.Probe()),
        ({"now": LATE, "claim": Claim(False, PEER)}, d.HandOn(PEER)),
        ({"now": LATE, "misfit": NO_MEMORY, "offers": OFFERS[4]}, d.MakeClaim()),
        ({"claim": Claim(True), "held_elsewhere": False}, d.Begin()),
        ({"claim": Claim(True), "held_elsewhere": True}, d.Leave()),
        ({"claim": Claim(False, PEER)}, d.HandOn(PEER)),
        ({"misfit": NO_MEMORY}, d.AskOffers()),
        ({"misfit": NO_MEMORY, "offers": OFFERS[3]}, d.HandOn(PEER)),
        ({"misfit": NO_MEMORY, "offers": OFFERS[1]}, d.MakeClaim()),
        ({"misfit": NO_MEMORY, "offers": OFFERS[1], "claim": Claim(False, PEER)}, d.HandOn(PEER)),
        ({"misfit": NO_MEMORY, "offers": OFFERS[1], "claim": Claim(True)}, d.Probe()),
        ({"misfit": NO_MEMORY, "offers": OFFERS[3], "hops": d.MAX_HOPS}, d.MakeClaim()),
        ({"misfit": NO_MEMORY, "offers": OFFERS[3], "hops": 2}, d.MakeClaim()),
        ({"misfit": NO_MEMORY, "offers": OFFERS[3], "hops": 2, "claim": Claim(True)}, d.LetGo()),
        ({"misfit": NO_MEMORY, "offers": OFFERS[3], "hops": 2, "claim": Claim(False, PEER)}, d.HandOn(PEER)),
        ({"misfit": NO_MEMORY, "offers": OFFERS[3], "hops": 2, "let_go": True}, d.HandOn(PEER)),
        ({"dead_lettered": True}, d.MakeClaim()),
        ({"dead_lettered": True, "claim": Claim(True)}, d.Probe()),
        ({"dead_lettered": True, "claim": Claim(True), "held_elsewhere": True}, d.Leave()),
    ],
)
def test_one_step(known: dict[str, object], step: d.Step) -> None:
    assert next_step(facts(**known)) == step


def refused(**known: object) -> Refused:
    step = next_step(facts(claim=Claim(True), held_elsewhere=False, **known))
    assert isinstance(step, d.Refuse)
    assert step.final
    return step.error


def test_an_image_that_no_host_has_is_refused_in_the_seeds_words() -> None:
    nobody = [HostOffer(OWN, None, NO_IMAGE.reason), HostOffer(PEER, None, NO_IMAGE.reason)]
    error = refused(misfit=NO_IMAGE, offers=nobody)
    assert (error.code, error.reason) == ("image-unknown", 'Image "tiny" does not exist')
    assert set(error.reasons) == {OWN, PEER}


def test_different_reasons_are_all_given() -> None:
    error = refused(misfit=NO_IMAGE, offers=[HostOffer(PEER, None, "drained")])
    assert (error.code, error.reason) == ("no-host", "no host can take this VM")
    assert error.reasons == {OWN: NO_IMAGE.reason, PEER: "drained"}


def test_silent_hosts_are_counted_and_the_image_is_not_said_to_be_nowhere() -> None:
    error = refused(misfit=NO_IMAGE, offers=[], silent_hosts=2)
    assert error.code == "no-host"
    assert "2 more did not answer" in error.reason


@pytest.mark.parametrize(("host", "words"), [(PEER, "host h2"), ("", "no agent")])
def test_what_nobody_took_says_whose_queue_it_died_in(host: str, words: str) -> None:
    error = refused(dead_lettered=True, dead_host=host)
    assert error.code == "no-host"
    assert words in error.reason


# The best offer


@pytest.mark.parametrize(
    ("offers", "best"),
    [
        ([], None),
        ([HostOffer("a", None)], None),
        ([HostOffer("a", 0)], "a"),
        ([HostOffer("a", 1), HostOffer("b", 2)], "b"),
        ([HostOffer("b", 2), HostOffer("a", 2)], "a"),
        ([HostOffer("a", -5), HostOffer("b", None)], "a"),
        ([HostOffer("h10", 1), HostOffer("h2", 1)], "h10"),
    ],
)
def test_the_best_offer(offers: list[HostOffer], best: str | None) -> None:
    assert d.best_offer(offers) == best
    assert d.best_offer(offers[::-1]) == best


def test_clocks_are_named_as_what_may_be_off() -> None:
    late, far = d.too_late(OWN, 100.0, 190.4), d.too_far(OWN, 5000.0, 100.0, 600.0)
    assert "90 s ago by the clock of h1" in late.reason
    assert "4900 s ahead by the clock of h1; 600 s is the most" in far.reason
    for error in (late, far):
        assert "clocks" in (error.hint or "")
        assert not error.changed
