"""Which WAL entry protects which artifact: from the append until its release. Read from any thread.

The contents accepted last also stay in memory until they are released, since most are sent within a second: reading
them back from the log would cost more than all the rest of sending them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from protocol.effects import Entry, Inline
from protocol.values import Digest, Record, RecordKey
from storage.entries import EntryUnreadable, decode_entry
from storage.refusals import StorageFailed
from storage.wal import Wal, WalDamaged, WalEntryNotLive

RECENT_BYTES_MAX = 32 << 20  # 3,000 artifacts of 10 KiB: what a burst has waiting. Above, the log is read


class PendingEntries:
    """Record key → WAL entry id, and digest → entry id for those whose bytes stand inline."""

    def __init__(self, wal: Wal) -> None:
        self.wal = wal
        self._lock = threading.Lock()
        self._ids: dict[RecordKey, int] = {}
        self._inline: dict[Digest, dict[int, None]] = {}  # names may share bytes: any live entry will do
        self._recent: dict[Digest, bytes] = {}
        self._recent_bytes = 0

    def add(self, entry: Entry, entry_id: int) -> None:
        with self._lock:
            self._ids[entry.record.key] = entry_id
            if isinstance(entry.source, Inline):
                self._inline.setdefault(entry.record.digest, {})[entry_id] = None
                self._keep(entry.record.digest, entry.source.content)

    def recent(self, digest: Digest) -> bytes | None:
        """The bytes of an artifact that stand in the WAL, if they are still in memory too."""
        with self._lock:
            return self._recent.get(digest)

    def forget(self, records: Iterable[Record]) -> list[int]:
        """Forget these records; returns the ids of their entries."""
        ids = []
        with self._lock:
            for record in records:
                entry_id = self._ids.pop(record.key, None)
                if entry_id is not None:
                    ids.append(entry_id)
                    self._forget_inline(record.digest, entry_id)
        return ids

    def content(self, digest: Digest) -> bytes | None:
        """The bytes of an artifact that stand in the WAL, or None. Raises StorageFailed when they are damaged there."""
        with self._lock:
            ids = list(self._inline.get(digest, ()))
        trouble = ""
        for entry_id in ids:
            try:
                source = decode_entry(self.wal.read(entry_id)).source
            except WalEntryNotLive:
                continue  # released since
            except (WalDamaged, EntryUnreadable) as problem:
                trouble = str(problem)
                continue
            if isinstance(source, Inline):
                return source.content
        if trouble:
            raise StorageFailed(f"the log entry of {digest.hex()[:12]} cannot be read: {trouble}")
        return None

    def _forget_inline(self, digest: Digest, entry_id: int) -> None:
        ids = self._inline.get(digest)
        if ids is not None:
            ids.pop(entry_id, None)
            if not ids:
                del self._inline[digest]
                self._recent_bytes -= len(self._recent.pop(digest, b""))

    def _keep(self, digest: Digest, content: bytes) -> None:
        """Those that came first are sent first: when memory is full, it is the newcomer that is read from the log."""
        if digest not in self._recent and self._recent_bytes + len(content) <= RECENT_BYTES_MAX:
            self._recent[digest] = content
            self._recent_bytes += len(content)

    def __len__(self) -> int:
        return len(self._ids)
