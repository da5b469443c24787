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
from aetherscale_testing.searching import read_keys, read_passwords, run_script, search

testinfra_hosts = ["broker1"]

BROKERS = "/etc/rabbitmq/aetherscale.pem"
HOSTS = ("broker1", "h1", "h2")
SECRETS = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "secrets")
PLANT = """
read -r word
umask 077
printf '%s\\n' "$word" >/var/log/planted.log
install -m 644 /var/log/planted.log /tmp/planted
for place in /boot /dev/shm /mnt /srv /usr/share /var/cache; do
    install -m 644 /var/log/planted.log "$place/planted"
done
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
rm /boot/planted /dev/shm/planted /mnt/planted /srv/planted /usr/share/planted /var/cache/planted
systemctl daemon-reload
"""
CONTEXTS = Path(os.environ["XDG_CONFIG_HOME"], "aetherscale")


def mode(path: Path) -> int:
    """Its permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_there_is_one_for_each_user_and_nobody_else_reads_it() -> None:
    assert set(read_passwords(SECRETS)) == {"operator", "agent-h1", "agent-h2"}
    assert len(set(read_passwords(SECRETS).values())) == 3
    assert all(len(password) >= 32 for password in read_passwords(SECRETS).values())
    assert mode(SECRETS) == 0o700
    assert {mode(SECRETS / user) for user in read_passwords(SECRETS)} == {0o600}


def test_the_clis_context() -> None:
    context = CONTEXTS / "contexts" / "default.toml"
    assert mode(context) == 0o600
    assert read_passwords(SECRETS)["operator"] in context.read_text()
    assert (CONTEXTS / "current-context").read_text() == "default\n"


@pytest.fixture(scope="module")
def fleet() -> Rollout:
    return Rollout()


def test_none_is_on_a_host_but_where_it_belongs(fleet: Rollout) -> None:
    words = read_passwords(SECRETS) | read_keys(SECRETS)
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
        "/var/log/planted.log", "/tmp/planted", "/run/systemd/system/planted.service", "/boot/planted",
        "/dev/shm/planted", "/mnt/planted", "/srv/planted", "/usr/share/planted", "/var/cache/planted",
        "arguments", "environment", "journal", "units",
    }  # fmt: skip


def test_the_cli_reaches_both_hosts() -> None:
    done = subprocess.run(["aetherscale-cli", "list-hosts", "-o", "json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"h1"' in done.stdout
    assert '"h2"' in done.stdout
