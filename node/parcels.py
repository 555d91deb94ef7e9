"""The body of an upload: a flat run of frames, many artifacts to one stream. Written here, read here.

All numbers are little endian; each frame begins with its kind, one byte.

| kind | frame | fields | then |
|---|---|---|---|
| 0 | end | | nothing more |
| 1 | small | digest 32, size u32 | the bytes of an artifact of at most one chunk |
| 2 | large | digest 32, size u64 | its list pages and chunks, then `close` (or `gone`) |
| 3 | list | count u32 | so many chunk digests of the open large artifact, in order |
| 4 | chunk | index u64, length u32 | the bytes of one chunk of the open large artifact |
| 5 | close | | what was asked of the open large artifact has been sent |
| 6 | gone | digest 32, length u16 | a sentence: why this artifact does not come |

A reader knows from the transfer's offer which artifacts may come; nothing in a frame is believed, sizes included.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from node.bulk_http import ChunkedBody
from node.bulk_stream import Stream, StreamBroken, sentence_of
from protocol.chunks import CHUNK_BYTES, LIST_PAGE_CHUNKS
from protocol.values import DIGEST_BYTES, Digest

_END, _SMALL, _LARGE, _LIST, _CHUNK, _CLOSE, _GONE = range(7)
_SMALL_HEAD = struct.Struct("<32sI")
_LARGE_HEAD = struct.Struct("<32sQ")
_LIST_HEAD = struct.Struct("<I")
_CHUNK_HEAD = struct.Struct("<QI")
_GONE_HEAD = struct.Struct("<32sH")
SENTENCE_BYTES_MAX = 500  # as sentences on the control path
_GATHER_BYTES = 256 << 10  # small artifacts go out together once so much is there: four pieces of the stream


@dataclass(frozen=True, slots=True)
class End:
    """Nothing follows."""


@dataclass(frozen=True, slots=True)
class Small:
    """`size` bytes follow: a whole artifact."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Large:
    """Opens an artifact of several chunks."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class ListPage:
    """A page of the open artifact's chunk list; it is part of the frame and already read."""

    leaves: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """`length` bytes follow: one chunk of the open artifact."""

    index: int
    length: int


@dataclass(frozen=True, slots=True)
class Close:
    """Closes the open artifact."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The sender does not have this artifact any more; if it is the open one, this closes it."""

    digest: Digest
    why: str


Frame = End | Small | Large | ListPage | Chunk | Close | Gone


class FrameReader:
    """Reads frames; after Small and Chunk the caller reads the bytes with `read_into`, all of them."""

    def __init__(self, body: ChunkedBody, peer: str) -> None:
        self._body = body
        self._peer = peer
        self._head = memoryview(bytearray(64))
        self.read_into: Callable[[memoryview], None] = body.read_into

    def next(self) -> Frame:
        kind = self._read(1)[0]
        if kind == _SMALL:
            return Small(*_SMALL_HEAD.unpack(self._read(_SMALL_HEAD.size)))
        if kind == _CHUNK:
            return Chunk(*_CHUNK_HEAD.unpack(self._read(_CHUNK_HEAD.size)))
        if kind == _LARGE:
            return Large(*_LARGE_HEAD.unpack(self._read(_LARGE_HEAD.size)))
        if kind == _LIST:
            return self._list_page(*_LIST_HEAD.unpack(self._read(_LIST_HEAD.size)))
        if kind == _CLOSE:
            return Close()
        if kind == _GONE:
            return self._gone(*_GONE_HEAD.unpack(self._read(_GONE_HEAD.size)))
        if kind == _END:
            self._body.finish()
            return End()
        raise StreamBroken(f"{self._peer} sent a frame of the unknown kind {kind}: closed")

    def _list_page(self, count: int) -> ListPage:
        if not 0 < count <= LIST_PAGE_CHUNKS:
            raise StreamBroken(f"{self._peer} sent a list page of {count} chunks: closed")
        packed = bytearray(count * DIGEST_BYTES)
        self._body.read_into(memoryview(packed))
        steps = range(0, len(packed), DIGEST_BYTES)
        return ListPage(tuple(bytes(packed[at : at + DIGEST_BYTES]) for at in steps))

    def _gone(self, digest: Digest, length: int) -> Gone:
        if length > SENTENCE_BYTES_MAX:
            raise StreamBroken(f"{self._peer} sent a reason of {length} bytes: closed")
        why = bytearray(length)
        self._body.read_into(memoryview(why))
        return Gone(digest, sentence_of(why.decode(errors="replace") or "it is gone"))

    def _read(self, count: int) -> memoryview:
        view = self._head[:count]
        self._body.read_into(view)
        return view


