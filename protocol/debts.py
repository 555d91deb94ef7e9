"""What is at risk: artifacts accepted here that are not yet durable elsewhere, and who waits for which.

A *debt* is opened when an artifact is accepted (its WAL entry is on the disk by then) and settled when K receipts
over d domains are committed here. Receipts are counted by digest and store, never by name or node. Debts also drive
repair: a holder may owe copies of somebody else's artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

from protocol.context import Context
from protocol.effects import Answer
from protocol.membership import Membership
from protocol.placement import Pool, Seat, counting_seats, durable, pool, spread
from protocol.values import Digest, Holding, NodeId, Record, RecordKey, StoreId

RECOUNTS_PER_TICK = 1_000  # debts and waits counted anew at once: 30 ms of work
WAITS_MAX = 100_000  # waiting requests; each is a client's open connection or one put of a pipelined call


@dataclass(slots=True)
class Debt:
    """One artifact at risk: its receipts so far, and why the missing ones are missing."""

    record: Record
    own: bool
    origin_store: StoreId
    kept: bool = False  # the bytes stand in the WAL or in a private file, whatever becomes of the user's
    receipts: dict[StoreId, Seat] = field(default_factory=dict)
    asked: set[NodeId] = field(default_factory=set)  # queued for, or offered to
    refused: dict[NodeId, tuple[int, str]] = field(default_factory=dict)  # until when, and why
    since_ms: int = 0

    def why(self, around: Pool) -> str:
        """One sentence for `spore risk`."""
        if len(around.seats) < around.copies:
            return f"only {len(around.seats)} eligible stores of the {around.copies} needed are reachable"
        if self.asked:
            return f"being sent to {', '.join(sorted(self.asked))}"
        if self.refused:
            node, (_, reason) = sorted(self.refused.items())[-1]
            return f"{node}: {reason}"
        return "waiting for its turn"


@dataclass(slots=True)
class Wait:
    """A request that is answered once its artifact has enough receipts, or when its time is over."""

    request: int
    record: Record
    copies: int
    domains: int
    deadline_ms: int


class Debts:
    """Opens, counts and settles debts; answers waits."""

    def __init__(self, ctx: Context, members: Membership, settled: Callable[[Debt], None]) -> None:
        self.ctx = ctx
        self.members = members
        self.settled = settled
        self.open: dict[RecordKey, Debt] = {}
        self.bytes = 0
        self.without: StoreId = b""  # our own store while this node is drained: soon it is no copy any more
        self._by_digest: dict[Digest, dict[RecordKey, None]] = {}
        self._uncounted: dict[Digest, None] = {}  # to be counted anew: at most what is open or waited for
        self._waits: dict[Digest, dict[int, Wait]] = {}
        self._wait_digest: dict[int, Digest] = {}

    # --- debts ---

    def add(self, record: Record, own: bool, kept: bool = False) -> Debt | None:
        """Open a debt, unless the receipts are there already. Returns it while it is open."""
        if record.key in self.open:
            return self.open[record.key]
        debt = Debt(record, own, self._origin_store(record), kept, since_ms=self.ctx.now_ms)
        for holding in self.ctx.catalogue.holdings(record.digest):
            self._count(debt, holding)
        self.open[record.key] = debt
        self._by_digest.setdefault(record.digest, {})[record.key] = None
        self.bytes += record.size
        return None if self.settle_if_durable(debt) else debt

    def drop(self, key: RecordKey) -> Debt | None:
        """Close a debt without settling it: the version was superseded or deleted."""
        debt = self.open.pop(key, None)
        if debt is not None:
            self.bytes -= debt.record.size
            keys = self._by_digest[debt.record.digest]
            del keys[key]
            if not keys:
                del self._by_digest[debt.record.digest]
        return debt

    def of(self, digest: Digest) -> list[Debt]:
        """The open debts for these bytes."""
        return [self.open[key] for key in self._by_digest.get(digest, ())]

    def heard(self, holding: Holding) -> list[Debt]:
        """A holding was committed: count it. Returns the debts that are still open, to be planned anew."""
        still_open = []
        for key in list(self._by_digest.get(holding.digest, ())):
            debt = self.open[key]
            self._count(debt, holding)
            debt.asked.discard(holding.node)
            if not self.settle_if_durable(debt):
                still_open.append(debt)
        self._answer_waits(holding.digest)
        return still_open

    def settle_if_durable(self, debt: Debt) -> bool:
        if not self._is_durable(debt.record, debt.receipts, 0, 0):
            return False
        self.drop(debt.record.key)
        self.settled(debt)
        return True

    def recount(self) -> None:
        """Eligibility changed (a node came or went, the hosts file changed): some debts may now be settled.

        At once as many as one event may cost; the rest follows with the ticks.
        """
        self._uncounted |= dict.fromkeys(self._by_digest) | dict.fromkeys(self._waits)
        self._recount_some()

    def _recount_some(self) -> None:
        for digest in list(islice(self._uncounted, RECOUNTS_PER_TICK)):
            del self._uncounted[digest]
            for debt in self.of(digest):
                self.settle_if_durable(debt)
            self._answer_waits(digest)

    def pool_of(self, record: Record, copies: int = 0, domains: int = 0) -> Pool:
        needed = copies or self.ctx.min_copies(record)
        return pool(record.digest, self.seats_of(record), needed, domains, self.ctx.kind(record.name))

    def seats_of(self, record: Record) -> list[Seat]:
        """The stores whose receipts count for a record: the origin's does not, ours does when it is another's."""
        return self.members.seats(self._origin_store(record), record.kind)

    def own_bytes(self) -> int:
        """Of what was accepted here and has no copy anywhere else."""
        return sum(debt.record.size for debt in self.open.values() if debt.own and not debt.receipts)

    def own_open(self) -> list[Debt]:
        return [debt for debt in self.open.values() if debt.own]

    def _origin_store(self, record: Record) -> StoreId:
        if record.origin == self.ctx.node:
            return self.ctx.store
        member = self.members.row(record.origin)
        return member.store if member else b""

    def _count(self, debt: Debt, holding: Holding) -> None:
        if holding.store in (debt.origin_store, self.without):
            return
        if holding.present:
            debt.receipts[holding.store] = self._seat(holding)
        elif not any(h.store == holding.store for h in self.ctx.catalogue.holdings(holding.digest)):
            debt.receipts.pop(holding.store, None)

    def _seat(self, holding: Holding) -> Seat:
        member = self.members.row(holding.node)
        if member is None:
            host = self.ctx.fleet.host(holding.node)
            return Seat(holding.node, holding.store, self.ctx.fleet.domain(holding.node), host.ephemeral, host.role)
        return Seat(holding.node, holding.store, member.domain, member.ephemeral, member.role)

    # --- waits ---

    def receipts(self, record: Record) -> dict[StoreId, Seat]:
        """The receipts of any record, at risk here or not, from committed holdings."""
        debt = Debt(record, False, self._origin_store(record))
        for holding in self.ctx.catalogue.holdings(record.digest):
            self._count(debt, holding)
        return self.counting(debt.receipts)

    def counting(self, receipts: dict[StoreId, Seat]) -> dict[StoreId, Seat]:
        """Of these receipts, those of nodes that are there or not away for long: a dead disk is no copy.

        Asked at each use, since time alone takes a node out. Retention then keeps more, and never drops more.
        """
        if all(self.members.counts(seat.node, store) for store, seat in receipts.items()):
            return receipts
        return {store: seat for store, seat in receipts.items() if self.members.counts(seat.node, store)}

    def durable_by(self, record: Record, holdings: Iterable[Holding]) -> bool:
        """As `enough` with policy's copies, when the present holdings are at hand."""
        debt = Debt(record, False, self._origin_store(record))
        for holding in holdings:
            self._count(debt, holding)
        return self._is_durable(record, debt.receipts, 0, 0)

    def enough(self, record: Record, copies: int, domains: int) -> bool:
        return self._is_durable(record, self.receipts(record), copies, domains)

    def _is_durable(self, record: Record, receipts: dict[StoreId, Seat], copies: int, domains: int) -> bool:
        """K over d, the cheap part of the question first: most are asked while receipts are still missing."""
        if len(receipts) < (copies or self.ctx.min_copies(record)):
            return False
        receipts = self.counting(receipts)
        needed, seats = copies or self.ctx.min_copies(record), self.seats_of(record)
        around = Pool((), needed, domains or spread(counting_seats(seats, needed), needed))  # nobody need be ranked
        return durable(receipts, around, seats, domains)

    def wait(self, wait: Wait) -> None:
        """Answer now, or when enough receipts are committed, or with an error at the deadline (see `tick`)."""
        if self.enough(wait.record, wait.copies, wait.domains):
            self._answer(wait, "")
        elif len(self._wait_digest) >= WAITS_MAX:
            self._answer(wait, f"{WAITS_MAX} requests wait already; ask again later")
        else:
            self._waits.setdefault(wait.record.digest, {})[wait.request] = wait
            self._wait_digest[wait.request] = wait.record.digest

    def cancel(self, request: int) -> None:
        digest = self._wait_digest.pop(request, None)
        if digest is not None:
            del self._waits[digest][request]
            if not self._waits[digest]:
                del self._waits[digest]

    def tick(self) -> None:
        """Go on counting anew; answer the waits whose time is over."""
        self._recount_some()
        for waits in list(self._waits.values()):
            for wait in list(waits.values()):
                if wait.deadline_ms and self.ctx.now_ms >= wait.deadline_ms:
                    self.cancel(wait.request)
                    self._answer(wait, self._too_late(wait))

    def waiting(self) -> int:
        return len(self._wait_digest)

    def _too_late(self, wait: Wait) -> str:
        debt = self.open.get(wait.record.key)
        around = self.pool_of(wait.record, wait.copies, wait.domains)
        have = len(self.receipts(wait.record))
        why = f" ({debt.why(around)})" if debt else ""
        return f"{wait.record.name} has {have} of {around.copies} receipts{why}; it stays accepted here"

    def _answer_waits(self, digest: Digest) -> None:
        for wait in list(self._waits.get(digest, {}).values()):
            if self.enough(wait.record, wait.copies, wait.domains):
                self.cancel(wait.request)
                self._answer(wait, "")

    def _answer(self, wait: Wait, error: str) -> None:
        have = len(self.receipts(wait.record))
        self.ctx.emit(Answer(wait.request, error, wait.record, copies=have, durable=not error))
