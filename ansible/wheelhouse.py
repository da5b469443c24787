#!/usr/bin/env python3
"""Build, once and on the controller, all that a compute host needs to install the agent without any network.

    wheelhouse.py build [--source DIR] [--cache DIR]    print where it is, as JSON
    wheelhouse.py describe [--source DIR] [--cache DIR] the same, without building
    wheelhouse.py lock  [--source DIR]                  write both locks in agent/ again, from pyproject.toml

A wheelhouse is one folder `<cache>/<key>/`: the wheel of aetherscale, its dependencies for every Python that
a supported host may have, pip itself, `requirements.txt` with a hash for each, and all of that in one tar. `key`
is a hash of what goes in, so a folder that is there is complete and right, and building again needs no network.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

PYTHONS = ("3.11", "3.13")
"""The Pythons of the distributions that are supported: Debian 12 and 13."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LOCK = "agent/requirements.lock"
BUILD_LOCK = "agent/build.lock"
REQUIREMENTS = "requirements.txt"
TAR = "wheelhouse.tar"
KEEP = 5
"""How many wheelhouses stay in the cache."""
RECIPE = "2"
"""Goes into the key: to be raised when this file builds something else from the same sources."""

LOCK_HEADER = """\
# What the agent runs on, with the hash of every file that may be installed (Python {pythons}, x86_64).
# Made by `python ansible/wheelhouse.py lock` from pyproject.toml. pip installs the rest and is not installed itself.
"""
BUILD_LOCK_HEADER = """\
# What builds the wheel of aetherscale, with its hash; no host gets it.
# Made by `python ansible/wheelhouse.py lock` from pyproject.toml.
"""


class WheelhouseError(Exception):
    """It can't be built: `str()` says why."""


@dataclass(frozen=True)
class Wheelhouse:
    """A complete wheelhouse, and whether it had to be built."""

    path: Path
    version: str
    key: str
    built: bool

    def describe(self) -> dict[str, object]:
        """For Ansible: where it is and what a host calls the release that it makes."""
        return {
            "path": str(self.path),
            "tar": str(self.path / TAR),
            "version": self.version,
            "release": f"{self.version}-{self.key[:8]}",
            "pythons": list(PYTHONS),
            "built": self.built,
        }


def read_project(source: Path) -> dict[str, object]:
    """The whole pyproject.toml of `source`."""
    return tomllib.loads((source / "pyproject.toml").read_text())


def find_packages(source: Path) -> list[Path]:
    """The folders of the packages that the wheel holds, relative to `source`."""
    folders: dict[str, str] = read_project(source)["tool"]["setuptools"]["package-dir"]  # type: ignore[index]
    return [Path(folder) for folder in folders.values()]


def find_sources(source: Path) -> list[Path]:
    """Every file that decides what is installed, relative to `source` and sorted."""
    files = [Path("pyproject.toml"), Path(LOCK), Path(BUILD_LOCK)]
    for package in find_packages(source):
        files += (file.relative_to(source) for file in (source / package).rglob("*") if is_source(file))
    return sorted(files)


def is_source(file: Path) -> bool:
    """Whether a file of a package belongs to it, rather than to whoever ran it here."""
    return file.is_file() and "__pycache__" not in file.parts


def finalize_key(source: Path) -> str:
    """A hash of the sources: names and contents, nothing else (no times, no paths of this machine)."""
    digest = hashlib.sha256(RECIPE.encode())
    for file in find_sources(source):
        data = (source / file).read_bytes()
        digest.update(f"\0{file}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def find(source: Path, cache: Path) -> Wheelhouse:
    """The wheelhouse of `source`, whether or not it is there yet."""
    version = str(read_project(source)["project"]["version"])  # type: ignore[index]
    key = finalize_key(source)
    return Wheelhouse(cache / key[:16], version, key, built=False)


def build(source: Path, cache: Path) -> Wheelhouse:
    """The wheelhouse of `source`: found in `cache`, or built there.

    :raise WheelhouseError: when pip fails, with its last words.
    """
    house = find(source, cache)
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if house.path.is_dir():
            return house
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as scratch:
            done = Path(scratch) / "done"
            done.mkdir()
            fill(source, Path(scratch), done)
            done.chmod(0o755)
            done.rename(house.path)
        remove_old(cache)
    return replace(house, built=True)


def remove_old(cache: Path) -> None:
    """Remove all but the newest wheelhouses."""
    houses = sorted((file.parent for file in cache.glob(f"*/{TAR}")), key=lambda house: house.stat().st_mtime)
    for house in houses[:-KEEP]:
        shutil.rmtree(house)


def fill(source: Path, scratch: Path, wheels: Path) -> None:
    """Put all wheels, the requirements and the tar of both into `wheels`."""
    for python in PYTHONS:
        download(source / LOCK, wheels, python)
    build_own(source, scratch, wheels)
    (own,) = wheels.glob("aetherscale-*.whl")
    pinned = [block for block in read_lock(source) if not block.startswith("pip==")]
    pinned.append(pin("aetherscale", own.name.split("-")[1], [own]))
    (wheels / REQUIREMENTS).write_text("\n".join(pinned) + "\n")
    pack(wheels)


def build_own(source: Path, scratch: Path, wheels: Path) -> None:
    """Put the wheel of aetherscale itself into `wheels`, built by what the lock names and by nothing from an index."""
    tools, copy = scratch / "tools", scratch / "source"
    download(source / BUILD_LOCK, tools, PYTHONS[0])
    copy_sources(source, copy)
    run_pip("wheel", "--no-deps", "--no-index", "--find-links", str(tools), "--wheel-dir", str(wheels), str(copy))


def copy_sources(source: Path, copy: Path) -> None:
    """Copy what the wheel is built of, so that building leaves nothing behind in the checkout."""
    for file in [*find_sources(source), *find_documents(source)]:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, copy / file)


