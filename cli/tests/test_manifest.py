"""Files of VMs: what they mean, and what is wrong with them, with its line."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale_cli.manifest import FIELDS, read_manifest
from aetherscale_protocol import names
from aetherscale_protocol.options import CreateVm, Publish

WHOLE = """\
vms:
  - name: web1
    image: debian
    cpus: 2
    memory: 2G
    disk: 20G
    labels: {role: web, version: 1.10, old: no, empty: }
    ssh-keys:
      - ssh-ed25519 AAAA me
    user-data: |
      #cloud-config
    publish: [8080:80]
    ttl: 2h
    host: h1
    host-labels: {disk: ssd}
    spread: role=web
"""


def errors(text: str) -> list[str]:
    return read_manifest(text, "vms.yml").errors


def test_every_field_as_it_was_written() -> None:
    manifest = read_manifest(WHOLE, "vms.yml")
    assert manifest.errors == []
    (wanted,) = manifest.vms
    assert wanted.options == CreateVm(
        image="debian", name="web1", vm_id=names.id_of_name("web1"), cpus=2, memory=2048, disk=20,
        labels={"role": "web", "version": "1.10", "old": "no", "empty": ""}, user_data="#cloud-config\n",
        publish=(Publish(host_port=8080, guest_port=80),), ttl=7200, host="h1", host_labels={"disk": "ssd"},
        spread="role=web",
    )  # fmt: skip
    assert wanted.ssh_keys == ("ssh-ed25519 AAAA me",)
    assert wanted.given == set(FIELDS) - {"near", "user-data-file"}


@pytest.mark.parametrize("levels", [12, 40])
def test_aliases_that_grow_without_end_are_refused(levels: int) -> None:
    # All in one VM: PyYAML 6.0.4 and later take fields that are the same once, when they have merged what holds them.
    nested = "{name: a, image: b}"
    for level in range(levels):
        nested = f"{{<<: [&l{level} {nested}{f', *l{level}' * 8}]}}"
    manifest = read_manifest(f"vms:\n- {nested}\n", "vms.yml")
    assert any("more than 1000 fields" in error for error in manifest.errors)


@pytest.mark.parametrize(
    "text", ["vms:\n- &a {<<: *a, name: a}", "&a\nvms: [*a]", "vms: &a [*a]", "vms: [{labels: &l {a: *l}}]"]
)
def test_what_holds_itself_is_refused(text: str) -> None:
    assert errors(text)


def test_what_several_have_in_common_can_be_merged() -> None:
    manifest = read_manifest(
        "vms:\n- &first {name: a, image: u, cpus: 2}\n- {<<: *first, name: b}\n- <<: *first\n  name: c\n  cpus: 4\n",
        "vms.yml",
    )
    assert manifest.errors == []
    assert [(vm.name, vm.options.cpus) for vm in manifest.vms] == [("a", 2), ("b", 2), ("c", 4)]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "vms.yml: there is no list of VMs under `vms:`"),
        ("- a\n", "vms.yml: there is no list of VMs under `vms:`"),
        ("vms: {a: b}\n", "vms.yml:1: there is no list of VMs under `vms:`"),
        ("vms: []\nmore: 1\n", "vms.yml:2: unknown key 'more'; a file has `vms:` and nothing else"),
        ("vms:\n- web1\n", "vms.yml:2: a VM is a mapping of fields, such as `- name: web1`"),
        ("vms:\n- {image: u}\n", "vms.yml:2: a VM without a name: name is missing"),
        ("vms:\n- name: a\n", "vms.yml:2: VM a: image is missing"),
        ("vms:\n- name: A\n  image: u\n", "vms.yml:2: VM A: name: 'A': a VM's name is"),
        ("vms:\n- name: a\n  image: u\n  cpus: many\n", "vms.yml:4: VM a: cpus: 'many' is not a number of cores"),
        ("vms:\n- name: a\n  image: u\n  memory: 1.5G\n", "vms.yml:4: VM a: memory: '1.5G' is not a size"),
        ("vms:\n- name: a\n  image: u\n  ttl: -1\n", "vms.yml:4: VM a: ttl: '-1' is not a time such as"),
        ("vms:\n- name: a\n  image: u\n  ram: 1G\n", "vms.yml:4: VM a: unknown field 'ram'; known are name, image"),
        ("vms:\n- name: a\n  image: u\n  image: v\n", "vms.yml:4: image is there twice"),
        ("vms:\n- name: a\n  image: [u]\n", "vms.yml:3: VM a: image: a single value is wanted here"),
        ("vms:\n- name: a\n  image: u\n  publish: 8080:80\n", "vms.yml:4: VM a: publish is not a list"),
        ("vms:\n- name: a\n  image: u\n  publish:\n  - 80\n", "vms.yml:5: VM a: publish: '80' is not HOST-PORT:"),
        ("vms:\n- name: a\n  image: u\n  labels: [x]\n", "vms.yml:4: VM a: labels is not a mapping"),
        ("vms:\n- name: a\n  image: u\n  labels:\n    x: a b\n", "vms.yml:5: VM a: labels: 'x=a b': a label is"),
        ("vms:\n- name: a\n  image: u\n  labels:\n    x: [a]\n", "vms.yml:5: VM a: labels: a single value"),
        ("vms:\n- {name: a, image: u, spread: x, near: y}\n", "vms.yml:2: VM a: spread and near exclude each other"),
        ("vms:\n- {name: a, image: u, user-data: x, user-data-file: y}\n", "vms.yml:2: VM a: user-data and user-data"),
        ("vms:\n- {name: a, image: u}\n- {name: a, image: u}\n", "vms.yml:3: VM a is there already, at vms.yml:2"),
        ("vms:\n- name: a\n\timage: u\n", "vms.yml:3: this is not YAML: found character"),
        ("vms: *x\n", "vms.yml:1: this is not YAML: found undefined alias"),
        ("vms:\n- {<<: 1, name: a, image: u}\n", "vms.yml:2: this can't be merged"),
        ("\x00", "vms.yml: this is not YAML"),
    ],
)
def test_an_error_names_line_vm_and_field(text: str, error: str) -> None:
    assert errors(text)[0].startswith(error)


def test_all_errors_are_told_at_once() -> None:
    assert len(errors("vms:\n- {name: a, image: u, cpus: x, disk: y}\n- {image: v}\n")) == 3


PIECES = st.sampled_from(
    ["vms:", "\n- ", "\n  ", "name: a", "image: u", "<<: ", "*x", "&x ", "[", "]", "{", "}", ", ", "labels: ", ": ",
     "!!int", "publish: ", "80:80", "? ", "|", '"', "ttl: ", "\t"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES | st.text(max_size=5), max_size=14).map("".join) | st.text(max_size=40))
def test_no_file_ends_in_a_traceback(text: str) -> None:
    manifest = read_manifest(text, "vms.yml")
    assert all(error.startswith("vms.yml") for error in manifest.errors)
