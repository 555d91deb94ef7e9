"""Taking bytes in: offers from others, fetches of our own, and how either becomes a holding.

The path is always the same: refuse or reserve room → bytes arrive verified in staging → publish (fsync, rename, fsync
the folder) → commit the holding → tell. A receipt is sent after the commit and never before. What was refused, and
why, is said to the sender, who then finds another store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from protocol import messages as m
from protocol.context import Context
from protocol.debts import Debts
from protocol.effects import Answer, Fetch, Publication, Publish, Reserve, Unlink, Unreserve
from protocol.events import Arrived, Published, Reserved
from protocol.incoming import Incoming, Wanted, hash_order
from protocol.membership import Membership
from protocol.pins import Pins
from protocol.policy import Policy
from protocol.sending import RECEIPT_MS_MAX, UPLOAD_BYTES_PER_SECOND_MIN
from protocol.values import (
    Batch,
    Digest,
    NodeId,
    Parcel,
    Place,
    Record,
    Rows,
    Stripe,
)

INCOMING_MAX = 64  # transfers being received: 4 from each of 16 peers; each has staging files and a thread
ARRIVING_MAX = 50_000  # digests on their way in: INCOMING_MAX offers of 1,000 at most, with slack
WANTED_MAX = 100_000  # digests we mean to fetch; the sweep finds again what did not fit
ASK_COUNT = 500  # small digests asked of one holder at once
SMALL_BYTES = 1 << 20  # up to one chunk an artifact is asked for in a batch, above it is fetched by ranges
PUBLISH_COUNT = 1_000  # own artifacts published together: one sync of the file system for all
ASK_MS = 60_000  # an Ask unanswered for this long was lost
RETRY_MS = 5_000  # a failed fetch is tried again after this, from other holders first
PUSH_GRACE_MS = 3_000  # a target of the origin's push waits this long for the offer before it fetches by itself


class Receiving:
    """Admits offers, fetches what should lie here, publishes and commits what arrived."""

    def __init__(
        self, ctx: Context, members: Membership, debts: Debts, pins: Pins, tell: Callable[[Rows], None]
    ) -> None:
        self.ctx = ctx
        self.members = members
        self.debts = debts
        self.tell = tell
        self.incoming: dict[tuple[NodeId, int], Incoming] = {}
        self.arriving: dict[Digest, tuple[NodeId, int]] = {}
        self.wanted: dict[Digest, Wanted] = {}
        self.policy = Policy(ctx, members, debts, pins)
        self.stopping = False
        self._asked: dict[Digest, tuple[NodeId, int]] = {}  # of whom, and until when an answer is waited for
        self._publishing: dict[int, Incoming | None] = {}
        self._taking: dict[int, tuple[str, ...]] = {}  # paths that publications under way may take from older versions
        self._unrecorded: list[Published] = []  # while the manifest takes no writes; offers are refused meanwhile
        self.recording = True  # the last group commit reached the disk
        self._op = 0
        self._transfer = 0
        self._settled: list[Record] = []
        self._own_published: Callable[[Record], None] = lambda record: None

    def on_own_published(self, then: Callable[[Record], None]) -> None:
        """Whom to tell when an artifact accepted here has reached its final path."""
        self._own_published = then

    def start_from(self, transfer: int) -> None:
        self._transfer = max(self._transfer, transfer)

    # --- offers ---

    def offered(self, peer: NodeId, offer: m.Offer) -> None:
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

    def _supersede(self, offer: Incoming) -> None:
        """A peer offers a version again only after its earlier offer failed on its side: that one will never come.

        Versions are compared, not bytes: the same bytes under two names are two offers, both under way.
        """
        keys = {record.key for record in offer.offered}
        for earlier in [x for x in self.incoming.values() if x.peer == offer.peer and x.answers == offer.answers]:
            again = any(record.key in keys for record in earlier.accepted())
            if again and not self._is_publishing(earlier):
                self._close(earlier)

    def _fetch_instead(self, peer: NodeId, record: Record, verdict: str) -> str:
        """Nobody can dial this node, so nobody can upload to it: it fetches what it is offered."""
        if verdict or len(self.wanted) >= WANTED_MAX:
            return verdict or m.BUSY
        self.wanted[record.digest] = Wanted(record, self.ctx.now_ms, peer)
        return m.BUSY

    def _verdicts(self, records: list[Record]) -> list[str]:
        """A verdict for each record of an offer; bytes named twice in it travel once."""
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
            self.publish([record])

    def _verdict(self, record: Record) -> str:
        """Why an offered artifact is not taken; "" when it is."""
        if self.stopping:
            return m.LEAVING
        refusal = self.policy.refusal(record)
        if refusal:
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
            self._start_fetch(incoming)
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
        sources = self._sources(record.digest)
        if not sources:
            self.ctx.emit(Answer(request, f"no reachable node holds {record.name}; try again when one is back", record))
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
            sources = [] if digest in self._asked else self._sources(digest, wanted.offered_by)
            if not sources:
                continue
            source = sources[wanted.tries % len(sources)]  # who did not bring it is not asked twice in a row
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

    def _begin_fetch(self, record: Record, request: int, offered_by: NodeId = "", direct: bool = False) -> None:
        self._transfer += 1
        self.wanted.pop(record.digest, None)
        incoming = Incoming(self.ctx.node, self._transfer, [record], [""], request, direct, offered_by)
        self.incoming[incoming.key] = incoming
        self.arriving[record.digest] = incoming.key
        self.ctx.emit(Reserve(self.ctx.node, self._transfer, (Parcel(record),)))

    def _start_fetch(self, incoming: Incoming) -> None:
        record = incoming.offered[0]
        sources = self._sources(record.digest, incoming.offered_by)
        if incoming.accepted() and sources:
            self.ctx.emit(Fetch(incoming.transfer, record, tuple(sources), direct=incoming.direct))
            return
        self._fail_fetch(incoming, record, incoming.verdicts[0] or "no reachable node holds it")
        self._close(incoming)

    def _sources(self, digest: Digest, offered_by: NodeId = "") -> list[NodeId]:
        """Live holders, in an order of our own, so that many fetchers do not all begin with the same one."""
        nodes = {offered_by, *(h.node for h in self.ctx.catalogue.holdings(digest))} & self.members.alive.keys()
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
        if complete:
            self.publish(complete, incoming)
        else:
            self._finish(incoming)

    def publish(self, records: list[Record], incoming: Incoming | None = None) -> None:
        """Bring verified bytes under their final names; older versions and unsafe names into `.spore/versions/`.

        A record that is not in the manifest yet is written there first: after a crash the file under its name would
        pass for a user's new version.
        """
        self._op = op = self._op + 1
        self._publishing[op] = incoming
        self.ctx.naming(op, records)
        self.ctx.catalogue.expect([record.name for record in records])
        rows = Rows(tuple(record for record in records if self.ctx.catalogue.record(record.key) is None))
        if not rows:
            self._name(op, records)
            return

        def done() -> None:
            self.tell(rows)
            self._name(op, records)

        failed = [(record, "its record could not be written") for record in records]
        self.ctx.commit(Batch(rows), done, lambda error: self.published(Published(op, (), tuple(failed))))

    def _name(self, op: int, records: list[Record]) -> None:
        wished = [self.policy.wished_path(record) for record in records]
        self.ctx.catalogue.expect(paths=[path for path in wished if path])
        items = tuple(Publication(record, self.policy.path(record)) for record in records)
        self._taking[op] = tuple(item.path for item in items if item.path)
        self.ctx.emit(Publish(op, items))

    def lacks_name(self, record: Record) -> bool:
        """Whether bytes that we have are still to take their final path: they may lie under another name only."""
        path = self.policy.path(record)
        place = self.ctx.catalogue.place(path) if path else None
        return path is not None and (place is None or place.digest != record.digest)

    def publish_later(self, record: Record) -> None:
        """An artifact of our own is durable: give it its final name, together with the others of this event."""
        self._settled.append(record)

    def publish_settled(self) -> None:
        while self._settled:
            batch, self._settled = self._settled[:PUBLISH_COUNT], self._settled[PUBLISH_COUNT:]
            self.publish(batch)

    def published(self, event: Published) -> None:
        """The files have their names: commit the holdings, and only then tell anybody."""
        self._record(event, self._publishing.pop(event.op, None))

    def _record(self, event: Published, incoming: Incoming | None) -> None:
        places = [replace(place, published=record.origin != self.ctx.node) for record, place in event.done]
        places += [place for _, place in event.moved]
        records = [record for record, _ in event.done]
        stated = [record.digest for record in records] + self._adopted(event)
        holdings = tuple(self.ctx.holding(digest, True) for digest in dict.fromkeys(stated))
        holdings += tuple(self.ctx.holding(digest, False) for digest in self._displaced(event))
        news = tuple(record for record in records if not self.ctx.knows_record(record))
        rows = Rows(news, holdings)
        if incoming is not None:
            incoming.failed += [(record.digest, why) for record, why in event.failed]
        for record, why in event.failed:
            self.ctx.report("warning", "not_published", f"{record.name} was not published: {why}")
        batch = Batch(rows, tuple(places), forget_places=_left(event.moved, places))
        ended = records + [record for record, _ in event.failed]
        left_over = tuple(place for _, place in event.moved if not self.ctx.catalogue.sharers(place.digest))

        def done() -> None:
            self._taking.pop(event.op, None)
            self.ctx.named(event.op)
            self._committed(rows, ended, incoming)
            self._drop_left_over(left_over)

        self.ctx.commit(batch, done, lambda error: self._uncommitted(event, incoming, error))

    def is_moving(self, digest: Digest) -> bool:
        """Whether a publication under way may move these bytes aside: their private copy is then the one that stays."""
        paths = {path for taken in self._taking.values() for path in taken}
        return any(place.path in paths for place in self.ctx.catalogue.places(digest))

    def _adopted(self, event: Published) -> list[Digest]:
        """What made room and was stated by another member of our NFS group only: from now on we answer for it."""
        digests = [place.digest for _, place in event.moved if self.ctx.catalogue.sharers(place.digest)]
        return [digest for digest in digests if not self._stated_by_us(digest)]

    def _displaced(self, event: Published) -> list[Digest]:
        """What the manifest believes at a path now taken, did not make room, and lies nowhere else: a crash came
        between the last rename there and its commit, or a user took the file away."""
        made_room = {place.digest for _, place in event.moved}
        before = [self.ctx.place(place.path) for _, place in event.done]
        pairs = [(old, new) for old, (_, new) in zip(before, event.done, strict=True) if old is not None]
        gone = [old for old, new in pairs if old.digest != new.digest and old.digest not in made_room]
        lost = [old.digest for old in gone if all(p.path == old.path for p in self.ctx.places(old.digest))]
        return [digest for digest in dict.fromkeys(lost) if self.ctx.holds(digest)]

    def _drop_left_over(self, places: tuple[Place, ...]) -> None:
        """Files that made room and that no version needs any more: nobody else would remove them, or take back what
        was said of them."""
        if not places:
            return
        digests = dict.fromkeys(place.digest for place in places)
        rows = Rows(holdings=tuple(self.ctx.holding(d, False) for d in digests if self._stated_by_us(d)))

        def done() -> None:
            self.tell(rows)
            self.ctx.emit(Unlink(self.ctx.still_unneeded(places)))

        self.ctx.commit(Batch(rows, forget_places=tuple(place.path for place in places)), done)

    def _stated_by_us(self, digest: Digest) -> bool:
        return any(holding.node == self.ctx.node for holding in self.ctx.catalogue.holdings(digest))

    def _committed(self, rows: Rows, ended: list[Record], incoming: Incoming | None) -> None:
        self.tell(rows)
        if incoming is not None:
            incoming.holdings += [holding for holding in rows.holdings if holding.present]
            self._finish(incoming)
        for record in ended if incoming is None else ():
            self._own_published(record)

    def _uncommitted(self, event: Published, incoming: Incoming | None, error: str) -> None:
        """The sender hears that it failed; the files have their names all the same, and the manifest must learn it."""
        self.ctx.report("error", "commit_failed", f"published artifacts are not recorded yet: {error}")
        self._unrecorded.append(event)
        if incoming is not None:
            self._finish(incoming)

    def _record_the_rest(self) -> None:
        events, self._unrecorded = self._unrecorded, []
        for event in events:
            self._record(replace(event, failed=()), None)

    def _finish(self, incoming: Incoming) -> None:
        """End a transfer: receipts for what is committed, reasons for the rest."""
        if incoming.peer != self.ctx.node:
            told = {h.digest for h in incoming.holdings}
            failed = dict(incoming.failed)
            for record in incoming.accepted():
                if record.digest not in told:
                    failed.setdefault(record.digest, "the stream ended without it")
            receipt = m.Receipt(incoming.transfer, tuple(incoming.holdings), tuple(failed.items()))
            self.ctx.send(incoming.peer, receipt)
        self._close(incoming)

    def _fail_fetch(self, incoming: Incoming, record: Record, why: str) -> None:
        if incoming.request:
            self._answer(incoming, f"{record.name} could not be fetched: {why}")
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
        self.ctx.emit(Unreserve(incoming.peer, incoming.transfer))

    # --- upkeep ---

    def session_down(self, peer: NodeId) -> None:
        """Its offers are void, begun or not: it forgets them too, and offers anew. Verified chunks stay in staging."""
        for incoming in [x for x in self.incoming.values() if x.peer == peer and not self._is_publishing(x)]:
            self._close(incoming)
        for digest in [d for d, (asked, _) in self._asked.items() if asked == peer]:
            del self._asked[digest]

    def _is_publishing(self, incoming: Incoming) -> bool:
        return any(x is incoming for x in self._publishing.values())

    def tick(self) -> None:
        now = self.ctx.now_ms
        for incoming in list(self.incoming.values()):
            if incoming.deadline_ms and now > incoming.deadline_ms and not self._is_publishing(incoming):
                self._finish(incoming)  # our own fetches have no deadline: the driver ends those that stall
        if self.recording:
            self._record_the_rest()
        for digest in [d for d, (_, until) in self._asked.items() if until <= now]:
            del self._asked[digest]
        self.pump()


def _left(moved: tuple[tuple[str, Place], ...], places: list[Place]) -> tuple[str, ...]:
    """Paths that were moved away from and are not taken again by a new place."""
    taken = {place.path for place in places}
    return tuple(path for path, _ in moved if path not in taken)
