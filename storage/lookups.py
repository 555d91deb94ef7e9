"""Bounded look-ups by key over one SQLite connection: the manifest's side of `protocol.catalogue.Catalogue`.

Each look-up is one statement that an index answers, fetched whole, so that no read transaction outlives it and the
next look-up sees everything committed since.
"""

# ruff: noqa: S608 - statements are put together from this package's own column lists; values are always bound

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeVar

from protocol.catalogue import HOLDERS_MAX, MANY_ROWS_MAX, SHARERS_MAX, VERSIONS_MAX
from protocol.values import Digest, Holding, HoldingKey, Member, NodeId, Place, Record, RecordKey
from storage.manifest_rows import (
    HOLDING_COLUMNS,
    MEMBER_COLUMNS,
    PLACE_COLUMNS,
    RECORD_COLUMNS,
    Row,
    holding_of,
    member_of,
    place_of,
    record_of,
)

KEYS_PER_STATEMENT = 256  # a power of two, as its parts: few texts, each prepared once

Key = TypeVar("Key", str, bytes)
Value = TypeVar("Value")

BUSY_SECONDS = 10.0  # a second process (spore verify) may hold the write lock for a moment
READER_CACHE_KIB = 4096  # a look-up touches a handful of pages; the kernel caches the rest

_RECORD = f"SELECT {RECORD_COLUMNS} FROM records WHERE name = ? AND hlc = ? AND origin = ?"
_VERSIONS = f"SELECT {RECORD_COLUMNS} FROM records WHERE name = ? ORDER BY hlc DESC, origin DESC LIMIT {VERSIONS_MAX}"
_SHARERS = (
    f"SELECT {RECORD_COLUMNS} FROM records WHERE digest = ? AND state = 0 "
    f"ORDER BY name, hlc, origin LIMIT {SHARERS_MAX}"
)
_HOLDING = f"SELECT {HOLDING_COLUMNS} FROM holdings WHERE digest = ? AND node = ? AND store = ?"
_HOLDINGS = (
    f"SELECT {HOLDING_COLUMNS} FROM holdings WHERE digest = ? AND present = 1 ORDER BY node, store LIMIT {HOLDERS_MAX}"
)
_STATEMENTS = f"SELECT {HOLDING_COLUMNS} FROM holdings WHERE digest = ? ORDER BY node, store LIMIT {HOLDERS_MAX}"
_VERSIONS_OF = f"SELECT {RECORD_COLUMNS} FROM records WHERE name IN (%s) ORDER BY name, hlc DESC, origin DESC LIMIT %d"
_STATEMENTS_OF = f"SELECT {HOLDING_COLUMNS} FROM holdings WHERE digest IN (%s) ORDER BY digest, node, store LIMIT %d"
_PLACES_AT = f"SELECT {PLACE_COLUMNS} FROM places WHERE path IN (%s) LIMIT %d"
_MEMBER = f"SELECT {MEMBER_COLUMNS} FROM members WHERE node = ?"
_MEMBERS = f"SELECT {MEMBER_COLUMNS} FROM members ORDER BY node"
_PLACES = f"SELECT {PLACE_COLUMNS} FROM places WHERE digest = ? ORDER BY path"
_PLACE = f"SELECT {PLACE_COLUMNS} FROM places WHERE path = ?"
_FACT = "SELECT value FROM facts WHERE key = ?"
_LEAVES = "SELECT leaves FROM chunks WHERE digest = ?"
_LEAVES_PAGE = "SELECT digest, leaves FROM chunks WHERE digest > ? ORDER BY digest LIMIT 16"  # 3.2 MB for 100 GiB each


def connect_reader(path: Path, *, any_thread: bool = False) -> sqlite3.Connection:
    """A connection that cannot write. `any_thread` lifts Python's check; the caller then serializes."""
    connection = sqlite3.connect(
        path.absolute().as_uri() + "?mode=ro",
        uri=True,
        isolation_level=None,
        timeout=BUSY_SECONDS,
        check_same_thread=not any_thread,
    )
    connection.execute("PRAGMA query_only=1")
    connection.execute(f"PRAGMA cache_size=-{READER_CACHE_KIB}")
    return connection


