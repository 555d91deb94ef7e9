"""Repair: artifacts that were durable and have too few copies now are copied again, the most endangered first.

Who repairs: the origin while it is there and has the bytes, else of the live holders the first by a hash of content and
node, so that every node says the same and the work is spread. When: after a grace, for a node that flaps, at once after
a goodbye (both told by `Membership.gone_ms`). How fast: a share of this node's egress, smaller while fresh artifacts
are at risk here; what is repaired is a debt like any other from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from protocol.clock import stamp_ms
from protocol.context import Context
from protocol.debts import Debts
from protocol.membership import REPAIR_GRACE_MS, Membership
from protocol.placement import weight
from protocol.values import Holding, Record, RecordKey

QUEUE_MAX = 100_000  # artifacts waiting; the next sweep finds again what did not fit
OPEN_MAX = 256  # repairs under way: enough to fill every lane, few enough that fresh data is never far behind
SHARE = 0.5  # of our egress
SHARE_BESIDE_FRESH = 0.125  # while something accepted here was never durable yet
UNLIMITED_BYTES_PER_SECOND = 100_000_000  # taken for the egress of a node without a limit
BURST_SECONDS = 2.0


class Danger(NamedTuple):
    """How endangered an artifact is: sorts the one with the fewest copies first, then the smaller one."""

    copies: int  # in stores that are there, the origin's included
    lasting: int  # of these, in stores that do not vanish
    size: int
    key: RecordKey


class Repair:
    """A queue by danger, emptied at a bounded rate."""

    def __init__(
        self, ctx: Context, members: Membership, debts: Debts, can_send: Callable[[Record], bool],
        owe: Callable[[Record], None],
    ) -> None:  # fmt: skip
        self.ctx = ctx
        self.members = members
        self.debts = debts
        self.can_send = can_send
        self.owe = owe
        self._queue: list[Danger] = []
        self._waiting: dict[RecordKey, Record] = {}
        self._open: dict[RecordKey, None] = {}  # debts that this machine opened
        self._tokens = 0.0  # bytes that may be repaired now; below zero while a large one is being paid for
        self._filled_ms = 0

    # --- whose it is ---

    def is_ours(self, record: Record) -> bool:
        """Whether this node is the one that makes the missing copies."""
        if not self.can_send(record):
            return False
        if record.origin == self.ctx.node:
            return True
        if self.members.gone_ms(record.origin) < REPAIR_GRACE_MS and not self._abandoned(record):
            return False
        holders = [h.node for h in self.ctx.catalogue.holdings(record.digest) if self.members.is_alive(h.node)]
        ranked = sorted(holders, key=lambda node: (self.members.is_ephemeral(node), weight(record.digest, node)))
        return bool(ranked) and ranked[0] == self.ctx.node

    def _abandoned(self, record: Record) -> bool:
        """Its origin has had time to send it and states no copy: it may have lost its file since. A stamp from the
        future does not tell how much time: there a copy too many is offered rather than one too few."""
        if abs(self.ctx.now_ms - stamp_ms(record.hlc)) < REPAIR_GRACE_MS:
            return False
        return not any(h.node == record.origin for h in self.ctx.catalogue.holdings(record.digest))

    # --- the queue ---

    def add(self, record: Record, holdings: Iterable[Holding]) -> None:
        """An artifact with too few copies, of which this node is to make more."""
        if record.key in self._waiting or record.key in self.debts.open or len(self._waiting) >= QUEUE_MAX:
            return
        there = {h.store: h.node for h in holdings if h.present and self.members.counts(h.node, h.store)}
        lasting = sum(not self.members.is_ephemeral(node) for node in there.values())
        self._waiting[record.key] = record
        heappush(self._queue, Danger(len(there), lasting, record.size, record.key))

    def waiting(self) -> int:
        return len(self._waiting)

    def own_waiting(self) -> list[Record]:
        """Artifacts accepted here that wait for their repair: at risk as well, though nothing is owed yet."""
        return [record for record in self._waiting.values() if record.origin == self.ctx.node]

    def take_own(self) -> list[Record]:
        """Before a flush: what was accepted here waits for its turn no longer."""
        own = self.own_waiting()
        for record in own:
            del self._waiting[record.key]
        self._queue = [danger for danger in self._queue if danger.key in self._waiting]
        heapify(self._queue)
        return own

    def worst(self, count: int) -> list[tuple[Danger, Record]]:
        """The most endangered that wait, for people."""
        ranked = sorted(danger for danger in self._queue if danger.key in self._waiting)[:count]
        return [(danger, self._waiting[danger.key]) for danger in ranked]

    def pump(self) -> None:
        """Open the debts that there is egress for."""
        self._refill()
        self._open = {key: None for key in self._open if key in self.debts.open}
        while self._queue and self._tokens >= 0 and len(self._open) < OPEN_MAX:
            danger = heappop(self._queue)
            record = self._waiting.pop(danger.key)
            if not self._still_needed(record):
                continue
            self.owe(record)
            if record.key in self.debts.open:
                self._open[record.key] = None
                self._tokens -= record.size

    def _still_needed(self, record: Record) -> bool:
        known = self.ctx.knows_record(record) and not self.ctx.deleted(record)
        return known and self.can_send(record) and not self.debts.enough(record, 0, 0)

    def _refill(self) -> None:
        """A token bucket over time: never more than a burst of what the share allows."""
        rate = self._bytes_per_second()
        passed_ms = max(0, self.ctx.now_ms - self._filled_ms) if self._filled_ms else int(BURST_SECONDS * 1000)
        self._filled_ms = self.ctx.now_ms
        self._tokens = min(self._tokens + rate * passed_ms / 1000, rate * BURST_SECONDS)

    def _bytes_per_second(self) -> float:
        egress = self.ctx.fleet.egress_bytes_per_second(self.ctx.node) or UNLIMITED_BYTES_PER_SECOND
        fresh = any(debt.own and debt.record.key not in self._open for debt in self.debts.open.values())
        return egress * (SHARE_BESIDE_FRESH if fresh else SHARE)
