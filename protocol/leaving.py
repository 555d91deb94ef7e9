"""Leaving within a deadline: a plan of what is sent to whom while there is time, and of what cannot be saved.

A node that was told to go, or that its provider gave notice, has so many seconds times so many bytes a second. From the
first moment the ordinary queues are set aside and everything at risk is ordered by what a byte of it saves: the fewest
copies first, then the kind's priority, then the smallest. First copies of all come before second ones. What is
offered at a time is little (`WINDOW_MS` of the uplink), so that what was begun is finished and the order holds; it is
spread over several persistent peers, so that one that is dead, slow or stalled delays its share only, and that share
goes to another. A transfer that cannot end in time is not begun, or given up for those that can.

The plan is looked at after every event and at least each `STEP_MS`. It ends with a report: what is safe where, what is
not, and why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heapify, heappop, heappush

from protocol.context import Context
from protocol.debts import Debt, Debts
from protocol.effects import SetTimer
from protocol.fleet import PRIORITIES
from protocol.membership import Membership
from protocol.messages import Farewell, Receipt, RowsMessage, Saved, Unsafe
from protocol.placement import Seat
from protocol.sending import BATCH_BYTES, BATCH_COUNT, OFFERS_PER_PEER, SMALL_BYTES, Outgoing, Sending
from protocol.values import NodeId, Record, RecordKey, Rows

PLAN = "plan"  # the token of the timer that the plan asks for
PEERS_MAX = 8  # what one uplink feeds; more would only divide it
WINDOW_MS = 750  # of the uplink are on their way at one time: what is begun ends, whatever follows
BATCH_MS = 250  # of the uplink make one offer of small artifacts: receipts come all the time
STEP_MS = 100  # the plan is looked at this often though nothing happens
SETTLE_MS = 300  # from the last byte to the receipt: one sync of a disk that is not idle
TAKE_MS_MAX = 2_000  # an offer unanswered for so long goes to somebody else,
TAKE_SHARE = 6  # or for this part of the time there is: a notice of four seconds has no two to wait
SLOW_TIMES = 2  # as long as expected is too long for an upload while another peer is there
SHUN_TIMES = 4  # waits: so long a peer that did not answer is offered nothing
LOOKS_MAX = 500  # debts looked through for one offer: a few milliseconds
RECORDS_MAX = 2_000  # told again before any byte: one message
RECORD_BYTES = 300  # of one, on the wire
RECORDS_SHARE = 50  # one part in so many of what the uplink carries may be spent on telling again
UNSAFE_MAX = 1_000  # named in a report; the others are counted
FIT_BYTES_PER_SECOND = 16 << 20  # what an upload is expected to do where nothing was measured and nothing is limited


@dataclass(slots=True)
class Flight:
    """One offer of the plan under way."""

    peer: NodeId
    keys: tuple[RecordKey, ...]
    size_bytes: int
    since_ms: int
    taken_ms: int = 0
    expected_ms: int = 0
    gone_bytes: int = 0  # by the estimate
    overtaken_bytes: int = 0  # of transfers begun after it that are done
    hoped: bool = False  # it was begun against the estimate, when nothing else was left to send


class Leaving:
    """Governs `Sending` from `begin` on. Pure, like all machines: the driver's events move it."""

    def __init__(self, ctx: Context, members: Membership, debts: Debts, sending: Sending) -> None:
        self.ctx = ctx
        self.members = members
        self.debts = debts
        self.sending = sending
        self.active = False
        self.deadline_ms = 0
        self.flights: dict[int, Flight] = {}
        self._take_ms = TAKE_MS_MAX
        self._looked_ms = 0
        self._began: tuple[int, int] = (0, 0)  # artifacts and bytes at risk when it began, and since
        self._saved: dict[NodeId, tuple[int, int]] = {}  # whose receipts came: artifacts, bytes
        self._order: list[tuple[int, int, int, RecordKey]] = []  # a heap: safety, priority, size
        self._queued: dict[RecordKey, int] = {}  # the safety with which each stands in it; other entries are outdated
        self._late: list[tuple[int, RecordKey]] = []  # a heap by size: what does not fit into the time left
        self._shunned: dict[NodeId, int] = {}
        self._begun: dict[RecordKey, tuple[NodeId, int]] = {}  # who has a part in staging already, of how many bytes

    # --- life ---

    def begin(self, deadline_ms: int) -> None:
        """From now on everything is sent by the plan; begun again, it goes on with another deadline."""
        self.deadline_ms = deadline_ms
        self._take_ms = max(1, min(TAKE_MS_MAX, self._left_ms() // TAKE_SHARE))
        if self.active:
            return
        self.active, self._looked_ms = True, self.ctx.now_ms
        own = self.debts.own_open()
        self._began = (len(own), sum(debt.record.size for debt in own))
        self._tell_records(own)
        self.sending.hold()
        self._adopt()
        self._order = [(self._safety(debt), *self._worth(debt), debt.record.key) for debt in own if self._wants(debt)]
        self._queued = {key: safety for safety, _, _, key in self._order}
        heapify(self._order)

    def end(self) -> None:
        """The notice was withdrawn: the ordinary queues again."""
        if self.active:
            self.active = False
            for kept in (self.flights, self._saved, self._order, self._queued, self._late, self._shunned, self._begun):
                kept.clear()
            self.sending.release()

    def owe(self, debt: Debt) -> None:
        """A debt was opened while the plan is in force."""
        if self.active and debt.own:
            self._began = (self._began[0] + 1, self._began[1] + debt.record.size)
            self._enqueue(debt)

    def heard(self, debt: Debt) -> None:
        """One more receipt is committed, and it is still at risk."""
        if self.active and debt.own:
            self._enqueue(debt)

    def _tell_records(self, own: list[Debt]) -> None:
        """Before any byte: what there is. Most were told when they were accepted; the newest may not have been."""
        rate = self.sending.uplink_rate()
        room = RECORDS_MAX if rate is None else rate * self._left_ms() // (1000 * RECORDS_SHARE * RECORD_BYTES)
        newest = sorted((debt.record for debt in own), key=lambda record: record.order, reverse=True)
        rows = Rows(records=tuple(newest[: min(RECORDS_MAX, room)]))
        if rows:
            for peer in self.members.neighbours():
                self.ctx.send(peer, RowsMessage(rows))

    def _adopt(self) -> None:
        """What is under way and ends soon is part of the plan; the rest is ordered anew, and goes on where it was."""
        under_way = [
            (peer, t, o) for peer in sorted(self.sending.lanes) for t, o in self.sending.lanes[peer].offers.items()
        ]
        rate, sharing = self.sending.uplink_rate(), max(1, sum(offer.taken for _, _, offer in under_way))
        for peer, transfer, offer in under_way:
            gone = 0 if rate is None else (self.ctx.now_ms - offer.since_ms) * rate // (1000 * sharing)
            soon = (
                rate is None
                or (sum(record.size for record in offer.records) - gone) * sharing * 1000 < rate * WINDOW_MS
            )
            if offer.taken and soon:
                self._keep(peer, transfer, offer, gone)
                continue
            self.sending.abandon(peer, transfer, "")  # the peer may have it again at once
            if offer.taken and len(offer.records) == 1:
                self._remember(offer.records[0].key, peer, gone)

    def _remember(self, key: RecordKey, peer: NodeId, there_bytes: int) -> None:
        """A good part of it is in staging there, and need not be sent again."""
        if there_bytes >= SMALL_BYTES:
            self._begun[key] = (peer, there_bytes)

    def _keep(self, peer: NodeId, transfer: int, offer: Outgoing, gone_bytes: int) -> None:
        size = sum(record.size for record in offer.records)
        flight = Flight(peer, tuple(r.key for r in offer.records), size, offer.since_ms, offer.since_ms)
        flight.expected_ms, flight.gone_bytes = self._duration_ms(size) + self.ctx.now_ms - offer.since_ms, gone_bytes
        self.flights[transfer] = flight

    # --- one look ---

    def step(self) -> None:
        """Look at what is under way, and begin what there is room for."""
        if not self.active:
            return
        self._move()
        self._land()
        self._give_up()
        self._fill()
        if self.flights:
            self.ctx.emit(SetTimer(PLAN, self.ctx.now_ms + STEP_MS))

    def received(self, peer: NodeId, receipt: Receipt) -> None:
        """Somebody has it on its disk and says so; to be told before the offer is closed."""
        offer = self.sending.find(peer, receipt.transfer) if self.active else None
        if offer is None or offer.asked:
            return
        got = {holding.digest for holding in receipt.holdings}
        sizes = [record.size for record in offer.records if record.digest in got]
        count, size = self._saved.get(peer, (0, 0))
        self._saved[peer] = (count + len(sizes), size + sum(sizes))
        begun_ms = self.flights[receipt.transfer].taken_ms if receipt.transfer in self.flights else 0
        for flight in self.flights.values():
            flight.overtaken_bytes += sum(sizes) if 0 < flight.taken_ms < begun_ms else 0

    def _land(self) -> None:
        """Flights that ended; records that the peer did not take."""
        for transfer, flight in list(self.flights.items()):
            offer = self.sending.find(flight.peer, transfer)
            kept = {record.key: None for record in offer.records} if offer is not None else {}
            back = [key for key in flight.keys if key not in kept]
            if offer is None:
                del self.flights[transfer]
            elif back:
                flight.keys = tuple(kept)
                flight.size_bytes = sum(record.size for record in offer.records)
            if offer is not None and offer.taken and not flight.taken_ms:
                flight.taken_ms = self.ctx.now_ms
                flight.expected_ms = self._duration_ms(self._in_flight_bytes())
            self._look_again(back)

    def _look_again(self, keys: Iterable[RecordKey]) -> None:
        for key in keys:
            debt = self.debts.open.get(key)
            if debt is not None and debt.own:
                self._enqueue(debt)

    def _give_up(self) -> None:
        """Offers nobody answers, uploads that creep while others could go faster, and those that cannot end in time."""
        for transfer, flight in list(self.flights.items()):
            now = self.ctx.now_ms
            if not flight.taken_ms:
                if now - flight.since_ms >= self._take_ms:
                    self._abandon(transfer, flight, "it did not answer in time", shun=True)
            elif self._creeps(flight) and self._others(flight.peer):
                self._abandon(transfer, flight, "it takes too slowly", shun=True)
            elif self._hopeless(flight):
                self._abandon(transfer, flight, "it cannot end in time", shun=False)

    def _creeps(self, flight: Flight) -> bool:
        """It takes far longer than expected, or several times as much was begun after it and is done already: where the
        uplink is shared evenly, each of the others moves its own size meanwhile."""
        elapsed_ms = self.ctx.now_ms - flight.taken_ms
        others = max(1, sum(1 for other in self.flights.values() if other.taken_ms) - 1)
        overtaken = elapsed_ms >= self._take_ms and flight.overtaken_bytes >= SLOW_TIMES * flight.size_bytes * others
        return overtaken or elapsed_ms >= flight.expected_ms * SLOW_TIMES + self._take_ms // 2

    def _hopeless(self, flight: Flight) -> bool:
        """A large one that cannot end in time, though it had the uplink alone, while something else could be sent."""
        if flight.size_bytes <= SMALL_BYTES or flight.hoped or not self._order:
            return False
        return self._duration_ms(self._left_of(flight)) > self._left_ms()

    def _abandon(self, transfer: int, flight: Flight, why: str, *, shun: bool) -> None:
        if shun:
            self._shunned[flight.peer] = self.ctx.now_ms + SHUN_TIMES * self._take_ms
        if len(flight.keys) == 1 and flight.taken_ms:
            self._remember(flight.keys[0], flight.peer, flight.size_bytes - self._left_of(flight))
        del self.flights[transfer]
        if shun:
            self._credit(flight.gone_bytes)
        self.sending.abandon(flight.peer, transfer, why)
        self._look_again(flight.keys)

    # --- offering ---

    def _fill(self) -> None:
        peers = self._peers()
        self._reconsider()
        idle = {seat.node: seat for seat in peers}
        while idle and self._window_open():
            load = {node: self._in_flight_bytes(node) for node in idle}
            seat = idle[min(idle, key=lambda node: (load[node], node))]
            full = sum(flight.peer == seat.node for flight in self.flights.values()) >= OFFERS_PER_PEER
            records = [] if full else self._gather(seat, peers)
            if records:
                self._offer(seat, records)
            else:
                del idle[seat.node]
        if peers and not self.flights and self._late:
            self._hope(peers)

    def _reconsider(self) -> None:
        """What did not fit may fit now: others were faster than the estimate, or were given up."""
        while self._late and self._fits(self._late[0][0]):
            debt = self.debts.open.get(heappop(self._late)[1])
            if debt is not None:
                self._enqueue(debt)

    def _offer(self, seat: Seat, records: list[Record], *, hoped: bool = False) -> None:
        first = any(not debt.receipts for record in records for debt in self.debts.of(record.digest))
        transfer = self.sending.offer_now(seat.node, records, "critical" if first else "normal")
        size = sum(record.size for record in records)
        keys = tuple(record.key for record in records)
        self.flights[transfer] = Flight(seat.node, keys, size, self.ctx.now_ms, hoped=hoped)
        self._look_again(record.key for record in records)  # for the next copy, in its turn

    def _hope(self, peers: list[Seat]) -> None:
        """By the estimate nothing more fits. The estimate may be wrong, and an idle uplink saves nothing."""
        size, key = heappop(self._late)
        debt = self.debts.open.get(key)
        seat = next((seat for seat in peers if debt is not None and self._suits(seat, debt, peers)), None)
        if debt is not None and seat is not None:
            self._offer(seat, [debt.record], hoped=True)
        elif debt is not None:
            heappush(self._late, (size, key))

    def _gather(self, seat: Seat, peers: list[Seat]) -> list[Record]:
        """The next artifacts for one peer: many small ones, or a single large one."""
        records: list[Record] = []
        aside: list[tuple[int, int, int, RecordKey]] = []
        size = 0
        batch_bytes = self._batch_bytes()
        for _ in range(LOOKS_MAX):
            debt = self._next()
            if debt is None:
                break
            entry = (self._safety(debt), *self._worth(debt), debt.record.key)
            large = debt.record.size > SMALL_BYTES
            if records and (large or size + debt.record.size > batch_bytes or len(records) >= BATCH_COUNT):
                aside.append(entry)
                break
            if entry[0] and self._endangered():
                aside.append(entry)
                break
            if not self._suits(seat, debt, peers):
                aside.append(entry)
            elif not self._fits(size + self._missing_bytes(seat, debt)):
                heappush(self._late, (debt.record.size, debt.record.key))
            else:
                records.append(debt.record)
                size += debt.record.size
                if large:
                    break
        for entry in aside:
            self._queued[entry[3]] = entry[0]
            heappush(self._order, entry)
        return records

    def _next(self) -> Debt | None:
        """The first of the order that is still at risk, taken out of it."""
        while self._order:
            safety, _, _, key = heappop(self._order)
            if self._queued.get(key) != safety:
                continue
            del self._queued[key]
            debt = self.debts.open.get(key)
            if debt is None:
                continue
            if self._safety(debt) == safety:
                return debt
            self._enqueue(debt)
        return None

    def _enqueue(self, debt: Debt) -> None:
        safety, key = self._safety(debt), debt.record.key
        if self._wants(debt) and self._queued.get(key) != safety:
            self._queued[key] = safety
            heappush(self._order, (safety, *self._worth(debt), key))

    def _wants(self, debt: Debt) -> bool:
        on_the_way, needed = self._on_the_way(debt), self.ctx.min_copies(debt.record)
        narrow = len(debt.receipts) >= needed and not on_the_way  # still at risk: its copies lie in too few domains
        return narrow or len(debt.receipts) + on_the_way < needed

    def _safety(self, debt: Debt) -> int:
        """A receipt counts for two: what is only on its way may be with a peer that stalls."""
        return 2 * len(debt.receipts) + self._on_the_way(debt)

    def _on_the_way(self, debt: Debt) -> int:
        return sum(1 for node in debt.asked if all(seat.node != node for seat in debt.receipts.values()))

    def _worth(self, debt: Debt) -> tuple[int, int]:
        kind = self.ctx.kind(debt.record.name)
        return (PRIORITIES.index(kind.priority) if kind else len(PRIORITIES), debt.record.size)

    # --- peers ---

    def _peers(self) -> list[Seat]:
        """Whom to send to: persistent stores, ephemeral ones only where those are fewer than the copies needed."""
        seats = [seat for seat in self.members.seats(self.ctx.store) if seat.node != self.ctx.node]
        persistent = [seat for seat in seats if not seat.ephemeral]
        chosen = persistent if len(persistent) >= self.ctx.routing.min_copies else seats
        ranked = sorted(chosen, key=lambda seat: blake2b(self.ctx.store + seat.store, digest_size=8).digest())
        now = self.ctx.now_ms
        fit = [seat for seat in ranked if self._shunned.get(seat.node, 0) <= now]
        return [seat for seat in fit[:PEERS_MAX] if self.members.connect(seat.node)]

    def _others(self, peer: NodeId) -> bool:
        return any(seat.node != peer for seat in self._peers())

    def _suits(self, seat: Seat, debt: Debt, peers: list[Seat]) -> bool:
        """Whether this peer may have the next copy. The second copy goes to another domain, if there is one."""
        if not self._may_have(seat, debt):
            return False
        begun = self._begun.get(debt.record.key, (seat.node, 0))[0]
        if begun != seat.node and any(other.node == begun and self._may_have(other, debt) for other in peers):
            return False
        used = {s.domain for s in debt.receipts.values()} | {s.domain for s in peers if s.node in debt.asked}
        if not used or seat.domain not in used:
            return True
        if len(debt.receipts) >= self.ctx.min_copies(debt.record):
            return False  # only another domain makes it durable
        return not any(other.domain not in used and self._may_have(other, debt) for other in peers)

    def _may_have(self, seat: Seat, debt: Debt) -> bool:
        refused_until = debt.refused.get(seat.node, (0, ""))[0]
        return seat.store not in debt.receipts and seat.node not in debt.asked and refused_until <= self.ctx.now_ms

    # --- time and bytes ---

    def _left_ms(self) -> int:
        return max(0, self.deadline_ms - self.ctx.now_ms)

    def _duration_ms(self, size_bytes: int) -> int:
        rate = self.sending.uplink_rate()
        return size_bytes * 1000 // (FIT_BYTES_PER_SECOND if rate is None else rate)

    def _fits(self, size_bytes: int) -> bool:
        """Whether so many more bytes can be safe in time. Where nothing is known, everything is tried."""
        if self.sending.uplink_rate() is None:
            return True
        return self._duration_ms(self._in_flight_bytes() + size_bytes) + SETTLE_MS <= self._left_ms()

    def _endangered(self) -> bool:
        """Whether one more stream, which takes an even share, would keep one under way from ending in time."""
        longest = max((self._left_of(flight) for flight in self.flights.values()), default=0)
        return self._duration_ms(longest * (len(self.flights) + 1)) + SETTLE_MS > self._left_ms()

    def _missing_bytes(self, seat: Seat, debt: Debt) -> int:
        begun, there = self._begun.get(debt.record.key, ("", 0))
        return max(0, debt.record.size - (there if begun == seat.node else 0))

    def _in_flight_bytes(self, peer: NodeId = "") -> int:
        return sum(self._left_of(flight) for flight in self.flights.values() if peer in ("", flight.peer))

    def _credit(self, size_bytes: int) -> None:
        """What the estimate gave to one that stalled has gone to the others."""
        sending = [flight for flight in self.flights.values() if flight.taken_ms]
        for flight in sending:
            flight.gone_bytes += size_bytes // len(sending)

    def _left_of(self, flight: Flight) -> int:
        return max(0, flight.size_bytes - flight.gone_bytes)

    def _move(self) -> None:
        """What has left since the last look, if all that is being sent shares the uplink evenly."""
        rate, elapsed_ms = self.sending.uplink_rate(), self.ctx.now_ms - self._looked_ms
        self._looked_ms = self.ctx.now_ms
        sending = [flight for flight in self.flights.values() if flight.taken_ms]
        for flight in sending if rate is not None else ():
            flight.gone_bytes += elapsed_ms * (rate or 0) // (1000 * len(sending))

    def _window_open(self) -> bool:
        rate = self.sending.uplink_rate()
        return not self.flights or rate is None or self._in_flight_bytes() * 1000 < rate * WINDOW_MS

    def _batch_bytes(self) -> int:
        rate = self.sending.uplink_rate()
        return BATCH_BYTES if rate is None else min(BATCH_BYTES, rate * BATCH_MS // 1000)

    # --- the report ---

    def farewell(self) -> Farewell | None:
        """What is safe where, what is not, and why; None when nothing was at risk."""
        count, size = self._began
        if not count:
            return None
        own = sorted(self.debts.own_open(), key=lambda debt: (len(debt.receipts), debt.record.key))
        lost = [debt for debt in own if not self.debts.counting(debt.receipts)]
        saved = tuple(Saved(peer, *self._saved[peer]) for peer in sorted(self._saved) if self._saved[peer][0])
        named = tuple(
            Unsafe(debt.record.key, debt.record.digest, debt.record.size, len(debt.receipts), self._why(debt))
            for debt in own[:UNSAFE_MAX]
        )
        return Farewell(
            count, size, saved, len(own), sum(d.record.size for d in own), len(lost), sum(d.record.size for d in lost),
            named,
        )  # fmt: skip

    def _why(self, debt: Debt) -> str:
        if not self.members.sessions:
            return "no peer could be reached"
        if len(debt.receipts) >= self.ctx.min_copies(debt.record):
            return "its copies lie in too few domains"
        if debt.asked:
            return f"it was on its way to {', '.join(sorted(debt.asked))} when the time was over"
        if any(key == debt.record.key for _, key in self._late[:UNSAFE_MAX]):
            rate = self.sending.uplink_rate() or 0
            return f"it did not fit into the time left at {rate} bytes per second"
        if debt.refused:
            node, (_, reason) = sorted(debt.refused.items())[-1]
            return f"{node}: {reason}"
        return "the time was over before its turn came"
