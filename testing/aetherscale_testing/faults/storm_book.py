"""The book of a storm: the ledger of what clients asked and were told, a log of all that happened, and suspicions."""

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from aetherscale_testing.faults.ledger import Ledger
from aetherscale_testing.faults.ledger import Verb as LedgerVerb
from aetherscale_testing.faults.storm_wire import NOT_SENT, Answered, Order


class Book:
    """What clients and faults write down, from any thread; the log is a file of JSON lines."""

    def __init__(self, log: Path) -> None:
        self._ledger = Ledger()
        self.suspicions: list[str] = []
        self.went_down: set[str] = set()  #: hosts that lost power or were rebooted
        self.began = time.time()
        self._latencies: list[float] = []
        self._deaf: dict[str, bool] = {}
        self._hosts: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._log = log.open("w", buffering=1)

    def note(self, what: str, **more: Any) -> None:
        """A line of the log; `t` is seconds since the storm's beginning."""
        line = json.dumps({"t": round(time.time() - self.began, 3), "what": what, **more})
        with self._lock:
            self._log.write(line + "\n")

    def suspect(self, text: str) -> None:
        """Something is wrong that no look at the hosts would show any more: a client was told what is not so."""
        self.note("suspicion", text=text)
        self.suspicions.append(text)

    def asked(self, who: str, order: Order, manner: str, copies: int = 1) -> list[int]:
        """A command is being sent, so many times."""
        now = time.time()
        with self._lock:
            self._deaf.setdefault(order.vm_id, order.deaf)
        if order.verb in ("show", "list"):
            return []
        self.note(
            "ask", who=who, verb=order.verb, vm=order.vm_id, request=order.request_id, manner=manner,
            timeout=order.timeout,
        )  # fmt: skip
        deadline = now + order.timeout
        verb: LedgerVerb = order.verb  # type: ignore[assignment]
        return [self._ledger.ask(order.vm_id, order.request_id, verb, deadline, now) for _ in range(copies)]

    def told(self, who: str, order: Order, numbers: list[int], answers: list[Answered], seconds: float) -> None:
        """What each copy was answered."""
        now = time.time()
        for number, answer in zip(numbers, answers, strict=False):
            self._ledger.tell(number, answer.told, now)
        for answer in answers:
            told = answer.told
            self.note(
                "told", who=who, verb=order.verb, vm=order.vm_id, request=order.request_id, outcome=told.outcome,
                word=told.what, host=answer.host, text=answer.text, seconds=round(seconds, 3),
            )  # fmt: skip
            with self._lock:
                self._counts[f"{order.verb} {told.outcome}" + (f" {told.what}" if told.outcome != "done" else "")] += 1
                if told.outcome == "done" and answer.host:
                    self._hosts[order.vm_id] = answer.host
        if order.verb == "create" and who != "reckoning" and len(answers) == 1 and answers[0].told.outcome == "done":
            self._latencies.append(seconds)

    def ledger(self) -> Ledger:
        """What was asked and told so far, without what was never sent: that says nothing about earlier copies."""
        return Ledger(tuple(entry for entry in self._ledger.entries if entry.told != NOT_SENT))

    def crash(self, vm_id: str) -> None:
        """A fault killed this VM's QEMU."""
        self._ledger.crash(vm_id, time.time())

    def is_deaf(self, vm_id: str) -> bool:
        """Whether this VM's guest does not hear the power button."""
        return self._deaf.get(vm_id, False)

    @property
    def latencies(self) -> list[float]:
        """How long creates took that were answered at the first go, in seconds, sorted."""
        return sorted(self._latencies)

    @property
    def counts(self) -> dict[str, int]:
        """How often each verb had each outcome."""
        return dict(sorted(self._counts.items()))

    @property
    def creates(self) -> Counter[str]:
        """The creates that were sent, by what the client knows in the end; copies and repetitions are one."""
        best: dict[tuple[str, str], str] = {}
        rank = ["none", "unknown", "refused", "done"]
        for entry in self.ledger().entries:
            if entry.verb == "create":
                key = (entry.vm_id, entry.request_id)
                best[key] = max(best.get(key, "none"), entry.told.outcome, key=rank.index)
        return Counter(best.values())

    def close(self) -> None:
        """End the log."""
        self._log.close()
