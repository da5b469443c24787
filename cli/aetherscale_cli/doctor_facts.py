"""What doctor found, before anybody judges it. Plain values: `examine` fills them in, `doctor` judges."""

from typing import Literal

from msgspec import Struct

from aetherscale_cli.errors import CliError
from aetherscale_protocol.answers import HostCondition

Result = Literal["ok", "warning", "error", "skipped"]

Try = Literal["configure", "read", "write"]
"""What an operator's user must not do: declare and delete, take messages away, publish past the exchange."""


class HostFacts(Struct):
    """What was found of one host; of those that are None nothing is known."""

    answered_ms: float | None = None
    agent_version: str = ""
    clock_ahead_s: float = 0.0  #: of the clock of this machine
    refusal: str = ""
    down: bool = False  #: another host said so
    unroutable: bool = False  #: no queue is bound to its key
    counted: bool = False
    consumers: int | None = None  #: of its queue; 0 also if there is none, None if the broker does not say
    drained: bool = False
    condition: HostCondition | None = None  #: what it found when it looked at itself
    untold: str = ""  #: why that is not known

    @property
    def settled(self) -> bool:
        """Whether more waiting tells no more about it."""
        if self.unroutable:
            return self.counted
        return self.answered_ms is not None or bool(self.refusal) or (self.counted and self.consumers == 0)


class Certificate(Struct, frozen=True):
    """A certificate that a broker showed. Times in seconds since the epoch."""

    names: tuple[str, ...]
    issuer: str
    begins: float
    ends: float


class WireFacts(Struct):
    """What was found on the way to the broker, before any login. `error`: what ended it early."""

    addresses: list[str] = []
    reached: str = ""  #: the address that answered
    connected_ms: float = 0
    protocol: str = ""  #: the version of TLS, if it was spoken
    certificate: Certificate | None = None  #: also one that was not accepted
    ca_ends: float | None = None  #: of the first CA in ca_file that ends
    own_ends: float | None = None  #: of the certificate that we show, if we do
    error: CliError | None = None
    tls_error: CliError | None = None

    @property
    def broken(self) -> bool:
        """Whether there is no use in logging in."""
        return self.error is not None or self.tls_error is not None


class Examination(Struct):
    """All that was found. `now`: this machine's time, in seconds since the epoch; `timeout` in seconds."""

    version: str = ""  #: of this CLI
    source: str = ""  #: where the broker's address was written
    warnings: tuple[str, ...] = ()  #: about that place
    context_error: CliError | None = None
    address: str = ""
    host: str = ""
    user: str = ""
    vhost: str = ""
    tls: bool = False
    now: float = 0
    timeout: float = 0
    wire: WireFacts | None = None
    login_ms: float | None = None
    error: CliError | None = None  #: what ended it early, from the login on
    allowed: dict[Try, bool | None] = {}  #: what was tried; None: the broker did not say
    hosts: dict[str, HostFacts] = {}
    fleet: set[str] = set()  #: the hosts that the inventory names, as far as agents were told
    nameless: int = 0  #: agents that are alive, did not answer, and that nobody could name

    @property
    def is_play(self) -> bool:
        """Whether this is the article's broker: guest, and the vhost that every broker has."""
        return self.user == "guest" and self.vhost == "/"


class Finding(Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """One line of the report. `hint` says what to do."""

    check: str
    subject: str
    result: Result
    text: str
    hint: str = ""
    state: str = ""  #: of a host: up, down, silent, unknown, unbound
    answer_ms: float | None = None
    agent_version: str = ""
    clock_ahead_s: float | None = None
    days_left: int | None = None  #: of a certificate
    exit_code: int = 0

    @property
    def about(self) -> str:
        """The beginning of a sentence that goes on with `text`, where that says too little alone."""
        if self.check == "host":
            return f"host {self.subject} "
        return f"{self.subject}: " if self.check in _ABOUT_HOSTS else ""


_ABOUT_HOSTS = ("clock", "version", "accelerator", "network", "disk", "vms", "images", "tls", "address")
