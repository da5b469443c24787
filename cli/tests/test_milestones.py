"""Waiting for a VM to come so far: the wait may end, the VM is what it is."""

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from aetherscale_cli import broker, workflows
from aetherscale_cli.errors import CliError, Exit
from aetherscale_cli.milestones import Watched, report_waits, wait_and_report, wait_for
from aetherscale_protocol import names
from aetherscale_testing.session import MemorySession, refusal, success, vm

WEB1 = names.id_of_name("web1")
DOWN = refusal("host-down", "host h1, which holds this VM, is not running", down="h1")

GO_ON = "go on waiting: aetherscale-cli wait-vm web1 --for ssh --timeout 5m"

Use = Any


def course(*states: dict[str, Any] | None) -> Callable[..., Any]:
    """A host that tells of its VM: each time it is asked the next of these, and the last for ever."""
    left = list(states)

    def behave(_host: str, command: str, options: dict[str, Any]) -> Any:
        if command != "show-vm":
            return {}
        now = left.pop(0) if len(left) > 1 else left[0]
        if now is None or "execution-info" in now:
            return now
        return success(vm(options["vm-id"], name="web1") | {"host": "h1", "created": 0} | now)

    return behave


def wait(*states: dict[str, Any] | None, seconds: float = 300) -> tuple[Watched, MemorySession]:
    session = MemorySession({"h1": [vm(WEB1)]}, behave=course(*states))
    watched = Watched(WEB1, "web1")
    wait_for(session, [watched], "ssh", seconds, session.clock)
    return watched, session


def test_it_ends_with_the_milestone_and_asks_for_how_far_it_is() -> None:
    watched, session = wait(
        {"state": "starting"}, {"reached": ["running", "ip"]}, {"reached": ["running", "ip", "ssh"]}
    )
    assert watched.verdict == "reached"
    assert session.commands == ["show-vm"] * 3
    assert session.asked[0][2] == {"vm-id": WEB1, "console-lines": 1, "reached": True}


def test_pauses_grow_up_to_two_seconds() -> None:
    _, session = wait({}, seconds=60)
    assert 30 < len(session.asked) < 40


@pytest.mark.parametrize("code", ["host-down", "deadline-passed", "failed", "outcome-unknown"])
def test_a_host_that_is_too_busy_to_look_ends_no_wait(code: str) -> None:
    busy = refusal(code, "systemd did not answer within 10 s")
    watched, _ = wait({}, busy, busy, {"reached": ["running", "ip", "ssh"]})
    assert watched.verdict == "reached"
    watched, _ = wait(busy, seconds=3)
    outcome = report_waits([watched], "ssh", 3)
    assert outcome.exit_code == Exit.PARTIAL
    assert outcome.notes[0].endswith("VM web1 has not reached ssh: not within 3 s; systemd did not answer within 10 s")


@pytest.mark.parametrize("code", ["forbidden", "bad-request"])
def test_who_may_not_look_waits_no_longer(code: str) -> None:
    watched, session = wait(refusal(code, "no"))
    assert (watched.verdict, len(session.asked)) == ("hopeless", 1)


@pytest.mark.parametrize(
    ("state", "said", "hint"),
    [
        ({"state": "stopped"}, "VM web1 is stopped", f"start-vm web1 starts it; then {GO_ON}"),
        ({"state": "failed", "reason": "QEMU ended"}, "VM web1 is failed: QEMU ended", "show-vm web1 shows more"),
        ({"state": "paused"}, "VM web1 is paused", f"resume-vm web1 lets it go on; then {GO_ON}"),
        ({"state": "deleting"}, "VM web1 is deleting", ""),
        (refusal("vm-unknown", "VM does not exist"), "VM web1 does not exist any more", ""),
    ],
)
def test_a_vm_that_will_not_come_so_far_is_told_at_once(state: dict[str, Any], said: str, hint: str) -> None:
    watched, session = wait({"state": "starting"}, state)
    assert len(session.asked) == 2
    outcome = report_waits([watched], "ssh", 300)
    assert outcome.exit_code is Exit.FAILED
    assert outcome.notes == [f"error: {said}"] + [f"hint: aetherscale-cli {hint}"] * bool(hint)


def test_an_address_that_only_the_guest_could_tell_is_named_as_what_is_missing() -> None:
    watched, _ = wait({"reached": ["running"], "address-source": "guest-agent"}, seconds=5)
    said = " ".join(report_waits([watched], "ssh", 5).notes)
    assert "it is running, reached: running, its guest agent has told no address" in said
    assert "its qemu-guest-agent tells it" in said
    assert "guest agent" not in " ".join(report_waits([watched], "cloud-init", 5).notes)
    watched, _ = wait({"address-source": "guest-agent", "addresses": ["192.168.7.9"]}, seconds=5)
    assert "guest agent" not in " ".join(report_waits([watched], "ssh", 5).notes)


