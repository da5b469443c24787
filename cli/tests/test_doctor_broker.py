"""The doctor, whole: a real broker, real agents over a hypervisor in memory, and one fault of each kind."""

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGSTOP
from typing import Any

import pytest

from aetherscale_protocol import topology
from aetherscale_testing.client import SeedClient
from aetherscale_testing.fleet import Fleet, fleet

pytestmark = pytest.mark.broker

NAMES = ["h1", "h2"]


@pytest.fixture
def context(node: Any, tmp_path: Path) -> dict[str, str]:
    """The environment of alice, who is an operator of the vhost `cloud`; over TLS."""
    folder = tmp_path / "config" / "aetherscale" / "contexts"
    folder.mkdir(parents=True)
    url = f"amqps://alice@localhost:{node.tls_port}/cloud"
    write(folder / "lab.toml", url, "sesame", ca_file(node))
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "RABBITMQ_HOST": ""}


def ca_file(node: Any) -> Path:
    """The CA of the broker's certificate."""
    ca: Path = node.authority.ca
    return ca


def write(path: Path, url: str, password: str, ca_file: Path) -> None:
    path.write_text(f'[broker]\nurl = "{url}"\npassword = "{password}"\nca_file = "{ca_file}"\n')
    path.chmod(0o600)


@pytest.fixture
def cloudy(node: Any, tmp_path: Path) -> Iterator[Fleet]:
    """Agents of the vhost `cloud`."""
    client = SeedClient(node.address, vhost="cloud")
    running = Fleet(node.broker, tmp_path / "hosts", client, vhost="cloud")
    try:
        yield running
    finally:
        running.stop()
        with SeedClient(node.address, vhost="cloud") as cleaner:
            cleaner.purge(running.agents)


def findings(ran: Any, result: str) -> list[tuple[str, str]]:
    return [(f["check"], f["subject"]) for f in ran.answers if f["result"] == result]


def test_an_operator_over_tls_is_green(cloudy: Fleet, cli: Any, context: dict[str, str]) -> None:
    cloudy.add("h1", "a", fleet=["h1"])
    cloudy.wait_ready()
    ran = cli("doctor", "--strict", environ=context)
    # The certificates of these tests are made for two days.
    assert {check for check, _ in findings(ran, "warning")} == {"tls"}, ran.err
    assert (ran.code, findings(ran, "error")) == (1, [])
    said = {f["check"]: f["text"] for f in ran.answers}
    assert said["rights"] == "may publish commands, and nothing else"
    assert re.search(
        r"warning: localhost:\d+: TLSv1.3; .*localhost.*, signed by .*; 1 days left\nhint: run site.yml", ran.err
    )
    assert "sesame" not in ran.out + ran.err


RIGHTS = {
    "wide": (".*", ".*", ".*"),
    "reader": ("^$", "^computing(-hosts)?$", "^computing"),
    "none": ("^$", "^$", "^$"),
}


def add_users(node: Any, folder: Path) -> None:
    """Users with these rights in `cloud`, whose password is sesame; at one stroke: each rabbitmqctl takes a second."""
    salt = b"salt"
    hashed = base64.b64encode(salt + hashlib.sha256(salt + b"sesame").digest()).decode()
    more = {"password_hash": hashed, "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": ""}
    rights = [
        {"user": user, "vhost": "cloud", **dict(zip(("configure", "write", "read"), may, strict=True))}
        for user, may in RIGHTS.items()
    ]
    file = folder / "users.json"
    file.write_text(json.dumps({"users": [{"name": user, **more} for user in RIGHTS], "permissions": rights}))
    node.broker.ctl("import_definitions", str(file))


def test_rights_that_are_too_many_and_too_few(
    cloudy: Fleet, node: Any, cli: Any, context: dict[str, str], tmp_path: Path
) -> None:
    cloudy.add("h1", "a", fleet=["h1"])
    add_users(node, tmp_path)
    cloudy.wait_ready()
    for user, said in (
        ("wide", "declare and delete exchanges and queues; take messages out of queues; publish past the exchange"),
        ("reader", "take messages out of queues\n"),
        ("none", "may not publish to exchange 'computing'"),
    ):
        url = f"amqps://{user}@localhost:{node.tls_port}/cloud"
        write(tmp_path / "config/aetherscale/contexts/lab.toml", url, "sesame", ca_file(node))
        ran = cli("doctor", environ=context)
        assert (ran.code, findings(ran, "error")) == (1, [("rights", user)]), ran.err
        assert said in ran.err
        assert f"; or, on the broker: rabbitmqctl set_permissions -p cloud {user} " in ran.err
    queues = {row["name"] for row in node.broker.table("list_queues", "-p", "cloud", "name")}
    assert queues == {*(queue.name for queue in topology.SHARED_QUEUES), "computing-host.h1", "computing-known.h1",
                      "agent.h1"}, "it declares nothing"  # fmt: skip


