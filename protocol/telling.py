"""How claims spread: flooded along the rings, carried by probes, and compared now and then.

What changes who is alive goes at once to both ring neighbours, who do the same: all know within about log2 n hops.
What changes an incarnation alone (a suspicion was refuted) goes on with the next tick, all of it together. A flood is
forwarded once, by who learns from it. Probes carry the latest news along for a while, which reaches whom a flood missed
because those before it on both rings had just died. And views are compared: by one number, by 64 when it differs, and
then the buckets that differ are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from protocol.circle import Circle
from protocol.claims import (
    BUCKETS,
    PAGE_CLAIMS_MAX,
    PIGGYBACK_MAX,
    Claim,
    Claims,
    Questions,
    ViewBuckets,
    ViewFold,
    ViewPage,
    Wake,
)
from protocol.values import NodeId
from protocol.view import folded

BATCH_MS = 50  # the first news goes at once; a mass of it in bundles, twenty a second
CARRY_FACTOR = 2  # each claim is carried by 2 log2 n probes and answers: λ of the SWIM paper
CARRIED_MAX = 512  # nodes whose news are carried; in a larger upheaval the comparison takes over
COMPARE_MS = 10_000  # 40 bytes to one peer; a difference that nothing else healed lasts this long times a few hops
QUIET_MS = 3_000  # news under way is no difference: a flood has passed within this
PATIENCE_MS = 60_000  # where news never ends, views are compared all the same
EXCHANGE_MS_MIN = 2_000  # a joiner that connects to twenty peers takes the list from one of them
ANSWERS_MAX = 4  # comparisons answered in one tick: at worst 4 x 450 kB to as many that join a fleet of 10,000


class Telling:
    """Floods, carries."""

    __slots__ = ("_carried", "_later", "_next_ms", "_questions", "_soon", "_woken", "changed_ms", "circle")

    def __init__(self, circle: Circle) -> None:
        self.circle = circle
        self.changed_ms = 0
        self._soon: dict[NodeId, NodeId] = {}  # and from whom we have it
        self._later: dict[NodeId, NodeId] = {}
        self._questions: dict[NodeId, tuple[Claim, NodeId]] = {}
        self._carried: dict[NodeId, int] = {}  # how many times more
        self._next_ms = 0
        self._woken = False

    def news(self, node: NodeId, source: NodeId, urgent: bool) -> None:
        """What we believe of a node has changed."""
        self.changed_ms = self.circle.now_ms
        if not urgent:
            self._later[node] = source
            return
        self._soon[node] = source
        self._carried.pop(node, None)
        if len(self._carried) >= CARRIED_MAX:
            del self._carried[next(iter(self._carried))]
        self._carried[node] = CARRY_FACTOR * (self.circle.view.alive + 1).bit_length()

    def question(self, claim: Claim, source: NodeId) -> None:
        """Ask the ring neighbours, with what else they are told."""
        self._questions[claim.node] = (claim, source)

    def tick(self) -> None:
        """What could wait goes now."""
        for node, source in self._later.items():
            self._soon.setdefault(node, source)
        self._later.clear()

    def flush(self) -> None:
        """Tell what is to be told at once, unless a bundle has just gone: then soon."""
        if not self._soon and not self._questions:
            return
        if self.circle.now_ms < self._next_ms:
            if not self._woken:
                self._woken = True
                self.circle.out.append(Wake(self._next_ms))
            return
        self._woken = False
        self._next_ms = self.circle.now_ms + BATCH_MS
        soon, self._soon = self._soon, {}
        questions, self._questions = self._questions, {}
        for peer in self.circle.told():
            self.tell(peer, (node for node, source in soon.items() if peer not in (source, node)))
            for page in _pages([claim for claim, source in questions.values() if peer != source]):
                self.circle.say(peer, Questions(page))

    def tell(self, peer: NodeId, nodes: Iterable[NodeId]) -> None:
        """What we believe of these nodes, in messages of bounded size."""
        claims = [claim for claim in map(self.circle.claim, nodes) if claim is not None]
        for page in _pages(claims):
            self.circle.say(peer, Claims(page))

    def carry(self) -> tuple[Claim, ...]:
        """Claims for a probe that goes anyway; in turn, each so many times."""
        if not self._carried:
            return ()
        nodes = list(self._carried)[:PIGGYBACK_MAX]
        for node in nodes:
            left = self._carried.pop(node) - 1
            if left:
                self._carried[node] = left
        return tuple(claim for claim in map(self.circle.claim, nodes) if claim is not None)


class Comparing:
    """Finds out whether two views differ, and exchanges what does."""

    __slots__ = ("_answered", "_asked_ms", "_exchanged_ms", "_telling", "circle", "hear")

    def __init__(self, circle: Circle, telling: Telling, hear: Callable[[tuple[Claim, ...], NodeId], object]) -> None:
        self.circle = circle
        self.hear = hear
        self._telling = telling
        self._asked_ms = 0
        self._exchanged_ms = -EXCHANGE_MS_MIN
        self._answered = 0

    def tick(self) -> None:
        """Ask any peer, now and then, when nothing is under way."""
        circle, waited_ms = self.circle, self.circle.now_ms - self._asked_ms
        self._answered = 0
        quiet = circle.now_ms - self._telling.changed_ms >= QUIET_MS
        if waited_ms >= COMPARE_MS and circle.sessions and (quiet or waited_ms >= PATIENCE_MS):
            self._asked_ms = circle.now_ms
            self._ask(circle.random.choice(sorted(circle.sessions)))

    def session_up(self, peer: NodeId) -> None:
        if self.circle.node < peer:  # one side asks
            self._ask(peer)

    def _ask(self, peer: NodeId) -> None:
        self.circle.say(peer, ViewFold(folded(self._folds())))

    def _folds(self) -> tuple[int, ...]:
        return self.circle.view.folds(self.circle.own())

    def asked(self, peer: NodeId, message: ViewFold) -> None:
        folds = self._folds()
        if message.fold != folded(folds) and self._answered < ANSWERS_MAX:
            self._answered += 1
            self.circle.say(peer, ViewBuckets(folds))

    def answered(self, peer: NodeId, message: ViewBuckets) -> None:
        """Send what we know in the buckets that differ, and want the same."""
        ours = self._folds()
        differing = tuple(b for b, fold in enumerate(message.folds[:BUCKETS]) if fold != ours[b])
        if differing and self.circle.now_ms - self._exchanged_ms >= EXCHANGE_MS_MIN:
            self._exchanged_ms = self.circle.now_ms
            self._send(peer, differing, wanted=differing)

    def paged(self, peer: NodeId, message: ViewPage) -> None:
        wanted = tuple(bucket for bucket in message.wanted if 0 <= bucket < BUCKETS)
        if wanted:
            self._send(peer, wanted, wanted=())
        self.hear(message.claims, peer)

    def _send(self, peer: NodeId, buckets: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        """All claims of these buckets; what is wanted in turn stands on the last page."""
        view, own = self.circle.view, self.circle.own()
        claims = [claim for bucket in buckets for claim in view.bucket(bucket)]
        claims.append(own)
        *pages, last = _pages(claims)
        for page in pages:
            self.circle.say(peer, ViewPage(page))
        self.circle.say(peer, ViewPage(last, wanted))


def _pages(claims: list[Claim]) -> list[tuple[Claim, ...]]:
    """In messages of bounded size."""
    return [tuple(claims[at : at + PAGE_CLAIMS_MAX]) for at in range(0, len(claims), PAGE_CLAIMS_MAX)]
