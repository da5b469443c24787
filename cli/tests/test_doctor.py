"""What the doctor says of what was found: facts in, findings out."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from aetherscale_cli import examine
from aetherscale_cli.doctor import judge, report
from aetherscale_cli.doctor_facts import Certificate, Examination, Finding, HostFacts, WireFacts
from aetherscale_cli.errors import CliError, Exit, NoAgent
from aetherscale_cli.wire import Message
from aetherscale_protocol.answers import HostCondition, ImageSum, VmTrouble
from aetherscale_testing.session import MemorySession, success

NOW, DAY, GIB = 1_700_000_000.0, 86_400, 1 << 30
SERVICES = {"aetherscale-network.service": "active", "aetherscale-dhcp.service": "active"}
SHOWN = Certificate(("broker1", "10.0.0.1"), "aetherscale CA", NOW - DAY, NOW + 300 * DAY + 60)
NETWORK_DOWN = CliError("can't reach the broker at broker1:5671: no route to host", "see there", Exit.UNREACHABLE)


def condition(host: str = "h1", **changes: Any) -> HostCondition:
    whole: dict[str, Any] = {
        "host": host, "accelerator": "kvm", "virtualization": True, "bridge": "aetherscale0", "services": SERVICES,
        "disk_size": 1000 * GIB, "disk_free": 600 * GIB, "disk_growth": 100 * GIB,
        "images": [ImageSum(image="debian", sha256="ab" * 32, state="right")],
    }  # fmt: skip
    return HostCondition(**{**whole, **changes})


def host(name: str = "h1", **changes: Any) -> HostFacts:
    of_it = {key: changes.pop(key) for key in list(changes) if key in HostCondition.__struct_fields__}
    whole: dict[str, Any] = {"answered_ms": 3.2, "agent_version": "0.1.0", "counted": True, "consumers": 1}
    return HostFacts(**{**whole, "condition": condition(name, **of_it), **changes})


def found(*names: str, **changes: Any) -> Examination:
    """A fleet that is well, but for these changes."""
    whole: dict[str, Any] = {
        "version": "0.1.0", "source": "context lab (lab.toml)", "address": "broker1:5671", "host": "broker1",
        "user": "alice", "vhost": "aetherscale", "tls": True, "now": NOW, "timeout": 5, "login_ms": 14,
        "wire": WireFacts(["10.0.0.1"], "10.0.0.1", 1.4, "TLSv1.3", SHOWN, NOW + 3000 * DAY),
        "allowed": {"configure": False, "read": False, "write": False},
        "hosts": {name: host(name) for name in names or ("h1", "h2")}, "fleet": set(names or ("h1", "h2")),
    }  # fmt: skip
    return Examination(**{**whole, **changes})


def of(what: Examination, check: str) -> list[Finding]:
    return [finding for finding in judge(what) if finding.check == check]


def the(what: Examination, check: str) -> Finding:
    (finding,) = of(what, check)
    return finding


def only_trouble(what: Examination) -> Finding:
    """What is wrong, where just one thing is; it has a remedy."""
    (finding,) = [finding for finding in judge(what) if finding.result != "ok"]
    assert finding.hint
    return finding


def test_a_fleet_that_is_well() -> None:
    outcome = report(found(), as_json=False)
    assert (outcome.notes, outcome.exit_code) == ([], Exit.DONE)
    assert [" ".join(line.split()) for line in outcome.stdout.splitlines()] == [
        "CHECK WHAT RESULT DETAIL",
        "context this machine ok context lab (lab.toml)",
        "address broker1:5671 ok at 10.0.0.1, connected in 1 ms",
        "tls broker1:5671 ok TLSv1.3; broker1 and 10.0.0.1, signed by aetherscale CA; 300 days left",
        "login alice, vhost aetherscale ok logged in within 14 ms",
        "rights alice ok may publish commands, and nothing else",
        "agents all ok 2 of 2 hosts answer; the inventory names 2",
        "host h1, h2 ok answered in 3 ms; agent 0.1.0",
        "version all ok agents and CLI are 0.1.0",
        "clock all ok at most 0.0 s from this machine's",
        "accelerator h1, h2 ok kvm",
        "network h1, h2 ok bridge aetherscale0 is up; aetherscale-network runs; aetherscale-dhcp runs",
        "disk h1, h2 ok 600G of 1000G free; VMs may still take 100G",
        "vms h1, h2 ok none has failed",
        "images h1, h2 ok 1 has the right checksum",
    ]


def test_a_large_fleet_is_not_a_line_each() -> None:
    lines = report(found(*(f"h{i}" for i in range(1, 10))), as_json=False).stdout.splitlines()
    assert len(lines) == 15
    assert "host         h1 … h9 (9)" in lines[7]
    assert len(json.loads(report(found("h1", "h2", "h3"), as_json=True).stdout)) == 8 + 3 * 6


# This machine, and the broker


def test_a_context_that_can_t_be_used_ends_it() -> None:
    what = Examination(context_error=CliError("there is no context 'x'", "there are: lab", Exit.USAGE))
    assert report(what, as_json=False).exit_code == Exit.USAGE
    assert [f.check for f in judge(what)] == ["context"]


def test_a_context_that_others_can_read() -> None:
    what = found(warnings=("others can read /x/lab.toml, which holds a password: chmod 600 /x/lab.toml",))
    finding = only_trouble(what)
    assert (finding.result, finding.hint) == ("warning", "chmod 600 /x/lab.toml")
    assert finding.text == "others can read /x/lab.toml, which holds a password"


def test_a_broker_that_can_t_be_reached_is_said_once_and_what_depends_on_it_is_skipped() -> None:
    what = found(wire=WireFacts(error=NETWORK_DOWN), login_ms=None, hosts={}, allowed={})
    assert [(f.check, f.result) for f in judge(what)] == [("context", "ok"), ("address", "error"), ("login", "skipped")]
    outcome = report(what, as_json=False)
    assert outcome.exit_code == Exit.UNREACHABLE
    assert outcome.notes == ["error: broker1:5671: can't reach the broker at broker1:5671: no route to host",
                             "hint: see there"]  # fmt: skip


@pytest.mark.parametrize(("days", "result"), [(21, "ok"), (20, "warning"), (0, "warning")])
def test_a_certificate_that_ends(days: int, result: str) -> None:
    wire = WireFacts([], "10.0.0.1", 1, "TLSv1.3", Certificate(("b",), "CA", 0, NOW + days * DAY + 5))
    finding = the(found(wire=wire), "tls")
    assert (finding.result, finding.days_left) == (result, days)
    assert ("site.yml" in finding.hint) == (result == "warning")


@pytest.mark.parametrize(("days", "result"), [(21, "ok"), (20, "warning"), (-1, "warning")])
def test_our_own_certificate_ends(days: int, result: str) -> None:
    wire = WireFacts([], "10.0.0.1", 1, "TLSv1.3", SHOWN, own_ends=NOW + days * DAY + 5)
    (finding,) = (f for f in judge(found(wire=wire)) if f.subject == "cert_file")
    assert (finding.result, finding.days_left) == (result, days)
    assert ("bring the new one" in finding.hint) == (result == "warning")


def test_a_ca_that_ends() -> None:
    finding = only_trouble(found(wire=WireFacts([], "10.0.0.1", 1, "TLSv1.3", SHOWN, NOW + 3 * DAY + 5)))
    assert (finding.subject, finding.text) == ("ca_file", "a CA in it ends in 3 days")


@pytest.mark.parametrize(
    ("shown", "more"),
    [
        (Certificate(("b",), "CA", NOW - 90 * DAY, NOW - 3 * DAY), "; it ended 3d ago"),
        (Certificate(("b",), "CA", NOW + 2 * DAY, NOW + 9 * DAY), "; it begins in 2d"),
        (SHOWN, "; it is made for broker1 and 10.0.0.1, and signed by aetherscale CA"),
        (None, ""),
    ],
)
def test_a_certificate_that_was_refused(shown: Certificate | None, more: str) -> None:
    error = CliError("it is bad", "do this", Exit.UNREACHABLE)
    what = found(wire=WireFacts([], "10.0.0.1", 1, "", shown, tls_error=error), login_ms=None, hosts={}, allowed={})
    finding = the(what, "tls")
    assert (finding.result, finding.text, finding.hint, finding.exit_code) == (
        "error",
        f"it is bad{more}",
        "do this",
        3,
    )
    assert the(what, "login").result == "skipped"


@pytest.mark.parametrize(
    ("reached", "user", "vhost", "result"),
    [
        ("10.0.0.1", "alice", "aetherscale", "warning"),
        ("10.0.0.1", "guest", "aetherscale", "warning"),
        ("10.0.0.1", "guest", "/", "ok"),
        ("127.0.0.1", "alice", "aetherscale", "ok"),
        ("::1", "alice", "aetherscale", "ok"),
        ("fe80::1%eth0", "alice", "aetherscale", "warning"),
    ],
)
def test_a_wire_that_is_not_encrypted(reached: str, user: str, vhost: str, result: str) -> None:
    finding = the(found(tls=False, wire=WireFacts([], reached, 1), user=user, vhost=vhost), "tls")
    assert finding.result == result
    assert ("amqps://" in finding.hint) == (result == "warning")


def test_a_login_that_is_refused() -> None:
    refused = CliError("the broker refused the login", "check url and password", Exit.UNREACHABLE)
    what = found(login_ms=None, error=refused, hosts={}, allowed={})
    finding = only_trouble(what)
    assert (finding.check, finding.exit_code) == ("login", 3)
    assert of(what, "rights") == []


def test_a_right_that_is_missing() -> None:
    what = found(error=CliError("user 'alice' may not publish to exchange 'computing'"), hosts={})
    finding = only_trouble(what)
    assert (finding.check, finding.exit_code) == ("rights", 1)
    assert finding.hint.endswith("set_permissions -p aetherscale alice '^$' '^computing(-hosts)?$' '^$'")


def test_rights_that_are_too_many() -> None:
    finding = only_trouble(found(allowed={"configure": True, "read": False, "write": True}))
    assert (finding.check, finding.result, finding.exit_code) == ("rights", "error", 1)
    assert finding.text == (
        "alice may do more than publish commands: declare and delete exchanges and queues; "
        "publish past the exchange, into any queue"
    )
    assert "rabbitmqctl set_permissions" in finding.hint


def test_rights_of_which_the_broker_said_nothing() -> None:
    finding = the(found(allowed={"configure": False, "read": None, "write": False}), "rights")
    assert finding.result == "warning"
    assert finding.text.endswith("the broker did not say whether also to take messages out of queues")


def test_guest_is_play_mode() -> None:
    finding = only_trouble(found(user="guest", allowed={}))
    assert (finding.check, finding.result) == ("rights", "warning")


def test_a_connection_that_is_lost_is_no_matter_of_rights() -> None:
    lost = CliError("the connection was lost", "try again", Exit.UNREACHABLE)
    what = found(error=lost, hosts={})
    assert [f.check for f in judge(what) if f.result == "error"] == ["login"]
    what = found(error=lost)
    assert report(what, as_json=True).exit_code == Exit.UNREACHABLE, "it is said also when it comes late"
    assert the(what, "rights").result == "ok"
    what = found(error=lost, hosts={"h1": host(), "h2": HostFacts()})
    assert [f.subject for f in of(what, "host")] == ["h1"], "nobody waited for the other"


def test_no_agent() -> None:
    what = found(error=NoAgent(), hosts={}, fleet=set(), allowed={})
    finding = only_trouble(what)
    assert (finding.check, finding.exit_code) == ("agents", 3)
    assert the(what, "rights").text.startswith("may publish commands; what else it may was not tried")


# Hosts


@pytest.mark.parametrize(
    ("facts", "state", "remedy"),
    [
        (HostFacts(down=True), "down", "systemctl status aetherscale-agent"),
        (HostFacts(counted=True, consumers=0), "down", "forget-host h2"),
        (HostFacts(counted=True, consumers=1), "silent", "systemctl restart aetherscale-agent"),
        (HostFacts(unroutable=True, counted=True, consumers=0), "unknown", "systemctl start aetherscale-agent"),
        (HostFacts(unroutable=True, counted=True, consumers=1), "unbound", "mends that within 20 s"),
        (HostFacts(refusal="what?", counted=True, consumers=1), "odd", "one version"),
    ],
)
def test_a_host_that_does_not_answer(facts: HostFacts, state: str, remedy: str) -> None:
    what = found(hosts={"h1": host("h1"), "h2": facts})
    finding = only_trouble(what)
    assert (finding.check, finding.subject, finding.state, finding.exit_code) == ("host", "h2", state, 4)
    assert remedy in finding.hint
    assert [f.subject for f in of(what, "disk")] == ["h1"], "what there is to say of others is said"


@pytest.mark.parametrize(("took", "slow"), [(500.0, False), (501.4, False), (502.0, True), (4900.0, True)])
def test_a_host_that_is_slow(took: float, slow: bool) -> None:
    """Beside the way to the broker, which takes 1.4 ms."""
    what = found(hosts={"h1": host(), "h2": host("h2", answered_ms=took)})
    (one,) = [finding for finding in of(what, "host") if finding.subject == "h2"]
    assert (one.result, one.state, one.answer_ms) == ("warning" if slow else "ok", "up", took)
    assert ("that is slow" in one.text, "on h2: " in one.hint) == (slow, slow)
    assert report(what, as_json=True).exit_code == Exit.DONE, "it does what it is asked"


def test_what_we_do_ourselves_is_not_counted_as_time_of_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sending, asking and reading take 4 ms each here; of 300 hosts one is down, and one hangs."""
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now, time=lambda: clock.now)

    class Busy(MemorySession):
        def publish(self, message: Message) -> None:
            clock.now += 0.004
            super().publish(message)

        def count_consumers(self, queue: str) -> None:
            clock.now += 0.004
            super().count_consumers(queue)

        def next_event(self, deadline: float) -> Any:
            event = super().next_event(deadline)
            clock.now = clock.now + 0.004 if event else max(clock.now, deadline)
            return event

    def pong(name: str, *_: Any) -> Any:
        return success({"host": name, "clock": clock.now, "agent-version": "0.1.0"}) if name != "h200" else None

    monkeypatch.setattr(examine, "time", clock)
    fleet = [f"h{n}" for n in range(100, 400)]
    session = Busy({name: [] for name in fleet if name != "h300"}, behave=pong)
    what = found(hosts={name: HostFacts() for name in fleet})
    examine._ping_all(session, what)
    took = [facts.answered_ms for facts in what.hosts.values() if facts.answered_ms is not None]
    assert (len(took), max(took) < 200) == (298, True)
    assert (what.hosts["h200"].consumers, what.hosts["h300"].consumers) == (1, 0)
    assert clock.now <= 100 + 300 * 0.02 + what.timeout


