"""What the machines of one replica share: identity, clock, catalogue, the effects of the current event.

Also the *journal*: every durable effect gets the next sequence number and a continuation that runs when `Durable`
reaches it. Until then its rows are visible here (so that a second put of the same name ranks above the first) but are
told to nobody; when it fails they are forgotten, as if never heard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import takewhile

from protocol.catalogue import VERSIONS_MAX
from protocol.clock import HybridClock, age_ms
from protocol.effects import Commit, Effect, Entry, Log, Report, Send
from protocol.fleet import Fleet, Host, Kind, Routing
from protocol.messages import Message
from protocol.recent import Recent
from protocol.values import Batch, Digest, Holding, HoldingKey, NodeId, Place, Record, RecordKey, State, StoreId, newer

COPIES_MAX = 100_000  # ten kinds from each of 10,000 members; beyond, policy is looked up each time

Continuation = Callable[[], None]
Failure = Callable[[str], None]


@dataclass(slots=True)
class Started:
    """A durable effect under way."""

    seq: int
    batch: Batch
    then: Continuation
    failed: Failure


@dataclass(slots=True)
class Context:
    """One replica's shared state. Machines read and emit through it; only `Replica.handle` sets `now_ms`."""

    node: NodeId
    store: StoreId
    fleet: Fleet
    catalogue: Recent
    clock: HybridClock = field(default_factory=HybridClock)
    now_ms: int = 0
    out: list[Effect] = field(default_factory=list)
    _seq: int = 0
    _kinds: dict[str, Kind] = field(default_factory=dict)
    _routing: Routing | None = None
    _egress: int | None = None
    notice_seconds: float = 0.0  # before the end of this machine
    adopted: dict[RecordKey, None] = field(default_factory=dict)  # at most what the WAL holds
    _copies: dict[tuple[str, NodeId], int] = field(default_factory=dict)
    _started: deque[Started] = field(default_factory=deque)
    _records: dict[str, dict[RecordKey, Record]] = field(default_factory=dict)
    _holdings: dict[HoldingKey, Holding] = field(default_factory=dict)
    _places: dict[str, tuple[Batch, Place | None]] = field(default_factory=dict)  # by path; None: being forgotten
    _coming: dict[Digest, int] = field(default_factory=dict)  # batches that make these bytes needed here
    _logging: dict[int, Digest] = field(default_factory=dict)  # by the commit that follows the entry
    _naming: dict[int, frozenset[RecordKey]] = field(default_factory=dict)  # by publication: what takes its final name

    def __post_init__(self) -> None:
        self.change_fleet(self.fleet)

    # --- facts ---

    @property
    def host(self) -> Host:
        return self.fleet.host(self.node)

    def change_fleet(self, fleet: Fleet) -> None:
        """Another hosts file is in force."""
        self.fleet = fleet
        self._kinds = {kind.name: kind for kind in fleet.kinds}
        self._routing = None
        self._egress = fleet.egress_bytes_per_second(self.node)
        self.notice_seconds = fleet.notice_seconds(self.node)
        self._copies.clear()

    @property
    def routing(self) -> Routing:
        """This node's routing; put together once for each hosts file."""
        if self._routing is None:
            self._routing = self.fleet.routing_for(self.node)
        return self._routing

    @property
    def egress_bytes_per_second(self) -> int | None:
        """This node's egress limit, None for unlimited."""
        return self._egress

    def min_copies(self, record: Record) -> int:
        """How many receipts policy asks for; remembered by kind and origin, of which there are few."""
        key = (record.kind, record.origin)
        copies = self._copies.get(key)
        if copies is None:
            kind = self.kind(record.name)
            copies = self.fleet.min_copies(kind, record.origin) if kind else self.routing.min_copies
            if len(self._copies) < COPIES_MAX:
                self._copies[key] = copies
        return copies

    @property
    def excluded(self) -> bool:
        return self.host.excluded

    def kind(self, name: str) -> Kind | None:
        return self._kinds.get(name.partition("/")[0])

    def expired(self, record: Record) -> bool:
        """Whether a version is older than its kind allows, by our clock; certificates bound how wrong that may be."""
        kind = self.kind(record.name)
        if kind is None or kind.expire_after_seconds is None:
            return False
        return age_ms(record.hlc, self.now_ms) > kind.expire_after_seconds * 1000

    def accepted_here(self, record: Record) -> bool:
        """Whether our own log answers for it: what was put here, and what was adopted from a disk of another node."""
        return record.origin == self.node or record.key in self.adopted

    # --- effects ---

    def emit(self, effect: Effect) -> None:
        self.out.append(effect)

    def report(self, level: str, event: str, message: str) -> None:
        self.out.append(Report(level, event, message))

    def send(self, peer: NodeId, message: Message) -> None:
        self.out.append(Send(peer, message))

    # --- the journal ---

    def commit(
        self, batch: Batch, then: Continuation, failed: Failure | None = None, entry: Entry | None = None
    ) -> None:
        """Start a commit (after a WAL entry, when one is given); `then` runs once both are on the disk."""
        if entry is not None:
            self._seq += 1
            self.emit(Log(self._seq, entry))
            self._logging[self._seq + 1] = entry.record.digest
        self._seq += 1
        self._show(batch)
        self.catalogue.begin(batch)
        self._started.append(Started(self._seq, batch, then, failed or self._shrug))
        self.emit(Commit(self._seq, batch))

    @property
    def committing(self) -> bool:
        """Whether anything is on its way to the disk: what was just accepted is not at risk yet, nor is it safe."""
        return bool(self._started)

    def durable(self, upto: int, refused: bool = False) -> None:
        """Everything up to here is on the disk: rows leave the overlay, continuations run in order.

        With `refused`, but for some rows that the manifest could not take: it is asked what there is.
        """
        if refused:
            self.catalogue.forget()
        self._expect(upto)
        while self._started and self._started[0].seq <= upto:
            started = self._started.popleft()
            self._hide(started.batch)
            (self.catalogue.ended if refused else self.catalogue.committed)(started.batch)
            started.then()
        self._forget_entries(upto)

    def _expect(self, upto: int) -> None:
        """Whoever hears of new versions asks who holds their bytes."""
        batches = takewhile(lambda started: started.seq <= upto, self._started)
        self.catalogue.expect(digests=(record.digest for each in batches for record in each.batch.rows.records))

    def failed(self, first: int, upto: int, error: str) -> None:
        """These are not on the disk: nothing of them was told, and now nothing of them is known."""
        self.catalogue.forget()
        while self._started and self._started[0].seq <= upto:
            started = self._started.popleft()
            self._hide(started.batch)
            self.catalogue.ended(started.batch)
            if started.seq >= first:
                started.failed(error)
        self._forget_entries(upto)

    def _forget_entries(self, upto: int) -> None:
        for seq in [seq for seq in self._logging if seq <= upto]:
            del self._logging[seq]

    def _shrug(self, error: str) -> None:
        self.report("error", "commit_failed", f"a batch of rows was not committed and is not remembered: {error}")

    def _show(self, batch: Batch) -> None:
        for record in batch.rows.records:
            self._records.setdefault(record.name, {})[record.key] = record
        for holding in batch.rows.holdings:
            self._holdings[holding.key] = holding
        for path in batch.forget_places:
            self._places[path] = (batch, None)
        for place in batch.places:
            self._places[place.path] = (batch, place)
        for digest in _bytes_of(batch):
            self._coming[digest] = self._coming.get(digest, 0) + 1

    def _hide(self, batch: Batch) -> None:
        for record in batch.rows.records:
            named = self._records.get(record.name)
            if named is not None and named.get(record.key) is record:
                del named[record.key]
                if not named:
                    del self._records[record.name]
        for holding in batch.rows.holdings:
            if self._holdings.get(holding.key) is holding:
                del self._holdings[holding.key]
        for path in [*batch.forget_places, *(place.path for place in batch.places)]:
            if path in self._places and self._places[path][0] is batch:
                del self._places[path]
        for digest in _bytes_of(batch):
            left = self._coming.pop(digest) - 1
            if left:
                self._coming[digest] = left

    # --- look-ups that see what is under way ---

    def versions(self, name: str) -> list[Record]:
        """Versions of a name, newest first, with those still on their way to the disk."""
        known = self.catalogue.versions(name)
        started = self._records.get(name)
        if not started:
            return list(known)
        merged = {record.key: record for record in known} | started
        return sorted(merged.values(), key=lambda record: record.order, reverse=True)

    def current(self, name: str) -> Record | None:
        """The newest version, whatever its state."""
        versions = self.versions(name)
        return versions[0] if versions else None

    def knows_among(self, record: Record, versions: list[Record]) -> bool:
        """As `knows_record`, when the versions of its name are at hand."""
        if len(versions) >= VERSIONS_MAX:
            return self.knows_record(record)  # the list may be cut
        return any(version.key == record.key and version.state >= record.state for version in versions)

    def under_way(self, record: Record) -> bool:
        """Whether a commit of this record, or a publication of its bytes, was started and not answered yet."""
        return self.is_naming(record) or record.key in self._records.get(record.name, {})

    def is_naming(self, record: Record) -> bool:
        """Whether a publication of its bytes is under way."""
        return any(record.key in keys for keys in self._naming.values())

    def naming(self, publication: int, records: Iterable[Record]) -> None:
        """These are being published: until the manifest has their places, a file may show what it does not know."""
        self._naming[publication] = frozenset(record.key for record in records)

    def named(self, publication: int) -> None:
        """It is answered and committed."""
        self._naming.pop(publication, None)

    def knows_record(self, record: Record) -> bool:
        """Whether this record (in this state) is committed or on its way."""
        ours = self._records.get(record.name, {}).get(record.key) or self.catalogue.record(record.key)
        return ours is not None and ours.state >= record.state

    def news(self, holding: Holding) -> bool:
        """Whether this statement replaces what we know of it."""
        key = holding.key
        return newer(self._holdings.get(key) or self.catalogue.holding(key), holding)

    def holds(self, digest: Digest) -> bool:
        """Whether our own store holds a digest, whichever member of an NFS group said so (committed or on its way)."""
        started = self._holdings.get(HoldingKey(digest, self.node, self.store))
        if started is not None:
            return started.present
        return any(holding.store == self.store for holding in self.catalogue.holdings(digest))

    def deleted(self, record: Record) -> bool:
        """Whether a tombstone of this name ranks above the record."""
        return any(v.state is State.DELETED and v.order > record.order for v in self.versions(record.name))

    def places(self, digest: Digest) -> list[Place]:
        """Where our own store has a digest, or is about to; a path about to hold other bytes, or none, is left out."""
        known = [p for p in self.catalogue.places(digest) if p.path not in self._places]
        if digest not in self._coming:
            return known
        return known + [p for _, p in self._places.values() if p is not None and p.digest == digest]

    def place(self, path: str) -> Place | None:
        """What our own store has, or is about to have, at a path."""
        started = self._places.get(path)
        return started[1] if started is not None else self.catalogue.place(path)

    def coming(self, digest: Digest) -> bool:
        """Whether a version with these bytes, or a place for them, is on its way to the disk."""
        return digest in self._coming

    def logging(self, digest: Digest) -> bool:
        """Whether a WAL entry of our own that protects these bytes is on its way to the disk."""
        return digest in self._logging.values()

    def still_unneeded(self, places: tuple[Place, ...]) -> tuple[Place, ...]:
        """Of places that were to be removed, those whose bytes no version has come to need meanwhile."""
        return tuple(p for p in places if p.digest not in self._coming and not self.catalogue.sharers(p.digest))

    def holding(self, digest: Digest, present: bool) -> Holding:
        """Our own statement about a digest, with the next number of our own sequence."""
        return Holding(self.node, self.store, digest, self.clock.stamp(self.now_ms), present)


def _bytes_of(batch: Batch) -> list[Digest]:
    """The digests that a batch makes needed here: of its live versions and of its places."""
    return [r.digest for r in batch.rows.records if r.state is State.LIVE] + [p.digest for p in batch.places]


def live(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.state is State.LIVE]
