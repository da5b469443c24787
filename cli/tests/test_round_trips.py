"""What passes the wire after a time-out: one round trip, however many are silent."""

from typing import Any

import pika
import pytest

from aetherscale_cli import ask
from aetherscale_protocol import names
from aetherscale_testing.proxy import Wires

pytestmark = pytest.mark.broker

SILENT = [f"h{number}" for number in range(2, 9)]


class Counts:
    """The consumers' counts that pass a wire, and how many of them were unanswered at a time."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answered = 0
        self.most_unanswered = 0
        self._rest: dict[bool, bytes] = {}

    def see(self, _connection: int, to_broker: bool, data: bytes) -> None:
        rest = self._rest.get(to_broker, b"") + data
        size, found = pika.frame.decode_frame(rest)
        while size:
            rest = rest[size:]
            match getattr(found, "method", None):
                case pika.spec.Queue.Declare(queue=queue):
                    self.asked.append(queue)
                case pika.spec.Queue.DeclareOk():
                    self.answered += 1
            self.most_unanswered = max(self.most_unanswered, len(self.asked) - self.answered)
            size, found = pika.frame.decode_frame(rest)
        self._rest[to_broker] = rest


@pytest.mark.parametrize("prompt", [60, 0.1], ids=["asked for names after it", "asked for names meanwhile"])
def test_many_silent_hosts_are_counted_without_waiting_for_each(
    cloud: Any, cli: Any, node: Any, monkeypatch: pytest.MonkeyPatch, prompt: float
) -> None:
    monkeypatch.setattr(ask, "PROMPT_S", prompt)
    fleet = ["h1", *SILENT]
    cloud.start("h1", fleet)
    for host in SILENT:
        cloud.start(host, fleet, lambda _: None)
    cloud.stop("h8")
    counts = Counts()
    with Wires() as wires:
        wire = wires.open(("127.0.0.1", node.broker.port))
        wire.watch = counts.see
        ran = cli("list-vms", "--timeout", "2", environ={"RABBITMQ_HOST": f"127.0.0.1:{wire.port}"})
    assert ran.code == 4
    assert [line for line in ran.err.splitlines() if line.startswith("error")] == [
        *(f"error: host {host} did not answer within 2 s" for host in SILENT[:-1]),
        "error: host h8 is not running",
    ]
    assert counts.asked == ["computing-hosts", *map(names.host_queue, SILENT), "computing-hosts"]
    assert counts.most_unanswered > 1  # a quick broker answers the first before the last is through the relay
