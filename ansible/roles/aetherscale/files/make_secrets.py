#!/usr/bin/env python3
"""make_secrets.py --make|--check|--rotate|--done DIR USER,USER…: see that DIR holds a password for each broker user.

A password that is there is never touched, only its mode is put right; `--rotate` makes each anew. Those of users who
are not listed are removed, or who comes back would get one that others may know by now. Prints what it did, or
(`--check`) would do, a line each: file names, never what is in them.

Whoever has a new password has an empty file in DIR/.rotated, until `--done` says that what was opened with the old one
is closed.
"""

import os
import re
import secrets
import stat
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

BYTES = 24  # 32 characters of a URL's alphabet
OURS = re.compile(rb"[A-Za-z0-9_-]{32}\n")
ROTATED = ".rotated"


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


def make_secret(file: Path) -> None:
    """Make a new password; it appears whole or not at all."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as output:
        output.write(secrets.token_urlsafe(BYTES) + "\n")
    draft.rename(file)


def ensure_secret(file: Path, check: bool, anew: bool) -> Iterator[str]:
    """See that one password is there (`anew`: another than before) and nobody else's."""
    mode = mode_of(file)
    if mode is None or anew:
        yield f"made {file}"
        if not check:
            mark_rotated(file)
            make_secret(file)
    elif mode != 0o600:
        yield f"closed {file} to others (it had mode {mode:04o})"
        if not check:
            file.chmod(0o600)


def mark_rotated(file: Path) -> None:
    """Remember that an old password is to be put out; before there is a new one, so that nothing is forgotten."""
    marks = file.parent / ROTATED
    marks.mkdir(mode=0o700, exist_ok=True)
    (marks / file.name).touch(mode=0o600)


def remove_others(folder: Path, users: Collection[str], check: bool) -> Iterator[str]:
    """Remove the passwords of everybody else; a file that was not made here is left alone."""
    for file in sorted(folder.iterdir()) if folder.exists() else ():
        if file.name not in users and file.is_file() and OURS.fullmatch(file.read_bytes()):
            yield f"removed {file}"
            if not check:
                (folder / ROTATED / file.name).unlink(missing_ok=True)
                file.unlink()


def ensure(what: str, folder: Path, users: list[str]) -> Iterator[str]:
    """Do what the command line asks for; what is done, a line each."""
    check = what == "--check"
    if what == "--done":
        for user in users:
            (folder / ROTATED / user).unlink(missing_ok=True)
        return
    yield from ensure_folder(folder, check)
    for user in users:
        yield from ensure_secret(folder / user, check, anew=what == "--rotate")
    if what != "--rotate":  # which is told some of the users only
        yield from remove_others(folder, users, check)


def main() -> int:
    """Exit status 0, or 1 when DIR can't be written."""
    what, directory, users = sys.argv[1:]
    try:
        for line in ensure(what, Path(directory), users.split(",")):
            print(line)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
