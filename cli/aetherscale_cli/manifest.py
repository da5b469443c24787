"""A file of VMs: YAML, read field by field, so that every error names its line, its VM and its field. Pure.

Values are taken as they were written (`8080:80` is no number, `no` is no truth value), so nothing needs quotes.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from msgspec import Struct

from aetherscale_cli import values
from aetherscale_protocol import names
from aetherscale_protocol.options import CreateVm

_SCALARS: Mapping[str, Callable[[str], Any]] = {
    "name": values.vm_name,
    "image": values.image,
    "cpus": values.cpus,
    "memory": values.memory,
    "disk": values.disk,
    "ttl": values.ttl_or_never,
    "host": values.host,
    "spread": values.selector,
    "near": values.selector,
    "user-data": str,
    "user-data-file": str,
}
_LISTS: Mapping[str, Callable[[str], Any]] = {"ssh-keys": str, "publish": values.publish}
_MERGE = "tag:yaml.org,2002:merge"
MOST_FIELDS = 1000
"""Fields of a VM, those counted that a merge brings once more."""
_MAPPINGS = ("labels", "host-labels")
FIELDS = (*_SCALARS, *_LISTS, *_MAPPINGS)
_NOT_OPTIONS = ("user-data-file", "ssh-keys")


class Wanted(Struct, frozen=True):
    """A VM that the file names. `given`: the fields that it speaks of. Keys and files are not read yet; no keys given
    (None) means the operator's own.
    """

    options: CreateVm
    given: frozenset[str]
    where: str  #: file and line
    ssh_keys: tuple[str, ...] | None = None
    user_data_file: str = ""

    @property
    def name(self) -> str:
        """The VM's name; every VM of a file has one."""
        return self.options.name or ""

    @property
    def vm_id(self) -> str:
        """The id that goes with the name."""
        return names.id_of_name(self.name)


class Manifest(Struct):
    """What a file says, and what is wrong with it."""

    source: str
    vms: list[Wanted] = []
    errors: list[str] = []

    def refuse(self, node: Any, said: str) -> None:
        """Note an error at this place."""
        self.errors.append(f"{self.locate(node)}: {said}")

    def locate(self, node: Any) -> str:
        """The file, and the line of this place."""
        return f"{self.source}:{node.start_mark.line + 1}"


def read_manifest(text: str, source: str) -> Manifest:
    """What the text of the file `source` says; errors are in it."""
    import yaml

    manifest = Manifest(source)
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        manifest.errors.append(f"{source}{line}: this is not YAML: {error.problem or error.context}")
        return manifest
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        manifest.errors.append(f"{source}: this is not YAML: {error}")
        return manifest
    if root is None or root.id != "mapping":
        manifest.errors.append(f"{source}: there is no list of VMs under `vms:`")
        return manifest
    _read_root(manifest, root, loader)
    return manifest


def _read_root(manifest: Manifest, root: Any, loader: Any) -> None:
    entries = _pairs(manifest, root, "")
    for key, (node, _) in entries.items():
        if key != "vms":
            manifest.refuse(node, f"unknown key {key!r}; a file has `vms:` and nothing else")
    _, listed = entries.get("vms", (None, None))
    if listed is None or listed.id != "sequence":
        manifest.refuse(listed or root, "there is no list of VMs under `vms:`")
        return
    for node in listed.value:
        if node.id != "mapping":
            manifest.refuse(node, "a VM is a mapping of fields, such as `- name: web1`")
            continue
        try:
            _check_merges(node)
            loader.flatten_mapping(node)  # `<<: *defaults`
        except Exception as error:  # yaml's own, of several kinds
            manifest.refuse(node, f"this can't be merged: {error}")
            continue
        _read_vm(manifest, node)
    _refuse_twins(manifest)


def _check_merges(node: Any) -> None:
    """Refuse what would grow without end when it is merged: mappings that hold themselves, or each other manifold.

    :raise ValueError: in that case.
    """
    sizes: dict[int, int] = {}

    def size_of(mapping: Any) -> int:
        if sizes.setdefault(id(mapping), -1) < 0:
            parts = [_merged(value) if key.tag == _MERGE else [] for key, value in mapping.value]
            sizes[id(mapping)] = len(mapping.value) + sum(size_of(one) for part in parts for one in part)
        return sizes[id(mapping)]

    if size_of(node) > MOST_FIELDS:
        raise ValueError(f"it has more than {MOST_FIELDS} fields then")


