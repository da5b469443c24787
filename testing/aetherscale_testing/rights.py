"""A vhost with users of the protocol's own rights, as site.yml makes it."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pika

from aetherscale_protocol import topology
from aetherscale_protocol.topology import Permissions
from aetherscale_testing.broker import TestBroker

PASSWORD = "a password"


def add_user(broker: TestBroker, vhost: str, name: str, rights: Permissions) -> None:
    """Make a user with these rights in a vhost, and none elsewhere."""
    broker.ctl("add_user", name, PASSWORD)
    broker.ctl("set_permissions", "-p", vhost, name, rights.configure, rights.write, rights.read)


@contextlib.contextmanager
def locked_down_vhost(broker: TestBroker, vhost: str, users: Mapping[str, Permissions], folder: Path) -> Iterator[None]:
    """A vhost with the shared pieces and these users, gone when the block ends."""
    broker.ctl("add_vhost", vhost)
    for user, rights in users.items():
        add_user(broker, vhost, user, rights)
    definitions = folder / "definitions.json"
    definitions.write_text(json.dumps(topology.definitions(vhost)))
    broker.ctl("import_definitions", str(definitions))
    try:
        yield
    finally:
        broker.ctl("delete_vhost", vhost)
        for user in users:
            broker.ctl("delete_user", user)


def log_in(broker: TestBroker, user: str, vhost: str, password: str = PASSWORD) -> pika.BlockingConnection:
    """A connection of this user's.

    :raise pika.exceptions.AMQPError: when the broker refuses it.
    """
    host, _, port = broker.address.partition(":")
    credentials = pika.PlainCredentials(user, password)
    return pika.BlockingConnection(pika.ConnectionParameters(host, int(port), vhost, credentials))
