"""The writing connection of the manifest: rows on the loop's thread in slices, what may wait for the disk in a thread.

Every row that SQLite steps through gives up the interpreter several times and must win it back: beside a busy thread a
group of 768 rows takes half as long here as through a thread of its own. So rows are put many to a statement. Slices
let other work in. BEGIN, COMMIT and ROLLBACK take locks and sync: they run in a thread of this connection's own.

It has the part of aiosqlite's interface that `manifest_writer` uses; scans and questions stay with aiosqlite.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

SLICE_ROWS = 1_000  # 25 ms of work at most between two turns of the loop; a turn under load takes longer than a slice
ROWS_PER_STATEMENT = 256  # 2,560 parameters for records; SQLite takes 32,766
INSERTED = re.compile(r"VALUES (\(\?(?:, \?)*\))")
WAITING = ("BEGIN", "COMMIT", "ROLLBACK")  # statements that may wait for a lock or the disk

T = TypeVar("T")


class RowWriter:
    """Used by one task at a time; the manifest's lock sees to that."""

    def __init__(self, path: Path, timeout_seconds: float) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="manifest")
        self._database = sqlite3.connect(path, timeout=timeout_seconds, isolation_level=None, check_same_thread=False)

    @property
    def in_transaction(self) -> bool:
        return self._database.in_transaction

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        if statement.startswith(WAITING):
            await self._in_thread(lambda: self._database.execute(statement, parameters))
        else:
            self._database.execute(statement, parameters)

    async def execute_fetchall(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        return self._database.execute(statement, parameters).fetchall()

    async def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """As sqlite3's, many rows to a statement where it is an INSERT, with a turn of the loop after each slice."""
        waiting = iter(rows)
        while part := list(islice(waiting, SLICE_ROWS)):
            self._write(statement, part)
            await asyncio.sleep(0)

    def _write(self, statement: str, rows: list[Sequence[Any]]) -> None:
        marks = INSERTED.search(statement)
        if marks is None:
            self._database.executemany(statement, rows)
            return
        begin, row_marks, end = statement[: marks.start(1)], marks[1], statement[marks.end(1) :]
        at = 0
        while at < len(rows):  # powers of two: few texts, each prepared once
            count = min(ROWS_PER_STATEMENT, 1 << ((len(rows) - at).bit_length() - 1))
            several = ", ".join([row_marks] * count)
            self._database.execute(f"{begin}{several}{end}", [field for row in rows[at : at + count] for field in row])
            at += count

    async def close(self) -> None:
        await self._in_thread(self._database.close)
        self._thread.shutdown(wait=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """A cancelled caller still waits for the thread: the connection is never used by two at once."""
        running = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise
