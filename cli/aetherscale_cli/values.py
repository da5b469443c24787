"""What a single value on the command line, or in a file of VMs, may be: sizes, times, labels, ports. Pure.

:raise ArgumentTypeError: (all of them) saying what is wrong with it.
"""

import math
import re
from argparse import ArgumentTypeError
from typing import Any, get_args

from aetherscale_protocol import names, options, topology
from aetherscale_protocol.options import Publish, ShowVm


def duration(text: str) -> float:
    """A time such as `60s`, `2m` or `90`, in seconds."""
    most = topology.MAX_PATIENCE_S
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(s|m)?", text)
    seconds = float(match[1]) * (60 if match[2] == "m" else 1) if match else math.nan
    if not 0 < seconds <= most:
        raise ArgumentTypeError(f"{text!r} is not a time such as 60s or 2m, above 0 and up to {most}s")
    return seconds


def patience(text: str) -> float:
    """A time as `duration` has it, or 0."""
    return 0.0 if text == "0" else duration(text)


_TTL_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def ttl(text: str) -> int:
    """How long a VM lives: `30s`, `15m`, `2h`, `7d`; in seconds."""
    least, most = get_args(options.TtlS)[1].ge, get_args(options.TtlS)[1].le
    match = re.fullmatch("([0-9]{1,9})([smhd])", text)
    seconds = int(match[1]) * _TTL_UNITS[match[2]] if match else -1
    if not least <= seconds <= most:
        raise ArgumentTypeError(f"{text!r} is not a time such as 30m, 2h or 7d, from 1s to {most // 86_400}d")
    return seconds


def ttl_or_never(text: str) -> int | None:
    """As `ttl`; None for `never`."""
    return None if text == "never" else ttl(text)


def request_id(text: str) -> str:
    """A request's id."""
    if re.fullmatch(r"[0-9a-f]{32}", text) is None:
        raise ArgumentTypeError(f"{text!r} is not a request id: 32 hexadecimal digits")
    return text


def label(text: str) -> tuple[str, str]:
    """A label, `KEY=VALUE`."""
    key, sign, value = text.partition("=")
    if not sign or not names.is_label(key, value):
        raise ArgumentTypeError(f"{text!r}: {names.LABEL_RULE}")
    return key, value


def selector(text: str) -> str:
    """What selects by a label: `KEY=VALUE`, or `KEY` with any value."""
    if not names.is_label(*options.split_selector(text)):
        raise ArgumentTypeError(f"{text!r} is not KEY=VALUE or KEY: {names.LABEL_RULE}")
    return text


def publish(text: str) -> Publish:
    """A port of the host that leads to one of the guest, `8080:80`."""
    match = re.fullmatch("([0-9]{1,5}):([0-9]{1,5})", text)
    if match is None or not all(1 <= int(port) <= 65_535 for port in match.groups()):
        raise ArgumentTypeError(f"{text!r} is not HOST-PORT:GUEST-PORT such as 8080:80, each from 1 to 65535")
    return Publish(host_port=int(match[1]), guest_port=int(match[2]))


def vm(text: str) -> str:
    """What stands for a VM: its id, its name, or the beginning of its id."""
    if not names.is_vm_name(text):
        raise ArgumentTypeError(f"{text!r} is neither a VM's id nor its name: {names.VM_ID_RULE}; {names.VM_NAME_RULE}")
    return text


def vm_id(text: str) -> str:
    """A VM id."""
    if not names.is_vm_id(text):
        raise ArgumentTypeError(f"vm-id {text!r}: {names.VM_ID_RULE}")
    return text


def vm_name(text: str) -> str:
    """A VM's name."""
    if not names.is_vm_name(text):
        raise ArgumentTypeError(f"{text!r}: {names.VM_NAME_RULE}")
    return text


def sha256(text: str) -> str:
    """A SHA-256 in hexadecimal."""
    if re.fullmatch("[0-9a-fA-F]{64}", text) is None:
        raise ArgumentTypeError(f"{text!r} is no SHA-256: 64 hexadecimal digits")
    return text.lower()


def image(text: str) -> str:
    """An image's name."""
    if not names.is_image_name(text):
        raise ArgumentTypeError(f"{text!r}: {names.IMAGE_RULE}")
    return text


def host(text: str) -> str:
    """A host's name."""
    if not names.is_host_name(text):
        raise ArgumentTypeError(f"{text!r}: {names.HOST_RULE}")
    return text


def _whole(text: str, kind: Any, what: str) -> int:
    """A whole number within the bounds that the protocol gives its type `kind`."""
    meta = get_args(kind)[1]
    if re.fullmatch("[0-9]{1,9}", text) is None or not meta.ge <= int(text) <= meta.le:
        raise ArgumentTypeError(f"{text!r} is not a number of {what} from {meta.ge} to {meta.le}")
    return int(text)


def cpus(text: str) -> int:
    """A number of cores."""
    return _whole(text, options.Cpus, "cores")


def port(text: str) -> int:
    """A TCP port."""
    return _whole(text, options.Port, "a TCP port")


def lines(text: str) -> int:
    """A number of the console's lines."""
    return _whole(text, ShowVm.__annotations__["console_lines"], "lines")


_UNITS = {"M": 1, "G": 1024, "T": 1024 * 1024}


def memory(text: str) -> int:
    """An amount of memory, in MiB."""
    return _size(text, "M", options.MemoryMiB, "512M or 2G")


def disk(text: str) -> int:
    """A disk's size, in GiB."""
    return _size(text, "G", options.DiskGiB, "10G or 1T")


def _size(text: str, unit: str, kind: Any, example: str) -> int:
    """A size in units of `unit`, which is also what a bare number means."""
    match = re.fullmatch("(-?[0-9]{1,9})([MGT]?)", text.upper().removesuffix("IB"))
    if match is None:
        raise ArgumentTypeError(f"{text!r} is not a size such as {example}")
    mebibytes = int(match[1]) * _UNITS[match[2] or unit]
    amount, rest = divmod(mebibytes, _UNITS[unit])
    meta = get_args(kind)[1]
    if rest or not meta.ge <= amount <= meta.le:
        raise ArgumentTypeError(f"{text!r} is not a whole number of {unit} from {meta.ge}{unit} to {meta.le}{unit}")
    return amount