def test_a_long_way_to_the_broker_makes_no_host_slow() -> None:
    far = WireFacts(["10.0.0.1"], "10.0.0.1", 600, "TLSv1.3", SHOWN, NOW + 3000 * DAY)
    assert [f.result for f in of(found(hosts={"h1": host(answered_ms=700)}, fleet={"h1"}, wire=far), "host")] == ["ok"]


def test_if_all_hosts_are_slow_it_is_rather_the_broker() -> None:
    late = {name: host(name, answered_ms=900) for name in ("h1", "h2")}
    for finding in of(found(hosts=late), "host"):
        assert (finding.result, "rather it is the broker" in finding.hint) == ("warning", True)
    late["h3"] = HostFacts(down=True)
    assert "the broker" in of(found(hosts=late), "host")[0].hint, "who does not answer says nothing of how fast"
    alone = found(hosts={"h1": host(answered_ms=900)}, fleet={"h1"})
    assert "on h1: " in only_trouble(alone).hint


def test_a_host_that_nobody_named_and_one_that_the_inventory_does_not() -> None:
    assert only_trouble(found(nameless=2)).text.startswith("2 agents are connected")
    finding = only_trouble(found(fleet={"h1"}))
    assert (finding.subject, finding.result) == ("h2", "warning")


def test_a_host_that_is_drained_is_well() -> None:
    what = found(hosts={"h1": host(drained=True)}, fleet={"h1"})
    assert of(what, "host")[0].text.endswith("drained: it takes no new VMs")
    assert report(what, as_json=True).exit_code == Exit.DONE


