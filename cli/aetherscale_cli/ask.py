"""Asking: publish, take events until the answers are there, and hand over what came. Decides nothing itself."""

import os
import time
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from aetherscale_cli import interrupts
from aetherscale_cli.errors import CliError, Exit, NoAgent
from aetherscale_cli.gather import Gathering, Missing, classify, find_absent
from aetherscale_cli.settle import Call, Settling
from aetherscale_cli.wire import Counted, Delivered, Message, Nacked, Reply, Returned, Session, decode_reply
from aetherscale_protocol import names, topology
from aetherscale_protocol.answers import HostReport
from aetherscale_protocol.commands import COMMANDS, Command, Reach, encode_request
from aetherscale_protocol.options import NoOptions, Options, ShowVm

GRACE_S = 1.0
"""How much longer than the deadline we wait for the answer of an agent that used all of it."""

PROMPT_S = 0.5
"""How long answers are waited for before those that are there are told, and it is asked who is in the fleet. A thousand
hosts that are well take less.
"""

AGAIN_S, AGAIN_LATER = 0.1, 2
"""How soon a question is asked again that the broker had no room for, and by how much later each time after: of a queue
that is full some is taken all the time, but hosts that have room get each of these questions, too."""
FULL_HINT = "ask again: somebody sends more than a host can take"

_INQUIRY_S = 2.0
"""How long finding out who is missing may take."""


_HOLDER_S = topology.HOST_TTL_MS / 1000 + 0.5
"""How long finding out who holds a VM may take: a host that is down is said to be once the question died with it."""


class Everyone(Struct, frozen=True):
    """The answers of all hosts, in the hosts' order, and who is missing; `nameless` more are silent.

    `full`: some of them may not have been asked, for the broker had no room for the question in a host's queue.
    """

    replies: tuple[Reply, ...]
    missing: tuple[Missing, ...]
    nameless: int
    unreadable: int
    full: bool = False


def make_message(command: str, options: Options, key: str, timeout: float, request_id: str | None = None) -> Message:
    """A command to be published with `key`, whose deadline lies `timeout` seconds ahead."""
    return Message(
        key=key,
        body=encode_request(command, options),
        correlation_id=os.urandom(8).hex(),
        request_id=request_id or names.new_request_id(),
        deadline_ms=_deadline_ms(timeout),
        changes=COMMANDS[command].changes,
    )


def _deadline_ms(timeout: float) -> int:
    return int((time.time() + timeout) * 1000)


def make_call(command: Command, options: Options, timeout: float, request_id: str | None, name: str = "") -> Call:
    """One command for one VM or host, ready to be sent; `name`: of the VM, if it was named so."""
    vm_id: str = getattr(options, "vm_id", "")
    message = make_message(command.name, options, _key(command, options), timeout, request_id)
    return Call(command, options, vm_id, message, name=name)


def _key(command: Command, options: Options) -> str:
    if command.reach is Reach.HOST:
        return names.host_key(getattr(options, "host", ""))
    return command.name if command.reach is Reach.ONE else names.vm_key(getattr(options, "vm_id", ""))


def ask_everyone(
    session: Session,
    command: str,
    timeout: float,
    options: Options | None = None,
    tell: Callable[[Sequence[Reply]], None] | None = None,
) -> Everyone:
    """What all hosts answer to `command`; waits for the last of those alive, at most `timeout` seconds.

    Who is missing is asked for while they are waited for: after that there is only to look who is still alive.

    :param tell: is called with the answers so far when there are still some to come after `PROMPT_S`, and then with
        each that comes. What it takes is not taken from the time for answers.
    :raise CliError: when no agent is running, none could be asked, or the broker fails.
    """
    deadline = time.monotonic() + timeout
    message = make_message(command, options or NoOptions(), command, timeout)
    session.publish(message)
    session.count_consumers(topology.HOSTS)
    gathering, told, prompt = Gathering(), 0, time.monotonic() + PROMPT_S
    late, full, again = False, False, AGAIN_S
    asked, informant, fleet = "", None, list[str]()
    while not gathering.complete:
        event = session.next_event(deadline if late else min(deadline, prompt))
        match event:
            case None if late or prompt >= deadline:
                break
            case None:
                late = True
            case Delivered(message.correlation_id, body):
                gathering.take(decode_reply(body))
            case Delivered(correlation_id, body) if correlation_id == asked:
                fleet = _fleet_in(body)
            case Counted(topology.HOSTS, consumers):
                gathering.count(consumers)
                if consumers == 0 and not gathering.by_host:
                    raise NoAgent
            case Returned(message.correlation_id):
                raise NoAgent
            case Nacked(message.correlation_id):  # not for one host, or more; the others have it
                full = time.monotonic() + again >= deadline
                if not full:
                    time.sleep(again)
                    session.publish(message)
                    again *= AGAIN_LATER
        if late and not asked and (informant := gathering.find_informant()) is not None:
            asked = _ask_fleet(session, informant)
        if tell is not None and late and len(gathering.replies) > told:
            begun = time.monotonic()
            tell(gathering.replies[told:])
            told, deadline = len(gathering.replies), deadline + time.monotonic() - begun
    if full and not gathering.replies:
        raise CliError(f"the broker did not take {command}: a host's queue is full", FULL_HINT)
    missing = _find_missing(session, gathering, fleet, informant)
    replies = sorted(gathering.replies, key=lambda reply: reply.answer.host or "")
    nameless = max(0, (gathering.silent or 0) - sum(m.state == "silent" for m in missing))
    return Everyone(tuple(replies), tuple(missing), nameless, gathering.unreadable, full)


