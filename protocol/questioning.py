"""Deaths told by somebody who was away: not believed at once, but asked about.

When two halves of a fleet meet again, each counts the other as dead. Believed, that would spread: for some seconds
everybody would count as dead everywhere, sessions and all. So what a peer says of deaths within a minute of its own
return is passed along the rings as a question. Whoever is asked for refutes it, which is news to both sides; whoever
knows of a later life, or of the death itself, says so. What nobody answers is believed after all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocol.circle import Circle
from protocol.claims import Claim, Standing
from protocol.telling import Telling
from protocol.values import NodeId

RETURNED_MS = 60_000  # a peer heard of for the first time, or again, within this may know old things
ANSWER_MS = 20_000  # a question passes the rings in 2 s, in bundles; a stall of 5 s, and a refutation on its way back


@dataclass(frozen=True, slots=True)
class Question:
    """A death that was told and is not believed yet."""

    claim: Claim
    due_ms: int  # in lived time


class Questioning:
    """Open questions: at most one for each node known."""

    __slots__ = ("_open", "_telling", "circle", "hear")

    def __init__(self, circle: Circle, telling: Telling, hear: Callable[[Claim, NodeId], None]) -> None:
        self.circle = circle
        self.hear = hear
        self._telling = telling
        self._open: dict[NodeId, Question] = {}

    def doubts(self, claim: Claim, peer: NodeId) -> bool:
        """Whether a death told by this peer is to be asked about rather than believed."""
        entry = self.circle.view.get(peer)
        if claim.standing is not Standing.DEAD or entry is None or not self.circle.view.lives(claim.node):
            return False
        return not entry.lives or 0 < entry.since_ms > self.circle.now_ms - RETURNED_MS

    def ask(self, claim: Claim, peer: NodeId) -> None:
        """Pass a question on, once; `peer` asked it."""
        entry = self.circle.view.get(claim.node)
        if entry is None or claim.incarnation < entry.incarnation or not entry.lives:
            return
        known = self._open.get(claim.node)
        if known is None or known.claim.incarnation < claim.incarnation:
            self._open[claim.node] = Question(claim, self.circle.lived_ms + ANSWER_MS)
            self._telling.question(claim, peer)

    def expire(self) -> None:
        """What was answered is no question any more; what was not is believed."""
        for node, question in list(self._open.items()):
            entry = self.circle.view.get(node)
            if entry is None or not entry.lives or entry.incarnation > question.claim.incarnation:
                del self._open[node]
            elif self.circle.lived_ms >= question.due_ms:
                del self._open[node]
                self.hear(question.claim, "")
