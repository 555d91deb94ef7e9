"""A bulk connection: one blocking TLS socket, read through a small buffer and watched for peers that stop or crawl.

Both ends of the bulk path use it, each from one thread; only `abort` may be called from another. Whatever goes wrong
with the network surfaces as `StreamBroken` with a sentence, never as an `OSError`: those are the disk's.

Socket buffers are left to the kernel: setting SO_RCVBUF or SO_SNDBUF turns its autotuning off and is capped by
net.core.*mem_max, which on most hosts is far below what autotuning reaches.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

PIECE_BYTES = 64 << 10  # what is sent at once: a peer that does not take this much in `stall_seconds` has stalled
_BUSY_AT, _TCP_INFO_BYTES = 168, 192  # of tcpi_busy_time, tcpi_rwnd_limited (microseconds) in struct tcp_info
_BUFFER_BYTES = 64 << 10  # four TLS records: heads and small parcels are cut out of it; longer reads go past it


SENTENCE_CHARACTERS_MAX = 400  # reasons travel on in receipts, which bound them (protocol.wire.SENTENCE_CHARS_MAX)


def sentence_of(problem: object) -> str:
    """A reason as one bounded, printable line that is never empty: an empty one would stand for success."""
    text = str(problem) or repr(problem)
    return "".join(c if c.isprintable() else " " for c in text[:SENTENCE_CHARACTERS_MAX])


class StreamBroken(Exception):
    """The connection cannot go on; the message is a sentence that names the peer."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a bulk connection waits, and for what; tests shorten it."""

    stall_bytes: int = PIECE_BYTES  # fewer than these in `stall_seconds` of waiting: the peer crawls
    stall_seconds: float = 30.0  # longer than any pause of a busy disk or a re-routed link that recovers
    head_seconds: float = 10.0  # to finish a handshake or a request head, however slowly it drips
    answer_seconds: float = 60.0  # for the answer to an upload: the receiver may still be writing its last batch
    idle_seconds: float = 30.0  # a connection kept for the next request; a reconnect costs 5 ms of CPU


