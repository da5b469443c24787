"""The comparison of what the broker holds with what it should hold."""

import copy
import json
import os
import subprocess

import pytest
import yaml

from aetherscale_protocol import topology
from aetherscale_protocol.topology import Queue
from aetherscale_testing.broker import private_broker
from aetherscale_testing.rights import locked_down_vhost, log_in

from .conftest import ANSIBLE

VHOST = "aetherscale"
PASSWORDS = {"operator": "o-secret", "agent-h1": "1-secret", "agent-h2": "2-secret"}


@pytest.fixture
def wanted(broker):
    return broker.broker_wanted(["operator"], ["h1", "h2"], VHOST, PASSWORDS)


@pytest.fixture
def held(broker, wanted):
    """What a broker exports once it holds all of it, and some that is none of our business."""
    kinds = {kind: copy.deepcopy(wanted[kind]) for kind in broker.IDENTITY}
    for user in kinds["users"]:
        user["password_hash"] = broker.hash_password(user.pop("password"))
        user |= {"hashing_algorithm": broker.ALGORITHM, "limits": {}}
    for queue in kinds["queues"]:
        queue["type"] = queue["arguments"]["x-queue-type"]
    host = topology.host_queue("h1")
    kinds["queues"].append({"vhost": VHOST, "name": host.name, "durable": True, "arguments": host.arguments})
    kinds["vhosts"].append({"name": "/"})
    return {**kinds, "rabbit_version": "4.0.5", "policies": []}


def drift(broker, held, wanted):
    return broker.broker_drift(held, wanted)


def test_nothing_differs(broker, held, wanted):
    assert drift(broker, held, wanted) == {"import": {}, "commands": [], "put_out": [], "says": [], "conflicts": []}


def test_an_empty_broker_gets_everything(broker, wanted):
    found = drift(broker, {"users": [{"name": "guest"}], "vhosts": [{"name": "/"}]}, wanted)
    assert {kind: len(items) for kind, items in found["import"].items()} == {
        kind: len(wanted[kind]) for kind in broker.IDENTITY
    }
    assert found["commands"] == [["delete_user", "guest"]]  # and nobody is thrown out of a vhost that is new
    assert not found["conflicts"]


def test_what_is_imported_satisfies_what_was_wanted(broker, wanted):
    found = drift(broker, {}, wanted)
    assert drift(broker, found["import"], wanted)["says"] == []


def test_no_secret_is_told(broker, wanted):
    found = drift(broker, {}, wanted)
    told = json.dumps([found["says"], found["conflicts"], found["commands"]])
    assert not [password for password in PASSWORDS.values() if password in told]
    assert not [password for password in PASSWORDS.values() if password in json.dumps(found)]


@pytest.mark.parametrize("kind", ["users", "permissions", "exchanges", "queues", "bindings"])
def test_each_missing_thing_is_restored(broker, held, wanted, kind):
    for index in range(len(wanted[kind])):
        less = {**held, kind: held[kind][:index] + held[kind][index + 1 :]}
        found = drift(broker, less, wanted)
        assert list(found["import"]) == [kind]
        assert len(found["import"][kind]) == len(found["says"]) == 1
        assert found["says"][0].endswith("is missing")


@pytest.mark.parametrize("kind", ["exchanges", "queues", "bindings"])
def test_agents_connect_again_when_the_topology_was_hurt(broker, held, wanted, kind):
    found = drift(broker, {**held, kind: held[kind][1:]}, wanted)
    assert [command[:3] for command in found["commands"]] == [["close_all_connections", "--vhost", VHOST]]


def test_another_password_is_seen_and_repaired(broker, held, wanted):
    held["users"][0]["password_hash"] = broker.hash_password("another")
    found = drift(broker, held, wanted)
    assert found["says"] == ["user operator: password is another"]
    assert found["put_out"] == ["operator"]
    (user,) = found["import"]["users"]
    assert broker.matches("o-secret", user["password_hash"])
    assert "password" not in user


def test_an_unchanged_password_keeps_its_hash(broker, held, wanted):
    held["users"][0]["tags"] = ["administrator"]
    (user,) = drift(broker, held, wanted)["import"]["users"]
    assert user["password_hash"] == held["users"][0]["password_hash"]
    assert user["tags"] == ["aetherscale"]


