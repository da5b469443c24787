"""The lab's guest image: a small Linux that boots in seconds and says on its console what it sees.

Made of Debian packages without root, mounts or loop devices: SYSLINUX, a kernel for clouds, and an
initramfs of busybox. See docs/lab.md for what it prints and answers.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from aetherscale_lab import guest_files, paths
from aetherscale_lab.debian import AptState, Source, find_sources
from aetherscale_lab.errors import LabError
from aetherscale_lab.shell import check_tools, run_command

# One suite on every build machine, so that the same image comes out.
_SUITE = "bookworm"
_PACKAGES = [
    "busybox-static",
    "dropbear-bin",
    "libc6",
    "libcrypt1",
    "libgmp10",
    "libtomcrypt1",
    "libtommath1",
    "mtools",
    "openssh-sftp-server",
    "syslinux",
    "syslinux-common",
    "zlib1g",
]
_KERNEL_META, _KERNEL_PREFIX = "linux-image-cloud-amd64", "linux-image-"

_MODULES = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "button",
    "evdev",
    "isofs",
    "vfat",
    "nls_cp437",
    "nls_iso8859-1",
    "nls_ascii",
]
_LIBRARIES = [
    "libc.so.6",
    "libcrypt.so.1",
    "libgmp.so.10",
    "libnss_files.so.2",
    "libtomcrypt.so.1",
    "libtommath.so.1",
    "libz.so.1",
]

_EMPTY_DIRECTORIES = ("proc", "sys", "dev", "run", "data", "boot", "tmp", "sbin", "var/log", "root")

# root, password "aetherscale": this image is for tests and holds no secret
_PASSWORD_HASH = "$6$aetherscale$Ee9/LZmb4zpod5gyu7Pgye0xu3GDkoJj3fTprP3ydbGJ/b2ZqZl.T8gE.rGjZ7ro58ULBYKGhH5.5u8Vs8DXk0"
_BOOT_SLACK_MIB = 4
_DATA_MIB = 32
_WORD = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DATA = Path(__file__).parent / "guest_data"
_RECIPE = 2


def image_path() -> Path:
    """Where the image is, or will be; its name holds a hash of what it is made from."""
    return paths.cache_dir() / f"guest-{_build_key(find_sources(_SUITE))}.qcow2"


def _build_key(sources: Sequence[Source]) -> str:
    texts = [path.read_text() for path in sorted(_DATA.iterdir())]
    lines = [source.line() for source in sources]
    inputs = [texts, lines, _PACKAGES, _MODULES, _LIBRARIES, _DATA_MIB, _BOOT_SLACK_MIB, _RECIPE]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:12]


def prepare_guest(*, force: bool = False) -> Path:
    """Return the guest image, building it first if it is missing or `force` is set.

    :raise LabError: when it is missing and can't be built.
    """
    image = image_path()
    if image.exists() and not force:
        return image
    if paths.inside_isolated_run():
        raise LabError("the guest image is not built, and there is no network in here", "run prepare first")
    check_tools(["apt-get", "dpkg-deb", "mke2fs", "qemu-img"])
    with paths.locked(paths.cache_dir() / "guest.lock"):
        if force or not image.exists():
            tree = _unpack_packages(force)
            _build_image(tree, image)
    return image


def with_word(image: Path, word: str, out: Path) -> None:
    """Copy an image so that the guest prints `GUEST: word WORD` when it boots.

    :raise LabError: when the word isn't 1 to 64 letters, digits, dots, dashes or underscores.
    """
    if not _WORD.fullmatch(word):
        raise LabError(f"{word!r} is no usable word", "1 to 64 letters, digits, dots, dashes or underscores")
    check_tools(["qemu-img"])
    with tempfile.TemporaryDirectory(prefix="aetherscale-guest-") as work:
        raw, content = Path(work, "disk.raw"), Path(work, "word")
        run_command(["qemu-img", "convert", "-O", "raw", str(image), str(raw)])
        content.write_text(word + "\n")
        _copy_into_boot(_package_tree(), raw, {"word": content})
        _compress(raw, out)


def _package_tree() -> Path:
    """The unpacked packages; on machines that got only the image, the installed programs do as well."""
    return paths.cache_dir() / f"guest-packages-{hashlib.sha256(repr(_PACKAGES).encode()).hexdigest()[:12]}"


def _unpack_packages(force: bool) -> Path:
    """Download the image's packages and unpack them, beside this machine's own and without root."""
    tree = _package_tree()
    if tree.is_dir() and not force:
        return tree
    partial = tree.with_name(tree.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    apt = AptState(partial / "apt", find_sources(_SUITE))
    apt.update()
    kernel = apt.first_dependency(_KERNEL_META, _KERNEL_PREFIX)
    for package in apt.download([*_PACKAGES, kernel], partial / "debs"):
        run_command(["dpkg-deb", "--extract", str(package), str(partial)])
    for done_with in ("apt", "debs"):
        shutil.rmtree(partial / done_with)
    shutil.rmtree(tree, ignore_errors=True)
    partial.rename(tree)
    return tree


def _build_image(tree: Path, image: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="aetherscale-guest-") as directory:
        work = Path(directory)
        initrd, kernel, raw = work / "initrd", _find_one(tree, "boot/vmlinuz-*"), work / "disk.raw"
        archive = guest_files.pack_initramfs(_finalize_initramfs(tree))
        # no time stamp: the same inputs make the same bytes
        initrd.write_bytes(gzip.compress(archive, 6, mtime=0))
        boot_mib = (initrd.stat().st_size + kernel.stat().st_size) // guest_files.MIB + _BOOT_SLACK_MIB
        _make_disk(tree, raw, boot_mib)
        configuration = _DATA / "syslinux.cfg"
        _copy_into_boot(tree, raw, {"syslinux.cfg": configuration, "vmlinuz": kernel, "initrd": initrd})
        _make_data_partition(raw, boot_mib, work / "data.ext4")
        _compress(raw, image)


def _find_one(tree: Path, pattern: str) -> Path:
    found = sorted(tree.glob(pattern))
    if not found:
        raise LabError(f"no {pattern} in the guest's packages", "build them again: prepare --force")
    return found[-1]


def _finalize_initramfs(tree: Path) -> list[guest_files.Entry]:
    """All that the guest's initramfs holds."""
    make_file, link = guest_files.regular_file, guest_files.symlink
    entries = [guest_files.directory(path) for path in _EMPTY_DIRECTORIES]
    entries += [link("bin/sh", "busybox"), link("var/run", "/run"), link("etc/dropbear", "/data/dropbear")]
    entries += [
        make_file("bin/busybox", _find_one(tree, "bin/busybox").read_bytes(), 0o755),
        make_file("bin/dropbear", _find_one(tree, "usr/sbin/dropbear").read_bytes(), 0o755),
        make_file("init", (_DATA / "init").read_bytes(), 0o755),
        make_file("etc/inittab", (_DATA / "inittab").read_bytes()),
        make_file("etc/udhcpc.sh", (_DATA / "udhcpc.sh").read_bytes(), 0o755),
        make_file("etc/seed.sh", (_DATA / "seed.sh").read_bytes()),
        # where dropbear looks for it, which scp of OpenSSH 9 and later wants
        make_file("usr/lib/sftp-server", _find_one(tree, "usr/lib/openssh/sftp-server").read_bytes(), 0o755),
        make_file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
        make_file("etc/group", b"root:x:0:\n"),
        make_file("etc/shadow", f"root:{_PASSWORD_HASH}:19000:0:99999:7:::\n".encode(), 0o600),
        make_file("etc/shells", b"/bin/sh\n"),
        make_file("etc/nsswitch.conf", b"passwd: files\nshadow: files\ngroup: files\nhosts: files dns\n"),
        make_file("etc/issue", b"aetherscale lab guest\n\n"),
        # busybox acpid runs this when the power button is pressed
        make_file("etc/acpi/PWRF/00000080", b"#!/bin/sh\npoweroff\n", 0o755),
    ]
    return entries + _library_entries(tree) + _module_entries(tree)


