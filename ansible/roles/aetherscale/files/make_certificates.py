#!/usr/bin/env python3
"""make_certificates.py --make|--check FOLDER: see that FOLDER holds a CA, and certificates that are good for a while.

What is wanted comes as JSON on standard input (see `Wanted`). What is good is never touched. Prints what it did, or
(`--check`) would do, a line each. In the folder, which nobody else may enter:

    authority.pem        the CA that signs, with its key: it stays on the controller
    ca.pem               every CA that agents and CLI shall trust; the only file that is no secret
    broker.pem           the broker's certificate with its key
    clients/<user>.pem   a broker user's certificate with its key, where clients need one; make_secrets.py removes it
    next-authority.pem   a CA that is trusted already and signs nothing yet
    old-ca.pem           a CA that is trusted still and signs nothing any more

Certificate and key share a file, so that both change at once.
"""

import datetime
import ipaddress
import json
import os
import re
import ssl
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
CA_RENEW_DAYS = 730
"""A CA's certificate is made anew, with the same key, this long before its end: the older one is good meanwhile."""
BACKDATED = datetime.timedelta(hours=1)  # a host's clock may be behind
EC_CURVE = ec.SECP256R1()
_LABEL = re.compile(r"-----BEGIN ([^-]*)-----")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(r"-----BEGIN ((?:[A-Z]+ )?PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)


class Unusable(Exception):
    """What the operator gave can't be used; `str()` says why."""


@dataclass(frozen=True)
class Wanted:
    """What standard input asks for."""

    names: list[str]  #: names and addresses of the broker; the first is what agents and CLI connect to
    days: int  #: how long a certificate is good
    renew_days: int  #: it is made anew when fewer days are left
    clients: list[str] = field(default_factory=list)  #: broker users who need a certificate
    anew: list[str] = field(default_factory=list)  #: files that are made anew although they are good
    ca_change: str = "none"  #: none, prepare, switch, finish
    cert_file: str = ""  #: the operator's own certificate of the broker; empty: made here
    key_file: str = ""
    ca_file: str = ""  #: the CA of the operator's own certificate; empty: one that the system trusts


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """Both, in one file's text."""
        secret = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return pem_of(self.certificate) + secret


def main() -> int:
    """Exit status 0, or 1 when something is wrong with what was given, or the folder can't be written."""
    what, directory = sys.argv[1:]
    wanted = Wanted(**json.load(sys.stdin))
    try:
        for line in ensure(Path(directory), wanted, check=what == "--check"):
            print(line)
    except Unusable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def ensure(folder: Path, wanted: Wanted, *, check: bool) -> Iterator[str]:
    """See that all that is wanted is there, and good; what is done, a line each.

    :raise Unusable: when what is wanted makes no sense, the operator's own certificate can't be used, or a file is none
        of ours.
    """
    if wanted.renew_days >= wanted.days:
        raise Unusable(
            f"aetherscale_tls_renew_days is {wanted.renew_days}, "
            f"and must be less than aetherscale_tls_days, {wanted.days}"
        )
    store = Store(folder, check)
    if wanted.cert_file or wanted.key_file or wanted.ca_file:
        check_own(wanted)
        if not wanted.clients:
            return
    yield from store.ensure_folder(folder)
    authority = yield from ensure_authority(store, wanted)
    yield from store.ensure_public("ca.pem", trusted(store, authority))
    if not wanted.cert_file:
        yield from ensure_signed(store, "broker.pem", authority, wanted, wanted.names, ExtendedKeyUsageOID.SERVER_AUTH)
    if wanted.clients:
        yield from store.ensure_folder(folder / "clients")
    for user in wanted.clients:
        yield from ensure_signed(
            store, f"clients/{user}.pem", authority, wanted, [user], ExtendedKeyUsageOID.CLIENT_AUTH
        )


class Store:
    """The folder. Under `--check` what would be written is remembered, and the disk left alone."""

    def __init__(self, folder: Path, check: bool) -> None:
        self._folder = folder
        self._check = check
        self._drafts: dict[str, bytes | None] = {}

    def read(self, name: str) -> bytes | None:
        """What a file holds; None if there is none."""
        if name in self._drafts:
            return self._drafts[name]
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def pair(self, name: str) -> Pair | None:
        """What a file of ours holds; None if there is none.

        :raise Unusable: when it holds something else.
        """
        data = self.read(name)
        if data is None:
            return None
        try:
            certificate = x509.load_pem_x509_certificate(data)
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError) as error:
            raise Unusable(f"{self._folder / name} holds no certificate with its key: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise Unusable(f"{self._folder / name}: its certificate was not made for its key")
        return Pair(certificate, key)

    def write(self, name: str, data: bytes, mode: int = 0o600) -> str:
        """Write a file, whole or not at all."""
        if self._check:
            self._drafts[name] = data
            return f"made {self._folder / name}"
        path = self._folder / name
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as output:
            output.write(data)
            output.flush()
            os.fsync(output.fileno())
        draft.rename(path)
        return f"made {path}"

    def remove(self, name: str) -> str:
        """Remove a file."""
        if self._check:
            self._drafts[name] = None
        else:
            (self._folder / name).unlink()
        return f"removed {self._folder / name}"

    def ensure_folder(self, folder: Path) -> Iterator[str]:
        """See that a folder is there and nobody else's."""
        yield from ensure_mode(folder, 0o700, self._check)
        if not folder.exists():
            yield f"made {folder}"
            if not self._check:
                folder.mkdir(mode=0o700, parents=True)

    def ensure_public(self, name: str, data: bytes) -> Iterator[str]:
        """See that a file that is no secret holds this."""
        if self.read(name) != data:
            yield self.write(name, data, 0o644)

    def ensure_closed(self, name: str) -> Iterator[str]:
        """See that a file that is there is nobody else's."""
        yield from ensure_mode(self._folder / name, 0o600, self._check)


def ensure_mode(path: Path, wanted: int, check: bool) -> Iterator[str]:
    """See that a file or folder, if it is there, is nobody else's."""
    if path.exists() and (mode := stat.S_IMODE(path.stat().st_mode)) != wanted:
        yield f"closed {path} to others (it had mode {mode:04o})"
        if not check:
            path.chmod(wanted)


def ensure_authority(store: Store, wanted: Wanted) -> Iterator[str]:
    """See that there is a CA, and change it by one step if that is asked for; returns it."""
    signs, coming = store.pair("authority.pem"), store.pair("next-authority.pem")
    if signs and coming and signs.certificate == coming.certificate:  # a switch was interrupted at its last step
        yield store.remove("next-authority.pem")
    if wanted.ca_change == "prepare" and store.read("next-authority.pem") is None:
        yield store.write("next-authority.pem", make_authority().pem)
    if wanted.ca_change == "switch" and store.read("next-authority.pem") is not None:
        yield from switch_authority(store)
    if wanted.ca_change == "finish" and store.read("old-ca.pem") is not None:
        yield store.remove("old-ca.pem")
    authority = store.pair("authority.pem")
    if authority is None:
        authority = make_authority()
        yield store.write("authority.pem", authority.pem)
    elif days_left(authority.certificate) < CA_RENEW_DAYS:
        authority = make_authority(authority.key)
        yield store.write("authority.pem", authority.pem)
    for name in ("authority.pem", "next-authority.pem"):
        yield from store.ensure_closed(name)
    return authority


def switch_authority(store: Store) -> Iterator[str]:
    """Let the CA that was prepared sign from now on; interrupted, the next run finishes it."""
    old, new = store.pair("authority.pem"), store.pair("next-authority.pem")
    assert new is not None
    if old is not None and old.certificate != new.certificate:
        yield store.write("old-ca.pem", pem_of(old.certificate))
    yield store.write("authority.pem", new.pem)
    yield store.remove("next-authority.pem")


def trusted(store: Store, authority: Pair) -> bytes:
    """The certificates of all CAs that shall be trusted now."""
    coming = store.pair("next-authority.pem")
    return pem_of(authority.certificate) + (pem_of(coming.certificate) if coming else b"") + (
        store.read("old-ca.pem") or b""
    )  # fmt: skip


def ensure_signed(
    store: Store, name: str, authority: Pair, wanted: Wanted, names: Sequence[str], usage: x509.ObjectIdentifier
) -> Iterator[str]:
    """See that a certificate is there and good for these names, and for long enough."""
    why = find_fault(store.pair(name), authority, names, wanted.renew_days)
    why = why or ("a new one was asked for" if name in wanted.anew else "")
    if why:
        yield f"{store.write(name, make_signed(authority, names, wanted.days, usage).pem)} ({why})"
    yield from store.ensure_closed(name)


def find_fault(pair: Pair | None, authority: Pair, names: Sequence[str], renew_days: int) -> str:
    """Why a certificate must be made anew; empty if it is good."""
    if pair is None:
        return "there was none"
    try:
        pair.certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, InvalidSignature):
        return "another CA signs now"
    have = pair.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if have != alternative_names(names):
        return f"the names are now {', '.join(names)}"
    left = days_left(pair.certificate)
    if left < 0:
        return "it had expired"
    lasts_longer = authority.certificate.not_valid_after_utc > pair.certificate.not_valid_after_utc  # a new one would
    return f"it had {left:.0f} days left" if left < renew_days and lasts_longer else ""


