"""The command line's questions to the manifest: what is listed, who holds it, how much there is.

They may read many rows, so they run in the thread of the manifest's aiosqlite reader, never on the event loop.
Patterns and names are bound parameters; no text from a user ever becomes part of a statement.
"""

# ruff: noqa: S608 - statements are put together from this package's own column lists; values are always bound

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import aiosqlite

from protocol.catalogue import HOLDERS_MAX
from protocol.values import Holding, Member, NodeId, Place, Record
from storage.manifest_rows import (
    HOLDING_WIDTH,
    MEMBER_COLUMNS,
    PLACE_COLUMNS,
    RECORD_COLUMNS,
    RECORD_WIDTH,
    Row,
    holding_of,
    member_of,
    place_of,
    record_of,
)

GLOB_BYTES_MAX = 1_024  # as long as a name may be
GLOB_STARS_MAX = 8  # matching may try every split of a name between the stars: eight keep it far below a second
LIST_ROWS_MAX = 10_000  # one answer of a few megabytes; more is asked for by offset

_NEWEST = (
    "r.state = 0 AND NOT EXISTS (SELECT 1 FROM records AS n "
    "WHERE n.name = r.name AND (n.hlc, n.origin) > (r.hlc, r.origin))"
)
_COPIES = (
    "(SELECT count(DISTINCT h.store) FROM holdings AS h WHERE h.digest = r.digest AND h.present = 1 "
    "AND (?2 IS NULL OR h.node IN (SELECT value FROM json_each(?2))))"
)
_RECORD = ", ".join(f"r.{column}" for column in RECORD_COLUMNS.split(", "))
_MEMBER = ", ".join(f"m.{column}" for column in MEMBER_COLUMNS.split(", "))
_LIST = (
    f"SELECT {_RECORD}, {_COPIES} FROM records AS r WHERE r.name GLOB ?1 AND {_NEWEST} "
    "ORDER BY r.name LIMIT ?3 OFFSET ?4"
)
_COUNT = f"SELECT count(*) FROM records AS r WHERE r.name GLOB ? AND {_NEWEST}"
_WHERE = (
    f"SELECT {_RECORD}, (SELECT count(*) FROM records AS v WHERE v.name = r.name AND v.state = 0) "
    f"FROM records AS r WHERE r.name = ? AND {_NEWEST}"
)
_HOLDERS = (
    f"SELECT h.digest, h.node, h.store, h.seq, h.present, {_MEMBER} FROM holdings AS h "
    "LEFT JOIN members AS m ON m.node = h.node WHERE h.digest = ? AND h.present = 1 "
    f"ORDER BY h.node, h.store LIMIT {HOLDERS_MAX}"
)
_KINDS = "SELECT kind, artifacts, bytes FROM totals WHERE artifacts > 0 ORDER BY kind"
_HELD = "SELECT count(*), coalesce(sum(size), 0) FROM (SELECT max(size) AS size FROM places GROUP BY digest)"
_HELD_FOR_OTHERS = (
    "SELECT coalesce(sum(size), 0) FROM (SELECT max(p.size) AS size FROM places AS p WHERE NOT EXISTS "
    "(SELECT 1 FROM records AS r WHERE r.digest = p.digest AND r.state = 0 AND r.origin = ?) GROUP BY p.digest)"
)
_PREFIX = "substr(name, 1, instr(name, '/') + max(instr(substr(name, instr(name, '/') + 1), '/') - 1, -1))"
# Jumps from one prefix to the next along the index `records_by_age`, and reads one record below each.
_NEWEST_BELOW = (
    "WITH RECURSIVE below(prefix) AS ("
    f"SELECT (SELECT {_PREFIX} FROM records WHERE state = 0 ORDER BY {_PREFIX} LIMIT 1) UNION ALL "
    f"SELECT (SELECT {_PREFIX} FROM records WHERE state = 0 AND {_PREFIX} > prefix ORDER BY {_PREFIX} LIMIT 1) "
    "FROM below WHERE prefix IS NOT NULL LIMIT ?) "
    f"SELECT prefix, {_RECORD} FROM below JOIN records AS r ON (r.name, r.hlc, r.origin) = ("
    f"SELECT name, hlc, origin FROM records WHERE state = 0 AND {_PREFIX} = below.prefix ORDER BY hlc DESC LIMIT 1)"
)
PREFIXES_MAX = 1_000  # kinds times nodes, or times first folders


