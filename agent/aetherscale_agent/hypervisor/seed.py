"""A VM's seed disc: what cloud-init in the guest reads at its first boot, as its NoCloud datasource wants it.

A volume labelled `cidata` with four files: https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html
All YAML is written as JSON, which is YAML: nothing that an operator wrote can become more than the value it is.
"""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import pycdlib

from aetherscale_agent.hypervisor import files
from aetherscale_protocol.options import CreateVm

LABEL = "cidata"

FINISHED = "aetherscale: cloud-init finished"
"""What the guest prints on its console when cloud-init is done (see `reached`)."""

NO_USER_DATA = b"#cloud-config\n{}\n"

_CLOUD_CONFIG = b"#cloud-config\n"


def finalize_files(vm_id: str, spec: CreateVm, instance: str, mac: str) -> Mapping[str, bytes]:
    """The files of a VM's seed disc, by name. `instance` is another one for each VM that ever had this id."""
    return {
        "meta-data": _yaml(
            {
                "instance-id": instance,
                "local-hostname": spec.name or vm_id,
                "public-keys": list(spec.ssh_keys),
            }
        ),
        "user-data": spec.user_data.encode() or NO_USER_DATA,
        # The operator's user-data goes before it. Images refuse root by default, and name their own user each.
        "vendor-data": _CLOUD_CONFIG + _yaml({"disable_root": False, "final_message": f"{FINISHED} after $UPTIME s"}),
        "network-config": _yaml({"version": 2, "ethernets": {"eth0": _ethernet(mac)}}),
    }


def _ethernet(mac: str) -> dict[str, object]:
    # set-name: cloud-init writes the interface's name into ifupdown's and networkd's files, and would not find it else.
    return {"match": {"macaddress": mac}, "set-name": "eth0", "dhcp4": True}


def _yaml(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def make(path: Path, contents: Mapping[str, bytes]) -> None:
    """Make a seed disc whole, or leave what is there.

    :raise OSError: when it can't be written.
    """
    new = path.with_suffix(".new")
    new.write_bytes(_pack(contents))
    new.chmod(0o644)
    files.sync(new)
    new.rename(path)
    files.sync(path.parent)


def _pack(contents: Mapping[str, bytes]) -> bytes:
    """An ISO 9660 image; Linux reads its names as Rock Ridge has them, others as Joliet has."""
    disc, packed = pycdlib.PyCdlib(), BytesIO()
    disc.new(vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    try:
        for number, (name, data) in enumerate(contents.items()):
            disc.add_fp(BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
        disc.write_fp(packed)
    finally:
        disc.close()
    return packed.getvalue()
