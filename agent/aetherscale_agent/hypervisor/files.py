"""Making and removing what a VM has on its host's file systems. All of it may block for a moment.

The walls between VMs are the directories of mode 0700 around all homes and all run-time directories; behind
them a VM's own are open to anyone, because its user of the day is not known before systemd starts it.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from aetherscale_agent.hypervisor.config import Layout, VmPaths
from aetherscale_protocol import names

WALL = 0o700
HOME = 0o755  #: a VM writes the files that it finds there, and can make none
RUN = 0o777  #: QEMU makes its sockets there


def make_walls(layout: Layout) -> None:
    """Make the directories that hold all VMs'."""
    for wall in (layout.homes, layout.runs, layout.envs):
        _make_dir(wall, WALL)


def make_dirs(layout: Layout, paths: VmPaths) -> None:
    """Make a VM's home and its run-time directory."""
    make_walls(layout)
    _make_dir(paths.home, HOME)
    _make_dir(paths.run, RUN)


def _make_dir(path: Path, mode: int) -> None:
    path.mkdir(mode=mode, parents=False, exist_ok=True)
    path.chmod(mode)


def prepare_start(layout: Layout, paths: VmPaths, env: str, net: str | None = None) -> None:
    """Write QEMU's arguments, and what `vm-net` is told, and clear away the sockets of the run before."""
    make_dirs(layout, paths)
    for socket in (paths.agent_monitor, paths.stop_monitor, paths.console_socket, paths.guest_agent):
        socket.unlink(missing_ok=True)
    paths.env.write_text(env)
    if net is None:
        paths.net.unlink(missing_ok=True)
    else:
        paths.net.write_text(net)


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(data)
    Path(file.name).rename(path)


@contextlib.contextmanager
def own_socket(path: Path) -> Iterator[str]:
    """What to connect to for the socket that lies there, and for none that a link there leads to: another VM's, say.

    QEMU makes its sockets itself, and a guest may have broken out into it.

    :raise OSError: when there is nothing. Connecting to a link is refused.
    """
    file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)


def sync(path: Path) -> None:
    """Have a file, or a directory's entries, on the disk itself."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def remove(layout: Layout, vm_id: str) -> None:
    """Remove all files of a VM; nothing happens if there are none."""
    paths = layout.vm(vm_id)
    paths.env.unlink(missing_ok=True)
    paths.boot.unlink(missing_ok=True)
    _remove_tree(paths.run)
    _remove_tree(paths.home)


def _remove_tree(path: Path) -> None:
    for attempt in (1, 2):
        try:
            return shutil.rmtree(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            # Its console may have been cut in this very moment; a second time it is not.
            if attempt == 2 or error.errno != errno.ENOTEMPTY:
                raise
    return None


def find_ids(layout: Layout) -> set[str]:
    """The VMs of which there is any file."""
    found = {*_entries(layout.homes), *_entries(layout.runs), *(e.removesuffix(".env") for e in _entries(layout.envs))}
    return {name for name in found if names.is_vm_id(name)}


def _entries(directory: Path) -> Iterable[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
