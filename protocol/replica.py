"""The replica: one node's decisions, composed. `handle(event, now_ms)` returns effects; it is the only way in.

Every branch on *what happened* is in this file; the machines beside it decide what follows. They share a `Context`
and call each other only through what is wired here.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, get_args

from protocol import events as e
from protocol import messages as m
from protocol.accepting import Accepting
from protocol.adopting import Adopting
from protocol.catalogue import Catalogue
from protocol.claims import Message as SwimMessage
from protocol.clock import stamp_ms
from protocol.comparing import Comparing
from protocol.context import Context
from protocol.debts import Debt, Debts
from protocol.declared import Declared
from protocol.departing import Departing
from protocol.draining import Draining
from protocol.effects import Effects, Entry, Hangup, Inline, Referenced, Release, SetTimer
from protocol.fleet import Fleet
from protocol.leaving import PLAN, Leaving
from protocol.membership import WAKE, Membership
from protocol.pins import Pins
from protocol.receiving import Receiving
from protocol.recent import Recent
from protocol.repair import Repair
from protocol.retention import Retention
from protocol.sending import Sending
from protocol.settling import Settling
from protocol.sharing import Sharing
from protocol.shedding import Shedding
from protocol.spreading import Spreading
from protocol.swarming import TIMER
from protocol.sweeping import Sweeping
from protocol.syncing import Syncing
from protocol.values import Batch, NodeId, Record, Rows, State, StoreId
from protocol.view import NOTHING, Base

TICK_MS = 1_000  # time-outs, dials, retention and retries are looked at this often
HEAL_MS = 5_000  # after a failed commit, an empty one probes the disk this often
TRANSFERS_PER_BOOT = 1 << 32  # transfer numbers of one life never meet those of the next
PUMP_AT_ONCE_MAX = 1_000  # wanted artifacts looked through for each news of a holding; above, the tick does it


class Replica:
    """One node's core. Holds what is under way; everything lasting is in the catalogue and the WAL."""

    def __init__(
        self,
        node: NodeId,
        store: StoreId,
        fleet: Fleet,
        catalogue: Catalogue,
        random: Random,
        boot: int,
        base: Base = NOTHING,
    ) -> None:
        """`base`: who is believed alive from the start; a simulation shares one among thousands of nodes."""
        self.ctx = ctx = Context(node, store, fleet, Recent(catalogue))
        self.boot = boot
        self.members = Membership(ctx, random, boot, base)
        self.debts = Debts(ctx, self.members, self._settled)
        self.sending = Sending(ctx, self.members, self.debts)
        self.leaving = Leaving(ctx, self.members, self.debts, self.sending)
        self.retention = Retention(ctx, self.members, self.debts, self._tell)
        self.comparing = Comparing(ctx, self.members, random)
        self.spreading = Spreading(ctx, self.members, self.comparing, self._heard, self.retention.beyond)
        self.pins = Pins(ctx)
        self.receiving = Receiving(ctx, self.members, self.debts, self.pins, random, self._tell)
        self.publishing, self.swarming = self.receiving.publishing, self.receiving.swarming
        self.swarming.on_pieces = self.sending.progressed
        self.accepting = Accepting(ctx, self.debts, self._tell, self._owe)
        self.adopting = Adopting(ctx, self.members, self.debts, self.accepting, self._tell, self._owe)
        self.departing = Departing(ctx, self.members, self.debts, self.leaving, self._hold_nothing_more)
        self.syncing = Syncing(ctx, self.members, self.debts, self.sending, self.receiving)
        self.settling = Settling(ctx, self.debts, self.publishing)
        self.declared = Declared(ctx, self.members)
        self.draining = Draining(ctx, self.members, self.debts, self._hold_nothing_more, self._owe)
        self.repair = Repair(ctx, self.members, self.debts, self._can_send, self._owe)
        self.sharing = Sharing(ctx, self.members, self.receiving.policy, random)
        self.shedding = Shedding(ctx, self.members, self.debts, self.receiving, self._tell)
        self.sweeping = Sweeping(
            *(ctx, self.members, self.debts, self.retention, self.receiving),
            *(self.pins, self.repair, self.shedding),
        )
        self.sending.start_from(boot * TRANSFERS_PER_BOOT)
        self.receiving.start_from(boot * TRANSFERS_PER_BOOT)
        self._unrestored: list[Entry] = []  # at most what the WAL holds
        self._heal_due_ms = 0
        self._healing = False
        self._handlers = self._handler_of_each_event()
        self._readers = self._reader_of_each_message()

    def _handler_of_each_event(self) -> dict[type, Callable[[Any], None]]:
        return {
            e.Boot: self._boot,
            e.Put: self.accepting.put,
            e.Adopt: self.adopting.adopt,
            e.Remove: self.accepting.remove,
            e.Declare: self.accepting.declare,
            e.Await: self.accepting.await_copies,
            e.Want: self._want,
            e.Sync: lambda event: self.syncing.begin(event.request, event.records, event.to),
            e.Cancel: self._cancel,
            e.Durable: self._durable,
            e.DurableFailed: self._durable_failed,
            e.SessionUp: self._session_up,
            e.SessionDown: lambda event: self._session_down(event.peer, event.why),
            e.Challenged: lambda event: self.members.challenged(event.peer, event.incarnation, event.instance),
            e.DialFailed: self._dial_failed,
            e.Received: self._received,
            e.Reserved: self.receiving.reserved,
            e.Uploaded: lambda event: self.sending.uploaded(event.transfer, event.error, event.unreachable),
            e.Arrived: self.receiving.arrived,
            e.Pulled: self.swarming.pulled,
            e.Published: self.publishing.published,
            e.Withdrawn: self._withdrawn,
            e.RootKnown: lambda event: self.retention.root_known(),
            e.DiskChanged: self._disk_changed,
            e.FleetChanged: self._fleet_changed,
            e.Timer: self._timer,
            e.Scanned: self._scanned,
            e.HeldChecked: self.shedding.checked,
            e.MarkSeen: self.sharing.seen,
            e.Indexed: self.sharing.indexed,
            e.Flush: self._depart,
            e.Notice: self._depart,
            e.Drain: self.draining.start,
        }

    def _reader_of_each_message(self) -> dict[type, Callable[[NodeId, Any], None]]:
        return {
            m.Hello: lambda peer, message: None,  # the session layer has read it; a second one says nothing new
            m.Farewell: self.departing.farewell,
            m.Goodbye: self._goodbye,
            m.RowsMessage: lambda peer, message: self.spreading.received(peer, message.rows),
            m.CellsMessage: self.comparing.cells,
            m.CellsWanted: self.comparing.cells_wanted,
            m.Lacking: self.comparing.lacking,
            m.Prints: self.comparing.prints,
            m.Offer: self.receiving.offered,
            m.Take: self.sending.taken,
            m.Receipt: self._receipted,
            m.Ask: self.sending.asked,
            m.Unreachable: self.receiving.errands.unreachable,
            m.Confirm: self.shedding.asked,
            m.Confirmed: self.shedding.confirmed,
            m.Shares: self.sharing.told,
            m.Pieces: self.swarming.pieces,
            m.Fetchers: self.swarming.fetchers,
            **dict.fromkeys(get_args(SwimMessage), self.members.received),
        }

    def handle(self, event: e.Event, now_ms: int) -> Effects:
        """Everything that follows from one event, in the order in which it is to be started."""
        self.ctx.now_ms = now_ms
        self._handlers[type(event)](event)
        self._follow_lives()
        self.publishing.publish_settled()
        self.spreading.flush()
        self.leaving.step()
        self.sending.pump()
        out, self.ctx.out = self.ctx.out, []
        return out

    def hello(self) -> m.Hello:
        """What this node says first on a new session."""
        return self.members.hello(self.boot)

    # --- life ---

    def _boot(self, event: e.Boot) -> None:
        self.ctx.clock.restate(event.last_hlc)
        self.declared.boot()
        self.members.boot()
        self.retention.boot()
        reached_ms = max(self.ctx.now_ms, stamp_ms(event.last_hlc))
        for entry in event.pending:  # logged, perhaps never committed: its stamp is not given twice
            self.ctx.clock.observe(entry.record.hlc, reached_ms)
            self.ctx.clock.restate(min(entry.record.hlc, event.last_hlc) or entry.record.hlc)
            self._restore(entry)
        self.sweeping.boot()
        self.shedding.boot()
        self.sharing.boot()
        self.ctx.emit(SetTimer("tick", self.ctx.now_ms + TICK_MS))

    def _restore(self, entry: Entry) -> None:
        """An artifact accepted in an earlier life and not released: its row may be lost, its promise is not."""
        record = entry.record
        if record.origin != self.ctx.node:
            self.ctx.adopted[record.key] = None
        kept = not isinstance(entry.source, Referenced)
        if self.retention.beyond(record, by_age=False):
            self.ctx.emit(Release((record,)))
            return
        known = self.ctx.catalogue.record(record.key) is not None
        places = () if isinstance(entry.source, Inline) else (entry.source.place,)
        private = tuple(p for p in places if p.private and self.ctx.catalogue.place(p.path) is None)
        if known and not private:
            self._restored(record, Rows(), kept)
            return
        holdings = (self.ctx.holding(record.digest, True),) if private and not self.ctx.excluded else ()
        rows = Rows(() if known else (record,), holdings)
        self.ctx.commit(
            Batch(rows, private if known else places),
            lambda: self._restored(record, rows, kept),
            lambda error: self._unrestored.append(entry),
        )

    def _restore_the_rest(self) -> None:
        """Entries whose rows met a failing disk at the start: the WAL still promises them, so they are tried again."""
        if self.accepting.healthy:
            entries, self._unrestored = self._unrestored, []
            for entry in entries:
                self._restore(entry)

    def _restored(self, record: Record, rows: Rows, kept: bool) -> None:
        self._tell(rows)
        self._owe(record, kept)

    def _timer(self, event: e.Timer) -> None:
        """After each event the plan is looked at: its own timer needs to do nothing more."""
        if event.token == WAKE:
            self.members.wake()
        elif event.token == TIMER:
            self.swarming.wake()
        elif event.token != PLAN:
            self._tick()

    def _tick(self) -> None:
        now = self.ctx.now_ms
        self.ctx.emit(SetTimer("tick", now + TICK_MS))
        self.members.tick()
        self.debts.tick()
        self.sending.tick()
        self.receiving.errands.tick()
        self.receiving.tick()
        self.syncing.tick()
        self.swarming.tick()
        self.retention.tick()
        self.comparing.tick()
        self._state_debt()
        self.repair.pump()
        self.shedding.tick()
        self.sharing.tick()
        self.sweeping.tick()
        self.draining.tick()
        self._heal()
        self._restore_the_rest()
        self.departing.leave_if_done()

    def _hold_nothing_more(self, stopping: bool, accepting: bool) -> None:
        """This node will be gone: it takes nothing more for others, and, when it leaves now, nothing of its own."""
        self.receiving.stopping, self.accepting.stopping = stopping, not accepting
        if stopping:
            self.members.state(accepting=False)
        if stopping and accepting:
            self._state_debt()  # at once; who leaves now says it with its goodbye

    def _state_debt(self) -> None:
        own = [*(debt.record for debt in self.debts.own_open()), *self.repair.own_waiting()]
        self.members.state(at_risk_count=len(own), at_risk_bytes=sum(record.size for record in own))
        batch = self.members.restatement()
        if batch is not None:
            self.ctx.commit(batch, lambda: self.spreading.tell(batch.rows), lambda error: self.members.untold(batch))

    # --- what was committed ---

    def _tell(self, rows: Rows) -> None:
        self.spreading.tell(rows)

    def _heard(self, rows: Rows) -> None:
        """Rows are committed, ours or a peer's: everybody concerned looks at them."""
        if sum(self.members.heard(member) for member in rows.members):  # every one is heard
            self.sending.stop_barred()
            self.debts.recount()
            self.sending.replan_all()
        for record in rows.records:
            self.retention.committed(record)
            self._note_declared(record)
            self._note_pin(record)
        for holding in rows.holdings:
            self.swarming.stated(holding)
            for debt in self.debts.heard(holding):
                self.sending.plan(debt)
                self.leaving.heard(debt)
        self.syncing.heard(rows.holdings)
        self.sharing.heard(rows.holdings)
        self._consider(rows)
        self._refetch(rows)

    def _withdrawn(self, event: e.Withdrawn) -> None:
        removed = self.accepting.removed_names(event) if event.removed else []
        self.accepting.withdrawn(event)
        for name in removed:
            self.accepting.remove(e.Remove(0, name))
        if event.damaged:
            for record in self.ctx.catalogue.sharers(event.place.digest):
                if record.state is State.LIVE:
                    self.receiving.fetch_again(record)

    def _refetch(self, rows: Rows) -> None:
        """Bytes of ours are gone or damaged: they are fetched again only where copies are too few without them."""
        for holding in rows.holdings:
            if holding.node == self.ctx.node and not holding.present:
                for record in self.ctx.catalogue.sharers(holding.digest):
                    if record.state is State.LIVE and not self.debts.enough(record, 0, 0):
                        self.receiving.fetch_again(record)

    def _consider(self, rows: Rows) -> None:
        """New records: should their bytes lie here too? (New holdings are found as sources when they are needed.)"""
        for record in rows.records:
            if record.origin != self.ctx.node:
                self.receiving.consider(record)
        if rows.holdings and len(self.receiving.wanted) <= PUMP_AT_ONCE_MAX:
            self.receiving.pump()

    def _note_declared(self, record: Record) -> None:
        if self.declared.heard(record):
            self.sweeping.hurry(self.ctx.now_ms)  # what a removed node held is no copy any more: repair begins
            self.debts.recount()
            self.sending.replan_all()

    def _note_pin(self, record: Record) -> None:
        """A name was pinned here, or broadcast: its bytes are fetched, whatever the strategy says."""
        name = self.pins.heard(record) or self.receiving.policy.broadcasts.heard(record)
        wanted = self.ctx.current(name) if name else None
        if wanted is not None:
            self.receiving.consider(wanted)

    def _owe(self, record: Record, kept: bool = False) -> None:
        debt = self.debts.add(record, self.ctx.accepted_here(record), kept)
        if debt is not None:
            self.sending.plan(debt)
            self.leaving.owe(debt)

    def _settled(self, debt: Debt) -> None:
        """K receipts are committed: the artifact takes its final path here, and its WAL entry may go."""
        record = debt.record
        if debt.own:
            self.settling.settled(record)
        self.retention.committed(record)

    # --- durability of our own writes ---

    def _durable(self, event: e.Durable) -> None:
        self.ctx.durable(event.upto, event.refused)
        if not self.accepting.healthy:
            self.accepting.healthy = self.receiving.recording = True
            self.ctx.report("info", "disk_recovered", "the disk takes writes again")

    def _durable_failed(self, event: e.DurableFailed) -> None:
        """Nothing of the group was told. Accept nothing more until a probe reaches the disk."""
        self.accepting.healthy = self.receiving.recording = False
        self._healing = False
        self._heal_due_ms = self.ctx.now_ms + HEAL_MS
        self.ctx.report(
            "error", "disk_failed", f"the disk does not take writes: {event.error}; nothing is accepted until it does"
        )
        self.ctx.failed(event.first, event.upto, event.error)

    def _heal(self) -> None:
        if not self.accepting.healthy and not self._healing and self.ctx.now_ms >= self._heal_due_ms:
            self._healing = True
            self.ctx.commit(Batch(), lambda: None)

    def _disk_changed(self, event: e.DiskChanged) -> None:
        self.accepting.room = event.local
        self.members.state(
            accepting=event.accepting and not self.receiving.stopping,
            capacity_bytes=event.capacity_bytes,
            used_bytes=event.used_bytes,
        )
        if self.shedding.room(event.excess_bytes):
            self.sweeping.hurry(self.ctx.now_ms)
        self._state_debt()

    def _fleet_changed(self, event: e.FleetChanged) -> None:
        self.ctx.change_fleet(event.fleet)
        self.members.fleet_changed()
        self.sending.stop_barred()
        self.receiving.stop_barred()
        self.shedding.stirred()
        self.sweeping.hurry(self.ctx.now_ms)
        self.debts.recount()
        self.sending.replan_all()
        self._state_debt()

    # --- peers ---

    def _session_up(self, event: e.SessionUp) -> None:
        lived = self.members.is_alive(event.peer)
        self.members.session_up(event.peer, event.hello)
        self.ctx.report("info", "peer_up", f"{event.peer} is connected")
        self.spreading.session_up(event.peer, event.hello)
        self.sending.session_up(event.peer)
        if lived:  # its row may say something else by now; whoever comes to life is looked at with all others who do
            self.debts.recount()
            self.sending.replan_all()

    def _session_down(self, peer: NodeId, why: str) -> None:
        self.members.session_down(peer, why)
        self.sending.session_down(peer)
        self.receiving.session_down(peer)
        self.receiving.errands.session_down(peer)

    def _dial_failed(self, event: e.DialFailed) -> None:
        self.members.dial_failed(event.peer)
        self.sending.session_down(event.peer)

    def _follow_lives(self) -> None:
        """Somebody came to life, or ceased to live: what counts, and what is owed to whom, is looked at anew."""
        changes = self.members.take_changes()
        for node in changes:
            if not self.members.is_alive(node):
                self.sending.session_down(node)
                self.sweeping.lost(node)
                self.swarming.gone(node)
                self._report_orphans(node)
        if changes:
            self.shedding.stirred()
            self.debts.recount()
            self.sending.replan_all()
        if self.members.twin is not None:
            self.departing.exit()

    def _report_orphans(self, node: NodeId) -> None:
        """It is gone with what it had not yet sent: said at once, by what it last said of itself."""
        member = self.members.row(node)
        if member is not None and member.at_risk_count:
            debt = f"{member.at_risk_count} artifacts ({member.at_risk_bytes} bytes) at risk as it last said"
            self.ctx.report(
                "warning", "orphans", f"{node} is gone with {debt}; `spore risk --cluster` lists what nobody else has"
            )

    def _received(self, event: e.Received) -> None:
        peer, message = event.peer, event.message
        if peer not in self.members.sessions:
            return  # it said goodbye, or its session has just ended: whatever was in flight is void
        self._readers[type(message)](peer, message)

    def _receipted(self, peer: NodeId, receipt: m.Receipt) -> None:
        self.spreading.received(peer, Rows(holdings=receipt.holdings))
        self.leaving.received(peer, receipt)
        self.sending.receipted(peer, receipt)

    def _goodbye(self, peer: NodeId, message: m.Goodbye) -> None:
        self.members.goodbye(peer)
        self._session_down(peer, "it said goodbye")
        self.ctx.emit(Hangup(peer, "it said goodbye"))

    def _cancel(self, event: e.Cancel) -> None:
        self.accepting.cancel(event.request)
        self.syncing.cancel(event.request)

    def _want(self, event: e.Want) -> None:
        self.receiving.fetch_for_user(event.request, event.record, event.direct)

    def _can_send(self, record: Record) -> bool:
        return self.ctx.holds(record.digest) or bool(self.ctx.catalogue.places(record.digest))

    # --- flushing and leaving ---

    def _scanned(self, event: e.Scanned) -> None:
        """A page for the sweep, or for a drain: their numbers never meet."""
        self.sweeping.scanned(event)
        self.draining.scanned(event)

    def _depart(self, event: e.Flush | e.Notice) -> None:
        """What of our own waits to be repaired is owed at once, whatever the reason."""
        for record in self.repair.take_own():
            self._owe(record)
        if isinstance(event, e.Flush):
            self.departing.flush(event)
        else:
            self.departing.notice(event)
