"""The way to the broker, looked at before any login: its name, its port, its certificate. Judges nothing."""

import queue
import socket
import ssl
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from aetherscale_cli.broker import CONNECT_TIMEOUT_S
from aetherscale_cli.broker_errors import explain, timed_out
from aetherscale_cli.contexts import Target
from aetherscale_cli.doctor_facts import Certificate, WireFacts
from aetherscale_cli.errors import CliError, Exit
from aetherscale_protocol.settings import SettingsError, connection_parameters

NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME (x509_vfy.h): to read a certificate that has ended."""
_PEM_END = "-----END CERTIFICATE-----"
_VERSION, _GENERALIZED_TIME = 0xA0, 0x18
"""Tags of DER: the field [0], and the time with four digits for its year."""
TIME_ERRORS, NAME_ERRORS = (9, 10), (62, 64)
"""X509_V_ERR_… : not yet valid, expired; made for another name, or another address."""


def look(target: Target) -> WireFacts:
    """Resolve, connect, and shake hands; each for `CONNECT_TIMEOUT_S` at most. Nothing is sent to the broker itself."""
    found = WireFacts()
    try:
        candidates = _resolve(target)
        found.addresses = [candidate[4][0] for candidate in candidates]
        connection = _connect(target, candidates, found)
    except CliError as error:
        found.error = error
        return found
    with connection:
        if target.settings.tls:
            _look_at_tls(target, connection, candidates, found)
    return found


def _resolve(target: Target) -> list[Any]:
    """The broker's addresses. In a thread: a resolver can't be told how long it may take."""
    answer: queue.SimpleQueue[list[Any] | OSError | UnicodeError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(socket.getaddrinfo(target.settings.host, target.settings.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        told = answer.get(timeout=CONNECT_TIMEOUT_S)
    except queue.Empty:
        said = f"can't find the broker's host {target.settings.host!r}: no answer within {CONNECT_TIMEOUT_S:g} s"
        hint = f"does this machine's name server answer? The address comes from {target.source}"
        raise CliError(said, hint, Exit.UNREACHABLE) from None
    if isinstance(told, list):
        return told
    raise explain(told, target)


def _connect(target: Target, candidates: list[Any], found: WireFacts) -> socket.socket:
    """A connection to the first address that takes one."""
    deadline, trouble = time.monotonic() + CONNECT_TIMEOUT_S, timed_out(target, CONNECT_TIMEOUT_S)
    for family, kind, protocol, _, address in candidates:
        began = time.monotonic()
        left = deadline - began
        if left <= 0:
            break
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(left)
        try:
            connection.connect(address)
        except OSError as error:
            connection.close()
            trouble = explain(error, target)
            continue
        found.reached, found.connected_ms = address[0], (time.monotonic() - began) * 1000
        return connection
    raise trouble


def _look_at_tls(target: Target, connection: socket.socket, candidates: list[Any], found: WireFacts) -> None:
    try:
        context = _context(target)
        found.ca_ends = _first_end(context) if target.settings.ca_file else None
        found.own_ends = _own_end(target)
        found.protocol, found.certificate = _shake_hands(target, context, connection)
    except SettingsError as error:
        found.tls_error = CliError(str(error), error.hint or f"see {target.source}", Exit.USAGE)
    except (OSError, ValueError) as error:  # ssl's errors are OSErrors; a host that is no name for TLS a ValueError
        found.tls_error = explain(error, target)
        found.certificate = _read_refused(target, candidates, getattr(error, "verify_code", 0))


def _own_end(target: Target) -> float | None:
    if target.settings.cert_file is None:
        return None
    return find_end(Path(target.settings.cert_file).read_text(errors="replace"))


def _context(target: Target) -> ssl.SSLContext:
    parameters = connection_parameters(target.settings, name="", heartbeat_s=0, timeout_s=CONNECT_TIMEOUT_S)
    context: ssl.SSLContext = parameters.ssl_options.context
    return context


def _shake_hands(target: Target, context: ssl.SSLContext, connection: socket.socket) -> tuple[str, Certificate | None]:
    connection.settimeout(CONNECT_TIMEOUT_S)
    with context.wrap_socket(connection, server_hostname=target.settings.host) as wrapped:
        return wrapped.version() or "", read_certificate(wrapped.getpeercert() or {})


def _read_refused(target: Target, candidates: list[Any], code: int) -> Certificate | None:
    """A certificate that was not accepted for its time or its name, to tell which it has. Nothing is said to it."""
    if code not in (*TIME_ERRORS, *NAME_ERRORS):
        return None
    try:
        context = _context(target)
        context.check_hostname = False
        context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
        with _connect(target, candidates, WireFacts()) as connection:
            return _shake_hands(target, context, connection)[1]
    except (OSError, ValueError, SettingsError, CliError):
        return None


def read_certificate(shown: Any) -> Certificate | None:
    """What `getpeercert` tells of a certificate; None if that is nothing."""
    if not shown:
        return None
    names = [value for _, value in shown.get("subjectAltName", ())] or [_common_name(shown.get("subject", ()))]
    return Certificate(
        tuple(names),
        _common_name(shown.get("issuer", ())),
        ssl.cert_time_to_seconds(shown["notBefore"]),
        ssl.cert_time_to_seconds(shown["notAfter"]),
    )


def _common_name(name: Any) -> str:
    """A distinguished name in short: its common name, or else its last part."""
    parts = [part for parts in name for part in parts]
    return next((value for key, value in parts if key == "commonName"), parts[-1][1] if parts else "?")


def _first_end(context: ssl.SSLContext) -> float | None:
    """When the first of the CAs that were loaded ends."""
    ends = [ssl.cert_time_to_seconds(str(ca["notAfter"])) for ca in context.get_ca_certs()]
    return min(ends, default=None)


def find_end(pem: str) -> float | None:
    """When the first certificate of a PEM file ends, in seconds since the epoch; None where that can't be read.

    `ssl` decodes only what a peer showed. In a certificate (RFC 5280, 4.1) `validity` is the fifth field of its body,
    after version, serial number, algorithm and issuer; it holds two times.
    """
    begin = pem.find("-----BEGIN CERTIFICATE")
    end = pem.find(_PEM_END, begin)
    if begin < 0 or end < 0:
        return None
    try:
        ((_, certificate),) = _elements(ssl.PEM_cert_to_DER_cert(pem[begin : end + len(_PEM_END)]))
        fields = _elements(_elements(certificate)[0][1])
        validity = fields[4 if fields[0][0] == _VERSION else 3][1]
        kind, until = _elements(validity)[1]
        year = (
            "" if kind == _GENERALIZED_TIME else "20"
        )  # UTCTime has two digits; until 2049, when the other takes over
        return datetime.strptime(f"{year}{until.decode()}+0000", "%Y%m%d%H%M%SZ%z").timestamp()
    except (ValueError, IndexError):
        return None


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """The tags and contents of DER values, one after the other (X.690, 8.1).

    :raise IndexError: when they are cut short.
    """
    found, at = [], 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size & 0x80:
            at, size = at + (size & 0x7F), int.from_bytes(der[at : at + (size & 0x7F)])
        found.append((tag, der[at : at + size]))
        at += size
    return found