def test_versions() -> None:
    old = host("h2", agent_version="0.0.9")
    (finding,) = of(found(hosts={"h1": host(), "h2": old, "h3": host("h3")}), "version")
    assert (finding.subject, finding.result, finding.agent_version) == ("h2", "warning", "0.0.9")
    assert "site.yml" in finding.hint
    finding = only_trouble(found(version="0.2.0"))
    assert (finding.subject, finding.text) == ("this machine", "this CLI is 0.2.0, the agents are 0.1.0")


@pytest.mark.parametrize(
    ("ahead", "subjects"),
    [
        ((0, 4.9), ["all"]),
        ((0, 5.1), ["h2"]),
        ((-60, 60), ["h1", "h2"]),
        ((60, 61), ["this machine"]),
    ],
)
def test_clocks(ahead: tuple[float, float], subjects: list[str]) -> None:
    hosts = {f"h{i}": host(f"h{i}", clock_ahead_s=seconds) for i, seconds in enumerate(ahead, 1)}
    findings = of(found(hosts=hosts), "clock")
    assert [f.subject for f in findings] == subjects
    assert all(("timedatectl" in f.hint) == (f.result == "warning") for f in findings)


def test_a_host_that_does_not_say_how_it_is() -> None:
    untold = HostFacts(answered_ms=1, agent_version="0.1.0", untold="unknown command 'check-host'")
    finding = only_trouble(found(hosts={"h1": untold}, fleet={"h1"}))
    assert finding.text == "does not say how it is: unknown command 'check-host'"


