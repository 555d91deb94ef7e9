"""What the machines of one `Swim` share: who we are, the rings, the view, the sessions that stand, time, what goes out.

Time is counted as *lived*: a gap between two inputs counts for at most `STEP_MS_MAX`. A node that was stopped for five
seconds has not given anybody five seconds to answer; its deadlines move with it, so that it accuses nobody of its own
absence.

*Health* is Lifeguard's local health multiplier (Dadgar, Phillips and Currey, "Lifeguard: Local Health Awareness for
More Accurate Failure Detection", 2018): from 0, raised when the signs are that we ourselves are slow (the event loop
lags, no helper says a word, others suspect us), lowered by each probe that is answered. All patience is multiplied by
it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from protocol.claims import Changed, Claim, Message, NeedSession, Output, Say, Standing
from protocol.rings import Rings
from protocol.values import NodeId
from protocol.view import Entry, View

TICK_MS = 1_000  # a probe each; the whole machine has no finer time-out
STEP_MS_MAX = 1_500  # a tick that is half a period late is not a stall
HEALTH_MAX = 8  # as in Lifeguard: beyond nine times the patience, detection would stop


# A walk along the rings, and what it was made of: it is made again only when who is alive, or connected, has changed.
Walk = tuple[int, int, tuple[NodeId, ...]]
NO_WALK: Walk = (-1, -1, ())


@dataclass(slots=True)
class Circle:
    """Only `Swim` sets time and sessions; the machines beside it read, say and ask."""

    node: NodeId
    instance: int
    incarnation: int
    rings: Rings
    view: View
    random: Random
    sessions: dict[NodeId, int] = field(default_factory=dict)  # that stand, and with which instance of the peer
    heard_ms: dict[NodeId, int] = field(default_factory=dict)  # of these: when they last said something, in lived time
    health: int = 0
    now_ms: int = 0
    lived_ms: int = 0
    leaving: bool = False
    out: list[Output] = field(default_factory=list)
    _started: bool = False
    _session_changes: int = 0
    _around: Walk = NO_WALK
    _kept: Walk = NO_WALK
    _targets: Walk = NO_WALK
    _told: Walk = NO_WALK

    # --- time and health ---

    def advance(self, now_ms: int) -> None:
        if self._started:
            self.lived_ms += min(max(0, now_ms - self.now_ms), STEP_MS_MAX)
        self._started = True
        self.now_ms = now_ms

    def worsen(self, by: int = 1) -> None:
        self.health = min(HEALTH_MAX, self.health + by)

    def improve(self) -> None:
        self.health = max(0, self.health - 1)

    # --- who is there ---

    def own(self) -> Claim:
        """What we say of ourselves."""
        return Claim(self.node, Standing.LEFT if self.leaving else Standing.ALIVE, self.incarnation, self.instance)

    def lives(self, node: NodeId) -> bool:
        return node == self.node or self.view.lives(node)

    def reaches(self, node: NodeId) -> bool:
        """Whether a node is believed alive and a session with it stands."""
        return node in self.sessions and self.view.lives(node)

    def opened(self, peer: NodeId, instance: int) -> None:
        self.sessions[peer] = instance
        self.heard_ms[peer] = self.lived_ms
        self._session_changes += 1

    def closed(self, peer: NodeId) -> None:
        self.sessions.pop(peer, None)
        self.heard_ms.pop(peer, None)
        self._session_changes += 1

    def enrol(self, rings: Rings) -> None:
        self.rings = rings
        self._around = self._kept = self._targets = self._told = NO_WALK

    def around(self) -> tuple[NodeId, ...]:
        """With whom sessions would be kept if all were alive."""
        if self._around is NO_WALK:
            self._around = (0, 0, self.rings.session_peers(self.node, lambda node: True))
        return self._around[2]

    def kept(self) -> tuple[NodeId, ...]:
        """With whom sessions are to be kept."""
        if self._kept[0] != self.view.version:
            self._kept = (self.view.version, 0, self.rings.session_peers(self.node, self.view.lives))
        return self._kept[2]

    def targets(self) -> tuple[NodeId, ...]:
        """Whom we probe."""
        if self._targets[0] != self.view.version:
            self._targets = (self.view.version, 0, self.rings.probed_by(self.node, self.view.lives))
        return self._targets[2]

    def told(self) -> tuple[NodeId, ...]:
        """Whom we tell what is new: the ring neighbours, past the dead and those without a session."""
        if self._told[:2] != (self.view.version, self._session_changes):
            told = self.rings.neighbours(self.node, self.reaches) or self._anybody()
            self._told = (self.view.version, self._session_changes, told)
        return self._told[2]

    def _anybody(self) -> tuple[NodeId, ...]:
        """A node that the rings do not place yet, or that knows nobody of them, tells whom it is connected to."""
        return tuple(sorted(self.sessions)[:2])

    def about(self, node: NodeId) -> tuple[Claim, ...]:
        """What `node` must hear of itself: how it stands here, when that is not simply alive."""
        entry = self.view.get(node)
        if entry is None or entry.standing is Standing.ALIVE or entry.incarnation == 0:
            return ()
        by = self.node if entry.standing is Standing.SUSPECT else ""
        return (Claim(node, entry.standing, entry.incarnation, entry.instance, by),)

    def claim(self, node: NodeId) -> Claim | None:
        return self.own() if node == self.node else self.view.claim(node)

    # --- what goes out ---

    def say(self, peer: NodeId, message: Message) -> None:
        if peer in self.sessions:
            self.out.append(Say(peer, message))

    def need(self, node: NodeId, why: str) -> None:
        if node not in self.sessions:
            self.out.append(NeedSession(node, why))

    def note(self, node: NodeId, old: Entry | None, new: Entry, why: str) -> None:
        """Tell the driver, when a node stands otherwise than before."""
        before = old.standing if old is not None else None
        if before is not new.standing:
            self.out.append(Changed(node, before, new.standing, new.incarnation, why))
