"""The parts of the matrix, each by itself: a machine on which things go wrong, meetings, what is seen from outside."""

import asyncio
import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from aetherscale_agent import connect, recover, session, steps
from aetherscale_agent.journal import HostRecord, Journal, JournalError, Record
from aetherscale_agent.ports import HypervisorError, Power
from aetherscale_protocol.options import CreateVm
from aetherscale_testing.fakes import FakeImages
from aetherscale_testing.faults import lab_network, look
from aetherscale_testing.faults.fakehosts import look_at
from aetherscale_testing.faults.lab_courses import Cell
from aetherscale_testing.faults.listing import read_views
from aetherscale_testing.faults.machine import CLOCK, FaultyHypervisor, Machine
from aetherscale_testing.faults.meeting import Hall
from aetherscale_testing.faults.table import VM_NET_STEPS
from aetherscale_testing.faults.views import ClaimView, QueueView, RecordView

ID, OTHER = "sgeqxcfi", "abcdefgh"
SPEC = CreateVm(image="a", vm_id=ID, memory=64, disk=1)
RECORD = Record(vm_id=ID, request_id="r1", spec=SPEC, deadline=10.0, created=1.0, phase="claimed")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine in this very process; what it changes of the agent is put back."""
    monkeypatch.setattr(os, "fsync", os.fsync)
    for module in (recover, session):
        monkeypatch.setattr(module, "TOMBSTONE_SLACK_S", recover.TOMBSTONE_SLACK_S)
    for name in ("LOOK_AGAIN_S", "LOOK_FOR_BURIALS_S"):
        monkeypatch.setattr(session, name, vars(session)[name])
    monkeypatch.setattr(connect, "LONGEST_DELAY_S", connect.LONGEST_DELAY_S)
    (tmp_path / "cell" / "h1").mkdir(parents=True)
    yield Machine("h1", tmp_path / "cell" / "h1", FakeImages("a"), tmp_path / "cell")
    steps.watch(None)


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    with contextlib.closing(Hall(tmp_path)) as waiting:
        yield waiting


def hypervisor_of(machine: Machine, folder: Path) -> FaultyHypervisor:
    return FaultyHypervisor(machine, images=machine.images, folder=folder / "vms")


def test_a_full_disk_takes_no_record_and_no_overlay_until_there_is_space(machine: Machine, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.load(pytest.fail)
    hypervisor = hypervisor_of(machine, tmp_path)
    machine.suffer({"disk-full": 60})
    with pytest.raises(JournalError, match="No space left"):
        asyncio.run(journal.put(RECORD))
    with pytest.raises(HypervisorError, match="No space left"):
        asyncio.run(hypervisor.build(ID, SPEC, machine.images.list()["a"]))
    asyncio.run(journal.drop(ID))  # a full disk hinders nobody from removing
    machine.suffer({})
    asyncio.run(journal.put(RECORD))
    asyncio.run(hypervisor.build(ID, SPEC, machine.images.list()["a"]))


def test_a_clock_is_off_as_long_as_its_file_says_so(machine: Machine) -> None:
    file = machine._clock_file
    assert file.name == CLOCK
    assert abs(machine.clock() - time.time()) < 1
    file.write_text("-600")
    assert abs(machine.clock() - time.time() + 600) < 1
    file.unlink()
    assert abs(machine.clock() - time.time()) < 1


def test_what_fails_fails_so_often_and_no_more(machine: Machine, tmp_path: Path) -> None:
    async def run() -> None:
        hypervisor = hypervisor_of(machine, tmp_path)
        image = machine.images.list()["a"]
        machine.suffer({"build-fails": 1, "start-fails": 1, "qemu-dies": 1})
        with pytest.raises(HypervisorError, match="qemu-img"):
            await hypervisor.build(ID, SPEC, image)
        await hypervisor.build(ID, SPEC, image)
        with pytest.raises(HypervisorError, match="did not come up"):
            await hypervisor.start(ID, SPEC)
        assert hypervisor.power_of(ID) is Power.OFF
        changes = hypervisor.changes()
        await hypervisor.start(ID, SPEC)
        assert (await anext(changes)).power is Power.FAILED
        await hypervisor.start(ID, SPEC)
        assert hypervisor.power_of(ID) is Power.ON

    asyncio.run(run())


def test_an_agent_stands_still_at_the_armed_step_once_and_no_other_does(machine: Machine, hall: Hall) -> None:
    cell = machine._cell
    assert cell is not None
    hall.arm(cell, "h1", "before", "create.claim")
    machine.on_step("after", "create.claim", ID)
    Machine("h2", cell, FakeImages(), cell).on_step("before", "create.claim", ID)
    assert hall.wait(cell, 0) is None
    stands = threading.Thread(target=machine.on_step, args=("before", "create.claim", ID), daemon=True)
    stands.start()
    meeting = hall.wait(cell, 5)
    assert meeting is not None
    assert (meeting.host, meeting.pid, meeting.vm_id) == ("h1", os.getpid(), ID)
    assert stands.is_alive()
    meeting.answer({"image-gone": "a"})
    stands.join(5)
    assert machine.images.list() == {}
    machine.on_step("before", "create.claim", ID)
    assert hall.wait(cell, 0) is None


def test_a_host_is_seen_by_its_files_alone(machine: Machine, tmp_path: Path) -> None:
    async def run() -> None:
        journal = Journal(tmp_path / "journal")
        journal.load(pytest.fail)
        await journal.put(RECORD)
        await journal.put_host(HostRecord())
        hypervisor = hypervisor_of(machine, tmp_path)
        for vm_id in (ID, OTHER):
            await hypervisor.build(vm_id, SPEC, machine.images.list()["a"])
        await hypervisor.start(ID, SPEC)

    asyncio.run(run())
    for stray in (f"{OTHER}.new", "other-host.json"):
        (tmp_path / "journal" / stray).touch()
    view = look_at("h1", tmp_path)
    assert view.records == {ID: RecordView("claimed", "r1", bound=False, deadline=10.0, wanted="on")}
    assert view.disks == {ID, OTHER}
    assert view.running == view.units == {ID}
    assert view.processes == {ID: 1}
    assert view.strays == (f"{OTHER}.new", "other-host.json")


def test_what_was_asked_of_a_host_itself_is_neither_a_vm_nor_a_stray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        journal = Journal(tmp_path / "journal")
        journal.load(pytest.fail)
        await journal.put(RECORD)
        await journal.put_host(HostRecord())

    asyncio.run(run())
    (tmp_path / "journal" / f"{OTHER}.new").touch()
    (tmp_path / "journal" / "other-host.json").touch()
    monkeypatch.setattr(look, "STATE", tmp_path)
    assert {vm_id: RecordView.read(record) for vm_id, record in look.journal().items()} == {
        ID: RecordView("claimed", "r1", bound=False, deadline=10.0, wanted="on")
    }
    assert [Path(path).name for path in look.strays_of_journal()] == [f"{OTHER}.new", "other-host.json"]


def test_a_brokers_lines_are_read_vhost_by_vhost() -> None:
    lines = [
        ["q", "one", "computing-host.h1", "3", "2", "1", "", ""],
        ["q", "one", f"claim.{ID}", "0", "0", "0", "h1", "720000"],
        ["b", "one", "computing", "computing-host.h1", f"vm.{ID}"],
        ["b", "one", "computing", "computing-host.h1", "host.h1"],
        ["b", "two", "", "any", "any"],
    ]
    views = read_views(lines, 5.0)
    assert views["one"].queues["computing-host.h1"] == QueueView(3, 2, 1)
    assert views["one"].claims == {ID: ClaimView("h1", 720000)}
    assert views["one"].bindings == {ID: frozenset({"h1"})}
    assert views["one"].other_bindings == {("computing", "computing-host.h1", "host.h1")}
    assert views["one"].started == 5.0
    assert views["two"].other_bindings == {("", "any", "any")}


@pytest.mark.parametrize("step", VM_NET_STEPS)
@pytest.mark.parametrize("do", ["kill", "freeze", "fail"])
def test_what_is_planted_for_vm_net_is_a_program_that_passes_others_on(
    step: str, do: Literal["kill", "freeze", "fail"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VM_NET_STEPS, step, ("echo", "say it"))  # type: ignore[arg-type]
    program = tmp_path / "echo"
    program.write_text(lab_network.finalize_program(Cell(step, "before", "h1", do)))
    program.chmod(0o755)
    done = subprocess.run([program, "link", "a b"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("link a b\n", "")


@pytest.mark.parametrize(("step", "verbs"), [("up.tap", ["up"]), ("down.tap", ["down", "tidy"])])
def test_what_is_planted_strikes_vm_net_at_its_own_work_alone(
    step: str, verbs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VM_NET_STEPS, step, ("echo", "say it"))  # type: ignore[arg-type]
    monkeypatch.setattr(lab_network, "_FOLDER", tmp_path)
    program, struck = tmp_path / "echo", tmp_path / "echo.struck"
    program.write_text(lab_network.finalize_program(Cell(step, "before", "h1", "fail")))
    program.chmod(0o755)
    (tmp_path / "echo.armed").touch()
    for verb in ("up", "down", "tidy", "setup"):
        parent = ["sh", "-c", f"{program} said; exit $?", "/usr/lib/vm-net", verb, ID]
        done = subprocess.run(parent, capture_output=True, check=False)
        assert (done.returncode, struck.exists()) == ((1, True) if verb in verbs else (0, False)), verb
        struck.unlink(missing_ok=True)


RULES = f"""table bridge aetherscale {{
\tset macs {{
\t\ttype ifname . ether_addr
\t\telements = {{ "vm-{ID}" . 52:54:00:00:00:01,
\t\t\t     "vm-{OTHER}" . 52:54:00:00:00:02 }}
\t}}

\tset addresses {{
\t\ttype ifname . ether_addr . ipv4_addr
\t\telements = {{ "vm-{ID}" . 52:54:00:00:00:01 . 10.126.0.2 }}
\t}}

\tchain guest {{
\t\tiifname . ether saddr != @macs drop
\t}}

\tchain dhcp {{
\t\tiifname "vm-{ID}" @th,288,48 0x525400000001 return
\t\tdrop
\t}}
}}
"""
"""As nft lists them."""


@pytest.fixture
def plugged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with one VM, all of whose network is there; its tap's folder."""
    kept, links = tmp_path / "kept", tmp_path / "links"
    for path in (kept / "vms" / f"{ID}.conf", kept / "reservations" / ID, links / f"vm-{ID}" / "carrier"):
        path.parent.mkdir(parents=True)
        path.write_text("1\n")
    (links / f"vm-{ID}" / "master").symlink_to("../aetherscale0")
    (tmp_path / "network.conf").write_text("bridge aetherscale0\nown yes\nnetwork 10.126.0.0/22\n")
    monkeypatch.setattr(look, "NETWORK", kept)
    monkeypatch.setattr(look, "ALL_LINKS", links)
    monkeypatch.setattr(look, "CONFIG", tmp_path / "network.conf")
    monkeypatch.setattr(look, "guarded", lambda: look.parse_rules(RULES))
    return links / f"vm-{ID}"


def test_a_vm_with_all_of_its_network_is_connected(plugged_in: Path) -> None:
    assert plugged_in.exists()
    assert look.connected() == {ID}
    assert look.parse_rules(RULES)["macs"] == {ID, OTHER}


def unplug(tap: Path) -> None:
    (tap / "master").unlink()


def plug_in_elsewhere(tap: Path) -> None:
    unplug(tap)
    (tap / "master").symlink_to("../br0")


def let_go(tap: Path) -> None:
    (tap / "carrier").write_text("0\n")


@pytest.mark.parametrize("harm", [unplug, plug_in_elsewhere, let_go])
def test_a_tap_that_leads_nowhere_connects_no_vm(plugged_in: Path, harm: Callable[[Path], None]) -> None:
    harm(plugged_in)
    assert look.connected() == set()


@pytest.mark.parametrize("part", ["macs", "addresses", "dhcp"])
def test_a_vm_that_a_rule_does_not_know_is_not_connected(
    plugged_in: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plugged_in.exists()
    monkeypatch.setattr(look, "guarded", lambda: {**look.parse_rules(RULES), part: {OTHER}})
    assert look.connected() == set()
