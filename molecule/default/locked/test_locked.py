"""Back from play mode, all is locked, with a certificate of the operator's own; who has left is out; then the CA is the
fleet's again, and a new one comes in its three steps, unnoticed.

The last step but destroy. Hosts come here in play mode, with whatever VMs ran there.
"""

import json
import os
import re
import shutil
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from pika.exceptions import AMQPError
from testinfra.host import Host

from aetherscale_testing.certificates import OwnFiles, shown_to
from aetherscale_testing.client import parameters_of
from aetherscale_testing.rollout import Rollout

testinfra_hosts = ["broker1"]  # once, not per host; tests that want `host` come first, whatever the file's order

HOSTS = ["h1", "h2"]
WITH_CLIENTS = ("-e", "aetherscale_tls_client_certificates=true")
TLS = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "secrets", "tls")
FLEETS_CA = TLS / "ca.pem"
CLIS_CA = "*.ca.pem"
"""Beside the CLI's context, in a laptop's folder of contexts."""
Vm = tuple[str, str, str]


@pytest.fixture
def older(rollout: Rollout, tmp_path: Path) -> Path:
    """Another laptop, which got the operator's files before what a test does next: XDG_CONFIG_HOME."""
    shutil.copytree(context_file(rollout).parents[1], tmp_path / "aetherscale")
    return tmp_path


def context_file(rollout: Rollout) -> Path:
    return Path(rollout.broker()["ca_file"]).parent / "context.toml"


def works(rollout: Rollout, kept: Vm) -> None:
    """All hosts answer, and the VM is the process that it was."""
    vm_id, host, pid = kept
    assert sorted(answer["host"] for answer in rollout.ask("list-vms")) == HOSTS
    assert (rollout.show(vm_id, 0)["host"], rollout.unit(vm_id, "MainPID")) == (host, pid)


def test_nothing_of_play_mode_is_left(host: Host, rollout: Rollout, kept: Vm, back: Any) -> None:
    assert "PLAY MODE" not in back.said
    works(rollout, kept)
    broker = urlsplit(rollout.broker()["url"])
    assert (broker.scheme, broker.username) == ("amqps", "operator")
    assert not host.socket("tcp://5672").is_listening
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((str(broker.hostname), 5672), 10)
    assert not re.search(r"^guest\b", host.check_output("rabbitmqctl --quiet list_users"), re.MULTILINE)
    loopback = host.check_output("rabbitmqctl --quiet eval 'application:get_env(rabbit, loopback_users).'")
    assert "guest" in loopback


def shown(rollout: Rollout, ca: Path | None = None) -> bytes:
    """The certificate that the broker shows to somebody who knows this CA (default: the CLI's)."""
    url = urlsplit(rollout.broker()["url"])
    return shown_to(str(ca or rollout.broker()["ca_file"]), str(url.hostname), url.port or 5671)


def assert_known(rollout: Rollout, fleet: dict[str, Host], ca: Path) -> None:
    """Agents and the CLI know this CA, and no other."""
    known = [fleet[name].file("/etc/aetherscale/ca.pem").content_string for name in HOSTS]
    assert {*known, Path(rollout.broker()["ca_file"]).read_text()} == {ca.read_text()}


def test_the_broker_shows_the_operators_own_certificate(
    host: Host, rollout: Rollout, fleet: dict[str, Host], kept: Vm, own: OwnFiles
) -> None:
    works(rollout, kept)
    assert shown(rollout) == own.der
    assert_known(rollout, fleet, own.ca_file)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"local issuer|self-signed"):
        shown(rollout, FLEETS_CA)
    file = host.file("/etc/rabbitmq/aetherscale.pem")
    assert (file.user, file.group, file.mode) == ("root", "rabbitmq", 0o640)
    assert re.findall("-----BEGIN (.*)-----", file.content_string) == ["CERTIFICATE"] * 2 + ["RSA PRIVATE KEY"]
    assert host.file("/etc/rabbitmq/aetherscale-clients-ca.pem").content_string == FLEETS_CA.read_text()


