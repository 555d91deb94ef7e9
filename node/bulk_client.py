"""The dialling end of the bulk path: connections to peers, kept for reuse, and requests over them.

A `Job` is one transfer's hold on its connections: `cancel` from any thread ends it at once, wherever it blocks.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from node.admission import explain_handshake_error
from node.breakers import P2P_HTTP, Guards
from node.bulk_http import BULK_ALPN, SENTENCE_BYTES_MAX, BadHead, Head, read_head, request_head
from node.bulk_stream import Patience, Stream, StreamBroken, sentence_of
from node.speeds import SPEEDS_MAX, Speeds
from node.tls import IdentityContexts
from protocol.values import NodeId

CONNECT_SECONDS = 5.0  # three SYNs; a host that does not answer them is for the membership to judge
KEPT_PER_PEER_MAX = 4  # as many uploads as the core runs to one peer at once
KEPT_MAX = 64  # sockets kept open for all peers together
NEAR_SECONDS, FAR_SECONDS = 0.005, 0.03  # round trips: one stream fills a near link, two a farther one, four a far one
KEPT_SECONDS_SPARE = 5.0  # a kept connection is not used in its last seconds: the peer may be closing it

_ADDRESS = re.compile(r"\[?([^\[\]]+)\]?:(\d{1,5})")


class Cancelled(StreamBroken):
    """The transfer was given up on this side."""


class Unreached(StreamBroken):
    """No connection to the peer was had; it was never asked for anything."""


class Avoided(Unreached):
    """The peer's breaker is open: nothing was tried."""


class Held(Protocol):
    """What a job holds: a connection, or a program that works for it."""

    def abort(self) -> None:
        """End it, from any thread."""
        ...


class Job:
    """The connections and programs of one transfer, so that they can be cut from outside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: set[Held] = set()
        self.why = ""  # set once, by `cancel`

    @property
    def cancelled(self) -> bool:
        return bool(self.why)

    def cancel(self, why: str) -> None:
        with self._lock:
            self.why = self.why or why
            for stream in self._streams:
                stream.abort()

    def adopt(self, stream: Held) -> None:
        with self._lock:
            self._streams.add(stream)
        self.go_on()

    def release(self, stream: Held) -> None:
        with self._lock:
            self._streams.discard(stream)

    def go_on(self) -> None:
        """Raise Cancelled when the transfer was given up."""
        if self.why:
            raise Cancelled(self.why)


class Connection:
    """One bulk connection to a peer whose certificate has been checked."""

    def __init__(self, peer: NodeId, stream: Stream) -> None:
        self.peer = peer
        self.stream = stream
        self.reused = False
        self.idle_since = 0.0

    def send_request(self, method: str, path: str, headers: dict[str, str]) -> None:
        self.stream.send(request_head(method, path, {"Host": self.peer, **headers}))

    def read_answer(self, within_seconds: float) -> Head:
        self.stream.expect_within(within_seconds)
        try:
            head = read_head(self.stream)
            if head.status < 100:
                raise BadHead("the answer has no valid status")
            self.stream.flow()
            return head
        except BadHead as problem:
            raise StreamBroken(f"{self.peer} answered in a way that is not understood: {problem}") from problem

    def get(self, path: str, headers: dict[str, str]) -> Head:
        self.send_request("GET", path, headers)
        return self.read_answer(self.stream.patience.stall_seconds)

    def read_sentence(self, head: Head) -> str:
        """The reason in a refusal's body."""
        try:
            length = head.length
            if length > SENTENCE_BYTES_MAX:
                raise StreamBroken(f"{self.peer} answered {head.status} with {length} bytes")
            body = bytearray(length)
            self.stream.read_into(memoryview(body))
            return f"{self.peer}: {sentence_of(json.loads(body)['error'])}"
        except (BadHead, ValueError, KeyError, TypeError):
            return f"{self.peer} answered {head.status}"


