"""A Debian like those that are built for clouds: systemd, cloud-init, qemu-guest-agent and sshd from Debian's own
packages, on an ext4. For the test that boots the real thing: ready after a minute under TCG, 512 MiB of memory.

It is the hosts' bare Debian 12 with a few packages more, and boots the lab guest's kernel.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from aetherscale_lab import disk, guest, guest_files, paths, roots
from aetherscale_lab.debian import AptState, find_sources
from aetherscale_lab.errors import LabError
from aetherscale_lab.shell import check_tools, run_command

_SUITE = "bookworm"
# Without kmod cloud-init finds no seed disc, for nothing loads isofs.
_PACKAGES = ["cloud-init", "ifupdown", "kmod", "qemu-guest-agent", "sudo", "udev"]
_MODULES = [
    "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio-rng", "button", "evdev", "isofs", "vfat",
    "nls_cp437", "nls_iso8859-1", "nls_ascii", "autofs4",
]  # fmt: skip
_BOOT_MODULES = ["virtio_pci", "virtio_blk"]
_APPEND = "quiet net.ifnames=0 cryptomgr.notests audit=0 apparmor=0 selinux=0 mitigations=off"
_ROOT_MIB = 640

_FILES = {
    "etc/fstab": "/dev/vda2 / ext4 defaults 0 1\n",
    "etc/hostname": "debian\n",
    # On a busy machine a minute and a half is not enough for udev.
    "etc/systemd/system.conf.d/lab.conf": "[Manager]\nDefaultTimeoutStartSec=15min\nDefaultDeviceTimeoutSec=15min\n",
    # One kind of host key, and nothing to generate for languages: minutes under TCG.
    "etc/cloud/cloud.cfg.d/90-lab.cfg": "datasource_list: [NoCloud, None]\nssh_genkeytypes: [ed25519]\nlocale: false\n",
}
_DPKG = "force-unsafe-io\n" + "".join(
    f"path-exclude=/usr/share/{name}/*\n" for name in ("doc", "man", "locale", "i18n")
)
_MASKED_UNITS = [
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-pstore.service",
    "e2scrub_reap.service",
]
_INIT = b"""\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r module; do insmod "/lib/modules/$module"; done < /etc/modules
while ! [ -b /dev/vda2 ]; do usleep 20000; done
mount -t ext4 /dev/vda2 /newroot
umount /proc
mount --move /dev /newroot/dev
exec switch_root /newroot /lib/systemd/systemd
"""


def image_path() -> Path:
    """Where the image is, or will be; its name holds a hash of what it is made from."""
    inputs = [
        roots.build_path(_SUITE).name, guest.image_path().name, _PACKAGES, _MODULES, _BOOT_MODULES, _APPEND, _ROOT_MIB,
        _FILES, _DPKG, _MASKED_UNITS, _INIT.decode(),
    ]  # fmt: skip
    return paths.cache_dir() / f"cloud-{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:12]}.qcow2"


def prepare_cloud(*, force: bool = False) -> Path:
    """Return the image, building it first if it is missing or `force` is set.

    :raise LabError: when it is missing and can't be built.
    """
    image = image_path()
    if image.exists() and not force:
        return image
    if paths.inside_isolated_run():
        raise LabError("the cloud image is not built, and there is no network in here", "run prepare first")
    if os.geteuid() != 0:
        raise LabError("building the cloud image needs root", "run it with sudo")
    check_tools(["apt-get", "chroot", "unshare", "mke2fs", "qemu-img"])
    with paths.locked(paths.cache_dir() / "cloud.lock"):
        if force or not image.exists():
            _build(roots.prepare_suite(_SUITE) / "root", guest.unpack_packages(), image)
    return image


def _build(base: Path, tree: Path, image: Path) -> None:
    work = image.with_name("cloud.partial")
    shutil.rmtree(work, ignore_errors=True)  # of a build that was killed
    work.mkdir()
    try:
        root = work / "root"
        run_command(["cp", "-a", str(base), str(root)])
        _install_packages(root, work / "apt")
        _install_modules(root, tree)
        _configure(root)
        disk.build(tree, image, _finalize_initramfs(tree), _APPEND, disk.Partition("root", _ROOT_MIB, root))
    finally:
        shutil.rmtree(work)


def _install_packages(root: Path, scratch: Path) -> None:
    apt = AptState(scratch, find_sources(_SUITE), root / "var/lib/dpkg/status")
    apt.update()
    (root / "etc/dpkg/dpkg.cfg.d/lab").write_text(_DPKG)
    packages = root / "var/cache/packages"
    packages.mkdir()
    for package in apt.download_closure(_PACKAGES):
        package.rename(packages / package.name)
    # No service is started in a chroot; its mount of /proc can't be left over.
    script = 'mount -t proc proc "$1/proc" && exec chroot "$1" sh -c "dpkg --install /var/cache/packages/*.deb"'
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    unshared = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    run_command([*unshared, "sh", "-c", script, "sh", str(root)], env=environment)
    shutil.rmtree(packages)


def _install_modules(root: Path, tree: Path) -> None:
    version = disk.find_one(tree, "lib/modules/*").name
    for module in disk.find_modules(tree, _MODULES):
        target = root / module.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module, target)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copyfile(tree / "lib/modules" / version / name, root / "lib/modules" / version / name)
    run_command(["chroot", str(root), "/sbin/depmod", version])


def _configure(root: Path) -> None:
    for name, content in _FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    run_command(["systemctl", f"--root={root}", "--quiet", "mask", *_MASKED_UNITS])


def _finalize_initramfs(tree: Path) -> list[guest_files.Entry]:
    """All that it takes to find the disk."""
    return [
        *(guest_files.directory(name) for name in ("proc", "dev", "newroot")),
        guest_files.symlink("bin/sh", "busybox"),
        guest_files.regular_file("bin/busybox", disk.find_one(tree, "bin/busybox").read_bytes(), 0o755),
        guest_files.regular_file("init", _INIT, 0o755),
        *disk.module_entries(tree, _BOOT_MODULES),
    ]
