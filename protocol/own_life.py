"""Our own life: what others say of us, our incarnation, and other machines that live under our identity.

A claim that outranks what we say of ourselves is refuted by raising the incarnation above it. Nobody else raises it,
and it never falls: a life begins above all earlier ones (the boot number, persisted before use, is its upper part).
When a node was restored from an old snapshot its boot number has fallen back; others then remember it higher, and it
raises itself above what they remember.

Such a memory and a living twin look alike in a single claim. The memory does not answer: we raise ourselves by
`RIVAL_STEP` at once, and when the same instance is then claimed to stand above that, somebody raised it: a machine.
Of two, the younger yields; the older reports it and stays above.
"""

from __future__ import annotations

from protocol.circle import Circle
from protocol.claims import Claim, Standing, Twin
from protocol.telling import Telling

RIVAL_STEP = 64  # memories of one life lie closer together than this: each differs by a refutation or two
RIVALS_MAX = 8  # instances remembered; more than a few disks cloned from one is a fleet cloned from one
YOUNG_MS = 60_000  # a clone meets its original within seconds of the first session; half a minute is left for dials
CONTEST_MS = 10_000  # two old twins that met after a partition raise each other at most this often


class OwnLife:
    """Refutes, and finds twins out."""

    __slots__ = ("_contested", "_contested_ms", "_rivals", "_telling", "circle", "yielded")

    def __init__(self, circle: Circle, telling: Telling) -> None:
        self.circle = circle
        self.yielded = False
        self._telling = telling
        self._rivals: dict[int, int] = {}  # instance: its incarnation, above which we have raised ourselves
        self._contested: Claim | None = None
        self._contested_ms = -CONTEST_MS

    def heard(self, claim: Claim, peer: str) -> None:
        """A claim about ourselves, from a peer."""
        circle = self.circle
        if circle.leaving or self.yielded:
            return
        if claim.incarnation < circle.incarnation:
            self._telling.tell(peer, (circle.node,))  # it knows us from before
        elif claim.standing is not Standing.ALIVE:
            self._refute(claim, peer)
        elif claim.instance not in (0, circle.instance):
            self._rival(claim)
        elif claim.incarnation > circle.incarnation:
            self._raise(claim.incarnation + 1, urgent=True)

    def _refute(self, claim: Claim, peer: str) -> None:
        """Somebody had no answer from us: were we slow?"""
        suspected = claim.standing is Standing.SUSPECT
        self.circle.worsen()
        self._raise(claim.incarnation + 1, urgent=not suspected)
        rings, lives = self.circle.rings, self.circle.lives
        hearers = dict.fromkeys((peer, claim.by, *(rings.probers(self.circle.node, lives) if suspected else ())))
        for hearer in hearers:
            self._telling.tell(hearer, (self.circle.node,))

    def _rival(self, claim: Claim) -> None:
        seen = self._rivals.get(claim.instance)
        if seen is None or claim.incarnation <= seen:
            self._raise_above(claim)
            return
        why = f"another machine runs as {self.circle.node}: its disk or its identity was copied"
        if self.circle.lived_ms < YOUNG_MS:
            self.yielded = True
            self.circle.out.append(Twin(claim.instance, True, f"{why}; this one is the younger and must stop"))
        elif self.circle.now_ms - self._contested_ms < CONTEST_MS:
            self._contested = claim
        else:
            self._contest(claim)
            self.circle.out.append(Twin(claim.instance, False, f"{why}; stop it, and join it under a name of its own"))

    def tick(self) -> None:
        """A rival that came above us again too soon."""
        claim = self._contested
        if claim is not None and self.circle.now_ms - self._contested_ms >= CONTEST_MS:
            self._contest(claim)

    def _contest(self, claim: Claim) -> None:
        self._contested, self._contested_ms = None, self.circle.now_ms
        self._raise_above(claim)

    def _raise_above(self, claim: Claim) -> None:
        self._rivals.pop(claim.instance, None)
        if len(self._rivals) >= RIVALS_MAX:
            del self._rivals[next(iter(self._rivals))]
        self._rivals[claim.instance] = claim.incarnation
        self._raise(max(claim.incarnation, self.circle.incarnation) + RIVAL_STEP, urgent=True)

    def _raise(self, incarnation: int, urgent: bool) -> None:
        self.circle.incarnation = incarnation
        self._telling.news(self.circle.node, self.circle.node, urgent)
