"""One cell, from the first agent's start to the checker's last word."""

import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aetherscale_testing.faults.checker import check
from aetherscale_testing.faults.client import Request
from aetherscale_testing.faults.ledger import Told
from aetherscale_testing.faults.listing import to_text
from aetherscale_testing.faults.machine import TOMBSTONE_SLACK_S
from aetherscale_testing.faults.scene import GROWN_GIB, Failed, Scene, Stage
from aetherscale_testing.faults.table import BROKER_FAULTS, Cell, why_not
from aetherscale_testing.faults.trouble import FAULTS, Rendezvous, healed, meet_broker
from aetherscale_testing.faults.views import BrokerView, HostView

PATIENCE_S, BROKER_PATIENCE_S = 5.0, 15.0
"""How long a client's commands are good for; longer where the broker has to start meanwhile."""
AGAIN_PATIENCE_S = 3.0
HEARTBEAT_S, BROKER_HEARTBEAT_S = 1, 30
"""The agents'; longer where they stand still until the whole batch does."""
SETTLE_S, APART_S = 20.0, 0.5
RESTORED, OLD = 1, 2
"""How often the VM of a restore has booted on its disk: until the snapshot, and until it was switched off."""
NEVER_BEGUN = ("host-down", "deadline-passed")

Verdict = Literal["passed", "failed", "not-applicable"]


@dataclass(frozen=True)
class Row:
    """What became of a cell. `told`: what the client was told at first; `outcome`: what became of its VM."""

    cell: Cell
    verdict: Verdict
    why: str = ""
    seconds: float = 0.0
    told: str = ""
    outcome: str = ""
    details: str = ""


def play(stage: Stage, cell: Cell, vhost: str, folder: Path, together: Rendezvous | None = None) -> Row:
    """Play a cell. Nothing that goes wrong in it raises."""
    reason = why_not(cell)
    if reason is not None:
        return Row(cell, "not-applicable", reason)
    begun = time.monotonic()
    patient = cell.fault in BROKER_FAULTS
    scene = Scene(
        stage,
        cell,
        vhost,
        folder,
        patience=BROKER_PATIENCE_S if patient else PATIENCE_S,
        heartbeat=BROKER_HEARTBEAT_S if patient else HEARTBEAT_S,
    )
    actor = _Actor(scene)
    try:
        actor.play(together)
        return Row(cell, "passed", "", time.monotonic() - begun, actor.told, actor.outcome())
    except Exception as error:
        why = str(error) if isinstance(error, Failed) else traceback.format_exc()
        details = f"{to_text(stage.listing.of(vhost))}\n{scene.ledger.to_json()}\n{scene.logs()}"
        return Row(cell, "failed", why, time.monotonic() - begun, actor.told, actor.outcome(), details)
    finally:
        scene.close()


