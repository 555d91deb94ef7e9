"""The simulated network: sessions like TCP, latency, loss, partitions.

A session delivers in order or not at all. A lost message breaks it: what is in flight is gone, and each end finds out
after a while. Each end has its own view of which session stands, as two real processes have. Messages pass through
their wire form (see `frames`), over wires with latency and faults (see `links`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from protocol.events import Challenged, DialFailed, Event, Received, SessionDown, SessionUp
from protocol.messages import Hello, Message
from protocol.values import NodeId
from simulations.chance import between
from simulations.frames import Frames
from simulations.links import RETRANSMIT_MS, Cut, Links, Weather
from simulations.schedule import Schedule

DIAL_MS_MAX = 10_000  # what a dial into nothing takes (see `dial_seconds_max` of the hosts file)
RESET_MS_MAX = 50  # a killed process resets its connections at once
SILENCE_MS = (2_000, 10_000)  # a peer that just fell silent is noticed by its missing heartbeats
CONTEST_MS = 1_000  # two dials that began within this have crossed
IN_FLIGHT_MAX = 4_096  # messages queued to one peer, as in the agent: more break the session
SILENT = "the heartbeat is missing"


class Endpoint(Protocol):
    """What the network needs of a node."""

    name: NodeId
    up: bool
    stalled: bool
    newer: bool

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
    mute: dict[NodeId, None] = field(default_factory=dict)  # ends that nothing reaches any more
    lives: dict[NodeId, int] = field(default_factory=dict)  # by end: with which life of the other it stands


class Network:
    """All links and sessions."""

    def __init__(self, schedule: Schedule, links: Links, random: Random, bites: dict[str, int]) -> None:
        self.schedule = schedule
        self.links = links
        self.random = random
        self.bites = bites
        self.weather = Weather()
        self.nodes: dict[NodeId, Endpoint] = {}
        self.messages = 0
        self.bytes = 0
        self.frames = Frames(bites)
        self._sessions_made = 0
        self._views: dict[NodeId, dict[NodeId, Session]] = {}  # by whose view it is, and by peer
        self._dialling: dict[NodeId, dict[NodeId, int]] = {}  # since when
        self._doors: dict[NodeId, dict[tuple[NodeId, int], Hello]] = {}  # newcomers that a core is looking at

    # --- links ---

    def join(self, node: Endpoint, domain: str) -> None:
        """Add a node; within a domain links are short."""
        self.links.domains[node.name] = domain
        self.nodes[node.name] = node
        self._views[node.name] = {}
        self._doors[node.name] = {}
        self._dialling[node.name] = {}

    def latency_ms(self, a: NodeId, b: NodeId) -> int:
        return self.links.latency_ms(a, b)

    def reachable(self, a: NodeId, b: NodeId) -> bool:
        """Whether the two can talk now, a question and its answer."""
        node = self.nodes[b]
        return node.up and not node.stalled and self.weather.passes(a, b) and self.weather.passes(b, a)

    def dialable(self, a: NodeId, b: NodeId) -> bool:
        return b not in self.weather.deaf and self.reachable(a, b)

    def partition(self, sides: dict[NodeId, int]) -> None:
        """Cut the network in parts; sessions across fall silent. No sides: it is whole again."""
        self.weather.sides = sides
        self._silence("partition_cut")

    def cut(self, cut: Cut) -> None:
        """Lose what some nodes send to some others, until `mend`."""
        self.weather.cuts.append(cut)
        self._silence("partition_cut" if cut.both else "one_way_cut")

    def mend(self, cut: Cut) -> None:
        if cut in self.weather.cuts:
            self.weather.cuts.remove(cut)

    def _silence(self, knob: str) -> None:
        """What is sent across a cut is gone; both ends of a session find out by the missing heartbeat."""
        for session in self._sessions():
            ends = (session.dialler, session.acceptor)
            mute = [b for a, b in (ends, ends[::-1]) if not self.weather.passes(a, b) and b not in session.mute]
            if mute and not session.broken:
                self._count(knob)
                session.mute.update(dict.fromkeys(mute))
                if len(mute) == len(ends):
                    self._break(session, SILENT, quick=False)
                else:
                    self.schedule.after(between(self.random, *SILENCE_MS), self._break, session, SILENT, False)

    def clog(self, a: NodeId, b: NodeId, until_ms: int) -> None:
        """Nothing from one node gets to another before this time; it is late, not lost."""
        self.weather.clogged[a, b] = until_ms

    def lose_touch(self, node: NodeId) -> None:
        """A process that stands still for long: its peers miss its heartbeat."""
        for session in [s for s in self._sessions() if node in (s.dialler, s.acceptor)]:
            self._break(session, SILENT, quick=False)

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
            heard = self.weather.passes(node, peer) and self.weather.passes(peer, node)
            refused = heard and not self.nodes[peer].stalled
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
        hello, standing = self.nodes[node].hello(), self._views[peer].get(node)
        if standing is None or standing.lives[peer] == hello.instance:
            self._let_in(node, peer, hello)
        elif (node, hello.instance) not in self._doors[peer]:
            self._count("newcomer_challenged")
            self._doors[peer][node, hello.instance] = hello
            self.nodes[peer].handle(Challenged(node, hello.incarnation, hello.instance))

    def admit(self, peer: NodeId, node: NodeId, instance: int, refusal: str) -> None:
        """The acceptor's core has judged a newcomer."""
        hello = self._doors[peer].pop((node, instance), None)
        if hello is None or not self.nodes[node].up:
            return
        if refusal or not self.dialable(node, peer):
            self._fail_dial(node, peer, self.latency_ms(peer, node))
        elif self.nodes[node].hello().instance == instance:
            self._let_in(node, peer, hello)

    def introduce(self, node: NodeId, peer: NodeId) -> None:
        """A session that stands at both ends, as if it had for long."""
        self._sessions_made += 1
        session = Session(node, peer, self._sessions_made)
        hello, answer = self.nodes[node].hello(), self.nodes[peer].hello()
        self._install(session, peer, node, hello)
        self._install(session, node, peer, answer)

    def _let_in(self, node: NodeId, peer: NodeId, hello: Hello) -> None:
        self._sessions_made += 1
        session = Session(node, peer, self._sessions_made)
        answer, back = self.nodes[peer].hello(), self.latency_ms(node, peer)
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
        session.lives[at] = hello.instance
        self.nodes[at].handle(SessionUp(peer, self.frames.hello(hello, self.nodes[peer].newer)))

    def connected(self, a: NodeId, b: NodeId) -> bool:
        """Whether either end believes that a session with the other stands."""
        return b in self._views[a] or a in self._views[b]

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
        self._doors[node].clear()
        views, self._views[node] = self._views[node], {}
        for session in views.values():
            self._break(session, "the connection was reset" if quick else SILENT, quick)

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
        frame, decoded = self.frames.through(message, self.nodes[node].newer)
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
        links, weather = self.links, self.weather
        arrival = self.schedule.now_ms + links.latency_ms(node, peer) + size_bytes // links.bytes_per_ms
        if weather.packet_loss and self.random.random() < weather.packet_loss:
            self._count("packet_sent_again")
            arrival += between(self.random, *RETRANSMIT_MS)
        if weather.clogged and weather.clogged.get((node, peer), 0) > self.schedule.now_ms:
            self._count("link_clogged")
            arrival = max(arrival, weather.clogged[node, peer])
        arrival = max(arrival, session.busy_until_ms.get(peer, 0))
        session.busy_until_ms[peer] = arrival
        session.in_flight[peer] = session.in_flight.get(peer, 0) + 1
        self.schedule.after(arrival - self.schedule.now_ms, self._arrive, session, node, peer, message)

    def _arrive(self, session: Session, node: NodeId, peer: NodeId, message: Message) -> None:
        session.in_flight[peer] -= 1
        if session.broken or peer in session.mute:
            return
        if self._views[peer].get(node) is session and self.nodes[peer].up:
            self.nodes[peer].handle(Received(node, message))

    def _count(self, knob: str) -> None:
        self.bites[knob] = self.bites.get(knob, 0) + 1
