"""Receiving one upload: frames in, verified chunks into staging, the fate of every expected artifact out.

Small artifacts are gathered and handed to the store many at once; large ones are written chunk by chunk. Everything is
verified by the store before it counts. A peer whose bytes are wrong fails the artifact, not the stream; one that wastes
more than `WASTED_BYTES_MAX`, or whose framing is wrong, is cut off. What verified stays in staging in every case.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from node.bulk_store import BulkDepot
from node.bulk_stream import StreamBroken, sentence_of
from node.inbox import Expected, Item
from node.parcels import Chunk, Close, End, Frame, FrameReader, Gone, Large, ListPage, Small
from node.progress import DISK, NETWORK
from protocol.chunks import CHUNK_BYTES, chunk_count, chunk_digest, chunk_length, list_matches
from protocol.values import DIGEST_BYTES, Digest, Record
from storage.partials import Chunk as ChunkBytes
from storage.partials import Partial
from storage.refusals import StoreError, WrongBytes

BATCH_BYTES = 8 << 20  # small artifacts handed to the store at once: one offer's worth (see protocol/sending.py)
BATCH_COUNT = 1_000  # as many as an offer holds
WASTED_BYTES_MAX = 8 << 20  # of bytes that failed: eight bad chunks tell bad luck from a bad peer

WrongBytesHook = Callable[[str, Digest, str], None]  # peer, digest, sentence


class _Open:
    """The large artifact that is being received. Without `partial`, what comes for it is read and dropped."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.left_chunks = item.chunks
        self.partial: Partial | None = None
        self.leaves: list[Digest] = []
        self.error = ""

    @property
    def record(self) -> Record:
        return self.item.record


