"""Which CAs an agent needs still, by what a broker really shows."""

import contextlib
import socket
import ssl
import subprocess
import sys
import threading

import pytest

from aetherscale_testing.certificates import Authority, Company

from .conftest import ANSIBLE

SCRIPT = (ANSIBLE / "roles/aetherscale/files/look_at_broker.py").read_text()


class Broker:
    """Shows a certificate to whoever comes, under whatever name, and asks for one if it wants to."""

    def __init__(self, pem, clients_ca=None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        if clients_ca:
            context.load_verify_locations(clients_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        self._listener = context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
        self.port = self._listener.getsockname()[1]
        self.came = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            with contextlib.suppress(OSError):  # who does not like what he sees
                self._listener.accept()[0].close()
            self.came += 1


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    return [Authority(tmp_path_factory.mktemp(name)) for name in ("old", "new")]


@pytest.fixture
def old(authorities):
    return authorities[0].ca.read_text()


@pytest.fixture
def new(authorities):
    return authorities[1].ca.read_text()


@pytest.fixture
def shows(authorities, tmp_path):
    """A broker whose certificate is from the old CA (0) or the new (1)."""

    def start(which, days=2, **more):
        file = tmp_path / f"broker{which}.pem"
        file.write_bytes(authorities[which].broker("broker.example.org", days=days))
        return Broker(file, **more)

    return start


@pytest.fixture
def known(tmp_path):
    return tmp_path / "agents-ca.pem"


def look(broker, cas, *file):
    """As the roll-out runs it on a host."""
    port = broker if isinstance(broker, int) else broker.port
    argv = [sys.executable, "-c", SCRIPT, "127.0.0.1", str(port), *map(str, file)]
    return subprocess.run(argv, input=cas, capture_output=True, text=True, timeout=30)


def former(broker, cas, file):
    done = look(broker, cas, file)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_the_old_ca_stays_while_the_broker_shows_its_certificate(shows, known, old, new):
    known.write_text(f"old = remarks, and ünïcode\n{old}")
    broker = shows(0)
    assert former(broker, new, known) == old.strip()
    known.write_text(new + old)  # what the run has written then; the same again is the same
    assert former(broker, new, known) == old.strip()


@pytest.mark.parametrize("days", [2, -0.01])
def test_and_goes_when_it_shows_the_new_one_be_it_expired(shows, known, old, new, days):
    known.write_text(new + old)
    broker = shows(1, days)
    assert former(broker, new, known) == ""


def test_a_broker_that_wants_certificates_of_clients_is_seen_as_well(shows, authorities, known, old, new):
    known.write_text(new + old)
    assert former(shows(1, clients_ca=authorities[1].ca), new, known) == ""
    assert former(shows(0, clients_ca=authorities[1].ca), new, known) == old.strip()


def test_it_stays_when_the_broker_can_not_be_seen(known, old, new):
    known.write_text(old)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    assert former(port, new, known) == old.strip()


def test_a_host_that_knows_no_other_ca_does_not_disturb_the_broker(shows, known, old, new):
    broker = shows(0)
    assert former(broker, new, known) == ""  # a new host
    for text in (new, "", "no certificate", old + new):
        known.write_text(text)
        assert former(broker, old + new, known) == ""
    assert broker.came == 0


def test_a_rotation_goes_on_only_with_a_ca_that_vouches_for_what_is_shown(shows, old, new):
    broker = shows(0)
    assert look(broker, old + new).returncode == 0
    for cas in (new, ""):  # "": the CAs of this machine
        done = look(broker, cas)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"no CA that shall be known vouches for what 127.0.0.1:{broker.port} shows\n"


def test_nothing_to_see_is_no_reason_to_refuse(new):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    assert look(port, new).returncode == 0


def test_the_chain_of_a_company(tmp_path, known, old):
    files = Company(tmp_path).issue("broker.example.org").in_one_file()
    known.write_text(old)
    broker = Broker(files.cert_file)
    assert former(broker, files.ca_file.read_text(), known) == ""
    assert former(broker, "", known) == old.strip()
