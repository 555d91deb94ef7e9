"""The one writer of the manifest: transactions that follow one another, all or nothing, durable when they return.

A row that SQLite will not take is set aside in the table `quarantine` and reported, and the others go on; a failing
disk raises `ManifestFailed`, and nothing of the group is applied.
"""

# ruff: noqa: S608 - statements are put together from this package's own constants; values are always bound

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from protocol.values import Batch
from storage.ledger import CLEAR_NOTES, READ_NOTES, SCHEMA, Ledger
from storage.manifest_file import REBUILD
from storage.row_writer import RowWriter
from storage.shelf import Shelf
from storage.sketchbook import CLEAR_TAIL, LAST_NOTE, NOTE, SAVE, Sketchbook
from storage.writes import single_rows, statements

QUARANTINE_ROWS_MAX = 1_000  # newest kept: enough to see what a peer sends wrong, bounded whatever it sends
ROW_TEXT_MAX = 4_096  # of a quarantined row: a record with the longest name and full meta fits
SENTENCE_ROW_MAX = 300  # of the row in a log line: its name and what is wrong with it
WRITER_CACHE_KIB = 8_192  # pages of one group; a larger group spills into the write-ahead log, which is slower only
LOG_BYTES_KEPT = 64 << 20  # a write-ahead log grown by one large group is cut back to this at the next checkpoint
CHECKPOINT_PAGES = 4_000  # 16 MB: digests scatter, so that a page is often written again before it is checkpointed

T = TypeVar("T")

# What SQLite or Python raises when a row, not the disk, is at fault.
_POISON = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    ArithmeticError,
    AttributeError,
    TypeError,
    ValueError,
)

_LAST_HLC = "SELECT value FROM facts WHERE key = 'last_hlc'"
_SET_FACT = "INSERT INTO facts (key, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"
_CLEAR_FACT = "DELETE FROM facts WHERE key = ?"
_ADD_TOTAL = (
    "INSERT INTO totals (kind, artifacts, bytes) VALUES (?, ?, ?) ON CONFLICT DO UPDATE "
    "SET artifacts = artifacts + excluded.artifacts, bytes = bytes + excluded.bytes"
)
_PUT_CHUNKS = "INSERT INTO chunks (digest, leaves) VALUES (?, ?) ON CONFLICT DO UPDATE SET leaves = excluded.leaves"
_DROP_CHUNKS = (
    "DELETE FROM chunks WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM places WHERE digest = ?1) "
    "AND NOT EXISTS (SELECT 1 FROM records WHERE digest = ?1 AND state = 0)"
)
_PUT_ASIDE = "INSERT INTO quarantine (row, reason) VALUES (?, ?) ON CONFLICT DO NOTHING"
_TRIM_ASIDE = (
    "DELETE FROM quarantine WHERE id <= (SELECT id FROM quarantine ORDER BY id DESC "
    f"LIMIT 1 OFFSET {QUARANTINE_ROWS_MAX})"
)


