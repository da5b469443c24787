"""Debian packages: where this machine gets them from, and private apt states for other suites."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aetherscale_lab.errors import LabError
from aetherscale_lab.shell import run_command

_POCKETS = ("", "-updates", "-security")
# What of this machine's apt configuration decides how it reaches its mirror.
_TRANSPORT_OPTION = re.compile(
    r"Acquire::(Check-Valid-Until|Check-Date|Max-ValidTime|Retries|Proxy|http|https)\b.* \"[^\"]+\";"
)


@dataclass(frozen=True)
class Source:
    """One apt source: a place, a suite there, and the keyring it is signed with ("" = apt's own)."""

    uri: str
    suite: str
    signed_by: str = ""

    def line(self) -> str:
        option = f"[signed-by={self.signed_by}] " if self.signed_by else ""
        return f"deb {option}{self.uri} {self.suite} main"


def find_sources(suite: str, etc: Path = Path("/etc")) -> list[Source]:
    """Sources of a Debian suite, derived from this machine's own: same mirror, other suite.

    :raise LabError: when this machine is no Debian, or has no source of its own release.
    """
    release = _read_release(etc / "os-release")
    codename = release.get("VERSION_CODENAME", "")
    found: list[Source] = []
    if release.get("ID") == "debian" and codename:
        files = _source_files(etc / "apt")
        for source in (source for path in files for source in parse_sources(path.read_text(), path.suffix)):
            pocket = source.suite.removeprefix(codename)
            if source.suite.startswith(codename) and pocket in _POCKETS:
                found.append(Source(source.uri, suite + pocket, source.signed_by))
    if not any(source.suite == suite for source in found):
        raise LabError(
            f"{etc / 'apt'} names no source of this machine's own Debian release, to tell where {suite} is",
            "run it on Debian 12 or 13 with its ordinary package sources",
        )
    return list(dict.fromkeys(found))


def _read_release(path: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in path.read_text().splitlines())
    return {key: value.strip().strip('"') for key, _, value in pairs}


def _source_files(apt_dir: Path) -> list[Path]:
    parts = sorted((apt_dir / "sources.list.d").glob("*"))
    files = [apt_dir / "sources.list", *(p for p in parts if p.suffix in (".list", ".sources"))]
    return [path for path in files if path.is_file()]


def parse_sources(text: str, suffix: str) -> list[Source]:
    """Binary sources with component main in a file of apt's; `suffix` ".sources" is the deb822 format."""
    return _parse_deb822(text) if suffix == ".sources" else _parse_lines(text)


def _parse_deb822(text: str) -> list[Source]:
    found = []
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", lines):
        fields = {k.lower(): v.strip() for k, v in re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", stanza, re.M)}
        wanted = "deb" in fields.get("types", "").split() and "main" in fields.get("components", "").split()
        if not wanted or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        # a key written into the stanza itself is left to apt's own keyrings
        keyring = fields.get("signed-by", "")
        keyring = keyring if keyring.startswith("/") else ""
        found += [Source(u, s, keyring) for u in fields["uris"].split() for s in fields["suites"].split()]
    return found


def _parse_lines(text: str) -> list[Source]:
    found = []
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.*)", line.strip())
        if match and "main" in match[4].split("#")[0].split():
            options = dict(option.partition("=")[::2] for option in (match[1] or "").split())
            found.append(Source(match[2], match[3], options.get("signed-by", "")))
    return found


def transport_options() -> list[str]:
    """This machine's apt settings for reaching its mirror (proxies, validity), as apt.conf lines."""
    return select_transport_options(run_command(["apt-config", "dump"]))


def select_transport_options(dump: str) -> list[str]:
    return [line.rstrip(";") for line in dump.splitlines() if _TRANSPORT_OPTION.fullmatch(line)]


class AptState:
    """An apt of its own below a directory: another suite's packages, without touching this machine's.

    Needs no root.
    """

    def __init__(self, directory: Path, sources: Iterable[Source], dpkg_status: Path | None = None) -> None:
        self.directory = directory
        self.archives = directory / "cache" / "archives"
        for path in (self.archives / "partial", directory / "state" / "lists" / "partial"):
            path.mkdir(parents=True, exist_ok=True)
        (directory / "sources.list").write_text("".join(source.line() + "\n" for source in sources))
        self._status = dpkg_status or directory / "state" / "status"
        if dpkg_status is None:
            self._status.write_text("")

    def _options(self) -> list[str]:
        settings = {
            "Dir::Etc::sourcelist": self.directory / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": self.directory / "state",
            "Dir::State::status": self._status,
            "Dir::Cache": self.directory / "cache",
            "Dir::Cache::archives": self.archives,
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
        }
        return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]

    def update(self) -> None:
        """Fetch the package lists."""
        run_command(["apt-get", *self._options(), "-qq", "update"])

    def download_closure(self, packages: Sequence[str]) -> list[Path]:
        """Download packages with all they need beyond what `dpkg_status` has; the recommended ones not."""
        command = ["-qq", "-y", "--no-install-recommends", "--download-only", "install"]
        run_command(["apt-get", *self._options(), *command, *packages])
        return sorted(self.archives.glob("*.deb"))

    def download(self, packages: Sequence[str], target: Path) -> list[Path]:
        """Download just the named packages into a directory."""
        target.mkdir(parents=True, exist_ok=True)
        run_command(["apt-get", *self._options(), "-qq", "download", *packages], cwd=target)
        return sorted(target.glob("*.deb"))

    def first_dependency(self, package: str, prefix: str) -> str:
        """Name of the first package starting with `prefix` that `package` depends on.

        :raise LabError: when it depends on none.
        """
        answer = run_command(["apt-cache", *self._options(), "depends", "--important", package])
        for name in re.findall(r"Depends: (\S+)", answer):
            if name.startswith(prefix):
                return str(name)
        raise LabError(f"package {package} depends on no {prefix}*", "is the suite complete on the mirror?")
