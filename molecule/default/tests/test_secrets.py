"""Passwords and keys: made once, for nobody else's eyes, in no argument and in no output.

Hosts are searched for every one of them: files, the journal, processes, and what systemd tells of units. How much the
search would find is shown with a word that is planted in each such place.
"""

import os
import secrets
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]

BROKERS = "/etc/rabbitmq/aetherscale.pem"
HOSTS = ("broker1", "h1", "h2")
SECRETS = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "secrets")
SEARCH = """
words=$(cat)  # never an argument
find_in() { grep --text --only-matching --fixed-strings --file=<(printf '%s\\n' "$words") "$@" 2>/dev/null; }
find_in --recursive --with-filename --devices=skip \
    /etc /home /opt /root /run /tmp /usr/lib/aetherscale /usr/local /var/lib /var/log /var/spool /var/tmp
cat /proc/[0-9]*/cmdline 2>/dev/null | find_in --label=arguments --with-filename
cat /proc/[0-9]*/environ 2>/dev/null | find_in --label=environment --with-filename
journalctl --no-pager --output export | find_in --label=journal --with-filename
systemctl show --all '*' | find_in --label=units --with-filename
echo searched:
"""
"""Prints `place:word` for each find. The journal's own files are compressed in part: it is asked, too."""
PLANT = """
read -r word
umask 077
printf '%s\\n' "$word" >/var/log/planted.log
install -m 644 /var/log/planted.log /tmp/planted
systemd-cat </tmp/planted
mkdir -p /run/systemd/system
{ printf '[Service]\\nType=oneshot\\nRemainAfterExit=yes\\nExecStart=/bin/true\\nEnvironment='
  printf 'WORD=%s\\n' "$word"; } >/run/systemd/system/planted.service
systemctl daemon-reload
systemctl start planted.service
export WORD=$word
(exec -a "sleep-$word" sleep 60) >/dev/null 2>&1 </dev/null &
echo $!
journalctl --sync
"""
UPROOT = """
read -r pid
kill "$pid"
systemctl stop planted.service
rm /var/log/planted.log /tmp/planted /run/systemd/system/planted.service
systemctl daemon-reload
"""
CONTEXTS = Path(os.environ["XDG_CONFIG_HOME"], "aetherscale")


def passwords() -> dict[str, str]:
    """The passwords by user."""
    return {file.name: file.read_text().strip() for file in SECRETS.iterdir() if file.is_file()}


def keys() -> dict[str, str]:
    """The first line of each private key of TLS, by file."""
    files = [file for file in (SECRETS / "tls").rglob("*.pem") if "PRIVATE KEY" in file.read_text()]
    return {file.name: file.read_text().partition("PRIVATE KEY-----\n")[2].splitlines()[0] for file in files}


def mode(path: Path) -> int:
    """Its permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_there_is_one_for_each_user_and_nobody_else_reads_it() -> None:
    assert set(passwords()) == {"operator", "agent-h1", "agent-h2"}
    assert len(set(passwords().values())) == 3
    assert all(len(password) >= 32 for password in passwords().values())
    assert mode(SECRETS) == 0o700
    assert {mode(SECRETS / user) for user in passwords()} == {0o600}


def test_the_clis_context() -> None:
    context = CONTEXTS / "contexts" / "default.toml"
    assert mode(context) == 0o600
    assert passwords()["operator"] in context.read_text()
    assert (CONTEXTS / "current-context").read_text() == "default\n"


def run_script(fleet: Rollout, host: str, script: str, stdin: str) -> str:
    return fleet.lab.run(host, ["bash", "-c", script], stdin=stdin).stdout


def search(fleet: Rollout, host: str, words: dict[str, str]) -> set[tuple[str, str]]:
    """Where on a host one of these words is, and whose it is; the words themselves are in no message."""
    lines = run_script(fleet, host, SEARCH, "\n".join(words.values())).splitlines()
    assert lines[-1] == "searched:"
    whose = {word: name for name, word in words.items()}
    return {(place, whose[word]) for place, _, word in (line.rpartition(":") for line in lines[:-1])}


@pytest.fixture(scope="module")
def fleet() -> Rollout:
    return Rollout()


def test_none_is_on_a_host_but_where_it_belongs(fleet: Rollout) -> None:
    words = passwords() | keys()
    assert {"authority.pem", "broker.pem"} <= set(words)
    with ThreadPoolExecutor() as pool:
        found = dict(zip(HOSTS, pool.map(lambda host: search(fleet, host, words), HOSTS), strict=True))
    # The broker keeps salted hashes of passwords; the key of the CA never leaves the controller.
    assert found.pop("broker1") == {(BROKERS, "broker.pem")}
    assert fleet.run("broker1", "stat", "--format=%a %U:%G", BROKERS).strip() == "640 root:rabbitmq"
    for host, places in found.items():
        kept = {("/opt/aetherscale/previous/agent.toml", f"agent-{host}")}  # what a failed roll-out goes back to
        assert places - kept == {("/etc/aetherscale/agent.toml", f"agent-{host}")}, host
        closed = ["/etc/aetherscale/agent.toml", *(place for place, _ in places & kept)]
        modes = fleet.run(host, "stat", "--format=%a %U:%G", *closed).splitlines()
        assert set(modes) == {"640 root:aetherscale"}


@pytest.fixture
def planted(fleet: Rollout) -> Iterator[str]:
    """A word like a password, where none should be, on h2."""
    word = secrets.token_urlsafe(24)
    pid = run_script(fleet, "h2", PLANT, f"{word}\n")
    yield word
    run_script(fleet, "h2", UPROOT, pid)


def test_the_search_finds_one_that_is_planted(fleet: Rollout, planted: str) -> None:
    found = search(fleet, "h2", {"planted": planted})
    places = {place for place, _ in found if not place.startswith("/var/log/journal/")}
    assert places == {
        "/var/log/planted.log", "/tmp/planted", "/run/systemd/system/planted.service",
        "arguments", "environment", "journal", "units",
    }  # fmt: skip


def test_the_cli_reaches_both_hosts() -> None:
    done = subprocess.run(["aetherscale-cli", "list-hosts", "-o", "json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"h1"' in done.stdout
    assert '"h2"' in done.stdout
