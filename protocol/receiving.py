"""Taking bytes in: offers from others, fetches of our own, and how either becomes a holding.

The path is always the same: refuse or reserve room → bytes arrive verified in staging → publish (fsync, rename, fsync
the folder) → commit the holding → tell. A receipt is sent after the commit and never before. What was refused, and
why, is said to the sender, who then finds another store.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from protocol import messages as m
from protocol.context import Context
from protocol.debts import Debts
from protocol.effects import Answer, Fetch, Reserve, Unreserve
from protocol.errands import Errands
from protocol.events import Arrived, Reserved
from protocol.incoming import Incoming, Wanted, hash_order
from protocol.membership import Membership
from protocol.pins import Pins
from protocol.policy import Policy
from protocol.publishing import Publishing
from protocol.sending import RECEIPT_MS_MAX, UPLOAD_BYTES_PER_SECOND_MIN
from protocol.swarming import Swarming
from protocol.values import (
    Digest,
    NodeId,
    Parcel,
    Record,
    Rows,
    Stripe,
)

INCOMING_MAX = 64  # transfers being received: 4 from each of 16 peers; each has staging files and a thread
ARRIVING_MAX = 50_000  # digests on their way in: INCOMING_MAX offers of 1,000 at most, with slack
WANTED_MAX = 100_000  # digests we mean to fetch; the sweep finds again what did not fit
ASK_COUNT = 500  # small digests asked of one holder at once
SMALL_BYTES = 1 << 20  # up to one chunk an artifact is asked for in a batch, above it is fetched by ranges
ASK_MS = 60_000  # an Ask unanswered for this long was lost
PULLED_BYTES_MAX = 1 << 46  # 64 TiB: above, what a node says of its pieces would be too long a message
RETRY_MS = 5_000  # a failed fetch is tried again after this, from other holders first
PUSH_GRACE_MS = 3_000  # a target of the origin's push waits this long for the offer before it fetches by itself


class Receiving:
    """Admits offers, fetches what should lie here, publishes and commits what arrived."""

    def __init__(
        self,
        ctx: Context,
        members: Membership,
        debts: Debts,
        pins: Pins,
        random: Random,
        tell: Callable[[Rows], None],
    ) -> None:
        self.ctx = ctx
        self.members = members
        self.debts = debts
        self.incoming: dict[tuple[NodeId, int], Incoming] = {}
        self.arriving: dict[Digest, tuple[NodeId, int]] = {}
        self.wanted: dict[Digest, Wanted] = {}
        self.policy = Policy(ctx, members, debts, pins)
        self.errands = Errands(self)
        self.stopping = False
        self._asked: dict[Digest, tuple[NodeId, int]] = {}  # of whom, and until when an answer is waited for
        self.recording = True  # the last group commit reached the disk
        self._transfer = 0
        self.publishing = Publishing(ctx, self.policy, tell, self._finish)
        self.swarming = Swarming(ctx, members, random, self._pulled_all)

    def start_from(self, transfer: int) -> None:
        self._transfer = max(self._transfer, transfer)

    # --- offers ---

    def offered(self, peer: NodeId, offer: m.Offer) -> None:
        if offer.pull and len(offer.parcels) == 1 and self._may_pull(offer.parcels[0].record):
            self._offered_pull(peer, offer.transfer, offer.parcels[0].record)
            return
        records = [p.record for p in offer.parcels]
        incoming = Incoming(peer, offer.transfer, records, [], answers=bool(offer.answers))
        if incoming.key in self.incoming:
            return  # a repeated number under way: the first one answers
        self._supersede(incoming)
        full = len(self.incoming) >= INCOMING_MAX or len(self.arriving) + len(offer.parcels) > ARRIVING_MAX
        incoming.verdicts = self._verdicts(incoming.offered) if not full else [m.BUSY] * len(incoming.offered)
        if not self.members.own.address:
            incoming.verdicts = [
                self._fetch_instead(peer, *pair) for pair in zip(incoming.offered, incoming.verdicts, strict=True)
            ]
        have = [r.digest for r, why in zip(incoming.offered, incoming.verdicts, strict=True) if why == m.HAVE]
        self._restate(peer, have)
        wanted = tuple(p for p, why in zip(offer.parcels, incoming.verdicts, strict=True) if not why)
        if not wanted:
            self.ctx.send(peer, m.Take(offer.transfer, tuple(incoming.verdicts), ((),) * len(incoming.offered)))
            return
        self.incoming[incoming.key] = incoming
        for parcel in wanted:
            self.arriving[parcel.record.digest] = incoming.key
            self.wanted.pop(parcel.record.digest, None)
        self.ctx.emit(Reserve(peer, offer.transfer, wanted))

    def _may_pull(self, record: Record) -> bool:
        return SMALL_BYTES < record.size <= PULLED_BYTES_MAX

    def _offered_pull(self, peer: NodeId, transfer: int, record: Record) -> None:
        """One large artifact: we get it ourselves, from this peer and from whoever gets it too; its offer is answered
        by our receipt."""
        running = self.incoming.get(self.arriving.get(record.digest, ("", 0)))
        if running is not None and running.peer == self.ctx.node and running.offered[0].key == record.key:
            running.offers[peer] = transfer
            self.swarming.seeded(record.digest, peer)
            self.ctx.send(peer, m.Take(transfer, (m.FETCHING,), ((),)))
            return
        full = len(self.incoming) >= INCOMING_MAX
        verdict = m.BUSY if full else self._verdicts([record])[0]
        if not verdict:
            self._begin_fetch(record, 0, peer, offers={peer: transfer})
            return
        self._restate(peer, [record.digest] if verdict == m.HAVE else [])
        self.ctx.send(peer, m.Take(transfer, (verdict,), ((),)))

    def _supersede(self, offer: Incoming) -> None:
        """A peer offers a version again only after its earlier offer failed on its side: that one will never come.

        Versions are compared, not bytes: the same bytes under two names are two offers, both under way.
        """
        keys = {record.key for record in offer.offered}
        for earlier in [x for x in self.incoming.values() if x.peer == offer.peer and x.answers == offer.answers]:
            again = any(record.key in keys for record in earlier.accepted())
            if again and not self.publishing.is_under_way(earlier):
                self._close(earlier)

    def _fetch_instead(self, peer: NodeId, record: Record, verdict: str) -> str:
        """Nobody can dial this node, so nobody can upload to it: it fetches what it is offered."""
        if verdict or len(self.wanted) >= WANTED_MAX:
            return verdict or m.BUSY
        self.wanted[record.digest] = Wanted(record, self.ctx.now_ms, peer)
        return m.BUSY

    def _verdicts(self, records: list[Record]) -> list[str]:
        """A verdict for each record of an offer; bytes named twice in it travel once."""
        self.ctx.catalogue.expect((r.name for r in records), (r.digest for r in records))
        verdicts = []
        coming: set[Digest] = set()
        for record in records:
            verdict = m.BUSY if record.digest in coming else self._verdict(record)
            if not verdict:
                coming.add(record.digest)
            elif verdict == m.HAVE:
                self._name_held_bytes(record)
            verdicts.append(verdict)
        return verdicts

    def _name_held_bytes(self, record: Record) -> None:
        """We hold these bytes under another name: publish them under this one too, from our own copy.

        A member of an NFS group whose mate holds them has no place of its own for them, and leaves it to the mate.
        """
        path = self.policy.path(record)
        if path is None or record.origin == self.ctx.node or not self.ctx.catalogue.places(record.digest):
            return
        if self.ctx.is_naming(record):
            return
        place = self.ctx.catalogue.place(path)
        if place is None or place.digest != record.digest:
            self.publishing.publish([record])

    def _verdict(self, record: Record) -> str:
        """Why an offered artifact is not taken; "" when it is."""
        if self.stopping:
            return m.LEAVING
        if refusal := "" if record.digest in self.errands.open else self.policy.refusal(record):
            return refusal
        if self.ctx.holds(record.digest):
            return m.HAVE
        if record.digest in self.arriving:
            return m.BUSY
        if not self.members.own.accepting:
            return f"the disk of {self.ctx.node} is at its cap"
        if not self.recording:
            return f"the disk of {self.ctx.node} does not take writes"
        return ""

    def _restate(self, peer: NodeId, have: list[Digest]) -> None:
        """The sender does not know that we hold these: repeat our (committed) statements to it."""
        holdings = [h for digest in have for h in self.ctx.catalogue.holdings(digest) if h.store == self.ctx.store]
        if holdings:
            self.ctx.send(peer, m.RowsMessage(Rows(holdings=tuple(holdings))))

    def reserved(self, event: Reserved) -> None:
        """Room stands (or does not): tell the sender what to send, or start our own fetch."""
        incoming = self.incoming.get((event.peer, event.transfer))
        if incoming is None:
            self.ctx.emit(Unreserve(event.peer, event.transfer))
            return
        answers = iter(zip(event.refused, event.missing, strict=True))
        missing: list[tuple[Stripe, ...]] = []
        for index, why in enumerate(incoming.verdicts):
            refused, stripes = next(answers) if not why else ("", ())
            if refused:
                incoming.verdicts[index] = refused
                self.arriving.pop(incoming.offered[index].digest, None)
            missing.append(stripes)
        if incoming.peer == self.ctx.node:
            for peer, transfer in incoming.offers.items():
                self.ctx.send(peer, m.Take(transfer, (incoming.verdicts[0] or m.FETCHING,), ((),)))
            self._start_fetch(incoming, missing[0])
            return
        self.ctx.send(incoming.peer, m.Take(incoming.transfer, tuple(incoming.verdicts), tuple(missing)))
        size = sum(record.size for record in incoming.accepted())
        incoming.deadline_ms = self.ctx.now_ms + RECEIPT_MS_MAX + size * 1000 // UPLOAD_BYTES_PER_SECOND_MIN
        if not incoming.accepted():
            self._close(incoming)

    # --- fetches ---

    def consider(self, record: Record) -> None:
        """Whether this record's bytes should lie here although nobody pushes them: then put it on the list."""
        if len(self.wanted) >= WANTED_MAX or self.stopping or not self.policy.places_here(record):
            return
        if self.ctx.holds(record.digest):
            self._name_held_bytes(record)
        elif record.digest not in self.arriving and self.members.own.accepting and self.policy.receives_for_store():
            wait = PUSH_GRACE_MS if self.policy.is_target(record) else 0
            self.wanted.setdefault(record.digest, Wanted(record, self.ctx.now_ms + wait))

    def fetch_again(self, record: Record) -> None:
        """We held these bytes and lost them, to a disk, or while the cluster has too few copies without ours."""
        if self.policy.receives(record.kind) and not self.policy.drops(record) and len(self.wanted) < WANTED_MAX:
            self.wanted.setdefault(record.digest, Wanted(record, self.ctx.now_ms))

    def fetch_for_user(self, request: int, record: Record, direct: bool = False) -> None:
        """Get the bytes into staging for `spore get`; nothing is held afterwards."""
        sources = self.sources(record.digest)
        if not sources:
            self.ctx.emit(Answer(request, f"no reachable node holds {record.name}; try again when one is back", record))
            return
        if not any(self.members.peers[node].address for node in sources) and self.errands.begin(request, record):
            return
        self._begin_fetch(record, request, direct=direct)

    def pump(self) -> None:
        """Start the fetches that are due: small ones in batches from one holder, large ones by ranges."""
        now = self.ctx.now_ms
        asks: dict[NodeId, list[Digest]] = {}
        running = sum(1 for peer, _ in self.incoming if peer == self.ctx.node)
        for digest, wanted in list(self.wanted.items()):
            if wanted.due_ms > now:
                continue
            if self.ctx.holds(digest) or digest in self.arriving:
                del self.wanted[digest]
                continue
            sources = [] if digest in self._asked else self.sources(digest, wanted.offered_by)
            if not sources:
                continue
            source = sources[wanted.tries % len(sources)]  # who did not bring it is not asked twice in a row
            if wanted.record.size > SMALL_BYTES:  # it comes from all that can be dialled, if there is one
                source = next((node for node in sources if self.members.peers[node].address), source)
            if self._by_upload(wanted.record, source) and not wanted.alone(now):
                if not self.members.connect(source):
                    wanted.tries += 1  # a session is being opened: the next one meanwhile, or this one in its turn
                    wanted.unconnected_ms = wanted.unconnected_ms or now
                    continue
                batch = asks.setdefault(source, [])
                if len(batch) < ASK_COUNT:
                    batch.append(digest)
                    wanted.tries += 1
                    self._asked[digest] = (source, now + ASK_MS)
            elif running < self.ctx.routing.max_concurrent_syncs and len(self.incoming) < INCOMING_MAX:
                running += 1
                self._begin_fetch(wanted.record, 0, wanted.offered_by)
        for node in sorted(asks):
            self._transfer += 1
            self.ctx.send(node, m.Ask(self._transfer, tuple(asks[node])))

    def _by_upload(self, record: Record, source: NodeId) -> bool:
        """Small artifacts come many to an upload; so does everything from a node that we cannot dial."""
        if not self.members.own.address:
            return False
        return record.size <= SMALL_BYTES or not self.members.peers[source].address

    def _begin_fetch(
        self,
        record: Record,
        request: int,
        offered_by: NodeId = "",
        direct: bool = False,
        offers: dict[NodeId, int] | None = None,
    ) -> None:
        self._transfer += 1
        wanted = self.wanted.pop(record.digest, None)
        incoming = Incoming(self.ctx.node, self._transfer, [record], [""], request, direct, offered_by)
        incoming.offers, incoming.pushed = offers or {}, bool(offers) and wanted is None
        self.incoming[incoming.key] = incoming
        self.arriving[record.digest] = incoming.key
        self.ctx.emit(Reserve(self.ctx.node, self._transfer, (Parcel(record),)))

    def _start_fetch(self, incoming: Incoming, missing: tuple[Stripe, ...]) -> None:
        record = incoming.offered[0]
        sources = self.sources(record.digest, incoming.offered_by)
        if incoming.accepted() and sources:
            if self._may_pull(record) and not incoming.request:
                self.swarming.begin(incoming.transfer, record, missing, sources)
            else:
                self.ctx.emit(Fetch(incoming.transfer, record, tuple(sources), direct=incoming.direct))
            return
        self._fail_fetch(incoming, record, incoming.verdicts[0] or "no reachable node holds it")
        self._close(incoming)

    def _pulled_all(self, transfer: int, record: Record, error: str) -> None:
        """A swarm has ended. When nobody could be pulled from, there may be other ways to the same bytes."""
        incoming = self.incoming.get((self.ctx.node, transfer))
        if incoming is None:
            return
        sources = self.sources(record.digest, incoming.offered_by)
        if not error:
            self.arrived(Arrived(self.ctx.node, transfer, (record,)))
        elif sources:
            self.ctx.emit(Fetch(transfer, record, tuple(sources), direct=incoming.direct))
        else:
            self.arrived(Arrived(self.ctx.node, transfer, (), ((record, error),)))

    def given_up(self, peer: NodeId, transfer: int) -> list[Record]:
        """Close what a peer offered and cannot send; the records that were taken of it."""
        incoming = self.incoming.get((peer, transfer))
        if incoming is None or self.publishing.is_under_way(incoming):
            return []
        self._close(incoming)
        return incoming.accepted()

    def sources(self, digest: Digest, offered_by: NodeId = "") -> list[NodeId]:
        """Live holders and their mates, in an order of our own, so that many do not all begin with the same one."""
        holdings = self.ctx.catalogue.holdings(digest)
        nodes = {offered_by, *(h.node for h in holdings)} & self.members.alive.keys()
        nodes |= self.members.mates_of(dict.fromkeys(holding.store for holding in holdings))
        return sorted(nodes, key=lambda node: (hash_order(node, self.ctx.node), node))

    # --- arrival ---

    def arrived(self, event: Arrived) -> None:
        """The bytes stand verified in staging, or did not come. Publish what did."""
        incoming = self.incoming.get((event.peer, event.transfer))
        if incoming is None:
            return
        incoming.failed += [(record.digest, why) for record, why in event.failed]
        if incoming.peer == self.ctx.node:
            for record, why in event.failed:
                self._fail_fetch(incoming, record, why)
        if incoming.request and event.complete:
            self._answer(incoming, "")
            self._close(incoming)
            return
        allowed = {record.digest: record for record in incoming.accepted()}
        complete = [allowed[record.digest] for record in event.complete if record.digest in allowed]
        complete = self.errands.ended(complete, incoming)
        if complete:
            self.publishing.publish(complete, incoming)
        else:
            self._finish(incoming)

    def _finish(self, incoming: Incoming) -> None:
        """End a transfer: receipts for what is committed, reasons for the rest."""
        asked_by = {incoming.peer: incoming.transfer} if incoming.peer != self.ctx.node else incoming.offers
        if asked_by:
            told = {h.digest for h in incoming.holdings}
            failed = dict(incoming.failed)
            for record in incoming.accepted():
                if record.digest not in told:
                    failed.setdefault(record.digest, "the stream ended without it")
            for peer, transfer in asked_by.items():
                self.ctx.send(peer, m.Receipt(transfer, tuple(incoming.holdings), tuple(failed.items())))
        self._close(incoming)

    def _fail_fetch(self, incoming: Incoming, record: Record, why: str) -> None:
        if incoming.request:
            if incoming.direct and self.errands.begin(incoming.request, record):
                incoming.request = 0
            else:
                self._answer(incoming, f"{record.name} could not be fetched: {why}")
            return
        if incoming.pushed and not self.policy.places_here(record):
            self.ctx.report("warning", "fetch_failed", f"{record.name} was offered and could not be fetched: {why}")
            return
        self.ctx.report("warning", "fetch_failed", f"{record.name} was not fetched and will be tried again: {why}")
        self.wanted[record.digest] = Wanted(record, self.ctx.now_ms + RETRY_MS)

    def _answer(self, incoming: Incoming, error: str) -> None:
        """Who waits for this fetch is told how it ended, once."""
        request, incoming.request = incoming.request, 0
        self.ctx.emit(Answer(request, error, incoming.offered[0]))

    def _close(self, incoming: Incoming) -> None:
        if incoming.request:
            self._answer(incoming, f"{incoming.offered[0].name} could not be fetched: it ended without the bytes")
        self.incoming.pop(incoming.key, None)
        for record in incoming.offered:
            if self.arriving.get(record.digest) == incoming.key:
                del self.arriving[record.digest]
        if incoming.peer == self.ctx.node:
            self.swarming.stop(incoming.offered[0], incoming.transfer)
        self.ctx.emit(Unreserve(incoming.peer, incoming.transfer))

    # --- upkeep ---

    def stop_barred(self) -> None:
        """This node may not become a holder of some kinds any more: what is coming in of these stops now, and its
        senders hear why. What a user gets goes on."""
        for digest in [d for d, wanted in self.wanted.items() if not self.policy.receives(wanted.record.kind)]:
            del self.wanted[digest]
        for incoming in [x for x in self.incoming.values() if not x.request and not self.publishing.is_under_way(x)]:
            refusals = [(record.digest, self.policy.refusal(record)) for record in incoming.accepted()]
            if any(why for _, why in refusals):
                incoming.failed += [(digest, why or "it came with what is refused") for digest, why in refusals]
                self._finish(incoming)

    def session_down(self, peer: NodeId) -> None:
        """Its offers are void, begun or not: it forgets them too, and offers anew. Verified chunks stay in staging."""
        for incoming in [x for x in self.incoming.values() if x.peer == peer and not self.publishing.is_under_way(x)]:
            self._close(incoming)
        for digest in [d for d, (asked, _) in self._asked.items() if asked == peer]:
            del self._asked[digest]
        self.swarming.gone(peer)
        for incoming in [x for x in self.incoming.values() if x.offers.pop(peer, 0) and not x.offers]:
            unwanted = incoming.pushed and not self.policy.places_here(incoming.offered[0])
            if unwanted and not self.publishing.is_under_way(incoming):
                self._close(incoming)  # nobody asks for it any more; what came stays in staging

    def tick(self) -> None:
        now = self.ctx.now_ms
        for incoming in list(self.incoming.values()):
            if incoming.deadline_ms and now > incoming.deadline_ms and not self.publishing.is_under_way(incoming):
                self._finish(incoming)  # our own fetches have no deadline: the driver ends those that stall
        if self.recording:
            self.publishing.record_the_rest()
        for digest in [d for d, (_, until) in self._asked.items() if until <= now]:
            del self._asked[digest]
        self.pump()
