"""The manifest for threads that move bytes: look-ups, and chunk lists on their way to the next group commit.

The depot's threads use this and nothing else of the manifest; every method may be called from any thread.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping, Sequence

from protocol.values import DIGEST_BYTES, Digest, State
from storage.lookups import SharedLookups


class Shelf(SharedLookups):
    """Look-ups of committed rows for any thread; chunk lists are also seen while they wait to be committed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self._waiting: dict[Digest, bytes] = {}
        self._waiting_lock = threading.Lock()

    def save_leaves(self, digest: Digest, leaves: Sequence[Digest]) -> None:
        """Keep a chunk list; it is committed with the next group. Lost in a crash before, it is computed anew."""
        if any(len(part) != DIGEST_BYTES for part in (digest, *leaves)):
            raise ValueError(f"a chunk list holds digests of {DIGEST_BYTES} bytes each; verify it before saving it")
        with self._waiting_lock:
            self._waiting[digest] = b"".join(leaves)

    def load_leaves(self, digest: Digest) -> tuple[Digest, ...] | None:
        with self._waiting_lock:
            joined = self._waiting.get(digest)
        if joined is None:
            joined = self.stored_leaves(digest)
        if joined is None:
            return None
        return tuple(joined[start : start + DIGEST_BYTES] for start in range(0, len(joined), DIGEST_BYTES))

    def digests_of(self, name: str) -> tuple[Digest, ...]:
        """Of the live versions of a name, the newest first."""
        return tuple(record.digest for record in self.versions(name) if record.state is State.LIVE)

    def waiting_leaves(self) -> dict[Digest, bytes]:
        """What the next transaction writes."""
        with self._waiting_lock:
            return dict(self._waiting)

    def leaves_committed(self, written: Mapping[Digest, bytes]) -> None:
        """These chunk lists are in the file; one that was replaced meanwhile goes on waiting."""
        with self._waiting_lock:
            for digest, joined in written.items():
                if self._waiting.get(digest) == joined:
                    del self._waiting[digest]