def _library_entries(tree: Path) -> list[guest_files.Entry]:
    loader = _find_one(tree, "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2").read_bytes()
    entries = [guest_files.regular_file("lib64/ld-linux-x86-64.so.2", loader, 0o755)]
    for name in _LIBRARIES:
        library = _find_one(tree, f"**/x86_64-linux-gnu/{name}")
        entries.append(guest_files.regular_file(f"lib/x86_64-linux-gnu/{name}", library.read_bytes()))
    return entries


def _module_entries(tree: Path) -> list[guest_files.Entry]:
    """The kernel modules the guest needs, and the list of them in loading order."""
    files = {guest_files.module_name(path.name): path for path in tree.glob("lib/modules/*/kernel/**/*.ko")}
    needs: dict[str, list[str]] = {}
    pending = [name.replace("-", "_") for name in _MODULES]
    while pending:
        name = pending.pop()
        if name in files and name not in needs:
            needs[name] = guest_files.module_dependencies(files[name].read_bytes())
            pending += needs[name]
    order = guest_files.load_order(_MODULES, needs)
    listing = "".join(f"{files[name].name}\n" for name in order)
    entries = [guest_files.regular_file(f"lib/modules/{files[n].name}", files[n].read_bytes()) for n in order]
    return [*entries, guest_files.regular_file("etc/modules", listing.encode())]


