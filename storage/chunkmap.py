"""The durable chunk map: which chunks of a partial are verified and on the disk.

It is replaced as a whole (written beside, synced, renamed) and only after the data it speaks of was synced, so after
a crash it may know less than there is, never more. A map that does not pass its checksum counts as no map.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from protocol.chunks import chunk_count
from protocol.values import DIGEST_BYTES, Digest, Stripe
from storage.files import FileLayer

MAGIC = b"SPOREMAP"
VERSION = 1
SIZE_AT = len(MAGIC) + 2
DIGEST_AT = SIZE_AT + 8
BITS_AT = DIGEST_AT + DIGEST_BYTES
CRC_BYTES = 4


class Marks:
    """A set of chunk indexes of one artifact, one bit each: 12.5 KiB for 100 GiB. Not thread-safe by itself."""

    def __init__(self, total: int, bits: bytes = b"") -> None:
        self.total = total
        self.bits = bytearray(bits or bytes(-(-total // 8)))
        self.count = sum(byte.bit_count() for byte in self.bits)

    def __contains__(self, index: int) -> bool:
        return bool(self.bits[index >> 3] & (1 << (index & 7)))

    def add(self, index: int) -> None:
        if index not in self:
            self.bits[index >> 3] |= 1 << (index & 7)
            self.count += 1

    def discard(self, index: int) -> None:
        if index in self:
            self.bits[index >> 3] &= ~(1 << (index & 7))
            self.count -= 1

    def missing(self, within: Stripe | None = None) -> tuple[Stripe, ...]:
        """Runs of chunks that are not in the set, in order."""
        run = within or Stripe(0, self.total)
        indexes = range(run.first, min(run.first + run.count, self.total))
        return tuple(_runs(index for index in indexes if index not in self))


def _runs(indexes: Iterable[int]) -> Iterator[Stripe]:
    first = count = 0
    for index in indexes:
        if count and index == first + count:
            count += 1
            continue
        if count:
            yield Stripe(first, count)
        first, count = index, 1
    if count:
        yield Stripe(first, count)


def map_bytes(total: int) -> int:
    """The length of the map of so many chunks."""
    return BITS_AT + -(-total // 8) + CRC_BYTES


def encode_map(digest: Digest, size: int, marks: Marks) -> bytes:
    """Magic, version (u16), size (u64), digest, bitmap (chunk 0 is the lowest bit), CRC-32; little endian."""
    body = MAGIC + VERSION.to_bytes(2, "little") + size.to_bytes(8, "little") + digest + marks.bits
    return body + zlib.crc32(body).to_bytes(CRC_BYTES, "little")


def decode_map(content: bytes, digest: Digest, size: int) -> Marks | None:
    """The marks of this artifact; None when the map is torn, of another version or of another artifact."""
    total = chunk_count(size)
    empty = encode_map(digest, size, Marks(total))
    body, crc = content[:-CRC_BYTES], content[-CRC_BYTES:]
    if len(content) != len(empty) or zlib.crc32(body).to_bytes(CRC_BYTES, "little") != crc:
        return None
    if body[:BITS_AT] != empty[:BITS_AT] or (total % 8 and body[-1] >> (total % 8)):
        return None
    return Marks(total, body[BITS_AT:])


def replace_file(files: FileLayer, path: Path, content: bytes) -> None:
    """Replace a small file by a complete and synced one. After a crash the name holds the old or the new content."""
    draft = path.with_name(path.name + ".new")
    fd = files.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        files.write(fd, content)
        files.fdatasync(fd)
    finally:
        files.close(fd)
    files.rename(draft, path)


def read_file(files: FileLayer, path: Path, size_bytes_max: int) -> bytes | None:
    """The content of a small file of ours; None when it is absent, longer than it can be, or unreadable."""
    try:
        fd = files.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        size_bytes = files.fstat(fd).st_size
        return _read_all(files, fd, size_bytes) if size_bytes <= size_bytes_max else None
    except OSError:
        return None
    finally:
        files.close(fd)


def _read_all(files: FileLayer, fd: int, size_bytes: int) -> bytes:
    pieces = bytearray()
    while len(pieces) < size_bytes:
        piece = files.pread(fd, size_bytes - len(pieces), len(pieces))
        if not piece:
            break
        pieces += piece
    return bytes(pieces)
