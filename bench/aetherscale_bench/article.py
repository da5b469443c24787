"""list-vms beside a client as the seed article describes it, both as guest on one fleet in play mode.

That client publishes the command, takes answers for a fixed time of a few seconds, and prints them: it can't know how
many will come. Written anew from that description. `WAIT_S` is the least that "a few seconds" can be.
"""

import json
from collections.abc import Callable

from aetherscale_bench import installed
from aetherscale_bench.figures import Result, times
from aetherscale_bench.fleet import BROKER, Fleet
from aetherscale_bench.rollout import started
from aetherscale_bench.timing import run, side_by_side

HOSTS, VMS = 3, 6
WAIT_S = 2
OURS, THEIRS = "list-vms, 3 hosts, play mode", f"the article's client, which waits {WAIT_S} s"
CLIENT = f"""\
import json, os, sys, uuid
import pika

connection = pika.BlockingConnection(pika.ConnectionParameters(host=os.environ["RABBITMQ_HOST"]))
channel = connection.channel()
correlation_id, answers = str(uuid.uuid4()), []


def on_answer(channel, method, properties, body):
    if properties.correlation_id == correlation_id:
        answers.append(json.loads(body))


channel.basic_consume(queue="amq.rabbitmq.reply-to", on_message_callback=on_answer, auto_ack=True)
channel.basic_publish(
    exchange="computing",
    routing_key="list-vms",
    body=json.dumps({{"command": "list-vms", "options": {{}}}}),
    properties=pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", correlation_id=correlation_id),
)
connection.call_later({WAIT_S}, channel.stop_consuming)
channel.start_consuming()
connection.close()
print(json.dumps(answers))
"""


def measure(runs: int) -> Result:
    """ms of whole processes, and how many times the one takes as long as the other."""
    with started(HOSTS, "article") as fleet:
        fleet.roll_out("-e", "rabbitmq_loopback_users=none")
        facts = fleet.facts() | {"hosts": HOSTS, "VMs": VMS}
        for _ in range(VMS):
            fleet.create()
        actions = {OURS: whole(lambda: fleet.cli("list-vms")), THEIRS: whole(lambda: ask(fleet))}
        ours, theirs = side_by_side(actions, runs)
    return Result("article", (ours, theirs, times("theirs, in times of ours", theirs, ours)), (), facts)


def ask(fleet: Fleet) -> str:
    """What that client prints."""
    return run([installed.PYTHON, "-c", CLIENT], env=fleet.env | {"RABBITMQ_HOST": fleet.lab.plan.host(BROKER).address})


def whole(listing: Callable[[], str]) -> Callable[[], None]:
    """The listing, whole: every host has answered, and every VM is there."""

    def action() -> None:
        answers = json.loads(listing())
        rows = sum(len(answer["response"]) for answer in answers)
        if (len(answers), rows) != (HOSTS, VMS):
            raise RuntimeError(f"{len(answers)} hosts told of {rows} VMs")

    return action
