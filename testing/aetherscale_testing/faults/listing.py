"""What a broker has, asked of its own Erlang node every moment: one Erlang process that stays, not one per look."""

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aetherscale_protocol import names
from aetherscale_testing.broker import TestBroker
from aetherscale_testing.faults.views import BrokerView, ClaimView, QueueView

# Tab-separated fields for each queue (q) and binding (b) of each vhost, a line each, then "end"; "down": no node.
_SCRIPT = r"""
Node = '%(node)s',
Call = fun(M, F, A) -> case rpc:call(Node, M, F, A, 5000) of {badrpc, Why} -> throw(Why); Is -> Is end end,
Items = [name, arguments, messages_ready, messages_unacknowledged, consumers],
Text = fun(V) when is_integer(V) -> integer_to_binary(V); (V) when is_binary(V) -> V; (_) -> <<"">> end,
Argument = fun(Name, Args) ->
    case lists:keyfind(Name, 1, Args) of {_, _, V} -> Text(V); false -> <<"">> end end,
Line = fun(Fields) -> [lists:join("\t", Fields), "\n"] end,
Queue = fun(VHost, Info) ->
    Get = fun(Item) -> proplists:get_value(Item, Info) end,
    Args = case Get(arguments) of List when is_list(List) -> List; _ -> [] end,
    Line(["q", VHost, element(4, Get(name)), Text(Get(messages_ready)), Text(Get(messages_unacknowledged)),
        Text(Get(consumers)), Argument(<<"x-dead-letter-routing-key">>, Args), Argument(<<"x-expires">>, Args)]) end,
Binding = fun(VHost, {binding, Source, Key, Destination, _}) ->
    Line(["b", VHost, element(4, Source), element(4, Destination), Key]) end,
Look = fun() ->
    [[[Queue(V, Q) || Q <- Call(rabbit_amqqueue, info_all, [V, Items])],
      [Binding(V, B) || B <- Call(rabbit_binding, list, [V])]]
     || V <- Call(rabbit_vhost, list_names, []), V =/= <<"/">>] end,
Loop = fun(Again) ->
    case io:get_line("") of
        eof -> halt(0);
        {error, _} -> halt(0);
        _ ->
            io:put_chars(try [Look(), "end\n"] catch _:_ -> "down\n" end),
            Again(Again)
    end end,
Loop(Loop).
"""


@dataclass(frozen=True)
class Look:
    """All vhosts at one moment. `asked_at`, on time.monotonic()'s clock: what happened before is in it."""

    asked_at: float
    vhosts: Mapping[str, BrokerView]


class Listing:
    """Looks again and again, in a thread; whoever wants to know waits for a look that was asked for late enough."""

    def __init__(self, broker: TestBroker, every_s: float = 0.3) -> None:
        self._broker = broker
        self._every_s = every_s
        self._changed = threading.Condition()
        self._last = Look(0.0, {})
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listing", daemon=True)

    def __enter__(self) -> Self:
        node = self._broker.environ["RABBITMQ_NODENAME"]
        self._erlang = subprocess.Popen(
            [
                "erl",
                *("-noshell", "-hidden", "-sname", f"look{os.getpid()}x{self._broker.port}@localhost"),
                *("-kernel", "inet_dist_use_interface", "{127,0,0,1}"),
                *("-eval", _SCRIPT % {"node": node}),
            ],
            env={**self._broker.environ, "ERL_FLAGS": "+S 1:1 +sbwt none"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(10)
        assert self._erlang.stdin is not None
        with contextlib.suppress(OSError):
            self._erlang.stdin.close()
        try:
            self._erlang.wait(5)
        except subprocess.TimeoutExpired:
            self._erlang.kill()

    def after(self, moment: float, timeout: float = 15.0) -> Look:
        """The first look that was asked for after this moment of time.monotonic().

        :raise TimeoutError: when the broker does not answer for so many seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._last.asked_at >= moment, timeout):
                raise TimeoutError(f"the broker could not be looked at for {timeout:.0f} s")
            return self._last

    def of(self, vhost: str) -> BrokerView:
        """What a vhost has now."""
        return self.after(time.monotonic()).vhosts.get(vhost, BrokerView())

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            asked_at = time.monotonic()
            lines = self._ask()
            if lines is not None:
                look = Look(asked_at, read_views(lines, self._broker.started_at))
                with self._changed:
                    self._last = look
                    self._changed.notify_all()

    def _ask(self) -> list[list[str]] | None:
        assert self._erlang.stdin is not None
        assert self._erlang.stdout is not None
        self._erlang.stdin.write("look\n")
        self._erlang.stdin.flush()
        lines: list[list[str]] = []
        for line in self._erlang.stdout:
            if line == "end\n":
                return lines
            if line == "down\n":
                return None
            lines.append(line.rstrip("\n").split("\t"))
        return None


def read_views(lines: Iterable[list[str]], started: float) -> dict[str, BrokerView]:
    """What these lines say of each vhost."""
    vhosts: dict[str, dict[str, Any]] = {}
    for kind, vhost, *fields in lines:
        seen = vhosts.setdefault(vhost, {"queues": {}, "claims": {}, "vms": {}, "others": set()})
        if kind == "q":
            _add_queue(seen, *fields)
        else:
            _add_binding(seen, *fields)
    return {
        vhost: BrokerView(
            bindings={vm_id: frozenset(hosts) for vm_id, hosts in seen["vms"].items()},
            other_bindings=frozenset(seen["others"]),
            claims=seen["claims"],
            queues=seen["queues"],
            started=started,
        )
        for vhost, seen in vhosts.items()
    }


def _add_queue(
    seen: dict[str, Any], name: str, ready: str, unacked: str, consumers: str, owner: str, expires: str
) -> None:
    vm_id = name.removeprefix(names.claim_queue(""))
    if vm_id != name:
        seen["claims"][vm_id] = ClaimView(owner, int(expires) if expires else None)
    seen["queues"][name] = QueueView(int(ready or 0), int(unacked or 0), int(consumers or 0))


def _add_binding(seen: dict[str, Any], exchange: str, queue: str, key: str) -> None:
    vm_id, host = key.removeprefix(names.vm_key("")), queue.removeprefix(names.host_queue(""))
    if exchange and names.is_vm_id(vm_id) and vm_id != key:
        seen["vms"].setdefault(vm_id, set()).add(host)
    else:
        seen["others"].add((exchange, queue, key))


def to_text(view: BrokerView) -> str:
    """What a person wants to see of a view whose cell failed."""
    busy = {n: [q.ready, q.unacked, q.consumers] for n, q in view.queues.items() if not n.startswith("claim.")}
    claims = {vm_id: claim.owner for vm_id, claim in view.claims.items()}
    return json.dumps({"bindings": {v: sorted(h) for v, h in view.bindings.items()}, "queues": busy, "claims": claims})
