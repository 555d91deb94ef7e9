"""Spreading rows: told to all sessions once committed; what is heard is filtered, committed and acted upon.

A new row goes at once to both ring neighbours, and by them to theirs. Whom that did not reach is found by comparing
(see comparing.py). Only
committed rows count as seen. Who says what is outdated here is told what replaced it.
"""

from __future__ import annotations

from collections.abc import Callable

from protocol import messages as m
from protocol.comparing import Comparing
from protocol.context import Context
from protocol.membership import Membership
from protocol.names import publishable
from protocol.values import Batch, Holding, Member, NodeId, Record, Rows, State, joined, newer

PAGE_ROWS = 1_000  # rows in one message: about 200 kB of records
DIRECT_MAX = 2  # others that an author tells by itself: its two ring neighbours


class Spreading:
    """Tells news, and filters what it hears."""

    def __init__(
        self,
        ctx: Context,
        members: Membership,
        comparing: Comparing,
        heard: Callable[[Rows], None],
        beyond: Callable[[Record, list[Record]], bool],
    ) -> None:
        self.ctx = ctx
        self.members = members
        self.comparing = comparing
        self.heard = heard
        self.beyond = beyond
        self._told: list[tuple[Rows, NodeId]] = []  # what this event made known, and from whom it came

    def tell(self, rows: Rows) -> None:
        """Committed rows of our own making: to our own machines, and to the ring neighbours when this event ends."""
        if rows:
            self.comparing.changed()
            self._told.append((rows, self.ctx.node))
            self.heard(rows)

    def flush(self) -> None:
        """Send what this event made known, together: a commit of a thousand puts is one message, not a thousand."""
        if self._told:
            told, self._told = self._told, []
            for neighbour in sorted(self.members.neighbours()):
                self._send(joined(rows for rows, source in told if source != neighbour), neighbour)

    def received(self, peer: NodeId, rows: Rows) -> None:
        """Rows from a peer: commit what is news; act on it once it is durable. Answer what is outdated."""
        records = [record for record in rows.records if self._record_is_news(record)]
        holdings = [holding for holding in rows.holdings if self._holding_is_news(holding)]
        members = [member for member in rows.members if self._member_is_news(member)]
        news = Rows(tuple(records), tuple(holdings), tuple(members))
        if news:
            self.comparing.changed()
            self.ctx.commit(Batch(news), lambda: self._committed(news, peer))
        if len(records) + len(holdings) + len(members) < len(rows.records) + len(rows.holdings) + len(rows.members):
            self._answer_outdated(peer, rows)

    def _committed(self, news: Rows, source: NodeId) -> None:
        """News from a peer: forwarded once, by who learns it. Of two others its author tells both."""
        for record in news.records:
            self.ctx.clock.observe(record.hlc, self.ctx.now_ms)
        self.comparing.changed()
        if len(self.members.alive) > DIRECT_MAX:
            self._told.append((news, source))
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
            self.members.contradicted(member)
            return False
        return newer(self.ctx.catalogue.member(member.node), member)

    def _answer_outdated(self, peer: NodeId, rows: Rows) -> None:
        """Tell a peer what we know better than it: it would believe the old, and differ from us, for ever."""
        catalogue = self.ctx.catalogue
        records = ((row, catalogue.record(row.key)) for row in rows.records)
        holdings = ((row, catalogue.holding(row.key)) for row in rows.holdings)
        members = ((row, catalogue.member(row.node)) for row in rows.members)
        better = Rows(
            tuple(ours for row, ours in records if ours is not None and ours.state > row.state),
            tuple(ours for row, ours in holdings if ours is not None and ours.seq > row.seq),
            tuple(ours for row, ours in members if ours is not None and ours.seq > row.seq),
        )
        if better:
            self._send(better, peer)

    # --- sessions ---

    def session_up(self, peer: NodeId, hello: m.Hello) -> None:
        self._member_up(peer, hello.member)
        self.comparing.session_up(peer, hello.fold)

    def _member_up(self, peer: NodeId, member: Member) -> None:
        """The row a peer brings is news to us, and perhaps to others."""
        if newer(self.ctx.catalogue.member(peer), member):
            rows = Rows(members=(member,))
            self.ctx.commit(Batch(rows), lambda: self._introduce(rows, peer))

    def _introduce(self, rows: Rows, source: NodeId) -> None:
        """Who comes from outside the hosts file is known to nobody else yet."""
        if any(member.node not in self.ctx.fleet.hosts for member in rows.members):
            self._told.append((rows, source))
        self.heard(rows)

    def _send(self, rows: Rows, peer: NodeId) -> None:
        if rows:
            for page in pages(rows):
                self.ctx.send(peer, m.RowsMessage(page))


def pages(rows: Rows) -> list[Rows]:
    """Rows in messages of bounded size."""
    if len(rows.records) + len(rows.holdings) + len(rows.members) <= PAGE_ROWS:
        return [rows]
    out = [Rows(records=rows.records[at : at + PAGE_ROWS]) for at in range(0, len(rows.records), PAGE_ROWS)]
    out += [Rows(holdings=rows.holdings[at : at + PAGE_ROWS]) for at in range(0, len(rows.holdings), PAGE_ROWS)]
    out += [Rows(members=rows.members[at : at + PAGE_ROWS]) for at in range(0, len(rows.members), PAGE_ROWS)]
    return out
