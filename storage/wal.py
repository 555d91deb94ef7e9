"""The write-ahead log: what this node has accepted and not yet handed to enough others.

Append-only segments of checksummed frames, one fdatasync for a whole group of entries, release entry by entry,
and live entries moved forward so that one which cannot be delivered never pins a segment. Entries are opaque
bytes. The bytes on disk are `storage.wal_format`'s, what a start finds is `storage.wal_recovery`'s.

Order is everything here:

- A segment's first frame and its name are synced before an id is taken from it. Ids are the segment's sequence
  and a count, so that an id is never used twice, even one whose entry a crash has swallowed.
- A segment is synced before its successor begins, and the successor says where it ended.
- A live entry is copied forward and synced, then a frame that says so is synced, then the old segment goes.
  Segments go oldest first, so a release never disappears before what it releases.
- After a failed write or sync the segment is ended where the last successful sync left it and is never written
  again: after a failed fsync the kernel may call the lost pages clean, and the next fsync succeeds without them
  (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020). All entries appended since
  the last `sync` are then not live.

Threads: `append`, `sync`, `release`, `compact` and `close` may come from any thread and take turns under one lock,
which is held during disk writes. `read`, `live`, `room`, `usage` and `damaged` never wait for a write: they use
`storage.wal_table`, whose own lock covers look-ups alone, and `pread`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from storage import wal_format as fmt
from storage.files import FileLayer
from storage.wal_recovery import Recovered, Recovery, quarantine, recover, segment_path
from storage.wal_table import Bounds, Place, Segment, Table, WalUsage

__all__ = [
    "ENTRY_BYTES_MAX",
    "Recovery",
    "Wal",
    "WalDamaged",
    "WalEntryNotLive",
    "WalEntryTooLarge",
    "WalFull",
    "WalUsage",
    "WalWriteFailed",
]

ENTRY_BYTES_MAX = fmt.PAYLOAD_BYTES_MAX  # an inline artifact is 64 KiB at most, its record far less
SEGMENT_BYTES = 64 << 20  # 16 of them at the default bound: removal gives room back in useful steps
SEGMENT_BYTES_MIN = 4 << 10  # below this the frames that describe segments would outweigh the entries
SIZE_BYTES_MAX = 1 << 30  # hours of records for a node cut off from the fleet, and a small part of any disk
ENTRIES_MAX = 200_000  # a live entry costs about 180 bytes of memory: 34 MiB when nothing can be delivered
MOVE_BYTES_MAX = 4 << 20  # one `compact` call copies this much, about 20 ms, so that appends need not wait long

_ID_SHIFT = 32  # an id is sequence << 32 | count: no segment holds 2**32 frames, and 2**31 segments fit SQLite


class WalFull(Exception):
    """The log has reached its bound; nothing of this append was written. Release entries, then `compact`."""


class WalEntryTooLarge(ValueError):
    """An entry is larger than `ENTRY_BYTES_MAX`; nothing of this append was written."""


class WalEntryNotLive(LookupError):
    """The id was released, was lost with a failed group, or never existed."""


class WalDamaged(Exception):
    """A live entry's bytes are not what was written."""


class WalWriteFailed(OSError):
    """A write or sync failed. `lost_ids` are the entries since the last `sync`, which are not live any more.

    They include entries of a failing `append` whose ids nobody has seen, and not those that `compact` synced before
    it failed: what the caller holds and does not find here is still live.

    As after any interrupted write, a kill or a power loss right after this may still leave some of them on disk, and
    a start would then find them live: deliver such an entry, or release it.
    """

    def __init__(self, error: OSError, path: Path, lost_ids: tuple[int, ...]) -> None:
        reason = error.strerror or str(error)
        sentence = (
            f"The write-ahead log cannot be written in {path} ({reason}): {len(lost_ids)} entries that were not "
            "synced are given up; free space or check the disk, then accept them again"
        )
        super().__init__(error.errno, sentence)
        self.lost_ids = lost_ids


