"""Getting runs of chunks from a peer: by whole chunks, or, where an older version lies here, by the blocks that differ.

While one chunk comes in, the one before it is hashed and written by a second thread, into and out of two buffers that
are used again and again: the socket does not wait for the disk, nor the disk for the socket. A chunk put together from
blocks that does not hash to its digest is fetched whole before anybody is blamed: an older version may be damaged here.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from node.blocks import Delta, NoDelta
from node.bulk_client import Connection, Job
from node.bulk_http import BadHead, Head
from node.bulk_store import BulkDepot
from node.progress import DISK, NETWORK, Meter
from node.speeds import Speeds
from protocol.blocks import COMPARED_BYTES_MIN, HINTS_CHUNKS_MAX, SAVED_SHARE_MIN, worth_comparing
from protocol.chunks import CHUNK_BYTES, chunk_length
from protocol.values import NodeId, Record, Stripe
from storage.blobs import Blob
from storage.partials import Partial
from storage.refusals import StoreError, WrongBytes

RUN_CHUNKS = HINTS_CHUNKS_MAX  # chunks asked for at once: a round trip every 64 MiB costs little
BUFFERS = 2  # of 1 MiB: one is filled while the other is hashed and written. A dozen readers may be at work at once


class SourceFailed(Exception):
    """This source cannot serve the artifact; the sentence names it. The next one may."""


class Lied(SourceFailed):
    """It announced something else than what the record says."""


class RunReader:
    """Brings runs of one artifact into its partial; for one thread. `close` it."""

    def __init__(
        self,
        record: Record,
        partial: Partial,
        depot: BulkDepot,
        meter: Meter,
        job: Job,
        speeds: Speeds,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._record = record
        self._partial = partial
        self._meter = meter
        self._job = job
        self._speeds = speeds
        self._headers = headers or {}
        self._older: Blob | None = depot.older(record)
        self._shares = True  # what was compared so far had enough in common
        self._compared_bytes = self._saved_bytes = 0
        self._writer = _Writer(partial, meter)

    def get(self, connection: Connection, run: Stripe) -> None:
        """Bring a run of at most RUN_CHUNKS chunks. Raises SourceFailed, StreamBroken, WrongBytes, StorageFailed; what
        came before is in the partial."""
        try:
            if not (self._compares(connection.peer, run) and self._get_blocks(connection, run)):
                self._get_chunks(connection, run)
        finally:
            self._meter.leave()
            self._writer.settle()  # what it raises says more than a connection that broke as well

    def close(self) -> None:
        self._writer.close()
        if self._older is not None:
            self._older.close()
            self._older = None

    def _compares(self, peer: NodeId, run: Stripe) -> bool:
        """What lies behind the end of the older version has nothing to be compared with."""
        if self._older is None or not self._shares or run.first * CHUNK_BYTES >= self._older.size:
            return False
        return worth_comparing(self._speeds.of(peer))

    def _count(self, run: Stripe, asked_bytes: int) -> None:
        """Of what both versions have: how much was compared, and how much of it need not come."""
        assert self._older is not None
        first, end = run.first * CHUNK_BYTES, min((run.first + run.count) * CHUNK_BYTES, self._record.size)
        self._compared_bytes += min(end, self._older.size) - first
        self._saved_bytes += end - first - asked_bytes
        enough = self._saved_bytes >= self._compared_bytes * SAVED_SHARE_MIN
        self._shares = enough or self._compared_bytes < COMPARED_BYTES_MIN

    # Whole chunks

    def _get_chunks(self, connection: Connection, run: Stripe) -> None:
        size = self._record.size
        first, end = run.first * CHUNK_BYTES, min((run.first + run.count) * CHUNK_BYTES, size)
        headers = {"Range": f"bytes={first}-{end - 1}", **self._headers}
        head = connection.get(f"/v1/blob/{self._record.digest.hex()}", headers)
        require(connection, self._record, head, end - first, f"bytes {first}-{end - 1}/{size}")
        began, waited = time.monotonic(), self._writer.waited_seconds
        for index in range(run.first, run.first + run.count):
            self._take(index, lambda _, view: connection.stream.read_into(view))
        seconds = time.monotonic() - began - (self._writer.waited_seconds - waited)
        self._speeds.seen(connection.peer, end - first, seconds)

    def _take(self, index: int, fill: Callable[[int, memoryview], None], blocks: bool = False) -> None:
        self._job.go_on()
        buffer = self._writer.buffer()
        view = buffer[: chunk_length(self._record.size, index)]
        self._meter.enter(NETWORK)
        try:
            fill(index, view)
        except BaseException:
            self._writer.give_back(buffer)
            raise
        self._writer.write(index, buffer, len(view), blocks)

    # Blocks

    def _get_blocks(self, connection: Connection, run: Stripe) -> bool:
        """Whether the run was brought by its blocks; what did not come right that way is fetched whole."""
        assert self._older is not None
        delta = Delta(connection, self._record.digest, self._record.size, self._older)
        buffer = self._writer.buffer()
        try:
            runs = delta.ask(run, buffer, self._headers)
        except (NoDelta, StoreError):
            self._shares = False  # it tells no blocks, or our older version was changed or cannot be read
            return False
        finally:
            self._writer.give_back(buffer)
        self._count(run, delta.asked_bytes)
        for index in runs:
            self._take(index, lambda at, view: delta.put_together(at, runs[at], view), blocks=True)
        self._writer.settle()
        for index in self._writer.take_wrong():
            self._shares = False
            self._get_chunks(connection, Stripe(index, 1))
        return True


class _Writer:
    """Verifies and writes chunks in a thread of its own."""

    def __init__(self, partial: Partial, meter: Meter) -> None:
        self._partial = partial
        self._meter = meter
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[int, memoryview, int, bool] | None] = queue.SimpleQueue()
        self._made = 0
        self._under_way = 0
        self._idle = threading.Condition()
        self._problem: BaseException | None = None
        self._wrong: list[int] = []
        self._thread: threading.Thread | None = None
        self.waited_seconds = 0.0  # for a buffer: the disk or the processor is slower than the peer

    def buffer(self) -> memoryview:
        """A free buffer of one chunk; waits for one. Raises what writing raised."""
        self._go_on()
        if self._made < BUFFERS and self._free.empty():
            self._made += 1
            return memoryview(bytearray(CHUNK_BYTES))
        began = time.monotonic()
        self._meter.leave()  # what the other thread does meanwhile counts
        buffer = self._free.get()
        self.waited_seconds += time.monotonic() - began
        return buffer

    def give_back(self, buffer: memoryview) -> None:
        self._free.put(buffer)

    def write(self, index: int, buffer: memoryview, length: int, blocks: bool) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="bulk-write", daemon=True)
            self._thread.start()
        with self._idle:
            self._under_way += 1
        self._full.put((index, buffer, length, blocks))

    def settle(self) -> None:
        """Wait until everything handed over is written; raises what writing raised, once."""
        with self._idle:
            self._idle.wait_for(lambda: not self._under_way)
        self._go_on()

    def _go_on(self) -> None:
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def take_wrong(self) -> list[int]:
        """Chunks put together from blocks that were not what their digest says."""
        wrong, self._wrong = self._wrong, []
        return wrong

    def close(self) -> None:
        if self._thread is not None:
            self._full.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (work := self._full.get()) is not None:
            index, buffer, length, blocks = work
            try:
                if self._problem is None:
                    self._write(index, buffer[:length], blocks)
            except BaseException as problem:  # told to the thread that reads, which ends the transfer with it
                self._problem = problem
            self._free.put(buffer)
            with self._idle:
                self._under_way -= 1
                self._idle.notify_all()

    def _write(self, index: int, view: memoryview, blocks: bool) -> None:
        self._meter.enter(DISK)
        try:
            self._partial.write_chunk(index, view)
            self._meter.moved(len(view))
        except WrongBytes:
            if not blocks:
                raise
            self._wrong.append(index)
        finally:
            self._meter.leave()


def require(connection: Connection, record: Record, head: Head, length: int, content_range: str | None) -> None:
    """The answer carries exactly what was asked for. Raises SourceFailed, Lied."""
    if head.status not in (200, 206):
        raise SourceFailed(connection.read_sentence(head))
    try:
        announced = head.length
    except BadHead as problem:
        raise SourceFailed(f"{connection.peer}: {problem}") from problem
    if announced != length or (content_range and head.headers.get("content-range") != content_range):
        raise Lied(f"{connection.peer} announces {announced} bytes of {record.name} instead of {length}")
