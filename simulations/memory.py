"""The manifest in memory, for simulated nodes: the same look-ups and the same rules as `storage.manifest`.

One contract suite tests both. Everything that is iterated is sorted or was put in order, so that a seed gives the same
trace everywhere. `snapshot` and `restore` stand for a crash: what was committed when the snapshot was taken is what the
node finds when it comes up again.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from protocol.catalogue import HOLDERS_MAX, MANY_ROWS_MAX, SHARERS_MAX, VERSIONS_MAX
from protocol.fingerprints import (
    PREFIX_BYTES,
    PREFIXES,
    cluster_key,
    holding_fingerprint,
    member_fingerprint,
    record_fingerprint,
)
from protocol.messages import Prints
from protocol.sketch import Sketch
from protocol.values import (
    NO_DIGEST,
    Batch,
    Digest,
    Holding,
    HoldingKey,
    Member,
    NodeId,
    Place,
    Record,
    RecordKey,
    Rows,
    State,
    newer,
)

PAGE_ROWS_MAX = 1_000  # as the agent's manifest pages them
LAST_PAGE = (PREFIXES, PREFIXES + 1)  # of rows without bytes
CELLS = 512  # resolves 300 differences; beyond, pages of fingerprints. A thousand nodes of 16,384 cells would be 260 MB

Row = Record | Holding | Member
Page = tuple[tuple[Record, tuple[Holding, ...]], ...]
Key = TypeVar("Key", RecordKey, HoldingKey, str)
Indexed = TypeVar("Indexed", str, bytes)
Value = TypeVar("Value")


@dataclass(slots=True)
class Tables:
    """All that is committed. Values are immutable, so that a copy of the dictionaries is a copy of the state."""

    records: dict[RecordKey, Record] = field(default_factory=dict)
    names: dict[str, tuple[RecordKey, ...]] = field(default_factory=dict)
    sharers: dict[Digest, tuple[RecordKey, ...]] = field(default_factory=dict)  # of live records
    holdings: dict[HoldingKey, Holding] = field(default_factory=dict)
    statements: dict[Digest, tuple[HoldingKey, ...]] = field(default_factory=dict)
    holders: dict[Digest, tuple[HoldingKey, ...]] = field(default_factory=dict)  # present ones
    members: dict[NodeId, Member] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    paths: dict[Digest, tuple[str, ...]] = field(default_factory=dict)
    prints: dict[int, Row] = field(default_factory=dict)  # every row that has a fingerprint, by it
    last_hlc: int = 0

    def copy(self) -> Tables:
        return Tables(
            dict(self.records),
            dict(self.names),
            dict(self.sharers),
            dict(self.holdings),
            dict(self.statements),
            dict(self.holders),
            dict(self.members),
            dict(self.places),
            dict(self.paths),
            dict(self.prints),
            self.last_hlc,
        )


class MemoryCatalogue:
    """A `Catalogue` over dictionaries that also takes batches, as the manifest of `node` in `cluster` would."""

    def __init__(self, cluster: str, node: NodeId, cells: int = CELLS) -> None:
        self._key = cluster_key(cluster)
        self._node = node
        self._tables = Tables()
        self._sketch = Sketch(self._key, cells)
        self._sorted: list[RecordKey] | None = None  # record keys in order; None when they changed

    # A crash

    def snapshot(self) -> Tables:
        """What is committed now; later batches do not reach it."""
        return self._tables.copy()

    @property
    def tables(self) -> Tables:
        """What is committed, to be read at once: a look at all rows need not copy them."""
        return self._tables

    def restore(self, tables: Tables) -> None:
        """Be what the snapshot was; it can be restored again."""
        self._tables = tables.copy()
        self._sorted = None
        self._sketch = Sketch(self._key, len(self._sketch))
        self._sketch.apply(list(tables.prints))

    def adopt(self, other: MemoryCatalogue) -> None:
        """Have what another has: a thousand nodes that know the same are made from one."""
        self._tables, self._sketch, self._sorted = other._tables.copy(), other._sketch.copy(), None
        own = self._tables.members.get(self._node)
        self._tables.last_hlc = own.seq if own is not None else 0

    # Look-ups

    def record(self, key: RecordKey) -> Record | None:
        return self._tables.records.get(RecordKey(*key))

    def versions(self, name: str) -> tuple[Record, ...]:
        keys = self._tables.names.get(name, ())
        return tuple(self._tables.records[key] for key in reversed(keys[-VERSIONS_MAX:]))

    def sharers(self, digest: Digest) -> tuple[Record, ...]:
        return tuple(self._tables.records[key] for key in self._tables.sharers.get(digest, ())[:SHARERS_MAX])

    def holding(self, key: HoldingKey) -> Holding | None:
        return self._tables.holdings.get(HoldingKey(*key))

    def holdings(self, digest: Digest) -> tuple[Holding, ...]:
        return tuple(self._tables.holdings[key] for key in self._tables.holders.get(digest, ())[:HOLDERS_MAX])

    def statements(self, digest: Digest) -> tuple[Holding, ...]:
        keys = self._tables.statements.get(digest, ())[:HOLDERS_MAX]
        return tuple(self._tables.holdings[key] for key in keys)

    def versions_of(self, names: Collection[str]) -> dict[str, tuple[Record, ...]] | None:
        return _bounded({name: self.versions(name) for name in names})

    def statements_of(self, digests: Collection[Digest]) -> dict[Digest, tuple[Holding, ...]] | None:
        return _bounded({digest: self.statements(digest) for digest in digests})

    def places_at(self, paths: Collection[str]) -> dict[str, Place]:
        return {path: self._tables.places[path] for path in paths if path in self._tables.places}

    def member(self, node: NodeId) -> Member | None:
        return self._tables.members.get(node)

    def members(self) -> tuple[Member, ...]:
        return tuple(self._tables.members[node] for node in sorted(self._tables.members))

    def places(self, digest: Digest) -> tuple[Place, ...]:
        return tuple(self._tables.places[path] for path in self._tables.paths.get(digest, ()))

    def place(self, path: str) -> Place | None:
        return self._tables.places.get(path)

    def sketch(self) -> Sketch:
        return self._sketch

    def last_hlc(self) -> int:
        return self._tables.last_hlc

    # Batches

    def apply(self, batches: Sequence[Batch]) -> None:
        """Commit batches in order; within each, what is dropped is dropped first."""
        for batch in batches:
            for key in batch.forget_records:
                self._drop_record(RecordKey(*key))
            for path in batch.forget_places:
                self._drop_place(path)
            for record in batch.rows.records:
                self._put_record(record)
            for holding in batch.rows.holdings:
                self._put_holding(holding)
            for member in batch.rows.members:
                self._put_member(member)
            for place in batch.places:
                self._drop_place(place.path)
                self._tables.places[place.path] = place
                _insert(self._tables.paths, place.digest, place.path)

    def _put_record(self, record: Record) -> None:
        ours = self._tables.records.get(record.key)
        if ours is not None and record.state <= ours.state:
            return
        self._drop_record(record.key)
        self._tables.records[record.key] = record
        _insert(self._tables.names, record.name, record.key)
        if record.state is State.LIVE:
            _insert(self._tables.sharers, record.digest, record.key)
        self._note(record_fingerprint(self._key, record), record)
        self._stamp(record.origin, record.hlc)
        self._sorted = None

    def _drop_record(self, key: RecordKey) -> None:
        record = self._tables.records.pop(key, None)
        if record is None:
            return
        _remove(self._tables.names, record.name, key)
        _remove(self._tables.sharers, record.digest, key)
        self._strike(record_fingerprint(self._key, record))
        self._sorted = None

    def _put_holding(self, holding: Holding) -> None:
        ours = self._tables.holdings.get(holding.key)
        if not newer(ours, holding):
            return
        self._tables.holdings[holding.key] = holding
        if ours is None:
            _insert(self._tables.statements, holding.digest, holding.key)
        self._stamp(holding.node, holding.seq)
        was = ours is not None and ours.present
        if holding.present == was:
            return
        if holding.present:
            self._note(holding_fingerprint(self._key, holding), holding)
            _insert(self._tables.holders, holding.digest, holding.key)
        else:
            self._strike(holding_fingerprint(self._key, holding))
            _remove(self._tables.holders, holding.digest, holding.key)

    def _put_member(self, member: Member) -> None:
        ours = self._tables.members.get(member.node)
        if newer(ours, member):
            if ours is not None:
                self._strike(member_fingerprint(self._key, ours))
            self._note(member_fingerprint(self._key, member), member)
            self._tables.members[member.node] = member
            self._stamp(member.node, member.seq)

    def _drop_place(self, path: str) -> None:
        place = self._tables.places.pop(path, None)
        if place is not None:
            _remove(self._tables.paths, place.digest, path)

    def _note(self, fingerprint: int, row: Row) -> None:
        self._tables.prints[fingerprint] = row
        self._sketch.add(fingerprint)

    def _strike(self, fingerprint: int) -> None:
        del self._tables.prints[fingerprint]
        self._sketch.remove(fingerprint)

    def _stamp(self, node: NodeId, hlc: int) -> None:
        if node == self._node:
            self._tables.last_hlc = max(self._tables.last_hlc, hlc)

    # Pages

    def scan(self, after: tuple[str, int, str], limit: int) -> tuple[Page, bool]:
        """At most `limit` records after a key, in key order, with their present holdings; True when none follow."""
        if self._sorted is None:
            self._sorted = sorted(self._tables.records)
        start = bisect_right(self._sorted, RecordKey(*after))
        records = [self._tables.records[key] for key in self._sorted[start : start + limit]]
        page = tuple((record, self._present(record.digest)) for record in records)
        return page, start + limit >= len(self._sorted)

    def _present(self, digest: Digest) -> tuple[Holding, ...]:
        return tuple(self._tables.holdings[key] for key in self._tables.holders.get(digest, ()))

    def rows_pages(self, page_rows: int = PAGE_ROWS_MAX) -> Iterator[Rows]:
        """Every committed row, withdrawn holdings too, in pages of one table each."""
        for record_page in _pages(self._tables.records, page_rows):
            yield Rows(records=record_page)
        for holding_page in _pages(self._tables.holdings, page_rows):
            yield Rows(holdings=holding_page)
        for member_page in _pages(self._tables.members, page_rows):
            yield Rows(members=member_page)

    # Differences

    def rows_of(self, fingerprints: Iterable[int]) -> Rows:
        """The rows with these fingerprints, as far as they are here."""
        prints = self._tables.prints
        return _rows([prints[fingerprint] for fingerprint in fingerprints if fingerprint in prints])

    def prints_pages(self, page_rows: int = PAGE_ROWS_MAX) -> Iterator[Prints]:
        """All fingerprints, ascending, in pages that leave no gap between them."""
        printed = sorted((_page_of(row), fingerprint) for fingerprint, row in self._tables.prints.items())
        step = max(1, PREFIXES * page_rows // (len(printed) + 1))
        for first, end in [*((at, min(at + step, PREFIXES)) for at in range(0, PREFIXES, step)), LAST_PAGE]:
            yield Prints(first, end, tuple(fingerprint for page, fingerprint in printed if first <= page < end))

    def compare(self, page: Prints) -> tuple[Rows, tuple[int, ...]]:
        """(our rows that the page lacks, fingerprints in it that we lack)."""
        theirs = dict.fromkeys(page.fingerprints)
        ours = self._tables.prints
        missing = [row for fingerprint, row in ours.items() if fingerprint not in theirs]
        missing = [row for row in missing if page.first <= _page_of(row) < page.end]
        return _rows(missing), tuple(fingerprint for fingerprint in theirs if fingerprint not in ours)


def _page_of(row: Row) -> int:
    """The prefix of its digest; rows without live bytes are on the page behind all prefixes."""
    gone = isinstance(row, Record) and row.state is not State.LIVE
    if isinstance(row, Member) or gone or row.digest == NO_DIGEST:
        return PREFIXES
    return int.from_bytes(row.digest[:PREFIX_BYTES], "big")


def _rows(rows: Sequence[Row]) -> Rows:
    return Rows(
        tuple(row for row in rows if isinstance(row, Record)),
        tuple(row for row in rows if isinstance(row, Holding)),
        tuple(row for row in rows if isinstance(row, Member)),
    )


def _bounded(answers: dict[Indexed, tuple[Value, ...]]) -> dict[Indexed, tuple[Value, ...]] | None:
    return answers if sum(map(len, answers.values())) <= MANY_ROWS_MAX else None


def _pages(table: dict[Key, Value], page_rows: int) -> Iterator[tuple[Value, ...]]:
    keys = sorted(table)
    for start in range(0, len(keys), page_rows):
        yield tuple(table[key] for key in keys[start : start + page_rows])


def _insert(index: dict[Indexed, tuple[Key, ...]], at: Indexed, key: Key) -> None:
    """Add to a sorted entry of an index; entries are short, and immutable for the sake of snapshots."""
    keys = list(index[at]) if at in index else []
    insort(keys, key)
    index[at] = tuple(keys)


def _remove(index: dict[Indexed, tuple[Key, ...]], at: Indexed, key: Key) -> None:
    """Take out of an index what may not be in it; an entry that becomes empty goes."""
    if at in index:
        index[at] = tuple(entry for entry in index[at] if entry != key)
        if not index[at]:
            del index[at]
