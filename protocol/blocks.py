"""Inside a changed chunk: which 4 KiB blocks differ from what the receiver has at the same place of an older version.

The holder of the new version tells a *hint* for each block, eight bytes of its hash; the receiver hashes its own blocks
and asks for those that differ. A hint proves nothing: the chunk that is put together is verified by its digest as ever,
so a wrong hint, or one of 2^64 equal ones, costs the chunk a second, whole journey and can do no harm.

Blocks stand at multiples of 4 KiB, as the pages of databases do. What was moved by other distances is not found; see
docs/design.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from blake3 import blake3

from protocol.chunks import CHUNK_BYTES

BLOCK_BYTES = 4096  # the page of SQLite and of most file systems
HINT_BYTES = 8
CHUNK_BLOCKS = CHUNK_BYTES // BLOCK_BYTES
HINTS_CHUNKS_MAX = 64  # chunks whose hints are asked for at once: 128 KiB
BLOCK_RUNS_MAX = HINTS_CHUNKS_MAX * CHUNK_BLOCKS // 2  # every second block differs: more runs there cannot be
FAST_BYTES_PER_SECOND = 150_000_000  # on a faster link a whole chunk is there before its blocks are compared (two
# looks at its bytes and a round trip, 3 to 6 ms on a busy core)
SAVED_SHARE_MIN = 0.25  # a version that shares less than this with the older one is fetched by whole chunks
COMPARED_BYTES_MIN = 8 << 20  # before that is judged: a few chunks may have changed altogether

Block = bytes | bytearray | memoryview


def block_count(length: int) -> int:
    return -(-length // BLOCK_BYTES)


def block_hints(chunk: Block) -> bytes:
    """The hints of a chunk's blocks, one behind the other."""
    view = memoryview(chunk)
    return b"".join([blake3(view[at : at + BLOCK_BYTES]).digest(HINT_BYTES) for at in range(0, len(view), BLOCK_BYTES)])


def differing(theirs: bytes, ours: bytes) -> Iterator[tuple[int, int]]:
    """Runs (first block, count) of their blocks that ours, compared place by place, do not equal."""
    first = count = 0
    for index in range(len(theirs) // HINT_BYTES):
        at = index * HINT_BYTES
        if theirs[at : at + HINT_BYTES] == ours[at : at + HINT_BYTES]:
            if count:
                yield first, count
            count = 0
            continue
        first, count = (first, count + 1) if count else (index, 1)
    if count:
        yield first, count


def worth_comparing(bytes_per_second: float | None) -> bool:
    """Whether blocks are compared on a link of this measured speed; on an unknown one, bytes are somebody's money."""
    return bytes_per_second is None or bytes_per_second < FAST_BYTES_PER_SECOND
