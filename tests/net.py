"""Nodes for network tests: real identities, real TLS on loopback, an in-memory store, and everything they report."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from node.connections import ConnectionLimits
from node.identity import Identity, begin_join, init_identity, install_identity
from node.issuer import Issuer, JoinServer, Standing
from node.listener import BulkHandler, Listener
from node.refusals import RefusalLog
from node.session import SessionLimits
from node.sessions import Sessions
from node.tls import IdentityContexts
from node.tokens import BOOK_FILE, TokenBook
from node.web import Pace, Web
from protocol.chunks import Hasher
from protocol.effects import Report
from protocol.events import Challenged, Event
from protocol.messages import Hello
from protocol.values import Digest, Member
from storage.refusals import BlobChanged

NOW = int(time.time())
GENEROUS_SECONDS = 60.0
CLUSTER = "fleet"


def issuer_identity(directory: Path, node: str = "a", cluster: str = CLUSTER) -> Identity:
    return init_identity(directory, cluster, node, now=NOW)


def joined(directory: Path, issuer: Identity, node: str, *, now: int = NOW) -> Identity:
    certificate = issuer.issue(begin_join(directory, node), node, ephemeral=False, now=now)
    return install_identity(directory, issuer.ca_pem, certificate, node=node, pin=issuer.ca_pin, now=now)


class MemoryBlob:
    """Bytes that are held; `changes_at` is the offset from which a read finds the file changed."""

    def __init__(self, content: bytes, changes_at: int | None) -> None:
        self._content = content
        self._changes_at = changes_at
        self._changed = False
        self.closed = False

    @property
    def size(self) -> int:
        return len(self._content)

    def read_into(self, view: memoryview, offset: int) -> int:
        piece = self._content[offset : offset + len(view)]
        view[: len(piece)] = piece
        self._changed = self._changes_at is not None and offset + len(piece) > self._changes_at
        return len(piece)

    def check(self) -> None:
        if self._changed:
            raise BlobChanged("the file no longer holds what it did")

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.closed = True


@dataclass
class MemoryStore:
    """What `Web` reads from; counts the blobs that were opened and never closed."""

    held: dict[Digest, bytes] = field(default_factory=dict)
    lists: dict[Digest, tuple[Digest, ...]] = field(default_factory=dict)
    changes_at: dict[Digest, int] = field(default_factory=dict)
    opened: list[MemoryBlob] = field(default_factory=list)

    def add(self, content: bytes) -> Digest:
        hasher = Hasher()
        hasher.update(content)
        digest, _, leaves = hasher.finish()
        self.held[digest], self.lists[digest] = content, tuple(leaves)
        return digest

    def open_blob(self, digest: Digest) -> MemoryBlob | None:
        if digest not in self.held:
            return None
        blob = MemoryBlob(self.held[digest], self.changes_at.get(digest))
        self.opened.append(blob)
        return blob

    def leaves(self, digest: Digest) -> tuple[Digest, ...] | None:
        return self.lists.get(digest)


class Node:
    """A node's whole network side on an ephemeral port; `async with` starts and stops it."""

    def __init__(
        self,
        identity: Identity,
        *,
        bulk: BulkHandler | None = None,
        boot: int = 1,
        session_limits: SessionLimits | None = None,
        connection_limits: ConnectionLimits | None = None,
        on_event: Callable[[Event], None] | None = None,
        turns_away: Callable[[Challenged], str] = lambda event: "",
        pace: Pace | None = None,
    ) -> None:
        self.identity = identity
        self.now: float = NOW
        self.boot = boot
        self.revocations: dict[str, int] = {}
        self.listed: set[str] = {identity.node}
        self.alive: set[str] = set()
        self.hosts_file: Callable[[], bytes] = lambda: b"cluster: fleet\n"
        self.reports: list[Report] = []
        self.events: list[Event] = []
        self.store = MemoryStore()
        self.hello_cluster = identity.cluster
        self.hello_node = identity.node
        self.contexts = IdentityContexts(identity, clock=lambda: self.now, revocations=self.revocations)
        self.refusals = RefusalLog(self.reports.append, clock=time.monotonic)
        self.sessions = Sessions(
            identity.node,
            self.contexts,
            hello=lambda: Hello(
                self.hello_cluster, Member(self.hello_node, 1), self.boot, (0, 0), self.boot << 20, self.boot
            ),
            on_event=self._challenged(on_event or self.events.append),
            report=self.reports.append,
            refusals=self.refusals,
            limits=session_limits,
        )
        self.book = TokenBook(identity.folder / BOOK_FILE)
        self.issuer = Issuer(
            lambda: self.contexts.identity,
            self.book,
            standing=lambda node: Standing(node in self.listed, False, node in self.alive),
            revocations=self.revocations,
            clock=lambda: self.now,
        )
        self._turns_away = turns_away
        self._bulk = bulk
        self._connection_limits = connection_limits
        self._pace = pace

    def _challenged(self, on_event: Callable[[Event], None]) -> Callable[[Event], None]:
        """Every event, with the core's answer to a newcomer: it is let in unless the test says otherwise."""

        def heard(event: Event) -> None:
            on_event(event)
            if isinstance(event, Challenged):
                self.sessions.admit(event.peer, event.instance, self._turns_away(event))

        return heard

    async def __aenter__(self) -> Node:
        self.web = Web(
            self.contexts,
            self.store,
            session=self.sessions.accept,
            metrics=lambda: b"spore_up 1\n",
            renew=self.issuer.renew if self.identity.issuer else None,
            report=self.reports.append,
            refusals=self.refusals,
            pace=self._pace,
        )
        self.join = JoinServer(
            self.issuer,
            hosts_file=lambda: self.hosts_file(),  # noqa: PLW0108 - a test may replace it
            seeds=lambda: [self.address],
            report=self.reports.append,
            refusals=self.refusals,
        )
        await self.sessions.start()
        await self.web.start()
        await self.join.start()
        self.listener = Listener(
            self.contexts,
            web=self.web.protocol,
            join=self.join.protocol if self.identity.issuer else None,
            bulk_handler=self._bulk,
            report=self.reports.append,
            refusals=self.refusals,
            limits=self._connection_limits,
        )
        await self.listener.start("127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.sessions.stop()
        await self.listener.stop()
        await self.web.stop()
        await self.join.stop()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.port}"

    def told(self, event: str) -> list[str]:
        return [report.message for report in self.reports if report.event == event]

    def token(self, **terms: object) -> str:
        arguments: dict[str, object] = {
            "ttl_seconds": 3600,
            "uses": 1,
            "ephemeral": False,
            "addresses": [self.address],
            "ca_pin": self.identity.ca_pin,
            "cluster": self.identity.cluster,
            "issuer": self.identity.node,
            "now": self.now,
        }
        return self.book.create(**{**arguments, **terms})  # type: ignore[arg-type] # a test's shorthand


def run(story: Callable[[], Awaitable[None]]) -> None:
    """Run an async story; afterwards no task of it may be left."""

    async def whole() -> None:
        async with asyncio.timeout(GENEROUS_SECONDS):
            await story()
        await asyncio.sleep(0)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not left, left

    asyncio.run(whole())


async def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait until the condition holds; the limit is generous, so that only a fault reaches it."""
    deadline = time.monotonic() + GENEROUS_SECONDS / 2
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.005)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def get(
    port: int,
    path: str,
    context: ssl.SSLContext,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """One request over a connection of its own, as any HTTPS client does it. Blocks: call it in a thread."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=GENEROUS_SECONDS)
    with contextlib.closing(connection):
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, response.read())


def plain_socket(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=GENEROUS_SECONDS)


def read_to_end(connection: socket.socket) -> bytes:
    """Everything until the other side closes; a reset is an end too."""
    content = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while piece := connection.recv(65536):
            content += piece
    return content
