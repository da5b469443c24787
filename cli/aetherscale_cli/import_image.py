"""`import-image`: bring an image to the hosts, by the playbook that the roll-out uses (`ansible/images.yml`).

The CLI reaches nothing but the broker, and images are no messages: they travel as the agents did, by Ansible.
Where checkout and inventory are stands in the context, which the roll-out wrote.
"""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from aetherscale_cli import outlet, text
from aetherscale_cli.contexts import Deployment
from aetherscale_cli.errors import CliError, Exit
from aetherscale_cli.report import Outcome, json_list
from aetherscale_protocol import disk_images

PLAYBOOK = "images.yml"
CHUNK = 1 << 20


def is_url(source: str) -> bool:
    """Whether an image is to be fetched by the controller."""
    return source.startswith(("http://", "https://"))


def find_digest(source: str, given: str | None) -> str:
    """The SHA-256 that the image must have: as given, or else of the file as it is, whose header is looked at first.

    :raise CliError: when a URL comes without one, or the file can't be read, is another one, or none that a host
        should open.
    """
    if is_url(source):
        if given is None:
            hint = "--sha256 says what must come; whoever offers the image tells it"
            raise CliError(f"{source}: what comes over a network must be checked", hint, Exit.USAGE)
        return given
    try:
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise CliError(f"{source} is no file", None, Exit.USAGE)
        with open(source, "rb") as file:
            disk_images.read_image(file)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except disk_images.ImageError as error:
        hint = "hosts take a qcow2 file that stands by itself, or a raw disk that boots"
        raise CliError(f"{source} is not brought to any host: {error}", hint, Exit.USAGE) from None
    except OSError as error:
        raise CliError(f"can't read {source}: {error.strerror}", None, Exit.USAGE) from None
    if given is not None and given != digest:
        raise CliError(f"{source} has the SHA-256 {digest}, not {given}", "is it the file that you mean?", Exit.USAGE)
    return digest


def finalize_argv(
    program: str, deployment: Deployment, name: str, source: str, digest: str, hosts: Sequence[str]
) -> list[str]:
    """The command line of ansible-playbook.

    Each value is marked as Ansible's `!unsafe`: what comes by `-e` it takes for templates, and so would run commands
    that stand in a file's name.
    """
    source = source if is_url(source) else str(Path(source).resolve())
    wish = {"image_name": name, "image_source": source, "image_sha256": digest}
    if hosts:
        wish["image_hosts"] = ",".join(hosts)
    data = {variable: {"__ansible_unsafe": value} for variable, value in wish.items()}
    inventories = [part for path in deployment.inventory for part in ("-i", path)]
    return [program, *inventories, PLAYBOOK, "-e", json.dumps(data)]


def find_program() -> str:
    """Where ansible-playbook is: beside this Python, or in the PATH.

    :raise CliError: when it is nowhere.
    """
    beside = Path(sys.executable).with_name("ansible-playbook")
    program = str(beside) if beside.exists() else shutil.which("ansible-playbook")
    if program is None:
        raise CliError("there is no ansible-playbook here", "pip install 'aetherscale[deploy]'", Exit.USAGE)
    return program


def import_image(deployment: Deployment | None, name: str, source: str, given: str | None, hosts: Sequence[str]) -> str:
    """Do it; the image's SHA-256. What Ansible says goes to stderr.

    :raise CliError: when it can't be begun, or did not come to all hosts.
    """
    if deployment is None or not Path(deployment.ansible_dir, PLAYBOOK).is_file():
        hint = "do it where site.yml was run; or there: cd ansible && ansible-playbook images.yml -e image_name=… …"
        raise CliError("this context does not say where the fleet's playbooks are", hint, Exit.USAGE)
    digest = find_digest(source, given)
    outlet.say([f"{name}: sha256 {digest}"])
    argv = finalize_argv(find_program(), deployment, name, source, digest, hosts)
    done = subprocess.run(argv, cwd=deployment.ansible_dir, env=dict(os.environ), stdout=sys.stderr, check=False)
    if done.returncode != 0:
        where = text.listed(hosts) if hosts else "all hosts"
        raise CliError(f"image {name} did not come to {where}: ansible-playbook says why, above")
    return digest


def report_image(name: str, digest: str, output: str | None) -> Outcome:
    """The outcome of an import, in the form that is wanted."""
    if output in ("table", "wide"):
        return Outcome(
            text.table(("IMAGE", "SHA256"), [(name, digest if output == "wide" else text.short_sum(digest))])
        )
    return Outcome(json_list([json.dumps({"image": name, "sha256": digest}).encode()]))
