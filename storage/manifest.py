"""The manifest: the node's SQLite database of records, holdings, members, and of where our own bytes lie.

Four connections, each with one job: the event loop's own read-only one for bounded look-ups (`Lookups`), one
aiosqlite writer whose transactions follow one another, one aiosqlite reader for pages and the command line's
questions, and one behind a lock for the depot's threads (`shelf`).

A transaction is all or nothing, and durable when `apply` returns (see `storage.manifest_writer`).
"""

# ruff: noqa: S608 - statements are put together from this package's own column lists; values are always bound

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path

import aiosqlite

from protocol.fingerprints import cluster_key
from protocol.sketch import Sketch
from protocol.values import Batch, Digest, Holding, NodeId, Place, Record, Rows
from storage.differences import Differences
from storage.ledger import Ledger
from storage.lookups import BUSY_SECONDS, Lookups, connect_reader
from storage.manifest_file import ManifestDamaged, ManifestRefused, prepare, rebuild
from storage.manifest_rows import (
    HOLDING_COLUMNS,
    MEMBER_COLUMNS,
    RECORD_COLUMNS,
    RECORD_WIDTH,
    Row,
    holding_of,
    member_of,
    record_of,
)
from storage.manifest_writer import Applied, ManifestFailed, Quarantined, Writer
from storage.queries import Queries
from storage.row_writer import RowWriter
from storage.shelf import Shelf
from storage.sketchbook import Sketchbook

__all__ = [
    "Applied",
    "Manifest",
    "ManifestDamaged",
    "ManifestFailed",
    "ManifestRefused",
    "Page",
    "Quarantined",
    "rebuild",
]

PAGE_ROWS_MAX = 1_000  # rows converted at once on the event loop: a few milliseconds

Page = tuple[tuple[Record, tuple[Holding, ...]], ...]
START = ("", -1, "")  # sorts before every record key

_SCAN = (
    f"WITH page AS (SELECT {RECORD_COLUMNS} FROM records WHERE (name, hlc, origin) > (?, ?, ?) "
    "ORDER BY name, hlc, origin LIMIT ?) "
    "SELECT page.*, held.digest, held.node, held.store, held.seq, held.present FROM page "
    "LEFT JOIN holdings AS held ON held.digest = page.digest AND held.present = 1 "
    "ORDER BY page.name, page.hlc, page.origin, held.node, held.store"
)
_RECORD_PAGE = (
    f"SELECT {RECORD_COLUMNS} FROM records WHERE (name, hlc, origin) > (?, ?, ?) ORDER BY name, hlc, origin LIMIT ?"
)
_HOLDING_PAGE = (
    f"SELECT {HOLDING_COLUMNS} FROM holdings WHERE (digest, node, store) > (?, ?, ?) "
    "ORDER BY digest, node, store LIMIT ?"
)
_MEMBER_PAGE = f"SELECT {MEMBER_COLUMNS} FROM members WHERE node > ? ORDER BY node LIMIT ?"


