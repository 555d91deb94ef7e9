"""What the core looked up or committed last, in memory: the manifest asked once where it was asked ten times.

The core is the only writer of the manifest, so it knows what a look-up would find: what it found before, changed by
every batch that has become durable since. `committed` repeats on the kept answers what the manifest does with a batch
(see storage/writes.py); an answer that a batch changes in a way that cannot be told from here is let go.

An answer about a digest may be read while batches are under way, and hold some of them already. Repeating those
changes nothing in the end: they come in order, and the last word is the same. What a name or a path had *before* a
batch must be exact, since it says which digests the batch concerns; so an answer about a name or a path is not kept
while a batch that changes it is under way (`begin`). After a failure, or where the manifest refused a row, everything
is let go.

Memory: five tables of at most `KEPT_MAX` answers each, of at most `ANSWER_ROWS_MAX` rows: about 20 MB when full of
records with usual names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Generic, TypeVar

from protocol.catalogue import Catalogue
from protocol.sketch import Sketch
from protocol.values import (
    Batch,
    Digest,
    Holding,
    HoldingKey,
    Member,
    NodeId,
    Place,
    Record,
    RecordKey,
    State,
    newer,
)

KEPT_MAX = 16_384  # answers of each kind: what a burst of small artifacts has under way
ANSWER_ROWS_MAX = 16  # copies and versions of one artifact: few; longer answers are looked up each time

Key = TypeVar("Key")
Answer = TypeVar("Answer")


class Kept(Generic[Key, Answer]):
    """A bounded table. Two halves: when the younger is full, the older goes; what is asked again becomes young."""

    def __init__(self) -> None:
        self._young: dict[Key, Answer] = {}
        self._old: dict[Key, Answer] = {}

    def get(self, key: Key) -> Answer | None:
        answer = self._young.get(key)
        if answer is None and key in self._old:
            answer = self._old.pop(key)
            self.put(key, answer)
        return answer

    def put(self, key: Key, answer: Answer) -> None:
        if len(self._young) >= KEPT_MAX // 2:
            self._old, self._young = self._young, {}
        self._young[key] = answer

    def drop(self, key: Key) -> None:
        self._young.pop(key, None)
        self._old.pop(key, None)

    def clear(self) -> None:
        self._young.clear()
        self._old.clear()


class Recent:
    """A `Catalogue` in front of the manifest's."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._versions: Kept[str, tuple[Record, ...]] = Kept()
        self._statements: Kept[Digest, tuple[Holding, ...]] = Kept()
        self._sharers: Kept[Digest, tuple[Record, ...]] = Kept()
        self._places: Kept[Digest, tuple[Place, ...]] = Kept()
        self._at: Kept[str, tuple[Place, ...]] = Kept()  # one place, or none
        self._changing: dict[str, int] = {}  # batches under way, by the name or the path that they change

    # --- look-ups ---

    def record(self, key: RecordKey) -> Record | None:
        versions = self._versions.get(key.name)
        if versions is None:
            return self._catalogue.record(key)
        return next((version for version in versions if version.key == key), None)

    def versions(self, name: str) -> tuple[Record, ...]:
        return _ask(self._versions, name, self._catalogue.versions, name not in self._changing)

    def sharers(self, digest: Digest) -> tuple[Record, ...]:
        return _ask(self._sharers, digest, self._catalogue.sharers)

    def statements(self, digest: Digest) -> tuple[Holding, ...]:
        return _ask(self._statements, digest, self._catalogue.statements)

    def holding(self, key: HoldingKey) -> Holding | None:
        return next((h for h in self.statements(key.digest) if h.node == key.node and h.store == key.store), None)

    def holdings(self, digest: Digest) -> tuple[Holding, ...]:
        return tuple(holding for holding in self.statements(digest) if holding.present)

    def places(self, digest: Digest) -> tuple[Place, ...]:
        return _ask(self._places, digest, self._catalogue.places)

    def place(self, path: str) -> Place | None:
        found = _ask(self._at, path, self._look_at, path not in self._changing)
        return found[0] if found else None

    def _look_at(self, path: str) -> tuple[Place, ...]:
        place = self._catalogue.place(path)
        return () if place is None else (place,)

    def member(self, node: NodeId) -> Member | None:
        return self._catalogue.member(node)

    def members(self) -> tuple[Member, ...]:
        return self._catalogue.members()

    def sketch(self) -> Sketch:
        return self._catalogue.sketch()

    # --- looking up many at once ---

    def expect(self, names: Iterable[str] = (), digests: Iterable[Digest] = (), paths: Iterable[str] = ()) -> None:
        """These names, statements and paths are about to be asked for: those not known yet are read together."""
        still = self._changing
        _expect(self._versions, (name for name in names if name not in still), self._catalogue.versions_of)
        _expect(self._statements, digests, self._catalogue.statements_of)
        _expect(self._at, (path for path in paths if path not in still), self._look_at_all)

    def versions_of(self, names: Collection[str]) -> dict[str, tuple[Record, ...]] | None:
        return self._catalogue.versions_of(names)

    def statements_of(self, digests: Collection[Digest]) -> dict[Digest, tuple[Holding, ...]] | None:
        return self._catalogue.statements_of(digests)

    def places_at(self, paths: Collection[str]) -> dict[str, Place]:
        return self._catalogue.places_at(paths)

    def _look_at_all(self, paths: Collection[str]) -> dict[str, tuple[Place, ...]] | None:
        found = self._catalogue.places_at(paths)
        return {path: (found[path],) if path in found else () for path in paths}

    # --- what changes them ---

    def begin(self, batch: Batch) -> None:
        """A batch is on its way; `committed` or `ended` follows."""
        for label in _labels(batch):
            self._changing[label] = self._changing.get(label, 0) + 1

    def ended(self, batch: Batch) -> None:
        """A batch is under way no longer, and what became of it is not known from here."""
        for label in _labels(batch):
            left = self._changing.pop(label) - 1
            if left:
                self._changing[label] = left

    def forget(self) -> None:
        """What the manifest did is not known from here: ask it again."""
        for table in (self._versions, self._statements, self._sharers, self._places, self._at):
            table.clear()

    def committed(self, batch: Batch) -> None:
        """A batch is durable: what is dropped is dropped first, as in the manifest."""
        self.ended(batch)
        for key in batch.forget_records:
            self._drop_record(key)
        for path in batch.forget_places:
            self._put_place(path, None)
        for record in batch.rows.records:
            self._put_record(record)
        for holding in batch.rows.holdings:
            self._put_holding(holding)
        for place in batch.places:
            self._put_place(place.path, place)

    def _drop_record(self, key: RecordKey) -> None:
        before = self._versions.get(key.name)
        if before is None:
            self._sharers.clear()  # whose digest it had is not known here
            return
        for version in before:
            if version.key == key:
                self._sharers.drop(version.digest)
        _keep(self._versions, key.name, tuple(version for version in before if version.key != key))

    def _put_record(self, record: Record) -> None:
        before = self._versions.get(record.name)
        if before is None:
            self._sharers.clear() if record.state is not State.LIVE else self._sharers.drop(record.digest)
            return
        key = record.key
        ours = next((version for version in before if version.key == key), None)
        if ours is not None and record.state <= ours.state:
            return
        others = [version for version in before if version is not ours]
        ranked = sorted([*others, record], key=lambda version: version.order, reverse=True)
        _keep(self._versions, record.name, tuple(ranked))
        if ours is not None:
            self._sharers.drop(ours.digest)
        self._share(record)

    def _share(self, record: Record) -> None:
        before = self._sharers.get(record.digest)
        if before is not None and record.state is State.LIVE:
            others = [sharer for sharer in before if sharer.key != record.key]
            _keep(self._sharers, record.digest, tuple(sorted([*others, record], key=lambda r: r.key)))

    def _put_holding(self, holding: Holding) -> None:
        before = self._statements.get(holding.digest)
        if before is None:
            return
        ours = next((h for h in before if h.node == holding.node and h.store == holding.store), None)
        if newer(ours, holding):
            others = [statement for statement in before if statement is not ours]
            ordered = sorted([*others, holding], key=lambda h: (h.node, h.store))
            _keep(self._statements, holding.digest, tuple(ordered))

    def _put_place(self, path: str, place: Place | None) -> None:
        before = self._at.get(path)
        if before is None:
            self._places.clear()  # which digest lay there is not known here
        for old in before or ():
            self._change_places(old.digest, path, None)
        self._at.put(path, () if place is None else (place,))
        if place is not None:
            self._change_places(place.digest, path, place)

    def _change_places(self, digest: Digest, path: str, place: Place | None) -> None:
        before = self._places.get(digest)
        if before is not None:
            others = [other for other in before if other.path != path]
            added = others if place is None else [*others, place]
            _keep(self._places, digest, tuple(sorted(added, key=lambda p: p.path)))


