"""Finding out, at start, what a write-ahead log still promises.

`recover` reads every segment once. It never refuses to start because of a bad frame: whatever is damaged is
copied aside, reported in a sentence, and the rest is used. It loses nothing by being interrupted and run again.

What it relies on (and `storage.wal` provides): a segment is synced before its successor begins; the first frame
of a segment names its predecessor and where that one ends; an "oldest" frame is durable before the segments
below it are removed; an entry is released in the segment that holds it or in a later one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from storage import wal_format as fmt
from storage.files import FileLayer
from storage.wal_table import Place, Segment

_SEGMENT_NAME = re.compile(r"[0-9a-f]{16}\.wal")
QUARANTINE_BYTES_MAX = 256 << 20  # evidence for people; four whole segments, and never what fills a disk


@dataclass(frozen=True, slots=True)
class Recovery:
    """What opening a WAL found. `reports` are sentences for a person; there are none when all is well."""

    live_entries: int
    torn_bytes: int
    quarantined_bytes: int
    missing_segments: int
    reports: tuple[str, ...]


@dataclass(slots=True)
class Recovered:
    """The state in which a `Wal` goes on."""

    segments: dict[int, Segment] = field(default_factory=dict)  # by sequence, ascending
    places: dict[int, Place] = field(default_factory=dict)  # by entry id, ascending
    oldest: int = 0
    next_sequence: int = 1
    torn_bytes: int = 0
    quarantined_bytes: int = 0
    missing_segments: int = 0
    reports: list[str] = field(default_factory=list)

    def summary(self) -> Recovery:
        return Recovery(
            live_entries=len(self.places),
            torn_bytes=self.torn_bytes,
            quarantined_bytes=self.quarantined_bytes,
            missing_segments=self.missing_segments,
            reports=tuple(self.reports),
        )


def segment_path(directory: Path, sequence: int) -> Path:
    return directory / f"{sequence:016x}.wal"


def recover(directory: Path, files: FileLayer) -> Recovered:
    """Read the log. Raises `OSError` only when the folder itself or a whole file cannot be opened."""
    state = Recovered()
    try:
        for sequence in _sequences(directory, files):
            state.segments[sequence] = _open_segment(directory, files, sequence)
        begins = {segment.sequence: _begin(files, segment) for segment in state.segments.values()}
        _seal(state, begins.values(), files)
        tail = max((sequence for sequence, begin in begins.items() if begin), default=0)
        for segment in state.segments.values():
            _read_segment(state, segment, files, directory, is_tail=segment.sequence >= tail)
        _forget_removed(state, files)
        _report_missing(state, begins)
    except BaseException:
        for segment in state.segments.values():
            files.close(segment.fd)
        raise
    state.places = dict(sorted(state.places.items()))
    return state


def _sequences(directory: Path, files: FileLayer) -> list[int]:
    names = [name for name in files.listdir(directory) if _SEGMENT_NAME.fullmatch(name)]
    return sorted(sequence for name in names if (sequence := int(name[:16], 16)) > 0)


def _open_segment(directory: Path, files: FileLayer, sequence: int) -> Segment:
    path = segment_path(directory, sequence)
    fd = files.open(path, os.O_RDWR)
    size_bytes = files.fstat(fd).st_size
    return Segment(sequence, path, fd, size_bytes, durable_bytes=size_bytes)


def _begin(files: FileLayer, segment: Segment) -> fmt.Begin | None:
    frame = fmt.frame_at(fmt.Window(files, segment.fd), segment.sequence, 0, segment.size_bytes)
    return fmt.begin_of(frame) if frame else None


def _seal(state: Recovered, begins: Iterable[fmt.Begin | None], files: FileLayer) -> None:
    """End each segment where its successor says it ended: frames behind that belong to a group that failed."""
    for begin in begins:
        if begin is None:
            continue
        state.oldest = max(state.oldest, begin.oldest)
        sealed = state.segments.get(begin.previous)  # there is no segment 0, so "none before" finds none
        if sealed is None:
            continue
        if sealed.size_bytes < begin.previous_bytes:
            lost_bytes = begin.previous_bytes - sealed.size_bytes
            state.quarantined_bytes += lost_bytes
            state.reports.append(
                f"WAL segment {sealed.path.name} has lost its last {lost_bytes} bytes, which had been written "
                "and synced; check the disk, and look at `spore risk` for what is at risk."
            )
        _cut(sealed, min(sealed.size_bytes, begin.previous_bytes), files)


def _cut(segment: Segment, size_bytes: int, files: FileLayer) -> None:
    """End a segment here. When the disk refuses, the successor's begin frame will say the same."""
    if segment.size_bytes != size_bytes:
        with suppress(OSError):
            files.ftruncate(segment.fd, size_bytes)
    segment.size_bytes = segment.durable_bytes = size_bytes


