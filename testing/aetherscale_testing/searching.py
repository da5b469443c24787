"""Looks on the lab's hosts for the fleet's passwords and keys: where on a host each of them is."""

from pathlib import Path

from aetherscale_testing.rollout import Rollout

FIND_PLACES = r"""
mapfile -d '' -t places < <(
    find / -mindepth 1 -maxdepth 1 ! -type l ! -path /dev ! -path /proc ! -path /sys -print0
    find /dev/shm -maxdepth 0 -print0
)
"""
"""All of a host (what links at its top lead to is searched as itself), but for what is no file: devices, and what the
kernel makes up as it is read; of that, processes are asked by themselves.
"""

SEARCH = f"""
words=$(cat)  # never an argument
{FIND_PLACES}
find_in() {{ grep --text --only-matching --fixed-strings --file=<(printf '%s\\n' "$words") "$@" 2>/dev/null; }}
find_in --recursive --with-filename --devices=skip "${{places[@]}}"
cat /proc/[0-9]*/cmdline 2>/dev/null | find_in --label=arguments --with-filename
cat /proc/[0-9]*/environ 2>/dev/null | find_in --label=environment --with-filename
journalctl --no-pager --output export | find_in --label=journal --with-filename
systemctl show --all '*' | find_in --label=units --with-filename
echo searched:
"""
"""Prints `place:word` for each find. The journal's own files are compressed in part: it is asked, too."""


def read_passwords(folder: Path) -> dict[str, str]:
    """The passwords in the controller's folder of secrets, by user."""
    return {file.name: file.read_text().strip() for file in folder.iterdir() if file.is_file()}


def read_keys(folder: Path) -> dict[str, str]:
    """A line of each private key of TLS there, by file."""
    return {file.name: line_of(file) for file in (folder / "tls").rglob("*.pem") if "PRIVATE KEY" in file.read_text()}


def line_of(file: Path) -> str:
    """The first line of a private key."""
    return file.read_text().partition("PRIVATE KEY-----\n")[2].splitlines()[0]


def run_script(fleet: Rollout, host: str, script: str, stdin: str) -> str:
    """What a script of bash's prints on a host."""
    return fleet.lab.run(host, ["bash", "-c", script], stdin=stdin).stdout


def search(fleet: Rollout, host: str, words: dict[str, str]) -> set[tuple[str, str]]:
    """Where on a host one of these words is, and whose it is; the words themselves are in no message."""
    lines = run_script(fleet, host, SEARCH, "\n".join(words.values())).splitlines()
    assert lines[-1] == "searched:"
    whose = {word: name for name, word in words.items()}
    return {(place, whose[word]) for place, _, word in (line.rpartition(":") for line in lines[:-1])}
