"""The views of a lab: one ssh command per host, answered by systemd, /proc, the file systems and rabbitmqctl."""

import inspect
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aetherscale_lab.lab import Lab
from aetherscale_protocol import names
from aetherscale_testing.faults import look
from aetherscale_testing.faults.views import BrokerView, ClaimView, HostView, QueueView, RecordView

VHOST = "aetherscale"

# Two at once: each call of rabbitmqctl costs half a second.
_ASK_BROKER = f"""set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
list() {{ rabbitmqctl --quiet "$@" -p {VHOST} --formatter json; }}
list list_bindings source_name destination_name routing_key >"$folder/bindings" &
bindings=$!
list list_queues name messages_ready messages_unacknowledged consumers arguments >"$folder/queues"
wait "$bindings"
printf '{{"queues":'; cat "$folder/queues"
printf ',"bindings":'; cat "$folder/bindings"
printf ',"started":%s}}' "$(stat -c %Y /proc/"$(systemctl show -P MainPID rabbitmq-server.service)")"
"""


def collect(lab: Lab, hosts: Iterable[str], broker: str = "broker1") -> tuple[list[HostView], BrokerView]:
    """What compute hosts and broker have, all looked at at once."""
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(lambda: lab.run(broker, ["sh", "-c", _ASK_BROKER], timeout=60).stdout)
        views = list(pool.map(lambda name: look_at(lab, name), hosts))
        return views, broker_view(json.loads(asked.result()))


def look_at(lab: Lab, name: str) -> HostView:
    """What one host has."""
    done = lab.run(name, ["python3", "-I", "-"], stdin=inspect.getsource(look), timeout=60)
    return host_view(name, json.loads(done.stdout))


def host_view(name: str, seen: Mapping[str, Any]) -> HostView:
    """The view of what `look` saw. Names that can't be a VM's are strays."""
    parts = {part: frozenset(seen[part]) for part in ("disks", "running", "units", "runtime", "processes", "cut-off")}
    nameless = {f"{part}: {found}" for part, ids in parts.items() for found in ids if not names.is_vm_id(found)}
    return HostView(
        name,
        records={vm_id: RecordView.read(record) for vm_id, record in seen["journal"].items()},
        disks=_ids(parts["disks"]),
        running=_ids(parts["running"]),
        units=_ids(parts["units"]),
        processes={vm_id: n for vm_id, n in Counter(seen["processes"]).items() if names.is_vm_id(vm_id)},
        runtime=_ids(parts["runtime"]),
        cut_off=_ids(parts["cut-off"]),
        strays=(*seen["strays"], *sorted(nameless)),
    )


def _ids(found: frozenset[str]) -> frozenset[str]:
    return frozenset(name for name in found if names.is_vm_id(name))


def broker_view(seen: Mapping[str, Any]) -> BrokerView:
    """The view of rabbitmqctl's listings."""
    vms: dict[str, set[str]] = defaultdict(set)
    others = set()
    for row in seen["bindings"]:
        source, queue, key = row["source_name"], row["destination_name"], row["routing_key"]
        vm_id, host = key.removeprefix(names.vm_key("")), queue.removeprefix(names.host_queue(""))
        if vm_id != key and host != queue and names.is_vm_id(vm_id):
            vms[vm_id].add(host)
        elif source:
            others.add((source, queue, key))
    return BrokerView(
        bindings={vm_id: frozenset(hosts) for vm_id, hosts in vms.items()},
        other_bindings=frozenset(others),
        claims=dict(_claims(seen["queues"])),
        queues={
            row["name"]: QueueView(row["messages_ready"], row["messages_unacknowledged"], row["consumers"])
            for row in seen["queues"]
        },
        started=float(seen["started"]),
    )


def _claims(rows: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, ClaimView]]:
    prefix = names.claim_queue("")
    for row in rows:
        vm_id = row["name"].removeprefix(prefix)
        if vm_id != row["name"] and names.is_vm_id(vm_id):
            arguments = {name: value for name, _, value in row["arguments"]}
            yield vm_id, ClaimView(arguments.get("x-dead-letter-routing-key", ""), arguments.get("x-expires"))