class ManifestFailed(Exception):
    """The disk did not take a transaction: nothing of it is applied. One sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A row that the manifest could not take; made by `apply`, read by whoever gave it and by people."""

    row: object
    reason: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a group: everything is committed but these rows."""

    refused: tuple[Quarantined, ...] = ()

    @property
    def quarantined(self) -> tuple[str, ...]:
        """One sentence for each refused row."""
        return tuple(
            f"a row cannot be stored and is quarantined ({found.reason}): {ascii(found.row)[:SENTENCE_ROW_MAX]}"
            for found in self.refused
        )


class Writer:
    """Owns the writing connection. Tasks that shared it would mix their transactions, so each waits for the lock."""

    def __init__(self, path: Path, connection: RowWriter, ledger: Ledger, shelf: Shelf, sketchbook: Sketchbook) -> None:
        self._path = path
        self._connection = connection
        self._ledger = ledger
        self._shelf = shelf
        self._sketchbook = sketchbook
        self._writing = asyncio.Lock()
        self._open = True
        self.doubted = False  # a disk error was seen: the file is then checked at the next start

    async def equip(self) -> None:
        """Set the connection up; once, before the first transaction."""
        for pragma in (
            "synchronous=FULL",  # a commit must survive a power loss; groups pay for the fsync
            f"cache_size=-{WRITER_CACHE_KIB}",
            f"journal_size_limit={LOG_BYTES_KEPT}",
            f"wal_autocheckpoint={CHECKPOINT_PAGES}",
            "temp_store=MEMORY",
        ):
            await self._connection.execute(f"PRAGMA {pragma}")
        for statement in SCHEMA:
            await self._connection.execute(statement)

    async def apply(self, batches: Sequence[Batch]) -> Applied:
        """Commit a group in one transaction; see `Manifest.apply`."""
        async with self._writing:
            self._check_open()
            try:
                await self._transaction(lambda: self._write(batches))
                return Applied()
            except _POISON:
                return Applied(tuple(await self._transaction(lambda: self._write_apart(batches))))

    async def set_fact(self, key: str, value: str | None) -> None:
        """Set a local fact, or clear it with None."""
        async with self._writing:
            self._check_open()
            await self._transaction(lambda: self._put_fact(key, value))

    async def leave(self) -> bool:
        """The last transaction: waiting chunk lists, and the mark that the file needs no check. False the second time.

        Raises `ManifestFailed` as the others do; unmarked, the file is checked at the next start.
        """
        async with self._writing:
            was_open, self._open = self._open, False
            if was_open:
                await self._transaction(lambda: self._put_fact("clean", "0" if self.doubted else "1"), leaving=True)
            return was_open

    def _check_open(self) -> None:
        if not self._open:
            raise ManifestFailed(f"the manifest {self._path} is closed: nothing can be committed any more")

    async def _transaction(self, work: Callable[[], Awaitable[T]], leaving: bool = False) -> T:
        """Run `work` between BEGIN and COMMIT; on any exception, cancellation included, nothing remains."""
        leaves = self._shelf.waiting_leaves()
        saving = self._sketchbook.due(leaving)
        self._ledger.begin(0)  # so that what is broken off before it begins has counted nothing
        try:
            await self._connection.execute("BEGIN IMMEDIATE")
            stamps = await self._connection.execute_fetchall(_LAST_HLC)
            self._ledger.begin(int(stamps[0][0]) if stamps else 0)
            if saving:
                await self._connection.execute(SAVE, (self._sketchbook.sketch.to_bytes(),))
                await self._connection.execute(CLEAR_TAIL)
            result = await work()
            await self._settle()
            if leaves:
                await self._connection.executemany(_PUT_CHUNKS, leaves.items())
            await self._connection.execute("COMMIT")
        except BaseException as problem:
            await asyncio.shield(self._roll_back())
            await self._look_what_stands(saving)
            if isinstance(problem, sqlite3.Error) and not isinstance(problem, _POISON):
                self.doubted = True
                raise ManifestFailed(self._sentence(problem)) from problem
            raise
        self._shelf.leaves_committed(leaves)
        if saving:
            self._sketchbook.saved()
        self._sketchbook.committed(self._ledger.counts)
        return result

    async def _look_what_stands(self, saving: bool) -> None:
        """A transaction that was broken off may be committed all the same: the sketch follows the file."""
        counts = self._ledger.counts
        try:
            last_note = (await self._connection.execute_fetchall(LAST_NOTE))[0][0]
        except sqlite3.Error:  # the disk fails: what stands there, the next start reads
            self.doubted = True
            return
        if counts.note and counts.note == last_note:
            if saving:
                self._sketchbook.saved()
            self._sketchbook.committed(counts)

    async def _roll_back(self) -> None:
        """Leave no transaction open, not even one whose cancelled BEGIN still stands in the writer's queue."""
        try:
            await self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            # No transaction is open (a full disk makes SQLite roll back by itself), or the disk fails again: then the
            # error that brought us here is the one to report, and the next BEGIN shows whether it lasts.
            return

    def _sentence(self, problem: sqlite3.Error) -> str:
        code = getattr(problem, "sqlite_errorname", "") or type(problem).__name__
        if code == "SQLITE_FULL":
            return f"the manifest {self._path} cannot grow, the disk is full: free space on its file system"
        if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return f"the manifest {self._path} is damaged ({problem}): {REBUILD}"
        return (
            f"the manifest {self._path} cannot be written ({code}: {problem}): check the disk, then restart the agent"
        )

    async def _write(self, batches: Sequence[Batch]) -> None:
        self._ledger.stamp(batches)
        for statement, rows in statements(batches):
            await self._connection.executemany(statement, rows)

    async def _write_apart(self, batches: Sequence[Batch]) -> list[Quarantined]:
        """The same group with a row in it that SQLite does not take: narrow it down, keep everything else."""
        aside: list[Quarantined] = []
        for batch in batches:
            if await self._try([batch]) is None:
                continue
            for row, single in single_rows(batch):
                reason = await self._try([single])
                if reason is not None:
                    aside.append(Quarantined(row, reason))
        if aside:
            texts = ((ascii(found.row)[:ROW_TEXT_MAX], found.reason) for found in aside)
            await self._connection.executemany(_PUT_ASIDE, texts)
            await self._connection.execute(_TRIM_ASIDE)
        return aside

    async def _try(self, batches: Sequence[Batch]) -> str | None:
        """Write inside a savepoint; returns why the rows were refused and are gone again, None when they went in."""
        await self._connection.execute("SAVEPOINT apart")
        try:
            await self._write(batches)
        except _POISON as problem:
            await self._connection.execute("ROLLBACK TO apart")
            return f"{type(problem).__name__}: {ascii(str(problem))[1:-1]}"[:ROW_TEXT_MAX]
        finally:
            if self._connection.in_transaction:
                await self._connection.execute("RELEASE apart")
        return None

    async def _settle(self) -> None:
        """Write what the ledger counted, and drop the chunk lists of bytes that nothing refers to any more."""
        notes = await self._connection.execute_fetchall(READ_NOTES)
        self._ledger.add(str(notes[0][0]))
        await self._connection.execute(CLEAR_NOTES)
        counts = self._ledger.counts
        if counts.loose:
            await self._connection.executemany(_DROP_CHUNKS, [(digest,) for digest in counts.loose])
        if counts.kinds:
            await self._connection.executemany(_ADD_TOTAL, [(kind, *change) for kind, change in counts.kinds.items()])
        if counts.added or counts.removed:
            await self._connection.execute(NOTE, self._sketchbook.note(counts))
        await self._connection.execute(_SET_FACT, ("last_hlc", str(counts.last_hlc)))

    async def _put_fact(self, key: str, value: str | None) -> None:
        if value is None:
            await self._connection.execute(_CLEAR_FACT, (key,))
        else:
            await self._connection.execute(_SET_FACT, (key, value))
