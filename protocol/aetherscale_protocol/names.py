"""Names on the wire: VM ids, host names, image names, request ids, and the rules that each must obey.

They end up in unit names, paths, queue names and permission patterns, so every rule is a full match.
"""

import os
import re
import string

VM_ID_PATTERN = r"[a-z]{8}"
IMAGE_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
HOST_PATTERN = r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?"
VM_NAME_PATTERN = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
LABEL_KEY_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?"
LABEL_VALUE_PATTERN = r"[A-Za-z0-9._-]{0,63}"
SNAPSHOT_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

VM_ID_RULE = "a VM id is 8 lower-case letters"
IMAGE_RULE = "an image name is 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or digit"
VM_NAME_RULE = "a VM's name is 1 to 63 lower-case letters, digits or '-', with a letter or digit at each end"
LABEL_RULE = (
    "a label is KEY=VALUE; the key is 1 to 63 letters, digits, '.', '_', '/' or '-', "
    "with a letter or digit at each end, "
    "the value up to 63 letters, digits, '.', '_' or '-'"
)
SNAPSHOT_RULE = "a snapshot's name is 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or digit"
HOST_RULE = "a host name is 1 to 63 lower-case letters, digits, '.' or '-', with a letter or digit at each end"

AGENT_USER_PREFIX = "agent-"
"""Broker users of agents start with this; no operator may (headers that only agents may set hang on it)."""


def is_vm_id(text: str) -> bool:
    """Whether `text` is a VM id."""
    return re.fullmatch(VM_ID_PATTERN, text) is not None


def is_image_name(text: str) -> bool:
    """Whether `text` can name an image."""
    return re.fullmatch(IMAGE_PATTERN, text) is not None


def is_host_name(text: str) -> bool:
    """Whether `text` can name a host."""
    return re.fullmatch(HOST_PATTERN, text) is not None


def is_vm_name(text: str) -> bool:
    """Whether `text` can name a VM: it becomes the guest's host name."""
    return re.fullmatch(VM_NAME_PATTERN, text) is not None


def is_label(key: str, value: str) -> bool:
    """Whether a VM or a host can have this label."""
    return re.fullmatch(LABEL_KEY_PATTERN, key) is not None and re.fullmatch(LABEL_VALUE_PATTERN, value) is not None


def is_snapshot_name(text: str) -> bool:
    """Whether `text` can name a snapshot."""
    return re.fullmatch(SNAPSHOT_PATTERN, text) is not None


def id_of_name(name: str) -> str:
    """The id of the VM with this name: who knows the name knows the id, and who claims the id has the name.

    See docs/decisions/006-names.md.
    """
    return _letters(b"vm-name:" + name.encode())


def new_vm_id() -> str:
    """A fresh random VM id (38 bits; the claim in the broker settles the rare collision)."""
    return derive_vm_id(new_request_id())


def new_request_id() -> str:
    """A fresh random request id: 32 hexadecimal digits."""
    return os.urandom(16).hex()


def derive_request_id(*parts: str | bytes | None) -> str:
    """The request id of a message that brought none: the same message gets the same id, on any host."""
    import hashlib

    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part or b""
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]


def derive_vm_id(request_id: str) -> str:
    """The VM id of a create that brought none, derived from its request id, so that redelivery is safe."""
    return _letters(b"vm-id:" + request_id.encode())


def _letters(seed: bytes) -> str:
    import hashlib

    number = int.from_bytes(hashlib.sha256(seed).digest(), "big")
    letters = []
    for _ in range(8):
        number, digit = divmod(number, 26)
        letters.append(string.ascii_lowercase[digit])
    return "".join(letters)


def agent_user(host: str) -> str:
    """The broker user of the agent on `host`."""
    return AGENT_USER_PREFIX + host


def vm_key(vm_id: str) -> str:
    """The routing key that reaches the host which holds this VM, and nobody else."""
    return f"vm.{vm_id}"


def host_key(host: str) -> str:
    """The routing key that reaches this host."""
    return f"host.{host}"


def host_queue(host: str) -> str:
    """The queue of this host's agent."""
    return f"computing-host.{host}"


def lock_queue(host: str) -> str:
    """The exclusive queue that lets only one agent run under a host name."""
    return f"agent.{host}"


def known_queue(host: str) -> str:
    """The queue that holds the last word of this host about its VMs."""
    return f"computing-known.{host}"


def claim_queue(vm_id: str) -> str:
    """The queue whose declaration claims a VM id."""
    return f"claim.{vm_id}"
