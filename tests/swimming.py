"""A small world for `Swim`: virtual time, sessions, latency, stalls, cuts. A dial stands for the session layer.

Sessions behave like TCP: in order, nothing lost while one stands, unless a test says so (`lost`, `drops`). Where the
network is cut they fall silent and end after a while; where a process dies they end at once, where a machine dies they
do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

from protocol.circle import TICK_MS
from protocol.claims import (
    BUCKETS,
    PAGE_CLAIMS_MAX,
    PROBE_CLAIMS_MAX,
    Ack,
    Changed,
    Claims,
    Message,
    NeedSession,
    Output,
    Ping,
    PingRequest,
    Questions,
    Say,
    Standing,
    Twin,
    Verdict,
    ViewBuckets,
    ViewPage,
    Wake,
)
from protocol.rings import Rings
from protocol.swim import Swim
from protocol.view import Base, Entry

SILENT_MS = 20_000  # a session into nothing ends: the kernel gives up on what nobody acknowledges
DIAL_FAILS_MS = 3_000  # a dial into nothing
DOMAINS = 5


def names(count: int) -> list[str]:
    return [f"n{at:04}" for at in range(count)]


def domain_of(node: str) -> str:
    return f"d{int(node[1:]) % DOMAINS}"


def fits(message: Message) -> bool:
    """Whether a message keeps the bounds that a decoder will hold it to."""
    match message:
        case Ping(claims=claims) | Ack(claims=claims):
            return len(claims) <= PROBE_CLAIMS_MAX
        case PingRequest(claims=claims):
            return len(claims) <= 1
        case Claims(claims=claims) | Questions(claims=claims):
            return 0 < len(claims) <= PAGE_CLAIMS_MAX
        case ViewPage(claims=claims, wanted=wanted):
            return len(claims) <= PAGE_CLAIMS_MAX and len(wanted) <= BUCKETS
        case ViewBuckets(folds=folds):
            return len(folds) == BUCKETS
    return True


@dataclass
class Life:
    """One process: a `Swim`, and what its driver knows."""

    name: str
    instance: int
    boot: int
    swim: Swim
    sessions: dict[str, Life] = field(default_factory=dict)
    dialling: dict[str, None] = field(default_factory=dict)
    doors: dict[tuple[str, int], Callable[[bool], None]] = field(default_factory=dict)  # who waits for a verdict
    side: int | None = None  # of a cut; None: as the world says of this name
    up: bool = True
    stalled: bool = False
    missed: list[Callable[[], None]] = field(default_factory=list)
    changes: list[tuple[int, Changed]] = field(default_factory=list)
    twins: list[Twin] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    incarnations: list[int] = field(default_factory=list)


class World:
    """All nodes, the network between them, and the clock."""

    def __init__(self, seed: int = 1) -> None:
        self.random = Random(seed)
        self.now_ms = 0
        self.lives: dict[str, Life] = {}  # the latest of each name
        self.sides: dict[str, int] = {}
        self.lost: Callable[[str, str], bool] = lambda sender, receiver: False
        self.drops: Callable[[str, str, Message], bool] = lambda sender, receiver, message: False
        self.undialable: set[str] = set()
        self.ephemeral: set[str] = set()
        self.rings: Rings = Rings.build([])
        self.messages = 0
        self.weigh: Callable[[Message], int] = lambda message: 0
        self.bytes = 0
        self.trace: list[tuple[int, str, str]] = []
        self.all_lives: list[Life] = []
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0

    # --- time ---

    def after(self, delay_ms: int, act: Callable[[], None]) -> None:
        self._sequence += 1
        heappush(self._heap, (self.now_ms + max(0, delay_ms), self._sequence, act))

    def run(self, seconds: float) -> None:
        until_ms = self.now_ms + int(seconds * 1000)
        while self._heap and self._heap[0][0] <= until_ms:
            self.now_ms, _, act = heappop(self._heap)
            act()
        self.now_ms = until_ms

    def run_until(self, holds: Callable[[], bool], limit_seconds: float) -> float:
        """Run until something holds; returns how many seconds that took."""
        start_ms = self.now_ms
        while not holds():
            assert self.now_ms - start_ms <= limit_seconds * 1000, f"not within {limit_seconds} s"
            self.run(0.5)
        return (self.now_ms - start_ms) / 1000

    # --- lives ---

    def settled(self, count: int) -> World:
        """A fleet that has known each other for long, sessions standing."""
        nodes = names(count)
        self.rings = Rings.build([(node, domain_of(node)) for node in nodes])
        instances = {node: self.random.getrandbits(64) for node in nodes}
        base = Base.build({node: Entry(Standing.ALIVE, 1 << 20, instances[node]) for node in nodes})
        for node in nodes:
            self.start(node, base=base, instance=instances[node])
        for node in nodes:
            for peer in self.lives[node].swim.kept():
                if node < peer:
                    self._connect(self.lives[node], self.lives[peer])
        return self

    def start(
        self, node: str, boot: int = 1, base: Base | None = None, instance: int = 0, replace: bool = True
    ) -> Life:
        """A process starts. `base` None: it knows its hosts file alone. `replace` False: a twin."""
        if base is None:
            base = Base.build({name: Entry(Standing.DEAD, 0) for name in self.rings.a.order})
        instance = instance or self.random.getrandbits(64)
        rings = self.rings if node in self.rings else Rings.build([*self.places(), (node, domain_of(node))])
        swim = Swim(node, instance, boot, rings, Random(self.random.getrandbits(32)), base, self.ephemeral.__contains__)
        life = Life(node, instance, boot, swim)
        self.all_lives.append(life)
        if replace:
            self.lives[node] = life
        self.after(self.random.randrange(TICK_MS), lambda: self._tick(life))
        return life

    def places(self) -> list[tuple[str, str]]:
        return [(node, domain_of(node)) for node in self.rings.a.order]

    def kill(self, node: str) -> None:
        """A process dies; its machine tells those it was connected to."""
        life = self.lives[node]
        life.up = False
        for peer in list(life.sessions.values()):
            self.after(self._latency_ms(), lambda peer=peer: self._session_ends(peer, life))  # type: ignore[misc]
        life.sessions.clear()

    def power_off(self, node: str) -> None:
        """A machine dies; its peers find out by silence."""
        life = self.lives[node]
        life.up = False
        for peer in list(life.sessions.values()):
            self.after(SILENT_MS, lambda peer=peer: self._session_ends(peer, life))  # type: ignore[misc]
        life.sessions.clear()

    def leave(self, node: str) -> None:
        life = self.lives[node]
        self.perform(life, life.swim.leave(self.now_ms))
        self.after(200, lambda: self.kill(node))

    def stall(self, node: str, seconds: float) -> None:
        """The process does nothing for a while; what is sent to it waits."""
        life = self.lives[node]
        if life.stalled or not life.up:
            return
        life.stalled = True
        self.after(int(seconds * 1000), lambda: self._resume(life))

    def _resume(self, life: Life) -> None:
        life.stalled = False
        missed, life.missed = life.missed, []
        missed.sort(key=lambda act: getattr(act, "__name__", "") != "tick")  # timers run before sockets are read
        for act in missed:
            act()

    def partition(self, sides: dict[str, int]) -> None:
        self.sides = sides
        for life in self.up():
            for peer in list(life.sessions.values()):
                if not self._reaches(life, peer):
                    self.after(SILENT_MS, lambda life=life, peer=peer: self._end_if_cut(life, peer))  # type: ignore[misc]

    def _end_if_cut(self, life: Life, peer: Life) -> None:
        if not self._reaches(life, peer):
            self._session_ends(life, peer)

    def up(self) -> list[Life]:
        return [life for life in self.lives.values() if life.up]

    # --- inputs ---

    def do(self, life: Life, act: Callable[[], None]) -> None:
        """Something reaches a process: now, or when it runs again."""
        if life.stalled:
            life.missed.append(act)
        elif life.up:
            act()

    def _tick(self, life: Life) -> None:
        def tick() -> None:
            self.perform(life, life.swim.tick(self.now_ms))
            life.incarnations.append(life.swim.incarnation)
            self.after(TICK_MS, lambda: self._tick(life))

        self.do(life, tick)

    def perform(self, life: Life, outputs: Iterable[Output]) -> None:
        for output in outputs:
            match output:
                case Say():
                    self._send(life, output.peer, output.message)
                case NeedSession():
                    self._dial(life, output.node)
                case Changed():
                    if output.old is None:
                        self._enrol(life, output.node)
                    self.trace.append((self.now_ms, life.name, repr(output)))
                    life.changes.append((self.now_ms, output))
                case Twin():
                    life.twins.append(output)
                    if output.yields:
                        life.up = False
                        for peer in list(life.sessions.values()):
                            self._session_ends(peer, life)
                case Verdict():
                    life.verdicts.append(output)
                    life.doors.pop((output.peer, output.instance))(output.admitted)
                case Wake():
                    at_ms = output.at_ms
                    self.after(at_ms - self.now_ms, lambda: self.do(life, lambda: self._wake(life)))

    def _enrol(self, life: Life, node: str) -> None:
        """A node outside the hosts file is given its places, as its row would have the driver do."""
        rings = life.swim.circle.rings
        if node not in rings:
            life.swim.enrol(Rings.build([*((n, domain_of(n)) for n in rings.a.order), (node, domain_of(node))]))

    def _wake(self, life: Life) -> None:
        self.perform(life, life.swim.wake(self.now_ms))

    # --- the network ---

    def _latency_ms(self) -> int:
        return self.random.randrange(5, 60)

    def _reaches(self, sender: Life, receiver: Life) -> bool:
        return receiver.up and self._side(sender) == self._side(receiver)

    def _side(self, life: Life) -> int:
        return self.sides.get(life.name, 0) if life.side is None else life.side

    def _send(self, life: Life, peer: str, message: Message) -> None:
        other = life.sessions.get(peer)
        assert fits(message), f"over the bound: {message}"
        self.messages += 1
        self.bytes += self.weigh(message)
        if other is None or self.lost(life.name, peer) or self.drops(life.name, peer, message):
            return
        self.after(self._latency_ms(), lambda: self._arrive(life, other, message))

    def _arrive(self, sender: Life, receiver: Life, message: Message) -> None:
        def read() -> None:
            if receiver.sessions.get(sender.name) is sender and self._reaches(sender, receiver):
                self.perform(receiver, receiver.swim.received(sender.name, message, self.now_ms))

        self.do(receiver, read)

    def _dial(self, life: Life, node: str) -> None:
        if node in life.dialling or node in life.sessions:
            return
        life.dialling[node] = None
        other = self.lives.get(node)
        if other is None or not self._reaches(life, other) or node in self.undialable:
            self.after(DIAL_FAILS_MS, lambda: self.do(life, lambda: self._dial_failed(life, node)))
        else:
            self.after(3 * self._latency_ms(), lambda: self.do(other, lambda: self.knock(life, other)))

    def _dial_failed(self, life: Life, node: str) -> None:
        life.dialling.pop(node, None)
        if node not in life.sessions:
            self.perform(life, life.swim.dial_failed(node, self.now_ms))

    def knock(self, dialler: Life, acceptor: Life) -> None:
        """A hello is read; the acceptor's core says whether the session is let in."""

        def verdict(admitted: bool) -> None:
            dialler.dialling.pop(acceptor.name, None)
            if admitted and dialler.up and acceptor.up and self._reaches(dialler, acceptor):
                old = acceptor.sessions.get(dialler.name)
                if old is not None and old is not dialler:
                    self._session_ends(acceptor, old)
                self._connect(dialler, acceptor)
            else:
                self.do(dialler, lambda: self._dial_failed(dialler, acceptor.name))

        key = (dialler.name, dialler.instance)
        if not dialler.up or key in acceptor.doors:
            return
        acceptor.doors[key] = verdict
        asked = acceptor.swim.challenged(dialler.name, dialler.swim.incarnation, dialler.instance, self.now_ms)
        self.perform(acceptor, asked)

    def _connect(self, one: Life, other: Life) -> None:
        if one.sessions.get(other.name) is other or not (one.up and other.up):
            return
        for life, peer in ((one, other), (other, one)):
            life.sessions[peer.name] = peer
        for life, peer in ((one, other), (other, one)):
            hello = (peer.name, peer.swim.incarnation, peer.instance)
            self.do(life, lambda life=life, hello=hello: self._session_up(life, *hello))  # type: ignore[misc]

    def _session_up(self, life: Life, peer: str, incarnation: int, instance: int) -> None:
        self.perform(life, life.swim.session_up(peer, incarnation, instance, self.now_ms))

    def _session_ends(self, life: Life, peer: Life) -> None:
        if life.sessions.get(peer.name) is peer:
            del life.sessions[peer.name]
            self.do(life, lambda: self.perform(life, life.swim.session_down(peer.name, self.now_ms)))

    # --- what is believed ---

    def believes(self, at: str, node: str) -> Standing | None:
        entry = self.lives[at].swim.view.get(node)
        return entry.standing if entry is not None else None

    def all_see(self, node: str, *standings: Standing) -> bool:
        return all(self.believes(life.name, node) in standings for life in self.up() if life.name != node)

    def agree(self) -> bool:
        """Everybody alive is believed alive by everybody alive, and nobody else is."""
        alive = {life.name for life in self.up()}
        return all(
            {node for node in life.swim.view.nodes() if life.swim.is_alive(node)} == alive - {life.name}
            for life in self.up()
        )

    def deaths(self) -> list[tuple[int, str, str]]:
        """(when, by whom, of whom) a death was believed."""
        return [
            (at, life.name, change.node)
            for life in self.all_lives
            for at, change in life.changes
            if change.new is Standing.DEAD
        ]