def find_documents(source: Path) -> list[Path]:
    """The files that pyproject.toml names for the wheel's metadata; they are not part of the key."""
    project: dict[str, object] = read_project(source)["project"]  # type: ignore[assignment]
    named = [str(project["readme"]), *project.get("license-files", [])]  # type: ignore[misc]
    return [file.relative_to(source) for name in named for file in source.glob(name)]


def download(lock: Path, wheels: Path, python: str) -> None:
    """Fetch what a lock names for a Python, checked against its hashes."""
    run_pip(
        "download", "--require-hashes", "--no-deps", "--only-binary", ":all:", "--dest", str(wheels),
        "--implementation", "cp", "--python-version", python,
        *(option for platform in PLATFORMS for option in ("--platform", platform)),
        "--requirement", str(lock),
    )  # fmt: skip


def read_lock(source: Path, lock: str = LOCK) -> list[str]:
    """The lock's requirements, one block (name, version, hashes) each."""
    lines = [line for line in (source / lock).read_text().splitlines() if line and not line.startswith("#")]
    return re.findall(r"^\S.*(?:\n\s+.*)*", "\n".join(lines), flags=re.MULTILINE)


def pin(name: str, version: str, files: list[Path]) -> str:
    """A requirement with the hash of each file that may satisfy it."""
    hashes = sorted({hashlib.sha256(file.read_bytes()).hexdigest() for file in files})
    return " \\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{digest}" for digest in hashes)])


def pack(wheels: Path) -> None:
    """Put the wheels and the requirements into one tar: one file to copy to a host."""
    with tarfile.open(wheels / TAR, "w") as tar:
        for file in sorted(wheels.iterdir()):
            if file.name != TAR:
                tar.add(file, file.name, filter=anonymous)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A tar member that says nothing of who packed it."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o644
    return member


def write_locks(source: Path) -> list[Path]:
    """Resolve pyproject's requirements for every Python and write both locks.

    :raise WheelhouseError: when pip fails, or two Pythons would get different versions.
    """
    whole = read_project(source)
    project: dict[str, object] = whole["project"]  # type: ignore[assignment]
    tools: list[str] = whole["build-system"]["requires"]  # type: ignore[index]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["agent"], "pip"]  # type: ignore[index,misc]
    locks = {
        source / LOCK: LOCK_HEADER.format(pythons=" and ".join(PYTHONS)) + pin_all(wanted),
        source / BUILD_LOCK: BUILD_LOCK_HEADER + pin_all(tools),
    }
    for lock, text in locks.items():
        lock.write_text(text)
    return list(locks)


def pin_all(wanted: list[str]) -> str:
    """The text of a lock for these requirements."""
    found: dict[str, dict[str, list[Path]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for python in PYTHONS:
            for wheel in resolve(wanted, python, Path(scratch) / python):
                name, version = wheel.name.split("-")[:2]
                found.setdefault(name.replace("_", "-").lower(), {}).setdefault(version, []).append(wheel)
        return "\n".join(finalize_lock(found)) + "\n"


def resolve(wanted: list[str], python: str, place: Path) -> list[Path]:
    """Download what `wanted` comes to on one Python."""
    run_pip(
        "download", "--only-binary", ":all:", "--dest", str(place),
        "--implementation", "cp", "--python-version", python,
        *(option for platform in PLATFORMS for option in ("--platform", platform)),
        *wanted,
    )  # fmt: skip
    return sorted(place.glob("*.whl"))


def finalize_lock(found: dict[str, dict[str, list[Path]]]) -> Iterator[str]:
    """The blocks of the lock, in order of name."""
    for name, versions in sorted(found.items()):
        if len(versions) > 1:
            raise WheelhouseError(f"{name}: the Pythons would get different versions: {', '.join(versions)}")
        ((version, files),) = versions.items()
        yield pin(name, version, files)


def run_pip(*arguments: str) -> None:
    """Run this Python's pip, quietly."""
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        words = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise WheelhouseError(f"pip {arguments[0]} failed (exit {done.returncode}):\n{words}")


def main() -> int:
    """Parse the arguments and do it."""
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "describe", "lock"])
    parser.add_argument("--source", type=Path, default=root, help="a checkout of aetherscale (default: this one)")
    parser.add_argument("--cache", type=Path, default=root / ".cache/wheelhouse", help="default: %(default)s")
    options = parser.parse_args()
    try:
        if options.what == "lock":
            print(*write_locks(options.source), sep="\n")
        else:
            verb = build if options.what == "build" else find
            print(json.dumps(verb(options.source.resolve(), options.cache.resolve()).describe()))
    except (WheelhouseError, OSError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