def _merged(value: Any) -> list[Any]:
    nodes = value.value if value.id == "sequence" else [value]
    return [node for node in nodes if node.id == "mapping"]


def _read_vm(manifest: Manifest, node: Any) -> None:
    before = len(manifest.errors)
    pairs = _pairs(manifest, node, "", last=True)
    name = pairs["name"][1].value if "name" in pairs and pairs["name"][1].id == "scalar" else ""
    who = f"VM {name}" if name else "a VM without a name"
    fields: dict[str, Any] = {}
    for key, (key_node, value) in pairs.items():
        if key not in FIELDS:
            manifest.refuse(key_node, f"{who}: unknown field {key!r}; known are {', '.join(FIELDS)}")
        elif value.tag != "tag:yaml.org,2002:null":
            _read_field(manifest, f"{who}: {key}", key, value, fields)
    for key in ("name", "image"):
        if key not in fields and len(manifest.errors) == before:
            manifest.refuse(node, f"{who}: {key} is missing")
    if "user-data" in fields and "user-data-file" in fields:
        manifest.refuse(node, f"{who}: user-data and user-data-file exclude each other")
    if len(manifest.errors) == before:
        _add_vm(manifest, node, who, fields)


def _read_field(manifest: Manifest, what: str, key: str, value: Any, fields: dict[str, Any]) -> None:
    if key in _SCALARS:
        fields |= dict(_scalars(manifest, what, key, [value], _SCALARS[key]))
    elif value.id != ("sequence" if key in _LISTS else "mapping"):
        manifest.refuse(value, f"{what} is not a {'list' if key in _LISTS else 'mapping'}")
    elif key in _LISTS:
        fields[key] = tuple(one for _, one in _scalars(manifest, what, key, value.value, _LISTS[key]))
    else:
        fields[key] = dict(_labels(manifest, what, value))


def _labels(manifest: Manifest, what: str, mapping: Any) -> Iterator[tuple[str, str]]:
    for key, (_, node) in _pairs(manifest, mapping, f"{what}: ").items():
        for _, value in _scalars(manifest, what, key, [node], str):
            try:
                yield values.label(f"{key}={value}")
            except argparse.ArgumentTypeError as error:
                manifest.refuse(node, f"{what}: {error}")


def _scalars(
    manifest: Manifest, what: str, key: str, nodes: list[Any], make: Callable[[str], Any]
) -> Iterator[tuple[str, Any]]:
    for node in nodes:
        if node.id != "scalar":
            manifest.refuse(node, f"{what}: a single value is wanted here")
            continue
        try:
            yield key, make(node.value)
        except argparse.ArgumentTypeError as error:
            manifest.refuse(node, f"{what}: {error}")


def _pairs(manifest: Manifest, node: Any, what: str, *, last: bool = False) -> dict[str, tuple[Any, Any]]:
    """The keys of a mapping with their nodes. A key that is there twice is an error, unless it was merged in: then
    the `last` one counts.
    """
    pairs: dict[str, tuple[Any, Any]] = {}
    for key, value in node.value:
        name = str(key.value) if key.id == "scalar" else ""
        if not name:
            manifest.refuse(key, f"{what}a key is a single word")
        elif name in pairs and not (last and pairs[name][0].start_mark.line < node.start_mark.line):
            manifest.refuse(key, f"{what}{name} is there twice")
        pairs[name] = (key, value)
    return pairs


def _add_vm(manifest: Manifest, node: Any, who: str, fields: dict[str, Any]) -> None:
    given = {key.replace("-", "_"): value for key, value in fields.items() if key not in _NOT_OPTIONS}
    try:
        options = CreateVm(vm_id=names.id_of_name(fields["name"]), **given)
    except ValueError as error:
        manifest.refuse(node, f"{who}: {error}")
        return
    manifest.vms.append(
        Wanted(
            options, frozenset(fields), manifest.locate(node), fields.get("ssh-keys"), fields.get("user-data-file", "")
        )
    )


def _refuse_twins(manifest: Manifest) -> None:
    seen: dict[str, str] = {}
    for wanted in manifest.vms:
        if wanted.name in seen:
            manifest.errors.append(f"{wanted.where}: VM {wanted.name} is there already, at {seen[wanted.name]}")
        seen.setdefault(wanted.name, wanted.where)
