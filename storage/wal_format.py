"""The write-ahead log's bytes: how one frame is written, checked and found again after damage.

`docs/formats.md`, section "WAL", is the specification; this module is the only one that knows it. A segment is
nothing but frames from its first byte to its last. Nothing here keeps state, decides what is live, or writes.

A frame is valid only at its own offset of its own segment, because the checksum covers both. So a payload that
happens to hold frames (somebody archives a WAL) is never taken for frames while the scan looks for its footing.
"""

from __future__ import annotations

import errno
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from storage.files import FileLayer

MAGIC = b"SPW1"  # "spore WAL, version 1": another version of the format gets another magic
BEGIN, ENTRY, RELEASE, OLDEST = 1, 2, 3, 4  # what a frame says; see docs/formats.md

PAYLOAD_BYTES_MAX = 128 * 1024  # an inline artifact of 64 KiB and its record fit twice; bounds a scan's memory
RELEASED_IDS_MAX = PAYLOAD_BYTES_MAX // 8  # as many ids as one release frame can hold

_FIXED = struct.Struct("<4sI")  # magic, checksum
_CHECKED = struct.Struct("<QIB3x")  # id, payload length, kind, three zero bytes
_POSITION = struct.Struct("<QQ")  # segment sequence and offset: in the checksum, not in the file
_BEGIN = struct.Struct("<QQQ")  # oldest segment kept, predecessor's sequence, predecessor's length
HEADER_BYTES = _FIXED.size + _CHECKED.size

_WINDOW_BYTES = 1 << 20  # a scan reads this much at a time: few system calls, little memory
_BLOCK_BYTES = 4096  # what a disk that reports EIO loses at least; the blocks around it are still read


@dataclass(frozen=True, slots=True)
class Frame:
    """One valid frame, made by `frame_at` and `scan`."""

    offset: int
    kind: int
    id: int
    payload: bytes

    @property
    def end(self) -> int:
        return self.offset + HEADER_BYTES + len(self.payload)


