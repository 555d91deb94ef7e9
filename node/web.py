"""What a node answers over HTTPS to holders of a certificate: blobs, chunk lists, renewal, metrics, sessions.

| request | answer |
|---|---|
| `GET /v1/blob/{digest}`, `HEAD` | the bytes, with single ranges and the digest as ETag; for `curl` and `aria2c` |
| `GET /v1/chunks/{digest}?from=&count=` | chunk digests, 32 bytes each, 16,384 a page; `Spore-Chunks` counts all |
| `GET /v1/session` | the WebSocket of `sessions.py` |
| `POST /v1/renew` | on issuers: a new certificate for the node that asks, against a signing request |
| `GET /v1/healthz`, `GET /metrics` | a line of JSON; Prometheus text |

Every request's certificate is checked again, so that revocation reaches connections that stand. A file that changes
while it is sent ends the connection: the receiver sees a short body, never wrong bytes. Agents move bytes among
themselves by `bulk.py`, which is faster; this is the same store behind an ordinary URL.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from aiohttp import web

from node.admission import PeerRefused
from node.bulk_store import read_checked
from node.certificates import REQUEST_BYTES_MAX, CertificateFacts
from node.listener import ProtocolFactory
from node.metrics_port import TEXT
from node.refusals import RefusalLog
from node.throttle import PRIORITY_HEADER
from node.tls import IdentityContexts, shown_certificate
from protocol.chunks import LIST_PAGE_CHUNKS
from protocol.effects import Report
from protocol.values import Digest
from storage.blobs import Blob
from storage.refusals import StoreError

PIECE_BYTES = 1 << 20  # one read and one write; what a connection holds in memory at a time
STREAMS_MAX = 32  # blobs sent at once, of two pieces each: 64 MiB; further ones wait
STREAM_WAIT_SECONDS = 30.0  # then 503: a client that waits longer has mostly gone
READ_THREADS = 4  # disks do not get faster with more; bulk has threads of its own
STALL_SECONDS = 60.0  # for one piece: below 17 KiB/s a client only holds a stream that others wait for
IDLE_SECONDS = 75.0  # a connection between requests, or in the middle of a request's head
STOP_SECONDS = 2.0  # for requests under way when the agent stops

_DIGEST = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_COUNT = re.compile(r"[0-9]{1,12}")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SessionHandler = Callable[[web.Request, CertificateFacts], Awaitable[web.StreamResponse]]
Renew = Callable[[CertificateFacts, bytes], bytes]
Pace = Callable[[str, int, str], Callable[[int], int]]
T = TypeVar("T")


class BlobStore(Protocol):
    """What of `storage.depot.Depot` is read here; its methods block."""

    def open_blob(self, digest: Digest) -> Blob | None: ...

    def leaves(self, digest: Digest) -> tuple[Digest, ...] | None: ...


class RenewalRefused(Exception):
    """A certificate that is not renewed here; the message is a sentence for the asker."""


class _Unsatisfiable(Exception):
    """A range that begins beyond the end."""


class Web:
    """The HTTPS side of a node. `start`, give `protocol` to the listener, `stop` when sessions and listener are.

    `renew` blocks and may raise RenewalRefused; `pace` gives, for a peer, a transfer and a priority, what blocks until
    a piece may be sent and says how much of it (the egress budgets).
    """

    def __init__(
        self,
        contexts: IdentityContexts,
        store: BlobStore,
        *,
        session: SessionHandler,
        metrics: Callable[[], bytes],
        renew: Renew | None,
        report: Callable[[Report], None],
        refusals: RefusalLog,
        pace: Pace | None = None,
    ) -> None:
        self._contexts = contexts
        self._store = store
        self._session = session
        self._metrics = metrics
        self._renew = renew
        self._report = report
        self._refusals = refusals
        self._pace = pace
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="web")
        self._streams = asyncio.Semaphore(STREAMS_MAX)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(middlewares=[self._admit], client_max_size=REQUEST_BYTES_MAX)
        app.router.add_get("/v1/blob/{digest}", self._blob)  # answers HEAD too
        app.router.add_get("/v1/chunks/{digest}", self._chunks)
        app.router.add_get("/v1/healthz", self._healthz)
        app.router.add_get("/v1/session", self._open_session)
        app.router.add_get("/metrics", self._answer_metrics)
        app.router.add_post("/v1/renew", self._answer_renewal)
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=IDLE_SECONDS, shutdown_timeout=STOP_SECONDS, tcp_keepalive=True
        )
        await self._runner.setup()

    @property
    def protocol(self) -> ProtocolFactory:
        assert self._runner is not None, "start first"
        server = self._runner.server
        assert server is not None, "start first"
        return server

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- who asks -----------------------------------------------------------------------------------------------

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.transport is None or request.transport.is_closing():
            return hung_up(request)
        try:
            self._facts(request)
        except PeerRefused as refusal:
            self._refusals.refused(refusal.reason, request.remote or "unknown", refusal.message)
            response = _sentence(403, refusal.message)
            response.force_close()
            return response
        try:
            return await handler(request)
        except ConnectionError:
            return hung_up(request)

    def _facts(self, request: web.Request) -> CertificateFacts:
        return self._contexts.check(shown_certificate(request))

    async def _open_session(self, request: web.Request) -> web.StreamResponse:
        return await self._session(request, self._facts(request))

    # --- small answers ------------------------------------------------------------------------------------------

    async def _healthz(self, request: web.Request) -> web.Response:
        identity = self._contexts.identity
        return web.json_response({"status": "ok", "cluster": identity.cluster, "node": identity.node})

    async def _answer_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics(), headers={"Content-Type": TEXT})

    async def _answer_renewal(self, request: web.Request) -> web.Response:
        if self._renew is None:
            return _sentence(403, "this node is no issuer: ask a host marked `issuer: true` in the hosts file")
        csr, facts = await request.read(), self._facts(request)  # 413 above `client_max_size`
        try:
            certificate = await self._blocking(self._renew, facts, csr)
        except RenewalRefused as refusal:
            self._report(Report("warning", "renewal-refused", f"node {facts.node}: {refusal}"))
            return _sentence(403, str(refusal))
        return web.Response(body=certificate, content_type="application/x-pem-file")

    # --- chunk lists --------------------------------------------------------------------------------------------

    async def _chunks(self, request: web.Request) -> web.StreamResponse:
        digest = _digest(request)
        first = _number(request, "from", 0)
        count = min(_number(request, "count", LIST_PAGE_CHUNKS), LIST_PAGE_CHUNKS)
        leaves = await self._blocking(self._store.leaves, digest)
        if leaves is None:
            return _sentence(404, "this node does not hold that digest: ask one that does (`spore where`)")
        return web.Response(
            body=b"".join(leaves[first : first + count]),
            content_type="application/octet-stream",
            headers={"Spore-Chunks": str(len(leaves)), "ETag": _etag(digest)},
        )

    # --- blobs --------------------------------------------------------------------------------------------------

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        digest = _digest(request)
        if request.headers.get("If-None-Match", "") in (_etag(digest), "*"):
            return web.Response(status=304, headers={"ETag": _etag(digest)})
        blob = await self._blocking(self._store.open_blob, digest)
        if blob is None:
            return _sentence(404, "this node does not hold that digest: ask one that does (`spore where`)")
        try:
            return await self._answer_blob(request, digest, blob)
        finally:
            await self._blocking(blob.close)

    async def _answer_blob(self, request: web.Request, digest: Digest, blob: Blob) -> web.StreamResponse:
        headers = {"ETag": _etag(digest), "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        size = blob.size
        try:
            first, end, partial = _wanted(request, digest, size)
        except _Unsatisfiable:
            return _sentence(416, f"the range begins beyond the {size} bytes", {"Content-Range": f"bytes */{size}"})
        if partial:
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        response = web.StreamResponse(status=206 if partial else 200, headers=headers)
        response.content_length = end - first
        if request.method == "HEAD":
            await response.prepare(request)
            return response
        try:
            async with asyncio.timeout(STREAM_WAIT_SECONDS):
                await self._streams.acquire()
        except TimeoutError:
            return _sentence(503, "this node sends as many blobs as it can: try again soon", {"Retry-After": "10"})
        try:
            return await self._stream(request, response, blob, first, end)
        finally:
            self._streams.release()

    async def _stream(
        self, request: web.Request, response: web.StreamResponse, blob: Blob, first: int, end: int
    ) -> web.StreamResponse:
        """Send the pieces. Each was read from an unchanged file, or the connection is ended before it is sent."""
        allow = self._allowance(request)
        try:
            piece = await self._blocking(self._read, blob, first, end, allow)
        except (StoreError, OSError) as problem:
            return _sentence(503, f"the bytes cannot be read any more: {problem}")
        await response.prepare(request)
        try:
            while True:
                async with asyncio.timeout(STALL_SECONDS):
                    await response.write(piece)
                first += len(piece)
                if first >= end:
                    break
                piece = await self._blocking(self._read, blob, first, end, allow)
            await response.write_eof()
        except ConnectionError:
            pass  # the client has gone, as download tools do when they have what they wanted
        except (StoreError, OSError) as problem:  # TimeoutError is an OSError, without words of its own
            why = str(problem) or f"the receiver took less than {PIECE_BYTES} bytes in {STALL_SECONDS:.0f} s"
            self._report(Report("warning", "blob-broken", f"sending to {request.remote} was cut short: {why}"))
            if request.transport is not None:
                request.transport.abort()
        return response

    def _allowance(self, request: web.Request) -> Callable[[int], int]:
        if self._pace is None:
            return lambda wanted_bytes: wanted_bytes
        return self._pace(self._facts(request).node, id(request), request.headers.get(PRIORITY_HEADER, ""))

    def _read(self, blob: Blob, first: int, end: int, allow: Callable[[int], int]) -> bytearray:
        """The next piece, when it may leave, in a thread. A buffer of its own: the transport may hold the last."""
        piece = bytearray(allow(min(PIECE_BYTES, end - first)) if first < end else 0)
        with memoryview(piece) as view:
            read_checked(blob, view, first)
        return piece

    async def _blocking(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(function, *arguments))


def _sentence(status: int, sentence: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=sentence + "\n", headers=headers)


def hung_up(request: web.Request) -> web.Response:
    """For whoever has gone, killed or tired of waiting: nothing is sent.

    aiohttp takes a ConnectionError that a handler raises for a fault of ours, and logs it with a traceback.
    """
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _etag(digest: Digest) -> str:
    return f'"{digest.hex()}"'


def _digest(request: web.Request) -> Digest:
    text = request.match_info["digest"]
    if not _DIGEST.fullmatch(text):
        raise web.HTTPBadRequest(text="a digest is 64 hexadecimal digits in lower case\n")
    return bytes.fromhex(text)


def _number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not _COUNT.fullmatch(text):
        raise web.HTTPBadRequest(text=f"{name} must be a whole number\n")
    return int(text)


def _wanted(request: web.Request, digest: Digest, size: int) -> tuple[int, int, bool]:
    """(first, end, whether that is a part) of the bytes asked for. Raises _Unsatisfiable.

    A Range that is malformed, has several parts or is conditional on another ETag is ignored, as RFC 9110 allows.
    """
    match = _RANGE.fullmatch(request.headers.get("Range", ""))
    if match is None or request.headers.get("If-Range", _etag(digest)) != _etag(digest):
        return 0, size, False
    first_text, last_text = match.groups()
    if not first_text:
        if not last_text:
            return 0, size, False
        if int(last_text) == 0 or size == 0:
            raise _Unsatisfiable
        return max(0, size - int(last_text)), size, True
    first = int(first_text)
    last = int(last_text) if last_text else size - 1
    if last_text and last < first:
        return 0, size, False
    if first >= size:
        raise _Unsatisfiable
    return first, min(last + 1, size), True
