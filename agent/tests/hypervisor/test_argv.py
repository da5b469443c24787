"""From a spec to QEMU's arguments and the unit's limits."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale_agent.hypervisor import argv
from aetherscale_agent.hypervisor.config import Layout
from aetherscale_agent.ports import HypervisorError
from aetherscale_protocol.names import VM_ID_PATTERN
from aetherscale_protocol.options import CreateVm

LAYOUT = Layout(Path("/var/lib/aetherscale"), Path("/run/aetherscale"))
SPEC = CreateVm(image="ubuntu_base", cpus=2, memory=512, disk=5)


def finalize(accelerator: str = "kvm") -> list[str]:
    return argv.finalize_argv("sgeqxcfi", SPEC, LAYOUT.vm("sgeqxcfi"), accelerator)


def test_the_spec_is_in_the_arguments() -> None:
    text = " ".join(finalize())
    for part in ("-smp 2", "-m 512M", "-smbios type=1,serial=sgeqxcfi", "-accel kvm -cpu host"):
        assert part in text


def test_tcg_has_a_bounded_cache_and_no_host_cpu() -> None:
    assert "-accel tcg,tb-size=32 -cpu max" in " ".join(finalize("tcg"))


def test_the_disks_format_is_never_guessed() -> None:
    drives = [value for option, value in zip(finalize(), finalize()[1:], strict=False) if option == "-blockdev"]
    assert [drive.split(",")[0] for drive in drives] == ["driver=file", "driver=qcow2"]


def test_nothing_is_there_that_was_not_asked_for_and_the_sandbox_is_on() -> None:
    arguments = finalize()
    assert {"-nodefaults", "-no-user-config"} < set(arguments)
    assert "spawn=deny" in arguments[arguments.index("-sandbox") + 1]


def test_only_the_vms_own_files_are_named() -> None:
    paths = [word.split("=")[-1] for word in ",".join(finalize()).split(",") if "/" in word]
    assert paths
    assert all(
        path.startswith(("/var/lib/aetherscale/vms/sgeqxcfi/", "/run/aetherscale/vms/sgeqxcfi/")) for path in paths
    )


def test_what_the_console_prints_is_appended_to_its_log_whether_or_not_somebody_looks() -> None:
    (console,) = (word for word in finalize() if "id=console" in word)
    assert console.startswith("socket,")
    assert {"server=on", "wait=off", "logappend=on"} < set(console.split(","))
    assert "logfile=/var/lib/aetherscale/vms/sgeqxcfi/console.log" in console


def test_the_environment_file_is_one_line_that_systemd_splits_again() -> None:
    text = argv.finalize_env(finalize())
    assert text.count("\n") == 1
    assert text.strip().removeprefix("AETHERSCALE_QEMU_ARGS=").split(" ") == finalize()


@pytest.mark.parametrize("bad", ["", "two words", "a\nLD_PRELOAD=x", "'", '"', "\\", "$HOME"])
def test_an_argument_that_systemd_would_change_is_refused(bad: str) -> None:
    with pytest.raises(HypervisorError):
        argv.finalize_env(["-name", bad])


@given(st.from_regex(VM_ID_PATTERN, fullmatch=True))
def test_a_mac_address_is_qemus_and_lasts(vm_id: str) -> None:
    mac = argv.finalize_mac(vm_id)
    assert mac.startswith("52:54:00:")
    assert len(bytes.fromhex(mac.replace(":", ""))) == 6
    assert mac == argv.finalize_mac(vm_id)


@given(st.integers(1, 256), st.integers(64, 4 << 20))
def test_the_limits_hold_the_guest_and_its_qemu(cpus: int, memory: int) -> None:
    spec = CreateVm(image="x", cpus=cpus, memory=memory)
    kvm, tcg = argv.finalize_limits(spec, "kvm"), argv.finalize_limits(spec, "tcg")
    assert kvm["MemoryMax"] >= (memory + 200) << 20
    assert tcg["MemoryMax"] == kvm["MemoryMax"] + (argv.TRANSLATION_CACHE << 20)
    assert cpus * 1_000_000 < kvm["CPUQuotaPerSecUSec"] < (cpus + 1) * 1_000_000


def test_the_seed_disc_is_read_only_and_of_no_guessed_format() -> None:
    text = " ".join(argv.finalize_seed(LAYOUT.vm("sgeqxcfi")))
    assert "driver=file,node-name=seed,filename=/var/lib/aetherscale/vms/sgeqxcfi/seed.iso,read-only=on" in text
    assert "virtio-blk-pci,drive=seed" in text
    assert "format" not in text


def test_a_seed_disc_takes_nothing_from_the_devices_before_it() -> None:
    assert not set(argv.finalize_seed(LAYOUT.vm("sgeqxcfi"))[1::2]) & set(finalize())
    assert "node-name=seed" not in " ".join(finalize())


def test_the_guest_agents_port_is_the_vms_own_and_takes_nothing_from_the_devices_before_it() -> None:
    port = argv.finalize_guest_agent(LAYOUT.vm("sgeqxcfi"))
    text = " ".join(port)
    assert "path=/run/aetherscale/vms/sgeqxcfi/guest.sock,server=on,wait=off" in text
    assert "virtserialport,chardev=guest-agent,name=org.qemu.guest_agent.0" in text
    assert not set(port[1::2]) & {*finalize(), *argv.finalize_seed(LAYOUT.vm("sgeqxcfi"))}
