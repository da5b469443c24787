#!/usr/bin/env python3
"""make_secrets.py --make|--check|--rotate DIR USER,USER…: see that DIR holds a password for each broker user.

A password that is there is never touched, only its mode is put right; `--rotate` makes each anew. Prints what it did,
or (`--check`) would do, a line each: file names, never what is in them.
"""

import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

BYTES = 24  # 32 characters of a URL's alphabet


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
            make_secret(file)
    elif mode != 0o600:
        yield f"closed {file} to others (it had mode {mode:04o})"
        if not check:
            file.chmod(0o600)


def main() -> int:
    """Exit status 0, or 1 when DIR can't be written."""
    what, directory, users = sys.argv[1:]
    folder, check = Path(directory), what == "--check"
    try:
        for line in ensure_folder(folder, check):
            print(line)
        for user in users.split(","):
            for line in ensure_secret(folder / user, check, anew=what == "--rotate"):
                print(line)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
