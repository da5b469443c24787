"""A compute host: packages, user, folders, units, the agent's release and its configuration."""

import tomllib

import pytest

testinfra_hosts = ["compute"]

FOLDERS = [
    ("/etc/aetherscale", "root", "aetherscale", 0o750),
    ("/var/lib/aetherscale", "aetherscale", "aetherscale", 0o755),
    ("/var/lib/aetherscale/vms", "aetherscale", "aetherscale", 0o700),
    ("/var/lib/aetherscale/journal", "aetherscale", "aetherscale", 0o700),
    ("/var/lib/aetherscale/images", "aetherscale", "aetherscale", 0o755),
    ("/run/aetherscale", "aetherscale", "aetherscale", 0o755),
    ("/run/aetherscale/vms", "aetherscale", "aetherscale", 0o700),
    ("/run/aetherscale-network/ready", "root", "root", 0o755),
    ("/run/aetherscale/args", "aetherscale", "aetherscale", 0o700),
]

FILES = [
    ("/etc/systemd/system/aetherscale-vm@.service", 0o644),
    ("/etc/systemd/system/aetherscale-tap@.service", 0o644),
    ("/etc/systemd/system/aetherscale-tidy@.service", 0o644),
    ("/etc/systemd/system/aetherscale-agent.service", 0o644),
    ("/etc/polkit-1/rules.d/50-aetherscale.rules", 0o644),
    ("/etc/tmpfiles.d/aetherscale.conf", 0o644),
    ("/usr/lib/aetherscale/vm-run", 0o755),
    ("/usr/lib/aetherscale/vm-stop", 0o755),
]


def journal(host) -> str:
    """The agent's last words, for the report of a test that fails."""
    return str(host.run("journalctl --unit aetherscale-agent.service --lines 30 --no-pager").stdout)


def test_the_agent_runs_starts_at_boot_and_has_reached_the_broker(host) -> None:
    service = host.service("aetherscale-agent")
    assert service.is_running, journal(host)
    assert service.is_enabled
    status = host.check_output("systemctl show --value --property StatusText aetherscale-agent.service")
    assert status.startswith("connected"), journal(host)


def test_no_unit_failed(host) -> None:
    assert host.check_output("systemctl list-units --failed --no-legend --plain") == ""


@pytest.mark.parametrize("package", ["qemu-system-x86", "qemu-utils"])
def test_packages(host, package) -> None:
    assert host.package(package).is_installed


def test_the_user_can_do_nothing_but_be_the_agent(host) -> None:
    user = host.user("aetherscale")
    assert user.shell == "/usr/sbin/nologin"
    assert user.home == "/var/lib/aetherscale"
    assert user.groups == ["aetherscale"]
    assert user.uid < 1000


@pytest.mark.parametrize(("path", "user", "group", "mode"), FOLDERS)
def test_folders(host, path, user, group, mode) -> None:
    folder = host.file(path)
    assert folder.is_directory
    assert (folder.user, folder.group, folder.mode) == (user, group, mode)


@pytest.mark.parametrize(("path", "mode"), FILES)
def test_files_are_roots(host, path, mode) -> None:
    file = host.file(path)
    assert (file.user, file.group, file.mode) == ("root", "root", mode)


def test_the_configuration_is_the_agents_alone(host) -> None:
    file = host.file("/etc/aetherscale/agent.toml")
    assert (file.user, file.group, file.mode) == ("root", "aetherscale", 0o640)
    config = tomllib.loads(file.content_string)
    name = host.check_output("hostname")
    assert config["host"] == name
    assert config["fleet"] == ["h1", "h2"]
    assert config["broker"]["url"].startswith(f"amqps://agent-{name}@")
    assert config["broker"]["url"].endswith(":5671/aetherscale")


def test_units_are_sound(host) -> None:
    units = " ".join(f"/etc/systemd/system/aetherscale-{name}.service" for name in ("agent", "vm@", "tap@", "tidy@"))
    done = host.run(f"systemd-analyze verify {units}")
    about_ours = [line for line in done.stderr.splitlines() if "aetherscale" in line]
    assert not about_ours, done.stderr


def test_the_release_is_complete_and_roots(host) -> None:
    release = host.file("/opt/aetherscale/current").linked_to
    assert release.startswith("/opt/aetherscale/releases/")
    assert host.file(f"{release}/.complete").exists
    assert not host.file(f"{release}/wheels").exists
    assert host.check_output(f"find {release} ! -user root -o -perm /022 ! -type l | head -n 3") == ""
    pid = host.check_output("systemctl show --value --property MainPID aetherscale-agent.service")
    assert host.check_output(f"tr '\\0' ' ' </proc/{pid}/cmdline").startswith(f"{release}/bin/python")


def test_the_agent_is_no_ones_root(host) -> None:
    pid = host.check_output("systemctl show --value --property MainPID aetherscale-agent.service")
    assert host.check_output(f"stat --format %U /proc/{pid}") == "aetherscale"
    assert "CapEff:\t0000000000000000" in host.file(f"/proc/{pid}/status").content_string
