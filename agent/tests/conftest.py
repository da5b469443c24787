"""One private broker for all protocol tests of a run, and a fresh fleet for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale_testing.broker import TestBroker, private_broker
from aetherscale_testing.certificates import Authority
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import Fleet, fleet
from aetherscale_testing.interrupts import interruptible as interruptible


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBroker]:
    """With TLS on a port of its own; what is not about TLS uses the plain one."""
    certificate = Authority(tmp_path_factory.mktemp("tls")).broker("127.0.0.1")
    with private_broker(certificate=certificate) as node:
        yield node


@pytest.fixture
def agents(broker: TestBroker, tmp_path: Path) -> Iterator[Fleet]:
    with fleet(broker, tmp_path) as running:
        yield running


@pytest.fixture
def client(broker: TestBroker) -> Iterator[SeedClient]:
    with SeedClient(broker.address) as connected:
        yield connected


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the agents' logs with a test that failed."""
    report = yield
    running = getattr(item, "funcargs", {}).get("agents")
    if report.failed and isinstance(running, Fleet):
        for agent in running.agents.values():
            report.sections.append((f"log of agent {agent.host}", agent.log[-6000:]))
    return report