@pytest.mark.parametrize("stored", ["", "no base64!", "AAAA", "AAAAAAAA"])
def test_a_broken_hash_matches_nothing(broker, stored):
    assert not broker.matches("", stored)
    assert not broker.matches("x", stored)


def test_a_widened_right_is_narrowed(broker, held, wanted):
    held["permissions"][1] |= {"configure": ".*", "write": ".*"}
    found = drift(broker, held, wanted)
    own = topology.agent_permissions("h1")
    assert found["import"] == {
        "permissions": [
            {"user": "agent-h1", "vhost": VHOST, "configure": own.configure, "write": own.write, "read": own.read}
        ]
    }


def test_rights_elsewhere_and_of_others_are_taken_away(broker, held, wanted):
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    held["users"].append({"name": "spy", "tags": []})
    held["permissions"] += [
        {"user": "agent-h1", "vhost": "/", **everything},
        {"user": "spy", "vhost": VHOST, **everything},
        {"user": "spy", "vhost": "/", **everything},
    ]
    found = drift(broker, held, wanted)
    assert found["commands"] == [
        ["clear_permissions", "--vhost", "/", "agent-h1"],
        ["clear_permissions", "--vhost", VHOST, "spy"],
    ]
    kept = broker.broker_wanted(["operator"], ["h1", "h2"], VHOST, PASSWORDS, ["spy"])
    assert drift(broker, held, kept)["commands"] == [["clear_permissions", "--vhost", "/", "agent-h1"]]


def test_guest_and_the_agents_of_hosts_that_left_are_deleted(broker, held, wanted):
    held["users"] += [{"name": "guest", "tags": []}, {"name": "agent-gone", "tags": []}, {"name": "agency", "tags": []}]
    assert drift(broker, held, wanted)["commands"] == [["delete_user", "guest"], ["delete_user", "agent-gone"]]


def test_an_operator_who_left_the_list_is_deleted_and_an_administrators_users_are_not(broker, held):
    with_dave = broker.broker_wanted(["operator", "dave"], ["h1", "h2"], VHOST, {**PASSWORDS, "dave": "d-secret"})
    held["users"] += [user | {"password_hash": ""} for user in with_dave["users"] if user["name"] == "dave"]
    held["users"].append({"name": "monitoring", "tags": ["monitoring"]})
    left = broker.broker_wanted(["operator"], ["h1", "h2"], VHOST, PASSWORDS)
    found = drift(broker, held, left)
    assert found["commands"] == [["delete_user", "dave"]]
    assert "user dave should not be there" in found["says"]
    assert drift(broker, held, with_dave)["commands"] == []


def test_rotation_tells_the_broker_the_new_passwords_of_those_alone(broker):
    (user,) = broker.broker_passwords(PASSWORDS, ["operator"])["users"]
    assert user["name"] == "operator"
    assert broker.matches(PASSWORDS["operator"], user["password_hash"])
    assert "password" not in user


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("exchanges", {"type": "topic"}, "exchange computing: type is 'topic' instead of 'direct'"),
        ("exchanges", {"durable": False}, "durable is False"),
        ("queues", {"arguments": {}}, "queue computing-competing: arguments is {}"),
    ],
)
def test_what_cannot_be_changed_is_a_conflict_with_a_way_out(broker, held, wanted, kind, change, words):
    held[kind][0] |= change
    found = drift(broker, held, wanted)
    assert found["import"] == {}
    (conflict,) = found["conflicts"]
    assert words in conflict
    assert "rabbitmqctl" in conflict


def test_a_broker_that_does_not_answer_is_not_called_empty(broker, wanted):
    found = drift(broker, None, wanted)
    assert found["import"] == {}
    assert "does not answer" in found["says"][0]


def test_before_the_first_run_there_are_no_passwords(broker, held):
    wanted = broker.broker_wanted(["operator"], ["h1", "h2"], VHOST, {})
    assert drift(broker, held, wanted)["says"] == []