def _make_disk(tree: Path, raw: Path, boot_mib: int) -> None:
    """A disk with its partition table and a bootable, otherwise empty FAT partition."""
    boot_code = _find_one(tree, "usr/lib/syslinux/mbr/mbr.bin").read_bytes()
    with raw.open("wb") as disk:
        disk.write(guest_files.pack_boot_record(boot_code, boot_mib, _DATA_MIB))
        disk.truncate((1 + boot_mib + _DATA_MIB) * guest_files.MIB)
    sectors = guest_files.MIB // guest_files.SECTOR
    geometry = ["-T", str(boot_mib * sectors), "-h", "16", "-s", "63", "-H", str(sectors)]
    environment = _tools_environment(tree)
    run_command(["mformat", "-i", f"{raw}@@1M", *geometry, "-v", "GUEST", "::"], env=environment)
    run_command(["syslinux", "--install", "--offset", str(guest_files.MIB), str(raw)], env=environment)


def _copy_into_boot(tree: Path, raw: Path, files: dict[str, Path]) -> None:
    environment = _tools_environment(tree)
    for name, source in files.items():
        run_command(["mcopy", "-o", "-i", f"{raw}@@1M", str(source), f"::/{name}"], env=environment)


def _tools_environment(tree: Path) -> dict[str, str]:
    """mtools and syslinux from the unpacked packages, so that they need not be installed."""
    search = f"{tree / 'usr/bin'}:{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"
    return {**os.environ, "PATH": search, "MTOOLS_SKIP_CHECK": "1"}


def _make_data_partition(raw: Path, boot_mib: int, scratch: Path) -> None:
    with scratch.open("wb") as partition:
        partition.truncate(_DATA_MIB * guest_files.MIB)
    run_command(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-L", "data", str(scratch)])
    with raw.open("r+b") as disk, scratch.open("rb") as partition:
        disk.seek((1 + boot_mib) * guest_files.MIB)
        shutil.copyfileobj(partition, disk)


def _compress(raw: Path, out: Path) -> None:
    """Write `out` whole or not at all."""
    partial = out.with_name(out.name + ".partial")
    run_command(["qemu-img", "convert", "-c", "-O", "qcow2", str(raw), str(partial)])
    partial.rename(out)
