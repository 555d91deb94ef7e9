"""Finding what two nodes do not both have, and closing the gap: anti-entropy over sketches.

| node A | node B |
|---|---|
| each interval, and soon after news: its first 64 cells → | reads the difference off its own and these |
| | resolved: ← the rows that A lacks, and `Lacking`, the fingerprints of those that B lacks |
| the rows that B lacks → | not resolved: ← `CellsWanted`, as many as the estimate needs, and once more from the top |
| | too many for cells: ← all its fingerprints in sorted pages (`Prints`) |
| per page: the rows that B lacks, and `Lacking` → | |

Nothing is remembered between the steps: either side may change, crash or be asked by others meanwhile. What is
repeated is filtered as any row is. A node with next to nothing is sent every row.

A row that one side has and the other will not take (a version dropped by a rule that the other does not follow yet)
would differ for ever. What was exchanged without effect waits longer each time before it is exchanged again, and is
reported when it has waited for minutes: a peer that is merely slow has long taken it by then.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from protocol import messages as m
from protocol.cells import CELLS_MAX, PREFIX_CELLS
from protocol.context import Context
from protocol.differences import DIFFERENCES_MAX, cells_for, decode, estimate
from protocol.effects import ComparePrints, StreamPrints, StreamRows
from protocol.membership import Membership
from protocol.values import NodeId

QUIET_MS = 1_000  # sketches are compared when neither side changed for so long: rows under way are no difference
GOSSIP_INTERVALS_MAX = 3  # under a load that never rests, what differs for so long is exchanged all the same
STREAM_MS_MIN = 10_000  # between two exchanges of everything with one peer
NEARLY_NONE = 20  # a node with so many times fewer rows than its peer is sent all: to compare them would cost more
RETRY_MS_MIN, RETRY_MS_MAX = 2_000, 600_000  # from one exchange of a fingerprint with a peer to the next, in vain
RETRY_FACTOR = 4  # 2 s, 8, 32, 128, 512: five exchanges in eleven minutes
POISON_TRIES = 4  # exchanges in vain after which it is reported
TRIED_MAX = 100_000  # fingerprints remembered for that; above, all are forgotten and tried again


class Comparing:
    """Sends sketches, answers them, and asks for what is lacking."""

    def __init__(self, ctx: Context, members: Membership, random: Random) -> None:
        self.ctx = ctx
        self.members = members
        self.random = random
        self._changed_ms = 0
        self._due_ms = 0
        self._streamed_ms: dict[NodeId, int] = {}
        self._agreed_ms: dict[NodeId, int] = {}
        self._tried: dict[tuple[NodeId, int], tuple[int, int]] = {}  # how often, and when next
        self._forget_due_ms = 0

    def changed(self) -> None:
        """Rows were heard, or committed: a comparison waits until they have settled."""
        self._changed_ms = self.ctx.now_ms

    def session_up(self, peer: NodeId, fold: tuple[int, int]) -> None:
        """Of two that differ the one with the smaller id begins."""
        if fold == self.ctx.catalogue.sketch().fold():
            self._agreed_ms[peer] = self.ctx.now_ms
        elif self.ctx.node < peer:
            self._send_cells(peer, PREFIX_CELLS)

    def tick(self) -> None:
        """Our sketch to a random peer each interval, and, after news, to those whom a death would have cut off."""
        now = self.ctx.now_ms
        if now >= self._forget_due_ms:
            self._forget_due_ms = now + RETRY_MS_MAX
            self._tried = {key: tried for key, tried in self._tried.items() if now < tried[1] + RETRY_MS_MAX}
        if not self.members.sessions:
            return
        peers: list[NodeId] = []
        if self._changed_ms and now - self._changed_ms >= QUIET_MS:
            self._changed_ms = 0
            peers += self.members.beyond()
        if now >= self._due_ms:
            self._due_ms = now + int(self.ctx.routing.gossip_interval_seconds * 1000)
            peers.append(self.random.choice(sorted(self.members.sessions)))
        for peer in dict.fromkeys(peers):
            self._send_cells(peer, PREFIX_CELLS)

    # --- what peers send ---

    def cells(self, peer: NodeId, message: m.CellsMessage) -> None:
        """A peer's sketch: nothing to do, or rows each way, or another round with more."""
        own, theirs = self.ctx.catalogue.sketch(), message.cells
        if theirs.fold == own.fold():
            self._agreed_ms[peer] = self.ctx.now_ms
            return
        if self._still_settling(peer):
            return
        found = decode(own, theirs)
        if found.complete:
            if ours := self._fresh(peer, found.only_ours):
                self.ctx.emit(StreamRows(peer, ours))
            if theirs_alone := self._fresh(peer, found.only_theirs):
                self.ctx.send(peer, m.Lacking(theirs_alone))
            return
        differing = estimate(own, theirs)
        wanted = cells_for(differing, theirs.end)
        if differing <= DIFFERENCES_MAX and theirs.end == PREFIX_CELLS < min(wanted, len(own)):
            self.ctx.send(peer, m.CellsWanted(wanted))
        elif theirs.fold[0] * NEARLY_NONE < own.fold()[0]:
            self._stream(StreamRows(peer))
        elif own.fold()[0] * NEARLY_NONE < theirs.fold[0]:
            self.ctx.send(peer, m.Lacking(()))
        else:
            self._stream(StreamPrints(peer))

    def cells_wanted(self, peer: NodeId, message: m.CellsWanted) -> None:
        """From the first cell on, for our set may have changed since: cells of two states do not subtract."""
        self._send_cells(peer, message.count)

    def lacking(self, peer: NodeId, message: m.Lacking) -> None:
        """The peer asks for rows by fingerprint; none named means that it has none."""
        if message.fingerprints:
            self.ctx.emit(StreamRows(peer, message.fingerprints))
        else:
            self._stream(StreamRows(peer))

    def prints(self, peer: NodeId, message: m.Prints) -> None:
        """One page of all that the peer has; the driver compares it with ours, and sends and asks."""
        self.ctx.emit(ComparePrints(peer, message))

    # --- helpers ---

    def _still_settling(self, peer: NodeId) -> bool:
        """Whether rows under way may explain the difference; never for longer than some intervals."""
        now = self.ctx.now_ms
        agreed_ms = self._agreed_ms.setdefault(peer, now)  # or began to differ
        patience_ms = GOSSIP_INTERVALS_MAX * int(self.ctx.routing.gossip_interval_seconds * 1000)
        differing_ms = now - max(agreed_ms, self._streamed_ms.get(peer, 0))
        return now - self._changed_ms < QUIET_MS and differing_ms < patience_ms

    def _send_cells(self, peer: NodeId, count: int) -> None:
        self.ctx.send(peer, m.CellsMessage(self.ctx.catalogue.sketch().cells(0, min(count, CELLS_MAX))))

    def _fresh(self, peer: NodeId, fingerprints: Iterable[int]) -> tuple[int, ...]:
        """Those that were not exchanged with this peer just now: what it was sent may lie in its queue."""
        if len(self._tried) > TRIED_MAX:
            self._tried.clear()
        now, fresh, poison = self.ctx.now_ms, [], 0
        for fingerprint in fingerprints:
            tries, due_ms = self._tried.get((peer, fingerprint), (0, now))
            if now >= due_ms:
                fresh.append(fingerprint)
                wait_ms = min(RETRY_MS_MAX, RETRY_MS_MIN * RETRY_FACTOR**tries)
                self._tried[peer, fingerprint] = (tries + 1, now + wait_ms)
                poison += tries == POISON_TRIES
        if poison:
            self.ctx.report(
                "warning", "row_not_taken", f"{poison} rows still differ at {peer}: does it go by our file?"
            )
        return tuple(fresh)

    def _stream(self, effect: StreamRows | StreamPrints) -> None:
        """Everything, to one peer: bounded in time."""
        last = self._streamed_ms.get(effect.peer)
        if last is None or self.ctx.now_ms - last >= STREAM_MS_MIN:
            self._streamed_ms[effect.peer] = self.ctx.now_ms
            self.ctx.emit(effect)
