"""A vhost with users of the protocol's own rights, as site.yml makes it."""

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
    """A vhost with the shared pieces and these users, gone when the block ends; users without rights stay."""
    definitions = folder / "definitions.json"
    definitions.write_text(json.dumps(_definitions(vhost, users)))
    broker.ctl("import_definitions", str(definitions))  # one call: each takes half a second
    try:
        yield
    finally:
        broker.ctl("delete_vhost", vhost)


def _definitions(vhost: str, users: Mapping[str, Permissions]) -> dict[str, Any]:
    salt = os.urandom(4)
    hashed = base64.b64encode(salt + hashlib.sha256(salt + PASSWORD.encode()).digest()).decode()
    algorithm = "rabbit_password_hashing_sha256"
    return {
        "vhosts": [{"name": vhost}],
        "users": [
            {"name": user, "tags": "", "password_hash": hashed, "hashing_algorithm": algorithm} for user in users
        ],
        "permissions": [
            {"user": user, "vhost": vhost, "configure": r.configure, "write": r.write, "read": r.read}
            for user, r in users.items()
        ],
        **topology.definitions(vhost),
    }


def log_in(broker: TestBroker, user: str, vhost: str, password: str = PASSWORD) -> pika.BlockingConnection:
    """A connection of this user's.

    :raise pika.exceptions.AMQPError: when the broker refuses it.
    """
    host, _, port = broker.address.partition(":")
    credentials = pika.PlainCredentials(user, password)
    return pika.BlockingConnection(pika.ConnectionParameters(host, int(port), vhost, credentials))
