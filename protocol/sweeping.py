"""The sweep: reads every record, page by page, and finds what events missed or time has changed.

Of each record it asks: is it owed, wanted here, left with too few copies, held here without need, or beyond retention?
It begins at the start, each `auto_sync_interval_seconds`, and as soon as a node has left, or has been away for the
grace of repair; with very many records less often, so that sweeps cost a tenth of the time at most.
"""

from __future__ import annotations

from heapq import heappop, heappush

from protocol.context import Context
from protocol.debts import Debts
from protocol.effects import Scan
from protocol.events import Scanned
from protocol.fleet import RESERVED_KIND
from protocol.membership import REPAIR_GRACE_MS, Membership
from protocol.pins import Pins
from protocol.receiving import Receiving
from protocol.repair import Repair
from protocol.retention import Retention
from protocol.shedding import Shedding
from protocol.values import Holding, NodeId, Record, State

PAGE = 500  # records looked at per event: 20 ms of work
FIRST_MS = 15_000  # after boot: peers have connected, and what they push has come
SHARE = 10  # of the time at most one part in ten goes into sweeps
HURRIES_MAX = 1_000  # beyond, the regular sweep finds it
START = ("", 0, "")


class Sweeping:
    """Drives the scan, and hands each record to whom it concerns."""

    def __init__(
        self,
        ctx: Context,
        members: Membership,
        debts: Debts,
        retention: Retention,
        receiving: Receiving,
        pins: Pins,
        repair: Repair,
        shedding: Shedding,
    ) -> None:
        self.ctx = ctx
        self.members = members
        self.debts = debts
        self.retention = retention
        self.receiving = receiving
        self.pins = pins
        self.repair = repair
        self.shedding = shedding
        self._running = 0  # the operation number of the running sweep, 0 when none runs
        self._op = 0
        self._began_ms = 0
        self._due_ms = 0
        self._hurried: list[int] = []  # moments at which there is something to find, the next one first
        self._before = ""  # the name of the last record looked at

    def boot(self) -> None:
        self._due_ms = self.ctx.now_ms + FIRST_MS

    def hurry(self, at_ms: int) -> None:
        """There is something to find at this time: a sweep that runs by then is followed by another."""
        if len(self._hurried) < HURRIES_MAX:
            heappush(self._hurried, at_ms)

    def lost(self, node: NodeId) -> None:
        """A node ceased to live: look at what it held, at once if it will not come back, else after the grace."""
        left_ms = max(0, REPAIR_GRACE_MS - self.members.gone_ms(node))
        self.hurry(self.ctx.now_ms + left_ms)

    def tick(self) -> None:
        if self._running or self.ctx.now_ms < min([self._due_ms, *self._hurried[:1]]):
            return
        while self._hurried and self._hurried[0] <= self.ctx.now_ms:
            heappop(self._hurried)
        self._op += 1
        self._running = self._op
        self._began_ms = self.ctx.now_ms
        self._before = ""
        self.shedding.begin()
        self.ctx.emit(Scan(self._op, START, PAGE))

    def scanned(self, event: Scanned) -> None:
        if event.op != self._running:
            return
        for record, holdings in event.page:
            self._look_at(record, holdings)
        self.repair.pump()
        if not event.last and event.page:
            self.ctx.emit(Scan(event.op, event.page[-1][0].key, PAGE))
            return
        self._running = 0
        self.pins.seen_all()
        self.receiving.policy.broadcasts.seen_all()
        took_ms = self.ctx.now_ms - self._began_ms
        interval_ms = int(self.ctx.routing.auto_sync_interval_seconds * 1000)
        self._due_ms = self.ctx.now_ms + max(interval_ms, SHARE * took_ms)

    def _look_at(self, record: Record, holdings: tuple[Holding, ...]) -> None:
        if record.name == self._before or record.state is not State.LIVE or self.ctx.expired(record):
            self.retention.committed(record)  # a name of several versions: one may be too many
        self._before = record.name
        if record.kind == RESERVED_KIND:
            self.pins.heard(record)
            self.receiving.policy.broadcasts.heard(record)
        elif record.state is State.LIVE:
            if not self._in_order(record, holdings):
                self._examine(record, holdings)
            self.shedding.consider(record, holdings)

    def _in_order(self, record: Record, holdings: tuple[Holding, ...]) -> bool:
        """The common case, told from the page alone: it is durable, not owed, and lies in our store or need not."""
        if record.key in self.debts.open or not self.debts.durable_by(record, holdings):
            return False
        return any(holding.store == self.ctx.store for holding in holdings) or not self.receiving.policy.wants(record)

    def _examine(self, record: Record, holdings: tuple[Holding, ...]) -> None:
        """One committed record: is it owed, wanted here, or left with too few copies by an origin that is gone?"""
        if self.retention.has_dropped(record) or self.retention.beyond(record):
            return
        if record.key in self.debts.open or self.debts.enough(record, 0, 0) or not self.repair.is_ours(record):
            self.receiving.consider(record)
        else:
            self.repair.add(record, holdings)
