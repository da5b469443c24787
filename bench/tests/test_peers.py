"""What is read of a QEMU's arguments, and how many of those at once a host gets."""

from aetherscale_bench import at_once, peers

OURS = ["-serial", "chardev:console", "-device", "virtio-blk-pci,drive=disk", "-device", "virtio-net-pci,netdev=net"]
LIBVIRTS = [
    *("-device", '{"driver":"virtio-blk-pci","id":"disk0"}', "-netdev", "-device,fd=3"),
    *("-device", '{"driver":"virtio-net-pci","mac":"52:54:00:00:00:01"}', "-device", "isa-serial,chardev=serial0"),
]


def test_devices_are_the_same_however_they_are_written() -> None:
    assert peers.devices(OURS) == peers.devices(LIBVIRTS) == {"virtio-blk-pci": 1, "virtio-net-pci": 1, "isa-serial": 1}


def test_one_device_more_is_another_guest() -> None:
    assert peers.devices([*OURS, "-device", "virtio-blk-pci,drive=seed"]) == peers.devices(LIBVIRTS) + peers.SEED
    assert peers.devices([*OURS, "-device", "piix3-usb-uhci"]) != peers.devices(LIBVIRTS)


def test_those_at_once_are_shared_out() -> None:
    assert at_once.shares(3) == [7, 7, 6]
    assert at_once.shares(1) == [at_once.COUNT]