class QueryRefused(ValueError):
    """A question that cannot be asked this way; one sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class Listed:
    """The newest version of a name, and in how many distinct stores its bytes are."""

    record: Record
    copies: int


@dataclass(frozen=True, slots=True)
class Holder:
    """Who says to hold a digest; `member` is None for a node that was never heard of itself."""

    holding: Holding
    member: Member | None


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """The newest version of one name, how many live versions it has, and every holder of the newest."""

    record: Record
    versions: int
    holders: tuple[Holder, ...]


@dataclass(frozen=True, slots=True)
class KindTotal:
    kind: str
    artifacts: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Totals:
    """All live records of the cluster as this node knows them, every version counted."""

    artifacts: int
    size_bytes: int
    kinds: tuple[KindTotal, ...]


class Queries:
    """Asked over a connection that the manifest opens and closes. `sqlite3.Error` passes through: the disk failed."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def list_artifacts(
        self,
        glob: str | None = None,
        *,
        limit: int = LIST_ROWS_MAX,
        offset: int = 0,
        among: Collection[NodeId] | None = None,
    ) -> tuple[Listed, ...]:
        """The newest version of every name that matches, by name; names whose newest version is deleted are left out.

        `glob` knows `*` (any characters, "/" too), `?` and `[abc]`. With `among`, only copies of these nodes count
        (those that are alive, say). Raises `QueryRefused`.
        """
        nodes = None if among is None else json.dumps(sorted(among))
        limit = max(0, min(limit, LIST_ROWS_MAX))
        rows = await self._rows(_LIST, (check_glob(glob), nodes, limit, max(0, offset)))
        return tuple(Listed(record_of(row[:RECORD_WIDTH]), int(row[RECORD_WIDTH])) for row in rows)

    async def count_artifacts(self, glob: str | None = None) -> int:
        """How many names `list_artifacts` would list without a limit."""
        return int((await self._rows(_COUNT, (check_glob(glob),)))[0][0])

    async def where(self, name: str) -> Whereabouts | None:
        """Every holder of the newest version of a name, by (node, store); None when there is no such live name."""
        try:
            found = await self._rows(_WHERE, (name,))
        except UnicodeEncodeError:
            return None  # a name that is not valid UTF-8 is no artifact's name
        if not found:
            return None
        record = record_of(found[0][:RECORD_WIDTH])
        rows = await self._rows(_HOLDERS, (record.digest,))
        return Whereabouts(record, int(found[0][RECORD_WIDTH]), tuple(map(_holder, rows)))

    async def newest_below(self) -> tuple[tuple[str, Record], ...]:
        """For each kind and first folder (or origin) below it: that prefix, and the newest live version there."""
        rows = await self._rows(_NEWEST_BELOW, (PREFIXES_MAX + 1,))
        return tuple((str(row[0]), record_of(row[1 : 1 + RECORD_WIDTH])) for row in rows)

    async def totals(self) -> Totals:
        """Kept while rows change, so that asking costs the same with ten records and with a million."""
        kinds = tuple(KindTotal(str(kind), int(count), int(size)) for kind, count, size in await self._rows(_KINDS))
        return Totals(sum(kind.artifacts for kind in kinds), sum(kind.size_bytes for kind in kinds), kinds)

    async def held(self) -> tuple[int, int]:
        """(distinct digests, their bytes) that lie in our own store."""
        count, size_bytes = (await self._rows(_HELD))[0]
        return int(count), int(size_bytes)

    async def held_for_others(self, node: NodeId) -> int:
        """Bytes in our own store of artifacts that none of ours shares; each digest once."""
        return int((await self._rows(_HELD_FOR_OTHERS, (node,)))[0][0])

    async def count_places(self) -> tuple[int, int]:
        """(files, bytes) of our own store, as `places` lists them."""
        count, size_bytes = (await self._rows("SELECT count(*), coalesce(sum(size), 0) FROM places"))[0]
        return int(count), int(size_bytes)

    async def places(self, after: str, limit: int) -> tuple[Place, ...]:
        """A page of our own places, by path."""
        rows = await self._rows(
            f"SELECT {PLACE_COLUMNS} FROM places WHERE path > ? ORDER BY path LIMIT ?", (after, limit)
        )
        return tuple(map(place_of, rows))

    async def _rows(self, statement: str, parameters: Iterable[object] = ()) -> list[Row]:
        try:
            return [tuple(row) for row in await self._connection.execute_fetchall(statement, parameters)]
        except sqlite3.ProgrammingError as problem:
            raise QueryRefused(f"this cannot be looked up ({problem}): ask again once the agent runs") from problem


def check_glob(glob: str | None) -> str:
    """A pattern that is safe to match against a million names; None means all."""
    if not glob:
        return "*"
    try:
        length = len(glob.encode())
    except UnicodeEncodeError:
        raise QueryRefused(f"pattern {ascii(glob)[:80]} is not valid UTF-8: type it anew") from None
    if length > GLOB_BYTES_MAX or glob.count("*") > GLOB_STARS_MAX:
        raise QueryRefused(
            f"pattern {glob[:40]!r} is too long: use at most {GLOB_BYTES_MAX} bytes and {GLOB_STARS_MAX} stars"
        )
    return glob


def _holder(row: Row) -> Holder:
    member = row[HOLDING_WIDTH:]
    return Holder(holding_of(row[:HOLDING_WIDTH]), None if member[0] is None else member_of(member))