def test_play_mode_keeps_guest_and_touches_nobody_else(broker, held):
    wanted = broker.broker_play()
    held["users"].append({"name": "agent-gone", "tags": []})
    found = drift(broker, held, wanted)
    assert [user["name"] for user in found["import"]["users"]] == ["guest"]
    assert broker.matches("guest", found["import"]["users"][0]["password_hash"])
    assert found["commands"] == []


def test_what_leads_to_our_pieces_and_should_not_is_taken_away(broker, held, wanted):
    """What an agent's rights let it bind, which outlives its user."""

    def bind(source, kind, destination, key, **arguments):
        return {"vhost": VHOST, "source": source, "destination_type": kind, "destination": destination,
                "routing_key": key, "arguments": arguments}  # fmt: skip

    held["bindings"] += [
        bind("computing", "exchange", "computing-undeliverable", "create-vm"),
        bind("computing", "exchange", "computing-undeliverable", 'vm.abcdefgh">>'),
        bind("computing-undeliverable", "exchange", "computing-undeliverable", ""),  # a queue of this name is bound so
        bind("computing", "queue", "computing-undeliverable", "create-vm"),
        bind("computing-agents", "exchange", "computing", "", x=1),
    ]
    found = drift(broker, held, wanted)
    assert found["says"] == [
        "exchange computing-undeliverable should not be bound to computing with key 'create-vm', "
        "computing with key 'vm.abcdefgh\">>', computing-undeliverable with key ''",
        "queue computing-undeliverable should not be bound to computing with key 'create-vm'",
        "exchange computing should not be bound to computing-agents with key ''",
    ]
    assert not found["import"]
    assert [command[0] for command in found["commands"]] == ["eval"] * 3
    assert not [command for command in found["commands"] if "abcdefgh" in command[1]]
    assert '[{<<"computing-undeliverable">>, <<"">>, []}]' in found["commands"][1][1]


def test_who_binds_much_fills_no_screen(broker, held, wanted):
    surplus = {"vhost": VHOST, "source": "computing", "destination_type": "exchange", "arguments": {}}
    held["bindings"] += [{**surplus, "destination": "computing-agents", "routing_key": str(n)} for n in range(1000)]
    (said,) = drift(broker, held, wanted)["says"]
    assert said.endswith(" and 995 more")


def test_what_agents_and_administrators_bind_is_left_alone(broker, held, wanted):
    mine = {"vhost": VHOST, "source": "computing", "routing_key": "vm.abcdefgh", "arguments": {}}
    held["bindings"] += [
        {**mine, "destination_type": "queue", "destination": "computing-host.h1"},
        {**mine, "destination_type": "exchange", "destination": "an-administrators"},
        {**mine, "vhost": "/", "destination_type": "exchange", "destination": "computing"},
        {**mine, "vhost": "/", "destination_type": "queue", "destination": "claim.abcdefgh"},
        {**mine, "destination_type": "queue", "destination": "an-administrators", "routing_key": "host.h1"},
        *(
            {**mine, "source": b.exchange, "destination_type": "queue", "destination": b.queue, "routing_key": b.key}
            for b in topology.host_bindings("h1")
        ),
    ]
    queues = [topology.claim("abcdefgh", "h1"), topology.host_queue("h1"), topology.known("h1")]
    held["queues"] += [{"vhost": VHOST, "name": queue.name, "arguments": queue.arguments} for queue in queues]
    held["queues"] += [
        {"vhost": VHOST, "name": name, "arguments": {"x-dead-letter-exchange": "an-administrators"}}
        for name in ("an-administrators", 'claim.">>', "claim.of-invoices")
    ]
    assert drift(broker, held, wanted)["says"] == []


def bound_queue(name, key, source="computing"):
    return {"vhost": VHOST, "source": source, "destination_type": "queue", "destination": name,
            "routing_key": key, "arguments": {}}  # fmt: skip