TCG = {"accelerator": "tcg", "accelerator_reason": "QEMU ended with exit status 1"}


@pytest.mark.parametrize(
    ("changes", "result", "said"),
    [
        (TCG, "warning", "tcg: KVM does not work (QEMU ended with exit status 1); VMs are much slower than under KVM"),
        ({**TCG, "accelerator_reason": ""}, "warning", "its agent noted no reason"),
        ({**TCG, "virtualization": False}, "ok", "tcg: its CPU offers no virtualization"),
        ({**TCG, "accelerator_chosen": True}, "ok", "tcg, as its configuration says"),
        ({"accelerator": "kvm", "accelerator_chosen": True}, "ok", "kvm"),
        (
            {**TCG, "accelerator": "kvm", "accelerator_chosen": True},
            "error",
            "kvm, as its configuration says, and it does not work (QEMU ended with exit status 1): no VM starts there",
        ),
    ],
)
def test_accelerators(changes: dict[str, Any], result: str, said: str) -> None:
    finding = the(found(hosts={"h1": host(**changes)}, fleet={"h1"}), "accelerator")
    assert (finding.result, said in finding.text) == (result, True)
    assert ("kvm_intel" in finding.hint, finding.exit_code) == (result != "ok", int(result == "error"))


@pytest.mark.parametrize(
    ("state", "said"), [("down", "is down"), ("absent", "is not there"), ("no-address", "has lost its address")]
)
def test_a_bridge(state: str, said: str) -> None:
    finding = only_trouble(found(hosts={"h1": host(bridge_state=state)}, fleet={"h1"}))
    assert (finding.check, finding.result, finding.exit_code) == ("network", "error", 1)
    assert said in finding.text
    assert "on h1: systemctl restart aetherscale-network" in finding.hint
    theirs = {"aetherscale-network.service": "active"}
    finding = only_trouble(found(hosts={"h1": host(bridge_state=state, services=theirs)}, fleet={"h1"}))
    assert "one of your own" in finding.hint