def _read_segment(state: Recovered, segment: Segment, files: FileLayer, directory: Path, *, is_tail: bool) -> None:
    window = fmt.Window(files, segment.fd)
    for found in fmt.scan(window, segment.sequence, segment.size_bytes):
        if isinstance(found, fmt.Frame):
            _apply(state, segment, found)
        elif is_tail and found.end == segment.size_bytes:
            _cut_tail(state, segment, found, files, directory)
        else:
            _set_aside(state, segment, found, files, directory)
    if is_tail:
        _settle(state, segment, files)
    state.next_sequence = max(state.next_sequence, segment.sequence + 1)


def _settle(state: Recovered, segment: Segment, files: FileLayer) -> None:
    """Sync what a killed process had written and not synced: what is live from now on must not vanish later."""
    try:
        files.fsync(segment.fd)
    except OSError as error:
        state.reports.append(
            f"WAL segment {segment.path.name} could not be synced ({error.strerror}): entries written just before "
            "the last stop may be lost if this machine stops again; check the disk."
        )


def _apply(state: Recovered, segment: Segment, frame: fmt.Frame) -> None:
    if frame.kind == fmt.ENTRY:
        state.places[frame.id] = Place(segment, frame.offset, len(frame.payload))  # a later copy wins
    elif frame.kind == fmt.RELEASE:
        for entry_id in fmt.released_ids(frame):
            state.places.pop(entry_id, None)
    elif frame.kind == fmt.OLDEST:
        state.oldest = max(state.oldest, frame.id)
    # Other kinds are begin frames, read before, and what a later version may add: intact, and not for us.


def _cut_tail(state: Recovered, segment: Segment, bad: fmt.BadRange, files: FileLayer, directory: Path) -> None:
    """What a crash leaves: bytes whose sync never returned. A copy is kept, as rot looks the same."""
    where = quarantine(directory, files, segment, bad)
    torn_bytes = bad.end - bad.start
    state.torn_bytes += torn_bytes
    state.reports.append(
        f"WAL segment {segment.path.name} ended in {torn_bytes} bytes of an unfinished write, which were cut "
        f"off ({where}); a write that had been reported as accepted cannot end so, unless the disk damaged it."
    )
    _cut(segment, bad.start, files)


def _set_aside(state: Recovered, segment: Segment, bad: fmt.BadRange, files: FileLayer, directory: Path) -> None:
    where = quarantine(directory, files, segment, bad)
    state.quarantined_bytes += bad.end - bad.start
    state.reports.append(
        f"WAL segment {segment.path.name} is damaged: {bad.end - bad.start} bytes at offset {bad.start} are "
        f"not valid entries ({where}); the entries before and after them are in use; check the disk."
    )


def quarantine(directory: Path, files: FileLayer, segment: Segment, bad: fmt.BadRange) -> str:
    """Copy a damaged range to `quarantine/`, once; says what became of it and never raises `OSError`."""
    folder = directory / "quarantine"
    path = folder / f"{segment.sequence:016x}-{bad.start}-{bad.end - bad.start}.bad"
    try:
        if _kept_bytes(folder, files) + bad.end - bad.start > QUARANTINE_BYTES_MAX:
            return f"not copied: {folder.name}/ has reached {QUARANTINE_BYTES_MAX >> 20} MiB, empty it"
        _copy_range(files, segment, bad, path)
    except OSError as error:
        return f"not copied: {error.strerror}"
    return f"copied to {folder.name}/{path.name}"


def _kept_bytes(folder: Path, files: FileLayer) -> int:
    return sum(files.stat(folder / name).st_size for name in files.listdir(folder))


def _copy_range(files: FileLayer, segment: Segment, bad: fmt.BadRange, path: Path) -> None:
    """Write the range to `path` durably. A copy that is there already, from an earlier start, is left alone."""
    with suppress(FileNotFoundError):
        if files.stat(path).st_size == bad.end - bad.start:
            return
    window = fmt.Window(files, segment.fd)
    fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        for offset in range(bad.start, bad.end, fmt.PAYLOAD_BYTES_MAX):
            files.write(fd, window.at(offset, min(fmt.PAYLOAD_BYTES_MAX, bad.end - offset)))
        files.fsync(fd)
    finally:
        files.close(fd)
    files.fsync_dir(path.parent)


def _forget_removed(state: Recovered, files: FileLayer) -> None:
    """Finish the removal of segments whose live entries had been moved forward and synced."""
    removed = [segment for segment in state.segments.values() if segment.sequence < state.oldest]
    if len(removed) == len(state.segments):
        return  # an oldest frame always stands in a segment that is kept, so this mark is not to be believed
    for segment in removed:
        del state.segments[segment.sequence]
        files.close(segment.fd)
        with suppress(OSError):
            files.unlink(segment.path)
    gone = set(removed)
    state.places = {entry_id: place for entry_id, place in state.places.items() if place.segment not in gone}


def _report_missing(state: Recovered, begins: dict[int, fmt.Begin | None]) -> None:
    for sequence in sorted(state.segments):
        begin = begins[sequence]
        if begin is None or begin.previous < max(state.oldest, 1) or begin.previous in state.segments:
            continue
        state.missing_segments += 1
        state.reports.append(
            f"WAL segment {begin.previous:016x}.wal is missing, with whatever it held; put it back and start "
            "again if you have it, or compare the watched folders with `spore ls`."
        )
