"""Where a storm rages: a lab onto which site.yml has been rolled out, made ready to be disturbed, and later undone.

Commands on hosts are run from the machine below them, not by ssh: a host that is cut off still has to be healed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aetherscale_lab import host as lab_host
from aetherscale_lab import model
from aetherscale_lab.errors import LabError
from aetherscale_lab.host import HostDirectory
from aetherscale_lab.lab import Lab
from aetherscale_lab.shell import run_command
from aetherscale_testing import guests
from aetherscale_testing.faults.storm_plan import BROKER

REPOSITORY = Path(__file__).resolve().parents[3]

FLEET = (f"{BROKER}:trixie", "h1:trixie", "h2:bookworm", "h3:trixie")

HEARTBEAT_S = 2
"""The agents' during a storm, so that frozen and cut off ones are noticed in 4 to 6 s instead of 10 to 15."""

STATE_MIB = 192
"""The size of the file system that a host's agent and VMs write to: small enough to be filled in a moment."""

STATE, CONFIG, IMAGES = "var/lib/aetherscale", "etc/aetherscale/agent.toml", "/var/lib/aetherscale/images"
AGENT, BROKER_UNIT = "aetherscale-agent.service", "rabbitmq-server.service"

STOP_LIMIT = "etc/systemd/system/aetherscale-tap@.service.d/storm.conf"
STOP_LIMIT_S = 4
"""How long a host that reboots waits for guests that do not hear the power button; 90 s otherwise."""

INVENTORY = """\
[broker]
{broker}

[compute]
{compute}

[all:vars]
ansible_user=root
ansible_ssh_private_key_file={key}
ansible_ssh_extra_args="-o UserKnownHostsFile={known_hosts}"
rabbitmq_memory_watermark=512MiB
agent_memory=4096
agent_cpus=32
agent_disk=40
aetherscale_secrets_dir={folder}/secrets
"""


class Stage:
    """The lab of a storm."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.hosts = tuple(sorted(entry.name for entry in lab.plan.hosts if entry.name != BROKER))

    @property
    def everybody(self) -> tuple[str, ...]:
        """The broker's host, and those of the VMs."""
        return (BROKER, *self.hosts)

    def directory(self, host: str) -> HostDirectory:
        """What a host owns on this machine."""
        return HostDirectory(self.lab.directory / "hosts" / host)

    def is_on(self, host: str) -> bool:
        """Whether a host has power."""
        return lab_host.find_leader(self.directory(host)) is not None

    def shell(self, host: str, *argv: str, check: bool = True, timeout: float = 60.0) -> str:
        """Run a command on a host as root; what it prints.

        :raise LabError: when the host is off, the command takes longer, or (if `check` is set) fails.
        """
        leader = lab_host.find_leader(self.directory(host))
        if leader is None:
            raise LabError(f"host {host} is off")
        enter = ["nsenter", "--target", str(leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--"]
        try:
            done = subprocess.run([*enter, *argv], capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            raise LabError(f"on {host}: {' '.join(argv)} took longer than {timeout:g} s") from None
        if check and done.returncode != 0:
            raise LabError(f"on {host}: {' '.join(argv)} failed with code {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def on_all_hosts(self, work: Callable[[str], object]) -> None:
        """Do this on every VM host, at the same time."""
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            list(pool.map(work, self.hosts))

    # Made ready, and undone

    def prepare(self) -> None:
        """Give every host a small state file system, tiny guests' images and a quick heartbeat."""
        self.on_all_hosts(self._prepare)

    def _prepare(self, host: str) -> None:
        self.lab.power_loss(host)
        root = self.directory(host).root
        with tempfile.TemporaryDirectory() as folder:
            run_command(["cp", "-a", f"{root / STATE}/.", folder])
            options = f"size={STATE_MIB}m,mode=755"
            run_command(["mount", "-t", "tmpfs", "-o", options, f"storm-{host}", str(root / STATE)])
            run_command(["cp", "-a", f"{folder}/.", str(root / STATE)])
        guests.write_images(root / STATE / "images")
        config = root / CONFIG
        shutil.copy2(config, config.with_suffix(".calm"))
        config.write_text(f"heartbeat = {HEARTBEAT_S}\n{config.read_text()}")
        limit = root / STOP_LIMIT
        limit.parent.mkdir(parents=True, exist_ok=True)
        limit.write_text(f"[Service]\nTimeoutStopSec={STOP_LIMIT_S}\n")
        self.lab.power_on(host)

    def restore(self) -> None:
        """Undo `prepare`; what agents and VMs wrote since is gone with the small file system."""
        self.on_all_hosts(self._restore)

    def _restore(self, host: str) -> None:
        self.lab.power_loss(host)
        root = self.directory(host).root
        run_command(["umount", str(root / STATE)])
        config = root / CONFIG
        calm = config.with_suffix(".calm")
        config.write_text(calm.read_text())  # in place: it stays its owner's
        calm.unlink()
        shutil.rmtree((root / STOP_LIMIT).parent)
        self.lab.power_on(host)


def set_stage(name: str, folder: Path, say: Callable[[str], None]) -> Stage:
    """Make a lab of a broker and three hosts and roll site.yml out onto it; `folder` takes secrets and contexts.

    :raise LabError: when either fails.
    """
    began = time.monotonic()
    lab = Lab(name)
    lab.up([model.parse_host(text) for text in FLEET])
    say(f"{len(FLEET)} hosts are up after {time.monotonic() - began:.0f} s; rolling out site.yml")
    _roll_out(lab, folder)
    say(f"rolled out after {time.monotonic() - began:.0f} s")
    return Stage(lab)


def _roll_out(lab: Lab, folder: Path) -> None:
    rows = {row["name"]: f"{row['name']} ansible_host={row['address']}" for row in lab.inventory()}
    inventory = folder / "inventory.ini"
    inventory.write_text(
        INVENTORY.format(
            broker=rows.pop(BROKER),
            compute="\n".join(rows.values()),
            key=lab.identity_file,
            known_hosts=lab.known_hosts_file,
            folder=folder,
        )
    )
    environment = {**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible/ansible.cfg"), "NO_COLOR": "1"}
    playbook = Path(sys.executable).with_name("ansible-playbook")
    command = [str(playbook), "-i", str(inventory)]
    done = subprocess.run(
        [*command, "site.yml"], cwd=REPOSITORY / "ansible", env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    (folder / "ansible.log").write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        raise LabError("site.yml failed", "\n".join(done.stdout.splitlines()[-40:]))