@pytest.mark.parametrize(
    ("queue", "key", "source"),
    [
        ("claim.abcdefgh", "vm.abcdefgh", "computing"),
        ("agent.h2", "list-vms", "computing"),
        ("computing-host.h2", "host.h1", "computing"),
        ("computing-host.h2", "create-vm", "computing"),
        ("computing-host.h2", "forget-host", "computing"),
        ("computing-host.h2", "", "computing-undeliverable"),
    ],
)
def test_what_brings_a_host_what_is_not_for_it_is_taken_away(broker, held, wanted, queue, key, source):
    held["bindings"].append(bound_queue(queue, key, source))
    found = drift(broker, held, wanted)
    assert found["says"] == [f"no agent binds: {queue} to {source} with key {key!r}"]
    assert [command[0] for command in found["commands"]] == ["eval"]
    assert "abcdefgh" not in found["commands"][0][1]


CLAIM = topology.claim("abcdefgh", "h2").arguments
HOST = topology.host_queue("h2").arguments


@pytest.mark.parametrize(
    ("queue", "arguments"),
    [
        ("claim.abcdefgh", {}),
        ("claim.abcdefgh", {**CLAIM, "x-dead-letter-exchange": "computing-agents"}),
        ("claim.abcdefgh", {**CLAIM, "x-message-ttl": 86_400_000}),
        ("agent.h2", {"x-dead-letter-exchange": "computing-agents"}),
        ("computing-host.h2", {**HOST, "x-dead-letter-exchange": "computing-agents"}),
        ("computing-host.h2", {**HOST, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "computing-host.h1"}),
        ("computing-host.h2", {**HOST, "x-dead-letter-routing-key": "x"}),
    ],
)
def test_a_queue_that_keeps_what_comes_or_sends_it_on_is_deleted(broker, held, wanted, queue, arguments):
    held["queues"].append({"vhost": VHOST, "name": queue, "arguments": arguments})
    found = drift(broker, held, wanted)
    assert found["says"] == [f"no agent makes them so, which keep what comes or send it on: {queue}"]
    ((command, erlang),) = found["commands"]
    assert command == "eval"
    assert f'<<"{queue}">>' in erlang


def test_what_one_command_deletes_is_no_longer_than_an_argument_may_be(broker, held, wanted):
    names = [f"computing-host.{'a' * 63}"] * 3000
    held["queues"] += [{"vhost": VHOST, "name": name, "arguments": {}} for name in names]
    commands = drift(broker, held, wanted)["commands"]
    assert len(commands) == 3
    assert max(len(erlang) for _, erlang in commands) < 128 << 10


@pytest.mark.broker
def test_what_a_host_had_made_is_taken_away_on_a_real_broker(broker, tmp_path):
    """With today's rights, and with those of an earlier release, by which it could bind claims and its lock."""
    wanted = broker.broker_wanted(["operator"], ["h1", "h2"], VHOST, {})
    wanted["absent"] |= {"keep": ["guest"], "users": []}  # who looks at it here
    for user in wanted["users"]:
        user["tags"] = []  # as `locked_down_vhost` makes them
    users = {"operator": topology.OPERATOR_PERMISSIONS}
    users |= {f"agent-{host}": topology.agent_permissions(host) for host in ("h1", "h2")}
    with private_broker() as node, locked_down_vhost(node, VHOST, users, tmp_path):
        node.ctl("set_permissions", "-p", VHOST, "guest", ".*", ".*", ".*")
        make_what_is_honest(node)
        before = listed(node)
        make_what_is_not(node)
        assert listed(node) != before
        found = drift(broker, exported(node, tmp_path), wanted)
        assert [sentence.partition(":")[0] for sentence in found["says"]] == [
            "no agent binds",
            "no agent makes them so, which keep what comes or send it on",
        ]
        for command in found["commands"]:
            node.ctl(*command)
        assert drift(broker, exported(node, tmp_path), wanted)["says"] == []
        assert listed(node) == before


def make_what_is_honest(node):
    host, known, claim = topology.host_queue("h1"), topology.known("h1"), topology.claim("abcdefgh", "h1")
    with log_in(node, "guest", VHOST, "guest") as connection:
        channel = connection.channel()
        for queue in (host, known, claim, Queue("an-administrators")):
            channel.queue_declare(queue.name, durable=True, arguments=queue.arguments)
        for binding in topology.host_bindings("h1"):
            channel.queue_bind(binding.queue, binding.exchange, binding.key)
        channel.queue_bind(host.name, "computing", "vm.abcdefgh")
        channel.queue_bind("an-administrators", "computing", "host.h1")


