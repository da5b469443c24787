"""Play mode is one variable away: the article's own client works, as guest, from another host, in the clear.

The hosts stay in play mode; `locked` brings them back.
"""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from testinfra.host import Host

from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once, not per host

HOSTS = ["h1", "h2"]
PYTHON = "/opt/aetherscale/current/bin/python"
ARTICLE = """\
import json, os, pika, sys, uuid

connection = pika.BlockingConnection(pika.ConnectionParameters(host=os.environ["RABBITMQ_HOST"]))
channel = connection.channel()
answers = []


def on_answer(channel, method, properties, body):
    if properties.correlation_id == correlation_id:
        answers.append(json.loads(body))


channel.basic_consume(queue="amq.rabbitmq.reply-to", on_message_callback=on_answer, auto_ack=True)
command, options, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
correlation_id = str(uuid.uuid4())
channel.basic_publish(
    exchange="computing",
    routing_key=command,
    body=json.dumps({"command": command, "options": options}),
    properties=pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id=correlation_id),
)
while len(answers) < count:
    connection.process_data_events(time_limit=1)
print(json.dumps(answers))
"""
"""A client from nothing but the article: no TLS, no credentials, no library of ours."""


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    return Rollout()


@pytest.fixture(scope="module")
def kept(rollout: Rollout) -> tuple[str, str, str]:
    """A VM from before: its id, its host, and QEMU's process there."""
    vm_id = rollout.create()
    return vm_id, rollout.show(vm_id, 0)["host"], rollout.unit(vm_id, "MainPID")


@pytest.fixture(scope="module", autouse=True)
def play(site: Callable[..., Any], kept: tuple[str, str, str]) -> Any:
    """The hosts in play mode: site.yml once more, with the one variable."""
    assert kept
    return site("-e", "rabbitmq_loopback_users=none")


@pytest.fixture
def article(rollout: Rollout, fleet: dict[str, Host]) -> Callable[..., dict[str, Any]]:
    """The article's client on h1; what each host answers."""
    address = urlsplit(rollout.broker()["url"]).hostname

    def ask(command: str, count: int, **options: Any) -> dict[str, Any]:
        options = {name.replace("_", "-"): value for name, value in options.items()}
        client = fleet["h1"].run(
            f"RABBITMQ_HOST={address} timeout 60 {PYTHON} -c %s %s %s %s",
            ARTICLE,
            command,
            json.dumps(options),
            str(count),
        )
        assert client.rc == 0, client.stderr
        answers = json.loads(client.stdout)
        return {a["host"]: a["response"] if "response" in a else a["execution-info"]["reason"] for a in answers}

    return ask


def test_the_run_warns(play: Any, rollout: Rollout) -> None:
    assert play.code == 0, play.said
    assert "WARNING: PLAY MODE" in play.said
    assert "Whoever reaches port 5672 of broker1 may command every VM" in play.said
    assert rollout.broker()["url"].startswith("amqp://guest@")
    assert "ca_file" not in rollout.broker()


def test_the_articles_client_commands_the_fleet(article: Callable[..., Any]) -> None:
    (made,) = article("create-vm", 1, image="only_on_h1", memory=128, disk=1).values()
    assert made["status"] == "starting"
    vm_id, unknown = made["vm-id"], "VM does not exist"
    assert f"vm-{vm_id}" in article("list-vms", 2)["h1"]
    assert article("stop-vm", 2, vm_id=vm_id, kill=True) == {"h1": {"status": "stopped", "vm-id": vm_id}, "h2": unknown}
    assert article("delete-vm", 2, vm_id=vm_id) == {"h1": {"status": "deleted", "vm-id": vm_id}, "h2": unknown}


def test_the_vms_from_before_run_on(rollout: Rollout, kept: tuple[str, str, str]) -> None:
    vm_id, host, pid = kept
    assert (rollout.show(vm_id, 0)["host"], rollout.unit(vm_id, "MainPID")) == (host, pid)
