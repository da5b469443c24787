"""Addresses of VMs, what `vm-net` is told of them, and what it believes of that."""

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aetherscale_agent.config import NetworkSettings
from aetherscale_agent.hypervisor import argv
from aetherscale_agent.hypervisor.config import Layout
from aetherscale_agent.hypervisor.network import Network, find_address, find_listening
from aetherscale_agent.ports import HypervisorError, Nic
from aetherscale_protocol.options import CreateVm, Publish

CIDR = "10.126.0.0/22"
MAC = "52:54:00:01:02:03"
VM, OTHER = "sgeqxcfi", "enplzfer"
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
"""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path, tmp_path / "run")
    for vm_id in (VM, OTHER):
        layout.vm(vm_id).home.mkdir(parents=True)
    return layout


@pytest.fixture
def network(layout: Layout) -> Network:
    return Network(NetworkSettings(bridge="aetherscale0", network=CIDR), layout)


# Addresses


def test_an_address_follows_from_the_id_and_is_the_hosts_never() -> None:
    found = [find_address(VM, cidr, ()) for cidr in (CIDR, CIDR)]
    assert found[0] == found[1]
    everyone = set()
    for _ in range(5):  # a /29 has room for five guests
        everyone.add(find_address(VM, "10.0.0.0/29", everyone))
    assert everyone == {f"10.0.0.{n}" for n in range(2, 7)}
    with pytest.raises(HypervisorError, match=r"no address is left in 10\.0\.0\.0/29"):
        find_address(VM, "10.0.0.0/29", everyone)


@pytest.mark.parametrize("text", [b"", b"\0\0\0\0", b"\xff\xfe", b"10.126.1.999\n"])
def test_an_address_that_a_power_loss_spoilt_costs_nobody_anything(
    text: bytes, network: Network, layout: Layout
) -> None:
    network.take(OTHER)
    others = network.nic(OTHER, MAC)
    layout.vm(VM).address.write_bytes(text)
    anew = Network(NetworkSettings(bridge="aetherscale0", network=CIDR), layout)
    anew.load()
    assert (anew.nic(OTHER, MAC), anew.nic(VM, MAC).addresses) == (others, ())
    anew.take(VM)
    assert anew.nic(VM, MAC).addresses == (find_address(VM, CIDR, others.addresses),)


def test_who_knows_an_address_follows_from_the_bridge(layout: Layout) -> None:
    theirs = Network(NetworkSettings(bridge="br0"), layout)
    assert theirs.nic(VM, MAC) == Nic(MAC, (), "guest-agent")
    assert Network(NetworkSettings(), layout).nic(VM, MAC) == Nic(MAC, (), "none")


def test_an_address_of_ones_own_network_lasts_until_the_vm_starts_on_another_bridge(
    network: Network, layout: Layout
) -> None:
    network.take(VM)
    mine = network.nic(VM, MAC)
    assert mine.source == "host"
    theirs = Network(NetworkSettings(bridge="br0"), layout)
    theirs.load()
    assert theirs.nic(VM, MAC) == mine
    theirs.take(VM)
    assert theirs.nic(VM, MAC) == Nic(MAC, (), "guest-agent")
    theirs.load()
    assert theirs.nic(VM, MAC).addresses == ()


def test_an_address_lasts_as_long_as_its_vm(network: Network, layout: Layout) -> None:
    network.take(VM)
    network.take(OTHER)
    mine, others = (network.nic(vm_id, MAC).addresses for vm_id in (VM, OTHER))
    assert mine != others
    again = Network(NetworkSettings(bridge="aetherscale0", network=CIDR), layout)
    again.load()
    again.take(VM)
    assert again.nic(VM, MAC).addresses == mine
    again.release(VM)
    assert again.nic(VM, MAC).addresses == ()


def test_a_vm_of_before_gets_an_address_when_it_starts_and_another_in_another_network(layout: Layout) -> None:
    """A host that had no network, or another one: its VMs have homes without an address, or with a strange one."""
    layout.vm(VM).address.write_text("10.9.9.9\n")
    network = Network(NetworkSettings(bridge="aetherscale0", network=CIDR), layout)
    network.load()
    for vm_id in (VM, OTHER):
        network.take(vm_id)
        (address,) = network.nic(vm_id, MAC).addresses
        assert address.startswith("10.126.")
        assert layout.vm(vm_id).address.read_text().strip() == address


def test_an_address_rests_while_a_lease_may_hold_it(layout: Layout) -> None:
    network = Network(NetworkSettings(bridge="aetherscale0", network="10.0.0.0/29"), layout)
    network.take(VM)
    (freed,) = network.nic(VM, MAC).addresses
    network.release(VM)
    layout.vm(VM).address.unlink()
    for name in ("aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd"):
        layout.vm(name).home.mkdir(parents=True)
        network.take(name)
        assert network.nic(name, MAC).addresses != (freed,)
    layout.vm("eeeeeeee").home.mkdir(parents=True)
    network.take("eeeeeeee")  # better that one than none
    assert network.nic("eeeeeeee", MAC).addresses == (freed,)


def test_without_a_network_of_ours_nobody_knows_addresses(layout: Layout) -> None:
    for settings in (NetworkSettings(), NetworkSettings(bridge="br0")):
        network = Network(settings, layout)
        network.take(VM)
        assert network.nic(VM, MAC).addresses == ()
        assert network.port_conflict(CreateVm(image="a")) == ""
        wish = CreateVm(image="a", publish=(Publish(host_port=8080, guest_port=80),))
        assert "only be published where" in network.port_conflict(wish)


def test_what_vm_net_is_told(network: Network, layout: Layout) -> None:
    network.take(VM)
    spec = CreateVm(image="a", name="web1", publish=(Publish(host_port=8080, guest_port=80),))
    told = network.finalize_wanted(VM, spec, MAC)
    assert told == f"mac {MAC}\naddress {network.nic(VM, MAC).addresses[0]}\nname web1\npublished 8080:80\n"
    assert Network(NetworkSettings(), layout).finalize_wanted(VM, spec, MAC) is None


def test_qemu_has_the_tap_that_vm_net_makes(layout: Layout) -> None:
    arguments = argv.finalize_argv(VM, CreateVm(image="a"), layout.vm(VM), "tcg", bridged=True)
    assert f"tap,id=net,ifname=vm-{VM},script=no,downscript=no" in arguments
    assert "user,id=net" in argv.finalize_argv(VM, CreateVm(image="a"), layout.vm(VM), "tcg")


def test_ports_on_which_the_host_listens(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(TCP)
    assert find_listening([tmp_path / "tcp", tmp_path / "tcp6"]) == {22}


# vm-net, which is root, and believes nothing


@pytest.fixture
def vm_net(tmp_path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("vm_net", Path(__file__).parents[2] / "systemd/vm_net.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__dict__["STATE"] = str(tmp_path)
    (tmp_path / "vms").mkdir()
    (tmp_path / "reservations").mkdir()
    return module


OWN = {"bridge": "aetherscale0", "own": "yes", "network": CIDR}
THEIRS = {**OWN, "own": "no"}
WISH = {"mac": MAC, "address": "10.126.1.2", "name": "web1", "published": "8080:80 8443:443"}


def bring(vm_net: Any, vm_id: str, wish: dict[str, str], config: dict[str, str] = OWN) -> None:
    lines = "".join(f"{key} {value}\n" for key, value in vm_net.check(wish, config).items())
    Path(vm_net.STATE, "vms", f"{vm_id}.conf").write_text(lines)


def test_what_the_agent_tells_is_what_vm_net_reads(vm_net: Any, network: Network) -> None:
    network.take(VM)
    ports = (Publish(host_port=8080, guest_port=80), Publish(host_port=8443, guest_port=443))
    told = vm_net.parse(network.finalize_wanted(VM, CreateVm(image="a", name="web1", publish=ports), MAC))
    assert vm_net.check(told, OWN) == {**WISH, "address": network.nic(VM, MAC).addresses[0]}


def test_a_wish_that_is_right_is_taken(vm_net: Any) -> None:
    assert vm_net.check(WISH, OWN) == WISH
    assert vm_net.check(WISH, THEIRS)["address"] == ""
    assert vm_net.check({**WISH, "address": "10.126.3.254", "published": ""}, OWN)["published"] == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"mac": "52:54:00:01:02:03\n"},
        {"mac": "52:54:00:01:02"},
        {"mac": "52:54:00:01:02:03:04"},
        {"mac": "52:54:00:01:02:0G"},
        {"mac": "02:00:00:00:00:01"},
        {"mac": ""},
        {"address": "10.127.0.2"},
        {"address": "10.126.1.2 }; delete table ip nat"},
        {"address": ""},
        {"address": "10.126.1"},
        {"address": "10.126.1."},
        {"address": "10.126.1.02"},
        {"address": "10.126.1.258"},
        {"address": "10.126.1.²"},
        {"address": "10.126.0.0"},
        {"address": "10.126.0.1"},
        {"address": "10.126.3.255"},
        {"name": ""},
        {"name": "a" * 64},
        {"name": "web 1"},
        {"name": "-web"},
        {"name": "x,set:y"},
        {"published": "0:80"},
        {"published": "8080:70000"},
        {"published": "8080:80; drop"},
        {"published": "8080"},
        {"published": "8080:80:80"},
        {"published": "-1:80"},
        {"published": "٣:80"},
    ],
)
def test_a_wish_that_is_wrong_is_refused(vm_net: Any, wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        vm_net.check({**WISH, **wrong}, OWN)
    with pytest.raises(ValueError):
        vm_net.check({}, OWN)


def test_two_vms_with_one_address_or_port_are_refused(vm_net: Any) -> None:
    bring(vm_net, OTHER, WISH)
    mine = vm_net.check({**WISH, "mac": "52:54:00:09:09:09", "address": "10.126.1.3", "published": ""}, OWN)
    vm_net.refuse_clashes(VM, mine)
    for wrong, words in (
        ({"mac": MAC}, "same address"),
        ({"address": "10.126.1.2"}, "same address"),
        ({"published": "8443:81"}, f"port 8443 is published by VM {OTHER}"),
    ):
        with pytest.raises(ValueError, match=words):
            vm_net.refuse_clashes(VM, {**mine, **wrong})
    vm_net.refuse_clashes(OTHER, vm_net.check({**WISH, "published": ""}, OWN))  # itself is no clash


def test_the_rules_know_each_vm_that_is_up(vm_net: Any) -> None:
    assert "add element" not in vm_net.finalize_elements(OWN)
    assert "add rule bridge aetherscale dhcp drop" in vm_net.finalize_elements(OWN)
    bring(vm_net, VM, WISH)
    said = vm_net.finalize_elements(OWN)
    assert f'add element bridge aetherscale macs {{ "vm-{VM}" . {MAC} }}' in said
    assert f'add element bridge aetherscale addresses {{ "vm-{VM}" . {MAC} . 10.126.1.2 }}' in said
    assert "add element ip aetherscale published { 8080 : 10.126.1.2 . 80, 8443 : 10.126.1.2 . 443 }" in said
    assert f'dhcp iifname "vm-{VM}" @th,288,48 0x525400010203 return' in said
    assert "published" not in vm_net.finalize_elements(THEIRS)


def test_a_vm_that_was_started_on_another_bridge_costs_no_other_its_rules(vm_net: Any) -> None:
    bring(vm_net, OTHER, WISH, THEIRS)
    assert "published" not in vm_net.finalize_elements(OWN)
    bring(vm_net, VM, {**WISH, "published": "8080:80"})
    assert "published { 8080 : 10.126.1.2 . 80 }" in vm_net.finalize_elements(OWN)


OLD = json.dumps({**WISH, "published": [[8080, 80], [8443, 443]]})


def test_what_agents_and_roll_outs_of_before_wrote_is_read_and_goes(
    vm_net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VMs are up while a host is brought up to date, and start until its agent has had its turn."""
    vm_net.__dict__.update(WANTED=str(tmp_path / "homes"), CONFIG=str(tmp_path / "network"))
    (tmp_path / "network.json").write_text('{"bridge": "aetherscale0", "own": true, "network": "10.126.0.0/22"}')
    assert vm_net.load(vm_net.CONFIG) == {**OWN, "published": ""}
    (tmp_path / "homes" / VM).mkdir(parents=True)
    (tmp_path / "homes" / VM / "network.json").write_text(OLD)
    assert vm_net.check(vm_net.load(f"{vm_net.WANTED}/{VM}/network"), OWN) == WISH
    (tmp_path / "vms" / f"{OTHER}.json").write_text(OLD)
    assert vm_net.others(VM) == {OTHER: WISH}
    assert f'macs {{ "vm-{OTHER}" . {MAC} }}' in vm_net.finalize_elements(OWN)
    programs = Programs(vm_net, monkeypatch)
    vm_net.take_down(OTHER, OWN)
    assert "nft" in programs.called
    assert vm_net.others(VM) == {}
    with pytest.raises(ValueError, match="no object"):
        vm_net.parse_old("[1]")


