"""The agent's beginning: read this from top to bottom to see how its parts hang together.

config → journal + hypervisor + images → Host            the VMs of this machine; needs no broker
Answerer (a connection of its own)  ←  Handlers  ←  Session (the command connection)  ←  RabbitMQ
"""

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from aetherscale_agent.access import Access
from aetherscale_agent.answerer import Answerer
from aetherscale_agent.audit import open_audit
from aetherscale_agent.config import AgentConfig, load_config
from aetherscale_agent.connect import Connector, answer_forever, stay_connected
from aetherscale_agent.handlers import Handlers
from aetherscale_agent.host import Host
from aetherscale_agent.journal import Journal
from aetherscale_agent.notify import keep_watchdog_fed, notify
from aetherscale_agent.ports import Hypervisor, HypervisorError, Images
from aetherscale_agent.reconcile import reconcile
from aetherscale_agent.streams import Streams
from aetherscale_agent.sweep import keep_swept
from aetherscale_agent.ttl import Reaper
from aetherscale_protocol import __version__
from aetherscale_protocol.settings import SettingsError
from aetherscale_protocol.tls import make_context

log = logging.getLogger(__name__)

EXIT_USAGE, EXIT_BUSY, EXIT_HYPERVISOR = 2, 3, 4

DRAIN_S, FLUSH_S = 5.0, 2.0
"""How long commands under way may take to end, and their answers to leave, once the agent is told to stop."""


def run() -> None:
    """The command `aetherscale-agent`."""
    options = _parse(sys.argv[1:])
    _set_up_logging(options.log_level)
    try:
        config = load_config(options.config, os.environ)
        if options.check_config and config.broker.tls:
            make_context(config.broker)
    except SettingsError as error:
        _die(str(error), error.hint, EXIT_USAGE)
    if options.check_config:
        print(f"{options.config or 'the built-in configuration'}: ok, host {config.host}, broker {config.broker.host}")
        return
    _lock(Path(config.state_dir))
    try:
        asyncio.run(serve(config))
    except HypervisorError as error:
        _die(str(error), "site.yml sets a compute host up; docs/rollout.md says how", EXIT_HYPERVISOR)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="aetherscale-agent", description="Runs the VMs of this host.")
    parser.add_argument("--config", type=Path, help="configuration file (TOML); without: defaults and RABBITMQ_HOST")
    parser.add_argument("--check-config", action="store_true", help="check the configuration and exit")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    parser.add_argument("--version", action="version", version=f"aetherscale-agent {__version__}")
    return parser.parse_args(arguments)


def _set_up_logging(level: str) -> None:
    under_systemd = "JOURNAL_STREAM" in os.environ  # the journal has its own clock
    stamp = "" if under_systemd else "%(asctime)s "
    logging.basicConfig(level=level.upper(), format=f"{stamp}%(levelname)s %(message)s", stream=sys.stderr)
    for chatty in ("pika", "qemu", "dbus_fast"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)  # what they report, the agent reports in its own words


def _lock(state_dir: Path) -> None:
    """Let one agent only work on a state directory; the lock ends with the process."""
    try:
        lock = os.open(state_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _die(f"another agent works on {state_dir}", "stop it first, or give this one a state_dir of its own", EXIT_BUSY)
    except OSError as error:
        _die(f"can't use {state_dir}: {error.strerror}", "set state_dir to a folder that the agent owns", EXIT_BUSY)


def _die(message: str, hint: str | None, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(code)


async def serve(config: AgentConfig) -> None:
    """Run the agent over the real hypervisor until SIGTERM."""
    from aetherscale_agent.hypervisor import open_hypervisor

    hypervisor, images = await open_hypervisor(config)
    await serve_over(config, hypervisor, images)


async def serve_over(
    config: AgentConfig, hypervisor: Hypervisor, images: Images, *, clock: Callable[[], float] = time.time
) -> None:
    """Run the agent over this hypervisor until SIGTERM."""
    journal = Journal(Path(config.state_dir) / "journal")
    boot_id = read_boot_id(Path(config.run_dir))
    host = Host(config.host, journal, hypervisor, images, boot_id=boot_id, clock=clock, labels=config.labels)
    answerer, audit = Answerer(), open_audit(os.environ)
    streams = Streams(host, answerer, audit)
    answerer.lost = lambda: streams.drop_all("its agent lost its connection to the broker")
    access = Access(config.operators)
    handlers = Handlers(host, answerer, config.fleet, streams, access=access, audit=audit)

    changes = hypervisor.changes()  # listens from here on: a VM that ends while the journal is read is heard of
    await hypervisor.probe()
    log.info("%s on host %s: %s; %s", __version__, config.host, await reconcile(host), hypervisor.accelerator)
    notify("READY=1", f"STATUS=connecting to {config.broker.host}")

    def connector(purpose: str) -> Connector:
        name = f"aetherscale-agent {config.host} {purpose}"
        return Connector(config.broker, name=name, heartbeat_s=config.heartbeat)

    hears, answers = connector("commands"), connector("answers")
    hears.peer, answers.peer = answers, hears
    commands = stay_connected(
        hears,
        answerer,
        host,
        config.broker.user,
        handlers.on_message,
        fleet_size=len(config.fleet),
        on_stream=streams.take,
    )
    consuming = asyncio.create_task(commands)
    others = [
        asyncio.create_task(keep_watchdog_fed()),
        asyncio.create_task(host.watch(changes)),
        asyncio.create_task(Reaper(host, audit).run()),
        asyncio.create_task(keep_swept(host)),
        asyncio.create_task(answer_forever(answerer, answers)),
    ]
    ended = await _first_end([consuming, *others])
    notify("STOPPING=1")
    log.info("stopping; the VMs go on")
    await _cancel([consuming])  # first: what is under way is finished and answered, and nothing new begun
    await streams.close("its agent was stopped", FLUSH_S)
    await host.drain(DRAIN_S)
    await answerer.flush(FLUSH_S)
    await _cancel(others)
    for task in ended:
        task.result()  # raises what ended it


def read_boot_id(run_dir: Path) -> str:
    """What tells this boot of the host from any other: a file that a reboot takes away, because it is on a tmpfs.

    The kernel's own boot id will not do: a sandbox that mounts /proc anew shows a container the machine's.
    """
    path = run_dir / "boot-id"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            draft = path.with_suffix(".new")
            draft.write_text(uuid.uuid4().hex)
            draft.rename(path)
        return path.read_text()
    except OSError as error:
        _die(
            f"can't use {run_dir}: {error.strerror}",
            "set run_dir to a folder on a tmpfs that the agent owns",
            EXIT_BUSY,
        )


async def _first_end(tasks: list[asyncio.Task[None]]) -> list[asyncio.Task[None]]:
    """Wait for SIGTERM or SIGINT, or for one of these tasks to end, which is an error; those that ended."""
    terminated = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, terminated.set)
    end = asyncio.create_task(terminated.wait())
    await asyncio.wait([*tasks, end], return_when=asyncio.FIRST_COMPLETED)
    end.cancel()
    return [task for task in tasks if task.done()]


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    run()
