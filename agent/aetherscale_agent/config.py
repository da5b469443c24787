"""The agent's configuration: one TOML file, checked in full before anything starts."""

import ipaddress
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from aetherscale_protocol import names
from aetherscale_protocol.options import MOST_LABELS
from aetherscale_protocol.settings import BrokerSettings, SettingsError, override_host


class Resources(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What VMs may use together. Left out: found out. Memory in MiB, disk in GiB."""

    cpus: Annotated[int, Meta(ge=1)] | None = None
    memory: Annotated[int, Meta(ge=0)] | None = None
    disk: Annotated[int, Meta(ge=0)] | None = None
    cpu_overcommit: Annotated[float, Meta(gt=0)] = 4.0
    memory_overcommit: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    reserve_memory: Annotated[int, Meta(ge=0)] | None = None


class HypervisorSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How VMs are run. `auto`: KVM if a guest makes progress under it, else TCG."""

    accelerator: Literal["auto", "kvm", "tcg"] = "auto"


class NetworkSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the VMs' network interfaces are. Left out: each VM is behind a network of its QEMU's own, which nobody
    can reach. `network` (CIDR): the bridge is aetherscale's, and so are the addresses on it.
    """

    bridge: str = ""
    network: str = ""


class OperatorRights(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one operator may do: everything, only read (`readonly`), only with VMs that have all these `labels`."""

    readonly: bool = False
    labels: dict[str, str] = {}

    @property
    def restricted(self) -> bool:
        """Whether there is something that this operator may not do."""
        return self.readonly or bool(self.labels)


class AgentConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that an agent is told. An empty file, or none, is enough for a broker on this machine."""

    host: str = ""
    fleet: list[str] = []
    labels: dict[str, str] = {}
    operators: dict[str, OperatorRights] | None = None  #: None: whoever reaches the broker may do everything
    state_dir: str = "/var/lib/aetherscale"
    run_dir: str = "/run/aetherscale"
    heartbeat: int = 5  #: seconds; a frozen host is noticed after two to three of them
    broker: BrokerSettings = BrokerSettings()
    resources: Resources = Resources()
    hypervisor: HypervisorSettings = HypervisorSettings()
    network: NetworkSettings = NetworkSettings()


def load_config(path: Path | None, environ: Mapping[str, str]) -> AgentConfig:
    """The configuration in a file (None: all defaults), with `RABBITMQ_HOST` from the environment on top.

    :raise SettingsError: when it can't be read, or anything in it is wrong; says what and where.
    """
    config = _read(path) if path else AgentConfig()
    host = config.host or socket.gethostname().lower()
    config = msgspec.structs.replace(
        config, host=host, fleet=sorted(set(config.fleet)), broker=override_host(config.broker.check(), environ)
    )
    for name in (host, *config.fleet):
        if not names.is_host_name(name):
            raise SettingsError(f"host name {name!r}: {names.HOST_RULE}", "set `host` in the agent's configuration")
    _check_network(config.network)
    _check_labels(config.labels)
    for name, rights in (config.operators or {}).items():
        if name.startswith(names.AGENT_USER_PREFIX):
            raise SettingsError(
                f"operator {name!r}: names beginning with {names.AGENT_USER_PREFIX} are the agents' own"
            )
        _check_labels(rights.labels)
    if not 1 <= config.heartbeat <= 60:
        raise SettingsError(f"heartbeat is {config.heartbeat}; it must be 1 to 60 seconds")
    return config


def _check_network(settings: NetworkSettings) -> None:
    try:
        smallest = not settings.network or ipaddress.IPv4Network(settings.network).prefixlen <= 29
    except ValueError as error:
        raise SettingsError(f"network.network is {settings.network!r}: {error}", "example: 10.126.0.0/22") from None
    if not smallest or (settings.network and not settings.bridge):
        raise SettingsError("network.network needs a bridge, and room for a few VMs (/29)", "example: 10.126.0.0/22")


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MOST_LABELS:
        raise SettingsError(f"labels: {len(labels)} of them; {MOST_LABELS} are the most")
    for key, value in labels.items():
        if not names.is_label(key, value):
            raise SettingsError(f"label {key}={value}: {names.LABEL_RULE}", "correct `labels` in the configuration")


def _read(path: Path) -> AgentConfig:
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), AgentConfig)
    except OSError as error:
        raise SettingsError(f"can't read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise SettingsError(f"{path}: {error}", "compare it with docs/rollout.md") from None
