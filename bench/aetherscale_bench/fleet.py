"""A lab with the product rolled out on it, to measure on: one broker, some compute hosts, an operator's CLI.

The roll-out is that of a user: `ansible-playbook site.yml` over ssh, TLS, one operator. Run it in namespaces of its own
(`python -m aetherscale_lab isolated -- …`), where it meets no other lab.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aetherscale_bench import installed
from aetherscale_bench.timing import run
from aetherscale_cli.contexts import ContextStore, Target
from aetherscale_lab import guest, model, roots
from aetherscale_lab.lab import Lab
from aetherscale_testing import guests

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
CLI = installed.CLI
IMAGE = "ubuntu_base"
BROKER = "broker1"

SYNCS = {"hosts' syncs": "done"}
"""A fact of results. Those without it are of a lab that suppressed them, as tests' labs do."""

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
agent_memory={memory}
agent_cpus=256
agent_disk=200
aetherscale_context=bench
aetherscale_secrets_dir={folder}/secrets
aetherscale_images={images}
"""


class Fleet:
    """A lab of `hosts` compute hosts named h1, h2 …; odd ones run Debian 13, even ones Debian 12."""

    def __init__(self, hosts: int, name: str = "bench", memory_mib: int = 32768) -> None:
        self.lab = Lab(name, sync=True)
        self.computes = [f"h{number}" for number in range(1, hosts + 1)]
        self._memory_mib = memory_mib
        self._scratch = tempfile.TemporaryDirectory(prefix="aetherscale-bench-")
        self.folder = Path(self._scratch.name)
        self.env = {
            **os.environ,
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "ansible"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.folder / "ssh"),
        }

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.push(self)  # a lab whose roll-out fails is torn down, too
            self.start()
            self.roll_out()
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.lab.down()
        self._scratch.cleanup()

    def start(self) -> None:
        """Start the hosts, bare: systemd, sshd and Python alone."""
        suites = ("bookworm", "trixie")
        computes = [model.HostSpec(name, suites[number % 2]) for number, name in enumerate(self.computes, start=1)]
        for suite in suites:
            roots.prepare_suite(suite)
        self.lab.up([model.HostSpec(BROKER, "trixie"), *computes])

    def roll_out(self, *options: str) -> str:
        """Run site.yml; what Ansible says.

        :raise RuntimeError: when it fails.
        """
        self._write_inventory()
        argv = [str(PROGRAMS / "ansible-playbook"), "-i", str(self.folder / "inventory.ini"), "site.yml", *options]
        return run(argv, cwd=REPOSITORY / "ansible", env=self.env)

    def cli(self, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """What the CLI prints: JSON, as for any program."""
        return run([CLI, *arguments], codes=codes, env=self.env)

    def ask(self, *arguments: str) -> list[dict[str, Any]]:
        """What the CLI answers."""
        answers: list[dict[str, Any]] = json.loads(self.cli(*arguments))
        return answers

    def facts(self) -> dict[str, Any]:
        """What its results must say: what runs the guests, by the agents' own word, and whether disks really sync."""
        self.wait_connected()
        accelerators = {answer["response"]["accelerator"] for answer in self.ask("list-hosts")}
        return {"accelerator": ", ".join(sorted(accelerators)), **SYNCS}

    def wait_connected(self) -> None:
        """Wait until every agent takes commands.

        :raise RuntimeError: when one does not within a minute.
        """
        for _ in range(60):
            answers = json.loads(self.cli("list-hosts", codes=(0, 4)))
            if {answer["host"] for answer in answers if "response" in answer} == set(self.computes):
                return
            time.sleep(1)
        raise RuntimeError("not every agent is connected")

    def create(self, *more: str) -> str:
        """A new small VM's id."""
        (answer,) = self.ask("create-vm", "--image", IMAGE, "--memory", "128M", "--disk", "1G", "--no-ssh-key", *more)
        return str(answer["response"]["vm-id"])

    def target(self) -> Target:
        """The broker, as the operator's context has it."""
        return ContextStore(str(self.folder / "config" / "aetherscale")).load("bench")

    def give_sectors(self, host: str) -> None:
        """Give a host the images of `guests`: guests that do nothing, where kernels that boot would leave no CPU."""
        program = Path(guests.__file__).read_text()
        self.lab.run(host, ["python3", "-", "/var/lib/aetherscale/images"], stdin=program)
        self.run(host, "systemctl", "restart", "aetherscale-agent.service")

    def run(self, host: str, *argv: str) -> str:
        """What a command on a host prints."""
        return self.lab.run(host, argv).stdout

    def _write_inventory(self) -> None:
        hosts = {row["name"]: f"{row['name']} ansible_host={row['address']}" for row in self.lab.inventory()}
        image = guest.prepare_guest()
        described = {"name": IMAGE, "source": str(image), "sha256": hashlib.sha256(image.read_bytes()).hexdigest()}
        text = INVENTORY.format(
            broker=hosts[BROKER],
            compute="\n".join(hosts[name] for name in self.computes),
            key=self.lab.identity_file,
            known_hosts=self.lab.known_hosts_file,
            memory=self._memory_mib,
            folder=self.folder,
            images=json.dumps([described]),
        )
        (self.folder / "inventory.ini").write_text(text)


def start_cli(fleet: Fleet, *arguments: str) -> subprocess.Popen[str]:
    """The CLI as a process that runs beside the caller."""
    return subprocess.Popen([CLI, *arguments], env=fleet.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
