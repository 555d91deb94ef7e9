"""`spore sync`: make it so now. What a user wants moved ahead of the rest, and an honest account of each artifact.

Without a node it is what this node owes and lacks: its debts are offered again at once, whoever refused them before,
and what policy places here is fetched at once. With a node, each artifact is offered to it, wherever policy would
place it; a node that refuses has the last word, and its reason is told. Every item ends: done, or with a sentence why
not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from protocol.context import Context
from protocol.debts import Debts
from protocol.incoming import Wanted
from protocol.membership import Membership
from protocol.messages import BUSY, FETCHING, HAVE, LEAVING
from protocol.receiving import Receiving
from protocol.sending import Sending
from protocol.values import Holding, NodeId, Record, RecordKey, State

ITEMS_MAX = 1_000  # of one request; the driver asks for the next ones when these have ended
HOPELESS_MS = 30_000  # nobody takes it, nobody has it: longer than a dial, a refusal's time, and a missed tick
RETRY_MS = 5_000  # a push that broke is offered again after this
PASSING = frozenset((BUSY, HAVE, LEAVING, FETCHING))  # refusals that are no last word


@dataclass(slots=True)
class Item:
    """One artifact of a request. `ended` with an empty `why` is done."""

    record: Record
    ended: bool = False
    was_there: bool = False  # nothing had to move
    why: str = "waiting for its turn"
    hopeless_ms: int = 0  # since when nothing could be done for it; 0: something is under way
    due_ms: int = 0  # a push that broke is offered again then
    offered: bool = False


@dataclass(slots=True)
class Sync:
    """One request under way."""

    request: int
    to: NodeId
    items: dict[RecordKey, Item] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return all(item.ended for item in self.items.values())


class Syncing:
    """Requests by number. Read by the driver, moved on by events and ticks."""

    def __init__(self, ctx: Context, members: Membership, debts: Debts, sending: Sending, receiving: Receiving) -> None:
        self.ctx = ctx
        self.members = members
        self.debts = debts
        self.sending = sending
        self.receiving = receiving
        self.requests: dict[int, Sync] = {}
        sending.on_refused(self._refused)

    def begin(self, request: int, records: Iterable[Record], to: NodeId) -> None:
        """Move these; at most ITEMS_MAX of them."""
        sync = self.requests[request] = Sync(request, to)
        for record in records:
            item = sync.items[record.key] = Item(record)
            self._look(sync, item)
            item.was_there = item.ended and not item.why
            if not item.ended:
                self._begin_one(sync, item)
        self.receiving.pump()
        self.tick()

    def cancel(self, request: int) -> None:
        self.requests.pop(request, None)

    def tick(self) -> None:
        for sync in self.requests.values():
            for item in [item for item in sync.items.values() if not item.ended]:
                self._look(sync, item)
                if not item.ended:
                    self._go_on(sync, item)
            if sync.to not in ("", self.ctx.node):
                self._offer_due(sync)

    def heard(self, holdings: Iterable[Holding]) -> None:
        """Somebody holds something now."""
        if self.requests and {h.digest for h in holdings} & {d for s in self.requests.values() for d in _digests(s)}:
            self.tick()

    # --- one item ---

    def _begin_one(self, sync: Sync, item: Item) -> None:
        key = item.record.key
        if sync.to in ("", self.ctx.node):
            debt = self.debts.open.get(key)
            if debt is not None:
                debt.refused.clear()
                self.sending.plan(debt)
            elif self._is_wanted(sync, item.record):
                self.receiving.wanted[item.record.digest] = Wanted(item.record, self.ctx.now_ms)

    def _look(self, sync: Sync, item: Item) -> None:
        """Whether it has ended, by what is committed."""
        record, held = item.record, self.ctx.holds(item.record.digest)
        if record.state is not State.LIVE or self.ctx.deleted(record):
            self._end(item, "it was deleted")
        elif sync.to not in ("", self.ctx.node):
            self._look_there(sync, item, held)
        elif record.key in self.debts.open:
            item.why = self.debts.open[record.key].why(self.debts.pool_of(record))
        elif self._is_wanted(sync, record):
            item.why = "it is being fetched" if record.digest in self.receiving.arriving else "waiting for a holder"
        elif held or not sync.to:
            self._end(item, "")
        else:
            self._end(item, self.receiving.policy.refusal(record) or "it cannot be held here")

    def _look_there(self, sync: Sync, item: Item, held: bool) -> None:
        row = self.members.row(sync.to)
        holders = self.ctx.catalogue.holdings(item.record.digest)
        if any(h.node == sync.to or (row is not None and h.store == row.store) for h in holders):
            self._end(item, "")
        elif not self.members.is_alive(sync.to):
            self._end(item, f"{sync.to} is down")
        elif not held:
            names = ", ".join(sorted(h.node for h in holders)) or "nobody that is known"
            self._end(item, f"its bytes are not here; run this on a holder: {names}")

    def _is_wanted(self, sync: Sync, record: Record) -> bool:
        """Whether we lack what policy, or this request, wants here."""
        if self.ctx.holds(record.digest) or self.receiving.policy.refusal(record):
            return False
        return sync.to == self.ctx.node or self.receiving.policy.places_here(record)

    def _go_on(self, sync: Sync, item: Item) -> None:
        """See that something happens for it; after a while in which nothing can, it ends with the reason."""
        now = self.ctx.now_ms
        if sync.to not in ("", self.ctx.node):
            moving = self._is_pushed(sync, item)
        elif item.record.key in self.debts.open:
            moving = bool(self.debts.open[item.record.key].asked)
        else:
            moving = item.record.digest in self.receiving.arriving or bool(self.receiving.sources(item.record.digest))
            if item.record.digest not in self.receiving.arriving:
                self.receiving.wanted.setdefault(item.record.digest, Wanted(item.record, now))
        item.hopeless_ms = 0 if moving else item.hopeless_ms or now
        if item.hopeless_ms and now - item.hopeless_ms >= HOPELESS_MS:
            self._end(item, item.why)

    def _is_pushed(self, sync: Sync, item: Item) -> bool:
        """Whether it is offered to the node, or may be soon."""
        item.offered = item.offered and self.sending.is_offering(sync.to, item.record)
        if not item.offered and not self.members.connect(sync.to):
            item.why = f"there is no session with {sync.to}"
            return False
        return True

    def _offer_due(self, sync: Sync) -> None:
        """Offer as many as the lane to the node has room for."""
        now = self.ctx.now_ms
        due = [item.record for item in sync.items.values() if not (item.ended or item.offered) and now >= item.due_ms]
        if sync.to in self.members.sessions:
            for record in self.sending.offer_to(sync.to, due):
                item = sync.items[record.key]
                item.offered, item.why = True, f"being sent to {sync.to}"

    def _refused(self, peer: NodeId, record: Record, why: str, final: bool) -> None:
        """What a node that was offered something did not take (`final`), or did not get."""
        for sync in self.requests.values():
            item = sync.items.get(record.key)
            if item is None or sync.to != peer or item.ended:
                continue
            item.offered, item.due_ms = False, self.ctx.now_ms + RETRY_MS
            if why not in PASSING:
                item.why = f"{peer}: {why}"
                if final:
                    self._end(item, item.why)

    def _end(self, item: Item, why: str) -> None:
        item.ended, item.why = True, why


def _digests(sync: Sync) -> list[bytes]:
    return [item.record.digest for item in sync.items.values() if not item.ended]
