"""Probes: is this node there? Asked directly over the kept session, then through others, then it is unanswered.

Each tick one of the three nodes after us on ring A is asked, in turn, so that every node is asked once a second by one
of three others. One period without an answer: three others are asked to ask, by preference such as keep sessions with
the target themselves. Two more without an answer from anybody: `unanswered`. A helper that reaches us but not the
target says so (Nack): silence of all helpers means that it is we who are cut off, which costs health and makes us
slower to accuse.

A session that ends counts as an unanswered question: it goes straight to the helpers, while a new session is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.circle import TICK_MS, Circle
from protocol.claims import Ack, Claim, Nack, Ping, PingRequest
from protocol.telling import Telling
from protocol.values import NodeId

DIRECT_MS = TICK_MS - 100  # a tick that comes a little early does not double the time-out
INDIRECT_MS = 2 * TICK_MS - 100  # a helper's word comes with its own next tick but one
NACK_MS = TICK_MS // 2  # a helper has waited this long at its tick before it says that there is no answer
HELPERS = 3  # as in the SWIM paper: with 10% of the nodes stalled, all three are in one case of a thousand
RELAYS_MAX = 256  # probes under way for others; beyond, they are refused at once
RELAY_MS = 3 * TICK_MS  # an answer after this is of no use to who asked


@dataclass(slots=True)
class Probe:
    """One node being probed by us."""

    target: NodeId
    number: int
    due_ms: int  # in lived time
    helpers: dict[NodeId, None] = field(default_factory=dict)
    indirect: bool = False
    nacks: int = 0


@dataclass(slots=True)
class Relay:
    """A probe on behalf of another."""

    target: NodeId
    asker: NodeId
    number: int  # the asker's
    since_ms: int  # in lived time
    claims: tuple[Claim, ...]  # what the target is to hear of itself; not ours to believe
    nacked: bool = False


class Probing:
    """All probes under way, ours and those for others."""

    __slots__ = ("_by_target", "_number", "_probes", "_relays", "_rest", "_telling", "_turn", "circle", "unanswered")

    def __init__(self, circle: Circle, telling: Telling, unanswered: Callable[[NodeId], None]) -> None:
        self.circle = circle
        self.unanswered = unanswered
        self._telling = telling
        self._number = 0
        self._turn = 0
        self._rest = 0
        self._probes: dict[int, Probe] = {}
        self._by_target: dict[NodeId, Probe] = {}
        self._relays: dict[int, Relay] = {}

    def next_number(self) -> int:
        self._number += 1
        return self._number

    # --- in time ---

    def expire(self) -> None:
        """What was not answered in time."""
        lived_ms = self.circle.lived_ms
        for probe in [probe for probe in self._probes.values() if lived_ms >= probe.due_ms]:
            if not self.circle.lives(probe.target):
                self._end(probe)
            elif probe.indirect:
                self._end(probe)
                if probe.helpers and not probe.nacks:
                    self.circle.worsen()
                self.unanswered(probe.target)
            else:
                self._ask_others(probe)
        for number, relay in list(self._relays.items()):
            if not relay.nacked and lived_ms - relay.since_ms >= NACK_MS:
                relay.nacked = True
                self.circle.say(relay.asker, Nack(relay.number))
            if lived_ms - relay.since_ms >= RELAY_MS:
                del self._relays[number]

    def turn(self) -> None:
        """Probe the next of our targets; less often while our own health is bad."""
        targets = self.circle.targets()
        self._rest = max(0, self._rest - 1)
        if targets and not self._rest:
            self._rest = self.circle.health + 1
            self._turn += 1
            self.begin(targets[self._turn % len(targets)])

    # --- our own ---

    def begin(self, target: NodeId) -> None:
        """Probe a node, unless that is under way."""
        if target in self._by_target:
            return
        probe = Probe(target, self.next_number(), self._due(DIRECT_MS))
        self._probes[probe.number] = self._by_target[target] = probe
        if target in self.circle.sessions:
            self._ping(target, probe.number, self.circle.about(target))
        else:
            self._ask_others(probe)

    def _due(self, patience_ms: int) -> int:
        return self.circle.lived_ms + patience_ms * (1 + self.circle.health)

    def _ping(self, target: NodeId, number: int, about: tuple[Claim, ...]) -> None:
        """With what the target must hear of itself, and what is carried along."""
        if target in self.circle.sessions:
            self.circle.say(target, Ping(number, about + self._telling.carry()))

    def _ask_others(self, probe: Probe) -> None:
        probe.indirect = True
        probe.due_ms = self._due(INDIRECT_MS)
        self.circle.need(probe.target, "it is probed")
        for helper in self._choose(probe.target):
            probe.helpers[helper] = None
            self.circle.say(helper, PingRequest(probe.number, probe.target, self.circle.about(probe.target)))

    def _choose(self, target: NodeId) -> list[NodeId]:
        """Helpers: first those that have a session with the target themselves."""
        circle = self.circle
        able = [peer for peer in sorted(circle.sessions) if peer != target and circle.lives(peer)]
        near = {*circle.rings.session_peers(target, circle.lives)}
        preferred = [peer for peer in able if peer in near]
        others = [peer for peer in able if peer not in near]
        chosen = circle.random.sample(preferred, min(HELPERS, len(preferred)))
        return chosen + circle.random.sample(others, min(HELPERS - len(chosen), len(others)))

    def _end(self, probe: Probe) -> None:
        del self._probes[probe.number], self._by_target[probe.target]

    # --- what comes in ---

    def acked(self, peer: NodeId, message: Ack) -> None:
        probe = self._probes.get(message.number)
        if probe is not None and (peer == probe.target or peer in probe.helpers):
            self._end(probe)
            self.circle.improve()
            return
        relay = self._relays.get(message.number)
        if relay is not None and peer == relay.target:
            del self._relays[message.number]
            known = self.circle.claim(peer)
            self.circle.say(relay.asker, Ack(relay.number, (known,) if known is not None else ()))

    def nacked(self, peer: NodeId, message: Nack) -> None:
        probe = self._probes.get(message.number)
        if probe is not None and peer in probe.helpers:
            probe.nacks += 1

    def pinged(self, peer: NodeId, message: Ping) -> None:
        """Answer, with our own claim when the sender holds another of us."""
        mentioned = any(claim.node == self.circle.node for claim in message.claims)
        own = (self.circle.own(),) if mentioned else ()
        self.circle.say(peer, Ack(message.number, own + self._telling.carry()))

    def requested(self, peer: NodeId, message: PingRequest) -> None:
        if message.target == self.circle.node:
            self.circle.say(peer, Ack(message.number, (self.circle.own(),)))
        elif len(self._relays) >= RELAYS_MAX or self.circle.view.get(message.target) is None:
            self.circle.say(peer, Nack(message.number))
        else:
            number = self.next_number()
            claims = tuple(claim for claim in message.claims if claim.node == message.target)[:1]
            relay = Relay(message.target, peer, message.number, self.circle.lived_ms, claims)
            self._relays[number] = relay
            self._ping(message.target, number, claims)
            self.circle.need(message.target, f"{peer} asks to probe it")

    def session_up(self, peer: NodeId) -> None:
        """Whoever waited for a session with this peer asks now."""
        if peer in self._by_target:
            self._ping(peer, self._by_target[peer].number, self.circle.about(peer))
        for number, relay in self._relays.items():
            if relay.target == peer:
                self._ping(peer, number, relay.claims)

    def lost(self, peer: NodeId) -> None:
        """The session is gone, or cannot be had."""
        probe = self._by_target.get(peer)
        if probe is None:
            self.begin(peer)
        elif not probe.indirect:
            self._ask_others(probe)