def test_a_service_that_does_not_run_and_no_bridge_at_all() -> None:
    ill = {**SERVICES, "aetherscale-dhcp.service": "failed"}
    finding = only_trouble(found(hosts={"h1": host(services=ill)}, fleet={"h1"}))
    assert finding.text == "aetherscale-dhcp.service is failed"
    assert "systemctl restart aetherscale-dhcp.service" in finding.hint
    assert the(found(hosts={"h1": host(bridge="", services={})}), "network").result == "ok"


@pytest.mark.parametrize(
    ("free", "growth", "result"),
    [(600, 100, "ok"), (100, 100, "ok"), (100, 101, "warning"), (49, 0, "warning"), (50, 0, "ok"), (9, 0, "error")],
)
def test_disks(free: int, growth: int, result: str) -> None:
    room = {"disk_free": free * GIB, "disk_growth": growth * GIB}
    finding = the(found(hosts={"h1": host(**room)}), "disk")
    assert finding.result == result
    assert ("df -h" in finding.hint) == (result != "ok")


def test_vms_in_trouble() -> None:
    many = [VmTrouble(vm_id=f"aaaaaaa{c}", state="failed", reason="QEMU died") for c in "abcdefg"]
    findings = of(found(hosts={"h1": host(troubles=many)}), "vms")
    assert len(findings) == 6
    assert findings[0].text == "VM aaaaaaaa has failed: QEMU died"
    assert "show-vm aaaaaaaa" in findings[0].hint
    assert findings[-1].text == "2 more VMs are in trouble"
    paused = VmTrouble(vm_id="aaaaaaaa", name="web", state="running", reason="paused")
    assert the(found(hosts={"h1": host(troubles=[paused])}), "vms").text == "VM web is in trouble: paused"


