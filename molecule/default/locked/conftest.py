"""From play mode back to TLS in one run: with an operator's own certificate for the broker, with certificates for its
clients, and with operators who may not do everything.

The own certificate stays until `test_locked` begins to change the fleet's CA.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from aetherscale_testing.certificates import Company, OwnFiles
from aetherscale_testing.rollout import Rollout

SECRETS = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "secrets")
PEOPLE = {
    "aetherscale_operators": ["operator", "mallory", "reader", "carol"],
    "aetherscale_readonly_operators": ["reader"],
    "aetherscale_operator_labels": {"carol": {"team": "a"}},
}
Vm = tuple[str, str, str]
Broker = dict[str, Any]


@pytest.fixture(scope="session")
def rollout() -> Rollout:
    return Rollout()


@pytest.fixture(scope="session")
def kept(rollout: Rollout) -> Iterator[Vm]:
    """A VM from before: its id, its host, and QEMU's process there."""
    vm_id = rollout.create()
    yield vm_id, rollout.show(vm_id, 0)["host"], rollout.unit(vm_id, "MainPID")
    rollout.cli("delete-vm", vm_id)


@pytest.fixture(scope="session")
def issue(rollout: Rollout, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], OwnFiles]:
    """Have the CA of the operator's company issue a certificate for the broker: each time into the same files."""
    company = Company(tmp_path_factory.mktemp("company"))
    address = str(urlsplit(rollout.broker()["url"]).hostname)
    return lambda: company.issue(address, "broker1")


@pytest.fixture(scope="session")
def own(issue: Callable[[], OwnFiles]) -> OwnFiles:
    """The first of them."""
    return issue()


@pytest.fixture(scope="session")
def everybody(own: OwnFiles) -> tuple[str, ...]:
    """The options of a run that wants certificates of clients, shows one of the operator's own, and knows everybody."""
    return ("-e", "aetherscale_tls_client_certificates=true", "-e", json.dumps(PEOPLE | own.variables))


@pytest.fixture(scope="session", autouse=True)
def back(site: Callable[..., Any], kept: Vm, everybody: tuple[str, ...]) -> Any:
    """No longer in play mode: site.yml without the variable."""
    assert kept
    run = site(*everybody)
    assert run.code == 0, run.said
    return run


@pytest.fixture(scope="session")
def broker_of(rollout: Rollout) -> Callable[[str], Broker]:
    """What the context of another operator says of the broker, as `Rollout.broker` has it."""

    def find(user: str) -> Broker:
        own = rollout.broker()
        return own | {
            "url": own["url"].replace("//operator@", f"//{user}@"),
            "password": (SECRETS / user).read_text().strip(),
            "cert_file": str(SECRETS / "tls/clients" / f"{user}.pem"),
        }

    return find


@pytest.fixture(scope="session")
def laptop_of(
    broker_of: Callable[[str], Broker], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, str]]:
    """The environment that makes the CLI another operator's, on another laptop."""

    def make(user: str) -> dict[str, str]:
        home, his = tmp_path_factory.mktemp(user), broker_of(user)
        (home / "aetherscale/contexts").mkdir(parents=True)
        for key in ("ca_file", "cert_file"):
            his[key] = str(shutil.copy(his[key], home / key))
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in his.items())
        context = home / "aetherscale/contexts" / "his.toml"
        context.touch(0o600)
        context.write_text(f"[broker]\n{lines}")
        return {"XDG_CONFIG_HOME": str(home)}

    return make
