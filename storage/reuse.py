"""What an artifact on its way in shares with what lies here already: equal chunks, an older version to compare with.

A chunk is known by its digest, so it does not matter which artifact it is taken from: an older version of the same name
first, then any other. Looking through all chunk lists costs a little for each chunk held; it is done only as far as the
chunks that are still missing are worth it. What is copied is verified like any chunk from a peer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from protocol.chunks import CHUNK_BYTES, chunk_length, split_leaves
from protocol.values import Digest, Record
from storage.blobs import Blob
from storage.partials import ChunkedPartial
from storage.places import Lookups
from storage.refusals import StoreError, WrongBytes

LEAVES_LOOKED_AT = 16_384  # for each missing chunk: about 2 ms, in which a gigabit link brings a quarter of the chunk

Places = dict[Digest, list[int]]  # chunk digest → where it belongs; the same bytes may be due at several places


class Reuse:
    """Finds and copies; safe in any thread."""

    def __init__(self, lookups: Lookups, open_blob: Callable[[Digest], Blob | None]) -> None:
        self._lookups = lookups
        self._open_blob = open_blob

    def fill(self, partial: ChunkedPartial) -> int:
        """Copy what is missing and lies here under any name; the bytes it was. Raises StorageFailed."""
        wanted = _wanted(partial)
        copied = 0
        for digest, leaves in self._candidates(partial.record, len(wanted)) if wanted else ():
            if not wanted.keys().isdisjoint(leaves):
                copied += self._copy(partial, digest, leaves, wanted)
            if not wanted:
                break
        return copied

    def older(self, record: Record) -> Blob | None:
        """The newest other version of this name whose bytes lie here, of more than one chunk. The caller closes it."""
        for digest in self._lookups.versions_of(record.name):
            blob = self._open(digest) if digest != record.digest else None
            if blob is not None and blob.size > CHUNK_BYTES:
                return blob
            if blob is not None:
                blob.close()
        return None

    def _candidates(self, record: Record, missing: int) -> Iterator[tuple[Digest, Sequence[Digest]]]:
        """Chunk lists of the versions of this name, then of everything else, as far as the missing chunks pay for."""
        seen = {record.digest}
        for digest in self._lookups.versions_of(record.name):
            if digest not in seen and (leaves := self._lookups.load_leaves(digest)):
                seen.add(digest)
                yield digest, leaves
        budget = LEAVES_LOOKED_AT * missing
        for digest, packed in self._lookups.chunk_lists():
            if budget <= 0:
                return
            leaves = split_leaves(packed)
            budget -= len(leaves)
            if digest not in seen:
                yield digest, leaves

    def _copy(self, partial: ChunkedPartial, digest: Digest, leaves: Sequence[Digest], wanted: Places) -> int:
        blob = self._open(digest)
        if blob is None:
            return 0
        copied = 0
        try:
            for index, leaf in enumerate(leaves):
                if leaf in wanted:
                    copied += self._copy_one(partial, blob, index, wanted.pop(leaf))
        except WrongBytes:
            pass  # it is damaged there, which a verification will find: a peer has it, too
        finally:
            blob.close()
        return copied

    def _copy_one(self, partial: ChunkedPartial, blob: Blob, index: int, targets: list[int]) -> int:
        chunk = bytearray(chunk_length(blob.size, index))
        try:
            blob.read_into(memoryview(chunk), index * CHUNK_BYTES)
            blob.check()
        except StoreError:
            return 0  # it was changed, or cannot be read
        for target in targets:
            partial.write_chunk(target, chunk)
        return len(chunk) * len(targets)

    def _open(self, digest: Digest) -> Blob | None:
        try:
            return self._open_blob(digest)
        except (StoreError, OSError):
            return None


def _wanted(partial: ChunkedPartial) -> Places:
    leaves = partial.leaves()
    wanted: Places = {}
    if leaves is not None:
        for stripe in partial.missing():
            for index in range(stripe.first, stripe.first + stripe.count):
                wanted.setdefault(leaves[index], []).append(index)
    return wanted
