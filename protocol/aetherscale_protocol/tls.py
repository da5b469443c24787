"""TLS towards the broker: what is asked of it, and in words what is wrong when it fails."""

import re
import ssl
from collections.abc import Iterator

from aetherscale_protocol.settings import BrokerSettings, SettingsError

Trouble = tuple[str, str]
"""What is wrong with the broker, as the end of a sentence about it; and a hint."""

EXPIRED, NOT_YET_VALID, OTHER_NAME, OTHER_ADDRESS = 10, 9, 62, 64
UNKNOWN_CA = frozenset({2, 18, 19, 20, 21})
"""OpenSSL's X509_V_ERR_… (x509_vfy.h)."""
PLAIN_HINT = "if it speaks TLS, as site.yml's broker does, the url is amqps:// (and port 5671)"
CLIENT_UNKNOWN = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE", "ALERT_UNKNOWN_CA", "ALERT_CERTIFICATE_EXPIRED",
                  "ALERT_CERTIFICATE_UNKNOWN", "ALERT_BAD_CERTIFICATE", "ALERT_DECRYPT_ERROR")  # fmt: skip
"""What OpenSSL calls the alerts of a broker that does not like our certificate, or that we show none."""


def make_context(settings: BrokerSettings) -> ssl.SSLContext:
    """TLS 1.2 or later, to a broker whose certificate is good and has the URL's host for a name.

    The files are read now: a connection made later may see newer ones.

    :raise SettingsError: when a file can't be read, or does not hold what it should.
    """
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"can't read the CA file {settings.ca_file}: {_reason(error)}",
            "it holds the CAs that may vouch for the broker, as PEM: secrets/tls/ca.pem beside the fleet's inventory",
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"can't read the certificate {settings.cert_file}: {_reason(error)}",
            "cert_file holds a certificate and its key, as PEM: secrets/tls/clients/<user>.pem",
        ) from None
    return context


def explain(error: BaseException, settings: BrokerSettings) -> Trouble | None:
    """What an exception of pika's, from connecting, says of TLS or its absence; None if it is about something else."""
    from pika.adapters.utils.connection_workflow import AMQPConnectorTransportSetupError
    from pika.exceptions import IncompatibleProtocolError, ProtocolSyntaxError

    chain = list(_chain(error))
    for inner in chain:
        if isinstance(inner, ssl.SSLCertVerificationError):
            return _refused_by_us(inner, settings)
        if isinstance(inner, ssl.SSLError):
            return _failed(getattr(inner, "reason", None) or "", settings)
    if isinstance(chain[-1], TimeoutError):
        return None
    if settings.tls and any(isinstance(inner, AMQPConnectorTransportSetupError) for inner in chain):
        return _no_tls(settings)
    if not isinstance(chain[-1], (IncompatibleProtocolError, ProtocolSyntaxError)):
        return None
    # With TLS 1.3 a broker refuses our certificate after the handshake, and pika has the alert as text only.
    if settings.tls and (alert := re.search(r"\[SSL: (\w+)\]", str(chain[-1]))):
        return _failed(alert[1], settings)
    return "does not answer as RabbitMQ does", "is it RabbitMQ?" if settings.tls else PLAIN_HINT


def _no_tls(settings: BrokerSettings) -> Trouble:
    """The other end hung up, or said something that is not TLS."""
    return (
        f"does not speak TLS on port {settings.port}",
        "the url says amqps://; without TLS (play mode) it is amqp://, and port 5672",
    )


def _refused_by_us(error: ssl.SSLCertVerificationError, settings: BrokerSettings) -> Trouble:
    code = error.verify_code
    if code == EXPIRED:
        return (
            "shows a certificate that has expired",
            "running site.yml again makes a new one (one of your own: put its successor there first); "
            "is this clock right?",
        )
    if code == NOT_YET_VALID:
        return "shows a certificate that is not valid yet", "is this machine's clock right?"
    if code in (OTHER_NAME, OTHER_ADDRESS):
        return (
            f"shows a certificate that is not made for {settings.host}",
            "use a name that it is made for, or give it this one: aetherscale_tls_names, and site.yml again",
        )
    if code in UNKNOWN_CA:
        known = f"in ca_file, {settings.ca_file}," if settings.ca_file else "of this machine (there is no ca_file)"
        hint = (
            "is it another broker? ca_file must hold the CA of the fleet: secrets/tls/ca.pem beside its inventory, "
            "or that of its operator's own certificate (aetherscale_tls_ca_file)"
        )
        return f"shows a certificate that no CA {known} vouches for", hint
    return f"shows a certificate that can't be verified: {error.verify_message}", "see ca_file and the url's host"


def _failed(reason: str, settings: BrokerSettings) -> Trouble:
    """`reason`: as OpenSSL names it; empty when the other end just hung up."""
    if any(alert in reason for alert in CLIENT_UNKNOWN):
        if settings.cert_file:
            return (
                f"refuses our certificate, {settings.cert_file} ({reason.lower()})",
                "running site.yml again makes a new one; it must be the fleet's, and this clock right",
            )
        return (
            "wants a certificate of ours (or speaks no TLS that we do)",
            "set cert_file: secrets/tls/clients/<user>.pem beside the fleet's inventory",
        )
    if "PROTOCOL_VERSION" in reason or "UNSUPPORTED_PROTOCOL" in reason:
        return "speaks no TLS of version 1.2 or later", "is it a broker of aetherscale's site.yml?"
    if reason in ("", "UNEXPECTED_EOF_WHILE_READING", "WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return _no_tls(settings)
    return f"broke TLS off: {reason}", "the broker's log says more"


def _reason(error: OSError) -> str:
    """What is wrong with a file, or a handshake, without OpenSSL's own places in its source."""
    reason = getattr(error, "reason", None)
    if isinstance(error, ssl.SSLError):
        return "it holds no certificate" if reason in (None, "NO_CERTIFICATE_OR_CRL_FOUND", "PEM_LIB") else str(reason)
    return error.strerror or str(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and those inside it: pika nests the cause in its workflow's errors."""
    yield error
    tried = getattr(error, "exceptions", None) or [getattr(error, "exception", None), *error.args]
    for inner in tried:
        if isinstance(inner, BaseException):
            yield from _chain(inner)
