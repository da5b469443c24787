"""What side_effect.yml planted: `--check` tells it all and touches nothing, one run repairs it, the next is clean."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from testinfra.host import Host

from aetherscale_protocol import topology

testinfra_hosts = ["broker1"]  # once, not per host

REPORTED = {
    ("rabbitmq : Write the configuration", "broker1"),
    ("rabbitmq : Write the broker's certificate and key", "broker1"),
    ("rabbitmq : Start the broker", "broker1"),  # again, because it may have read the edited configuration
    ("rabbitmq : Say what differs", "broker1"),
    ("compute : Install what VMs need", "h1"),
    ("compute : Make the folders", "h1"),
    ("images : Copy the images", "h1"),
    ("agent : Write the CAs by which the agent knows the broker", "h1"),
    ("agent : Say what differs", "h1"),
    ("compute : Install the unit of a VM and what belongs to it", "h2"),
    ("images : Copy the images", "h2"),
    ("agent : Say what differs", "h2"),
}

SAID = (
    "user operator is missing",
    "permission of operator in vhost aetherscale is missing",
    "permission of agent-h1 in vhost aetherscale: configure is '.*'",
    "user agent-h2 should have no rights in vhost /",
    "user agent-h2: tags is ['administrator']",
    "user guest should not be there",
    "user dave should not be there",
    "queue computing-hosts is missing",
    "exchange computing is missing",
    "exchange computing-agents should not be bound to computing-undeliverable with key 'planted'",
    "no agent binds: claim.zzzzzzzz to computing-undeliverable with key 'planted'",
    "no agent makes them so, which keep what comes or send it on: claim.zzzzzzzz",
    "unit is inactive",
    "unit is disabled",
    "/etc/aetherscale/agent.toml",
)

FINGERPRINT = """
dpkg-query --show --showformat '${Package} ${Version} ${db:Status-Abbrev}\\n' | sha256sum
find /etc/rabbitmq /etc/aetherscale /etc/polkit-1 /etc/systemd/system \
    /opt/aetherscale/current /var/lib/aetherscale/images \
    -printf '%p %m %u:%g %T@ %s %l\\n' 2>/dev/null | sort | sha256sum
stat --format '%a %U:%G' /var/lib/aetherscale/vms 2>/dev/null
systemctl is-active aetherscale-agent.service rabbitmq-server.service
systemctl show --value --property MainPID aetherscale-agent.service rabbitmq-server.service
systemctl is-enabled aetherscale-agent.service 2>/dev/null
"""
BROKER = """
for what in list_users list_vhosts 'list_permissions --vhost aetherscale' 'list_exchanges --vhost aetherscale' \
    'list_queues --vhost aetherscale name arguments' 'list_bindings --vhost aetherscale'; do
    rabbitmqctl --quiet $what | grep -v 'agent\\.h' | sort  # an agent's lock lasts as long as its connection
done
"""


def fingerprint(fleet: dict[str, Host]) -> list[str]:
    """All that a run could have touched."""
    states = [host.run(FINGERPRINT).stdout for host in fleet.values()]
    return [*states, fleet["broker1"].check_output(BROKER)]


@pytest.fixture(scope="module")
def history(fleet: dict[str, Host], site: Callable[..., object]) -> dict[str, object]:
    """What happened, in order: look, `--check`, look, repair, run again."""
    before = fingerprint(fleet)
    check = site("--check", "--diff", "-vvv")
    after = fingerprint(fleet)
    return {"before": before, "check": check, "after": after, "repair": site("-vvv"), "again": site()}


def test_check_reports_each_drift(history) -> None:
    check = history["check"]
    assert check.code == 0, check.said
    assert check.changed >= REPORTED, f"not reported: {REPORTED - check.changed}\n{check.said}"
    said = " ".join(check.said.split()).replace("''", "'")  # as YAML wraps and quotes it
    missing = [words for words in SAID if words not in said]
    assert not missing, f"not said: {missing}\n{check.said}"


def test_check_changes_nothing(history) -> None:
    assert history["after"] == history["before"]


def test_check_blames_nothing_else(history) -> None:
    assert history["check"].changed == REPORTED


def test_no_run_prints_a_password_or_a_key(history) -> None:
    files = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "secrets").rglob("*")
    texts = {file.name: file.read_text() for file in files if file.is_file() and file.name != "ca.pem"}
    assert {"operator", "broker.pem", "authority.pem"} <= set(texts)
    lines = {name: text.rpartition("BEGIN PRIVATE KEY-----\n")[2].splitlines()[0] for name, text in texts.items()}
    said = "".join(history[name].said for name in ("check", "repair", "again"))
    assert " EXEC " in said  # as talkative as -vvv
    assert not [name for name, line in lines.items() if line in said]


def test_one_run_repairs(history) -> None:
    assert history["repair"].code == 0, history["repair"].said
    tasks = {host for _, host in history["repair"].changed}
    assert tasks == {"broker1", "h1", "h2"}


def test_who_has_left_the_operators_has_no_user(history, fleet: dict[str, Host]) -> None:
    assert history["repair"].code == 0
    asked = "rabbitmqctl --quiet authenticate_user dave an-operator-who-left"
    assert fleet["broker1"].run(asked).rc != 0
    assert fleet["broker1"].run("rabbitmqctl --quiet list_users").stdout.startswith("user")


def test_what_a_host_had_bound_is_gone(history, rabbitmqctl) -> None:
    assert history["repair"].code == 0
    bound = rabbitmqctl("list_bindings --vhost aetherscale destination_name routing_key")
    assert bound
    assert "planted" not in {binding["routing_key"] for binding in bound}
    assert "claim.zzzzzzzz" not in {queue["name"] for queue in rabbitmqctl("list_queues --vhost aetherscale name")}


def test_the_next_run_changes_nothing(history) -> None:
    assert history["again"].code == 0, history["again"].said
    assert not history["again"].changed, history["again"].said


def test_agents_bind_again_after_the_exchange_was_lost(history, rabbitmqctl) -> None:
    assert history["repair"].code == 0
    bound = rabbitmqctl("list_bindings --vhost aetherscale source_name destination_name routing_key")
    have = {(b["source_name"], b["destination_name"], b["routing_key"]) for b in bound}
    for host in ("h1", "h2"):
        assert {(b.exchange, b.queue, b.key) for b in topology.host_bindings(host)} <= have
