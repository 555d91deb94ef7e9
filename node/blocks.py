"""Only the blocks that changed: what a holder answers, how a receiver puts a chunk together (see protocol/blocks.py).

GET  /v1/blocks/{digest}?from=F&count=N      hints of the blocks of N chunks from F on, 8 bytes each
POST /v1/blocks/{digest}                     the bytes of the runs of blocks in the body: first u64, count u32, each
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from contextlib import suppress

from node.bulk_client import Connection
from node.bulk_http import BadHead
from node.bulk_store import read_checked
from node.bulk_stream import Stream, StreamBroken
from protocol.blocks import (
    BLOCK_BYTES,
    BLOCK_RUNS_MAX,
    CHUNK_BLOCKS,
    HINT_BYTES,
    HINTS_CHUNKS_MAX,
    block_count,
    block_hints,
    differing,
)
from protocol.chunks import CHUNK_BYTES, chunk_count, chunk_length
from protocol.values import Digest, Stripe
from storage.blobs import Blob
from storage.refusals import StoreError

_RUN = struct.Struct("<QI")
RUNS_BYTES_MAX = BLOCK_RUNS_MAX * _RUN.size

BlockRun = tuple[int, int]  # first block of the artifact, count


class NoDelta(Exception):
    """This peer does not tell the blocks of this artifact: whole chunks, then."""


# What a holder answers


def hints_length(size: int, first: int, count: int) -> int:
    """Bytes of the hints of `count` chunks from `first` on. Raises BadHead when there are no such chunks."""
    if not 0 < count <= HINTS_CHUNKS_MAX or first + count > chunk_count(size):
        raise BadHead(f"there are no chunks {first} to {first + count - 1}, or more than {HINTS_CHUNKS_MAX} of them")
    return HINT_BYTES * sum(block_count(chunk_length(size, index)) for index in range(first, first + count))


def send_hints(stream: Stream, blob: Blob, first: int, count: int, buffer: memoryview) -> None:
    for index in range(first, first + count):
        view = buffer[: chunk_length(blob.size, index)]
        read_checked(blob, view, index * CHUNK_BYTES)
        stream.send(block_hints(view))


def read_runs(stream: Stream, length: int, size: int) -> list[BlockRun]:
    """The runs in a request's body. Raises BadHead unless they are runs of this artifact, in order, without overlap."""
    if length > RUNS_BYTES_MAX or length % _RUN.size or not length:
        raise BadHead(f"a list of block runs has {_RUN.size} bytes each and {RUNS_BYTES_MAX} at most, not {length}")
    packed = bytearray(length)
    stream.read_into(memoryview(packed))
    runs = list(_RUN.iter_unpack(packed))
    reached = 0
    for first, count in runs:
        if not count or first < reached:
            raise BadHead("block runs come in order, without overlap, and none is empty")
        reached = first + count
    if reached > block_count(size):
        raise BadHead("a block run lies outside the artifact")
    return runs


def runs_length(size: int, runs: Sequence[BlockRun]) -> int:
    return sum(min(size, (first + count) * BLOCK_BYTES) - first * BLOCK_BYTES for first, count in runs)


def send_runs(
    stream: Stream, blob: Blob, runs: Sequence[BlockRun], buffer: memoryview, allow: Callable[[int], int]
) -> None:
    """The bytes of the runs, gathered up to a buffer; what is in it is checked before it leaves."""
    filled = 0
    for first, count in runs:
        at, end = first * BLOCK_BYTES, min(blob.size, (first + count) * BLOCK_BYTES)
        while at < end:
            if filled == len(buffer):
                filled = _sent(stream, blob, buffer, allow)
            view = buffer[filled : filled + end - at]
            blob.read_into(view, at)
            at += len(view)
            filled += len(view)
    _sent(stream, blob, buffer[:filled], allow)


def _sent(stream: Stream, blob: Blob, view: memoryview, allow: Callable[[int], int]) -> int:
    blob.check()
    stream.send(view, allow)
    return 0


# What a receiver does


class Delta:
    """The blocks of one run of chunks that a peer has and our older version has not."""

    def __init__(self, connection: Connection, digest: Digest, size: int, older: Blob) -> None:
        self._connection = connection
        self._path = f"/v1/blocks/{digest.hex()}"
        self._size = size
        self._older = older
        self.asked_bytes = 0

    def ask(self, run: Stripe, buffer: memoryview, headers: dict[str, str]) -> dict[int, list[BlockRun]]:
        """Learn what differs in these chunks (64 at most) and ask for it: for each chunk its runs, within the chunk.

        The bytes follow on the connection, chunk by chunk, in order. Raises NoDelta.
        """
        theirs = self._hints(run)
        runs: dict[int, list[BlockRun]] = {}
        at = 0
        for index in range(run.first, run.first + run.count):
            length = HINT_BYTES * block_count(chunk_length(self._size, index))
            ours = self._older_hints(index, buffer)
            runs[index] = list(differing(theirs[at : at + length], ours))
            at += length
        wanted = [(index * CHUNK_BLOCKS + first, count) for index in runs for first, count in runs[index]]
        self.asked_bytes = runs_length(self._size, wanted)
        if wanted:
            self._request(wanted, headers)
        return runs

    def put_together(self, index: int, runs: Sequence[BlockRun], view: memoryview) -> None:
        """Fill `view`, of the chunk's length, with the older version's chunk and what differs.

        An older version that was changed since makes a wrong chunk, which is found and fetched whole; what the peer
        sends is read all the same.
        """
        older_bytes = min(len(view), max(0, self._older.size - index * CHUNK_BYTES))
        if older_bytes:
            with suppress(StoreError):
                read_checked(self._older, view[:older_bytes], index * CHUNK_BYTES)
        for first, count in runs:
            self._connection.stream.read_into(view[first * BLOCK_BYTES : (first + count) * BLOCK_BYTES])

    def _hints(self, run: Stripe) -> bytes:
        length = hints_length(self._size, run.first, run.count)
        head = self._connection.get(f"{self._path}?from={run.first}&count={run.count}", {})
        if head.status != 200:
            raise NoDelta(self._connection.read_sentence(head))
        if head.length != length:
            raise StreamBroken(f"{self._connection.peer} announces {head.length} bytes of hints instead of {length}")
        theirs = bytearray(length)
        self._connection.stream.read_into(memoryview(theirs))
        return bytes(theirs)

    def _older_hints(self, index: int, buffer: memoryview) -> bytes:
        """Of whole blocks: what stands behind the end of the older version equals nothing."""
        length = min(chunk_length(self._size, index), max(0, self._older.size - index * CHUNK_BYTES))
        view = buffer[:length]
        if length:
            read_checked(self._older, view, index * CHUNK_BYTES)
        return block_hints(view)

    def _request(self, wanted: Sequence[BlockRun], headers: dict[str, str]) -> None:
        body = b"".join(_RUN.pack(first, count) for first, count in wanted)
        self._connection.send_request("POST", self._path, {"Content-Length": str(len(body)), **headers})
        self._connection.stream.send(body)
        head = self._connection.read_answer(self._connection.stream.patience.stall_seconds)
        if head.status != 200:
            raise StreamBroken(self._connection.read_sentence(head))
        if head.length != self.asked_bytes:
            sentence = f"{self._connection.peer} announces {head.length} bytes of blocks instead of {self.asked_bytes}"
            raise StreamBroken(sentence)
