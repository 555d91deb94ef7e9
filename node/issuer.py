"""The issuer's side of joining and renewing: who gets a certificate, and the endpoint where strangers ask for one.

`Issuer` decides, with the token book and the authority's key; its calls block. `JoinServer` is what the listener
leaves `spore-join` connections to: no certificate is asked for there, so it answers two requests and nothing else,
small, one at a time and against the clock:

| request | answer |
|---|---|
| `GET /v1/ca` | the authority's certificate, which the joiner compares with the pin in its token |
| `POST /v1/join` {token_id, secret, node, csr} | {cluster, ca, certificate, hosts_file, seeds}, or {error, reason} |

A node that was revoked and joins anew is stamped above its revocation, or the revocation would hold for ever.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from aiohttp import web

from node.certificates import CertificateError, CertificateFacts, csr_key_sha256
from node.identity import Identity, IdentityError
from node.listener import ProtocolFactory
from node.refusals import RefusalLog
from node.tls import JOIN_ALPN, told_by
from node.tokens import TokenBook, TokenBookDamaged, TokenRefused
from node.web import RenewalRefused, hung_up
from protocol.effects import Report
from protocol.names import NameRefused, check_node

BODY_BYTES_MAX = 64 << 10  # a request is 1 kB; this leaves room for what later versions add
REQUEST_SECONDS = 10.0  # for the whole request to arrive: it is one packet
IDLE_SECONDS = 15.0  # a connection that asks for nothing
STOP_SECONDS = 2.0
FAILURES_PER_ADDRESS_MAX = 10  # in a minute: an operator mistypes a few times, a whole NAT of them a few more
FAILURES_MAX = 100  # in a minute, from everywhere: secrets have 256 bits, this only spares the log and the disk
FAILURE_SECONDS = 60.0


class JoinRefused(Exception):
    """A join that is not granted; the message goes to the joiner. `reason` is a stable word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """What a joiner asks with; made by `JoinServer`, judged by `Issuer`."""

    token_id: str
    secret: bytes
    node: str
    csr_pem: bytes


@dataclass(frozen=True, slots=True)
class Standing:
    """What the fleet knows of a node's name: in the hosts file, on a host that can vanish, alive right now."""

    listed: bool
    ephemeral: bool
    alive: bool


class Issuer:
    """Grants certificates. Made on nodes that hold the authority's key; every call blocks on the disk."""

    def __init__(
        self,
        identity: Callable[[], Identity],
        book: TokenBook,
        *,
        standing: Callable[[str], Standing],
        revocations: Mapping[str, int],
        clock: Callable[[], float],
    ) -> None:
        """`identity` gives the current one (it is renewed), `standing` is called in a thread."""
        self._identity = identity
        self._book = book
        self._standing = standing
        self._revocations = revocations
        self._clock = clock

    @property
    def ca_pem(self) -> bytes:
        return self._identity().ca_pem

    @property
    def cluster(self) -> str:
        return self._identity().cluster

    def join(self, request: JoinRequest) -> bytes:
        """The certificate for a joiner. Raises JoinRefused; OSError when the book cannot be written."""
        try:
            check_node(request.node)
            key_sha256 = csr_key_sha256(request.csr_pem)
            standing = self._standing(request.node)
            now = self._clock()
            grant = self._book.redeem(
                request.token_id, request.secret, request.node, key_sha256, listed=standing.listed, now=now
            )
            self._refuse_taken_name(request.node, standing)
            return self._identity().issue(
                request.csr_pem,
                request.node,
                ephemeral=grant.ephemeral or standing.ephemeral,
                now=now,
                joined_at=max(int(now), self._revocations.get(request.node, 0) + 1),
            )
        except TokenRefused as problem:
            raise JoinRefused(problem.reason, str(problem)) from problem
        except (NameRefused, CertificateError) as problem:
            raise JoinRefused("unusable", str(problem)) from problem
        except (IdentityError, TokenBookDamaged) as problem:
            raise JoinRefused("issuer", f"the issuer cannot grant joins: {problem}") from problem

    def renew(self, facts: CertificateFacts, csr_pem: bytes) -> bytes:
        """The next certificate of a node whose current one was just checked, and the authorities trusted here.

        Raises RenewalRefused.
        """
        standing = self._standing(facts.node)
        identity = self._identity()
        try:
            renewed = identity.issue(
                csr_pem,
                facts.node,
                ephemeral=facts.ephemeral or standing.ephemeral,
                now=self._clock(),
                joined_at=facts.joined_at,
            )
            return renewed + identity.ca_pem
        except (CertificateError, IdentityError) as problem:
            raise RenewalRefused(str(problem)) from problem

    def _refuse_taken_name(self, node: str, standing: Standing) -> None:
        """Two machines under one name would end each other's sessions for ever. Told only to who knows a secret."""
        if node == self._identity().node or standing.alive:
            raise JoinRefused(
                "alive",
                f"node {node!r} is alive in the cluster: give this machine another name, or stop that one first",
            )


