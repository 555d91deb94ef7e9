"""The little of HTTP/1.1 that bulk connections need: heads both ways, one byte range, chunked bodies.

Used by server and client alike, over `bulk_stream.Stream`. Everything a peer sends is bounded here; what is out of
bounds raises `BadHead` (answer 400 and close) or breaks the stream.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from node.bulk_stream import Stream, StreamBroken

BULK_ALPN = "spore-bulk"
LINE_BYTES_MAX = 4096  # our longest line is a blob path of 90 bytes; tools add a few headers of their own
HEADERS_MAX = 32
SENTENCE_BYTES_MAX = 16 << 10  # an error's body: one sentence, as JSON
_BODY_CHUNK_BYTES_MAX = 8 << 20  # we write at most 1 MiB and a frame's head at once

_REASONS = {200: "OK", 206: "Partial Content", 400: "Bad Request", 404: "Not Found", 409: "Conflict"} | {
    411: "Length Required",
    416: "Range Not Satisfiable",
    500: "Internal Server Error",
}
_STATUS_LINE = re.compile(r"HTTP/1\.1 ([1-5][0-9]{2})(?: .*)?")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")


class BadHead(Exception):
    """A request or answer that is not understood, in a sentence."""


class UnsatisfiableRange(Exception):
    """A range that lies outside the artifact, or more than one range."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first line and the headers (names in lower case) of a request or an answer."""

    line: str
    headers: dict[str, str]

    @property
    def length(self) -> int:
        """Content-Length; 0 when there is none."""
        text = self.headers.get("content-length", "0")
        if not re.fullmatch(r"\d{1,18}", text):
            raise BadHead(f"Content-Length {text[:40]!r} is not a number")
        return int(text)

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"

    @property
    def status(self) -> int:
        match = _STATUS_LINE.fullmatch(self.line)
        if not match:
            raise BadHead(f"the answer begins with {self.line[:40]!r}, which is not HTTP/1.1")
        return int(match[1])


def read_head(stream: Stream) -> Head:
    line = stream.readline(LINE_BYTES_MAX).decode("latin-1")
    headers: dict[str, str] = {}
    while True:
        raw = stream.readline(LINE_BYTES_MAX).decode("latin-1")
        if not raw:
            return Head(line, headers)
        name, colon, value = raw.partition(":")
        name = name.lower()
        if not colon or not name or name in headers or len(headers) >= HEADERS_MAX:
            raise BadHead(f"the header line {raw[:60]!r} is malformed, repeated or one of too many")
        headers[name] = value.strip()


def answer_head(status: int, headers: dict[str, str | int]) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def request_head(method: str, path: str, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def json_body(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(first byte, byte after the last) of a Range header; None when there is none and all is wanted.

    Raises UnsatisfiableRange, for several ranges too: no client of ours asks for them.
    """
    if header is None:
        return None
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if not match or not (match[1] or match[2]):
        raise UnsatisfiableRange
    if not match[1]:
        first, end = max(0, size - int(match[2])), size
    else:
        first, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
    if first >= end:
        raise UnsatisfiableRange
    return first, end


class ChunkedBody:
    """Reads a body in chunked transfer coding; where its chunks begin and end carries no meaning."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._left_bytes = 0

    def read_into(self, view: memoryview) -> None:
        at = 0
        while at < len(view):
            if not self._left_bytes:
                self._left_bytes = self._next_size()
                if not self._left_bytes:
                    raise StreamBroken(f"{self._stream.peer} ended its body in the middle of a frame: closed")
            taken = min(len(view) - at, self._left_bytes)
            self._stream.read_into(view[at : at + taken])
            at += taken
            self._left_bytes -= taken
            if not self._left_bytes:
                self._expect(self._stream.readline(2) == b"")

    def finish(self) -> None:
        """Read the last chunk, which must be next."""
        self._expect(not self._left_bytes and self._next_size() == 0 and self._stream.readline(2) == b"")

    def _next_size(self) -> int:
        line = self._stream.readline(16)
        self._expect(_CHUNK_SIZE.fullmatch(line) is not None)
        size = int(line, 16)
        self._expect(size <= _BODY_CHUNK_BYTES_MAX)
        return size

    def _expect(self, understood: bool) -> None:
        if not understood:
            raise StreamBroken(f"{self._stream.peer} sent a malformed chunked body: closed")
