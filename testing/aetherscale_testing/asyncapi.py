"""docs/asyncapi.yaml, made from the protocol's own tables and from docs/asyncapi.in.yaml, which has words and examples.

Read off the code are channels, operations, messages, schemas, bounds, error codes and the topology. The hand-written
file has the document's own shape, and is laid over that.
"""

import re
from pathlib import Path
from typing import Any

import msgspec
import yaml

from aetherscale_protocol import names, options, topology
from aetherscale_protocol.answers import RESPONSES, VmDetails
from aetherscale_protocol.commands import COMMANDS, Command, Reach
from aetherscale_protocol.errors import CODES

DOCS = Path(__file__).parents[2] / "docs"
SOURCE = DOCS / "asyncapi.in.yaml"
DOCUMENT = DOCS / "asyncapi.yaml"

HEADER = "# Made by `make asyncapi` from the code and from asyncapi.in.yaml. Edit these.\n"
SCHEMAS = "#/components/schemas/"
HOST, VM_ID = "<host>", "<vm-id>"
WIDTH = 118

REACHES = {
    Reach.ONE: "Reaches ONE agent, through the shared queue `computing-competing`.",
    Reach.ALL: "Reaches ALL agents; each answers. With the routing key `host.<host>` it reaches that host alone.",
    Reach.HOLDER: "Reaches ALL agents; with the routing key `vm.<vm-id>` it reaches the VM's holder alone.",
    Reach.HOST: "Reaches one HOST, the one in its routing key; published under the command's name it reaches nobody.",
}


_LABELS = {
    "maxProperties": options.MOST_LABELS,
    "propertyNames": {"pattern": f"^{names.LABEL_KEY_PATTERN}$"},
    "additionalProperties": {"type": "string", "pattern": f"^{names.LABEL_VALUE_PATTERN}$"},
}
_SELECTOR = {"pattern": f"^{names.LABEL_KEY_PATTERN}(={names.LABEL_VALUE_PATTERN})?$"}

CHECKED: dict[str, dict[str, Any]] = {
    "vm-id": {"pattern": f"^{names.VM_ID_PATTERN}$"},
    "clone-of": {"pattern": f"^{names.VM_ID_PATTERN}$"},
    "image": {"pattern": f"^{names.IMAGE_PATTERN}$"},
    "host": {"pattern": f"^{names.HOST_PATTERN}$"},
    "name": {"pattern": f"^{names.VM_NAME_PATTERN}$"},
    "snapshot": {"pattern": f"^{names.SNAPSHOT_PATTERN}$"},
    "spread": _SELECTOR,
    "near": _SELECTOR,
    "labels": _LABELS,
    "host-labels": _LABELS,
    "ssh-keys": {"maxItems": options.MOST_KEYS, "items": {"type": "string", "maxLength": options.LONGEST_KEY}},
    "publish": {"maxItems": options.MOST_PUBLISHED},
}
"""What `Options.__post_init__` checks beside the types, by the option's name."""


def laid_over(below: Any, above: Any) -> Any:
    """Two documents as one: of dicts all keys, those below first; else what lies above."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    both = {key: laid_over(value, above[key]) if key in above else value for key, value in below.items()}
    return {**both, **{key: value for key, value in above.items() if key not in below}}


def _ref(pointer: str) -> dict[str, str]:
    return {"$ref": pointer}


def _channel(command: Command) -> dict[str, Any]:
    to_host = command.reach is Reach.HOST
    channel: dict[str, Any] = {
        "address": "host.{host}" if to_host else command.name,
        "description": REACHES[command.reach],
    }
    if to_host:
        channel["parameters"] = {"host": _ref("#/components/parameters/host")}
    channel["messages"] = {"request": _ref(f"#/components/messages/{command.name}")}
    channel["bindings"] = _ref("#/components/channelBindings/command")
    return channel


def _operation(command: Command) -> dict[str, Any]:
    return {
        "action": "receive",
        "summary": command.summary,
        "channel": _ref(f"#/channels/{command.name}"),
        "reply": {
            "address": _ref("#/components/replyAddresses/direct"),
            "channel": _ref("#/channels/answers"),
            "messages": [_ref(f"#/channels/answers/messages/{command.name}")],
        },
        "x-reach": command.reach.value,
        "x-changes": command.changes,
    }


def _request(command: Command) -> dict[str, Any]:
    some_required = len(command.options.__struct_fields__) > len(command.options.__struct_defaults__)
    payload = {
        "type": "object",
        "additionalProperties": False,
        "required": ["command", "options"] if some_required else ["command"],
        "properties": {"command": {"const": command.name}, "options": _ref(SCHEMAS + command.options.__name__)},
    }
    return {"traits": [_ref("#/components/messageTraits/command")], "payload": payload}


def _answer(command: Command) -> dict[str, Any]:
    properties = {"response": _reference_to(RESPONSES[command.name])}
    if command.name == "list-vms":
        properties["details"] = _reference_to(list[VmDetails])
    payload = {"allOf": [_ref(SCHEMAS + "answer"), {"properties": properties}]}
    return {"traits": [_ref("#/components/messageTraits/answer")], "payload": payload}


def _reference_to(kind: Any) -> Any:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=SCHEMAS + "{name}")
    return schema


def _schemas() -> dict[str, Any]:
    asked = list(dict.fromkeys(command.options for command in COMMANDS.values()))
    of_options = _components(asked)
    return {name: _with_checks(schema) for name, schema in of_options.items()} | _components([*RESPONSES.values()])


def _components(kinds: list[Any]) -> dict[str, Any]:
    _, components = msgspec.json.schema_components(kinds, ref_template=SCHEMAS + "{name}")
    return {name: _plain(schema) for name, schema in components.items()}


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A struct's schema with its docstring on one line, and the names in it as they are on the wire."""
    text = " ".join(schema["description"].split())
    text = re.sub(r"`[a-z_]+`", lambda name: name[0].replace("_", "-"), text)
    return {"description": text, **{key: value for key, value in schema.items() if key not in ("title", "description")}}


