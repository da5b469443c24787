"""One operator who sends thousands of messages at once: `python -m aetherscale_testing.flood '<wish>'`.

The wish (JSON): `broker` as a CLI context has it, `vm` (an id), `hosts` (how many answer what all are asked), and
`kinds`: how many messages of each. They are made first and written in one go; every other one is signed. A line
`sent` goes to stdout then; when as many answers have come as there should be, or none for `PATIENCE_S`, a line of JSON:
how many there were, should have been, and were of each code ('' for a success).
"""

import collections
import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pika

from aetherscale_protocol.streams import CODE, Frame, is_stream
from aetherscale_testing.client import parameters_of

PATIENCE_S = 5.0
REPLY_TO = "amq.rabbitmq.reply-to"

Made = tuple[str, bytes, str | None, dict[str, Any]]
"""Key, body, reply_to, headers."""


def body(command: str, **options: Any) -> bytes:
    return json.dumps({"command": command, "options": options}).encode()


KINDS: dict[str, Callable[[str, int], Made]] = {
    "list": lambda _vm, _n: ("list-vms", body("list-vms"), REPLY_TO, {}),
    "garbage": lambda _vm, n: ("list-vms", b"\xff{garbage" * (n % 50), REPLY_TO, {}),
    "one-vm": lambda vm, n: (f"vm.{vm}", body(("start-vm", "stop-vm")[n % 2], **{"vm-id": vm}), REPLY_TO, {}),
    "create": lambda _vm, n: ("create-vm", body("create-vm", image=f"nowhere{n}"), REPLY_TO, {}),
    "stream": lambda vm, n: (f"vm.{vm}", b"x" * 1000, REPLY_TO, Frame(f"gone{n}", "data", n).headers),
    "no-stream": lambda vm, n: (f"vm.{vm}", b"x" * 1000, REPLY_TO, {"stream": n, "kind": "data", "seq": []}),
    "forged": lambda _vm, n: ("list-vms", body("list-vms"), f"amq.rabbitmq.reply-to.forged{n}.key", {}),
    "unanswerable": lambda _vm, _n: ("list-vms", body("list-vms"), None, {}),
}
OF_ALL = ("list", "garbage")
SILENT = ("no-stream", "forged", "unanswerable")


def count_answers(kinds: dict[str, int], hosts: int = 1) -> int:
    """How many answers should come from so many hosts."""
    return sum(many * (hosts if kind in OF_ALL else 1) for kind, many in kinds.items() if kind not in SILENT)


def make(vm: str, kinds: dict[str, int]) -> list[Made]:
    """The messages, mixed, and always in the same order."""
    made = [KINDS[kind](vm, number) for kind, many in kinds.items() for number in range(many)]
    random.Random(7).shuffle(made)
    return made


def run(wish: dict[str, Any]) -> dict[str, Any]:
    """Send them, and count what comes back."""
    user, wanted = urlsplit(wish["broker"]["url"]).username, count_answers(wish["kinds"], wish["hosts"])
    connection = pika.BlockingConnection(parameters_of(wish["broker"], heartbeat=0))
    channel = connection.channel()
    codes: collections.Counter[str] = collections.Counter()

    def on_answer(_channel: Any, _method: Any, properties: Any, answer: bytes) -> None:
        told = properties.headers if is_stream(properties.headers) else json.loads(answer)["execution-info"]
        codes[told.get(CODE, "")] += 1

    channel.basic_consume(REPLY_TO, on_answer, auto_ack=True)
    for number, (key, said, reply_to, headers) in enumerate(make(wish["vm"], wish["kinds"])):
        properties = pika.BasicProperties(
            reply_to=reply_to, correlation_id=str(number), user_id=(None, user)[number % 2], headers=headers
        )
        channel._impl.basic_publish("computing", key, said, properties)  # BlockingChannel would write each by itself
    connection.process_data_events(0)
    print("sent", flush=True)
    heard, count = time.monotonic(), 0
    while codes.total() < wanted and time.monotonic() - heard < PATIENCE_S:
        connection.process_data_events(0.2)
        if codes.total() > count:
            heard, count = time.monotonic(), codes.total()
    return {"answers": codes.total(), "wanted": wanted, "codes": codes}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
