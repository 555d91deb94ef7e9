"""The digest of an artifact: a BLAKE3 root over its size and the digests of its 1 MiB chunks.

Every chunk can be verified alone, in any order and from any source, and resuming hashes nothing twice. Chunk and root
hashes use different derive-key contexts, so a chunk can never pass for a root. An empty artifact has no chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blake3 import blake3

from protocol.values import DIGEST_BYTES, Digest, Stripe

CHUNK_BYTES = 1 << 20
CHUNK_CONTEXT = "spore artifact chunk v1"
ROOT_CONTEXT = "spore artifact root v1"
LIST_PAGE_CHUNKS = 16_384  # one page of a chunk list is 512 KiB: a list of any size streams in bounded memory


def chunk_count(size: int) -> int:
    return -(-size // CHUNK_BYTES)


def chunk_length(size: int, index: int) -> int:
    """Bytes of chunk `index` of an artifact of `size` bytes."""
    return min(CHUNK_BYTES, size - index * CHUNK_BYTES)


def chunk_digest(chunk: bytes | bytearray | memoryview) -> Digest:
    return blake3(chunk, derive_key_context=CHUNK_CONTEXT).digest()


def root_digest(size: int, leaves: Iterable[Digest]) -> Digest:
    """The artifact's digest from its size (8 bytes, little endian) and its chunk digests in order."""
    root = blake3(size.to_bytes(8, "little"), derive_key_context=ROOT_CONTEXT)
    root.update(b"".join(leaves))
    return root.digest()


def list_matches(digest: Digest, size: int, leaves: Sequence[Digest]) -> bool:
    """Whether a chunk list from anywhere is the list of this artifact."""
    if len(leaves) != chunk_count(size) or any(len(leaf) != DIGEST_BYTES for leaf in leaves):
        return False  # the root is over joined bytes: it does not say where one leaf ends and the next begins
    return root_digest(size, leaves) == digest


def digest_of(content: bytes) -> tuple[Digest, Digest]:
    """Digest and plain BLAKE3 of bytes that are in memory."""
    if 0 < len(content) <= CHUNK_BYTES:  # most are: thousands a second, and no chunk to gather
        return root_digest(len(content), (chunk_digest(content),)), blake3(content).digest()
    hasher = Hasher()
    hasher.update(content)
    return hasher.finish()[:2]


@dataclass(slots=True)
class Hasher:
    """Digest, plain BLAKE3 and chunk list in one pass over bytes of any block size.

    Blocks that are whole chunks are hashed where they lie; other sizes are gathered into one chunk buffer.
    """

    size: int
    leaves: list[Digest]

    def __init__(self) -> None:
        self.size = 0
        self.leaves = []
        self._plain = blake3()
        self._gathered = bytearray()

    _plain: blake3
    _gathered: bytearray

    def update(self, block: bytes | bytearray | memoryview) -> None:
        self._plain.update(block)
        self.size += len(block)
        view = memoryview(block)
        while view:
            if not self._gathered and len(view) >= CHUNK_BYTES:
                self.leaves.append(chunk_digest(view[:CHUNK_BYTES]))
                view = view[CHUNK_BYTES:]
                continue
            taken = CHUNK_BYTES - len(self._gathered)
            self._gathered += view[:taken]
            view = view[taken:]
            self._close_chunk_if(len(self._gathered) == CHUNK_BYTES)

    def finish(self) -> tuple[Digest, Digest, list[Digest]]:
        """Digest, plain BLAKE3, chunk digests. The hasher is spent afterwards."""
        self._close_chunk_if(bool(self._gathered))
        return root_digest(self.size, self.leaves), self._plain.digest(), self.leaves

    def _close_chunk_if(self, complete: bool) -> None:
        if complete:
            self.leaves.append(chunk_digest(self._gathered))
            self._gathered = bytearray()


def split_leaves(packed: bytes) -> tuple[Digest, ...]:
    """Chunk digests from their concatenation, as it is stored and sent."""
    return tuple(packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), DIGEST_BYTES))


def overlap(missing: Iterable[Stripe], wanted: Iterable[Stripe]) -> tuple[Stripe, ...]:
    """The parts of `wanted` that are missing."""
    found = []
    for want in wanted:
        for gap in missing:
            first = max(want.first, gap.first)
            end = min(want.first + want.count, gap.first + gap.count)
            if first < end:
                found.append(Stripe(first, end - first))
    return tuple(found)
