"""What a write-ahead log knows in memory: its segments, and where each live entry stands.

The only state of the log that several threads touch. Every method takes the lock for the look-up alone and never
holds it during a system call that may wait for the disk. Whoever reads from a segment counts itself in and out; a
segment that is removed meanwhile is closed by its last reader.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage import wal_format as fmt
from storage.files import FileLayer


@dataclass(slots=True, eq=False)
class Segment:
    """One open segment file. `Table` alone changes the last three fields, the writer the two before."""

    sequence: int
    path: Path
    fd: int
    size_bytes: int  # where the next frame goes; what the log counts, whatever may lie behind it
    durable_bytes: int  # up to here a sync has returned
    live_bytes: int = 0
    readers: int = 0
    retired: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a live entry stands. Made by whoever wrote or found its frame."""

    segment: Segment
    offset: int
    payload_bytes: int

    @property
    def frame_bytes(self) -> int:
        return fmt.frame_bytes(self.payload_bytes)


@dataclass(frozen=True, slots=True)
class WalUsage:
    """How much the log holds. `bytes` is what lies on disk, `live_bytes` the part that is not released."""

    bytes: int
    live_bytes: int
    live_entries: int
    segments: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large the log may become; `Wal.open` says what is sensible."""

    segment_bytes: int
    size_bytes_max: int
    entries_max: int


class Table:
    """Segments by sequence, live entries by id, both ascending."""

    def __init__(
        self, files: FileLayer, bounds: Bounds, segments: dict[int, Segment], places: dict[int, Place]
    ) -> None:
        self._files = files
        self._bounds = bounds
        self._lock = threading.Lock()
        self._segments = segments
        self._places = places
        self._damaged: dict[int, str] = {}  # bounded: an id comes here from `places` at most once
        for place in places.values():
            place.segment.live_bytes += place.frame_bytes

    # Entries

    @contextmanager
    def reading(self, entry_id: int) -> Iterator[Place | None]:
        """The place of a live entry, whose segment stays open inside the block; None when it is not live."""
        with self._lock:
            place = self._places.get(entry_id)
            if place is not None:
                place.segment.readers += 1
        try:
            yield place
        finally:
            if place is not None:
                self._leave(place.segment)

    def settle(self, places: dict[int, Place]) -> None:
        """Remember where entries stand, for new ones and for moved ones."""
        with self._lock:
            for entry_id, place in places.items():
                former = self._places.get(entry_id)
                if former is not None:
                    former.segment.live_bytes -= former.frame_bytes
                self._places[entry_id] = place
                place.segment.live_bytes += place.frame_bytes

    def forget(self, ids: Iterable[int]) -> dict[int, Place]:
        """These entries are not live any more; returns those that were."""
        with self._lock:
            forgotten = {entry_id: place for entry_id in ids if (place := self._places.pop(entry_id, None))}
            for place in forgotten.values():
                place.segment.live_bytes -= place.frame_bytes
        return forgotten

    def note_damage(self, entry_id: int, sentence: str) -> None:
        """Remember what was found wrong, unless the entry has ceased to be live while it was read."""
        with self._lock:
            if entry_id in self._places:
                self._damaged[entry_id] = sentence

    def damaged(self) -> dict[int, str]:
        with self._lock:
            return dict(self._damaged)

    def live_ids(self) -> list[int]:
        with self._lock:
            return list(self._places)

    def live_in(self, segment: Segment) -> list[tuple[int, Place]]:
        """The live entries of one segment; looks at all live entries, which compaction can afford."""
        with self._lock:
            return [(entry_id, place) for entry_id, place in self._places.items() if place.segment is segment]

    # Segments

    def add(self, segment: Segment) -> None:
        with self._lock:
            self._segments[segment.sequence] = segment

    def ends(self) -> tuple[Segment, Segment] | None:
        """The oldest and the newest segment, or None when there is none."""
        with self._lock:
            if not self._segments:
                return None
            return self._segments[min(self._segments)], self._segments[max(self._segments)]

    def after(self, segment: Segment) -> int | None:
        """The sequence of the next younger segment."""
        with self._lock:
            return min((sequence for sequence in self._segments if sequence > segment.sequence), default=None)

    def retire(self, segment: Segment) -> None:
        """Take a segment off the table; its file is closed now or by its last reader."""
        with self._lock:
            self._segments.pop(segment.sequence, None)
            segment.retired = True
            unused = segment.readers == 0
        if unused:
            self._files.close(segment.fd)

    def retire_all(self) -> None:
        with self._lock:
            segments = list(self._segments.values())
            self._places.clear()
        for segment in segments:
            self.retire(segment)

    def _leave(self, segment: Segment) -> None:
        with self._lock:
            segment.readers -= 1
            unused = segment.retired and segment.readers == 0
        if unused:
            self._files.close(segment.fd)

    # Room

    def usage(self) -> WalUsage:
        with self._lock:
            return WalUsage(
                bytes=sum(segment.size_bytes for segment in self._segments.values()),
                live_bytes=sum(segment.live_bytes for segment in self._segments.values()),
                live_entries=len(self._places),
                segments=len(self._segments),
            )

    def fits(self, entries: int, added_bytes: int) -> bool:
        """One segment's worth stays free, so that `release` and `compact`, which make room, always have some."""
        limit_bytes = self._bounds.size_bytes_max - self._bounds.segment_bytes
        with self._lock:  # asked before each put: no more is added up than is needed
            size_bytes = sum([segment.size_bytes for segment in self._segments.values()])
            return len(self._places) + entries <= self._bounds.entries_max and size_bytes + added_bytes <= limit_bytes

    def victim(self, current: Segment | None) -> Segment | None:
        """The oldest closed segment, if removing it is worth the copying.

        It is when half of what is closed is dead (a byte is then copied at most once per byte gained), when room is
        short and an eighth of the log would be gained, or when many short segments have come together.
        """
        with self._lock:
            closed = [segment for segment in self._segments.values() if segment is not current]
        if not closed:
            return None
        size_bytes_max, segment_bytes = self._bounds.size_bytes_max, self._bounds.segment_bytes
        closed_bytes = sum(segment.size_bytes for segment in closed)
        dead_bytes = closed_bytes - sum(segment.live_bytes for segment in closed)
        room_is_short = closed_bytes + 3 * segment_bytes > size_bytes_max
        segments_max = 2 * size_bytes_max // segment_bytes + 16  # two neighbours that are full fill one at least
        worth = (
            2 * dead_bytes >= closed_bytes
            or (room_is_short and 8 * dead_bytes >= size_bytes_max)
            or len(closed) > segments_max
        )
        return min(closed, key=lambda segment: segment.sequence) if worth else None
