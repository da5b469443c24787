"""What cloud-init finds on a VM's seed disc."""

import io
from pathlib import Path

import pycdlib
import pytest
import yaml

from aetherscale_agent.hypervisor import seed
from aetherscale_protocol.options import CreateVm

MAC = "52:54:00:12:34:56"
KEYS = ("ssh-ed25519 AAAA one@laptop", "ssh-rsa BBBB two: {three} #four")


def spec(**options: object) -> CreateVm:
    return CreateVm(image="tiny", **options)  # type: ignore[arg-type]


def finalize(one: CreateVm) -> dict[str, bytes]:
    return dict(seed.finalize_files("sgeqxcfi", one, "sgeqxcfi-0a1b2c3d", MAC))


def read_disc(path: Path, names: str) -> dict[str, bytes]:
    """The files of a disc, by their Rock Ridge (`rr_path`) or Joliet (`joliet_path`) names."""
    disc = pycdlib.PyCdlib()
    disc.open(str(path))
    found = {}
    for _, _, files in disc.walk(**{names: "/"}):
        for name in files:
            disc.get_file_from_iso_fp(content := io.BytesIO(), **{names: f"/{name}"})
            found[name] = content.getvalue()
    disc.close()
    return found


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
    "key", ["ssh-rsa Aä\u2019B", "a]}, no: 1", "x: y", "- z", '"', "${jinja} {{ b }}", "at home \U0001f3e0"]
)
def test_a_key_can_not_become_more_than_a_key(key: str) -> None:
    assert yaml.safe_load(finalize(spec(ssh_keys=(key, "last")))["meta-data"])["public-keys"] == [key, "last"]


@pytest.mark.parametrize("names", ["rr_path", "joliet_path"])
def test_a_disc_reads_back_by_both_its_names(names: str, tmp_path: Path) -> None:
    contents = finalize(spec(name="web1", ssh_keys=KEYS, user_data="#cloud-config\n" + "# é\n" * 40_000))
    seed.make(tmp_path / "seed.iso", contents)
    assert read_disc(tmp_path / "seed.iso", names) == contents


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
    assert read_disc(path, "rr_path") == {"meta-data": b"new"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["seed.iso"]
