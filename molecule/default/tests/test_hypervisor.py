"""The real hypervisor on real hosts, of both distributions: the contract that the fake keeps too, and VMs' isolation.

The tests are shipped to each host and run there beside the agent's own release, while its agent is stopped.
"""

import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale_testing.rollout import Rollout

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDER = "/opt/hypervisor-tests"
PYTHON = "/opt/aetherscale/current/bin/python"
IMAGES = "/var/lib/aetherscale/images"
PURE_PYTHON = ("py.py", "pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments")


@pytest.fixture(params=["h1", "h2"])
def host(request: pytest.FixtureRequest) -> Iterator[tuple[Rollout, str]]:
    fleet, name = Rollout(), str(request.param)
    images = fleet.run(name, "ls", IMAGES).split()
    ship(fleet, name)
    fleet.run(name, "systemctl", "stop", "aetherscale-agent.service")
    try:
        in_folder(fleet, name, "root", "-m", "aetherscale_testing.guests", IMAGES)
        yield fleet, name
    finally:
        made = set(fleet.run(name, "ls", IMAGES).split()) - set(images)
        fleet.run(name, "rm", "-rf", FOLDER, *(f"{IMAGES}/{file}" for file in made))
        fleet.run(name, "systemctl", "start", "aetherscale-agent.service")


def ship(fleet: Rollout, name: str) -> None:
    libraries = Path(sysconfig.get_path("purelib"))
    sources = [
        "-C", str(REPOSITORY / "testing"), "aetherscale_testing",
        "-C", str(REPOSITORY / "agent/tests/hypervisor"), "test_real.py", "test_isolation.py",
        "-C", str(libraries), *PURE_PYTHON,
    ]  # fmt: skip
    packed = subprocess.run(
        ["tar", "-c", "--mode=a+rX", "--exclude=__pycache__", *sources], capture_output=True, check=True
    ).stdout
    fleet.run(name, "mkdir", "-p", FOLDER)
    subprocess.run(fleet.lab.ssh_command(name, ["tar", "-x", "-C", FOLDER]), input=packed, check=True)


def in_folder(fleet: Rollout, name: str, user: str, *arguments: str) -> str:
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    environment = ["env", "-C", FOLDER, f"PYTHONPATH={FOLDER}", "PYTHONDONTWRITEBYTECODE=1"]
    done = fleet.lab.run(name, [*become, *environment, PYTHON, *arguments], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("user", "file"), [("aetherscale", "test_real.py"), ("root", "test_isolation.py")])
def test_the_real_hypervisor(host: tuple[Rollout, str], user: str, file: str) -> None:
    said = in_folder(*host, user, "-m", "pytest", "-p", "no:cacheprovider", "-q", file)
    assert " passed" in said
    assert "skipped" not in said
