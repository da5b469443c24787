"""The programs that the start of a VM waits for, as processes: `vm-run`, and what `vm-net` imports."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

VM = "sgeqxcfi"


@pytest.fixture
def run_vm(tmp_path: Path) -> Callable[[], "subprocess.Popen[str]"]:
    text = (Path(__file__).parents[2] / "systemd/vm-run").read_text()
    for path, other in (("/run/aetherscale-network/ready", tmp_path), ("/usr/bin/qemu-system-x86_64", "/bin/echo")):
        assert path in text
        text = text.replace(path, str(other))
    (tmp_path / "vm-run").write_text(text)
    command = ["/bin/sh", str(tmp_path / "vm-run"), VM, "-name", VM]
    return lambda: subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_vm_runs_when_its_network_is_there(run_vm: Callable[[], "subprocess.Popen[str]"], tmp_path: Path) -> None:
    process = run_vm()
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.1)
    (tmp_path / VM).touch()
    assert process.communicate(timeout=5) == (f"-name {VM}\n", "")
    assert process.returncode == 0


def test_vm_net_imports_next_to_nothing() -> None:
    """Each import of the usual ones takes longer than all that `up` does."""
    folder = Path(__file__).parents[2] / "systemd"
    told = []
    for imported in ("", f"sys.path.insert(0, {str(folder)!r}); import vm_net;"):
        code = f"import os, sys; {imported} print(*sys.modules)"
        argv = ["/usr/bin/python3", "-I", "-S", "-c", code]
        told.append(set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()))
    assert told[1] - told[0] == {"vm_net", "fcntl", "time"} - told[0]
