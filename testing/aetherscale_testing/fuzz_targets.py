"""What reads other people's bytes, as targets for a fuzzer: each may refuse them in its own words alone.

`fuzz` feeds them with atheris (`make fuzz`, and briefly `make test`); testing/tests/test_fuzz.py goes over the seeds in
`make unit`.
"""

import base64
import contextlib
import io
import json
from collections.abc import Callable

import pika
import yaml

from aetherscale_agent.envelope import check_deadline, check_patience, check_reply_to, died_in, read_envelope
from aetherscale_agent.hypervisor import seed
from aetherscale_agent.hypervisor.console import clean_lines
from aetherscale_cli import text
from aetherscale_cli.arguments import parse
from aetherscale_cli.manifest import read_manifest
from aetherscale_cli.wire import decode_reply
from aetherscale_protocol.commands import COMMANDS, decode_request, encode_request
from aetherscale_protocol.disk_images import Disk, ImageError, check_image, read_image, read_qcow2
from aetherscale_protocol.errors import Refused
from aetherscale_protocol.options import CreateVm
from aetherscale_testing.seed_disc import read_disc

MAC = "52:54:00:00:00:01"
UNSEEN = {"\x1b", "\x9b", "\x07", "\r", "\0", "\u202e"}
"""What plays with a terminal."""


def decoder(data: bytes) -> None:
    """A message's body; what is accepted means the same when it is written anew, and makes a seed disc."""
    with contextlib.suppress(Refused):
        request = decode_request(data)
        assert decode_request(encode_request(request.command.name, request.options)) == request
        if isinstance(request.options, CreateVm):
            files = seed.finalize_files("abcdefgh", request.options, "i", MAC)
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
        assert not set(line) & (UNSEEN | {"\n"})


def arguments(data: bytes) -> None:
    """What is typed, a NUL between the words: what is taken can be sent, and what is said of the rest is harmless."""
    said, invocation = io.StringIO(), None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        invocation = parse([word.decode("utf-8", "surrogateescape") for word in data.split(b"\0")])
    assert invocation or said.getvalue()
    assert not set(said.getvalue()) & UNSEEN
    said.getvalue().encode()
    if invocation is not None and invocation.command in COMMANDS:
        for options in invocation.options:
            assert decode_request(encode_request(invocation.command, options)).options == options


def seed_disc(data: bytes) -> None:
    """A key, a line feed and user-data: the packed disc reads back, and its YAML means that and no more."""
    key, _, user_data = data.decode("utf-8", "replace").partition("\n")
    try:
        spec = CreateVm(image="a", ssh_keys=(key,), user_data=user_data)
    except ValueError:
        return
    files = seed.finalize_files("abcdefgh", spec, "i", MAC)
    meant = {"instance-id": "i", "local-hostname": "abcdefgh", "public-keys": [key]}
    assert yaml.safe_load(files["meta-data"]) == meant
    for names in ("rr_path", "joliet_path"):
        assert read_disc(io.BytesIO(seed._pack(files)), names) == files


def _qcow2() -> bytes:
    """A whole and empty qcow2 file of 1 MiB with clusters of 512 bytes and no extensions."""
    numbers = [0x514649FB, 3, 0, 0, 9, 1 << 20, 0, 32, 1024, 512, 1, 0, 0]
    sizes = [4, 4, 8, 4, 4, 8, 4, 4, 8, 8, 4, 4, 8]
    head = b"".join(number.to_bytes(size, "big") for number, size in zip(numbers, sizes, strict=True))
    return (head + bytes(24) + (4).to_bytes(4, "big") + (104).to_bytes(4, "big")).ljust(1024 + 32 * 8, b"\0")


QCOW2 = _qcow2()
TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one for one in (decoder, envelope, reply_to, image, manifest, answer, console, arguments, seed_disc)
}


def _properties(**fields: object) -> bytes:
    return b"".join(pika.BasicProperties(**fields).encode())


_PID = b"\x83X" + b"w\x0erabbit@broker1" + bytes(12)
_ADDRESS = f"amq.rabbitmq.reply-to.{base64.b64encode(_PID).decode()}.a2V5a2V5"

SEEDS: dict[str, list[bytes]] = {
    "decoder": [
        b'{"command":"create-vm","options":{"image":"a","name":"b","ssh-keys":["ssh-rsa A b"],"labels":{"k":"v"}}}',
        b'{"command":"stop-vm","options":{"vm-id":"abcdefgh","kill":true}}',
        b'{"command":"list-vms"}',
    ],
    "envelope": [
        _properties(reply_to=_ADDRESS, user_id="alice", message_id="0" * 32, headers={"deadline": 10**12 + 5000}),
        _properties(user_id="agent-h2", headers={"hops": 1, "operator": "bob", "x-death": [{"queue": "q"}]}),
    ],
    "reply_to": [_ADDRESS.encode(), _PID],
    "image": [QCOW2, bytes(510) + b"\x55\xaa"],
    "manifest": [
        b"vms:\n- &a {name: a, image: b, labels: {k: v}, ssh-keys: [x], publish: ['80:80']}\n- {<<: *a, name: c}"
    ],
    "answer": [
        b'{"execution-info":{"status":"error","reason":"\\u001b[2J","code":"failed"},"response":["vm-a"],"host":"h"}'
    ],
    "console": [b"\x1b[1;31mlogin:\x1b[0m \x1b]0;title\x07\r\n\xc3\xa4\x9b2J\x08\0"],
    "arguments": [
        b"create-vm\0--image\0a\0--name\0b\0--memory\x002G\0--label\0k=v\0--publish\x0080:80\0--ttl\x002h",
        b"stop-vm\0web1\0abcdefgh\0--kill\0-o\0json\0--timeout\x002m",
        b"ssh-vm\0web1\0-L\x0080:localhost:80\0--\0uptime",
        b"list-vms\0--label\0\x1b]0;\xff",
        b"create-vm\0--help",
    ],
    "seed_disc": [b"ssh-ed25519 A me: [x]\n#cloud-config\nhostname: x\n", b'"}, {\n#!/bin/sh\r\n\xc3\xa4'],
}
"""What a target begins with; without them it would look for JSON by chance."""
