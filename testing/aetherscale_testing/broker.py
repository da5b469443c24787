"""A private RabbitMQ node for tests: own name, port, data and log, on loopback; nothing of the machine's own node."""

import base64
import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = Path(os.environ.get("RABBITMQ_SERVER", "/usr/lib/rabbitmq/bin/rabbitmq-server"))
CTL = SERVER.with_name("rabbitmqctl")

START_TIMEOUT_S = 90


@dataclass
class TestBroker:
    """A running node. `environ` makes rabbitmqctl speak to it."""

    __test__ = False  # not a test, whatever pytest thinks of its name

    port: int
    folder: Path
    environ: dict[str, str]
    tls_port: int = 0  #: 0: without TLS
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0  #: seconds since the epoch

    @property
    def address(self) -> str:
        """`host:port`, as RABBITMQ_HOST takes it."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """The node's log: a line with a time in microseconds for each connection that it accepts."""
        return self.folder / "log" / f"{self.environ['RABBITMQ_NODENAME']}.log"

    @property
    def certificate(self) -> Path:
        """The file with its certificate and key, which may change while it runs."""
        return self.folder / "broker.pem"

    def forget_certificates(self) -> None:
        """Have it read the files again, as site.yml does after it has renewed one."""
        self.ctl("eval", "ssl:clear_pem_cache().")

    def url(self, vhost: str = "/", port: int | None = None) -> str:
        """The URL of one of its vhosts, for guest; `port`: of a wire to it."""
        return f"amqp://guest@127.0.0.1:{port or self.port}/{'' if vhost == '/' else vhost}"

    def start(self) -> None:
        """Start the node; returns when it accepts connections."""
        self.launch()
        pid_file = self.environ["RABBITMQ_PID_FILE"]
        self.ctl("wait", "--timeout", str(START_TIMEOUT_S), pid_file)
        self.ctl("await_startup", "--timeout", str(START_TIMEOUT_S))

    def launch(self) -> None:
        """Start the node, and wait for nothing."""
        self.started_at = time.time()
        log = (self.folder / "out.log").open("ab")
        self.process = subprocess.Popen(
            [SERVER], env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )

    def stop(self, *, hard: bool = False) -> None:
        """Stop the node (`hard`: as a crash would); its data stays."""
        if self.process is None:
            return
        if hard:
            os.kill(int(Path(self.environ["RABBITMQ_PID_FILE"]).read_text()), 9)
        else:
            self.ctl("stop")
        self.process.wait(START_TIMEOUT_S)
        self.process = None

    def wipe(self) -> None:
        """Lose the node and its data; what starts instead is empty, but for its users and vhosts."""
        self.stop(hard=True)
        self.lose_data()
        self.start()

    def lose_data(self) -> None:
        """Take a stopped node's data away."""
        shutil.rmtree(self.folder / "data")

    def ctl(self, *arguments: str, stdin: str | None = None) -> str:
        """What rabbitmqctl prints.

        :raise RuntimeError: with its complaint, when it fails.
        """
        done = subprocess.run(
            [CTL, "--quiet", *arguments], env=self.environ, input=stdin, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"rabbitmqctl {arguments[0]}: {done.stdout}{done.stderr}")
        return done.stdout

    def table(self, *arguments: str) -> list[dict[str, Any]]:
        """A listing of rabbitmqctl, as rows."""
        rows: list[dict[str, Any]] = json.loads(self.ctl(*arguments, "--formatter", "json") or "[]")
        return rows


PORTS = range(20_000, 32_000)
"""Below the kernel's ephemeral ports: of those one may be somebody's own end of a connection when the node comes back,
or even that of a client which tries to connect to it."""


def _free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _definitions(vhosts: Iterable[str]) -> dict[str, Any]:
    """User guest, who may do everything in `/` and in these vhosts."""
    salt = os.urandom(4)
    hashed = base64.b64encode(salt + hashlib.sha256(salt + b"guest").digest()).decode()
    every = {"user": "guest", "configure": ".*", "write": ".*", "read": ".*"}
    return {
        "users": [
            {
                "name": "guest",
                "password_hash": hashed,
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "administrator",
            }
        ],
        "vhosts": [{"name": vhost} for vhost in ("/", *vhosts)],
        "permissions": [{"vhost": vhost, **every} for vhost in ("/", *vhosts)],
    }


def _tls_configuration(port: int, certificate: Path, client_ca: Path | None) -> str:
    """A listener with TLS, as the roll-out's rabbitmq.conf has it."""
    verify = f"ssl_options.cacertfile = {client_ca}\nssl_options.verify = verify_peer\n" if client_ca else ""
    return (
        f"listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.versions.1 = tlsv1.3\nssl_options.versions.2 = tlsv1.2\n"
        f"ssl_options.certfile = {certificate}\nssl_options.keyfile = {certificate}\n{verify}"
        f"ssl_options.fail_if_no_peer_cert = {'true' if client_ca else 'false'}\n"
    )


@contextlib.contextmanager
def private_broker(
    extra_configuration: str = "",
    vhosts: Iterable[str] = (),
    certificate: bytes = b"",
    client_ca: Path | None = None,
) -> Iterator[TestBroker]:
    """A node of its own, started, and gone with all that it wrote when the block ends.

    :param vhosts: made at every boot, beside `/`: there again when the node was wiped.
    :param certificate: with its key, for a second listener, with TLS.
    :param client_ca: that listener lets nobody in without a certificate from this CA.
    """
    folder = Path(tempfile.mkdtemp(prefix="aetherscale-broker-"))
    port, dist_port, epmd_port = _free_port(), _free_port(), _free_port()
    tls_port = _free_port() if certificate else 0
    if certificate:
        (folder / "broker.pem").write_bytes(certificate)
        extra_configuration += _tls_configuration(tls_port, folder / "broker.pem", client_ca)
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{port}\n"
        "max_message_size = 1048576\n"
        "vm_memory_high_watermark.absolute = 1GiB\n"
        f"load_definitions = {folder / 'definitions.json'}\n"
        "disk_free_limit.absolute = 50MB\n" + extra_configuration
    )
    (folder / "definitions.json").write_text(json.dumps(_definitions(vhosts)))
    environ = {
        **os.environ,
        "HOME": str(folder),
        "RABBITMQ_NODENAME": f"test{port}@localhost",
        "RABBITMQ_DIST_PORT": str(dist_port),
        "ERL_EPMD_PORT": str(epmd_port),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "ERL_CRASH_DUMP": str(folder / "erl_crash.dump"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "env"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none",
    }
    (folder / "plugins").write_text("[].\n")
    (folder / "env").touch()
    broker = TestBroker(port, folder, environ, tls_port)
    try:
        broker.start()
        yield broker
    finally:
        with contextlib.suppress(RuntimeError, OSError, subprocess.TimeoutExpired):
            broker.stop()
        if broker.process is not None:
            broker.process.kill()
        subprocess.run(["epmd", "-port", str(epmd_port), "-kill"], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)
