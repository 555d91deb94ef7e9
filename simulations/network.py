"""The simulated network: sessions like TCP, latency, loss, partitions.

A session delivers in order or not at all. A lost message breaks it: what is in flight is gone, and each end finds out
after a while. Each end has its own view of which session stands, as two real processes have. Messages pass through
their wire form, so that every run exercises encoding and its bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from protocol.events import DialFailed, Event, Received, SessionDown, SessionUp
from protocol.messages import Hello, Message
from protocol.values import NodeId
from simulations.chance import between
from simulations.frames import Frames
from simulations.schedule import Schedule

DIAL_MS_MAX = 10_000  # what a dial into nothing takes (see `dial_seconds_max` of the hosts file)
RESET_MS_MAX = 50  # a killed process resets its connections at once
SILENCE_MS = (2_000, 10_000)  # a peer that just fell silent is noticed by its missing heartbeats
CONTEST_MS = 1_000  # two dials that began within this have crossed
IN_FLIGHT_MAX = 4_096  # messages queued to one peer, as in the agent: more break the session
SESSION_BYTES_PER_MS = 12_500  # 100 Mbit/s for control messages


class Endpoint(Protocol):
    """What the network needs of a node."""

    name: NodeId
    up: bool

    def handle(self, event: Event) -> None: ...

    def hello(self) -> Hello: ...


@dataclass(slots=True, eq=False)
class Session:
    """One session; `busy_until_ms` is when the last message towards each end arrives."""

    dialler: NodeId
    acceptor: NodeId
    number: int
    broken: bool = False
    busy_until_ms: dict[NodeId, int] = field(default_factory=dict)
    in_flight: dict[NodeId, int] = field(default_factory=dict)


@dataclass(slots=True)
class Weather:
    """How bad the network is now. Zero everywhere: it is healed."""

    loss: float = 0.0  # of messages, each breaking its session
    sides: dict[NodeId, int] = field(default_factory=dict)  # a partition: nodes on different sides do not meet
    deaf: dict[NodeId, None] = field(default_factory=dict)  # cannot be dialled (behind NAT); they dial out


class Network:
    """All links and sessions."""

    def __init__(self, schedule: Schedule, random: Random, bites: dict[str, int]) -> None:
        self.schedule = schedule
        self.random = random
        self.bites = bites
        self.weather = Weather()
        self.nodes: dict[NodeId, Endpoint] = {}
        self.latencies_ms: dict[tuple[NodeId, NodeId], int] = {}
        self.messages = 0
        self.bytes = 0
        self.frames = Frames()
        self._sessions_made = 0
        self._views: dict[NodeId, dict[NodeId, Session]] = {}  # by whose view it is, and by peer
        self._dialling: dict[NodeId, dict[NodeId, int]] = {}  # since when

    # --- links ---

    def join(self, node: Endpoint, domains: dict[NodeId, str]) -> None:
        """Add a node; within a domain links are short."""
        for other in self.nodes:
            near = domains[other] == domains[node.name]
            latency = self.random.randint(1, 3) if near else self.random.randint(10, 90)
            self.latencies_ms[node.name, other] = self.latencies_ms[other, node.name] = latency
        self.nodes[node.name] = node
        self._views[node.name] = {}
        self._dialling[node.name] = {}

    def latency_ms(self, a: NodeId, b: NodeId) -> int:
        base = self.latencies_ms[a, b]
        return base + between(self.random, 0, max(1, base // 4))

    def reachable(self, a: NodeId, b: NodeId) -> bool:
        sides = self.weather.sides
        return self.nodes[b].up and sides.get(a, 0) == sides.get(b, 0)

    def dialable(self, a: NodeId, b: NodeId) -> bool:
        return self.reachable(a, b) and b not in self.weather.deaf

    def partition(self, sides: dict[NodeId, int]) -> None:
        """Cut the network; sessions across the cut fall silent."""
        self.weather.sides = sides
        for session in self._sessions():
            if sides.get(session.dialler, 0) != sides.get(session.acceptor, 0):
                self._count("partition_cut")
                self._break(session, "the heartbeat is missing", quick=False)

    def _sessions(self) -> list[Session]:
        """Each once, the oldest first."""
        unique = {session.number: session for view in self._views.values() for session in view.values()}
        return [unique[number] for number in sorted(unique)]

    # --- sessions ---

    def dial(self, node: NodeId, peer: NodeId) -> None:
        if self._standing(node, peer) is not None:
            return
        if peer not in self.nodes:
            self._fail_dial(node, peer, DIAL_MS_MAX)
            return
        there = self.latency_ms(node, peer)
        self._dialling[node][peer] = self.schedule.now_ms
        if not self.dialable(node, peer):
            refused = self.weather.sides.get(node, 0) == self.weather.sides.get(peer, 0)
            self._fail_dial(node, peer, 2 * there if refused else DIAL_MS_MAX)
            return
        self.schedule.after(2 * there, self._greet, node, peer)

    def _fail_dial(self, node: NodeId, peer: NodeId, delay_ms: int) -> None:
        self._count("dial_failed")
        self.schedule.after(delay_ms, self._dial_failed, node, peer)

    def _dial_failed(self, node: NodeId, peer: NodeId) -> None:
        self._dialling[node].pop(peer, None)
        if self._standing(node, peer) is None:
            self.nodes[node].handle(DialFailed(peer, "no answer"))

    def _greet(self, node: NodeId, peer: NodeId) -> None:
        """The dialler's hello arrives at the acceptor, which keeps one session of two."""
        if not self.nodes[node].up:
            return
        if not self.dialable(node, peer):
            self._fail_dial(node, peer, DIAL_MS_MAX)
            return
        if self._keeps_its_own(node, peer):
            self._fail_dial(node, peer, self.latency_ms(peer, node))  # told only if that session is gone by then
            return
        self._sessions_made += 1
        session = Session(node, peer, self._sessions_made)
        hello, answer = self.nodes[node].hello(), self.nodes[peer].hello()
        back = self.latency_ms(node, peer)
        session.busy_until_ms[node] = self.schedule.now_ms + back
        self._install(session, peer, node, hello)
        self.schedule.after(back, self._answered, session, node, peer, answer)

    def _keeps_its_own(self, node: NodeId, peer: NodeId) -> bool:
        """Whether the acceptor turns the dial down: a session stands at both ends, or its own dial has precedence."""
        standing = self._views[peer].get(node)
        if standing is not None and not standing.broken:
            return self._views[node].get(peer) is standing or standing.dialler == peer
        since = self._dialling[peer].get(node)
        return peer < node and since is not None and self.schedule.now_ms - since < CONTEST_MS

    def _answered(self, session: Session, node: NodeId, peer: NodeId, answer: Hello) -> None:
        self._dialling[node].pop(peer, None)
        if not self.nodes[node].up:
            self._break(session, "the dialler was lost", quick=True)
            return
        if session.broken:
            self._fail_dial(node, peer, 0)
            return
        self._install(session, node, peer, answer)

    def _install(self, session: Session, at: NodeId, peer: NodeId, hello: Hello) -> None:
        old = self._views[at].get(peer)
        if old is not None:
            self._break(old, "replaced by a new session", quick=True)
            self._down(old, at, peer, "replaced by a new session")
        self._views[at][peer] = session
        self.nodes[at].handle(SessionUp(peer, self.frames.hello(hello)))

    def _standing(self, node: NodeId, peer: NodeId) -> Session | None:
        return self._views[node].get(peer)

    def hangup(self, node: NodeId, peer: NodeId, why: str) -> None:
        """Close after what was sent: the other end sees it once that has arrived."""
        session = self._views[node].get(peer)
        if session is None:
            return
        until = session.busy_until_ms.get(peer, 0)
        self.schedule.after(0, self._down, session, node, peer, why)
        self.schedule.after(until - self.schedule.now_ms + 1, self._break, session, why, True)

    def node_down(self, node: NodeId, quick: bool) -> None:
        """A process or a machine died: its own views are gone with it."""
        self._dialling[node].clear()
        views, self._views[node] = self._views[node], {}
        for session in views.values():
            self._break(session, "the connection was reset" if quick else "the heartbeat is missing", quick)

    def _break(self, session: Session, why: str, quick: bool) -> None:
        if session.broken:
            return
        session.broken = True
        for at, peer in ((session.dialler, session.acceptor), (session.acceptor, session.dialler)):
            delay = between(self.random, 1, RESET_MS_MAX) if quick else between(self.random, *SILENCE_MS)
            self.schedule.after(delay, self._down, session, at, peer, why)

    def _down(self, session: Session, at: NodeId, peer: NodeId, why: str) -> None:
        if self._views[at].get(peer) is session:
            del self._views[at][peer]
            if self.nodes[at].up:
                self.nodes[at].handle(SessionDown(peer, why))

    # --- messages ---

    def send(self, node: NodeId, peer: NodeId, message: Message) -> bytes:
        """Put a message on its way; returns its wire form, b"" when there is no session."""
        session = self._views[node].get(peer)
        if session is None:
            return b""
        frame, decoded = self.frames.through(message)
        self.messages += 1
        self.bytes += len(frame)
        if session.broken:
            return frame
        if self.random.random() < self.weather.loss or session.in_flight.get(peer, 0) >= IN_FLIGHT_MAX:
            self._count("session_lost")
            self._break(session, "the connection was lost", quick=self.random.random() < 0.5)
            return frame
        self._deliver(session, node, peer, decoded, len(frame))
        return frame

    def _deliver(self, session: Session, node: NodeId, peer: NodeId, message: Message, size_bytes: int) -> None:
        arrival = self.schedule.now_ms + self.latency_ms(node, peer) + size_bytes // SESSION_BYTES_PER_MS
        arrival = max(arrival, session.busy_until_ms.get(peer, 0))
        session.busy_until_ms[peer] = arrival
        session.in_flight[peer] = session.in_flight.get(peer, 0) + 1
        self.schedule.after(arrival - self.schedule.now_ms, self._arrive, session, node, peer, message)

    def _arrive(self, session: Session, node: NodeId, peer: NodeId, message: Message) -> None:
        session.in_flight[peer] -= 1
        if not session.broken and self._views[peer].get(node) is session and self.nodes[peer].up:
            self.nodes[peer].handle(Received(node, message))

    def _count(self, knob: str) -> None:
        self.bites[knob] = self.bites.get(knob, 0) + 1