class _Actor:
    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.told = ""

    def play(self, together: Rendezvous | None) -> None:
        scene, cell = self.scene, self.scene.cell
        scene.start()
        with healed(scene):
            meeting = scene.meet()
            if together is not None:
                meet_broker(scene, meeting, together)
            else:
                FAULTS[cell.fault](scene, meeting)
            tolds = [(request, self._learn(request)) for request in scene.pending]
        if cell.fault == "client-gone":
            scene.client.reconnect()
        self.told = ", ".join(f"{r.verb} {t.outcome} {t.what}".rstrip() for r, t in tolds)
        self._settle(strict=False)
        self._probe_tunnels()
        for vm_id in dict.fromkeys(entry.vm_id for entry in scene.ledger.entries):
            self._compare_with_show(vm_id)
        ends = [(r, self._ask_again(r) if told.outcome in ("unknown", "none") else told) for r, told in tolds]
        self._check_disk([(request, told) for request, told in ends if request.vm_id == scene.vm_id])
        self._wait_for_burials()
        self._settle(strict=True)

    def _learn(self, request: Request) -> Told:
        if self.scene.cell.fault == "client-gone":
            return Told("none")
        return self.scene.client.learn(request)

    def _settle(self, *, strict: bool) -> None:
        """Wait until nothing changes any more and the checker has nothing to say.

        :raise Failed: with what it says, when that takes too long.
        """
        limit = time.monotonic() + SETTLE_S
        before: tuple[float, object] = (0.0, None)
        while True:
            hosts, broker, now = self._look()
            wrong = check(hosts, broker, self.scene.ledger, now, strict)
            seen = (hosts, broker)
            if seen != before[1]:
                before = (time.monotonic(), seen)
            elif not wrong and time.monotonic() - before[0] >= APART_S:
                return
            if time.monotonic() > limit:
                said = "; ".join(map(str, wrong)) or "it does not come to rest"
                raise Failed(f"not settled within {SETTLE_S:.0f} s{', all deadlines passed' if strict else ''}: {said}")

    def _look(self) -> tuple[list[HostView], BrokerView, float]:
        broker = self.scene.stage.listing.of(self.scene.vhost)
        return self.scene.look(), broker, time.time()

    def _compare_with_show(self, vm_id: str) -> None:
        """`show-vm` tells the truth.

        :raise Failed: when it does not.
        """
        answer: dict[str, Any] = self.scene.client.show(vm_id) or {}
        said = answer.get("response", {})
        code = answer.get("execution-info", {}).get("code")
        hosts = [host for host in self.scene.look() if vm_id in host.disks]
        if not hosts and code == "vm-unknown":
            return
        right_host = len(hosts) == 1 and said.get("host") == hosts[0].name
        if right_host and (said["state"] == "running") == (vm_id in hosts[0].running):
            return
        raise Failed(f"show-vm {vm_id} says {answer}, and it is on {[host.name for host in hosts]}")

    def _ask_again(self, request: Request) -> Told:
        """Whoever does not know asks again with the same request id, and is told.

        :raise Failed: when it is not, or when what there was is not what there is.
        """
        holders = self._holders(request)
        told = self.scene.client.learn(self.scene.client.again(request, patience=AGAIN_PATIENCE_S))
        self.told += f"; asked again: {told.outcome} {told.what}".rstrip()
        if told.outcome not in ("done", "refused"):
            raise Failed(f"{request.verb} asked again with the same request id: {told}")
        if request.verb == "create" and holders and (told.outcome, self._holders(request)) != ("done", holders):
            raise Failed(f"it was on {holders}; asked again: {told}, and it is on {self._holders(request)}")
        return told

    def _check_disk(self, ends: list[tuple[Request, Told]]) -> None:
        if self.scene.cell.scenario == "clone":
            self._check_clone()
        if self.scene.cell.scenario == "restore":
            self._check_restored([(request, told) for request, told in ends if request.verb == "restore"])

    def _check_clone(self) -> None:
        """A clone that there is begins with what its source's guest wrote, and the source is as it was.

        :raise Failed: when it is not so.
        """
        scene = self.scene
        wrote = scene.disk_of(scene.source_id).content
        copy = scene.disk_of(scene.vm_id).content if any(scene.vm_id in h.disks for h in scene.look()) else wrote
        if wrote.split() != [scene.source_id] or not copy.startswith(wrote):
            raise Failed(f"the source's disk holds {wrote!r}, its clone's {copy!r}")

    def _check_restored(self, ends: list[tuple[Request, Told]]) -> None:
        """The disk holds what was told, and has its size; who asks again is told the same, or has done now what was
        never begun; and the VM starts from that disk.

        :raise Failed: when it is not so.
        """
        scene = self.scene
        self._check_boots(ends[-1][1])
        for request, told in ends:
            again = scene.client.learn(scene.client.again(request, patience=AGAIN_PATIENCE_S))
            if again != told and (told.what not in NEVER_BEGUN or again.outcome != "done"):
                raise Failed(f"restore told {told}; asked again: {again}")
        boots = self._check_boots(again)
        scene.done(scene.client.send("start", scene.vm_id, patience=AGAIN_PATIENCE_S))
        after = scene.disk_of(scene.vm_id).content.split()
        if after != [*boots, scene.vm_id]:
            raise Failed(f"the disk had seen the boots {boots}, and has seen {after} after one more")

    def _check_boots(self, told: Told) -> list[str]:
        """What the guest wrote at its boots is the old disk's or the restored one's, as a restore was told."""
        disk = self.scene.disk_of(self.scene.vm_id)
        may_be = {"done": (RESTORED,), "refused": (OLD,)}[told.outcome] if told.what != "failed" else (OLD, RESTORED)
        boots = disk.content.split()
        if boots not in [[self.scene.vm_id] * count for count in may_be] or disk.disk != GROWN_GIB:
            raise Failed(f"restore told {told}, and the disk of {disk.disk} GiB has seen the boots {boots}")
        return boots

    def _holders(self, request: Request) -> list[str]:
        """The hosts that have the VM which this create made."""
        found = []
        for host in self.scene.look():
            record = host.records.get(request.vm_id)
            if record is not None and record.phase != "gone" and record.request_id == request.request_id:
                found.append(host.name)
        return found

    def _probe_tunnels(self) -> None:
        """A tunnel carries bytes or says that it is over; and when its client is done nothing of any is left.

        :raise Failed: when it is not so.
        """
        scene = self.scene
        wrong = scene.client.probe_tunnels()
        if wrong:
            raise Failed("; ".join(wrong))
        scene.client.leave_tunnels()
        scene.until(lambda: not scene.echo.connections, SETTLE_S, "the host has let go of the guest's port")

    def _wait_for_burials(self) -> None:
        last = max(entry.deadline for entry in self.scene.ledger.entries)
        time.sleep(max(0.0, last + TOMBSTONE_SLACK_S - time.time()))

    def outcome(self) -> str:
        """What there is now of the VM that the cell is about."""
        hosts = [host for host in self.scene.look() if self.scene.vm_id in host.disks]
        states = [f"{'runs' if self.scene.vm_id in host.running else 'off'} on {host.name}" for host in hosts]
        return ", ".join(states) or "no VM"