class Connections:
    """Dials peers and keeps a few idle connections to each. Thread-safe."""

    def __init__(
        self,
        contexts: IdentityContexts,
        address_of: Callable[[NodeId], str | None],
        patience: Patience,
        guards: Guards | None = None,
    ) -> None:
        self.patience = patience
        self.guards = guards or Guards()
        self._contexts = contexts
        self._context = contexts.client([BULK_ALPN])  # made here: contexts are not made from threads
        self._address_of = address_of
        self._lock = threading.Lock()
        self._kept: dict[NodeId, list[Connection]] = {}
        self._rtt_seconds: dict[NodeId, float] = {}
        self.speeds = Speeds()
        self._closed = False

    def take(self, peer: NodeId, job: Job, fresh: bool = False) -> Connection:
        """A connection for this job, kept or new. Raises StreamBroken with the reason why there is none.

        Whoever takes one tells `succeeded` or `failed` how it went; `fresh` repeats a try that the breaker admitted.
        """
        job.go_on()
        if not fresh and (why := self.guards.admits(peer, P2P_HTTP)):
            raise Avoided(why)
        connection = None if fresh else self._take_kept(peer)
        if connection is None:
            connection = self._dial(peer, job)
        try:
            job.adopt(connection.stream)
        except Cancelled:
            self.drop(connection, job)
            raise
        return connection

    def give_back(self, connection: Connection, job: Job) -> None:
        """Its last answer was read whole: keep it for the next request."""
        job.release(connection.stream)
        connection.reused, connection.idle_since = True, time.monotonic()
        with self._lock:
            kept = self._kept.setdefault(connection.peer, [])
            room = len(kept) < KEPT_PER_PEER_MAX and sum(map(len, self._kept.values())) < KEPT_MAX
            if room and not self._closed and not job.cancelled:
                kept.append(connection)
                return
        connection.stream.close()

    def streams_to(self, peer: NodeId) -> int:
        """How many connections a large transfer with this peer is worth, by the round trip seen when it was dialled.

        A single one is limited to a window for each round trip, and recovers slowly from losses; near by it is not.
        """
        rtt_seconds = self._rtt_seconds.get(peer, 0.0)
        return 1 if rtt_seconds < NEAR_SECONDS else 2 if rtt_seconds < FAR_SECONDS else 4

    def succeeded(self, peer: NodeId) -> None:
        """The way to this peer works, whatever it answered."""
        self.guards.succeeded(peer, P2P_HTTP)

    def failed(self, peer: NodeId, why: str) -> None:
        self.guards.failed(peer, P2P_HTTP, why)

    def drop(self, connection: Connection, job: Job) -> None:
        job.release(connection.stream)
        connection.stream.close()

    def prune(self) -> None:
        """Close what has been idle too long; also done by every `take`."""
        with self._lock:
            stale = self._stale()
        for connection in stale:
            connection.stream.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            kept = [connection for idle in self._kept.values() for connection in idle]
            self._kept.clear()
        for connection in kept:
            connection.stream.close()

    def _take_kept(self, peer: NodeId) -> Connection | None:
        self.prune()
        with self._lock:
            kept = self._kept.get(peer)
            return kept.pop() if kept else None

    def _stale(self) -> list[Connection]:
        oldest = time.monotonic() - max(0.0, self.patience.idle_seconds - KEPT_SECONDS_SPARE)
        stale = []
        for peer, kept in list(self._kept.items()):
            stale += [connection for connection in kept if connection.idle_since < oldest]
            self._kept[peer] = [connection for connection in kept if connection.idle_since >= oldest]
            if not self._kept[peer]:
                del self._kept[peer]
        return stale

    def _dial(self, peer: NodeId, job: Job) -> Connection:
        address = self._address_of(peer)
        if not address:
            raise Unreached(f"no address is known for {peer}")
        match = _ADDRESS.fullmatch(address)
        if not match:
            raise StreamBroken(f"the address {address!r} of {peer} is not host:port")
        began = time.monotonic()
        try:
            sock = socket.create_connection((match[1], int(match[2])), CONNECT_SECONDS)
        except (OSError, OverflowError) as problem:
            raise Unreached(f"{peer} cannot be reached at {address}: {problem}") from problem
        self._heard_after(peer, time.monotonic() - began)
        return Connection(peer, self._secured(sock, peer, address, job))

    def _heard_after(self, peer: NodeId, seconds: float) -> None:
        with self._lock:
            self._rtt_seconds.pop(peer, None)
            self._rtt_seconds[peer] = seconds
            if len(self._rtt_seconds) > SPEEDS_MAX:
                del self._rtt_seconds[next(iter(self._rtt_seconds))]

    def _secured(self, sock: socket.socket, peer: NodeId, address: str, job: Job) -> Stream:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wrapped = self._context.wrap_socket(sock, do_handshake_on_connect=False)
        except (OSError, ValueError) as problem:
            with suppress(OSError):
                sock.close()
            raise StreamBroken(f"{peer} at {address} closed the connection at once: {problem}") from problem
        stream = Stream(wrapped, peer, self.patience)
        try:
            job.adopt(stream)
            stream.handshake()
            self._contexts.check(stream.certificate, peer)
            return stream
        except OSError as problem:
            stream.close()
            raise StreamBroken(f"{peer} at {address}: {explain_handshake_error(problem).sentence}") from problem
        except Cancelled:
            stream.close()
            raise
        finally:
            job.release(stream)
