"""The lab's guest image: a small Linux that boots in seconds and says on its console what it sees.

Made of Debian packages without root, mounts or loop devices: SYSLINUX, a kernel for clouds, and an
initramfs of busybox. See docs/lab.md for what it prints and answers.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from aetherscale_lab import disk, guest_files, paths
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
    "libglib2.0-0",
    "libgmp10",
    "libnuma1",
    "libpcre2-8-0",
    "libtomcrypt1",
    "libtommath1",
    "libudev1",
    "liburing2",
    "mtools",
    "openssh-sftp-server",
    "qemu-guest-agent",
    "syslinux",
    "syslinux-common",
    "zlib1g",
]
_KERNEL_META, _KERNEL_PREFIX = "linux-image-cloud-amd64", "linux-image-"

_MODULES = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
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
    "libglib-2.0.so.0",
    "libgmodule-2.0.so.0",
    "libgmp.so.10",
    "libm.so.6",
    "libnss_files.so.2",
    "libnuma.so.1",
    "libpcre2-8.so.0",
    "libtomcrypt.so.1",
    "libtommath.so.1",
    "libudev.so.1",
    "liburing.so.2",
    "libz.so.1",
]

_EMPTY_DIRECTORIES = ("proc", "sys", "dev", "run", "data", "boot", "tmp", "sbin", "var/log", "root")

# root, password "aetherscale": this image is for tests and holds no secret
_PASSWORD_HASH = "$6$aetherscale$Ee9/LZmb4zpod5gyu7Pgye0xu3GDkoJj3fTprP3ydbGJ/b2ZqZl.T8gE.rGjZ7ro58ULBYKGhH5.5u8Vs8DXk0"
_DATA_MIB = 32
_WORD = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DATA = Path(__file__).parent / "guest_data"
_APPEND = "quiet cryptomgr.notests audit=0 apparmor=0 mitigations=off"
_RECIPE = 3


def image_path() -> Path:
    """Where the image is, or will be; its name holds a hash of what it is made from."""
    return paths.cache_dir() / f"guest-{_build_key(find_sources(_SUITE))}.qcow2"


def _build_key(sources: Sequence[Source]) -> str:
    texts = [path.read_text() for path in sorted(_DATA.iterdir())]
    lines = [source.line() for source in sources]
    inputs = [texts, lines, _PACKAGES, _MODULES, _LIBRARIES, _DATA_MIB, _APPEND, _RECIPE]
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
            tree = unpack_packages(force=force)
            disk.build(tree, image, _finalize_initramfs(tree), _APPEND, disk.Partition("data", _DATA_MIB))
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
        disk.copy_into_boot(_package_tree(), raw, {"word": content})
        disk.compress(raw, out)


def _package_tree() -> Path:
    """The unpacked packages; on machines that got only the image, the installed programs do as well."""
    return paths.cache_dir() / f"guest-packages-{hashlib.sha256(repr(_PACKAGES).encode()).hexdigest()[:12]}"


def unpack_packages(*, force: bool = False) -> Path:
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


def _finalize_initramfs(tree: Path) -> list[guest_files.Entry]:
    """All that the guest's initramfs holds."""
    make_file, link = guest_files.regular_file, guest_files.symlink
    entries = [guest_files.directory(path) for path in _EMPTY_DIRECTORIES]
    entries += [link("bin/sh", "busybox"), link("var/run", "/run"), link("etc/dropbear", "/data/dropbear")]
    entries += [
        make_file("bin/busybox", disk.find_one(tree, "bin/busybox").read_bytes(), 0o755),
        make_file("bin/dropbear", disk.find_one(tree, "usr/sbin/dropbear").read_bytes(), 0o755),
        make_file("bin/qemu-ga", disk.find_one(tree, "usr/sbin/qemu-ga").read_bytes(), 0o755),
        make_file("init", (_DATA / "init").read_bytes(), 0o755),
        make_file("etc/inittab", (_DATA / "inittab").read_bytes()),
        make_file("etc/udhcpc.sh", (_DATA / "udhcpc.sh").read_bytes(), 0o755),
        make_file("etc/seed.sh", (_DATA / "seed.sh").read_bytes()),
        # where dropbear looks for it, which scp of OpenSSH 9 and later wants
        make_file("usr/lib/sftp-server", disk.find_one(tree, "usr/lib/openssh/sftp-server").read_bytes(), 0o755),
        make_file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
        make_file("etc/group", b"root:x:0:\n"),
        make_file("etc/shadow", f"root:{_PASSWORD_HASH}:19000:0:99999:7:::\n".encode(), 0o600),
        make_file("etc/shells", b"/bin/sh\n"),
        make_file("etc/nsswitch.conf", b"passwd: files\nshadow: files\ngroup: files\nhosts: files dns\n"),
        make_file("etc/issue", b"aetherscale lab guest\n\n"),
        # busybox acpid runs this when the power button is pressed
        make_file("etc/acpi/PWRF/00000080", b"#!/bin/sh\npoweroff\n", 0o755),
    ]
    return entries + _library_entries(tree) + disk.module_entries(tree, _MODULES)


def _library_entries(tree: Path) -> list[guest_files.Entry]:
    loader = disk.find_one(tree, "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2").read_bytes()
    entries = [guest_files.regular_file("lib64/ld-linux-x86-64.so.2", loader, 0o755)]
    for name in _LIBRARIES:
        library = disk.find_one(tree, f"**/x86_64-linux-gnu/{name}")
        entries.append(guest_files.regular_file(f"lib/x86_64-linux-gnu/{name}", library.read_bytes()))
    return entries
