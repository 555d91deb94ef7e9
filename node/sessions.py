"""Sessions: one kept, bidirectional WebSocket for each peer, dialled by whichever side can.

The dialler sends its Hello first; the acceptor answers with its own once it has decided to keep the session, and both
then count it as up. So a session that is turned down was never up at either end.

When both dial at once, the session dialled by the smaller node id is kept. Both ends decide by `keeps_current` from the
same facts. A session older than any dial can last is evidence of nothing: a peer that dials has lost it, or has begun
a new life (another `instance`), and the new session replaces it. But a new life may also be another machine with a
copy of the identity: while a session with the older life stands, the core is asked first (`Challenged`), and it asks
the older life whether it is there.

Events come in strict order for each peer: `SessionUp`, any number of `Received`, `SessionDown`. They are emitted from
tasks of this module, never from within a call of `send`, `dial` or `hangup`: who calls these is not re-entered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import aiohttp
from aiohttp import web

from node.admission import PeerRefused
from node.certificates import CertificateFacts
from node.dialling import FRAME_BYTES_MAX, REASON_HEADER, ClientSocket, DialError, new_client, open_socket
from node.refusals import RefusalLog
from node.session import (
    CODE_DUPLICATE,
    CODE_REFUSED,
    CODE_STOPPING,
    CODE_TWIN,
    Session,
    SessionFacts,
    SessionLimits,
    WebSocket,
    close_socket,
    ending,
)
from node.tls import IdentityContexts, shown_certificate
from protocol import wire
from protocol.effects import Report
from protocol.events import Challenged, DialFailed, Event, Received, SessionDown, SessionUp
from protocol.fields import UnknownMessage, WireError
from protocol.messages import Hello, Message
from protocol.values import NodeId


class _TurnedDown(Exception):
    """A session that is not opened; the message goes to the peer and the log."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def keeps_current(current: Session, hello: Hello, *, dialled: bool, own: NodeId, now: float, contest: float) -> bool:
    """Whether a standing session outlives a new one with the same peer. Both ends come to the same answer.

    `dialled`: this node dialled the new one. `contest`: the age in seconds up to which two dials can have crossed.
    """
    if current.hello.instance != hello.instance or dialled == current.dialled or now - current.opened_at > contest:
        return False
    return current.dialled == (own < current.peer)


