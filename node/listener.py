"""The one TCP port of a node: accept, look at the hello, hand the connection to whom it belongs.

Fleets often map just one port into a machine, so sessions, bulk transfers, joins and `curl` share it. The ClientHello
is read with MSG_PEEK, so that its bytes stay in the socket and the owner completes, and checks, its own handshake:

| ALPN | goes to |
|---|---|
| `spore-bulk` | a blocking thread (`bulk_handler`); asyncio never sees its bytes |
| `spore-join` | the join server, whose TLS asks for no certificate |
| anything else | the web server, whose TLS asks for one |

Everything before a finished handshake is a stranger's: it is bounded in number, bytes and time (`ConnectionLimits`),
and a refusal is one rate-limited sentence in the log. Nothing here blocks the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import threading
from collections.abc import Callable

from node.admission import HandshakeFault, explain_handshake_error
from node.clienthello import HELLO_BYTES_MAX, ClientHello, HelloRefused, parse
from node.connections import ConnectionCount, ConnectionLimits, CountedSocket
from node.refusals import RefusalLog
from node.tls import JOIN_ALPN, IdentityContexts
from protocol.effects import Report

BULK_ALPN = "spore-bulk"
WEB_ALPN = ("http/1.1",)
BACKLOG = 256  # a whole fleet redials within a second when this node comes back
SHUTDOWN_SECONDS = 2.0  # how long a closing TLS connection waits for the other side's goodbye
BULK_END_SECONDS = 5.0  # how long `stop` waits for bulk threads once their sockets are shut
ACCEPT_PAUSE_SECONDS = 1.0  # when the process is out of descriptors: accepting again at once would only spin

ProtocolFactory = Callable[[], asyncio.Protocol]
BulkHandler = Callable[[socket.socket, str], object]  # blocking; owns the socket from then on


class ListenError(OSError):
    """The port cannot be listened on; the message says what to do."""


class Listener:
    """Listens on one port and dispatches. `start` in a running loop, `stop` before the loop ends.

    `web` and `join` make a server protocol per connection (aiohttp's); `bulk_handler` is called in a thread of its own
    with the raw, blocking socket and the address as text, and must close the socket. `join` and `bulk_handler` may be
    None: such connections are closed.
    """

    def __init__(
        self,
        contexts: IdentityContexts,
        *,
        web: ProtocolFactory,
        join: ProtocolFactory | None,
        bulk_handler: BulkHandler | None,
        report: Callable[[Report], None],
        refusals: RefusalLog,
        limits: ConnectionLimits | None = None,
    ) -> None:
        self._contexts = contexts
        self._web = web
        self._join = join
        self._bulk_handler = bulk_handler
        self._report = report
        self._refusals = refusals
        self._limits = limits or ConnectionLimits()
        self._count = ConnectionCount(self._limits)
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._bulk: dict[socket.socket, str] = {}  # a duplicate of each bulk thread's socket, to shut it by; its host
        self._bulk_ended = asyncio.Event()

    @property
    def port(self) -> int:
        assert self._socket is not None, "the listener is not started"
        return int(self._socket.getsockname()[1])

    @property
    def open_connections(self) -> int:
        return self._count.open

    async def start(self, host: str, port: int) -> None:
        """Listen on `host` (empty: every address, IPv6 and IPv4) and `port` (0: any). Raises ListenError."""
        self._socket = await _bind(host, port)
        self._accepting = asyncio.create_task(self._accept(self._socket), name="listener")

    def ended(self) -> list[str]:
        """The work that should go on until `stop`, where it did not."""
        accepting = self._accepting
        return [accepting.get_name()] if accepting is not None and accepting.done() else []

    async def stop(self) -> None:
        """Accept nothing more, end what is still opening and every bulk connection. Web connections are aiohttp's."""
        tasks = [task for task in (self._accepting, *self._opening) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
        await self._end_bulk()

    # --- accepting ----------------------------------------------------------------------------------------------

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, name = await loop.sock_accept(listening)
            except OSError as problem:
                if problem.errno != errno.ECONNABORTED:  # that one was gone before we looked; the others stay a while
                    self._report(Report("error", "accept-failed", f"cannot accept connections: {problem.strerror}"))
                    await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            self._admit(accepted, _host_text(name), f"{_host_text(name)}:{name[1]}")

    def _admit(self, accepted: socket.socket, host: str, address: str) -> None:
        refusal = self._count.refusal(host)
        if refusal:
            accepted.close()
            self._refusals.refused("crowded", host, refusal)
            return
        task = asyncio.create_task(self._open(self._count.admit(accepted, host), host, address))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, sock: CountedSocket, host: str, address: str) -> None:
        """Take one connection from accept to its owner. Whatever fails before that closes it and says why."""
        try:
            try:
                async with asyncio.timeout(self._limits.hello_seconds):
                    hello = await _peek_hello(sock)
                await self._dispatch(sock, hello, host, address)
            except HelloRefused as refusal:
                self._refusals.refused(refusal.reason, host, f"refused: {refusal}")
                sock.close()
            except (OSError, EOFError) as problem:  # TimeoutError and SSLError are OSErrors
                fault = _explain(problem)
                self._refusals.refused(fault.reason, host, fault.sentence)
                sock.close()
        except asyncio.CancelledError:
            sock.close()
            raise
        finally:
            self._count.proven(host)

    async def _dispatch(self, sock: CountedSocket, hello: ClientHello, host: str, address: str) -> None:
        if BULK_ALPN in hello.alpn:
            self._start_bulk(sock, host, address)
        elif JOIN_ALPN in hello.alpn:
            if self._join is None:
                raise HelloRefused("not-issuer", "it asks to join, and this node is no issuer")
            await self._serve(sock, self._join, self._contexts.join_server())
        else:
            await self._serve(sock, self._web, self._contexts.server(WEB_ALPN))

    async def _serve(self, sock: CountedSocket, factory: ProtocolFactory, context: ssl.SSLContext) -> None:
        """Complete the handshake and leave the connection to aiohttp. Raises what the handshake raises."""
        await asyncio.get_running_loop().connect_accepted_socket(
            factory,
            sock,
            ssl=context,
            ssl_handshake_timeout=self._limits.handshake_seconds,
            ssl_shutdown_timeout=SHUTDOWN_SECONDS,
        )

    # --- bulk ---------------------------------------------------------------------------------------------------

    def _start_bulk(self, sock: CountedSocket, host: str, address: str) -> None:
        hosts = tuple(self._bulk.values())
        if self._bulk_handler is None or len(hosts) >= self._limits.bulk_threads_max:
            raise HelloRefused("crowded", f"this node serves {len(hosts)} bulk connections, which is all it takes")
        if hosts.count(host) >= self._limits.bulk_per_address_max:
            raise HelloRefused("crowded", f"it has {hosts.count(host)} bulk connections here already")
        # TLS takes the descriptor out of the socket it wraps; the count goes with the duplicate, closed at the end.
        duplicate = sock.dup()
        ended, sock.on_close = sock.on_close, None
        duplicate.on_close = ended
        raw = socket.socket(sock.family, sock.type, sock.proto, sock.detach())
        self._bulk[duplicate] = host
        self._bulk_ended.clear()
        thread = threading.Thread(
            target=self._run_bulk,
            args=(self._bulk_handler, raw, duplicate, address, asyncio.get_running_loop()),
            name=f"bulk-{address}",
            daemon=True,  # a thread stuck in the kernel must not keep the process from leaving
        )
        try:
            thread.start()
        except RuntimeError as problem:
            raw.close()
            self._bulk_done(duplicate)
            raise HelloRefused("crowded", "this node cannot start another thread") from problem

    def _run_bulk(
        self,
        handler: BulkHandler,
        sock: socket.socket,
        duplicate: socket.socket,
        address: str,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        try:
            sock.setblocking(True)
            handler(sock, address)
        except Exception as problem:
            self._report(
                Report("error", "bulk-failed", f"serving {address} failed: {type(problem).__name__} {problem}")
            )
        finally:
            sock.close()  # of no effect when the handler has closed or wrapped it
            with contextlib.suppress(RuntimeError):  # the loop has ended: `stop` was over before this thread was
                loop.call_soon_threadsafe(self._bulk_done, duplicate)

    def _bulk_done(self, duplicate: socket.socket) -> None:
        duplicate.close()
        self._bulk.pop(duplicate, None)
        if not self._bulk:
            self._bulk_ended.set()

    async def _end_bulk(self) -> None:
        for duplicate in tuple(self._bulk):
            with contextlib.suppress(OSError):
                duplicate.shutdown(socket.SHUT_RDWR)
        if self._bulk:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._bulk_ended.wait(), BULK_END_SECONDS)


def _explain(problem: BaseException) -> HandshakeFault:
    # asyncio reports a handshake that took too long as an aborted connection, with no other mark than its words.
    if isinstance(problem, ConnectionAbortedError) and "handshake" in str(problem):
        problem = TimeoutError()
    return explain_handshake_error(problem)


async def _peek_hello(sock: socket.socket) -> ClientHello:
    """The ClientHello, left in the socket. Raises HelloRefused, EOFError when the peer closes first, OSError."""
    seen = 0
    while True:
        # Unread bytes keep a socket readable; the low-water mark wakes us only when there is more than we have seen.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)
        await _readable(sock)
        peeked = sock.recv(HELLO_BYTES_MAX, socket.MSG_PEEK)
        hello = parse(peeked)
        if hello is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            return hello
        if len(peeked) <= seen:
            raise EOFError
        seen = len(peeked)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    woken = loop.create_future()
    loop.add_reader(sock, _wake, woken)
    try:
        await woken
    finally:
        loop.remove_reader(sock)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():  # level-triggered: a second call may come before the waiter has run
        woken.set_result(None)


async def _bind(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    everywhere = not host
    try:
        found = await loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except OSError as problem:
        raise ListenError(
            f"address {host!r} cannot be listened on ({problem.strerror}): name an address of this machine"
        ) from problem
    # One socket: for every address the IPv6 one, which takes IPv4 too, else the first that the name stands for.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET6 if everywhere else 0)
    problem_seen: OSError | None = None
    for family, kind, protocol, _, name in found:
        try:
            return _listening(family, kind, protocol, name, everywhere)
        except OSError as problem:
            problem_seen = problem_seen or problem
            if problem.errno == errno.EADDRINUSE:
                break  # on IPv4 alone we might succeed, and be a node that half the fleet cannot reach
    raise _listen_error(host, port, problem_seen) from problem_seen


def _listening(family: int, kind: int, protocol: int, name: tuple[object, ...], everywhere: bool) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart must not wait for old connections
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if everywhere else 1)
        sock.bind(name)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _listen_error(host: str, port: int, problem: OSError | None) -> ListenError:
    where = f"port {port}" + (f" of {host}" if host else "")
    if problem is not None and problem.errno == errno.EADDRINUSE:
        return ListenError(f"{where} is in use: stop the program that has it, or give this host another port")
    if problem is not None and problem.errno == errno.EACCES:
        return ListenError(f"{where} may not be listened on: use a port above 1023")
    reason = problem.strerror if problem is not None else "no address found"
    return ListenError(f"{where} cannot be listened on ({reason}): name an address of this machine")


def _host_text(name: tuple[object, ...]) -> str:
    """The peer's address as people write it: IPv4 that came through an IPv6 socket is shown as IPv4."""
    return str(name[0]).removeprefix("::ffff:")
