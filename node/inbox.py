"""The inbox: which uploads this node has agreed to take, from whom. Nobody can push what is not expected here.

The driver calls `expect` when it sends a Take, before the peer can act on it, and `forget` when the core gives the
transfer up. The server's threads `claim` an expected transfer when its stream begins. Each ends exactly once: by
`Arrived` through the callback, or silently by `forget` before its stream began.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from node.progress import Meter, Progress
from protocol.chunks import CHUNK_BYTES, chunk_count
from protocol.events import Arrived
from protocol.values import Digest, NodeId, Parcel, Record, Stripe

EXPECTED_MAX = 256  # the core takes 64 at once; those it has given up may linger until `forget`


@dataclass(slots=True)
class Item:
    """One digest of an expected transfer: the records that wait for it, and the chunks that are asked of the sender.

    `staged`: every chunk was in staging when room was reserved; nothing comes, and that is no failure.
    """

    records: list[Record]
    chunks: int
    staged: bool
    size_bytes: int
    settled: bool = False

    @property
    def record(self) -> Record:
        return self.records[0]


@dataclass(slots=True)
class Expected:
    """One agreed transfer; written by the one thread that receives it, once claimed."""

    peer: NodeId
    transfer: int
    items: dict[Digest, Item]
    meter: Meter
    abort: Callable[[], None] | None = None
    complete: list[Record] = field(default_factory=list)
    failed: list[tuple[Record, str]] = field(default_factory=list)

    def settle(self, item: Item, error: str = "") -> None:
        """The fate of an item, once: its bytes stand verified in staging, or do not."""
        if item.settled:
            return
        item.settled = True
        if error:
            self.failed.extend((record, error) for record in item.records)
        else:
            self.complete.extend(item.records)

    def settle_rest(self, error: str) -> None:
        for item in self.items.values():
            self.settle(item, error)


class Inbox:
    """Expected transfers by (peer, the peer's number). Thread-safe."""

    def __init__(self, on_arrived: Callable[[Arrived], None]) -> None:
        self._on_arrived = on_arrived
        self._lock = threading.Lock()
        self._waiting: dict[tuple[NodeId, int], Expected] = {}
        self._running: dict[tuple[NodeId, int], Expected] = {}

    def expect(
        self,
        peer: NodeId,
        transfer: int,
        parcels: Sequence[Parcel],
        missing: Sequence[tuple[Stripe, ...]] = (),
    ) -> None:
        """Let `peer` push these. `missing` is aligned with `parcels` (see `Reserved`); empty: what the parcels say."""
        items: dict[Digest, Item] = {}
        for index, parcel in enumerate(parcels):
            stripes = missing[index] if index < len(missing) and missing[index] else parcel.stripes
            item = items.get(parcel.record.digest)
            if item is None:
                items[parcel.record.digest] = _item(parcel.record, stripes)
            else:
                item.records.append(parcel.record)
        meter = Meter(transfer, peer, "in", sum(item.size_bytes for item in items.values()))
        with self._lock:
            evicted = self._waiting.pop(next(iter(self._waiting))) if len(self._waiting) >= EXPECTED_MAX else None
            self._waiting[peer, transfer] = Expected(peer, transfer, items, meter)
        if evicted is not None:
            evicted.settle_rest("too many transfers were expected at once")
            self._tell(evicted)

    def forget(self, peer: NodeId, transfer: int) -> None:
        """The core has given it up: refuse it from now on; a stream under way is cut and ends as `Arrived`."""
        with self._lock:
            self._waiting.pop((peer, transfer), None)
            running = self._running.get((peer, transfer))
        if running is not None and running.abort is not None:
            running.abort()

    def is_expected(self, peer: NodeId, transfer: int) -> bool:
        with self._lock:
            return (peer, transfer) in self._waiting

    def claim(self, peer: NodeId, transfer: int, abort: Callable[[], None]) -> Expected | None:
        """Take an expected transfer to receive it; None when it is not expected (any more). `finish` must follow."""
        with self._lock:
            if (peer, transfer) in self._running:
                return None  # its number was used again while the old stream lives: the core sorts that out
            expected = self._waiting.pop((peer, transfer), None)
            if expected is not None:
                expected.abort = abort
                self._running[peer, transfer] = expected
            return expected

    def finish(self, expected: Expected, why: str) -> None:
        """Its stream has ended; what is not settled failed with `why`."""
        expected.settle_rest(why)
        with self._lock:
            self._running.pop((expected.peer, expected.transfer), None)
        self._tell(expected)

    def snapshot(self) -> tuple[Progress, ...]:
        with self._lock:
            running = list(self._running.values())
        return tuple(expected.meter.read() for expected in running)

    def _tell(self, expected: Expected) -> None:
        self._on_arrived(Arrived(expected.peer, expected.transfer, tuple(expected.complete), tuple(expected.failed)))


def _item(record: Record, stripes: tuple[Stripe, ...]) -> Item:
    count = sum(stripe.count for stripe in stripes) if stripes else chunk_count(record.size)
    return Item([record], count, bool(stripes) and not count, asked_bytes(record.size, stripes))


def asked_bytes(size: int, stripes: Sequence[Stripe]) -> int:
    """Payload bytes of these stripes of an artifact of `size` bytes; of the whole when there are none."""
    if not stripes:
        return size
    ends = ((s.first * CHUNK_BYTES, (s.first + s.count) * CHUNK_BYTES) for s in stripes)
    return sum(min(size, end) - min(size, first) for first, end in ends)
