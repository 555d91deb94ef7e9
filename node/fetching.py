"""Fetching one artifact from whoever holds it: chunk list first, then the missing chunks by ranges.

What lies here already under another name is copied first. Several sources are read at once, and a distant one over
several connections. A source that fails is left for the next one, and what it did not deliver goes back to the pile;
one that sends wrong bytes is told of and never asked again for this artifact. Every chunk is verified by the store
before it counts, so it does not matter who sent it, or how often the fetch was cut and resumed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from node.bulk_client import Avoided, Connection, Connections, Job
from node.bulk_store import BulkDepot
from node.bulk_stream import StreamBroken, sentence_of
from node.progress import CONNECTING, DISK, NETWORK, Meter
from node.runs import RUN_CHUNKS, Lied, RunReader, SourceFailed, require
from protocol.chunks import (
    CHUNK_BYTES,
    LIST_PAGE_CHUNKS,
    chunk_count,
    chunk_digest,
    list_matches,
    overlap,
    split_leaves,
)
from protocol.values import DIGEST_BYTES, Digest, NodeId, Record, Stripe
from storage.partials import Partial
from storage.refusals import StoreError, WrongBytes

STREAMS_MAX = 4  # connections of one fetch: one slow source does not hold it up, and a long fat link is filled

OnWrongBytes = Callable[[str, Digest, str], None]


class Fetching:
    """One fetch, run by one thread, which starts others while several streams are of use."""

    def __init__(
        self,
        record: Record,
        sources: Sequence[NodeId],
        depot: BulkDepot,
        connections: Connections,
        meter: Meter,
        job: Job,
        on_wrong_bytes: OnWrongBytes,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`headers` go with every request for bytes."""
        self._record = record
        self._depot = depot
        self._connections = connections
        self._meter = meter
        self._job = job
        self._on_wrong_bytes = on_wrong_bytes
        self._headers = dict(headers or {})
        self._lock = threading.Lock()
        self._sources = deque(dict.fromkeys(sources))
        self._slots: deque[NodeId] = deque()  # a source for each further stream
        self._runs: deque[Stripe] = deque()
        self._reasons: list[str] = []
        self._disk_problem = ""

    def run(self) -> str:
        """Fetch; "" when all of it stands verified in staging, else the reason why not."""
        try:
            if chunk_count(self._record.size) <= 1:
                return self._fetch_small()
            return self._fetch_large()
        except (StoreError, OSError) as problem:
            return sentence_of(problem)
        except StreamBroken as problem:  # cancelled
            return sentence_of(problem)

    # One source at a time

    def _fetch_small(self) -> str:
        while source := self._next_source():
            if self._ask(source, self._get_small):
                return ""
        return self._why_not()

    def _get_small(self, connection: Connection) -> None:
        record = self._record
        content = memoryview(bytearray(record.size))
        self._get(connection, f"/v1/blob/{record.digest.hex()}", self._headers, content)
        if not list_matches(record.digest, record.size, [chunk_digest(content)] if record.size else []):
            raise WrongBytes(f"{connection.peer} sent wrong bytes for {record.name}; they were dropped")
        self._meter.enter(DISK)
        for _, why in self._depot.arrive_small([(record, content)]):
            raise StoreError(why or "it could not be written")
        self._meter.moved(record.size)

    def _get_leaves(self, connection: Connection, partial: Partial) -> None:
        total = chunk_count(self._record.size)
        packed = memoryview(bytearray(total * DIGEST_BYTES))
        for first in range(0, total, LIST_PAGE_CHUNKS):
            count = min(LIST_PAGE_CHUNKS, total - first)
            path = f"/v1/chunks/{self._record.digest.hex()}?from={first}&count={count}"
            self._get(connection, path, {}, packed[first * DIGEST_BYTES : (first + count) * DIGEST_BYTES])
        try:
            partial.set_leaves(split_leaves(bytes(packed)))
        except WrongBytes as problem:
            raise WrongBytes(f"{connection.peer} sent a wrong chunk list: {problem}") from problem

    # Several streams at a time

    def _fetch_large(self) -> str:
        partial = self._depot.partial(self._record)
        try:
            if why := self._learn(partial):
                return why
            self._meter.enter(DISK)
            partial.fill()
            self._runs.extend(split_runs(partial.missing()))
            self._meter.bytes_done = self._record.size - missing_bytes(self._record.size, self._runs)
            while self._runs and self._sources and not self._disk_problem:
                self._round(partial)
            return "" if partial.complete else self._disk_problem or self._why_not()
        finally:
            partial.close()

    def learn_list(self) -> str:
        """Fetch the chunk list alone, for bytes that come by another way; "" when it is known, else why not."""
        if chunk_count(self._record.size) <= 1:
            return ""
        try:
            partial = self._depot.partial(self._record)
            try:
                return self._learn(partial)
            finally:
                partial.close()
        except (StoreError, OSError) as problem:
            return sentence_of(problem)

    def _learn(self, partial: Partial) -> str:
        while not partial.leaves_known:
            source = self._next_source()
            if source is None:
                return self._why_not()
            if self._ask(source, lambda connection: self._get_leaves(connection, partial)):
                self._sources.appendleft(source)
        return ""

    def _round(self, partial: Partial) -> None:
        """Work until the runs are fetched or the sources used up; leaves good sources for another round."""
        self._slots.clear()
        for _ in range(self._connections.streams_to(self._sources[0])):
            self._slots.extend(self._sources)
        count = min(STREAMS_MAX, len(self._runs), len(self._slots))
        others = [
            threading.Thread(target=self._work, args=(partial,), name="bulk-fetch", daemon=True)
            for _ in range(count - 1)
        ]
        for thread in others:
            thread.start()
        try:
            self._work(partial)
        finally:
            for thread in others:
                thread.join()
        self._job.go_on()

    def _work(self, partial: Partial) -> None:
        """One stream: runs from one source after the other, until there are no runs, or no sources."""
        reader = RunReader(
            self._record, partial, self._depot, self._meter, self._job, self._connections.speeds, self._headers
        )
        try:
            while self._runs and not self._disk_problem and (source := self._next_slot()):
                if self._ask(source, lambda connection: self._get_runs(connection, partial, reader)):
                    return
                with self._lock:
                    self._sources = deque(other for other in self._sources if other != source)
        except (StoreError, OSError) as problem:
            self._disk_problem = sentence_of(problem)
        except StreamBroken:
            return  # cancelled: `_round` says so
        finally:
            reader.close()

    def _get_runs(self, connection: Connection, partial: Partial, reader: RunReader) -> None:
        while not self._disk_problem and (run := self._next_run()):
            try:
                reader.get(connection, run)
            except BaseException:
                with self._lock:
                    self._runs.extendleft(reversed(overlap(partial.missing(), [run])))
                raise

    # Asking

    def _ask(self, source: NodeId, question: Callable[[Connection], None]) -> bool:
        """Put a question to a source; False, with the reason noted, when it fails and another is to be asked.

        A kept connection may have been closed by the peer meanwhile: then, once, a fresh one is tried. Raises what our
        own disk raises, and StreamBroken when the fetch was cancelled.
        """
        for fresh in (False, True):
            self._meter.enter(CONNECTING)
            connection, kept = None, False
            try:
                connection = self._connections.take(source, self._job, fresh)
                self._meter.enter(NETWORK)
                question(connection)
                kept = True
                self._connections.succeeded(source)
                return True
            except (WrongBytes, Lied) as problem:
                self._blame(source, sentence_of(problem))
                self._connections.failed(source, sentence_of(problem))
                return False
            except (SourceFailed, Avoided) as problem:
                self._note(sentence_of(problem))
                if connection is not None:
                    self._connections.succeeded(source)
                return False
            except StreamBroken as problem:
                self._job.go_on()
                if fresh or connection is None or not connection.reused:
                    self._note(sentence_of(problem))
                    self._connections.failed(source, sentence_of(problem))
                    return False
            finally:
                if connection is not None:
                    (self._connections.give_back if kept else self._connections.drop)(connection, self._job)
        return False

    def _get(self, connection: Connection, path: str, headers: dict[str, str], into: memoryview) -> None:
        require(connection, self._record, connection.get(path, headers), len(into), None)
        connection.stream.read_into(into)

    def _blame(self, source: NodeId, sentence: str) -> None:
        self._on_wrong_bytes(source, self._record.digest, sentence)
        self._note(sentence)

    def _note(self, sentence: str) -> None:
        with self._lock:
            if sentence not in self._reasons:
                self._reasons.append(sentence)

    def _why_not(self) -> str:
        self._job.go_on()
        return sentence_of("; ".join(self._reasons) or "no source is left to ask")

    def _next_source(self) -> NodeId | None:
        self._job.go_on()
        with self._lock:
            return self._sources.popleft() if self._sources else None

    def _next_slot(self) -> NodeId | None:
        """The next source for this stream that has not failed."""
        self._job.go_on()
        with self._lock:
            while self._slots:
                source = self._slots.popleft()
                if source in self._sources:
                    return source
            return None

    def _next_run(self) -> Stripe | None:
        self._job.go_on()
        with self._lock:
            return self._runs.popleft() if self._runs else None


def split_runs(missing: Sequence[Stripe]) -> list[Stripe]:
    """The same chunks in runs of at most RUN_CHUNKS."""
    return [
        Stripe(first, min(RUN_CHUNKS, stripe.first + stripe.count - first))
        for stripe in missing
        for first in range(stripe.first, stripe.first + stripe.count, RUN_CHUNKS)
    ]


def missing_bytes(size: int, runs: Sequence[Stripe]) -> int:
    return sum(min(size, (run.first + run.count) * CHUNK_BYTES) - run.first * CHUNK_BYTES for run in runs)
