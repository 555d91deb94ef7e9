"""Which WAL entry protects which artifact: from the append until its release. Read from any thread."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from protocol.effects import Entry, Inline
from protocol.values import Digest, Record, RecordKey
from storage.entries import decode_entry
from storage.wal import Wal


class PendingEntries:
    """Record key → WAL entry id, and digest → entry id for those whose bytes stand inline."""

    def __init__(self, wal: Wal) -> None:
        self.wal = wal
        self._lock = threading.Lock()
        self._ids: dict[RecordKey, int] = {}
        self._inline: dict[Digest, int] = {}

    def add(self, entry: Entry, entry_id: int) -> None:
        with self._lock:
            self._ids[entry.record.key] = entry_id
            if isinstance(entry.source, Inline):
                self._inline[entry.record.digest] = entry_id

    def forget(self, records: Iterable[Record]) -> list[int]:
        """Forget these records; returns the ids of their entries."""
        ids = []
        with self._lock:
            for record in records:
                entry_id = self._ids.pop(record.key, None)
                if entry_id is not None:
                    ids.append(entry_id)
                    if self._inline.get(record.digest) == entry_id:
                        del self._inline[record.digest]
        return ids

    def content(self, digest: Digest) -> bytes | None:
        """The bytes of an artifact that stand in the WAL, or None."""
        with self._lock:
            entry_id = self._inline.get(digest)
        if entry_id is None:
            return None
        source = decode_entry(self.wal.read(entry_id)).source
        return source.content if isinstance(source, Inline) else None

    def __len__(self) -> int:
        return len(self._ids)