def days_left(certificate: x509.Certificate) -> float:
    """For how many days it is good still; negative when it has expired."""
    return (certificate.not_valid_after_utc - now()) / datetime.timedelta(days=1)


def now() -> datetime.datetime:
    """The time, as certificates have it: in whole seconds of UTC."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def pem_of(certificate: x509.Certificate) -> bytes:
    """A certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def alternative_names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    """Names and addresses as a certificate has them."""
    return x509.SubjectAlternativeName([_alternative_name(name) for name in names])


def _alternative_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError:
        raise Unusable(f"{name!r} can't stand in a certificate: write it in ASCII, as DNS has it") from None


def make_authority(key: ec.EllipticCurvePrivateKey | None = None) -> Pair:
    """A new CA; with a key: the same CA, for longer."""
    key = key or ec.generate_private_key(EC_CURVE)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # The name follows from the key: a certificate made anew names the same CA, and another CA has another name.
    subject = named(f"aetherscale CA {identifier.digest.hex()[:8]}")
    builder = begin(subject, subject, key, now() + datetime.timedelta(days=CA_DAYS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(key_usage(authority=True), critical=True).add_extension(identifier, critical=False)
    return Pair(builder.sign(key, hashes.SHA256()), key)


def make_signed(authority: Pair, names: Sequence[str], days: int, usage: x509.ObjectIdentifier) -> Pair:
    """A certificate for these names, no longer good than the CA's own."""
    key = ec.generate_private_key(EC_CURVE)
    end = min(now() + datetime.timedelta(days=days), authority.certificate.not_valid_after_utc)
    signer = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = begin(named(names[0]), authority.certificate.subject, key, end)
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (key_usage(authority=False), True),
        (x509.ExtendedKeyUsage([usage]), False),
        (alternative_names(names), False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), False),
    ):
        builder = builder.add_extension(extension, critical)
    return Pair(builder.sign(authority.key, hashes.SHA256()), key)


def begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, end: datetime.datetime
) -> x509.CertificateBuilder:
    """What all certificates have in common."""
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now() - BACKDATED).not_valid_after(end)


def named(name: str) -> x509.Name:
    """A subject; of a long name its beginning, because X.509 allows 64 characters."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def key_usage(*, authority: bool) -> x509.KeyUsage:
    """A CA signs certificates; everybody else signs handshakes."""
    no: dict[str, Any] = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    return x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **no)


def check_own(wanted: Wanted) -> None:
    """Shake hands with the operator's own certificate, in memory, as an agent will with the broker.

    Without `ca_file` it is this machine that has to know the CA: the agents' machines are not asked.

    :raise Unusable: when an agent would refuse it.
    """
    if not (wanted.cert_file and wanted.key_file):
        raise Unusable("a certificate of your own needs both aetherscale_tls_cert_file and aetherscale_tls_key_file")
    files = [name for name in (wanted.cert_file, wanted.key_file, wanted.ca_file) if name]
    for name in files:
        if not Path(name).is_absolute():
            raise Unusable(f"{name}: write the whole path, from / on")
    text = broker_text(wanted)
    try:
        if wanted.ca_file:
            find_certificates(wanted.ca_file)
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:  # OpenSSL wants a file; nobody else reads it
            file.write(text)
            file.flush()
            server.load_cert_chain(file.name, password=refuse_passphrase)
        client = ssl.create_default_context(cafile=wanted.ca_file or None)
        # As strict as the strictest: Python 3.13, which Debian 13 has, looks closer, and 3.11 wants the CA's very root.
        client.verify_flags = (client.verify_flags | ssl.VERIFY_X509_STRICT) & ~ssl.VERIFY_X509_PARTIAL_CHAIN
        shake_hands(client, server, wanted.names[0].strip("[]"))
        left = min(days_left(one) for one in x509.load_pem_x509_certificates(text.encode()))
    except ssl.SSLCertVerificationError as error:
        raise Unusable(f"agents would refuse {wanted.cert_file}: {error.verify_message}") from None
    except (OSError, ValueError) as error:
        raise Unusable(f"can't use {' with '.join(files)}: {getattr(error, 'strerror', None) or error}") from None
    if left < wanted.renew_days:
        print(f"warning: {wanted.cert_file} has {left:.0f} days left, and only you can renew it", file=sys.stderr)


def broker_text(wanted: Wanted) -> str:
    """The very text that the broker will get of the operator's own files: the filter `broker_certificate` has the same.

    :raise Unusable: when there is no certificate or key in it, or one that the broker would not see.
    """
    certificates = find_certificates(wanted.cert_file)
    keys = [match[0] for match in _KEY.finditer(read(wanted.key_file))]
    if not keys:
        raise Unusable(f"{wanted.key_file} holds no key as PEM (-----BEGIN PRIVATE KEY-----)")
    return "\n".join([*certificates, keys[0]])


def find_certificates(path: str) -> list[str]:
    """The certificates in a file. OpenSSL knows more kinds of them than Erlang, which the broker is.

    :raise Unusable: when there is none, or one of another kind.
    """
    text = read(path)
    for label in _LABEL.findall(text):
        if label.endswith("CERTIFICATE") and label != "CERTIFICATE":
            raise Unusable(f"{path} holds a {label}, and only a CERTIFICATE will do: openssl x509 makes it one")
    certificates = [match[0] for match in _CERTIFICATE.finditer(text)]
    if not certificates:
        raise Unusable(f"{path} holds no certificate as PEM (-----BEGIN CERTIFICATE-----)")
    return certificates


def read(path: str) -> str:
    """The text of an operator's file.

    :raise Unusable: when it can't be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise Unusable(f"can't use {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Unusable(f"{path} is no PEM, or has remarks that are not UTF-8") from None


def refuse_passphrase() -> str:
    """Called for a key that has one: OpenSSL would ask whoever sits at the terminal.

    :raise Unusable: always.
    """
    raise Unusable("the key of aetherscale_tls_key_file has a passphrase, and the broker has nobody to ask for it")


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """A TLS handshake without a network.

    :raise ssl.SSLError: when it fails.
    """
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname=name), server.wrap_bio(up, down, server_side=True)]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue


if __name__ == "__main__":
    sys.exit(main())