class Stream:
    """Buffered reads and watched writes over one TLS socket. Begins in head mode: all that is read has a deadline."""

    def __init__(self, sock: socket.socket, peer: str, patience: Patience) -> None:
        self.peer = peer
        self.patience = patience
        self.received_bytes = 0
        self.sent_bytes = 0
        self._sock = sock
        self._closed = False
        self._ending = threading.Lock()  # so that `abort` never meets a descriptor that is closed and used again
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = self._end = 0
        self._armed_seconds: float | None = -1.0
        self._deadline: float | None = None
        self._waited_seconds, self._came_bytes = 0.0, 0
        self.expect_within(patience.head_seconds)

    @property
    def certificate(self) -> bytes | None:
        return self._sock.getpeercert(binary_form=True) if isinstance(self._sock, ssl.SSLSocket) else None

    def handshake(self) -> None:
        """Complete the TLS handshake within `head_seconds`. Raises OSError, of which PeerRefused is one."""
        self._sock.settimeout(self.patience.head_seconds)
        assert isinstance(self._sock, ssl.SSLSocket)
        self._sock.do_handshake()

    # Modes

    def expect_within(self, seconds: float) -> None:
        """Whatever is read from now on must be here within `seconds`."""
        self._deadline = time.monotonic() + seconds

    def flow(self) -> None:
        """From now on only a stall ends the connection, however long the whole takes."""
        self._deadline = None
        self._waited_seconds, self._came_bytes = 0.0, 0

    def await_byte(self, seconds: float) -> bool:
        """Whether anything comes within `seconds`; False when the peer closed, which between requests is no fault."""
        if self._start < self._end:
            return True
        self.expect_within(seconds)
        try:
            self._fill()
        except StreamBroken:
            return False
        return True

    # Reading

    def readline(self, bytes_max: int) -> bytes:
        """One line without its end; a longer one breaks the stream."""
        while True:
            window = bytes(self._buffer[self._start : min(self._end, self._start + bytes_max + 2)])
            at = window.find(b"\n")
            if at >= 0:
                self._start += at + 1
                return window[:at].removesuffix(b"\r")
            if len(window) == bytes_max + 2:
                raise StreamBroken(f"{self.peer} sent a line of more than {bytes_max} bytes: closed")
            self._fill()

    def read_into(self, view: memoryview) -> None:
        """Fill the whole view."""
        at = min(len(view), self._end - self._start)
        view[:at] = self._buffer[self._start : self._start + at]
        self._start += at
        while at < len(view):
            if len(view) - at >= _BUFFER_BYTES:
                at += self._receive(view[at:])
                continue
            self._fill()
            taken = min(len(view) - at, self._end - self._start)
            view[at : at + taken] = self._buffer[self._start : self._start + taken]
            self._start += taken
            at += taken

    def _fill(self) -> None:
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == _BUFFER_BYTES:  # a line lies across the end: its beginning moves to the front
            kept = bytes(self._buffer[self._start : self._end])
            self._buffer[: len(kept)] = kept
            self._start, self._end = 0, len(kept)
        self._end += self._receive(self._buffer[self._end :])

    def _receive(self, view: memoryview) -> int:
        began = time.monotonic()
        self._arm(self.patience.stall_seconds if self._deadline is None else self._deadline - began)
        try:
            count = self._sock.recv_into(view)
        except TimeoutError:
            raise StreamBroken(f"{self.peer} stopped sending: closed, what it sent is kept") from None
        except (OSError, ValueError) as problem:
            raise StreamBroken(f"the connection with {self.peer} broke: {problem}") from problem
        if count == 0:
            raise StreamBroken(f"{self.peer} closed the connection")
        self.received_bytes += count
        if self._deadline is None:
            self._watch(count, time.monotonic() - began)
        return count

    def _watch(self, count_bytes: int, waited_seconds: float) -> None:
        """Only time spent waiting for the peer counts, not what our own disk takes between two reads."""
        self._came_bytes += count_bytes
        self._waited_seconds += waited_seconds
        if self._came_bytes >= self.patience.stall_bytes:
            self._waited_seconds, self._came_bytes = 0.0, 0
        elif self._waited_seconds > self.patience.stall_seconds:
            raise StreamBroken(
                f"{self.peer} crawls ({self._came_bytes} bytes in {self._waited_seconds:.0f} s): "
                "closed, what it sent is kept"
            )

    # Writing

    def send(self, payload: bytes | memoryview, pace: Callable[[int], int] | None = None) -> None:
        """Send all of it, in pieces; `pace` is called before each: it returns how much may leave, when it may."""
        view = memoryview(payload)
        while view:
            piece_bytes = min(len(view), PIECE_BYTES)
            if pace is not None:
                piece_bytes = pace(piece_bytes)
            self._arm(self.patience.stall_seconds)
            try:
                sent = self._sock.send(view[:piece_bytes])
            except TimeoutError:
                raise StreamBroken(f"{self.peer} stopped receiving: closed") from None
            except (OSError, ValueError) as problem:
                raise StreamBroken(f"the connection with {self.peer} broke: {problem}") from problem
            self.sent_bytes += sent
            view = view[sent:]

    def _arm(self, seconds: float) -> None:
        seconds = max(seconds, 0.001)  # zero would make the socket non-blocking
        if seconds != self._armed_seconds:
            with contextlib.suppress(OSError):  # an aborted socket says so at the read or write that follows
                self._sock.settimeout(seconds)
            self._armed_seconds = seconds

    def slowed_by_peer(self) -> bool:
        """Whether the peer, not the link, held up most of what was sent so far: it left no room in its window.

        As the kernel counts it (struct tcp_info of linux/tcp.h); False where it does not tell.
        """
        with self._ending, contextlib.suppress(OSError, struct.error, AttributeError):
            if not self._closed:
                told = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
                busy, window_shut = struct.unpack_from("=QQ", told, _BUSY_AT)
                return bool(window_shut * 2 > busy > 0)
        return False

    # Ends

    def abort(self) -> None:
        """End it from any thread: the one that reads or writes wakes up with `StreamBroken` at once."""
        with self._ending, contextlib.suppress(OSError):
            if not self._closed:
                # Not SSLSocket.shutdown: that one drops its TLS state under the other thread.
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        with self._ending:
            self._closed = True
            self._sock.close()
