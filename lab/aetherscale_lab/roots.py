"""Base roots of the hosts and their package repositories: one build per suite, kept in the cache.

A build has two parts: `root/`, the bare Debian every host of that suite lies on, never booted
itself; and `packages/`, a flat apt repository with all that may be installed on top, because the
hosts have no way out.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from aetherscale_lab import paths
from aetherscale_lab.debian import AptState, Source, find_sources, transport_options
from aetherscale_lab.errors import LabError
from aetherscale_lab.shell import check_tools, run_command

# What a bare host has. The product's own dependencies don't belong here: Ansible installs them.
BASE_PACKAGES = [
    "ca-certificates",
    "dbus",
    "iproute2",
    "iputils-ping",
    "netbase",
    "nftables",
    "openssh-server",
    "polkitd",
    "procps",
    "python3",
    "python3-apt",
    "systemd",
    "systemd-sysv",
]

# What can be installed in a host, with everything needed for it.
REPOSITORY_PACKAGES = [
    "acl",
    "dnsmasq-base",
    "nftables",
    "qemu-system-x86",
    "qemu-utils",
    "rabbitmq-server",
]

_MASKED_UNITS = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "systemd-firstboot.service",
    "systemd-networkd-wait-online.service",
]

# A missing suite costs half a minute and 700 MB to build, so documentation stays out.
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")

_FILES = {
    # UseDNS: with an empty resolv.conf a lookup would still cost seconds per login
    "etc/ssh/sshd_config.d/lab.conf": "UseDNS no\nGSSAPIAuthentication no\nPasswordAuthentication no\n",
    "etc/apt/sources.list": "deb [trusted=yes] file:/srv/packages ./\n",
    "etc/apt/apt.conf.d/lab": 'Acquire::Languages "none";\n',
    "etc/resolv.conf": "",
    # empty, not missing: every host fills in its own at its first boot
    "etc/machine-id": "",
    "etc/default/locale": "LANG=C.UTF-8\n",
}
_UNWANTED = (
    "etc/hostname",
    "var/lib/dbus/machine-id",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/apt/sources.list.d/*",
    "etc/ssh/ssh_host_*",
    "var/lib/apt/lists/*Packages*",
    "var/lib/apt/lists/*Release*",
    "var/cache/apt/*.bin",
)
# Count up when this module builds something else from the same inputs.
_RECIPE = 1


def build_key(suite: str, sources: list[Source]) -> str:
    """Hash of everything a build depends on, except for what the mirror has in it today."""
    inputs = [
        suite,
        BASE_PACKAGES,
        REPOSITORY_PACKAGES,
        _MASKED_UNITS,
        _LEFT_OUT,
        sorted(_FILES.items()),
        _UNWANTED,
        _RECIPE,
        [source.line() for source in sources],
    ]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:12]


def build_path(suite: str) -> Path:
    """Where the build of a suite is, or will be."""
    return paths.cache_dir() / f"suite-{suite}-{build_key(suite, find_sources(suite))}"


def prepare_suite(suite: str, *, force: bool = False) -> Path:
    """Return the build of a suite, making it first if it is missing or `force` is set.

    :raise LabError: when it is missing and can't be made.
    """
    build = build_path(suite)
    if build.is_dir() and not force:
        return build
    if paths.inside_isolated_run():
        raise LabError(f"the {suite} root is not built, and there is no network in here", "run prepare first")
    if os.geteuid() != 0:
        raise LabError(f"building the {suite} root needs root", "run it with sudo")
    with paths.locked(paths.cache_dir() / f"suite-{suite}.lock"):
        if force or not build.is_dir():
            _build(suite, build)
    return build


def _build(suite: str, build: Path) -> None:
    check_tools(["mmdebstrap", "apt-get", "dpkg-scanpackages", "unshare", "chroot"])
    sources = find_sources(suite)
    partial = build.with_name(build.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "packages").mkdir(parents=True)
    _bootstrap(suite, partial / "root", sources)
    _fill_repository(partial, sources)
    _configure(partial / "root")
    _refresh_lists(partial)
    old = build.with_name(build.name + ".old")
    if build.is_dir():
        build.rename(old)
    partial.rename(build)
    shutil.rmtree(old, ignore_errors=True)


def _bootstrap(suite: str, root: Path, sources: list[Source]) -> None:
    options = [f"--aptopt={option}" for option in transport_options()]
    options += [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    run_command(
        [
            # its mounts of /dev and /proc must not outlive it when it is killed
            "unshare",
            "--mount",
            "mmdebstrap",
            "--quiet",
            "--mode=root",
            "--variant=minbase",
            f"--include={','.join(BASE_PACKAGES)}",
            *options,
            suite,
            str(root),
            *(source.line() for source in sources),
        ]
    )
    # apt's download sandbox in the hosts has to get through
    root.chmod(0o755)


def _fill_repository(build: Path, sources: list[Source]) -> None:
    """Put the closure of the installable packages, relative to the root, into `packages/`."""
    repository, apt_directory = build / "packages", build / "apt"
    apt = AptState(apt_directory, sources, build / "root/var/lib/dpkg/status")
    apt.update()
    for package in apt.download_closure(REPOSITORY_PACKAGES):
        package.rename(repository / package.name)
    index = run_command(["dpkg-scanpackages", "--multiversion", "."], cwd=repository)
    (repository / "Packages").write_text(index)
    shutil.rmtree(apt_directory)


def _configure(root: Path) -> None:
    """Turn a fresh Debian into the lab's: network by networkd, no timers, ssh without look-ups."""
    for pattern in _UNWANTED:
        for path in root.glob(pattern):
            path.unlink()
    for name, content in _FILES.items():
        path = root / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for directory in ("srv/packages", "var/log/journal"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    systemctl = ["systemctl", f"--root={root}", "--quiet"]
    run_command([*systemctl, "enable", "systemd-networkd.service", "ssh.service"])
    run_command([*systemctl, "mask", *_MASKED_UNITS])


def _refresh_lists(build: Path) -> None:
    """Let the root's apt read its repository, so that an install in a host needs no update first.

    The bind mount lives in a mount namespace of its own and so cannot be left over.
    """
    script = 'mount --bind "$1/packages" "$1/root/srv/packages" && exec chroot "$1/root" apt-get -qq update'
    run_command(["unshare", "--mount", "sh", "-c", script, "sh", str(build)])


def remove_stale_builds() -> list[Path]:
    """Delete builds of other inputs than today's; those under a mounted host of this machine stay."""
    current = {build_path(suite) for suite in _suites_in_cache()}
    mounts = Path("/proc/self/mounts").read_text()
    removed = []
    for path in paths.cache_dir().glob("suite-*-*"):
        if path.is_dir() and path not in current and str(path) not in mounts:
            shutil.rmtree(path)
            removed.append(path)
    return removed


def _suites_in_cache() -> set[str]:
    return {path.name.split("-")[1] for path in paths.cache_dir().glob("suite-*-*")}