def make_what_is_not(node):
    to_agents = {"x-dead-letter-exchange": "computing-agents"}
    with log_in(node, "guest", VHOST, "guest") as connection:  # for an agent that had more rights
        channel = connection.channel()
        for name in ("claim.zzzzzzzz", "agent.h2"):
            channel.queue_declare(name, durable=True, arguments=to_agents)
            channel.queue_bind(name, "computing", "host.h1")
        channel.queue_bind("claim.abcdefgh", "computing", "vm.abcdefgh")
        channel.queue_bind("claim.abcdefgh", "computing-undeliverable", "")
    with log_in(node, "agent-h2", VHOST) as connection:
        channel = connection.channel()
        channel.queue_declare("computing-host.h2", durable=True, arguments=to_agents)
        for key in ("host.h1", "vm.abcdefgh", "create-vm"):
            channel.queue_bind("computing-host.h2", "computing", key)
    with log_in(node, "agent-h1", VHOST) as connection:
        for key in ("host.h2", 'host.">>'):
            connection.channel().queue_bind("computing-host.h1", "computing", key)


def exported(node, folder):
    node.ctl("export_definitions", str(folder / "held.json"))
    return json.loads((folder / "held.json").read_text())


def listed(node):
    queues = node.ctl("list_queues", "-p", VHOST, "name", "arguments")
    bindings = node.ctl("list_bindings", "-p", VHOST, "source_name", "destination_name", "routing_key")
    return sorted(queues.splitlines()), sorted(bindings.splitlines())


@pytest.mark.parametrize("failing", ["stop rabbitmq-server.service", "restart epmd.socket", "nothing"])
def test_the_broker_is_not_left_down_by_a_port_mapper_that_fails(tmp_path, failing):
    tasks = yaml.safe_load((ANSIBLE / "roles/rabbitmq/tasks/configure.yml").read_text())
    (task,) = [task for task in tasks if "listen on loopback alone" in task["name"]]
    (tmp_path / "systemctl").write_text(
        f"""#!/bin/sh
        echo "$*" >>{tmp_path}/told
        if test "$*" = "{failing}"; then echo "Job for $2 failed." >&2; exit 3; fi
        """
    )
    (tmp_path / "systemctl").chmod(0o755)
    script = ["/bin/sh", "-c", task["ansible.builtin.shell"]["cmd"]]
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(script, capture_output=True, text=True, env=os.environ | {"PATH": path})
    said = "" if failing == "nothing" else f"Job for {failing.split()[1]} failed.\n"
    assert (done.returncode, done.stderr) == (3 if said else 0, said)
    assert (tmp_path / "told").read_text().splitlines()[-1] == "start rabbitmq-server.service"


def pem(label, text):
    return f"-----BEGIN {label}-----\n{text}\n-----END {label}-----"


OWN, ABOVE = pem("CERTIFICATE", "own"), pem("CERTIFICATE", "above")
KEYS = [pem(label, "key") for label in ("PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY")]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "texts",
    [
        ["{own}\n{above}\n{key}"],
        ["{own}\n{above}", "{key}"],
        ["{own}\n{above}\n{key}", "{own}\n{above}\n{key}"],
        ["{key}\n{own}\n{above}", "{key}"],
        ["Subject: CN=broker\n{own}\nIssuer: CN=CA\n{above}", "{parameters}\n{key}\n{key}"],
    ],
    ids=["ours", "two files", "one file twice", "key in both", "with remarks"],
)
def test_the_brokers_file_has_each_certificate_and_the_key_once(broker, texts, key):
    parts = {"own": OWN, "above": ABOVE, "key": key, "parameters": pem("EC PARAMETERS", "curve")}
    assert broker.broker_certificate([text.format(**parts) for text in texts]) == f"{OWN}\n{ABOVE}\n{key}"


def test_before_the_first_run_there_is_no_certificate(broker):
    assert broker.broker_certificate([]) == ""