class Wal:
    """One log in one folder. Two processes on one folder are kept out by the agent's lock, not here."""

    def __init__(self, directory: Path, files: FileLayer, bounds: Bounds, state: Recovered) -> None:
        """Use `Wal.open`."""
        self.recovered: Recovery = state.summary()
        self._directory = directory
        self._files = files
        self._bounds = bounds
        self._table = Table(files, bounds, state.segments, state.places)
        self._writing = threading.RLock()  # whoever changes the log, and all fields below
        self._current: Segment | None = None  # a recovered segment is never written to again
        self._next_sequence = state.next_sequence
        self._next_id = 0
        self._group: list[int] = []  # appended since the last `sync`; bounded by entries_max
        self._owed: list[int] = []  # released here, release frame not written yet; bounded as _group
        self._unsynced_releases: list[int] = []  # written, not synced: owed again if the group fails
        self._closed = False

    @staticmethod
    def open(
        directory: Path,
        files: FileLayer,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        size_bytes_max: int = SIZE_BYTES_MAX,
        entries_max: int = ENTRIES_MAX,
    ) -> Wal:
        """Recover the log in `directory`, making the folder if need be (its parent must exist).

        Nothing but the folder is made until the first append or release. Raises `ValueError` for bounds that
        contradict each other, `OSError` when the folder cannot be used at all.
        """
        if segment_bytes < SEGMENT_BYTES_MIN or size_bytes_max < 4 * segment_bytes or entries_max < 1:
            raise ValueError(
                f"A WAL of {size_bytes_max} bytes in segments of {segment_bytes} bytes cannot work: use segments of "
                f"at least {SEGMENT_BYTES_MIN} bytes, room for four of them, and at least one entry."
            )
        for folder in (directory, directory / "quarantine"):
            with suppress(FileExistsError):
                files.mkdir(folder)
            files.fsync_dir(folder.parent)  # also for a folder that a crash had left without
        bounds = Bounds(segment_bytes, size_bytes_max, entries_max)
        return Wal(directory, files, bounds, recover(directory, files))

    # Writing

    def append(self, entries: Sequence[bytes]) -> list[int]:
        """Write a group in one stream and return its ids, ascending. Durable only once `sync` has returned.

        All or nothing: raises `WalEntryTooLarge` or `WalFull` before anything is written, `WalWriteFailed`
        when the disk refuses.
        """
        with self._writing:
            self._require_open()
            self._require_fit(entries)
            self._write_owed()
            ids: list[int] = []
            for written in self._write(fmt.ENTRY, entries):
                self._table.settle(written)
                ids += written
                self._group += written
            return ids

    def sync(self) -> None:
        """Make everything appended and released so far durable. One call serves any number of appends."""
        with self._writing:
            self._require_open()
            self._write_owed()
            self._sync_current()
            self._group.clear()
            self._unsynced_releases.clear()

    def release(self, ids: Iterable[int]) -> None:
        """Forget entries; ids that are not live are ignored. Needs no sync: a lost release only delivers again.

        The entries are not live after this even if `WalWriteFailed` is raised; the frame that says so is then
        written by the next call that writes, or by `sync`.
        """
        with self._writing:
            self._require_open()
            self._owed += self._table.forget(ids)
            self._write_owed()

    def compact(self) -> bool:
        """Do one bounded step of making room, if there is something worth doing; True when another may follow.

        Syncs what was appended (as `sync` does), copies at most `MOVE_BYTES_MAX` of the oldest segment's live
        entries forward, and removes that segment once nothing live is left in it.
        """
        with self._writing:
            self._require_open()
            victim = self._table.victim(self._current)
            if victim is None:
                return False
            self.sync()
            if self._move_forward(victim):
                self._remove(victim)
            return True

    def close(self) -> None:
        """Sync and close. Closing twice is harmless; a failed sync is raised after everything is closed."""
        with self._writing:
            if self._closed:
                return
            try:
                self.sync()
            finally:
                self._closed = True
                self._table.retire_all()

    # Reading

    def read(self, entry_id: int) -> bytes:
        """The bytes of a live entry, verified. Raises `WalEntryNotLive`, `WalDamaged` or `OSError`."""
        with self._table.reading(entry_id) as place:
            if place is None:
                raise WalEntryNotLive(f"WAL entry {entry_id} is not live: it was released or never accepted.")
            return self._payload(entry_id, place)

    def live(self) -> Iterator[tuple[int, bytes]]:
        """Every entry that is appended and not released, in the order of the ids, read one at a time.

        What is released while this runs may be left out. An entry that has become unreadable is passed over
        and stands in `damaged()`.
        """
        for entry_id in self._table.live_ids():
            with suppress(WalEntryNotLive, WalDamaged):
                yield entry_id, self.read(entry_id)

    def room(self, entry_bytes: int, others: int = 0, others_bytes: int = 0) -> bool:
        """Whether an append of one entry of this size would be taken now, beside others that are on their way."""
        return self._table.fits(1 + others, fmt.frame_bytes(entry_bytes) + others * fmt.frame_bytes(0) + others_bytes)

    def usage(self) -> WalUsage:
        return self._table.usage()

    def damaged(self) -> dict[int, str]:
        """Entries found unreadable since the start, each with a sentence for a person."""
        return self._table.damaged()

    # Bounds

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError("The write-ahead log is closed; open it again to use it.")

    def _require_fit(self, entries: Sequence[bytes]) -> None:
        largest_bytes = max(map(len, entries), default=0)
        if largest_bytes > ENTRY_BYTES_MAX:
            raise WalEntryTooLarge(
                f"A WAL entry of {largest_bytes} bytes is above the bound of {ENTRY_BYTES_MAX}; keep the bytes of "
                "larger artifacts in a file and log a reference to it."
            )
        added_bytes = sum(fmt.frame_bytes(len(entry)) for entry in entries)
        if self._table.fits(len(entries), added_bytes):
            return
        usage = self.usage()
        raise WalFull(
            f"The write-ahead log is full ({usage.live_entries} undelivered entries, {usage.bytes >> 20} MiB of "
            f"{self._bounds.size_bytes_max >> 20} MiB): nothing more is accepted here until "
            "other nodes have received some."
        )

    # Frames to disk (all of these run under `_writing`)

    def _write(
        self, kind: int, payloads: Sequence[bytes], ids: Sequence[int] | None = None
    ) -> Iterator[dict[int, Place]]:
        """Write frames, a segment's share at a time, and yield where each id of the share now stands."""
        start = 0
        while start < len(payloads):
            segment = self._writable(len(payloads[start]))
            end = start + self._share(segment, payloads, start)
            batch = payloads[start:end]
            yield self._write_to(segment, kind, batch, ids[start:end] if ids else self._take_ids(len(batch)))
            start = end

    def _write_to(self, segment: Segment, kind: int, payloads: Sequence[bytes], ids: Sequence[int]) -> dict[int, Place]:
        buffers: list[bytes] = []
        places: dict[int, Place] = {}
        offset = segment.size_bytes
        for entry_id, payload in zip(ids, payloads, strict=True):
            buffers += (fmt.header(segment.sequence, offset, kind, entry_id, payload), payload)
            places[entry_id] = Place(segment, offset, len(payload))
            offset += fmt.frame_bytes(len(payload))
        try:
            self._files.writev(segment.fd, buffers)
        except OSError as error:
            raise self._fail(error) from error
        segment.size_bytes = offset
        return places

    def _share(self, segment: Segment, payloads: Sequence[bytes], start: int) -> int:
        """How many payloads from `start` go into this segment: what fits, and one in any case."""
        left_bytes = self._bounds.segment_bytes - segment.size_bytes
        count = 0
        for payload in payloads[start:]:
            left_bytes -= fmt.frame_bytes(len(payload))
            if left_bytes < 0:
                break
            count += 1
        return max(count, 1)

    def _take_ids(self, count: int) -> range:
        taken = range(self._next_id, self._next_id + count)
        self._next_id += count
        return taken

    def _writable(self, payload_bytes: int) -> Segment:
        """The segment that the next frame goes to; a full one is synced and followed by a new one."""
        current = self._current
        if current is not None:
            if current.size_bytes + fmt.frame_bytes(payload_bytes) <= self._bounds.segment_bytes:
                return current
            self._sync_current()
        return self._begin_segment()

    def _begin_segment(self) -> Segment:
        sequence = self._next_sequence
        self._next_sequence += 1  # also when this fails: half a file of this name may stay
        path = segment_path(self._directory, sequence)
        self._current = None
        fd = None
        try:
            fd = self._files.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            payload = fmt.begin_payload(self._begin_of_next(sequence))
            frame = fmt.header(sequence, 0, fmt.BEGIN, 0, payload) + payload
            self._files.write(fd, frame)
            self._files.fsync(fd)
            self._files.fsync_dir(self._directory)
        except OSError as error:
            if fd is not None:
                self._files.close(fd)
                with suppress(OSError):
                    self._files.unlink(path)
            raise self._fail(error) from error
        self._current = Segment(sequence, path, fd, size_bytes=len(frame), durable_bytes=len(frame))
        self._next_id = sequence << _ID_SHIFT
        self._table.add(self._current)
        return self._current

    def _begin_of_next(self, sequence: int) -> fmt.Begin:
        ends = self._table.ends()
        if ends is None:
            return fmt.Begin(oldest=sequence, previous=0, previous_bytes=0)
        oldest, newest = ends
        return fmt.Begin(oldest.sequence, newest.sequence, newest.size_bytes)

    def _write_owed(self) -> None:
        """Write the release frames that are due. They stay owed until they are written."""
        if not self._owed:
            return
        payloads = fmt.release_payloads(self._owed)
        for _ in self._write(fmt.RELEASE, payloads, ids=range(len(payloads))):
            pass  # a release frame has no place to remember
        self._unsynced_releases += self._owed
        self._owed = []

    def _sync_current(self) -> None:
        current = self._current
        if current is None or current.durable_bytes == current.size_bytes:
            return
        try:
            self._files.fdatasync(current.fd)
        except OSError as error:
            raise self._fail(error) from error
        current.durable_bytes = current.size_bytes

    def _fail(self, error: OSError) -> WalWriteFailed:
        """Give up what is not known to be durable, and never write to this segment again."""
        failed, self._current = self._current, None
        if failed is not None:
            with suppress(OSError):
                self._files.ftruncate(failed.fd, failed.durable_bytes)  # if not, the next begin frame says so
            failed.size_bytes = failed.durable_bytes
        lost_ids = tuple(self._group)
        self._group.clear()
        for entry_id, place in self._table.forget(lost_ids).items():
            if place.segment is not failed:
                self._owed.append(entry_id)  # synced when its segment was full, and now unwanted
        self._owed += self._unsynced_releases
        self._unsynced_releases.clear()
        return WalWriteFailed(error, self._directory, lost_ids)

    # Making room

    def _move_forward(self, victim: Segment) -> bool:
        """Copy some live entries of this segment to the end of the log; True when none is left in it."""
        moved_ids: list[int] = []
        payloads: list[bytes] = []
        moved_bytes = 0
        finished = True
        for entry_id, place in self._table.live_in(victim):
            if moved_bytes + place.frame_bytes > MOVE_BYTES_MAX:
                finished = False
                break
            payload = self._payload_or_give_up(entry_id, place)
            if payload is not None:
                moved_ids.append(entry_id)
                payloads.append(payload)
                moved_bytes += place.frame_bytes
        copies: dict[int, Place] = {}
        for written in self._write(fmt.ENTRY, payloads, moved_ids):
            copies |= written
        self._sync_current()
        self._table.settle(copies)
        return finished

    def _remove(self, victim: Segment) -> None:
        """Say durably that the log now starts later, then remove the file.

        The removal itself is not synced: a start that still finds the file knows that it is not wanted.
        """
        successor = self._table.after(victim) or self._next_sequence
        for _ in self._write(fmt.OLDEST, [b""], ids=[successor]):
            pass  # this frame has no place to remember
        self._sync_current()
        self._table.retire(victim)
        self._files.unlink(victim.path)

    def _payload(self, entry_id: int, place: Place) -> bytes:
        segment = place.segment
        trouble = "is damaged"
        try:
            raw = self._files.pread(segment.fd, place.frame_bytes, place.offset)
            frame = fmt.decode(segment.sequence, place.offset, raw)
            if frame is not None and frame.kind == fmt.ENTRY and frame.id == entry_id:
                return frame.payload
        except OSError as error:
            if error.errno != errno.EIO:  # anything else may pass, and the entry is still there then
                raise
            trouble = "cannot be read"
        sentence = (
            f"WAL entry {entry_id} {trouble} ({segment.path.name}, offset {place.offset}): check the disk, "
            "and put the artifact again if it is still there."
        )
        self._table.note_damage(entry_id, sentence)
        raise WalDamaged(sentence)

    def _payload_or_give_up(self, entry_id: int, place: Place) -> bytes | None:
        """One bad entry must not hold up the others: its bytes go to quarantine, and `damaged()` tells of it."""
        try:
            return self._payload(entry_id, place)
        except WalDamaged as damage:
            sentence = str(damage)
        bad = fmt.BadRange(place.offset, place.offset + place.frame_bytes)
        where = quarantine(self._directory, self._files, place.segment, bad)
        self._table.note_damage(entry_id, f"{sentence} Its bytes: {where}.")
        self._table.forget([entry_id])
        return None