class Lookups:
    """A `Catalogue` over one connection, for one thread. `sqlite3.Error` passes through: the disk failed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def _rows(self, statement: str, *parameters: object) -> list[Row]:
        return self._connection.execute(statement, parameters).fetchall()

    def record(self, key: RecordKey) -> Record | None:
        rows = self._rows(_RECORD, *key)
        return record_of(rows[0]) if rows else None

    def versions(self, name: str) -> tuple[Record, ...]:
        return tuple(map(record_of, self._rows(_VERSIONS, name)))

    def sharers(self, digest: Digest) -> tuple[Record, ...]:
        return tuple(map(record_of, self._rows(_SHARERS, digest)))

    def holding(self, key: HoldingKey) -> Holding | None:
        rows = self._rows(_HOLDING, *key)
        return holding_of(rows[0]) if rows else None

    def holdings(self, digest: Digest) -> tuple[Holding, ...]:
        return tuple(map(holding_of, self._rows(_HOLDINGS, digest)))

    def statements(self, digest: Digest) -> tuple[Holding, ...]:
        return tuple(map(holding_of, self._rows(_STATEMENTS, digest)))

    def versions_of(self, names: Collection[str]) -> dict[str, tuple[Record, ...]] | None:
        return self._grouped(_VERSIONS_OF, names, record_of, lambda record: record.name, VERSIONS_MAX)

    def statements_of(self, digests: Collection[Digest]) -> dict[Digest, tuple[Holding, ...]] | None:
        return self._grouped(_STATEMENTS_OF, digests, holding_of, lambda holding: holding.digest, HOLDERS_MAX)

    def places_at(self, paths: Collection[str]) -> dict[str, Place]:
        return {place.path: place for place in map(place_of, self._many(_PLACES_AT, paths))}

    def _grouped(
        self,
        statement: str,
        keys: Collection[Key],
        value_of: Callable[[Row], Value],
        key_of: Callable[[Value], Key],
        count_max: int,
    ) -> dict[Key, tuple[Value, ...]] | None:
        """The rows of each key in the statement's order, at most `count_max` each; None when they are too many."""
        found: dict[Key, list[Value]] = {key: [] for key in keys}
        total = 0
        for value in map(value_of, self._many(statement, keys)):
            found[key_of(value)].append(value)
            total += 1
        if total > MANY_ROWS_MAX:
            return None
        return {key: tuple(values[:count_max]) for key, values in found.items()}

    def _many(self, statement: str, keys: Collection[Key]) -> Iterator[Row]:
        """Rows of many keys, with one statement for hundreds of them; stops one row above `MANY_ROWS_MAX`."""
        waiting = list(keys)
        left = MANY_ROWS_MAX + 1
        while waiting and left > 0:
            count = min(KEYS_PER_STATEMENT, 1 << (len(waiting).bit_length() - 1))
            part, waiting = waiting[:count], waiting[count:]
            rows = self._rows(statement % (", ".join("?" * count), MANY_ROWS_MAX + 1), *part)
            yield from rows[:left]
            left -= len(rows)

    def member(self, node: NodeId) -> Member | None:
        rows = self._rows(_MEMBER, node)
        return member_of(rows[0]) if rows else None

    def members(self) -> tuple[Member, ...]:
        return tuple(map(member_of, self._rows(_MEMBERS)))

    def places(self, digest: Digest) -> tuple[Place, ...]:
        return tuple(map(place_of, self._rows(_PLACES, digest)))

    def place(self, path: str) -> Place | None:
        rows = self._rows(_PLACE, path)
        return place_of(rows[0]) if rows else None

    def fact(self, key: str) -> str | None:
        """A local fact (see docs/formats.md), None when it was never set."""
        rows = self._rows(_FACT, key)
        return str(rows[0][0]) if rows else None

    def stored_leaves(self, digest: Digest) -> bytes | None:
        """The committed chunk list of a digest: its 32-byte leaves one behind the other."""
        rows = self._rows(_LEAVES, digest)
        return bytes(rows[0][0]) if rows else None

    def chunk_lists(self) -> Iterator[tuple[Digest, bytes]]:
        """Every committed chunk list, as `stored_leaves` gives it, in pages."""
        after = b""
        while rows := self._rows(_LEAVES_PAGE, after):
            for digest, leaves in rows:
                after = bytes(digest)
                yield after, bytes(leaves)


class SharedLookups(Lookups):
    """The same look-ups for any number of threads, one at a time over a connection that only they use.

    The event loop keeps a connection of its own: it never waits for a thread whose look-up waits for the disk.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self._lock = threading.Lock()

    def _rows(self, statement: str, *parameters: object) -> list[Row]:
        with self._lock:
            return super()._rows(statement, *parameters)
