"""The fleet's CA and certificates: made once, renewed in time, changed in steps, and nobody else's."""

import dataclasses
import datetime
import json
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from aetherscale_testing.certificates import Company

from .conftest import ANSIBLE, load

NAMES = ["10.0.0.1", "broker1"]
EXPIRED = {"days": -0.01, "renew_days": -1}
SCRIPT = ANSIBLE / "roles/aetherscale/files/make_certificates.py"


@pytest.fixture(scope="module")
def maker():
    return load("roles/aetherscale/files/make_certificates.py")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tls"


def make(folder, what="--make", **wanted):
    text = json.dumps({"names": NAMES, "days": 365, "renew_days": 30, **wanted})
    return subprocess.run(
        [sys.executable, SCRIPT, what, folder], input=text, capture_output=True, text=True, timeout=60
    )


def said(done):
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.pem")}


def accepts(maker, folder, name, ca=None):
    """Whether an agent with this CA file (default: the folder's) accepts the folder's broker under this name."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "broker.pem")
    client = ssl.create_default_context(cadata=(ca or (folder / "ca.pem").read_bytes()).decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # Python's default from 3.13 on
    try:
        maker.shake_hands(client, server, name)
    except ssl.SSLCertVerificationError:
        return False
    return True


def test_an_agent_accepts_the_broker_by_its_names_and_no_other(maker, folder):
    said(make(folder))
    assert [accepts(maker, folder, name) for name in (*NAMES, "h1", "10.0.0.2")] == [True, True, False, False]


def test_nobody_else_reads_a_key(folder):
    said(make(folder, clients=["operator"]))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
    assert modes == {"tls": 0o700, "clients": 0o700, "ca.pem": 0o644, "authority.pem": 0o600, "broker.pem": 0o600,
                     "operator.pem": 0o600}  # fmt: skip
    assert b"PRIVATE" not in (folder / "ca.pem").read_bytes()
    (folder / "broker.pem").chmod(0o644)
    assert "closed" in said(make(folder, clients=["operator"]))
    assert stat.S_IMODE((folder / "broker.pem").stat().st_mode) == 0o600


def test_a_second_run_does_nothing(folder):
    said(make(folder, clients=["operator"]))
    before = files(folder)
    assert said(make(folder, clients=["operator"])) == ""
    assert files(folder) == before


@pytest.mark.parametrize("change", ["none", "prepare", "switch", "finish"])
def test_a_check_writes_nothing_and_tells_the_same(folder, change):
    for step in {"switch": ["prepare"], "finish": ["prepare", "switch"]}.get(change, []):
        said(make(folder, ca_change=step))
    before = files(folder)
    told = said(make(folder, "--check", ca_change=change, clients=["a"]))
    assert files(folder) == before
    assert said(make(folder, ca_change=change, clients=["a"])) == told != ""


@pytest.mark.parametrize(
    ("first", "then", "why"),
    [
        ({"days": 20, "renew_days": 1}, {}, "it had 20 days left"),
        (EXPIRED, {}, "it had expired"),
        ({}, {"names": [*NAMES, "broker.example.org"]}, "the names are now 10.0.0.1, broker1, broker.example.org"),
        ({}, {"days": 400, "renew_days": 366}, "it had 365 days left"),
    ],
)
def test_the_certificate_is_made_anew_and_the_ca_stays(folder, first, then, why):
    said(make(folder, **first))
    before = files(folder)
    assert said(make(folder, **then)) == f"made {folder}/broker.pem ({why})\n"
    assert files(folder)["ca.pem"] == before["ca.pem"]
    assert said(make(folder, **then)) == ""


def test_a_ca_that_ends_is_made_anew_with_its_key_and_nobody_is_shut_out(maker, folder, monkeypatch):
    monkeypatch.setattr(maker, "CA_DAYS", maker.CA_RENEW_DAYS - 1)
    wanted = maker.Wanted(NAMES, 365, 30)
    list(maker.ensure(folder, wanted, check=False))
    old = files(folder)
    monkeypatch.undo()
    assert list(maker.ensure(folder, wanted, check=False)) == [
        f"made {folder}/{name}" for name in ("authority.pem", "ca.pem")
    ]
    assert files(folder)["broker.pem"] == old["broker.pem"]  # what it signed is good still
    assert accepts(maker, folder, "broker1")
    (folder / "broker.pem").unlink()
    said(make(folder))
    assert accepts(maker, folder, "broker1", old["ca.pem"])  # and who has the older one knows what it signs now


def test_a_certificate_ends_no_later_than_its_ca(maker):
    authority = maker.make_authority()
    pair = maker.make_signed(authority, NAMES, 10_000, maker.ExtendedKeyUsageOID.SERVER_AUTH)
    assert pair.certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc
    assert pair.certificate.not_valid_before_utc < datetime.datetime.now(datetime.UTC)


def test_a_new_ca_comes_in_three_runs_and_nobody_is_shut_out(maker, folder):
    said(make(folder))
    first = files(folder)
    said(make(folder, ca_change="prepare"))
    both = files(folder)
    assert both["broker.pem"] == first["broker.pem"]
    said(make(folder, ca_change="switch"))
    assert accepts(maker, folder, "broker1", both["ca.pem"])
    assert not accepts(maker, folder, "broker1", first["ca.pem"])
    assert files(folder)["ca.pem"].count(b"BEGIN") == 2
    said(make(folder, ca_change="finish"))
    assert accepts(maker, folder, "broker1")
    assert files(folder)["ca.pem"].count(b"BEGIN") == 1
    assert sorted(files(folder)) == ["authority.pem", "broker.pem", "ca.pem"]


@pytest.mark.parametrize("step", ["switch", "finish"])
def test_a_step_out_of_turn_changes_nothing(folder, step):
    said(make(folder))
    assert said(make(folder, ca_change=step)) == ""


@pytest.mark.parametrize("step", ["switch", "none"])
def test_a_switch_that_was_interrupted_is_finished_by_the_next_run(maker, folder, step):
    said(make(folder))
    said(make(folder, ca_change="prepare"))
    (folder / "authority.pem").write_bytes((folder / "next-authority.pem").read_bytes())
    (folder / "old-ca.pem").write_bytes(
        files(folder)["ca.pem"].split(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n"
    )
    old = (folder / "old-ca.pem").read_bytes()
    said(make(folder, ca_change=step))
    assert (folder / "old-ca.pem").read_bytes() == old
    assert accepts(maker, folder, "broker1")
    assert "next-authority.pem" not in files(folder)


@pytest.mark.parametrize("content", ["", "garbage"])
def test_a_file_that_is_none_of_ours_is_named_and_kept(folder, content):
    said(make(folder))
    (folder / "authority.pem").write_text(content)
    done = make(folder)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {folder}/authority.pem holds no certificate with its key")
    assert (folder / "authority.pem").read_text() == content


def test_days_that_would_renew_at_every_run_are_refused(folder):
    done = make(folder, days=30)
    assert done.returncode == 1
    assert "aetherscale_tls_renew_days is 30, and must be less than aetherscale_tls_days, 30" in done.stderr
    assert not folder.exists()


def test_a_certificate_that_lasts_as_long_as_its_ca_is_not_made_again_and_again(folder):
    said(make(folder, days=3660, renew_days=3655))
    assert said(make(folder, days=3660, renew_days=3655)) == ""


def test_a_name_that_no_certificate_can_have(folder):
    done = make(folder, names=["brøker"])
    assert done.returncode == 1
    assert done.stderr == "error: 'brøker' can't stand in a certificate: write it in ASCII, as DNS has it\n"


class TestOwnCertificate:
    @pytest.fixture
    def own(self, folder):
        said(make(folder))
        broker, ca = str(folder / "broker.pem"), str(folder / "ca.pem")
        return {"cert_file": broker, "key_file": broker, "ca_file": ca}

    def refused(self, folder, *words, **wanted):
        done = make(folder / "none", **wanted)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        for word in words:
            assert word in done.stderr
        assert not (folder / "none").exists()

    def test_one_that_agents_accept_is_taken_and_nothing_is_made(self, folder, own):
        assert said(make(folder / "none", **own)) == ""
        assert not (folder / "none").exists()

    def test_the_operators_ca_and_ours_for_clients(self, folder, own):
        said(make(folder / "ours", clients=["operator"], **own))
        assert sorted(files(folder / "ours")) == ["authority.pem", "ca.pem", "clients/operator.pem"]

    def test_one_for_another_name(self, folder, own):
        self.refused(folder, "agents would refuse", "not valid for '10.9.9.9'", **own, names=["10.9.9.9"])

    def test_one_from_a_ca_that_nobody_knows(self, folder, own):
        self.refused(folder, "agents would refuse", "local issuer", **own | {"ca_file": ""})

    def test_one_that_has_expired(self, folder, own):
        (folder / "broker.pem").unlink()
        said(make(folder, **EXPIRED))
        self.refused(folder, "agents would refuse", "expired", **own)

    def test_another_key(self, folder, own):
        self.refused(folder, "can't use", "KEY_VALUES_MISMATCH", **own | {"key_file": str(folder / "authority.pem")})

    @pytest.mark.parametrize("missing", ["cert_file", "key_file"])
    def test_half_of_it(self, folder, own, missing):
        self.refused(folder, "aetherscale_tls_cert_file", "aetherscale_tls_key_file", **own | {missing: ""})

    @pytest.mark.parametrize("which", ["cert_file", "key_file", "ca_file"])
    def test_a_file_that_is_not_there(self, folder, own, which):
        self.refused(folder, "/nope.pem", "No such file", **own | {which: "/nope.pem"})

    @pytest.mark.parametrize("label", ["X509 CERTIFICATE", "TRUSTED CERTIFICATE"])
    @pytest.mark.parametrize("which", ["cert_file", "ca_file"])
    def test_what_openssl_knows_and_the_broker_does_not(self, folder, own, tmp_path, which, label):
        other = tmp_path / "other.pem"
        other.write_text(Path(own[which]).read_text().replace(" CERTIFICATE", f" {label}"))
        self.refused(folder, f"{other} holds a {label}, and only", **own | {which: str(other)})

    @pytest.mark.parametrize(
        ("which", "what"), [("cert_file", "certificate"), ("key_file", "key"), ("ca_file", "certificate")]
    )
    def test_a_file_without_it(self, folder, own, tmp_path, which, what):
        other = tmp_path / "other.pem"
        other.write_text("remarks, and no more")
        self.refused(folder, f"{other} holds no {what} as PEM", **own | {which: str(other)})

    def test_a_binary_file(self, folder, own, tmp_path):
        binary = tmp_path / "broker.der"
        binary.write_bytes(ssl.PEM_cert_to_DER_cert(Path(own["ca_file"]).read_text()))
        self.refused(folder, f"{binary} is no PEM", **own | {"cert_file": str(binary)})

    def test_one_that_ends_soon_is_taken_with_a_warning(self, folder, own):
        done = make(folder / "none", **own, days=400, renew_days=366)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == f"warning: {own['cert_file']} has 365 days left, and only you can renew it\n"

    def test_a_relative_path(self, folder, own):
        self.refused(folder, "tls/x.pem: write the whole path", **own | {"key_file": "tls/x.pem"})


@pytest.fixture(scope="module")
def company(tmp_path_factory):
    return Company(tmp_path_factory.mktemp("company"))


class TestCertificateOfACompany:
    """A chain to a root, RSA, and files of their own."""

    def refused(self, folder, files, word):
        done = make(folder, **files.given)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert word in done.stderr
        assert not folder.exists()

    def test_it_is_taken(self, folder, company):
        assert said(make(folder, **company.issue(*NAMES).given)) == ""
        assert not folder.exists()

    def test_one_file_with_all_of_it_is_taken(self, folder, company):
        assert said(make(folder, **company.issue(*NAMES).in_one_file().given)) == ""

    def test_the_broker_gets_the_text_that_was_tried(self, maker, broker, company):
        for own in (company.issue(*NAMES), company.issue(*NAMES).in_one_file()):
            texts = [Path(own.cert_file).read_text(), Path(own.key_file).read_text()]
            wanted = maker.Wanted(NAMES, 365, 30, **own.given)
            assert maker.broker_text(wanted) == broker.broker_certificate(texts)

    def test_without_what_leads_to_its_root_it_is_refused(self, folder, company):
        files = company.issue(*NAMES)
        own = files.cert_file.read_text().split("-----BEGIN")[1]
        files.cert_file.write_text(f"-----BEGIN{own}")
        self.refused(folder, files, "local issuer")

    def test_the_ca_that_issued_it_is_not_enough_without_its_root(self, folder, company, tmp_path):
        """It is for Python 3.13, and not for 3.11."""
        files = company.issue(*NAMES)
        issuing = tmp_path / "issuing.pem"
        issuing.write_text("-----BEGIN" + files.cert_file.read_text().split("-----BEGIN")[2])
        self.refused(folder, dataclasses.replace(files, ca_file=issuing), "issuer certificate")

    def test_what_only_an_older_python_accepts_is_refused(self, maker, folder, tmp_path):
        files = Company(tmp_path, lax=True).issue(*NAMES)
        client = ssl.create_default_context(cafile=str(files.ca_file))
        client.verify_flags &= ~ssl.VERIFY_X509_STRICT
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(files.cert_file, files.key_file)
        maker.shake_hands(client, server, NAMES[0])  # the control
        self.refused(folder, files, f"agents would refuse {files.cert_file}")

    def test_nobody_is_asked_for_a_passphrase(self, folder, company):
        self.refused(folder, company.issue(*NAMES, passphrase="secret"), "aetherscale_tls_key_file has a passphrase")


def test_what_is_made_anew_although_it_is_good(folder):
    said(make(folder, clients=["alice", "bob"]))
    before = files(folder)
    told = said(make(folder, clients=["alice", "bob"], anew=["broker.pem", "clients/bob.pem"]))
    assert told.count("(a new one was asked for)") == 2
    after = files(folder)
    assert {name for name in after if after[name] != before[name]} == {"broker.pem", "clients/bob.pem"}
    assert said(make(folder, clients=["alice", "bob"])) == ""


def test_what_is_another_inventorys_is_left_alone(folder):
    said(make(folder, clients=["alice", "dave"]))
    before = files(folder)
    assert said(make(folder, clients=["alice"])) == ""
    assert said(make(folder)) == ""
    assert files(folder) == before
