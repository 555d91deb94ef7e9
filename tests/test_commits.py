"""The group committer: a log that is full is back-pressure, told before an append fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from node.commits import GroupCommitter
from node.pending import RECENT_BYTES_MAX, PendingEntries
from protocol.effects import Commit, Entry, Inline, Log
from protocol.events import Durable, DurableFailed, Event
from protocol.values import Batch, Record
from storage.acceptance import INLINE_BYTES_MAX
from storage.entries import encode_entry
from storage.files import FileLayer
from storage.manifest import Manifest
from storage.wal import Wal

MIB = 1 << 20


class Applied:
    quarantined = ()


class Rows:
    """A manifest that takes every batch, or none."""

    def __init__(self) -> None:
        self.problem: Exception | None = None

    async def apply(self, batches: Sequence[Batch]) -> Applied:
        if self.problem is not None:
            raise self.problem
        return Applied()


class Bench:
    """A committer over a real log of 4 MiB, and the events it posted."""

    def __init__(self, folder: Path, writer: ThreadPoolExecutor) -> None:
        self.wal = Wal.open(folder / "wal", FileLayer(), segment_bytes=MIB, size_bytes_max=4 * MIB)
        self.rows = Rows()
        self.events: list[Event] = []
        manifest = cast(Manifest, self.rows)
        self.committer = GroupCommitter(self.wal, PendingEntries(self.wal), manifest, writer, self.events.append)
        self.sequence = 0

    def put(self) -> Record:
        """One artifact of 64 KiB on its way."""
        self.sequence += 1
        made = Record(
            f"checkpoint/{self.sequence}", self.sequence, "a", self.sequence.to_bytes(32, "big"), b"b" * 32, 1
        )
        self.committer.add(Log(2 * self.sequence, Entry(made, Inline(bytes(INLINE_BYTES_MAX)))))
        self.committer.add(Commit(2 * self.sequence + 1, Batch(forget_places=("x",))))
        return made

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.005)

    def told(self) -> bool:
        """Whether everything that was added was answered."""
        last = self.events[-1] if self.events else None
        return isinstance(last, Durable | DurableFailed) and last.upto == 2 * self.sequence + 1


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ThreadPoolExecutor(1) as writer:
        made = Bench(tmp_path, writer)
        yield made
        made.wal.close()


def story(bench: Bench, told: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        running = asyncio.create_task(bench.committer.run())
        try:
            await told()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(whole())


def test_who_asks_for_room_first_never_meets_a_full_log(bench: Bench) -> None:
    async def told() -> None:
        made = []
        while bench.committer.room():  # nothing of it is in the log yet: what is on its way counts
            made.append(bench.put())
        assert len(made) > 10
        await bench.until(bench.told)
        assert not any(isinstance(event, DurableFailed) for event in bench.events)
        assert not bench.committer.room()
        await bench.until(lambda: not bench.committer.room() and bench.committer.waits_seconds() > 0.1)
        bench.committer.release(made)
        await bench.until(bench.committer.room)
        await bench.until(lambda: bench.committer.room() and bench.committer.waits_seconds() == 0)

    story(bench, told)


def test_a_log_that_is_full_of_what_is_dead_makes_room_for_whoever_asks(tmp_path: Path) -> None:
    """As a start finds it after a crash: nothing is live, nothing comes that is to be written, all wait for room."""
    wal = Wal.open(tmp_path / "wal", FileLayer(), segment_bytes=MIB, size_bytes_max=4 * MIB)
    sizes = [INLINE_BYTES_MAX, 1 << 10]
    for size in sizes:  # up to where one entry more would fit, and not those that others were promised room for
        while wal.room(INLINE_BYTES_MAX + size):
            wal.release(wal.append([bytes(size)]))
    wal.close()
    with ThreadPoolExecutor(1) as writer:
        bench = Bench(tmp_path, writer)
        assert bench.wal.usage().live_entries == 0
        assert bench.wal.room(INLINE_BYTES_MAX)

        async def told() -> None:
            assert not bench.committer.room()
            await bench.until(bench.committer.room)

        story(bench, told)
        assert not any(isinstance(event, DurableFailed) for event in bench.events)
        bench.wal.close()


def test_what_failed_takes_no_room(bench: Bench) -> None:
    async def told() -> None:
        bench.rows.problem = OSError(5, "Input/output error")
        for _ in range(100):  # much more than the log holds, were any of it still counted
            assert bench.committer.room()
            bench.put()
            await bench.until(bench.told)
            await bench.until(bench.committer.room)

    story(bench, told)


def test_the_contents_accepted_first_stay_in_memory_until_they_are_released(tmp_path: Path) -> None:
    content = bytes(INLINE_BYTES_MAX)
    fitting = RECENT_BYTES_MAX // len(content)
    wal = Wal.open(tmp_path / "wal", FileLayer(), segment_bytes=16 * MIB, size_bytes_max=64 * MIB)
    pending = PendingEntries(wal)
    records = [Record(f"npz/{n}", n, "a", n.to_bytes(32, "big"), b"b" * 32, 1) for n in range(fitting + 2)]
    try:
        for record in records:
            entry = Entry(record, Inline(content))
            pending.add(entry, wal.append([encode_entry(entry)])[0])
        wal.sync()
        *first, last = records
        assert pending.recent(first[0].digest) == content
        assert pending.recent(last.digest) is None
        assert pending.content(last.digest) == content
        pending.forget(records[:1])
        assert pending.recent(first[0].digest) is None
        pending.add(Entry(last, Inline(content)), 1)
        assert pending.recent(last.digest) == content
    finally:
        wal.close()


def test_what_comes_while_the_disk_is_busy_goes_to_it_together(bench: Bench) -> None:
    async def told() -> None:
        for _ in range(20):
            bench.put()  # nothing runs in between: one group, or one and the rest
        await bench.until(bench.told)
        assert bench.committer.groups <= 2
        assert bench.committer.effects == 40

    story(bench, told)
