"""The demo: three real systemd hosts, the product's own roll-out onto them, and VMs that really boot.

    python -m aetherscale_lab.demo up | down

It does nothing that a user could not type: the lab, `ansible-playbook site.yml`, and the CLI. Each guest's image
carries a random word, and the demo ends when it has read each word from that guest's own console.
"""

import hashlib
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from aetherscale_lab import guest, model, paths, roots
from aetherscale_lab.errors import LabError
from aetherscale_lab.lab import Lab

NAME = "demo"
REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
GUESTS = ("demo-1", "demo-2")
BOOT_TIMEOUT_S = 150

SSH = {
    "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=5s -o ServerAliveInterval=2 -o ServerAliveCountMax=5"
}
"""Connections are kept for the playbook's next task only: `make down` leaves no process."""

INVENTORY = """\
# Written by `make demo`. For machines of your own start from inventory.example.ini.
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
agent_disk=40
aetherscale_context={context}
aetherscale_images={images}
"""


def main() -> int:
    """Run the verb in argv; the exit code."""
    os.umask(0o022)  # a host's files are made here, too: its root directory, for one
    verbs = {"up": up, "down": down}
    try:
        verbs[sys.argv[1]]()
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def up() -> None:
    """Make the demo, or bring back what of it is missing."""
    began = time.monotonic()
    lab = _start_lab()
    words = _make_images()
    _say("rolling out with ansible-playbook site.yml")
    _roll_out(lab, words)
    _say("creating VMs with aetherscale-cli create-vm")
    vms = {image: _ensure_vm(image) for image in words}
    for image, word in words.items():
        _read_back(vms[image], word)
    _show_off(time.monotonic() - began)


def down() -> None:
    """Remove the lab and the CLI's context of it."""
    Lab(NAME).down()
    home = _cli_config()
    for file in (f"{NAME}.toml", f"{NAME}.ca.pem", f"{NAME}.client.pem"):
        (home / "contexts" / file).unlink(missing_ok=True)
    current = home / "current-context"
    if current.exists() and current.read_text().strip() == NAME:
        current.unlink()
    for folder in (home / "contexts", home):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    _say("the demo is gone; caches stay in ~/.cache (see the README)")


def _start_lab() -> Lab:
    _say("building hosts and a guest image from Debian's packages, once (cached later)")
    for suite in sorted({model.parse_host(text).suite for text in model.DEFAULT_FLEET}):
        roots.prepare_suite(suite)
    guest.prepare_guest()
    lab = Lab(NAME)
    _say("starting three systemd hosts")
    for report in lab.up([model.parse_host(text) for text in model.DEFAULT_FLEET]):
        print(f"   {report.host.name:8} {report.host.address}")
    return lab


def _folder() -> Path:
    return paths.state_root() / NAME / "demo"


def _make_images() -> dict[str, str]:
    """Give each guest an image with a word of its own; the words by image name. Made once for each demo."""
    folder = _folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    remembered = folder / "words.json"
    if not remembered.exists():
        words = {name: f"{name}-{secrets.token_hex(6)}" for name in GUESTS}
        for name, word in words.items():
            guest.with_word(guest.prepare_guest(), word, folder / f"{name}.qcow2")
        remembered.write_text(json.dumps(words))
    result: dict[str, str] = json.loads(remembered.read_text())
    return result


