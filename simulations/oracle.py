"""The oracle: stands outside the nodes, notes what was promised, and says which promise was broken.

It sees what a user and a peer see (answers, messages) and what is really on the disks, never what a node believes. Most
rules are checked at the moment when a node says or does something; `simulations.verdict` checks the rest at the end.
Convergence alone would pass vacuously: the oracle also counts what was accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from protocol import messages as m
from protocol.clock import SCANNED_MAX
from protocol.effects import Answer, Entry, Inline, Publish, Referenced, Report
from protocol.fleet import Fleet, Kind
from protocol.messages import Message
from protocol.names import OWN_FOLDER
from protocol.values import (
    Batch,
    Digest,
    Holding,
    HoldingKey,
    NodeId,
    Place,
    Record,
    RecordKey,
    Rows,
    State,
)
from simulations.disks import LocalDisk, StoreDisk
from simulations.schedule import Schedule

VIOLATIONS_MAX = 50  # more say nothing new about a seed


@dataclass(slots=True)
class Promise:
    """Bytes were accepted under a name; whoever said so answers for them while its disk lives."""

    record: Record
    guarantors: dict[NodeId, None] = field(default_factory=dict)
    referenced: bool = False
    outlives: bool = False  # when its last guarantor vanished, another disk had it and knew its name


@dataclass(slots=True)
class Request:
    """A client that waits for an answer."""

    node: NodeId
    what: str
    name: str
    digest: Digest | None
    copies: int = 0
    deadline_ms: int = 0


class Oracle:
    """What was promised, by whom, and whether it was kept so far."""

    def __init__(self, schedule: Schedule, fleet: Fleet) -> None:
        self.schedule = schedule
        self.fleet = fleet
        self.stores: dict[NodeId, StoreDisk] = {}
        self.disks: dict[NodeId, LocalDisk] = {}
        self.violations: list[str] = []
        self.promises: dict[tuple[str, Digest], Promise] = {}
        self.records: dict[RecordKey, Record] = {}  # every record that any disk ever had
        self.by_name: dict[str, dict[RecordKey, Record]] = {}
        self.requests: dict[int, Request] = {}
        self.reports: dict[str, int] = {}
        self.answers: dict[str, int] = {}
        self.accepted_at_ms: dict[RecordKey, int] = {}
        self.depth: dict[tuple[NodeId, RecordKey], int] = {}  # messages a record took to a node
        self._hop: dict[RecordKey, dict[NodeId, int]] = {}
        self._committed: dict[NodeId, dict[RecordKey, None]] = {}
        self._stated: dict[tuple[HoldingKey, int], bool] = {}
        self._authored: dict[tuple[HoldingKey, int], None] = {}
        self.gone: dict[NodeId, int] = {}  # machines that will not come back, since when
        self.unknown_files: dict[tuple[NodeId, str], None] = {}  # private ones that an old image's manifest lacks
        self.delays_ms: Counter[int] = Counter()  # from a record's first commit to its commit at each other node
        self._first_ms: dict[RecordKey, int] = {}
        self.were_set_back: dict[NodeId, None] = {}  # machines that run from an old image
        self.on_commit: Callable[[NodeId, Batch], None] = lambda node, batch: None
        self.on_sending: Callable[[NodeId, NodeId, Message], None] = lambda node, peer, message: None
        self._request = 0
        self._promised: dict[Digest, list[tuple[str, Digest]]] = {}  # the keys of `promises`, by digest
        self._distinct: list[StoreDisk] = []
        self._checked: tuple[NodeId, Rows, int] | None = None  # whose news was looked at last, and when

    def join(self, node: NodeId, store: StoreDisk, disk: LocalDisk) -> None:
        self.stores[node] = store
        self.disks[node] = disk
        self._committed[node] = {}
        if all(known.store != store.store for known in self._distinct):
            self._distinct.append(store)

    def violation(self, sentence: str) -> None:
        line = f"at {self.schedule.now_ms} ms: {sentence}"
        if len(self.violations) < VIOLATIONS_MAX and line not in self.violations:
            self.violations.append(line)

    # --- what is accepted ---

    def ask(self, request: Request) -> int:
        self._request += 1
        self.requests[self._request] = request
        return self._request

    def logging(self, node: NodeId, record: Record) -> None:
        """A version written with knowledge ranks above all that its node knows: no clock may put it below."""
        versions = self.disks[node].catalogue.versions(record.name)
        if record.hlc >= SCANNED_MAX and versions and versions[0].order > record.order:
            self.violation(f"{node} stamped a new version of {record.name} below the one it replaces")

    def published_file_found(self, node: NodeId, name: str, digest: Digest) -> None:
        """Old never beats new: what we published ourselves must not come back as a user's new version."""
        versions = self.disks[node].catalogue.versions(name)
        if versions and versions[0].digest != digest:
            self.violation(f"{node} takes a file of {name} that it published for a new version")

    def logged(self, node: NodeId, entry: Entry) -> None:
        """The WAL entry is on the disk and the node has been told so: from now on it answers for the bytes."""
        self._know(entry.record)
        self.accepted_at_ms.setdefault(entry.record.key, self.schedule.now_ms)
        self._hop.setdefault(entry.record.key, {})[node] = 0
        self._promise(node, entry.record, isinstance(entry.source, Referenced))

    def _promise(self, node: NodeId, record: Record, referenced: bool) -> None:
        key = (record.name, record.digest)
        if key not in self.promises:
            self.promises[key] = Promise(record)
            self._promised.setdefault(record.digest, []).append(key)
        promise = self.promises[key]
        promise.referenced = (promise.referenced or not promise.guarantors) and referenced
        promise.guarantors[node] = None

    def booted(self, node: NodeId, pending: Iterable[Entry]) -> None:
        for entry in pending:
            self._know(entry.record)
            self._hop.setdefault(entry.record.key, {})[node] = 0

    def committed(self, node: NodeId, batch: Batch) -> None:
        """A group of this node reached its manifest."""
        self.on_commit(node, batch)
        for record in batch.rows.records:
            self._know(record)
            if record.key not in self._committed[node]:
                self._committed[node][record.key] = None
                first_ms = self._first_ms.setdefault(record.key, self.schedule.now_ms)
                self.delays_ms[self.schedule.now_ms - first_ms] += 1
        for holding in batch.rows.holdings:
            if holding.node == node:
                self._state(holding)

    def committed_by(self, node: NodeId) -> dict[RecordKey, None]:
        """Every record that this node's manifest ever had."""
        return self._committed[node]

    def _know(self, record: Record) -> None:
        known = self.records.setdefault(record.key, record)
        self.by_name.setdefault(record.name, {})[record.key] = record
        if known.digest != record.digest:
            self.violation(f"the stamp {record.hlc} of {record.origin} stands for two digests of {record.name}")

    def _state(self, holding: Holding) -> None:
        self._authored[holding.key, holding.seq] = None
        before = self._stated.setdefault((holding.key, holding.seq), holding.present)
        if before != holding.present:
            self.violation(f"{holding.node} stated two things under the number {holding.seq}")

    # --- what is said ---

    def sending(self, node: NodeId, peer: NodeId, message: Message) -> None:
        self.on_sending(node, peer, message)
        if isinstance(message, m.RowsMessage):
            self._told_rows(node, peer, message.rows)
        elif isinstance(message, m.Receipt):
            for holding in message.holdings:
                self._told_holding(node, holding)
        elif isinstance(message, m.Offer):
            for parcel in message.parcels:
                self._told_record(node, peer, parcel.record)
            if self.fleet.host(peer).excluded and not message.answers:
                self.violation(f"{node} offered artifacts to {peer}, which is excluded from sync")

    def _told_rows(self, node: NodeId, peer: NodeId, rows: Rows) -> None:
        """What goes to many peers in one moment is looked at once; how far each record came is noted for each."""
        for record in rows.records:
            self._told_record(node, peer, record)
        said = self._checked
        if said is None or said[1] is not rows or said[0] != node or said[2] != self.schedule.now_ms:
            self._checked = (node, rows, self.schedule.now_ms)
            for holding in rows.holdings:
                self._told_holding(node, holding)

    def _told_record(self, node: NodeId, peer: NodeId, record: Record) -> None:
        if record.key not in self._committed[node]:
            self.violation(f"{node} told {peer} of {record.name} before it was on its disk")
        hops = self._hop.setdefault(record.key, {})
        if node in hops and peer not in hops:
            hops[peer] = hops[node] + 1

    def _told_holding(self, node: NodeId, holding: Holding) -> None:
        if (holding.key, holding.seq) not in self._authored:
            self.violation(f"{node} told a holding of {holding.node} that {holding.node} never committed")
        if self.fleet.host(holding.node).excluded and holding.present:
            self.violation(f"{holding.node} is excluded from sync and states that it holds something")
        if holding.node == node and holding.present and self._is_newest(node, holding):
            store = self.stores[node]
            unaware = holding.digest in store.by_user or (
                store.shared and store.by_mate.get(holding.digest, node) != node
            )
            if not store.holds(holding.digest) and not unaware:
                self.violation(f"{node} stated that it holds {_short(holding.digest)}, and its disk does not")

    def _is_newest(self, node: NodeId, holding: Holding) -> bool:
        current = self.disks[node].catalogue.holding(holding.key)
        return current is None or current.seq <= holding.seq

    def hops(self) -> int:
        return max((hop for hops in self._hop.values() for hop in hops.values()), default=0)

    # --- what is answered ---

    def answered(self, node: NodeId, answer: Answer) -> None:
        request = self.requests.pop(answer.request, None)
        if request is None:
            self.violation(f"{node} answered request {answer.request}, which nobody waits for")
            return
        self.answers[f"{request.what}:{'error' if answer.error else 'ok'}"] = (
            self.answers.get(f"{request.what}:{'error' if answer.error else 'ok'}", 0) + 1
        )
        if answer.error or answer.record is None:
            return
        if request.what == "put":
            self._put_answered(node, request, answer.record)
        if request.copies:
            self._wait_answered(node, request, answer.record)

    def _put_answered(self, node: NodeId, request: Request, record: Record) -> None:
        if request.digest is not None and record.digest != request.digest:
            self.violation(f"{node} accepted {request.name} and answered with other bytes")
        disk, store = self.disks[node], self.stores[node]
        safe = record.key in disk.wal or store.holds(record.digest) or self.copies(record) >= self.needed(record)
        if not safe and record.digest not in store.by_user and not self.superseded(record):  # while somebody waited
            self.violation(f"{node} answered that {request.name} is accepted, and its disk does not have it")
        self._promise(node, record, False)

    def _wait_answered(self, node: NodeId, request: Request, record: Record) -> None:
        have = self.copies(record)
        if have < request.copies:
            self.violation(
                f"{node} answered that {request.name} has {request.copies} receipts, and {have} other stores have it"
            )

    def needed(self, record: Record) -> int:
        kind = self.kind(record.name)
        return self.fleet.min_copies(kind, record.origin) if kind else self.fleet.routing.min_copies

    def kind(self, name: str) -> Kind | None:
        return self.fleet.kind_of(name)

    def copies(self, record: Record) -> int:
        """Distinct stores, the origin's left out, that have or once had these bytes verified and synced."""
        own = self.stores[record.origin].store
        stores = self.distinct_stores()
        return sum(record.digest in store.held_since for store in stores if store.store != own)

    def distinct_stores(self) -> list[StoreDisk]:
        """Every store once, in the order in which their first nodes joined."""
        return self._distinct

    # --- what is done ---

    def released(self, node: NodeId, record: Record) -> None:
        """A WAL entry may go only when the artifact is durable, superseded, or lost through its user."""
        if record.key not in self.disks[node].wal or record.key in self.disks[node].released:
            return
        broken = record.digest in self.stores[node].by_user
        if self.copies(record) < self.needed(record) and not self.superseded(record) and not broken:
            have = f"{self.copies(record)} receipts of {self.needed(record)}"
            self.violation(f"{node} released {record.name} from its WAL with {have}")

    def superseded(self, record: Record) -> bool:
        """Whether the versions that exist let this one go: a tombstone above it, or enough newer ones."""
        newer = [r for r in self.by_name.get(record.name, {}).values() if r.order > record.order]
        kind = self.kind(record.name)
        return any(r.state is State.DELETED for r in newer) or len(newer) >= (kind.versions if kind else 1)

    def unlinking(self, node: NodeId, places: Iterable[Place]) -> None:
        store = self.stores[node]
        for place in places:
            if not store.stands(place):
                continue
            here = any(path != place.path for path in store.paths_of(place.digest))
            if not here and not self.elsewhere(place.digest, store) and self.required(place.digest):
                self.violation(f"{node} removed the last copy of {_short(place.digest)} ({place.path})")
            elif not here:
                self._giving_up(node, store, place.digest)

    def _giving_up(self, node: NodeId, store: StoreDisk, digest: Digest) -> None:
        """A copy made for others goes only while enough other disks have one; unless one of those was just taken away
        by a user or with its machine, which nobody can have known."""
        taken = [s for s in self._distinct if digest in s.by_user or (s.gone and digest in s.held_since)]
        for record in self.required(digest) if not taken else ():
            if record.origin == node or self.fleet.host(node).excluded:
                continue
            if self.disks[node].catalogue.record(record.key) is None:
                continue  # put again elsewhere, which it has not heard of: it goes by a delete, or by its count
            own = self.stores[record.origin].store
            left = [s for s in self._distinct if s is not store and s.store != own and s.holds(digest)]
            if len(left) < self.needed(record):
                self.violation(f"{node} gave up its copy of {record.name} while only {len(left)} others have one")

    def required(self, digest: Digest) -> list[Record]:
        """The accepted records with these bytes that no rule lets go."""
        return [promise.record for promise in self.promised(digest) if not self.superseded(self.newest_with(promise))]

    def promised(self, digest: Digest) -> list[Promise]:
        """Every promise of these bytes, under whichever name."""
        return [self.promises[key] for key in self._promised.get(digest, ())]

    def newest_with(self, promise: Promise) -> Record:
        """Bytes put again under the same name are a new version: that one counts."""
        same = [
            record
            for record in self.by_name.get(promise.record.name, {}).values()
            if record.digest == promise.record.digest
        ]
        return max(same, key=lambda record: record.order, default=promise.record)

    def elsewhere(self, digest: Digest, but: StoreDisk | None = None) -> bool:
        """Whether any disk that still exists has the bytes, where its node can find them."""
        if any(self._has(node, digest) for node, store in sorted(self.stores.items()) if store is not but):
            return True
        return any(node not in self.gone and self.has_inline(self.disks[node], digest) for node in sorted(self.disks))

    def _has(self, node: NodeId, digest: Digest) -> bool:
        store = self.stores[node]
        return store.holds(digest) and any((node, p) not in self.unknown_files for p in store.paths_of(digest))

    def has_inline(self, disk: LocalDisk, digest: Digest) -> bool:
        return any(entry.record.digest == digest and isinstance(entry.source, Inline) for entry in disk.pending())

    def reserving(self, node: NodeId, peer: NodeId, room: tuple[bool, bool] | None) -> None:
        if peer != node and not (room and room[0]):
            self.violation(f"{node} takes bytes of {peer} although its disk was said to be at its cap")
        if peer != node and self.fleet.host(node).excluded:
            self.violation(f"{node} is excluded from sync and takes bytes of {peer}")

    def reserved(self, node: NodeId, used_bytes: int, cap_bytes: int, refused: tuple[str, ...]) -> None:
        if not all(refused) and used_bytes > cap_bytes:
            self.violation(f"{node} reserved room up to {used_bytes} bytes, over its cap of {cap_bytes}")

    def publishing(self, node: NodeId, effect: Publish) -> None:
        if self.fleet.host(node).excluded:
            self.violation(f"{node} is excluded from sync and publishes {effect.items[0].record.name}")

    def left(self, node: NodeId, unsafe: tuple[Record, ...]) -> None:
        """A node that leaves names everything that only it has."""
        named = {record.key: None for record in unsafe}
        for key, entry in self.disks[node].wal.items():
            record = entry.record
            forgotten = key not in named and key not in self.disks[node].released
            if forgotten and self.copies(record) < self.needed(record) and not self.superseded(record):
                self.violation(f"{node} left without naming {record.name}, which is not durable")

    def vanished(self, node: NodeId) -> None:
        """A machine is gone for good: what others held at that moment must stay, the rest died with it."""
        self.gone[node] = self.schedule.now_ms
        self._outlive()

    def _outlive(self) -> None:
        for promise in self.promises.values():
            if all(guarantor in self.gone for guarantor in promise.guarantors):
                record = self.newest_with(promise)
                promise.outlives = any(
                    self.stores[other].holds(record.digest) and record.key in self._committed[other]
                    for other in sorted(self.stores)
                )

    def set_back(self, node: NodeId) -> None:
        """A machine was restored from an old image: it answers for what that image has, and for nothing later."""
        store, disk = self.stores[node], self.disks[node]
        self.were_set_back[node] = None
        self._committed[node] = dict.fromkeys(disk.catalogue.tables.records)
        known = disk.catalogue.tables.places
        private = [path for path in store.files if path.startswith(OWN_FOLDER + "/") and path not in known]
        self.unknown_files |= dict.fromkeys((node, path) for path in private)
        for promise in self.promises.values():
            digest = promise.record.digest
            if node in promise.guarantors and not self._has(node, digest) and not self.has_inline(disk, digest):
                del promise.guarantors[node]
        self._outlive()

    def down(self, node: NodeId) -> None:
        """Its clients lost their connections; what they were not told was not promised."""
        for number in [number for number, request in self.requests.items() if request.node == node]:
            del self.requests[number]

    def reported(self, node: NodeId, report: Report) -> None:
        self.reports[report.event] = self.reports.get(report.event, 0) + 1


def _short(digest: Digest) -> str:
    return digest.hex()[:12]
