#!/usr/bin/env python3
"""make_secrets.py WHAT DIR USER,USER… [INVENTORY]: see that DIR holds a password for each broker user.

    --make         makes those that are missing, and puts the mode of the others right; their text is never touched
    --check        tells what --make would do
    --rotate       makes each anew
    --mark         notes that the broker knows these users by other passwords, which are to be put out
    --done         notes that what these users opened with their old passwords is closed
    --leave        removes password and client certificate of everybody else whom --make once made one for
    --check-leave  tells what --leave would do

Prints what it did, or would do, a line each: file names, never what is in them. DIR also holds

    .made/      a file per inventory with the users whom --make made a password for, or found one of. Others' files are
                none of our business: they are another inventory's, or the administrator's own
    .rotated/   an empty file for whoever has a new password, or was marked, until --done

--leave belongs where the broker forgets its users: who comes back gets another password than others may know by now.
"""

import os
import secrets
import stat
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import quote, unquote

BYTES = 24  # 32 characters of a URL's alphabet
MADE = ".made"
ROTATED = ".rotated"
CERTIFICATES = "tls/clients"  # as make_certificates.py has them


def mode_of(path: Path) -> int | None:
    """The permission bits of `path`, or None if there is no such file."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None


def ensure_folder(folder: Path, check: bool) -> Iterator[str]:
    """See that the folder is there and nobody else's."""
    mode = mode_of(folder)
    if mode is None:
        yield f"made {folder}"
        if not check:
            folder.mkdir(mode=0o700, parents=True)
    elif mode != 0o700:
        yield f"closed {folder} to others (it had mode {mode:04o})"
        if not check:
            folder.chmod(0o700)


def write(file: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as output:
        output.write(text)
    draft.rename(file)


def ensure_secret(file: Path, check: bool, anew: bool) -> Iterator[str]:
    """See that one password is there (`anew`: another than before) and nobody else's."""
    mode = mode_of(file)
    if mode is None or anew:
        yield f"made {file}"
        if not check:
            mark_rotated(file)
            write(file, secrets.token_urlsafe(BYTES) + "\n")
    elif mode != 0o600:
        yield f"closed {file} to others (it had mode {mode:04o})"
        if not check:
            file.chmod(0o600)


def mark_rotated(file: Path) -> None:
    """Remember that an old password is to be put out; before there is a new one, so that nothing is forgotten."""
    marks = file.parent / ROTATED
    marks.mkdir(mode=0o700, exist_ok=True)
    (marks / file.name).touch(mode=0o600)


class Record:
    """The users whom a password was made for, by inventory; one that is there no more counts no more.

    An inventory is known by its path from the folder, so that both may be moved together.
    """

    def __init__(self, folder: Path, inventory: Path) -> None:
        self._folder = folder.resolve()
        self._inventory = os.path.relpath(inventory.resolve(), self._folder)
        self._file = folder / MADE / (quote(self._inventory, safe="") + ".txt")

    def read(self) -> list[str]:
        """Those of this inventory."""
        return read_names(self._file)

    def read_others(self) -> set[str]:
        """Those of all other inventories."""
        files = [file for file in self._file.parent.glob("*.txt") if file.name != self._file.name]
        alive = [file for file in files if (self._folder / unquote(file.stem)).exists()]
        return {name for file in alive for name in read_names(file)}

    def write(self, users: Collection[str]) -> None:
        """Note that it is these, of this inventory."""
        if sorted(users) != self.read():
            self._file.parent.mkdir(mode=0o700, exist_ok=True)
            lines = [f"# Kept by make_secrets.py: whose passwords were made for {self._inventory}", *sorted(users)]
            write(self._file, "".join(f"{line}\n" for line in lines))


def read_names(file: Path) -> list[str]:
    """The names in one file of the record."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [line for line in lines if line and not line.startswith("#")]


def make(folder: Path, users: Collection[str], inventory: Path, check: bool) -> Iterator[str]:
    """See that there is a password for each of these users."""
    yield from ensure_folder(folder, check)
    if not check:  # before there is a password, so that none is forgotten
        record = Record(folder, inventory)
        record.write({*record.read(), *users})
    for user in users:
        yield from ensure_secret(folder / user, check, anew=False)


def leave(folder: Path, users: Collection[str], inventory: Path, check: bool) -> Iterator[str]:
    """Remove what was made for everybody else, but for those whom another inventory has as well."""
    record = Record(folder, inventory)
    for name in sorted(set(record.read()) - set(users) - record.read_others()):
        for file in (folder / name, folder / CERTIFICATES / f"{name}.pem"):
            if file.exists():
                yield f"removed {file}"
                if not check:
                    file.unlink()
        if not check:
            (folder / ROTATED / name).unlink(missing_ok=True)
    if not check and folder.exists():
        record.write(set(record.read()) & set(users))


def ensure(what: str, folder: Path, users: Collection[str], inventory: Path | None) -> Iterator[str]:
    """Do what the command line asks for; what is done, a line each."""
    if what in ("--make", "--check") and inventory:
        yield from make(folder, users, inventory, check=what == "--check")
    elif what in ("--leave", "--check-leave") and inventory:
        yield from leave(folder, users, inventory, check=what == "--check-leave")
    elif what == "--rotate":
        yield from ensure_folder(folder, check=False)
        for user in users:
            yield from ensure_secret(folder / user, check=False, anew=True)
    elif what == "--mark":
        for user in users:
            mark_rotated(folder / user)
    elif what == "--done":
        for user in users:
            (folder / ROTATED / user).unlink(missing_ok=True)
    else:
        raise ValueError(what)


def main() -> int:
    """Exit status 0, or 1 when DIR can't be written."""
    what, directory, users, *inventory = sys.argv[1:]
    try:
        for line in ensure(what, Path(directory), users.split(","), Path(*inventory) if inventory else None):
            print(line)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
