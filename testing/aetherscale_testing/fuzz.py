"""Coverage-guided fuzzing of what reads other people's bytes: `make fuzz`, or

    python -m aetherscale_testing.fuzz TARGET [CORPUS] [libFuzzer's options, such as -max_total_time=300]

Each target takes bytes, and may refuse them in its own words alone: whatever else it raises is a find, which libFuzzer
writes to a file `crash-…`. That file, as CORPUS, shows it again. Needs the extra `fuzz` (atheris).
"""

import base64
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["aetherscale_protocol", "aetherscale_agent", "aetherscale_cli", "yaml"]):
    import pika

    from aetherscale_agent.envelope import check_deadline, check_patience, check_reply_to, died_in, read_envelope
    from aetherscale_agent.hypervisor.console import clean_lines
    from aetherscale_agent.hypervisor.seed import finalize_files
    from aetherscale_cli import text
    from aetherscale_cli.manifest import read_manifest
    from aetherscale_cli.wire import decode_reply
    from aetherscale_protocol.commands import decode_request, encode_request
    from aetherscale_protocol.disk_images import Disk, ImageError, check_image, read_image, read_qcow2
    from aetherscale_protocol.errors import Refused
    from aetherscale_protocol.options import CreateVm


def decoder(data: bytes) -> None:
    """A message's body; what is accepted means the same when it is written anew, and makes a seed disc."""
    with contextlib.suppress(Refused):
        request = decode_request(data)
        assert decode_request(encode_request(request.command.name, request.options)) == request
        if isinstance(request.options, CreateVm):
            files = finalize_files("abcdefgh", request.options, "i", "52:54:00:00:00:01")
            assert json.loads(files["meta-data"])["public-keys"] == list(request.options.ssh_keys)


def envelope(data: bytes) -> None:
    """A message's properties, as pika decodes them, with a body that is a command."""
    properties = pika.BasicProperties()
    try:
        properties.decode(data)
    except Exception:
        return  # read as none: agent/tests/unit/test_frames.py
    with contextlib.suppress(Refused):
        died_in("computing-undeliverable", properties.headers or {})
        incoming = read_envelope(b'{"command": "list-vms"}', properties, own_user="agent-h1")
        check_deadline(incoming.deadline, 1e9, "h1")
        check_patience(incoming.deadline, 1e9, "h1")
        check_reply_to(properties.reply_to)


def reply_to(data: bytes) -> None:
    """An address for answers, whole or as the token inside of one."""
    for address in (data.decode("latin-1"), f"amq.rabbitmq.reply-to.{base64.b64encode(data).decode()}.a2V5a2V5"):
        with contextlib.suppress(Refused):
            check_reply_to(address)


def image(data: bytes) -> None:
    """A disk image, by itself and behind the beginning of a valid header: none that passes stands on another file."""
    for whole in (data, QCOW2[: max(0, 72 - len(data))] + data, QCOW2[:104] + data):
        file = io.BytesIO(whole.ljust(len(QCOW2), b"\0"))
        with contextlib.suppress(ImageError):
            assert not read_image(file).backing
        with contextlib.suppress(ImageError):
            check_image(file, Disk("qcow2", 1 << 20))
            assert whole[8:16] == bytes(8)
        with contextlib.suppress(ImageError):
            read_qcow2(file)


def manifest(data: bytes) -> None:
    """A file of VMs: all that is wrong with it is said, with where it is."""
    found = read_manifest(data.decode("utf-8", "replace"), "vms.yml")
    assert all(error.startswith("vms.yml") for error in found.errors)


def answer(data: bytes) -> None:
    """An agent's answer, and its way to a terminal."""
    reply = decode_reply(data)
    if reply is not None:
        assert json.loads(text.safe_json(reply.raw.decode())) == json.loads(reply.raw)


def console(data: bytes) -> None:
    """What a guest prints: nothing of it plays with a terminal."""
    for line in clean_lines(data, 20):
        assert not set(line) & {"\x1b", "\x9b", "\x07", "\n", "\r", "\0"}


def _qcow2() -> bytes:
    """A whole and empty qcow2 file of 1 MiB with clusters of 512 bytes and no extensions."""
    numbers = [0x514649FB, 3, 0, 0, 9, 1 << 20, 0, 32, 1024, 512, 1, 0, 0]
    sizes = [4, 4, 8, 4, 4, 8, 4, 4, 8, 8, 4, 4, 8]
    head = b"".join(number.to_bytes(size, "big") for number, size in zip(numbers, sizes, strict=True))
    return (head + bytes(24) + (4).to_bytes(4, "big") + (104).to_bytes(4, "big")).ljust(1024 + 32 * 8, b"\0")


QCOW2 = _qcow2()
TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one for one in (decoder, envelope, reply_to, image, manifest, answer, console)
}


SEEDS: dict[str, list[bytes]] = {
    "decoder": [
        b'{"command":"create-vm","options":{"image":"a","name":"b","ssh-keys":["ssh-rsa A b"],"labels":{"k":"v"}}}',
        b'{"command":"stop-vm","options":{"vm-id":"abcdefgh","kill":true}}',
        b'{"command":"list-vms"}',
    ],
    "image": [QCOW2, bytes(510) + b"\x55\xaa"],
    "manifest": [
        b"vms:\n- &a {name: a, image: b, labels: {k: v}, ssh-keys: [x], publish: ['80:80']}\n- {<<: *a, name: c}"
    ],
    "answer": [
        b'{"execution-info":{"status":"error","reason":"\\u001b[2J","code":"failed"},"response":["vm-a"],"host":"h"}'
    ],
}
"""What a target begins with; without them it would look for JSON by chance."""


def run() -> None:
    """Fuzz the target that the first argument names, until libFuzzer has enough or finds something."""
    target, options = TARGETS[sys.argv[1]], sys.argv[2:]
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(SEEDS.get(sys.argv[1], [])):
            Path(folder, str(number)).write_bytes(seed)
        own = [] if any(not option.startswith("-") for option in options) else [folder]
        atheris.Setup([sys.argv[0], *options, *own], target)
        atheris.Fuzz()


if __name__ == "__main__":
    run()
