"""The lender's side of rsync: `spore lend DIGEST`, run over SSH by a node that cannot reach our port.

It names a file that holds exactly these bytes: a hard link below `.spore/lent/`, so that no user's path needs quoting
and an upload that takes long does not lose its file; or a small file made for it. A share of the egress budget is set
aside for as long as the file takes at that rate, since it is rsync that sends, not we.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from node.throttle import Throttle
from protocol.chunks import LIST_PAGE_CHUNKS
from protocol.fleet import Priority
from protocol.values import Digest
from storage.blobs import FileBlob, InlineBlob, whole
from storage.depot import Depot
from storage.refusals import StoreError

LENT_SECONDS = 86_400.0  # a link is kept this long: a slow link and a large file take hours
SHARES: dict[Priority, float] = {"low": 0.1, "normal": 0.25, "high": 0.5, "critical": 0.8}  # of what is not lent yet


class NothingToLend(Exception):
    """These bytes are not here; the message is a sentence."""


class Lender:
    """Of one agent; its methods block."""

    def __init__(self, depot: Depot, throttle: Throttle) -> None:
        self._depot = depot
        self._throttle = throttle
        self._folder = depot.store.own / "lent"

    def lend(self, digest: Digest, priority: Priority) -> Iterator[dict[str, object]]:
        """The facts of the loan, then the chunk list in pages. Raises NothingToLend."""
        self.tidy()
        try:
            path, size = self._lent(digest)
            leaves = self._depot.leaves(digest) or ()
        except (StoreError, OSError) as problem:
            raise NothingToLend(f"{digest.hex()} cannot be lent: {problem}") from problem
        rate = self._throttle.lend(SHARES[priority], size)
        yield {"path": str(path), "size": size, "bytes_per_second": None if rate is None else round(rate)}
        for first in range(0, len(leaves), LIST_PAGE_CHUNKS):
            yield {"leaves": b"".join(leaves[first : first + LIST_PAGE_CHUNKS]).hex()}

    def tidy(self) -> None:
        """Remove what was lent long ago."""
        oldest = time.time() - LENT_SECONDS
        with suppress(OSError):
            for path in sorted(self._folder.iterdir()):
                if path.lstat().st_ctime < oldest:  # made, or linked, then
                    path.unlink()

    def _lent(self, digest: Digest) -> tuple[Path, int]:
        blob = self._depot.open_blob(digest)
        if blob is None:
            raise NothingToLend(f"{digest.hex()} is not held here")
        try:
            self._folder.mkdir(exist_ok=True)
            path = self._folder / digest.hex()
            path.unlink(missing_ok=True)
            if isinstance(blob, InlineBlob):
                path.write_bytes(whole(blob))
            elif isinstance(blob, FileBlob):
                path = self._linked(self._depot.store.root / blob.place.path, path)
            return path, blob.size
        finally:
            blob.close()

    def _linked(self, original: Path, link: Path) -> Path:
        """The link; the file itself where the file system has no links, or lets us make none to another's file."""
        with suppress(OSError):
            os.link(original, link, follow_symlinks=False)
            return link
        if any(character in "*?[]\\\n" for character in str(original)):
            raise StoreError(f"{original} cannot be lent: rsync would read its name as a pattern")
        return original
