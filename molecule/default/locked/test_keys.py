"""Where clients have keys of their own, each is on its own host and nowhere else: as in tests/test_secrets.py.

Before `test_locked`, which makes them anew: the broker still has the key of the operator's own certificate.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aetherscale_testing.certificates import OwnFiles
from aetherscale_testing.rollout import Rollout
from aetherscale_testing.searching import line_of, read_keys, read_passwords, search

testinfra_hosts = ["broker1"]  # once, not per host

HOSTS = ("broker1", "h1", "h2")
SECRETS = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "secrets")
BROKERS, CLIENTS, CONFIG = "/etc/rabbitmq/aetherscale.pem", "/etc/aetherscale/client.pem", "/etc/aetherscale/agent.toml"
PREVIOUS = "/opt/aetherscale/previous/agent.toml"
"""What a failed roll-out goes back to."""


@pytest.fixture(scope="module")
def found(rollout: Rollout, own: OwnFiles) -> dict[str, set[tuple[str, str]]]:
    """Which password or key is where, by host."""
    clients = {f"{user}.pem" for user in ("operator", "mallory", "reader", "carol", "agent-h1", "agent-h2")}
    words = read_passwords(SECRETS) | read_keys(SECRETS) | {"own.key": line_of(own.key_file)}
    assert clients | {"authority.pem"} <= set(words)
    assert len(set(words.values())) == len(words)
    with ThreadPoolExecutor() as pool:
        return dict(zip(HOSTS, pool.map(lambda host: search(rollout, host, words), HOSTS), strict=True))


def test_the_broker_has_its_own_key_and_no_clients(found: dict[str, set[tuple[str, str]]]) -> None:
    assert found["broker1"] == {(BROKERS, "own.key")}


@pytest.mark.parametrize("host", ["h1", "h2"])
def test_a_host_has_its_agents_key_and_nobody_elses(found: dict[str, set[tuple[str, str]]], host: str) -> None:
    kept = {(PREVIOUS, f"agent-{host}")}
    assert found[host] - kept == {(CONFIG, f"agent-{host}"), (CLIENTS, f"agent-{host}.pem")}