def _labels(batch: Batch) -> Iterator[str]:
    """The names and paths that a batch changes. One that is both is merely looked up a little more often."""
    for key in batch.forget_records:
        yield key.name
    yield from batch.forget_places
    for record in batch.rows.records:
        yield record.name
    for place in batch.places:
        yield place.path


def _ask(
    kept: Kept[Key, tuple[Answer, ...]], key: Key, look_up: Callable[[Key], tuple[Answer, ...]], keep: bool = True
) -> tuple[Answer, ...]:
    answer = kept.get(key)
    if answer is None:
        answer = look_up(key)
        if keep:
            _keep(kept, key, answer)
    return answer


def _keep(kept: Kept[Key, tuple[Answer, ...]], key: Key, answer: tuple[Answer, ...]) -> None:
    """Keep an answer, unless it is long: a longer one may also be cut, and then a batch would not complete it."""
    if len(answer) <= ANSWER_ROWS_MAX:
        kept.put(key, answer)
    else:
        kept.drop(key)


def _expect(
    kept: Kept[Key, tuple[Answer, ...]],
    keys: Iterable[Key],
    look_up: Callable[[Collection[Key]], dict[Key, tuple[Answer, ...]] | None],
) -> None:
    """Keep the answers for those keys of which none is kept; as many as the table takes without losing them again."""
    unknown = [key for key in dict.fromkeys(keys) if kept.get(key) is None][: KEPT_MAX // 2]
    if len(unknown) > 1:
        for key, answer in (look_up(unknown) or {}).items():
            _keep(kept, key, answer)
