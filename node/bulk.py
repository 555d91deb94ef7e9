"""The serving end of the bulk path: blobs and chunk lists by range, uploads taken in. HTTP/1.1 in blocking threads.

    GET  /v1/blob/{digest}                       the bytes; one Range; ETag is the digest
    GET  /v1/chunks/{digest}?from=F&count=N      chunk digests, 32 bytes each, at most 16,384 of them
    GET, POST /v1/blocks/{digest}                which 4 KiB blocks changed, and their bytes (see `blocks`)
    POST /v1/push/{transfer}                     an expected upload (see `inbox`), frames as in `parcels`

The listener hands over accepted sockets whose ClientHello asks for ALPN `spore-bulk`; `serve` runs in a thread for each
until it closes. asyncio never sees these bytes. The peer's certificate is checked in the handshake and again at every
request, so that a connection kept open does not outlive a revocation. A file is checked after each read and before
what was read is sent: a changed file ends the connection, it never becomes wrong bytes.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from node.admission import PeerRefused, explain_handshake_error
from node.blocks import hints_length, read_runs, runs_length, send_hints, send_runs
from node.bulk_http import (
    BULK_ALPN,
    BadHead,
    ChunkedBody,
    Head,
    UnsatisfiableRange,
    answer_head,
    byte_range,
    json_body,
    read_head,
)
from node.bulk_store import BulkDepot, read_checked
from node.bulk_stream import Patience, Stream, StreamBroken, sentence_of
from node.inbox import Expected, Inbox
from node.parcels import FrameReader
from node.progress import Progress
from node.receiver import Receiver, WrongBytesHook
from node.throttle import PRIORITY_HEADER, Throttle
from node.tls import IdentityContexts
from node.transports.relay_desk import RelayDesk
from protocol.chunks import CHUNK_BYTES, LIST_PAGE_CHUNKS
from protocol.effects import Report
from protocol.events import Arrived
from protocol.values import Digest
from storage.blobs import Blob, PartialBlob
from storage.refusals import StoreError

CONNECTIONS_MAX = 128  # a thread and, when sending, 1 MiB each; the core lets 64 uploads in at once
KEPT_MAX = 32  # with more connections than this (half of the listener's), each ends after its request: none idles
FAILED_TOLD_MAX = 1_000  # failures listed in an answer: as many artifacts as an offer holds

_BLOB = re.compile(r"/v1/blob/([0-9a-f]{64})")
_CHUNKS = re.compile(r"/v1/chunks/([0-9a-f]{64})(?:\?from=(\d{1,10})&count=(\d{1,10}))?")
_BLOCKS = re.compile(r"/v1/blocks/([0-9a-f]{64})(?:\?from=(\d{1,10})&count=(\d{1,3}))?")
_RELAY = re.compile(r"/v1/relay/([0-9a-f]{64})(/done)?")
_PUSH = re.compile(r"/v1/push/(\d{1,19})")
_REQUEST = re.compile(r"(GET|POST) (\S{1,1024}) HTTP/1\.1")


@dataclass(frozen=True, slots=True)
class Hooks:
    """Whom the bulk server tells; all are called from its threads.

    `refused` gets (reason, address without port, sentence), as `refusals.RefusalLog.refused` takes them.
    """

    on_arrived: Callable[[Arrived], None]
    on_wrong_bytes: WrongBytesHook
    on_report: Callable[[Report], None]
    refused: Callable[[str, str, str], None]


class BulkServer:
    """Serves bulk connections; `inbox` is where the driver announces the uploads to expect."""

    def __init__(
        self,
        contexts: IdentityContexts,
        depot: BulkDepot,
        throttle: Throttle,
        hooks: Hooks,
        patience: Patience | None = None,
    ) -> None:
        self.contexts = contexts
        self.depot = depot
        self.throttle = throttle
        self.hooks = hooks
        self.inbox = Inbox(hooks.on_arrived)
        self.desk: RelayDesk | None = None  # none: this node carries nothing for others
        self.patience = patience or Patience()
        self._context = contexts.server([BULK_ALPN])  # made here: contexts are not made from threads
        self._changed = threading.Condition()
        self._streams: set[Stream] = set()
        self._stopping = False

    def serve(self, sock: socket.socket, address: str) -> None:
        """Serve one accepted connection until it ends; takes the socket over. Never raises; runs in its own thread."""
        try:
            sock.setblocking(True)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wrapped = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError):
            sock.close()  # it was reset before we came to it
            return
        stream = Stream(wrapped, address, self.patience)
        if not self._enter(stream):
            stream.close()
            return
        try:
            self._serve(stream, address)
        except Exception as problem:  # a fault of ours ends one connection, is seen, and the agent goes on
            self.report("error", "bulk_fault", f"serving {stream.peer} failed unexpectedly: {problem!r}")
        finally:
            stream.close()
            self._leave(stream)

    def stop(self, deadline_seconds: float) -> bool:
        """Cut every connection and wait for their threads; whether all have ended. Uploads end as `Arrived` first."""
        with self._changed:
            self._stopping = True
            for stream in self._streams:
                stream.abort()
            return self._changed.wait_for(lambda: not self._streams, deadline_seconds)

    def snapshot(self) -> tuple[Progress, ...]:
        """The uploads being received."""
        return self.inbox.snapshot()

    def keeps(self) -> bool:
        """Whether a connection may idle until its next request."""
        with self._changed:
            return not self._stopping and len(self._streams) <= KEPT_MAX

    def report(self, level: str, event: str, sentence: str) -> None:
        self.hooks.on_report(Report(level, event, sentence))

    def _enter(self, stream: Stream) -> bool:
        with self._changed:
            if self._stopping or len(self._streams) >= CONNECTIONS_MAX:
                return False
            self._streams.add(stream)
            return True

    def _leave(self, stream: Stream) -> None:
        with self._changed:
            self._streams.discard(stream)
            self._changed.notify_all()

    def _serve(self, stream: Stream, address: str) -> None:
        try:
            stream.handshake()
            stream.peer = self.contexts.check(stream.certificate).node
        except OSError as problem:
            fault = explain_handshake_error(problem)
            self.hooks.refused(fault.reason, address.rpartition(":")[0] or address, fault.sentence)
            return
        try:
            _Connection(self, stream).run()
        except StreamBroken as problem:
            self.report("info", "bulk_closed", sentence_of(problem))
        except PeerRefused as problem:  # its certificate was good when it came, and is not any more
            self.hooks.refused(problem.reason, stream.peer, problem.message)


class _Connection:
    """One authenticated connection: requests answered one after the other."""

    def __init__(self, server: BulkServer, stream: Stream) -> None:
        self._server = server
        self._stream = stream
        self._buffer = memoryview(b"")

    def run(self) -> None:
        while self._stream.await_byte(self._stream.patience.idle_seconds):
            self._stream.expect_within(self._stream.patience.head_seconds)
            try:
                keep = self._answer(read_head(self._stream))
            except BadHead as problem:
                keep = self._refuse(400, sentence_of(problem), keep=False)
            if not keep:
                return

    def _answer(self, head: Head) -> bool:
        """Answer one request; whether the connection can take another one."""
        self._server.contexts.check(self._stream.certificate)
        request = _REQUEST.fullmatch(head.line)
        if not request:
            raise BadHead(f"{head.line[:60]!r} is not a request this port answers")
        method, path = request[1], request[2]
        keep = not head.closes and self._server.keeps()
        blocks = _BLOCKS.fullmatch(path)
        if method == "POST" and blocks:
            wanted = bytes.fromhex(blocks[1])
            return self._with_blob(wanted, keep, lambda blob: self._send_blocks(wanted, blob, head, keep))
        if method == "POST" and (relay := _RELAY.fullmatch(path)):
            return self._relay(bytes.fromhex(relay[1]), bool(relay[2]), head, keep)
        if method == "POST":
            push = _PUSH.fullmatch(path)
            return self._push(int(push[1]), head, keep) if push else self._refuse(404, "no such resource", keep=False)
        if head.length or "transfer-encoding" in head.headers:
            raise BadHead("a GET request has no body")
        if blob := _BLOB.fullmatch(path):
            digest = bytes.fromhex(blob[1])
            return self._with_blob(digest, keep, lambda blob: self._send_blob(digest, blob, head, keep), coming=True)
        if blocks:
            first, count = int(blocks[2] or 0), int(blocks[3] or 0)
            return self._with_blob(
                bytes.fromhex(blocks[1]), keep, lambda blob: self._send_hints(blob, first, count, keep)
            )
        if chunks := _CHUNKS.fullmatch(path):
            return self._chunks(bytes.fromhex(chunks[1]), int(chunks[2] or 0), int(chunks[3] or 0), keep)
        return self._refuse(404, "no such resource", keep=keep)

    # What is held

    def _with_blob(self, digest: Digest, keep: bool, answer: Callable[[Blob], bool], coming: bool = False) -> bool:
        """Answer from what is held; with `coming`, also from what is on its way in."""
        try:
            blob = self._server.depot.open_blob(digest) or self._carried(digest)
            if blob is None and coming:
                blob = self._server.depot.open_partial(digest)
        except (StoreError, OSError) as problem:
            return self._refuse(500, sentence_of(problem), keep=keep)
        if blob is None:
            return self._refuse(404, f"{self._server.contexts.identity.node} does not hold {digest.hex()}", keep=keep)
        try:
            return answer(blob)
        except UnsatisfiableRange:
            return self._refuse(
                416, "the range lies outside the artifact", keep, {"Content-Range": f"bytes */{blob.size}"}
            )
        except (StoreError, OSError) as problem:
            self._server.report("warning", "blob_changed", f"stopped serving {digest.hex()}: {problem}")
            return False  # the short body tells the peer
        finally:
            blob.close()

    def _send_blob(self, digest: Digest, blob: Blob, head: Head, keep: bool) -> bool:
        part = byte_range(head.headers.get("range"), blob.size)
        first, end = part or (0, blob.size)
        if isinstance(blob, PartialBlob) and not blob.covers(first, end):
            return self._refuse(404, f"{self._server.contexts.identity.node} does not have these bytes yet", keep=keep)
        headers: dict[str, str | int] = {"ETag": f'"{digest.hex()}"', "Accept-Ranges": "bytes"}
        if part:
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{blob.size}"
        self._head(206 if part else 200, end - first, "application/octet-stream", keep, headers)
        allow, buffer = self._pace(head, digest), self._chunk_buffer()
        while first < end:
            view = buffer[: min(CHUNK_BYTES, end - first)]
            read_checked(blob, view, first)
            self._stream.send(view, allow)
            first += len(view)
        return keep

    def _send_hints(self, blob: Blob, first: int, count: int, keep: bool) -> bool:
        self._head(200, hints_length(blob.size, first, count), "application/octet-stream", keep)
        send_hints(self._stream, blob, first, count, self._chunk_buffer())
        return keep

    def _send_blocks(self, digest: Digest, blob: Blob, head: Head, keep: bool) -> bool:
        runs = read_runs(self._stream, head.length, blob.size)
        self._head(200, runs_length(blob.size, runs), "application/octet-stream", keep)
        send_runs(self._stream, blob, runs, self._chunk_buffer(), self._pace(head, digest))
        return keep

    def _chunk_buffer(self) -> memoryview:
        if not self._buffer:
            self._buffer = memoryview(bytearray(CHUNK_BYTES))
        return self._buffer

    def _pace(self, head: Head, digest: Digest) -> Callable[[int], int]:
        priority = head.headers.get(PRIORITY_HEADER, "")
        return self._server.throttle.pace(self._stream.peer, id(self._stream), priority, [digest])

    def _chunks(self, digest: Digest, first: int, count: int, keep: bool) -> bool:
        try:
            leaves = self._server.depot.leaves(digest)
            if leaves is None and self._server.desk is not None:
                leaves = self._server.desk.leaves(self._stream.peer, digest)
        except (StoreError, OSError) as problem:
            return self._refuse(500, sentence_of(problem), keep=keep)
        if leaves is None:
            return self._refuse(404, f"there is no chunk list of {digest.hex()} here", keep=keep)
        page = b"".join(leaves[first : first + min(count or LIST_PAGE_CHUNKS, LIST_PAGE_CHUNKS)])
        self._head(200, len(page), "application/octet-stream", keep)
        self._stream.send(page)
        return keep

    def _carried(self, digest: Digest) -> Blob | None:
        desk = self._server.desk
        return desk.open_blob(self._stream.peer, digest) if desk is not None else None

    def _relay(self, digest: Digest, done: bool, head: Head, keep: bool) -> bool:
        """A peer asks us to carry, or says that it has what we carried."""
        desk = self._server.desk
        if head.length or "transfer-encoding" in head.headers:
            raise BadHead("this request has no body")
        if desk is None:
            return self._refuse(404, "this node carries nothing for others", keep=keep)
        status, answer = (desk.finish if done else desk.ask)(self._stream.peer, digest)
        if status != 200:
            return self._refuse(status, str(answer["error"]), keep=keep)
        body = json_body(answer)
        self._head(200, len(body), "application/json", keep)
        self._stream.send(body)
        return keep

    # What comes in

    def _push(self, transfer: int, head: Head, keep: bool) -> bool:
        waits = head.headers.get("expect", "").lower() == "100-continue"
        if head.headers.get("transfer-encoding", "").lower() != "chunked":
            return self._refuse(411, "an upload is sent in chunked transfer coding", keep=False)
        expected = self._server.inbox.claim(self._stream.peer, transfer, self._stream.abort)
        if expected is None:
            sentence = f"transfer {transfer} is not expected from {self._stream.peer}"
            return self._refuse(409, sentence, keep=keep and waits)
        if not self._receive(expected, waits):
            return False
        failed = [(record.digest.hex(), why) for record, why in expected.failed[:FAILED_TOLD_MAX]]
        body = json_body({"complete": len(expected.complete), "failed": failed})
        self._head(200, len(body), "application/json", keep)
        self._stream.send(body)
        return keep

    def _receive(self, expected: Expected, waits: bool) -> bool:
        """Take the upload in; it ends as `Arrived`, once, however it ends. Whether the stream came to its end."""
        frames = FrameReader(ChunkedBody(self._stream), self._stream.peer)
        receiver = Receiver(expected, self._server.depot, frames, self._server.hooks.on_wrong_bytes)
        why = "the upload broke off"
        try:
            if waits:
                self._stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._stream.flow()
            receiver.receive()
            why = f"{self._stream.peer} did not send it"
            return True
        except StreamBroken as problem:
            why = sentence_of(problem)
            self._server.report("warning", "upload_broken", why)
            return False
        finally:
            try:
                receiver.close()
            finally:
                self._server.inbox.finish(expected, why)

    # Answers

    def _head(
        self, status: int, length: int, content_type: str, keep: bool, more: dict[str, str | int] | None = None
    ) -> None:
        headers: dict[str, str | int] = {"Content-Length": length, "Content-Type": content_type, **(more or {})}
        if not keep:
            headers["Connection"] = "close"
        self._stream.send(answer_head(status, headers))

    def _refuse(self, status: int, sentence: str, keep: bool, more: dict[str, str | int] | None = None) -> bool:
        body = json_body({"error": sentence})
        self._head(status, len(body), "application/json", keep, more)
        self._stream.send(body)
        return keep
