"""Guests of one sector: they boot in a tenth of a second anywhere, say `up` on the console and wait.

`python -m aetherscale_testing.guests DIR` writes them as images with their manifests, for hosts under test.
"""

import hashlib
import json
import sys
from pathlib import Path

SECTOR = 512
ORIGIN = 0x7C00  # where the BIOS puts a boot sector

POLITE, DEAF, LOST = "sector-polite", "sector-deaf", "sector-lost"

_PRINT = bytes.fromhex(
    "31c0"  # xor ax, ax
    "8ed8"  # mov ds, ax
    "be0000"  # mov si, message (filled in)
    "baf803"  # mov dx, 0x3f8: the first serial port
    "ac"  # lodsb
    "84c0"  # test al, al
    "7403"  # jz +3
    "ee"  # out dx, al
    "ebf8"  # jmp lodsb
)
_LISTEN = bytes.fromhex(
    "ba0206"  # mov dx, 0x602: PM1_EN of `-machine pc`
    "b80001"  # mov ax, 0x100: the power button
    "ef"  # out dx, ax
    "fb"  # sti
    "ba0006"  # mov dx, 0x600: PM1_STS
    "ed"  # in ax, dx
    "f6c401"  # test ah, 1
    "7407"  # jz +7
    "ba0406"  # mov dx, 0x604: PM1_CNT
    "b80020"  # mov ax, 0x2000: SLP_EN with the type that means "off"
    "ef"  # out dx, ax
    "f4"  # hlt, until the clock ticks
    "ebed"  # jmp back to PM1_STS
)
_IGNORE = bytes.fromhex("fb f4 ebfd")  # sti; hlt; and again


def finalize_sector(*, hears: bool) -> bytes:
    """The boot sector of a guest that hears the power button, or does not."""
    code = _PRINT + (_LISTEN if hears else _IGNORE)
    message = (ORIGIN + len(code)).to_bytes(2, "little")
    code = code.replace(bytes.fromhex("be0000"), b"\xbe" + message) + b"up\r\n\0"
    return code.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


def write_image(directory: Path, name: str, data: bytes) -> Path:
    """Write an image and then its manifest, as the roll-out does; the image's file."""
    digest = hashlib.sha256(data).hexdigest()
    file = directory / f"sha256-{digest}.raw"
    file.write_bytes(data)
    manifest = {"name": name, "file": file.name, "format": "raw", "virtual-size": len(data), "sha256": digest}
    (directory / f"{name}.json").write_text(json.dumps(manifest))
    return file


def write_images(directory: Path) -> None:
    """Write all of them."""
    write_image(directory, POLITE, finalize_sector(hears=True))
    write_image(directory, DEAF, finalize_sector(hears=False))


if __name__ == "__main__":
    write_images(Path(sys.argv[1]))
