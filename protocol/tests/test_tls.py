"""What is said of TLS that failed. The real errors of a real broker: agent/tests/test_tls.py."""

import ssl

import pytest
from pika.adapters.utils.connection_workflow import AMQPConnectorAMQPHandshakeError, AMQPConnectorTransportSetupError
from pika.exceptions import IncompatibleProtocolError

from aetherscale_protocol.settings import BrokerSettings
from aetherscale_protocol.tls import explain

BROKER = BrokerSettings(url="amqps://a@broker.lan/v", ca_file="/ca.pem")
MINE = BrokerSettings(url="amqps://a@broker.lan/v", ca_file="/ca.pem", cert_file="/me.pem")


def unverified(code: int, message: str = "") -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, message
    return error


def alert(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] (_ssl.c:1)")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "settings", "words"),
    [
        (unverified(10), BROKER, "a certificate that has expired"),
        (unverified(9), BROKER, "a certificate that is not valid yet"),
        (unverified(62), BROKER, "a certificate that is not made for broker.lan"),
        (unverified(64), BROKER, "a certificate that is not made for broker.lan"),
        (unverified(19), BROKER, "no CA in ca_file, /ca.pem, vouches for"),
        (unverified(20), BrokerSettings(url="amqps://h/"), "no CA of this machine (there is no ca_file) vouches for"),
        (unverified(89, "key too small"), BROKER, "can't be verified: key too small"),
        (alert("TLSV13_ALERT_CERTIFICATE_REQUIRED"), BROKER, "wants a certificate of ours"),
        (alert("SSLV3_ALERT_HANDSHAKE_FAILURE"), BROKER, "wants a certificate of ours"),
        (alert("TLSV1_ALERT_UNKNOWN_CA"), MINE, "refuses our certificate, /me.pem"),
        (alert("SSLV3_ALERT_CERTIFICATE_EXPIRED"), MINE, "refuses our certificate, /me.pem"),
        (alert("TLSV1_ALERT_PROTOCOL_VERSION"), BROKER, "no TLS of version 1.2 or later"),
        (alert("UNSUPPORTED_PROTOCOL"), BROKER, "no TLS of version 1.2 or later"),
        (alert("WRONG_VERSION_NUMBER"), BROKER, "does not speak TLS on port 5671"),
        (ssl.SSLEOFError(8, "EOF occurred"), BROKER, "does not speak TLS on port 5671"),
        (AMQPConnectorTransportSetupError(ConnectionResetError()), BROKER, "does not speak TLS on port 5671"),
        (alert("BAD_LENGTH"), BROKER, "broke TLS off: BAD_LENGTH"),
        (IncompatibleProtocolError("closed"), BROKER, "does not answer as RabbitMQ does"),
        (IncompatibleProtocolError("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED]"), BROKER, "wants a certificate of ours"),
        (IncompatibleProtocolError("closed"), BrokerSettings(url="amqp://h/"), "does not answer as RabbitMQ does"),
    ],
)
def test_each_failure_has_words_and_a_hint(error: BaseException, settings: BrokerSettings, words: str) -> None:
    for wrapped in (error, AMQPConnectorAMQPHandshakeError(error)):
        trouble = explain(wrapped, settings)
        assert trouble is not None
        assert words in trouble[0]
        assert trouble[1]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "Connection refused"),
        ValueError("no"),
        AMQPConnectorTransportSetupError(TimeoutError()),
    ],
)
def test_what_is_not_about_tls_is_left_to_others(error: BaseException) -> None:
    assert explain(error, BROKER) is None
