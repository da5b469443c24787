"""Contexts: which broker to speak to, and as whom. One TOML file each, written by Ansible or by hand.

~/.config/aetherscale/contexts/<name>.toml    [broker] url, password, ca_file, cert_file (see protocol/settings.py)
                                              [deployment] ansible_dir, inventory: where it was rolled out from
~/.config/aetherscale/current-context         one line: a name
"""

import os
import re
import stat
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from aetherscale_cli.errors import CliError, Exit
from aetherscale_protocol.settings import BrokerSettings, SettingsError, override_host

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
NAME_RULE = "a context's name is 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or digit"

_EXAMPLE = (
    'a context file holds a table [broker] with url = "amqps://alice@10.0.0.1:5671/aetherscale" and password = "…"'
)


class Deployment(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the fleet was rolled out from: the folder of the playbooks, and the inventories."""

    ansible_dir: str
    inventory: list[str] = []


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """What a context file may hold."""

    broker: BrokerSettings
    deployment: Deployment | None = None


class Target(Struct, frozen=True):
    """The broker to speak to. `source` says in a few words where that was written, for error messages."""

    settings: BrokerSettings
    source: str
    warnings: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """Where the broker is: `host:port`."""
        host = self.settings.host
        return f"[{host}]:{self.settings.port}" if ":" in host else f"{host}:{self.settings.port}"


class ContextStore:
    """The contexts of one user. Nothing is written but `current-context`."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._contexts = os.path.join(folder, "contexts")
        self._current = os.path.join(folder, "current-context")

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "ContextStore":
        """The contexts under `$XDG_CONFIG_HOME`, or `~/.config`; a relative XDG_CONFIG_HOME counts as unset."""
        base = environ.get("XDG_CONFIG_HOME", "")
        if not os.path.isabs(base):
            base = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".config")
        return cls(os.path.join(base, "aetherscale"))

    def path(self, name: str) -> str:
        """The file of a context."""
        return os.path.join(self._contexts, f"{name}.toml")

    def names(self) -> list[str]:
        """The contexts that there are.

        :raise CliError: when the folder can't be read.
        """
        try:
            files = os.listdir(self._contexts)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _unreadable(self._contexts, error) from None
        stems = (file.removesuffix(".toml") for file in files if file.endswith(".toml"))
        return sorted(stem for stem in stems if re.fullmatch(_NAME, stem))

    def current(self) -> str | None:
        """The name in `current-context`, if there is one.

        :raise CliError: when the file can't be read, or holds no name.
        """
        try:
            with open(self._current, encoding="utf-8") as file:
                name = file.read(200).strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(self._current, error) from None
        return _checked(name, self._current) if name else None

    def use(self, name: str) -> None:
        """Make `name` the current context.

        :raise CliError: when there is no such context, its file is broken, or nothing can be written.
        """
        self.load(_checked(name, "use-context"))
        draft = f"{self._current}.{os.getpid()}"
        try:
            with open(draft, "w", encoding="utf-8") as file:
                file.write(name + "\n")
            os.replace(draft, self._current)
        except OSError as error:
            raise CliError(f"can't write {self._current}: {error.strerror}", exit_code=Exit.USAGE) from None

    def find_deployment(self, name: str) -> Deployment | None:
        """Where the fleet of the context `name` was rolled out from, if the context says so.

        :raise CliError: when there is no such context, or its file is broken.
        """
        self.load(name)
        with open(self.path(name), "rb") as file:
            return msgspec.toml.decode(file.read(), type=_File).deployment

    def load(self, name: str) -> Target:
        """The broker that the context `name` speaks of.

        :raise CliError: when there is none, or its file is broken; the message names the file.
        """
        path = self.path(name)
        try:
            with open(path, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                data = file.read()
        except FileNotFoundError:
            raise self._unknown(name) from None
        except OSError as error:
            raise _unreadable(path, error) from None
        return Target(_parse(data, path), f"context {name} ({path})", _warn_about(path, mode))

    def _unknown(self, name: str) -> CliError:
        known = self.names()
        hint = f"there are: {', '.join(known)}" if known else f"put it into {self.path(name)}; {_EXAMPLE}"
        return CliError(f"there is no context {name!r} in {self._contexts}", hint, Exit.USAGE)


def _checked(name: str, source: str) -> str:
    if re.fullmatch(_NAME, name) is None:
        raise CliError(f"{source}: {name!r} can't be a context: {NAME_RULE}", exit_code=Exit.USAGE)
    return name


def _unreadable(path: str, error: Exception) -> CliError:
    reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
    return CliError(f"can't read {path}: {reason}", exit_code=Exit.USAGE)


def _warn_about(path: str, mode: int) -> tuple[str, ...]:
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        return (f"others can read {path}, which holds a password: chmod 600 {path}",)
    return ()


def _parse(data: bytes, path: str) -> BrokerSettings:
    try:
        settings = msgspec.toml.decode(data, type=_File).broker
        for name in ("ca_file", "cert_file"):
            if file := getattr(settings, name):
                settings = msgspec.structs.replace(settings, **{name: _beside(path, file)})
        return settings.check()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CliError(f"{path}: {error}", _EXAMPLE, Exit.USAGE) from None
    except SettingsError as error:
        raise CliError(f"{path}: {error}", error.hint or _EXAMPLE, Exit.USAGE) from None


def _beside(path: str, file: str) -> str:
    """A file's name as a context means it: relative to the context's own file."""
    return os.path.join(os.path.dirname(path), os.path.expanduser(file))


def chosen(store: ContextStore, flag: str | None, environ: Mapping[str, str]) -> str | None:
    """The context to use: `--context`, `AETHERSCALE_CONTEXT`, `current-context`, or the only one there is.

    :raise CliError: when there are several and none was chosen, or the chosen name can't be one.
    """
    if flag is not None:
        return _checked(flag, "--context")
    if environ.get("AETHERSCALE_CONTEXT"):
        return _checked(environ["AETHERSCALE_CONTEXT"], "AETHERSCALE_CONTEXT")
    if (current := store.current()) is not None:
        return current
    names = store.names()
    if len(names) > 1:
        hint = "choose one: aetherscale-cli use-context NAME, or --context NAME"
        raise CliError(f"there are several contexts, and none is chosen: {', '.join(names)}", hint, Exit.USAGE)
    return names[0] if names else None


def find_target(store: ContextStore, flag: str | None, environ: Mapping[str, str]) -> Target:
    """The broker to speak to, of all that was said about it.

    :raise CliError: when what was said is wrong.
    """
    name = chosen(store, flag, environ)
    if name is None:
        target = Target(BrokerSettings(), "the default, as there is no context; RABBITMQ_HOST changes it")
    else:
        target = store.load(name)
    try:
        settings = override_host(target.settings, environ)
    except SettingsError as error:
        raise CliError(str(error), error.hint, Exit.USAGE) from None
    if settings is target.settings:
        return target
    user = f"; user and password from {target.source}" if name else ""
    return Target(settings, f"RABBITMQ_HOST{user}", target.warnings)