def _roll_out(lab: Lab, words: dict[str, str]) -> None:
    inventory = _folder() / "inventory.ini"
    inventory.write_text(_finalize_inventory(lab, words))
    log = _folder() / "ansible.log"
    environment = {**os.environ, "PATH": f"{PROGRAMS}:{os.environ['PATH']}", "ANSIBLE_LOG_PATH": str(log), **SSH}
    command = [str(PROGRAMS / "ansible-playbook"), "-i", str(inventory), "site.yml"]
    with subprocess.Popen(
        command,
        cwd=REPOSITORY / "ansible",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as playbook:
        assert playbook.stdout is not None
        lines = [_show_progress(line.rstrip()) for line in playbook.stdout]
    if playbook.returncode != 0:
        print("\n".join(lines[-60:]), file=sys.stderr)
        raise LabError("site.yml failed", f"all of its output: {log}; `make demo` again goes on from there")


def _show_progress(line: str) -> str:
    """Show the plays and the recap of Ansible's output; return the line."""
    if line.startswith("PLAY [") or "changed=" in line:
        print(f"   {line.rstrip('* ')}", flush=True)
    return line


def _finalize_inventory(lab: Lab, words: dict[str, str]) -> str:
    hosts = {row["name"]: row["address"] for row in lab.inventory()}
    lines = {name: f"{name} ansible_host={address}" for name, address in hosts.items()}
    images = [_describe_image(name, _folder() / f"{name}.qcow2") for name in words]
    images.append(_describe_image("ubuntu_base", guest.prepare_guest()))
    return INVENTORY.format(
        broker=lines["broker1"],
        compute="\n".join(line for name, line in lines.items() if name != "broker1"),
        key=lab.identity_file,
        known_hosts=lab.known_hosts_file,
        context=NAME,
        images=json.dumps(images),
    )


def _describe_image(name: str, path: Path) -> dict[str, str]:
    return {"name": name, "source": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _cli_config() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "aetherscale"


def _cli(*arguments: str) -> Any:
    """What the CLI answers, decoded."""
    done = subprocess.run(
        [PROGRAMS / "aetherscale-cli", "--context", NAME, *arguments, "-o", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).removeprefix("error: ")
        raise LabError(f"aetherscale-cli {' '.join(arguments)}: {said}", "make down, then make demo, begins anew")
    return json.loads(done.stdout)


def _ensure_vm(image: str) -> str:
    """A running VM of this image: the one that is there, or a new one."""
    for answer in _cli("list-vms"):
        for row in answer.get("details", []):
            if row["image"] == image:
                if row["state"] != "running":
                    _cli("start-vm", row["vm-id"])
                return str(row["vm-id"])
    (answer,) = _cli("create-vm", "--image", image, "--memory", "128M", "--disk", "1G")
    vm_id = str(answer["response"]["vm-id"])
    print(f"   {image}: VM {vm_id} on host {answer['host']}")
    return vm_id


def _read_back(vm_id: str, word: str) -> None:
    """Wait until the guest has said its word and asks for a login on its own console."""
    limit = time.monotonic() + BOOT_TIMEOUT_S
    while time.monotonic() < limit:
        (answer,) = _cli("show-vm", vm_id, "--console-lines", "200")
        console = "\n".join(answer["response"].get("console", []))
        if f"GUEST: word {word}" in console and "login:" in console:
            print(f"   VM {vm_id}: its console says {word!r}, and asks for a login")
            return
        time.sleep(0.5)
    raise LabError(f"VM {vm_id} did not boot within {BOOT_TIMEOUT_S} s", f"aetherscale-cli show-vm {vm_id}")


def _show_off(seconds: float) -> None:
    cli = PROGRAMS / "aetherscale-cli"
    for command in ("list-vms", "list-hosts"):
        print(f"\n$ aetherscale-cli {command}", flush=True)
        subprocess.run([cli, "--context", NAME, command, "-o", "table"], check=True)
    switched = _current_context() == NAME
    option = "" if switched else f" --context {NAME}"
    print(
        f"\nDone in {seconds:.0f} s. Type next, from any folder:\n"
        f"  {cli}{option} list-vms\n"
        f"  {cli}{option} create-vm --image ubuntu_base --memory 128M --disk 1G\n"
        f"  {cli}{option} --help\n"
        "  make down        # when you have seen enough"
    )
    if not switched:
        print(f"Your CLI's current context is another one; {cli} use-context {NAME} makes it the demo's.")


def _current_context() -> str:
    current = _cli_config() / "current-context"
    return current.read_text().strip() if current.exists() else ""


def _say(text: str) -> None:
    print(f"-- {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