class Manifest(Lookups):
    """Made by `Manifest.open`; used from the thread of the loop that opened it, except for `shelf`."""

    def __init__(
        self,
        path: Path,
        boot: int,
        reader: sqlite3.Connection,
        shelf: Shelf,
        writer: Writer,
        scanner: aiosqlite.Connection,
        sketchbook: Sketchbook,
        cluster: str,
    ) -> None:
        super().__init__(reader)
        self.path = path
        self.boot = boot  # counts the openings of this file, from 1
        self.shelf = shelf
        self.queries = Queries(scanner)
        self._writer = writer
        self._scanner = scanner
        self._sketchbook = sketchbook
        self.differences = Differences(self._all, cluster_key(cluster), lambda: sketchbook.sketch.fold()[0])
        self._closers = AsyncExitStack()

    @classmethod
    async def open(cls, path: Path, *, cluster: str, node: NodeId) -> Manifest:
        """Open, make or migrate the manifest of `node`. Raises `ManifestRefused` and `ManifestDamaged`."""
        boot = await asyncio.to_thread(prepare, path, cluster, node)
        async with AsyncExitStack() as closers:
            writing = RowWriter(path, BUSY_SECONDS)
            closers.push_async_callback(writing.close)
            shelf = Shelf(closers.enter_context(closing(connect_reader(path, any_thread=True))))
            reader = closers.enter_context(closing(connect_reader(path)))
            # A connection of aiosqlite's is made and closed in a thread of its own.
            scanner = await closers.enter_async_context(
                aiosqlite.Connection(lambda: connect_reader(path), iter_chunk_size=64)
            )
            sketchbook = await asyncio.to_thread(Sketchbook.load, path, cluster)
            writer = Writer(path, writing, Ledger(cluster, node), shelf, sketchbook)
            await writer.equip()
            manifest = cls(path, boot, reader, shelf, writer, scanner, sketchbook, cluster)
            manifest._closers = closers.pop_all()
        return manifest

    async def close(self) -> None:
        """Commit waiting chunk lists, mark the file clean, close every connection. Safe to call twice.

        Raises `ManifestFailed` when the disk does not take that; the connections are closed all the same.
        """
        try:
            await self._writer.leave()
        finally:
            await self._closers.aclose()

    async def apply(self, batches: Sequence[Batch]) -> Applied:
        """Commit a group in one transaction, durable on return; reports rows that could not be taken.

        Batches count in order; within one, what is dropped is dropped first (the rules are in `storage.writes`).
        Raises `ManifestFailed` when the disk does not take the group: then nothing of it is applied.
        """
        return await self._writer.apply(batches)

    async def save_waiting_leaves(self) -> None:
        """Commit the chunk lists saved so far, without waiting for the next group."""
        await self._writer.apply(())

    def sketch(self) -> Sketch:
        """Of all committed rows. Only to be read, on the loop's thread."""
        return self._sketchbook.sketch

    # Facts

    def last_hlc(self) -> int:
        """The highest stamp or sequence that a row of our own ever carried; 0 when there was none."""
        return int(self.fact("last_hlc") or 0)

    def scanned(self) -> bool:
        """Whether the folders were read to the end since this file was made: only then is "unknown" new."""
        return self.fact("scanned") == "1"

    async def set_scanned(self) -> None:
        await self.set_fact("scanned", "1")

    async def set_fact(self, key: str, value: str | None) -> None:
        """Set a local fact, or clear it with None. Raises `ManifestFailed` as `apply` does."""
        await self._writer.set_fact(key, value)

    # Chunk lists and places, for the depot's threads

    def save_leaves(self, digest: Digest, leaves: Sequence[Digest]) -> None:
        """From any thread: see `Shelf.save_leaves`."""
        self.shelf.save_leaves(digest, leaves)

    def load_leaves(self, digest: Digest) -> tuple[Digest, ...] | None:
        """From any thread."""
        return self.shelf.load_leaves(digest)

    def places_of(self, digest: Digest) -> tuple[Place, ...]:
        """From any thread: committed places, as `places` tells the event loop."""
        return self.shelf.places(digest)

    # Pages

    async def scan(self, after: tuple[str, int, str], limit: int) -> tuple[Page, bool]:
        """At most `limit` records after a key, in key order, with their present holdings; True when none follow.

        Begin with `START`. Raises `ManifestFailed` when the file cannot be read.
        """
        rows = await self._all(_SCAN, (*after, limit + 1))
        page: list[tuple[Record, list[Holding]]] = []
        key: Row | None = None
        for row in rows:
            if row[:3] != key:
                key = row[:3]
                page.append((record_of(row[:RECORD_WIDTH]), []))
            if row[RECORD_WIDTH] is not None:
                page[-1][1].append(holding_of(row[RECORD_WIDTH:]))
        return tuple((record, tuple(holdings)) for record, holdings in page[:limit]), len(page) <= limit

    async def rows_pages(self, page_rows: int = PAGE_ROWS_MAX) -> AsyncIterator[Rows]:
        """Every committed row, withdrawn holdings too, in pages of one table each.

        Each page is a read of its own, so that a slow receiver keeps no transaction open; rows committed behind the
        cursor meanwhile are not seen (they are told to every session as they come).
        """
        after: tuple[object, ...] = START
        while rows := await self._all(_RECORD_PAGE, (*after, page_rows)):
            after = rows[-1][:3]
            yield Rows(records=tuple(map(record_of, rows)))
        after = (b"", "", b"")
        while rows := await self._all(_HOLDING_PAGE, (*after, page_rows)):
            after = rows[-1][:3]
            yield Rows(holdings=tuple(map(holding_of, rows)))
        after = ("",)
        while rows := await self._all(_MEMBER_PAGE, (*after, page_rows)):
            after = rows[-1][:1]
            yield Rows(members=tuple(map(member_of, rows)))

    async def quarantined(self) -> tuple[tuple[str, str], ...]:
        """(row as text, reason) of what was set aside, oldest first."""
        rows = await self._all("SELECT row, reason FROM quarantine ORDER BY id")
        return tuple((str(row), str(reason)) for row, reason in rows)

    async def _all(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        try:
            return [tuple(row) for row in await self._scanner.execute_fetchall(statement, parameters)]
        except (sqlite3.Error, ValueError) as problem:  # aiosqlite says ValueError of a closed connection
            self._writer.doubted = True
            raise ManifestFailed(f"the manifest {self.path} cannot be read ({problem}): check the disk") from problem
