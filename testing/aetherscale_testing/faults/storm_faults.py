"""The faults of a storm on the lab: a thread per target lets them fall when they are due, and heals each."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from aetherscale_lab.errors import LabError
from aetherscale_testing.faults.storm_book import Book
from aetherscale_testing.faults.storm_plan import Fault
from aetherscale_testing.faults.storm_stage import AGENT, BROKER_UNIT, IMAGES, Stage

FILLER = "/var/lib/aetherscale/filler"
HIDDEN = f"{IMAGES}/.hidden"


class Weather:
    """All faults of a storm, by target."""

    def __init__(self, stage: Stage, faults: Sequence[Fault], book: Book) -> None:
        self.fallen: Counter[str] = Counter()
        self._stage = stage
        self._book = book
        self._stop = threading.Event()
        targets = sorted({fault.target for fault in faults})
        self._threads = [
            threading.Thread(target=self._afflict, args=([f for f in faults if f.target == target],), name=target)
            for target in targets
        ]
        self._began = 0.0

    def begin(self) -> None:
        """Let faults fall."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until the last has been healed."""
        for thread in self._threads:
            thread.join()

    def clear_up(self) -> None:
        """No more faults; those that fell are healed."""
        self._stop.set()
        self.join()

    def _afflict(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            if self._stop.wait(max(0.0, self._began + fault.at - time.monotonic())):
                return
            self._strike(fault)

    def _strike(self, fault: Fault) -> None:
        name = f"#{fault.number} {fault.kind} {fault.target}"
        self._book.note("fault", fault=name, seconds=fault.seconds)
        fall, heal = KINDS[fault.kind]
        began = time.monotonic()
        try:
            try:
                fall(self, fault.target)
                self._stop.wait(fault.seconds)
            finally:
                heal(self, fault.target)
        except LabError as error:
            self._book.suspect(f"fault {name} could not be made or healed: {error} {error.hint or ''}")
        self.fallen[fault.kind] += 1
        self._book.note("healed", fault=name, seconds=round(time.monotonic() - began, 1))

    # Agents

    def _signal_agent(self, host: str, signal: str) -> None:
        self._stage.shell(host, "systemctl", "kill", "--kill-who=main", "-s", signal, AGENT, check=False)

    def kill_agent(self, host: str) -> None:
        self._signal_agent(host, "KILL")

    def freeze_agent(self, host: str) -> None:
        self._signal_agent(host, "STOP")

    def thaw_agent(self, host: str) -> None:
        self._signal_agent(host, "CONT")

    def restart_agent(self, host: str) -> None:
        self._stage.shell(host, "systemctl", "restart", AGENT, timeout=120)

    # Hosts

    def cut_power(self, host: str) -> None:
        self._book.went_down.add(host)
        self._stage.lab.power_loss(host)

    def give_power(self, host: str) -> None:
        self._stage.lab.power_on(host)

    def reboot(self, host: str) -> None:
        self._book.went_down.add(host)
        self._stage.lab.reboot(host)

    def cut_network(self, host: str) -> None:
        self._stage.lab.cut(host)

    def heal_network(self, host: str) -> None:
        self._stage.lab.heal(host)

    # What a host has

    def kill_qemu(self, host: str) -> None:
        """Kill the QEMU of the VM whose id comes last: any will do."""
        units = self._stage.shell(
            host, "systemctl", "list-units", "--plain", "--no-legend", "--state=active", "aetherscale-vm@*.service"
        )
        ids = sorted(
            line.split()[0].removeprefix("aetherscale-vm@").removesuffix(".service") for line in units.splitlines()
        )
        if ids:
            self._book.crash(ids[-1])
            self._book.note("crash", vm=ids[-1], host=host)
            self._stage.shell(host, "systemctl", "kill", "-s", "KILL", f"aetherscale-vm@{ids[-1]}.service", check=False)

    def fill_disk(self, host: str) -> None:
        # what is free changes meanwhile: dd takes whatever there is, to the last block
        self._stage.shell(host, "dd", "if=/dev/zero", f"of={FILLER}", "bs=1M", check=False)

    def free_disk(self, host: str) -> None:
        self._stage.shell(host, "rm", "-f", FILLER)

    def hide_images(self, host: str) -> None:
        self._stage.shell(host, "sh", "-c", f"mkdir -p {HIDDEN} && mv {IMAGES}/sector* {IMAGES}/sha256*.raw {HIDDEN}/")

    def show_images(self, host: str) -> None:
        self._stage.shell(host, "sh", "-c", f"test ! -d {HIDDEN} || mv {HIDDEN}/* {IMAGES}/ && rm -rf {HIDDEN}")

    # The broker

    def kill_broker(self, host: str) -> None:
        # until systemd has noticed, starting it would do nothing
        noticed = f"while systemctl is-active --quiet {BROKER_UNIT}; do sleep 0.05; done"
        self._stage.shell(host, "sh", "-c", f"systemctl kill -s KILL {BROKER_UNIT}; {noticed}")

    def start_broker(self, host: str) -> None:
        self._stage.shell(host, "systemctl", "start", BROKER_UNIT, timeout=180)

    def restart_broker(self, host: str) -> None:
        self._stage.shell(host, "systemctl", "restart", BROKER_UNIT, timeout=180)

    def nothing(self, host: str) -> None:
        """It heals by itself."""


Act = Callable[[Weather, str], None]

KINDS: dict[str, tuple[Act, Act]] = {
    "agent-kill": (Weather.kill_agent, Weather.nothing),
    "agent-freeze": (Weather.freeze_agent, Weather.thaw_agent),
    "agent-restart": (Weather.restart_agent, Weather.nothing),
    "host-power": (Weather.cut_power, Weather.give_power),
    "host-reboot": (Weather.reboot, Weather.nothing),
    "network-cut": (Weather.cut_network, Weather.heal_network),
    "qemu-kill": (Weather.kill_qemu, Weather.nothing),
    "disk-full": (Weather.fill_disk, Weather.free_disk),
    "image-gone": (Weather.hide_images, Weather.show_images),
    "broker-kill": (Weather.kill_broker, Weather.start_broker),
    "broker-restart": (Weather.restart_broker, Weather.nothing),
    "broker-cut": (Weather.cut_network, Weather.heal_network),
}
"""How each kind falls, and how it is healed."""