class JoinServer:
    """The endpoint for those without a certificate. `start`, give `protocol` to the listener, `stop`."""

    def __init__(
        self,
        issuer: Issuer,
        *,
        hosts_file: Callable[[], bytes],
        seeds: Callable[[], Sequence[str]],
        report: Callable[[Report], None],
        refusals: RefusalLog,
        admitted: Callable[[str], None] = lambda node: None,
    ) -> None:
        """`admitted` hears of everybody who was let in.

        `seeds` are addresses a new node can dial; `hosts_file` reads the file and is called in a thread."""
        self._issuer = issuer
        self._hosts_file = hosts_file
        self._seeds = seeds
        self._report = report
        self._refusals = refusals
        self._admitted = admitted
        self._failures: deque[tuple[float, str]] = deque(maxlen=FAILURES_MAX)
        # One thread: joins take their turns, and a crowd of them cannot occupy more of the node.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="join")
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(middlewares=[self._guard], client_max_size=BODY_BYTES_MAX)
        app.router.add_get("/v1/ca", self._authority)
        app.router.add_post("/v1/join", self._join)
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=IDLE_SECONDS, shutdown_timeout=STOP_SECONDS
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
        self._thread.shutdown(wait=False, cancel_futures=True)

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Only over `spore-join`, within the time, and one request a connection."""
        tls = told_by(request, "ssl_object")
        if tls is None or tls.selected_alpn_protocol() != JOIN_ALPN:
            raise web.HTTPForbidden(text="joining speaks ALPN spore-join\n")
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                response = await handler(request)
        except ConnectionError:
            return hung_up(request)
        response.force_close()
        return response

    async def _authority(self, request: web.Request) -> web.Response:
        return web.Response(body=self._issuer.ca_pem, content_type="application/x-pem-file")

    async def _join(self, request: web.Request) -> web.Response:
        address = request.remote or "unknown"
        if self._too_many_failures(address):
            return _refusal(429, "busy", "too many failed joins: wait a minute and try again")
        body = await request.read()
        try:
            asked = _read_request(body)
            loop = asyncio.get_running_loop()
            hosts_file = (await loop.run_in_executor(self._thread, self._hosts_file)).decode()
            certificate = await loop.run_in_executor(self._thread, self._issuer.join, asked)
        except JoinRefused as refusal:
            self._failures.append((asyncio.get_running_loop().time(), address))
            self._refusals.refused(f"join-{refusal.reason}", address, f"a join was refused: {refusal}")
            return _refusal(403, refusal.reason, str(refusal))
        except (OSError, UnicodeDecodeError) as problem:
            self._report(Report("error", "join-failed", f"a join failed here: {problem}"))
            return _refusal(500, "issuer", "the issuer failed at its own files: its log says at which")
        self._admitted(asked.node)
        self._report(Report("info", "joined", f"{asked.node} joined from {address}"))
        return web.json_response(
            {
                "cluster": self._issuer.cluster,
                "ca": self._issuer.ca_pem.decode(),
                "certificate": certificate.decode(),
                "hosts_file": hosts_file,
                "seeds": list(self._seeds()),
            }
        )

    def _too_many_failures(self, address: str) -> bool:
        since = asyncio.get_running_loop().time() - FAILURE_SECONDS
        while self._failures and self._failures[0][0] < since:
            self._failures.popleft()
        here = sum(1 for _, failed in self._failures if failed == address)
        return len(self._failures) >= FAILURES_MAX or here >= FAILURES_PER_ADDRESS_MAX


def _refusal(status: int, reason: str, sentence: str) -> web.Response:
    return web.json_response({"error": sentence, "reason": reason}, status=status)


def _read_request(body: bytes) -> JoinRequest:
    try:
        fields = json.loads(body)
        texts = {name: fields[name] for name in ("token_id", "secret", "node", "csr")}
        if not all(isinstance(text, str) for text in texts.values()):
            raise TypeError
        return JoinRequest(texts["token_id"], bytes.fromhex(texts["secret"]), texts["node"], texts["csr"].encode())
    except (ValueError, TypeError, KeyError, RecursionError) as problem:
        raise JoinRefused("unusable", "the join request cannot be read: use the same version of spore") from problem
