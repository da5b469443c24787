"""The base images of this host: which VMs stand on which, and deleting those on which none does.

A VM stands on a file, not on a name: an image that was imported anew under its name, with other content, is another.
"""

from collections.abc import Mapping

from aetherscale_agent.journal import Record
from aetherscale_agent.ports import HypervisorError, Image, ImageMissing, Images
from aetherscale_agent.vm import Vm
from aetherscale_protocol.answers import ImageDone, ImageRow
from aetherscale_protocol.errors import Refused, image_unknown
from aetherscale_protocol.options import CreateVm

MOST_NAMED = 10
"""How many VMs a refusal names at most."""


def base_of(record: Record, image: Image | None) -> Image:
    """The image that a VM's disk is made on: the one of its name, if it is still the one that was promised.

    :raise ImageMissing: when it is gone, or another one.
    """
    name = record.spec.image
    if image is None:
        raise ImageMissing(f'Image "{name}" does not exist (any more)')
    if record.image_sha256 not in ("", image.sha256) and record.spec.clone_of is None:
        raise ImageMissing(f'Image "{name}" was replaced by another one while the VM was being made')
    return image


def wanted(images: Images, spec: CreateVm, source: Vm | None) -> Image | None:
    """The image that a VM is to stand on, if it is here: the one of its name, or that of the VM it is a clone of."""
    digest = source.record.image_sha256 if source is not None else ""
    return images.find(digest, spec.image) if digest else images.list().get(spec.image)


def users(image: Image, vms: Mapping[str, Vm], in_hand: Mapping[str, CreateVm]) -> dict[str, str]:
    """The ids of the VMs that need an image's file, and how each is called; those in hand included."""
    needing = {vm_id: vm.record.spec for vm_id, vm in vms.items() if vm.exists and _stands_on(vm.record, image)}
    wanting = {vm_id: spec for vm_id, spec in in_hand.items() if spec.image == image.name}
    return {vm_id: spec.name or vm_id for vm_id, spec in sorted({**wanting, **needing}.items())}


def _stands_on(record: Record, image: Image) -> bool:
    if not record.image_sha256:  # made by an agent that did not note it
        return record.spec.image == image.name
    return record.image_sha256 == image.sha256


def rows(images: Images, vms: Mapping[str, Vm], in_hand: Mapping[str, CreateVm]) -> list[ImageRow]:
    """A row for each image, by name."""
    return [
        ImageRow(
            image=name,
            format=image.format,
            virtual_size=image.virtual_size,
            size=image.size,
            sha256=image.sha256,
            used_by=list(users(image, vms, in_hand)),
        )
        for name, image in sorted(images.list().items())
    ]


def delete(host: str, name: str, images: Images, vms: Mapping[str, Vm], in_hand: Mapping[str, CreateVm]) -> ImageDone:
    """Delete an image that no VM needs. Nothing gives way in here: no create can come between the look and the deed.

    :raise Refused: `image-unknown`, `image-in-use`: nothing was changed; `failed`.
    """
    image = images.list().get(name)
    if image is None:
        raise Refused("image-unknown", image_unknown(name), "list-images shows the images of each host")
    if called := list(users(image, vms, in_hand).values()):
        raise _in_use(host, name, called)
    unsure = any(vm.exists and not vm.record.image_sha256 for vm in vms.values())
    try:
        images.remove(name, keep_file=unsure)
    except HypervisorError as error:
        raise Refused("failed", f"delete-image: {error}", "repeat it") from None
    return ImageDone(status="deleted", image=name)


def _in_use(host: str, name: str, called: list[str]) -> Refused:
    more = f" and {len(called) - MOST_NAMED} more" if len(called) > MOST_NAMED else ""
    what = "VM" if len(called) == 1 else "VMs"
    reason = f'Image "{name}" is used on host {host} by {what} {", ".join(called[:MOST_NAMED])}{more}'
    return Refused("image-in-use", reason, "delete these VMs first")
