"""What must never be, whatever happened before."""

from collections.abc import Iterator

from aetherscale_testing.model.state import HostState, State


def find_violations(before: State, after: State) -> Iterator[str]:
    """What is wrong with a world that a move led to."""
    yield from _of_making(before, after)
    yield from _of_commands(before, after)
    yield from _of_answers(before, after)
    if is_quiet(after):
        yield from _of_rest(after)


def _of_making(before: State, after: State) -> Iterator[str]:
    if sum(host.disk for host in after.hosts) > 1:
        yield "TWO VMS"
    for old, new in zip(before.hosts, after.hosts, strict=True):
        if not new.disk or old.disk or new.entry is None:
            continue
        if before.told & {(new.entry.asker, "no"), (new.entry.asker, "taken")}:
            yield "MADE AFTER ITS CALLER WAS TOLD NO"
        if ("D", "deleted") in before.told and new.entry.request == "A":
            yield "MADE AGAIN AFTER IT WAS DELETED"
        if after.time > 0 and not new.entry.fresh:
            yield "MADE AFTER THE DEADLINE"


def _of_commands(before: State, after: State) -> Iterator[str]:
    for old, new in zip(before.hosts, after.hosts, strict=True):
        if _begins_start(old, new):
            if ("S", "not-done") in before.told:
                yield "STARTED AFTER ITS CALLER WAS TOLD NO"
            if after.time > 0:
                yield "STARTED AFTER THE DEADLINE"
        if _is_deleting(new.entry) and not _is_deleting(old.entry) and ("D", "not-done") in before.told:
            yield "DELETED AFTER ITS CALLER WAS TOLD NO"


def _begins_start(before: HostState, after: HostState) -> bool:
    """Whether this begins a start that was asked for, or goes on with one that was cut off."""
    asked_now = after.entry is not None and after.entry.timed and not (before.entry is not None and before.entry.timed)
    line = after.line
    goes_on = before.line is None and line is not None and line.outcome == "started" and not line.told
    return asked_now or (goes_on and after.entry is not None and after.entry.timed)


def _is_deleting(entry: object) -> bool:
    return getattr(entry, "phase", "") == "deleting" and getattr(entry, "ending", "") == "deleted"


def _of_answers(before: State, after: State) -> Iterator[str]:
    deleting = ("D", "asked") in after.told
    for request, outcome in after.told - before.told:
        said = {what for who, what in after.told if who == request}
        alive = [h.entry for h in after.hosts if h.entry is not None and h.entry.phase in ("bound", "ready")]
        if outcome == "no" and any(entry.asker == request or entry.asker + "+" == request for entry in alive):
            yield "TOLD NO, AND IT IS THERE"
        asked_again = any(entry.asker == request + "+" for entry in alive)
        if {"ok", "no"} <= said and not deleting and not asked_again:
            yield "TOLD OK AND NO"
        if request == "D" and outcome == "not-done":
            if any(_is_deleting(h.entry) for h in after.hosts):
                yield "TOLD NOT DONE, AND IT IS BEING DELETED"
            if "deleted" in said:
                yield "TOLD DELETED AND NOT DONE"
        if outcome == "ok" and len({who[:1] for who, what in after.told if what == "ok"}) > 1 and not deleting:
            yield "TWO REQUESTS WERE TOLD OK FOR ONE ID"


def is_quiet(state: State) -> bool:
    """Whether nothing is under way, and nobody is away."""
    if state.comp or state.dead or any(state.inbox):
        return False
    if not all(h.consuming and h.tied is None and h.line is None and not h.restock for h in state.hosts):
        return False
    return not any(_may_get_it_back(state, number) for number in range(len(state.hosts)))


def _may_get_it_back(state: State, number: int) -> bool:
    """Whether a host holds a VM that was contested, and that nobody else turned out to hold."""
    entry = state.hosts[number].entry
    contested = entry is not None and entry.phase in ("bound", "ready") and not entry.bound
    return contested and not any(state.bound)


def _of_rest(state: State) -> Iterator[str]:
    """What is left in a world in which nothing is under way."""
    for number, host in enumerate(state.hosts):
        entry = host.entry
        phase = entry.phase if entry is not None else ""
        if state.bound[number] and entry is None:
            yield "LEFT BEHIND: a binding"
        if phase in ("claimed", "deleting", "bound"):
            yield f"LEFT BEHIND: a journal entry, {phase}"
        if (host.disk or host.on) and phase != "ready":
            yield "LEFT BEHIND: a disk or a guest"
        if phase == "ready" and not host.disk:
            yield "A VM WITHOUT A DISK"
    if sum(state.bound) > 1:
        yield "TWO OWNERS"
    live = [h for h in state.hosts if h.entry is not None and h.entry.phase == "ready"]
    if live and not any(state.bound):
        yield "A VM THAT THE DIRECTORY DOES NOT KNOW"
    if ("A", "ok") in state.told and ("D", "asked") not in state.told and not live:
        yield "TOLD OK, AND IT IS NOWHERE"
