"""Certificates for private brokers, made by the roll-out's own script, good ones and bad ones."""

import importlib.util
import socket
import ssl
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

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