class FrameWriter:
    """Writes frames as a chunked body, gathered in one buffer that is sent when it is full or flushed.

    The buffer holds, in this order: the HTTP chunk's size line, frames, the line end that closes it.
    """

    _SIZE_LINE_BYTES = 10  # eight hexadecimal digits and a line end
    _ROOM_BYTES = CHUNK_BYTES + _GATHER_BYTES + 1024

    def __init__(self, stream: Stream, pace: Callable[[int], int] | None = None) -> None:
        """`pace` is asked before each piece leaves (see `Stream.send`)."""
        self._stream = stream
        self._pace = pace
        self._buffer = memoryview(bytearray(self._SIZE_LINE_BYTES + self._ROOM_BYTES + 2))
        self._end = self._SIZE_LINE_BYTES

    def small(self, digest: Digest, size: int) -> memoryview:
        """Begin a small artifact and return the view its bytes go into; `keep` it when they are there."""
        self._put(bytes([_SMALL]) + _SMALL_HEAD.pack(digest, size))
        return self._buffer[self._end : self._end + size]

    def large(self, digest: Digest, size: int, leaves: Sequence[Digest]) -> None:
        self._put(bytes([_LARGE]) + _LARGE_HEAD.pack(digest, size))
        for at in range(0, len(leaves), LIST_PAGE_CHUNKS):
            page = leaves[at : at + LIST_PAGE_CHUNKS]
            self._put(bytes([_LIST]) + _LIST_HEAD.pack(len(page)) + b"".join(page))
            self._flush_from(_GATHER_BYTES)

    def chunk(self, index: int, length: int) -> memoryview:
        """As `small`, for one chunk of the open artifact."""
        self._put(bytes([_CHUNK]) + _CHUNK_HEAD.pack(index, length))
        return self._buffer[self._end : self._end + length]

    def keep(self, length: int) -> None:
        """The bytes asked for by `small` or `chunk` are in their view."""
        self._end += length
        self._flush_from(_GATHER_BYTES)

    def drop_small(self) -> None:
        """Take back the head that `small` has written: its bytes could not be read."""
        self._end -= 1 + _SMALL_HEAD.size

    def drop_chunk(self) -> None:
        """As `drop_small`, for `chunk`."""
        self._end -= 1 + _CHUNK_HEAD.size

    def close(self) -> None:
        self._put(bytes([_CLOSE]))

    def gone(self, digest: Digest, why: str) -> None:
        sentence = why.encode()[:SENTENCE_BYTES_MAX]
        self._put(bytes([_GONE]) + _GONE_HEAD.pack(digest, len(sentence)) + sentence)
        self._flush_from(_GATHER_BYTES)

    def end(self) -> None:
        self._put(bytes([_END]))
        self._flush_from(0)
        self._stream.send(b"0\r\n\r\n")

    def _put(self, frame: bytes) -> None:
        self._buffer[self._end : self._end + len(frame)] = frame
        self._end += len(frame)

    def _flush_from(self, fill_bytes: int) -> None:
        """Send what is gathered once it reaches `fill_bytes`. Room for one more chunk is always left."""
        length = self._end - self._SIZE_LINE_BYTES
        if length <= fill_bytes:
            return
        self._buffer[: self._SIZE_LINE_BYTES] = b"%08x\r\n" % length
        self._buffer[self._end : self._end + 2] = b"\r\n"
        self._stream.send(self._buffer[: self._end + 2], self._pace)
        self._end = self._SIZE_LINE_BYTES
