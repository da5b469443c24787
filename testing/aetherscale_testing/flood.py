"""One operator who sends thousands of messages at once: `python -m aetherscale_testing.flood '<wish>'`.

The wish (JSON): `address` of the broker, `user` (whose password is the same), `vm` (an id), and `kinds`: how many
messages of each. They are made first and written in one go; every other one is signed. A line `sent` goes to stdout
then; when as many answers have come as there should be, or none for `PATIENCE_S`, a line of JSON: the number of
answers, and how many there were of each code ('' for a success).
"""

import collections
import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import pika

PATIENCE_S = 5.0
REPLY_TO = "amq.rabbitmq.reply-to"

Made = tuple[str, bytes, str | None]
"""Key, body, reply_to."""


def body(command: str, **options: Any) -> bytes:
    return json.dumps({"command": command, "options": options}).encode()


KINDS: dict[str, Callable[[str, int], Made]] = {
    "list": lambda _vm, _n: ("list-vms", body("list-vms"), REPLY_TO),
    "garbage": lambda _vm, n: ("list-vms", b"\xff{garbage" * (n % 50), REPLY_TO),
    "one-vm": lambda vm, n: (f"vm.{vm}", body(("start-vm", "stop-vm")[n % 2], **{"vm-id": vm}), REPLY_TO),
    "create": lambda _vm, n: ("create-vm", body("create-vm", image=f"nowhere{n}"), REPLY_TO),
    "forged": lambda _vm, n: ("list-vms", body("list-vms"), f"amq.rabbitmq.reply-to.forged{n}.key"),
    "unanswerable": lambda _vm, _n: ("list-vms", body("list-vms"), None),
}
SILENT = ("forged", "unanswerable")


def make(vm: str, kinds: dict[str, int]) -> list[Made]:
    """The messages, mixed, and always in the same order."""
    made = [KINDS[kind](vm, number) for kind, many in kinds.items() for number in range(many)]
    random.Random(7).shuffle(made)
    return made


def run(wish: dict[str, Any]) -> dict[str, Any]:
    """Send them, and count what comes back."""
    host, _, port = wish["address"].partition(":")
    user = wish["user"]
    connection = pika.BlockingConnection(
        pika.ConnectionParameters(host, int(port), "/", pika.PlainCredentials(user, user), heartbeat=0)
    )
    channel = connection.channel()
    codes: collections.Counter[str] = collections.Counter()

    def on_answer(_channel: Any, _method: Any, _properties: Any, answer: bytes) -> None:
        codes[json.loads(answer)["execution-info"].get("code", "")] += 1

    channel.basic_consume(REPLY_TO, on_answer, auto_ack=True)
    for number, (key, said, reply_to) in enumerate(make(wish["vm"], wish["kinds"])):
        properties = pika.BasicProperties(
            reply_to=reply_to, correlation_id=str(number), user_id=(None, user)[number % 2]
        )
        channel._impl.basic_publish("computing", key, said, properties)  # BlockingChannel would write each by itself
    connection.process_data_events(0)
    print("sent", flush=True)
    wanted = sum(many for kind, many in wish["kinds"].items() if kind not in SILENT)
    heard, count = time.monotonic(), 0
    while codes.total() < wanted and time.monotonic() - heard < PATIENCE_S:
        connection.process_data_events(0.2)
        if codes.total() > count:
            heard, count = time.monotonic(), codes.total()
    return {"answers": codes.total(), "codes": codes}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
