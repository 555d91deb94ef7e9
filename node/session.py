"""One session: a WebSocket between two authenticated nodes, its queue, its pings and its end.

`Sessions` decides which session a peer has; this is what happens on one. Two tasks serve it, a reader and a writer;
whatever goes wrong in either calls `end`, and the first reason given stands. Nothing here emits events.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from node.tls import told_by
from protocol.messages import Hello
from protocol.values import NodeId

WebSocket = web.WebSocketResponse[Any] | aiohttp.ClientWebSocketResponse[Any]

CODE_STOPPING = 1001  # RFC 6455 section 7.4: going away
CODE_HANGUP = 4000  # 4000 and up are for applications
CODE_REFUSED = 4001
CODE_DUPLICATE = 4002
CODE_TWIN = 4003
REASON_BYTES_MAX = 120  # RFC 6455 section 5.5: a control frame holds 125 bytes, two are the code
READS_BEFORE_YIELD = 32  # messages taken before other tasks get a turn; a flood from one peer must not starve them


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What a session may take, in bytes and time; every bound says why."""

    connect_seconds: float = 10.0  # TCP, TLS and the upgrade: four round trips, with two packets lost
    hello_seconds: float = 10.0  # one frame, from a peer that may be busy
    heartbeat_seconds: float = 10.0  # 0.1 kB each way: nothing, and NAT tables keep the connection
    unacknowledged_seconds: float = 20.0  # the kernel gives up on a peer that acknowledges nothing: two heartbeats
    silent_seconds: float = 45.0  # a full message over 100 kB/s takes 40 s, and no ping overtakes it
    stall_seconds: float = 45.0  # the same from the sending side
    close_seconds: float = 2.0  # for the last frames and the goodbye; who hangs there is cut off
    flush_seconds: float = 5.0  # for what is queued at a hangup
    queue_messages_max: int = 4_096  # a burst of commits; beyond it the peer is too slow and resynchronises instead
    queue_bytes_max: int = 64 << 20  # sixteen full messages; news is encoded once and shared by all queues
    waiting_bytes: int = 1 << 20  # streams of rows pause above this, so that news is not stuck behind them
    strikes_max: int = 3  # unreadable messages in `strike_seconds` until a peer is left alone for `banned_seconds`
    strike_seconds: float = 60.0
    banned_seconds: float = 60.0
    contest_seconds: float = 25.0  # longer than any dial lasts: a later dial means that the peer lost the session
    challenge_seconds: float = 12.0  # a core that is well asks the older life for 1 s, one that is not for up to 9 s
    yield_seconds: float = 3.0  # how long a peer's dial waits for ours, when ours is the one to be kept


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """A session as `peers`, `status` and the metrics show it."""

    peer: NodeId
    address: str
    dialled: bool
    seconds: float
    rtt_ms: float | None
    queued_messages: int
    queued_bytes: int
    sent_bytes: int
    received_bytes: int


