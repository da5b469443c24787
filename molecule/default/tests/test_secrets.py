"""Passwords: made once, for nobody else's eyes, in no argument and in no output."""

import os
import stat
import subprocess
from pathlib import Path

testinfra_hosts = ["broker1"]

SECRETS = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "secrets")
EVERYBODYS = """
for process in /proc/[0-9]*; do tr '\\0' '\\n' <$process/cmdline; done 2>/dev/null
journalctl --no-pager --output cat
find /etc /run /tmp /var/tmp /usr/lib/aetherscale -xdev -type f -perm -o+r -size -200k -exec cat {} + 2>/dev/null
"""
CONTEXTS = Path(os.environ["XDG_CONFIG_HOME"], "aetherscale")


def passwords() -> dict[str, str]:
    """The passwords by user."""
    return {file.name: file.read_text().strip() for file in SECRETS.iterdir()}


def mode(path: Path) -> int:
    """Its permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_there_is_one_for_each_user_and_nobody_else_reads_it() -> None:
    assert set(passwords()) == {"operator", "agent-h1", "agent-h2"}
    assert len(set(passwords().values())) == 3
    assert all(len(password) >= 32 for password in passwords().values())
    assert mode(SECRETS) == 0o700
    assert {mode(file) for file in SECRETS.iterdir()} == {0o600}


def test_the_clis_context() -> None:
    context = CONTEXTS / "contexts" / "default.toml"
    assert mode(context) == 0o600
    assert passwords()["operator"] in context.read_text()
    assert (CONTEXTS / "current-context").read_text() == "default\n"


def test_none_is_in_a_process_the_journal_or_a_readable_file(fleet) -> None:
    for name, host in fleet.items():
        shown = host.run(EVERYBODYS).stdout_bytes
        assert len(shown) > 10_000
        assert not [user for user, password in passwords().items() if password.encode() in shown], name


def test_the_cli_reaches_both_hosts() -> None:
    done = subprocess.run(["aetherscale-cli", "list-hosts", "-o", "json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"h1"' in done.stdout
    assert '"h2"' in done.stdout
