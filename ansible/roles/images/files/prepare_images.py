#!/usr/bin/env python3
"""Check base images on the controller before any host opens one. The order comes on stdin and the answer goes to
stdout, both JSON:

    {"images": [{"name", "source", "sha256", "hosts"?}], "hosts": […],
     "base": "…", "cache": "…", "largest": GiB, "check": …}
    {"images": [{"name", "path", "file", "sha256", "hosts", "manifest"}], "fetched": ["…"]}

An image is never opened by QEMU here: a qcow2 file can name other files that whoever opens it would read. Its header is
read by `aetherscale_protocol.disk_images`, as CLI and agents read it, and such files are refused.
"""

import hashlib
import json
import os
import re
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# From the checkout that this lies in: the Python that runs Ansible need not have aetherscale.
sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "protocol"))
from aetherscale_protocol import names
from aetherscale_protocol.disk_images import Disk, ImageError, read_image

GIB = 1 << 30
CHUNK = 1 << 20


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fetch(url: str, cached: Path, wanted: str, largest: int) -> None:
    """Download `url`, of `largest` bytes at most, to `cached`, which appears whole and as `wanted`, or not at all."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    draft = cached.with_name(f"{cached.name}.{os.getpid()}")
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, draft.open("wb") as file:
            while chunk := answer.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
                if file.tell() > largest:
                    raise ImageError(f"{url} has more than {largest} bytes")
        if digest.hexdigest() != wanted:
            raise ImageError(f"{url} has sha256 {digest.hexdigest()}, and should have {wanted}")
        draft.rename(cached)
    except OSError as error:
        raise ImageError(f"can't fetch {url}: {error}") from None
    finally:
        draft.unlink(missing_ok=True)


def check_order(image: Mapping[str, Any], hosts: Sequence[str]) -> None:
    """Refuse an entry of the list that makes no sense."""
    if not names.is_image_name(str(image["name"])):
        raise ImageError(names.IMAGE_RULE)
    if not re.fullmatch("[0-9a-f]{64}", str(image["sha256"])):
        raise ImageError(f"sha256 {image['sha256']!r} is not 64 hexadecimal digits in lower case")
    if unknown := sorted(set(image.get("hosts") or []) - set(hosts)):
        raise ImageError(f"hosts names {', '.join(unknown)}, not in the inventory's group compute")


def prepare(image: Mapping[str, Any], order: Mapping[str, Any], fetched: list[str]) -> dict[str, Any] | None:
    """One image, checked; its download is told in `fetched`. None when `--check` would have to download it first.

    :raise ImageError: when it can't be used.
    """
    check_order(image, order["hosts"])
    source, wanted, largest = str(image["source"]), str(image["sha256"]), int(order["largest"]) * GIB
    path = Path(order["base"], os.path.expanduser(source))
    if is_url := re.match("(https?|ftp|file)://", source) is not None:
        path = Path(order["cache"], wanted)
        if not path.exists():
            fetched.append(f"{image['name']} from {source}")
            if order["check"]:
                return None
            fetch(source, path, wanted, largest)
    if "$" in str(path.resolve()):
        raise ImageError(f"{path} has a $ in its path, which Ansible takes for a variable; rename it")
    if path.exists() and not path.is_file():
        raise ImageError(f"{path} is no file")
    if (found := digest_of(path)) != wanted:
        hint = f"; {path} is damaged, delete it" if is_url else ""
        raise ImageError(f"{path} has sha256 {found}, and should have {wanted}{hint}")
    with path.open("rb") as file:
        disk = read_image(file, largest)
    return describe(image, path, disk, order["hosts"])


def describe(image: Mapping[str, Any], path: Path, disk: Disk, hosts: Sequence[str]) -> dict[str, Any]:
    """What Ansible needs to know of an image."""
    file = f"sha256-{image['sha256']}.{disk.format}"
    manifest = {
        "name": image["name"],
        "file": file,
        "format": disk.format,
        "virtual-size": disk.virtual_size,
        "sha256": image["sha256"],
    }
    return {
        "name": image["name"],
        "path": str(path.resolve()),
        "file": file,
        "sha256": image["sha256"],
        "hosts": image.get("hosts") or hosts,
        "manifest": json.dumps(manifest, indent=2),
    }


def main() -> int:
    """Exit status 0, or 1 when an image can't be used."""
    order = json.load(sys.stdin)
    fetched: list[str] = []
    prepared = []
    for image in order["images"]:
        try:
            prepared.append(prepare(image, order, fetched))
        except (ImageError, OSError) as error:
            print(f"error: image {image['name']}: {error}", file=sys.stderr)
            return 1
    json.dump({"images": [image for image in prepared if image], "fetched": fetched}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