def test_a_vm_without_a_network_is_not_waited_for() -> None:
    watched, session = wait({"state": "starting"}, {"address-source": "none"})
    assert len(session.asked) == 2
    outcome = report_waits([watched], "ssh", 300)
    assert outcome.exit_code is Exit.FAILED
    assert "has no network in which host h1 could reach it" in outcome.notes[0]


def test_when_the_time_is_over_the_true_state_is_told_and_how_to_go_on() -> None:
    watched, _ = wait({"reached": ["running", "ip"], "console": ["Starting OpenSSH\x1b[0m"]}, seconds=10)
    outcome = report_waits([watched], "ssh", 10)
    assert outcome.exit_code is Exit.PARTIAL
    assert outcome.notes == [
        "error: VM web1 has not reached ssh: not within 10 s; it is running, reached: ip",
        "  its console's last line: Starting OpenSSH\\x1b[0m",
        f"hint: {GO_ON}",
    ]
    assert "failed" not in " ".join(outcome.notes)


@pytest.mark.parametrize("trouble", [DOWN, None])
def test_a_host_that_is_gone_for_a_while_does_not_end_the_wait(trouble: Any) -> None:
    watched, _ = wait({}, trouble, trouble, {"reached": ["running", "ip", "ssh"]})
    assert watched.verdict == "reached"


def test_a_host_that_stays_down_is_told_of() -> None:
    watched, _ = wait({}, DOWN, seconds=5)
    assert "; host h1, which holds this VM, is not running" in report_waits([watched], "ssh", 5).notes[0]


def test_a_lost_connection_ends_the_wait_and_the_vm_is_what_it_was() -> None:
    class Lost(MemorySession):
        def publish(self, message: Any) -> None:
            if self.asked:
                raise CliError("the broker went away", None, Exit.UNREACHABLE)
            super().publish(message)

    session = Lost({"h1": [vm(WEB1)]}, behave=course({}))
    outcome = wait_and_report(nullcontext(session), [Watched(WEB1, "web1")], "ssh", 60, session.clock)
    assert "the broker went away" in " ".join(outcome.notes)
    assert f"hint: {GO_ON}" in outcome.notes
    assert outcome.exit_code is not Exit.DONE


def test_ctrl_c_tells_the_state_and_how_to_go_on() -> None:
    class Impatient(MemorySession):
        def next_event(self, deadline: float) -> Any:
            if not self._events:
                raise KeyboardInterrupt
            return super().next_event(deadline)

    session = Impatient({"h1": [vm(WEB1)]}, behave=course({}))
    outcome = wait_and_report(nullcontext(session), [Watched(WEB1, "web1")], "ssh", 60, session.clock)
    assert outcome.exit_code is Exit.INTERRUPTED
    assert outcome.notes == ["error: VM web1 has not reached ssh: interrupted; it is running", f"hint: {GO_ON}"]