EVIL = "web1; curl x|sh"


def test_what_a_host_says_is_no_command_in_a_hint() -> None:
    """Hints are copied into shells."""
    troubles = [
        VmTrouble(vm_id="aaaaaaaa", name=EVIL, state="failed"),
        VmTrouble(vm_id=EVIL, state="failed"),
        VmTrouble(vm_id="aaaaaaab", name="$(id)", state="failed"),
    ]
    ill = host(troubles=troubles, services={EVIL: "failed"}, bridge_state="down")
    hints = [finding.hint for finding in judge(found(hosts={"h1": ill}))]
    for called in ("aaaaaaaa", f"'{EVIL}'", "aaaaaaab"):
        assert f"aetherscale-cli show-vm {called} shows its console; aetherscale-cli start-vm {called}" in hints
    assert f"on h1: journalctl -u '{EVIL}' says why; systemctl restart '{EVIL}'" in hints
    assert not any(EVIL in hint.replace(f"'{EVIL}'", "") for hint in hints)


def image(name: str, state: Any, reason: str = "") -> ImageSum:
    return ImageSum(image=name, sha256="ab" * 32, state=state, reason=reason)


def test_an_image_that_is_damaged() -> None:
    finding = only_trouble(found(hosts={"h1": host(images=[image("a", "right"), image("b", "wrong")])}, fleet={"h1"}))
    assert (finding.check, finding.subject, finding.result, finding.exit_code) == ("images", "h1", "error", 1)
    assert finding.text == 'Image "b" is damaged: its file is not what its checksum abababababab… says'
    assert "site.yml" in finding.hint
    assert "images.yml" in finding.hint


def test_an_image_that_can_t_be_read_and_one_that_is_not_whole() -> None:
    finding = only_trouble(found(hosts={"h1": host(images=[image("a", "unreadable", "I/O error")])}, fleet={"h1"}))
    assert finding.text == 'Image "a" can\'t be read: I/O error'
    broken = host(manifests=["image manifest a.json ignored: sha256-ab.qcow2 is not there"])
    finding = only_trouble(found(hosts={"h1": broken}, fleet={"h1"}))
    assert (finding.result, "is not there" in finding.text) == ("error", True)


def test_images_that_are_still_being_read() -> None:
    pending = host(images=[image("a", "right"), image("b", "pending")], unread=3 * GIB)
    finding = only_trouble(found(hosts={"h1": pending}, fleet={"h1"}))
    assert (finding.result, finding.text) == ("warning", "1 of 2 have the right checksum; 3G are still to be read")


# The report


def test_strict_takes_warnings_for_failures() -> None:
    what = found(version="0.2.0")
    assert report(what, as_json=True).exit_code == Exit.DONE
    assert report(what, as_json=True, strict=True).exit_code == Exit.FAILED
    assert report(found(), as_json=True, strict=True).exit_code == Exit.DONE


def test_the_worst_counts_and_everything_is_said() -> None:
    ill = host(images=[image("a", "wrong")], bridge_state="down")
    outcome = report(found(hosts={"h1": ill, "h2": HostFacts(down=True)}), as_json=False)
    assert outcome.exit_code == Exit.PARTIAL
    assert [note.partition(":")[0] for note in outcome.notes] == ["error", "hint"] * 3


def test_what_a_host_says_is_made_harmless() -> None:
    evil = "\x1b[2Jroot"
    ill = host(images=[image("a", "unreadable", evil)], manifests=[evil])
    for as_json in (True, False):
        outcome = report(found(hosts={"h1": ill}), as_json=as_json)
        assert "\x1b" not in outcome.stdout + "".join(outcome.notes)
