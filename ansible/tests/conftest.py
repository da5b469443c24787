"""The filter plugins and scripts of the roles, loaded as Ansible does: by path."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ANSIBLE = Path(__file__).resolve().parents[1]

# pytest calls these modules ansible.tests.…, and so makes this folder hide the real ansible, which the plugins import.
if getattr(sys.modules.get("ansible"), "__file__", None) is None:
    sys.modules.pop("ansible", None)
    importlib.import_module("ansible")


def load(path: str) -> ModuleType:
    """The module in a file below ansible/."""
    name = "aetherscale_ansible_" + Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ANSIBLE / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def broker() -> ModuleType:
    return load("roles/rabbitmq/filter_plugins/broker.py")


@pytest.fixture(scope="session")
def fleet() -> ModuleType:
    return load("roles/aetherscale/filter_plugins/fleet.py")


@pytest.fixture(scope="session")
def images() -> ModuleType:
    return load("roles/images/files/prepare_images.py")


@pytest.fixture(scope="session")
def wheelhouse() -> ModuleType:
    return load("wheelhouse.py")