class Receiver:
    """Reads one stream to its end. `receive` raises StreamBroken; in any case `close` must follow."""

    def __init__(
        self, expected: Expected, depot: BulkDepot, frames: FrameReader, on_wrong_bytes: WrongBytesHook
    ) -> None:
        self._expected = expected
        self._depot = depot
        self._frames = frames
        self._on_wrong_bytes = on_wrong_bytes
        self._open: _Open | None = None
        self._chunk = memoryview(b"")
        self._arena = memoryview(b"")
        self._arena_end = 0
        self._batch: list[tuple[Record, ChunkBytes]] = []
        self._wasted_bytes = 0
        self._peer = expected.peer
        self._seen: set[Digest] = set()

    def receive(self) -> None:
        for item in self._expected.items.values():
            if item.staged:
                self._settle_staged(item)
        self._expected.meter.enter(NETWORK)
        while True:
            frame = self._frames.next()
            if isinstance(frame, End):
                self._require(self._open is None, "ended inside an artifact")
                return
            self._take(frame)

    def close(self) -> None:
        """Hand over what came whole and close what is open; never raises for what the store or the peer did."""
        with contextlib.suppress(StreamBroken):
            self._deliver()
        opened, self._open = self._open, None
        if opened is not None:
            self._close_partial(opened, interrupted=True)

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, Small):
            self._small(frame)
        elif isinstance(frame, Chunk):
            self._take_chunk(frame)
        elif isinstance(frame, Large):
            self._large(frame)
        elif isinstance(frame, ListPage):
            self._list_page(frame)
        elif isinstance(frame, Close):
            opened = self._required_open()
            self._open = None
            self._close_partial(opened, interrupted=False)
        elif isinstance(frame, Gone):
            self._gone(frame)

    def _settle_staged(self, item: Item) -> None:
        self._seen.add(item.record.digest)
        opened = _Open(item)
        try:
            opened.partial = self._depot.partial(item.record)
        except (StoreError, OSError) as problem:
            opened.error = sentence_of(problem)
        self._close_partial(opened, interrupted=False)

    # Small artifacts

    def _small(self, frame: Small) -> None:
        item = self._begin(frame.digest)
        self._require(frame.size <= CHUNK_BYTES, f"announced a small artifact of {frame.size} bytes")
        view = self._room(frame.size)
        self._frames.read_into(view)
        if frame.size != item.record.size:
            self._expected.settle(item, self._blame(frame.digest, _lie(self._peer, item.record, frame.size)))
            self._waste(frame.size)
            return
        self._arena_end += frame.size
        self._batch.append((item.record, view))
        self._expected.meter.moved(frame.size)
        if len(self._batch) >= BATCH_COUNT:
            self._deliver()

    def _room(self, size: int) -> memoryview:
        if not self._arena:
            self._arena = memoryview(bytearray(BATCH_BYTES))  # touched only as far as it is filled
        if self._arena_end + size > len(self._arena):
            self._deliver()
        return self._arena[self._arena_end : self._arena_end + size]

    def _deliver(self) -> None:
        """Hand the gathered batch to the store. Its bytes stay in the arena until the next one is gathered."""
        batch, self._batch, self._arena_end = self._batch, [], 0
        if not batch:
            return
        self._expected.meter.enter(DISK)
        try:
            failed = {record.digest: sentence_of(why) for record, why in self._depot.arrive_small(batch) if why}
        except (StoreError, OSError) as problem:
            failed = {record.digest: sentence_of(problem) for record, _ in batch}
        wrong_bytes = 0
        for record, view in batch:
            why = failed.get(record.digest, "")
            if why and not list_matches(record.digest, record.size, _leaves_of(view)):
                self._blame(record.digest, why)
                wrong_bytes += len(view)
            self._expected.settle(self._expected.items[record.digest], why)
        self._expected.meter.enter(NETWORK)
        self._waste(wrong_bytes)

    # Large artifacts

    def _large(self, frame: Large) -> None:
        item = self._begin(frame.digest)
        self._open = opened = _Open(item)
        if frame.size != item.record.size:
            opened.error = self._blame(frame.digest, _lie(self._peer, item.record, frame.size))
            return
        try:
            opened.partial = self._depot.partial(item.record)
        except (StoreError, OSError) as problem:
            opened.error = sentence_of(problem)

    def _list_page(self, page: ListPage) -> None:
        opened = self._required_open()
        if opened.partial is None:
            self._waste(len(page.leaves) * DIGEST_BYTES)
            return
        expected_count = chunk_count(opened.record.size)
        opened.leaves.extend(page.leaves)
        self._require(len(opened.leaves) <= expected_count, "sent a chunk list longer than its artifact")
        if len(opened.leaves) == expected_count and not opened.partial.leaves_known:
            self._store(opened, 0, lambda partial: partial.set_leaves(opened.leaves))

    def _take_chunk(self, frame: Chunk) -> None:
        opened = self._required_open()
        self._require(frame.length <= CHUNK_BYTES, f"announced a chunk of {frame.length} bytes")
        if not self._chunk:
            self._chunk = memoryview(bytearray(CHUNK_BYTES))
        view = self._chunk[: frame.length]
        self._frames.read_into(view)
        if opened.partial is None:
            self._waste(frame.length)
            return
        opened.left_chunks -= 1
        fits = frame.index < chunk_count(opened.record.size)
        fits = fits and frame.length == chunk_length(opened.record.size, frame.index)
        self._require(fits and opened.left_chunks >= 0, f"sent chunk {frame.index}, which was not asked for")
        if self._store(opened, frame.length, lambda partial: partial.write_chunk(frame.index, view)):
            self._expected.meter.moved(frame.length)

    def _store(self, opened: _Open, size: int, act: Callable[[Partial], None]) -> bool:
        """Let the store act on the open artifact; its first failure becomes the artifact's."""
        assert opened.partial is not None
        self._expected.meter.enter(DISK)
        try:
            act(opened.partial)
        except WrongBytes as problem:
            opened.error = opened.error or self._blame(opened.record.digest, sentence_of(problem))
            self._waste(size)
            return False
        except (StoreError, OSError) as problem:
            opened.error = opened.error or sentence_of(problem)
            self._waste(size)
            return False
        finally:
            self._expected.meter.enter(NETWORK)
        return True

    def _close_partial(self, opened: _Open, interrupted: bool) -> None:
        complete = False
        if opened.partial is not None:
            try:
                complete = opened.partial.complete
                opened.partial.close()
            except (StoreError, OSError) as problem:
                complete, opened.error = False, opened.error or sentence_of(problem)
        if complete:
            self._expected.settle(opened.item)
        elif opened.error or not interrupted:
            self._expected.settle(opened.item, opened.error or "chunks of it are still missing")

    def _gone(self, frame: Gone) -> None:
        opened = self._open
        if opened is not None and opened.record.digest == frame.digest:
            self._open = None
            opened.error = opened.error or frame.why
            self._close_partial(opened, interrupted=False)
        else:
            self._expected.settle(self._begin(frame.digest), frame.why)

    # What is held against the peer

    def _begin(self, digest: Digest) -> Item:
        self._require(self._open is None, "began an artifact inside another")
        item = self._expected.items.get(digest)
        self._require(item is not None and digest not in self._seen, "sent an artifact that was not asked for")
        assert item is not None
        self._seen.add(digest)
        return item

    def _required_open(self) -> _Open:
        self._require(self._open is not None, "sent chunks of no artifact")
        assert self._open is not None
        return self._open

    def _require(self, kept: bool, did: str) -> None:
        if not kept:
            raise StreamBroken(f"{self._peer} {did}: closed")

    def _blame(self, digest: Digest, sentence: str) -> str:
        self._on_wrong_bytes(self._peer, digest, sentence)
        return sentence

    def _waste(self, count_bytes: int) -> None:
        self._wasted_bytes += count_bytes
        self._require(self._wasted_bytes <= WASTED_BYTES_MAX, "sent too much that could not be used")


def _lie(peer: str, record: Record, size: int) -> str:
    return f"{peer} sends {size} bytes as {record.name}, whose record says {record.size}"


def _leaves_of(view: ChunkBytes) -> list[Digest]:
    return [chunk_digest(view)] if len(view) else []