def test_progress_is_one_line_on_a_terminal_and_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[bool, str] = {}
    for terminal in (True, False):
        stderr = io.StringIO()
        monkeypatch.setattr(stderr, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr(sys, "stderr", stderr)
        wait({"state": "starting"}, {"reached": ["running", "ip"]}, {"reached": ["ssh"]})
        shown[terminal] = stderr.getvalue()
    assert shown[False] == ""
    first, second, rest = shown[True].split("\r\x1b[K")[1:]
    assert first == "waiting for ssh of web1 (starting), 300 s left"
    assert second == "waiting for ssh of web1 (running, reached: ip), 300 s left"
    assert rest == ""


class TestWholeCommands:
    def test_a_broker_that_is_gone_by_then_hides_no_vm_that_was_made(
        self, use: Use, cli: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = use(MemorySession({"h1": []}, behave=course({})))

        @contextmanager
        def open_session(*_: Any) -> Iterator[MemorySession]:
            if session.asked:
                raise CliError("the broker went away", None, Exit.UNREACHABLE)
            yield session

        monkeypatch.setattr(broker, "open_session", open_session)
        argv = ("create-vm", "--image", "debian", "--name", "web1", "--no-ssh-key", "--wait-for-host", "60s")
        ran = cli(*argv, "--wait", "ssh", "-o", "json")
        assert ran.code == 3
        assert [answer["execution-info"]["status"] for answer in ran.answers] == ["success"]
        assert "error: the broker went away" in ran.err

    def test_create_and_wait(self, use: Use, cli: Any) -> None:
        use(MemorySession({"h1": [vm(WEB1)]}, behave=course({"reached": ["running"], "addresses": ["10.0.0.9"]})))
        ran = cli("create-vm", "--image", "u", "--name", "web1", "--no-ssh-key", "--wait", "running", "-o", "table")
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.splitlines()[1].split() == [WEB1, "web1", "running", "running", "h1", "10.0.0.9"]
        ran = cli("create-vm", "--image", "u", "--name", "web1", "--wait", "running")
        assert ran.answers[0]["response"] == {"status": "done", "vm-id": WEB1}

    @pytest.mark.parametrize(
        ("states", "code", "said", "hint"),
        [
            ([{"reached": ["ip"]}], 4, "has not reached ssh: not within 30 s; it is running, reached: ip", GO_ON),
            (
                [{}, DOWN],
                4,
                "has not reached ssh: not within 30 s; host h1, which holds this VM, is not running",
                GO_ON,
            ),
            ([{}, {"state": "stopped"}], 1, "is stopped", f"aetherscale-cli start-vm web1 starts it; then {GO_ON}"),
        ],
    )
    def test_a_wait_in_vain_tells_the_true_state_and_the_command_that_goes_on_waiting(
        self, use: Use, cli: Any, monkeypatch: pytest.MonkeyPatch, states: Any, code: int, said: str, hint: str
    ) -> None:
        session = use(MemorySession({"h1": [vm(WEB1)]}, behave=course(*states)))
        monkeypatch.setattr(workflows, "time", SimpleNamespace(monotonic=session.clock, time=time.time))
        create = ("create-vm", "--image", "u", "--name", "web1", "--no-ssh-key", "--wait", "ssh", "--timeout", "30s")
        ran = cli(*create, "-o", "table")
        assert (ran.code, ran.err) == (code, f"error: VM web1 {said}\nhint: {hint}\n")
        assert ran.out.splitlines()[1].split()[:2] == [WEB1, "web1"]

    def run_unanswered(
        self, use: Use, cli: Any, monkeypatch: pytest.MonkeyPatch, *states: Any, create: Any = None, form: str = "table"
    ) -> tuple[Any, MemorySession]:
        """A create that gets no answer (or this one), while its host tells of the VM."""
        tell = course(*[{"created": time.time()} | state for state in states])

        def behave(host: str, command: str, options: dict[str, Any]) -> Any:
            return create if command == "create-vm" else tell(host, command, options)

        session = use(MemorySession({"h1": [vm(WEB1)] if states else []}, behave=behave))
        monkeypatch.setattr(workflows, "time", SimpleNamespace(monotonic=session.clock, time=time.time))
        begun = session.now
        ran = cli("create-vm", "--image", "u", "--name", "web1", "--no-ssh-key", "--wait", "ssh", "-o", form)
        session.now -= begun
        return ran, session

    @pytest.mark.parametrize("create", [None, refusal("outcome-unknown", "the agent was restarted in its middle")])
    def test_a_create_that_nobody_answered_is_waited_for_too(
        self, use: Use, cli: Any, monkeypatch: pytest.MonkeyPatch, create: Any
    ) -> None:
        states: list[Any] = [{"state": "creating"}, {"reached": ["running", "ip"]}]
        ran, session = self.run_unanswered(use, cli, monkeypatch, *states, create=create)
        assert ran.err == (
            f"error: VM web1 has not reached ssh: not within 300 s; it is running, reached: ip\nhint: {GO_ON}\n"
        )
        assert (ran.code, ran.out.splitlines()[1].split()[:3]) == (4, [WEB1, "web1", "running"])
        assert session.now == pytest.approx(300, abs=10)  # with the time that was spent on the create

    def test_what_is_there_in_the_end_was_made(self, use: Use, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        reached = {"reached": ["running", "ip", "ssh"]}
        ran, _ = self.run_unanswered(use, cli, monkeypatch, reached, form="json")
        assert (ran.code, ran.err) == (0, "")
        assert [answer["response"]["vm-id"] for answer in ran.answers] == [WEB1]

    @pytest.mark.parametrize("states", [[], [{"created": 0, "reached": ["ssh"]}]], ids=["no VM", "an older one"])
    def test_a_create_of_which_nothing_is_to_be_seen_stays_an_unknown_outcome(
        self, use: Use, cli: Any, monkeypatch: pytest.MonkeyPatch, states: Any
    ) -> None:
        ran, session = self.run_unanswered(use, cli, monkeypatch, *states)
        error, hint = ran.err.splitlines()
        assert (ran.code, ran.out) == (5, "")
        assert error == "error: VM web1: it is not known whether create-vm was done: no answer within 30 s"
        assert hint.startswith("hint: find out with: aetherscale-cli show-vm web1; or ask again")
        assert session.commands == ["create-vm", "show-vm"]

    def test_a_connection_that_was_lost_leaves_the_outcome_unknown(
        self, use: Use, cli: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = use(MemorySession({"h1": []}))
        next_event = session.next_event

        def lose(deadline: float) -> Any:
            if session.asked:
                raise CliError("the broker went away", None, Exit.UNREACHABLE)
            return next_event(deadline)

        monkeypatch.setattr(session, "next_event", lose)
        ran = cli("create-vm", "--image", "u", "--name", "web1", "--no-ssh-key", "--wait", "ssh", "-o", "table")
        assert (ran.code, ran.out) == (5, "")
        error, hint = ran.err.splitlines()
        assert error == "error: VM web1: it is not known whether create-vm was done: the broker went away"
        assert hint.startswith("hint: find out with: aetherscale-cli show-vm web1; or ask again")

    def test_while_it_is_made_a_terminal_is_told(self, use: Use, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        ran, _ = self.run_unanswered(use, cli, monkeypatch, {"reached": ["ssh"]})
        assert ran.err == "\r\x1b[Kwaiting until create-vm is answered, for 30 s at most\r\x1b[K"

    def test_a_create_that_was_refused_is_not_waited_for(self, use: Use, cli: Any) -> None:
        session = use(MemorySession({"h1": []}, behave=lambda *_: refusal("vm-id-taken", "there is a VM web1")))
        assert cli("create-vm", "--image", "u", "--name", "web1", "--wait", "ssh").code == 1
        assert session.commands == ["create-vm"]

    def test_wait_vm_for_several_of_which_one_is_not_there(self, use: Use, cli: Any) -> None:
        use(MemorySession({"h1": [vm(WEB1), vm("abcdefgh")]}, behave=course({"reached": ["running", "ssh"]})))
        ran = cli("wait-vm", "web1", "abcdefgh", "webfront", "--for", "ssh", "-o", "table")
        assert [line.split()[0] for line in ran.out.splitlines()[1:]] == [WEB1, "abcdefgh"]
        assert ran.err.splitlines()[0] == "error: VM webfront does not exist"
        assert ran.code == 1
        assert len(cli("wait-vm", "web1", "--for", "ssh").answers) == 1

    def test_wait_vm_for_several_of_which_one_may_be_many(self, use: Use, cli: Any) -> None:
        vms = [vm(WEB1), vm("abcdefgh"), vm("abzzzzzz")]
        use(MemorySession({"h1": vms}, behave=course({"reached": ["running"]})))
        ran = cli("wait-vm", "ab", "web1", "-o", "table")
        assert [line.split()[0] for line in ran.out.splitlines()[1:]] == [WEB1]
        assert ran.err.startswith("error: ab is the beginning of 2 VM ids: abcdefgh")
        assert ran.code == 1

    def test_wait_vm_for_several_of_which_one_may_be_on_a_host_that_is_down(self, use: Use, cli: Any) -> None:
        use(MemorySession({"h1": [vm(WEB1)]}, down={"h2": []}, behave=course({"reached": ["running"]})))
        ran = cli("wait-vm", "ab", "web1", "-o", "table")
        assert [line.split()[0] for line in ran.out.splitlines()[1:]] == [WEB1]
        assert ran.err.startswith("error: it is not known which VM ab is: h2 did not answer")
        assert ran.code == 4

    def test_wait_vm_for_several_has_an_answer_for_each(self, use: Use, cli: Any) -> None:
        reached = course({"reached": ["running"]})

        def behave(host: str, command: str, options: dict[str, Any]) -> Any:
            silent = command == "show-vm" and options["vm-id"] == "bbbbbbbb"
            return None if silent else reached(host, command, options)

        use(MemorySession({"h1": [vm(WEB1), vm("abcdefgh"), vm("abzzzzzz"), vm("bbbbbbbb")]}, behave=behave))
        argv = ("wait-vm", "web1", "nosuch", "nosuch-1", "ab", "bbbbbbbb", "--timeout", "0.1s")
        first, *rows = cli(*argv).answers
        assert first["response"]["vm-id"] == WEB1
        assert [(row["vm"], row.get("vm-id"), row["execution-info"].get("code")) for row in rows] == [
            ("nosuch", None, "vm-unknown"),
            ("nosuch-1", names.id_of_name("nosuch-1"), "vm-unknown"),
            ("ab", None, "bad-request"),
            ("bbbbbbbb", "bbbbbbbb", None),
        ]
        assert cli("wait-vm", "nosuch-1").answers == []

    def test_a_short_time_bounds_the_wait_too(self, use: Use, cli: Any) -> None:
        use(MemorySession({"h1": [vm(WEB1)]}, behave=course({})))
        ran = cli("wait-vm", "web1", "--for", "ssh", "--timeout", "0.05s", "-o", "table")
        assert ran.code == 4
        assert "not within 0.05 s" in ran.err