class Session:
    """A session that stands: both hellos are read. `dialled` says that this node opened it."""

    def __init__(
        self,
        socket: WebSocket,
        peer: NodeId,
        hello: Hello,
        *,
        dialled: bool,
        address: str,
        certificate: bytes | None,
        limits: SessionLimits,
    ) -> None:
        self.peer = peer
        self.hello = hello
        self.dialled = dialled
        self.address = address
        self.certificate = certificate
        self.why = ""  # why it ended; empty while it stands
        self.faulty = False  # it ended because of what the peer sent
        self.over = asyncio.Event()
        self.closed = asyncio.Event()
        self.rtt_ms: float | None = None
        self.sent_bytes = 0
        self.received_bytes = 0
        self._socket = socket
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self.opened_at = self.heard_at = self._loop.time()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._ping: bytes | None = None
        self._pong: bytes | None = None
        self._ping_number = 0
        self._pinged_at = 0.0
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._finishing = ""
        self._code = CODE_HANGUP
        _give_up_after(socket, limits.unacknowledged_seconds)

    # --- sending ------------------------------------------------------------------------------------------------

    def send(self, frame: bytes) -> bool:
        """Queue a frame. False when the session is over, or was ended just now because its queue is full."""
        if self.why or self._finishing:
            return False
        if len(self._queue) >= self._limits.queue_messages_max or self._queued_bytes >= self._limits.queue_bytes_max:
            self.end(f"the peer is too slow: {len(self._queue)} messages of {self._queued_bytes} bytes were waiting")
            return False
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        self._wake.set()
        return True

    async def send_waiting(self, frame: bytes) -> bool:
        """Queue a frame once most of what is queued has gone. False when the session is over."""
        while not self.why and self._queued_bytes > self._limits.waiting_bytes:
            self._drained.clear()
            await self._drained.wait()
        return self.send(frame)

    def ping(self) -> None:
        self._ping_number += 1
        self._ping = struct.pack(">Q", self._ping_number)
        self._wake.set()

    async def write(self) -> None:
        """Send what is queued until the session is over. Pings and pongs overtake messages."""
        try:
            while True:
                if not self._pending():
                    if self._finishing:
                        self.end(self._finishing)
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                async with asyncio.timeout(self._limits.stall_seconds):
                    await self._write_next()
        except TimeoutError:
            self.end(f"the peer took nothing for {self._limits.stall_seconds:.0f} s")
        except (OSError, aiohttp.ClientError, RuntimeError) as problem:
            # The reader sees the same end, often with the peer's own words for it; those are preferred.
            self._loop.call_later(1.0, self.end, f"the connection broke: {problem}")

    def _pending(self) -> bool:
        return bool(self._queue) or self._ping is not None or self._pong is not None

    async def _write_next(self) -> None:
        if self._pong is not None:
            pong, self._pong = self._pong, None
            await self._socket.pong(pong)
        elif self._ping is not None:
            ping, self._ping = self._ping, None
            self._pinged_at = self._loop.time()
            await self._socket.ping(ping)
        else:
            frame = self._queue.popleft()
            await self._socket.send_bytes(frame)
            self._queued_bytes -= len(frame)
            self.sent_bytes += len(frame)
            if self._queued_bytes <= self._limits.waiting_bytes:
                self._drained.set()

    # --- receiving ----------------------------------------------------------------------------------------------

    async def read(self, on_frame: Callable[[Session, bytes], None]) -> None:
        """Give every frame to `on_frame` until the session is over."""
        taken = 0
        try:
            while not self.why:
                self._take(await self._socket.receive(), on_frame)
                taken += 1
                if taken % READS_BEFORE_YIELD == 0:
                    await asyncio.sleep(0)
        except Exception as problem:  # a fault of ours: the session ends with its name, and the peer may dial again
            self.end(f"this node failed at a message: {type(problem).__name__}: {problem}")
            raise

    def _take(self, message: aiohttp.WSMessage, on_frame: Callable[[Session, bytes], None]) -> None:
        self.heard_at = self._loop.time()
        if message.type is aiohttp.WSMsgType.BINARY:
            self.received_bytes += len(message.data)
            on_frame(self, message.data)
        elif message.type is aiohttp.WSMsgType.PING:
            self._pong = bytes(message.data)
            self._wake.set()
        elif message.type is aiohttp.WSMsgType.PONG:
            if bytes(message.data) == struct.pack(">Q", self._ping_number):
                self.rtt_ms = (self.heard_at - self._pinged_at) * 1000
        else:
            self._ended_by(message)

    def _ended_by(self, message: aiohttp.WSMessage) -> None:
        if message.type is aiohttp.WSMsgType.TEXT or isinstance(message.data, aiohttp.WebSocketError):
            self.faulty = True
        self.end(ending(message))

    # --- ending -------------------------------------------------------------------------------------------------

    def end(self, why: str, code: int = CODE_HANGUP) -> None:
        """The session is over now; the first reason stands."""
        if self.why:
            return
        self.why, self._code = why, code
        self.over.set()
        self._drained.set()

    def finish(self, why: str, code: int = CODE_HANGUP) -> None:
        """The session is over once what is queued has been sent, or after a few seconds."""
        self._finishing, self._code = why, code
        self._wake.set()
        self._loop.call_later(self._limits.flush_seconds, self.end, why, code)

    async def close(self) -> None:
        """Say goodbye and close the connection; reader and writer have ended."""
        try:
            await close_socket(self._socket, self._code, self.why, self._limits.close_seconds)
        finally:
            self._queue.clear()
            self.closed.set()

    def facts(self) -> SessionFacts:
        return SessionFacts(
            peer=self.peer,
            address=self.address,
            dialled=self.dialled,
            seconds=self._loop.time() - self.opened_at,
            rtt_ms=self.rtt_ms,
            queued_messages=len(self._queue),
            queued_bytes=self._queued_bytes,
            sent_bytes=self.sent_bytes,
            received_bytes=self.received_bytes,
        )


async def close_socket(connection: WebSocket, code: int, why: str, seconds: float) -> None:
    """Send a close frame with the reason, and close; within `seconds`, whatever the other side does."""
    reason = why.encode()[:REASON_BYTES_MAX].decode(errors="ignore").encode()
    with suppress(TimeoutError, OSError, aiohttp.ClientError, RuntimeError):
        async with asyncio.timeout(seconds):
            await connection.close(code=code, message=reason)


def ending(message: aiohttp.WSMessage) -> str:
    """Why a connection is at its end, from the message that says so."""
    if message.type is aiohttp.WSMsgType.CLOSE:
        return f"the peer closed it: {message.extra or 'code ' + str(message.data)}"
    if message.type is aiohttp.WSMsgType.TEXT:
        return "the peer sent text, which is no message of ours"
    if message.type is aiohttp.WSMsgType.ERROR:
        return f"the connection broke: {message.data}"
    return "the connection was lost"


def _give_up_after(connection: WebSocket, seconds: float) -> None:
    """Let the kernel end a connection whose peer acknowledges nothing, where it can (Linux, RFC 5482)."""
    raw = told_by(connection, "socket")
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if raw is not None and option is not None:
        with suppress(OSError):
            raw.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))