def _find_missing(session: Session, gathering: Gathering, fleet: list[str], asked: str | None) -> list[Missing]:
    """Who of the fleet did not answer, and why; nobody is asked when nobody is missing.

    :param fleet: its names, as far as they are known; asked for if they are not those that the answers speak of.
    :param asked: the host that was asked for them: if they are not known, rather another is asked.
    """
    informant = gathering.find_informant(but=asked)
    if informant is None:
        return []
    deadline = time.monotonic() + _INQUIRY_S
    if not gathering.is_fleet(fleet):
        fleet = _fetch_fleet(session, informant, deadline)
    absent = find_absent(gathering, fleet)
    consumers: list[int | None] = []
    if gathering.silent != 0:
        queues = [*map(names.host_queue, absent), topology.HOSTS]
        *consumers, recount = _count(session, queues, deadline)  # who was silent may be known to be dead by now
        gathering.count(gathering.alive if recount is None else recount)
    return classify(absent, dict(zip(absent, consumers, strict=False)), gathering.silent)


def _ask_fleet(session: Session, host: str) -> str:
    """Ask a host for the fleet's names; the question's correlation id."""
    message = make_message("list-hosts", NoOptions(), names.host_key(host), _INQUIRY_S)
    session.publish(message)
    return message.correlation_id


def _fetch_fleet(session: Session, host: str, deadline: float) -> list[str]:
    """The fleet's names, as this host was told them; none if it does not say."""
    asked = _ask_fleet(session, host)
    while (event := session.next_event(deadline)) is not None:
        match event:
            case Delivered(correlation_id, body) if correlation_id == asked:
                return _fleet_in(body)
            case Returned(correlation_id) | Nacked(correlation_id) if correlation_id == asked:
                return []
    return []


def _fleet_in(body: bytes) -> list[str]:
    reply = decode_reply(body)
    try:
        return msgspec.json.decode(reply.answer.response or b"", type=HostReport).fleet if reply is not None else []
    except ValueError:
        return []


def _count(session: Session, queues: Sequence[str], deadline: float) -> list[int | None]:
    """How many consume each of these queues; None of what is not said in time. One round trip for all."""
    for queue in queues:
        session.count_consumers(queue)
    return [_take_count(session, queue, deadline) for queue in queues]


def _take_count(session: Session, queue: str, deadline: float) -> int | None:
    while (event := session.next_event(deadline)) is not None:
        match event:
            case Counted(counted, consumers) if counted == queue:
                return consumers
    return None


def ask_each(session: Session, calls: Sequence[Call], timeout: float) -> None:
    """Send the calls, and wait until each is settled: by an answer, or by why there is none.

    They are sent all at once, but of creates only some (`settle.CREATES_AT_ONCE`), the next when one is answered or
    its time is over. Each has `timeout` seconds from when it is sent.

    What changes something is only sent when the broker knows of an agent: left in a queue it might be
    done later, behind the back of somebody who was told that no agent is running.

    :raise CliError: when nothing was sent.
    """
    settling = Settling(calls)
    if any(call.command.changes for call in calls):
        if _count(session, [topology.HOSTS], time.monotonic() + timeout) == [0]:
            raise NoAgent
    else:
        session.count_consumers(topology.HOSTS)
    try:
        _send_and_wait(session, settling, timeout)
    except CliError as error:
        settling.lose(error)
    except KeyboardInterrupt:
        settling.lose(CliError("interrupted", exit_code=Exit.INTERRUPTED))
        raise


def ask_to_the_end(session: Session, calls: Sequence[Call], timeout: float) -> bool:
    """The same, and where it ends before its time each call says so, too: not sent, or nobody knows what came of it.

    :return: whether it was by Ctrl-C, which from here on is held back.
    """
    ended = interrupts.attempt(lambda: ask_each(session, calls, timeout))
    if ended is not None:
        Settling(calls).lose(interrupts.reason_of(ended))
    return isinstance(ended, KeyboardInterrupt)


def _send_and_wait(session: Session, settling: Settling, timeout: float) -> None:
    while not settling.complete:
        for call in settling.release(time.monotonic() + timeout + GRACE_S):
            call.message = msgspec.structs.replace(call.message, deadline_ms=_deadline_ms(timeout))
            session.publish(call.message)
        until = settling.wake_at
        event = session.next_event(until)
        if event is not None:
            settling.take(event)
        else:
            late = settling.find_late(until)
            settling.time_out(late, timeout, _find_holders(session, settling, late))


def _find_holders(session: Session, settling: Settling, late: Sequence[Call]) -> dict[str, str]:
    """The hosts, by VM id, that hold the VMs of commands which nobody answered, as far as they or others say so."""
    silent = [call for call in late if call.command.changes and call.command.reach is Reach.HOLDER]
    questions = {}
    for call in silent:
        question = make_message("show-vm", ShowVm(vm_id=call.vm_id, console_lines=0), call.message.key, _HOLDER_S)
        questions[question.correlation_id] = call.vm_id
        session.publish(question)
    holders: dict[str, str] = {}
    deadline = time.monotonic() + _HOLDER_S
    while len(holders) < len(questions) and (event := session.next_event(deadline)) is not None:
        if isinstance(event, Delivered) and event.correlation_id in questions:
            holders[questions[event.correlation_id]] = _holder_in(decode_reply(event.body))
        else:
            settling.take(event)  # the answer itself, a little late
    return holders


def _holder_in(reply: Reply | None) -> str:
    if reply is None:
        return ""
    if reply.answer.ok:
        return f"host {reply.answer.host} holds it, and answers"
    down = reply.answer.execution_info.down
    return f"host {down}, which holds it, is not running" if down else ""
