"""Blobs: bytes of a digest, opened for reading, that say when they are no longer those bytes.

A file is trusted as long as its stat is that of its place. The check comes after the read and before the bytes are
sent on, so that a file changed in between is never passed off as the old digest.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from protocol.chunks import CHUNK_BYTES
from protocol.values import Place, Stripe
from storage.files import FileLayer
from storage.folders import place_stamp, stamp_of
from storage.partials import ChunkedPartial
from storage.refusals import BlobChanged, failure

Withdraw = Callable[[Place, str], None]


class Blob(Protocol):
    """What serves the bytes of one digest. Several threads may read; one closes."""

    @property
    def size(self) -> int: ...

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset` on; the count is shorter only at the end. Raises BlobChanged or StorageFailed."""
        ...

    def check(self) -> None:
        """Raises BlobChanged when the file is not the one that was opened. Call it before sending what was read."""
        ...

    def fileno(self) -> int:
        """The descriptor, or -1 for bytes in memory."""
        ...

    def close(self) -> None: ...


class InlineBlob:
    """Bytes of a pending WAL entry, at most 64 KiB."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size(self) -> int:
        return len(self._content)

    def read_into(self, view: memoryview, offset: int) -> int:
        piece = self._content[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def check(self) -> None:
        """Memory does not change."""

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """Nothing is open."""


class FileBlob:
    """A file of ours or of a user, at a place."""

    def __init__(self, files: FileLayer, fd: int, place: Place, withdraw: Withdraw) -> None:
        self.place = place
        self._files = files
        self._fd = fd
        self._withdraw = withdraw

    @property
    def size(self) -> int:
        return self.place.size

    def read_into(self, view: memoryview, offset: int) -> int:
        wanted = view[: max(0, self.place.size - offset)]
        filled = 0
        while filled < len(wanted):
            try:  # not through the file layer: its reads allocate, and no promise rests on this one
                count = os.preadv(self._fd, [wanted[filled:]], offset + filled)
            except OSError as error:
                raise failure(error, f"read {self.place.path}") from error
            if count == 0:
                raise self._changed("it is shorter than it was")
            filled += count
        return filled

    def check(self) -> None:
        try:
            now = stamp_of(self._files.fstat(self._fd))
        except OSError as error:
            raise failure(error, f"look at {self.place.path}") from error
        if now != place_stamp(self.place):
            raise self._changed("it was changed after it was accepted")

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1

    def _changed(self, why: str) -> BlobChanged:
        self._withdraw(self.place, why)
        return BlobChanged(f"{self.place.path} no longer holds what it did: {why}")


class PartialBlob:
    """The chunks of an unfinished artifact that are verified, read from staging."""

    def __init__(self, partial: ChunkedPartial) -> None:
        self._partial = partial

    @property
    def size(self) -> int:
        return self._partial.record.size

    def covers(self, first: int, end: int) -> bool:
        """Whether all chunks of these bytes are there."""
        chunks = Stripe(first // CHUNK_BYTES, -(-end // CHUNK_BYTES) - first // CHUNK_BYTES)
        return first < end and not self._partial.lacking(chunks)

    def read_into(self, view: memoryview, offset: int) -> int:
        try:
            return os.preadv(self._partial.fd, [view[: max(0, self.size - offset)]], offset)
        except OSError as error:
            raise failure(error, f"read {self._partial.record.name} in staging") from error

    def check(self) -> None:
        """Chunks do not change once they are verified."""

    def fileno(self) -> int:
        return self._partial.fd

    def close(self) -> None:
        self._partial.close()


def whole(blob: Blob) -> bytes:
    """All bytes of a small blob, checked."""
    content = bytearray(blob.size)
    blob.read_into(memoryview(content), 0)
    blob.check()
    return bytes(content)
