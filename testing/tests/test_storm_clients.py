"""A storm's client over a cloud in memory: it asks again where it must, and notices when it is told what is not so."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aetherscale_testing.faults import storm_clients
from aetherscale_testing.faults.ledger import NOTHING, Told
from aetherscale_testing.faults.storm_book import Book
from aetherscale_testing.faults.storm_clients import Client
from aetherscale_testing.faults.storm_wire import NOT_SENT, Answered, Order


class Cloud:
    """VMs by id, each with the request that made it; some answers are lost, some commands are never sent."""

    def __init__(self, lost: float = 0.0, unsent: float = 0.0) -> None:
        self.vms: dict[str, str] = {}
        self.deleted: dict[str, str] = {}
        self.forgets = False
        self.hides = False
        self._lost, self._unsent = lost, unsent
        self._draw = random.Random(1)
        self._lock = threading.Lock()

    def ask(self, order: Order) -> Answered:
        with self._lock:
            if self._draw.random() < self._unsent:
                return Answered(NOT_SENT)
            told = self._do(order)
            return Answered(NOTHING if self._draw.random() < self._lost else told, "h1")

    def _do(self, order: Order) -> Told:
        if order.verb == "create":
            owner = self.vms.setdefault(order.vm_id, order.request_id)
            return Told("done", "starting") if owner == order.request_id else Told("refused", "vm-id-taken")
        if self.deleted.get(order.vm_id) == order.request_id:
            return Told("done", "deleted")
        if self.forgets or order.vm_id not in self.vms:
            return Told("refused", "vm-unknown")
        if order.verb == "delete":
            del self.vms[order.vm_id]
            self.deleted[order.vm_id] = order.request_id
        return Told("done")


class CloudLine:
    """A line to it."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._answers: list[Answered] = []

    def start(self, order: Order, copies: int = 1) -> None:
        self._answers = [self._cloud.ask(order) for _ in range(copies)]

    def finish(self) -> list[Answered]:
        return self._answers

    def vanish(self, order: Order) -> None:
        self._cloud.ask(order)

    def list_vms(self, timeout: float) -> set[str] | None:
        assert timeout > 0
        return set() if self._cloud.hides else set(self._cloud.vms)

    def close(self) -> None:
        pass


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Book]:
    monkeypatch.setattr(storm_clients, "AGAIN_AFTER_S", 0.01)
    book = Book(tmp_path / "log.jsonl")
    yield book
    book.close()


def work(cloud: Cloud, book: Book, until: Callable[[], bool]) -> None:
    stop = threading.Event()
    client = Client(1, 5, 3, lambda _: CloudLine(cloud), book, stop)
    client.start()
    limit = time.monotonic() + 30
    while not until():
        assert time.monotonic() < limit
        time.sleep(0.01)
    stop.set()
    client.join()
    assert client.error is None


def test_whatever_is_lost_is_asked_for_again_until_it_is_known(book: Book) -> None:
    cloud = Cloud(lost=0.3, unsent=0.2)
    work(cloud, book, lambda: sum(book.creates.values()) >= 20)
    assert book.suspicions == []
    by_request: dict[tuple[str, str], list[str]] = {}
    for entry in book.ledger().entries:
        by_request.setdefault((entry.verb, entry.request_id), []).append(entry.told.outcome)
    repeated = [outcomes for (verb, _), outcomes in by_request.items() if verb == "create" and len(outcomes) > 1]
    assert any(outcomes[0] == "none" and outcomes[-1] == "done" for outcomes in repeated)
    assert book.creates["done"] >= 10
    assert len(cloud.vms) <= 3  # every other was deleted in the end: no slot holds more than one


def test_a_vm_that_is_said_not_to_exist_is_noticed(book: Book) -> None:
    cloud = Cloud()

    def noticed() -> bool:
        if book.creates["done"] >= 3 and not cloud.forgets:
            assert book.suspicions == []
            cloud.forgets = True
        return bool(book.suspicions)

    work(cloud, book, noticed)
    assert "which exists, was told vm-unknown" in book.suspicions[0]


def test_a_complete_list_that_lacks_a_vm_is_noticed(book: Book) -> None:
    cloud = Cloud()
    cloud.hides = True
    work(cloud, book, lambda: bool(book.suspicions))
    assert "lacked" in book.suspicions[0]