def _with_checks(schema: dict[str, Any]) -> dict[str, Any]:
    properties = {name: _checked(value, CHECKED.get(name, {})) for name, value in schema["properties"].items()}
    return {**schema, "properties": properties}


def _checked(schema: dict[str, Any], checks: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" not in schema:
        return {**schema, **checks}
    return {**schema, "anyOf": [s if s == {"type": "null"} else {**s, **checks} for s in schema["anyOf"]]}


def _topology() -> dict[str, Any]:
    queues = (*topology.SHARED_QUEUES, topology.host_queue(HOST), topology.known(HOST), topology.claim(VM_ID, HOST))
    bindings: dict[str, dict[str, list[str]]] = {}
    for binding in (*topology.SHARED_BINDINGS, *topology.host_bindings(HOST)):
        bindings.setdefault(binding.queue, {}).setdefault(binding.exchange, []).append(binding.key)
    for onward in topology.EXCHANGE_BINDINGS:
        bindings.setdefault(onward.destination, {})[onward.source] = [""]
    return {
        "exchanges": {exchange.name: exchange.type for exchange in topology.EXCHANGES},
        "queues": {queue.name: queue.arguments for queue in queues},
        "bindings": bindings,
        "permissions": {"operator": msgspec.to_builtins(topology.OPERATOR_PERMISSIONS)},
    }


def of_the_code() -> dict[str, Any]:
    """The parts of the document that follow from the code."""
    each = COMMANDS.values()
    requests = {command.name: _request(command) for command in each}
    answers = {f"{command.name}-answer": _answer(command) for command in each}
    replies = {"messages": {name: _ref(f"#/components/messages/{name}-answer") for name in COMMANDS}}
    return {
        "channels": {**{command.name: _channel(command) for command in each}, "answers": replies},
        "operations": {command.name: _operation(command) for command in each},
        "components": {"messages": requests | answers, "schemas": _schemas()},
        "x-topology": _topology(),
    }


def finalize_document() -> dict[str, Any]:
    """The whole document."""
    words = yaml.safe_load(SOURCE.read_text())
    words["components"]["schemas"]["execution-info"]["properties"]["code"]["enum"] = list(CODES)
    both = laid_over(of_the_code(), words)
    return {key: both[key] for key in (*words, *(key for key in both if key not in words))}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """As a person would write it: lists indented, short ones on a line, text in blocks, no aliases."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:  # noqa: ARG002
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True

    def serialize_node(self, node: yaml.Node, parent: Any, index: Any) -> None:
        if isinstance(node, yaml.CollectionNode) and _length(node) > 100:
            node.flow_style = False
        if isinstance(node, yaml.ScalarNode) and "\n" in node.value:
            node.style = "|"
        super().serialize_node(node, parent, index)


def _length(node: Any) -> int:
    """About how long a node is when it is written on one line."""
    parts = node if isinstance(node, tuple) else node.value
    return len(parts) + 4 if isinstance(parts, str) else sum(map(_length, parts))


def finalize_text() -> str:
    """The whole document, as it stands in docs/asyncapi.yaml."""
    text = yaml.dump(
        finalize_document(), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=WIDTH, allow_unicode=True
    )
    return HEADER + str(text)


if __name__ == "__main__":
    DOCUMENT.write_text(finalize_text())
