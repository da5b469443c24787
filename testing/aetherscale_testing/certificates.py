"""Certificates for private brokers, made by the roll-out's own script, good ones and bad ones."""

import datetime
import importlib.util
import os
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

if TYPE_CHECKING:
    from aetherscale_testing.rollout import Rollout

SHOWN = "/etc/rabbitmq/aetherscale.pem"
READ_AGAIN = ("rabbitmqctl", "--quiet", "eval", "ssl:clear_pem_cache().")
"""What has a broker take a renewed certificate, as the roll-out does."""

SCRIPT = Path(__file__).resolve().parents[2] / "ansible/roles/aetherscale/files/make_certificates.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("aetherscale_make_certificates", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


maker: Any = _load()


class Authority:
    """A CA in a folder of its own, where `ca` is the file that clients get."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._pair = maker.make_authority()
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(maker.pem_of(self._pair.certificate))

    def broker(self, *names: str, days: float = 2) -> bytes:
        """A broker's certificate with its key; a negative number of days: it has expired since."""
        return self._sign(names, days, maker.ExtendedKeyUsageOID.SERVER_AUTH)

    def client(self, user: str, days: float = 2) -> Path:
        """A user's certificate with its key, in a file."""
        path = self.folder / f"{user}.pem"
        path.write_bytes(self._sign([user], days, maker.ExtendedKeyUsageOID.CLIENT_AUTH))
        return path

    def _sign(self, names: Any, days: float, usage: Any) -> bytes:
        pem: bytes = maker.make_signed(self._pair, names, days, usage).pem
        return pem


@dataclass(frozen=True)
class OwnFiles:
    """An operator's own certificate, as the roll-out takes it."""

    cert_file: Path  #: with the certificate that leads to the CA
    key_file: Path
    ca_file: Path
    der: bytes  #: the certificate itself, as a handshake shows it

    def in_one_file(self) -> "OwnFiles":
        """The same, with key and certificates in one file beside the others."""
        both = self.cert_file.with_suffix(".pem")
        both.touch(0o600)
        both.write_bytes(self.key_file.read_bytes() + self.cert_file.read_bytes())
        return replace(self, cert_file=both, key_file=both)

    @property
    def given(self) -> dict[str, str]:
        """Whole paths, by what the roll-out calls them."""
        return {name: str(getattr(self, name)) for name in ("cert_file", "key_file", "ca_file")}

    @property
    def variables(self) -> dict[str, str]:
        """The roll-out's variables."""
        return {f"aetherscale_tls_{name}": path for name, path in self.given.items()}


class Company:
    """A CA as companies have them: with RSA, a root in a safe, and below it one that issues."""

    def __init__(self, folder: Path, *, lax: bool = False) -> None:
        """`lax`: of what certificates should have, only as much as Python wanted before 3.13."""
        self._folder, self._lax = folder, lax
        self._keys = [rsa.generate_private_key(65537, 2048) for _ in range(3)]
        root, issuing = "Example Ltd Root CA", "Example Ltd Issuing CA"
        self._issuing = (issuing, self._sign(issuing, self._keys[1], root, self._keys[0], ca=True))
        self.ca = folder / "root.pem"
        self.ca.write_bytes(maker.pem_of(self._sign(root, self._keys[0], root, self._keys[0], ca=True)))

    def issue(self, *names: str, passphrase: str = "") -> OwnFiles:
        """A certificate for these names, for a year."""
        key, (issuer, above) = self._keys[2], self._issuing
        own = self._sign(names[0], key, issuer, self._keys[1], names=names)
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            encryption = serialization.BestAvailableEncryption(passphrase.encode())
        der = own.public_bytes(serialization.Encoding.DER)
        files = OwnFiles(self._folder / "broker.crt", self._folder / "broker.key", self.ca, der)
        files.cert_file.write_bytes(maker.pem_of(own) + maker.pem_of(above))
        files.key_file.touch(0o600)
        files.key_file.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, encryption)
        )
        return files

    def _sign(self, name: str, key: Any, issuer: str, issuers_key: Any, *, ca: bool = False, names: Any = ()) -> Any:
        end = maker.now() + datetime.timedelta(days=365)
        builder = maker.begin(maker.named(name), maker.named(issuer), key, end)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=not self._lax)
        if names:
            builder = builder.add_extension(maker.alternative_names(names), critical=False)
        if not self._lax:
            above = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers_key.public_key())
            own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
            builder = builder.add_extension(own, critical=False).add_extension(above, critical=False)
            builder = builder.add_extension(maker.key_usage(authority=ca), critical=True)
        return builder.sign(issuers_key, hashes.SHA256())


def shown_to(ca_file: str, host: str, port: int, name: str = "") -> bytes:
    """The certificate that is shown to somebody who knows this CA, and wants this name (default: the host's).

    :raise ssl.SSLCertVerificationError: when he would not accept it.
    """
    context = ssl.create_default_context(cafile=ca_file)
    name = name or host
    with socket.create_connection((host, port), 10) as plain, context.wrap_socket(plain, server_hostname=name) as tls:
        return tls.getpeercert(binary_form=True) or b""


def handshake(host: str, port: int, version: ssl.TLSVersion) -> str | None:
    """Shake hands with this version of TLS alone, whatever the certificate; which one it became.

    :raise OSError: when the other end does not want it (`ssl.SSLError` is one).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # or our own side would refuse
    context.minimum_version = context.maximum_version = version
    with socket.create_connection((host, port), 10) as plain, context.wrap_socket(plain) as wrapped:
        return wrapped.version()


@contextmanager
def shown_by_the_broker(fleet: "Rollout", name: str, days: float) -> Iterator[None]:
    """The broker shows a certificate of the fleet's CA for this name, and so many days. Who is connected stays so."""
    pem = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "secrets/tls/authority.pem").read_bytes()
    authority = maker.Pair(x509.load_pem_x509_certificate(pem), serialization.load_pem_private_key(pem, None))
    other = maker.make_signed(authority, [name], days, maker.ExtendedKeyUsageOID.SERVER_AUTH).pem.decode()
    fleet.run("broker1", "cp", "-p", SHOWN, f"{SHOWN}.kept")
    try:
        fleet.lab.run("broker1", ["tee", SHOWN], stdin=other)
        fleet.run("broker1", *READ_AGAIN)
        yield
    finally:
        fleet.run("broker1", "mv", f"{SHOWN}.kept", SHOWN)
        fleet.run("broker1", *READ_AGAIN)