def test_a_password_alone_lets_nobody_in(rollout: Rollout, older: Path) -> None:
    broker = rollout.broker()
    assert pika.BlockingConnection(parameters_of(broker)).is_open
    with pytest.raises((AMQPError, OSError)):
        pika.BlockingConnection(parameters_of({key: value for key, value in broker.items() if key != "cert_file"}))
    (context,) = (older / "aetherscale" / "contexts").glob("*.toml")
    context.write_text(re.sub(r"(?m)^cert_file.*\n", "", context.read_text()))
    done = rollout.cli("list-vms", "-o", "table", check=False, environ={"XDG_CONFIG_HOME": str(older)})
    assert done.returncode == 3
    assert "wants a certificate of ours" in done.stderr
    assert "hint: set cert_file" in done.stderr


def test_each_has_a_certificate_that_nobody_else_reads(fleet: dict[str, Host], rollout: Rollout) -> None:
    assert Path(rollout.broker()["cert_file"]).stat().st_mode & 0o777 == 0o600
    for name in HOSTS:
        key = fleet[name].file("/etc/aetherscale/client.pem")
        assert (key.user, key.group, key.mode) == ("root", "aetherscale", 0o640)
    assert rollout.cli("doctor", check=False).returncode == 0
    assert "our own certificate: " in rollout.cli("doctor").stdout


def test_a_rotation_makes_the_certificates_of_clients_anew(
    rollout: Rollout,
    fleet: dict[str, Host],
    kept: Vm,
    site: Callable[..., Any],
    everybody: tuple[str, ...],
    own: OwnFiles,
) -> None:
    def certificates() -> list[str]:
        hosts = [fleet[name].check_output("sha256sum /etc/aetherscale/client.pem") for name in HOSTS]
        return [*hosts, Path(rollout.broker()["cert_file"]).read_text()]

    before = certificates()
    unknown = json.dumps(dict.fromkeys(own.variables, ""))  # what the fleet's own CA vouches for is not shown yet
    refused = site(*everybody, "-e", unknown, playbook="rotate.yml")
    assert refused.code != 0, refused.said
    assert "Run site.yml first" in " ".join(refused.said.split())
    assert certificates() == before
    run = site(*everybody, playbook="rotate.yml")
    assert run.code == 0, run.said
    works(rollout, kept)
    assert not set(before) & set(certificates())
    assert shown(rollout) == own.der
    assert pika.BlockingConnection(parameters_of(rollout.broker())).is_open


def test_new_files_renew_the_operators_own_certificate(
    rollout: Rollout,
    fleet: dict[str, Host],
    kept: Vm,
    site: Callable[..., Any],
    everybody: tuple[str, ...],
    own: OwnFiles,
    issue: Callable[[], OwnFiles],
) -> None:
    """From one file with certificates and key. Nothing else changes: neither the rotation nor this leaves anything."""
    renewed = issue().in_one_file()
    assert renewed.der != own.der
    wanted = (*everybody, "-e", json.dumps(renewed.variables))
    check = site(*wanted, "--check")
    written = ("rabbitmq : Write the broker's certificate and key", "broker1")
    assert (check.code, check.changed) == (0, {written}), check.said
    assert shown(rollout) == own.der
    run = site(*wanted)
    taken = ("rabbitmq : Have the broker take a renewed certificate", "broker1")
    assert (run.code, run.changed) == (0, {written, taken}), run.said
    assert shown(rollout) == renewed.der
    works(rollout, kept)
    assert_known(rollout, fleet, own.ca_file)
    text = fleet["broker1"].file("/etc/rabbitmq/aetherscale.pem").content_string
    assert re.findall("-----BEGIN (.*)-----", text) == ["CERTIFICATE"] * 2 + ["RSA PRIVATE KEY"]


