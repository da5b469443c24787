"""A guest of one sector, up in a second: says so on its console, and obeys the power button. For QEMU's machine `pc`.

It polls the chipset's power button (PM1 registers at port 0x600, where SeaBIOS puts them) at each tick of the timer.
"""

import hashlib
import json

NAME = "tiny"
SIZE = 1 << 20
READY = "READY"

_SAY = b"".join(bytes((0xB0, letter, 0xEE)) for letter in f"{READY}\n".encode())  # mov al, letter; out dx, al
_PROGRAM = (
    bytes.fromhex("baf803")  # mov dx, 0x3f8: the serial port
    + _SAY
    + bytes.fromhex("ba0206 b80001 ef")  # mov dx, 0x602; mov ax, 0x100; out dx, ax: notice the power button
    + bytes.fromhex("fb f4 ba0006 ed f6c401 74f5")  # sti; hlt; mov dx, 0x600; in ax, dx; test ah, 1; jz to sti
    + bytes.fromhex("ba0406 b80020 ef ebfe")  # mov dx, 0x604; mov ax, 0x2000; out dx, ax: off; jmp $
)


def image() -> bytes:
    """The disk, raw."""
    return _PROGRAM.ljust(510, b"\0") + b"\x55\xaa" + bytes(SIZE - 512)


def file_name() -> str:
    """The name of its file in a host's image folder."""
    return f"sha256-{hashlib.sha256(image()).hexdigest()}.raw"


def manifest(name: str = NAME) -> str:
    """Its manifest in a host's image folder."""
    digest = hashlib.sha256(image()).hexdigest()
    return json.dumps({"name": name, "file": file_name(), "format": "raw", "virtual-size": SIZE, "sha256": digest})
