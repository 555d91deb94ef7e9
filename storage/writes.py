"""The statements that a group of batches comes down to, and the rules by which rows replace each other.

Within a batch, what is dropped is dropped first, then rows are put. Batches count in order. The rules stand in
the statements themselves (ON CONFLICT), so that no caller can go round them:
- a record replaces the one under its key only with a higher state (live < deleted < expired), else the first stays;
- a holding and a member replace theirs only with a higher sequence;
- a place replaces the place at its path.
"""

# ruff: noqa: S608 - statements are put together from this package's own column lists; values are always bound

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from protocol.values import Batch, Place, Record, RecordKey, Rows
from storage.manifest_rows import (
    HOLDING_COLUMNS,
    HOLDING_WIDTH,
    MEMBER_COLUMNS,
    MEMBER_WIDTH,
    PLACE_COLUMNS,
    PLACE_WIDTH,
    RECORD_COLUMNS,
    RECORD_WIDTH,
    Row,
    holding_row,
    member_row,
    place_row,
    record_row,
)

Statement = tuple[str, Iterable[Row]]  # for executemany; the rows are made in the writer's thread


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _replaced(columns: str, keys: tuple[str, ...]) -> str:
    return ", ".join(f"{column} = excluded.{column}" for column in columns.split(", ") if column not in keys)


_FORGET_RECORD = "DELETE FROM records WHERE name = ? AND hlc = ? AND origin = ?"
_FORGET_PLACE = "DELETE FROM places WHERE path = ?"
_PUT_RECORD = (
    f"INSERT INTO records ({RECORD_COLUMNS}) VALUES ({_marks(RECORD_WIDTH)}) ON CONFLICT DO UPDATE SET "
    f"{_replaced(RECORD_COLUMNS, ('name', 'hlc', 'origin'))} WHERE excluded.state > records.state"
)
_PUT_HOLDING = (
    f"INSERT INTO holdings ({HOLDING_COLUMNS}) VALUES ({_marks(HOLDING_WIDTH)}) ON CONFLICT DO UPDATE SET "
    "seq = excluded.seq, present = excluded.present WHERE excluded.seq > holdings.seq"
)
_PUT_MEMBER = (
    f"INSERT INTO members ({MEMBER_COLUMNS}) VALUES ({_marks(MEMBER_WIDTH)}) ON CONFLICT DO UPDATE SET "
    f"{_replaced(MEMBER_COLUMNS, ('node',))} WHERE excluded.seq > members.seq"
)
_PUT_PLACE = (
    f"INSERT INTO places ({PLACE_COLUMNS}) VALUES ({_marks(PLACE_WIDTH)}) ON CONFLICT DO UPDATE SET "
    f"{_replaced(PLACE_COLUMNS, ('path',))}"
)


def statements(batches: Sequence[Batch]) -> list[Statement]:
    """One `executemany` per table and direction, however many batches there are."""
    forgotten, records = _net_records(batches)
    dropped, places = _net_places(batches)
    found: list[tuple[bool, Statement]] = [
        (bool(forgotten), (_FORGET_RECORD, forgotten)),
        (bool(dropped), (_FORGET_PLACE, ((path,) for path in dropped))),
        (any(b.rows.records for b in batches), (_PUT_RECORD, map(record_row, records))),
        (
            any(b.rows.holdings for b in batches),
            (_PUT_HOLDING, (holding_row(h) for b in batches for h in b.rows.holdings)),
        ),
        (
            any(b.rows.members for b in batches),
            (_PUT_MEMBER, (member_row(m) for b in batches for m in b.rows.members)),
        ),
        (bool(places), (_PUT_PLACE, map(place_row, places))),
    ]
    return [statement for needed, statement in found if needed]


def _net_records(batches: Sequence[Batch]) -> tuple[list[RecordKey], Iterable[Record]]:
    """Which keys to drop first and which records to put then, for the same end as one batch after the other."""
    if not any(batch.forget_records for batch in batches):
        return [], chain.from_iterable(batch.rows.records for batch in batches)
    forgotten: dict[RecordKey, None] = {}
    puts: dict[RecordKey, list[Record]] = {}
    for batch in batches:
        for key in batch.forget_records:
            forgotten[key] = None
            puts.pop(key, None)
        for record in batch.rows.records:
            puts.setdefault(record.key, []).append(record)
    return list(forgotten), chain.from_iterable(puts.values())


def _net_places(batches: Sequence[Batch]) -> tuple[list[str], list[Place]]:
    """The same for places: of each path only the last word counts."""
    words: dict[str, Place | None] = {}
    for batch in batches:
        for path in batch.forget_places:
            words[path] = None
        for place in batch.places:
            words[place.path] = place
    return [path for path, place in words.items() if place is None], [place for place in words.values() if place]


def single_rows(batch: Batch) -> Iterator[tuple[object, Batch]]:
    """Each row of a batch as a batch of its own, in the order in which they count."""
    for key in batch.forget_records:
        yield key, Batch(forget_records=(key,))
    for path in batch.forget_places:
        yield path, Batch(forget_places=(path,))
    for record in batch.rows.records:
        yield record, Batch(rows=Rows(records=(record,)))
    for holding in batch.rows.holdings:
        yield holding, Batch(rows=Rows(holdings=(holding,)))
    for member in batch.rows.members:
        yield member, Batch(rows=Rows(members=(member,)))
    for place in batch.places:
        yield place, Batch(places=(place,))