@dataclass(frozen=True, slots=True)
class BadRange:
    """Bytes between two valid frames, or after the last one, that are not frames."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Begin:
    """What the first frame of a segment says about its neighbours; zero stands for "there is none"."""

    oldest: int
    previous: int
    previous_bytes: int


def frame_bytes(payload_bytes: int) -> int:
    """How much of a segment a payload of this size takes."""
    return HEADER_BYTES + payload_bytes


def header(sequence: int, offset: int, kind: int, entry_id: int, payload: bytes) -> bytes:
    """The 24 bytes before a payload that goes to `offset` of segment `sequence`."""
    checked = _CHECKED.pack(entry_id, len(payload), kind)
    return _FIXED.pack(MAGIC, _checksum(sequence, offset, checked, payload)) + checked


def begin_payload(begin: Begin) -> bytes:
    return _BEGIN.pack(begin.oldest, begin.previous, begin.previous_bytes)


def begin_of(frame: Frame) -> Begin | None:
    """Read a begin frame; None when the frame is of another kind or shape."""
    if frame.kind != BEGIN or len(frame.payload) < _BEGIN.size:
        return None
    return Begin(*_BEGIN.unpack_from(frame.payload))  # a later version may say more after these


def release_payloads(ids: list[int]) -> list[bytes]:
    """Payloads of the release frames for these ids, as few as can be."""
    groups = (ids[start : start + RELEASED_IDS_MAX] for start in range(0, len(ids), RELEASED_IDS_MAX))
    return [struct.pack(f"<{len(group)}Q", *group) for group in groups]


def released_ids(frame: Frame) -> tuple[int, ...]:
    count = len(frame.payload) // 8
    return struct.unpack_from(f"<{count}Q", frame.payload)


def decode(sequence: int, offset: int, raw: bytes) -> Frame | None:
    """The frame in `raw`, which was read at `offset` of segment `sequence`; None unless it is intact."""
    length = payload_length(raw)
    if length is None or len(raw) < HEADER_BYTES + length:
        return None
    _, checksum = _FIXED.unpack_from(raw)
    checked = raw[_FIXED.size : HEADER_BYTES]
    payload = raw[HEADER_BYTES : HEADER_BYTES + length]
    if _checksum(sequence, offset, checked, payload) != checksum:
        return None
    entry_id, _, kind = _CHECKED.unpack(checked)
    return Frame(offset, kind, entry_id, payload)


def payload_length(raw: bytes) -> int | None:
    """The length that a header claims, not yet verified; None when no frame of ours can start like this."""
    if len(raw) < HEADER_BYTES or not raw.startswith(MAGIC):
        return None
    length: int = _CHECKED.unpack_from(raw, _FIXED.size)[1]
    return length if length <= PAYLOAD_BYTES_MAX else None


def _checksum(sequence: int, offset: int, checked: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(checked, zlib.crc32(_POSITION.pack(sequence, offset))))


class Window:
    """Forward reading of one file through a small buffer. A block that the disk cannot read appears as zeros."""

    def __init__(self, files: FileLayer, fd: int) -> None:
        self._files = files
        self._fd = fd
        self._start = 0
        self._block = b""

    def at(self, offset: int, size_bytes: int) -> bytes:
        """Up to `size_bytes` bytes from `offset`; fewer at the end of the file."""
        inside = offset - self._start
        if inside < 0 or inside + size_bytes > len(self._block):
            self._block = self._read(offset, max(size_bytes, _WINDOW_BYTES))
            self._start, inside = offset, 0
        return self._block[inside : inside + size_bytes]

    def find(self, needle: bytes, start: int, limit: int) -> int:
        """The first offset in [start, limit) at which the needle begins, or -1."""
        while start < limit:
            block = self.at(start, min(_WINDOW_BYTES, limit - start))
            found = block.find(needle)
            if found >= 0:
                return start + found
            if len(block) < len(needle):
                return -1
            start += len(block) - len(needle) + 1  # the needle may lie across the edge
        return -1

    def _read(self, offset: int, size_bytes: int) -> bytes:
        try:
            return self._files.pread(self._fd, size_bytes, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        return b"".join(self._read_block(at, offset + size_bytes) for at in _blocks(offset, size_bytes))

    def _read_block(self, offset: int, end: int) -> bytes:
        size_bytes = min(_BLOCK_BYTES - offset % _BLOCK_BYTES, end - offset)
        try:
            return self._files.pread(self._fd, size_bytes, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            left_bytes = max(0, self._files.fstat(self._fd).st_size - offset)
            return bytes(min(size_bytes, left_bytes))


def _blocks(offset: int, size_bytes: int) -> Iterator[int]:
    """Where the pieces of a range start when it is cut at the disk's block boundaries."""
    end = offset + size_bytes
    while offset < end:
        yield offset
        offset += _BLOCK_BYTES - offset % _BLOCK_BYTES


def frame_at(window: Window, sequence: int, offset: int, limit: int) -> Frame | None:
    """The valid frame that starts here and ends within `limit`, or None."""
    length = payload_length(window.at(offset, HEADER_BYTES))
    if length is None or offset + HEADER_BYTES + length > limit:
        return None
    return decode(sequence, offset, window.at(offset, HEADER_BYTES + length))


def scan(window: Window, sequence: int, limit: int) -> Iterator[Frame | BadRange]:
    """Everything in [0, limit) of a segment, in order and without gaps."""
    offset = 0
    while offset < limit:
        frame = frame_at(window, sequence, offset, limit)
        if frame is not None:
            yield frame
            offset = frame.end
            continue
        footing = _next_footing(window, sequence, offset + 1, limit)
        yield BadRange(offset, footing)
        offset = footing


def _next_footing(window: Window, sequence: int, offset: int, limit: int) -> int:
    """Where the next valid frame starts, or `limit`."""
    while (offset := window.find(MAGIC, offset, limit)) >= 0:
        if frame_at(window, sequence, offset, limit) is not None:
            return offset
        offset += 1
    return limit
