"""What the bulk path needs of the store: the part of `storage.depot.Depot` that moves bytes, as a protocol.

Every method blocks and is called from bulk threads, several at once. Whatever fails raises a `StoreError` (or an
`OSError`), whose message is a sentence fit for the peer and the log.
"""

from __future__ import annotations

from typing import Protocol

from protocol.values import Digest, Record
from storage.blobs import Blob, PartialBlob
from storage.partials import Chunk, Partial
from storage.refusals import BlobChanged


class BulkDepot(Protocol):
    def open_blob(self, digest: Digest) -> Blob | None:
        """The bytes of a digest, or None when they are not held here (any more)."""
        ...

    def open_partial(self, digest: Digest) -> PartialBlob | None:
        """The verified chunks of what is on its way in, or None when nothing of it is."""
        ...

    def leaves(self, digest: Digest) -> tuple[Digest, ...] | None:
        """The chunk list of a digest that is held here, or on its way in."""
        ...

    def partial(self, record: Record) -> Partial:
        """The staging file of a record for which room was reserved."""
        ...

    def older(self, record: Record) -> Blob | None:
        """An older version that is held here, whose blocks may be equal; the caller closes it."""
        ...

    def arrive_small(self, items: list[tuple[Record, Chunk]]) -> list[tuple[Record, str]]:
        """Verify and write many at once; returns those that failed, each with the reason."""
        ...


def read_checked(blob: Blob, view: memoryview, offset: int) -> None:
    """Fill the view from the blob, or raise BlobChanged (or what the disk says): what is in the view may be sent."""
    at = 0
    while at < len(view):
        count = blob.read_into(view[at:], offset + at)
        if count == 0:
            break
        at += count
    blob.check()
    if at < len(view):
        raise BlobChanged(f"the file ends {len(view) - at} bytes early")
