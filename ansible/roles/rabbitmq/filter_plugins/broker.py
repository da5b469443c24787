"""What the broker should hold, and in what it differs: pure functions over RabbitMQ's definitions.

`rabbitmqctl export_definitions` gives all that a broker holds, `import_definitions` adds and overwrites. It never
deletes, and an exchange of another type it leaves as it is without a word; so both are looked for here.
"""

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

try:
    from aetherscale_protocol import names, topology
except ImportError:
    names = topology = None  # type: ignore[assignment]

Item = Mapping[str, Any]
Definitions = Mapping[str, Sequence[Item]]

IDENTITY = {
    "vhosts": ("name",),
    "users": ("name",),
    "permissions": ("vhost", "user"),
    "exchanges": ("vhost", "name"),
    "queues": ("vhost", "name"),
    "bindings": ("vhost", "source", "destination_type", "destination", "routing_key", "arguments"),
}
"""What makes two entries of a definitions file speak of the same thing; also the order in which they are told."""

IMMUTABLE = ("exchanges", "queues")
"""What can't be changed once it is declared, only deleted and declared again."""

TOPOLOGY = ("exchanges", "queues", "bindings")

TAG = "aetherscale"
"""What our users bear, so that who left the list is told from an administrator's user. It gives no rights."""

OTHER_PASSWORD = "password is another"

ALGORITHM = "rabbit_password_hashing_sha256"

NEVER_BOUND = ("claim.", "agent.")
"""How queues of agents begin that no agent binds to anything."""

NO_HOSTS_KEY = "^(host[.]|create-vm$|forget-host$)"
"""Keys to which a host's queue is not bound, but to its own; as Python and Erlang read it."""

AN_AGENTS = rf"claim\.{names.VM_ID_PATTERN}|(?:agent|computing-host)\.{names.HOST_PATTERN}"
"""What agents may call their queues. Nothing else is put into Erlang."""

LED_ON_BY = ("x-dead-letter-exchange", "x-dead-letter-routing-key")

AT_ONCE = 1000
"""Queues that one command deletes: an argument can't have more than 128 KiB."""

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(r"-----BEGIN ((?:[A-Z]+ )?PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)


def broker_wanted(
    operators: Sequence[str],
    fleet: Sequence[str],
    vhost: str,
    passwords: Mapping[str, str],
    others: Collection[str] = (),
) -> dict[str, Any]:
    """What the broker of a fleet should hold in normal mode.

    A user without an entry in `passwords` is only asked to exist: before the very first run there are no passwords.
    """
    if topology is None:
        raise AnsibleFilterError("this Ansible can't import aetherscale_protocol")
    rights = dict.fromkeys(operators, topology.OPERATOR_PERMISSIONS)
    rights |= {names.agent_user(host): topology.agent_permissions(host) for host in fleet}
    return {
        "vhosts": [{"name": vhost}],
        "users": [{"name": user, "tags": [TAG], "password": passwords.get(user)} for user in rights],
        "permissions": [
            {"user": user, "vhost": vhost, "configure": r.configure, "write": r.write, "read": r.read}
            for user, r in rights.items()
        ],
        **topology.definitions(vhost),
        "absent": {"users": ["guest"], "prefix": names.AGENT_USER_PREFIX, "keep": list(others)},
    }


def broker_play(_: str = "") -> dict[str, Any]:
    """What the broker should hold in play mode: guest, who may do everything. Agents declare what they need."""
    return {
        "vhosts": [{"name": "/"}],
        "users": [{"name": "guest", "tags": ["administrator"], "password": "guest"}],
        "permissions": [{"user": "guest", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}],
    }


def broker_drift(held: Definitions | None, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """In what a broker that holds `held` differs from `wanted`.

    - `import`: definitions that repair it, with hashes in place of passwords;
    - `commands`: what to tell rabbitmqctl afterwards, because importing does not;
    - `says`: the same for people, a sentence each, without secrets;
    - `put_out`: users whose password was another: what they opened with it must be closed;
    - `conflicts`: what neither can repair, and what to do about it.

    `held` is None when the broker can't be asked (`--check` before it is installed, or while it is down).
    """
    if held is None:
        says = ["the broker does not answer, so that what it holds can't be compared"]
        return {"import": {}, "commands": [], "put_out": [], "says": says, "conflicts": []}
    repairs: dict[str, list[dict[str, Any]]] = {}
    says: list[str] = []
    conflicts: list[str] = []
    put_out: list[str] = []
    for kind, identity in IDENTITY.items():
        have = {_key(item, identity): item for item in held.get(kind, [])}
        for item in wanted.get(kind, []):
            got = have.get(_key(item, identity))
            wrong = _differences(got, item)
            if got is not None and wrong and kind in IMMUTABLE:
                conflicts.append(_conflict(kind, item, wrong))
            elif got is None or wrong:
                repairs.setdefault(kind, []).append(_importable(item, got))
                says.append(_sentence(kind, item, wrong))
                put_out += [item["name"]] if OTHER_PASSWORD in wrong else []
    commands = _commands(held, wanted, repairs, says)
    return {"import": repairs, "commands": commands, "put_out": put_out, "says": says, "conflicts": conflicts}


def _key(item: Item, identity: Sequence[str]) -> tuple[str, ...]:
    return tuple(repr(item[part]) for part in identity)


def _differences(got: Item | None, wanted: Item) -> list[str]:
    """What of an entry is not as wanted: `read is '.*' instead of '^$'`. Of a password only that it is another."""
    if got is None:
        return []
    wrong = []
    for name, value in wanted.items():
        if name == "password":
            if value is not None and not matches(value, str(got.get("password_hash", ""))):
                wrong.append(OTHER_PASSWORD)
        elif got.get(name) != value:
            wrong.append(f"{name} is {got.get(name)!r} instead of {value!r}")
    return wrong


def _importable(wanted: Item, got: Item | None) -> dict[str, Any]:
    """An entry as `import_definitions` takes it."""
    item = dict(wanted)
    if "password" in item:
        password = item.pop("password")
        stored = str((got or {}).get("password_hash", ""))
        item["password_hash"] = stored if password is None or matches(password, stored) else hash_password(password)
        item["hashing_algorithm"] = ALGORITHM
    return item


def broker_passwords(passwords: Mapping[str, str], users: Sequence[str]) -> dict[str, Any]:
    """Definitions that give these of our users the passwords that they have in `passwords`."""
    wanted = [{"name": user, "tags": [TAG], "password": passwords[user]} for user in users]
    return {"users": [_importable(item, None) for item in wanted]}


def broker_certificate(texts: Sequence[str]) -> str:
    """The text of the broker's one file: the certificates of the first text, and the key of the last.

    An operator's own files may hold more, and one of them both: if a key is there twice, Erlang takes neither, and
    nobody comes in any more. The preflight shakes hands with the same text (make_certificates.py, `broker_text`).
    """
    if not texts:
        return ""  # under --check, before there is any
    certificates = [match[0] for match in _CERTIFICATE.finditer(texts[0])]
    keys = [match[0] for match in _KEY.finditer(texts[-1])]
    return "\n".join([*certificates, *keys[:1]])


def hash_password(password: str, salt: bytes | None = None) -> str:
    """RabbitMQ's hash of a password: base64(salt + sha256(salt + password)), the salt being four bytes."""
    salt = os.urandom(4) if salt is None else salt
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def matches(password: str, stored: str) -> bool:
    """Whether `stored` is a hash of `password`."""
    try:
        salt = base64.b64decode(stored, validate=True)[:4]
    except ValueError:
        return False
    return len(salt) == 4 and hmac.compare_digest(hash_password(password, salt), stored)


def _sentence(kind: str, item: Item, wrong: list[str]) -> str:
    what = _name(kind, item)
    return f"{what} is missing" if not wrong else f"{what}: {', '.join(wrong)}"


def _name(kind: str, item: Item) -> str:
    if kind == "permissions":
        return f"permission of {item['user']} in vhost {item['vhost']}"
    if kind == "bindings":
        return f"binding of {item['destination']} to {item['source']} with key {item['routing_key']!r}"
    return f"{kind[:-1]} {item['name']}"


def _conflict(kind: str, item: Item, wrong: list[str]) -> str:
    name, vhost = item["name"], item["vhost"]
    if kind == "queues":
        command = f"rabbitmqctl delete_queue --vhost {vhost} {name}"
    else:
        resource = f'rabbit_misc:r(<<"{vhost}">>, exchange, <<"{name}">>)'
        command = f"rabbitmqctl eval 'rabbit_exchange:delete({resource}, false, <<\"operator\">>).'"
    return (
        f"{_name(kind, item)}: {', '.join(wrong)}. That can't be changed while it exists. "
        f"If it is safe to lose, delete it on the broker and run this again: {command}"
    )


def _commands(
    held: Definitions, wanted: Mapping[str, Any], repairs: Mapping[str, Any], says: list[str]
) -> list[list[str]]:
    """What rabbitmqctl must do after the import; what it takes away is told in `says`, too."""
    commands = []
    for user in (gone := _surplus_users(held, wanted)):
        commands.append(["delete_user", user])
        says.append(f"user {user} should not be there")
    for vhost, user in _surplus_rights(held, wanted, gone):
        commands.append(["clear_permissions", "--vhost", vhost, user])
        says.append(f"user {user} should have no rights in vhost {vhost}")
    for (vhost, kind, name), surplus in _surplus_bindings(held, wanted).items():
        commands.append(["eval", _unbind(vhost, kind, name, wanted["bindings"])])
        says.append(f"{kind} {name} should not be bound to {surplus}")
    for vhost in _vhosts_of_agents(wanted):
        if strays := [_said(item) for item in held.get("bindings", []) if item["vhost"] == vhost and _strays(item)]:
            commands.append(["eval", _unbind_strays(vhost)])
            says.append(f"no agent binds: {_some(strays)}")
        leaks = [item["name"] for item in held.get("queues", []) if item["vhost"] == vhost and _leaks(item)]
        commands += [["eval", _delete(vhost, leaks[n : n + AT_ONCE])] for n in range(0, len(leaks), AT_ONCE)]
        says += [f"no agent makes them so, which keep what comes or send it on: {_some(leaks)}"] if leaks else []
    for vhost in sorted(_mended_vhosts(held, repairs)):
        reason = "exchanges or queues were restored: connect again, and bind to them"
        commands.append(["close_all_connections", "--vhost", vhost, reason])
    return commands


def _surplus_users(held: Definitions, wanted: Mapping[str, Any]) -> list[str]:
    """Guest, agents of hosts that are none any more, operators who have left the list. Nobody in play mode."""
    absent = wanted.get("absent")
    if absent is None:
        return []
    ours = {user["name"] for user in wanted["users"]}
    users = [user["name"] for user in held.get("users", []) if user["name"] not in ours]
    tagged = {user["name"] for user in held.get("users", []) if TAG in user.get("tags", [])}
    return [user for user in users if user in {*absent["users"], *tagged} or user.startswith(absent["prefix"])]


def _surplus_rights(held: Definitions, wanted: Mapping[str, Any], gone: Collection[str]) -> list[tuple[str, str]]:
    """Rights of our users in other vhosts, and of other users in ours: (vhost, user). None in play mode."""
    absent = wanted.get("absent")
    if absent is None:
        return []
    ours = {user["name"] for user in wanted["users"]}
    vhosts = {vhost["name"] for vhost in wanted["vhosts"]}
    allowed = {(item["vhost"], item["user"]) for item in wanted["permissions"]}
    rights = [(item["vhost"], item["user"]) for item in held.get("permissions", [])]
    return [
        (vhost, user)
        for vhost, user in rights
        if (vhost, user) not in allowed and user not in {*gone, *absent["keep"]} and (user in ours or vhost in vhosts)
    ]


def _surplus_bindings(held: Definitions, wanted: Mapping[str, Any]) -> dict[tuple[str, str, str], str]:
    """What leads to our exchanges and shared queues, and should not: by vhost, type and name, for people.

    An agent may bind two of them (topology.agent_permissions), and no binding goes with the user who made it. Agents'
    own queues are left alone: what they are bound to is the directory. So is whatever else an administrator made.
    """
    wanted_bindings = wanted.get("bindings", [])
    ours = {(item["vhost"], kind[:-1], item["name"]) for kind in IMMUTABLE for item in wanted.get(kind, [])}
    found: dict[tuple[str, str, str], list[str]] = {}
    for item in held.get("bindings", []):
        target = (item["vhost"], item["destination_type"], item["destination"])
        if target in ours and not any(_differences(item, one) == [] for one in wanted_bindings):
            found.setdefault(target, []).append(f"{item['source']} with key {item['routing_key']!r}")
    return {target: _some(bindings) for target, bindings in found.items()}


def _vhosts_of_agents(wanted: Mapping[str, Any]) -> list[str]:
    """Where agents have rights of their own, and may have done more with them than they should. None in play mode."""
    return [] if wanted.get("absent") is None else [vhost["name"] for vhost in wanted["vhosts"]]


def _strays(binding: Item) -> bool:
    """Whether a binding brings an agent's queue what is not for it: commands of other hosts, creates, dead letters.

    By the rights of earlier releases an agent could bind claims and its lock; by today's its host's queue alone.
    What that is bound to by a VM's key is the directory. `_unbind_strays` says the same in Erlang.
    """
    if binding["destination_type"] != "queue":
        return False
    queue, key = binding["destination"], binding["routing_key"]
    host = queue.removeprefix(names.host_queue(""))
    if host == queue:
        return queue.startswith(NEVER_BOUND)
    if binding["source"] != topology.EXCHANGE:
        return True
    return key != names.host_key(host) and re.search(NO_HOSTS_KEY, key) is not None


def _unbind_strays(vhost: str) -> str:
    never = " ".join(f'<<"{prefix}", _/binary>> -> true;' for prefix in NEVER_BOUND)
    return (
        f'[rabbit_binding:remove(B, <<"{TAG}">>) || {{binding, {{resource, _, exchange, S}}, K, '
        f'{{resource, _, queue, Q}}, _}} = B <- rabbit_binding:list(<<"{vhost}">>), S =/= <<>>, '
        f'case Q of {never} <<"{names.host_queue("")}", H/binary>> -> S =/= <<"{topology.EXCHANGE}">> orelse '
        f'(K =/= <<"{names.host_key("")}", H/binary>> andalso re:run(K, "{NO_HOSTS_KEY}") =/= nomatch); '
        f"_ -> false end], ok."
    )


def _leaks(queue: Item) -> bool:
    """Whether an agent made a queue that lasts too long, or whose dead letters lead elsewhere than they should.

    Of a host's queue the rest may be as an earlier release made it: an agent itself sees to that when it connects.
    """
    name, arguments = queue["name"], queue["arguments"]
    if re.fullmatch(AN_AGENTS, name) is None:
        return False
    vm_id = name.removeprefix(names.claim_queue(""))
    if vm_id != name:
        return arguments != topology.claim(vm_id, arguments.get("x-dead-letter-routing-key", "")).arguments
    host = name.removeprefix(names.host_queue(""))
    allowed = topology.host_queue(host).arguments if host != name else {}
    return any(arguments.get(argument) != allowed.get(argument) for argument in LED_ON_BY)


def _delete(vhost: str, queues: Sequence[str]) -> str:
    """The Erlang that deletes queues, which may be gone by then; rabbitmqctl would fail."""
    listed = ", ".join(f'<<"{queue}">>' for queue in queues)
    return (
        f'[rabbit_amqqueue:delete(Q, false, false, <<"{TAG}">>) || N <- [{listed}], '
        f'{{ok, Q}} <- [rabbit_amqqueue:lookup({{resource, <<"{vhost}">>, queue, N}})]], ok.'
    )


def _said(binding: Item) -> str:
    return f"{binding['destination']} to {binding['source']} with key {binding['routing_key']!r}"


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _unbind(vhost: str, kind: str, name: str, keep: Sequence[Item]) -> str:
    """The Erlang that takes away all that leads to an exchange or queue but `keep`; rabbitmqctl has no word for it.

    Nothing of what is taken away stands in it: whoever bound it chose the words.
    """
    kept = ", ".join(
        f'{{<<"{item["source"]}">>, <<"{item["routing_key"]}">>, []}}'
        for item in keep
        if (item["vhost"], item["destination_type"], item["destination"]) == (vhost, kind, name)
    )
    return (
        f'[rabbit_binding:remove(B, <<"{TAG}">>) || {{binding, {{resource, _, exchange, S}}, K, _, A}} = B <- '
        f'rabbit_binding:list_for_destination({{resource, <<"{vhost}">>, {kind}, <<"{name}">>}}), '
        f"S =/= <<>>, not lists:member({{S, K, A}}, [{kept}])], ok."
    )


def _mended_vhosts(held: Definitions, repairs: Mapping[str, Any]) -> set[str]:
    """The vhosts in which something was lost that agents had declared or were bound to: they can't know."""
    before = {vhost["name"] for vhost in held.get("vhosts", [])}
    return {item["vhost"] for kind in TOPOLOGY for item in repairs.get(kind, [])} & before


class FilterModule:
    """What Ansible asks a plugin for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        filters = (broker_wanted, broker_play, broker_drift, broker_passwords, broker_certificate)
        return {one.__name__: one for one in filters}
