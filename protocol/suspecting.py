"""Suspicions: who got no answer from whom, how long that may last, when it becomes a death.

Lifeguard's suspicion time-out: it begins long and shrinks with each independent confirmation, grows slowly with the
fleet, and is multiplied by local health. Different from the paper, only a node that got no answer itself times a
suspicion out; who merely hears of one probes, and then has an answer or a suspicion of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.circle import Circle
from protocol.claims import Claim, Claims, Standing
from protocol.telling import Telling
from protocol.values import NodeId
from protocol.view import Entry

SUSPICION_MS_BASE = 4_000  # a stall of 5 s is suspected after 1 s at the earliest, and is over within this
SUSPICION_MS_STEP = 600  # more for each doubling of the fleet: news of it has that much farther to go
SUSPICION_STRETCH = 2  # unconfirmed, a suspicion lasts twice as long: the accuser may be the one cut off
CONFIRMATIONS = 2  # of the three probers, the two others
SHRINK = (0.0, 0.63, 1.0)  # Lifeguard: log(confirmations + 1) / log(3)
ACCUSERS_MAX = 8  # three probers, and those whose sessions ended; more confirm nothing more


@dataclass(slots=True)
class Suspicion:
    """One incarnation of one node, suspected."""

    incarnation: int
    accusers: dict[NodeId, None] = field(default_factory=dict)
    own_since_ms: int | None = None  # in lived time; None: only others got no answer


class Suspecting:
    """All suspicions this node has or has heard of: at most one for each node it knows."""

    __slots__ = ("_suspicions", "_telling", "circle", "hear")

    def __init__(self, circle: Circle, telling: Telling, hear: Callable[[Claim, NodeId], None]) -> None:
        self.circle = circle
        self.hear = hear
        self._telling = telling
        self._suspicions: dict[NodeId, Suspicion] = {}

    def unanswered(self, node: NodeId) -> None:
        """We got no answer, nor did our helpers. The suspect and its other probers hear of it."""
        suspicion = self._suspect(node, self.circle.node)
        if suspicion is None:
            return
        if suspicion.own_since_ms is None:
            suspicion.own_since_ms = self.circle.lived_ms
        accusation = Claims(self.circle.about(node))
        for hearer in (node, *self.circle.rings.probers(node, self.circle.lives)):
            self.circle.say(hearer, accusation)

    def accused(self, claim: Claim, peer: NodeId) -> bool:
        """Somebody else got no answer from a node. Returns whether we should see for ourselves."""
        entry = self.circle.view.get(claim.node)
        if entry is not None and claim.incarnation < entry.incarnation:
            self._telling.tell(peer, (claim.node,))  # that is refuted already
            return False
        if entry is None or claim.incarnation > entry.incarnation:  # it lived, to be suspected
            self.hear(Claim(claim.node, Standing.ALIVE, claim.incarnation, claim.instance), peer)
        suspicion = self._suspect(claim.node, claim.by)
        return suspicion is not None and suspicion.own_since_ms is None

    def _suspect(self, node: NodeId, by: NodeId) -> Suspicion | None:
        """The suspicion of a node as it is believed now, with one more accuser; None when it counts as gone."""
        entry = self.circle.view.get(node)
        if entry is None or not entry.lives:
            return None
        claim = Claim(node, Standing.SUSPECT, entry.incarnation, entry.instance, by)
        changed = self.circle.view.merge(claim, self.circle.now_ms)
        if changed is not None:
            self.circle.note(node, *changed, f"no answer to {by}")
        suspicion = self._suspicions.get(node)
        if suspicion is None or suspicion.incarnation != entry.incarnation:
            suspicion = self._suspicions[node] = Suspicion(entry.incarnation)
        if len(suspicion.accusers) < ACCUSERS_MAX:
            suspicion.accusers[by] = None
        return suspicion

    def changed(self, node: NodeId, old: Entry | None, new: Entry) -> None:
        """Something else is believed of a node. A refutation goes to its other probers before it goes to all."""
        suspicion = self._suspicions.get(node)
        if suspicion is not None and (new.incarnation > suspicion.incarnation or not new.lives):
            del self._suspicions[node]
        if old is not None and old.standing is Standing.SUSPECT and new.standing is Standing.ALIVE:
            for prober in self.circle.rings.probers(node, self.circle.lives):
                self._telling.tell(prober, (node,))

    def hearsay(self) -> list[NodeId]:
        """Suspects of others, of whom we have neither an answer nor a suspicion of our own."""
        return [node for node, suspicion in self._suspicions.items() if suspicion.own_since_ms is None]

    def expire(self) -> None:
        """What was not refuted in time is a death."""
        for node, suspicion in list(self._suspicions.items()):
            since_ms, entry = suspicion.own_since_ms, self.circle.view.get(node)
            if since_ms is None or entry is None:
                continue
            if self.circle.lived_ms - since_ms >= self._patience_ms(node, suspicion):
                self.hear(Claim(node, Standing.DEAD, suspicion.incarnation, entry.instance), "")

    def _patience_ms(self, node: NodeId, suspicion: Suspicion) -> int:
        """How long our own suspicion lasts: between the least and twice that by confirmations, then by health."""
        least_ms = SUSPICION_MS_BASE + SUSPICION_MS_STEP * (self.circle.view.alive + 1).bit_length()
        possible = min(CONFIRMATIONS, len(self.circle.rings.probers(node, self.circle.lives)) - 1)
        confirmed = len([accuser for accuser in suspicion.accusers if accuser != self.circle.node])
        shrunk = SHRINK[min(CONFIRMATIONS, confirmed)] if confirmed < possible else 1.0
        patience_ms = least_ms * (SUSPICION_STRETCH - (SUSPICION_STRETCH - 1) * shrunk)
        return int(patience_ms * (1 + self.circle.health))
