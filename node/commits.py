"""Group commit: the durable effects of any number of events become one WAL sync and one manifest transaction.

`Log` and `Commit` only queue. One task takes all that is queued, appends and syncs the WAL entries in a thread, then
applies the batches in one transaction, then reports `Durable(upto)`; what arrives meanwhile makes the next group. So
the slower the disk, the larger the groups. Within a group the WAL comes first: a manifest row of ours never stands
without the entry that protects it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from contextlib import suppress

from node.pending import PendingEntries
from protocol.effects import Commit, Entry, Inline, Log
from protocol.events import Durable, DurableFailed, Event
from protocol.values import Record
from storage.acceptance import INLINE_BYTES_MAX
from storage.entries import encode_entry
from storage.manifest import Manifest
from storage.wal import Wal

PROMISED = 8  # entries that were told there is room and are not queued yet: two intake workers, four puts, a snapshot
RECORD_BYTES = 512  # of an entry beside its content: a name of 100 characters makes 300; PROMISED covers longer ones
ASKED_AGAIN_SECONDS = (
    2.0  # whoever waits for room asks five times a second; who has not asked for so long waits no more
)
GROUP_MAX = 2_000  # effects in one group: a few ms of SQLite, so that the first one does not wait for all the rest


class GroupCommitter:
    """Joins durable effects; owns all writing to the WAL and the manifest."""

    def __init__(
        self, wal: Wal, pending: PendingEntries, manifest: Manifest, writer: Executor, post: Callable[[Event], None]
    ) -> None:
        self.wal = wal
        self.pending = pending
        self.manifest = manifest
        self.post = post
        self._writer = writer
        self._queue: list[Log | Commit] = []
        self._released: list[int] = []
        self._under_way = self._under_way_bytes = 0  # entries, from `add` until they are in the WAL or failed
        self._short = False  # somebody was told that there is no room: the log is to make some, whatever else comes
        self._refused_at = self._waiting_since = float("-inf")
        self._wake = asyncio.Event()
        self.groups = 0
        self.effects = 0

    def add(self, effect: Log | Commit) -> None:
        self._queue.append(effect)
        if isinstance(effect, Log):
            self._under_way += 1
            self._under_way_bytes += _entry_bytes(effect.entry)
        self._wake.set()

    def room(self) -> bool:
        """Whether the WAL takes one more entry of any size, beside those on their way to it.

        Whoever accepts asks this first and waits: a log that is full is back-pressure, not a disk that fails. Asking in
        vain makes the log look for what is dead in it: while all wait, nothing else would.
        """
        if self._fits():
            return True
        now = time.monotonic()
        if now - self._refused_at > ASKED_AGAIN_SECONDS:
            self._waiting_since = now
        self._refused_at = now
        self._short = True
        self._wake.set()
        return False

    def waits_seconds(self) -> float:
        """For how long somebody has been waiting for room; 0 while nobody does."""
        now = time.monotonic()
        return now - self._waiting_since if now - self._refused_at <= ASKED_AGAIN_SECONDS else 0.0

    def _fits(self) -> bool:
        others, others_bytes = self._under_way + PROMISED, self._under_way_bytes + PROMISED * INLINE_BYTES_MAX
        return self.wal.room(INLINE_BYTES_MAX, others, others_bytes)

    def release(self, records: Iterable[Record]) -> None:
        """Let the WAL entries of these records go; the next group (or the next idle moment) writes that down."""
        self._released += self.pending.forget(records)
        self._wake.set()

    async def run(self) -> None:
        """Commit groups until cancelled. What is queued at that moment was told to nobody."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue or self._released or self._short:
                await self._commit_group()

    async def _commit_group(self) -> None:
        group, self._queue = self._queue[:GROUP_MAX], self._queue[GROUP_MAX:]
        released, self._released = self._released, []
        short, self._short = self._short, False
        logs = [effect for effect in group if isinstance(effect, Log)]
        batches = [effect.batch for effect in group if isinstance(effect, Commit) and effect.batch]
        ids: list[int] = []
        refused: tuple[str, ...] = ()
        try:
            if logs or released or short:
                ids = await asyncio.get_running_loop().run_in_executor(self._writer, self._write_logs, logs, released)
            if batches:
                refused = (await self.manifest.apply(batches)).quarantined
        except asyncio.CancelledError:
            raise
        except Exception as problem:  # whatever it is: nothing of this group is durable, and the next one is tried
            self._fail(group, logs, ids, problem)
            return
        finally:
            self._under_way -= len(logs)
            self._under_way_bytes -= sum(_entry_bytes(effect.entry) for effect in logs)
        self.groups += 1
        self.effects += len(group)
        for sentence in refused:
            self.on_poison(sentence)
        if group:
            self.post(Durable(group[-1].seq, refused=bool(refused)))

    def _write_logs(self, logs: list[Log], released: list[int]) -> list[int]:
        """In the writer thread: let go of what was released (it makes room), then append and sync."""
        self._let_go(released)
        ids: list[int] = []
        if logs:
            ids = self.wal.append([encode_entry(effect.entry) for effect in logs])
            self.wal.sync()
            for effect, entry_id in zip(logs, ids, strict=True):
                self.pending.add(effect.entry, entry_id)
        return ids

    def _let_go(self, released: list[int]) -> None:
        """Releases and compaction promise nothing to anybody: when they fail, the next sync tries again."""
        with suppress(OSError):
            if released:
                self.wal.release(released)
            more = self.wal.compact()
            while more and not self._fits():
                more = self.wal.compact()

    def _fail(self, group: list[Log | Commit], logs: list[Log], ids: list[int], problem: Exception) -> None:
        """Nothing of this group was told. Entries that did reach the WAL protect nothing: they are released."""
        if ids:
            self.release([effect.entry.record for effect in logs])
        if group:
            self.post(DurableFailed(group[0].seq, group[-1].seq, str(problem)))

    def on_poison(self, sentence: str) -> None:
        """Replaced by the agent: a row that cannot be stored is quarantined, the rest goes on."""


def _entry_bytes(entry: Entry) -> int:
    return RECORD_BYTES + (len(entry.source.content) if isinstance(entry.source, Inline) else 0)
