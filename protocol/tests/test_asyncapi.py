"""docs/asyncapi.yaml says what the code does: names, options, bounds, defaults, answers, codes, topology."""

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale_protocol import topology
from aetherscale_protocol.answers import RESPONSES, Answer, ExecutionInfo, VmDetails, decode_answer
from aetherscale_protocol.commands import COMMANDS, Command, Reach, decode_request
from aetherscale_protocol.errors import CODES, Refused
from aetherscale_testing import asyncapi

DOCUMENT: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "docs" / "asyncapi.yaml").read_text())
MESSAGES = DOCUMENT["components"]["messages"]

MANY = settings(max_examples=100, deadline=None, database=None)

each_command = pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda c: c.name)


def look_up(pointer: str) -> Any:
    """What a `$ref` of the document points at."""
    assert pointer.startswith("#/"), pointer
    value: Any = DOCUMENT
    for part in pointer[2:].split("/"):
        value = value[part]
    return value


def inlined(value: Any) -> Any:
    """The same, with every `$ref` replaced by what it points at."""
    if isinstance(value, dict):
        return inlined(look_up(value["$ref"])) if "$ref" in value else {k: inlined(v) for k, v in value.items()}
    return [inlined(item) for item in value] if isinstance(value, list) else value


def bare(schema: Any) -> Any:
    """A JSON schema without words for people and without what `__post_init__` checks, in one spelling: comparable."""
    if isinstance(schema, list):
        return [bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    words = ("title", "description", "examples")
    checks = ("pattern", "additionalProperties", "propertyNames", "maxProperties", "maxItems", "maxLength")
    kept = {key: bare(value) for key, value in schema.items() if key not in (*words, *checks)}
    if "required" in kept:
        kept["required"] = sorted(kept["required"])
    return kept


def of_code(kind: Any) -> Any:
    """The JSON schema of a type of ours."""
    (schema,), components = msgspec.json.schema_components([kind], ref_template="{name}")

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            return resolve(components[value["$ref"]]) if "$ref" in value else {k: resolve(v) for k, v in value.items()}
        return [resolve(item) for item in value] if isinstance(value, list) else value

    return bare(json.loads(msgspec.json.encode(resolve(schema))))


def request_schema(command: Command) -> Any:
    return inlined(MESSAGES[command.name]["payload"])


def answer_schema(command: Command) -> Any:
    return inlined(MESSAGES[f"{command.name}-answer"]["payload"])


# Structure


def test_the_document_is_what_make_asyncapi_makes() -> None:
    assert asyncapi.DOCUMENT.read_text() == asyncapi.finalize_text()


def test_the_words_speak_of_nothing_that_is_not_in_the_code() -> None:
    """What is laid over must lie on something: a command that is gone takes its words and examples with it."""
    made, words = asyncapi.of_the_code(), yaml.safe_load(asyncapi.SOURCE.read_text())
    for part in ("channels", "operations"):
        assert set(words[part]) <= set(made[part])
    assert set(words["components"]["messages"]) == set(made["components"]["messages"])
    by_hand = {"properties", "answer", "execution-info", "fleet"}
    assert set(words["components"]["schemas"]) - by_hand <= set(made["components"]["schemas"])


def test_every_reference_leads_somewhere() -> None:
    inlined(DOCUMENT)


def test_the_document_has_one_channel_operation_request_and_answer_for_each_command() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert list(DOCUMENT["operations"]) == list(COMMANDS)
    assert list(DOCUMENT["channels"]) == [*COMMANDS, "answers"]
    assert set(MESSAGES) == {*COMMANDS, *(f"{name}-answer" for name in COMMANDS)}
    assert list(DOCUMENT["channels"]["answers"]["messages"]) == list(COMMANDS)


@each_command
def test_an_operation_is_its_row_of_the_command_table(command: Command) -> None:
    operation = DOCUMENT["operations"][command.name]
    assert (operation["action"], operation["summary"]) == ("receive", command.summary)
    assert operation["x-reach"] == command.reach.value
    assert operation["x-changes"] == command.changes
    assert operation["channel"]["$ref"] == f"#/channels/{command.name}"
    assert operation["reply"]["channel"]["$ref"] == "#/channels/answers"
    assert [m["$ref"] for m in operation["reply"]["messages"]] == [f"#/channels/answers/messages/{command.name}"]
    answer = DOCUMENT["channels"]["answers"]["messages"][command.name]
    assert answer["$ref"] == f"#/components/messages/{command.name}-answer"


@each_command
def test_a_channel_is_a_routing_key_of_the_exchange(command: Command) -> None:
    channel = inlined(DOCUMENT["channels"][command.name])
    to_host = command.reach is Reach.HOST
    assert channel["address"] == ("host.{host}" if to_host else command.name)
    assert list(channel.get("parameters", {})) == (["host"] if to_host else [])
    assert ("host" in command.options.__struct_fields__) >= to_host
    assert command.reach.value.replace("holder", "all").upper() in channel["description"]
    binding = channel["bindings"]["amqp"]
    assert binding["is"] == "routingKey"
    exchange = topology.EXCHANGES[0]
    assert binding["exchange"] == {"name": exchange.name, "type": exchange.type, "durable": True, "autoDelete": False}


# Requests


@each_command
def test_a_request_has_the_options_of_the_code(command: Command) -> None:
    payload = request_schema(command)
    assert payload["properties"]["command"] == {"const": command.name}
    assert payload["additionalProperties"] is False
    options = payload["properties"]["options"]
    assert options["additionalProperties"] is False
    documented = {"required": [], **bare(options)}
    assert documented == of_code(command.options)
    assert ("options" in payload["required"]) == bool(documented["required"])


EXAMPLES = [
    pytest.param(command, example["payload"], id=f"{command.name}-{example['name']}")
    for command in COMMANDS.values()
    for example in MESSAGES[command.name]["examples"]
]


@pytest.mark.parametrize(("command", "payload"), EXAMPLES)
def test_an_example_of_a_request_is_one(command: Command, payload: Any) -> None:
    jsonschema.validate(payload, request_schema(command))
    request = decode_request(json.dumps(payload).encode())
    assert request.command is command
    encoded = json.loads(msgspec.json.encode(request.options))
    assert encoded.items() <= payload.get("options", {}).items()


numbers = [22, 63, 64, 256, 257, 1000, 1001, 1023, 1024, 65535, 65536, 65537, 4194304, 4194305, 316224000, 316224001]
labels = [{"role": "web"}, {"-role": "web"}, {"role": "a b"}, {"role": 1}, {"a": ""}, {f"l{n}": "" for n in range(33)}]
lists = [[{"host-port": 80, "guest-port": 80}], [{"host-port": 0, "guest-port": 80}], ["ssh-ed25519 AAAA"], ["a"] * 65]
texts = ["sgeqxcfi", "SGEQXCFI", "tiny", "", "a/b", "x" * 63, "x" * 64, "x" * 65, "h1.lan", "h1.", "console", "tcp"]
texts += ["role=web", "role=", "=web", "role=a=b", "x" * 262_144, "x" * 262_145]
EDGES: list[Any] = [None, True, False, -1, 0, 1, *numbers, *texts, *labels, *lists, ["x" * 16_385], [1], [], {}]
values = st.sampled_from(EDGES) | st.text(st.characters(blacklist_characters="\n", codec="utf-8"), max_size=9)
keys = sorted(
    {key for command in COMMANDS.values() for key in command.options.__struct_encode_fields__} | {"vm_id", "colour"}
)
LIKELY = {"vm-id": "sgeqxcfi", "image": "a", "host": "h1", "snapshot": "s", "kind": "console", "ttl": 60, "cpus": 2}

BEYOND_A_SCHEMA = ("is not that of name", "bytes; 262144 are the most")
"""What the document can only say in words. (That no port of a host is named twice is in test_options.py.)"""


@MANY
@given(st.data(), st.booleans())
@each_command
def test_the_schema_accepts_what_the_code_accepts(command: Command, data: st.DataObject, likely: bool) -> None:
    known = command.options.__struct_encode_fields__
    drawn = data.draw(st.dictionaries(st.sampled_from([*known, *known, *known, *keys]), values, max_size=3))
    good = {key: value for key, value in LIKELY.items() if key in known and likely}
    check_agreement(command, {**good, **drawn})


@each_command
def test_the_schema_has_every_bound_of_the_code(command: Command) -> None:
    good = {key: value for key, value in LIKELY.items() if key in command.options.__struct_encode_fields__}
    for key in command.options.__struct_encode_fields__:
        for value in EDGES:
            check_agreement(command, {**good, key: value})


PAIRS = [
    ("create-vm", {"image": "a", "spread": spread, "near": near})
    for spread in (None, "", "role", "role=web")
    for near in (None, "", "role", "env=prod")
] + [
    ("open-stream", {"vm-id": "sgeqxcfi", "kind": kind, **port})
    for kind in ("console", "log", "tcp", "udp")
    for port in ({}, {"port": None}, {"port": 22})
]


@pytest.mark.parametrize(("command", "options"), PAIRS)
def test_the_schema_has_the_rules_across_options(command: str, options: dict[str, Any]) -> None:
    check_agreement(COMMANDS[command], options)


def check_agreement(command: Command, options: dict[str, Any]) -> None:
    """The document's schema and the product's decoder accept the same."""
    payload = {"command": command.name, "options": options}
    valid = validator(command).is_valid(payload)
    reason = refusal(json.dumps(payload).encode())
    if "is not that of name" in (reason or ""):  # this is said first: is there anything else wrong with it?
        options = {key: value for key, value in options.items() if key != "vm-id"}
        reason = refusal(json.dumps({"command": command.name, "options": options}).encode())
    assert valid == (reason is None or any(words in reason for words in BEYOND_A_SCHEMA)), reason


@functools.cache
def validator(command: Command) -> Any:
    return jsonschema.Draft7Validator(request_schema(command))


def refusal(body: bytes) -> str | None:
    try:
        decode_request(body)
    except Refused as error:
        return error.reason
    return None


# Answers


@each_command
def test_a_response_has_the_fields_of_the_code(command: Command) -> None:
    payload = answer_schema(command)
    documented = bare(payload["allOf"][1]["properties"]["response"])
    assert documented == of_code(RESPONSES[command.name])


def test_an_answer_has_the_fields_of_the_code() -> None:
    documented = inlined(DOCUMENT["components"]["schemas"]["answer"])
    assert set(documented["properties"]) == set(Answer.__struct_encode_fields__)
    assert documented["required"] == ["execution-info"]
    info = documented["properties"]["execution-info"]
    assert set(info["properties"]) == set(ExecutionInfo.__struct_encode_fields__)
    assert info["properties"]["code"]["enum"] == list(CODES)
    assert bare(documented["properties"]["fleet"]) == of_code(Answer.__annotations__["fleet"])["anyOf"][0]
    details = answer_schema(COMMANDS["list-vms"])["allOf"][1]["properties"]["details"]
    assert bare(details) == of_code(list[VmDetails])


ANSWERS = [
    pytest.param(command, example["payload"], id=f"{command.name}-{example['name']}")
    for command in COMMANDS.values()
    for example in MESSAGES[f"{command.name}-answer"]["examples"]
]


@pytest.mark.parametrize(("command", "payload"), ANSWERS)
def test_an_example_of_an_answer_is_one(command: Command, payload: Any) -> None:
    jsonschema.validate(payload, answer_schema(command))
    answer = decode_answer(json.dumps(payload).encode())
    assert json.loads(msgspec.json.encode(answer)) == payload
    assert answer.ok == ("response" in payload)
    if answer.ok:
        response = msgspec.json.decode(answer.response, type=RESPONSES[command.name])
        assert msgspec.to_builtins(response) == payload["response"]
    else:
        assert answer.execution_info.code in CODES


@each_command
@pytest.mark.parametrize("status", ["success", "error"])
def test_every_command_has_an_example_of_its_success_and_of_an_error(command: Command, status: str) -> None:
    examples = MESSAGES[f"{command.name}-answer"]["examples"]
    assert any(e["payload"]["execution-info"]["status"] == status for e in examples)


@each_command
def test_every_command_has_an_example_of_its_request(command: Command) -> None:
    assert MESSAGES[command.name]["examples"]


# Topology

HOST, VM_ID = "<host>", "<vm-id>"


def test_the_topology_is_the_codes() -> None:
    documented = DOCUMENT["x-topology"]
    assert documented["exchanges"] == {e.name: e.type for e in topology.EXCHANGES}
    queues = (*topology.SHARED_QUEUES, topology.host_queue(HOST), topology.known(HOST), topology.claim(VM_ID, HOST))
    assert documented["queues"] == {queue.name: queue.arguments for queue in queues}
    bindings: dict[str, dict[str, list[str]]] = {}
    for binding in (*topology.SHARED_BINDINGS, *topology.host_bindings(HOST)):
        bindings.setdefault(binding.queue, {}).setdefault(binding.exchange, []).append(binding.key)
    bindings["computing"] = {"computing-agents": [""]}
    assert documented["bindings"] == bindings
    assert documented["permissions"]["operator"] == msgspec.to_builtins(topology.OPERATOR_PERMISSIONS)


def test_limits_that_are_told_in_words_are_the_codes() -> None:
    words = DOCUMENT["components"]["schemas"]["properties"]["properties"]["deadline"]["description"]
    assert f"at most {topology.MAX_PATIENCE_S} s ahead" in words
