"""One artifact arriving in staging, chunk by chunk, verified before a byte is written.

Chunks come in any order from any number of threads. A chunk is *written* when its bytes are in the file, and
*marked* when they were synced and the map says so; marks follow at most 64 MiB behind. What is written and not yet
marked stands in a list of hints, which survives `kill -9` (the kernel keeps it) and is believed only after the chunk
was hashed again. So a killed process loses the chunks in flight, and a power loss at most 64 MiB.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from protocol.chunks import CHUNK_BYTES, chunk_count, chunk_digest, chunk_length, list_matches, split_leaves
from protocol.values import DIGEST_BYTES, Digest, Record, Stripe
from storage.chunkmap import Marks, decode_map, encode_map, map_bytes, read_file, replace_file
from storage.files import FileLayer
from storage.refusals import StorageFailed, WrongBytes, sentences

MARK_CHUNKS = 64  # chunks (64 MiB) between syncs: what a power loss may cost, and a second of a fast disk
WRITE_BACK_CHUNKS = 8  # write-back starts this often, so that the sync before a mark has little left to do
HINT_BYTES = 4  # a chunk index; 2^32 chunks are four pebibytes

Chunk = bytes | bytearray | memoryview


class Partial(Protocol):
    """What receives the chunks of one artifact. `close` it; the object may be shared by several threads."""

    record: Record

    @property
    def leaves_known(self) -> bool: ...

    @property
    def complete(self) -> bool: ...

    def set_leaves(self, leaves: Sequence[Digest]) -> None:
        """Take the chunk list, from anywhere. Raises WrongBytes unless it is the list of this digest."""
        ...

    def fill(self) -> int:
        """Once its list is known: copy the chunks that lie here under any other name; the bytes that were copied.

        Called by whoever chooses what to ask of peers; after the first time in a life it does nothing.
        """
        ...

    def leaves(self) -> tuple[Digest, ...] | None: ...

    def missing(self) -> tuple[Stripe, ...]:
        """What is not here yet, as runs of chunks; empty when complete."""
        ...

    def lacking(self, run: Stripe) -> tuple[Stripe, ...]:
        """As `missing`, within a run."""
        ...

    def write_chunk(self, index: int, chunk: Chunk) -> None:
        """Verify and write one chunk. Raises WrongBytes (nothing was written) or StorageFailed."""
        ...

    def close(self) -> None: ...


class ChunkedPartial:
    """An artifact of more than one chunk, with its map, chunk list and hints beside the bytes."""

    def __init__(
        self,
        files: FileLayer,
        path: Path,
        fd: int,
        record: Record,
        closed: Callable[[ChunkedPartial], None],
        reuse: Callable[[ChunkedPartial], int],
    ) -> None:
        """`path` and `fd` are the file of bytes, already of full size; `closed` is told at every `close`; `reuse`
        copies what lies here already."""
        self.record = record
        self.users = 1  # counted by staging, under its lock
        self._files = files
        self._path = path
        self._fd = fd
        self._closed = closed
        self._reuse = reuse
        self._filling = threading.Lock()
        self._filled = False
        self._total = chunk_count(record.size)
        self._changed = threading.Condition()
        self._marking = threading.Lock()
        self._in_flight: set[int] = set()
        self._unmarked: set[int] = set()
        self._write_back: list[int] = []
        self._hinted = 0
        self._name_durable = False
        self._leaves = self._load_leaves()
        self._marked = self._load_marks()
        self._written = Marks(self._total, bytes(self._marked.bits))
        self._hints_fd = -1  # opened when there is something to hint at
        self._believe_hints()

    @property
    def fd(self) -> int:
        return self._fd

    @property
    def leaves_known(self) -> bool:
        return self._leaves is not None

    @property
    def complete(self) -> bool:
        return self._written.count == self._total

    def leaves(self) -> tuple[Digest, ...] | None:
        return self._leaves

    def set_leaves(self, leaves: Sequence[Digest]) -> None:
        if not list_matches(self.record.digest, self.record.size, leaves):
            raise WrongBytes(f"the chunk list for {self.record.name} is not that of its digest; it was dropped")
        with self._marking:
            if self._leaves is None:
                with sentences(f"keep the chunk list of {self.record.name}"):
                    replace_file(self._files, sidecar(self._path, "leaves"), b"".join(leaves))
                self._leaves = tuple(leaves)

    def fill(self) -> int:
        with self._filling:
            if self._filled or self._leaves is None or self.complete:
                return 0
            self._filled = True
            return self._reuse(self)

    def missing(self) -> tuple[Stripe, ...]:
        with self._changed:
            return self._written.missing()

    def lacking(self, run: Stripe) -> tuple[Stripe, ...]:
        with self._changed:
            return self._written.missing(run)

    def write_chunk(self, index: int, chunk: Chunk) -> None:
        self._verify(index, chunk)
        with self._flight(index) as wanted:
            if not wanted:
                return
            with sentences(f"write {self.record.name} to staging"):
                self._files.pwrite(self._fd, chunk, index * CHUNK_BYTES)
        self._hint(index)
        self._start_write_back(index)
        if len(self._unmarked) >= MARK_CHUNKS and not self.complete:
            self.mark()

    def mark(self) -> None:
        """Sync what is written, then say so in the map. Raises StorageFailed; what failed is missing again."""
        with self._marking, sentences(f"sync {self.record.name} in staging"):
            with self._changed:
                pending = frozenset(self._unmarked)
            self.sync(pending)
            for index in sorted(pending):
                self._marked.add(index)
            if not self._name_durable:
                self._files.fsync_dir(self._path.parent)
                self._name_durable = True
            replace_file(self._files, sidecar(self._path, "map"), self._encoded())
            self._files.fsync_dir(self._path.parent)  # else the map that counts could be any older one
            self._drop_hints(pending)

    def sync(self, pending: frozenset[int] | None = None, data_only: bool = True) -> None:
        """Sync the bytes. After a failure the kernel may have dropped pages of chunks that were not marked yet, and
        would not say so again: they count as missing."""
        try:
            if data_only:
                self._files.fdatasync(self._fd)
            else:
                self._files.fsync(self._fd)
        except OSError:
            self.distrust(pending)
            raise

    def distrust(self, pending: frozenset[int] | None = None) -> None:
        """Count chunks that were written since the last mark as missing."""
        with self._changed:
            for index in self._unmarked if pending is None else pending:
                self._written.discard(index)
            self._unmarked -= self._unmarked if pending is None else pending

    def close(self) -> None:
        """Keep what is written for a later try; a complete artifact is synced by its publication instead."""
        with suppress(StorageFailed):  # then the next try asks for those chunks again
            if self._unmarked and not self.complete:
                self.mark()
        self._closed(self)

    def release(self) -> None:
        """Called by staging when nobody uses this any more."""
        if self._hints_fd >= 0:
            self._files.close(self._hints_fd)
        self._files.close(self._fd)

    def _verify(self, index: int, chunk: Chunk) -> None:
        if self._leaves is None:
            raise WrongBytes(f"a chunk of {self.record.name} came before its chunk list; send the list first")
        if not 0 <= index < self._total or len(chunk) != chunk_length(self.record.size, index):
            raise WrongBytes(f"chunk {index} of {self.record.name} has {len(chunk)} bytes, which is not its length")
        if chunk_digest(chunk) != self._leaves[index]:
            raise WrongBytes(f"chunk {index} of {self.record.name} is not what its digest says; it was dropped")

    @contextmanager
    def _flight(self, index: int) -> Iterator[bool]:
        """Write a chunk only once, even if two threads bring it; nobody writes to a file that is complete."""
        with self._changed:
            while index in self._in_flight:
                self._changed.wait()
            wanted = index not in self._written
            if wanted:
                self._in_flight.add(index)
        done = False
        try:
            yield wanted
            done = True
        finally:
            with self._changed:
                if wanted:
                    self._in_flight.discard(index)
                    if done:
                        self._written.add(index)
                        self._unmarked.add(index)
                    self._changed.notify_all()

    def _hint(self, index: int) -> None:
        with self._changed, suppress(OSError):  # a lost hint costs one chunk after a crash, nothing else
            if self._hints_fd < 0:
                self._hints_fd = self._files.open(sidecar(self._path, "hints"), os.O_RDWR | os.O_CREAT)
            self._files.pwrite(self._hints_fd, index.to_bytes(HINT_BYTES, "little"), self._hinted * HINT_BYTES)
            self._hinted += 1

    def _start_write_back(self, index: int) -> None:
        with self._changed:
            self._write_back.append(index)
            due = sorted(self._write_back) if len(self._write_back) >= WRITE_BACK_CHUNKS else []
            if due:
                self._write_back = []
        if due:
            span_bytes = (due[-1] - due[0] + 1) * CHUNK_BYTES
            with suppress(OSError):  # only an early start; the sync before a mark is what counts
                self._files.sync_file_range(self._fd, due[0] * CHUNK_BYTES, span_bytes)

    def _drop_hints(self, marked: frozenset[int]) -> None:
        with self._changed:
            self._unmarked -= marked
            if self._hints_fd < 0:
                return
            rest = b"".join(index.to_bytes(HINT_BYTES, "little") for index in sorted(self._unmarked))
            self._files.ftruncate(self._hints_fd, 0)
            self._files.pwrite(self._hints_fd, rest, 0)
            self._hinted = len(self._unmarked)

    def _encoded(self) -> bytes:
        return encode_map(self.record.digest, self.record.size, self._marked)

    def _load_leaves(self) -> tuple[Digest, ...] | None:
        packed = read_file(self._files, sidecar(self._path, "leaves"), self._total * DIGEST_BYTES)
        leaves = split_leaves(packed or b"")
        return leaves if list_matches(self.record.digest, self.record.size, leaves) else None

    def _load_marks(self) -> Marks:
        content = read_file(self._files, sidecar(self._path, "map"), map_bytes(self._total))
        marks = decode_map(content, self.record.digest, self.record.size) if content else None
        return marks or Marks(self._total)

    def _believe_hints(self) -> None:
        """Hash again the few chunks that the last life wrote and did not mark."""
        hints = read_file(self._files, sidecar(self._path, "hints"), self._total * HINT_BYTES * 2)
        if not hints or self._leaves is None:
            return
        for at in range(0, len(hints) - HINT_BYTES + 1, HINT_BYTES):
            index = int.from_bytes(hints[at : at + HINT_BYTES], "little")
            if index < self._total and index not in self._written:
                chunk = self._files.pread(self._fd, chunk_length(self.record.size, index), index * CHUNK_BYTES)
                if chunk_digest(chunk) == self._leaves[index]:
                    self._written.add(index)
                    self._unmarked.add(index)
        self._hinted = len(hints) // HINT_BYTES


class SmallPartial:
    """An artifact of at most one chunk: it arrives whole or not at all, and needs neither list nor map."""

    def __init__(
        self, record: Record, here: Callable[[Record], bool], arrive: Callable[[Record, Chunk], object]
    ) -> None:
        self.record = record
        self._here = here
        self._arrive = arrive

    @property
    def leaves_known(self) -> bool:
        return True

    @property
    def complete(self) -> bool:
        return self._here(self.record)

    def leaves(self) -> tuple[Digest, ...] | None:
        return None  # the one leaf is not needed: the chunk alone proves the digest

    def set_leaves(self, leaves: Sequence[Digest]) -> None:
        if not list_matches(self.record.digest, self.record.size, leaves):
            raise WrongBytes(f"the chunk list for {self.record.name} is not that of its digest; it was dropped")

    def fill(self) -> int:
        return 0  # bytes that lie here under another name are published from there, without a transfer

    def missing(self) -> tuple[Stripe, ...]:
        return () if self.complete else (Stripe(0, chunk_count(self.record.size)),)

    def lacking(self, run: Stripe) -> tuple[Stripe, ...]:
        return self.missing()

    def write_chunk(self, index: int, chunk: Chunk) -> None:
        if index:
            raise WrongBytes(f"{self.record.name} has one chunk, and chunk {index} came")
        self._arrive(self.record, chunk)

    def close(self) -> None:
        """Nothing is kept open for a small artifact."""


def sidecar(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")
