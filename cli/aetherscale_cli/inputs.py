"""The files that say what a new VM should be: public keys, and cloud-init's user data."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from aetherscale_cli import outlet
from aetherscale_cli.arguments import Invocation
from aetherscale_cli.errors import CliError, Exit
from aetherscale_protocol.options import LONGEST_KEY, LONGEST_TEXT, MOST_KEYS, CreateVm

_KEY_TYPES = ("ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-")
_LONGEST_FILE = 4 * max(LONGEST_KEY, LONGEST_TEXT)


def add_inputs(invocation: Invocation, environ: Mapping[str, str]) -> Invocation:
    """The invocation of a create with the keys and the user data that it names.

    :raise CliError: when a file can't be read, or is not what it should be; nothing was sent.
    """
    space = invocation.space
    keys = find_keys(space.ssh_key, none=space.no_ssh_key, environ=environ)
    user_data = read_text(space.user_data, "user data") if space.user_data else ""
    if space.command == "create-vm" and not (keys or user_data or space.no_ssh_key or space.dry_run):
        warn_of_no_key()
    made = []
    for options in invocation.options:
        assert isinstance(options, CreateVm)
        made.append(replace(options, ssh_keys=keys, user_data=user_data))
    return msgspec.structs.replace(invocation, options=tuple(made))


def replace(options: CreateVm, **more: object) -> CreateVm:
    """Options with other values in some places.

    :raise CliError: when they break a rule of the protocol then.
    """
    try:
        return msgspec.structs.replace(options, **more)  # which checks anew
    except ValueError as error:
        raise CliError(str(error), None, Exit.USAGE) from None


def find_keys(
    given: Sequence[str], *, none: bool, environ: Mapping[str, str], folder: Path | None = None
) -> tuple[str, ...]:
    """The public keys given, as keys or as files of them; the operator's own if none are; each once.

    :param folder: what names of files are relative to, unless it is the working directory.
    :raise CliError: when a file can't be read or holds no public key, or keys and `none` are both wanted.
    """
    if none and given:
        raise CliError("--ssh-key and --no-ssh-key exclude each other", None, Exit.USAGE)
    if none:
        return ()
    if given:
        return tuple(dict.fromkeys(key for one in given for key in _keys_of(one, folder)))
    own = tuple(dict.fromkeys(_find_own_keys(Path(environ.get("HOME", "~")).expanduser() / ".ssh")))
    if len(own) > MOST_KEYS:
        outlet.say(
            [f"warning: of the {len(own)} keys in ~/.ssh/*.pub a VM can have {MOST_KEYS}: the first by file name"]
        )
    return own[:MOST_KEYS]


def _find_own_keys(folder: Path) -> Iterator[str]:
    """What is a key among `*.pub`: other programs keep theirs there, too."""
    for path in sorted(folder.glob("*.pub")):
        if path.is_file() and not path.name.endswith("-cert.pub"):
            with contextlib.suppress(CliError):
                yield from _keys_in(path)


def warn_of_no_key() -> None:
    """Say that nobody will be able to log in."""
    outlet.say(
        [
            "warning: there is no public key in ~/.ssh/*.pub: nobody can log in to the new VM by ssh",
            "hint: --ssh-key FILE (in a file of VMs: ssh-keys) names one; ssh-keygen makes one",
        ]
    )


def _keys_of(given: str, folder: Path | None) -> list[str]:
    if given.startswith(_KEY_TYPES) and " " in given.strip():
        return [given.strip()]
    return _keys_in((folder or Path()) / Path(given).expanduser())


def _keys_in(path: Path) -> list[str]:
    text = read_text(path, "ssh key")
    if "PRIVATE KEY" in text:
        raise CliError(f"{path} is a private key", f"give the public one: {path}.pub", Exit.USAGE)
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    wrong = [key for key in keys if not _is_key(key)]
    if wrong or not keys:
        raise CliError(f"{path} holds no public key such as `ssh-ed25519 AAAA… you@laptop`", None, Exit.USAGE)
    return keys


def _is_key(line: str) -> bool:
    """Whether this looks like a line of authorized_keys; options may stand before the type."""
    return (
        line.isprintable()
        and len(line) <= LONGEST_KEY
        and any(word.startswith(_KEY_TYPES) for word in line.split()[:-1])
    )


def read_text(path: str | Path, what: str) -> str:
    """What a file holds.

    :raise CliError: when it can't be read, is no text, or far too long.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST_FILE + 1)
        if len(data) > _LONGEST_FILE:
            raise CliError(f"{what} {path} is longer than {_LONGEST_FILE} bytes", None, Exit.USAGE)
        return data.decode()
    except OSError as error:
        raise CliError(f"can't read {what} {path}: {error.strerror}", None, Exit.USAGE) from None
    except ValueError:
        raise CliError(f"{what} {path} is no text in UTF-8", None, Exit.USAGE) from None