@dataclass
class Before:
    """From before an operator left, the fleet's own CA was taken again, and its first step to a new one: one run of
    site.yml did all of it."""

    older: Path  #: the laptop of somebody who knew the fleet's CA: XDG_CONFIG_HOME
    mallory: Any  #: a connection of who has left
    laptop: dict[str, str]  #: and where his CLI finds his context
    changed: set[tuple[str, str]]  #: which tasks of the run changed which host


@pytest.fixture(scope="module")
def before(
    rollout: Rollout,
    site: Callable[..., Any],
    broker_of: Callable[[str], dict[str, Any]],
    laptop_of: Callable[[str], dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Before:
    older = tmp_path_factory.mktemp("older")
    shutil.copytree(context_file(rollout).parents[1], older / "aetherscale")
    (known,) = (older / "aetherscale" / "contexts").glob(CLIS_CA)
    shutil.copy(FLEETS_CA, known)
    mallory = pika.BlockingConnection(parameters_of(broker_of("mallory"), heartbeat=0))
    laptop = laptop_of("mallory")
    assert len(json.loads(rollout.cli("list-vms", environ=laptop).stdout)) == len(HOSTS)
    # Nobody but `operator` is named, and no certificate of one's own.
    run = site(*WITH_CLIENTS, "-e", "aetherscale_tls_ca_change=prepare")
    assert run.code == 0, run.said
    return Before(older, mallory, laptop, run.changed)


def test_an_operator_who_has_left_is_cut_off_and_refused(rollout: Rollout, before: Before) -> None:
    with pytest.raises(AMQPError):
        before.mallory.process_data_events(5)
    # Else it would be the broker's certificate, from the fleet's own CA again, that ends it.
    shutil.copy(rollout.broker()["ca_file"], Path(before.laptop["XDG_CONFIG_HOME"], "ca_file"))
    done = rollout.cli("list-vms", "-o", "table", check=False, environ=before.laptop)
    assert done.returncode == 3, done
    assert "refused the login of user 'mallory'" in done.stderr


def test_the_fleets_own_ca_is_back(
    rollout: Rollout, fleet: dict[str, Host], kept: Vm, before: Before, own: OwnFiles
) -> None:
    both, one = "Write the CAs by which the agent knows the broker", "Forget the CAs by which it is known no more"
    assert {(f"agent : {task}", name) for task in (both, one) for name in HOSTS} <= before.changed
    works(rollout, kept)
    assert ssl.DER_cert_to_PEM_cert(shown(rollout)) in (TLS / "broker.pem").read_text()
    assert_known(rollout, fleet, FLEETS_CA)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"local issuer|self-signed"):
        shown(rollout, own.ca_file)


def test_a_new_ca_in_three_steps(rollout: Rollout, kept: Vm, before: Before, site: Callable[..., Any]) -> None:
    works(rollout, kept)
    cas, older = [Path(rollout.broker()["ca_file"]).read_text()], before.older
    for step in ("switch", "finish"):
        run = site(*WITH_CLIENTS, "-e", f"aetherscale_tls_ca_change={step}")
        assert run.code == 0, run.said
        works(rollout, kept)
        cas.append(Path(rollout.broker()["ca_file"]).read_text())
    old = next((older / "aetherscale" / "contexts").glob(CLIS_CA)).read_text()
    assert [text.count("BEGIN CERT") for text in (old, *cas)] == [1, 2, 2, 1]
    assert old in cas[0]
    assert cas[2] in cas[0]
    assert cas[2] != old
    done = rollout.cli("list-vms", "-o", "table", check=False, environ={"XDG_CONFIG_HOME": str(older)})
    assert done.returncode == 3, "who has only the old CA no longer trusts this broker"
    assert "ca_file" in done.stderr
    again = site(*WITH_CLIENTS)
    assert (again.code, again.changed) == (0, set()), again.said
