"""What went wrong between us and the broker, in words: pika's exceptions in, a CliError out."""

import re
import socket
from collections.abc import Callable

from pika import exceptions as amqp
from pika.adapters.utils import connection_workflow as workflow

from aetherscale_cli.contexts import Target
from aetherscale_cli.errors import CliError, Exit, NoAgent
from aetherscale_protocol.settings import PORTS
from aetherscale_protocol.tls import PLAIN_HINT
from aetherscale_protocol.tls import explain as explain_tls

_TIMEOUTS = (TimeoutError, socket.timeout, workflow.AMQPConnectorStackTimeout)


def explain(error: BaseException, target: Target) -> CliError:
    """The error to show for an exception of pika's, whether from connecting or later."""
    if trouble := explain_tls(error, target.settings):
        what, hint = trouble
        return CliError(f"the broker at {target.address} {what}", f"{hint}; see {target.source}", Exit.UNREACHABLE)
    cause = _unwrap(error)[-1]
    for kind, describe in _DESCRIBED:
        if isinstance(cause, kind):
            return describe(cause, target)
    if isinstance(cause, OSError):
        return _unreachable(cause, target)
    return CliError(
        f"the broker at {target.address} can't be used: {_text(cause)}", _wherefrom(target), Exit.UNREACHABLE
    )


def timed_out(target: Target, seconds: float) -> CliError:
    """Connecting took too long, in whatever phase."""
    message = f"can't reach the broker at {target.address}: nothing answered within {seconds:g} s"
    return CliError(
        message, f"is that the right host, and does its firewall let you in? {_wherefrom(target)}", Exit.UNREACHABLE
    )


def _unwrap(error: BaseException) -> list[BaseException]:
    """The exception and those that it wraps, innermost last."""
    chain = [error]
    while True:
        last = chain[-1]
        inner = getattr(last, "exceptions", ())[-1:] or [getattr(last, "exception", None), *last.args[:1]]
        wrapped = next((e for e in inner if isinstance(e, BaseException)), None)
        if wrapped is None:
            return chain
        chain.append(wrapped)


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _wherefrom(target: Target) -> str:
    return f"the address comes from {target.source}"


def _unresolved(error: BaseException, target: Target) -> CliError:
    reason = getattr(error, "strerror", None) or _text(error)
    message = f"can't find the broker's host {target.settings.host!r}: {reason}"
    return CliError(message, _wherefrom(target), Exit.UNREACHABLE)


def _refused(_: BaseException, target: Target) -> CliError:
    message = f"can't reach the broker at {target.address}: connection refused"
    plain = target.settings.port == PORTS["amqp"]
    hint = f"is RabbitMQ running there, on that port? {PLAIN_HINT + '; ' if plain else ''}{_wherefrom(target)}"
    return CliError(message, hint, Exit.UNREACHABLE)


def _unreachable(error: BaseException, target: Target) -> CliError:
    reason = (getattr(error, "strerror", None) or _text(error)).lower()
    return CliError(f"can't reach the broker at {target.address}: {reason}", _wherefrom(target), Exit.UNREACHABLE)


def _too_slow(_: BaseException, target: Target) -> CliError:
    from aetherscale_cli.broker import CONNECT_TIMEOUT_S

    return timed_out(target, CONNECT_TIMEOUT_S)


def _login_refused(_: BaseException, target: Target) -> CliError:
    user = target.settings.user
    message = f"the broker at {target.address} refused the login of user {user!r}"
    hint = f"check url and password; see {target.source}"
    if user == "guest":
        hint = f"guest may log in from the broker's own machine only, unless loopback_users says otherwise; {hint}"
    return CliError(message, hint, Exit.UNREACHABLE)


def _no_vhost(error: BaseException, target: Target) -> CliError:
    settings = target.settings
    message = f"user {settings.user!r} can't use the vhost {settings.vhost!r} of the broker at {target.address}"
    if "not found" in str(error):
        message = f"the broker at {target.address} has no vhost {settings.vhost!r}"
    return CliError(message, f"the vhost is the last part of the url; see {target.source}", Exit.UNREACHABLE)


def _channel_closed(error: BaseException, target: Target) -> CliError:
    code, text = error.args[0], str(error.args[1])
    if code == 404 and "exchange" in text:
        return NoAgent()
    if code == 403:
        resource = re.search(r"(exchange|queue|topic) '[^']*'", text)
        what = resource[0] if resource else f"that ({text})"
        message = f"user {target.settings.user!r} may not publish to {what} on the broker at {target.address}"
        return CliError(message, f"an operator's user needs the right to write it; see {target.source}")
    if code == 406 and "larger than" in text:
        return CliError(f"the broker at {target.address} refused the command as too big: {text}")
    return CliError(f"the broker at {target.address} closed the channel: {code} {text}")


def _closed(error: BaseException, target: Target) -> CliError:
    message = f"the broker at {target.address} closed the connection: {error.args[0]} {error.args[1]}"
    return CliError(message, "it may be restarting: try again", Exit.UNREACHABLE)


def _lost(_: BaseException, target: Target) -> CliError:
    message = f"the connection to the broker at {target.address} was lost"
    return CliError(message, "it may be restarting: try again", Exit.UNREACHABLE)


def blocked(target: Target, reason: str) -> CliError:
    """The broker has raised an alarm and reads nothing from those who publish."""
    message = f"the broker at {target.address} takes no commands at present: {reason}"
    return CliError(message, "it is short of memory or disk: rabbitmqctl status shows its alarms", Exit.UNREACHABLE)


_DESCRIBED: tuple[tuple[type | tuple[type, ...], Callable[[BaseException, Target], CliError]], ...] = (
    (socket.gaierror, _unresolved),
    (UnicodeError, _unresolved),
    (_TIMEOUTS, _too_slow),
    (ConnectionRefusedError, _refused),
    ((amqp.ProbableAuthenticationError, amqp.AuthenticationError), _login_refused),
    (amqp.ProbableAccessDeniedError, _no_vhost),
    (amqp.ChannelClosed, _channel_closed),
    (amqp.ConnectionClosed, _closed),
    ((amqp.StreamLostError, amqp.AMQPHeartbeatTimeout, amqp.ConnectionBlockedTimeout), _lost),
)