class Sessions:
    """Every session of this node. Use it from one running loop; `start` first, `stop` at the end."""

    def __init__(
        self,
        own: NodeId,
        contexts: IdentityContexts,
        *,
        hello: Callable[[], Hello],
        on_event: Callable[[Event], None],
        report: Callable[[Report], None],
        refusals: RefusalLog,
        limits: SessionLimits | None = None,
    ) -> None:
        self._own = own
        self._contexts = contexts
        self._hello = hello
        self._on_event = on_event
        self._report = report
        self._refusals = refusals
        self._limits = limits or SessionLimits()
        self._client: aiohttp.ClientSession | None = None
        self._beating: asyncio.Task[None] | None = None
        self._sessions: dict[NodeId, Session] = {}
        self._dials: dict[NodeId, asyncio.Task[None]] = {}
        self._greeting: set[WebSocket] = set()  # accepted, their hello not read yet
        self._challenges: dict[tuple[NodeId, int], asyncio.Future[str]] = {}  # newcomers who wait for the core
        self._living: set[Session] = set()  # standing, and those whose goodbye is under way
        self._tasks: set[asyncio.Task[None]] = set()
        self._strikes: dict[NodeId, deque[float]] = {}  # of nodes with a certificate of ours: as many as the fleet has
        self._banned_until: dict[NodeId, float] = {}
        self._encoded: tuple[Message, bytes] | None = None  # news goes to every peer: it is encoded once
        self._past_sent_bytes = 0
        self._past_received_bytes = 0
        self._stopping = False

    async def start(self) -> None:
        self._client = new_client()
        self._beating = asyncio.create_task(self._beat(), name="heartbeats of sessions")
        self._tasks.add(self._beating)

    async def stop(self) -> None:
        """Send what is queued, say goodbye to everybody, and leave no task and no socket behind."""
        self._stopping = True
        for session in self._sessions.values():
            session.finish("the node stops", CODE_STOPPING)
        goodbyes = [
            close_socket(greeted, CODE_STOPPING, "the node stops", self._limits.close_seconds)
            for greeted in self._greeting
        ]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.flush_seconds + 2 * self._limits.close_seconds):
                await asyncio.gather(*goodbyes, *(session.closed.wait() for session in self._living))
        tasks = (*self._dials.values(), *self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    def ended(self) -> list[str]:
        """The work that should go on until `stop`, where it did not."""
        beating = self._beating
        return [beating.get_name()] if beating is not None and beating.done() else []

    # --- what the core asks for ---------------------------------------------------------------------------------

    def dial(self, peer: NodeId, address: str) -> None:
        """Begin to open a session, unless one stands or is being opened. Ends in `SessionUp` or `DialFailed`."""
        if self._stopping or peer in self._dials or self._standing(peer) is not None:
            return
        task = asyncio.create_task(self._dial(peer, address), name=f"dial-{peer}")
        self._dials[peer] = task
        task.add_done_callback(lambda ended: self._dial_ended(peer, ended))

    def send(self, peer: NodeId, message: Message) -> bool:
        """Queue a message; False when there is no session, or its queue is full (it is ended then)."""
        session = self._standing(peer)
        return session is not None and session.send(self._frame(message))

    async def send_waiting(self, peer: NodeId, message: Message) -> bool:
        """Queue a message once the peer has taken most of what is queued; False when the session is over."""
        session = self._standing(peer)
        return session is not None and await session.send_waiting(self._frame(message))

    def hangup(self, peer: NodeId, why: str) -> None:
        """Close the session after what was sent; `SessionDown` follows."""
        session = self._standing(peer)
        if session is not None:
            session.finish(why)

    def admit(self, peer: NodeId, instance: int, refusal: str) -> None:
        """The core's answer to `Challenged`: let this life of `peer` in, or turn it away with a sentence."""
        waiting = self._challenges.get((peer, instance))
        if waiting is not None and not waiting.done():
            waiting.set_result(refusal)

    def recheck(self) -> None:
        """End the sessions of peers whose certificates are not good any more; to be called after a revocation."""
        for session in tuple(self._sessions.values()):
            self._recheck(session)

    # --- what can be seen ---------------------------------------------------------------------------------------

    def peers(self) -> tuple[NodeId, ...]:
        return tuple(sorted(peer for peer, session in self._sessions.items() if not session.why))

    def rtt_ms(self, peer: NodeId) -> float | None:
        """The last measured round trip, or None."""
        session = self._standing(peer)
        return session.rtt_ms if session is not None else None

    def facts(self) -> tuple[SessionFacts, ...]:
        return tuple(self._sessions[peer].facts() for peer in self.peers())

    @property
    def sent_bytes(self) -> int:
        """Of messages, over all sessions there have been."""
        return self._past_sent_bytes + sum(session.sent_bytes for session in self._living)

    @property
    def received_bytes(self) -> int:
        return self._past_received_bytes + sum(session.received_bytes for session in self._living)

    # --- opening ------------------------------------------------------------------------------------------------

    async def _dial(self, peer: NodeId, address: str) -> None:
        why = ""
        try:
            await self._try_dial(peer, address)
        except (DialError, _TurnedDown) as problem:
            why = str(problem)
        except Exception as problem:
            why = f"this node failed at dialling: {type(problem).__name__}: {problem}"
            self._report(Report("error", "dial-failed", f"{peer}: {why}"))
        if why and self._standing(peer) is None:
            del self._dials[peer]  # before it is told: whoever hears of it may dial again at once
            self._on_event(DialFailed(peer, why))

    def _dial_ended(self, peer: NodeId, ended: asyncio.Task[None]) -> None:
        if self._dials.get(peer) is ended:
            del self._dials[peer]

    async def _try_dial(self, peer: NodeId, address: str) -> None:
        assert self._client is not None, "start first"
        await asyncio.sleep(0)  # whatever is refused at once is still told after `dial` has returned
        refusal = self._refusal(peer)
        if refusal:
            raise DialError(refusal)
        connection, certificate = await open_socket(self._client, self._contexts, peer, address, self._limits)
        try:
            hello = await self._greet(connection, peer)
            await self._challenge(peer, hello)
            self._judge(peer, hello, dialled=True)
        except BaseException as problem:  # also when this dial is cancelled: the connection must not stay
            code = problem.code if isinstance(problem, _TurnedDown) else CODE_REFUSED
            why = str(problem) or "the dial was given up"
            await close_socket(connection, code, why, self._limits.close_seconds)
            raise
        session = self._session(connection, peer, hello, dialled=True, address=address, certificate=certificate)
        self._install(session)
        self._spawn(self._live(session))

    async def _greet(self, connection: ClientSocket, peer: NodeId) -> Hello:
        try:
            async with asyncio.timeout(self._limits.hello_seconds):
                await connection.send_bytes(wire.encode(self._hello()))
                return await self._read_hello(connection, peer)
        except TimeoutError:
            raise DialError(f"{peer} did not answer our hello within {self._limits.hello_seconds:.0f} s") from None
        except (OSError, aiohttp.ClientError) as problem:
            raise DialError(f"{peer} was lost before its hello: {problem}") from problem

    async def accept(self, request: web.Request, facts: CertificateFacts) -> web.StreamResponse:
        """Serve `GET /v1/session` of an authenticated peer until the session is over."""
        peer = facts.node
        refusal = self._refusal(peer)
        if refusal:
            return web.Response(status=403, text=refusal + "\n", headers={REASON_HEADER: refusal})
        connection: web.WebSocketResponse[Any] = web.WebSocketResponse(
            max_msg_size=FRAME_BYTES_MAX, autoping=False, compress=False, timeout=self._limits.close_seconds
        )
        await connection.prepare(request)
        certificate = shown_certificate(request)
        try:
            hello = await self._welcome(connection, peer)
            await self._challenge(peer, hello)
            self._judge(peer, hello, dialled=False)
        except _TurnedDown as problem:
            self._refusals.refused("session", peer, f"no session: {problem}")
            await close_socket(connection, problem.code, str(problem), self._limits.close_seconds)
            return connection
        address = request.remote or ""
        session = self._session(connection, peer, hello, dialled=False, address=address, certificate=certificate)
        session.send(wire.encode(self._hello()))  # before anything the core sends when it hears of the session
        self._install(session)
        await self._live(session)
        return connection

    async def _welcome(self, connection: WebSocket, peer: NodeId) -> Hello:
        """The hello of a peer that dialled us. When our own dial is the one to be kept, it is given time first."""
        self._greeting.add(connection)
        try:
            async with asyncio.timeout(self._limits.hello_seconds):
                hello = await self._read_hello(connection, peer)
            ours = self._dials.get(peer)
            if ours is not None and self._own < peer:
                await asyncio.wait({ours}, timeout=self._limits.yield_seconds)
            return hello
        except TimeoutError:
            raise _TurnedDown(CODE_REFUSED, f"no hello within {self._limits.hello_seconds:.0f} s") from None
        finally:
            self._greeting.discard(connection)

    async def _read_hello(self, connection: WebSocket, peer: NodeId) -> Hello:
        """The first frame. Raises _TurnedDown when it is anything but the hello of `peer` and our cluster."""
        message = await connection.receive()
        while message.type in (aiohttp.WSMsgType.PING, aiohttp.WSMsgType.PONG):  # pings overtake messages
            message = await connection.receive()
        if message.type is aiohttp.WSMsgType.CLOSE and message.data == CODE_TWIN:
            self._refusals.refused("twin", peer, str(message.extra))  # here, too, somebody must read why nobody talks
        if message.type is not aiohttp.WSMsgType.BINARY:
            raise _TurnedDown(CODE_REFUSED, ending(message))
        try:
            hello = wire.decode(message.data)
        except WireError as problem:
            raise _TurnedDown(CODE_REFUSED, str(problem)) from problem
        if not isinstance(hello, Hello):
            raise _TurnedDown(CODE_REFUSED, f"the first message must be a Hello, not a {type(hello).__name__}")
        if hello.cluster != self._contexts.identity.cluster:
            raise _TurnedDown(CODE_REFUSED, f"the hello is of cluster {hello.cluster!r}, which is another one")
        if hello.member.node != peer:
            raise _TurnedDown(
                CODE_REFUSED, f"the hello is of node {hello.member.node!r} and the certificate of {peer!r}"
            )
        return hello

    def _refusal(self, peer: NodeId) -> str:
        """Why no session with this peer is opened now, or nothing."""
        now = asyncio.get_running_loop().time()
        if peer == self._own:
            return "that is this node itself: two machines use one name, or the address is our own"
        if self._stopping:
            return "this node stops"
        if self._banned_until.get(peer, 0.0) > now:
            return f"too many unreadable messages from {peer}: try again in {self._banned_until[peer] - now:.0f} s"
        return ""

    async def _challenge(self, peer: NodeId, hello: Hello) -> None:
        """Let the core look whether the life we are connected to still answers. Raise _TurnedDown when it does."""
        current, key = self._standing(peer), (peer, hello.instance)
        if current is None or current.hello.instance == hello.instance:
            return
        if key in self._challenges:
            raise _TurnedDown(CODE_DUPLICATE, "this life is at the door already")
        answer = self._challenges[key] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._limits.challenge_seconds):
                self._on_event(Challenged(peer, hello.incarnation, hello.instance))
                refusal = await answer
        except TimeoutError:
            refusal = ""  # nobody is locked out for good because a core was slow to answer
        finally:
            del self._challenges[key]
        if refusal:
            raise _TurnedDown(CODE_TWIN, refusal)

    def _judge(self, peer: NodeId, hello: Hello, *, dialled: bool) -> None:
        """Raise _TurnedDown when the session we have with `peer` is to be kept instead of this one."""
        if self._stopping:
            raise _TurnedDown(CODE_STOPPING, "the node stops")
        current, now = self._standing(peer), asyncio.get_running_loop().time()
        if current is not None and keeps_current(
            current, hello, dialled=dialled, own=self._own, now=now, contest=self._limits.contest_seconds
        ):
            raise _TurnedDown(CODE_DUPLICATE, f"both sides dialled, and {min(self._own, peer)}'s session is kept")

    def _session(
        self,
        connection: WebSocket,
        peer: NodeId,
        hello: Hello,
        *,
        dialled: bool,
        address: str,
        certificate: bytes | None,
    ) -> Session:
        return Session(
            connection,
            peer,
            hello,
            dialled=dialled,
            address=address,
            certificate=certificate,
            limits=self._limits,
        )

    def _install(self, session: Session) -> None:
        """From here on this is the session with its peer. The one it replaces goes down first."""
        old = self._sessions.get(session.peer)
        if old is not None:
            old.end("replaced by a new session", CODE_DUPLICATE)
            self._down(old)
        ours = self._dials.get(session.peer)
        if ours is not None and not session.dialled and session.peer < self._own:
            ours.cancel()  # it would be turned down
        self._sessions[session.peer] = session
        self._living.add(session)
        session.ping()
        try:
            self._on_event(SessionUp(session.peer, session.hello))
        except Exception as problem:  # it must not stay without reader and writer: `_live` ends it, and says so
            session.end(f"this node failed at its start: {type(problem).__name__}: {problem}")
            self._report(Report("error", "session-failed", f"session with {session.peer}: {session.why}"))

    # --- living -------------------------------------------------------------------------------------------------

    async def _live(self, session: Session) -> None:
        """Serve a session until it is over; tell, then say goodbye."""
        reader = asyncio.create_task(session.read(self._on_frame))
        writer = asyncio.create_task(session.write())
        try:
            await session.over.wait()
        finally:
            session.end("this node stops", CODE_STOPPING)  # of no effect unless this task was cancelled
            for task in (reader, writer):
                task.cancel()
            problems = await asyncio.gather(reader, writer, return_exceptions=True)
            self._account(session, problems)
            self._down(session)
            try:
                await session.close()
            finally:
                self._living.discard(session)
                self._past_sent_bytes += session.sent_bytes
                self._past_received_bytes += session.received_bytes

    def _account(self, session: Session, problems: Sequence[BaseException | None]) -> None:
        for problem in problems:
            if isinstance(problem, Exception):
                self._report(Report("error", "session-failed", f"session with {session.peer}: {session.why}"))
        if session.faulty:
            self._strike(session.peer, session.why)

    def _down(self, session: Session) -> None:
        if self._sessions.get(session.peer) is session:
            del self._sessions[session.peer]
            self._on_event(SessionDown(session.peer, session.why))

    def _on_frame(self, session: Session, frame: bytes) -> None:
        if session.why:
            return  # it ended while this frame was on its way: after `SessionDown` nothing is received
        try:
            message = wire.decode(frame)
            if isinstance(message, Hello):
                raise WireError("a second Hello")
        except UnknownMessage as problem:
            self._refusals.refused("unknown-message", session.peer, str(problem))
        except WireError as problem:
            session.faulty = True
            session.end(f"unreadable message: {problem}", CODE_REFUSED)
        else:
            self._on_event(Received(session.peer, message))

    def _strike(self, peer: NodeId, why: str) -> None:
        self._refusals.refused("wire", peer, why)
        now = asyncio.get_running_loop().time()
        strikes = self._strikes.setdefault(peer, deque(maxlen=self._limits.strikes_max))
        strikes.append(now)
        if len(strikes) == self._limits.strikes_max and now - strikes[0] <= self._limits.strike_seconds:
            strikes.clear()
            self._banned_until[peer] = now + self._limits.banned_seconds
            seconds = self._limits.banned_seconds
            self._report(
                Report(
                    "warning", "peer-banned", f"{peer} sent several unreadable messages: no session for {seconds:.0f} s"
                )
            )

    async def _beat(self) -> None:
        """Ping every session, end silent ones and those whose certificates are not good any more."""
        loop, every = asyncio.get_running_loop(), self._limits.heartbeat_seconds
        due = loop.time() + every
        while True:
            await asyncio.sleep(max(0.0, due - loop.time()))
            # When this loop itself was held up, what the peers sent meanwhile is not read yet: judge at the next beat.
            late, due = loop.time() - due > every / 2, loop.time() + every
            for session in tuple(self._sessions.values()):
                silent = loop.time() - session.heard_at
                if silent > self._limits.silent_seconds and not late:
                    session.end(f"the peer was silent for {silent:.0f} s")
                self._recheck(session)
                session.ping()

    def _recheck(self, session: Session) -> None:
        try:
            self._contexts.check(session.certificate, expected_node=session.peer)
        except PeerRefused as refusal:
            self._refusals.refused(refusal.reason, session.peer, refusal.message)
            session.end(refusal.message, CODE_REFUSED)

    # --- helpers ------------------------------------------------------------------------------------------------

    def _standing(self, peer: NodeId) -> Session | None:
        session = self._sessions.get(peer)
        return session if session is not None and not session.why else None

    def _frame(self, message: Message) -> bytes:
        if self._encoded is None or self._encoded[0] is not message:
            self._encoded = (message, wire.encode(message))
        return self._encoded[1]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
