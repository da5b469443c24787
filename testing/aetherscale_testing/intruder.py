"""Tries, and says how each try ended: `python3 -I - '[["read", "/etc/shadow"], …]' < intruder.py`.

Shipped to hosts and run there as the user whose rights are in question, so: standard library only. It prints a JSON
list: `done`, or why not (`EACCES`, `ENOENT`, …).
"""

import errno
import fcntl
import itertools
import json
import os
import re
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator

TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x2, 0x1000, 0x4000
MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")


def read(path: str) -> None:
    """Read a file's first byte."""
    with open(path, "rb") as file:
        file.read(1)


def write(path: str) -> None:
    """Open a file for writing, and change nothing."""
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def connect(where: str) -> None:
    """Connect to a socket of any type: by its path, or by its name behind a NUL if it is abstract.

    Of abstract ones each type has its own names: to ask for another is refused as if nobody listened.
    """
    refusals = []
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as client:
            try:
                return client.connect(where)
            except OSError as error:
                if error.errno not in (errno.EPROTOTYPE, errno.ECONNREFUSED):
                    raise
                refusals.append(error)
    raise refusals[0]


def send_signal(pid: str) -> None:
    """Send a process the signal that does nothing."""
    os.kill(int(pid), 0)


def take_tap(name: str) -> None:
    """Attach to a tap, as QEMU does."""
    with open("/dev/net/tun", "rb+", buffering=0) as device:
        request = struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        fcntl.ioctl(device, TUNSETIFF, request)


def open_socket(family: str) -> None:
    """Open a socket of this family, as `AF_INET`."""
    socket.socket(getattr(socket, family), socket.SOCK_DGRAM).close()


def start_unit(unit: str) -> None:
    """Ask systemd, over the system bus, to start a unit."""
    done = subprocess.run(
        ["busctl", "call", *MANAGER, "StartUnit", "ss", unit, "replace"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise PermissionError(errno.EACCES, done.stderr.strip())


TRIES = {f.__name__: f for f in (read, write, connect, send_signal, take_tap, open_socket, start_unit)}


def attempt(what: str, where: str) -> str:
    """How a try ended."""
    try:
        TRIES[what](where)
    except OSError as error:
        return errno.errorcode[error.errno or errno.EIO]
    return "done"


def find_sockets() -> Iterator[str]:
    """The sockets to which one can connect, of all that there are in this view of the file system."""
    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys")]
        for path in (os.path.join(folder, name) for name in files):
            try:
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    connect(path)
                    yield path
            except OSError:
                continue


def find_abstract() -> Iterator[str]:
    """What `connect` may call each abstract socket of this network namespace. Source: proc(5), /proc/net/unix.

    A NUL is written there as @: each in a name may be either. More than eight of them are taken to be all the same.
    """
    with open("/proc/net/unix", errors="surrogateescape", newline="\n") as table:
        for name in re.findall("^\\S+:(?: +\\S+){6} @(.*)$", table.read(), re.MULTILINE):
            first, *parts = name.split("@")
            joints = (
                itertools.product("@\0", repeat=len(parts))
                if len(parts) <= 8
                else ("@" * len(parts), "\0" * len(parts))
            )
            for joint in joints:
                yield "\0" + first + "".join(map("".join, zip(joint, parts, strict=True)))


if __name__ == "__main__":
    if sys.argv[1] == "sockets":
        print(json.dumps(sorted(find_sockets())))
    elif sys.argv[1] == "abstract":
        print(json.dumps(sorted(set(find_abstract()))))
    else:
        print(json.dumps([attempt(what, where) for what, where in json.loads(sys.argv[1])]))
