"""Pushing bytes: which debts are offered to whom, in what order, and what happens when a peer refuses or dies.

A push is: Offer → Take → Upload → Receipt. Small artifacts travel many to an offer; a large one travels alone, so
that it never delays the small ones. A refusal or a failure sends the debt to the next eligible store at once, and the
one that refused is asked again later: nobody is unhealthy for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from protocol.context import Context
from protocol.debts import Debt, Debts
from protocol.effects import Abandon, Upload
from protocol.fleet import PRIORITIES, Priority
from protocol.membership import Membership
from protocol.messages import BUSY, FETCHING, HAVE, Ask, Offer, Pieces, Receipt, Take, Unreachable
from protocol.pieces import Layout
from protocol.placement import counted, targets
from protocol.survival import is_urgent
from protocol.uplink import Uplink
from protocol.values import NodeId, Parcel, Record, RecordKey

SMALL_BYTES = 1 << 20  # up to one chunk an artifact travels in a batch
BATCH_BYTES = 8 << 20  # of small artifacts in one offer: 0.2 s at 400 Mbit/s, so that receipts keep flowing
BATCH_COUNT = 1_000  # of small artifacts in one offer: one group commit at the receiver
OFFERS_PER_PEER = 4  # under way to one peer: batches overlap, so that neither side idles while the other syncs
LARGE_PER_PEER = 2  # of those, large ones
ASKED_PER_PEER = 64  # offers under way at which asks go unanswered: what a receiver takes at once; it asks again
TAKE_MS_MAX = 30_000  # an offer unanswered for this long was lost
PULL_MS_MAX = 60_000  # who fetches what it was offered, and says nothing of it for this long, does not any more
RECEIPT_MS_MAX = 120_000  # from the last byte to the receipt: fsync of a large file on a slow disk
BUSY_MS = 500  # a busy receiver is asked again after this
REFUSED_MS = 10_000  # any other refusal or failure
NO_SESSION = "there is no session with it"
REPLANS_PER_TICK = 1_000  # debts looked at again each second: 30 ms of work
UPLOAD_BYTES_PER_SECOND_MIN = 16_384  # slower than this is a stalled peer; the driver's watchdog is stricter


@dataclass(slots=True)
class Outgoing:
    """One offer under way."""

    transfer: int
    peer: NodeId
    records: list[Record]
    deadline_ms: int
    large: bool
    since_ms: int  # it was offered, or, once it is being uploaded, taken
    asked: bool = False  # it answers an Ask: no debt depends on it
    uploading: bool = False
    fetching: bool = False  # the receiver gets it piece by piece, and says how far it is
    priority: Priority = "normal"  # of its upload

    @property
    def taken(self) -> bool:
        return self.uploading or self.fetching


@dataclass(slots=True)
class Lane:
    """What waits to be offered to one peer."""

    small: deque[RecordKey] = field(default_factory=deque)
    large: deque[RecordKey] = field(default_factory=deque)
    offers: dict[int, Outgoing] = field(default_factory=dict)


class Sending:
    """Turns open debts into offers and uploads."""

    def __init__(self, ctx: Context, members: Membership, debts: Debts) -> None:
        self.ctx = ctx
        self.members = members
        self.debts = debts
        self.lanes: dict[NodeId, Lane] = {}
        self.uplink = Uplink()
        self.held = False  # a plan governs what is offered (see leaving.py): nothing is queued
        self._transfer = 0
        self._unplanned: dict[RecordKey, None] = {}
        self._told_refused: Callable[[NodeId, Record, str, bool], None] = lambda peer, record, why, final: None

    def start_from(self, transfer: int) -> None:
        """Number transfers above those of earlier lives, so that a late answer is never taken for a new one's."""
        self._transfer = max(self._transfer, transfer)

    # --- planning ---

    def plan(self, debt: Debt) -> None:
        """Queue the artifact for every store that is still needed and not asked yet."""
        if self.held:
            return
        now = self.ctx.now_ms
        around = self.debts.pool_of(debt.record)
        busy = {node for node, (until, _) in debt.refused.items() if until > now}
        ranked = [seat for seat in around.seats if seat.node not in busy and seat.store != self.ctx.store]
        receipts = counted(self.debts.counting(debt.receipts), around, self.debts.seats_of(debt.record))
        have = receipts + [seat for seat in around.seats if seat.node in debt.asked]
        chosen = targets(ranked, around.copies, around.domains, have)
        for seat in chosen:
            debt.asked.add(seat.node)
            lane = self.lanes.setdefault(seat.node, Lane())
            (lane.small if debt.record.size <= SMALL_BYTES else lane.large).append(debt.record.key)
        if not debt.asked:
            self._unplanned[debt.record.key] = None

    def replan(self) -> None:
        """Look again at every debt that is asked of nobody: somebody may have come, or may be asked again."""
        if self.held or not self.members.seats(self.ctx.store):
            return
        for key in list(islice(self._unplanned, REPLANS_PER_TICK)):
            del self._unplanned[key]
            debt = self.debts.open.get(key)
            if debt is not None:
                self.plan(debt)

    def replan_all(self) -> None:
        """A new peer may be needed by debts that are asked of too few: at once as many as one event may cost."""
        self._unplanned |= dict.fromkeys(self.debts.open)
        self.replan()

    # --- while a plan governs (see leaving.py) ---

    def hold(self) -> None:
        """Queue nothing more, forget what was queued, and stop serving others: the uplink is needed."""
        self.held = True
        for peer in sorted(self.lanes):
            lane = self.lanes[peer]
            for key in (*lane.small, *lane.large):
                if key in self.debts.open:
                    self.debts.open[key].asked.discard(peer)
            lane.small.clear()
            lane.large.clear()
            for transfer in [t for t, offer in lane.offers.items() if offer.asked]:
                self.abandon(peer, transfer, "this node leaves")

    def release(self) -> None:
        self.held = False
        self.replan_all()

    def offer_now(self, peer: NodeId, records: list[Record], priority: Priority) -> int:
        """Offer these past every queue; the number of the transfer."""
        for record in records:
            self.debts.open[record.key].asked.add(peer)
        lane = self.lanes.setdefault(peer, Lane())
        self._offer(peer, lane, records, large=records[0].size > SMALL_BYTES)
        lane.offers[self._transfer].priority = priority
        return self._transfer

    def offer_to(self, peer: NodeId, records: list[Record]) -> list[Record]:
        """Offer these though no debt asks for it, as far as the lane has room; those that were offered."""
        lane, offered = self.lanes.setdefault(peer, Lane()), list[Record]()
        small = [record for record in records if record.size <= SMALL_BYTES]
        batches = [small[: max(1, BATCH_BYTES // SMALL_BYTES)]] if small else []
        batches += [[record] for record in records if record.size > SMALL_BYTES][:LARGE_PER_PEER]
        for batch in batches[: max(OFFERS_PER_PEER - len(lane.offers), 0)]:
            self._offer(peer, lane, batch, batch[0].size > SMALL_BYTES)
            offered += batch
        return offered

    def is_offering(self, peer: NodeId, record: Record) -> bool:
        lane = self.lanes.get(peer)
        return lane is not None and any(record in offer.records for offer in lane.offers.values())

    def on_refused(self, then: Callable[[NodeId, Record, str, bool], None]) -> None:
        """Whom to tell what was offered and not taken (True), or did not arrive (False)."""
        self._told_refused = then

    def abandon(self, peer: NodeId, transfer: int, why: str) -> None:
        """Give an offer up, its upload too; with a reason, the peer is not asked again for these soon."""
        offer = self._close(peer, transfer)
        if offer is None:
            return
        if offer.uploading:
            self.ctx.emit(Abandon(transfer, why or "it is planned anew"))
        for record in () if offer.asked else offer.records:
            debt = self.debts.open.get(record.key)
            if debt is not None:
                debt.asked.discard(peer)
                if why:
                    debt.refused[peer] = (self.ctx.now_ms + BUSY_MS, why)

    def stop_barred(self) -> None:
        """Somebody may not hold any more what is queued for it, or under way to it: that stops now, and goes elsewhere.
        What it asked for itself goes on: an excluded node may get."""
        for peer in sorted(self.lanes):
            lane = self.lanes[peer]
            barred = [t for t, offer in lane.offers.items() if not offer.asked and self._bars(peer, offer.records)]
            for transfer in barred:
                self.abandon(peer, transfer, f"{peer} may not hold this any more")
            for queue in (lane.small, lane.large):
                queued = [debt for key in queue if (debt := self.debts.open.get(key)) is not None]
                for debt in queued:
                    if self._bars(peer, [debt.record]):
                        queue.remove(debt.record.key)
                        debt.asked.discard(peer)

    def _bars(self, peer: NodeId, records: list[Record]) -> bool:
        member = self.members.row(peer)
        excluded = member is not None and member.excluded
        return excluded or not all(self.ctx.fleet.receives(peer, record.kind) for record in records)

    def _urgent(self) -> bool:
        """An ephemeral host whose debt nears what its notice could carry pushes before everything else it sends."""
        notice, rate = self.ctx.notice_seconds, self.uplink_rate()
        if not self.members.own.ephemeral or not is_urgent(self.debts.bytes, notice, rate):
            return False  # the sum is at hand; what of it is ours alone is looked for only where that may matter
        return is_urgent(self.debts.own_bytes(), notice, rate)

    def uplink_rate(self) -> int | None:
        """Bytes per second that leave this node, as limited and as measured."""
        return self.uplink.rate(self.ctx.egress_bytes_per_second, self.ctx.now_ms)

    # --- offering ---

    def pump(self) -> None:
        """Offer what is queued, as far as each peer's lane has room."""
        for node in sorted(self.lanes, key=self._rank):
            lane = self.lanes[node]
            if (lane.small or lane.large) and self.members.connect(node):
                self._pump_lane(node, lane)

    def _pump_lane(self, node: NodeId, lane: Lane) -> None:
        while lane.small and len(lane.offers) < OFFERS_PER_PEER:
            self._offer(node, lane, self._gather(lane.small), large=False)
        large = sum(offer.large for offer in lane.offers.values())
        large_max = min(LARGE_PER_PEER, large + self._large_room(node))
        while lane.large and len(lane.offers) < OFFERS_PER_PEER and large < large_max:
            records = self._gather(lane.large, count_max=1)
            self._offer(node, lane, records, large=True)
            large += bool(records)

    def _rank(self, node: NodeId) -> tuple[int, NodeId]:
        """Hosts of a higher `sync_priority` are served first."""
        return (PRIORITIES.index(self.ctx.fleet.host(node).sync_priority), node)

    def _large_room(self, node: NodeId) -> int:
        """How many more large offers `max_concurrent_syncs` allows. Critical hosts wait for nobody's to end."""
        if self.ctx.fleet.host(node).sync_priority == "critical":
            return LARGE_PER_PEER
        offers = [offer for lane in self.lanes.values() for offer in lane.offers.values()]
        return max(0, self.ctx.routing.max_concurrent_syncs - sum(offer.large for offer in offers))

    def _gather(self, queue: deque[RecordKey], count_max: int = BATCH_COUNT) -> list[Record]:
        records: list[Record] = []
        size = 0
        while queue and len(records) < count_max and (size < BATCH_BYTES or not records):
            debt = self.debts.open.get(queue.popleft())
            if debt is not None:
                records.append(debt.record)
                size += debt.record.size
        return records

    def _offer(self, node: NodeId, lane: Lane, records: list[Record], large: bool, answers: int = 0) -> None:
        if not records:
            return
        self._transfer += 1
        deadline = self.ctx.now_ms + TAKE_MS_MAX
        now = self.ctx.now_ms
        outgoing = Outgoing(self._transfer, node, records, deadline, large, now, bool(answers))
        outgoing.priority = "high" if self._urgent() else "normal"
        lane.offers[self._transfer] = outgoing
        parcels = tuple(Parcel(record) for record in records)
        pull = large and not answers and not self.held and bool(self.members.own.address)  # else it is sent the bytes
        self.ctx.send(node, Offer(self._transfer, parcels, answers, pull))

    def asked(self, peer: NodeId, ask: Ask) -> None:
        """A peer asks for bytes: offer what we hold of it. Who leaves needs its uplink; others may hold it too."""
        if self.held:
            return
        lane = self.lanes.setdefault(peer, Lane())
        records = []
        for digest in ask.digests:
            sharers = self.ctx.catalogue.sharers(digest)
            if sharers and self.ctx.holds(digest):
                records.append(sharers[0])
        batches = [[record for record in records if record.size <= SMALL_BYTES]]
        batches += [[record] for record in records if record.size > SMALL_BYTES]
        for batch in batches[: max(ASKED_PER_PEER - len(lane.offers), 0)]:
            self._offer(peer, lane, batch, batch is not batches[0], ask.transfer)

    # --- answers ---

    def taken(self, peer: NodeId, take: Take) -> None:
        offer = self.find(peer, take.transfer)
        if offer is None or offer.uploading or len(take.refused) != len(offer.records):
            return
        if take.refused == (FETCHING,):
            offer.fetching, offer.deadline_ms = True, self.ctx.now_ms + PULL_MS_MAX
            offer.since_ms = self.ctx.now_ms
            return
        parcels = []
        kept = []
        for record, refusal, missing in zip(offer.records, take.refused, take.missing, strict=True):
            if refusal:
                self._refused(peer, record, refusal, final=True)
            else:
                parcels.append(Parcel(record, missing))
                kept.append(record)
        if not parcels:
            self._close(peer, take.transfer)
            return
        offer.records, offer.uploading, offer.since_ms = kept, True, self.ctx.now_ms
        size = sum(record.size for record in kept)
        self.uplink.started(take.transfer, size, self.ctx.now_ms)
        offer.deadline_ms = self.ctx.now_ms + RECEIPT_MS_MAX + size * 1000 // UPLOAD_BYTES_PER_SECOND_MIN
        self.ctx.emit(Upload(take.transfer, peer, tuple(parcels), offer.priority))

    def progressed(self, peer: NodeId, pieces: Pieces) -> None:
        """It is still fetching what it was offered."""
        lane = self.lanes.get(peer)
        for offer in lane.offers.values() if lane else ():
            if offer.fetching and offer.records[0].digest == pieces.digest:
                whole = pieces.have == Layout(offer.records[0].size).full
                offer.deadline_ms = self.ctx.now_ms + (RECEIPT_MS_MAX if whole else PULL_MS_MAX)

    def uploaded(self, transfer: int, error: str, unreachable: bool = False) -> None:
        """The stream ended. After an error nothing is assumed: what arrived shows as receipts."""
        for peer in sorted(self.lanes):
            offer = self.lanes[peer].offers.get(transfer)
            if offer is not None and error:
                if unreachable:
                    self.ctx.send(peer, Unreachable(transfer))
                self._fail(peer, transfer, error)
            elif offer is not None:
                offer.deadline_ms = self.ctx.now_ms + RECEIPT_MS_MAX

    def receipted(self, peer: NodeId, receipt: Receipt) -> None:
        """The receiver is done; its holdings are being committed here. What it did not get is offered again."""
        lane = self.lanes.get(peer)
        offer = lane.offers.pop(receipt.transfer, None) if lane else None
        if offer is None:
            return
        got = {holding.digest for holding in receipt.holdings}
        sizes = [record.size for record in offer.records if record.digest in got]
        if offer.uploading:
            self.uplink.delivered(receipt.transfer, sum(sizes), self.ctx.now_ms)
        reasons = dict(receipt.failed)
        for record in offer.records:
            if record.digest not in got:
                self._refused(peer, record, reasons.get(record.digest, "the transfer ended without it"))

    def session_up(self, peer: NodeId) -> None:
        """It is there again: what it did not get for want of a session may go to it."""
        for debt in self.debts.open.values():
            if debt.refused.get(peer, (0, ""))[1] == NO_SESSION:
                del debt.refused[peer]

    def session_down(self, peer: NodeId) -> None:
        """There is no session, or it cannot be had: whatever was queued for, or under way to, this peer goes to the
        next."""
        lane = self.lanes.pop(peer, None)
        if lane is None:
            return
        keys = [record.key for offer in lane.offers.values() for record in offer.records]
        for key in dict.fromkeys([*keys, *lane.small, *lane.large]):
            debt = self.debts.open.get(key)
            if debt is not None:
                debt.asked.discard(peer)
                debt.refused[peer] = (self.ctx.now_ms + REFUSED_MS, NO_SESSION)
                self.plan(debt)

    def tick(self) -> None:
        now = self.ctx.now_ms
        for peer in sorted(self.lanes):
            late = [t for t, offer in self.lanes[peer].offers.items() if now >= offer.deadline_ms]
            for transfer in late:
                self._fail(peer, transfer, "no answer in time")
        self.replan()
        self.pump()

    def busy(self) -> bool:
        return any(lane.offers or lane.small or lane.large for lane in self.lanes.values())

    def _fail(self, peer: NodeId, transfer: int, why: str) -> None:
        offer = self._close(peer, transfer)
        if offer is None:
            return
        self.ctx.report("warning", "push_failed", f"{len(offer.records)} artifacts did not reach {peer}: {why}")
        for record in offer.records:
            self._refused(peer, record, why)

    def _refused(self, peer: NodeId, record: Record, why: str, final: bool = False) -> None:
        self._told_refused(peer, record, why, final)
        debt = self.debts.open.get(record.key)
        if debt is None:
            return
        debt.asked.discard(peer)
        wait = BUSY_MS if why in (BUSY, HAVE) or self.held else REFUSED_MS
        debt.refused[peer] = (self.ctx.now_ms + wait, why)
        if why == BUSY or (why == HAVE and not debt.receipts):
            self._unplanned[debt.record.key] = None  # the same store again, a little later
        else:
            self.plan(debt)

    def find(self, peer: NodeId, transfer: int) -> Outgoing | None:
        lane = self.lanes.get(peer)
        return lane.offers.get(transfer) if lane else None

    def _close(self, peer: NodeId, transfer: int) -> Outgoing | None:
        lane = self.lanes.get(peer)
        self.uplink.ended(transfer)
        return lane.offers.pop(transfer, None) if lane else None
