"""The broker itself, asked by its own tool: who may do what, and what is declared."""

import json
import re

from aetherscale_protocol import names, topology

testinfra_hosts = ["broker1"]

USERS = {"operator", "agent-h1", "agent-h2"}


def test_the_service_runs_and_starts_at_boot(host) -> None:
    service = host.service("rabbitmq-server")
    assert service.is_running
    assert service.is_enabled
    assert host.socket("tcp://5671").is_listening


def test_only_our_users_are_there_and_none_administers(rabbitmqctl) -> None:
    users = {user["user"]: user["tags"] for user in rabbitmqctl("list_users")}
    assert users == {user: ["aetherscale"] for user in USERS}


def test_guest_is_refused(host) -> None:
    """Beside a user who is planted: with the same password he is let in, and once he is gone he is told the same."""
    ask = "rabbitmqctl --quiet authenticate_user {0} {0}"
    host.check_output("rabbitmqctl --quiet add_user planted planted")
    let_in = host.run(ask.format("planted"))
    host.check_output("rabbitmqctl --quiet delete_user planted")
    assert let_in.rc == 0, let_in.stderr
    guest, gone = host.run(ask.format("guest")), host.run(ask.format("planted"))
    assert guest.rc == gone.rc != 0
    assert guest.stderr == gone.stderr.replace("planted", "guest")
    assert "guest" in guest.stderr


def test_rights_are_the_protocols_and_no_more(rabbitmqctl) -> None:
    rights = {
        p["user"]: (p["configure"], p["write"], p["read"]) for p in rabbitmqctl("list_permissions -p aetherscale")
    }
    wanted = {"operator": topology.OPERATOR_PERMISSIONS}
    wanted |= {names.agent_user(name): topology.agent_permissions(name) for name in ("h1", "h2")}
    assert rights == {user: (p.configure, p.write, p.read) for user, p in wanted.items()}
    assert rabbitmqctl("list_permissions -p /") == []


def test_exchanges(rabbitmqctl) -> None:
    listed = rabbitmqctl("list_exchanges -p aetherscale name type durable auto_delete")
    have = {e["name"]: (e["type"], e["durable"], e["auto_delete"]) for e in listed}
    for exchange in topology.EXCHANGES:
        assert have[exchange.name] == (exchange.type, True, False)


def test_queues(host) -> None:
    held = json.loads(host.check_output("rabbitmqctl --quiet export_definitions -"))
    have = {queue["name"]: queue for queue in held["queues"]}
    for queue in (*topology.SHARED_QUEUES, topology.host_queue("h1"), topology.host_queue("h2")):
        assert have[queue.name]["arguments"] == queue.arguments
        assert have[queue.name]["durable"]


def test_bindings(rabbitmqctl) -> None:
    listed = rabbitmqctl("list_bindings -p aetherscale source_name destination_name routing_key")
    have = {(b["source_name"], b["destination_name"], b["routing_key"]) for b in listed}
    wanted = (*topology.SHARED_BINDINGS, *topology.host_bindings("h1"), *topology.host_bindings("h2"))
    assert {(b.exchange, b.queue, b.key) for b in wanted} <= have
    assert {(b.source, b.destination, "") for b in topology.EXCHANGE_BINDINGS} <= have


def test_nothing_is_open_to_others_but_ssh_and_amqps(host) -> None:
    """Seen from inside the broker, while rabbitmqctl is connected: it is a node of Erlang's as well."""
    told = host.check_output("rabbitmqctl --quiet eval 'os:cmd(\"ss --no-header --listening --numeric --tcp --udp\").'")
    open_to = dict.fromkeys(re.findall(r"(?:tcp|udp)\s+\w+\s+\d+\s+\d+\s+(\S+):(\d+)\s", told))
    assert ("127.0.0.1", "25672") in open_to, "the control: Erlang's own listeners are seen"
    assert ("127.0.0.1", "4369") in open_to
    assert len([port for _, port in open_to if 35672 <= int(port) <= 35682]) == 1, "rabbitmqctl's own"
    others = {port for address, port in open_to if not address.startswith(("127.", "[::1]"))}
    assert others == {"22", "5671"}


def test_the_management_plugin_is_off_and_its_port_is_closed(host) -> None:
    enabled = host.check_output("rabbitmq-plugins --quiet list --enabled --minimal").split()
    assert "rabbitmq_management" not in enabled
    assert "rabbitmq_management_agent" not in enabled
    assert not host.socket("tcp://15672").is_listening


def test_both_agents_are_counted(rabbitmqctl) -> None:
    consumers = {q["name"]: q["consumers"] for q in rabbitmqctl("list_queues -p aetherscale name consumers")}
    assert consumers[topology.HOSTS] == 2
    assert consumers[topology.COMPETING] == 2


def test_the_configuration(host) -> None:
    file = host.file("/etc/rabbitmq/rabbitmq.conf")
    assert (file.user, file.group, file.mode) == ("root", "root", 0o644)
    assert "loopback_users.guest = true" in file.content_string
    assert "max_message_size = 1048576" in file.content_string
    assert (
        host.check_output("rabbitmqctl --quiet eval 'application:get_env(rabbit, max_message_size).'") == "{ok,1048576}"
    )


def test_no_definitions_are_left_behind(host) -> None:
    assert host.run("ls /run/aetherscale-definitions.*").rc != 0
