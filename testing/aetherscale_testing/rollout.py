"""A fleet that site.yml has set up on the lab, as its operator sees it: the CLI, and a shell on each host."""

import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aetherscale_lab.lab import Lab

CLI = Path(sys.executable).with_name("aetherscale-cli")


class Rollout:
    """The lab that AETHERSCALE_LAB names, commanded through the CLI's current context."""

    def __init__(self) -> None:
        self.lab = Lab(os.environ["AETHERSCALE_LAB"])

    def cli(
        self, *arguments: str, check: bool = True, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the CLI; its output is JSON, as for every program. `environ` adds to what it is started with."""
        env = {**os.environ, **(environ or {})}
        done = subprocess.run([CLI, *arguments], capture_output=True, text=True, check=False, timeout=120, env=env)
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def argv(self, *arguments: str) -> list[str]:
        """The command line that `cli` runs, for programs that run it themselves."""
        return [str(CLI), *arguments]

    def start(self, *arguments: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start the CLI with nothing to read, and go on; what it says is not kept, unless `stdout` is a pipe."""
        null = subprocess.DEVNULL
        return subprocess.Popen(self.argv(*arguments), stdin=subprocess.PIPE, stdout=stdout, stderr=null)

    def ask(self, *arguments: str, check: bool = True) -> list[dict[str, Any]]:
        """What the CLI answers."""
        answers: list[dict[str, Any]] = json.loads(self.cli(*arguments, check=check).stdout)
        return answers

    def broker(self) -> dict[str, Any]:
        """What the CLI's current context says of the broker: url, password, and whole paths of files for TLS."""
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "aetherscale"
        current = (folder / "current-context").read_text().strip()
        context = folder / "contexts" / f"{current}.toml"
        table: dict[str, Any] = tomllib.loads(context.read_text())["broker"]
        return table | {key: str(context.parent / name) for key, name in table.items() if key.endswith("_file")}

    def create(self, *more: str) -> str:
        """A new small VM's id."""
        defaults = ["--image", "ubuntu_base", "--memory", "128M", "--disk", "1G"]
        (answer,) = self.ask("create-vm", *defaults, *more)
        return str(answer["response"]["vm-id"])

    def show(self, vm_id: str, lines: int = 200) -> dict[str, Any]:
        """All there is to say about a VM."""
        (answer,) = self.ask("show-vm", vm_id, "--console-lines", str(lines))
        response: dict[str, Any] = answer["response"]
        return response

    def console(self, vm_id: str) -> str:
        """The VM's console."""
        return "\n".join(self.show(vm_id).get("console", []))

    def boot(self, vm_id: str) -> str:
        """Wait until the guest asks for a login; its console."""
        self.eventually(lambda: "login:" in self.console(vm_id), 120)
        return self.console(vm_id)

    def run(self, host: str, *argv: str, check: bool = True) -> str:
        """What a command on a host prints."""
        return self.lab.run(host, argv, check=check).stdout.strip()

    def unit(self, vm_id: str, what: str) -> str:
        """A property of a VM's unit, on the host that holds it."""
        unit = f"aetherscale-vm@{vm_id}.service"
        return self.run(self.show(vm_id, 0)["host"], "systemctl", "show", "-P", what, unit)

    @staticmethod
    def eventually(what: Callable[[], bool], seconds: float = 30) -> None:
        """Wait until something is so.

        :raise AssertionError: when it is not so within so many seconds.
        """
        limit = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < limit, f"not so within {seconds} s"
            time.sleep(0.2)
