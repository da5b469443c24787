"""The agent's configuration: complete when it is good, and every bad key named."""

import re
import socket
from pathlib import Path

import pytest

from aetherscale_agent.config import AgentConfig, load_config
from aetherscale_protocol.settings import SettingsError

SECRET = "hunter2-hunter2"

WHOLE = f"""
host = "h1"
fleet = ["h2", "h1", "h2"]
state_dir = "/srv/state"
run_dir = "/srv/run"
heartbeat = 7

[broker]
url = "amqps://agent-h1@10.0.0.1:5671/aetherscale"
password = "{SECRET}"
ca_file = "/etc/aetherscale/ca.pem"

[resources]
cpus = 4
memory = 4096
disk = 100
cpu_overcommit = 2.5
memory_overcommit = 1.5
reserve_memory = 512

[hypervisor]
accelerator = "tcg"
"""


def load(tmp_path: Path, text: str | bytes, **environ: str) -> AgentConfig:
    path = tmp_path / "agent.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path, environ)


def refusal(tmp_path: Path, text: str | bytes, **environ: str) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text, **environ)
    return caught.value


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    config = load(tmp_path, WHOLE)
    assert (config.host, config.fleet, config.heartbeat) == ("h1", ["h1", "h2"], 7)
    assert (config.state_dir, config.run_dir) == ("/srv/state", "/srv/run")
    assert (config.broker.user, config.broker.password, config.broker.tls) == ("agent-h1", SECRET, True)
    assert (config.resources.cpus, config.resources.memory, config.resources.disk) == (4, 4096, 100)
    assert (config.resources.cpu_overcommit, config.resources.reserve_memory) == (2.5, 512)
    assert config.resources.memory_overcommit == 1.5
    assert config.hypervisor.accelerator == "tcg"


def test_its_password_is_not_shown(tmp_path: Path) -> None:
    assert SECRET not in repr(load(tmp_path, WHOLE))


@pytest.mark.parametrize("text", [None, ""])
def test_nothing_is_enough_for_a_broker_on_this_machine(
    tmp_path: Path, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Node-7.Example.ORG")
    config = load_config(None, {}) if text is None else load(tmp_path, text)
    assert config.host == "node-7.example.org"
    assert (config.fleet, config.heartbeat) == ([], 5)
    assert config.resources.memory_overcommit == 1.0, "nobody is promised what is not there, unless told so"
    assert (config.broker.host, config.broker.user, config.broker.vhost) == ("localhost", "guest", "/")


def test_the_environment_names_the_broker(tmp_path: Path) -> None:
    config = load(tmp_path, WHOLE, RABBITMQ_HOST="10.9.9.9")
    assert config.broker.url == "amqps://agent-h1@10.9.9.9:5671/aetherscale"
    assert config.broker.password == SECRET


BAD = [
    # what is wrong, what the error must name
    ('hots = "h1"', "hots"),
    ("host = 7", "$.host"),
    ('fleet = "h1"', "$.fleet"),
    ("fleet = [1]", "$.fleet"),
    ('host = "H1"', "'H1'"),
    ('host = "h1/x"', "'h1/x'"),
    ('host = "h1\\n"', "'h1\\n'"),
    ('fleet = ["h1", "h_2"]', "'h_2'"),
    ('fleet = [""]', "''"),
    ("heartbeat = 0", "heartbeat"),
    ("heartbeat = 61", "heartbeat"),
    ("heartbeat = -5", "heartbeat"),
    ('heartbeat = "5"', "$.heartbeat"),
    ("heartbeat = true", "$.heartbeat"),
    ("state_dir = 1", "$.state_dir"),
    ("broker = 1", "$.broker"),
    ('[broker]\nurl = "http://h/"', "url"),
    ('[broker]\nuri = "amqp://h/"', "uri"),
    ("[broker]\npassword = 1", "$.broker.password"),
    ('[broker]\nca_file = "/ca.pem"', "ca_file"),
    ("[resources]\ncpu = 1", "cpu"),
    ('[resources]\ncpus = "4"', "$.resources.cpus"),
    ("[resources]\nmemory = 1.5", "$.resources.memory"),
    ("[resources]\ncpus = 0", "$.resources.cpus"),
    ("[resources]\nmemory = -1", "$.resources.memory"),
    ("[resources]\ndisk = -1", "$.resources.disk"),
    ("[resources]\nreserve_memory = -1", "$.resources.reserve_memory"),
    ("[resources]\ncpu_overcommit = 0", "$.resources.cpu_overcommit"),
    ("[resources]\ncpu_overcommit = -1.0", "$.resources.cpu_overcommit"),
    ("[resources]\nmemory_overcommit = 0.0", "$.resources.memory_overcommit"),
    ("[resources]\nmemory_overcommit = -1.5", "$.resources.memory_overcommit"),
    ("[resources]\nmemory_overcommit = 1001.0", "$.resources.memory_overcommit"),
    ('[resources]\nmemory_overcommit = "2"', "$.resources.memory_overcommit"),
    ('[hypervisor]\naccelerator = "xen"', "accelerator"),
    ('[hypervisor]\nkvm = "yes"', "kvm"),
    ("host = ", "agent.toml"),
    ('host = "h1"\nhost = "h2"', "agent.toml"),
    (b"\xff\xfe", "agent.toml"),
]


@pytest.mark.parametrize(("text", "name"), BAD)
def test_what_is_wrong_is_named(tmp_path: Path, text: str | bytes, name: str) -> None:
    assert name in str(refusal(tmp_path, text))


@pytest.mark.parametrize("text", [f'[broker]\npassword = "{SECRET}"\nurl = 7', f'[broker]\npassword = "{SECRET}'])
def test_no_error_repeats_the_password(tmp_path: Path, text: str) -> None:
    error = refusal(tmp_path, text)
    assert SECRET not in f"{error} {error.hint}"


@pytest.mark.parametrize("environ", ["a b", "amqp://h", "h:port"])
def test_a_broker_in_the_environment_that_is_none_is_named(tmp_path: Path, environ: str) -> None:
    assert "RABBITMQ_HOST" in str(refusal(tmp_path, WHOLE, RABBITMQ_HOST=environ))


def test_a_machine_whose_name_is_no_host_name_must_be_told_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "my_laptop")
    with pytest.raises(SettingsError, match="my_laptop") as caught:
        load_config(None, {})
    assert "host" in (caught.value.hint or "")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=re.escape(str(tmp_path))):
        load_config(tmp_path / "missing.toml", {})
    with pytest.raises(SettingsError, match="directory"):
        load_config(tmp_path, {})
