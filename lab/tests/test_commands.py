"""Command lines, rules and what is read from /proc."""

from pathlib import Path

import pytest

from aetherscale_lab import cgroups, cli, host, model, network, ssh
from aetherscale_lab.model import HostSpec


def test_nspawn_runs_a_host_of_its_own_with_its_packages_read_only() -> None:
    plan = model.plan_lab("mine", "10.80.1.0/24", [HostSpec("a", "trixie")])
    argv = host.finalize_nspawn(plan, plan.hosts[0], Path("/state/root"), Path("/cache/suite"))
    assert "--keep-unit" in argv
    assert "--machine=mine-a" in argv
    assert "--hostname=a" in argv
    assert "--network-bridge=al-mine" in argv
    assert "--bind-ro=/cache/suite/packages:/srv/packages" in argv
    assert "--suppress-sync=yes" in argv
    assert argv[-1].endswith("exec /lib/systemd/systemd")


def test_a_host_syncs_where_the_disk_is_measured() -> None:
    plan = model.plan_lab("mine", "10.80.1.0/24", [HostSpec("a", "trixie")])
    argv = host.finalize_nspawn(plan, plan.hosts[0], Path("/state/root"), Path("/cache/suite"), sync=True)
    assert "--suppress-sync=no" in argv


def test_ssh_keeps_arguments_apart_and_knows_the_host() -> None:
    argv = ssh.finalize_ssh("10.80.1.11", Path("/k"), Path("/known"), ["echo", "a b", "$HOME"])
    assert argv[-2:] == ["root@10.80.1.11", "echo 'a b' '$HOME'"]
    assert "UserKnownHostsFile=/known" in argv
    assert not any("StrictHostKeyChecking=no" in part for part in argv)


def test_cut_drops_both_ways_to_everyone() -> None:
    rules = network.cut_rules("t", "vb-x")
    assert rules.startswith("table bridge t {\n")
    assert [f"chain {hook}" in rules for hook in ("forward", "input", "output")] == [True] * 3
    assert rules.count('iifname "vb-x" drop') == 2
    assert rules.count('oifname "vb-x" drop') == 2
    assert rules.count("{") == rules.count("}")


V1 = """\
22 1 0:20 / /sys rw - sysfs sysfs rw
31 22 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 22 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 22 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
"""


def test_cgroup_mounts_of_a_mixed_machine() -> None:
    mounts = cgroups.parse_mounts(V1)
    assert mounts["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert mounts["name=systemd"] == "/sys/fs/cgroup/systemd"
    assert mounts[""] == "/sys/fs/cgroup/unified"


def test_cgroup_membership() -> None:
    text = "4:memory:/a/b\n3:cpu,cpuacct:/c\n1:name=systemd:/\n0::/user.slice/x:y\n"
    assert cgroups.parse_membership(text) == {
        "memory": "/a/b",
        "cpu": "/c",
        "cpuacct": "/c",
        "name=systemd": "/",
        "": "/user.slice/x:y",
    }


def test_host_paths_change_when_it_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = host.HostDirectory(tmp_path)
    directory.make()
    assert directory.tree() == tmp_path / "upper"
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "root")
    assert directory.tree() == tmp_path / "root"


def test_launch_survives_its_file(tmp_path: Path) -> None:
    directory = host.HostDirectory(tmp_path)
    launch = host.Launch("mine", "a", "/cache/suite", ["systemd-nspawn", "x"], False)
    launch.save(directory)
    assert host.Launch.load(directory) == launch


def test_errors_are_told_with_a_hint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AETHERSCALE_LAB_STATE", str(tmp_path))
    assert cli.main(["status", "--lab", "nowhere"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == ["error: there is no lab nowhere", "hint: make it: up --lab nowhere"]


def test_wrong_usage_ends_with_2() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["no-such-verb"])
    assert caught.value.code == 2