class Programs:
    """Instead of `ip`, `nft` and `systemctl`: what they were told, one that fails, and the states of the VM's units."""

    def __init__(self, vm_net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.called: list[str] = []
        self.rules = ""
        self.fails, self.state, self.state_of_tap = "", "failed", "failed"
        monkeypatch.setattr(vm_net, "run", self._run)
        monkeypatch.setattr(vm_net, "begin", lambda *command, **more: lambda: self._run(*command, **more))

    def _run(self, program: str, *arguments: str, stdin: str = "") -> str:
        self.called.append(program)
        if program == self.fails:
            raise ValueError(f"{program} failed")
        if program == "nft":
            self.rules = stdin
        if program != "systemctl":
            return ""
        return self.state_of_tap if arguments[-1].startswith("aetherscale-tap@") else self.state


@pytest.fixture
def programs(vm_net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """A VM and another are up, and the first one's reservation is there."""
    vm_net.__dict__["CONFIG"] = str(tmp_path / "network")
    (tmp_path / "network.conf").write_text("".join(f"{key} {value}\n" for key, value in OWN.items()))
    vm_net.__dict__["LIMITS"] = str(tmp_path)
    bring(vm_net, VM, WISH)
    bring(vm_net, OTHER, {**WISH, "mac": "52:54:00:09:09:09", "address": "10.126.1.3", "published": ""})
    (tmp_path / "reservations" / VM).write_text(f"{MAC},10.126.1.2,web1\n")
    return Programs(vm_net, monkeypatch)


def test_what_a_failed_end_left_is_tidied_up(vm_net: Any, programs: Programs) -> None:
    programs.fails = "nft"
    with pytest.raises(ValueError, match="nft failed"):
        vm_net.work("down", VM, OWN)
    assert vm_net.is_left(VM)
    with pytest.raises(ValueError, match="nft failed"):
        vm_net.work("tidy", VM, OWN)
    programs.fails = ""
    vm_net.work("tidy", VM, OWN)
    assert not vm_net.is_left(VM)
    assert f'"vm-{OTHER}"' in programs.rules
    assert f'"vm-{VM}"' not in programs.rules
    assert set(vm_net.others("")) == {OTHER}


@pytest.mark.parametrize("state", ["activating", "active", "deactivating"])
def test_a_vm_that_is_on_again_is_not_tidied_up(vm_net: Any, programs: Programs, state: str) -> None:
    programs.state, programs.state_of_tap = state, "active"
    assert vm_net.work("tidy", VM, OWN) == 0
    assert programs.called == ["systemctl"] * 2
    assert vm_net.is_left(VM)


@pytest.mark.parametrize("left", ["ready", "limits"])
def test_what_a_down_that_was_killed_at_once_left_is_tidied_up(
    vm_net: Any, programs: Programs, tmp_path: Path, left: str
) -> None:
    vm_net.take_down(VM, OWN)
    folder = {"ready": tmp_path / "ready" / VM, "limits": tmp_path / f"aetherscale-vm@{VM}.service.d" / "50-a.conf"}
    folder[left].parent.mkdir()
    folder[left].touch()
    assert vm_net.is_left(VM)
    assert vm_net.work("tidy", VM, OWN) == 0
    assert not vm_net.is_left(VM)
    assert programs.state == "failed"


def test_one_that_is_still_on_its_way_down_is_asked_for_again(vm_net: Any, programs: Programs) -> None:
    programs.state = "deactivating"
    assert vm_net.work("tidy", VM, OWN) == 1
    assert vm_net.is_left(VM)
    programs.state = "inactive"
    assert vm_net.work("tidy", VM, OWN) == 0
    assert not vm_net.is_left(VM)


@pytest.mark.parametrize("vm_id", ["aaaaaaaa", "kvm-probe", "..", "", "Sgeqxcfi"])
def test_where_nothing_is_left_nothing_is_done(
    vm_net: Any, programs: Programs, vm_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the unit of a tap fails it is asked for, and goes on until it succeeds."""
    monkeypatch.setattr("sys.argv", ["vm-net", "tidy", vm_id])
    assert vm_net.main() == 0
    assert programs.called == []


def test_the_newer_of_two_wishes_counts(vm_net: Any, tmp_path: Path) -> None:
    """An agent that was brought up to date, and went back to what it was."""
    for number, (kind, text) in enumerate((("conf", "name new"), ("json", '{"name": "old"}'), ("conf", "name new"))):
        path = tmp_path / f"network.{kind}"
        path.write_text(text)
        os.utime(path, (number, number))
        assert vm_net.load(str(tmp_path / "network"))["name"] == ("old" if kind == "json" else "new")


def test_what_python_compiles_for_root_nobody_else_can_write(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "systemd"
    shutil.copy(folder / "vm_net.py", tmp_path)
    script = tmp_path / "vm-net"
    script.write_text((folder / "vm-net").read_text().replace("/usr/lib/aetherscale", str(tmp_path)))
    command = ["/bin/sh", "-c", 'umask 0 && exec python3 -I -S "$1" down kvm-probe', "sh", str(script)]
    subprocess.run(command, check=True)
    written = [path for path in tmp_path.rglob("*") if "__pycache__" in str(path)]
    assert len(written) == 2
    assert [path for path in written if path.stat().st_mode & 0o022] == []


def test_a_link_in_the_place_of_a_wish_is_not_followed(vm_net: Any, tmp_path: Path) -> None:
    (tmp_path / "wish").symlink_to("/etc/passwd")
    with pytest.raises(OSError):
        vm_net.read(str(tmp_path / "wish"))


def test_dnsmasq_hears_of_what_has_gone_when_another_wants_any_of_it(
    vm_net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(vm_net, "run", lambda *command: told.append(command))
    for _ in range(2):  # the same VM again is no other
        vm_net.reserve(VM, f"{MAC},10.126.1.2,web1\n")
        vm_net.forget(VM)
    vm_net.reserve(OTHER, "52:54:00:09:09:09,10.126.1.3,web2\n")
    assert told == []
    vm_net.reserve("aaaaaaaa", "52:54:00:0a:0a:0a,10.126.1.2,web3\n")
    assert told == [("systemctl", "kill", "--signal=HUP", "aetherscale-dhcp.service")]
    vm_net.reserve(VM, f"{MAC},10.126.1.9,web1\n")  # heard of already
    assert len(told) == 1
    for number in range(vm_net.MOST_GONE):
        vm_net.reserve(OTHER, f"52:54:00:01:01:{number:02x},10.126.2.{number},vm{number}\n")
        vm_net.forget(OTHER)
    assert len(told) == 1
    vm_net.reserve("bbbbbbbb", "52:54:00:0b:0b:0b,10.126.3.1,web4\n")  # so many are told in any case
    assert len(told) == 2
    assert vm_net.read_gone() == []


def test_a_dhcp_server_that_does_not_run_costs_no_vm_its_start(vm_net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_command: str) -> str:
        raise ValueError("systemctl failed: not loaded")

    monkeypatch.setattr(vm_net, "run", refuse)
    vm_net.reserve(VM, f"{MAC},10.126.1.2,web1\n")
    vm_net.forget(VM)
    vm_net.reserve(OTHER, f"{MAC},10.126.1.3,web2\n")
    assert vm_net.read_gone() == []


def test_limits_are_lifted_and_no_other_file_is_touched(vm_net: Any, tmp_path: Path) -> None:
    vm_net.__dict__["LIMITS"] = str(tmp_path)
    for vm_id in (VM, OTHER):
        (tmp_path / f"aetherscale-vm@{vm_id}.service.d").mkdir()
        (tmp_path / f"aetherscale-vm@{vm_id}.service.d" / "50-MemoryMax.conf").touch()
    vm_net.lift_limits(VM)
    vm_net.lift_limits(VM)
    assert not (tmp_path / f"aetherscale-vm@{VM}.service.d").exists()
    assert (tmp_path / f"aetherscale-vm@{OTHER}.service.d" / "50-MemoryMax.conf").exists()


@pytest.fixture
def played(vm_net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """`up` of VMs that have a user, on a host whose programs do nothing: the commands that were given."""
    told: list[tuple[str, ...]] = []

    def begin(*command: str, stdin: str = "") -> Callable[[], str]:
        told.append((*command, *stdin.splitlines()[:1]))
        return lambda: ""

    vm_net.__dict__.update(WANTED=str(tmp_path / "homes"), CONFIG=str(tmp_path / "network"), USERS=str(tmp_path))
    monkeypatch.setattr(vm_net, "begin", begin)
    monkeypatch.setattr(vm_net, "PATIENCE_S", 0.1)
    (tmp_path / "network.conf").write_text("".join(f"{key} {value}\n" for key, value in OWN.items()))
    for number, vm_id in enumerate((VM, OTHER), start=61_000):
        (tmp_path / "homes" / vm_id).mkdir(parents=True)
        (tmp_path / f"direct:aetherscale-vm-{vm_id}").symlink_to(str(number))
    return told


def want(tmp_path: Path, vm_id: str, **more: str) -> None:
    lines = "".join(f"{key} {value}\n" for key, value in {**WISH, **more}.items())
    (tmp_path / "homes" / vm_id / "network.conf").write_text(lines)


def up(vm_net: Any, vm_id: str, monkeypatch: pytest.MonkeyPatch, command: str = "up") -> int:
    monkeypatch.setattr("sys.argv", ["vm-net", command, vm_id])
    return int(vm_net.main())


def test_qemu_may_go_on_when_its_network_is_there(
    vm_net: Any, played: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want(tmp_path, VM)
    assert up(vm_net, VM, monkeypatch) == 0
    assert [path.name for path in (tmp_path / "ready").iterdir()] == [VM]
    assert [command[0] for command in played] == ["nft", "ip"]
    assert played[1][-1] == f"tuntap add vm-{VM} mode tap user 61000"
    assert up(vm_net, VM, monkeypatch, "down") == 0
    assert list((tmp_path / "ready").iterdir()) == []
    assert not any(command[0] == "systemctl" for command in played)


def test_one_without_a_network_goes_on_at_once(
    vm_net: Any, played: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert up(vm_net, vm_net.PROBE, monkeypatch) == 0
    assert (tmp_path / "ready" / vm_net.PROBE).exists()
    assert played == []


def test_qemu_that_waits_for_a_network_that_failed_is_ended(
    vm_net: Any, played: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want(tmp_path, VM, mac="52:54:00:zz:00:00")
    assert up(vm_net, VM, monkeypatch) == 1
    assert not (tmp_path / "ready").exists()
    assert played == []
    monkeypatch.setenv("SERVICE_RESULT", "exit-code")  # so systemd tells ExecStopPost=
    assert up(vm_net, VM, monkeypatch, "down") == 0
    assert played[0] == ("systemctl", "kill", "--kill-whom=main", "--signal=USR1", f"aetherscale-vm@{VM}.service")


def test_a_port_of_a_vm_that_is_about_to_go_is_waited_for(
    vm_net: Any,
    played: list[tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    want(tmp_path, VM, mac="52:54:00:09:09:09", address="10.126.1.3", published="8080:80")
    bring(vm_net, OTHER, WISH)
    assert up(vm_net, VM, monkeypatch) == 1  # it does not go
    assert f"port 8080 is published by VM {OTHER}" in capsys.readouterr().err
    assert played == []
    monkeypatch.setattr(vm_net.time, "sleep", lambda _seconds: vm_net.take_down(OTHER, OWN))
    assert up(vm_net, VM, monkeypatch) == 0


def test_a_tap_that_is_in_use_is_kept(
    vm_net: Any, played: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want(tmp_path, VM)
    monkeypatch.setattr(vm_net, "is_in_use", lambda _tap: True)
    (tmp_path / "network.conf").unlink()  # whatever has become of the configuration
    assert up(vm_net, VM, monkeypatch) == 0
    assert (tmp_path / "ready" / VM).exists()
    assert played == []


@pytest.mark.parametrize("wanted", [(), (VM,), (VM, OTHER)])
def test_vms_of_before_get_the_unit_of_a_tap_that_they_want(
    vm_net: Any, played: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, wanted: tuple[str, ...]
) -> None:
    """One that nobody wants would stop at once, and its VM with it."""

    def run(*command: str) -> str:
        played.append(command)
        return "\n".join(f"sysinit.target aetherscale-tap@{vm_id}.service" for vm_id in wanted)

    monkeypatch.setattr(vm_net, "run", run)
    vm_net.adopt([VM, OTHER])
    assert played[0][:2] == ("systemctl", "show")
    taps = [f"aetherscale-tap@{vm_id}.service" for vm_id in wanted]
    assert played[1:] == ([("systemctl", "start", "--no-block", *taps)] if taps else [])


def test_what_a_program_says_goes_with_the_error(vm_net: Any) -> None:
    assert vm_net.run("sh", "-c", "cat; echo unsaid >&2", stdin="said\n" * 20_000).count("said") == 20_000
    with pytest.raises(ValueError, match=r"^sh failed: why$"):
        vm_net.run("sh", "-c", "echo what; echo why >&2; exit 3")


# What a start waits for


def test_up_and_down_start_no_program_more_than_they_must(vm_net: Any, programs: Programs, tmp_path: Path) -> None:
    vm_net.__dict__["WANTED"] = str(tmp_path / "homes")
    (tmp_path / "homes" / VM).mkdir(parents=True)
    (tmp_path / "homes" / VM / "network.conf").write_text("".join(f"{key} {value}\n" for key, value in WISH.items()))
    vm_net.take_down(VM, OWN)
    assert programs.called == ["nft"]  # and `ip`, where QEMU did not take its tap along
    programs.called.clear()
    vm_net.bring_up(VM, OWN, 1000)
    assert sorted(programs.called) == ["ip", "nft"]
