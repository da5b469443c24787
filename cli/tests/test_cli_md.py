"""What docs/cli.md shows as said by the CLI is what it says."""

import shlex
import time
from pathlib import Path
from typing import Any

import pytest

from aetherscale_agent.capacity import Free, misfit
from aetherscale_agent.ports import Image
from aetherscale_protocol import names
from aetherscale_protocol.options import CreateVm
from aetherscale_testing.session import MemorySession, refusal, success, vm

DOC = Path(__file__).parents[2] / "docs" / "cli.md"
IMAGE = Image("debian12", "", "qcow2", 1 << 30, "")


def find_sample(command: str) -> tuple[list[str], str]:
    """The arguments of the sample that begins so, and what is shown of it."""
    lines = DOC.read_text().splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith(f"    $ aetherscale-cli {command}")]
    (at,) = [n for n in starts if "|" not in lines[n]]
    end = next(n for n in range(at, len(lines)) if not lines[n])
    shown = "".join(f"{line.removeprefix('    ')}\n" for line in lines[at + 1 : end])
    return shlex.split(lines[at])[2:], shown


def dry_run(host: str, _: str, options: dict[str, Any]) -> dict[str, Any]:
    if host == "h3":
        no = misfit(CreateVm(image="debian12", memory=options["memory"]), IMAGE, Free(8, 784, 80), 272)
        assert no is not None
        return refusal(no.code, no.reason)
    return success({"score": {"h1": 6144, "h2": 11264}[host], "alike": 0})


def waiting(_: str, command: str, options: dict[str, Any]) -> dict[str, Any]:
    if command == "show-vm":
        it = vm(options["vm-id"], name="web1", reached=["running", "ip"], addresses=["10.88.1.12"])
        return success(it | {"host": "h1", "created": 0, "console": ["[  OK  ] Reached target Network is Online."]})
    return {}


def making(_: str, command: str, __: dict[str, Any]) -> dict[str, Any]:
    return {"host": "h3"} | success({}) if command == "create-vm" else {}


def applied() -> MemorySession:
    web1, web2 = (
        vm(
            names.id_of_name(name),
            name=name,
            image="debian12",
            cpus=2,
            disk=disk,
            memory=memory,
            labels={"role": "web"},
        )
        for name, disk, memory in (("web1", 10, 1024), ("web2", 20, 2048))
    )
    return MemorySession({"h1": [web1, web2], "h3": []}, None, making)


@pytest.mark.parametrize(
    ("command", "session"),
    [
        (
            "create-vm --image debian12 --memory 4G --dry-run",
            MemorySession({"h1": [], "h2": [], "h3": []}, None, dry_run),
        ),
        ("create-vm --name web1", MemorySession({"h1": [vm(names.id_of_name("web1"))]}, None, waiting)),
        ("apply -f vms.yml", applied()),
    ],
    ids=["dry run", "wait", "apply"],
)
def test_samples_are_what_is_said(
    command: str, session: MemorySession, use: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    monkeypatch.setattr(time, "monotonic", lambda: session.now)
    use(session)
    argv, shown = find_sample(command)
    ran = cli(*argv, "-o", "table")
    assert ran.out + ran.err == shown


def test_the_sample_of_a_list_is_what_is_said(use: Any, cli: Any) -> None:
    """Of VMs whose hosts tell the addresses that they keep for them, of those that are off too."""
    now, of = time.time(), {"image": "debian12"}
    web1 = vm(names.id_of_name("web1"), name="web1", cpus=2, memory=2048, disk=20, since=now - 200, **of)
    web1 |= {"addresses": ["10.88.1.12"], "expires": now + 3630}
    db1 = vm(names.id_of_name("db1"), name="db1", since=now - 90_000, addresses=["10.88.2.7"], **of)
    off = vm("sgeqxcfi", state="stopped", image="ubuntu_base", since=now - 7300, addresses=["10.88.2.41"])
    use(MemorySession({"h1": [web1], "h2": [db1, off]}))
    argv, shown = find_sample("list-vms")
    assert cli(*argv, "-o", "table").out == shown


def write_files(folder: Path) -> None:
    """The sample's file of VMs, what it names, and the operator's key."""
    text = DOC.read_text()
    lines = text[text.index("    # vms.yml") : text.index("    $ aetherscale-cli apply")].splitlines()
    (folder / "vms.yml").write_text("".join(f"{line.removeprefix('    ')}\n" for line in lines))
    (folder / "ci.pub").write_text(
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA ci\n"
    )
    (folder / ".ssh").mkdir()
    (folder / ".ssh" / "id_ed25519.pub").write_bytes((folder / "ci.pub").read_bytes())
    (folder / "ci.cloud").write_text("#cloud-config\n{}\n")