def test_the_way_in(node: Any, cli: Any, context: dict[str, str], tmp_path: Path) -> None:
    """A wrong password, a vhost that is none, a port that speaks no TLS, a CA that is another: each has its line."""
    path = tmp_path / "config/aetherscale/contexts/lab.toml"
    tls, ca = f"localhost:{node.tls_port}", ca_file(node)
    plain = node.address.partition(":")[2]
    for url, password, check, remedy in (
        (f"amqps://alice@{tls}/cloud", "wrong", "login", "check url and password"),
        (f"amqps://alice@{tls}/sky", "sesame", "login", "the vhost is the last part of the url"),
        (f"amqps://alice@localhost:{plain}/cloud", "sesame", "tls", "amqp://"),
    ):
        write(path, url, password, ca)
        path.chmod(0o640)
        ran = cli("doctor", environ=context)
        assert (ran.code, [check for check, _ in findings(ran, "error")]) == (3, [check])
        assert remedy in ran.err
        assert ("context", "this machine") in findings(ran, "warning"), "the rest is said, too"
        assert password not in ran.out + ran.err
    write(path, f"amqps://alice@{tls}/cloud", "sesame", tmp_path / "none.pem")
    ran = cli("doctor", environ=context)
    assert (ran.code, [check for check, _ in findings(ran, "error")]) == (2, ["tls"])


def test_a_context_that_is_not_there(cli: Any, node: Any) -> None:  # noqa: ARG001
    ran = cli("doctor", "--context", "moon")
    assert (ran.code, findings(ran, "error")) == (2, [("context", "this machine")])
    assert "there is no context 'moon'" in ran.err


@pytest.fixture
def ill(node: Any, tmp_path: Path) -> Iterator[Fleet]:
    """h1 is well; h2 has everything wrong with it that a host can say of itself."""
    services = {"aetherscale-network.service": "active", "aetherscale-dhcp.service": "failed"}
    state = {
        "accelerator_reason": "QEMU ended with exit status 1", "bridge": "br0", "bridge_state": "down",
        "services": services, "disk_size": 1000 << 30, "disk_free": 5 << 30,
    }  # fmt: skip
    with fleet(node.broker, tmp_path / "hosts") as running:
        running.add("h1", "a", fleet=NAMES, heartbeat=30)
        running.add(
            "h2", "a", "b", fleet=NAMES, heartbeat=30, condition=state, checksums={"b": "wrong"}, version="0.0.1"
        )
        running.wait_ready()
        yield running


def test_what_a_host_says_of_itself(ill: Fleet, cli: Any) -> None:  # noqa: ARG001
    ran = cli("doctor")
    assert ran.code == 1
    assert findings(ran, "error") == [("network", "h2"), ("network", "h2"), ("disk", "h2"), ("images", "h2")]
    assert ("version", "h2") in findings(ran, "warning")
    assert {check for check, host in findings(ran, "ok") if host == "h1"} == {
        *("host", "accelerator", "network", "disk", "vms", "images"),
    }
    for line in (
        "warning: h2: its agent is 0.0.1; of most others it is ",
        "error: h2: bridge br0 is down: no VM reaches anything",
        "hint: on h2: journalctl -u aetherscale-dhcp.service says why",
        "error: h2: 5G of 1000G free; VMs may still take 0B: VMs that write are paused when it is full",
        'error: h2: Image "b" is damaged: its file is not what its checksum ',
    ):
        assert line in ran.err


def test_a_host_that_freezes_hides_nothing_of_the_other(ill: Fleet, cli: Any) -> None:
    ill.agents["h1"].signal(SIGSTOP)
    began = time.monotonic()
    ran = cli("doctor", "--timeout", "0.5", "--wait-images", "0")
    assert time.monotonic() - began < 5
    assert ran.code == 4
    assert findings(ran, "error") == [("host", "h1"), ("network", "h2"), ("network", "h2"), ("disk", "h2")]


def test_images_that_are_being_read_are_waited_for_and_no_longer(node: Any, tmp_path: Path, cli: Any) -> None:
    with fleet(node.broker, tmp_path / "hosts") as running:
        running.add("h1", "a", checksums={"a": "pending"})
        running.wait_ready()
        began = time.monotonic()
        ran = cli("doctor", "--wait-images", "1")
        assert 1 <= time.monotonic() - began < 4
    assert (ran.code, ("images", "h1") in findings(ran, "warning")) == (0, True)
    assert "h1 reads on by itself" in ran.err


def test_an_agent_that_knows_no_such_command(cloud: Any, cli: Any) -> None:
    def behave(request: dict[str, Any]) -> Any:
        if request["command"] == "ping":
            return cloud.succeed({"host": "h1", "agent-version": "0.0.1", "clock": time.time()})
        if request["command"] == "list-hosts":
            return cloud.succeed(cloud.host_report("h1", ["h1"]))
        return cloud.refuse("unknown-command", "unknown command 'check-host'")

    cloud.start("h1", ["h1"], behave)
    ran = cli("doctor")
    assert (ran.code, findings(ran, "error")) == (0, [])
    assert "warning: host h1 does not say how it is: unknown command 'check-host'\nhint: is its agent older" in ran.err


def test_as_yaml_and_by_name(ill: Fleet, cli: Any) -> None:  # noqa: ARG001
    said = cli("doctor", "-o", "yaml").out
    assert said.startswith("- check: context\n  subject: this machine\n  result: ok\n")
    assert "\n- check: disk\n  subject: h2\n  result: error\n  text: " in said
