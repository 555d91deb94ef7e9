"""Spreading rows: told to all sessions once committed, exchanged in full where two nodes differ.

First form. A new row goes at once to every session. Nodes compare folds (see fingerprints.py) at session start and each
gossip interval; where they differ both stream all their rows. Rings and sketches will take the place of this, behind
the same events. Only committed rows count as seen.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from protocol import messages as m
from protocol.context import Context
from protocol.effects import StreamRows
from protocol.membership import Membership
from protocol.names import publishable
from protocol.values import Batch, Holding, Member, NodeId, Record, Rows, State, newer

PAGE_ROWS = 1_000  # rows in one message: about 200 kB of records
QUIET_MS = 1_000  # folds are compared when neither side changed for so long: rows under way are no difference
GOSSIP_INTERVALS_MAX = 3  # under a load that never rests, folds that differ for so long are exchanged all the same
STREAM_MS_MIN = 10_000  # between two full exchanges with one peer
FOLD_PEERS = 1  # peers asked at each interval


class Spreading:
    """Tells news, filters what it hears, and finds out who lacks something."""

    def __init__(
        self,
        ctx: Context,
        members: Membership,
        random: Random,
        heard: Callable[[Rows], None],
        beyond: Callable[[Record, list[Record]], bool],
    ) -> None:
        self.ctx = ctx
        self.members = members
        self.random = random
        self.heard = heard
        self.beyond = beyond
        self._told: list[Rows] = []
        self._changed_ms = 0
        self._fold_due_ms = 0
        self._streamed_ms: dict[NodeId, int] = {}
        self._agreed_ms: dict[NodeId, int] = {}

    def tell(self, rows: Rows) -> None:
        """Committed rows of our own making: to our own machines, and to every session once this event is handled."""
        if rows:
            self._changed()
            self._told.append(rows)
            self.heard(rows)

    def flush(self) -> None:
        """Send what this event made known, together: a commit of a thousand puts is one message, not a thousand."""
        if self._told:
            told, self._told = self._told, []
            self._send(joined(told), list(self.members.alive))

    def received(self, peer: NodeId, rows: Rows) -> None:
        """Rows from a peer: commit what is news; act on it once it is durable."""
        news = Rows(
            tuple(record for record in rows.records if self._record_is_news(record)),
            tuple(holding for holding in rows.holdings if self._holding_is_news(holding)),
            tuple(member for member in rows.members if self._member_is_news(member)),
        )
        if news:
            self._changed()
            self.ctx.commit(Batch(news), lambda: self._committed(news))

    def _committed(self, news: Rows) -> None:
        for record in news.records:
            self.ctx.clock.observe(record.hlc, self.ctx.now_ms)
        self._changed()
        self.heard(news)

    def _record_is_news(self, record: Record) -> bool:
        if record.state is State.DELETED and not self._may_delete(record):
            self.ctx.report("warning", "delete_refused", f"{record.origin} can vanish and may not remove {record.name}")
            return False
        versions = self.ctx.versions(record.name)
        return not self.ctx.knows_among(record, versions) and not self.beyond(record, versions)

    def _may_delete(self, tombstone: Record) -> bool:
        """Deletes count from a persistent origin, or within the writer's own namespace."""
        kind = self.ctx.kind(tombstone.name)
        own = kind is not None and kind.namespace == "node" and publishable(tombstone.name, tombstone.origin, True)
        return own or not self.members.is_ephemeral(tombstone.origin)

    def _holding_is_news(self, holding: Holding) -> bool:
        """Statements about ourselves are ours alone: a wrong one is corrected, never taken over."""
        if holding.node == self.ctx.node:
            self._correct(holding)
            return False
        return self.ctx.news(holding)

    def _correct(self, holding: Holding) -> None:
        """Of an earlier life, or not of ours at all: repeat what is true, above the number it was said with."""
        if not self.ctx.news(holding):
            return
        self.ctx.clock.restate(holding.seq)
        present = holding.store == self.ctx.store and bool(self.ctx.places(holding.digest))
        correction = Holding(
            self.ctx.node, holding.store, holding.digest, self.ctx.clock.stamp(self.ctx.now_ms), present
        )
        rows = Rows(holdings=(correction,))
        self.ctx.commit(Batch(rows), lambda: self.tell(rows))

    def _member_is_news(self, member: Member) -> bool:
        if member.node == self.ctx.node:
            self.ctx.clock.restate(member.seq)
            return False
        return newer(self.ctx.catalogue.member(member.node), member)

    # --- finding differences ---

    def session_up(self, peer: NodeId, hello: m.Hello) -> None:
        self._member_up(peer, hello.member)
        if hello.fold != self.ctx.catalogue.fold():
            self._stream(peer, STREAM_MS_MIN if self._streamed_ms.get(peer) == self.ctx.now_ms else 0)

    def _member_up(self, peer: NodeId, member: Member) -> None:
        """The row a peer brings is news to us, and, for nodes outside the hosts file, to the others."""
        if newer(self.ctx.catalogue.member(peer), member):
            rows = Rows(members=(member,))
            others = [node for node in self.members.alive if node != peer]
            self.ctx.commit(Batch(rows), lambda: self._introduce(rows, others))

    def _introduce(self, rows: Rows, others: list[NodeId]) -> None:
        if any(member.node not in self.ctx.fleet.hosts for member in rows.members):
            self._send(rows, others)
        self.heard(rows)

    def fold(self, peer: NodeId, message: m.Fold) -> None:
        """Compare; where we differ, and nothing is under way, exchange in full."""
        if message.fold == self.ctx.catalogue.fold():
            self._agreed_ms[peer] = self.ctx.now_ms
            return
        agreed_ms = self._agreed_ms.setdefault(peer, self.ctx.now_ms)  # or began to differ
        settled = self.ctx.now_ms - max(agreed_ms, self._streamed_ms.get(peer, 0))
        patience = GOSSIP_INTERVALS_MAX * int(self.ctx.routing.gossip_interval_seconds * 1000)
        if self.ctx.now_ms - self._changed_ms < QUIET_MS and settled < patience:
            return
        if self._stream(peer, STREAM_MS_MIN) and not message.reply:
            self.ctx.send(peer, m.Fold(self.ctx.catalogue.fold(), reply=True))

    def tick(self) -> None:
        """Send our fold to a random peer each interval, and soon after news has settled."""
        now = self.ctx.now_ms
        due = now >= self._fold_due_ms or (self._changed_ms and now - self._changed_ms >= QUIET_MS)
        if not due or not self.members.alive:
            return
        self._fold_due_ms = now + int(self.ctx.routing.gossip_interval_seconds * 1000)
        self._changed_ms = 0
        for peer in self.random.sample(sorted(self.members.alive), min(FOLD_PEERS, len(self.members.alive))):
            self.ctx.send(peer, m.Fold(self.ctx.catalogue.fold()))

    def _stream(self, peer: NodeId, gap_ms: int) -> bool:
        last = self._streamed_ms.get(peer)
        if last is not None and self.ctx.now_ms - last < gap_ms:
            return False
        self._streamed_ms[peer] = self.ctx.now_ms
        self.ctx.emit(StreamRows(peer))
        return True

    def _changed(self) -> None:
        self._changed_ms = self.ctx.now_ms

    def _send(self, rows: Rows, peers: list[NodeId]) -> None:
        for peer in sorted(peers):
            for page in pages(rows):
                self.ctx.send(peer, m.RowsMessage(page))


def joined(several: list[Rows]) -> Rows:
    """All of these rows as one, in order."""
    if len(several) == 1:
        return several[0]
    return Rows(
        tuple(record for rows in several for record in rows.records),
        tuple(holding for rows in several for holding in rows.holdings),
        tuple(member for rows in several for member in rows.members),
    )


def pages(rows: Rows) -> list[Rows]:
    """Rows in messages of bounded size."""
    if len(rows.records) + len(rows.holdings) + len(rows.members) <= PAGE_ROWS:
        return [rows]
    out = [Rows(records=rows.records[at : at + PAGE_ROWS]) for at in range(0, len(rows.records), PAGE_ROWS)]
    out += [Rows(holdings=rows.holdings[at : at + PAGE_ROWS]) for at in range(0, len(rows.holdings), PAGE_ROWS)]
    out += [Rows(members=rows.members[at : at + PAGE_ROWS]) for at in range(0, len(rows.members), PAGE_ROWS)]
    return out
