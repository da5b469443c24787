"""The wheelhouse: what its key hangs on, and that finding one needs no network."""

import re
import shutil

import pytest

from .conftest import ANSIBLE

REPOSITORY = ANSIBLE.parent


@pytest.fixture
def checkout(wheelhouse, tmp_path):
    for file in wheelhouse.find_sources(REPOSITORY):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / file, tmp_path / file)
    return tmp_path


def test_the_key_hangs_on_sources_and_lock_and_nothing_else(wheelhouse, checkout):
    key = wheelhouse.finalize_key(checkout)
    assert key == wheelhouse.finalize_key(REPOSITORY)
    (checkout / "README.md").write_text("other words")
    (checkout / "cli/aetherscale_cli/__pycache__").mkdir()
    (checkout / "cli/aetherscale_cli/__pycache__/x.pyc").write_bytes(b"x")
    assert wheelhouse.finalize_key(checkout) == key
    locks = (wheelhouse.LOCK, wheelhouse.BUILD_LOCK)
    for file in ("protocol/aetherscale_protocol/names.py", *locks, "pyproject.toml"):
        changed = checkout / file
        before = changed.read_text()
        changed.write_text(before + "#\n")
        assert wheelhouse.finalize_key(checkout) != key
        changed.write_text(before)


def test_what_is_there_is_not_built_again(wheelhouse, checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(wheelhouse, "run_pip", lambda *_: pytest.fail("it called pip"))
    cache = tmp_path / "cache"
    wheelhouse.find(checkout, cache).path.mkdir(parents=True)
    assert not wheelhouse.build(checkout, cache).built


def test_the_lock_pins_every_requirement_for_both_pythons(wheelhouse):
    blocks = wheelhouse.read_lock(REPOSITORY)
    names = {block.split("==")[0] for block in blocks}
    assert names == {"dbus-fast", "msgspec", "pika", "pip", "pycdlib", "pyyaml", "qemu-qmp"}
    for block in blocks:
        assert block.count("--hash=sha256:") in (1, len(wheelhouse.PYTHONS))


def test_what_builds_the_wheel_is_pinned_and_comes_from_no_index(wheelhouse, checkout, tmp_path, monkeypatch):
    (setuptools,) = wheelhouse.read_lock(REPOSITORY, wheelhouse.BUILD_LOCK)
    assert setuptools.startswith("setuptools==")
    assert setuptools.count("--hash=sha256:") == 1
    calls = []
    monkeypatch.setattr(wheelhouse, "run_pip", lambda *arguments: calls.append(arguments))
    wheelhouse.build_own(checkout, tmp_path / "scratch", tmp_path / "wheels")
    (fetched, built) = calls
    assert "--require-hashes" in fetched
    assert fetched[-1] == str(checkout / wheelhouse.BUILD_LOCK)
    assert built[:5] == ("wheel", "--no-deps", "--no-index", "--find-links", fetched[fetched.index("--dest") + 1])


def test_what_no_lock_pins_is_told(wheelhouse):
    """docs/security.md names each requirement of the controller's that is checked against no hash."""
    said = (REPOSITORY / "docs/security.md").read_text()
    pinned = {block.split("==")[0] for block in wheelhouse.read_lock(REPOSITORY)}
    extras = wheelhouse.read_project(REPOSITORY)["project"]["optional-dependencies"]
    wanted = {re.match("[a-z0-9-]+", requirement)[0] for requirement in extras["deploy"]}
    (row,) = [line for line in said.splitlines() if "**no hash**" in line]
    assert wanted - pinned
    assert all(f"`{name}`" in row for name in wanted - pinned)


def test_every_package_of_the_sources_is_in_the_wheel(wheelhouse):
    listed = set(wheelhouse.read_project(REPOSITORY)["tool"]["setuptools"]["packages"])
    for folder in wheelhouse.find_packages(REPOSITORY):
        for init in (REPOSITORY / folder).rglob("__init__.py"):
            package = ".".join(init.parent.relative_to(REPOSITORY / folder.parent).parts)
            assert package in listed, f"{package} is not in pyproject.toml's packages"
