"""Fetching one artifact from whoever holds it: chunk list first, then the missing chunks by ranges.

Up to two sources are read at once. A source that fails is left for the next one, and what it did not deliver goes back
to the pile; one that sends wrong bytes is told of and never asked again for this artifact. Every chunk is verified by
the store before it counts, so it does not matter who sent it, or how often the fetch was cut and resumed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from node.bulk_client import Avoided, Connection, Connections, Job
from node.bulk_http import BadHead, Head
from node.bulk_store import BulkDepot
from node.bulk_stream import StreamBroken, sentence_of
from node.progress import CONNECTING, DISK, NETWORK, Meter
from protocol.chunks import (
    CHUNK_BYTES,
    LIST_PAGE_CHUNKS,
    chunk_count,
    chunk_digest,
    chunk_length,
    list_matches,
    split_leaves,
)
from protocol.values import DIGEST_BYTES, Digest, NodeId, Record, Stripe
from storage.partials import Partial
from storage.refusals import StoreError, WrongBytes

SOURCES_AT_ONCE = 2  # one slow source does not hold a fetch up; more would only move the bottleneck to our disk
RUN_CHUNKS = 64  # chunks asked for at once: a round trip every 64 MiB costs little, and two sources share the work

OnWrongBytes = Callable[[str, Digest, str], None]


class SourceFailed(Exception):
    """This source cannot serve the artifact; the sentence names it. The next one may."""


class Fetching:
    """One fetch, run by one thread, which starts a second one while two sources are of use."""

    def __init__(
        self,
        record: Record,
        sources: Sequence[NodeId],
        depot: BulkDepot,
        connections: Connections,
        meter: Meter,
        job: Job,
        on_wrong_bytes: OnWrongBytes,
    ) -> None:
        self._record = record
        self._depot = depot
        self._connections = connections
        self._meter = meter
        self._job = job
        self._on_wrong_bytes = on_wrong_bytes
        self._lock = threading.Lock()
        self._sources = deque(dict.fromkeys(sources))
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
        self._get(connection, f"/v1/blob/{record.digest.hex()}", {}, content)
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

    # Up to two sources at a time

    def _fetch_large(self) -> str:
        partial = self._depot.partial(self._record)
        try:
            while not partial.leaves_known:
                source = self._next_source()
                if source is None:
                    return self._why_not()
                if self._ask(source, lambda connection: self._get_leaves(connection, partial)):
                    self._sources.appendleft(source)
            self._runs.extend(split_runs(partial.missing()))
            self._meter.bytes_done = self._record.size - missing_bytes(self._record.size, self._runs)
            while self._runs and self._sources and not self._disk_problem:
                self._round(partial)
            return "" if partial.complete else self._disk_problem or self._why_not()
        finally:
            partial.close()

    def _round(self, partial: Partial) -> None:
        """Work until the runs are fetched or the sources used up; leaves good sources for another round."""
        second = None
        if len(self._sources) > 1 and len(self._runs) > 1:
            second = threading.Thread(target=self._work, args=(partial,), name="bulk-fetch-second", daemon=True)
            second.start()
        try:
            self._work(partial)
        finally:
            if second is not None:
                second.join()
        self._job.go_on()

    def _work(self, partial: Partial) -> None:
        try:
            while self._runs and (source := self._next_source()):
                if self._ask(source, lambda connection: self._get_runs(connection, partial)):
                    with self._lock:
                        self._sources.appendleft(source)
                    return
        except (StoreError, OSError) as problem:
            self._disk_problem = sentence_of(problem)
        except StreamBroken:
            return  # cancelled: `_round` says so

    def _get_runs(self, connection: Connection, partial: Partial) -> None:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        while run := self._next_run():
            fetched = 0
            try:
                self._begin_run(connection, run)
                for index in range(run.first, run.first + run.count):
                    view = buffer[: chunk_length(self._record.size, index)]
                    self._meter.enter(NETWORK)
                    connection.stream.read_into(view)
                    self._meter.enter(DISK)
                    partial.write_chunk(index, view)
                    self._meter.moved(len(view))
                    fetched += 1
            finally:
                if fetched < run.count:
                    with self._lock:
                        self._runs.appendleft(Stripe(run.first + fetched, run.count - fetched))

    def _begin_run(self, connection: Connection, run: Stripe) -> None:
        first, end = run.first * CHUNK_BYTES, min((run.first + run.count) * CHUNK_BYTES, self._record.size)
        headers = {"Range": f"bytes={first}-{end - 1}"}
        head = connection.get(f"/v1/blob/{self._record.digest.hex()}", headers)
        self._require(connection, head, end - first, f"bytes {first}-{end - 1}/{self._record.size}")

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
            except WrongBytes as problem:
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
        self._require(connection, connection.get(path, headers), len(into), None)
        connection.stream.read_into(into)

    def _require(self, connection: Connection, head: Head, length: int, content_range: str | None) -> None:
        """The answer carries exactly what was asked for."""
        if head.status not in (200, 206):
            raise SourceFailed(connection.read_sentence(head))
        try:
            announced = head.length
        except BadHead as problem:
            raise SourceFailed(f"{connection.peer}: {problem}") from problem
        if announced != length or (content_range and head.headers.get("content-range") != content_range):
            sentence = f"{connection.peer} announces {announced} bytes of {self._record.name} instead of {length}"
            self._blame(connection.peer, sentence)
            raise SourceFailed(sentence)

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
