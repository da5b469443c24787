"""The agent's memory: one file per VM, written atomically and synced. There is no other database.

A record says what was promised, not what is: what is, systemd and the disk say (see `reconcile`).
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from aetherscale_protocol.names import is_vm_id
from aetherscale_protocol.options import CreateVm

HOST = "this-host"
"""The file of what is no VM's; no VM is called so, because of the hyphen."""

Phase = Literal[
    "claimed",  # the id is claimed; its binding may or may not exist: undone at restart
    "bound",  # the directory names this host; the VM is being built, or must be
    "ready",  # built: a VM
    "deleting",  # being removed, or must be
    "gone",  # a tombstone: no VM (any more), kept so that a late copy of its create meets it
]


class Ending(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a late copy of a create is answered once its id is a tombstone. `request_id`: who ended it."""

    code: str
    reason: str
    hint: str | None = None
    reasons: dict[str, str] = {}
    request_id: str = ""


class Done(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A command that was begun on a VM, kept until its deadline, so that it runs once however often it is asked."""

    request_id: str
    until: float
    finished: bool = False
    ending: Ending | None = None  #: what it was refused with, if it failed

    def but(self, **changes: object) -> "Done":
        """The same with some fields changed."""
        return msgspec.structs.replace(self, **changes)


class Past(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A create of an id that is over, and what a late copy of it is answered; needed until `until`."""

    request_id: str
    until: float
    ending: Ending


class Altering(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A change of a VM that was begun and has not come to its end, with all that is needed to do it again."""

    verb: str  #: as in `lifecycle.TABLE`
    request_id: str = ""
    deadline: float = 0.0  #: 0: none
    cpus: int | None = None
    memory: int | None = None
    disk: int | None = None
    snapshot: str = ""
    expires: float = 0.0
    off: bool = False  #: of a reboot: the guest was shut down, and is to be started

    def but(self, **changes: object) -> "Altering":
        """The same with some fields changed."""
        return msgspec.structs.replace(self, **changes)


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One VM, or what is left of one. Times in seconds since the epoch."""

    vm_id: str
    request_id: str
    spec: CreateVm
    deadline: float
    created: float
    phase: Phase
    bound: bool = False  #: the directory names this host for it, or may
    wanted: Literal["on", "off"] = "on"
    since: float = 0.0
    boot_id: str = ""  #: of the host when the VM was last started
    pulled: bool = False  #: it is being stopped by pulling its plug
    start_by: float = 0.0  #: the deadline of a start that has not come to its end; 0: there is none
    reason: str = ""
    expires: float = 0.0  #: when its time to live is over; 0: never
    image_sha256: str = ""  #: of the image that its disk is made on; '' if an older agent made it
    paused: bool = False  #: by a command
    resized: bool = False  #: its cores or memory may be others than its create asked for
    altering: Altering | None = None
    ending: Ending | None = None
    done: tuple[Done, ...] = ()  #: oldest first
    past: tuple[Past, ...] = ()  #: creates of this id that are over (see `succession`); oldest first

    @property
    def instance(self) -> str:
        """What tells this VM from others that had its id before, or will."""
        return f"{self.vm_id}-{self.request_id[:8]}"

    def but(self, **changes: object) -> "Record":
        """The same record with some fields changed."""
        return msgspec.structs.replace(self, **changes)


class HostRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked of the host itself, not of a VM."""

    done: tuple[Done, ...] = ()  #: oldest first


class JournalError(Exception):
    """The journal could not be written: disk full, or read-only."""


Warn = Callable[[str], None]


class Journal:
    """The records of this host, in a folder of their own, which only the agent can write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._marks: dict[str, bool] = {}
        #: a write whose waiter was cancelled goes on in its thread, beside the VM's next one
        self._locks = [threading.Lock() for _ in range(16)]

    def load(self, warn: Warn) -> dict[str, Record]:
        """All records. A file that is none is set aside, with a warning, never deleted."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        records: dict[str, Record] = {}
        for path in sorted(self._folder.iterdir()):
            if path.suffix == ".new":  # a write that a crash cut short; the old file stands beside it
                path.unlink()
            elif path.suffix == ".json" and is_vm_id(path.stem):
                record = self._read(path, warn)
                if record is not None:
                    records[record.vm_id] = record
        return records

    def _read(self, path: Path, warn: Warn) -> Record | None:
        try:
            record = msgspec.json.decode(path.read_bytes(), type=Record)
            if record.vm_id != path.stem:
                raise ValueError(f"it speaks of {record.vm_id}")
            return record
        except OSError as error:
            warn(f"journal of VM {path.stem} can't be read ({error.strerror}): its VM is not commanded")
        except ValueError as error:
            broken = path.with_suffix(f".broken-{time.time_ns()}")
            path.rename(broken)
            warn(f"journal of VM {path.stem} can't be read ({error}); set aside as {broken}")
        return None

    async def put(self, record: Record) -> None:
        """Write a record; when this returns it survives a power loss.

        :raise JournalError: when it could not be written; the old record stands.
        """
        await asyncio.to_thread(self._write, record)

    def _write(self, record: Record) -> None:
        self._write_file(record.vm_id, record)

    def _write_file(self, name: str, record: Struct) -> None:
        path = self._folder / f"{name}.json"
        draft = path.with_suffix(".new")
        with self._lock(name):
            try:
                with draft.open("wb") as file:
                    file.write(msgspec.json.encode(record))
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
                self._sync_folder()
            except OSError as error:
                with contextlib.suppress(OSError):
                    draft.unlink(missing_ok=True)
                raise JournalError(f"can't write {path}: {error.strerror}") from error

    async def drop(self, vm_id: str) -> None:
        """Forget a VM.

        :raise JournalError: when its file could not be removed.
        """
        await asyncio.to_thread(self._unlink, vm_id)

    def _unlink(self, vm_id: str) -> None:
        path = self._folder / f"{vm_id}.json"
        with self._lock(vm_id):
            try:
                path.unlink(missing_ok=True)
                self._sync_folder()
            except OSError as error:
                raise JournalError(f"can't remove {path}: {error.strerror}") from error

    # What was asked of the host itself

    def load_host(self, warn: Warn) -> HostRecord:
        """What was asked of the host itself. A file that is none is passed over, with a warning."""
        try:
            return msgspec.json.decode((self._folder / f"{HOST}.json").read_bytes(), type=HostRecord)
        except FileNotFoundError:
            return HostRecord()
        except (OSError, ValueError) as error:
            warn(f"the record of what was asked of this host can't be read ({error}): a new one is begun")
            return HostRecord()

    async def put_host(self, record: HostRecord) -> None:
        """Write it; when this returns it survives a power loss.

        :raise JournalError: when it could not be written; the old record stands.
        """
        await asyncio.to_thread(self._write_file, HOST, record)

    # Marks: facts about the host itself, each an empty file

    def has_mark(self, name: str) -> bool:
        """Whether this was noted, by this agent or one before it."""
        if name not in self._marks:
            self._marks[name] = (self._folder / name).exists()
        return self._marks[name]

    def mark(self, name: str) -> bool:
        """Note something, so that it survives a power loss; False where that can't be: then for this agent's life."""
        self._marks[name] = True
        with contextlib.suppress(OSError):
            (self._folder / name).touch()
            self._sync_folder()
            return True
        return False

    def unmark(self, name: str) -> bool:
        """It holds no more; False where that can't be written: for this agent's life."""
        self._marks[name] = False
        with contextlib.suppress(OSError):
            (self._folder / name).unlink(missing_ok=True)
            self._sync_folder()
            return True
        return False

    def _lock(self, name: str) -> threading.Lock:
        return self._locks[hash(name) % len(self._locks)]

    def _sync_folder(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
