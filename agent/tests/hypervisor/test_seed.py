"""What cloud-init finds on a VM's seed disc."""

from io import BytesIO
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from aetherscale_agent.hypervisor import seed
from aetherscale_protocol import names as rules
from aetherscale_protocol.options import LONGEST_KEY, LONGEST_TEXT, MOST_KEYS, MOST_LABELS, CreateVm
from aetherscale_testing.seed_disc import read_disc

MAC = "52:54:00:12:34:56"
KEYS = ("ssh-ed25519 AAAA one@laptop", "ssh-rsa BBBB two: {three} #four")

LINES = st.text(min_size=1, max_size=60).filter(lambda line: line.isprintable() and line.strip())
NASTY = st.from_regex(r"[-'\"{}\[\]:,#&*!|>%@`\\ ]{1,9}[a-z]?", fullmatch=True).filter(str.strip)
MANY_KEYS = (
    st.lists(LINES | NASTY, min_size=1, max_size=8)
    | LINES.map(lambda line: [(line * LONGEST_KEY)[:LONGEST_KEY]])
    | LINES.map(lambda line: [line] * MOST_KEYS)
)
NAMES = st.none() | st.from_regex(rules.VM_NAME_PATTERN, fullmatch=True)
ENDS = st.sampled_from(["\n", "\r\n", "\r", "\0", "\ufeff", "\x85", "\u2028", "---\n", "...\n", "#cloud-config\n", " "])
SHORT = st.lists(ENDS | st.text(max_size=3), min_size=1, max_size=8).map("".join)
TEXTS = SHORT | SHORT.map(lambda text: ((text + "x") * LONGEST_TEXT).encode()[:LONGEST_TEXT].decode(errors="ignore"))
"""User-data, up to all that may be sent."""
LABELS = st.dictionaries(
    st.from_regex(rules.LABEL_KEY_PATTERN, fullmatch=True),
    st.from_regex(rules.LABEL_VALUE_PATTERN, fullmatch=True),
    max_size=MOST_LABELS,
)


def spec(**options: object) -> CreateVm:
    return CreateVm(image="tiny", **options)  # type: ignore[arg-type]


def finalize(one: CreateVm) -> dict[str, bytes]:
    return dict(seed.finalize_files("sgeqxcfi", one, "sgeqxcfi-0a1b2c3d", MAC))


def differing(some: dict[str, bytes], others: dict[str, bytes]) -> set[str]:
    """The names of files that are not the same in both; of large ones pytest would tell every byte."""
    return {name for name in some.keys() | others.keys() if some.get(name) != others.get(name)}


def written(path: Path, names: str) -> dict[str, bytes]:
    with path.open("rb") as disc:
        return read_disc(disc, names)


def test_the_guest_is_told_its_name_its_keys_and_which_instance_it_is() -> None:
    named = yaml.safe_load(finalize(spec(name="web1", ssh_keys=KEYS))["meta-data"])
    assert named == {"instance-id": "sgeqxcfi-0a1b2c3d", "local-hostname": "web1", "public-keys": list(KEYS)}
    assert yaml.safe_load(finalize(spec())["meta-data"])["local-hostname"] == "sgeqxcfi"


@pytest.mark.parametrize("text", ["#cloud-config\nhostname: x\n", "#!/bin/sh\r\necho 'ä'", "\n"])
def test_user_data_is_the_operators_own_bytes(text: str) -> None:
    assert finalize(spec(user_data=text))["user-data"] == text.encode()


def test_without_user_data_there_is_a_cloud_config_that_says_nothing() -> None:
    text = finalize(spec())["user-data"]
    assert text.startswith(b"#cloud-config\n")
    assert yaml.safe_load(text) == {}


def test_the_vendors_part_lets_root_in_and_says_when_it_is_done() -> None:
    text = finalize(spec(user_data="#cloud-config\ndisable_root: true\n"))["vendor-data"]
    assert text.startswith(b"#cloud-config\n")
    config = yaml.safe_load(text)
    assert config["disable_root"] is False
    assert config["final_message"].startswith(seed.FINISHED)


def test_the_network_is_the_one_interface_by_its_mac() -> None:
    config = yaml.safe_load(finalize(spec())["network-config"])
    (ethernet,) = config.pop("ethernets").values()
    assert config == {"version": 2}
    assert ethernet["match"] == {"macaddress": MAC}
    assert ethernet["dhcp4"] is True


@pytest.mark.parametrize(
    "key", ["ssh-rsa Aä\u2019B", "a]}, no: 1", "x: y", "- z", '"', "${a} {{ b }}", "home \U0001f3e0"]
)
def test_a_key_can_not_become_more_than_a_key(key: str) -> None:
    assert yaml.safe_load(finalize(spec(ssh_keys=(key, "last")))["meta-data"])["public-keys"] == [key, "last"]


@pytest.mark.parametrize("names", ["rr_path", "joliet_path"])
def test_a_disc_reads_back_by_both_its_names(names: str, tmp_path: Path) -> None:
    contents = finalize(spec(name="web1", ssh_keys=KEYS, user_data="#cloud-config\n" + "# é\n" * 40_000))
    seed.make(tmp_path / "seed.iso", contents)
    assert written(tmp_path / "seed.iso", names) == contents


def test_a_disc_is_labelled_as_cloud_init_looks_for_it_and_readable_by_its_vm(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    seed.make(path, finalize(spec()))
    assert path.read_bytes()[16 * 2048 + 40 :][:32].rstrip() == b"cidata"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_disc_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    path.with_suffix(".new").write_bytes(b"cut off")
    seed.make(path, {"meta-data": b"old"})
    held = path.open("rb")  # as a running QEMU holds it
    before = held.read()
    seed.make(path, {"meta-data": b"new"})
    held.seek(0)
    assert held.read() == before
    assert written(path, "rr_path") == {"meta-data": b"new"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["seed.iso"]


@settings(deadline=None)
@given(NAMES, MANY_KEYS)
def test_whatever_keys_are_they_are_keys_and_nothing_else(name: str | None, keys: list[str]) -> None:
    files, plain = finalize(spec(name=name, ssh_keys=tuple(keys))), finalize(spec())
    named = {"instance-id": "sgeqxcfi-0a1b2c3d", "local-hostname": name or "sgeqxcfi", "public-keys": keys}
    assert yaml.safe_load(files.pop("meta-data")) == named
    assert files == {name: plain[name] for name in files}
    assert len(files) == 3


@settings(deadline=None)
@given(TEXTS, LABELS)
def test_whatever_user_data_is_it_is_in_its_own_file_alone(text: str, labels: dict[str, str]) -> None:
    files = finalize(spec(user_data=text, labels=labels))
    assert differing(files, finalize(spec()) | {"user-data": text.encode() or seed.NO_USER_DATA}) == set()


@settings(deadline=None, max_examples=50)
@given(TEXTS, MANY_KEYS)
def test_whatever_is_packed_reads_back(text: str, keys: list[str]) -> None:
    contents = finalize(spec(user_data=text, ssh_keys=tuple(keys)))
    packed = seed._pack(contents)
    for names in ("rr_path", "joliet_path"):
        assert differing(read_disc(BytesIO(packed), names), contents) == set()
    assert packed[16 * 2048 + 40 :][:32].rstrip() == b"cidata"
